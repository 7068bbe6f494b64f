//! What a restart must not make this node forget: which headers of its fronts it has believed. Instead of every nonce
//! it keeps, for each signing key, how far the front's clock is from its own. With that it knows at its next start what
//! time the front's clock showed then, and refuses every header that was signed before. Clocks that differ refuse no
//! fresh header, and a key that was never used here needs no such floor: there is nothing to repeat.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::shutdown::run_blocking;

/// How far a front's clock is ahead of ours, in milliseconds, by key.
type Ahead = BTreeMap<String, i64>;

/// How far a clock may be from what is remembered of it. Less is not worth a write.
const STEP_MS: i64 = 100;
/// A header that seems to come from a slower clock was late, as a rule. Only when all have seemed so for this long the
/// clock was set back.
const SET_BACK_AFTER_MS: i64 = 60_000;
/// How often a difference that changed is written.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Keys that are remembered: fronts have one or two each.
const KEYS_MAX: usize = 1024;

/// The clocks of the fronts, kept in one small file.
pub(super) struct FrontClocks {
    path: PathBuf,
    clocks: Mutex<Clocks>,
}

#[derive(Default)]
struct Clocks {
    ahead: Arc<Ahead>,
    /// When, by our clock, a header last came without delay.
    confirmed_ms: BTreeMap<String, i64>,
}

impl FrontClocks {
    /// Reads what the process before this one knew; nothing when there is no such file or none that can be read.
    pub(super) fn load(path: PathBuf) -> Self {
        let ahead = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "the fronts' clocks cannot be read");
                Ahead::new()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ahead::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the fronts' clocks cannot be read");
                Ahead::new()
            }
        };
        Self { path, clocks: Mutex::new(Clocks { ahead: Arc::new(ahead), ..Clocks::default() }) }
    }

    /// Up to when headers are refused unseen after a start at `started_ms`, by key and in its front's time.
    pub(super) fn floors(&self, started_ms: i64) -> BTreeMap<String, i64> {
        let floor = |ahead: i64| started_ms.saturating_add(ahead).saturating_sub(STEP_MS);
        self.now().iter().map(|(key, ahead)| (key.clone(), floor(*ahead))).collect()
    }

    fn now(&self) -> Arc<Ahead> {
        Arc::clone(&self.clocks.lock().unwrap_or_else(PoisonError::into_inner).ahead)
    }

    /// Notes when a header that was verified was signed, and when it arrived.
    pub(super) fn saw(&self, key: &str, signed_ms: i64, now_ms: i64) {
        let found = signed_ms.saturating_sub(now_ms);
        let mut clocks = self.clocks.lock().unwrap_or_else(PoisonError::into_inner);
        let Clocks { ahead, confirmed_ms } = &mut *clocks;
        let known = ahead.get(key).copied();
        let confirmed = confirmed_ms.entry(key.to_owned()).or_insert(now_ms);
        if known.is_some_and(|known| found < known - STEP_MS && now_ms - *confirmed < SET_BACK_AFTER_MS) {
            return;
        }
        *confirmed = now_ms;
        if known.is_some_and(|known| (known - found).abs() < STEP_MS) {
            return;
        }
        if confirmed_ms.len() > KEYS_MAX {
            confirmed_ms.clear();
            *ahead = Arc::default();
        }
        Arc::make_mut(ahead).insert(key.to_owned(), found);
    }

    /// Writes what changes. A node that is killed within a second of a change forgets that change only.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut written = self.now();
        loop {
            tokio::time::sleep(WRITE_INTERVAL).await;
            let now = self.now();
            if now == written {
                continue;
            }
            let (path, ahead) = (self.path.clone(), Arc::clone(&now));
            match run_blocking(move || store(&path, &ahead)).await {
                Ok(()) => written = now,
                Err(error) => tracing::debug!(%error, "the fronts' clocks cannot be written yet"),
            }
        }
    }
}

/// Whole or not at all: written beside, synced, and renamed.
fn store(path: &Path, ahead: &Ahead) -> std::io::Result<()> {
    let beside = path.with_extension("json.new");
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(&serde_json::to_vec(ahead)?)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::proxy_protocol::{Replay, ReplayWindow};

    const NOW: i64 = 1_800_000_000_000;

    /// A node that saw headers of two fronts, whose clocks are five seconds slow and fast, and starts again.
    fn restarted(after_ms: i64) -> ReplayWindow {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("front-clocks.json");
        let before = FrontClocks::load(path.clone());
        before.saw("slow", NOW - 5_000, NOW);
        before.saw("fast", NOW + 5_000, NOW);
        store(&path, &before.now()).unwrap();
        ReplayWindow::starting(FrontClocks::load(path).floors(NOW + after_ms))
    }

    #[test]
    fn after_a_restart_what_was_signed_before_is_refused_and_what_is_fresh_is_not() {
        for (key, ahead) in [("slow", -5_000), ("fast", 5_000)] {
            let mut window = restarted(400);
            let now = NOW + 600;
            assert_eq!(window.check_and_insert(key, [1; 16], NOW + ahead, now), Replay::TooOld, "{key}: before");
            assert_eq!(window.check_and_insert(key, [2; 16], now + ahead, now), Replay::Fresh, "{key}: after");
            assert_eq!(window.check_and_insert(key, [2; 16], now + ahead, now), Replay::Repeated, "{key}");
        }
        let mut window = restarted(400);
        assert_eq!(window.check_and_insert("new", [1; 16], NOW - 9_000, NOW + 600), Replay::Fresh, "never used here");
    }

    #[test]
    fn delays_on_the_way_change_nothing_and_a_clock_that_was_set_does() {
        let clocks = FrontClocks::load(PathBuf::from("/nonexistent/front-clocks.json"));
        clocks.saw("k", NOW, NOW);
        let first = clocks.now();
        clocks.saw("k", NOW, NOW + STEP_MS - 1);
        assert!(Arc::ptr_eq(&first, &clocks.now()));
        clocks.saw("k", NOW, NOW + 20_000);
        assert!(Arc::ptr_eq(&first, &clocks.now()), "it was late");
        clocks.saw("k", NOW + 3_000, NOW);
        assert_eq!(clocks.floors(NOW)["k"], NOW + 3_000 - STEP_MS, "no header comes before it was signed");
        clocks.saw("k", NOW + SET_BACK_AFTER_MS, NOW + SET_BACK_AFTER_MS);
        assert_eq!(clocks.floors(NOW)["k"], NOW - STEP_MS, "nothing else for a minute: it was set back");
    }
}
