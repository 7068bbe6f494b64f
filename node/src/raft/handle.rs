//! What the rest of the house sees of Raft: propose a change, read the published state, ask how the group is.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use openraft::error::{ClientWriteError, InitializeError, RaftError as CoreError};
use openraft::{Config, ServerState, SnapshotPolicy};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::lag::{Lag, Progress};
use super::log_store::LogStore;
use super::network::{Dial, Peers};
use super::state_machine::StateMachine;
use super::store::{Store, StoreError};
use super::types::{Fatal, Proposal, Raft, RaftNode};
use super::{membership, metrics};
use crate::shutdown::{Scope, run_blocking};
use crate::state::StateView;

/// With the election timeouts below: a follower that knew a leader waits twice the maximum and looks every one and a
/// half heartbeats, so a killed leader is replaced within 2 × 150 + 75 ms and an election.
pub const HEARTBEAT: Duration = Duration::from_millis(50);
/// Also the deadline of a vote request: longer than a bad disk sync and a round trip.
pub const ELECTION_TIMEOUT_MIN: Duration = Duration::from_millis(100);
/// See [`HEARTBEAT`].
pub const ELECTION_TIMEOUT_MAX: Duration = Duration::from_millis(150);

/// A member is in touch with the quorum when it heard of it this recently.
pub(crate) const QUORUM_RECENT: Duration = Duration::from_secs(5);
/// A leader that its quorum has not answered for so long may have a successor, whose decisions it does not know:
/// twenty heartbeats, and longer than an election takes.
const LEADERSHIP_RECENT: Duration = Duration::from_secs(1);
/// How long a member that ends waits for its own tasks and for the database.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// How long the first leader of a new cluster may take to elect itself.
const BOOTSTRAP_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// What only this member knows of itself; asked for by `MemberStatus`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalFacts {
    /// Whether it takes mail.
    pub ready: bool,
    /// Why not.
    pub reason: String,
    /// Open SMTP sessions.
    pub sessions: u64,
    /// Letters in the spool.
    pub queued: u64,
    /// The version it runs.
    pub version: String,
}

/// Answers [`LocalFacts`].
pub type LocalFactsFn = Arc<dyn Fn() -> LocalFacts + Send + Sync>;
/// Answers the cluster's data key.
pub type DataKeyFn = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;

/// How a member takes part.
#[derive(Clone)]
pub struct RaftOptions {
    /// A directory of its own: holds `db/` (the database) and `snapshots/`.
    pub data_dir: PathBuf,
    /// Never reused within a cluster.
    pub node_id: u64,
    /// As in its certificate.
    pub node_name: String,
    /// Members of other clusters are refused by it.
    pub cluster_id: String,
    /// Between two heartbeats; also the deadline of one replication message.
    pub heartbeat: Duration,
    /// An election timeout is drawn once per start, between this and the maximum.
    pub election_timeout_min: Duration,
    /// See `election_timeout_min`.
    pub election_timeout_max: Duration,
    /// Reaches the others.
    pub dialer: Arc<dyn Dial>,
    /// What only this member knows.
    pub local_facts: LocalFactsFn,
    /// The data key, for joining voters.
    pub data_key: DataKeyFn,
}

/// How much log is kept. Administrators change little: these are days of work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogLimits {
    /// Entries between two snapshots.
    pub(crate) snapshot_every: u64,
    /// Entries kept behind a snapshot, so that a member that was away for a moment needs no snapshot.
    pub(crate) entries_kept: u64,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { snapshot_every: 5000, entries_kept: 1000 }
    }
}

/// Why a member cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// Its store cannot be used. Ours, lasting.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The times make no sense together. Theirs.
    #[error("raft configuration: {0}")]
    Config(String),
    /// The core has stopped. Ours, lasting.
    #[error("raft has stopped: {0}")]
    Stopped(String),
    /// There is a log already: this node belongs to a cluster.
    #[error("this node already belongs to a cluster")]
    AlreadyInitialised,
    /// The first leader did not elect itself in time.
    #[error("the first election did not end within {}s", BOOTSTRAP_DEADLINE.as_secs())]
    NoElection,
}

/// How the group is, as this member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// This member.
    pub node_id: u64,
    /// Who leads, as far as known.
    pub leader: Option<u64>,
    /// Whether that one is heard, or, when it is this member, whether its quorum still follows.
    pub has_leader: bool,
    /// Its name.
    pub leader_name: Option<String>,
    /// The current term.
    pub term: u64,
    /// Index of the last entry applied here; 0 before the first.
    pub last_applied: u64,
    /// Index of the last entry of our own log.
    pub last_log: u64,
    /// `leader`, `follower`, `candidate`, `learner` or `stopped`.
    pub state: &'static str,
    /// Who votes.
    pub voters: Vec<u64>,
    /// Who only receives the log.
    pub learners: Vec<u64>,
    /// Whether, within the last five seconds, a quorum acknowledged this leader, or this follower heard its leader.
    pub has_quorum_recently: bool,
    /// Why the core has stopped for good: broken storage, or a command of a newer version.
    pub failed: Option<String>,
    /// Whether what the leader says is committed is applied here.
    pub progress: Progress,
}

impl RaftStatus {
    /// Whether this member leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader == Some(self.node_id) && self.state == "leader"
    }
}

/// The way to the Raft group. Clones share it.
#[derive(Clone)]
pub struct RaftHandle {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) raft: Raft,
    pub(crate) node_id: u64,
    pub(crate) node_name: String,
    pub(crate) cluster_id: String,
    pub(crate) peers: Peers,
    pub(crate) local_facts: LocalFactsFn,
    pub(crate) data_key: DataKeyFn,
    /// One snapshot is received at a time.
    pub(crate) incoming: Semaphore,
    view: watch::Receiver<Arc<StateView>>,
    /// When a leader was last heard.
    heard: Mutex<Option<Instant>>,
    lag: Mutex<Lag>,
    store: Weak<Store>,
    scope: Scope,
}

impl std::fmt::Debug for RaftHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RaftHandle({})", self.inner.node_name)
    }
}

fn config(options: &RaftOptions, limits: LogLimits) -> Result<Config, RaftError> {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: options.cluster_id.clone(),
        heartbeat_interval: ms(options.heartbeat),
        election_timeout_min: ms(options.election_timeout_min),
        election_timeout_max: ms(options.election_timeout_max),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(limits.snapshot_every),
        max_in_snapshot_log_to_keep: limits.entries_kept,
        // Further behind than a snapshot and what is kept behind it, the snapshot is the shorter way.
        replication_lag_threshold: limits.snapshot_every.saturating_add(limits.entries_kept),
        ..Config::default()
    }
    .validate()
    .map_err(|error| RaftError::Config(error.to_string()))
}

impl RaftHandle {
    /// Opens the member's store and starts taking part. With `scope` it stops counting and changing the membership;
    /// it takes part until [`RaftHandle::shutdown`].
    ///
    /// # Errors
    /// When the options make no sense or the store cannot be used.
    pub async fn open(options: RaftOptions, scope: &Scope) -> Result<Self, RaftError> {
        Self::open_with(options, LogLimits::default(), scope).await
    }

    pub(crate) async fn open_with(options: RaftOptions, limits: LogLimits, scope: &Scope) -> Result<Self, RaftError> {
        let config = Arc::new(config(&options, limits)?);
        let (data_dir, cluster_id, node_id) = (options.data_dir.clone(), options.cluster_id.clone(), options.node_id);
        let (store, machine, view) = run_blocking(move || {
            let store = Store::open(&data_dir.join("db"), &cluster_id, node_id)?;
            let (machine, view) = StateMachine::open(Arc::clone(&store), &data_dir.join("snapshots"))?;
            Ok::<_, StoreError>((store, machine, view))
        })
        .await?;
        let peers = Peers::new(Arc::clone(&options.dialer), options.node_id, &options.cluster_id, options.heartbeat);
        let weak = Arc::downgrade(&store);
        let stopped = |error: &dyn std::fmt::Display| RaftError::Stopped(error.to_string());
        let mut log = LogStore::new(store);
        log.lead_no_more(options.node_id).await.map_err(|error| stopped(&error))?;
        let raft =
            Raft::new(options.node_id, config, peers.clone(), log, machine).await.map_err(|error| stopped(&error))?;
        let scope = scope.child();
        let handle = Self {
            inner: Arc::new(Inner {
                raft,
                node_id: options.node_id,
                node_name: options.node_name,
                cluster_id: options.cluster_id,
                peers,
                local_facts: options.local_facts,
                data_key: options.data_key,
                incoming: Semaphore::new(1),
                view,
                heard: Mutex::new(None),
                lag: Mutex::new(Lag::new(Instant::now())),
                store: weak,
                scope: scope.clone(),
            }),
        };
        scope.spawn_until_ended(metrics::watch(handle.clone()));
        scope.spawn_until_ended(membership::reconcile(handle.clone()));
        Ok(handle)
    }

    /// Makes this node the first voter of a new cluster, and returns when it leads.
    ///
    /// # Errors
    /// When it already belongs to one, or the core has stopped.
    pub async fn bootstrap(&self, name: &str, address: &str) -> Result<(), RaftError> {
        let node = RaftNode { address: address.to_owned(), name: name.to_owned() };
        let members = std::collections::BTreeMap::from([(self.inner.node_id, node)]);
        self.inner.raft.initialize(members).await.map_err(|error| match error {
            CoreError::APIError(InitializeError::NotAllowed(_)) => RaftError::AlreadyInitialised,
            error => RaftError::Stopped(error.to_string()),
        })?;
        let deadline = Instant::now() + BOOTSTRAP_DEADLINE;
        while !self.status().is_leader() {
            if Instant::now() >= deadline {
                return Err(RaftError::NoElection);
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// The published state, and word of each change to it.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<Arc<StateView>> {
        self.inner.view.clone()
    }

    pub(crate) fn current_view(&self) -> Arc<StateView> {
        Arc::clone(&self.inner.view.borrow())
    }

    /// This member's id.
    #[must_use]
    pub fn node_id(&self) -> u64 {
        self.inner.node_id
    }

    /// This member's name.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.inner.node_name
    }

    /// Tells of another leader as soon as this member knows of it.
    pub(super) fn leadership(&self) -> metrics::Leadership {
        metrics::Leadership { metrics: self.inner.raft.metrics(), known: None }
    }

    /// How the group is, as this member sees it.
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let acked_within = |limit| metrics.millis_since_quorum_ack.is_some_and(|ms| Duration::from_millis(ms) <= limit);
        let recent = match metrics.state {
            ServerState::Leader => acked_within(QUORUM_RECENT),
            ServerState::Follower | ServerState::Learner => {
                metrics.current_leader.is_some() && self.heard_within(QUORUM_RECENT)
            }
            ServerState::Candidate | ServerState::Shutdown => false,
        };
        let failed = match &metrics.running_state {
            Ok(()) | Err(Fatal::Stopped) => None,
            Err(error) => Some(error.to_string()),
        };
        let applied = metrics.last_applied.map_or(0, |id| id.index);
        let follows = matches!(metrics.state, ServerState::Follower | ServerState::Learner);
        // openraft's leader names itself for as long as nobody tells it otherwise, and a learner its last leader.
        let has_leader = metrics.current_leader.is_some()
            && match metrics.state {
                ServerState::Leader => acked_within(LEADERSHIP_RECENT),
                ServerState::Learner => self.heard_within(LEADERSHIP_RECENT),
                ServerState::Follower | ServerState::Candidate | ServerState::Shutdown => true,
            };
        let progress = {
            let mut lag = self.inner.lag.lock().unwrap_or_else(PoisonError::into_inner);
            match metrics.state {
                ServerState::Leader if has_leader => lag.leads(Instant::now()),
                _ if follows && metrics.current_leader.is_some() => {
                    lag.follows(applied, self.heard_within(QUORUM_RECENT), Instant::now())
                }
                _ => lag.unled(Instant::now()),
            }
        };
        RaftStatus {
            progress,
            node_id: self.inner.node_id,
            leader: metrics.current_leader,
            has_leader,
            leader_name: metrics.current_leader.and_then(|id| membership.get_node(&id)).map(|node| node.name.clone()),
            term: metrics.current_term,
            last_applied: applied,
            last_log: metrics.last_log_index.unwrap_or(0),
            state: if metrics.running_state.is_err() {
                "stopped"
            } else {
                match metrics.state {
                    ServerState::Leader => "leader",
                    ServerState::Follower => "follower",
                    ServerState::Candidate => "candidate",
                    ServerState::Learner => "learner",
                    ServerState::Shutdown => "stopped",
                }
            },
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            has_quorum_recently: recent && metrics.running_state.is_ok(),
            failed,
        }
    }

    /// Notes that a leader was heard just now, and how far it says the log is committed.
    pub(crate) fn heard_leader(&self, committed: Option<u64>) {
        if let Some(committed) = committed {
            self.inner.lag.lock().unwrap_or_else(PoisonError::into_inner).told(committed);
        }
        *self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn heard_within(&self, limit: Duration) -> bool {
        let heard = *self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.is_some_and(|at| at.elapsed() <= limit)
    }

    /// The address and name of a member of the Raft group.
    pub(crate) fn node(&self, id: u64) -> Option<RaftNode> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        metrics.membership_config.membership().get_node(&id).cloned()
    }

    /// Writes to our own core, which was seen to lead just before.
    pub(crate) async fn write(&self, command: Vec<u8>, deadline: Instant) -> Result<Written, WriteError> {
        let write = self.inner.raft.client_write(Proposal(command));
        match tokio::time::timeout_at(deadline, write).await {
            Err(_) => Err(WriteError::Unknown),
            Ok(Ok(done)) => match done.data.0 {
                Some(outcome) => Ok(Written { revision: done.log_id.index, outcome }),
                None => Err(WriteError::Unknown),
            },
            // Refused at once, or written here and then truncated by the next leader: openraft does not say which,
            // and a truncated entry may still live on a third member.
            Ok(Err(CoreError::APIError(ClientWriteError::ForwardToLeader(_)))) => Err(WriteError::Unknown),
            Ok(Err(CoreError::APIError(error))) => Err(WriteError::Stopped(error.to_string())),
            Ok(Err(CoreError::Fatal(error))) => Err(WriteError::Stopped(error.to_string())),
        }
    }

    /// Waits until the published state has reached `revision`, at most `timeout`. Answers the revision it has.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn await_published(&self, revision: u64, timeout: Duration) -> u64 {
        let mut view = self.view();
        let reached = tokio::time::timeout(timeout, view.wait_for(|view| view.revision >= revision)).await;
        match reached {
            Ok(Ok(view)) => view.revision,
            // Timed out, or the publisher is gone.
            Ok(Err(_)) | Err(_) => self.inner.view.borrow().revision,
        }
    }

    /// Stops taking part and returns when the database is closed, or after five seconds.
    pub async fn shutdown(&self) {
        self.inner.scope.end();
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "the raft core ended badly");
        }
        let deadline = Instant::now() + SHUTDOWN_DEADLINE;
        if !self.inner.scope.join(SHUTDOWN_DEADLINE).await {
            tracing::warn!("raft tasks did not end in time");
        }
        // The core's workers let go of the store in their own time; whoever reopens it needs its lock.
        while self.inner.store.strong_count() > 0 {
            if Instant::now() >= deadline {
                tracing::warn!("the raft database was not closed in time");
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// A change that our own core committed.
pub(crate) struct Written {
    pub(crate) revision: u64,
    pub(crate) outcome: crate::state::Outcome,
}

/// Why our own core did not commit a change.
pub(crate) enum WriteError {
    /// It may still happen.
    Unknown,
    /// It will not, and nothing else will either.
    Stopped(String),
}
