//! A node is killed between the next hop's `250` and its own removal of the letter: nobody can know then whether the
//! letter was taken, and it is sent again. Once more, and never not at all. Nine such deaths every day;
//! `POSTHOUSE_TEST_FULL=1` makes 102.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use posthouse_tests::cluster::stop;
use posthouse_tests::dice::{Dice, is_full};
use posthouse_tests::{Book, Load, NextHop, TestCluster, until};
use rustix::process::{Pid, Signal, kill_process};

const QUIET: Duration = Duration::from_secs(20);
/// Letters that are sent beside the one at which the node dies, and may be in flight with it.
const COMPANIONS: usize = 3;

/// When a node dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// The next hop has the letter whole, and has not said so.
    BeforeTheReply,
    /// The reply is in the node's socket, and it has not read it.
    ReplyUnread,
    /// So many microseconds after the reply was sent: while the node reads it, or writes down what it says.
    AfterTheReply(u64),
}

/// Who dies how, by the beginning of the letter's id.
type Plan = Arc<Mutex<BTreeMap<String, (Pid, Death)>>>;

fn at_the_end(plan: &Plan, id: &str, promise: &mut dyn FnMut()) {
    let due = id.rsplit_once('-').and_then(|(prefix, _)| plan.lock().unwrap().remove(prefix));
    let Some((pid, death)) = due else { return promise() };
    match death {
        Death::BeforeTheReply => {}
        Death::ReplyUnread => {
            stop(pid);
            promise();
        }
        Death::AfterTheReply(micros) => {
            promise();
            std::thread::sleep(Duration::from_micros(micros));
        }
    }
    kill_process(pid, Signal::KILL).unwrap();
}

#[test]
fn a_node_that_dies_after_the_next_hops_250_sends_the_letter_once_more() {
    let rounds = if is_full() { 34 } else { 3 };
    let mut dice = Dice::seeded("CRASH POINTS");
    let mut cluster = TestCluster::start_with("[queue]\nglitch_retry_interval = \"1s\"\n");
    cluster.sink.kill();
    let plan = Plan::default();
    let at_hop = Arc::clone(&plan);
    let hop = NextHop::start_with(cluster.sink_addr, move |id, promise| at_the_end(&at_hop, id, promise));
    let (book, mut deaths) = (Book::default(), BTreeMap::<String, Death>::new());
    for round in 0..rounds {
        cluster.wait_healthy();
        // Everybody dies, each in another way.
        let first = dice.roll(3) as usize;
        for index in 0..3 {
            let death = match (first + index) % 3 {
                0 => Death::BeforeTheReply,
                1 => Death::ReplyUnread,
                _ => Death::AfterTheReply(dice.roll(3_000)),
            };
            let (target, seed, pace) = (cluster.nodes[index].smtp, dice.roll(u64::MAX), Duration::ZERO);
            let prefix = format!("r{round}-n{index}");
            let pid = cluster.procs[index].as_ref().unwrap().pid();
            plan.lock().unwrap().insert(prefix.clone(), (pid, death));
            let beside = format!("{prefix}-beside");
            let send = |prefix: &str, letters: usize| {
                let load = Load { target, book: &book, prefix, pace, bytes: None, seed };
                // A connection may end with the node that was to be killed: what it promised before counts.
                load.send(letters)
            };
            send(&beside, COMPANIONS).unwrap();
            let _ = send(&prefix, 1);
            deaths.insert(prefix, death);
        }
        until(Duration::from_secs(30), "everybody died", || {
            (0..3).all(|index| cluster.procs[index].as_mut().unwrap().child.try_wait().unwrap().is_some()).then_some(())
        });
        for index in 0..3 {
            cluster.kill_node(index);
            cluster.restart_node(index);
        }
        let account = book.settle(&hop, QUIET);
        account.demand_whole();
        assert!(account.most <= 2, "a letter arrived {} times in round {round}", account.most);
    }
    // A moment for what would still come.
    until(Duration::from_secs(30), "the queues are empty", || {
        (cluster.ctl.try_json(&["queue", "summary"])?["messages"] == 0).then_some(())
    });
    let (account, arrived) = (book.account(&hop), hop.arrived());
    let count = |prefix: &str| {
        let from = format!("{prefix}-");
        let own = |id: &&String| id.starts_with(&from) && id.len() == from.len() + 7;
        arrived.iter().filter(|(id, _)| own(id)).map(|(_, copies)| copies.len()).sum::<usize>()
    };
    let (mut once, mut twice) = (0, 0);
    for (prefix, death) in &deaths {
        let times = count(prefix);
        match death {
            Death::BeforeTheReply => assert!(times == 1, "{prefix} {death:?}: {times} times"),
            Death::ReplyUnread => assert!(times == 2, "{prefix} {death:?}: {times} times, the crash point was not hit"),
            Death::AfterTheReply(_) => assert!((1..=2).contains(&times), "{prefix} {death:?}: {times} times"),
        }
        if times == 2 { twice += 1 } else { once += 1 }
    }
    println!(
        "CRASH POINTS {} forced: once {once}, twice {twice}; of all {} letters lost {}, altered {}, most {} times",
        deaths.len(),
        account.promised,
        account.lost.len(),
        account.altered.len(),
        account.most,
    );
    account.demand_whole();
    assert!(account.most <= 2, "a letter arrived {} times", account.most);
}
