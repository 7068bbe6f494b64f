//! One address, two fronts, and keepalived between them with the configuration that posthousectl wrote, unmodified.
//! Whatever happens to the front that has the address, the address answers again. Every gap is measured and printed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use posthouse_tests::cluster::{Place, Stage, front_files};
use posthouse_tests::dialog::Dialog;
use posthouse_tests::netns::{INTERFACE, Lab, in_namespace, inside};
use posthouse_tests::never_retry::{Failed, OnDrop, Tally};
use posthouse_tests::{Device, Outcome, Proc, TestCluster, binary, try_http_get, until};
use rustix::process::{Pid, Signal, kill_process};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 98, 25, 25);
const FRONTS: [(&str, Ipv4Addr); 2] =
    [("front1", Ipv4Addr::new(10, 98, 25, 21)), ("front2", Ipv4Addr::new(10, 98, 25, 22))];
const WORLD: Ipv4Addr = Ipv4Addr::new(10, 98, 25, 1);
const DEVICE: Ipv4Addr = Ipv4Addr::new(10, 98, 31, 7);

/// The address answers again after what keepalived itself sees.
const SEEN: Duration = Duration::from_secs(1);
/// The same after what only a script sees.
const SEEN_BY_SCRIPT: Duration = Duration::from_millis(2_500);

/// One front's machine.
struct Machine {
    front: Option<Proc>,
    keepalived: Option<Proc>,
    http: SocketAddr,
    front_file: PathBuf,
    configuration: PathBuf,
    unit: String,
}

/// Two of them, the nodes behind and the devices before them.
struct Pair {
    machines: Vec<Machine>,
    cluster: TestCluster,
    target: SocketAddr,
    /// Last: the namespaces go when nobody runs in them any more.
    lab: Lab,
}

impl Pair {
    fn start() -> Self {
        let mut lab = Lab::new();
        for (index, name) in ["n1", "n2", "n3"].into_iter().enumerate() {
            lab.host(name, &[node_address(index)]);
        }
        for (name, address) in FRONTS {
            lab.host(name, &[address]);
        }
        lab.host("world", &[WORLD]);
        lab.owns("world", "10.98.31.0/24");
        let place = |name: &str, _: &Path| {
            let (host, address) = match name {
                "sink" => ("world", WORLD),
                "front" => FRONTS[0],
                node => (node, node_address(usize::from(node.as_bytes()[1] - b'1'))),
            };
            Place { address: address.into(), netns: Some(lab.netns(host)) }
        };
        // Devices find the first front under its own address until keepalived runs.
        let stage = Stage {
            place: &place,
            listen: Ipv4Addr::UNSPECIFIED.into(),
            target: FRONTS[0].1.into(),
            devices: "10.98.31.0/24",
            ..Stage::loopback()
        };
        let mut cluster = TestCluster::start_on(&stage);
        let root = cluster.path().to_owned();
        let ports = [cluster.smtp.port(), cluster.submission.port(), cluster.submissions.port()];
        let second = Place { address: FRONTS[1].1.into(), netns: Some(lab.netns("front2")) };
        // The same ports: each machine has its own loopback.
        front_files(&root, "second", "front2", &second, &stage, ports, cluster.front_http);
        let first = machine(cluster.front.take(), cluster.front_http, root.join("front/front.toml"));
        let mut pair = Self {
            machines: vec![first, machine(None, cluster.front_http, root.join("second/front.toml"))],
            target: SocketAddr::new(VIP.into(), cluster.smtp.port()),
            cluster,
            lab,
        };
        pair.start_front(1);
        until(Duration::from_secs(30), "the second front's socket", || {
            root.join("second/front.sock").exists().then_some(())
        });
        let token = pair.cluster.token("front");
        pair.cluster.local_ctl("second/front.sock").ok(&["front", "add", "--token", &token]);
        for index in 0..2 {
            pair.until_ready(index, true);
            pair.render(index);
        }
        for index in 0..2 {
            pair.start_keepalived(index);
        }
        pair.until_holder();
        pair
    }

    fn start_front(&mut self, index: usize) {
        let args = ["front".to_owned(), "--config".to_owned(), self.machines[index].front_file.display().to_string()];
        let netns = self.lab.netns(FRONTS[index].0);
        let proc = Proc::start_in(Some(&netns), FRONTS[index].0, self.cluster.path(), &binary("posthouse"), &args);
        self.machines[index].front = Some(proc);
    }

    /// Writes what posthousectl says, as it says it, and lets keepalived look at it.
    fn render(&mut self, index: usize) {
        let (name, _) = FRONTS[index];
        let (vip, posthouse) = (format!("{VIP}/16"), binary("posthouse").display().to_string());
        let front_file = self.machines[index].front_file.display().to_string();
        let common = ["front", "render", "keepalived", "--front", name, "--vip", &vip, "--interface", INTERFACE];
        let started = ["--posthouse", &posthouse, "--front-file", &front_file];
        let text = self.cluster.ctl.ok(&[&common[..], &started[..]].concat());
        let path = self.cluster.path().join(format!("keepalived-{name}.conf"));
        std::fs::write(&path, text).unwrap();
        let mut check = in_namespace(Some(&self.lab.netns(name)), Path::new("keepalived"));
        let output = check.args(["-t", "-f"]).arg(&path).output().expect("keepalived; tests/run.sh installs it");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // Its exit code says little: version 2.2.7 ends itself with a signal.
        assert!(said.trim().is_empty(), "keepalived -t: {said}");
        self.machines[index].configuration = path;
        self.machines[index].unit = self.cluster.ctl.ok(&[&common[..], &["--unit"]].concat());
    }

    fn start_keepalived(&mut self, index: usize) {
        let (name, _) = FRONTS[index];
        let configuration = self.machines[index].configuration.display().to_string();
        // Its own way into a namespace: the kernel tells of processes in the first one only (connector.c), and
        // keepalived listens there before it goes.
        let netns = self.lab.netns(name);
        let args = ["-n", "-l", "-D", "-s", &netns, "-f", &configuration].map(str::to_owned);
        let name = format!("keepalived-{name}");
        let proc = Proc::start(&name, self.cluster.path(), Path::new("/usr/sbin/keepalived"), &args);
        self.machines[index].keepalived = Some(proc);
    }

    /// Both processes of a keepalived: the one that was started, and the one that speaks VRRP.
    fn keepalived_pids(&self, index: usize) -> Vec<Pid> {
        let parent = self.machines[index].keepalived.as_ref().unwrap().pid();
        let path = format!("/proc/{0}/task/{0}/children", parent.as_raw_nonzero());
        let children = std::fs::read_to_string(path).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
        std::iter::once(parent).chain(children).collect()
    }

    fn until_ready(&self, index: usize, ready: bool) {
        let http = self.machines[index].http;
        until(Duration::from_secs(30), &format!("{} is ready: {ready}", FRONTS[index].0), || {
            let (status, _) = self.lab.at(FRONTS[index].0, || try_http_get(http, "/readyz")).ok()?;
            ((status == 200) == ready).then_some(())
        });
    }

    /// Waits until a front has let go of every session: none may count against its device for longer.
    fn until_no_sessions(&self, index: usize) {
        let http = self.machines[index].http;
        until(Duration::from_secs(5), &format!("{} has no session", FRONTS[index].0), || {
            let (_, text) = self.lab.at(FRONTS[index].0, || try_http_get(http, "/metrics")).ok()?;
            text.lines().any(|line| line == "posthouse_front_sessions 0").then_some(())
        });
    }

    fn holders(&self) -> Vec<usize> {
        (0..2).filter(|index| self.lab.has(FRONTS[*index].0, VIP)).collect()
    }

    /// Waits until exactly one machine has the address.
    fn until_holder(&self) -> usize {
        until(Duration::from_secs(20), "one machine has the address", || match self.holders()[..] {
            [one] => Some(one),
            _ => None,
        })
    }

    /// Waits until keepalived of a machine has said `words` once more than `before` times.
    fn until_said(&self, index: usize, words: &str, before: usize) {
        let keepalived = self.machines[index].keepalived.as_ref().unwrap();
        until(Duration::from_secs(20), &format!("keepalived of {} says {words}", FRONTS[index].0), || {
            (keepalived.log_text().matches(words).count() > before).then_some(())
        });
    }

    fn said(&self, index: usize, words: &str) -> usize {
        self.machines[index].keepalived.as_ref().unwrap().log_text().matches(words).count()
    }

    /// The one that is well again is a backup, and does not take the address from the one that has it.
    fn holds(&self, holder: usize) {
        // Twenty advertisements, and more than the script needs to call it well.
        let watched = Instant::now();
        while watched.elapsed() < Duration::from_secs(2) {
            assert_eq!(self.holders(), [holder], "the address went back to the one that had been ill");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Does something to the machine that has the address, and measures until the other has it. In between no new
    /// connection is left without a banner.
    fn gap_until_moved(&self, holder: usize, act: impl FnOnce()) -> Duration {
        let (target, stop) = (self.target, AtomicBool::new(false));
        let (sender, receiver) = mpsc::sync_channel(4096);
        let moved = std::thread::scope(|scope| {
            let _stop = OnDrop(&stop);
            scope.spawn(|| self.lab.at("world", || devices(target, &stop, &sender)));
            let at = Instant::now();
            act();
            until(Duration::from_secs(10), "the address moves", || {
                (self.holders() == [1 - holder]).then(|| at.elapsed())
            })
        });
        let attempts: Vec<Attempt> = receiver.try_iter().collect();
        let failed: Vec<_> = attempts.iter().filter(|attempt| attempt.2 != "220").collect();
        println!("VIP  {} new connections meanwhile, {} without a banner: {failed:?}", attempts.len(), failed.len());
        moved
    }

    /// Does something to the machine that has the address, and measures until a new connection gets a banner.
    fn gap(&self, what: &str, bound: Duration, act: impl FnOnce()) -> Duration {
        let (target, stop) = (self.target, AtomicBool::new(false));
        let (sender, receiver) = mpsc::sync_channel(4096);
        let gap = std::thread::scope(|scope| {
            // Also when this panics: the scope waits for the devices.
            let _stop = OnDrop(&stop);
            scope.spawn(|| self.lab.at("world", || devices(target, &stop, &sender)));
            let mut last = String::new();
            let mut answer = |since: Option<Instant>, begun_after: Instant| {
                until(Duration::from_secs(10), &format!("{what}: the address answers"), || {
                    let (began, ended, said) = receiver.try_recv().ok()?;
                    if said != last {
                        println!(
                            "     {} ms: {said}",
                            since.map_or(0, |at| ended.saturating_duration_since(at).as_millis())
                        );
                        last.clone_from(&said);
                    }
                    (said == "220" && began >= begun_after).then_some(ended)
                })
            };
            answer(None, Instant::now());
            let at = Instant::now();
            act();
            // A connection that began before it was done says nothing.
            answer(Some(at), Instant::now()).duration_since(at)
        });
        println!("VIP  {what}: answered again after {} ms (bound {} ms)", gap.as_millis(), bound.as_millis());
        assert!(gap <= bound, "{what}: {gap:?}, more than {bound:?}");
        gap
    }
}

fn node_address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 98, 25, 11 + index as u8)
}

fn machine(front: Option<Proc>, http: SocketAddr, front_file: PathBuf) -> Machine {
    Machine { front, keepalived: None, http, front_file, configuration: PathBuf::new(), unit: String::new() }
}

/// When a connection began and ended, and the code of its banner, or why it had none.
type Attempt = (Instant, Instant, String);

/// A device every 20 ms, whatever became of those before.
fn devices(target: SocketAddr, stop: &AtomicBool, attempts: &mpsc::SyncSender<Attempt>) {
    std::thread::scope(|scope| {
        for number in (1..=250).cycle() {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            // Each is another device: what the stopped front still holds counts against its own device only.
            let source = Ipv4Addr::new(10, 98, 31, number);
            scope.spawn(move || {
                let began = Instant::now();
                let said = banner(source, target).unwrap_or_else(|error| error.to_string());
                let _ = attempts.try_send((began, Instant::now(), said));
            });
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

/// What a new connection is greeted with. One that is lost is not waited for: the next one comes soon.
fn banner(source: Ipv4Addr, target: SocketAddr) -> std::io::Result<String> {
    use std::io::Read;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source.into(), 0).into())?;
    socket.connect_timeout(&target.into(), Duration::from_millis(200))?;
    let mut stream = std::net::TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_millis(1_500)))?;
    let mut line = [0; 512];
    let count = stream.read(&mut line)?;
    let line = String::from_utf8_lossy(&line[..count]).into_owned();
    // The name of a node is in it: the same greeting for all of them.
    Ok(if line.starts_with("220 ") { "220".to_owned() } else { line.trim_end().to_owned() })
}

#[test]
fn the_address_answers_again_whatever_happens_to_the_front_that_has_it() {
    let mut pair = Pair::start();
    let source: IpAddr = DEVICE.into();
    let outcome = pair.cluster.at_devices(|| Device { source, target: pair.target }.send("vip", "x@partner.example"));
    assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");

    let holder = pair.until_holder();
    let name = FRONTS[holder].0;
    let before = pair.said(holder, "Entering BACKUP STATE");
    pair.gap("cable of the master pulled", SEEN, || pair.lab.cable(name, false));
    pair.lab.cable(name, true);
    pair.until_said(holder, "Entering BACKUP STATE", before);
    pair.holds(1 - holder);

    let holder = pair.until_holder();
    let name = FRONTS[holder].0;
    pair.gap("the switch drops every frame of the master", SEEN, || pair.lab.port(name, false));
    // Both believe to be alone now; when they meet again the one with the higher address keeps it (RFC 5798 §6.4.3).
    pair.lab.port(name, true);
    pair.until_holder();

    let holder = pair.until_holder();
    let before = pair.said(holder, "Entering BACKUP STATE");
    let pid = pair.machines[holder].front.as_ref().unwrap().pid();
    pair.gap("front process of the master killed", SEEN, || kill_process(pid, Signal::KILL).unwrap());
    assert_eq!(pair.until_holder(), 1 - holder);
    assert!(pair.said(holder, "Quorum lost for tracked process posthouse_front") > 0, "tracked as a process");
    pair.machines[holder].front = None;
    pair.start_front(holder);
    pair.until_said(holder, "Entering BACKUP STATE", before);
    pair.until_ready(holder, true);
    pair.holds(1 - holder);

    let holder = pair.until_holder();
    let before = pair.said(holder, "Entering BACKUP STATE");
    let pid = pair.machines[holder].front.as_ref().unwrap().pid();
    pair.gap("front of the master stopped: only the script sees it", SEEN_BY_SCRIPT, || {
        kill_process(pid, Signal::STOP).unwrap();
    });
    assert_eq!(pair.until_holder(), 1 - holder);
    kill_process(pid, Signal::CONT).unwrap();
    pair.until_said(holder, "Entering BACKUP STATE", before);
    pair.holds(1 - holder);
    // Devices that were waiting there have gone with the address, and it cannot hear them leave.
    pair.until_no_sessions(holder);

    for everything in [false, true] {
        let holder = pair.until_holder();
        let pids = pair.keepalived_pids(holder);
        assert_eq!(pids.len(), 2, "a parent and a child that speaks VRRP");
        let what =
            if everything { "keepalived of the master killed, all of it" } else { "keepalived of the master killed" };
        let killed = if everything { &pids[..] } else { &pids[..1] };
        pair.gap(what, SEEN, || killed.iter().for_each(|pid| _ = kill_process(*pid, Signal::KILL)));
        systemd(&mut pair, holder, &pids);
        assert_eq!(pair.until_holder(), 1 - holder);
        pair.until_said(holder, "Entering BACKUP STATE", 0);
        pair.holds(1 - holder);
    }
}

/// What systemd does when the main process of the unit is killed: the rest of its control group is told to end, then
/// the lines of the drop-in run, then it is started anew (systemd.service(5), systemd.kill(5)).
fn systemd(pair: &mut Pair, index: usize, pids: &[Pid]) {
    let unit = pair.machines[index].unit.clone();
    assert!(unit.contains("\nRestart=always\n") && unit.contains("\nKillMode=control-group\n"), "{unit}");
    pids.iter().for_each(|pid| _ = kill_process(*pid, Signal::TERM));
    pair.machines[index].keepalived = None;
    let gone = |pid: &Pid| !Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists();
    until(Duration::from_secs(10), "every process of the unit is gone", || pids.iter().all(gone).then_some(()));
    let netns = pair.lab.netns(FRONTS[index].0);
    for line in unit.lines().filter_map(|line| line.strip_prefix("ExecStopPost=-")) {
        let mut words = line.split_whitespace();
        let mut command = in_namespace(Some(&netns), Path::new(words.next().unwrap()));
        let _ = command.args(words).stderr(std::process::Stdio::null()).status();
    }
    assert!(!pair.lab.has(FRONTS[index].0, VIP), "the address is still on the machine whose keepalived is dead");
    std::fs::remove_file(pair.cluster.path().join(format!("keepalived-{}.log", FRONTS[index].0))).unwrap();
    pair.start_keepalived(index);
}

#[test]
fn fronts_that_are_not_ready_keep_the_address_and_a_drained_one_gives_it_away() {
    let mut pair = Pair::start();
    // An administrator drains the one that has it: the other is better.
    let holder = pair.until_holder();
    let name = FRONTS[holder].0;
    let mut open = pair.cluster.at_devices(|| Dialog::connect(DEVICE.into(), pair.target)).unwrap();
    assert!(open.reply().unwrap().starts_with("220"));
    let moved = pair.gap_until_moved(holder, || _ = pair.cluster.ctl.ok(&["front", "drain", name]));
    println!(
        "VIP  drained master: the address moved after {} ms (bound {} ms)",
        moved.as_millis(),
        SEEN_BY_SCRIPT.as_millis()
    );
    assert!(moved <= SEEN_BY_SCRIPT);
    pair.until_ready(holder, false);
    // TCP does not move with the address: who was in the middle of a session there begins anew at the other front, and
    // what is left of the session here ends soon.
    pair.until_no_sessions(holder);
    assert!(open.command("NOOP").is_err(), "the other front knows nothing of this session");
    pair.cluster.ctl.ok(&["front", "resume", name]);
    pair.until_ready(holder, true);
    pair.holds(1 - holder);

    // No node at all: nobody is ready, and still exactly one has the address.
    let holder = pair.until_holder();
    (0..3).for_each(|index| pair.cluster.kill_node(index));
    (0..2).for_each(|index| pair.until_ready(index, false));
    for index in 0..2 {
        pair.until_said(index, "VRRP_Script(posthouse_readyz) failed", 0);
    }
    let (watched, mut without) = (Instant::now(), 0);
    while watched.elapsed() < Duration::from_secs(3) {
        without += usize::from(pair.holders().is_empty());
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("VIP  no front is ready: {without} looks of 3 s found the address nowhere");
    assert_eq!(without, 0, "the address vanished from both");
    assert_eq!(pair.until_holder(), holder, "there is no reason to move");
    (0..3).for_each(|index| pair.cluster.restart_node(index));
    (0..2).for_each(|index| pair.until_ready(index, true));
    let source: IpAddr = DEVICE.into();
    let outcome = pair.cluster.at_devices(|| Device { source, target: pair.target }.send("back", "x@partner.example"));
    assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");
}

#[test]
fn a_front_that_is_killed_again_and_again_shows_only_the_gap() {
    let mut pair = Pair::start();
    let (tally, stop, target) = (Tally::default(), AtomicBool::new(false), pair.target);
    let netns = pair.lab.netns("world");
    let mut kills = Vec::new();
    std::thread::scope(|scope| {
        let _stop = OnDrop(&stop);
        scope.spawn(|| inside(Some(&netns), || tally.storm(30, target, &stop)));
        for _ in 0..3 {
            let holder = pair.until_holder();
            let wanted = tally.tried.load(Ordering::SeqCst) + 150;
            until(Duration::from_secs(20), "letters go on", || {
                (tally.tried.load(Ordering::SeqCst) >= wanted).then_some(())
            });
            kills.push(Instant::now());
            pair.machines[holder].front.as_mut().unwrap().kill();
            until(Duration::from_secs(5), "the other has it", || (pair.holders() == [1 - holder]).then_some(()));
            pair.start_front(holder);
            pair.until_ready(holder, true);
        }
    });
    let (tried, failed) = (tally.tried.into_inner(), tally.failed.into_inner().unwrap());
    let ledger = tally.ledger.into_inner().unwrap();
    let twice = ledger.settle(&pair.cluster, Duration::from_secs(60));
    let broken = failed.iter().filter(|failed| matches!(failed.outcome, Outcome::Broken(_))).count();
    println!(
        "VIP  {} fronts killed under {tried} letters: promised {}, lost 0, twice {twice}; sessions broken {broken}, \
         without a banner in the gap {}",
        kills.len(),
        ledger.promised(),
        failed.len() - broken
    );
    for Failed { id, outcome, from, to } in &failed {
        // Open at the kill, or begun in the gap; nothing else.
        let is_due =
            kills.iter().any(|kill| *from <= *kill + SEEN && to >= kill && !matches!(outcome, Outcome::Refused(_)));
        assert!(is_due, "{id}: {outcome:?}");
    }
}
