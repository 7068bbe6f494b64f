//! The sessions that devices have open at this node, for whoever wants to see or end them. A session writes here what
//! costs it nothing: a few numbers while it speaks, and its facts when one of them changes. When a session that is to
//! end may be cut, it decides itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::connector::RemoteIpRange;
use crate::smtp::session::SessionState;

/// The open sessions of this process. Clones share them; there are no more than the sockets let in.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// By the order in which they were opened.
    open: Mutex<BTreeMap<u64, Arc<Open>>>,
    opened: AtomicU64,
}

/// What is known of a session when it is opened, and changes seldom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The device.
    pub source: SocketAddr,
    /// Where it connected: the address dialled and the service port.
    pub local: SocketAddr,
    /// The connector that took it.
    pub connector: String,
    /// The front or balancer that passed it on.
    pub front: Option<String>,
    /// The credential that it acts for.
    pub user: Option<String>,
    /// Version and cipher suite, inside TLS.
    pub tls: Option<String>,
}

#[derive(Debug)]
struct Open {
    id: String,
    since_ms: i64,
    facts: Mutex<Facts>,
    state: AtomicU8,
    letters: AtomicU64,
    heard_ms: AtomicI64,
    due_ms: AtomicI64,
    killed: CancellationToken,
}

/// A session's own entry: it is listed for as long as this lives.
#[derive(Debug)]
pub struct Entry {
    sessions: Sessions,
    key: u64,
    open: Arc<Open>,
}

/// A session as somebody sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// One string that finds everything about it.
    pub id: String,
    /// When it was opened, in unix milliseconds.
    pub since_ms: i64,
    /// Who it is.
    pub facts: Facts,
    /// What it is doing.
    pub state: SessionState,
    /// Letters that were acknowledged.
    pub letters: u64,
    /// When the device last said something, in unix milliseconds.
    pub heard_ms: i64,
}

/// Which sessions are meant: those that fit everything that is named.
#[derive(Clone, Debug, Default)]
pub struct SessionFilter {
    /// One of these.
    pub ids: Vec<String>,
    /// Taken by this connector.
    pub connector: Option<String>,
    /// From there.
    pub source: Option<RemoteIpRange>,
}

impl Sessions {
    /// Lists a session until what is answered is dropped.
    #[must_use]
    pub fn enter(&self, id: String, facts: Facts, now_ms: i64) -> Entry {
        let open = Arc::new(Open {
            id,
            since_ms: now_ms,
            facts: Mutex::new(facts),
            state: AtomicU8::new(0),
            letters: AtomicU64::new(0),
            heard_ms: AtomicI64::new(now_ms),
            due_ms: AtomicI64::new(now_ms),
            killed: CancellationToken::new(),
        });
        let key = self.0.opened.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(key, Arc::clone(&open));
        Entry { sessions: self.clone(), key, open }
    }

    /// The first `limit` sessions that fit, the oldest first, and how many fit.
    #[must_use]
    pub fn list(&self, filter: &SessionFilter, limit: usize) -> (Vec<Seen>, usize) {
        let mut found: Vec<Seen> = self.fitting(filter).into_iter().map(|(_, seen)| seen).collect();
        let matched = found.len();
        found.truncate(limit);
        (found, matched)
    }

    /// Tells the sessions that fit to end. Answers which: each of them ends at its next chance.
    pub fn kill(&self, filter: &SessionFilter) -> Vec<Seen> {
        let found = self.fitting(filter);
        found.iter().for_each(|(open, _)| open.killed.cancel());
        found.into_iter().map(|(_, seen)| seen).collect()
    }

    fn fitting(&self, filter: &SessionFilter) -> Vec<(Arc<Open>, Seen)> {
        // Sessions come and go under this lock: what takes time is done without it.
        let open: Vec<Arc<Open>> = self.lock().values().cloned().collect();
        let seen = open.into_iter().map(|open| {
            let seen = open.seen();
            (open, seen)
        });
        seen.filter(|(_, seen)| filter.fits(seen)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Open>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SessionFilter {
    fn fits(&self, seen: &Seen) -> bool {
        (self.ids.is_empty() || self.ids.iter().any(|id| id.eq_ignore_ascii_case(&seen.id)))
            && self.connector.as_ref().is_none_or(|name| *name == seen.facts.connector)
            && self.source.is_none_or(|range| range.contains(seen.facts.source.ip()))
    }
}

impl Open {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> Seen {
        let state = usize::from(self.state.load(Ordering::Relaxed));
        Seen {
            id: self.id.clone(),
            since_ms: self.since_ms,
            facts: self.facts().clone(),
            state: SessionState::ALL.get(state).copied().unwrap_or_default(),
            letters: self.letters.load(Ordering::Relaxed),
            heard_ms: self.heard_ms.load(Ordering::Relaxed),
        }
    }
}

impl Entry {
    /// What the session is doing now, and how many letters it has brought.
    pub fn tell(&self, state: SessionState, letters: u64) {
        self.open.state.store(state as u8, Ordering::Relaxed);
        self.open.letters.store(letters, Ordering::Relaxed);
    }

    /// The device said something.
    pub fn heard(&self, now_ms: i64) {
        self.open.heard_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Whether so much time has passed since this was last answered with yes, or since the session was opened.
    #[must_use]
    pub fn is_due(&self, now_ms: i64, interval_ms: i64) -> bool {
        // Only the session itself asks: nobody is in between.
        let due = now_ms.saturating_sub(self.open.due_ms.load(Ordering::Relaxed)) >= interval_ms;
        if due {
            self.open.due_ms.store(now_ms, Ordering::Relaxed);
        }
        due
    }

    /// Something of its facts has changed.
    pub fn change(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.open.facts());
    }

    /// Returns when somebody wants the session to end.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn killed(&self) {
        self.open.killed.cancelled().await;
    }

    /// Whether somebody wants the session to end.
    #[must_use]
    pub fn is_killed(&self) -> bool {
        self.open.killed.is_cancelled()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn facts(source: &str, connector: &str) -> Facts {
        Facts {
            source: source.parse().unwrap(),
            local: "127.0.0.1:25".parse().unwrap(),
            connector: connector.to_owned(),
            front: None,
            user: None,
            tls: None,
        }
    }

    fn ids(seen: &[Seen]) -> Vec<&str> {
        seen.iter().map(|seen| seen.id.as_str()).collect()
    }

    #[test]
    fn sessions_are_listed_while_they_live_the_oldest_first() {
        let sessions = Sessions::default();
        let first = sessions.enter("A1".into(), facts("10.0.0.1:5", "printers"), 10);
        let second = sessions.enter("B2".into(), facts("10.0.0.2:5", "printers"), 20);
        second.tell(SessionState::Data, 3);
        second.heard(25);
        let (seen, matched) = sessions.list(&SessionFilter::default(), 1);
        assert_eq!((ids(&seen), matched), (vec!["A1"], 2));
        drop(first);
        let (seen, _) = sessions.list(&SessionFilter::default(), 9);
        assert_eq!((seen[0].state, seen[0].letters, seen[0].heard_ms), (SessionState::Data, 3, 25));
        drop(second);
        assert_eq!(sessions.list(&SessionFilter::default(), 9).1, 0);
    }

    #[test]
    fn only_what_fits_everything_named_is_told_to_end() {
        let sessions = Sessions::default();
        let entries = [("A1", "10.0.0.1:5", "printers"), ("B2", "10.0.0.2:5", "printers"), ("C3", "10.0.0.2:6", "erp")]
            .map(|(id, source, connector)| sessions.enter(id.into(), facts(source, connector), 0));
        let filter = SessionFilter {
            connector: Some("printers".into()),
            source: Some("10.0.0.2-10.0.0.9".parse().unwrap()),
            ..SessionFilter::default()
        };
        assert_eq!(ids(&sessions.kill(&filter)), ["B2"]);
        let filter = SessionFilter { ids: vec!["c3".into()], ..SessionFilter::default() };
        assert_eq!(ids(&sessions.kill(&filter)), ["C3"]);
        assert_eq!(entries.each_ref().map(Entry::is_killed), [false, true, true]);
    }
}
