//! What a client may ask beyond RFC 5321, against real nodes: chunks, delivery status, addresses beyond ASCII, XCLIENT,
//! and what old devices are forgiven.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;

use posthouse_tests::cluster::START;
use posthouse_tests::dialog::Dialog;
use posthouse_tests::{TestCluster, http_get, until};

fn connect(source: &str, target: SocketAddr) -> Dialog {
    let mut dialog = Dialog::connect(source.parse().unwrap(), target).unwrap();
    let banner = dialog.reply().unwrap();
    assert!(banner.starts_with("220"), "{banner}");
    dialog
}

#[track_caller]
fn say(dialog: &mut Dialog, line: &str, expected: &str) -> String {
    let reply = dialog.command(line).unwrap();
    assert!(reply.starts_with(expected), "{line}: {reply}");
    reply
}

/// Sends `letter` in one chunk, and demands its acceptance.
fn send_chunk(dialog: &mut Dialog, letter: &str) {
    dialog.send(format!("BDAT {} LAST\r\n{letter}", letter.len()).as_bytes()).unwrap();
    let reply = dialog.reply().unwrap();
    assert!(reply.starts_with("250 2.6.0"), "{reply}");
}

/// The value of a series of a node; nothing where it is not there.
fn metric(http: SocketAddr, series: &str) -> Option<u64> {
    let (_, text) = http_get(http, "/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.and_then(|rest| rest.trim().parse().ok())
}

#[test]
fn letters_in_chunks_arrive_and_their_failures_are_reported_as_asked() {
    let cluster = TestCluster::start();
    let mut dialog = connect("127.0.31.7", cluster.smtp);
    let ehlo = say(&mut dialog, "EHLO app.example", "250");
    for keyword in ["PIPELINING", "DSN", "8BITMIME", "CHUNKING", "SMTPUTF8", "LIMITS RCPTMAX="] {
        assert!(ehlo.contains(&format!("-{keyword}")) || ehlo.contains(&format!(" {keyword}")), "{keyword}: {ehlo}");
    }
    assert!(!ehlo.contains("BINARYMIME") && !ehlo.contains("XCLIENT"), "{ehlo}");

    say(&mut dialog, "MAIL FROM:<scan@corp.example> RET=FULL ENVID=QQ+20314", "250");
    say(&mut dialog, "RCPT TO:<good@partner.example> NOTIFY=FAILURE", "250");
    say(&mut dialog, "RCPT TO:<reject-quiet@partner.example> NOTIFY=NEVER", "250");
    say(&mut dialog, "RCPT TO:<reject-loud@partner.example> NOTIFY=FAILURE ORCPT=rfc822;list@x.example", "250");
    let letter = "Message-ID: <chunks@device.example>\r\nX-MS-Exchange-Organization-AuthAs: Internal\r\n\
                  Subject: chunks\r\n\r\n.\r\nthe whole body\r\n.\r\n";
    let (first, second) = letter.split_at(40);
    dialog.send(format!("BDAT {}\r\n{first}", first.len()).as_bytes()).unwrap();
    assert_eq!(dialog.reply().unwrap(), "250 2.6.0 CHUNK received OK, 40 octets");
    send_chunk(&mut dialog, second);

    let arrived = cluster.letter_with("X-Envelope-To: <good@partner.example>");
    assert!(arrived.contains("Subject: chunks\r\n\r\n.\r\nthe whole body\r\n.\r\n"), "{arrived}");
    assert!(!arrived.to_ascii_lowercase().contains("x-ms-exchange-organization"), "{arrived}");
    let report = cluster.letter_with("multipart/report");
    assert!(report.contains("X-Envelope-To: <scan@corp.example>"), "{report}");
    assert!(report.contains("Original-Envelope-Id: QQ 314\r\n"), "{report}");
    assert!(
        report.contains(
            "Original-Recipient: rfc822; list@x.example\r\nFinal-Recipient: rfc822; reject-loud@partner.example\r\n"
        ),
        "{report}"
    );
    assert!(!report.contains("reject-quiet"), "NOTIFY=NEVER is never told:\n{report}");
    assert!(report.contains("message/rfc822") && report.contains("the whole body"), "RET=FULL:\n{report}");
}

#[test]
fn a_listed_proxy_speaks_for_others_and_a_stranger_for_nobody() {
    let cluster = TestCluster::start_with("[xclient]\ntrusted = [\"127.0.7.0/30\"]\n");
    let node = &cluster.nodes[0];
    let rcpt = |dialog: &mut Dialog| {
        say(dialog, "EHLO device.example", "250");
        say(dialog, "MAIL FROM:<a@corp.example>", "250");
        dialog.command("RCPT TO:<b@partner.example>").unwrap()
    };
    // The claimed address decides, in both directions, and again for the next client.
    let mut dialog = connect("127.0.7.1", node.smtp);
    assert!(say(&mut dialog, "EHLO filter.example", "250").contains("XCLIENT NAME ADDR PORT PROTO HELO LOGIN"));
    say(&mut dialog, "XCLIENT ADDR=127.0.31.7", "220");
    assert!(rcpt(&mut dialog).starts_with("250 2.1.5"));
    say(&mut dialog, "RSET", "250");
    say(&mut dialog, "XCLIENT ADDR=127.0.9.9 NAME=[UNAVAILABLE]", "220");
    assert!(rcpt(&mut dialog).starts_with("550 5.7.54"));
    // The letter's own trace names the client.
    say(&mut dialog, "RSET", "250");
    say(&mut dialog, "XCLIENT ADDR=127.0.31.8 HELO=printer.example PROTO=ESMTP", "220");
    say(&mut dialog, "MAIL FROM:<a@corp.example>", "250");
    say(&mut dialog, "RCPT TO:<b@partner.example>", "250");
    send_chunk(&mut dialog, "Message-ID: <xclient@device.example>\r\n\r\nhello\r\n");
    let letter = cluster.letter_with("xclient@device.example");
    assert!(letter.contains("Received: from printer.example ([127.0.31.8])"), "{letter}");
    // A claimed login proves nothing: on the submission service it is still nobody.
    let mut dialog = connect("127.0.7.1", node.submission);
    say(&mut dialog, &format!("XCLIENT ADDR=127.0.31.7 LOGIN={}", cluster.user), "220");
    say(&mut dialog, "EHLO device.example", "250");
    say(&mut dialog, "MAIL FROM:<scanner@corp.example>", "530 5.7.57");
    // Not listed: refused, unchanged, counted.
    for source in ["127.0.9.9", "127.0.31.7"] {
        let mut stranger = connect(source, node.smtp);
        let ehlo = say(&mut stranger, "EHLO x.example", "250");
        assert!(!ehlo.contains("XCLIENT"), "{ehlo}");
        say(&mut stranger, "XCLIENT ADDR=127.0.31.7", "550 5.7.0");
        let expected = if source == "127.0.9.9" { "550 5.7.54" } else { "250 2.1.5" };
        assert!(rcpt(&mut stranger).starts_with(expected), "{source}");
    }
    assert_eq!(metric(node.http, "posthouse_inbound_xclient_total{result=\"refused\"}"), Some(2));
    assert_eq!(metric(node.http, "posthouse_inbound_xclient_total{result=\"ok\"}"), Some(4));
}

#[test]
fn what_a_connector_forgives_is_forgiven_on_every_node_and_counted() {
    let cluster = TestCluster::start();
    let dialogue = |target: SocketAddr| {
        let mut dialog = connect("127.0.31.7", target);
        let replies: Vec<String> = ["HELO", "HELO x", "MAIL FROM: <a@corp.example>"]
            .map(|line| dialog.command(line).unwrap()[..3].to_owned())
            .into();
        (dialog, replies)
    };
    for node in &cluster.nodes {
        assert_eq!(dialogue(node.smtp).1, ["501", "250", "501"], "strict by default on {}", node.name);
    }
    let forgiven = "space_after_colon,helo_without_domain,repair_line_endings";
    cluster.ctl.ok(&["connector", "set", "printers", "--leniencies", forgiven]);
    for node in &cluster.nodes {
        let (mut dialog, replies) = dialogue(node.smtp);
        assert_eq!(replies, ["250", "250", "250"], "{}", node.name);
        say(&mut dialog, "RCPT TO: <b@partner.example>", "250");
        say(&mut dialog, "DATA", "354");
        let id = format!("lenient-{}@device.example", node.name);
        dialog.send(format!("Message-ID: <{id}>\n\nbare\n.\nfeeds\r\n.\r\n").as_bytes()).unwrap();
        assert!(dialog.reply().unwrap().starts_with("250 2.6.0"));
        assert!(cluster.letter_with(&id).contains("\r\n\r\nbare\r\n.\r\nfeeds\r\n"));
        for (leniency, uses) in [("helo_without_domain", 1), ("space_after_colon", 2), ("repair_line_endings", 1)] {
            until(START, "the use is counted", || {
                let (_, text) = http_get(node.http, "/metrics");
                let counted = text.lines().any(|line| {
                    line.starts_with("posthouse_inbound_leniencies_total{")
                        && line.contains(&format!("\"{leniency}\""))
                        && line.contains("connector=\"printers\"")
                        && line.ends_with(&format!(" {uses}"))
                });
                counted.then_some(())
            });
        }
        let log = cluster.procs[0].as_ref().unwrap().log_text();
        assert!(log.contains("device needs a leniency") && log.contains("127.0.31.7"), "the log names the device");
    }
}

/// Everything the server says until it closes.
fn until_closed(dialog: &mut Dialog) -> Vec<u8> {
    let mut said = Vec::new();
    // A reset is a close too: what we sent was not wanted.
    let _ = std::io::Read::read_to_end(&mut dialog.stream, &mut said);
    said
}

#[test]
fn nothing_in_the_clear_is_heard_behind_starttls() {
    let cluster = TestCluster::start();
    for target in [cluster.nodes[0].smtp, cluster.smtp] {
        // In the same segment, and one octet later.
        for injected in ["EHLO x.example\r\n", "MAIL FROM:<a@corp.example>\r\n", "A"] {
            let mut dialog = connect("127.0.31.7", target);
            say(&mut dialog, "EHLO app.example", "250");
            dialog.send(format!("STARTTLS\r\n{injected}").as_bytes()).unwrap();
            let reply = dialog.reply().unwrap();
            assert!(reply.starts_with("554 5.5.0 SMTP protocol synchronization error"), "{injected:?}: {reply}");
            assert_eq!(until_closed(&mut dialog), b"", "{injected:?}");
        }
        // Behind our 220 only a handshake is heard: plain commands are answered with an alert, if at all.
        let mut dialog = connect("127.0.31.7", target);
        say(&mut dialog, "EHLO app.example", "250");
        say(&mut dialog, "STARTTLS now", "501 5.5.4");
        say(&mut dialog, "MAIL FROM:<a@corp.example>", "250");
        say(&mut dialog, "STARTTLS", "220 2.0.0");
        dialog.send(b"RCPT TO:<b@partner.example>\r\nEHLO x.example\r\nMAIL FROM:<a@corp.example>\r\n").unwrap();
        let said = String::from_utf8_lossy(&until_closed(&mut dialog)).into_owned();
        assert!(!said.contains("250") && !said.contains("50"), "answered in the clear: {said:?}");
    }
}

#[test]
fn a_loop_through_one_of_us_is_cut_before_the_long_count() {
    let cluster = TestCluster::start();
    let node = &cluster.nodes[0];
    let send = |hops: usize| {
        let mut dialog = connect("127.0.31.7", node.smtp);
        say(&mut dialog, "EHLO app.example", "250");
        say(&mut dialog, "MAIL FROM:<a@corp.example>", "250");
        say(&mut dialog, "RCPT TO:<b@partner.example>", "250");
        say(&mut dialog, "DATA", "354");
        let hop = format!("Received: from a ([192.0.2.1])\r\n\tby {}.posthouse.example with ESMTP; x\r\n", node.name);
        dialog.send(format!("{}\r\nloop\r\n.\r\n", hop.repeat(hops)).as_bytes()).unwrap();
        dialog.reply().unwrap()
    };
    // Exchange's default of max_local_hop_count.
    assert!(send(8).starts_with("250 2.6.0"));
    assert!(send(9).starts_with("554 5.4.6 Hop count exceeded - possible mail loop"));
}
