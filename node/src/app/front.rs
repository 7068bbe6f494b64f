//! A front: joins when told to, then proxies until told to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use posthouse_proto::v1::{self, local_server::LocalServer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Server;

use super::node::make_data_dir;
use super::{AppError, bootstrap};
use crate::admin::{Lifecycle, LocalService, bind_local, failure, http::Pages, serve_local};
use crate::front::{
    Front as Proxy, FrontConfig, FrontHandle, FrontOptions, Handover, Inherited, Predecessor, take_over,
    until_succeeded,
};
use crate::pki::{Identity, IdentityRole};
use crate::proxy_protocol::FrontKey;
use crate::shutdown::{Scope, run_blocking};
use crate::tls::Dialer;

/// How long the edges may take to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a front that takes over may take to see its backends well.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);
const SETTLE_INTERVAL: Duration = Duration::from_millis(20);

/// What comes from the process before, and goes to the one after.
struct Succession {
    inherited: Inherited,
    predecessor: Option<(Predecessor, Answering)>,
    handover: Handover,
}

/// Begins to answer on `/readyz` and the local socket.
type Answering = Box<dyn FnOnce() + Send>;

/// A front, before and after it has joined.
struct Front {
    config: FrontConfig,
    lifecycle: tokio::sync::Mutex<()>,
    joined: watch::Sender<Option<Arc<Identity>>>,
    running: OnceLock<FrontHandle>,
    /// Whether the sockets in the file system are this process's: not while a process before it still serves, and not
    /// any more when one after it does.
    owns_sockets: AtomicBool,
}

/// Runs a front until a signal ends it.
///
/// # Errors
/// When it cannot start.
pub async fn run_front(
    config: FrontConfig,
    takeover: bool,
    metrics: PrometheusHandle,
    scope: Scope,
) -> Result<(), AppError> {
    make_data_dir(&config.front.data_dir)?;
    let data_dir = config.front.data_dir.clone();
    let mut inherited = if takeover { take_over(&data_dir).await? } else { Inherited::default() };
    let predecessor = inherited.take_predecessor();
    let http_address = config.front.http.to_string();
    let http = match inherited.take_http() {
        Some(http) => http,
        None => TcpListener::bind(config.front.http).await,
    };
    let http = http.map_err(|source| AppError::Bind { what: "http", address: http_address, source })?;
    let socket = config.front.socket();
    let local = inherited.take_local().unwrap_or_else(|| bind_local(&socket)).map_err(|source| AppError::Bind {
        what: "local socket",
        address: socket.display().to_string(),
        source,
    })?;
    let mut handover = Handover::new(&data_dir);
    handover.add_http(&http).and_then(|()| handover.add_local(&local)).map_err(|source| AppError::Bind {
        what: "handover socket",
        address: data_dir.display().to_string(),
        source,
    })?;
    let front = Arc::new(Front {
        config,
        lifecycle: tokio::sync::Mutex::new(()),
        joined: watch::Sender::new(None),
        running: OnceLock::new(),
        owns_sockets: AtomicBool::new(predecessor.is_none()),
    });
    let edges = Scope::new();
    // Ends as soon as a successor serves: this process must not answer for the front any more.
    let answering = edges.child();
    let own_uid = rustix::process::geteuid().as_raw();
    let router = Server::builder().add_service(LocalServer::new(LocalService::new(Arc::clone(&front), own_uid)));
    let pages = pages(&front, metrics);
    let (accepting, connections) = (answering.clone(), edges.clone());
    let answer: Answering = Box::new(move || {
        serve_local(local, router, &accepting);
        crate::admin::http::serve(http, pages, &accepting, &connections);
    });

    let dir = front.config.front.data_dir.clone();
    let found = run_blocking(move || Identity::load(&dir)).await?;
    // Two processes accept from the same queue: as long as the one before answers well, this one, which knows no
    // backend yet, must not answer.
    let predecessor = match predecessor {
        Some(predecessor) if found.is_some() => Some((predecessor, answer)),
        _ => {
            answer();
            None
        }
    };
    match found {
        Some(identity) => drop(front.joined.send_replace(Some(Arc::new(identity)))),
        None => tracing::warn!(
            front = %front.config.front.name,
            next_step = "on a member: posthousectl cluster join-token create --role front",
            then = "here: posthousectl front add --token TOKEN",
            socket = %socket.display(),
            "this front belongs to no cluster yet"
        ),
    }
    let mut joined = front.joined.subscribe();
    let identity = tokio::select! {
        found = joined.wait_for(Option::is_some) => found.ok().and_then(|found| found.clone()),
        () = scope.ended() => None,
    };
    let succession = Succession { inherited, predecessor, handover };
    let result = match identity {
        Some(identity) => Arc::clone(&front).proxy(identity, succession, &scope, &edges, &answering).await,
        None => Ok(()),
    };
    edges.end();
    edges.join(CLOSE_TIMEOUT).await;
    answering.join(CLOSE_TIMEOUT).await;
    // Unless the process before or after this one answers on it.
    if front.owns_sockets.load(Ordering::Acquire) {
        let _ = std::fs::remove_file(socket);
    }
    tracing::info!("stopped");
    result
}

fn pages(front: &Arc<Front>, metrics: PrometheusHandle) -> Pages {
    let front = Arc::clone(front);
    Pages {
        metrics,
        readiness: Arc::new(move || match front.running.get() {
            Some(handle) => {
                let status = handle.status();
                (status.ready, status.verbose())
            }
            None => (false, "[-]front has not joined a cluster yet\nreadyz check failed\n".to_owned()),
        }),
        before_metrics: Arc::new(|| {}),
    }
}

impl Front {
    /// Proxies until `scope` ends or a successor serves, which ends `answering` first.
    async fn proxy(
        self: Arc<Self>,
        identity: Arc<Identity>,
        succession: Succession,
        scope: &Scope,
        edges: &Scope,
        answering: &Scope,
    ) -> Result<(), AppError> {
        let Succession { inherited, predecessor, mut handover } = succession;
        let (dir, key_id) = (self.config.front.data_dir.clone(), identity.front_key_id.clone());
        let key = run_blocking(move || Identity::load_front_key(&dir, &key_id)).await?;
        let dialer = Dialer::new(&identity)?;
        let (dir, owner) = (self.config.front.data_dir.clone(), Arc::clone(&identity));
        let options = FrontOptions {
            config: self.config.clone(),
            key: FrontKey { id: identity.front_key_id.clone(), front: identity.name.clone(), key },
            dial: Arc::new(dialer),
            seeds: identity.endpoints.iter().map(|address| (String::new(), address.clone())).collect(),
            keep_key: Arc::new(move |key| {
                owner.rotate_front_key(&dir, &key.id, &key.key).map_err(std::io::Error::other)
            }),
            inherited,
        };
        tracing::info!(cluster = %identity.cluster, "this front has joined");
        let proxy = Proxy::bind(options).await?;
        let handle = proxy.handle();
        let _ = self.running.set(handle.clone());
        proxy.add_to(&mut handover).map_err(|source| AppError::Bind {
            what: "handover socket",
            address: self.config.front.data_dir.display().to_string(),
            source,
        })?;
        // Not in the scope that ends: the successor is answered while this process drains.
        let (this, ended, answering) = (Arc::clone(&self), scope.clone(), answering.clone());
        edges.spawn_until_ended(async move {
            // Until this process serves, the one before it stays the one that a successor asks.
            let is_serving = tokio::select! {
                () = ended.ended() => false,
                () = succeed(predecessor, &handle) => true,
            };
            if !is_serving {
                return;
            }
            this.owns_sockets.store(true, Ordering::Release);
            let succeeded = || {
                this.owns_sockets.store(false, Ordering::Release);
                handle.was_succeeded();
                answering.end();
            };
            until_succeeded(handover, &ended, succeeded).await;
        });
        proxy.run(scope).await;
        Ok(())
    }
}

/// Answers for the front and tells the process before this one so, once this one knows which backends are well.
async fn succeed(predecessor: Option<(Predecessor, Answering)>, handle: &FrontHandle) {
    let Some((predecessor, answer)) = predecessor else { return };
    let until = Instant::now() + SETTLE_TIMEOUT;
    while !handle.status().ready && Instant::now() < until {
        tokio::time::sleep(SETTLE_INTERVAL).await;
    }
    answer();
    if let Err(error) = predecessor.serving().await {
        tracing::info!(%error, "the front before this one is gone already");
    }
}

#[tonic::async_trait]
impl Lifecycle for Front {
    fn local_status(&self) -> v1::LocalStatusReply {
        let joined = self.joined.borrow().clone();
        v1::LocalStatusReply {
            name: self.config.front.name.clone(),
            state: if joined.is_some() { "member" } else { "uninitialised" }.to_owned(),
            cluster: joined.as_ref().map(|identity| identity.cluster.clone()).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            next_step: if joined.is_some() {
                "posthousectl front list".to_owned()
            } else {
                "posthousectl front add --token TOKEN (made by: posthousectl cluster join-token create --role front)"
                    .to_owned()
            },
            kind: IdentityRole::Front.as_str().to_owned(),
            role: IdentityRole::Front.as_str().to_owned(),
        }
    }

    async fn init(&self, _request: v1::InitClusterRequest) -> Result<v1::InitClusterReply, Status> {
        Err(failure(
            8,
            "PH-FRONT-005",
            "a front cannot begin a cluster",
            "this is the local socket of a front; a cluster begins on a node",
            "posthousectl --socket /run/posthouse/node.sock cluster init",
        ))
    }

    async fn join(&self, request: v1::JoinClusterRequest) -> Result<v1::JoinClusterReply, Status> {
        let _one_at_a_time = self.lifecycle.lock().await;
        if self.joined.borrow().is_some() {
            return Err(failure(
                6,
                "PH-FRONT-006",
                "this front has joined already",
                "a front belongs to one cluster",
                "to start anew, stop it, remove it (posthousectl front remove) and empty its data directory",
            ));
        }
        let name = self.config.front.name.clone();
        let source_addresses = self.config.front.dial_from.iter().map(ToString::to_string).collect();
        let asked = v1::JoinRequest {
            name: name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source_addresses,
            http_address: self.config.front.http.to_string(),
            ..Default::default()
        };
        let bootstrap::Joined { reply, key_pem } = bootstrap::ask_to_join(&request.token, &["front"], asked).await?;
        let identity = Identity {
            cluster: reply.cluster.clone(),
            cluster_id: reply.cluster_id,
            name: name.clone(),
            role: IdentityRole::Front,
            node_id: 0,
            endpoints: reply.endpoints,
            front_key_id: reply.front_key_id,
            chain_pem: reply.certificate_pem,
            key_pem,
            ca_pem: reply.ca_pem,
        };
        let (dir, saved, front_key) = (self.config.front.data_dir.clone(), identity.clone(), reply.front_key);
        run_blocking(move || {
            Identity::save_front_key(&dir, &front_key)?;
            saved.save(&dir)
        })
        .await
        .map_err(|error| failure(9, "PH-NODE-009", "the identity cannot be kept", error, "see the front's log"))?;
        self.joined.send_replace(Some(Arc::new(identity)));
        Ok(v1::JoinClusterReply { cluster: reply.cluster, name, role: reply.role, revision: reply.revision })
    }
}
