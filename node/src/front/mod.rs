//! The front: a health-checked TCP proxy on the address that devices know. It accepts, picks a node that is well,
//! says in a signed PROXY header whose connection this is, and copies bytes. It has never heard of mail, with one
//! exception: SMTP servers speak first, so a node that does not is replaced before the device has heard anything.
//! It imports no mail, no state and no raft.

mod alarm;
mod backend;
mod balance;
mod check;
mod config;
mod dial;
mod forward;
mod handover;
mod hello;
mod idle;
pub mod metrics_names;
mod open_files;
mod orders;
mod patience;
mod pipes;
mod pool;
mod pump;
mod search;
mod sources;
mod status;
mod tasks;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use posthouse_proto::v1::WatchRequest;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tracing::{info, warn};

pub use balance::Algorithm;
pub use config::{CheckSection, FrontConfig, FrontSection, LimitsSection, ListenSection};
pub use handover::{Handover, HandoverError, Inherited, Predecessor, take_over, until_succeeded};
pub use orders::KeepKey;
pub use status::{BackendStatus, FrontStatus, ListenerStatus};
pub use watch::Dial;

use crate::proxy_protocol::FrontKey;
use crate::shutdown::Scope;
use dial::Outward;
use forward::{Forwarder, ServiceSocket};
use orders::Orders;
use patience::Patience;
use pool::Pool;
use watch::Watching;

/// Everything that a front is made of.
pub struct FrontOptions {
    /// The front file.
    pub config: FrontConfig,
    /// Signs its PROXY headers.
    pub key: FrontKey,
    /// Reaches nodes.
    pub dial: Arc<dyn Dial>,
    /// Members (name, or nothing, and RPC address) to ask when no backend is known yet.
    pub seeds: Vec<(String, String)>,
    /// Keeps a new signing key across restarts.
    pub keep_key: KeepKey,
    /// Sockets of the process before this one, which are used instead of binding new ones.
    pub inherited: Inherited,
}

/// Why a front cannot run.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// Theirs: the address is taken, or not ours.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Theirs: the data directory cannot be made.
    #[error("{path}: cannot be made: {source}", path = path.display())]
    DataDir {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The kernel cuts this down to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// How often the front looks whether something has been wrong for a while.
const ALARM_INTERVAL: Duration = Duration::from_millis(500);
/// Sessions that were cut at the drain deadline have so long to be dropped.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// A front whose sockets are bound and which does not accept yet.
pub struct Front {
    config: FrontConfig,
    watching: Arc<Watching>,
    outward: Arc<Outward>,
    sockets: Vec<(TcpListener, ServiceSocket)>,
    sessions: Scope,
    handle: FrontHandle,
}

/// Asks a front how it is. Clones ask the same front.
#[derive(Clone)]
pub struct FrontHandle {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    pool: Arc<Pool>,
    forwarder: Arc<Forwarder>,
    listeners: Vec<(SocketAddr, u16)>,
    orders: Arc<Orders>,
    is_draining: AtomicBool,
    is_succeeded: Arc<AtomicBool>,
}

impl FrontHandle {
    /// Another process of this front serves now and speaks for it: this one says nothing more to the cluster, and
    /// whoever still asks it hears how the front is, not how this process is.
    pub fn was_succeeded(&self) {
        self.shared.is_succeeded.store(true, Ordering::Release);
    }

    /// How the front is now.
    #[must_use]
    pub fn status(&self) -> FrontStatus {
        let shared = &self.shared;
        let listeners: Vec<_> = shared
            .listeners
            .iter()
            .map(|(address, port)| ListenerStatus { address: address.to_string(), service_port: *port })
            .collect();
        let backends = shared.pool.status();
        let stopping = shared.is_draining.load(Ordering::Relaxed) && !shared.is_succeeded.load(Ordering::Acquire);
        let drained = shared.orders.is_draining();
        let mut reasons = status::unserved(&listeners, &backends);
        if stopping {
            reasons.insert(0, "draining: the front is stopping".to_owned());
        } else if drained {
            reasons.insert(0, "draining: an administrator drains this front".to_owned());
        }
        FrontStatus {
            name: shared.name.clone(),
            ready: reasons.is_empty(),
            reasons,
            draining: stopping || drained,
            sessions: shared.forwarder.sessions(),
            signing_key_id: shared.orders.key_id(),
            revision: shared.pool.known().borrow().revision,
            warnings: status::stale(&listeners, &backends),
            listeners,
            backends,
        }
    }

    /// Where devices connect: bound address and service port. Useful when a port was left to the kernel.
    #[must_use]
    pub fn listeners(&self) -> Vec<(SocketAddr, u16)> {
        self.shared.listeners.clone()
    }
}

impl Front {
    /// Reads the last known backends and binds every socket. Nothing is accepted before [`Front::run`].
    ///
    /// # Errors
    /// When the data directory or a socket cannot be had.
    pub async fn bind(options: FrontOptions) -> Result<Self, FrontError> {
        let FrontOptions { config, key, dial, seeds, keep_key, mut inherited } = options;
        metrics_names::register();
        open_files::raise(&config.limits);
        let data_dir = config.front.data_dir.clone();
        tokio::fs::create_dir_all(&data_dir)
            .await
            .map_err(|source| FrontError::DataDir { path: data_dir.clone(), source })?;
        let patience = Patience::new(config.check.banner_timeout, config.check.banner_timeout_max);
        let pool = Arc::new(Pool::new(config.check.policy(), config.front.balance, config.check.slowstart, patience));
        if let Some(set) = watch::load(watch::known_path(&data_dir)).await {
            info!(revision = set.revision, backends = set.backends.len(), "last known backends read");
            pool.restore(set);
        }
        let mut sockets = Vec::new();
        let mut listeners = Vec::new();
        for section in &config.listen {
            let failed = |source| FrontError::Listen { address: section.address, source };
            let listener = match inherited.take(section.address) {
                Some(listener) => listener,
                None => listen(section.address),
            };
            let listener = listener.map_err(failed)?;
            metrics_names::register_service(section.service());
            listeners.push((listener.local_addr().map_err(failed)?, section.service()));
            let socket = ServiceSocket { port: section.service(), implicit_tls: section.is_implicit_tls() };
            sockets.push((listener, socket));
        }
        let outward = Arc::new(Outward::new(key, &config));
        let sessions = Scope::new();
        let forwarder = Arc::new(Forwarder::new(Arc::clone(&pool), Arc::clone(&outward), &config, sessions.clone()));
        let request = WatchRequest {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source_addresses: config.front.dial_from.iter().map(ToString::to_string).collect(),
            http_address: config.front.http.to_string(),
            signing_key_id: String::new(),
        };
        let name = config.front.name.clone();
        let is_succeeded = Arc::new(AtomicBool::new(false));
        let orders = Arc::new(Orders::new(name.clone(), Arc::clone(&outward), keep_key));
        let shared = Shared {
            name,
            pool: Arc::clone(&pool),
            forwarder,
            listeners,
            orders: Arc::clone(&orders),
            is_draining: AtomicBool::new(false),
            is_succeeded: Arc::clone(&is_succeeded),
        };
        let handle = FrontHandle { shared: Arc::new(shared) };
        let reporting = handle.clone();
        let report = Arc::new(move || reporting.status().report());
        let silence = watch::SILENCE;
        let watching = Arc::new(Watching { pool, dial, seeds, request, silence, orders, report, is_succeeded });
        Ok(Self { config, watching, outward, sockets, sessions, handle })
    }

    /// Adds the sockets for devices to those that a successor is given.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn add_to(&self, handover: &mut Handover) -> std::io::Result<()> {
        for (section, (listener, _)) in self.config.listen.iter().zip(&self.sockets) {
            handover.add_listen(section.address, listener)?;
        }
        Ok(())
    }

    /// Asks this front how it is, also while it runs.
    #[must_use]
    pub fn handle(&self) -> FrontHandle {
        self.handle.clone()
    }

    /// Serves devices until `scope` ends; then accepts nothing more and lets open sessions finish, at most
    /// `front.drain_timeout`.
    pub async fn run(self, scope: &Scope) {
        let Self { config, watching, outward, sockets, sessions, handle } = self;
        let shared = &handle.shared;
        // What keeps the pool true outlives the accepting: devices that are being placed still need it.
        let background = Scope::new();
        let known_path = watch::known_path(&config.front.data_dir);
        // Subscribed before anybody can learn anything: what is there now came from the file, if from anywhere.
        background.spawn(watch::persist(shared.pool.known(), known_path, background.clone()));
        background.spawn(check::run(Arc::clone(&shared.pool), outward, config.check.clone(), background.clone()));
        background.spawn(watch::run(watching, background.clone()));
        background.spawn(Arc::clone(&shared.forwarder.idle).sweep(background.clone()));
        let alarmed = Arc::clone(&shared.pool);
        background.spawn_until_ended(async move {
            loop {
                tokio::time::sleep(ALARM_INTERVAL).await;
                alarmed.say_alarms();
            }
        });
        let accepting = scope.child();
        for (listener, service) in sockets {
            accepting.spawn(Arc::clone(&shared.forwarder).accept(listener, service, accepting.clone()));
        }
        for (address, service) in &shared.listeners {
            info!(%address, service, "listening for devices");
        }
        scope.ended().await;
        shared.is_draining.store(true, Ordering::Relaxed);
        accepting.join(CUT_TIMEOUT).await;
        info!(sessions = shared.forwarder.sessions(), "front drains");
        if !sessions.join(config.front.drain_timeout).await {
            warn!(sessions = shared.forwarder.sessions(), "drain deadline passed, sessions are cut");
            sessions.end();
            sessions.join(CUT_TIMEOUT).await;
        }
        background.end();
        background.join(CUT_TIMEOUT).await;
    }
}

/// Binds one socket for devices. An IPv6 wildcard does not take IPv4 too: each family is listed by itself.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
