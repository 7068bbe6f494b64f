//! A front: joins when told to, then proxies until told to stop.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use posthouse_proto::v1::{self, local_server::LocalServer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Server;

use super::node::make_data_dir;
use super::{AppError, bootstrap};
use crate::admin::{Lifecycle, LocalService, bind_local, failure, http::Pages, serve_local};
use crate::front::{Front as Proxy, FrontConfig, FrontHandle, FrontOptions};
use crate::pki::{Identity, IdentityRole};
use crate::proxy_protocol::FrontKey;
use crate::shutdown::{Scope, run_blocking};
use crate::tls::Dialer;

/// How long the edges may take to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A front, before and after it has joined.
struct Front {
    config: FrontConfig,
    lifecycle: tokio::sync::Mutex<()>,
    joined: watch::Sender<Option<Arc<Identity>>>,
    running: OnceLock<FrontHandle>,
}

/// Runs a front until a signal ends it.
///
/// # Errors
/// When it cannot start.
pub async fn run_front(config: FrontConfig, metrics: PrometheusHandle, scope: Scope) -> Result<(), AppError> {
    make_data_dir(&config.front.data_dir)?;
    let http_address = config.front.http.to_string();
    let http = TcpListener::bind(config.front.http).await.map_err(|source| AppError::Bind {
        what: "http",
        address: http_address,
        source,
    })?;
    let socket = config.front.socket();
    let local = bind_local(&socket).map_err(|source| AppError::Bind {
        what: "local socket",
        address: socket.display().to_string(),
        source,
    })?;
    let front = Arc::new(Front {
        config,
        lifecycle: tokio::sync::Mutex::new(()),
        joined: watch::Sender::new(None),
        running: OnceLock::new(),
    });
    let edges = Scope::new();
    let own_uid = rustix::process::geteuid().as_raw();
    let router = Server::builder().add_service(LocalServer::new(LocalService::new(Arc::clone(&front), own_uid)));
    serve_local(local, router, &edges);
    crate::admin::http::serve(http, pages(&front, metrics), &edges);

    let dir = front.config.front.data_dir.clone();
    let found = run_blocking(move || Identity::load(&dir)).await?;
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
    let result = match identity {
        Some(identity) => front.proxy(&identity, &scope).await,
        None => Ok(()),
    };
    edges.end();
    edges.join(CLOSE_TIMEOUT).await;
    let _ = std::fs::remove_file(socket);
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
    async fn proxy(&self, identity: &Identity, scope: &Scope) -> Result<(), AppError> {
        let dir = self.config.front.data_dir.clone();
        let key = run_blocking(move || Identity::load_front_key(&dir)).await?;
        let dialer = Dialer::new(identity)?;
        let options = FrontOptions {
            config: self.config.clone(),
            key: FrontKey { id: identity.front_key_id.clone(), front: identity.name.clone(), key },
            dial: Arc::new(dialer),
            seeds: identity.endpoints.iter().map(|address| (String::new(), address.clone())).collect(),
        };
        tracing::info!(cluster = %identity.cluster, "this front has joined");
        let proxy = Proxy::bind(options).await?;
        let _ = self.running.set(proxy.handle());
        proxy.run(scope).await;
        Ok(())
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
