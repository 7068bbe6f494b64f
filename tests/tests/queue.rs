//! The queue of three nodes as one: every filter, every change, and what is said of a node that does not answer.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use posthouse_tests::cluster::free_port;
use posthouse_tests::{Device, Outcome, Proc, TestCluster, binary, until};
use rustix::process::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
/// A letter that was refused once waits for longer than any test.
const HOURLY: &str = "[queue]\nglitch_retry_interval = \"1h\"\n";

/// One letter on each node, which all wait for a next hop that is away. Answers their ids.
fn one_on_each(cluster: &mut TestCluster) -> Vec<String> {
    cluster.sink.kill();
    for (index, node) in cluster.nodes.iter().enumerate() {
        let device = Device::new(&format!("127.0.31.{}", index + 1), node.smtp);
        let outcome = device.send(&format!("on-{}", node.name), &format!("x@p{index}.example"));
        assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");
    }
    until(SOON, "three letters wait for a retry", || {
        let listed = cluster.ctl.json(&["queue", "list", "--state", "retry"]);
        let messages = listed["messages"].as_array()?;
        let id = |node: &str| messages.iter().find(|one| one["node"] == node)?["id"].as_str().map(str::to_owned);
        cluster.nodes.iter().map(|node| id(&node.name)).collect()
    })
}

fn ids(listed: &Value) -> Vec<&str> {
    let mut ids: Vec<_> =
        listed["messages"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn letters_are_found_and_changed_on_whichever_node_they_wait() {
    let mut cluster = TestCluster::start_with(HOURLY);
    let letters = one_on_each(&mut cluster);
    let all: Vec<&str> = {
        let mut all: Vec<_> = letters.iter().map(String::as_str).collect();
        all.sort_unstable();
        all
    };
    let second = vec![letters[1].as_str()];
    for (filter, wanted) in [
        (&["--client-ip", "127.0.31.2"][..], &second),
        (&["--client-ip", "127.0.31.0/24"], &all),
        (&["--client-ip", "127.0.31.1-127.0.31.3", "--domain", "p1.example"], &second),
        (&["--rcpt", "x@p1.example"], &second),
        (&["--error", "CONNECT", "--rcpt", "x@p1.example"], &second),
        (&["--error", "no such words"], &vec![]),
        (&["--older-than", "1h"], &vec![]),
        (&["--younger-than", "1h", "--connector", "printers"], &all),
        (&["--credential", "scanner@corp.example"], &vec![]),
        (&["--on-node", "n2"], &second),
        (&["--id", &letters[1]], &second),
    ] {
        assert_eq!(ids(&cluster.ctl.json(&[&["queue", "list"][..], filter].concat())), *wanted, "{filter:?}");
        let summary = cluster.ctl.json(&[&["queue", "summary"][..], filter].concat());
        assert_eq!(summary["messages"], wanted.len(), "{filter:?}");
        let tried = cluster.ctl.json(&[&["queue", "hold", "--dry-run"][..], filter].concat());
        assert_eq!((tried["changed"].as_u64(), &tried["dry_run"]), (Some(wanted.len() as u64), &true.into()));
    }
    assert_eq!(cluster.ctl.json(&["queue", "summary"])["by_state"]["held"], 0, "a dry run changes nothing");
    let (code, text) = cluster.ctl.fails(&["queue", "list", "--client-ip", "nonsense"]);
    assert!(code == 8 && text.contains("PH-QUEUE-007"), "{code} {text}");

    let errors = cluster.ctl.json(&["queue", "shape", "--by", "error"]);
    assert_eq!(errors["rows"].as_array().unwrap().iter().filter_map(|row| row["total"].as_u64()).sum::<u64>(), 3);
    let held = cluster.ctl.json(&["queue", "hold", "--client-ip", "127.0.31.2-127.0.31.3", "--reason", "ticket 7"]);
    assert_eq!(held["changed"], 2);
    let shown = cluster.ctl.json(&["queue", "show", &letters[2]]);
    assert!(shown["held_by"].as_str().unwrap().contains("ticket 7"), "{shown}");
    assert_eq!(cluster.ctl.json(&["queue", "release", "--state", "held"])["changed"], 2);

    // Elsewhere from now on: a second sink, to which no route leads.
    let (addr, maildir) = (SocketAddr::from(([127, 0, 0, 1], free_port())), cluster.path().join("elsewhere"));
    let args = ["sink", "--listen", &addr.to_string(), "--maildir", maildir.to_str().unwrap()].map(str::to_owned);
    let _sink = Proc::start("elsewhere", cluster.path(), &binary("posthouse"), &args);
    let redirect = ["queue", "redirect", "--domain", "p1.example", "--reason", "mx is down", "--to"];
    let to = |host: &str, more: &[&str]| cluster.ctl.run(&[&redirect[..], &[host], more].concat());
    assert!(
        String::from_utf8_lossy(&to(&addr.to_string(), &["--dry-run"]).stdout)
            .contains("1 letters would be redirected")
    );
    let (code, text) = cluster.ctl.fails(&["queue", "redirect", "--all", "--to", "a b"]);
    assert!(code == 8 && text.contains("PH-QUEUE-008"), "{code} {text}");
    // The sink may not listen yet; the letter keeps its way until it does.
    assert!(to(&addr.to_string(), &[]).status.success());
    until(SOON, "it arrives elsewhere", || {
        cluster.ctl.ok(&["queue", "retry", "--id", &letters[1]]);
        let new = std::fs::read_dir(maildir.join("new")).ok()?.next()?.ok()?;
        std::fs::read_to_string(new.path()).ok()?.contains("letter on-n2").then_some(())
    });
    let story = cluster.ctl.ok(&["message", "trace", "--id", &letters[1]]);
    assert!(story.contains("redirected") && story.contains("mx is down"), "{story}");
    until(SOON, "two are left", || (cluster.ctl.json(&["queue", "summary"])["messages"] == 2).then_some(()));
    assert_eq!(cluster.ctl.json(&["queue", "delete", "--error", "connect", "--yes"])["changed"], 2);
    assert_eq!(cluster.ctl.json(&["queue", "summary"])["messages"], 0);
}

/// The values of a line of comma-separated values.
fn values(line: &str) -> Vec<String> {
    let (mut values, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => values.push(String::new()),
            c => values.last_mut().unwrap().push(c),
        }
    }
    values
}

#[test]
fn the_tracking_of_all_nodes_is_one_log_with_the_fields_of_exchange() {
    let mut cluster = TestCluster::start_with(HOURLY);
    let letters = one_on_each(&mut cluster);
    let log = cluster.ctl.ok(&["message", "export", "--all"]);
    let (head, lines): (Vec<&str>, Vec<&str>) = log.lines().partition(|line| line.starts_with('#'));
    let names =
        ["#Software: ", "#Version: ", "#Log-Type: Message Tracking Log", "#Date: ", "#Fields: date-time,client-ip,"];
    assert!(head.len() == 5 && head.iter().zip(names).all(|(line, name)| line.starts_with(name)), "{head:?}");
    let rows: Vec<_> = lines.iter().map(|line| values(line)).collect();
    assert!(rows.iter().all(|row| row.len() == 30), "{log}");
    let fields = values(head[4].strip_prefix("#Fields: ").unwrap());
    let at = |row: &[String], field: &str| row[fields.iter().position(|name| name == field).unwrap()].clone();
    // Received and deferred, on each of three nodes, in the order in which they were accepted.
    let events: Vec<_> = rows.iter().map(|row| (at(row, "network-message-id"), at(row, "event-id"))).collect();
    let expected = letters.iter().flat_map(|id| ["RECEIVE", "DEFER"].map(|event| (id.clone(), event.to_owned())));
    assert_eq!(events, expected.collect::<Vec<_>>());
    assert_eq!(at(&rows[2], "client-ip"), "127.0.31.2");
    assert_eq!(at(&rows[2], "connector-id"), "n2\\printers");
    assert_eq!(
        (at(&rows[2], "server-hostname"), at(&rows[3], "recipient-address")),
        ("n2".into(), "x@p1.example".into())
    );

    let one = cluster.ctl.ok(&["message", "export", "--client-ip", "127.0.31.3", "--format", "jsonl"]);
    let lines: Vec<Value> = one.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[0]["event-id"], &lines[1]["event-id"]), (2, &"RECEIVE".into(), &"DEFER".into()));
    assert_eq!(lines[0].as_object().unwrap().len(), 30);
    let file = cluster.path().join("tracking.csv");
    let to_file = ["message", "export", "--rcpt", "x@p0.example", "--file", file.to_str().unwrap()];
    assert_eq!(cluster.ctl.ok(&to_file), "");
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 5 + 2);
    let long_ago = cluster.ctl.ok(&["message", "export", "--all", "--since", "2d", "--until", "1d"]);
    assert_eq!(long_ago.lines().count(), 5, "no event was then");
    for (args, code, words) in [
        (&["message", "export"][..], 2, "--all"),
        (&["message", "export", "--all", "--since", "1d", "--until", "2d"], 2, "--until"),
        (&["message", "export", "--client-ip", "x"], 8, "PH-TRACE-001"),
    ] {
        let (found, text) = cluster.ctl.fails(args);
        assert!(found == code && text.contains(words), "{args:?}: {found} {text}");
    }
}

#[test]
fn a_node_that_does_not_answer_is_named_and_the_others_are_asked_all_the_same() {
    let mut cluster = TestCluster::start_with(HOURLY);
    cluster.wait_healthy();
    let letters = one_on_each(&mut cluster);
    let leader = cluster.leader();
    let away = (0..3).rev().find(|index| *index != leader).unwrap();
    let name = cluster.nodes[away].name.clone();
    // It takes connections and says nothing: the kernel goes on answering for it.
    cluster.procs[away].as_ref().unwrap().signal(Signal::STOP);
    let partly = |args: &[&str]| {
        let began = Instant::now();
        let (code, text) = cluster.ctl.fails(args);
        assert!(code == 5 && text.contains(&name), "{args:?}: {code} {text}");
        assert!(began.elapsed() < Duration::from_secs(15), "{args:?} took {:?}", began.elapsed());
    };
    let questions = [
        &["queue", "summary"][..],
        &["queue", "list"],
        &["queue", "shape"],
        &["queue", "hold", "--all"],
        &["queue", "release", "--all"],
        &["queue", "retry", "--client-ip", "127.0.31.0/24"],
        &["queue", "redirect", "--rcpt", "nobody@p9.example", "--to", "127.0.0.1:9"],
        &["queue", "delete", "--rcpt", "nobody@p9.example", "--yes"],
        &["queue", "bounce", "--rcpt", "nobody@p9.example", "--yes"],
        &["queue", "show", &letters[away]],
        &["message", "trace", "--to", "x@p0.example"],
        &["message", "export", "--all"],
    ];
    // All at once: each waits for the node as long as it may.
    std::thread::scope(|scope| questions.iter().for_each(|args| drop(scope.spawn(|| partly(args)))));
    let summary = cluster.ctl.json(&["queue", "summary"]);
    assert_eq!((summary["messages"].as_u64(), &summary["unreachable"][0]), (Some(2), &name.as_str().into()));
    // What every node knows is answered by whichever is asked.
    cluster.ctl.ok(&["settings", "list"]);
    cluster.ctl.ok(&["route", "list"]);
    let tested = cluster.ctl.json(&["route", "test", "x@partner.example"]);
    assert_eq!(tested["route"], "default", "{tested}");
    // A change needs two of three, and says who has not heard of it.
    let (code, text) = cluster.ctl.fails(&["settings", "set", "relay_addresses_max=77", "--wait=2s"]);
    assert!(code == 7 && text.contains(&name), "{code} {text}");
    assert_eq!(cluster.ctl.json(&["settings", "show", "relay_addresses_max"])["value"], "77");
    cluster.ctl.ok(&["settings", "reset", "relay_addresses_max", "--no-wait"]);

    cluster.procs[away].as_ref().unwrap().signal(Signal::CONT);
    cluster.wait_healthy();
    assert_eq!(cluster.ctl.json(&["queue", "summary"])["messages"], 3);
    cluster.kill_node(away);
    let (code, text) = cluster.ctl.fails(&["queue", "summary"]);
    assert!(code == 5 && text.contains(&name), "{code} {text}");
}
