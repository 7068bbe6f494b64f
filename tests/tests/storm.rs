//! Devices that never retry: one connection for each letter, 50 letters a second and more, while nodes are killed,
//! stopped, cut off, drained, upgraded and rejoined at random. Nobody is refused or left without a banner; sessions
//! break only where they were open on a node at the instant it was killed; no promised letter is lost.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use posthouse_tests::cluster::{Place, Stage};
use posthouse_tests::netns::{Lab, inside};
use posthouse_tests::never_retry::{Failed, OnDrop, Tally};
use posthouse_tests::{Outcome, TestCluster, until};
use rustix::process::Signal;

/// Below this the run says nothing.
const LETTERS_PER_SECOND: usize = 50;
/// So many send at the same time: some more letters than are demanded.
const DEVICES: usize = 30;
/// A session that was open on a killed node has noticed by then.
const BREAKS_WITHIN: Duration = Duration::from_secs(3);

const FRONT: Ipv4Addr = Ipv4Addr::new(10, 98, 25, 21);
const WORLD: Ipv4Addr = Ipv4Addr::new(10, 98, 25, 1);

fn node(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 98, 25, 11 + index as u8)
}

/// What is done to one node at a time.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Stop,
    CutFromFront,
    CutToFront,
    CableOut,
    Drain,
    Upgrade,
}

const FAULTS: [Fault; 7] =
    [Fault::Kill, Fault::Stop, Fault::CutFromFront, Fault::CutToFront, Fault::CableOut, Fault::Drain, Fault::Upgrade];

/// Numbers that the same seed gives again (xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn in_rotation(cluster: &TestCluster, index: usize) {
    let line = format!("[+]backend/{} ", cluster.nodes[index].name);
    until(Duration::from_secs(60), &format!("{} is in rotation", cluster.nodes[index].name), || {
        cluster.front_page("/readyz?verbose").1.contains(&line).then_some(())
    });
}

/// Does one thing to a node, and takes it back after `hold`. Answers when it was killed, if it was.
fn strike(lab: &Lab, cluster: &mut TestCluster, fault: Fault, index: usize, hold: Duration) -> Option<Instant> {
    let (name, address) = (cluster.nodes[index].name.clone(), node(index));
    let began = Instant::now();
    match fault {
        Fault::Kill => {
            cluster.kill_node(index);
            std::thread::sleep(hold);
            cluster.restart_node(index);
            return Some(began);
        }
        Fault::Stop => {
            cluster.procs[index].as_ref().unwrap().signal(Signal::STOP);
            std::thread::sleep(hold);
            cluster.procs[index].as_ref().unwrap().signal(Signal::CONT);
        }
        Fault::CutFromFront | Fault::CutToFront => {
            let (from, to) = if matches!(fault, Fault::CutFromFront) { (FRONT, address) } else { (address, FRONT) };
            lab.one_way(from, to, true);
            std::thread::sleep(hold);
            lab.one_way(from, to, false);
        }
        Fault::CableOut => {
            lab.cable(&name, false);
            std::thread::sleep(hold);
            lab.cable(&name, true);
        }
        Fault::Drain => {
            cluster.ctl.ok(&["node", "drain", &name]);
            std::thread::sleep(hold);
            cluster.ctl.ok(&["node", "resume", &name]);
        }
        Fault::Upgrade => {
            cluster.ctl.ok(&["node", "drain", &name, "--deadline", "30s"]);
            assert_eq!(cluster.procs[index].take().unwrap().terminate(), Some(0), "{name} ends cleanly");
            cluster.restart_node(index);
            // posthousectl may know this node's address only, and it has just been started.
            until(Duration::from_secs(30), &format!("{name} is resumed"), || {
                cluster.ctl.run(&["node", "resume", &name]).status.success().then_some(())
            });
        }
    }
    None
}

fn storm(lasts: Duration) {
    let seed = std::env::var("POSTHOUSE_STORM_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1);
    println!("STORM seed {seed} (POSTHOUSE_STORM_SEED={seed} does the same again)");
    let mut dice = Dice(seed);
    let mut lab = Lab::new();
    (0..3).for_each(|index| _ = lab.host(&format!("n{}", index + 1), &[node(index)]));
    lab.host("front", &[FRONT]);
    lab.host("world", &[WORLD]);
    lab.owns("world", "10.98.31.0/24");
    let place = |name: &str, _: &Path| {
        let (host, address) = match name {
            "sink" => ("world", WORLD),
            "front" => ("front", FRONT),
            name => (name, node(usize::from(name.as_bytes()[1] - b'1'))),
        };
        Place { address: address.into(), netns: Some(lab.netns(host)) }
    };
    let (listen, target) = (Ipv4Addr::UNSPECIFIED.into(), FRONT.into());
    // What a broken delivery left behind need not wait a minute for the end of the test.
    let node_lines = "[queue]\nglitch_retry_interval = \"1s\"\n";
    let stage = Stage { place: &place, listen, target, devices: "10.98.31.0/24", node_lines, ..Stage::loopback() };
    let mut cluster = TestCluster::start_on(&stage);
    cluster.wait_healthy();
    (0..3).for_each(|index| in_rotation(&cluster, index));

    let (tally, stop) = (Tally::default(), AtomicBool::new(false));
    let (target, netns) = (cluster.smtp, cluster.netns.clone());
    let (mut kills, mut strikes) = (Vec::new(), 0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let _stop = OnDrop(&stop);
        scope.spawn(|| inside(netns.as_deref(), || tally.storm(DEVICES, target, &stop)));
        while began.elapsed() < lasts {
            std::thread::sleep(Duration::from_millis(dice.roll(500)));
            // Nearly in turn, so that also a short storm has most kinds.
            let fault = FAULTS[(strikes + dice.roll(2) as usize) % FAULTS.len()];
            let (index, hold) = (dice.roll(3) as usize, Duration::from_millis(500 + dice.roll(2_500)));
            println!(
                "STORM {:>6} ms  {fault:?} {} for {hold:?}",
                began.elapsed().as_millis(),
                cluster.nodes[index].name
            );
            kills.extend(strike(&lab, &mut cluster, fault, index, hold));
            in_rotation(&cluster, index);
            strikes += 1;
        }
    });
    let took = began.elapsed();
    let ledger = tally.ledger.into_inner().unwrap();
    let (tried, failed) = (tally.tried.into_inner(), tally.failed.into_inner().unwrap());
    let duplicates = ledger.settle(&cluster, Duration::from_secs(120));
    let broken = failed.iter().filter(|failure| matches!(failure.outcome, Outcome::Broken(_))).count();
    let rate = tried as f64 / took.as_secs_f64();
    println!(
        "STORM {} s, {strikes} strikes, {} kills; letters {tried} ({rate:.0} a second), promised {}, lost 0, twice \
         {duplicates}; refused or without a banner {}, sessions broken by kills {broken}",
        took.as_secs(),
        kills.len(),
        ledger.promised(),
        failed.len() - broken,
    );
    // Only those whose beginning lies before a kill can have been open at it.
    let open_at_a_kill =
        |from: Instant, to: Instant| kills.iter().any(|at| from <= *at && to <= *at + BREAKS_WITHIN && to >= *at);
    for Failed { id, outcome, from, to } in &failed {
        let is_due = matches!(outcome, Outcome::Broken(_)) && open_at_a_kill(*from, *to);
        assert!(is_due, "{id}, {:?} after the start: {outcome:?}", from.duration_since(began));
    }
    assert!(rate >= LETTERS_PER_SECOND as f64, "only {rate:.0} letters a second: the run is void");
}

#[test]
fn devices_that_never_retry_notice_nothing() {
    storm(Duration::from_secs(40));
}

#[test]
#[ignore = "five minutes; ARCHITECTURE.md has the command"]
fn devices_that_never_retry_notice_nothing_for_five_minutes() {
    storm(Duration::from_secs(300));
}
