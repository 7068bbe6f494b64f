//! Which next hops failed lately: a dead one is passed over for a while, so that it costs each letter no time. Pure but
//! for its lock; time is passed in.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::mail::Reply;

/// How long a next hop is passed over after its first failure; doubled with each further one.
pub const PENALTY_FIRST: Duration = Duration::from_secs(5);
/// The longest time: a next hop that is well again is found within it.
pub const PENALTY_MAX: Duration = Duration::from_secs(60);
/// How many next hops are remembered; a domain by MX has a few each.
pub const REMEMBERED_MAX: usize = 10_000;

/// What is known of the next hops that failed.
#[derive(Debug)]
pub struct Health {
    failing: Mutex<HashMap<SocketAddr, Failing>>,
    first: Duration,
    longest: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Self::new(PENALTY_FIRST, PENALTY_MAX)
    }
}

#[derive(Debug)]
struct Failing {
    failures: u32,
    until: Instant,
    reply: Reply,
}

/// What a next hop is worth now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing is known against it, or its time is over: it may be tried.
    Try,
    /// It failed lately, with these words.
    PassOver(Reply),
}

impl Health {
    /// Passes a next hop over for `first` after its first failure, doubled with each further one up to `longest`.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { failing: Mutex::default(), first, longest }
    }

    /// Judges `addr`. Whoever is told to try a next hop that failed before is the only one for a while: one letter finds
    /// out for all.
    pub(super) fn judge(&self, addr: SocketAddr, now: Instant) -> Verdict {
        match self.lock().get_mut(&addr) {
            None => Verdict::Try,
            Some(failing) if failing.until <= now => {
                failing.until = now + self.first;
                Verdict::Try
            }
            Some(failing) => Verdict::PassOver(failing.reply.clone()),
        }
    }

    /// Whether `addr` is passed over now, without changing that.
    #[must_use]
    pub fn is_passed_over(&self, addr: SocketAddr, now: Instant) -> bool {
        self.lock().get(&addr).is_some_and(|failing| failing.until > now)
    }

    /// A next hop worked.
    pub(super) fn succeeded(&self, addr: SocketAddr) {
        self.lock().remove(&addr);
    }

    /// A next hop failed.
    pub(super) fn failed(&self, addr: SocketAddr, reply: &Reply, now: Instant) {
        let mut failing = self.lock();
        if failing.len() >= REMEMBERED_MAX && !failing.contains_key(&addr) {
            failing.retain(|_, known| known.until > now);
            if failing.len() >= REMEMBERED_MAX {
                return;
            }
        }
        let known = failing.entry(addr).or_insert_with(|| Failing { failures: 0, until: now, reply: reply.clone() });
        let penalty = self.first.saturating_mul(1 << known.failures.min(10)).min(self.longest);
        known.failures = known.failures.saturating_add(1);
        known.until = now + penalty;
        known.reply = reply.clone();
    }

    /// Forgets everything: an administrator wants letters tried now.
    pub fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Failing>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 25))
    }

    #[test]
    fn a_failing_next_hop_is_passed_over_longer_each_time_and_one_letter_finds_out() {
        let (health, mut now) = (Health::default(), Instant::now());
        let reply = Reply::new(451, None, "connection refused");
        assert_eq!(health.judge(addr(1), now), Verdict::Try);
        for secs in [5, 10, 20, 40, 60, 60] {
            health.failed(addr(1), &reply, now);
            now += Duration::from_secs(secs) - Duration::from_millis(1);
            assert_eq!(health.judge(addr(1), now), Verdict::PassOver(reply.clone()), "{secs}");
            now += Duration::from_millis(1);
            assert_eq!(health.judge(addr(1), now), Verdict::Try);
            assert_ne!(health.judge(addr(1), now), Verdict::Try, "one at a time");
        }
        assert_eq!(health.judge(addr(2), now), Verdict::Try);
        health.succeeded(addr(1));
        assert_eq!(health.judge(addr(1), now), Verdict::Try);
        health.failed(addr(1), &reply, now);
        health.forget();
        assert!(!health.is_passed_over(addr(1), now));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (health, now) = (Health::default(), Instant::now());
        let reply = Reply::new(451, None, "no");
        for index in 0..REMEMBERED_MAX + 500 {
            let [a, b] = u16::try_from(index).unwrap_or(0).to_be_bytes();
            health.failed(SocketAddr::from(([10, 0, a, b], 25)), &reply, now);
        }
        assert_eq!(health.lock().len(), REMEMBERED_MAX);
        health.failed(addr(1), &reply, now + PENALTY_MAX);
        assert_eq!(health.lock().len(), 1, "those whose time is over make room");
    }
}
