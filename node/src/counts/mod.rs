//! What the nodes count together: open sessions and letters a minute. Each node counts its own in memory and tells the
//! others, five times a second, what has changed. It decides nothing: the limits are the connectors', and the counting
//! itself is `connector`'s.
//!
//! Overshoot: a letter is known everywhere one exchange and one network round after it was counted, at most 500 ms
//! while the members answer each other. A node that is cut off counts alone, and its open sessions are not counted by
//! the others after three seconds of silence.

mod exchange;
mod wire;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{counter, describe_counter, describe_gauge, gauge};
use tokio::time::Instant;

pub use exchange::{CountsService, start};

use crate::connector::{ClusterCounts, LimitRefusal, ReceiveConnector};

/// Reports told to other members, by result.
const EXCHANGES: &str = "posthouse_counts_exchanges_total";
/// Keys counted here and told by others.
const KEYS: &str = "posthouse_counts_keys";

/// Describes the series and registers them at zero.
pub fn describe_metrics() {
    describe_counter!(EXCHANGES, "Reports of counts to other members, by result.");
    for result in ["ok", "failed"] {
        counter!(EXCHANGES, "result" => result).absolute(0);
    }
    describe_gauge!(KEYS, "Connectors, addresses and credentials counted, here and by other members.");
    gauge!(KEYS).set(0.0);
}

/// The counts of this process. Clones share them.
#[derive(Clone)]
pub struct Counts {
    shared: Arc<Shared>,
}

struct Shared {
    counts: Mutex<ClusterCounts>,
    began: Instant,
    /// Tells this process from the one before it.
    epoch: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self::new()
    }
}

impl Counts {
    /// Counts nothing yet.
    #[must_use]
    pub fn new() -> Self {
        let epoch = u64::from_le_bytes(crate::pki::random()).max(1);
        Self { shared: Arc::new(Shared { counts: Mutex::default(), began: Instant::now(), epoch }) }
    }

    /// Counts a session in until what is answered is dropped.
    ///
    /// # Errors
    /// The limit that was reached.
    pub fn open(&self, connector: &ReceiveConnector, source: IpAddr) -> Result<OpenCount, LimitRefusal> {
        let now_ms = self.now_ms();
        self.lock().open(connector, source, now_ms)?;
        Ok(OpenCount { counts: self.clone(), connector: connector.name.clone(), source })
    }

    /// Counts a letter.
    ///
    /// # Errors
    /// When `message_rate_limit` is reached.
    pub fn letter(&self, connector: &ReceiveConnector, source: IpAddr, user: Option<&str>) -> Result<(), LimitRefusal> {
        let now_ms = self.now_ms();
        self.lock().letter(connector, source, user, now_ms)
    }

    /// Counts a failed login.
    pub fn failed_login(&self, source: IpAddr) {
        let now_ms = self.now_ms();
        self.lock().failed_login(source, now_ms);
    }

    /// Whether an address may try to log in, for all that failed from there in the last minute.
    #[must_use]
    pub fn may_log_in(&self, source: IpAddr) -> bool {
        let now_ms = self.now_ms();
        self.lock().may_log_in(source, now_ms)
    }

    fn lock(&self) -> MutexGuard<'_, ClusterCounts> {
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds of this process: a clock that never goes back.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.shared.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A session that is counted.
pub struct OpenCount {
    counts: Counts,
    connector: String,
    source: IpAddr,
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        let now_ms = self.counts.now_ms();
        self.counts.lock().close(&self.connector, self.source, now_ms);
    }
}
