//! What a newcomer and a script may rely on: a machine of no cluster says what to do, and the fields of JSON answers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use posthouse_tests::cluster::{Ctl, Proc, free_port};
use posthouse_tests::{Device, Outcome, TestCluster, binary, http_get, until};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_machine_of_no_cluster_says_what_to_do_and_becomes_the_first_node() {
    let dir = tempfile::Builder::new().prefix("posthouse-test-").tempdir().unwrap();
    let d = dir.path().display();
    let address = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let (http, rpc, smtp) = (address(free_port()), address(free_port()), address(free_port()));
    let text = format!(
        "[node]\nname = \"n1\"\ndata_dir = \"{d}/data\"\nsocket = \"{d}/node.sock\"\nhttp = \"{http}\"\n\
         [cluster]\nlisten = \"{rpc}\"\n[[smtp]]\nlisten = \"{smtp}\"\nservice_port = 25\n"
    );
    let config = dir.path().join("node.toml");
    std::fs::write(&config, text).unwrap();
    let args = ["node".to_owned(), "--config".to_owned(), config.display().to_string()];
    let node = Proc::start("n1", dir.path(), &binary("posthouse"), &args);
    let socket = dir.path().join("node.sock");
    until(PATIENCE, "the local socket", || socket.exists().then_some(()));
    let ctl_dir = dir.path().join("ctl");
    let ctl = Ctl::new(&["--config-dir", ctl_dir.to_str().unwrap(), "--socket", socket.to_str().unwrap()]);

    // Its log, its page and its command line say the same.
    let said = until(PATIENCE, "the log says what to do", || {
        Some(node.log_text()).filter(|text| text.contains("this node belongs to no cluster yet"))
    });
    assert!(said.contains("posthousectl cluster init") && said.contains("posthousectl node add --token"), "{said}");
    let (code, page) = http_get(http, "/readyz?verbose");
    assert!(code == 503 && page.contains("[-]member"), "{code} {page}");
    assert_eq!(http_get(http, "/livez").0, 200);
    let output = ctl.run(&["status"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("posthousectl cluster init") && said.contains("posthousectl node add --token"), "{said}");
    assert_eq!(ctl.json(&["status"])["state"], "uninitialised");
    let (code, said) = ctl.fails(&["connector", "list"]);
    assert!(code != 0 && said.contains("cluster init"), "{code} {said}");
    let (code, said) = ctl.fails(&["node", "add", "--token", "nonsense"]);
    assert!(code != 0 && said.contains("token"), "{code} {said}");

    ctl.ok(&["cluster", "init", "--name", "one", "--context", "one", "--smtp-name", "localhost"]);
    until(PATIENCE, "the node is ready", || (http_get(http, "/readyz").0 == 200).then_some(()));
    let (code, said) = ctl.fails(&["cluster", "init", "--name", "two", "--context", "two", "--smtp-name", "localhost"]);
    assert!(code != 0 && said.contains("one"), "a second time it names what there is: {code} {said}");
}

/// Whether `value` has the field and it is not null.
#[track_caller]
fn has(value: &Value, fields: &[&str]) {
    for field in fields {
        assert!(!value[field].is_null(), "{field} is missing: {value}");
    }
}

#[test]
fn what_scripts_read_is_there() {
    let cluster = TestCluster::start();
    cluster.wait_healthy();
    let outcome = Device::new("127.0.31.7", cluster.smtp).send("scripted", "somebody@partner.example");
    assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");

    let status = cluster.ctl.json(&["cluster", "status"]);
    has(&status, &["leader", "revision", "members"]);
    for member in status["members"].as_array().unwrap() {
        has(member, &["name", "role", "state", "reachable", "applied", "lag", "digest", "version"]);
    }
    let connectors = cluster.ctl.json(&["connector", "list"]);
    for connector in connectors["connectors"].as_array().unwrap() {
        has(connector, &["name", "enabled", "bindings", "remote_ip_ranges"]);
    }
    let explained =
        cluster.ctl.json(&["explain", "ip", "127.0.31.7", "--from", "a@corp.example", "--to", "b@x.example"]);
    has(&explained, &["connector", "verdict", "reply", "candidates"]);
    assert_eq!(explained["verdict"], "accept");
    has(&explained["candidates"][0], &["connector", "range", "result"]);
    let stranger = cluster.ctl.json(&["explain", "ip", "127.0.9.9", "--from", "a@corp.example", "--to", "b@x.example"]);
    assert_eq!(stranger["verdict"], "reject");
    has(&cluster.ctl.json(&["queue", "summary"]), &["messages", "by_state"]);
    let traced = until(PATIENCE, "the letter is delivered", || {
        let traced = cluster.ctl.json(&["message", "trace", "--client-ip", "127.0.31.7"]);
        (traced["messages"][0]["status"] == "delivered").then(|| traced["messages"][0].clone())
    });
    let fields = ["id", "message_id", "client_ip", "connector", "sender", "recipients", "status", "node", "events"];
    has(&traced, &fields);
    for event in traced["events"].as_array().unwrap() {
        has(event, &["time", "event"]);
    }
}
