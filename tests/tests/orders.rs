//! Commands in orders that nobody may send them in, over the wire: never a letter that was not meant, never a session
//! that hangs; and `STARTTLS` with everything that clients and attackers have put around it (CVE-2011-0411,
//! CVE-2026-45185): nothing said in the clear counts once the switch was asked for.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Result;
use std::net::SocketAddr;
use std::time::Duration;

use posthouse_tests::wire::base64;
use posthouse_tests::{TestCluster, Trust, Wire, until};

/// How long a session may take to end or to answer. The connector's own limit is a third of it.
const DEADLINE: Duration = Duration::from_secs(9);

/// What is done, step by step.
enum Do {
    /// Send these bytes in one segment.
    Say(&'static str),
    /// Read one reply, which begins so.
    Hear(&'static str),
    /// Read replies until the server closes: each begins with one of these.
    Close(&'static [&'static str]),
    /// Close our own side, and wait for the server's.
    Hang,
}
use Do::{Close, Hang, Hear, Say};

struct Order {
    name: &'static str,
    /// Wait for the greeting first.
    polite: bool,
    steps: &'static [Do],
}

const fn order(name: &'static str, steps: &'static [Do]) -> Order {
    Order { name, polite: true, steps }
}

const EHLO: Do = Say("EHLO device.example\r\n");
const MAIL: Do = Say("MAIL FROM:<a@corp.example>\r\n");
const RCPT: Do = Say("RCPT TO:<b@corp.example>\r\n");
const OK: Do = Hear("250 ");
const HELLO: Do = Hear("250-");

/// Each ends in a session that still answers `NOOP`, unless its last step closes it.
const ORDERS: &[Order] = &[
    order("MAIL before EHLO", &[MAIL, Hear("503 5.5.2 Send hello first")]),
    order("RCPT before EHLO", &[RCPT, Hear("503 5.5.2 Send hello first")]),
    order("DATA before EHLO", &[Say("DATA\r\n"), Hear("503 5.5.2 Send hello first")]),
    order("RCPT before MAIL", &[EHLO, HELLO, RCPT, Hear("503 5.5.2 Need mail command")]),
    order("DATA before MAIL", &[EHLO, HELLO, Say("DATA\r\n"), Hear("503 5.5.2 Need mail command")]),
    order("DATA without RCPT", &[EHLO, HELLO, MAIL, OK, Say("DATA\r\n"), Hear("503 5.5.2 Need rcpt command")]),
    order(
        "DATA with no accepted RCPT",
        &[
            EHLO,
            HELLO,
            MAIL,
            OK,
            Say("RCPT TO:<b@@partner>\r\n"),
            Hear("501 5.1.3"),
            Say("DATA\r\n"),
            Hear("503 5.5.2 Need rcpt command"),
        ],
    ),
    order("MAIL twice", &[EHLO, HELLO, MAIL, OK, MAIL, Hear("503 5.5.2 Sender already specified"), RCPT, OK]),
    order("RCPT after RSET", &[EHLO, HELLO, MAIL, OK, Say("RSET\r\n"), OK, RCPT, Hear("503 5.5.2 Need mail command")]),
    order(
        "DATA after RSET",
        &[EHLO, HELLO, MAIL, OK, RCPT, OK, Say("RSET\r\n"), OK, Say("DATA\r\n"), Hear("503 5.5.2 Need mail command")],
    ),
    order("RCPT after a second EHLO", &[EHLO, HELLO, MAIL, OK, EHLO, HELLO, RCPT, Hear("503 5.5.2 Need mail command")]),
    order(
        "mail data before 354",
        &[
            EHLO,
            HELLO,
            MAIL,
            OK,
            RCPT,
            OK,
            Say("DATA\r\nSubject: unintended\r\n\r\nx\r\n.\r\n"),
            Close(&["554 5.5.0 SMTP protocol synchronization error"]),
        ],
    ),
    order(
        "commands behind DATA before 354",
        &[
            EHLO,
            HELLO,
            MAIL,
            OK,
            RCPT,
            OK,
            Say("DATA\r\nRSET\r\nMAIL FROM:<c@corp.example>\r\n"),
            Close(&["554 5.5.0 SMTP protocol synchronization error"]),
        ],
    ),
    order(
        "the whole letter in one segment",
        &[
            Say(
                "EHLO d\r\nMAIL FROM:<a@corp.example>\r\nRCPT TO:<b@corp.example>\r\nDATA\r\nSubject: unintended\r\n\r\n.\r\n",
            ),
            HELLO,
            OK,
            OK,
            Close(&["554 5.5.0"]),
        ],
    ),
    // DATA must be the last of its group (RFC 2920 §3.1): what stands behind it was written by somebody who does not
    // wait for 354, whether DATA is refused or not.
    order(
        "a letter to a DATA that was refused",
        &[
            EHLO,
            HELLO,
            MAIL,
            OK,
            Say("DATA\r\nSubject: unintended\r\n\r\none\r\ntwo\r\nthree\r\nfour\r\n.\r\n"),
            Close(&["554 5.5.0"]),
        ],
    ),
    order("a dot outside of mail data", &[EHLO, HELLO, Say(".\r\n"), Hear("500 5.3.3 Unrecognized command")]),
    Order { name: "an early talker", polite: false, steps: &[EHLO, Hear("220"), HELLO, MAIL, OK] },
    Order {
        name: "a letter before the greeting",
        polite: false,
        steps: &[
            Say(
                "EHLO d\r\nMAIL FROM:<a@corp.example>\r\nRCPT TO:<b@corp.example>\r\nDATA\r\nSubject: unintended\r\n\r\n.\r\n",
            ),
            Hear("220"),
            Close(&["250", "554 5.5.0"]),
        ],
    },
    order("AUTH before EHLO", &[Say("AUTH PLAIN AGEAYg==\r\n"), Hear("503 5.5.2 Send hello first")]),
    order("AUTH after HELO", &[Say("HELO d\r\n"), OK, Say("AUTH PLAIN AGEAYg==\r\n"), Hear("503 5.5.2")]),
    order(
        "AUTH within a transaction",
        &[EHLO, HELLO, MAIL, OK, Say("AUTH PLAIN AGEAYg==\r\n"), Hear("503 5.5.1"), RCPT, OK],
    ),
    order(
        "a command instead of the answer to a challenge",
        &[
            EHLO,
            HELLO,
            Say("AUTH LOGIN\r\n"),
            Hear("334 VXNlcm5hbWU6"),
            MAIL,
            Hear("501 5.5.2"),
            RCPT,
            Hear("503 5.5.2"),
        ],
    ),
    order(
        "commands behind AUTH that did not wait",
        &[
            EHLO,
            HELLO,
            Say("AUTH PLAIN AGEAYg==\r\nMAIL FROM:<a@corp.example>\r\n"),
            Hear("535 5.7.3 Authentication unsuccessful"),
            OK,
        ],
    ),
    order("commands behind QUIT", &[EHLO, HELLO, Say("QUIT\r\nMAIL FROM:<a@corp.example>\r\n"), Close(&["221 2.0.0"])]),
    order("SIZE after HELO", &[Say("HELO d\r\nMAIL FROM:<a@corp.example> SIZE=10\r\n"), OK, Hear("555 5.5.4")]),
    order("a request of the web", &[Say("POST / HTTP/1.1\r\nMAIL FROM:<a@corp.example>\r\n"), Close(&["500 5.3.3"])]),
    order("TLS without STARTTLS", &[Say("\x16\x03\x01\x02\x00\x01\r\n"), Close(&["500 5.3.3"])]),
    order(
        "mail data that never ends",
        &[
            EHLO,
            HELLO,
            MAIL,
            OK,
            RCPT,
            OK,
            Say("DATA\r\n"),
            Hear("354"),
            Say("Subject: unintended\r\n\r\nx\r\n"),
            Close(&["451 4.7.0 Timeout waiting for client input"]),
        ],
    ),
    order(
        "a connection that ends within mail data",
        &[
            EHLO,
            HELLO,
            MAIL,
            OK,
            RCPT,
            OK,
            Say("DATA\r\n"),
            Hear("354"),
            Say("Subject: unintended\r\n\r\nx\r\n."),
            Hang,
        ],
    ),
    order(
        "commands within mail data are text",
        &[
            EHLO,
            HELLO,
            MAIL,
            OK,
            RCPT,
            OK,
            Say("DATA\r\n"),
            Hear("354"),
            Say("Subject: intended\r\n\r\nSTARTTLS\r\nRSET\r\nQUIT\r\nDATA\r\nEHLO x\r\n.\r\n"),
            Hear("250 2.6.0"),
        ],
    ),
    order("a connection that ends within a command", &[EHLO, HELLO, Say("MAIL FROM:<a@corp.exam"), Hang]),
    order("silence after the greeting", &[Close(&["451 4.7.0 Timeout waiting for client input"])]),
    order("an empty line", &[EHLO, HELLO, Say("\r\n"), Hear("500 5.3.3")]),
    order("LF alone ends no command", &[EHLO, HELLO, Say("MAIL FROM:<a@corp.example>\nRSET\r\n"), Hear("500 5.5.2")]),
];

fn play(order: &Order, source: &str, target: SocketAddr) -> Result<()> {
    let mut wire =
        if order.polite { Wire::greeted(source, target)? } else { Wire::connect(source.parse().unwrap(), target)? };
    for step in order.steps {
        match step {
            Say(bytes) => wire.send(bytes)?,
            Hear(beginning) => {
                wire.expect(beginning)?;
            }
            Hang => {
                wire.finish();
                return wire.until_closed(DEADLINE).map(drop).ok_or_else(|| std::io::Error::other("not closed"));
            }
            Close(beginnings) => return closes(&mut wire, beginnings),
        }
    }
    wire.expect_to("NOOP", "250").map(drop)
}

/// Demands that every line still said begins with one of these, that something is said, and that the server closes.
fn closes(wire: &mut Wire, beginnings: &[&str]) -> Result<()> {
    let said =
        wire.until_closed(DEADLINE).ok_or_else(|| std::io::Error::other(format!("not closed in {DEADLINE:?}")))?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let last = said.lines().last().unwrap_or_default();
    let known = said.lines().all(|line| beginnings.iter().any(|beginning| line.starts_with(beginning)));
    if known && beginnings.last().is_some_and(|beginning| last.starts_with(beginning)) {
        return Ok(());
    }
    Err(std::io::Error::other(format!("said {said:?}")))
}

#[test]
fn no_order_of_commands_makes_a_letter_that_was_not_meant() {
    let cluster = TestCluster::start();
    // A minute of patience, as a default has it, would only make the test long.
    let connector = "connector create strange --from 127.0.61.0/24 --auth-mechanism tls,basic_auth \
                     --permission-groups anonymous_users,exchange_users --auth-tarpit-interval 0s \
                     --connection-inactivity-timeout 3s --max-inbound-connection-per-source unlimited";
    cluster.ctl.ok(&connector.split_ascii_whitespace().collect::<Vec<_>>());
    let targets = [("a node", cluster.nodes[1].smtp), ("the front", cluster.smtp)];
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (number, order) in ORDERS.iter().enumerate() {
            for (place, target) in targets {
                let source = format!("127.0.61.{}", 1 + number);
                running.push(scope.spawn(move || {
                    play(order, &source, target).err().map(|error| format!("{} at {place}: {error}", order.name))
                }));
            }
        }
        running.into_iter().filter_map(|one| one.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), 2 * ORDERS.len(), wrong.join("\n"));

    until(Duration::from_secs(30), "the two letters that were meant arrive", || {
        (cluster.filed_by_subject().get("intended").map_or(0, Vec::len) == 2).then_some(())
    });
    until(Duration::from_secs(20), "nothing is left in the queue", || {
        (cluster.ctl.json(&["queue", "summary"])["messages"] == 0).then_some(())
    });
    let filed = cluster.filed_by_subject();
    assert_eq!(filed.len(), 1, "a letter that was not meant: {:?}", filed.keys());
    println!("{} orders at {} places", ORDERS.len(), targets.len());

    starttls_forgets_the_clear(&cluster);
}

/// The cases of the published STARTTLS tables, by their letters.
fn starttls_forgets_the_clear(cluster: &TestCluster) {
    let trust = cluster.trust();
    let target = cluster.nodes[1].smtp;
    let open = |source: &str| {
        let mut wire = Wire::greeted(source, target).unwrap();
        wire.expect_to("EHLO before.example", "250").unwrap();
        wire
    };

    // (a), (b): anything behind STARTTLS in its segment.
    for behind in [
        "EHLO x\r\n",
        "MAIL FROM:<a@corp.example>\r\n",
        "RSET\r\n",
        "EHLO x\r\nMAIL FROM:<a@corp.example>\r\nRCPT TO:<b@corp.example>\r\nDATA\r\nSubject: injected\r\n\r\n.\r\n",
        "x",
        "\n",
    ] {
        let mut wire = open("127.0.61.201");
        wire.send(format!("STARTTLS\r\n{behind}")).unwrap();
        closes(&mut wire, &["554 5.5.0 SMTP protocol synchronization error"])
            .unwrap_or_else(|error| panic!("behind STARTTLS {behind:?}: {error}"));
    }
    // The same a moment later: after the 220 nothing but a handshake is listened to.
    for behind in ["EHLO x\r\n", "MAIL FROM:<a@corp.example>\r\n", "QUIT\r\n"] {
        let mut wire = open("127.0.61.202");
        wire.expect_to("STARTTLS", "220 2.0.0").unwrap();
        wire.send(behind).unwrap();
        let said = wire.until_closed(DEADLINE).expect("closed");
        assert!(!said.starts_with(b"2") && !said.starts_with(b"5"), "cleartext was answered: {said:?}");
    }

    // (c): what was said before is gone: the login, the sender, the recipients.
    let mut wire = open("127.0.61.203");
    assert!(wire.auth_plain(&cluster.user, &cluster.password).unwrap().starts_with("235"));
    wire.expect_to("MAIL FROM:<scan@corp.example>", "250").unwrap();
    wire.expect_to("RCPT TO:<b@partner.example>", "250").unwrap();
    let mut wire = wire.starttls(&trust).unwrap();
    // (j): and so is the name.
    wire.expect_to("DATA", "503 5.5.2 Send hello first").unwrap();
    wire.expect_to("MAIL FROM:<scan@corp.example>", "503 5.5.2 Send hello first").unwrap();
    // (i): what is offered now.
    let offered = wire.expect_to("EHLO after.example", "250-").unwrap();
    assert!(!offered.contains("STARTTLS") && offered.contains("AUTH LOGIN PLAIN"), "{offered}");
    wire.expect_to("DATA", "503 5.5.2 Need mail command").unwrap();
    wire.expect_to("MAIL FROM:<scan@corp.example>", "250").unwrap();
    wire.expect_to("RCPT TO:<b@partner.example>", "550 5.7.54").unwrap();
    wire.expect_to("RCPT TO:<b@corp.example>", "250").unwrap();
    wire.expect_to("DATA", "354").unwrap();
    wire.send("Subject: after the switch\r\n\r\nx\r\n.\r\n").unwrap();
    wire.expect("250 2.6.0").unwrap();
    let letter = until(Duration::from_secs(30), "the letter after the switch", || {
        cluster.filed_by_subject().remove("after the switch")?.pop()
    });
    assert!(letter.header().contains("after.example") && !letter.header().contains("before.example"));
    assert!(letter.header().contains(" with ESMTPS "), "the login was forgotten: {}", letter.header());
    // (f): no second time.
    wire.expect_to("STARTTLS", "503 5.5.1 TLS is already active").unwrap();
    wire.expect_to("NOOP", "250").unwrap();

    // (d): the word is no command where no command stands.
    let mut wire = open("127.0.61.204");
    wire.expect_to("MAIL FROM:<starttls@corp.example>", "250").unwrap();
    wire.expect_to("RCPT TO:<STARTTLS@corp.example>", "250").unwrap();
    wire.expect_to("DATA", "354").unwrap();
    wire.send("Subject: the word\r\n\r\nSTARTTLS\r\n.STARTTLS\r\n.\r\n").unwrap();
    wire.expect("250 2.6.0").unwrap();
    // (e): a parameter, and the verb with more behind it.
    wire.expect_to("STARTTLS now", "501 5.5.4").unwrap();
    wire.expect_to("STARTTLSX", "500 5.3.3").unwrap();
    wire.expect_to("NOOP", "250").unwrap();

    // (g): a handshake that fails ends the connection; the clear is not returned to.
    let mut wire = open("127.0.61.205");
    wire.expect_to("STARTTLS", "220").unwrap();
    // A record of a handshake that is none, and at once a command.
    wire.send(b"\x16\x03\x01\0\x04\x01\0\0\0MAIL FROM:<a@corp.example>\r\n").unwrap();
    let said = wire.until_closed(DEADLINE).expect("closed after a failed handshake");
    assert!(!String::from_utf8_lossy(&said).contains("5.5"), "cleartext was answered: {said:?}");
    // A client that believes another authority leaves; the node does not care.
    let foreign = foreign_trust(cluster);
    let mut wire = open("127.0.61.205");
    wire.expect_to("STARTTLS", "220").unwrap();
    assert!(wire.shake_hands(&foreign).is_err(), "a certificate of another authority was believed by the test");

    // (h): TLS's farewell within mail data, then cleartext (Exim's CVE-2026-45185).
    let mut wire = open("127.0.61.206").starttls(&trust).unwrap();
    wire.expect_to("EHLO after.example", "250").unwrap();
    wire.expect_to("MAIL FROM:<a@corp.example>", "250").unwrap();
    wire.expect_to("RCPT TO:<b@corp.example>", "250").unwrap();
    wire.expect_to("DATA", "354").unwrap();
    wire.send("Subject: farewell\r\n\r\nx\r\n").unwrap();
    wire.close_notify().unwrap();
    // The node may have gone already, which is as well.
    let _ = wire.send_below(b".\r\nQUIT\r\n");
    let said = wire.until_closed(DEADLINE).expect("closed after the farewell");
    assert!(!String::from_utf8_lossy(&said).contains("250"), "a letter was taken in the clear: {said:?}");

    // 465: cleartext where TLS is due is nobody's letter.
    for target in [cluster.nodes[1].submissions, cluster.submissions] {
        let mut wire = Wire::connect("127.0.61.207".parse().unwrap(), target).unwrap();
        wire.send("EHLO x\r\nMAIL FROM:<a@corp.example>\r\n").unwrap();
        let said = wire.until_closed(DEADLINE).expect("closed without TLS on 465");
        assert!(!said.windows(3).any(|three| three == b"250"), "465 spoke in the clear: {said:?}");
    }
    // A login that waited for its second half when TLS began is not finished by the first line inside.
    let mut wire = open("127.0.61.208");
    wire.expect_to("AUTH LOGIN", "334").unwrap();
    wire.expect_to(&base64(&cluster.user), "334").unwrap();
    // These eight letters are base64: a password, and a wrong one.
    wire.expect_to("STARTTLS", "535 5.7.3").unwrap();
    let mut wire = wire.starttls(&trust).unwrap();
    wire.expect_to(&base64(&cluster.password), "500 5.").unwrap();

    until(Duration::from_secs(20), "nothing is left in the queue", || {
        (cluster.ctl.json(&["queue", "summary"])["messages"] == 0).then_some(())
    });
    let mut subjects: Vec<String> = cluster.filed_by_subject().into_keys().collect();
    subjects.sort();
    assert_eq!(subjects, ["after the switch", "intended", "the word"], "only these letters were meant");
}

/// Believes the front's own certificate authority of another cluster: a fresh, self-made one.
fn foreign_trust(cluster: &TestCluster) -> Trust {
    let path = cluster.path().join("foreign.pem");
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=another authority", "-keyout", "/dev/null", "-out"])
        .arg(&path)
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Trust::of(&path)
}
