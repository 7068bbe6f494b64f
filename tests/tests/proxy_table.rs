//! Whose connection is this? Every PROXY header, version 1 and 2, that has fooled somebody, against a node's own
//! sockets: from a listed balancer, from a stranger, from the front's own address; whole, split at every byte,
//! trickled, twice in a row, inside TLS. An address is believed exactly when the table says so, and the node serves
//! on afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::io::Result;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use posthouse_tests::kernel::until_read;
use posthouse_tests::{Device, Outcome, TestCluster, Wire, http_get, until};

/// How long a node waits for a header here.
const HEADER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(15);

const BALANCER: &str = "127.0.7.1";
const FRONT: &str = "127.0.0.2";
const STRANGER: &str = "127.0.9.9";

/// What must come of a header from a listed balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Then {
    /// The device is this one.
    Device(IpAddr),
    /// The balancer speaks for itself: it may greet and send nothing.
    Itself,
    /// Closed without a byte.
    Dropped,
}
use Then::{Dropped, Itself};

/// A header, and what follows it in the same segment.
#[derive(Clone, Debug)]
struct Vector {
    name: String,
    header: Vec<u8>,
    then: Then,
    /// Nothing follows the header: it is never complete.
    alone: bool,
}

fn vector(name: impl Into<String>, header: impl AsRef<[u8]>, then: Then) -> Vector {
    Vector { name: name.into(), header: header.as_ref().to_vec(), then, alone: false }
}

fn device(address: &str) -> Then {
    Then::Device(address.parse().unwrap())
}

/// doc/proxy-protocol.txt §2.1.
fn version_1() -> Vec<Vector> {
    let full = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let line = |text: &str, then: Then| vector(format!("v1 {text}"), format!("{text}\r\n"), then);
    let mut vectors = vec![
        line("PROXY TCP4 127.0.31.7 127.0.0.1 12345 25", device("127.0.31.7")),
        line("PROXY TCP4 127.0.31.8 127.0.0.1 0 0", device("127.0.31.8")),
        line("PROXY TCP4 127.0.31.9 127.0.0.1 65535 65535", device("127.0.31.9")),
        line("PROXY TCP4 127.0.9.7 127.0.0.1 12345 25", device("127.0.9.7")),
        line("PROXY TCP4 127.0.0.1 127.0.0.1 12345 25", device("127.0.0.1")),
        // The socket says which service it is, not the header.
        line("PROXY TCP4 127.0.31.10 127.0.0.1 12345 587", device("127.0.31.10")),
        line("PROXY TCP6 2001:db8::7 2001:db8::1 12345 25", device("2001:db8::7")),
        line("PROXY TCP6 ::1 ::1 12345 25", device("::1")),
        // One device has one address, however it is spelled.
        line("PROXY TCP6 ::ffff:127.0.31.11 ::ffff:127.0.0.1 12345 25", device("127.0.31.11")),
        line(&format!("PROXY TCP6 {full} {full} 65535 65535"), device(full)),
        line("PROXY UNKNOWN", Itself),
        line("PROXY UNKNOWN 127.0.31.7 127.0.0.1 12345 25", Itself),
        line(&format!("PROXY UNKNOWN {full} {full} 65535 65535"), Itself),
    ];
    let long_port = format!("PROXY TCP4 127.0.31.7 127.0.0.1 12345 {}25", "0".repeat(80));
    let long_unknown = format!("PROXY UNKNOWN {}", "x".repeat(92));
    for text in [
        "PROX",
        "PROXY",
        "PROXY ",
        "PROXY SOMETHING",
        "PROXY TCP4",
        "PROXY TCP4 ",
        "PROXY TCP4 127.0.31.7",
        "PROXY TCP4 127.0.31.7 127.0.0.1",
        "PROXY TCP4 127.0.31.7 127.0.0.1 12345",
        "PROXY TCP4 127.0.31.7 127.0.0.1 12345 ",
        "PROXY TCP4 127.0.31.7 127.0.0.1  25",
        "PROXY TCP4 127.0.31.7 127.0.0.1 12345 25 ",
        "PROXY TCP4 127.0.31.7 127.0.0.1 12345 25 extra",
        "PROXY  TCP4 127.0.31.7 127.0.0.1 12345 25",
        "PROXY TCP4  127.0.31.7 127.0.0.1 12345 25",
        "PROXY\tTCP4\t127.0.31.7\t127.0.0.1\t12345\t25",
        " PROXY TCP4 127.0.31.7 127.0.0.1 12345 25",
        "proxy tcp4 127.0.31.7 127.0.0.1 12345 25",
        "PROXY tcp4 127.0.31.7 127.0.0.1 12345 25",
        "PROXYjunk",
        "PROXYTCP4 127.0.31.7 127.0.0.1 12345 25",
        "PROXY TCP 127.0.31.7 127.0.0.1 12345 25",
        "PROXY TCP5 127.0.31.7 127.0.0.1 12345 25",
        "PROXY UDP4 127.0.31.7 127.0.0.1 12345 25",
        "PROXY TCP4 2001:db8::7 2001:db8::1 12345 25",
        "PROXY TCP4 ::ffff:127.0.31.7 ::ffff:127.0.0.1 12345 25",
        "PROXY TCP4 127.0.31.7 2001:db8::1 12345 25",
        "PROXY TCP6 127.0.31.7 127.0.0.1 12345 25",
        "PROXY TCP6 2001:db8::7 127.0.0.1 12345 25",
        "PROXY TCP6 fe80::7%eth0 fe80::1%eth0 12345 25",
        "PROXY TCP6 [2001:db8::7] [2001:db8::1] 12345 25",
        "PROXY TCP6 2001:db8:::7 2001:db8::1 12345 25",
        "PROXY TCP4 127.0.31.256 127.0.0.1 12345 25",
        "PROXY TCP4 127.0.31 127.0.0.1 12345 25",
        "PROXY TCP4 127.000.031.007 127.0.0.1 12345 25",
        "PROXY TCP4 0x7f.0.31.7 127.0.0.1 12345 25",
        "PROXY TCP4 2130714375 127.0.0.1 12345 25",
        "PROXY TCP4 127.0.31.7/32 127.0.0.1 12345 25",
        "PROXY TCP4 localhost localhost 12345 25",
        "PROXY TCP4 127.0.31.7 127.0.0.1 65536 25",
        "PROXY TCP4 127.0.31.7 127.0.0.1 -1 25",
        "PROXY TCP4 127.0.31.7 127.0.0.1 +12345 25",
        "PROXY TCP4 127.0.31.7 127.0.0.1 012345 25",
        "PROXY TCP4 127.0.31.7 127.0.0.1 00 25",
        "PROXY TCP4 127.0.31.7 127.0.0.1 0x19 25",
        "PROXY TCP4 127.0.31.7 127.0.0.1 12345 smtp",
        "PROXY TCP4 127.0.31.7 127.0.0.1 12345 25\0",
        "PROXY TCP4 127.0.31.7\0 127.0.0.1 12345 25",
        "PROXY TCP4 127.0.31.7 127.0.0.1 12345 25\r",
        "PROXY TCP4 127.0.31.7 127.0.0.1 12345 25\u{a0}",
        &long_port,
        &long_unknown,
        // Not headers at all: never guessed to be anything else.
        "EHLO device.example",
        "GET / HTTP/1.1",
        "",
        "\x16\x03\x01\x02",
    ] {
        vectors.push(line(text, Dropped));
    }
    for text in
        ["PROXY TCP4 127.0.31.7 127.0.0.1 12345 25\n", "PROXY TCP4 127.0.31.7 127.0.0.1 12345 25\rx", "PROXY \n"]
    {
        vectors.push(vector(format!("v1 {text:?}"), text, Dropped));
    }
    for text in ["P", "PROX", "PROXY TCP4 127.0.31.7 127.0.0.1 12345 25", "PROXY TCP4 127.0.31.7 127.0.0.1 12345 25\r"]
    {
        vectors.push(Vector { alone: true, ..vector(format!("v1 never ends {text:?}"), text, Dropped) });
    }
    vectors
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// doc/proxy-protocol.txt §2.2, with the length as it is.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    v2_of_length(command, family, rest, rest.len())
}

fn v2_of_length(command: u8, family: u8, rest: &[u8], length: usize) -> Vec<u8> {
    let length = u16::try_from(length).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, rest].concat()
}

fn ipv4(last: u8) -> Vec<u8> {
    vec![127, 0, 31, last, 127, 0, 0, 1, 0x30, 0x39, 0, 25]
}

fn ipv6(source: Ipv6Addr) -> Vec<u8> {
    [&source.octets()[..], &"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets(), &[0x30, 0x39, 0, 25]].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

/// RFC 3309's CRC32C, as §2.2.3 wants it: over the whole header, with the checksum itself as zeros.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

fn with_checksum(last: u8, change: u32) -> Vec<u8> {
    let mut header = v2(0x21, 0x11, &[ipv4(last), tlv(3, &[0; 4])].concat());
    let sum = crc32c(&header) ^ change;
    let at = header.len() - 4;
    header[at..].copy_from_slice(&sum.to_be_bytes());
    header
}

fn version_2() -> Vec<Vector> {
    let address = "2001:db8::7";
    let mapped = "::ffff:127.0.31.21";
    let both = |last: u8, more: Vec<u8>| v2(0x21, 0x11, &[ipv4(last), more].concat());
    let from = |last: u8| device(&format!("127.0.31.{last}"));
    let fill = |total: usize| tlv(4, &vec![0; total - 16 - 12 - 3]);
    let mut vectors = vec![
        vector("v2 TCP over IPv4", v2(0x21, 0x11, &ipv4(20)), from(20)),
        vector("v2 TCP over IPv6", v2(0x21, 0x21, &ipv6(address.parse().unwrap())), device(address)),
        vector("v2 an IPv4-mapped address", v2(0x21, 0x21, &ipv6(mapped.parse().unwrap())), device("127.0.31.21")),
        vector(
            "v2 TLVs",
            both(22, [tlv(1, b"smtp"), tlv(2, b"a.example"), tlv(4, b""), tlv(0xee, b"x")].concat()),
            from(22),
        ),
        vector("v2 unique id", both(23, tlv(5, b"0123456789abcdef")), from(23)),
        vector("v2 a unique id of 128 octets", both(24, tlv(5, &[b'x'; 128])), from(24)),
        vector("v2 checksum", with_checksum(25, 0), from(25)),
        vector("v2 the longest that is read", both(26, fill(4096)), from(26)),
        vector("v2 wrong checksum", with_checksum(27, 1), Dropped),
        vector(
            "v2 checksum of other addresses",
            {
                let mut header = with_checksum(28, 0);
                header[19] = 29;
                header
            },
            Dropped,
        ),
        vector("v2 checksum of three octets", both(30, tlv(3, &[0; 3])), Dropped),
        vector("v2 two checksums", both(30, [tlv(3, &[0; 4]), tlv(3, &[0; 4])].concat()), Dropped),
        vector("v2 two unique ids", both(30, [tlv(5, b"a"), tlv(5, b"b")].concat()), Dropped),
        vector("v2 one octet of a TLV", both(30, vec![4]), Dropped),
        vector("v2 two octets of a TLV", both(30, vec![4, 0]), Dropped),
        vector("v2 a TLV longer than the header", both(30, vec![4, 0, 1]), Dropped),
        vector("v2 a TLV that reaches into the session", both(30, vec![4, 0, 20]), Dropped),
        vector("v2 a TLV of 65535 octets", both(30, vec![4, 0xff, 0xff]), Dropped),
        vector("v2 65535 octets declared", v2_of_length(0x21, 0x11, &ipv4(30), 65_535), Dropped),
        vector("v2 longer than is read", both(30, fill(4097)), Dropped),
        vector("v2 LOCAL", v2(0x20, 0, &[]), Itself),
        vector("v2 LOCAL with addresses", v2(0x20, 0x11, &ipv4(7)), Itself),
        vector("v2 LOCAL of a family that is none", v2(0x20, 0xff, &ipv4(7)), Itself),
        vector("v2 LOCAL, shorter than its family", v2(0x20, 0x11, &[1, 2, 3, 4, 5]), Itself),
        vector("v2 LOCAL, what looks like the session", v2(0x20, 0x11, b"EHLO x\r\nMAIL FROM:<a@b>\r\n"), Itself),
        Vector { alone: true, ..vector("v2 half a signature", &SIGNATURE[..6], Dropped) },
        Vector { alone: true, ..vector("v2 no length", &v2(0x21, 0x11, &[])[..14], Dropped) },
        Vector { alone: true, ..vector("v2 one octet short", v2_of_length(0x21, 0x11, &ipv4(7)[..11], 12), Dropped) },
        vector(
            "v2 a broken signature",
            [&b"\r\n\r\n\0\r\nQUIT\r"[..], &[0x21, 0x11, 0, 12], &ipv4(7)].concat(),
            Dropped,
        ),
    ];
    for family in 0..=255 {
        // As many octets as any family has, so that nothing is refused for its length.
        let rest = match family {
            0x11 => ipv4(40),
            0x21 => ipv6(address.parse().unwrap()),
            _ => [ipv4(41), vec![0; 204]].concat(),
        };
        let then = match family {
            0x11 => from(40),
            0x21 => device(address),
            _ => Dropped,
        };
        vectors.push(vector(format!("v2 family {family:#04x}"), v2(0x21, family, &rest), then));
    }
    for command in (0..=255).filter(|command| !matches!(command, 0x20 | 0x21)) {
        vectors.push(vector(format!("v2 version and command {command:#04x}"), v2(command, 0x11, &ipv4(42)), Dropped));
    }
    for length in 0..12 {
        vectors.push(vector(format!("v2 IPv4 in {length} octets"), v2(0x21, 0x11, &ipv4(43)[..length]), Dropped));
    }
    let long = ipv6(address.parse().unwrap());
    for length in 0..36 {
        vectors.push(vector(format!("v2 IPv6 in {length} octets"), v2(0x21, 0x21, &long[..length]), Dropped));
    }
    vectors
}

/// How the bytes are sent.
#[derive(Clone, Copy, Debug)]
enum Pace {
    Whole,
    /// The second segment begins at this octet, when the first has been read.
    SplitAt(usize),
    /// Octet by octet, each when the one before has been read.
    Single,
}

fn send(wire: &mut Wire, bytes: &[u8], pace: Pace) -> Result<()> {
    let (server, client) = (wire.tcp().peer_addr()?, wire.local_addr());
    let pieces: Vec<&[u8]> = match pace {
        Pace::Whole => vec![bytes],
        Pace::SplitAt(at) => vec![&bytes[..at], &bytes[at..]],
        Pace::Single => bytes.chunks(1).collect(),
    };
    for (index, piece) in pieces.into_iter().enumerate() {
        if index > 0 {
            until_read(server, client);
        }
        wire.send(piece)?;
    }
    Ok(())
}

/// Sends a header from `peer` and says whose connection it is then, by what the session calls its client and lets it
/// do. A listed device's letter is sent, under `subject`.
fn whose(peer: &str, node: SocketAddr, vector: &Vector, pace: Pace, subject: &str) -> Result<Then> {
    let mut wire = Wire::connect(peer.parse().unwrap(), node)?;
    let follows: &[u8] = if vector.alone { b"" } else { b"EHLO device.example\r\n" };
    // The header ends where it says it does: the first octet behind it is the session's.
    send(&mut wire, &[&vector.header, follows].concat(), pace)?;
    if vector.then == Dropped {
        return match wire.until_closed(DEADLINE) {
            Some(said) if said.is_empty() => Ok(Dropped),
            Some(said) => Err(std::io::Error::other(format!("said {:?}", String::from_utf8_lossy(&said)))),
            None => Err(std::io::Error::other("is still open")),
        };
    }
    wire.expect("220")?;
    let hello = wire.expect("250-")?;
    let name = hello.split(['[', ']']).nth(1).unwrap_or_default().to_owned();
    let told = wire.command("MAIL FROM:<scan@corp.example>")?;
    if told.starts_with("503 5.5.1 Health probes may not send mail") && name == peer {
        return Ok(Itself);
    }
    let address: IpAddr = name.parse().map_err(|_| std::io::Error::other(hello.clone()))?;
    let told = wire.command("RCPT TO:<r@partner.example>")?;
    let listed = matches!(address, IpAddr::V4(v4) if v4.octets()[..3] == [127, 0, 31]);
    if !told.starts_with(if listed { "250" } else { "550 5.7.54" }) {
        return Err(std::io::Error::other(format!("{address} was told {told:?}")));
    }
    if listed {
        wire.expect_to("DATA", "354")?;
        wire.send(format!("Subject: {subject}\r\nMessage-ID: <{subject}@proxy.example>\r\n\r\nx\r\n.\r\n"))?;
        wire.expect("250 2.6.0")?;
    }
    Ok(Then::Device(address))
}

#[test]
fn an_address_is_believed_exactly_when_the_table_says_so() {
    let mut cluster = TestCluster::start_with(&format!(
        "[proxy_protocol]\ntrusted = [\"127.0.7.0/30\"]\nheader_timeout = \"{}s\"\n",
        HEADER_TIMEOUT.as_secs()
    ));
    for connector in ["default", "printers"] {
        cluster.ctl.ok(&["connector", "set", connector, "--max-inbound-connection-per-source", "unlimited"]);
    }
    let node = cluster.nodes[0].clone();
    let vectors: Vec<Vector> = version_1().into_iter().chain(version_2()).collect();
    let mut plays: Vec<(Vector, Pace)> = vectors.iter().map(|vector| (vector.clone(), Pace::Whole)).collect();
    for vector in [&vectors[0], vectors.iter().find(|vector| vector.name == "v2 checksum").unwrap()] {
        plays.extend((1..=vector.header.len()).map(|at| (vector.clone(), Pace::SplitAt(at))));
    }
    // An octet waits until the one before was read, which takes the time of a look at the kernel's table: beside 23
    // others such a header could come too late.
    let crowd = plays.len();
    plays.extend(
        [&vectors[0], vectors.iter().find(|vector| vector.name == "v2 checksum").unwrap()]
            .map(|vector| (vector.clone(), Pace::Single)),
    );
    let play = |number: usize| {
        let (vector, pace) = &plays[number];
        (number, whose(BALANCER, node.smtp, vector, *pace, &format!("proxy-{number}")))
    };
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= crowd {
                        return;
                    }
                    let outcome = play(number);
                    outcomes.lock().unwrap().push(outcome);
                }
            });
        }
    });
    println!("{} vectors, {} connections in {:?}", vectors.len(), plays.len(), began.elapsed());
    let (mut wrong, mut devices) = (Vec::new(), BTreeMap::new());
    let alone = (crowd..plays.len()).map(play);
    for (number, came) in outcomes.into_inner().unwrap().into_iter().chain(alone) {
        let (vector, pace) = &plays[number];
        match came {
            Ok(then) if then == vector.then => {
                if let Then::Device(address) = then {
                    devices.insert(format!("<proxy-{number}@proxy.example>"), address.to_string());
                }
            }
            other => wrong.push(format!("{} {pace:?}: {:?} was due, {other:?} came", vector.name, vector.then)),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), plays.len(), wrong.join("\n"));
    the_trace_says_so_too(&cluster, &devices);

    nobody_else_is_believed(&cluster, &vectors);
    patience_has_an_end(&cluster);
    what_follows_a_header_is_the_sessions(&cluster);

    // Nothing of it has hurt the node.
    let outcome = Device::new("127.0.31.7", node.smtp).send("still-serving", "x@partner.example");
    assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");
    let running = cluster.procs[0].as_mut().unwrap();
    assert!(running.child.try_wait().unwrap().is_none(), "the node still runs");
    assert!(!running.log_text().contains("panicked"), "a panic");
    let metrics = http_get(node.http, "/metrics").1;
    for result in ["ok", "missing", "unlisted", "unsigned"] {
        let counted = metrics.lines().any(|line| {
            line.starts_with("posthouse_proxy_headers_total{")
                && line.contains(&format!("result=\"{result}\""))
                && !line.ends_with(" 0")
        });
        assert!(counted, "{result} headers are counted");
    }
}

/// What the session called its client is what the spool remembers, and what `explain` decides about.
fn the_trace_says_so_too(cluster: &TestCluster, devices: &BTreeMap<String, String>) {
    let traced = cluster.ctl.json(&["message", "trace", "--connector", "printers", "--limit", "1000"]);
    let mut seen = 0;
    for message in traced["messages"].as_array().unwrap() {
        let id = message["message_id"].as_str().unwrap();
        let Some(device) = devices.get(id) else { continue };
        assert_eq!(message["client_ip"], device.as_str(), "{id}: {message}");
        seen += 1;
    }
    let listed = devices.values().filter(|device| device.starts_with("127.0.31.")).count();
    assert_eq!(seen, listed, "every letter of a listed device is traced");
    for device in devices.values().collect::<std::collections::BTreeSet<_>>() {
        let about = ["explain", "ip", device, "--from", "scan@corp.example", "--to", "r@partner.example"];
        let explained = cluster.ctl.json(&about);
        let listed = device.starts_with("127.0.31.");
        assert_eq!(explained["verdict"], if listed { "accept" } else { "reject" }, "{device}: {explained}");
        assert_eq!(explained["connector"], if listed { "printers" } else { "default" }, "{device}");
    }
}

/// A stranger with a header is closed, whatever it says; so is a process at the front's address without its key.
fn nobody_else_is_believed(cluster: &TestCluster, vectors: &[Vector]) {
    let claims: Vec<Vec<u8>> = vectors
        .iter()
        .filter(|vector| vector.then != Dropped)
        .map(|vector| vector.header.clone())
        .chain(
            ["127.0.0.1", "127.0.0.2", "127.0.7.1"]
                .map(|claimed| format!("PROXY TCP4 {claimed} 127.0.0.1 12345 25\r\n").into_bytes()),
        )
        .collect();
    let letter = b"EHLO device.example\r\nMAIL FROM:<a@corp.example>\r\nRCPT TO:<r@partner.example>\r\n";
    for (claim, target) in claims.iter().zip(cluster.nodes.iter().map(|node| node.smtp).cycle()) {
        let bytes = [&claim[..], letter].concat();
        let shown = String::from_utf8_lossy(claim).into_owned();
        let mut wire = Wire::connect(STRANGER.parse().unwrap(), target).unwrap();
        wire.send(&bytes).unwrap();
        let said = wire.until_closed(DEADLINE).unwrap_or_else(|| panic!("a stranger's {shown:?}: still open"));
        // The greeting may have crossed it; nothing that was sent is answered.
        let lines = String::from_utf8_lossy(&said).lines().count();
        assert!(lines <= 1 && (said.is_empty() || said.starts_with(b"220")), "a stranger's {shown:?}: {said:?}");
        // After the greeting it is no better.
        let mut wire = Wire::greeted(STRANGER, target).unwrap();
        wire.send(&bytes).unwrap();
        assert_eq!(wire.until_closed(DEADLINE).as_deref(), Some(&b""[..]), "a stranger's late {shown:?}");
        let mut wire = Wire::connect(FRONT.parse().unwrap(), target).unwrap();
        wire.send(&bytes).unwrap();
        assert_eq!(
            wire.until_closed(DEADLINE).as_deref(),
            Some(&b""[..]),
            "unsigned, from the front's address: {shown:?}"
        );
    }
    // The front's address without a header: not a device either, and never "the front's own address relays".
    let mut wire = Wire::connect(FRONT.parse().unwrap(), cluster.nodes[0].smtp).unwrap();
    wire.send(letter).unwrap();
    assert_eq!(wire.until_closed(DEADLINE).as_deref(), Some(&b""[..]));
}

/// A header that trickles is waited for as long as the node file says, and no longer.
fn patience_has_an_end(cluster: &TestCluster) {
    let node = cluster.nodes[0].smtp;
    let header = v2_of_length(0x21, 0x11, &ipv4(50), 2000);
    std::thread::scope(|scope| {
        let trickle = |bytes: Vec<u8>, what: &'static str| {
            scope.spawn(move || {
                let began = Instant::now();
                let mut wire = Wire::connect(BALANCER.parse().unwrap(), node).unwrap();
                let mut ended = None;
                // One octet now and then: the peer is never silent for long.
                for byte in bytes.chunks(1) {
                    if wire.send(byte).is_err() {
                        ended = Some(Vec::new());
                        break;
                    }
                    ended = wire.until_closed(Duration::from_millis(100));
                    if ended.is_some() || began.elapsed() > DEADLINE {
                        break;
                    }
                }
                let ended = ended.or_else(|| wire.until_closed(DEADLINE));
                assert_eq!(ended.as_deref(), Some(&b""[..]), "{what} is closed without a byte");
                let took = began.elapsed();
                assert!(took >= HEADER_TIMEOUT && took < DEADLINE, "{what} was given {took:?}");
            });
        };
        trickle([&header[..], &[0; 500]].concat(), "a long header, octet by octet");
        trickle(b"PROXY UNKNOWN ".iter().chain(&[b'x'; 80]).copied().collect(), "a line, octet by octet");
        trickle(Vec::new(), "silence");
        trickle(SIGNATURE.to_vec(), "a signature and silence");
    });
}

/// What stands behind a header belongs to the session, a second header too.
fn what_follows_a_header_is_the_sessions(cluster: &TestCluster) {
    let node = &cluster.nodes[0];
    let v1 = b"PROXY TCP4 127.0.9.21 127.0.0.1 12345 25\r\n".to_vec();
    let claims = [b"PROXY TCP4 127.0.31.7 127.0.0.1 12345 25\r\n".to_vec(), v2(0x21, 0x11, &ipv4(7))];
    for (first, second) in [v1.clone(), v2(0x21, 0x11, &[127, 0, 9, 21, 127, 0, 0, 1, 0x30, 0x39, 0, 25])]
        .iter()
        .flat_map(|first| claims.iter().map(move |second| (first, second)))
    {
        for late in [false, true] {
            let mut wire = Wire::connect(BALANCER.parse().unwrap(), node.smtp).unwrap();
            if late {
                wire.send(first).unwrap();
                wire.expect("220").unwrap();
                wire.send(second).unwrap();
            } else {
                wire.send([&first[..], second].concat()).unwrap();
                wire.expect("220").unwrap();
            }
            // A line of nonsense as any other, or several; the connection is still that of the first header.
            let hello = until(DEADLINE, "the session answers EHLO", || {
                let told = wire.command("EHLO device.example").expect("the session lives");
                told.starts_with("250").then_some(told)
            });
            assert!(hello.contains("Hello [127.0.9.21]"), "{hello}");
        }
    }

    // Implicit TLS: the header stands before the handshake, in one segment with it or not; inside it is nonsense.
    let trust = cluster.trust();
    let open = |header: &[u8]| {
        let mut wire = Wire::connect(BALANCER.parse().unwrap(), node.submissions).unwrap();
        wire.send(header).unwrap();
        wire.shake_hands(&trust)
    };
    let mut wire = open(&v1).unwrap();
    wire.expect("220").unwrap();
    wire.expect_to("PROXY TCP4 127.0.31.7 127.0.0.1 12345 25", "500 5.3.3").unwrap();
    let hello = wire.expect_to("EHLO device.example", "250").unwrap();
    assert!(hello.contains("Hello [127.0.9.21]"), "{hello}");
    let mut wire = Wire::connect(BALANCER.parse().unwrap(), node.submissions)
        .and_then(|wire| wire.shake_hands_behind(&v1, &trust))
        .expect("a header and a ClientHello in one segment");
    wire.expect("220").unwrap();
    let hello = wire.expect_to("EHLO device.example", "250").unwrap();
    assert!(hello.contains("Hello [127.0.9.21]"), "{hello}");
    assert!(open(b"").is_err(), "a ClientHello is no header");
}
