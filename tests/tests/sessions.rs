//! The sessions that devices have open, on all nodes: seen, and ended; never between a letter and its answer.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use posthouse_tests::cluster::{Place, Stage};
use posthouse_tests::disk::Disk;
use posthouse_tests::{TestCluster, Wire, until};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);
const FAREWELL: &str = "421 4.3.2 Service not available, closing transmission channel [";

/// The listed sessions of `source`.
fn listed(cluster: &TestCluster, source: &str) -> Vec<Value> {
    cluster.ctl.json(&["session", "list", "--source", source])["sessions"].as_array().unwrap().clone()
}

/// Waits until the one session of `source` is in `state`.
fn in_state(cluster: &TestCluster, source: &str, state: &str) -> Value {
    until(SOON, &format!("the session of {source} is in state {state}"), || {
        listed(cluster, source).into_iter().find(|session| session["state"] == state)
    })
}

/// A session that has said hello.
fn open(source: &str, target: std::net::SocketAddr) -> Wire {
    let mut wire = Wire::greeted(source, target).unwrap();
    wire.expect_to("EHLO device.example", "250").unwrap();
    wire
}

/// Everything of a letter but its end.
fn almost(wire: &mut Wire, id: &str) {
    wire.expect_to("MAIL FROM:<scan@corp.example>", "250").unwrap();
    wire.expect_to("RCPT TO:<x@partner.example>", "250").unwrap();
    wire.expect_to("DATA", "354").unwrap();
    wire.send(format!("Message-ID: <{id}@device.example>\r\nSubject: {id}\r\n\r\nletter {id}\r\n")).unwrap();
}

/// What is still said, once the session has been ended.
fn last_words(wire: &mut Wire) -> String {
    let said = wire.until_closed(SOON).expect("the connection is closed");
    String::from_utf8(said).unwrap()
}

#[test]
fn sessions_of_all_nodes_are_listed_and_ended_by_what_they_are() {
    let mut cluster = TestCluster::start();
    cluster.wait_healthy();
    let mut idle = open("127.0.31.1", cluster.nodes[0].smtp);
    let mut secure = Wire::greeted("127.0.31.2", cluster.nodes[1].submission).unwrap();
    secure.expect_to("EHLO device.example", "250").unwrap();
    let mut secure = secure.starttls(&cluster.trust()).unwrap();
    secure.expect_to("EHLO device.example", "250").unwrap();
    assert!(secure.auth_plain(&cluster.user, &cluster.password).unwrap().starts_with("235"));
    let mut sending = open("127.0.31.3", cluster.nodes[2].smtp);
    almost(&mut sending, "first");
    sending.expect_to(".", "250").unwrap();
    almost(&mut sending, "never");
    let mut fronted = open("127.0.31.4", cluster.smtp);

    let found = in_state(&cluster, "127.0.31.1", "ready");
    assert_eq!((&found["node"], &found["connector"], &found["front"]), (&"n1".into(), &"printers".into(), &"".into()));
    assert_eq!(found["source"], idle.local_addr().to_string());
    assert!(found["local"].as_str().unwrap().ends_with(":25"), "{found}");
    let found = in_state(&cluster, "127.0.31.2", "ready");
    assert_eq!((&found["node"], &found["user"]), (&"n2".into(), &cluster.user.as_str().into()));
    assert!(found["tls"].as_str().unwrap().contains("TLSv1"), "{found}");
    let found = in_state(&cluster, "127.0.31.3", "data");
    assert_eq!((&found["node"], &found["letters"], &found["tls"]), (&"n3".into(), &1.into(), &"".into()));
    assert_eq!(in_state(&cluster, "127.0.31.4", "ready")["front"], "front1");
    let table = cluster.ctl.ok(&["session", "list", "--connector", "printers"]);
    assert!(table.contains("127.0.31.3:") && !table.contains("127.0.31.2:"), "{table}");
    assert_eq!(listed(&cluster, "127.0.31.0/24").len(), 4, "a front's checks are no sessions");
    let on_n3 = cluster.ctl.json(&["session", "list", "--on-node", "n3", "--source", "127.0.31.3"]);
    assert_eq!(on_n3["matched"], 1, "{on_n3}");

    // What ends nothing.
    for (args, code, words) in [
        (&["session", "kill"][..], 2, "--all"),
        (&["session", "kill", "--source", "127.0.31.1"], 2, "--yes"),
        (&["session", "kill", "--source", "nonsense", "--yes"], 8, "PH-SESS-002"),
        (&["session", "list", "--on-node", "n9"], 3, "PH-NODE-001"),
    ] {
        let (found, text) = cluster.ctl.fails(args);
        assert!(found == code && text.contains(words), "{args:?}: {found} {text}");
    }
    let tried = cluster.ctl.json(&["session", "kill", "--source", "127.0.31.0/24", "--dry-run"]);
    assert_eq!((tried["killed"].as_u64(), &tried["dry_run"]), (Some(4), &true.into()));
    assert_eq!(
        cluster.ctl.run(&["session", "kill", "0123456789ABCDEF"]).status.code(),
        Some(3),
        "there is no such one"
    );
    idle.expect_to("NOOP", "250").unwrap();

    // By id, by connector and range, by node, and all.
    let id = found_id(&cluster, "127.0.31.1");
    let ended = cluster.ctl.json(&["session", "kill", &id, "--reason", "ticket 7"]);
    assert_eq!((ended["killed"].as_u64(), &ended["ids"][0]), (Some(1), &id.as_str().into()));
    let words = last_words(&mut idle);
    assert!(words.starts_with(FAREWELL) && words.contains(&id), "{words}");
    let log = cluster.procs[0].as_ref().unwrap().log_text();
    assert!(log.lines().any(|line| line.contains(&id) && line.contains("ticket 7")), "who and why is in the log");
    cluster.ctl.ok(&["session", "kill", "--connector", "printers", "--source", "127.0.31.3", "--yes"]);
    assert!(last_words(&mut sending).starts_with(FAREWELL));
    cluster.ctl.ok(&["session", "kill", "--on-node", "n2", "--yes"]);
    assert!(last_words(&mut secure).starts_with(FAREWELL));
    cluster.ctl.ok(&["session", "kill", "--all", "--yes"]);
    assert!(last_words(&mut fronted).starts_with(FAREWELL));
    until(SOON, "no session is left", || listed(&cluster, "127.0.31.0/24").is_empty().then_some(()));
    cluster.letter_with("first@device.example");
    assert!(!cluster.letters().iter().any(|letter| letter.contains("never@device.example")));

    // A node that is away is named.
    cluster.kill_node(2);
    for args in [&["session", "list"][..], &["session", "kill", "--source", "127.0.31.9", "--yes"]] {
        let (code, text) = cluster.ctl.fails(args);
        assert!(code == 5 && text.contains("n3"), "{args:?}: {code} {text}");
    }
}

fn found_id(cluster: &TestCluster, source: &str) -> String {
    listed(cluster, source)[0]["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_letter_whose_end_has_come_gets_its_answer_before_the_session_ends() {
    let disk = Disk::new(512);
    let place = |name: &str, dir: &Path| {
        if name == "n3" {
            std::os::unix::fs::symlink(disk.path(), dir.join("data")).unwrap();
        }
        Place { address: IpAddr::from([127, 0, 0, if name == "front" { 2 } else { 1 }]), netns: None }
    };
    let cluster = TestCluster::start_on(&Stage { place: &place, ..Stage::loopback() });
    cluster.wait_healthy();
    let mut wire = open("127.0.31.3", cluster.nodes[2].smtp);
    almost(&mut wire, "complete");
    disk.freeze();
    wire.send(".\r\n").unwrap();
    let committing = in_state(&cluster, "127.0.31.3", "commit");
    let ended = cluster.ctl.json(&["session", "kill", "--source", "127.0.31.3", "--yes"]);
    assert_eq!(ended["ids"][0], committing["id"], "{ended}");
    assert!(wire.until_closed(Duration::from_millis(500)).is_none(), "nothing is said before the disk has answered");
    assert_eq!(listed(&cluster, "127.0.31.3")[0]["state"], "commit");
    disk.thaw();
    let words = last_words(&mut wire);
    let lines: Vec<&str> = words.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("250 2.6.0 <complete@"), "{words}");
    assert!(lines[1].starts_with(FAREWELL), "{words}");
    cluster.letter_with("complete@device.example");

    // A client that does not listen does not keep the session: here it does not shake hands.
    let mut silent = open("127.0.31.8", cluster.nodes[0].smtp);
    silent.expect_to("STARTTLS", "220").unwrap();
    in_state(&cluster, "127.0.31.8", "tls");
    cluster.ctl.ok(&["session", "kill", "--source", "127.0.31.8", "--yes"]);
    assert!(silent.until_closed(SOON).is_some());
}
