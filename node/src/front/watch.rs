//! What the cluster tells this front: one stream to every node it knows. The newest revision wins for the set of
//! backends; a node's own readiness comes only from its own stream. The last set is kept on disk, so that a front
//! starts without the cluster.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use posthouse_proto::v1::front_link_client::FrontLinkClient;
use posthouse_proto::v1::{FrontReport, FrontView, WatchRequest};
use rand::Rng;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tracing::{debug, info, warn};

use super::backend::Readiness;
use super::check::CheckFailure;
use super::orders::Orders;
use super::pool::{Known, KnownSet, Pool, Service};
use super::tasks::Tasks;
use crate::shutdown::{Scope, run_blocking};

/// Makes channels to nodes. A channel connects when it is first used, proves that the other side is `node` (any member
/// when the name is empty), and finds out by itself when the other side has gone silent.
pub trait Dial: Send + Sync {
    /// A channel to `node` at `address` (`host:port`).
    fn channel(&self, address: &str, node: &str) -> Channel;
}

/// A node's first word on a new stream.
const FIRST_VIEW_TIMEOUT: Duration = Duration::from_secs(3);
/// Pauses between two tries grow from the first to the second.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// More backends than a cluster can have are a mistake of whoever says so.
const BACKENDS_MAX: usize = 1024;

/// What the watching needs.
pub(super) struct Watching {
    pub pool: Arc<Pool>,
    pub dial: Arc<dyn Dial>,
    /// Addresses at which members were found once: from joining.
    pub seeds: Vec<(String, String)>,
    pub request: WatchRequest,
    /// A node whose stream says nothing for so long is silent.
    pub silence: Duration,
    /// What the cluster wants of this front.
    pub orders: Arc<Orders>,
    /// How this front is, for the nodes.
    pub report: Arc<dyn Fn() -> FrontReport + Send + Sync>,
    /// Another process of this front reports now.
    pub is_succeeded: Arc<AtomicBool>,
}

/// Four of a node's heartbeats.
pub(super) const SILENCE: Duration = Duration::from_secs(1);
/// How often a front says how it is.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// How long a node may take to hear it.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Keeps the streams until `scope` ends.
pub(super) async fn run(watching: Arc<Watching>, scope: Scope) {
    let mut known = watching.pool.known();
    let mut tasks = Tasks::new(&scope);
    loop {
        let set = Arc::clone(&known.borrow_and_update());
        let targets = targets(&set, &watching.seeds);
        tasks.reconcile(targets.into_iter().map(|(node, address)| join(&node, &address)), |target| {
            let (node, address) = split(target);
            let (watched, reported) = (Arc::clone(&watching), Arc::clone(&watching));
            async move {
                let report = report_forever(reported, node.clone(), address.clone());
                tokio::join!(watch_forever(watched, node, address), report);
            }
        });
        tokio::select! {
            () = scope.ended() => return,
            changed = known.changed() => if changed.is_err() { return },
        }
    }
}

/// Every known node by name, and every seed that is none of them: all nodes may have moved since they were known.
fn targets(set: &KnownSet, seeds: &[(String, String)]) -> Vec<(String, String)> {
    let mut targets: Vec<_> = set
        .backends
        .iter()
        .filter(|backend| !backend.rpc_address.is_empty())
        .map(|backend| (backend.node.clone(), backend.rpc_address.clone()))
        .collect();
    for (node, address) in seeds {
        if !targets.iter().any(|(name, at)| at == address || (!node.is_empty() && name == node)) {
            targets.push((node.clone(), address.clone()));
        }
    }
    targets
}

/// A task is known by name and address: a node that moved gets a new stream.
fn join(node: &str, address: &str) -> String {
    format!("{node} {address}")
}

fn split(target: &str) -> (String, String) {
    let (node, address) = target.split_once(' ').unwrap_or(("", target));
    (node.to_owned(), address.to_owned())
}

async fn watch_forever(watching: Arc<Watching>, node: String, address: String) {
    let _silence = SilenceOnEnd { pool: Arc::clone(&watching.pool), node: node.clone() };
    let mut backoff = BACKOFF_MIN;
    loop {
        let (had_view, error) = watch_once(&watching, &node, &address).await;
        if had_view {
            backoff = BACKOFF_MIN;
            info!(backend = %node, address, error, "stream of a node ended");
            watching.pool.node_said(&node, Readiness::Unknown);
            // The checks must agree before it is down, but a node that dies usually shows it here first.
            watching.pool.failed(&node, &CheckFailure::Stream(error));
            watching.pool.check_soon(&node);
        } else {
            debug!(backend = %node, address, error, "node's stream cannot be had");
        }
        sleep(jittered(backoff)).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Says how this front is, again and again. Nobody depends on it but the administrator who asks.
async fn report_forever(watching: Arc<Watching>, node: String, address: String) {
    let mut client = FrontLinkClient::new(watching.dial.channel(&address, &node));
    loop {
        sleep(jittered(REPORT_INTERVAL)).await;
        if watching.is_succeeded.load(Ordering::Acquire) {
            return;
        }
        let report = (watching.report)();
        if let Ok(Err(status)) = timeout(REPORT_TIMEOUT, client.report(report)).await {
            debug!(backend = %node, error = status.message(), "this front's report was not heard");
        }
    }
}

/// So that several fronts do not come back in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.8..1.2))
}

/// A node that is no longer watched has no readiness of its own.
struct SilenceOnEnd {
    pool: Arc<Pool>,
    node: String,
}

impl Drop for SilenceOnEnd {
    fn drop(&mut self) {
        self.pool.node_said(&self.node, Readiness::Unknown);
    }
}

/// Reads one stream to its end. Answers whether it said anything, and why it ended.
async fn watch_once(watching: &Watching, node: &str, address: &str) -> (bool, String) {
    let mut client = FrontLinkClient::new(watching.dial.channel(address, node));
    let request = WatchRequest { signing_key_id: watching.orders.key_id(), ..watching.request.clone() };
    let open = client.watch(request);
    let mut stream = match timeout(FIRST_VIEW_TIMEOUT, open).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return (false, status.to_string()),
        Err(_) => return (false, "no answer".to_owned()),
    };
    let mut had_view = false;
    loop {
        let patience = if had_view { watching.silence } else { FIRST_VIEW_TIMEOUT };
        let Ok(next) = timeout(patience, stream.message()).await else {
            return (had_view, format!("nothing in {} ms", patience.as_millis()));
        };
        match next {
            Ok(Some(view)) => {
                had_view = true;
                watching.orders.take(&view).await;
                take(&watching.pool, node, view);
            }
            Ok(None) => return (had_view, "closed".to_owned()),
            Err(status) => return (had_view, status.message().to_owned()),
        }
    }
}

/// Takes one view that came from `node`; from a seed without a name only its set is taken.
fn take(pool: &Pool, node: &str, view: FrontView) {
    let readiness = if !view.ready {
        Readiness::NotReady { reason: view.reason.clone(), refuses: view.refuses }
    } else {
        Readiness::Ready { has_leader: view.has_leader }
    };
    let said_by = view.node.clone();
    if let Some(set) = known_set(view) {
        pool.learn(set);
    }
    // The certificate was checked against `node`: nobody else may speak for it.
    if !node.is_empty() && said_by == node {
        pool.node_said(node, readiness);
    }
}

/// Nothing for a node that belongs to no cluster yet.
fn known_set(view: FrontView) -> Option<KnownSet> {
    if view.cluster_id.is_empty() || view.backends.len() > BACKENDS_MAX {
        return None;
    }
    let backends = view.backends.into_iter().filter(|backend| !backend.node.is_empty());
    let backends = backends.map(|backend| Known {
        node: backend.node,
        state: backend.state,
        rpc_address: backend.rpc_address,
        weight: backend.weight.max(1),
        services: backend
            .services
            .into_iter()
            .filter_map(|service| {
                let port = u16::try_from(service.port).ok()?;
                Some(Service { port, address: service.address, implicit_tls: service.implicit_tls })
            })
            .collect(),
    });
    Some(KnownSet { cluster_id: view.cluster_id, revision: view.revision, backends: backends.collect() })
}

/// Where the last set is kept.
pub(super) fn known_path(data_dir: &Path) -> PathBuf {
    data_dir.join("backends.json")
}

/// Reads the last set; nothing when there is none, or none that can be read: the cluster will say it again.
pub(super) async fn load(path: PathBuf) -> Option<KnownSet> {
    run_blocking(move || {
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(path = %path.display(), %error, "last known backends cannot be read");
                return None;
            }
        };
        match serde_json::from_slice(&text) {
            Ok(set) => Some(set),
            Err(error) => {
                warn!(path = %path.display(), %error, "last known backends cannot be read");
                None
            }
        }
    })
    .await
}

/// Writes every new set, until `scope` ends.
pub(super) async fn persist(mut known: watch::Receiver<Arc<KnownSet>>, path: PathBuf, scope: Scope) {
    loop {
        tokio::select! {
            () = scope.ended() => return,
            changed = known.changed() => if changed.is_err() { return },
        }
        let set = Arc::clone(&known.borrow_and_update());
        let path = path.clone();
        let written = run_blocking(move || store(&path, &set)).await;
        if let Err(error) = written {
            warn!(%error, "last known backends cannot be written");
        }
    }
}

/// Whole or not at all: written beside, synced, and renamed.
fn store(path: &Path, set: &KnownSet) -> std::io::Result<()> {
    let beside = path.with_extension("json.new");
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(&serde_json::to_vec_pretty(set)?)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests;
