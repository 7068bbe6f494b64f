//! Dialogues as they happen, from whichever node: live, masked, never in the way of mail, and what is missing is said.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use posthouse_tests::wire::base64;
use posthouse_tests::{Device, Outcome, TestCluster, Wire, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
const CANARY: &str = "canary-Zq7-password";

/// posthousectl that goes on, and what it has said so far.
struct Listening {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Listening {
    fn start(cluster: &TestCluster, args: &[&str]) -> Self {
        let args = [&["log", "session", "-o", "json", "--node", "n1"], args].concat();
        let mut child = cluster.ctl.command(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = Arc::<Mutex<Vec<Value>>>::default();
        let (out, read) = (child.stdout.take().unwrap(), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                read.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, lines }
    }

    /// The lines of devices at `source`.
    fn of(&self, source: &str) -> Vec<Value> {
        let from = format!("{source}:");
        let lines = self.lines.lock().unwrap();
        lines.iter().filter(|line| line["remote"].as_str().is_some_and(|it| it.starts_with(&from))).cloned().collect()
    }

    /// Waits until something of `source` is heard, which talks meanwhile.
    fn until_heard(&self, source: &str, mut talk: impl FnMut()) {
        until(SOON, &format!("{source} is heard"), || {
            talk();
            (!self.of(source).is_empty()).then_some(())
        });
    }

    fn until_event(&self, node: &str, event: &str) {
        until(SOON, &format!("{event} {node}"), || {
            let lines = self.lines.lock().unwrap();
            lines.iter().any(|line| line["node"] == node && line["event"] == event).then_some(())
        });
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_dialogue_is_heard_from_whichever_node_and_nothing_secret_is_in_it() {
    let mut cluster = TestCluster::start();
    cluster.wait_healthy();
    let from = "127.0.71.0/24";
    cluster.ctl.ok(&["connector", "create", "heard", "--template", "anonymous-relay", "--from", from]);
    cluster.ctl.ok(&["connector", "set", "heard", "--protocol-logging-level", "none", "--max-protocol-errors", "0"]);
    // It says a password before anybody listens, and again afterwards.
    let mut early = Wire::greeted("127.0.71.1", cluster.nodes[0].smtp).unwrap();
    early.command("EHLO device.example").unwrap();
    early.command(&format!("AUTH PLAIN {}", base64(CANARY))).unwrap();
    let listening = Listening::start(&cluster, &["--source", from]);
    listening.until_heard("127.0.71.1", || drop(early.command("NOOP").unwrap()));
    early.command(&base64(CANARY)).unwrap();
    early.command(CANARY).unwrap();

    let mut late = Wire::greeted("127.0.71.2", cluster.nodes[1].smtp).unwrap();
    late.command("EHLO device.example").unwrap();
    late.command(&format!("AUTH PLAIN {}", base64(format!("\0x\0{CANARY}")))).unwrap();
    late.command("QUIT").unwrap();
    let outcome = Device::new("127.0.71.3", cluster.nodes[2].smtp).send("listened", "x@partner.example");
    assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");
    Device::new("127.0.31.3", cluster.nodes[2].smtp).send("unheard", "x@partner.example");
    for (source, node) in [("127.0.71.2", "n2"), ("127.0.71.3", "n3")] {
        let lines = until(SOON, &format!("{source} is heard to its end"), || {
            let lines = listening.of(source);
            (lines.last()?["event"] == "-").then_some(lines)
        });
        assert!(lines.iter().all(|line| line["node"] == node && line["connector"] == "heard"), "{lines:?}");
        let events: String = lines.iter().filter_map(|line| line["event"].as_str()).collect();
        assert!(events.starts_with("+**><>"), "from its beginning, with what it matched: {events}");
        assert!(lines.iter().enumerate().all(|(number, line)| line["sequence"] == number), "{lines:?}");
    }
    let said = |source: &str, event: &str, data: &str| {
        listening.of(source).iter().any(|line| line["event"] == event && line["data"].as_str().unwrap().contains(data))
    };
    assert!(said("127.0.71.2", "<", "AUTH PLAIN *") && said("127.0.71.3", ">", "250 2.6.0 <listened@"));
    let all = format!("{:?}", listening.lines.lock().unwrap());
    for secret in [CANARY.to_owned(), base64(CANARY), base64(format!("\0x\0{CANARY}"))] {
        assert!(!all.contains(&secret), "{secret} was told");
    }
    assert!(!all.contains("letter listened"), "mail data was told");
    assert!(!all.contains("127.0.31.3"), "somebody was heard who was not asked for");
    let written = cluster.nodes[1].dir.join("data/protocol-log");
    assert!(!written.exists(), "listening writes nothing");

    // A node that goes is named, and heard again when it is back.
    cluster.kill_node(2);
    listening.until_event("n3", "unheard");
    cluster.restart_node(2);
    listening.until_event("n3", "heard");
    until(SOON, "n3 serves", || Wire::greeted("127.0.71.4", cluster.nodes[2].smtp).ok().map(drop));
    listening.until_heard("127.0.71.4", || drop(Wire::greeted("127.0.71.4", cluster.nodes[2].smtp)));

    // Only one session, which ends it.
    let mut only = Listening::start(&cluster, &["--source", "127.0.71.5", "--only-one"]);
    until(SOON, "one session was heard to its end", || {
        Wire::greeted("127.0.71.5", cluster.nodes[1].smtp).unwrap().command("QUIT").unwrap();
        only.child.try_wait().unwrap().map(|status| assert!(status.success(), "{status}"))
    });
    let one: std::collections::BTreeSet<_> =
        only.of("127.0.71.5").iter().map(|it| it["session_id"].to_string()).collect();
    assert_eq!(one.len(), 1, "{one:?}");
}

#[test]
fn who_reads_too_slowly_loses_lines_and_is_told_how_many_while_mail_goes_on() {
    let mut cluster = TestCluster::start();
    cluster.wait_healthy();
    let create = "connector create loud --template anonymous-relay --from 127.0.71.0/24 --max-protocol-errors 0";
    cluster.ctl.ok(&create.split(' ').collect::<Vec<_>>());
    let mut listening = Listening::start(&cluster, &["--source", "127.0.71.0/24"]);
    let mut wire = Wire::greeted("127.0.71.1", cluster.nodes[0].smtp).unwrap();
    wire.command("EHLO device.example").unwrap();
    listening.until_heard("127.0.71.1", || drop(wire.command("NOOP").unwrap()));
    listening.signal(Signal::STOP);
    let mut spoken = 0_u64;
    let batch = format!("X{}\r\n", "-".repeat(400)).repeat(50);
    for _ in 0..400 {
        wire.send(&batch).unwrap();
        for _ in 0..50 {
            wire.expect("500").unwrap();
        }
        // What the device said, and what it was told.
        spoken += 100;
    }
    let outcome = Device::new("127.0.71.2", cluster.nodes[0].smtp).send("meanwhile", "x@partner.example");
    assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");
    listening.signal(Signal::CONT);
    let lost = until(SOON, "it is told that lines were lost", || {
        wire.command("NOOP").unwrap();
        let lines = listening.lines.lock().unwrap();
        let lost: u64 = lines.iter().filter_map(|line| line["lost"].as_u64()).sum();
        (lost > 0).then_some(lost)
    });
    println!("{lost} of about {spoken} lines were lost");
    assert!(lost < spoken);

    // A node that stops does not wait for those who listen; they are told.
    let began = Instant::now();
    drop(wire);
    assert_eq!(cluster.procs[0].as_mut().unwrap().terminate(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let log = cluster.procs[0].as_ref().unwrap().log_text();
    assert!(!log.contains("some work did not end in time"), "the node waited for a listener");
    let status = until(SOON, "the listener ends", || listening.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(5));
}
