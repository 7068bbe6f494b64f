//! A `250` after the mail data is a promise (RFC 5321 §6.1): it leaves a node only after the letter was written to the
//! spool's log and that log was synced, as the kernel saw it; and what was promised survives SIGKILL, whoever is hit
//! and whenever. The everyday run does a part; `POSTHOUSE_TEST_FULL=1` does all of it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use posthouse_tests::{Device, Ledger, Outcome, Proc, TestCluster, Wire, until};
use rustix::process::{Pid, Signal, kill_process};

fn is_full() -> bool {
    std::env::var_os("POSTHOUSE_TEST_FULL").is_some_and(|value| value == "1")
}

/// A tracer at a running node. It leaves on SIGINT, and the node goes on.
struct Strace(Child);

impl Strace {
    fn attach(node: &Proc, output: &Path) -> Self {
        let mut child = Command::new("strace")
            .args([
                "-f",
                "-yy",
                "-ttt",
                "-s",
                "100000",
                "-e",
                "trace=write,pwrite64,writev,sendto,sendmsg,fsync,fdatasync",
            ])
            .args(["-o", output.to_str().unwrap(), "-p", &node.child.id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace runs: tests/run.sh installs it");
        // It says "Process N attached" when it has every thread.
        let mut said = String::new();
        let mut reader = std::io::BufReader::new(child.stderr.take().unwrap());
        while !said.contains("attached") {
            let count = std::io::BufRead::read_line(&mut reader, &mut said).unwrap();
            assert!(count > 0, "strace cannot attach: {said}");
        }
        std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        Self(child)
    }

    fn detach(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::INT).unwrap();
        self.0.wait().unwrap();
    }
}

/// One system call: when it was seen to begin and to end, as places in the trace.
#[derive(Debug)]
struct Call {
    name: String,
    /// The file or socket, as the kernel names it.
    target: String,
    text: String,
    began: usize,
    ended: usize,
}

/// Reads a trace; a call that another thread interrupted in print is put together again.
fn calls(trace: &str) -> Vec<Call> {
    let mut open: BTreeMap<&str, (usize, String)> = BTreeMap::new();
    let mut calls = Vec::new();
    for (at, line) in trace.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((_, rest)) = rest.trim_start().split_once(' ') else { continue };
        if let Some(begin) = rest.strip_suffix(" <unfinished ...>") {
            open.insert(thread, (at, begin.to_owned()));
        } else if rest.starts_with("<... ") {
            let Some((began, text)) = open.remove(thread) else { continue };
            let end = rest.split_once("resumed>").map_or("", |(_, end)| end);
            calls.extend(call(&format!("{text}{end}"), began, at));
        } else {
            calls.extend(call(rest, at, at));
        }
    }
    calls
}

/// `fdatasync(12</path/000004.log>) = 0`. Calls that failed did nothing.
fn call(text: &str, began: usize, ended: usize) -> Option<Call> {
    let (name, arguments) = text.split_once('(')?;
    let result = text.rsplit_once(" = ")?.1;
    if result.starts_with('-') {
        return None;
    }
    let target = arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(target, _)| target);
    Some(Call { name: name.to_owned(), target: target.to_owned(), text: text.to_owned(), began, ended })
}

/// Letters, each with an id of its own, some pipelined, on several connections at once so that commits are shared.
fn send(target: SocketAddr, letters: usize) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for device in 0..4 {
            let next = &next;
            scope.spawn(move || {
                let mut wire = Wire::greeted(&format!("127.0.31.{}", 1 + device), target).unwrap();
                wire.expect_to("EHLO device.example", "250").unwrap();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= letters {
                        // The node reads this only when the call before it, which may be a promise, is in the trace.
                        return wire.expect_to("NOOP", "250").map(drop).unwrap();
                    }
                    let envelope = "MAIL FROM:<scan@corp.example>\r\nRCPT TO:<x@partner.example>\r\nDATA\r\n";
                    if number.is_multiple_of(2) {
                        wire.send(envelope).unwrap();
                        wire.expect("250 2.1.0").unwrap();
                        wire.expect("250 2.1.5").unwrap();
                        wire.expect("354").unwrap();
                    } else {
                        for (line, word) in envelope.lines().zip(["250", "250", "354"]) {
                            wire.expect_to(line, word).unwrap();
                        }
                    }
                    let size = [10, 3000, 40_000][number % 3];
                    let body = format!("{}\r\n", "x".repeat(72)).repeat(size / 74 + 1);
                    wire.send(format!("Message-ID: <traced-{number:04}@device.example>\r\n\r\n{body}.\r\n")).unwrap();
                    wire.expect(&format!("250 2.6.0 <traced-{number:04}@device.example>")).unwrap();
                }
            });
        }
    });
}

#[test]
fn no_250_leaves_before_the_sync_that_covers_its_letter() {
    let letters = if is_full() { 500 } else { 120 };
    let cluster = TestCluster::start();
    let node = cluster.procs[0].as_ref().unwrap();
    let output = cluster.path().join("strace");
    let strace = Strace::attach(node, &output);
    send(cluster.nodes[0].smtp, letters);
    strace.detach();
    let trace = std::fs::read(&output).unwrap();
    let trace = String::from_utf8_lossy(&trace);
    let calls = calls(&trace);
    let is_spool_log = |call: &Call| call.target.contains("/spool/") && call.target.ends_with(".log");
    let syncs: Vec<&Call> =
        calls.iter().filter(|call| matches!(call.name.as_str(), "fsync" | "fdatasync") && is_spool_log(call)).collect();
    let mut promises = 0;
    for number in 0..letters {
        let id = format!("traced-{number:04}@device.example");
        let promise = calls
            .iter()
            .find(|call| call.text.contains("250 2.6.0 <") && call.text.contains(&id) && call.target.contains("TCP"))
            .unwrap_or_else(|| panic!("the promise of {id} is in the trace"));
        // The record of the letter is the last thing of it that is written before its promise.
        let record = calls
            .iter()
            .filter(|call| is_spool_log(call) && call.name.contains("write") && call.text.contains(&id))
            .filter(|call| call.began < promise.began)
            .max_by_key(|call| call.ended)
            .unwrap_or_else(|| panic!("{id} was promised and not written"));
        let covered = syncs
            .iter()
            .any(|sync| sync.target == record.target && sync.began >= record.ended && sync.ended <= promise.began);
        assert!(covered, "{id} was promised before a sync covered it: {record:?}");
        promises += 1;
    }
    println!("{promises} of {letters} promises came after their sync; {} syncs", syncs.len());
    assert!(syncs.len() > 10, "the trace shows syncs");
}

#[test]
fn what_was_promised_survives_sigkill() {
    let kills = if is_full() { 200 } else { 12 };
    let mut cluster = TestCluster::start_with("[queue]\nglitch_retry_interval = \"1s\"\n");
    cluster.wait_healthy();
    let (ledger, failed) = (Arc::new(Mutex::new(Ledger::default())), Arc::new(AtomicUsize::new(0)));
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let target = cluster.smtp;
    let devices: Vec<_> = (0..4)
        .map(|device| {
            let (ledger, failed, stop, next) = (ledger.clone(), failed.clone(), stop.clone(), next.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let id = format!("kill-{:06}", next.fetch_add(1, Ordering::Relaxed));
                    match Device::new(&format!("127.0.31.{}", 1 + device), target).send(&id, "x@partner.example") {
                        Outcome::Promised(_) => ledger.lock().unwrap().promise(id),
                        _ => drop(failed.fetch_add(1, Ordering::Relaxed)),
                    }
                }
            })
        })
        .collect();
    let promised = || ledger.lock().unwrap().promised();
    // The same places every time: each node in turn, after another number of letters.
    let began = Instant::now();
    for kill in 0..kills {
        let before = promised();
        until(Duration::from_secs(60), "letters are taken", || (promised() >= before + 5 + kill % 7).then_some(()));
        let victim = kill % 3;
        cluster.kill_node(victim);
        let before = promised();
        until(Duration::from_secs(60), "letters are taken by the others", || (promised() > before).then_some(()));
        cluster.restart_node(victim);
        cluster.wait_healthy();
    }
    stop.store(true, Ordering::Relaxed);
    for device in devices {
        device.join().unwrap();
    }
    println!(
        "{kills} kills in {:?}: {} promised, {} sessions failed",
        began.elapsed(),
        promised(),
        failed.load(Ordering::Relaxed)
    );
    let ledger = Arc::into_inner(ledger).unwrap().into_inner().unwrap();
    let duplicates = ledger.settle(&cluster, Duration::from_secs(120));
    println!("lost 0, duplicates {duplicates}");
    // Only what was on its way from the killed node to the next hop may arrive twice.
    assert!(duplicates <= kills * 20, "{duplicates} duplicates of {kills} kills");
    assert!(failed.load(Ordering::Relaxed) <= kills * 4, "only sessions open on the killed node fail");
}
