//! Accepted mail, on disk: one RocksDB per node. A letter's bytes are written as they arrive; its record is committed
//! with one synced write that every session committing at that moment shares; the `250` follows that sync. What became
//! of a letter is written the same way, together with its trace and, when it failed, with the report to its sender.
//!
//! The spool never decides when or where a letter goes, and never tries a failed write again: after an I/O error
//! nothing is acknowledged until the node is restarted.

mod append;
mod committer;
#[cfg(test)]
mod damage_tests;
mod export;
mod id;
mod large;
mod mark;
mod reader;
mod record;
mod recover;
mod round;
mod store;
#[cfg(test)]
mod tests;
mod trace;
mod upkeep;
mod verify;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;

pub use append::{Append, CHUNK_BYTES};
pub use committer::{RecipientOutcome, Report, Update, Updated};
pub use export::TracePage;
pub use id::{MessageId, NotAMessageId};
pub use reader::{BodyReader, Letter};
pub use record::{
    FIRST_EPOCH, Held, NewMessage, RECORD_FORMAT, REPLY_BYTES_MAX, Recipient, RecipientState, Record, Redirect,
};
pub use recover::{QuarantinedLetter, RecoveryReport};
pub use trace::{
    EVENTS_PER_LETTER_MAX, TRACE_ANSWER_MAX, TraceEvent, TraceFilter, TraceKind, TraceLimits, TraceRecord, TraceStatus,
};
pub use verify::VerifyReport;

pub(crate) use record::cut;

use crate::mail::{Domain, ReversePath};
use crate::shutdown::{Scope, run_blocking};
use committer::{Change, Committer};
use store::Store;

/// Seconds that one synced write took, whoever shared it.
pub const COMMIT_SECONDS: &str = "posthouse_spool_commit_seconds";
/// Letters made durable.
pub const COMMITS_TOTAL: &str = "posthouse_spool_commits_total";
/// Bytes of letters still to be delivered.
pub const BYTES: &str = "posthouse_spool_bytes";
/// Letters set aside because they are damaged.
pub const QUARANTINED_TOTAL: &str = "posthouse_spool_quarantined_total";
/// 1 once the disk has failed.
pub const FAILING: &str = "posthouse_spool_failing";

/// Describes the spool's metrics and registers them at zero.
pub fn describe_metrics() {
    metrics::describe_histogram!(COMMIT_SECONDS, "Seconds that one synced write of the spool took.");
    metrics::describe_counter!(COMMITS_TOTAL, "Letters made durable.");
    metrics::describe_gauge!(BYTES, "Bytes of letters in the spool.");
    metrics::describe_counter!(QUARANTINED_TOTAL, "Letters set aside because their bytes on disk are damaged.");
    metrics::describe_gauge!(FAILING, "1 once the disk under the spool has failed.");
    metrics::counter!(COMMITS_TOTAL).absolute(0);
    metrics::counter!(QUARANTINED_TOTAL).absolute(0);
    metrics::gauge!(BYTES).set(0.0);
    metrics::gauge!(FAILING).set(0.0);
}

/// Why the spool did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpoolError {
    /// Another process has it open.
    #[error("spool {} is in use by another process", dir.display())]
    Locked {
        /// Where.
        dir: PathBuf,
    },
    /// RocksDB refuses; it names the file.
    #[error("spool {} cannot be opened: {reason}", dir.display())]
    Open {
        /// Where.
        dir: PathBuf,
        /// Its words.
        reason: String,
    },
    /// The disk failed just now.
    #[error("spool: {0}")]
    Io(String),
    /// The disk failed before; nothing is accepted any more.
    #[error("spool has failed: {0}")]
    Failing(String),
    /// A letter's bytes are not what was accepted.
    #[error("letter {id} is damaged: {reason}")]
    Damaged {
        /// Which.
        id: MessageId,
        /// What is wrong.
        reason: String,
    },
    /// The letter was removed.
    #[error("letter {id} was removed")]
    Gone {
        /// Which.
        id: MessageId,
    },
    /// More pieces than a record can count.
    #[error("letter is too large for the spool")]
    TooLarge,
    /// A record cannot be written down.
    #[error("record cannot be encoded: {0}")]
    Encode(String),
    /// The node is stopping.
    #[error("spool is closed")]
    Closed,
}

/// A letter that the queue should know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its name.
    pub id: MessageId,
    /// Bytes.
    pub size: u64,
    /// The sender: routes may be chosen by it.
    pub sender: ReversePath,
    /// The receive connector that took it.
    pub connector: String,
    /// The device.
    pub source: IpAddr,
    /// Whether an administrator keeps it back.
    pub held: bool,
    /// Where an administrator sends it.
    pub redirect: Option<Redirect>,
    /// The domains of its pending recipients, each once, and when the first of them is due, in unix milliseconds.
    /// `None` is the bare `postmaster`.
    pub domains: Vec<(Option<Domain>, i64)>,
}

impl Arrival {
    fn of(record: &Record) -> Self {
        let mut domains: Vec<(Option<Domain>, i64)> = Vec::with_capacity(1);
        for (_, recipient) in record.pending() {
            let domain = recipient.path.domain();
            match domains.iter_mut().find(|(known, _)| known.as_ref() == domain) {
                Some((_, due)) => *due = recipient.next_attempt_ms.min(*due),
                None => domains.push((domain.cloned(), recipient.next_attempt_ms)),
            }
        }
        Self {
            id: record.id,
            size: record.length,
            sender: record.reverse_path.clone(),
            connector: record.connector.clone(),
            source: record.source_addr,
            held: record.held.is_some(),
            redirect: record.redirect.clone(),
            domains,
        }
    }
}

/// What the spool holds and has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpoolStats {
    /// Letters held.
    pub letters: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Letters made durable.
    pub commits: u64,
    /// Synced writes made for them and for everything else.
    pub syncs: u64,
    /// Letters remembered in the trace.
    pub traced: u64,
}

/// The spool of one node. Clones share it.
#[derive(Clone)]
pub struct Spool {
    store: Arc<Store>,
    ids: Arc<id::IdSource>,
    committer: Arc<Committer>,
    newest_at_start: Option<MessageId>,
}

impl Spool {
    /// Opens or makes the spool in `dir` and reads its records. Blocking; call it inside the runtime, off its workers.
    ///
    /// `scope` runs the upkeep. The committer lives until [`Spool::close`], or until every clone and
    /// every [`Append`] is gone: dropping the last of them waits for it, which a part that stops in good order avoids by
    /// closing.
    ///
    /// # Errors
    /// When another process has it open, or the disk refuses.
    pub fn open(
        dir: &Path,
        node_id: u64,
        node_name: &str,
        limits: TraceLimits,
        scope: &Scope,
    ) -> Result<(Self, RecoveryReport), SpoolError> {
        mark::check_manifest(dir)?;
        let kept_logs = mark::KeptLogs::link(dir);
        let store = Arc::new(Store::open(dir, node_id, node_name)?);
        let mark = mark::Mark::open(dir, store.db.latest_sequence_number())?;
        kept_logs.forget();
        let (report, newest) = recover::recover(&store)?;
        let ids = Arc::new(id::IdSource::new(node_id, newest));
        let committer = Committer::start(Arc::clone(&store), Arc::clone(&ids), mark)
            .map_err(|error| SpoolError::Open { dir: dir.to_owned(), reason: error.to_string() })?;
        scope.spawn_until_ended(upkeep::run(Arc::downgrade(&store), limits));
        Ok((Self { store, ids, committer: Arc::new(committer), newest_at_start: newest }, report))
    }

    /// Reads every letter that was here at start once, at a pace that leaves half of the time to others: what is damaged
    /// is set aside, what was never committed is forgotten. Keeps nobody from closing the spool. `None`: it was closed
    /// before the end, or its disk failed. To be called once.
    ///
    /// # Cancel safety
    /// Cancel safe; the rest is then not read.
    pub fn verify(&self) -> impl Future<Output = Option<VerifyReport>> + Send + 'static {
        let (store, committer) = (Arc::downgrade(&self.store), Arc::downgrade(&self.committer));
        verify::Verifier { store, committer, newest: self.newest_at_start }.run()
    }

    /// Begins a letter.
    #[must_use]
    pub fn begin(&self) -> Append {
        let id = self.ids.next(crate::clock::now_ms());
        Append::new(id, Arc::clone(&self.store), Arc::clone(&self.committer))
    }

    /// Why nothing is accepted any more, once the disk has failed.
    #[must_use]
    pub fn failing(&self) -> Option<String> {
        self.store.failing()
    }

    /// Counts.
    #[must_use]
    pub fn stats(&self) -> SpoolStats {
        self.store.stats()
    }

    /// Hands over letters that the queue does not know: those that became durable since the last call and, until they are
    /// all told, a page of those that a restart found. One caller only: the queue.
    ///
    /// # Errors
    /// When the records cannot be read and nothing is new; the page is told by a later call.
    ///
    /// # Cancel safety
    /// Not cancel safe: a page that is read and not received is lost until the next start.
    pub async fn take_arrivals(&self) -> Result<Vec<Arrival>, SpoolError> {
        let Some(backlog) = self.store.backlog() else { return Ok(self.store.take_arrivals()) };
        let store = Arc::clone(&self.store);
        run_blocking(move || {
            let (mut page, next) = match recover::next_page(&store, backlog) {
                Ok(found) => found,
                Err(error) => {
                    // What is new goes its way all the same.
                    let new = store.take_arrivals();
                    return if new.is_empty() { Err(error) } else { Ok(new) };
                }
            };
            store.set_backlog(next);
            page.append(&mut store.take_arrivals());
            // There is more.
            store.arrived.notify_one();
            Ok(page)
        })
        .await
    }

    /// Returns when there may be arrivals to take.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn arrived(&self) {
        self.store.arrived.notified().await;
    }

    /// Reads what is known about a letter, and opens its bytes. `None`: it is not, or no longer, here.
    ///
    /// # Errors
    /// When the record is damaged or the disk fails.
    pub async fn open_letter(&self, id: MessageId) -> Result<Option<Letter>, SpoolError> {
        let store = Arc::clone(&self.store);
        run_blocking(move || reader::open(&store, id)).await
    }

    /// Reads the records of `ids`; those that are gone or damaged are left out.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn records(&self, ids: Vec<MessageId>) -> Result<Vec<Record>, SpoolError> {
        let store = Arc::clone(&self.store);
        run_blocking(move || {
            let mut found = Vec::with_capacity(ids.len());
            for id in ids {
                match store.record(id) {
                    Ok(record) => found.extend(record),
                    Err(SpoolError::Damaged { .. }) => {}
                    Err(other) => return Err(other),
                }
            }
            Ok(found)
        })
        .await
    }

    /// Makes what an attempt brought durable.
    ///
    /// # Errors
    /// When the disk fails or the record is damaged.
    ///
    /// # Cancel safety
    /// An update that is cancelled after it was handed over still happens.
    pub async fn update(&self, update: Update) -> Result<Updated, SpoolError> {
        self.change(|done| Change::Update { update: Box::new(update), done }).await
    }

    /// Removes a letter for good. `by` goes into the trace. Answers whether it was here.
    ///
    /// # Errors
    /// When the disk fails or the record is damaged.
    pub async fn delete(&self, id: MessageId, at_ms: i64, by: &str) -> Result<bool, SpoolError> {
        let by = cut(by, REPLY_BYTES_MAX).to_owned();
        self.change(|done| Change::Delete { id, at_ms, by, done }).await
    }

    /// Keeps a letter back, or lets it go on. `by` goes into the record and the trace. Answers whether that changed
    /// anything.
    ///
    /// # Errors
    /// When the disk fails or the record is damaged.
    pub async fn hold(&self, id: MessageId, at_ms: i64, held: bool, by: &str) -> Result<bool, SpoolError> {
        let by = cut(by, REPLY_BYTES_MAX).to_owned();
        let held = held.then(|| Held { at_ms, by: by.clone() });
        self.change(|done| Change::Hold { id, at_ms, held, by, done }).await
    }

    /// Sends a letter elsewhere from now on, or again where its routes do. `by` goes into the trace. Answers whether that
    /// changed anything.
    ///
    /// # Errors
    /// When the disk fails or the record is damaged.
    pub async fn redirect(
        &self,
        id: MessageId,
        at_ms: i64,
        redirect: Option<Redirect>,
        by: &str,
    ) -> Result<bool, SpoolError> {
        let by = cut(by, REPLY_BYTES_MAX).to_owned();
        let redirect = redirect.map(|redirect| Redirect { by: by.clone(), ..redirect });
        self.change(|done| Change::Redirect { id, at_ms, redirect, by, done }).await
    }

    /// Notes that a letter crashed a worker; the second time it is set aside. Answers whether it was.
    ///
    /// # Errors
    /// When the disk fails or the record is damaged.
    pub async fn note_crash(&self, id: MessageId, at_ms: i64) -> Result<bool, SpoolError> {
        let aside = self.change(|done| Change::Crashed { id, at_ms, done }).await?;
        if aside {
            metrics::counter!(QUARANTINED_TOTAL).increment(1);
        }
        Ok(aside)
    }

    /// Sets a damaged letter aside, with the reason.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn quarantine(&self, id: MessageId, at_ms: i64, reason: &str) -> Result<(), SpoolError> {
        tracing::error!(message.id = %id, reason, "damaged letter set aside");
        metrics::counter!(QUARANTINED_TOTAL).increment(1);
        let reason = reason.to_owned();
        self.change(|done| Change::Quarantine { id, at_ms, reason, done }).await.map(drop)
    }

    /// Milliseconds that the synced write under way has taken so far or, when none is, that the newest one took.
    #[must_use]
    pub fn commit_latency_ms(&self) -> u64 {
        self.store.commit_latency_ms()
    }

    /// Makes one synced write that changes nothing, so that [`Spool::commit_latency_ms`] is fresh.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn probe(&self) -> Result<(), SpoolError> {
        self.change(|done| Change::Probe { done }).await
    }

    /// Lists the letters that were set aside.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn quarantined(&self) -> Result<Vec<QuarantinedLetter>, SpoolError> {
        let store = Arc::clone(&self.store);
        run_blocking(move || store.quarantined()).await
    }

    /// Says what happened to the letters that `filter` means, the newest first.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn trace(&self, filter: TraceFilter) -> Result<Vec<TraceRecord>, SpoolError> {
        let store = Arc::clone(&self.store);
        run_blocking(move || store.trace(&filter)).await
    }

    /// A page of the tracking, oldest letters first: those after `after` that `filter` means and that have events in
    /// `window`, from its first millisecond to before its last. The filter's own time and limit do not count.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn export(
        &self,
        filter: TraceFilter,
        window: (i64, i64),
        after: Option<MessageId>,
    ) -> Result<TracePage, SpoolError> {
        let store = Arc::clone(&self.store);
        run_blocking(move || store.export(&filter, window, after)).await
    }

    /// Ends the committer after what was handed over before. Later changes fail with [`SpoolError::Closed`].
    pub async fn close(&self) {
        // A committer that is gone already has nothing left to write.
        let _ = self.change(|done| Change::Close { done }).await;
        let committer = Arc::clone(&self.committer);
        run_blocking(move || committer.join()).await;
    }

    async fn change<T>(&self, make: impl FnOnce(committer::Answer<T>) -> Change) -> Result<T, SpoolError> {
        let (done, answer) = oneshot::channel();
        self.committer.send(make(done)).await?;
        answer.await.map_err(|_| SpoolError::Closed)?
    }
}
