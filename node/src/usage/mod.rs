//! What was used here, when first, when last and how often: connectors, ranges of the allowlist, credentials. Each node
//! keeps its own and whoever reads puts them together; nothing of it goes through the Raft log. Only what was used
//! takes room.
//!
//! It is written to a file every five seconds and when the node stops, so that a process that is killed forgets at most
//! five seconds, and a machine that loses power what its kernel had not written yet (half a minute, as a rule).

mod file;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, gauge};

use crate::clock::now_ms;
use crate::connector::RemoteIpRange;
use crate::shutdown::{Scope, run_blocking};
use file::{Line, UsageFile};

/// Between two times of writing.
const INTERVAL: Duration = Duration::from_secs(5);
/// Keys at most: those that the state may have, and room for some that have left it.
const KEYS_MAX: usize = 2_200_000;
/// Entries read under one lock: sessions wait for it.
const CHUNK: usize = 2_000;

/// Keys that are kept.
const KEYS: &str = "posthouse_usage_keys";
/// Times of writing, by result.
const WRITES: &str = "posthouse_usage_writes_total";

/// When and how often something was used. To the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    first_secs: u32,
    last_secs: u32,
    /// Connections, or logins.
    pub count: u64,
}

/// What was used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UsageKey {
    /// A receive connector.
    Connector(Arc<str>),
    /// A range of its list.
    Range(Arc<str>, RemoteIpRange),
    /// A credential.
    Credential(Arc<str>),
}

/// What this node knows. Clones share it.
#[derive(Clone)]
pub struct Usages(Arc<Shared>);

struct Shared {
    book: Mutex<Book>,
    since_ms: i64,
}

#[derive(Clone, Copy)]
struct Slot {
    usage: Usage,
    /// It has changed since it was written.
    dirty: bool,
}

#[derive(Default)]
struct Book {
    connectors: BTreeMap<Arc<str>, Slot>,
    ranges: BTreeMap<Arc<str>, BTreeMap<RemoteIpRange, Slot>>,
    credentials: BTreeMap<Arc<str>, Slot>,
    keys: usize,
    dirty: Vec<UsageKey>,
    /// There was no room for something.
    crowded: bool,
}

fn secs(ms: i64) -> u32 {
    u32::try_from(ms / 1000).unwrap_or(if ms < 0 { 0 } else { u32::MAX })
}

impl Usage {
    /// Used `count` times between these moments, in unix milliseconds.
    #[must_use]
    pub fn new(first_ms: i64, last_ms: i64, count: u64) -> Self {
        Self { first_secs: secs(first_ms), last_secs: secs(last_ms), count }
    }

    /// When first, in unix milliseconds.
    #[must_use]
    pub fn first_ms(self) -> i64 {
        i64::from(self.first_secs) * 1000
    }

    /// When last, in unix milliseconds.
    #[must_use]
    pub fn last_ms(self) -> i64 {
        i64::from(self.last_secs) * 1000
    }

    /// Both together: what two nodes know of the same thing.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            first_secs: self.first_secs.min(other.first_secs),
            last_secs: self.last_secs.max(other.last_secs),
            count: self.count.saturating_add(other.count),
        }
    }
}

impl Usages {
    /// What the file at `path` says; of a file that is not there or is none of ours, nothing. Blocking.
    #[must_use]
    fn read(path: PathBuf) -> (Self, UsageFile) {
        let mut book = Book::default();
        let file = UsageFile::open(path, now_ms(), |line| book.put(line));
        let since_ms = file.since_ms();
        (Self(Arc::new(Shared { book: Mutex::new(book), since_ms })), file)
    }

    /// Reads the file and keeps it, until `scope` ends; what was used until then is written. `exists` says whether the
    /// state still has something: what it has no more goes when room is needed.
    pub async fn start(
        path: PathBuf,
        exists: impl Fn(&UsageKey) -> bool + Send + Sync + 'static,
        scope: &Scope,
    ) -> Self {
        describe_gauge!(KEYS, "Connectors, allowlist entries and credentials whose use this node has seen.");
        describe_counter!(WRITES, "Times that the use of allowlist entries and credentials was written, by result.");
        for result in ["ok", "failed"] {
            counter!(WRITES, "result" => result).absolute(0);
        }
        let (usages, mut file) = run_blocking(move || Self::read(path)).await;
        gauge!(KEYS).set(usages.lock().keys as f64);
        let (kept, ended, exists) = (usages.clone(), scope.clone(), Arc::new(exists));
        scope.spawn(async move {
            while !ended.is_ended() {
                tokio::select! {
                    () = tokio::time::sleep(INTERVAL) => {}
                    () = ended.ended() => {}
                }
                let (usages, exists) = (kept.clone(), Arc::clone(&exists));
                file = run_blocking(move || {
                    usages.keep(&mut file, &*exists);
                    file
                })
                .await;
            }
        });
        usages
    }

    /// A connection that a range of a connector took.
    pub fn connected(&self, connector: &str, range: RemoteIpRange, now_ms: i64) {
        let mut book = self.lock();
        book.connector(connector, now_ms, 1);
        book.range(connector, range, now_ms, 1);
    }

    /// A login.
    pub fn logged_in(&self, user: &str, now_ms: i64) {
        self.lock().credential(user, now_ms, 1);
    }

    /// A session that was counted when it began is used still.
    pub fn still_here(&self, connector: &str, range: RemoteIpRange, user: Option<&str>, now_ms: i64) {
        let mut book = self.lock();
        book.connector(connector, now_ms, 0);
        book.range(connector, range, now_ms, 0);
        if let Some(user) = user {
            book.credential(user, now_ms, 0);
        }
    }

    /// What this node knows of a connector.
    #[must_use]
    pub fn of_connector(&self, name: &str) -> Option<Usage> {
        self.lock().connectors.get(name).map(|slot| slot.usage)
    }

    /// What it knows of a range of a connector.
    #[must_use]
    pub fn of_range(&self, connector: &str, range: &RemoteIpRange) -> Option<Usage> {
        self.lock().ranges.get(connector)?.get(range).map(|slot| slot.usage)
    }

    /// What it knows of a credential.
    #[must_use]
    pub fn of_credential(&self, user: &str) -> Option<Usage> {
        self.lock().credentials.get(user).map(|slot| slot.usage)
    }

    /// Since when this node has kept it, in unix milliseconds. What was used before is not known here.
    #[must_use]
    pub fn since_ms(&self) -> i64 {
        self.0.since_ms
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what has changed, and now and then the file anew. Blocking.
    fn keep(&self, file: &mut UsageFile, exists: &dyn Fn(&UsageKey) -> bool) {
        let dirty = self.lock().take_dirty();
        let mut result = file.append(&dirty);
        if result.is_err() {
            self.lock().mark(&dirty);
        }
        if self.lock().crowded {
            self.forget(exists);
        }
        if result.is_ok() && file.is_wordy(self.lock().keys) {
            result = file.rewrite(|after| self.lock().chunk(after));
        }
        counter!(WRITES, "result" => if result.is_ok() { "ok" } else { "failed" }).increment(1);
        file.judge(result);
        gauge!(KEYS).set(self.lock().keys as f64);
    }

    /// Makes room: what the state has no more is forgotten.
    fn forget(&self, exists: &dyn Fn(&UsageKey) -> bool) {
        let mut after = None;
        loop {
            let chunk = self.lock().chunk(after.as_ref());
            let Some(last) = chunk.last() else { break };
            let gone: Vec<&UsageKey> = chunk.iter().map(|line| &line.key).filter(|key| !exists(key)).collect();
            let mut book = self.lock();
            gone.into_iter().for_each(|key| book.remove(key));
            drop(book);
            after = Some(last.key.clone());
        }
        self.lock().crowded = false;
    }
}

/// Adds to a slot; answers whether it has become dirty.
fn add(slot: &mut Slot, now_secs: u32, count: u64) -> bool {
    if count == 0 && slot.usage.last_secs >= now_secs {
        return false;
    }
    // A clock that was set back makes nothing younger.
    slot.usage.first_secs = slot.usage.first_secs.min(now_secs);
    slot.usage.last_secs = slot.usage.last_secs.max(now_secs);
    slot.usage.count = slot.usage.count.saturating_add(count);
    !std::mem::replace(&mut slot.dirty, true)
}

fn slot(now_secs: u32, count: u64) -> Slot {
    Slot { usage: Usage { first_secs: now_secs, last_secs: now_secs, count }, dirty: true }
}

impl Book {
    fn has_room(&mut self) -> bool {
        self.crowded |= self.keys >= KEYS_MAX;
        !self.crowded
    }

    fn begin(&mut self, key: UsageKey, now_secs: u32, count: u64) {
        if self.has_room() {
            self.insert(key.clone(), slot(now_secs, count));
            self.dirty.push(key);
        }
    }

    fn connector(&mut self, name: &str, now_ms: i64, count: u64) {
        let now_secs = secs(now_ms);
        match self.connectors.get_mut(name) {
            Some(slot) => {
                if add(slot, now_secs, count)
                    && let Some((name, _)) = self.connectors.get_key_value(name)
                {
                    self.dirty.push(UsageKey::Connector(Arc::clone(name)));
                }
            }
            None => self.begin(UsageKey::Connector(name.into()), now_secs, count),
        }
    }

    fn range(&mut self, connector: &str, range: RemoteIpRange, now_ms: i64, count: u64) {
        let now_secs = secs(now_ms);
        match self.ranges.get_mut(connector).and_then(|ranges| ranges.get_mut(&range)) {
            Some(slot) => {
                if add(slot, now_secs, count)
                    && let Some((name, _)) = self.ranges.get_key_value(connector)
                {
                    self.dirty.push(UsageKey::Range(Arc::clone(name), range));
                }
            }
            None => {
                // One name for all of its ranges.
                let name = self.ranges.get_key_value(connector).map(|(name, _)| Arc::clone(name));
                let name = name.unwrap_or_else(|| connector.into());
                self.begin(UsageKey::Range(name, range), now_secs, count);
            }
        }
    }

    fn credential(&mut self, user: &str, now_ms: i64, count: u64) {
        let now_secs = secs(now_ms);
        match self.credentials.get_mut(user) {
            Some(slot) => {
                if add(slot, now_secs, count)
                    && let Some((user, _)) = self.credentials.get_key_value(user)
                {
                    self.dirty.push(UsageKey::Credential(Arc::clone(user)));
                }
            }
            None => self.begin(UsageKey::Credential(user.into()), now_secs, count),
        }
    }

    /// Takes a line of the file in: a later one replaces an earlier one.
    fn put(&mut self, line: Line) {
        if self.get(&line.key).is_some() || self.keys < KEYS_MAX {
            self.insert(line.key, Slot { usage: line.usage, dirty: false });
        }
    }

    fn insert(&mut self, key: UsageKey, slot: Slot) {
        let before = match key {
            UsageKey::Connector(name) => self.connectors.insert(name, slot),
            UsageKey::Range(connector, range) => {
                // One name for all of its ranges, however many lines of the file say it.
                self.ranges.entry(connector).or_default().insert(range, slot)
            }
            UsageKey::Credential(user) => self.credentials.insert(user, slot),
        };
        self.keys += usize::from(before.is_none());
    }

    fn remove(&mut self, key: &UsageKey) {
        let before = match key {
            UsageKey::Connector(name) => self.connectors.remove(name),
            UsageKey::Range(connector, range) => {
                let Some(ranges) = self.ranges.get_mut(connector) else { return };
                let before = ranges.remove(range);
                if ranges.is_empty() {
                    self.ranges.remove(connector);
                }
                before
            }
            UsageKey::Credential(user) => self.credentials.remove(user),
        };
        self.keys -= usize::from(before.is_some());
    }

    fn get(&self, key: &UsageKey) -> Option<Slot> {
        match key {
            UsageKey::Connector(name) => self.connectors.get(name),
            UsageKey::Range(connector, range) => self.ranges.get(connector)?.get(range),
            UsageKey::Credential(user) => self.credentials.get(user),
        }
        .copied()
    }

    /// What has changed since it was last taken.
    fn take_dirty(&mut self) -> Vec<Line> {
        let keys = std::mem::take(&mut self.dirty);
        let lines = keys.into_iter().filter_map(|key| {
            let slot = self.get_mut(&key)?;
            slot.dirty = false;
            let usage = slot.usage;
            Some(Line { key, usage })
        });
        lines.collect()
    }

    /// What was taken could not be written.
    fn mark(&mut self, lines: &[Line]) {
        for line in lines {
            if let Some(slot) = self.get_mut(&line.key)
                && !std::mem::replace(&mut slot.dirty, true)
            {
                self.dirty.push(line.key.clone());
            }
        }
    }

    fn get_mut(&mut self, key: &UsageKey) -> Option<&mut Slot> {
        match key {
            UsageKey::Connector(name) => self.connectors.get_mut(name),
            UsageKey::Range(connector, range) => self.ranges.get_mut(connector)?.get_mut(range),
            UsageKey::Credential(user) => self.credentials.get_mut(user),
        }
    }

    /// The next entries after `after`, in the order of keys; none: that was all.
    fn chunk(&self, after: Option<&UsageKey>) -> Vec<Line> {
        let mut found = Vec::new();
        let line = |key, slot: &Slot| Line { key, usage: slot.usage };
        let mut after = after;
        if matches!(after, None | Some(UsageKey::Connector(_))) {
            let from = match after {
                Some(UsageKey::Connector(name)) => Bound::Excluded(Arc::clone(name)),
                _ => Bound::Unbounded,
            };
            let rest = self.connectors.range((from, Bound::Unbounded));
            let left = CHUNK - found.len();
            found.extend(rest.take(left).map(|(name, slot)| line(UsageKey::Connector(Arc::clone(name)), slot)));
            after = None;
        }
        if matches!(after, None | Some(UsageKey::Range(..))) {
            let start = match after {
                Some(UsageKey::Range(connector, _)) => Bound::Included(Arc::clone(connector)),
                _ => Bound::Unbounded,
            };
            for (connector, ranges) in self.ranges.range((start, Bound::Unbounded)) {
                let from = match after {
                    Some(UsageKey::Range(same, range)) if same == connector => Bound::Excluded(*range),
                    _ => Bound::Unbounded,
                };
                let left = CHUNK - found.len();
                let rest = ranges.range((from, Bound::Unbounded)).take(left);
                found.extend(rest.map(|(range, slot)| line(UsageKey::Range(Arc::clone(connector), *range), slot)));
                if found.len() >= CHUNK {
                    return found;
                }
            }
            after = None;
        }
        let from = match after {
            Some(UsageKey::Credential(user)) => Bound::Excluded(Arc::clone(user)),
            _ => Bound::Unbounded,
        };
        let left = CHUNK - found.len();
        let rest = self.credentials.range((from, Bound::Unbounded)).take(left);
        found.extend(rest.map(|(user, slot)| line(UsageKey::Credential(Arc::clone(user)), slot)));
        found
    }
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
