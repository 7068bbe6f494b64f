//! Dialogues written down: Exchange's nine fields, errors alone, verbose for a while, no secret, one line a record.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use posthouse_tests::cluster::NodeAddresses;
use posthouse_tests::{Device, Outcome, TestCluster, Wire, until};

const CANARY: &str = "canary-Zq7-password";
/// The password of a credential that exists.
const GOOD_CANARY: &str = "canary-Yk4-right-password";
const PATIENCE: Duration = Duration::from_secs(10);

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// All that the node has written, file after file.
fn written(node: &NodeAddresses) -> String {
    let Ok(entries) = std::fs::read_dir(node.dir.join("data/protocol-log")) else { return String::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()).collect()
}

/// The events and data of the sessions of `source`.
fn of(node: &NodeAddresses, source: &str) -> Vec<(String, String)> {
    let records = written(node);
    let of_source = records.lines().filter(|line| line.contains(&format!(",{source}:")));
    of_source
        .map(|line| {
            let event = [",+,", ",-,", ",<,", ",>,", ",*,"].into_iter().find(|event| line.contains(event)).unwrap();
            let (_, data) = line.split_once(event).unwrap();
            (event[1..2].to_owned(), data.trim_end_matches(',').to_owned())
        })
        .collect()
}

fn session(node: &NodeAddresses, source: &str, lines: &[&str]) {
    let mut wire = Wire::greeted(source, node.smtp).unwrap();
    for line in lines {
        wire.command(line).unwrap();
    }
    wire.command("QUIT").unwrap();
    wire.until_closed(PATIENCE);
}

#[test]
fn dialogues_are_written_as_their_connector_says() {
    let cluster = TestCluster::start();
    let node = &cluster.nodes[0];
    let create = |name: &str, source: &str, level: &str| {
        let flags = ["--template", "anonymous-relay", "--from", source, "--protocol-logging-level", level];
        cluster.ctl.ok(&[&["connector", "create", name], flags.as_slice()].concat());
    };
    create("silent", "127.0.72.1", "none");
    create("errors", "127.0.72.2/31", "errors");
    create("talkative", "127.0.72.4", "verbose");
    session(node, "127.0.72.1", &["EHLO device.example", "NOSUCH"]);
    session(node, "127.0.72.2", &["EHLO device.example"]);
    session(node, "127.0.72.3", &["EHLO device.example", "NOSUCH"]);
    let outcome = Device::new("127.0.72.4", node.smtp).send("written", "x@partner.example");
    assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");

    let talkative = until(PATIENCE, "the verbose session is written to its end", || {
        let records = of(node, "127.0.72.4");
        records.iter().any(|(event, _)| event == "-").then_some(records)
    });
    let events: String = talkative.iter().map(|(event, _)| event.as_str()).collect();
    assert!(events.starts_with("+**>"), "connect, match, rights, greeting: {talkative:?}");
    assert!(talkative[1].1.contains("connector talkative") && talkative[1].1.contains("127.0.72.4"), "{talkative:?}");
    assert!(talkative[2].1.contains("accept_any_recipient"), "{talkative:?}");
    let has = |event: &str, data: &str| talkative.iter().any(|(e, d)| e == event && d.contains(data));
    assert!(has("<", "MAIL FROM:<") && has(">", "250 2.1.0") && has(">", "354 ") && has(">", "250 2.6.0 <written@"));
    assert!(!written(node).contains("Subject:"), "mail data is not written");
    let text = written(node);
    assert!(text.starts_with("#Software: Posthouse\r\n"), "{text}");
    assert!(text.contains(
        "#Fields: date-time,connector-id,session-id,sequence-number,local-endpoint,remote-endpoint,event,data,context"
    ));

    assert_eq!(of(node, "127.0.72.1"), [], "none is none");
    assert_eq!(of(node, "127.0.72.2"), [], "nothing was refused");
    let refused = of(node, "127.0.72.3");
    assert!(refused.iter().any(|(event, data)| event == "<" && data == "NOSUCH"), "{refused:?}");
    assert!(refused.iter().any(|(event, data)| event == ">" && data.contains("500 5.3.3")), "{refused:?}");
    assert_eq!(refused.first().unwrap().0, "+", "what came before the refusal is there, too: {refused:?}");

    // Verbose for a while, and then as before.
    cluster.ctl.ok(&["connector", "set", "silent", "--protocol-logging-for", "2s"]);
    session(node, "127.0.72.1", &["EHLO for.a.while"]);
    until(PATIENCE, "the session is written", || {
        of(node, "127.0.72.1").iter().any(|(_, data)| data == "EHLO for.a.while").then_some(())
    });
    std::thread::sleep(Duration::from_secs(2));
    session(node, "127.0.72.1", &["EHLO too.late"]);
    session(node, "127.0.72.4", &["NOOP"]);
    until(PATIENCE, "what came later is written", || {
        of(node, "127.0.72.4").iter().any(|(_, data)| data == "NOOP").then_some(())
    });
    assert!(!written(node).contains("too.late"));
}

#[test]
fn two_hundred_hostile_names_are_two_hundred_records_and_no_password_is_among_them() {
    let cluster = TestCluster::start();
    let node = &cluster.nodes[0];
    let create = "connector create logins --from 127.0.73.0/24 --auth-mechanism tls,basic_auth \
                  --permission-groups anonymous_users,exchange_users --auth-tarpit-interval 0s --max-logon-failures 0 \
                  --max-protocol-errors 0 --protocol-logging-level verbose";
    cluster.ctl.ok(&create.split_ascii_whitespace().collect::<Vec<_>>());
    // A credential whose password is looked for afterwards, and a login with it.
    let password = cluster.path().join("canary");
    std::fs::write(&password, format!("{GOOD_CANARY}\n")).unwrap();
    let password = password.to_str().unwrap();
    cluster.ctl.ok(&["credential", "create", "canary@corp.example", "--own-domain", "--password-file", password]);
    std::fs::remove_file(password).unwrap();
    let mut wire = Wire::greeted("127.0.73.2", node.smtp).unwrap();
    wire.expect_to("EHLO device.example", "250").unwrap();
    let told = wire.auth_plain("canary@corp.example", GOOD_CANARY).unwrap();
    assert!(told.starts_with("235"), "{told}");
    wire.command("QUIT").unwrap();
    wire.until_closed(PATIENCE);
    // What an attacker writes to make two records of one, to end a field, or to hide.
    let pieces = ["\r", "\x0b", "\u{2028}", "\u{85}", ",", "\"", "\\", "%0d%0a", "\x1b[2K", "#Fields: "];
    let mut wire = Wire::greeted("127.0.73.1", node.smtp).unwrap();
    for number in 0..200_usize {
        let piece = pieces[number % pieces.len()];
        // A bare CR is refused before it is a command, and named by its reply alone.
        let name = if piece == "\r" { ";" } else { piece };
        wire.command(&format!("EHLO host{number}{name}2016-12-14T01:17:34.808Z,forged")).unwrap();
    }
    // A password where it belongs, and where it does not.
    let (user, secret) = (base64("scanner@corp.example"), base64(CANARY));
    let plain = base64(&format!("\0scanner@corp.example\0{CANARY}"));
    wire.command("EHLO device.example").unwrap();
    for line in [
        format!("AUTH PLAIN {plain}"),
        format!("AUTH PLAIN {plain} {secret}"),
        format!("AUTH NOSUCH {secret}"),
        format!("AUTH:PLAIN {secret}"),
        format!("  AUTH   LOGIN {user} {secret}"),
        secret.clone(),
        CANARY.to_owned(),
        "AUTH LOGIN".to_owned(),
        user.clone(),
        secret.clone(),
    ] {
        wire.command(&line).unwrap();
    }
    wire.command("NOOP").unwrap();
    wire.command("QUIT").unwrap();
    wire.until_closed(PATIENCE);
    let records = until(PATIENCE, "all of it is written", || {
        let records = of(node, "127.0.73.1");
        records.iter().any(|(event, _)| event == "-").then_some(records)
    });
    let hosts = records.iter().filter(|(event, data)| event == "<" && data.contains("forged")).count();
    assert_eq!(hosts, 200, "one record for each name");
    assert!(!written(node).lines().any(|line| line.starts_with("2016-12-14")), "nobody forges a record");
    assert!(records.iter().any(|(event, data)| event == "<" && data == "NOOP"), "the session went on to its end");

    let good = [GOOD_CANARY.to_owned(), base64(GOOD_CANARY), base64(&format!("\0canary@corp.example\0{GOOD_CANARY}"))];
    for text in [CANARY.to_owned(), secret, plain].into_iter().chain(good) {
        // On every node: what is agreed on is on all of them.
        for (node, process) in cluster.nodes.iter().zip(&cluster.procs) {
            assert!(!holds(&node.dir, text.as_bytes()), "{text} is in the directory of {}", node.name);
            let process = process.as_ref().unwrap();
            assert!(!process.log_text().contains(&text), "{text} is in the log of {}", node.name);
            let cmdline = format!("/proc/{}/cmdline", process.child.id());
            assert!(!holds(Path::new(&cmdline), text.as_bytes()), "{text} is in the process list");
        }
    }
}

/// Whether a file, or one below a directory, has these octets.
fn holds(path: &Path, needle: &[u8]) -> bool {
    if path.is_dir() {
        return std::fs::read_dir(path).unwrap().any(|entry| holds(&entry.unwrap().path(), needle));
    }
    // A file that was compacted away meanwhile holds nothing.
    std::fs::read(path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
}
