//! What was used, over all nodes: counted wherever the device came, kept through restarts and kills, and what is not
//! known is said.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use posthouse_tests::{TestCluster, Wire, until};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(15);

fn visit(source: &str, target: std::net::SocketAddr) {
    Wire::greeted(source, target).unwrap().command("QUIT").unwrap();
}

fn log_in(cluster: &TestCluster, node: usize) {
    let wire = Wire::greeted("127.0.32.9", cluster.nodes[node].submission).unwrap();
    let mut wire = wire;
    wire.expect_to("EHLO device.example", "250").unwrap();
    let mut wire = wire.starttls(&cluster.trust()).unwrap();
    wire.expect_to("EHLO device.example", "250").unwrap();
    assert!(wire.auth_plain(&cluster.user, &cluster.password).unwrap().starts_with("235"));
    wire.command("QUIT").unwrap();
}

/// The one of `list` whose `field` is `value`.
fn named(reply: &Value, list: &str, field: &str, value: &str) -> Value {
    let found = reply[list].as_array().unwrap().iter().find(|one| one[field] == value);
    found.unwrap_or_else(|| panic!("no {value} in {reply}")).clone()
}

fn entry(cluster: &TestCluster, range: &str) -> Value {
    named(&cluster.ctl.json(&["allowlist", "list", "scanners"]), "entries", "range", range)
}

fn count(cluster: &TestCluster, range: &str) -> u64 {
    entry(cluster, range)["count"].as_u64().unwrap()
}

#[test]
fn uses_are_counted_on_every_node_and_survive_restarts_and_kills() {
    let mut cluster = TestCluster::start();
    cluster.wait_healthy();
    let from = "127.0.60.1,127.0.60.2,127.0.60.16/28";
    cluster.ctl.ok(&["connector", "create", "scanners", "--from", from, "--relay", "internal"]);
    visit("127.0.60.1", cluster.nodes[0].smtp);
    visit("127.0.60.1", cluster.nodes[1].smtp);
    visit("127.0.60.1", cluster.nodes[1].smtp);
    visit("127.0.60.17", cluster.nodes[2].smtp);
    log_in(&cluster, 1);
    log_in(&cluster, 2);

    let used = entry(&cluster, "127.0.60.1");
    let (first, last) = (used["first_seen"].as_str().unwrap(), used["last_seen"].as_str().unwrap());
    assert_eq!(used["count"], 3, "one on n1 and two on n2");
    assert!(!first.is_empty() && first <= last, "{used}");
    assert_eq!((count(&cluster, "127.0.60.16/28"), count(&cluster, "127.0.60.2")), (1, 0));
    assert_eq!(entry(&cluster, "127.0.60.2")["last_seen"], "", "never");
    let table = cluster.ctl.ok(&["allowlist", "find", "127.0.60.17"]);
    assert!(table.contains("LAST SEEN") && table.contains("COUNT"), "{table}");
    let credentials = cluster.ctl.json(&["credential", "list"]);
    let credential = named(&credentials, "credentials", "user", &cluster.user);
    assert_eq!(credential["count"], 2, "{credential}");
    assert_ne!(cluster.ctl.json(&["credential", "show", &cluster.user])["last_seen"], "");
    let connectors = cluster.ctl.json(&["connector", "list"]);
    assert_eq!(named(&connectors, "connectors", "name", "scanners")["hits"], 4);
    assert_eq!(cluster.ctl.json(&["connector", "show", "scanners"])["hits"], 4);

    let unused = cluster.ctl.json(&["connector", "hits", "scanners", "--unused"]);
    assert_eq!(unused["entries"].as_array().unwrap().len(), 1, "{unused}");
    assert_eq!(unused["entries"][0]["range"], "127.0.60.2");
    let recent = cluster.ctl.json(&["connector", "hits", "--since", "1h"]);
    assert_eq!(named(&recent, "connectors", "name", "scanners")["hits"], 4);
    let names = cluster.ctl.ok(&["connector", "hits", "--unused", "-o", "name"]);
    assert!(names.lines().any(|name| name == "printers") && !names.contains("scanners"), "{names}");
    let (code, text) = cluster.ctl.fails(&["connector", "hits", "scaners"]);
    assert!(code == 3 && text.contains("scanners"), "{code} {text}");

    // What was written outlives a kill; a node that is stopped writes first.
    let file = |node: usize| std::fs::read_to_string(cluster.nodes[node].dir.join("data/usage")).unwrap_or_default();
    until(SOON, "n1 has written what it saw", || file(0).contains("127.0.60.1").then_some(()));
    cluster.kill_node(0);
    visit("127.0.60.1", cluster.nodes[1].smtp);
    assert_eq!(cluster.procs[1].as_mut().unwrap().terminate(), Some(0));
    cluster.procs[1] = None;
    cluster.restart_node(0);
    cluster.restart_node(1);
    cluster.wait_healthy();
    assert_eq!(count(&cluster, "127.0.60.1"), 4);
    let again = entry(&cluster, "127.0.60.1");
    assert_eq!(again["first_seen"], used["first_seen"]);
    assert!(again["last_seen"].as_str().unwrap() >= last, "{again}");

    // Nothing is stale that is younger than the time asked for.
    let none = cluster.ctl.json(&["allowlist", "stale", "--days", "1"]);
    assert!(none["entries"].as_array().unwrap().is_empty(), "{none}");
    assert!(none["usage"]["since"].as_str().is_some_and(|since| !since.is_empty()), "{none}");
    cluster.ctl.ok(&["allowlist", "stale", "scanners", "--remove", "--yes"]);

    // A node that is away: lists say so, and what needs its word refuses.
    cluster.kill_node(2);
    let output = cluster.ctl.run(&["allowlist", "list", "scanners"]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("n3 did not answer"));
    for args in [
        &["allowlist", "stale"][..],
        &["allowlist", "stale", "scanners", "--remove", "--yes"],
        &["connector", "hits"],
        &["connector", "hits", "scanners"],
    ] {
        let (code, text) = cluster.ctl.fails(args);
        assert!(code == 5 && text.contains("n3"), "{args:?}: {code} {text}");
    }
}
