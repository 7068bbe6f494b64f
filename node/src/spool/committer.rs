//! The one writer. Whatever waits goes into one batch with one sync, and everybody in it is answered after that sync:
//! commits, results of attempts and removals share it, so a busy spool syncs no more often than an idle one.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rocksdb::WriteBatch;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::mark::Mark;
use super::record::{Held, Redirect, cut};
use super::round::Round;
use super::store::Store;
use super::trace::TraceEvent;
use super::{MessageId, REPLY_BYTES_MAX, RecipientState, Record, SpoolError, TraceStatus};

/// How many changes wait at most; a session beyond that waits to hand its own over.
pub(super) const WAITING_MAX: usize = 256;
/// How many changes share one sync at most.
const ROUND_CHANGES_MAX: usize = 512;
/// How many bytes share one sync at most: a batch is copied into the log and the memtable.
const ROUND_BYTES_MAX: usize = 8 * 1024 * 1024;

pub(super) type Answer<T> = oneshot::Sender<Result<T, SpoolError>>;

/// One change, and where to say that it is durable.
pub(super) enum Change {
    /// A piece of a letter that is still arriving: written, not synced.
    Chunk { id: MessageId, chunk: u32, bytes: Vec<u8>, done: Answer<()> },
    /// A whole letter: its record and its last piece.
    Commit { record: Box<Record>, tail: Option<(u32, Vec<u8>)>, done: Answer<()> },
    /// What an attempt brought.
    Update { update: Box<Update>, done: Answer<Updated> },
    /// An administrator removes a letter.
    Delete { id: MessageId, at_ms: i64, by: String, done: Answer<bool> },
    /// An administrator keeps a letter back, or lets it go on.
    Hold { id: MessageId, at_ms: i64, held: Option<Held>, by: String, done: Answer<bool> },
    /// An administrator sends a letter elsewhere, or back on its way.
    Redirect { id: MessageId, at_ms: i64, redirect: Option<Redirect>, by: String, done: Answer<bool> },
    /// A letter crashed a worker.
    Crashed { id: MessageId, at_ms: i64, done: Answer<bool> },
    /// A letter was found damaged.
    Quarantine { id: MessageId, at_ms: i64, reason: String, done: Answer<bool> },
    /// Nothing but a synced write, to see how long one takes.
    Probe { done: Answer<()> },
    /// No more changes will come.
    Close { done: Answer<()> },
}

/// What an attempt brought, to be made durable at once: the recipients' states, the trace, and the report to the
/// sender, all in one batch.
#[derive(Clone, Debug)]
pub struct Update {
    /// The letter.
    pub id: MessageId,
    /// When, in unix milliseconds.
    pub at_ms: i64,
    /// What became of which recipient. A recipient that is no longer pending stays as it is.
    pub outcomes: Vec<RecipientOutcome>,
    /// What the trace tells.
    pub events: Vec<TraceEvent>,
    /// The reports to the sender: each is queued if, and only if, a recipient that it is about changes through this
    /// update.
    pub reports: Vec<Report>,
}

/// What became of one recipient.
#[derive(Clone, Debug)]
pub struct RecipientOutcome {
    /// Its place in [`Record::recipients`].
    pub index: usize,
    /// Its new state; [`RecipientState::Pending`] means deferred.
    pub state: RecipientState,
    /// What the next hop said.
    pub reply: String,
    /// When to try again, in unix milliseconds.
    pub next_attempt_ms: i64,
    /// Whether its sender is told of the delay through this update.
    pub delay_reported: bool,
}

/// A letter of our own: a delivery status notification.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its facts.
    pub message: super::NewMessage,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The places of the recipients that it is about.
    pub about: Vec<usize>,
}

/// What an update did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Updated {
    /// How far the letter came; absent when it had been removed meanwhile.
    pub status: Option<TraceStatus>,
    /// The reports that were queued.
    pub reports: Vec<MessageId>,
}

/// The way to the writer. The last of its owners to go waits for the writer's thread: a process that ends while a
/// thread still closes a database is aborted by RocksDB's own clean-up.
pub(super) struct Committer {
    /// Absent only while this is being dropped.
    changes: Option<mpsc::Sender<Change>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Committer {
    /// Starts the writer of `store`.
    pub(super) fn start(store: Arc<Store>, ids: Arc<super::id::IdSource>, mark: Mark) -> std::io::Result<Self> {
        let (changes, waiting) = mpsc::channel(WAITING_MAX);
        let thread = std::thread::Builder::new()
            .name("spool-commit".to_owned())
            .spawn(move || run(&store, &ids, waiting, mark))?;
        Ok(Self { changes: Some(changes), thread: Mutex::new(Some(thread)) })
    }

    /// Hands a change over.
    pub(super) async fn send(&self, change: Change) -> Result<(), SpoolError> {
        let changes = self.changes.as_ref().ok_or(SpoolError::Closed)?;
        changes.send(change).await.map_err(|_| SpoolError::Closed)
    }

    /// Returns when the writer's thread has ended, which something else must have told it to. Blocking.
    pub(super) fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A thread that panicked has said so already.
        let _ = thread.map(JoinHandle::join);
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        // With the last sender gone the writer ends after what it was given. Whoever called `Spool::close` finds
        // nothing to wait for here.
        self.changes = None;
        self.join();
    }
}

/// Applies `outcomes` to `record`. Answers the places that changed.
pub(super) fn apply(record: &mut Record, outcomes: Vec<RecipientOutcome>) -> Vec<usize> {
    let mut changed = Vec::new();
    for outcome in outcomes {
        let Some(recipient) = record.recipients.get_mut(outcome.index) else { continue };
        if recipient.state != RecipientState::Pending {
            continue;
        }
        recipient.state = outcome.state;
        recipient.attempts = recipient.attempts.saturating_add(1);
        recipient.next_attempt_ms = outcome.next_attempt_ms;
        recipient.last_reply = cut(&outcome.reply, REPLY_BYTES_MAX).to_owned();
        recipient.delay_reported |= outcome.delay_reported;
        changed.push(outcome.index);
    }
    changed
}

/// Writes until every owner is gone or a close is asked for. Blocking; has a thread of its own.
fn run(store: &Arc<Store>, ids: &super::id::IdSource, mut changes: mpsc::Receiver<Change>, mut mark: Mark) {
    let mut sequence = 0;
    while let Some(first) = changes.blocking_recv() {
        let mut waiting = vec![first];
        let mut bytes = waiting[0].bytes();
        while waiting.len() < ROUND_CHANGES_MAX && bytes < ROUND_BYTES_MAX {
            let Ok(next) = changes.try_recv() else { break };
            bytes += next.bytes();
            waiting.push(next);
        }
        let mut closing = Vec::new();
        let mut round = Round::new(store, ids, &mut sequence);
        for change in waiting {
            match change {
                Change::Close { done } => closing.push(done),
                other => round.add(other),
            }
        }
        round.add_forgotten(std::mem::take(&mut *store.forgotten.lock().unwrap_or_else(PoisonError::into_inner)));
        write_round(store, round, &mut mark);
        if let Err(error) = mark.sync_if_due() {
            store.fail(&error.to_string());
        }
        if !closing.is_empty() {
            // Later changes find the channel closed; those already in it are answered by being dropped.
            for done in closing {
                let _ = done.send(Ok(()));
            }
            return;
        }
    }
}

fn write_round(store: &Store, round: Round<'_>, mark: &mut Mark) {
    let Round { batch, sync, answers, arrivals, tally, .. } = round;
    let started = Instant::now();
    // Each change of a batch is one write, and a sync confirms everything before it as well. Upkeep may write beside
    // this without a sync: what it adds after the batch is not counted.
    let confirmed = store.db.latest_sequence_number() + batch.len() as u64;
    let written = if batch.is_empty() { Ok(()) } else { store.write(batch, sync) };
    let written = written.and_then(|()| match sync {
        true => mark.confirm(confirmed).map_err(|error| store.fail(&error.to_string())),
        false => Ok(()),
    });
    match written {
        Ok(()) => {
            if sync {
                metrics::histogram!(super::COMMIT_SECONDS).record(started.elapsed().as_secs_f64());
            }
            tally.count(&store.counters);
            if !arrivals.is_empty() {
                // Only now: a letter that is not durable is not delivered either.
                store.arrive(arrivals);
            }
            for answer in answers {
                answer.succeed();
            }
        }
        Err(error) => {
            for answer in answers {
                answer.fail(&error);
            }
        }
    }
}

impl Change {
    fn bytes(&self) -> usize {
        match self {
            Self::Chunk { bytes, .. } => bytes.len(),
            Self::Commit { tail, .. } => tail.as_ref().map_or(0, |(_, bytes)| bytes.len()),
            Self::Update { update, .. } => update.reports.iter().map(|report| report.bytes.len()).sum(),
            Self::Delete { .. }
            | Self::Hold { .. }
            | Self::Redirect { .. }
            | Self::Crashed { .. }
            | Self::Quarantine { .. }
            | Self::Probe { .. }
            | Self::Close { .. } => 0,
        }
    }
}

/// An answer that waits for the sync.
pub(super) enum Pending {
    Done(Answer<()>),
    Deleted(Answer<bool>, bool),
    Updated(Answer<Updated>, Updated),
}

impl Pending {
    // A receiver that is gone had its session cut: the letter is kept all the same.
    fn succeed(self) {
        match self {
            Self::Done(done) => drop(done.send(Ok(()))),
            Self::Deleted(done, found) => drop(done.send(Ok(found))),
            Self::Updated(done, updated) => drop(done.send(Ok(updated))),
        }
    }

    fn fail(self, error: &SpoolError) {
        match self {
            Self::Done(done) => drop(done.send(Err(error.clone()))),
            Self::Deleted(done, _) => drop(done.send(Err(error.clone()))),
            Self::Updated(done, _) => drop(done.send(Err(error.clone()))),
        }
    }
}

/// What a round adds to and takes from the totals, once it is written.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) commits: u64,
    pub(super) removed: u64,
    pub(super) bytes_added: u64,
    pub(super) bytes_removed: u64,
    pub(super) traced_bytes: u64,
}

impl Tally {
    fn count(&self, counters: &super::store::Counters) {
        counters.commits.fetch_add(self.commits, Ordering::Relaxed);
        counters.traced.fetch_add(self.commits, Ordering::Relaxed);
        counters.traced_bytes.fetch_add(self.traced_bytes, Ordering::Relaxed);
        counters.letters.fetch_add(self.commits, Ordering::Relaxed);
        counters.letters.fetch_sub(self.removed, Ordering::Relaxed);
        counters.bytes.fetch_add(self.bytes_added, Ordering::Relaxed);
        counters.bytes.fetch_sub(self.bytes_removed, Ordering::Relaxed);
        counters.drained.fetch_add(self.bytes_removed, Ordering::Relaxed);
        if self.commits > 0 {
            metrics::counter!(super::COMMITS_TOTAL).increment(self.commits);
        }
        metrics::gauge!(super::BYTES).set(counters.bytes.load(Ordering::Relaxed) as f64);
    }
}

/// Records changed earlier in the same round: a batch cannot be read before it is written.
pub(super) type Overlay = HashMap<MessageId, Option<Record>>;

/// An empty batch with room for an ordinary round.
pub(super) fn new_batch() -> WriteBatch {
    WriteBatch::with_capacity_bytes(64 * 1024)
}
