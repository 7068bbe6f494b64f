//! The power goes while letters come in: the kernel's cache and the drive's are lost. Every letter that had its `250` is
//! there afterwards, and the node opens within ten seconds. The same cuts must lose letters when no sync does anything,
//! or they prove nothing. Five cuts every day; `POSTHOUSE_TEST_FULL=1` makes fifty. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use posthouse_tests::cluster::{Place, Stage};
use posthouse_tests::dice::{Dice, is_full};
use posthouse_tests::load::{Account, LETTERS_PER_SECOND};
use posthouse_tests::power::{PoweredDisk, eat_my_data};
use posthouse_tests::{Book, Load, NextHop, TestCluster, try_http_get, until};

/// The node whose disk it is.
const NODE: usize = 2;
const DEVICES: u64 = 6;
/// A node must be ready so soon after it was started on what the cut left.
const OPENS_WITHIN: Duration = Duration::from_secs(10);
/// When nothing more has arrived for so long, nothing more will.
const QUIET: Duration = Duration::from_secs(15);
const CONTROLS_MAX: usize = 10;

struct Scene {
    cluster: TestCluster,
    hop: NextHop,
    disk: PoweredDisk,
    dice: Dice,
    /// Letters promised, and the time that the devices had for them.
    promised: usize,
    loaded: Duration,
    slowest: Duration,
}

impl Scene {
    fn start() -> Self {
        let dice = Dice::seeded("POWER");
        let disk = PoweredDisk::new(768);
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
        cluster.wait_healthy();
        let zero = Duration::ZERO;
        Self { cluster, hop, disk, dice, promised: 0, loaded: zero, slowest: zero }
    }

    /// Letters come in, the power goes, and comes back. Answers whether the node opened in time.
    fn cut(&mut self, book: &Book, prefix: &str) -> bool {
        self.hop.greets(false);
        let load = Load {
            target: self.cluster.nodes[NODE].smtp,
            book,
            prefix,
            pace: Duration::ZERO,
            bytes: None,
            seed: self.dice.roll(u64::MAX),
        };
        let (before, stop) = (book.promised(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| load.run(DEVICES, &stop));
            until(Duration::from_secs(20), "the first letter is taken", || (book.promised() > before).then_some(()));
            let began = Instant::now();
            std::thread::sleep(Duration::from_millis(300 + self.dice.roll(1_200)));
            self.loaded += began.elapsed();
            self.disk.cut();
            stop.store(true, Ordering::SeqCst);
        });
        self.promised += book.promised() - before;
        self.cluster.kill_node(NODE);
        self.disk.restore();
        self.open()
    }

    fn open(&mut self) -> bool {
        let began = Instant::now();
        self.cluster.restart_node(NODE);
        let http = self.cluster.nodes[NODE].http;
        let is_ready = || try_http_get(http, "/readyz").is_ok_and(|(status, _)| status == 200);
        while !is_ready() {
            if began.elapsed() > OPENS_WITHIN {
                return false;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        self.slowest = self.slowest.max(began.elapsed());
        true
    }

    fn settle(&self, book: &Book, quiet: Duration) -> Account {
        self.hop.greets(true);
        book.settle(&self.hop, quiet)
    }
}

#[test]
fn what_was_promised_survives_a_power_cut_and_without_syncs_it_does_not() {
    let cuts = if is_full() { 50 } else { 5 };
    let mut scene = Scene::start();
    let mut book = Book::default();
    for cut in 0..cuts {
        assert!(scene.cut(&book, &format!("cut{cut}")), "cut {cut}: not ready within {OPENS_WITHIN:?}");
        // After every second cut the letters of two of them are called for.
        if cut % 2 == 1 || cut + 1 == cuts {
            scene.settle(&book, QUIET).demand_whole();
            book = Book::default();
        }
    }
    let rate = scene.promised as f64 / scene.loaded.as_secs_f64();
    println!(
        "POWER {cuts} cuts: promised {} ({rate:.0} a second), lost 0, altered 0, slowest start {} ms",
        scene.promised,
        scene.slowest.as_millis()
    );
    assert!(rate >= LETTERS_PER_SECOND, "only {rate:.0} letters a second: the run is void");

    // The control: the same node, and no sync does anything.
    scene.cluster.kill_node(NODE);
    scene.cluster.nodes[NODE].preload = Some(eat_my_data());
    assert!(scene.open(), "it starts without syncs");
    for control in 1..=CONTROLS_MAX {
        let book = Book::default();
        let opened = scene.cut(&book, &format!("control{control}"));
        let lost = if opened { scene.settle(&book, Duration::from_secs(3)).lost.len() } else { book.promised() };
        if lost > 0 {
            println!(
                "POWER control: without syncs, {lost} of {} are lost at cut {control}{}",
                book.promised(),
                if opened { "" } else { "; the node does not open" }
            );
            return;
        }
    }
    panic!("no letter was lost in {CONTROLS_MAX} cuts without syncs: the cuts cut nothing, and the test is void");
}
