//! What was used here, when first, when last and how often: connectors, ranges of the allowlist, credentials. Each node
//! keeps its own and whoever reads puts them together; nothing of it goes through the Raft log. Only what was used
//! takes room.
//!
//! It is written to a file every five seconds and when the node stops, so that a process that is killed forgets at most
//! five seconds, and a machine that loses power what its kernel had not written yet (half a minute, as a rule).

mod book;
mod file;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, gauge};

use crate::clock::now_ms;
use crate::connector::RemoteIpRange;
use crate::shutdown::{Scope, run_blocking};
use book::Book;
use file::UsageFile;

/// Between two times of writing.
const INTERVAL: Duration = Duration::from_secs(5);

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

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
