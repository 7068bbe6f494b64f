//! Whom nodes believe: a front's header once and from now on, checks that leave no trace, and one string that finds a
//! session everywhere.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use posthouse_tests::cluster::Stage;
use posthouse_tests::dialog::Dialog;
use posthouse_tests::{Device, Outcome, TestCluster, try_http_get, until};

/// From where the front of a test dials.
const FRONT: &str = "127.0.0.2";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Stands between the front and one socket of a node, at the front's own address, and can keep a header for itself.
struct Between {
    address: SocketAddr,
    steal: Arc<AtomicUsize>,
    stolen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Between {
    fn start(node: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (steal, stolen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (left, kept) = (Arc::clone(&steal), Arc::clone(&stolen));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (left, kept) = (Arc::clone(&left), Arc::clone(&kept));
                std::thread::spawn(move || carry(stream.unwrap(), node, &left, &kept));
            }
        });
        Self { address, steal, stolen }
    }

    /// The next header that the front signs. The node never sees it.
    fn steal(&self) -> Vec<u8> {
        let before = self.stolen.lock().unwrap().len();
        self.steal.store(1, Ordering::SeqCst);
        until(Duration::from_secs(20), "a header to steal", || self.stolen.lock().unwrap().get(before).cloned())
    }
}

fn carry(mut front: TcpStream, node: SocketAddr, left: &AtomicUsize, kept: &Mutex<Vec<Vec<u8>>>) {
    let mut first = [0; 4096];
    let Ok(count @ 1..) = front.read(&mut first) else { return };
    let is_mine = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
    if is_mine {
        let length = 16 + usize::from(u16::from_be_bytes([first[14], first[15]]));
        assert!(first.starts_with(V2) && count >= length, "the front's first bytes are a whole header");
        return kept.lock().unwrap().push(first[..length].to_vec());
    }
    let Ok(dialog) = Dialog::connect(FRONT.parse().unwrap(), node) else { return };
    let mut to_node = dialog.stream;
    let _ = to_node.set_read_timeout(None);
    if to_node.write_all(&first[..count]).is_err() {
        return;
    }
    let (mut from_node, mut to_front) = (to_node.try_clone().unwrap(), front.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_node, &mut to_front);
        let _ = to_front.shutdown(std::net::Shutdown::Write);
    });
    let _ = std::io::copy(&mut front, &mut to_node);
    let _ = to_node.shutdown(std::net::Shutdown::Write);
}

/// What a node says to these bytes from the front's address, until it is silent or closes.
fn answer(node: SocketAddr, bytes: &[u8]) -> String {
    let mut dialog = Dialog::connect(FRONT.parse().unwrap(), node).unwrap();
    dialog.stream.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    dialog.send(bytes).unwrap();
    let mut said = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = dialog.stream.read(&mut buffer) {
        said.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// CRC32C (RFC 3720 §12.1), as doc/proxy-protocol.txt §2.2.2 wants it.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & 0u32.wrapping_sub(crc & 1)))
    })
}

/// The same header under a key that nobody knows, its checksum made right.
fn with_unknown_key(header: &[u8], key_id: &str) -> Vec<u8> {
    let mut header = header.to_vec();
    let at = header.windows(key_id.len()).position(|bytes| bytes == key_id.as_bytes()).expect("the key id is in it");
    let last = at + key_id.len() - 1;
    header[last] = if header[last] == b'z' { b'y' } else { b'z' };
    let mut tlv = 16;
    while header[tlv] != 3 {
        tlv += 3 + usize::from(u16::from_be_bytes([header[tlv + 1], header[tlv + 2]]));
    }
    header[tlv + 3..tlv + 7].fill(0);
    let sum = crc32c(&header).to_be_bytes();
    header[tlv + 3..tlv + 7].copy_from_slice(&sum);
    header
}

fn line(cluster: &TestCluster, node: &str) -> String {
    let (_, text) = cluster.front_page("/readyz?verbose");
    text.lines().find(|line| line.contains(&format!("backend/{node} "))).unwrap_or_default().to_owned()
}

fn until_in(cluster: &TestCluster, node: &str) {
    until(Duration::from_secs(40), "it is in rotation", || line(cluster, node).starts_with("[+]").then_some(()));
}

#[test]
fn a_header_is_believed_once_and_never_after_a_restart_and_no_longer_than_its_front() {
    let mut cluster = TestCluster::start();
    cluster.wait_healthy();
    let node = cluster.nodes[2].clone();
    let between = Between::start(node.smtp);
    let file = node.dir.join("node.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let advertised = format!("service_port = 25\nadvertise = \"{}\"\n", between.address);
    std::fs::write(&file, text.replacen("service_port = 25\n", &advertised, 1)).unwrap();
    cluster.kill_node(2);
    cluster.restart_node(2);
    let clocks = node.dir.join("data/front-clocks.json");
    until_in(&cluster, "n3");
    until(Duration::from_secs(30), "the node keeps how the front's clock goes: as its own", || {
        let kept: std::collections::BTreeMap<String, i64> =
            serde_json::from_slice(&std::fs::read(&clocks).ok()?).ok()?;
        kept.values().any(|ahead| (-50..=50).contains(ahead)).then_some(())
    });

    let header = between.steal();
    let introduced = |header: &[u8]| answer(node.smtp, &[header, b"EHLO x\r\n"].concat());
    assert!(introduced(&header).contains("250"), "a fresh header of the front");
    assert_eq!(answer(node.smtp, &header), "", "the same once more");
    let before = between.steal();
    let other = &cluster.nodes[0];
    assert_eq!(answer(other.smtp, &before), "", "one that is meant for another node");

    // Signed before the restart and never seen by the node: whether it was, only the process before could know.
    cluster.kill_node(2);
    cluster.restart_node(2);
    until(Duration::from_secs(60), "it is ready", || {
        try_http_get(node.http, "/readyz").is_ok_and(|(status, _)| status == 200).then_some(())
    });
    assert_eq!(answer(node.smtp, &before), "", "a header from before the restart");
    let began = Instant::now();
    until_in(&cluster, "n3");
    println!("in rotation {} ms after the node was ready", began.elapsed().as_millis());
    let refused = counted(&cluster.node_page(2, "/metrics").1, "posthouse_proxy_headers_total", "\"unsigned\"");
    assert_eq!(refused, 1, "fresh headers were refused after the restart");

    // A key that the node does not know: it may lag behind, and the front should ask others meanwhile.
    let shown = cluster.ctl.json(&["front", "show", "front1"]);
    let key_id = shown["key_ids"][0].as_str().unwrap().to_owned();
    let unknown = with_unknown_key(&between.steal(), &key_id);
    let (status, page) = until(Duration::from_secs(10), "an unknown key makes the node unready", || {
        assert_eq!(answer(node.smtp, &unknown), "");
        let (status, page) = try_http_get(node.http, "/readyz?verbose").ok()?;
        (status == 503).then_some((status, page))
    });
    assert!(page.contains("signs with key"), "{status}: {page}");
    until(Duration::from_secs(5), "the front knows", || line(&cluster, "n3").contains("signs with key").then_some(()));
    let outcome = Device::new("127.0.31.7", cluster.smtp).send("unknown-key", "x@partner.example");
    assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");
    until_in(&cluster, "n3");

    // Removed: what it signs is nothing any more, for anybody.
    let mut open = Dialog::connect("127.0.31.8".parse().unwrap(), cluster.smtp).unwrap();
    open.reply().unwrap();
    assert!(open.command("EHLO device.example").unwrap().starts_with("250"));
    assert!(open.command("MAIL FROM:<scan@corp.example>").unwrap().starts_with("250"));
    cluster.ctl.ok(&["front", "remove", "front1", "--yes"]);
    let said = open.command("RCPT TO:<x@partner.example>").unwrap();
    assert!(said.starts_with("421 4.3.2"), "a session that it vouched for goes on: {said}");
    // From an address that is nobody's now a header is what a stranger says: the end.
    let after = introduced(&between.steal());
    assert!(!after.contains("250"), "what a removed front signs is believed: {after}");
    for number in 0..6 {
        let outcome = Device::new("127.0.31.7", cluster.smtp).send(&format!("removed-{number}"), "x@partner.example");
        assert!(!matches!(outcome, Outcome::Promised(_)), "a node took a letter through a front that was removed");
    }
}

/// The number of a metric with these words in its labels.
fn counted(page: &str, name: &str, label: &str) -> u64 {
    let lines = page.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[test]
fn checks_leave_no_trace_and_one_string_finds_a_session_everywhere() {
    let debug = "[log]\nlevel = \"debug\"\n";
    let stage = Stage { node_lines: debug, front_lines: debug, ..Stage::loopback() };
    let cluster = TestCluster::start_on(&stage);
    cluster.wait_healthy();
    (1..4).for_each(|node| until_in(&cluster, &format!("n{node}")));
    let session = Device::new("127.0.31.7", cluster.smtp).send("one-string", "x@partner.example");
    assert!(matches!(session, Outcome::Promised(_)), "{session:?}");
    cluster.letter_with("one-string@device.example");
    let traced = cluster.ctl.json(&["message", "trace", "--message-id", "<one-string@device.example>"]);
    let id = traced["messages"][0]["session_id"].as_str().expect("its session").to_owned();
    assert_eq!(id.len(), 16, "{id}");
    until(Duration::from_secs(5), "the front's log has it", || {
        let log = cluster.front.as_ref().unwrap().log_text();
        log.lines().any(|line| line.contains(&id) && line.contains("session opened")).then_some(())
    });
    until(Duration::from_secs(5), "a node's log has it", || {
        let logs = cluster.procs.iter().flatten().map(posthouse_tests::Proc::log_text);
        let having: Vec<_> = logs.filter(|log| log.contains(&id)).collect();
        assert!(having.len() < 2, "two nodes had the session");
        having.first().map(drop)
    });

    // Nothing but checks from now on: no line about a connection, and nothing counted as one.
    let inbound = |page: &str| {
        let lines = page.lines().filter(|line| line.starts_with("posthouse_inbound_"));
        lines.map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    let checks = |page: &str| counted(page, "posthouse_proxy_headers_total", "command=\"local\"");
    let mentions = |index: usize| {
        let log = cluster.procs[index].as_ref().unwrap().log_text();
        log.lines().filter(|line| line.contains("inbound") || line.contains(FRONT)).count()
    };
    let page = |index: usize| cluster.node_page(index, "/metrics").1;
    let before: Vec<_> = (0..3).map(|index| (page(index), mentions(index))).collect();
    for (index, (first, lines)) in before.iter().enumerate() {
        // Every fourth goes through STARTTLS.
        let now = until(Duration::from_secs(20), "ten checks", || {
            let now = page(index);
            (checks(&now) >= checks(first) + 10).then_some(now)
        });
        assert_eq!(inbound(&now), inbound(first), "n{}: checks are counted", index + 1);
        assert_eq!(mentions(index), *lines, "n{}: checks are logged", index + 1);
    }
}

#[test]
fn tls_from_the_first_byte_survives_a_sick_node_and_a_long_hello() {
    // No slow start: each node has its share from the first device.
    let cluster = TestCluster::start_on(&Stage { front_lines: "[check]\nslowstart = \"0s\"\n", ..Stage::loopback() });
    cluster.wait_healthy();
    (1..4).for_each(|node| until_in(&cluster, &format!("n{node}")));
    let source: IpAddr = "127.0.31.7".parse().unwrap();
    // 16 KiB is what the front keeps to say it again: just below, and far above.
    for size in [256, 15 * 1024, 24 * 1024] {
        let trust = cluster.trust().with_hello_of(size);
        for round in 0..3 {
            let mut wire = posthouse_tests::Wire::implicit(&source.to_string(), cluster.submissions, &trust)
                .unwrap_or_else(|error| panic!("a ClientHello of {size} bytes, {round}: {error}"));
            wire.expect_to("EHLO device.example", "250").unwrap();
            wire.expect_to("QUIT", "221").unwrap();
        }
    }
    // A node that hangs beside two that do not: whoever is sent to it is given to another one, with its own hello.
    let stopped = (cluster.leader() + 1) % 3;
    cluster.procs[stopped].as_ref().unwrap().signal(rustix::process::Signal::STOP);
    let began = Instant::now();
    for (round, size) in [256, 256, 256, 15 * 1024, 15 * 1024, 15 * 1024].into_iter().enumerate() {
        let trust = cluster.trust().with_hello_of(size);
        let mut wire = posthouse_tests::Wire::implicit(&source.to_string(), cluster.submissions, &trust)
            .unwrap_or_else(|error| panic!("beside a node that hangs, {round}: {error}"));
        wire.expect_to("EHLO device.example", "250").unwrap();
        wire.expect_to("QUIT", "221").unwrap();
    }
    println!("6 sessions beside a node that hangs: {} ms", began.elapsed().as_millis());
    let (_, metrics) = cluster.front_page("/metrics");
    assert!(counted(&metrics, "posthouse_front_retries_total", "silent") > 0, "nobody met the node that hangs");
    cluster.procs[stopped].as_ref().unwrap().signal(rustix::process::Signal::CONT);
}
