//! Puts letters in line when they are due, hands them to workers within the limits of each route, and answers
//! administrators. It keeps no letter: the spool is the truth, and what is in memory is rebuilt from it at start.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::book::Book;
use super::find::{Found, Search};
use super::shape::last_error;
use super::{
    LetterState, MESSAGES, OLDEST_AGE_SECONDS, QueueDeps, QueueError, QueueFilter, QueueList, QueueSummary,
    QueuedMessage, worker,
};
use crate::clock::now_ms;
use crate::connector::{LetterFacts, SendConnector};
use crate::mail::{Domain, Mailbox};
use crate::outbound::Outbound;
use crate::shutdown::Scope;
use crate::spool::{MessageId, Record, Spool};
use crate::state::StateView;

/// The longest sleep: whatever was missed is noticed then.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

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
        let arrivals = shared.spool.take_arrivals().await.unwrap_or_else(|error| {
            tracing::error!(%error, "letters that wait could not be read; this is tried again");
            Vec::new()
        });
        let sleep = {
            let mut book = shared.book();
            arrivals.into_iter().for_each(|arrival| book.add(arrival));
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

impl QueueHandle {
    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
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

    /// Takes letters out of line that are no longer in the spool.
    pub fn forget(&self, ids: impl IntoIterator<Item = MessageId>) {
        let mut book = self.shared.book();
        for id in ids {
            book.remove(id);
        }
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
        let mut search = Search::new(filter);
        while let Some(page) = self.next_page(&mut search).await? {
            for Found { id, size, state, domains, .. } in page {
                summary.messages += 1;
                summary.bytes += size;
                *summary.by_state.entry(state.as_str().to_owned()).or_default() += 1;
                for domain in domains {
                    match summary.by_domain.get_mut(domain.as_str()) {
                        Some(count) => *count += 1,
                        None => drop(summary.by_domain.insert(domain.to_string(), 1)),
                    }
                }
                summary.oldest_age_ms = summary.oldest_age_ms.max(now.saturating_sub(id.made_at_ms()));
            }
        }
        Ok(summary)
    }

    /// Lists the letters that `filter` means, oldest first, at most `limit`.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub async fn list(&self, filter: &QueueFilter, limit: usize) -> Result<QueueList, QueueError> {
        let mut listed = QueueList::default();
        let mut search = Search::new(filter);
        search.with_records = limit > 0;
        while let Some(page) = self.next_page(&mut search).await? {
            for found in page {
                listed.matched += 1;
                if let (true, Some(record)) = (listed.messages.len() < limit, &found.record) {
                    listed.messages.push(self.listed(&found, record));
                }
            }
            search.with_records = listed.messages.len() < limit;
        }
        Ok(listed)
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
            last_error: last_error(record),
            message_id: record.message_id.clone(),
        }
    }
}
