//! Mistakes that administrators make, and what they are told: the code, why, how to fix it, and the exit code.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use posthouse_tests::TestCluster;

#[test]
fn mistakes_are_refused_with_what_why_and_how_to_fix() {
    let mut cluster = TestCluster::start();
    let ctl = cluster.ctl.clone();
    let refused = |args: &[&str], exit: i32, words: &[&str]| {
        let (code, said) = ctl.fails(args);
        assert_eq!(code, exit, "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{args:?} should say {word:?}: {said}");
        }
    };
    refused(&["connector", "show", "printer"], 3, &["printer", "did you mean", "printers"]);
    refused(&["connector", "create", "printers", "--from", "127.0.50.1"], 6, &["PH-CONN-002", "exists"]);
    refused(
        &["connector", "create", "again", "--from", "127.0.31.0/24"],
        8,
        &["PH-CONN-005", "printers", "127.0.31.0/24", "again"],
    );
    refused(
        &["connector", "create", "half", "--from", "127.0.31.128-127.0.32.5"],
        8,
        &["PH-CONN-005", "printers", "127.0.31.128-127.0.32.5"],
    );
    refused(
        &["connector", "create", "world", "--from", "10.0.0.0/8", "--relay", "external"],
        1,
        &["PH-ALLOW-007", "--accept-risk"],
    );
    refused(&["allowlist", "add", "printers", "127.0.31.300"], 8, &["127.0.31.300"]);
    refused(&["allowlist", "add", "nobody", "127.0.31.3"], 3, &["nobody"]);
    refused(&["domain", "remove", "other.example", "--yes"], 3, &["PH-DOM-001", "other.example"]);
    refused(&["route", "add", "*", "--to", "127.0.0.1:2525", "--name", "default"], 6, &["PH-ROUTE-002"]);
    refused(&["queue", "delete", "--yes"], 2, &["which letters?", "--all"]);
    refused(&["node", "drain", "n9"], 3, &["PH-NODE-001", "n9"]);
    refused(&["connector", "delete", "printers"], 2, &["--yes"]);

    // Compare and swap: the revision that a reader saw is the only one it may change.
    let listed = ctl.json(&["connector", "list"]);
    let connectors = listed["connectors"].as_array().unwrap();
    let printers = connectors.iter().find(|connector| connector["name"] == "printers").unwrap();
    let revision = printers["revision"].as_u64().unwrap().to_string();
    assert_eq!(printers["remote_ip_ranges"][0], "127.0.31.0/24");
    ctl.ok(&["connector", "set", "printers", "--comment", "floor 3", "--if-revision", &revision]);
    let stale = ["connector", "set", "printers", "--comment", "floor 4", "--if-revision", &revision];
    refused(&stale, 6, &["PH-REV-001"]);
    // A dry run changes nothing.
    ctl.ok(&["connector", "set", "printers", "--comment", "floor 5", "--dry-run"]);
    assert_eq!(ctl.json(&["connector", "show", "printers"])["comment"], "floor 3");

    // Who did what, and why.
    ctl.ok(&["allowlist", "add", "printers", "127.0.31.44", "--note", "new scanner", "--reason", "ticket 4711"]);
    let history = ctl.json(&["history", "list"]).to_string();
    assert!(history.contains("ticket 4711") && history.contains("127.0.31.44"), "{history}");
    assert!(!history.contains(&cluster.password));

    // A stranger is refused by explain as by the session, with exit code 1 and the fixing command.
    let (code, _) = ctl.fails(&["explain", "ip", "127.0.9.9", "--from", "a@x.example", "--to", "b@y.example"]);
    assert_eq!(code, 1);
    let explained = ctl.json(&["explain", "ip", "127.0.9.9", "--from", "a@x.example", "--to", "b@y.example"]);
    assert_eq!(explained["verdict"], "reject");
    assert!(explained["reply"].as_str().unwrap().starts_with("550 5.7.54"), "{explained}");

    // With a node down a write is made, and says who has not confirmed it.
    cluster.kill_node(2);
    let (code, said) = ctl.fails(&["domain", "add", "late.example", "--wait=10s"]);
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("n3"), "{said}");
    assert!(ctl.ok(&["domain", "list"]).contains("late.example"), "the change is made all the same");
    // Without a majority nothing can be changed, and the exit code says so. Mail goes on.
    cluster.kill_node(1);
    // (A leader that has just lost it may still take the change and never hear of it again: exit code 7.)
    posthouse_tests::until(std::time::Duration::from_secs(40), "exit code 5: no leader", || {
        let (code, said) = ctl.fails(&["domain", "add", "never.example"]);
        assert!(code == 5 || code == 7, "{code}: {said}");
        (code == 5).then_some(())
    });
    let device = posthouse_tests::Device::new("127.0.31.7", cluster.smtp);
    posthouse_tests::until(std::time::Duration::from_secs(10), "mail goes on without a quorum", || {
        matches!(device.send("no-quorum", "x@partner.example"), posthouse_tests::Outcome::Promised(_)).then_some(())
    });
    cluster.letter_with("no-quorum@device.example");
}
