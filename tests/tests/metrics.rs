//! Every metric is documented, and every documented metric is there from the start.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use posthouse_tests::{Device, Outcome, TestCluster, http_get, repository};

/// The names of the families in an exposition.
fn families(text: &str) -> BTreeSet<String> {
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    names.filter_map(|rest| rest.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn docs_and_metrics_agree_and_livez_and_readyz_answer() {
    let cluster = TestCluster::start();
    cluster.wait_healthy();
    let outcome = Device::new("127.0.31.7", cluster.smtp).send("metrics", "x@partner.example");
    assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");
    cluster.letter_with("metrics@device.example");
    // Series with a connector's name begin with its first event.
    let refused = Device::new("127.0.9.9", cluster.nodes[0].smtp).send("refused", "x@partner.example");
    assert!(matches!(refused, Outcome::Refused(_)), "{refused:?}");

    let documented: BTreeSet<String> = std::fs::read_to_string(repository().join("docs/metrics.md"))
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next().map(str::to_owned))
        .collect();
    let mut found = BTreeSet::new();
    for address in [cluster.nodes[0].http, cluster.nodes[1].http, cluster.nodes[2].http, cluster.front_http] {
        let (status, text) = http_get(address, "/metrics");
        assert_eq!(status, 200);
        found.extend(families(&text));
        let promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        if let Ok(mut promtool) = promtool {
            use std::io::Write;
            promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            let output = promtool.wait_with_output().unwrap();
            let said = [output.stdout, output.stderr].concat();
            assert!(output.status.success(), "promtool: {}", String::from_utf8_lossy(&said));
        } else {
            println!("promtool is not installed: the exposition was not linted");
        }
    }
    let undocumented: Vec<_> = found.difference(&documented).collect();
    assert!(undocumented.is_empty(), "not in docs/metrics.md: {undocumented:?}");
    let missing: Vec<_> = documented.difference(&found).collect();
    assert!(missing.is_empty(), "in docs/metrics.md, and nowhere else: {missing:?}");

    for address in [cluster.nodes[0].http, cluster.front_http] {
        assert_eq!(http_get(address, "/livez").0, 200);
        let (status, text) = http_get(address, "/readyz?verbose");
        assert_eq!(status, 200, "{text}");
        assert!(text.contains("readyz check passed"), "{text}");
        assert_eq!(http_get(address, "/nothing").0, 404);
    }
}
