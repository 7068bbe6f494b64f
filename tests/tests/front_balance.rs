//! Several fronts before the same nodes: how each shares devices out, what administrators see of them, and how soon
//! all of them obey.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use posthouse_tests::cluster::{Place, Stage, front_files};
use posthouse_tests::dialog::Dialog;
use posthouse_tests::{Proc, TestCluster, binary, free_port, try_http_get, until};
use regex::Regex;

/// One front more.
struct Front {
    smtp: SocketAddr,
    http: SocketAddr,
    proc: Proc,
}

/// No slow start: a weight counts from the first device.
const AT_ONCE: &str = "[check]\nslowstart = \"0s\"\n";

fn add_front(cluster: &TestCluster, name: &str, last: u8, balance: &str) -> Front {
    let (ports, http_port) = ([free_port(), free_port(), free_port()], free_port());
    let http = SocketAddr::from(([127, 0, 0, 1], http_port));
    let place = Place { address: IpAddr::from([127, 0, 0, last]), netns: None };
    let stage = Stage { front_lines: AT_ONCE, ..Stage::loopback() };
    front_files(cluster.path(), name, name, &place, &stage, ports, http);
    let file = cluster.path().join(name).join("front.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("[front]\n", &format!("[front]\nbalance = \"{balance}\"\n"), 1)).unwrap();
    let args = ["front", "--config", &file.display().to_string()].map(str::to_owned);
    let proc = Proc::start(name, cluster.path(), &binary("posthouse"), &args);
    let socket = cluster.path().join(name).join("front.sock");
    until(Duration::from_secs(20), "its socket", || socket.exists().then_some(()));
    let token = cluster.token("front");
    cluster.local_ctl(&format!("{name}/front.sock")).ok(&["front", "add", "--token", &token]);
    until(Duration::from_secs(30), "it is ready", || {
        try_http_get(http, "/readyz").is_ok_and(|(status, _)| status == 200).then_some(())
    });
    Front { smtp: SocketAddr::from(([127, 0, 0, 1], ports[0])), http, proc }
}

/// Connects and answers the dialog and the node that greets.
fn greeted(source: IpAddr, target: SocketAddr) -> (Dialog, String) {
    let mut dialog = Dialog::connect(source, target).unwrap();
    let banner = dialog.reply().unwrap();
    let node = ["n1", "n2", "n3"].into_iter().find(|node| banner.contains(&format!("{node}.posthouse"))).unwrap();
    (dialog, node.to_owned())
}

fn device(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 31, last])
}

/// When a front's log says the last time that a backend's administrative state changed, in milliseconds of the day.
fn obeyed(front: &Proc, count: usize) -> f64 {
    let log = until(Duration::from_secs(10), "the front's log says that it has heard", || {
        let lines: Vec<_> = front
            .log_text()
            .lines()
            .filter(|line| line.contains("administrative state changed"))
            .map(str::to_owned)
            .collect();
        (lines.len() >= count).then_some(lines)
    });
    of_day(log.last().unwrap())
}

fn of_day(text: &str) -> f64 {
    let time = Regex::new(r"T(\d\d):(\d\d):(\d\d\.\d+)").unwrap();
    let found = time.captures(text).unwrap_or_else(|| panic!("no time in {text:?}"));
    let part = |index: usize| found[index].parse::<f64>().unwrap();
    (part(1) * 3600.0 + part(2) * 60.0 + part(3)) * 1000.0
}

#[test]
fn weights_are_followed_lists_are_true_and_every_front_obeys_at_once() {
    let cluster = TestCluster::start_on(&Stage { front_lines: AT_ONCE, ..Stage::loopback() });
    cluster.wait_healthy();
    let turns = add_front(&cluster, "front2", 3, "round-robin");
    let hashes = add_front(&cluster, "front3", 4, "source-hash");
    cluster.ctl.ok(&["node", "set", "n3", "--weight", "3"]);
    let pages = [cluster.front_http, turns.http, hashes.http];
    until(Duration::from_secs(20), "every front has three nodes and the weight", || {
        let found = cluster.ctl.try_json(&["front", "backends"])?;
        let rows = found["backends"].as_array()?;
        let right = |row: &&serde_json::Value| {
            row["eligible"] == true && row["weight"] == if row["node"] == "n3" { 3 } else { 1 }
        };
        (rows.len() == 9 && rows.iter().filter(right).count() == 9).then_some(())
    });

    // In turn, as often as the weights say: no device more or less.
    let mut counts = BTreeMap::new();
    for _ in 0..50 {
        let (mut dialog, node) = greeted(device(7), turns.smtp);
        dialog.command("QUIT").unwrap();
        *counts.entry(node).or_insert(0) += 1;
    }
    println!("round robin {counts:?}");
    assert_eq!(counts.values().copied().collect::<Vec<_>>(), [10, 10, 30], "{counts:?}");

    // The fewest sessions for its weight.
    let held: Vec<_> = (0..15).map(|_| greeted(device(7), cluster.smtp)).collect();
    let mut counts = BTreeMap::new();
    held.iter().for_each(|(_, node)| *counts.entry(node.clone()).or_insert(0) += 1);
    println!("least connections {counts:?}");
    assert_eq!(counts.values().copied().collect::<Vec<_>>(), [3, 3, 9], "{counts:?}");

    // What administrators see meanwhile.
    let listed = until(Duration::from_secs(10), "all fronts have said how they are", || {
        let listed = cluster.ctl.ok(&["front", "list"]);
        let is_there = |name: &str, sessions: &str, address: &str| {
            listed.lines().any(|line| {
                let words: Vec<_> = line.split_whitespace().collect();
                words.len() > 4 && words[..4] == [name, "ready", sessions, address]
            })
        };
        (is_there("front1", "15", "127.0.0.2")
            && is_there("front2", "0", "127.0.0.3")
            && is_there("front3", "0", "127.0.0.4"))
        .then_some(listed)
    });
    assert!(listed.starts_with("FRONT") && listed.lines().count() == 4, "{listed}");
    let table = cluster.ctl.ok(&["front", "backends", "front1"]);
    let row =
        |node: &str| table.lines().find(|line| line.contains(&format!(" {node} "))).unwrap_or_default().to_owned();
    for (node, sessions, weight) in [("n1", "3", "1"), ("n2", "3", "1"), ("n3", "9", "3")] {
        let words: Vec<_> = row(node).split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["front1", node, "active", "up", "in", sessions, weight], "{table}");
    }
    drop(held);

    // A device stays with its node, and the heavier node has more of them.
    let mut counts = BTreeMap::new();
    for last in 1..=60 {
        let (mut dialog, node) = greeted(device(last), hashes.smtp);
        dialog.command("QUIT").unwrap();
        let (mut again, same) = greeted(device(last), hashes.smtp);
        again.command("QUIT").unwrap();
        assert_eq!(node, same, "127.0.31.{last} moved");
        *counts.entry(node).or_insert(0) += 1;
    }
    println!("source hash {counts:?}");
    assert!((24..=48).contains(&counts["n3"]), "three fifths of 60 are 36: {counts:?}");

    // Watched, a change shows by itself.
    let mut watching = std::process::Command::new(binary("posthousectl"))
        .args(["--config-dir", cluster.path().join("ctl").to_str().unwrap(), "--context", "test"])
        .args(["front", "backends", "front2", "--watch=200ms"])
        .env_remove("POSTHOUSECTL_CONFIG_DIR")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(
        lines.by_ref().take(50).any(|line| line.contains("\"n2\"") && line.contains("active")),
        "the first picture"
    );

    // Drained and resumed five times: from the moment that a node was asked to the moment that each front has it.
    let mut took = Vec::new();
    for round in 0..5 {
        for (verb, nth) in [("drain", 2 * round + 1), ("resume", 2 * round + 2)] {
            let began = Instant::now();
            cluster.ctl.ok(&["node", verb, "n2"]);
            let all = began.elapsed();
            let history = cluster.ctl.json(&["history", "list", "--limit", "1"]);
            let asked = of_day(&history["records"][0].to_string());
            let fronts = [cluster.front.as_ref().unwrap(), &turns.proc, &hashes.proc];
            let last = fronts.map(|front| obeyed(front, nth)).into_iter().fold(f64::MIN, f64::max);
            println!("{verb}: all fronts after {:.1} ms; the command took {} ms", last - asked, all.as_millis());
            took.push(last - asked);
        }
    }
    took.sort_by(f64::total_cmp);
    println!("median {:.1} ms, worst {:.1} ms", took[took.len() / 2], took[took.len() - 1]);
    assert!(took[took.len() / 2] < 200.0, "{took:?}");

    let has_seen = lines.take(1000).any(|line| line.contains("\"n2\"") && line.contains("draining"));
    let _ = watching.kill();
    let _ = watching.wait();
    assert!(has_seen, "the watcher saw the drain");
    assert!(pages.iter().all(|http| try_http_get(*http, "/readyz").is_ok_and(|(status, _)| status == 200)));
}
