//! The backends of this front: what the cluster says of them, what each says of itself, what checks and connections
//! found. Writers hold a short lock and publish; an accept reads what was published and takes no lock.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::{counter, gauge};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::alarm::Alarms;
use super::backend::{Administrative, CheckPolicy, Counter, Flip, Readiness, Standing, standing};
use super::balance::{Algorithm, Candidate, affinity, pick};
use super::check::CheckFailure;
use super::metrics_names::{self, BACKEND_ELIGIBLE, BACKEND_UP, BANNER_TIMEOUT_SECONDS, CHECK_FAILURES_TOTAL};
use super::patience::Patience;
use super::status::BackendStatus;

/// One SMTP socket of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Service {
    /// 25, 587 or 465.
    pub port: u16,
    /// `host:port`.
    pub address: String,
    /// Whether the device speaks first there.
    pub implicit_tls: bool,
}

/// One backend as the cluster describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub node: String,
    /// `active` or `draining`.
    pub state: String,
    pub services: Vec<Service>,
    pub rpc_address: String,
    pub weight: u32,
}

impl Known {
    /// Where it is checked: the service with the lowest number on which the server speaks first, else the lowest.
    pub(super) fn checked_service(&self) -> Option<&Service> {
        self.services.iter().min_by_key(|service| (service.implicit_tls, service.port))
    }
}

/// All backends, as of one revision of the cluster's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownSet {
    pub cluster_id: String,
    pub revision: u64,
    pub backends: Vec<Known>,
}

pub(super) struct Pool {
    policy: CheckPolicy,
    algorithm: Algorithm,
    slowstart: Duration,
    inner: Mutex<Inner>,
    published: ArcSwap<Vec<Published>>,
    known: watch::Sender<Arc<KnownSet>>,
    turn: AtomicUsize,
    patience: Mutex<Patience>,
}

#[derive(Default)]
struct Inner {
    /// Whether the set came from a node of this cluster, and not from the file.
    is_live: bool,
    entries: BTreeMap<String, Entry>,
    alarms: Alarms,
}

struct Entry {
    known: Known,
    counter: Counter,
    /// Since when it is in rotation: its slow start began then.
    well_since: Option<Instant>,
    readiness: Readiness,
    last_failure: String,
    sessions: Arc<AtomicUsize>,
    check_now: Arc<Notify>,
}

impl Entry {
    fn standing(&self) -> Standing {
        standing(&self.counter, Administrative::from_wire(&self.known.state), &self.readiness)
    }

    /// Whether it takes new connections as a matter of course: it is well, and nobody is better who has one of its
    /// services.
    fn is_eligible(&self, best: &BTreeMap<u16, Standing>) -> bool {
        let standing = self.standing();
        standing.is_well() && self.known.services.iter().any(|service| best.get(&service.port) == Some(&standing))
    }
}

#[derive(Clone)]
struct Published {
    name: Arc<str>,
    services: Vec<Service>,
    weight: u32,
    well_since: Option<Instant>,
    standing: Standing,
    sessions: Arc<AtomicUsize>,
}

/// The kernel asks again after 1 and 3 s (RFC 6298 §2, tcp(7)), when the backend's queue was full. A longer deadline
/// would only find a machine that starts again later.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_millis(3_500);
/// A weight of 1 in full, so that a slow start has steps.
const WEIGHT_SCALE: u32 = 100;
/// Where a slow start begins.
const SLOWSTART_MIN_PERCENT: u32 = 10;

/// A backend's share at `now`, in hundredths of a weight.
fn effective_weight(weight: u32, well_since: Option<Instant>, slowstart: Duration, now: Instant) -> u32 {
    let Some(since) = well_since.map(|at| now.saturating_duration_since(at)).filter(|since| *since < slowstart) else {
        return weight.saturating_mul(WEIGHT_SCALE);
    };
    let percent = (since.as_secs_f64() / slowstart.as_secs_f64() * 100.0) as u32;
    weight.saturating_mul(WEIGHT_SCALE) * percent.max(SLOWSTART_MIN_PERCENT) / 100
}

/// A backend that was picked for one device. Counts as a session until it is dropped.
pub(super) struct Picked {
    pub name: Arc<str>,
    pub address: String,
    /// Nobody better is known, and this one hears no leader.
    pub is_stale: bool,
    pub session: BackendSession,
}

/// The best standing that each service has.
fn best_of(entries: &BTreeMap<String, Entry>) -> BTreeMap<u16, Standing> {
    let mut best = BTreeMap::new();
    for entry in entries.values() {
        let standing = entry.standing();
        for service in &entry.known.services {
            let found = best.entry(service.port).or_insert(standing);
            *found = standing.min(*found);
        }
    }
    best
}

/// Counts one session of a backend while it lives.
pub(super) struct BackendSession(Arc<AtomicUsize>);

impl BackendSession {
    fn new(sessions: &Arc<AtomicUsize>) -> Self {
        sessions.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(sessions))
    }
}

impl Drop for BackendSession {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    pub(super) fn new(policy: CheckPolicy, algorithm: Algorithm, slowstart: Duration, patience: Patience) -> Self {
        Self {
            policy,
            algorithm,
            slowstart,
            inner: Mutex::default(),
            published: ArcSwap::default(),
            known: watch::Sender::default(),
            turn: AtomicUsize::new(0),
            patience: Mutex::new(patience),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The set of backends, and when it changes.
    pub(super) fn known(&self) -> watch::Receiver<Arc<KnownSet>> {
        self.known.subscribe()
    }

    /// Takes the set that was kept on disk. Any node of the cluster overrules it.
    pub(super) fn restore(&self, set: KnownSet) {
        let mut inner = self.inner();
        if !inner.is_live {
            self.install(&mut inner, set);
        }
    }

    /// Takes the set that a node told. The newest revision wins, whoever says it; a node that lags changes nothing.
    pub(super) fn learn(&self, set: KnownSet) {
        let mut inner = self.inner();
        let current = Arc::clone(&self.known.borrow());
        if !current.cluster_id.is_empty() && current.cluster_id != set.cluster_id {
            warn!(ours = %current.cluster_id, theirs = %set.cluster_id, "backends of another cluster ignored");
            return;
        }
        if inner.is_live && set.revision < current.revision {
            return;
        }
        inner.is_live = true;
        if *current != set {
            self.install(&mut inner, set);
        }
    }

    fn install(&self, inner: &mut Inner, mut set: KnownSet) {
        // Two nodes read the same state, but need not list it in the same order.
        set.backends.sort_by(|left, right| left.node.cmp(&right.node));
        inner.entries.retain(|name, _| {
            let stays = set.backends.iter().any(|known| known.node == *name);
            if !stays {
                info!(backend = %name, "backend removed");
                gauge!(BACKEND_UP, "backend" => name.clone()).set(0.0);
                gauge!(BACKEND_ELIGIBLE, "backend" => name.clone()).set(0.0);
            }
            stays
        });
        for known in &set.backends {
            if let Some(entry) = inner.entries.get_mut(&known.node) {
                let state = Administrative::from_wire(&known.state).as_str();
                if Administrative::from_wire(&entry.known.state).as_str() != state {
                    info!(backend = %known.node, state, "backend's administrative state changed");
                }
                entry.known = known.clone();
                continue;
            }
            info!(backend = %known.node, state = %known.state, "backend added");
            metrics_names::register_backend(&known.node);
            let entry = Entry {
                known: known.clone(),
                counter: Counter::default(),
                well_since: None,
                readiness: Readiness::Unknown,
                last_failure: String::new(),
                sessions: Arc::default(),
                check_now: Arc::default(),
            };
            inner.entries.insert(known.node.clone(), entry);
        }
        self.publish(inner);
        self.known.send_replace(Arc::new(set));
    }

    fn publish(&self, inner: &mut Inner) {
        let now = Instant::now();
        for entry in inner.entries.values_mut() {
            match (entry.standing().is_well(), entry.well_since) {
                (true, None) => entry.well_since = Some(now),
                (false, Some(_)) => entry.well_since = None,
                _ => {}
            }
        }
        let best = best_of(&inner.entries);
        inner.alarms.look(&best, now);
        let published = inner.entries.iter().map(|(name, entry)| {
            let standing = entry.standing();
            let is_eligible = entry.is_eligible(&best);
            gauge!(BACKEND_UP, "backend" => name.clone()).set(f64::from(u8::from(entry.counter.is_up())));
            gauge!(BACKEND_ELIGIBLE, "backend" => name.clone()).set(f64::from(u8::from(is_eligible)));
            Published {
                name: name.as_str().into(),
                services: entry.known.services.clone(),
                weight: entry.known.weight,
                well_since: entry.well_since,
                standing,
                sessions: Arc::clone(&entry.sessions),
            }
        });
        self.published.store(Arc::new(published.collect()));
    }

    /// What a node says of itself, on its own stream; [`Readiness::Unknown`] when the stream is gone.
    pub(super) fn node_said(&self, node: &str, readiness: Readiness) {
        let mut inner = self.inner();
        let Some(entry) = inner.entries.get_mut(node) else { return };
        if entry.readiness == readiness {
            return;
        }
        match &readiness {
            Readiness::Unknown => info!(backend = %node, "backend's readiness is unknown"),
            Readiness::Ready { has_leader } => info!(backend = %node, has_leader, "backend is ready"),
            Readiness::NotReady { reason, refuses } => {
                info!(backend = %node, %reason, refuses, "backend is not ready");
            }
        }
        entry.readiness = readiness;
        self.publish(&mut inner);
    }

    /// Counts a check that passed. Answers whether the backend's state is still changing.
    pub(super) fn succeeded(&self, node: &str) -> bool {
        self.observe(node, None)
    }

    /// Counts a failure, of a check, a stream or a device's connection, and has the backend checked soon. Answers
    /// whether its state is still changing.
    pub(super) fn failed(&self, node: &str, failure: &CheckFailure) -> bool {
        counter!(CHECK_FAILURES_TOTAL, "backend" => node.to_owned(), "reason" => failure.reason()).increment(1);
        self.observe(node, Some(failure))
    }

    fn observe(&self, node: &str, failure: Option<&CheckFailure>) -> bool {
        let mut inner = self.inner();
        let Some(entry) = inner.entries.get_mut(node) else { return false };
        if let Some(failure) = failure {
            entry.last_failure = failure.to_string();
        }
        let before = entry.standing();
        let flip = entry.counter.observe(failure.is_none(), self.policy);
        match flip {
            Some(Flip::Up) => info!(backend = %node, "backend up"),
            Some(Flip::Down) => warn!(backend = %node, reason = %entry.last_failure, "backend down"),
            None => {}
        }
        let (is_changing, is_moved) = (entry.counter.is_changing(), before != entry.standing());
        if is_moved {
            self.publish(&mut inner);
        }
        is_changing
    }

    /// Has a backend checked now.
    pub(super) fn check_soon(&self, node: &str) {
        if let Some(entry) = self.inner().entries.get(node) {
            entry.check_now.notify_one();
        }
    }

    /// Wakes when a backend should be checked now.
    pub(super) fn check_signal(&self, node: &str) -> Option<Arc<Notify>> {
        self.inner().entries.get(node).map(|entry| Arc::clone(&entry.check_now))
    }

    /// A number for each device, so that equals take turns.
    pub(super) fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Picks a backend that serves `port` and was not tried, for the device at `source`.
    pub(super) fn pick(&self, port: u16, source: IpAddr, turn: usize, tried: &[Arc<str>]) -> Option<Picked> {
        let (published, now) = (self.published.load(), Instant::now());
        let (backends, candidates): (Vec<_>, Vec<_>) = published
            .iter()
            .filter_map(|backend| {
                let service = backend.services.iter().find(|service| service.port == port)?;
                let candidate = Candidate {
                    standing: backend.standing,
                    weight: effective_weight(backend.weight, backend.well_since, self.slowstart, now),
                    sessions: backend.sessions.load(Ordering::Relaxed),
                    tried: tried.contains(&backend.name),
                    affinity: match self.algorithm {
                        Algorithm::SourceHash => affinity(source, &backend.name),
                        Algorithm::LeastConnections | Algorithm::RoundRobin => 0,
                    },
                };
                Some(((backend, service), candidate))
            })
            .unzip();
        let index = pick(self.algorithm, &candidates, turn)?;
        let (backend, service) = backends[index];
        Some(Picked {
            name: Arc::clone(&backend.name),
            address: service.address.clone(),
            is_stale: backend.standing == Standing::Leaderless,
            session: BackendSession::new(&backend.sessions),
        })
    }

    /// How long a backend may be silent now, before another one is asked or, when there is none, the device is given up.
    pub(super) fn banner_deadline(&self, is_last: bool) -> Duration {
        let mut patience = self.patience();
        gauge!(BANNER_TIMEOUT_SECONDS).set(patience.deadline(Instant::now(), false).as_secs_f64());
        patience.deadline(Instant::now(), is_last)
    }

    /// How long a connection to a backend may take now.
    pub(super) fn connect_deadline(&self, base: Duration) -> Duration {
        self.patience().grown(base, CONNECT_TIMEOUT_MAX, Instant::now())
    }

    /// How long the walk of a check may take now.
    pub(super) fn check_deadline(&self, base: Duration) -> Duration {
        let mut patience = self.patience();
        let (now, most) = (Instant::now(), patience.deadline(Instant::now(), true));
        patience.grown(base, most, now)
    }

    fn patience(&self) -> MutexGuard<'_, Patience> {
        self.patience.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Backends that could be asked.
    fn wanted(&self) -> usize {
        self.published.load().iter().filter(|one| one.standing != Standing::Draining).count()
    }

    /// A backend did not connect or speak to a device in time. Counted as a failure unless most of them are late: then
    /// it is overload.
    pub(super) fn was_late(&self, node: &str, failure: &CheckFailure) {
        let wanted = self.wanted();
        let is_overload = self.patience().was_late(node, wanted, Instant::now());
        if !is_overload {
            self.failed(node, failure);
        }
        self.check_soon(node);
    }

    /// A backend spoke to a device in time.
    pub(super) fn was_in_time(&self, node: &str) {
        self.patience().was_in_time(node, Instant::now());
    }

    /// A check is over: whether it was so in time says something about overload, the rest about the backend. Answers
    /// whether the backend's state is still changing.
    pub(super) fn checked(&self, node: &str, result: &Result<(), CheckFailure>) -> bool {
        if let Err(CheckFailure::ConnectTimeout | CheckFailure::Silent) = result {
            let wanted = self.wanted();
            self.patience().was_late_for_check(node, wanted, Instant::now());
        } else {
            self.patience().was_in_time_for_check(node, Instant::now());
        }
        match result {
            Ok(()) => self.succeeded(node),
            Err(failure) => self.failed(node, failure),
        }
    }

    /// Says what has been wrong with a whole service for a while.
    pub(super) fn say_alarms(&self) {
        self.inner().alarms.say(Instant::now());
    }

    /// Every backend, for people.
    pub(super) fn status(&self) -> Vec<BackendStatus> {
        let inner = self.inner();
        let best = best_of(&inner.entries);
        let of = |(name, entry): (&String, &Entry)| {
            let (is_ready, reason, has_leader) = match &entry.readiness {
                Readiness::Unknown => (None, "its stream is not there".to_owned(), None),
                Readiness::Ready { has_leader: false } => (Some(true), "it hears no leader".to_owned(), Some(false)),
                Readiness::Ready { has_leader: true } => (Some(true), String::new(), Some(true)),
                Readiness::NotReady { reason, .. } => (Some(false), reason.clone(), None),
            };
            BackendStatus {
                name: name.clone(),
                state: Administrative::from_wire(&entry.known.state).as_str(),
                up: entry.counter.is_up(),
                eligible: entry.is_eligible(&best),
                weight: entry.known.weight,
                effective_weight_percent: effective_weight(
                    entry.known.weight,
                    entry.well_since,
                    self.slowstart,
                    Instant::now(),
                ),
                ready: is_ready,
                reason,
                has_leader,
                sessions: entry.sessions.load(Ordering::Relaxed),
                failures: entry.counter.failures(),
                last_failure: entry.last_failure.clone(),
                services: entry.known.services.iter().map(|service| service.port).collect(),
            }
        };
        inner.entries.iter().map(of).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    pub(in crate::front) fn pool() -> Arc<Pool> {
        let patience = Patience::new(Duration::from_millis(300), Duration::from_secs(2));
        Arc::new(Pool::new(CheckPolicy { rise: 1, fall: 2 }, Algorithm::LeastConnections, Duration::ZERO, patience))
    }

    pub(in crate::front) fn known(node: &str, state: &str, address: &str) -> Known {
        Known {
            node: node.to_owned(),
            state: state.to_owned(),
            services: vec![Service { port: 25, address: address.to_owned(), implicit_tls: false }],
            rpc_address: String::new(),
            weight: 1,
        }
    }

    pub(in crate::front) fn set(revision: u64, backends: Vec<Known>) -> KnownSet {
        KnownSet { cluster_id: "c".to_owned(), revision, backends }
    }

    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn picked(pool: &Pool) -> Option<String> {
        pool.pick(25, SOURCE, 0, &[]).map(|picked| picked.name.to_string())
    }

    #[test]
    fn the_newest_revision_wins_and_another_cluster_is_ignored() {
        let pool = pool();
        pool.restore(set(90, vec![known("old", "active", "")]));
        pool.learn(set(7, vec![known("n1", "active", "")]));
        assert_eq!(picked(&pool).as_deref(), Some("n1"), "a node overrules the file");
        pool.learn(set(6, vec![known("n2", "active", "")]));
        assert_eq!(picked(&pool).as_deref(), Some("n1"), "an older revision changes nothing");
        pool.learn(KnownSet { cluster_id: "other".to_owned(), ..set(9, vec![known("n3", "active", "")]) });
        assert_eq!(picked(&pool).as_deref(), Some("n1"));
        pool.restore(set(99, vec![known("old", "active", "")]));
        assert_eq!(picked(&pool).as_deref(), Some("n1"), "the file never overrules a node");
        pool.learn(set(8, vec![known("n2", "active", "")]));
        assert_eq!(picked(&pool).as_deref(), Some("n2"));
    }

    #[test]
    fn a_drain_is_obeyed_by_the_next_pick_and_nothing_else_is_forgotten() {
        let pool = pool();
        pool.learn(set(1, vec![known("n1", "active", ""), known("n2", "active", "")]));
        pool.succeeded("n1");
        assert_eq!(picked(&pool).as_deref(), Some("n1"));
        pool.learn(set(2, vec![known("n1", "draining", ""), known("n2", "active", "")]));
        assert_eq!(picked(&pool).as_deref(), Some("n2"), "down, but not draining");
        pool.learn(set(3, vec![known("n1", "active", ""), known("n2", "active", "")]));
        assert_eq!(picked(&pool).as_deref(), Some("n1"), "still up");
        pool.learn(set(4, vec![known("n1", "draining", "")]));
        assert_eq!(picked(&pool), None);
    }

    #[test]
    fn a_node_that_is_not_ready_is_the_last_resort() {
        let pool = pool();
        pool.learn(set(1, vec![known("n1", "active", ""), known("n2", "active", "")]));
        pool.succeeded("n1");
        pool.succeeded("n2");
        let full = |refuses| Readiness::NotReady { reason: "disk: full".to_owned(), refuses };
        pool.node_said("n1", full(false));
        for _ in 0..3 {
            assert_eq!(picked(&pool).as_deref(), Some("n2"));
        }
        pool.node_said("n2", Readiness::Ready { has_leader: false });
        let choice = pool.pick(25, SOURCE, 0, &[]).unwrap();
        assert!(&*choice.name == "n2" && choice.is_stale);
        pool.failed("n2", &CheckFailure::Silent);
        pool.failed("n2", &CheckFailure::Silent);
        assert_eq!(picked(&pool).as_deref(), Some("n1"), "panic floor: not ready, and better than one that is down");
        pool.node_said("n1", full(true));
        assert_eq!(picked(&pool).as_deref(), Some("n2"), "one that says that it refuses is no resort at all");
    }

    #[test]
    fn whoever_does_not_speak_for_itself_is_used_when_nobody_does() {
        let pool = pool();
        pool.learn(set(1, vec![known("n1", "active", ""), known("n2", "active", "")]));
        pool.succeeded("n1");
        pool.succeeded("n2");
        let eligible = || pool.status().into_iter().filter(|one| one.eligible).map(|one| one.name).collect::<Vec<_>>();
        assert_eq!(eligible(), ["n1", "n2"], "a front works without the cluster");
        pool.node_said("n2", Readiness::Ready { has_leader: true });
        assert_eq!(eligible(), ["n2"]);
        for turn in 0..3 {
            assert_eq!(pool.pick(25, SOURCE, turn, &[]).unwrap().name.as_ref(), "n2");
        }
        pool.node_said("n2", Readiness::Ready { has_leader: false });
        assert_eq!(eligible(), ["n2"], "it says at least that it knows nothing new");
        pool.node_said("n1", Readiness::Ready { has_leader: true });
        assert_eq!(eligible(), ["n1"], "and whoever hears a leader is better");
        pool.node_said("n1", Readiness::Unknown);
        pool.node_said("n2", Readiness::Unknown);
        assert_eq!(eligible(), ["n1", "n2"], "the rotation is never empty because streams are gone");
    }

    #[test]
    fn a_backend_that_came_up_gets_its_share_by_and_by() {
        let (now, slow) = (Instant::now(), Duration::from_secs(10));
        let at = |seconds| effective_weight(2, Some(now), slow, now + Duration::from_secs(seconds));
        assert_eq!((at(0), at(5), at(10), at(99)), (20, 100, 200, 200));
        assert_eq!(effective_weight(1, Some(now), Duration::ZERO, now), 100, "no slow start");
    }

    #[test]
    fn panic_is_said_per_service_and_taken_back() {
        let pool = pool();
        pool.learn(set(1, vec![known("n1", "active", ""), known("n2", "active", "")]));
        let panics = |pool: &Pool| pool.inner().alarms.is_panicking(25);
        assert!(panics(&pool), "nobody has been seen well yet");
        pool.succeeded("n1");
        assert!(!panics(&pool));
        pool.node_said("n1", Readiness::NotReady { reason: "disk: full".to_owned(), refuses: false });
        assert!(panics(&pool));
        assert_eq!(picked(&pool).as_deref(), Some("n1"), "and mail goes on");
        pool.node_said("n1", Readiness::Ready { has_leader: false });
        assert!(!panics(&pool), "without a leader is well enough when nobody has one");
    }

    #[test]
    fn a_backend_without_the_service_is_not_a_candidate() {
        let pool = pool();
        pool.learn(set(1, vec![known("n1", "active", "")]));
        pool.succeeded("n1");
        assert!(pool.pick(587, SOURCE, 0, &[]).is_none());
    }

    #[test]
    fn sessions_are_counted_while_they_last() {
        let pool = pool();
        pool.learn(set(1, vec![known("n1", "active", ""), known("n2", "active", "")]));
        pool.succeeded("n1");
        pool.succeeded("n2");
        let first = pool.pick(25, SOURCE, 0, &[]).unwrap();
        let second = pool.pick(25, SOURCE, 0, &[]).unwrap();
        assert_ne!(first.name, second.name);
        drop(first);
        assert_eq!(pool.status().iter().map(|backend| backend.sessions).sum::<usize>(), 1);
        drop(second);
        assert_eq!(pool.status().iter().map(|backend| backend.sessions).sum::<usize>(), 0);
    }
}
