//! A `250` after the mail data is a promise (RFC 5321 §6.1): it leaves a node only after the letter was written to the
//! spool's log and that log was synced, as the kernel saw it. 120 letters every day, 500 with `POSTHOUSE_TEST_FULL=1`;
//! pipelined, line by line, in chunks, large ones with files of their own, on eight connections that share commits.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use posthouse_tests::dice::is_full;
use posthouse_tests::power::eat_my_data;
use posthouse_tests::{Proc, TestCluster, Wire};
use rustix::process::{Pid, Signal, kill_process};

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
                "4000000",
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

/// Letters, each with an id of its own, on several connections at once so that commits are shared.
fn send(target: SocketAddr, letters: usize) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for device in 0..8 {
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
                    send_one(&mut wire, number);
                }
            });
        }
    });
}

/// How long every id is.
const ID_CHARS: usize = "traced-0000@device.example".len();

fn id(number: usize) -> String {
    format!("traced-{number:04}@device.example")
}

fn send_one(wire: &mut Wire, number: usize) {
    let envelope = ["MAIL FROM:<scan@corp.example>", "RCPT TO:<x@partner.example>"];
    let id = id(number);
    // One in thirty is so large that most of it goes past the log.
    let size = if number % 30 == 7 { 1_600_000 } else { [10, 3000, 40_000][number / 3 % 3] };
    let body = format!("{id} {}\r\n", "x".repeat(40)).repeat(size / 74 + 1);
    let letter = format!("Message-ID: <{id}>\r\n\r\n{body}");
    match number % 3 {
        0 => {
            wire.send(format!("{}\r\nDATA\r\n", envelope.join("\r\n"))).unwrap();
            ["250 2.1.0", "250 2.1.5", "354"].iter().for_each(|word| _ = wire.expect(word).unwrap());
            wire.send(letter + ".\r\n").unwrap();
        }
        1 => {
            envelope.iter().for_each(|line| _ = wire.expect_to(line, "250").unwrap());
            wire.expect_to("DATA", "354").unwrap();
            wire.send(letter + ".\r\n").unwrap();
        }
        _ => {
            envelope.iter().for_each(|line| _ = wire.expect_to(line, "250").unwrap());
            let (first, rest) = letter.split_at(letter.len() / 2);
            wire.send(format!("BDAT {}\r\n{first}", first.len())).unwrap();
            wire.expect("250").unwrap();
            wire.send(format!("BDAT {} LAST\r\n{rest}", rest.len())).unwrap();
        }
    }
    wire.expect(&format!("250 2.6.0 <{id}>")).unwrap();
}

/// What a trace shows of letters that were promised.
struct Shown {
    /// Those whose bytes were all synced before.
    covered: usize,
    /// Those that had a file of their own.
    large: usize,
    syncs: usize,
}

/// Sends letters to the first node and looks at what the kernel saw.
fn trace(cluster: &TestCluster, letters: usize) -> Shown {
    let output = cluster.path().join("strace");
    let strace = Strace::attach(cluster.procs[0].as_ref().unwrap(), &output);
    send(cluster.nodes[0].smtp, letters);
    strace.detach();
    let trace = std::fs::read(&output).unwrap();
    let trace = String::from_utf8_lossy(&trace);
    let calls = calls(&trace);
    let is_log = |call: &Call| call.target.contains("/spool/") && call.target.ends_with(".log");
    let is_own = |call: &Call| call.target.contains("/spool/arriving-");
    let syncs: Vec<&Call> = calls
        .iter()
        .filter(|call| matches!(call.name.as_str(), "fsync" | "fdatasync") && (is_log(call) || is_own(call)))
        .collect();
    // Which calls speak of which letter; looking for each letter in every call would take minutes.
    let mut speaking = BTreeMap::<&str, Vec<&Call>>::new();
    for call in &calls {
        let found: BTreeSet<&str> =
            call.text.match_indices("traced-").filter_map(|(at, _)| call.text.get(at..at + ID_CHARS)).collect();
        found.into_iter().for_each(|id| speaking.entry(id).or_default().push(call));
    }
    let mut shown = Shown { covered: 0, large: 0, syncs: syncs.len() };
    for number in 0..letters {
        let id = id(number);
        let about = speaking.get(id.as_str()).map(Vec::as_slice).unwrap_or_default();
        let promise = about
            .iter()
            .find(|call| call.text.contains("250 2.6.0 <") && call.target.contains("TCP"))
            .unwrap_or_else(|| panic!("the promise of {id} is in the trace"));
        // The last write of a letter to the log, its record among it, and to a file of its own if it has one.
        let last = |is_there: &dyn Fn(&Call) -> bool| {
            let writes = about.iter().filter(|call| is_there(call) && call.name.contains("write"));
            writes.filter(|call| call.began < promise.began).max_by_key(|call| call.ended)
        };
        let record = last(&is_log).unwrap_or_else(|| panic!("{id} was promised and not written"));
        let own = last(&is_own);
        shown.large += usize::from(own.is_some());
        let covered = [Some(record), own].into_iter().flatten().all(|write| {
            syncs
                .iter()
                .any(|sync| sync.target == write.target && sync.began >= write.ended && sync.ended <= promise.began)
        });
        shown.covered += usize::from(covered);
    }
    shown
}

#[test]
fn no_250_leaves_before_the_sync_that_covers_its_letter() {
    let letters = if is_full() { 500 } else { 120 };
    let mut cluster = TestCluster::start();
    let shown = trace(&cluster, letters);
    println!(
        "ORDER {} of {letters} promises came after the sync that covers them; {} letters had files of their own; {} syncs",
        shown.covered, shown.large, shown.syncs
    );
    assert_eq!(shown.covered, letters, "a promise came before its sync");
    assert!(shown.large > 0, "no letter was large: the run is void");
    assert!(shown.syncs < letters * 2, "commits are not shared: the run is void");

    // The control: a node whose syncs do nothing is seen not to sync.
    cluster.kill_node(0);
    cluster.nodes[0].preload = Some(eat_my_data());
    cluster.restart_node(0);
    cluster.wait_healthy();
    assert_eq!(trace(&cluster, 12).covered, 0, "the trace does not notice missing syncs");
}
