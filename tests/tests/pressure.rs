//! Back pressure, by the length of the queue: a node leaves the rotation before it refuses anybody, refuses with the
//! resource in its log, and comes back when delivery has made room. The other resources differ only in where their
//! number comes from.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use posthouse_tests::{Device, Ledger, Outcome, TestCluster, http_get, until};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_node_under_pressure_leaves_the_rotation_then_refuses_then_comes_back() {
    let cluster = TestCluster::start();
    cluster.wait_healthy();
    cluster.ctl.ok(&["route", "remove", "default", "--yes"]);
    cluster.ctl.ok(&["settings", "set", "back_pressure_queue_length=2/4/3/1", "--reason", "test"]);
    let (n1, mut ledger) = (&cluster.nodes[0], Ledger::default());
    let mut promised = |target, id: &str| {
        let outcome = Device::new("127.0.31.7", target).send(id, "x@partner.example");
        assert!(matches!(outcome, Outcome::Promised(_)), "{id}: {outcome:?}");
        ledger.promise(id.to_owned());
    };
    let unready = |word: &str| {
        until(SOON, word, || {
            let (status, text) = http_get(n1.http, "/readyz?verbose");
            (status == 503 && text.contains(word)).then_some(())
        });
    };
    promised(n1.smtp, "first");
    promised(n1.smtp, "second");
    unready("[-]pressure failed: queue_length 2 letters is medium");
    // Out of rotation: the front gives devices to the others. Who comes straight here is served all the same.
    until(SOON, "the front has heard of it", || {
        let (_, text) = http_get(cluster.front_http, "/metrics");
        text.contains("posthouse_front_backend_eligible{backend=\"n1\"} 0").then_some(())
    });
    promised(cluster.smtp, "elsewhere");
    promised(n1.smtp, "third");
    promised(n1.smtp, "fourth");
    unready("queue_length 4 letters is high");
    let refused = Device::new("127.0.31.7", n1.smtp).send("fifth", "x@partner.example");
    let Outcome::Refused(reply) = refused else { panic!("{refused:?}") };
    assert!(reply.starts_with("452 4.3.1 Insufficient system resources"), "{reply}");
    let log = cluster.procs[0].as_ref().unwrap().log_text();
    assert!(log.lines().any(|line| line.contains("letter refused") && line.contains("queue_length 4 letters is high")));
    // The address still answers.
    promised(cluster.smtp, "still");

    cluster.ctl.ok(&["route", "add", "*", "--to", &cluster.sink_addr.to_string()]);
    until(SOON, "n1 is ready again", || (http_get(n1.http, "/readyz").0 == 200).then_some(()));
    let outcome = Device::new("127.0.31.7", n1.smtp).send("after", "x@partner.example");
    assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");
    ledger.promise("after".to_owned());
    assert_eq!(ledger.settle(&cluster, SOON), 0);
}

#[test]
fn settings_are_changed_by_name_and_mistakes_are_explained() {
    let cluster = TestCluster::start();
    let value = |key: &str| cluster.ctl.json(&["settings", "show", key])["value"].as_str().unwrap().to_owned();
    assert_eq!(value("back_pressure_disk_space"), "89/99/90/80");
    cluster.ctl.ok(&["settings", "set", "back_pressure_disk_space=50/60/55/40", "relay_addresses_max=9"]);
    assert_eq!((value("back_pressure_disk_space"), value("relay_addresses_max")), ("50/60/55/40".into(), "9".into()));

    let (code, text) = cluster.ctl.fails(&["settings", "set", "relay_addresses_max=3", "back_pressure_memory=9/8/7/6"]);
    assert_eq!(code, 8, "{text}");
    assert!(text.contains("PH-SET-002") && text.contains("back_pressure_memory"), "{text}");
    assert_eq!(value("relay_addresses_max"), "9", "all or none");
    let (code, text) = cluster.ctl.fails(&["settings", "set", "relay_adresses_max=3"]);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("relay_addresses_max"), "the nearest name is suggested: {text}");
    // A mailbox has a domain; an empty value takes it away.
    let (code, text) = cluster.ctl.fails(&["settings", "set", "postmaster=nonsense"]);
    assert_eq!(code, 8, "{text}");
    assert!(text.contains("PH-SET-002") && text.contains("nonsense"), "{text}");
    cluster.ctl.ok(&["settings", "set", "postmaster=admin@corp.example", "dsn_copy_to=a@corp.example,b@corp.example"]);
    assert_eq!(value("dsn_copy_to"), "a@corp.example,b@corp.example");
    cluster.ctl.ok(&["settings", "set", "postmaster="]);
    assert_eq!(value("postmaster"), "");
    // The guard obeys the setting.
    let (code, text) = cluster.ctl.fails(&["allowlist", "add", "printers", "127.0.40.0/28"]);
    assert_eq!(code, 1, "{text}");

    cluster.ctl.ok(&["settings", "reset", "back_pressure_disk_space", "relay_addresses_max"]);
    assert_eq!(value("relay_addresses_max"), "4096");
    let (code, text) = cluster.ctl.fails(&["settings", "set", "relay_addresses_max=5", "--if-revision", "1"]);
    assert_eq!(code, 6, "{text}");
}
