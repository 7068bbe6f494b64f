//! The whole cluster stops and starts, and is as it was; letters that waited are delivered afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use posthouse_tests::{Device, Outcome, TestCluster, until};

#[test]
fn a_cluster_that_was_stopped_whole_is_as_it_was() {
    let mut cluster = TestCluster::start_with("[queue]\nglitch_retry_interval = \"1s\"\n");
    // The next hop is away, so that letters wait.
    cluster.sink.kill();
    let device = Device::new("127.0.31.7", cluster.smtp);
    for index in 0..5 {
        let outcome = device.send(&format!("waits-{index}"), "x@partner.example");
        assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");
    }
    until(Duration::from_secs(20), "five letters wait for a retry", || {
        let summary = cluster.ctl.json(&["queue", "summary"]);
        (summary["messages"] == 5 && summary["by_state"]["retry"] == 5).then_some(())
    });
    let before = cluster.ctl.json(&["connector", "list"]);

    for index in 0..3 {
        let code = cluster.procs[index].as_mut().unwrap().terminate();
        assert_eq!(code, Some(0), "SIGTERM ends a node cleanly");
        cluster.procs[index] = None;
    }
    for index in 0..3 {
        cluster.restart_node(index);
    }
    cluster.wait_healthy();
    let after = cluster.ctl.json(&["connector", "list"]);
    assert_eq!(before["connectors"], after["connectors"]);

    let args = ["sink", "--listen", &cluster.sink_addr.to_string(), "--maildir"].map(str::to_owned);
    let maildir = cluster.path().join("maildir").display().to_string();
    let args: Vec<String> = args.into_iter().chain([maildir]).collect();
    cluster.sink = posthouse_tests::Proc::start("sink", cluster.path(), &posthouse_tests::binary("posthouse"), &args);
    cluster.ctl.ok(&["queue", "retry", "--all"]);
    for index in 0..5 {
        cluster.letter_with(&format!("waits-{index}@device.example"));
    }
    until(Duration::from_secs(20), "the queue is empty", || {
        (cluster.ctl.json(&["queue", "summary"])["messages"] == 0).then_some(())
    });
}

#[test]
fn a_recipient_that_fails_for_good_bounces_once_to_the_sender() {
    let cluster = TestCluster::start();
    // The sink refuses this recipient with 550; the report goes back to the sender, through the same route.
    let outcome = Device::new("127.0.31.7", cluster.smtp).send("bounces", "reject-me@partner.example");
    assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");
    let report = cluster.letter_with("multipart/report");
    assert!(report.contains("report-type=delivery-status"), "{report}");
    assert!(
        report.contains("Final-Recipient: rfc822;reject-me@partner.example")
            || report.contains("Final-Recipient: rfc822; reject-me@partner.example"),
        "{report}"
    );
    assert!(report.contains("Action: failed") && report.contains("scan@corp.example"), "{report}");
    until(Duration::from_secs(20), "nothing is left in the queue", || {
        (cluster.ctl.json(&["queue", "summary"])["messages"] == 0).then_some(())
    });
    let reports = cluster.letters().into_iter().filter(|letter| letter.contains("multipart/report")).count();
    assert_eq!(reports, 1, "one report for one failure");
}
