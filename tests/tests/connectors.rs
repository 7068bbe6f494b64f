//! A connector made on one node decides on every node.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use posthouse_tests::dialog::Dialog;
use posthouse_tests::{TestCluster, until};

/// What a device at `source` is told about a recipient outside, by a node's own port-25 socket.
fn rcpt(source: &str, target: std::net::SocketAddr) -> String {
    let mut dialog = Dialog::connect(source.parse().unwrap(), target).unwrap();
    let banner = dialog.reply().unwrap();
    assert!(banner.starts_with("220"), "{banner}");
    dialog.command("EHLO device.example").unwrap();
    dialog.command("MAIL FROM:<a@corp.example>").unwrap();
    dialog.command("RCPT TO:<b@partner.example>").unwrap()
}

#[test]
fn a_connector_made_through_one_node_decides_on_every_node() {
    let cluster = TestCluster::start();
    for node in &cluster.nodes {
        assert!(rcpt("127.0.40.5", node.smtp).starts_with("550 5.7.54"), "not listed yet on {}", node.name);
    }
    cluster.ctl.ok(&[
        "--node",
        "n1",
        "connector",
        "create",
        "erp",
        "--from",
        "127.0.40.0-127.0.40.9",
        "--relay",
        "external",
        "--banner",
        "220 erp relay",
        "--reason",
        "ticket 7",
    ]);
    // The command has returned, so every node has it: no waiting here.
    for node in &cluster.nodes {
        assert!(rcpt("127.0.40.5", node.smtp).starts_with("250 2.1.5"), "listed on {}", node.name);
        assert!(rcpt("127.0.40.10", node.smtp).starts_with("550 5.7.54"), "one address further on {}", node.name);
        let mut dialog = Dialog::connect("127.0.40.5".parse().unwrap(), node.smtp).unwrap();
        assert!(dialog.reply().unwrap().starts_with("220 erp relay"), "its banner on {}", node.name);
        let explained = cluster.ctl.json(&[
            "--node",
            &node.name,
            "explain",
            "ip",
            "127.0.40.5",
            "--from",
            "a@corp.example",
            "--to",
            "b@partner.example",
        ]);
        assert_eq!(explained["connector"], "erp");
        assert_eq!(explained["verdict"], "accept");
        assert!(explained["candidates"].as_array().unwrap().len() >= 2, "the losers are named: {explained}");
    }
    let status = until(Duration::from_secs(10), "all members have applied the same entries", || {
        let status = cluster.ctl.json(&["cluster", "status"]);
        let members = status["members"].as_array()?.clone();
        let same = members.iter().all(|member| member["applied"] == members[0]["applied"]);
        same.then_some(status)
    });
    let members = status["members"].as_array().unwrap();
    assert!(members.iter().all(|member| member["digest"] == members[0]["digest"]), "{status}");
    assert!(!members[0]["digest"].as_str().unwrap().is_empty());

    // A revoked address cannot start another letter on a connection that it has open.
    let mut open = Dialog::connect("127.0.40.5".parse().unwrap(), cluster.smtp).unwrap();
    open.reply().unwrap();
    open.command("EHLO device.example").unwrap();
    cluster.ctl.ok(&["connector", "delete", "erp", "--yes", "--reason", "ticket 8"]);
    let reply = open.command("MAIL FROM:<a@corp.example>").unwrap();
    assert!(reply.starts_with("421 4.3.2"), "another connector would win now: {reply}");
    for node in &cluster.nodes {
        assert!(rcpt("127.0.40.5", node.smtp).starts_with("550 5.7.54"), "gone from {}", node.name);
    }
}
