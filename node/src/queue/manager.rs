//! Puts letters in line when they are due, hands them to workers within the limits of each route, and answers
//! administrators. It keeps no letter: the spool is the truth, and what is in memory is rebuilt from it at start.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::book::Book;
use super::{
    LetterState, MESSAGES, OLDEST_AGE_SECONDS, QueueDeps, QueueError, QueueFilter, QueueList, QueueSummary,
    QueuedMessage, worker,
};
use crate::clock::now_ms;
use crate::connector::{LetterFacts, SendConnector};
use crate::mail::{Domain, Mailbox};
use crate::outbound::Outbound;
use crate::shutdown::Scope;
use crate::spool::{MessageId, Record, Spool, SpoolError};
use crate::state::StateView;

/// The longest sleep: whatever was missed is noticed then.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Records read at a time when a filter asks for what only they know.
const RECORDS_AT_ONCE: usize = 256;

/// What the workers and the handle share.
pub(super) struct Shared {
    pub(super) spool: Spool,
    pub(super) deps: QueueDeps,
    book: Mutex<Book>,
    /// Something changed that the dispatcher should look at.
    pub(super) wake: Notify,
    stopping: AtomicBool,
    workers: Scope,
}

impl Shared {
    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// Starts the queue.
pub struct QueueManager;

impl QueueManager {
    /// Starts delivering what `spool` holds and will hold. The dispatcher ends with `scope`; running attempts end by
    /// [`QueueHandle::stop_new_attempts`].
    #[must_use]
    pub fn start(spool: Spool, deps: QueueDeps, scope: &Scope) -> QueueHandle {
        let book = Book::new(deps.node.fqdn.clone(), deps.settings.attempts_max);
        let shared = Arc::new(Shared {
            spool,
            deps,
            book: Mutex::new(book),
            wake: Notify::new(),
            stopping: AtomicBool::new(false),
            workers: Scope::new(),
        });
        scope.spawn_until_ended(dispatch(Arc::clone(&shared)));
        QueueHandle { shared }
    }
}

/// The route of a letter. What is queued under the node's own name is for postmaster, and goes where postmaster reads.
fn route(view: &StateView, own: &Domain, letter: LetterFacts<'_>) -> Option<Arc<SendConnector>> {
    let target = view.state.settings.postmaster.as_ref().filter(|_| letter.domain == own);
    let domain = target.map_or(letter.domain, Mailbox::domain);
    view.routes.find(LetterFacts { domain, ..letter }).cloned()
}

/// Takes arrivals, puts what is due in line, and starts workers.
async fn dispatch(shared: Arc<Shared>) {
    let mut views = shared.deps.view.clone();
    let mut view = Arc::clone(&views.borrow_and_update());
    loop {
        let newest = Arc::clone(&views.borrow_and_update());
        let sleep = {
            let mut book = shared.book();
            shared.spool.take_arrivals().into_iter().for_each(|arrival| book.add(arrival));
            let now = now_ms();
            let own = &shared.deps.node.fqdn;
            let changed = newest.state.settings.postmaster != view.state.settings.postmaster;
            if changed || !Arc::ptr_eq(&newest.routes, &view.routes) {
                // What a next hop said to the old settings, a wrong password for one, means nothing for the new ones.
                shared.deps.outbound.health.forget();
                book.change_routes(now, &|letter| route(&view, own, letter), &|letter| route(&newest, own, letter));
            }
            view = newest;
            book.make_ready(now, &|letter| route(&view, own, letter));
            while !shared.is_stopping() {
                let Some(job) = book.next_job(now) else { break };
                shared.workers.spawn(worker::run(Arc::clone(&shared), job));
            }
            let due_in = book.next_due_ms().map(|due| u64::try_from(due.saturating_sub(now)).unwrap_or(0));
            due_in.map_or(LOOK_AGAIN, |ms| Duration::from_millis(ms.max(1)).min(LOOK_AGAIN))
        };
        tokio::select! {
            () = shared.spool.arrived() => {}
            () = shared.wake.notified() => {}
            changed = views.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

/// Asks and changes a running queue. Clones ask the same queue.
#[derive(Clone)]
pub struct QueueHandle {
    shared: Arc<Shared>,
}

/// What the book knows of a letter that a filter means.
pub(super) struct Found {
    pub(super) id: MessageId,
    size: u64,
    state: LetterState,
    due_ms: i64,
    pub(super) domains: Vec<Domain>,
}

impl QueueHandle {
    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book()
    }

    pub(super) fn spool(&self) -> &Spool {
        &self.shared.spool
    }

    pub(super) fn node_name(&self) -> &str {
        &self.shared.deps.node.name
    }

    pub(super) fn outbound(&self) -> &Outbound {
        &self.shared.deps.outbound
    }

    /// How many letters wait or are under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.book().len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Brings the gauges up to date.
    pub fn publish_gauges(&self) {
        let book = self.shared.book();
        for state in LetterState::ALL {
            metrics::gauge!(MESSAGES, "state" => state.as_str()).set(book.count(state) as f64);
        }
        let oldest = book.oldest().map_or(0, |id| now_ms().saturating_sub(id.made_at_ms()).max(0));
        metrics::gauge!(OLDEST_AGE_SECONDS).set(oldest as f64 / 1000.0);
    }

    /// Starts no further attempt and waits for those that run. Answers whether all ended before `deadline`.
    pub async fn stop_new_attempts(&self, deadline: Duration) -> bool {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let began = Instant::now();
        let ended = self.shared.workers.join(deadline).await;
        if !ended {
            tracing::warn!(waited = ?began.elapsed(), "deliveries were still running; they are tried again at start");
        }
        ended
    }

    /// Counts the letters that `filter` means.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub async fn summary(&self, filter: &QueueFilter) -> Result<QueueSummary, QueueError> {
        let mut summary = QueueSummary::default();
        let now = now_ms();
        for found in self.find(filter).await? {
            summary.messages += 1;
            summary.bytes += found.size;
            *summary.by_state.entry(found.state.as_str().to_owned()).or_default() += 1;
            for domain in found.domains {
                *summary.by_domain.entry(domain.to_string()).or_default() += 1;
            }
            summary.oldest_age_ms = summary.oldest_age_ms.max(now.saturating_sub(found.id.made_at_ms()));
        }
        Ok(summary)
    }

    /// Lists the letters that `filter` means, oldest first, at most `limit`.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub async fn list(&self, filter: &QueueFilter, limit: usize) -> Result<QueueList, QueueError> {
        let found = self.find(filter).await?;
        let matched = found.len() as u64;
        let shown: Vec<Found> = found.into_iter().take(limit).collect();
        let records = self.shared.spool.records(shown.iter().map(|found| found.id).collect()).await?;
        let messages = records.iter().filter_map(|record| {
            let found = shown.iter().find(|found| found.id == record.id)?;
            Some(self.listed(found, record))
        });
        Ok(QueueList { messages: messages.collect(), matched })
    }

    fn listed(&self, found: &Found, record: &Record) -> QueuedMessage {
        let pending: Vec<_> = record.pending().map(|(_, recipient)| recipient).collect();
        QueuedMessage {
            id: record.id,
            node: self.shared.deps.node.name.clone(),
            state: found.state,
            sender: record.reverse_path.to_string(),
            recipients: pending.iter().map(|recipient| recipient.path.to_string()).collect(),
            connector: record.connector.clone(),
            client_ip: record.source_addr,
            size: record.length,
            received_at_ms: record.received_at_ms,
            next_attempt_at_ms: found.due_ms.max(record.received_at_ms),
            attempts: pending.iter().map(|recipient| recipient.attempts).max().unwrap_or(0),
            last_error: pending
                .iter()
                .find(|recipient| !recipient.last_reply.is_empty())
                .map(|recipient| recipient.last_reply.clone())
                .unwrap_or_default(),
            message_id: record.message_id.clone(),
        }
    }

    /// Makes the letters that `filter` means due now. Answers which.
    ///
    /// # Errors
    /// When nothing was chosen, or the spool cannot be read.
    pub async fn retry(&self, filter: &QueueFilter) -> Result<Vec<MessageId>, QueueError> {
        let ids = self.chosen(filter).await?;
        // Who asks for it now does not want to hear what a next hop said a minute ago.
        self.shared.deps.outbound.health.forget();
        self.shared.book().retry(&ids, now_ms());
        self.shared.wake.notify_one();
        Ok(ids)
    }

    /// Keeps the letters that `filter` means back until they are released, or lets them go on at once. What is under way
    /// finishes. Answers which were changed.
    ///
    /// # Errors
    /// When nothing was chosen, or the spool fails: what was changed before stays changed.
    pub async fn hold(&self, filter: &QueueFilter, held: bool, by: &str) -> Result<Vec<MessageId>, QueueError> {
        let mut changed = Vec::new();
        for id in self.chosen(filter).await? {
            // Durable first: a letter that only the memory keeps back would leave at the next start.
            if self.shared.spool.hold(id, now_ms(), held, by).await? {
                changed.push(id);
            }
        }
        self.shared.book().hold(&changed, held, now_ms());
        self.shared.wake.notify_one();
        Ok(changed)
    }

    /// Returns the letters that `filter` means to their senders, with a report that says `why`. What is under way is left
    /// alone. Answers which were returned.
    ///
    /// # Errors
    /// When nothing was chosen, or the spool fails: what was returned before stays returned.
    pub async fn bounce(&self, filter: &QueueFilter, why: &str, by: &str) -> Result<Vec<MessageId>, QueueError> {
        let mut returned = Vec::new();
        for id in self.chosen(filter).await? {
            let Some(job) = self.shared.book().take(id) else { continue };
            if worker::bounce(&self.shared, &job, why).await? {
                tracing::info!(message.id = %id, by, "letter returned by an administrator");
                returned.push(id);
            }
        }
        Ok(returned)
    }

    /// Removes the letters that `filter` means for good, without a report; `by` goes into their traces. Answers which.
    ///
    /// # Errors
    /// When nothing was chosen, or the spool fails: what was removed before stays removed.
    pub async fn delete(&self, filter: &QueueFilter, by: &str) -> Result<Vec<MessageId>, QueueError> {
        let mut deleted = Vec::new();
        for id in self.chosen(filter).await? {
            if self.shared.spool.delete(id, now_ms(), by).await? {
                metrics::counter!(super::FINISHED_TOTAL, "result" => "deleted").increment(1);
                deleted.push(id);
            }
            self.shared.book().remove(id);
        }
        Ok(deleted)
    }

    async fn chosen(&self, filter: &QueueFilter) -> Result<Vec<MessageId>, QueueError> {
        if !filter.is_chosen() {
            return Err(QueueError::NothingChosen);
        }
        Ok(self.find(filter).await?.into_iter().map(|found| found.id).collect())
    }

    /// The letters that `filter` means: first by what is in memory, then, where it asks for more, by their records.
    pub(super) async fn find(&self, filter: &QueueFilter) -> Result<Vec<Found>, SpoolError> {
        let found: Vec<Found> = {
            let book = self.shared.book();
            let meant = book.iter().filter(|(id, _, state, _, domains)| {
                (filter.ids.is_empty() || filter.ids.contains(id))
                    && filter.state.is_none_or(|wanted| wanted == *state)
                    && filter.domain.as_ref().is_none_or(|wanted| domains.contains(&wanted))
            });
            meant
                .map(|(id, size, state, due_ms, domains)| {
                    let domains = domains.into_iter().cloned().collect();
                    Found { id, size, state, due_ms, domains }
                })
                .collect()
        };
        if filter.sender.is_none() && filter.recipient.is_none() && filter.connector.is_none() {
            return Ok(found);
        }
        let mut kept = Vec::new();
        let mut rest = found.into_iter().peekable();
        while rest.peek().is_some() {
            let batch: Vec<Found> = rest.by_ref().take(RECORDS_AT_ONCE).collect();
            let records = self.shared.spool.records(batch.iter().map(|found| found.id).collect()).await?;
            kept.extend(
                batch
                    .into_iter()
                    .filter(|found| records.iter().any(|record| record.id == found.id && is_meant(filter, record))),
            );
        }
        Ok(kept)
    }
}

/// Whether a record fits what only records know.
fn is_meant(filter: &QueueFilter, record: &Record) -> bool {
    let same =
        |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(found));
    same(&filter.sender, &record.reverse_path.to_string())
        && same(&filter.connector, &record.connector)
        && filter.recipient.as_ref().is_none_or(|wanted| {
            record.pending().any(|(_, recipient)| recipient.path.to_string().eq_ignore_ascii_case(wanted))
        })
}
