//! Verified secrets, remembered for a while: devices log in for each letter, and hashing takes tens of milliseconds.
//! What is kept is an HMAC under a key of this process, never the secret. Failures are remembered too, so that a
//! printer with an old password does not keep the hashing busy for everybody.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;

use crate::connector::canonical_ip;

/// How long a verified secret is remembered.
const POSITIVE_TTL: Duration = Duration::from_secs(600);
/// How long a failed one is remembered: short, because an administrator may set the password that the device has.
const NEGATIVE_TTL: Duration = Duration::from_secs(60);
/// How many of each kind are remembered.
pub const VERIFY_CACHE_ENTRIES: usize = 10_000;

/// What is remembered about one attempt: an HMAC over everything that decides it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey([u8; 32]);

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CacheKey")
    }
}

/// A remembered outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// The secret of this verifier.
    Verified(u32),
    /// None of the credential's secrets.
    Failed,
}

/// Remembers outcomes. Expiry, ranges and `enabled` of the credential are not part of them and must be checked afresh
/// each time. Successes and failures have room of their own, so that a flood of guesses drives out no success.
pub struct VerifyCache {
    key: hmac::Key,
    verified: Shelf<u32>,
    failed: Shelf<()>,
}

impl VerifyCache {
    /// Makes an empty cache under a random key of this process, with room for `capacity` outcomes of each kind.
    #[must_use]
    pub fn new(process_key: &[u8; 32], capacity: usize) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, process_key),
            verified: Shelf::new(capacity, POSITIVE_TTL),
            failed: Shelf::new(capacity, NEGATIVE_TTL),
        }
    }

    /// The key of an attempt. A change of the credential (its `revision`) or of its secrets makes another key, so that
    /// nothing old is found; an unknown user has no verifiers and revision 0.
    #[must_use]
    pub fn key(&self, user: &str, source: IpAddr, verifiers: &[u32], revision: u64, password: &[u8]) -> CacheKey {
        let mut context = hmac::Context::with_key(&self.key);
        // Each part with its length, so that no two attempts run together into the same bytes.
        let mut part = |bytes: &[u8]| {
            context.update(&(bytes.len() as u64).to_be_bytes());
            context.update(bytes);
        };
        part(user.as_bytes());
        match canonical_ip(source) {
            IpAddr::V4(ip) => part(&ip.octets()),
            IpAddr::V6(ip) => part(&ip.octets()),
        }
        part(&revision.to_be_bytes());
        part(&(verifiers.len() as u64).to_be_bytes());
        for id in verifiers {
            part(&id.to_be_bytes());
        }
        part(password);
        let mut key = [0; 32];
        // HMAC-SHA256 is 32 octets long; `zip` rather than a copy that could panic.
        key.iter_mut().zip(context.sign().as_ref()).for_each(|(to, from)| *to = *from);
        CacheKey(key)
    }

    /// What is remembered about an attempt.
    #[must_use]
    pub fn find(&self, key: &CacheKey, now: Instant) -> Option<Cached> {
        match self.verified.find(key, now) {
            Some(id) => Some(Cached::Verified(id)),
            None => self.failed.find(key, now).map(|()| Cached::Failed),
        }
    }

    /// Remembers an outcome; the oldest of its kind goes when there is no room.
    pub fn remember(&mut self, key: CacheKey, outcome: Cached, now: Instant) {
        match outcome {
            Cached::Verified(id) => self.verified.put(key, id, now),
            Cached::Failed => self.failed.put(key, (), now),
        }
    }

    /// How many outcomes are held, successes and failures.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        (self.verified.entries.len(), self.failed.entries.len())
    }
}

impl fmt::Debug for VerifyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyCache").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Outcomes of one kind, all with the same lifetime: the order of entering is the order of leaving.
struct Shelf<T> {
    capacity: usize,
    ttl: Duration,
    entries: HashMap<CacheKey, (T, Instant)>,
    order: VecDeque<(CacheKey, Instant)>,
}

impl<T: Copy> Shelf<T> {
    fn new(capacity: usize, ttl: Duration) -> Self {
        Self { capacity: capacity.max(1), ttl, entries: HashMap::new(), order: VecDeque::new() }
    }

    fn find(&self, key: &CacheKey, now: Instant) -> Option<T> {
        let (value, entered) = self.entries.get(key)?;
        (now.saturating_duration_since(*entered) < self.ttl).then_some(*value)
    }

    fn put(&mut self, key: CacheKey, value: T, now: Instant) {
        while let Some((oldest, entered)) = self.order.front().copied() {
            let ended = now.saturating_duration_since(entered) >= self.ttl;
            if !ended && self.order.len() < self.capacity {
                break;
            }
            self.order.pop_front();
            // An entry that was renewed has a younger place in the order.
            if self.entries.get(&oldest).is_some_and(|(_, current)| *current == entered) {
                self.entries.remove(&oldest);
            }
        }
        self.entries.insert(key, (value, now));
        self.order.push_back((key, now));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn cache(capacity: usize) -> VerifyCache {
        VerifyCache::new(&[9; 32], capacity)
    }

    #[test]
    fn a_success_lives_ten_minutes_and_a_failure_one() {
        let (mut cache, now) = (cache(10), Instant::now());
        let good = cache.key("u", ip("10.0.0.1"), &[1], 7, b"right");
        let bad = cache.key("u", ip("10.0.0.1"), &[1], 7, b"wrong");
        cache.remember(good, Cached::Verified(1), now);
        cache.remember(bad, Cached::Failed, now);
        let after = |secs| now + Duration::from_secs(secs);
        assert_eq!(cache.find(&good, after(599)), Some(Cached::Verified(1)));
        assert_eq!(cache.find(&good, after(600)), None);
        assert_eq!(cache.find(&bad, after(59)), Some(Cached::Failed));
        assert_eq!(cache.find(&bad, after(60)), None);
    }

    #[test]
    fn whatever_decides_an_attempt_is_in_its_key() {
        let cache = cache(10);
        let base = cache.key("user", ip("10.0.0.1"), &[1, 2], 7, b"pw");
        assert_eq!(base, cache.key("user", ip("::ffff:10.0.0.1"), &[1, 2], 7, b"pw"));
        let others = [
            cache.key("user2", ip("10.0.0.1"), &[1, 2], 7, b"pw"),
            cache.key("user", ip("10.0.0.2"), &[1, 2], 7, b"pw"),
            cache.key("user", ip("10.0.0.1"), &[1], 7, b"pw"),
            cache.key("user", ip("10.0.0.1"), &[2, 1], 7, b"pw"),
            cache.key("user", ip("10.0.0.1"), &[1, 2], 8, b"pw"),
            cache.key("user", ip("10.0.0.1"), &[1, 2], 7, b"pw2"),
            VerifyCache::new(&[8; 32], 10).key("user", ip("10.0.0.1"), &[1, 2], 7, b"pw"),
        ];
        assert!(others.iter().all(|other| *other != base));
    }

    #[test]
    fn a_flood_of_failures_is_bounded_and_drives_out_no_success() {
        let (mut cache, now) = (cache(100), Instant::now());
        let good = cache.key("u", ip("10.0.0.1"), &[1], 7, b"right");
        cache.remember(good, Cached::Verified(1), now);
        for guess in 0..10_000_u32 {
            let key = cache.key("u", ip("10.0.0.1"), &[1], 7, &guess.to_be_bytes());
            cache.remember(key, Cached::Failed, now);
        }
        assert_eq!(cache.len(), (1, 100));
        assert_eq!(cache.find(&good, now), Some(Cached::Verified(1)));
        let newest = cache.key("u", ip("10.0.0.1"), &[1], 7, &9_999_u32.to_be_bytes());
        assert_eq!(cache.find(&newest, now), Some(Cached::Failed));
    }

    #[test]
    fn a_renewed_outcome_outlives_its_first_place_and_the_order_stays_bounded() {
        let (mut cache, now) = (cache(10), Instant::now());
        let key = cache.key("u", ip("10.0.0.1"), &[1], 7, b"right");
        for second in 0..100 {
            cache.remember(key, Cached::Verified(1), now + Duration::from_secs(second * 30));
        }
        assert_eq!(cache.find(&key, now + Duration::from_secs(99 * 30 + 599)), Some(Cached::Verified(1)));
        assert!(cache.verified.order.len() <= 11);
    }
}
