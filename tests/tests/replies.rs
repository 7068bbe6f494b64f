//! Every refusal, as its bytes come over the wire: code, enhanced code, the words that administrators search for, and
//! the session id at the end, by which everything else is found.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use posthouse_tests::wire::base64;
use posthouse_tests::{TestCluster, Trust, Wire, until};

const DEADLINE: Duration = Duration::from_secs(20);

/// Connectors with one limit each, by the address that they are for.
const CONNECTORS: &[(&str, &str)] = &[
    ("127.0.71.1", "--template anonymous-relay --max-inbound-connection-per-source unlimited"),
    ("127.0.71.2", "--template app"),
    ("127.0.71.3", "--template internal-only --tls off"),
    ("127.0.71.4", "--template anonymous-relay --reject-reserved-top-level-recipient-domains true"),
    ("127.0.71.5", "--template anonymous-relay --reject-reserved-second-level-recipient-domains true"),
    ("127.0.71.6", "--template anonymous-relay --reject-single-label-recipient-domains true"),
    ("127.0.71.7", "--template anonymous-relay --max-message-size 65536"),
    ("127.0.71.8", "--template anonymous-relay --max-header-size 4096"),
    ("127.0.71.9", "--template anonymous-relay --max-recipients-per-message 2"),
    ("127.0.71.10", "--template anonymous-relay --max-hop-count 3"),
    ("127.0.71.11", "--template anonymous-relay --require-ehlo-domain true"),
    ("127.0.71.12", "--template anonymous-relay --max-protocol-errors 1"),
    ("127.0.71.13", "--template anonymous-relay --enhanced-status-codes-enabled false"),
    ("127.0.71.14", "--template anonymous-relay --max-inbound-connection 1"),
    ("127.0.71.15", "--template anonymous-relay --max-inbound-connection-per-source 1"),
    ("127.0.71.16", "--template anonymous-relay --connection-inactivity-timeout 1s --connection-timeout 1h"),
    ("127.0.71.17", "--template anonymous-relay --connection-inactivity-timeout 1s --connection-timeout 2s"),
    (
        "127.0.71.18",
        "--auth-mechanism tls,basic_auth --permission-groups anonymous_users,exchange_users \
         --auth-tarpit-interval 0s --max-logon-failures 2",
    ),
    ("127.0.71.19", "--template anonymous-relay --pipelining-enabled false --size-enabled disabled"),
];

/// One refusal: what is said first, with how its answer begins; what is refused; and what is told then.
struct Refusal {
    source: &'static str,
    service: u16,
    before: &'static [(&'static str, &'static str)],
    last: &'static str,
    told: &'static str,
    closes: bool,
}

const fn on_25(
    source: &'static str,
    before: &'static [(&'static str, &'static str)],
    last: &'static str,
    told: &'static str,
) -> Refusal {
    Refusal { source, service: 25, before, last, told, closes: false }
}

const fn closing(refusal: Refusal) -> Refusal {
    Refusal { closes: true, ..refusal }
}

type Said = (&'static str, &'static str);
const EHLO: Said = ("EHLO device.example", "250");
const MAIL: Said = ("MAIL FROM:<scan@corp.example>", "250 2.1.0 Sender OK");
const RCPT: Said = ("RCPT TO:<r@corp.example>", "250 2.1.5 Recipient OK");
const DATA: Said = ("DATA", "354 Start mail input; end with <CRLF>.<CRLF>");
const STRANGER: &str = "127.0.9.9";
const RELAY: &str = "127.0.71.1";

const REFUSALS: &[Refusal] = &[
    // Who may do what.
    on_25(
        STRANGER,
        &[EHLO, MAIL],
        "RCPT TO:<r@partner.example>",
        "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain",
    ),
    Refusal {
        service: 587,
        ..on_25(
            STRANGER,
            &[EHLO],
            "MAIL FROM:<a@corp.example>",
            "530 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM",
        )
    },
    Refusal {
        service: 465,
        ..on_25(
            STRANGER,
            &[EHLO],
            "MAIL FROM:<a@corp.example>",
            "530 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM",
        )
    },
    on_25("127.0.71.2", &[EHLO], "MAIL FROM:<a@corp.example>", "451 5.7.3 STARTTLS is required to send mail"),
    // Authentication.
    Refusal { service: 587, ..on_25(STRANGER, &[EHLO], "AUTH LOGIN", "504 5.7.4 Unrecognized authentication type") },
    on_25("127.0.71.18", &[EHLO], "AUTH NTLM", "504 5.7.4 Unrecognized authentication type"),
    on_25("127.0.71.18", &[EHLO], "AUTH PLAIN AGEAYg==", "535 5.7.3 Authentication unsuccessful"),
    on_25(
        "127.0.71.18",
        &[EHLO, ("AUTH LOGIN", "334 VXNlcm5hbWU6"), ("YQ==", "334 UGFzc3dvcmQ6")],
        "Yg==",
        "535 5.7.3 Authentication unsuccessful",
    ),
    on_25("127.0.71.18", &[EHLO, ("AUTH PLAIN", "334")], "*", "501 5.7.0 Authentication cancelled"),
    on_25("127.0.71.18", &[EHLO, ("AUTH PLAIN", "334")], "not base64", "501 5.5.2 Invalid authentication response"),
    on_25("127.0.71.18", &[EHLO], "AUTH PLAIN AGE=", "501 5.5.2 Invalid authentication response"),
    on_25("127.0.71.18", &[EHLO], "AUTH PLAIN =", "501 5.5.2 Invalid authentication response"),
    on_25("127.0.71.18", &[EHLO], "AUTH", "501 5.5.4 Invalid arguments"),
    on_25(
        "127.0.71.18",
        &[EHLO, MAIL],
        "AUTH PLAIN AGEAYg==",
        "503 5.5.1 AUTH is not permitted during a mail transaction",
    ),
    // TLS.
    on_25("127.0.71.3", &[EHLO], "STARTTLS", "502 5.5.1 STARTTLS is not offered"),
    on_25(RELAY, &[EHLO], "STARTTLS now", "501 5.5.4 Invalid arguments"),
    Refusal { service: 465, ..on_25(STRANGER, &[EHLO], "STARTTLS", "503 5.5.1 TLS is already active") },
    // Sequence and syntax.
    on_25(RELAY, &[], "MAIL FROM:<a@corp.example>", "503 5.5.2 Send hello first"),
    on_25(RELAY, &[EHLO], "RCPT TO:<r@corp.example>", "503 5.5.2 Need mail command"),
    on_25(RELAY, &[EHLO, MAIL], "DATA", "503 5.5.2 Need rcpt command"),
    on_25(RELAY, &[EHLO, MAIL], "MAIL FROM:<a@corp.example>", "503 5.5.2 Sender already specified"),
    on_25(RELAY, &[EHLO], "XYZZY", "500 5.3.3 Unrecognized command"),
    on_25(RELAY, &[EHLO], "DATA now", "501 5.5.4 Invalid arguments"),
    on_25(RELAY, &[EHLO], "MAIL a@corp.example", "501 5.5.4 Invalid arguments"),
    on_25(RELAY, &[EHLO], "MAIL FROM:<a@corp.example> SIZE=x", "501 5.5.4 Invalid arguments"),
    on_25(RELAY, &[EHLO], "MAIL FROM:<a@corp.example> SIZE=1 SIZE=1", "501 5.5.4 Invalid arguments"),
    on_25(RELAY, &[EHLO], "MAIL FROM:<a@corp.example> COLOUR=red", "555 5.5.4 Unsupported parameter"),
    on_25("127.0.71.19", &[EHLO], "MAIL FROM:<a@corp.example> SIZE=1", "555 5.5.4 Unsupported parameter"),
    on_25(RELAY, &[], "EHLO", "501 5.5.4 Invalid domain name"),
    on_25(RELAY, &[], "EHLO not..a.name", "501 5.5.4 Invalid domain name"),
    closing(on_25("127.0.71.11", &[], "EHLO printer", "501 5.5.4 Invalid domain name")),
    on_25(RELAY, &[EHLO], "MAIL FROM:<a@@corp.example>", "501 5.1.7 Invalid address"),
    on_25(RELAY, &[EHLO, MAIL], "RCPT TO:<r@@corp.example>", "501 5.1.3 Invalid address"),
    on_25(RELAY, &[EHLO, MAIL], "RCPT TO:<>", "501 5.1.3 Invalid address"),
    on_25(RELAY, &[EHLO], "MAIL FROM:<a@corp.example>\nRSET", "500 5.5.2 Lines must end with CRLF"),
    closing(on_25(RELAY, &[EHLO, MAIL, RCPT], "DATA\r\nx", "554 5.5.0 SMTP protocol synchronization error")),
    closing(on_25(
        "127.0.71.12",
        &[EHLO, ("XYZZY", "500 5.3.3")],
        "XYZZY",
        "421 4.7.0 Too many errors on this connection, closing transmission channel",
    )),
    // Recipients.
    on_25("127.0.71.4", &[EHLO, MAIL], "RCPT TO:<r@partner.test>", "501 5.1.4 Recipient address reserved by RFC 2606"),
    on_25("127.0.71.5", &[EHLO, MAIL], "RCPT TO:<r@example.net>", "501 5.1.5 Recipient address reserved by RFC 2606"),
    on_25(
        "127.0.71.6",
        &[EHLO, MAIL],
        "RCPT TO:<r@intranet>",
        "501 5.1.6 Recipient addresses in single label domains not accepted",
    ),
    on_25("127.0.71.9", &[EHLO, MAIL, RCPT, RCPT], "RCPT TO:<r@corp.example>", "452 4.5.3 Too many recipients"),
    // The letter.
    on_25(
        "127.0.71.7",
        &[EHLO],
        "MAIL FROM:<a@corp.example> SIZE=65537",
        "552 5.3.4 Message size exceeds fixed maximum message size",
    ),
    on_25(
        "127.0.71.10",
        &[EHLO, MAIL, RCPT, DATA],
        "Received: a\r\nReceived: b\r\nReceived: c\r\nReceived: d\r\n\r\nx\r\n.",
        "554 5.4.6 Hop count exceeded - possible mail loop",
    ),
    closing(on_25(
        RELAY,
        &[EHLO, MAIL, RCPT, DATA],
        "Subject: x\r\n\r\nbare\nfeed\r\n.",
        "550 5.6.11 SMTPSEND.BareLinefeedsAreIllegal; bare CR or LF in message",
    )),
    closing(on_25(RELAY, &[EHLO, MAIL, RCPT, DATA], "Subject: x\r\n\r\nnul\0\r\n.", "550 5.6.0 NUL in message")),
    // Without enhanced codes there are none.
    on_25("127.0.71.13", &[EHLO], "RCPT TO:<r@corp.example>", "503 Need mail command"),
    on_25("127.0.71.13", &[EHLO], "XYZZY", "500 Unrecognized command"),
    // Not a client of ours.
    closing(on_25(RELAY, &[], "GET / HTTP/1.1", "500 5.3.3 Unrecognized command")),
];

struct Scene {
    node: [SocketAddr; 3],
    trust: Trust,
}

impl Scene {
    fn open(&self, source: &str, service: u16) -> Result<Wire> {
        match service {
            465 => Wire::implicit(source, self.node[2], &self.trust),
            587 => Wire::greeted(source, self.node[1]),
            _ => Wire::greeted(source, self.node[0]),
        }
    }

    fn play(&self, refusal: &Refusal) -> Result<()> {
        let mut wire = self.open(refusal.source, refusal.service)?;
        for (line, expected) in refusal.before {
            wire.expect_to(line, expected)?;
        }
        let told = wire.command(refusal.last)?;
        is_exactly(&told, refusal.told)?;
        if refusal.closes {
            let more = wire.until_closed(DEADLINE).ok_or_else(|| Error::other("still open"))?;
            return if more.is_empty() { Ok(()) } else { Err(Error::other(format!("and then {more:?}"))) };
        }
        wire.expect_to("NOOP", "250").map(drop)
    }
}

/// These words, and then the session id: 16 hexadecimal digits in brackets, and nothing behind them.
fn is_exactly(told: &str, words: &str) -> Result<()> {
    let id = told.strip_prefix(words).and_then(|rest| rest.strip_prefix(" [")).and_then(|rest| rest.strip_suffix(']'));
    if id.is_some_and(|id| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        return Ok(());
    }
    Err(Error::other(format!("{words:?} and a session id were due, {told:?} was told")))
}

#[track_caller]
fn must(told: Result<String>, words: &str) {
    is_exactly(&told.unwrap(), words).unwrap();
}

#[test]
fn every_refusal_has_the_bytes_that_are_searched_for() {
    let mut cluster = TestCluster::start();
    let ctl = |line: &str| cluster.ctl.ok(&line.split_ascii_whitespace().collect::<Vec<_>>());
    ctl("connector set default --max-inbound-connection-per-source unlimited");
    for (source, flags) in CONNECTORS {
        ctl(&format!("connector create for-{source} --from {source} {flags}"));
    }
    let node = &cluster.nodes[0];
    let scene = Scene { node: [node.smtp, node.submission, node.submissions], trust: cluster.trust() };
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = REFUSALS
            .iter()
            .map(|refusal| {
                let scene = &scene;
                scope.spawn(move || {
                    let came = scene.play(refusal);
                    came.err()
                        .map(|error| format!("{} on {}: {:?}: {error}", refusal.source, refusal.service, refusal.last))
                })
            })
            .collect();
        running.into_iter().filter_map(|one| one.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), REFUSALS.len(), wrong.join("\n"));

    credentials(&cluster, &scene);
    letters(&scene);
    connections(&scene);
    time(&scene);
    absence(&mut cluster, &scene);
}

/// What depends on a login.
fn credentials(cluster: &TestCluster, scene: &Scene) {
    let submit = || {
        let mut wire = scene.open(STRANGER, 587).unwrap();
        wire.expect_to("EHLO device.example", "250").unwrap();
        let mut wire = wire.starttls(&scene.trust).unwrap();
        wire.expect_to("EHLO device.example", "250").unwrap();
        assert!(
            wire.auth_plain(&cluster.user, &cluster.password).unwrap().starts_with("235 2.7.0 Authentication succ")
        );
        wire
    };
    let mut wire = submit();
    let foreign = "550 5.7.60 SMTP; Client does not have permissions to send as this sender";
    must(wire.command("MAIL FROM:<boss@other.example>"), foreign);
    must(wire.command("MAIL FROM:<>"), foreign);
    must(wire.auth_plain(&cluster.user, &cluster.password), "503 5.5.1 Already authenticated");
    must(wire.command("AUTH LOGIN"), "503 5.5.1 Already authenticated");
    wire.expect_to("MAIL FROM:<scan@corp.example>", "250").unwrap();

    // Wrong once, wrong twice: the last failure is answered before the farewell.
    let mut wire = scene.open("127.0.71.18", 25).unwrap();
    wire.expect_to("EHLO device.example", "250").unwrap();
    must(wire.auth_plain(&cluster.user, "wrong"), "535 5.7.3 Authentication unsuccessful");
    must(wire.auth_plain("nobody@corp.example", "wrong"), "535 5.7.3 Authentication unsuccessful");
    must(wire.reply(), "421 4.7.0 Too many errors on this connection, closing transmission channel");
    assert_eq!(wire.until_closed(DEADLINE), Some(Vec::new()));
    // Somebody else's identity is not had by one's own password.
    let mut wire = scene.open("127.0.71.18", 25).unwrap();
    wire.expect_to("EHLO device.example", "250").unwrap();
    let other = base64(format!("boss@corp.example\0{}\0{}", cluster.user, cluster.password));
    must(wire.command(&format!("AUTH PLAIN {other}")), "535 5.7.3 Authentication unsuccessful");

    // A response longer than any is, and a command line longer than it may be.
    let mut wire = scene.open("127.0.71.18", 25).unwrap();
    wire.expect_to("EHLO device.example", "250").unwrap();
    let long = "A".repeat(13_000);
    must(wire.command(&format!("AUTH PLAIN {long}")), "500 5.5.6 Authentication exchange line is too long");
    wire.expect_to("AUTH PLAIN", "334").unwrap();
    must(wire.command(&long), "500 5.5.6 Authentication exchange line is too long");
    must(wire.command(&format!("VRFY {}", "x".repeat(600))), "500 5.5.2 Line too long");
    wire.expect_to("NOOP", "250").unwrap();
}

/// Letters that are too large, where their sender did not say so.
fn letters(scene: &Scene) {
    let begin = |source: &str| {
        let mut wire = scene.open(source, 25).unwrap();
        for (line, expected) in [EHLO, MAIL, RCPT, DATA] {
            wire.expect_to(line, expected).unwrap();
        }
        wire
    };
    let mut wire = begin("127.0.71.7");
    wire.send(format!("Subject: large\r\n\r\n{}.\r\n", format!("{}\r\n", "x".repeat(78)).repeat(1000))).unwrap();
    must(wire.reply(), "552 5.3.4 Message size exceeds fixed maximum message size");
    wire.expect_to("NOOP", "250").unwrap();
    let mut wire = begin("127.0.71.8");
    wire.send(format!("{}\r\nx\r\n.\r\n", format!("X-Long: {}\r\n", "x".repeat(70)).repeat(100))).unwrap();
    must(wire.reply(), "552 5.3.4 Header size exceeds fixed maximum size");
    wire.expect_to("NOOP", "250").unwrap();
    // Too many recipients: the letter goes on for those that were accepted.
    let mut wire = scene.open("127.0.71.9", 25).unwrap();
    for (line, expected) in [EHLO, MAIL, RCPT, ("RCPT TO:<s@corp.example>", "250")] {
        wire.expect_to(line, expected).unwrap();
    }
    must(wire.command("RCPT TO:<t@corp.example>"), "452 4.5.3 Too many recipients");
    wire.expect_to("DATA", "354").unwrap();
    wire.send("Subject: two of three\r\n\r\nx\r\n.\r\n").unwrap();
    wire.expect("250 2.6.0").unwrap();
    let mut wire = scene.open(RELAY, 25).unwrap();
    wire.expect_to("EHLO device.example", "250").unwrap();
    wire.send(b"MAIL FROM:<a@b\xc3\xbccher.example>\r\n").unwrap();
    must(wire.reply(), "553 5.6.7 Address is not ASCII and SMTPUTF8 was not requested");
}

/// Too many connections: said in place of a greeting.
fn connections(scene: &Scene) {
    for (source, told) in [
        (
            "127.0.71.14",
            "421 4.3.2 The maximum number of concurrent server connections has exceeded a limit, closing transmission \
             channel",
        ),
        (
            "127.0.71.15",
            "421 4.3.2 The maximum number of concurrent server connections has exceeded a per-source limit, closing \
             transmission channel",
        ),
    ] {
        let mut first = scene.open(source, 25).unwrap();
        let mut second = Wire::connect(source.parse().unwrap(), scene.node[0]).unwrap();
        must(second.reply(), told);
        assert_eq!(second.until_closed(DEADLINE), Some(Vec::new()));
        first.expect_to("QUIT", "221 2.0.0 Service closing transmission channel").unwrap();
        until(DEADLINE, "its place is free again", || scene.open(source, 25).ok());
    }
}

/// Silence, and age.
fn time(scene: &Scene) {
    let mut silent = scene.open("127.0.71.16", 25).unwrap();
    let began = Instant::now();
    let mut old = scene.open("127.0.71.17", 25).unwrap();
    let told = until(DEADLINE, "an old session is ended between two commands", || {
        let told = old.command("NOOP").unwrap();
        (!told.starts_with("250")).then_some(told)
    });
    must(Ok(told), "421 4.4.1 Connection timed out");
    assert!(began.elapsed() >= Duration::from_millis(1900), "ended after {:?}", began.elapsed());
    assert_eq!(old.until_closed(DEADLINE), Some(Vec::new()));
    must(silent.reply(), "451 4.7.0 Timeout waiting for client input");
    assert_eq!(silent.until_closed(DEADLINE), Some(Vec::new()));
}

/// Nobody there: no connector, a drained node, a node that stops.
fn absence(cluster: &mut TestCluster, scene: &Scene) {
    // The connection was opened for what is no longer so.
    let mut open = scene.open("127.0.71.1", 25).unwrap();
    open.expect_to("EHLO device.example", "250").unwrap();
    cluster.ctl.ok(&["connector", "delete", "for-127.0.71.1", "--yes"]);
    must(open.command("MAIL FROM:<a@corp.example>"), "421 4.3.2 Service not available, closing transmission channel");
    assert_eq!(open.until_closed(DEADLINE), Some(Vec::new()));

    cluster.ctl.ok(&["connector", "disable", "default", "--yes"]);
    let mut wire = Wire::connect("127.0.9.9".parse().unwrap(), scene.node[0]).unwrap();
    must(wire.reply(), "421 4.3.2 Service not available");
    assert_eq!(wire.until_closed(DEADLINE), Some(Vec::new()));
    cluster.ctl.ok(&["connector", "enable", "default"]);

    // A drained node has no session yet that could have an id.
    cluster.ctl.ok(&["node", "drain", "n3"]);
    let (mut wire, told) = until(Duration::from_secs(1), "the drained node refuses", || {
        let mut wire = Wire::connect("127.0.9.9".parse().unwrap(), cluster.nodes[2].smtp).unwrap();
        let told = wire.reply().unwrap();
        (!told.starts_with("220")).then_some((wire, told))
    });
    assert_eq!(told, "421 4.3.2 Service not active");
    assert_eq!(wire.until_closed(DEADLINE), Some(Vec::new()));
    cluster.ctl.ok(&["node", "resume", "n3"]);

    let mut idle = Wire::greeted("127.0.9.9", cluster.nodes[1].smtp).unwrap();
    let stopped = cluster.procs[1].take();
    std::thread::scope(|scope| {
        scope.spawn(move || assert_eq!(stopped.unwrap().terminate(), Some(0)));
        must(idle.reply(), "421 4.3.2 Service not available, closing transmission channel");
        assert_eq!(idle.until_closed(DEADLINE), Some(Vec::new()));
    });
}
