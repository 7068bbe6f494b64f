//! The disk under a node says no: write and sync errors in the letters' log, in a large letter's own file and in the
//! log of the configuration, a full disk, one that turned read-only, one that hangs, no more open files. Nobody is
//! promised what is not kept, nothing is promised again by trying the sync once more, the node says within two seconds
//! that it is not well, and what it promised before is there after the power was cut and the disk mended. Each fault
//! once every day; `POSTHOUSE_TEST_FULL=1` makes 44 of them, in the letters' log at the first to the fourth such call.
//! Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use posthouse_tests::cluster::{Place, Stage};
use posthouse_tests::dice::{Dice, is_full};
use posthouse_tests::never_retry::OnDrop;
use posthouse_tests::power::PoweredDisk;
use posthouse_tests::{Book, Load, NextHop, Proc, TestCluster, until};
use rustix::process::{Pid, Signal, kill_process};

const NODE: usize = 2;
/// A node says so soon that its disk is not well.
const UNREADY_WITHIN: Duration = Duration::from_secs(2);
const STALL: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// One system call on the spool's log fails.
    Log(&'static str, &'static str),
    /// One system call that takes over the file of a large letter fails.
    Table(&'static str, &'static str),
    /// A sync of the Raft log fails.
    RaftLog(&'static str),
    Full,
    ReadOnly,
    Hangs,
    NoMoreFiles,
}

const FAULTS: [Fault; 11] = [
    Fault::Log("fdatasync", "EIO"),
    Fault::Log("write,pwrite64", "EIO"),
    Fault::Log("write,pwrite64", "ENOSPC"),
    Fault::Log("fdatasync", "ENOSPC"),
    Fault::Table("link,linkat,rename,renameat,renameat2", "EIO"),
    Fault::Table("fsync,fdatasync", "EIO"),
    Fault::RaftLog("EIO"),
    Fault::Full,
    Fault::ReadOnly,
    Fault::Hangs,
    Fault::NoMoreFiles,
];

/// A tracer that makes system calls of a running node fail. It leaves when forgotten, and the node goes on.
struct Injected(Child);

impl Injected {
    /// Makes the `nth` of these `calls` of each thread fail with `error`; with `path` only those on that file.
    fn new(node: &Proc, path: Option<&Path>, calls: &str, error: &str, nth: usize) -> Self {
        let mut command = Command::new("strace");
        command.args(["-f", "-o", "/dev/null", "-p", &node.child.id().to_string()]);
        command.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:error={error}:when={nth}")]);
        path.map(|path| command.arg("-P").arg(path));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("strace runs: tests/run.sh installs it");
        let mut reader = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("attached") {
            assert!(reader.read_line(&mut said).unwrap() > 0, "strace cannot attach: {said}");
        }
        std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        Self(child)
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
        let _ = self.0.wait();
    }
}

/// The newest log of the database in `dir`.
fn newest_log(dir: &Path) -> PathBuf {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let newest = entries.filter(|path| path.extension().is_some_and(|end| end == "log")).max().unwrap();
    newest.canonicalize().unwrap()
}

struct Scene {
    cluster: TestCluster,
    hop: NextHop,
    disk: PoweredDisk,
    book: Book,
    dice: Dice,
    /// Domains that are added while the Raft log fails, and whether somebody said that they were.
    changes: Vec<(String, std::thread::JoinHandle<bool>)>,
}

impl Scene {
    fn start() -> Self {
        let dice = Dice::seeded("DISK");
        let disk = PoweredDisk::new(512);
        let place = |name: &str, dir: &Path| {
            if name == "n3" {
                std::os::unix::fs::symlink(disk.path(), dir.join("data")).unwrap();
            }
            Place { address: IpAddr::from([127, 0, 0, if name == "front" { 2 } else { 1 }]), netns: None }
        };
        let node_lines = "[queue]\nglitch_retry_interval = \"1s\"\n";
        let mut cluster = TestCluster::start_on(&Stage { place: &place, node_lines, ..Stage::loopback() });
        cluster.sink.kill();
        let hop = NextHop::start(cluster.sink_addr);
        // What was promised before a fault waits for the end of the test.
        hop.greets(false);
        cluster.wait_healthy();
        Self { cluster, hop, disk, book: Book::default(), dice, changes: Vec::new() }
    }

    fn load<'a>(&'a self, prefix: &'a str, seed: u64, bytes: Option<usize>) -> Load<'a> {
        let (target, pace) = (self.cluster.nodes[NODE].smtp, Duration::from_millis(10));
        Load { target, book: &self.book, prefix, pace, bytes, seed }
    }

    fn node(&self) -> &Proc {
        self.cluster.procs[NODE].as_ref().unwrap()
    }

    fn data(&self, part: &str) -> PathBuf {
        self.cluster.nodes[NODE].dir.join("data").join(part)
    }

    /// Whether it answers, and says that it is ready.
    fn is_ready(&self) -> bool {
        use std::io::{Read, Write};
        let ask = || -> std::io::Result<bool> {
            let address = self.cluster.nodes[NODE].http;
            let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(500))?;
            stream.set_read_timeout(Some(Duration::from_millis(500)))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
            let mut text = [0; 12];
            stream.read_exact(&mut text)?;
            Ok(text.ends_with(b"200"))
        };
        ask().unwrap_or(false)
    }

    fn until_unready(&self, fault: Fault, began: Instant) {
        until(SOON, &format!("{fault:?}: not ready"), || (!self.is_ready()).then_some(()));
        let took = began.elapsed();
        println!("DISK {fault:?}: not ready after {} ms", took.as_millis());
        assert!(took <= UNREADY_WITHIN, "{fault:?}: not ready only after {took:?}");
    }

    /// Sends until the first letter that is not promised. Answers when that was.
    fn until_refused(&self, fault: Fault, load: &Load<'_>) -> Instant {
        for _ in 0..12 {
            if load.send(1).is_err() {
                return Instant::now();
            }
        }
        panic!("{fault:?}: twelve letters were promised all the same");
    }

    /// The power is cut and comes back, and the node is well again.
    fn mend(&mut self) {
        self.cluster.kill_node(NODE);
        self.disk.cut();
        self.disk.restore();
        // What filled it goes only now: a disk that was emptied before could save what it had not taken.
        let _ = std::fs::remove_file(self.disk.path().join("filler"));
        self.cluster.restart_node(NODE);
        self.cluster.wait_healthy();
        until(SOON, "it is ready", || self.is_ready().then_some(()));
        for (domain, change) in self.changes.drain(..) {
            let acknowledged = change.join().unwrap();
            let domains = self.cluster.ctl.ok(&["domain", "list"]);
            println!("DISK a change while the Raft log failed: {acknowledged}");
            assert!(!acknowledged || domains.contains(&domain), "the cluster forgot {domain}");
        }
    }

    fn strike(&mut self, fault: Fault, nth: usize) {
        let (seed, name) = (self.dice.roll(u64::MAX), format!("{fault:?}-{nth}"));
        let name: String = name.chars().filter(|letter| letter.is_ascii_alphanumeric() || *letter == '-').collect();
        self.load(&format!("{name}-before"), seed, None).send(6).unwrap();
        let during = format!("{name}-during");
        let large = matches!(fault, Fault::Table(..)).then_some(1_700_000);
        let load = self.load(&during, seed, large);
        match fault {
            Fault::Log(calls, error) => {
                let log = newest_log(&self.data("spool"));
                let injected = Injected::new(self.node(), Some(&log), calls, error, nth);
                self.demand_lasting(fault, &load, injected);
            }
            Fault::Table(calls, error) => {
                // Calls are counted by thread, and these come from many: the first of each.
                let injected = Injected::new(self.node(), None, calls, error, 1);
                self.demand_lasting(fault, &load, injected);
            }
            Fault::RaftLog(error) => {
                let log = newest_log(&self.data("raft/db"));
                // As above: this log is written by many threads.
                let injected = Injected::new(self.node(), Some(&log), "fdatasync", error, 1);
                // The others take the changes; whoever waits for every node waits until this one is mended.
                for change in 0..=nth {
                    let (ctl, domain) =
                        (self.cluster.ctl.clone(), format!("{}-{change}.example", name.to_ascii_lowercase()));
                    self.changes.push((
                        domain.clone(),
                        std::thread::spawn(move || ctl.run(&["domain", "add", &domain]).status.success()),
                    ));
                    std::thread::sleep(Duration::from_millis(100));
                }
                self.until_unready(fault, Instant::now());
                drop(injected);
                let load = self.load(&during, seed, None);
                self.demand_silence(fault, &load);
            }
            Fault::Full => {
                let began = Instant::now();
                self.disk.fill();
                self.until_unready(fault, began);
                self.run_for(&load, Duration::from_secs(1));
            }
            Fault::ReadOnly => {
                self.disk.fail();
                let began = self.until_refused(fault, &load);
                self.until_unready(fault, began);
                self.demand_silence(fault, &load);
            }
            Fault::Hangs => {
                let path = self.disk.path().display().to_string();
                let began = Instant::now();
                posthouse_tests::netns::run("fsfreeze", &["--freeze", &path]);
                let stop = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    let _stop = OnDrop(&stop);
                    // What was committed before the freeze may be promised a moment after it.
                    std::thread::sleep(Duration::from_millis(100));
                    let before = self.book.promised();
                    scope.spawn(|| load.run(3, &stop));
                    self.until_unready(fault, began);
                    std::thread::sleep(STALL.saturating_sub(began.elapsed()));
                    assert_eq!(self.book.promised(), before, "{fault:?}: promised before the sync returned");
                    posthouse_tests::netns::run("fsfreeze", &["--unfreeze", &path]);
                });
                until(SOON, "it is well again", || self.is_ready().then_some(()));
            }
            Fault::NoMoreFiles => {
                let began = Instant::now();
                // Every lower number is taken since the node started.
                self.limit_files("8");
                self.until_unready(fault, began);
                self.run_for(&load, Duration::from_secs(1));
                self.limit_files("4096");
            }
        }
        self.mend();
    }

    /// After one failed call nothing is promised any more, also when every later call succeeds.
    fn demand_lasting(&self, fault: Fault, load: &Load<'_>, injected: Injected) {
        let began = self.until_refused(fault, load);
        self.until_unready(fault, began);
        drop(injected);
        self.demand_silence(fault, load);
    }

    fn demand_silence(&self, fault: Fault, load: &Load<'_>) {
        let before = self.book.promised();
        self.run_for(load, Duration::from_millis(700));
        assert_eq!(self.book.promised(), before, "{fault:?}: promised after the disk had failed");
    }

    fn run_for(&self, load: &Load<'_>, lasts: Duration) {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| load.run(3, &stop));
            std::thread::sleep(lasts);
            stop.store(true, Ordering::SeqCst);
        });
    }

    fn limit_files(&self, soft: &str) {
        let pid = self.node().child.id().to_string();
        posthouse_tests::netns::run("prlimit", &["--pid", &pid, &format!("--nofile={soft}:")]);
    }
}

#[test]
fn nobody_is_promised_what_a_sick_disk_did_not_take() {
    let rounds = if is_full() { 4 } else { 1 };
    let mut scene = Scene::start();
    for nth in 1..=rounds {
        FAULTS.iter().for_each(|fault| scene.strike(*fault, nth));
    }
    scene.hop.greets(true);
    let account = scene.book.settle(&scene.hop, QUIET);
    let refusals = scene.book.refusals();
    println!(
        "DISK {} faults: promised {}, lost {}, altered {}; sessions cut {}; refused {refusals:?}",
        rounds * FAULTS.len(),
        account.promised,
        account.lost.len(),
        account.altered.len(),
        scene.book.broken(),
    );
    account.demand_whole();
    assert!(!refusals.is_empty(), "somebody was refused");
    for reply in refusals.keys() {
        let known = ["421 ", "451 ", "452 "].iter().any(|code| reply.starts_with(code));
        assert!(known, "a sick disk is ours and passes; a device was told {reply}");
    }
}
