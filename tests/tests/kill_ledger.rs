//! Nodes are killed with SIGKILL at random moments: while letters come in, while they go out, while the configuration
//! changes, while a node starts, two at once. What was promised is delivered as it was sent, and arrives twice only if it
//! was on its way at a kill. 14 kills every day; `POSTHOUSE_TEST_FULL=1` makes 200, and demands 20,000 letters.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use posthouse_tests::dice::{Dice, is_full};
use posthouse_tests::load::LETTERS_PER_SECOND;
use posthouse_tests::never_retry::OnDrop;
use posthouse_tests::{Book, Ctl, Load, NextHop, TestCluster, until};

const DEVICES: u64 = 16;
const PACE: Duration = Duration::from_millis(10);
const QUIET: Duration = Duration::from_secs(20);

/// What is going on when a node is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Ingress,
    Delivery,
    Change,
    Start,
    Pair,
}

const MOMENTS: [Moment; 5] = [Moment::Ingress, Moment::Delivery, Moment::Change, Moment::Start, Moment::Pair];

struct Killer<'a> {
    cluster: &'a mut TestCluster,
    hop: NextHop,
    dice: Dice,
    kills: usize,
    /// Letters that were on their way to the next hop at the kills, at most: each connection carries one.
    in_flight: usize,
    /// Changes of the configuration that were acknowledged.
    changed: Vec<String>,
}

impl Killer<'_> {
    fn kill(&mut self, victim: usize) {
        let name = self.cluster.nodes[victim].name.clone();
        let before = self.hop.connections_of(&name);
        self.cluster.kill_node(victim);
        self.in_flight += before.max(self.hop.connections_of(&name));
        self.kills += 1;
    }

    fn within(&mut self, ms: u64) {
        std::thread::sleep(Duration::from_millis(self.dice.roll(ms)));
    }

    fn strike(&mut self, moment: Moment) {
        let victim = self.dice.roll(3) as usize;
        let other = (victim + 1) % 3;
        match moment {
            Moment::Ingress => {
                self.within(200);
                self.kill(victim);
            }
            Moment::Delivery => {
                // Letters gather, and go out all at once.
                self.hop.greets(false);
                std::thread::sleep(Duration::from_millis(300));
                self.hop.greets(true);
                self.within(80);
                self.kill(victim);
            }
            Moment::Change => {
                let ctl: Ctl = self.cluster.ctl.clone();
                let domain = format!("change-{}.example", self.kills);
                let adding = domain.clone();
                let change = std::thread::spawn(move || ctl.run(&["domain", "add", &adding]).status.success());
                self.within(1_500);
                self.kill(victim);
                if change.join().unwrap() {
                    self.changed.push(domain);
                }
            }
            Moment::Start => {
                self.kill(victim);
                self.cluster.restart_node(victim);
                self.within(500);
                self.kill(victim);
            }
            Moment::Pair => {
                self.within(100);
                self.kill(other);
                self.within(50);
                self.kill(victim);
                self.cluster.restart_node(other);
            }
        }
        self.within(300);
        self.cluster.restart_node(victim);
        self.cluster.wait_healthy();
    }
}

#[test]
fn what_was_promised_survives_sigkill_at_any_moment() {
    let (kills, letters) = if is_full() { (200, 20_000) } else { (14, 600) };
    let mut cluster = TestCluster::start_with("[queue]\nglitch_retry_interval = \"1s\"\n");
    cluster.sink.kill();
    let hop = NextHop::start(cluster.sink_addr);
    cluster.wait_healthy();
    let mut dice = Dice::seeded("KILLS");
    let (book, stop, target) = (Book::default(), AtomicBool::new(false), cluster.smtp);
    let load = Load { target, book: &book, prefix: "kill", pace: PACE, bytes: None, seed: dice.roll(u64::MAX) };
    let mut killer =
        Killer { cluster: &mut cluster, hop: hop.clone(), dice, kills: 0, in_flight: 0, changed: Vec::new() };
    let began = Instant::now();
    std::thread::scope(|scope| {
        let _stop = OnDrop(&stop);
        scope.spawn(|| load.run(DEVICES, &stop));
        let mut strikes = 0;
        while killer.kills < kills || book.promised() < letters {
            // In turn, so that a short run has every kind.
            killer.strike(MOMENTS[strikes % MOMENTS.len()]);
            strikes += 1;
        }
        stop.store(true, Ordering::SeqCst);
    });
    let rate = book.promised() as f64 / began.elapsed().as_secs_f64();
    let (kills, in_flight, changed) = (killer.kills, killer.in_flight, killer.changed);
    let account = book.settle(&hop, QUIET);
    println!(
        "KILLS {kills} kills in {} s: promised {} ({rate:.0} a second), lost {}, altered {}, twice {} of {in_flight} in \
         flight at kills; {} sessions broken, refused {:?}; {} changes acknowledged",
        began.elapsed().as_secs(),
        account.promised,
        account.lost.len(),
        account.altered.len(),
        account.duplicates,
        book.broken(),
        book.refusals(),
        changed.len(),
    );
    account.demand_whole();
    assert!(account.duplicates <= in_flight, "only what was in flight at a kill may arrive twice");
    assert!(book.broken() <= kills * DEVICES as usize, "only sessions open on a killed node fail");
    let domains = cluster.ctl.ok(&["domain", "list"]);
    changed.iter().for_each(|domain| assert!(domains.contains(domain.as_str()), "{domain} was acknowledged"));
    assert!(rate >= LETTERS_PER_SECOND, "only {rate:.0} letters a second: the run is void");

    // The control: a node that forgets its spool at a kill must be found out.
    hop.greets(false);
    let forgotten = Book::default();
    let pace = Duration::ZERO;
    let load =
        Load { target: cluster.nodes[0].smtp, book: &forgotten, prefix: "forgotten", pace, bytes: None, seed: 1 };
    until(Duration::from_secs(30), "the node takes letters", || load.send(5).ok());
    cluster.kill_node(0);
    std::fs::remove_dir_all(cluster.nodes[0].dir.join("data/spool")).unwrap();
    cluster.restart_node(0);
    cluster.wait_healthy();
    hop.greets(true);
    let account = forgotten.settle(&hop, Duration::from_secs(2));
    assert_eq!(account.lost.len(), account.promised, "the ledger does not notice what is lost");
}
