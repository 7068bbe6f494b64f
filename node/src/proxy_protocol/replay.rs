//! Which signed headers were seen: a header that was used once is worth nothing to whoever overheard it. Pure: the
//! time is passed in.

use std::collections::{BTreeMap, BTreeSet};

use super::signature::CLOCK_WINDOW_MS;

/// The nonces of one clock window, per key. Only headers whose signature was verified belong here, so that nobody
/// else can fill it.
#[derive(Debug)]
pub struct ReplayWindow {
    nonces_max: usize,
    keys: BTreeMap<String, Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Headers up to this time are refused unseen: their nonces may have been forgotten.
    forgotten_until_ms: i64,
    nonces: BTreeSet<(i64, [u8; 16])>,
}

/// What the window says to one header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// Never seen; it is remembered now.
    Fresh,
    /// Seen before.
    Repeated,
    /// So old that whether it was seen is no longer known.
    TooOld,
}

/// About 40 bytes each. A front that makes 5,000 connections a second keeps a window of 40 seconds.
const NONCES_PER_KEY_MAX: usize = 200_000;

impl Default for ReplayWindow {
    fn default() -> Self {
        Self::new(NONCES_PER_KEY_MAX)
    }
}

impl ReplayWindow {
    /// A window that remembers at most `nonces_max` headers per key. When more arrive the window becomes shorter, not
    /// leaky: the oldest are forgotten, and anything as old as they were is refused.
    #[must_use]
    pub fn new(nonces_max: usize) -> Self {
        Self { nonces_max: nonces_max.max(1), keys: BTreeMap::new() }
    }

    /// A window that knows nothing of the time before it: headers of a key that were signed up to `floors` (in the
    /// milliseconds of its front's clock) are refused unseen.
    #[must_use]
    pub fn starting(floors: BTreeMap<String, i64>) -> Self {
        let of = |forgotten_until_ms| Seen { forgotten_until_ms, nonces: BTreeSet::new() };
        let keys = floors.into_iter().map(|(key, floor)| (key, of(floor))).collect();
        Self { keys, ..Self::default() }
    }

    /// Asks whether this header is new, and remembers it.
    pub fn check_and_insert(&mut self, key_id: &str, nonce: [u8; 16], time_ms: i64, now_ms: i64) -> Replay {
        self.forget(now_ms.saturating_sub(CLOCK_WINDOW_MS));
        if !self.keys.contains_key(key_id) {
            self.keys.insert(key_id.to_owned(), Seen::default());
        }
        let Some(seen) = self.keys.get_mut(key_id) else { return Replay::TooOld };
        if time_ms <= seen.forgotten_until_ms || time_ms < now_ms.saturating_sub(CLOCK_WINDOW_MS) {
            return Replay::TooOld;
        }
        if !seen.nonces.insert((time_ms, nonce)) {
            return Replay::Repeated;
        }
        if seen.nonces.len() > self.nonces_max
            && let Some((oldest_ms, _)) = seen.nonces.pop_first()
        {
            seen.forgotten_until_ms = oldest_ms;
        }
        Replay::Fresh
    }

    /// Forgets what is too old to be accepted anyway, and keys of which nothing is left.
    fn forget(&mut self, before_ms: i64) {
        for seen in self.keys.values_mut() {
            while seen.nonces.first().is_some_and(|(time_ms, _)| *time_ms < before_ms) {
                seen.nonces.pop_first();
            }
        }
        self.keys.retain(|_, seen| !seen.nonces.is_empty() || seen.forgotten_until_ms >= before_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    #[test]
    fn a_header_is_fresh_once() {
        let mut window = ReplayWindow::default();
        assert_eq!(window.check_and_insert("k1", [1; 16], NOW, NOW), Replay::Fresh);
        assert_eq!(window.check_and_insert("k1", [1; 16], NOW, NOW + 59_000), Replay::Repeated);
        assert_eq!(window.check_and_insert("k1", [2; 16], NOW, NOW), Replay::Fresh);
        assert_eq!(window.check_and_insert("k2", [1; 16], NOW, NOW), Replay::Fresh);
    }

    #[test]
    fn a_header_is_never_fresh_twice_even_when_it_was_forgotten() {
        let mut window = ReplayWindow::default();
        assert_eq!(window.check_and_insert("k1", [1; 16], NOW, NOW), Replay::Fresh);
        assert_eq!(window.check_and_insert("k1", [1; 16], NOW, NOW + CLOCK_WINDOW_MS + 1), Replay::TooOld);
    }

    #[test]
    fn a_full_window_becomes_shorter_and_not_leaky() {
        let mut window = ReplayWindow::new(10);
        for second in 0..100u8 {
            let time = NOW + i64::from(second);
            assert_eq!(window.check_and_insert("k1", [second; 16], time, time), Replay::Fresh);
            assert!(window.keys["k1"].nonces.len() <= 10);
        }
        for second in 0..100u8 {
            let time = NOW + i64::from(second);
            assert_ne!(window.check_and_insert("k1", [second; 16], time, NOW + 100), Replay::Fresh);
        }
    }

    #[test]
    fn a_key_that_is_no_longer_used_is_forgotten() {
        let mut window = ReplayWindow::default();
        assert_eq!(window.check_and_insert("old", [1; 16], NOW, NOW), Replay::Fresh);
        let later = NOW + 2 * CLOCK_WINDOW_MS;
        assert_eq!(window.check_and_insert("new", [1; 16], later, later), Replay::Fresh);
        assert_eq!(window.keys.len(), 1);
    }
}
