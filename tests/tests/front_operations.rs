//! What an administrator does to fronts while devices that never retry go on sending.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use posthouse_tests::cluster::free_port;
use posthouse_tests::dialog::Dialog;
use posthouse_tests::{Device, Ledger, Outcome, Proc, TestCluster, binary, http_get, try_http_get, until};
use rustix::process::Signal;

/// Devices that send one letter per connection until they are told to stop.
struct Storm {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<Outcome>>>,
    ledger: Arc<Mutex<Ledger>>,
    devices: Vec<std::thread::JoinHandle<()>>,
}

impl Storm {
    fn start(cluster: &TestCluster, name: &'static str) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (failed, ledger) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Ledger::default())));
        let target = cluster.smtp;
        let devices = (1..=4)
            .map(|number| {
                let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
                let (failed, ledger) = (Arc::clone(&failed), Arc::clone(&ledger));
                std::thread::spawn(move || {
                    let device = Device::new(&format!("127.0.31.{number}"), target);
                    while !stop.load(Ordering::SeqCst) {
                        let id = format!("{name}-{number}-{}", sent.fetch_add(1, Ordering::SeqCst));
                        match device.send(&id, "x@partner.example") {
                            Outcome::Promised(_) => ledger.lock().unwrap().promise(id),
                            other => failed.lock().unwrap().push(other),
                        }
                    }
                })
            })
            .collect();
        Self { stop, sent, failed, ledger, devices }
    }

    fn wait_for_more(&self, count: usize) {
        let wanted = self.sent.load(Ordering::SeqCst) + count;
        until(Duration::from_secs(60), "letters go on", || (self.sent.load(Ordering::SeqCst) >= wanted).then_some(()));
    }

    /// Nobody was refused or cut, and every promised letter arrives.
    fn finish(self, cluster: &TestCluster) {
        self.stop.store(true, Ordering::SeqCst);
        self.devices.into_iter().for_each(|device| device.join().unwrap());
        let failed = self.failed.lock().unwrap();
        println!("letters {}, failed {}", self.sent.load(Ordering::SeqCst), failed.len());
        assert!(failed.is_empty(), "{failed:?}");
        Arc::into_inner(self.ledger).unwrap().into_inner().unwrap().settle(cluster, Duration::from_secs(60));
    }
}

#[test]
fn a_front_is_upgraded_without_refusing_a_connection() {
    let mut cluster = TestCluster::start();
    cluster.wait_healthy();
    let storm = Storm::start(&cluster, "upgrade");
    storm.wait_for_more(40);
    let config = cluster.path().join("front/front.toml").display().to_string();
    for round in 0..2 {
        let args = ["front", "--config", &config, "--takeover"].map(str::to_owned);
        let successor = Proc::start(&format!("front-{round}"), cluster.path(), &binary("posthouse"), &args);
        let mut old = cluster.front.replace(successor).unwrap();
        let ended = until(Duration::from_secs(60), "the old front ends", || old.child.try_wait().unwrap());
        assert_eq!(ended.code(), Some(0), "by itself, and cleanly");
        storm.wait_for_more(40);
    }
    // The socket for administration went over too.
    let said = cluster.local_ctl("front/front.sock").json(&["status"]);
    assert_eq!(said["kind"], "front", "{said}");
    storm.finish(&cluster);
}

/// Starts one more process of the front, which takes over from the one that runs.
fn take_over(cluster: &TestCluster, name: &str, file: &str) -> Proc {
    let config = cluster.path().join(file).display().to_string();
    let args = ["front", "--config", &config, "--takeover"].map(str::to_owned);
    Proc::start(name, cluster.path(), &binary("posthouse"), &args)
}

/// Asks `/readyz` again and again: whoever holds the address by it must never see anything but 200.
struct Monitor {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    asking: std::thread::JoinHandle<Vec<String>>,
}

impl Monitor {
    fn start(cluster: &TestCluster) -> Self {
        let (stop, asked, http) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), cluster.front_http);
        let (until, count) = (Arc::clone(&stop), Arc::clone(&asked));
        let asking = std::thread::spawn(move || {
            let mut wrong = Vec::new();
            while !until.load(Ordering::SeqCst) {
                match try_http_get(http, "/readyz") {
                    Ok((200, _)) => {}
                    other => wrong.push(format!("{other:?}")),
                }
                count.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(5));
            }
            wrong
        });
        Self { stop, asked, asking }
    }

    fn wait_for_more(&self, count: usize) {
        let wanted = self.asked.load(Ordering::SeqCst) + count;
        until(Duration::from_secs(60), "answers", || (self.asked.load(Ordering::SeqCst) >= wanted).then_some(()));
    }

    fn finish(self) {
        self.stop.store(true, Ordering::SeqCst);
        let wrong = self.asking.join().unwrap();
        assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), self.asked.load(Ordering::SeqCst));
    }
}

fn until_ready(cluster: &TestCluster) {
    cluster.wait_healthy();
    until(Duration::from_secs(20), "the front is ready", || {
        (http_get(cluster.front_http, "/readyz").0 == 200).then_some(())
    });
}

#[test]
fn a_front_that_was_succeeded_keeps_its_sessions_and_says_nothing_more() {
    let mut cluster = TestCluster::start();
    until_ready(&cluster);
    let monitor = Monitor::start(&cluster);
    let mut session = Dialog::connect("127.0.31.9".parse().unwrap(), cluster.smtp).unwrap();
    session.reply().unwrap();
    session.command("EHLO device.example").unwrap();
    let successor = take_over(&cluster, "front-b", "front/front.toml");
    let mut old = cluster.front.replace(successor).unwrap();
    until(Duration::from_secs(30), "the successor serves", || {
        old.log_text().contains("another process of this front serves").then_some(())
    });
    // The old one is there for its session's sake; for the front the new one answers, to everybody.
    monitor.wait_for_more(100);
    assert!(old.child.try_wait().unwrap().is_none(), "its session is open");
    let local = cluster.local_ctl("front/front.sock");
    for _ in 0..3 {
        assert_eq!(local.json(&["status"])["kind"], "front");
        let listed = cluster.ctl.ok(&["front", "list"]);
        assert!(listed.contains("ready") && !listed.contains("draining"), "{listed}");
    }
    assert!(session.command("MAIL FROM:<scan@corp.example>").unwrap().starts_with("250"));
    assert!(session.command("RCPT TO:<x@partner.example>").unwrap().starts_with("250"));
    assert!(session.command("DATA").unwrap().starts_with("354"));
    session.send(b"Message-ID: <before@device.example>\r\n\r\nhello\r\n.\r\n").unwrap();
    assert!(session.reply().unwrap().starts_with("250 2.6.0"));
    session.command("QUIT").unwrap();
    drop(session);
    let ended = until(Duration::from_secs(20), "the old front ends", || old.child.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0));
    monitor.wait_for_more(20);
    monitor.finish();
    assert_eq!(local.json(&["status"])["kind"], "front", "the socket is the successor's now");
    cluster.letter_with("before@device.example");
}

#[test]
fn a_successor_that_dies_before_it_serves_leaves_the_front_as_it_was() {
    let mut cluster = TestCluster::start();
    until_ready(&cluster);
    let monitor = Monitor::start(&cluster);
    // A service that no node has: such a successor looks for a node that is well until its time is up.
    let front = cluster.path().join("front");
    let text = std::fs::read_to_string(front.join("front.toml")).unwrap();
    let more = format!("[[listen]]\naddress = \"127.0.0.1:{}\"\nservice_port = 2626\n", free_port());
    std::fs::write(front.join("late.toml"), text + &more).unwrap();
    for (name, signal) in [("killed", Signal::KILL), ("ended", Signal::TERM)] {
        let mut late = take_over(&cluster, name, "front/late.toml");
        until(Duration::from_secs(20), "it has the sockets", || {
            late.log_text().contains("listening for devices").then_some(())
        });
        monitor.wait_for_more(20);
        late.signal(signal);
        until(Duration::from_secs(20), "it is gone", || late.child.try_wait().unwrap());
        let log = cluster.front.as_ref().unwrap();
        until(Duration::from_secs(5), "the front goes on", || {
            log.log_text().contains("a successor did not come to serve").then_some(())
        });
        assert_eq!(cluster.local_ctl("front/front.sock").json(&["status"])["kind"], "front", "{name}");
        let outcome = Device::new("127.0.31.7", cluster.smtp).send(&format!("late-{name}"), "x@partner.example");
        assert!(matches!(outcome, Outcome::Promised(_)), "{name}: {outcome:?}");
    }
    // And it can still be upgraded.
    let successor = take_over(&cluster, "front-b", "front/front.toml");
    let mut old = cluster.front.replace(successor).unwrap();
    let ended = until(Duration::from_secs(40), "the old front ends", || old.child.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0));
    monitor.wait_for_more(20);
    monitor.finish();
}

#[test]
fn a_signing_key_is_rotated_while_letters_go_through() {
    let cluster = TestCluster::start();
    cluster.wait_healthy();
    let storm = Storm::start(&cluster, "rotate");
    storm.wait_for_more(20);
    let said = cluster.ctl.json(&["front", "rotate-key", "front1"]);
    assert_ne!(said["old_key_id"], said["new_key_id"], "{said}");
    storm.wait_for_more(40);
    let front = cluster.ctl.json(&["front", "show", "front1"]);
    assert_eq!(front["key_ids"], serde_json::json!([said["new_key_id"]]), "the old one is retired: {front}");
    storm.finish(&cluster);
    // The key outlives the process.
    let mut cluster = cluster;
    cluster.front.take().unwrap().terminate();
    cluster.start_front();
    cluster.wait_for_front();
    let outcome = Device::new("127.0.31.7", cluster.smtp).send("rotated", "x@partner.example");
    assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");
}

#[test]
fn a_drained_front_says_so_and_serves_what_still_arrives() {
    let cluster = TestCluster::start();
    cluster.wait_healthy();
    until(Duration::from_secs(20), "the front is ready", || {
        (http_get(cluster.front_http, "/readyz").0 == 200).then_some(())
    });
    cluster.ctl.ok(&["front", "drain", "front1"]);
    until(Duration::from_secs(5), "/readyz says no", || {
        (http_get(cluster.front_http, "/readyz").0 == 503).then_some(())
    });
    assert_eq!(http_get(cluster.front_http, "/livez").0, 200);
    let outcome = Device::new("127.0.31.7", cluster.smtp).send("drained", "x@partner.example");
    assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");
    cluster.ctl.ok(&["front", "resume", "front1"]);
    until(Duration::from_secs(5), "/readyz says yes", || {
        (http_get(cluster.front_http, "/readyz").0 == 200).then_some(())
    });
    cluster.ctl.ok(&["node", "set", "n2", "--weight", "3"]);
    let found = until(Duration::from_secs(10), "the front reports the weight", || {
        let found = cluster.ctl.json(&["front", "backends"]);
        let n2 = found["backends"].as_array()?.iter().find(|backend| backend["node"] == "n2")?.clone();
        (n2["weight"] == 3).then_some(n2)
    });
    assert_eq!((found["front"].as_str(), found["eligible"].as_bool()), (Some("front1"), Some(true)), "{found}");
}

#[test]
fn rendered_configurations_pass_their_programs_own_tests() {
    let cluster = TestCluster::start();
    cluster.wait_healthy();
    let check = |program: &str, name: &str, text: &str, args: &[&str]| {
        let path = cluster.path().join(name);
        std::fs::write(&path, text).unwrap();
        match Command::new(program).args(args).arg(&path).output() {
            Ok(output) => {
                let said = [output.stdout, output.stderr].concat();
                Some((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
            }
            Err(error) => {
                println!("SKIPPED: {program} cannot be run here: {error}");
                None
            }
        }
    };
    let text = cluster.ctl.ok(&["front", "render", "haproxy", "--bind", "25=127.0.0.1:2525", "--agent-port", "7181"]);
    if let Some((code, said)) = check("haproxy", "haproxy.cfg", &text, &["-c", "-f"]) {
        assert_eq!(code, Some(0), "{said}");
    }
    // keepalived's exit code says little; loopback cannot carry VRRP, so an interface is needed.
    let Some(interface) = std::fs::read_dir("/sys/class/net").unwrap().find_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        (name != "lo").then_some(name)
    }) else {
        return println!("SKIPPED: no interface but loopback");
    };
    let vip = ["--front", "front1", "--vip", "10.98.0.25/24", "--interface", &interface];
    let text = cluster.ctl.ok(&[&["front", "render", "keepalived"], &vip[..]].concat());
    if let Some((_, said)) = check("keepalived", "keepalived.conf", &text, &["-t", "-f"]) {
        assert_eq!(said.trim(), "", "keepalived has something to say");
    }
}
