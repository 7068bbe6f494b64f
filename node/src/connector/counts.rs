//! What all nodes count together: open sessions of a connector and of each source on it, and letters of the last
//! minute by address and by credential. Each node counts its own, tells the others what has changed, and adds what
//! they told. Nothing of it goes through the Raft log.
//!
//! What is told are values, not differences: hearing a report twice, or not at all, puts nothing out of step. Between
//! a letter on one node and its mention on another lies one exchange; that is the overshoot.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::limits::LimitRefusal;
use super::range::canonical_ip;
use super::receive::ReceiveConnector;
use super::switches::MessageRateSource;
use super::window::Window;

/// Keys that a node counts itself; beyond it the one that has been quiet longest is forgotten.
const OWN_KEYS_MAX: usize = 65_536;
/// Keys that are believed of one other node.
const OTHERS_KEYS_MAX: usize = 2 * OWN_KEYS_MAX;
/// A node that has been silent so long is cut off or dead: its open sessions no longer count here.
const SILENT_MS: u64 = 3000;
/// When a silent node's letters have left every window.
const FORGOTTEN_MS: u64 = 70_000;
/// How long a count that fell to nothing is still told.
const TOMBSTONE_MS: u64 = 10_000;

/// Failed logins of one address in a minute, over all nodes and connectors; at this many its logins are put off. A device
/// with an old password tries a few times a minute; who tries this often guesses. Beyond `max_logon_failures`, which ends
/// one session, and the tarpit, which slows it down.
pub const FAILED_LOGINS_MAX: u32 = 100;

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CountKey {
    /// Sessions open on a connector.
    Connections {
        /// Its name.
        connector: String,
    },
    /// Sessions that one address has open on it.
    Source {
        /// Its name.
        connector: String,
        /// The device.
        source: IpAddr,
    },
    /// Letters of one address through it.
    LettersOfAddress {
        /// Its name.
        connector: String,
        /// The device.
        source: IpAddr,
    },
    /// Failed logins of one address.
    FailedLogins {
        /// The device.
        source: IpAddr,
    },
    /// Letters of one credential through it.
    LettersOfUser {
        /// Its name.
        connector: String,
        /// The credential.
        user: String,
    },
}

/// How much of it there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountValue {
    /// Open now.
    Open(u32),
    /// In the last minute, by age.
    Letters(Window),
}

/// What a node tells another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What changed.
    pub entries: Vec<(CountKey, CountValue)>,
    /// Everything up to here has been told once this report is heard.
    pub version: u64,
}

#[derive(Debug)]
struct Own {
    value: CountValue,
    /// Letters that this node took before it was restarted, as the others remember them.
    earlier: Option<Window>,
    version: u64,
    changed_ms: u64,
}

#[derive(Debug, Default)]
struct Other {
    epoch: u64,
    heard_ms: u64,
    values: HashMap<CountKey, CountValue>,
}

/// The counts of this node and what it knows of the others'.
#[derive(Debug, Default)]
pub struct ClusterCounts {
    own: HashMap<CountKey, Own>,
    /// Own keys in the order in which they changed.
    changes: BTreeMap<u64, CountKey>,
    version: u64,
    others: BTreeMap<String, Other>,
}

/// Sessions and letters.
impl ClusterCounts {
    /// Counts a session in, if the connector's limits allow one more. Who was counted in must be counted out with
    /// [`Self::close`], under the same name and address.
    ///
    /// # Errors
    /// The limit that was reached; nothing is counted then.
    pub fn open(&mut self, connector: &ReceiveConnector, source: IpAddr, now_ms: u64) -> Result<(), LimitRefusal> {
        let source = canonical_ip(source);
        let total_key = CountKey::Connections { connector: connector.name.clone() };
        let source_key = CountKey::Source { connector: connector.name.clone(), source };
        let (total, of_source) = (self.sum(&total_key, now_ms), self.sum(&source_key, now_ms));
        super::limits::check_connections(connector, total, of_source)?;
        self.change_open(total_key, now_ms, |count| count.saturating_add(1));
        self.change_open(source_key, now_ms, |count| count.saturating_add(1));
        Ok(())
    }

    /// Counts a session out.
    pub fn close(&mut self, connector: &str, source: IpAddr, now_ms: u64) {
        let source = canonical_ip(source);
        for key in [
            CountKey::Connections { connector: connector.to_owned() },
            CountKey::Source { connector: connector.to_owned(), source },
        ] {
            if self.own.contains_key(&key) {
                self.change_open(key, now_ms, |count| count.saturating_sub(1));
            }
        }
    }

    /// Counts a letter, if the connector's rate allows one more.
    ///
    /// # Errors
    /// When the rate is reached; nothing is counted then.
    pub fn letter(
        &mut self,
        connector: &ReceiveConnector,
        source: IpAddr,
        user: Option<&str>,
        now_ms: u64,
    ) -> Result<(), LimitRefusal> {
        let limit = connector.message_rate_limit;
        if limit == 0 {
            return Ok(());
        }
        let name = || connector.name.clone();
        let address = CountKey::LettersOfAddress { connector: name(), source: canonical_ip(source) };
        let of_user = user.map(|user| CountKey::LettersOfUser { connector: name(), user: user.to_owned() });
        let keys = match connector.message_rate_source {
            MessageRateSource::None => return Ok(()),
            MessageRateSource::IpAddress => vec![address],
            // Who has not logged in has only an address to be known by; unlimited it would be a way around.
            MessageRateSource::User => vec![of_user.unwrap_or(address)],
            MessageRateSource::All => of_user.into_iter().chain([address]).collect(),
        };
        if keys.iter().any(|key| self.sum(key, now_ms) >= limit) {
            return Err(LimitRefusal::MessageRate(limit));
        }
        for key in keys {
            let mut own = self.take(&key, CountValue::Letters(Window::default()), now_ms);
            if let CountValue::Letters(window) = &mut own.value {
                window.add(now_ms);
            }
            self.put(key, own);
        }
        Ok(())
    }

    /// Counts a failed login.
    pub fn failed_login(&mut self, source: IpAddr, now_ms: u64) {
        let key = CountKey::FailedLogins { source: canonical_ip(source) };
        let mut own = self.take(&key, CountValue::Letters(Window::default()), now_ms);
        if let CountValue::Letters(window) = &mut own.value {
            window.add(now_ms);
        }
        self.put(key, own);
    }

    /// Whether an address may try to log in: not while [`FAILED_LOGINS_MAX`] attempts of the last minute failed.
    #[must_use]
    pub fn may_log_in(&self, source: IpAddr, now_ms: u64) -> bool {
        self.sum(&CountKey::FailedLogins { source: canonical_ip(source) }, now_ms) < FAILED_LOGINS_MAX
    }

    /// The count of the whole cluster, as far as this node knows it.
    #[must_use]
    pub fn sum(&self, key: &CountKey, now_ms: u64) -> u32 {
        let own = self.own.get(key).map_or(0, |own| match own.value {
            CountValue::Open(count) => count,
            CountValue::Letters(window) => window.plus(now_ms, &own.earlier.unwrap_or_default()).total(now_ms),
        });
        let others = self.others.values().map(|other| match other.values.get(key) {
            Some(CountValue::Open(count)) if now_ms.saturating_sub(other.heard_ms) <= SILENT_MS => *count,
            Some(CountValue::Letters(window)) => window.total(now_ms),
            Some(CountValue::Open(_)) | None => 0,
        });
        others.fold(own, u32::saturating_add)
    }

    fn change_open(&mut self, key: CountKey, now_ms: u64, change: impl FnOnce(u32) -> u32) {
        let mut own = self.take(&key, CountValue::Open(0), now_ms);
        if let CountValue::Open(count) = &mut own.value {
            *count = change(*count);
        }
        self.put(key, own);
    }

    /// Takes a key out to change it; [`Self::put`] brings it back as the newest change.
    fn take(&mut self, key: &CountKey, new: CountValue, now_ms: u64) -> Own {
        self.version += 1;
        let own = self.own.remove(key);
        if let Some(own) = &own {
            self.changes.remove(&own.version);
        } else if self.own.len() >= OWN_KEYS_MAX {
            self.forget_quietest();
        }
        let mut own = own.unwrap_or(Own { value: new, earlier: None, version: 0, changed_ms: 0 });
        own.version = self.version;
        own.changed_ms = now_ms;
        own
    }

    fn put(&mut self, key: CountKey, own: Own) {
        self.changes.insert(own.version, key.clone());
        self.own.insert(key, own);
    }

    /// Forgets the key that has been quiet longest and holds no open session.
    fn forget_quietest(&mut self) {
        let own = &self.own;
        let holds_session = |key: &CountKey| own.get(key).is_some_and(|own| matches!(own.value, CountValue::Open(1..)));
        let found = self.changes.iter().find(|(_, key)| !holds_session(key)).map(|(version, _)| *version);
        if let Some(key) = found.and_then(|version| self.changes.remove(&version)) {
            self.own.remove(&key);
        }
    }
}

/// Telling and hearing.
impl ClusterCounts {
    /// What changed after `since`, oldest change first, at most `max` entries.
    #[must_use]
    pub fn report(&self, since: u64, max: usize, now_ms: u64) -> Report {
        let mut report = Report { entries: Vec::new(), version: since };
        for (version, key) in self.changes.range(since.saturating_add(1)..).take(max) {
            let Some(own) = self.own.get(key) else { continue };
            let value = match own.value {
                CountValue::Letters(window) => {
                    CountValue::Letters(window.plus(now_ms, &own.earlier.unwrap_or_default()))
                }
                open @ CountValue::Open(_) => open,
            };
            report.entries.push((key.clone(), value));
            report.version = *version;
        }
        report
    }

    /// Hears a report of `node`, whose process began as `epoch`. `first` says that it is told from the beginning.
    ///
    /// When the node has been restarted since it was last heard, answers what it took before, at most `max` entries:
    /// it has forgotten, and goes on counting from there.
    pub fn hear(
        &mut self,
        node: &str,
        epoch: u64,
        first: bool,
        entries: Vec<(CountKey, CountValue)>,
        max: usize,
        now_ms: u64,
    ) -> Vec<(CountKey, Window)> {
        let other = self.others.entry(node.to_owned()).or_default();
        let mut earlier = Vec::new();
        if other.epoch != epoch {
            let values = std::mem::take(&mut other.values);
            earlier = values
                .into_iter()
                .filter_map(|(key, value)| match value {
                    CountValue::Letters(window) if window.total(now_ms) > 0 => Some((key, window)),
                    CountValue::Letters(_) | CountValue::Open(_) => None,
                })
                .collect();
            // The busiest matter most, and the order must not be that of a hash.
            earlier.sort_by_key(|(key, window)| (u32::MAX - window.total(now_ms), key.clone()));
            earlier.truncate(max);
            other.epoch = epoch;
        } else if first {
            other.values.clear();
        }
        other.heard_ms = now_ms;
        for (key, value) in entries {
            if value == CountValue::Open(0) {
                other.values.remove(&key);
            } else if other.values.len() < OTHERS_KEYS_MAX || other.values.contains_key(&key) {
                other.values.insert(key, value);
            }
        }
        earlier
    }

    /// Takes over what another node remembers of this node's life before its restart.
    pub fn recall(&mut self, earlier: Vec<(CountKey, Window)>, now_ms: u64) {
        for (key, window) in earlier {
            let mut own = self.take(&key, CountValue::Letters(Window::default()), now_ms);
            own.earlier.get_or_insert_default().raise_to(now_ms, &window);
            self.put(key, own);
        }
    }

    /// Drops what no longer counts: ended sessions that everybody has heard of, letters older than a minute, nodes
    /// that are gone.
    pub fn sweep(&mut self, now_ms: u64) {
        self.others.retain(|_, other| now_ms.saturating_sub(other.heard_ms) < FORGOTTEN_MS);
        for other in self.others.values_mut() {
            other.values.retain(|_, value| match value {
                CountValue::Open(_) => true,
                CountValue::Letters(window) => window.total(now_ms) > 0,
            });
        }
        let changes = &mut self.changes;
        self.own.retain(|_, own| {
            let quiet_ms = now_ms.saturating_sub(own.changed_ms);
            let keep = match own.value {
                CountValue::Open(count) => count > 0 || quiet_ms < TOMBSTONE_MS,
                CountValue::Letters(_) => quiet_ms < FORGOTTEN_MS,
            };
            if !keep {
                changes.remove(&own.version);
            }
            keep
        });
    }

    /// Keys held, own and others': for the memory bound.
    #[must_use]
    pub fn len(&self) -> usize {
        self.own.len() + self.others.values().map(|other| other.values.len()).sum::<usize>()
    }

    /// Whether nothing is counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
#[path = "counts_tests.rs"]
mod tests;
