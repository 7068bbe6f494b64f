//! A node: starts what its file says, becomes a member when told to, and drains when told to stop.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use posthouse_proto::v1::{
    self, admin_server::AdminServer, front_link_server::FrontLinkServer, join_server::JoinServer,
    local_server::LocalServer,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Server;

use super::pressure::PressureWatch;
use super::{AppError, bootstrap, certificates, delivery};
use crate::admin::{
    AdminService, Context, ContextSlot, FrontLinkService, FrontReports, JoinService, Lifecycle, LocalService,
    PushedReadiness, bind_local, failure, http::Pages, serve_local, serve_tls,
};
use crate::clock::now_ms;
use crate::config::{NodeConfig, ProtocolLogFormat};
use crate::counts::{Counts, CountsService};
use crate::health::{self, AgentState, DiskLimits, DiskProbe, Facts, Readiness, assess};
use crate::inbound::{Admission, Inbound, InboundOptions};
use crate::mail::Domain;
use crate::pki::{Identity, IdentityRole};
use crate::protocol_log::{self, ProtocolLog};
use crate::queue::{NodeFacts, QueueDeps, QueueManager, QueueSettings};
use crate::raft::{LocalFacts, Progress, RaftHandle, RaftOptions};
use crate::sessions::Sessions;
use crate::shutdown::{Scope, run_blocking};
use crate::spool::{Spool, TraceLimits};
use crate::state::{Change, Command, Member, MemberService, MemberState, StateView};
use crate::tls::{self, DeviceTls, Dialer, FailedHandshakes};
use crate::usage::{UsageKey, Usages};

/// How often readiness is looked at. A change reaches the fronts within this plus a network round.
const READINESS_INTERVAL: Duration = Duration::from_millis(50);
/// How long fronts may take to see that a node is stopping.
const FRONTS_NOTICE: Duration = Duration::from_millis(300);
/// How long stores may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// A node, before and after it is a member.
pub(super) struct Node {
    pub(super) config: NodeConfig,
    pub(super) scope: Scope,
    pub(super) slot: ContextSlot,
    readiness: watch::Sender<PushedReadiness>,
    /// What the sockets ask: whether they take connections and letters, and why not.
    admission: watch::Sender<Admission>,
    disk: DiskProbe,
    pressure: PressureWatch,
    publishing: Mutex<()>,
    /// Init and join run one at a time.
    pub(super) lifecycle: tokio::sync::Mutex<()>,
    running: OnceLock<Running>,
    facts: Mutex<Facts>,
    own_uid: u32,
}

/// What a member runs.
struct Running {
    inbound: Inbound,
    member_scope: Scope,
    cluster: String,
}

/// Runs a node until a signal ends it.
///
/// # Errors
/// When it cannot start.
pub async fn run_node(config: NodeConfig, metrics: PrometheusHandle, scope: Scope) -> Result<(), AppError> {
    make_data_dir(&config.node.data_dir)?;
    let bind = |what, address: String| move |source| AppError::Bind { what, address, source };
    let http_address = config.node.http.to_string();
    let http = TcpListener::bind(config.node.http).await.map_err(bind("http", http_address))?;
    let socket = config.socket();
    let local = bind_local(&socket).map_err(bind("local socket", socket.display().to_string()))?;
    let agent = match config.node.agent {
        Some(address) => Some(TcpListener::bind(address).await.map_err(bind("agent", address.to_string()))?),
        None => None,
    };
    let drain_timeout = config.node.drain_timeout;
    let data_dir = config.node.data_dir.clone();
    let disk_limits = DiskLimits {
        interval: config.health.disk_probe_interval,
        sync_timeout: config.health.sync_timeout,
        used_max_percent: config.health.disk_used_max_percent,
        free_enough_bytes: config.health.disk_free_enough_mib << 20,
    };
    let node = Arc::new(Node {
        config,
        scope: scope.clone(),
        slot: ContextSlot::default(),
        readiness: watch::Sender::new(PushedReadiness {
            reason: "starting".to_owned(),
            refuses: true,
            ..Default::default()
        }),
        admission: watch::Sender::new(Admission { refusing: Some("starting".to_owned()), shortage: None }),
        disk: DiskProbe::start(data_dir, disk_limits, &scope),
        pressure: PressureWatch::default(),
        publishing: Mutex::new(()),
        lifecycle: tokio::sync::Mutex::new(()),
        running: OnceLock::new(),
        facts: Mutex::default(),
        own_uid: rustix::process::geteuid().as_raw(),
    });
    let router = Server::builder()
        .add_service(LocalServer::new(LocalService::new(Arc::clone(&node), node.own_uid)))
        .add_service(AdminServer::new(AdminService::new(Arc::clone(&node.slot))));
    let edges = scope.child();
    serve_local(local, router, &edges);
    crate::admin::http::serve(http, pages(&node, metrics), &edges, &edges);
    if let Some(listener) = agent {
        let asked = Arc::clone(&node);
        health::agent::serve(listener, Arc::new(move || asked.agent_state()), &edges);
    }
    node.watch_readiness();

    let dir = node.config.node.data_dir.clone();
    match run_blocking(move || Identity::load(&dir)).await? {
        Some(identity) => node.start_member(identity, None).await?,
        None => tracing::warn!(
            node = %node.config.node.name,
            first_node = "posthousectl cluster init",
            any_other = "posthousectl node add --token TOKEN",
            socket = %socket.display(),
            "this node belongs to no cluster yet"
        ),
    }
    scope.ended().await;
    node.drain(drain_timeout).await;
    edges.end();
    edges.join(CLOSE_TIMEOUT).await;
    let _ = std::fs::remove_file(socket);
    tracing::info!("stopped");
    Ok(())
}

/// The directory is ours alone: it holds keys and letters.
pub(super) fn make_data_dir(path: &Path) -> Result<(), AppError> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let failed = |source| AppError::DataDir { path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed)
}

fn protocol_log_settings(config: &NodeConfig, data_dir: &Path) -> protocol_log::Settings {
    let section = &config.protocol_log;
    protocol_log::Settings {
        format: match section.format {
            ProtocolLogFormat::Exchange => protocol_log::Format::Exchange,
            ProtocolLogFormat::Json => protocol_log::Format::Json,
        },
        directory: section.directory.clone().unwrap_or_else(|| data_dir.join("protocol-log")),
        max_file_bytes: section.max_file_size_mib << 20,
        max_directory_bytes: section.max_directory_size_mib << 20,
        max_age: section.max_age,
    }
}

/// Whether the state still has what was used.
fn still_there(view: watch::Receiver<Arc<StateView>>) -> impl Fn(&UsageKey) -> bool + Send + Sync + 'static {
    move |key| {
        let view = Arc::clone(&view.borrow());
        match key {
            UsageKey::Connector(name) => view.state.connectors.contains_key(&**name),
            UsageKey::Range(connector, range) => {
                view.state.allowlist.get(&**connector).is_some_and(|entries| entries.contains_key(range))
            }
            UsageKey::Credential(user) => view.state.credentials.contains_key(&**user),
        }
    }
}

fn pages(node: &Arc<Node>, metrics: PrometheusHandle) -> Pages {
    let (ready, gauges) = (Arc::clone(node), Arc::clone(node));
    Pages {
        metrics,
        readiness: Arc::new(move || {
            // Published, too: what this page says is what devices meet from now on.
            let readiness = ready.publish_readiness();
            (readiness.is_ready(), readiness.verbose())
        }),
        before_metrics: Arc::new(move || {
            if let Some(context) = gauges.slot.get() {
                context.queue.publish_gauges();
                tls::publish_expiry(&context.view());
            }
        }),
    }
}

impl Node {
    /// Starts everything that a member runs. `first` is what `cluster init` proposes once Raft has begun.
    pub(super) async fn start_member(&self, identity: Identity, first: Option<Command>) -> Result<(), AppError> {
        let dir = self.config.node.data_dir.clone();
        let key_dir = dir.clone();
        let data_key = run_blocking(move || Identity::load_data_key(&key_dir)).await?;
        let dialer = Dialer::new(&identity)?;
        let member_scope = Scope::new();
        let advertise = self.config.advertise();
        let rpc = TcpListener::bind(self.config.cluster.listen).await.map_err(|source| AppError::Bind {
            what: "cluster port",
            address: self.config.cluster.listen.to_string(),
            source,
        })?;
        let sockets = Inbound::bind(&self.config.smtp).map_err(|(address, source)| AppError::Bind {
            what: "smtp socket",
            address: address.to_string(),
            source,
        })?;

        let sessions = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let queued = Arc::new(OnceLock::<crate::queue::QueueHandle>::new());
        let local_facts = self.local_facts(Arc::clone(&sessions), Arc::clone(&queued));
        let raft = RaftHandle::open(
            RaftOptions {
                data_dir: dir.join("raft"),
                node_id: identity.node_id,
                node_name: identity.name.clone(),
                cluster_id: identity.cluster_id.clone(),
                heartbeat: self.config.cluster.heartbeat,
                election_timeout_min: self.config.cluster.election_timeout_min,
                election_timeout_max: self.config.cluster.election_timeout_max,
                dialer: Arc::new(dialer.clone()),
                local_facts: Arc::clone(&local_facts),
                data_key: Arc::new({
                    let key = data_key.clone();
                    move || key.as_bytes().to_vec()
                }),
            },
            &member_scope,
        )
        .await?;
        if let Some(command) = first {
            raft.bootstrap(&identity.name, &advertise).await?;
            bootstrap::first_command(&raft, command).await.map_err(AppError::Init)?;
        }

        let (spool_dir, node_id, name, spool_scope) =
            (dir.join("spool"), identity.node_id, identity.name.clone(), member_scope.clone());
        let tracking = &self.config.tracking;
        let limits = TraceLimits { age: tracking.max_age, bytes: tracking.max_size_mib.saturating_mul(1024 * 1024) };
        let (spool, report) =
            run_blocking(move || Spool::open(&spool_dir, node_id, &name, limits, &spool_scope)).await?;
        tracing::info!(kept = report.kept, quarantined = report.quarantined.len(), "spool opened");
        let fqdn = self.config.fqdn();
        let facts = Arc::new(NodeFacts {
            node_id: identity.node_id,
            name: identity.name.clone(),
            fqdn: Domain::parse(&fqdn).map_err(|error| AppError::Fqdn { fqdn: fqdn.clone(), source: error })?,
        });
        let own = sockets.addresses();
        let outbound = delivery::outbound(&self.config, &identity, fqdn.clone(), own, raft.view(), data_key.clone())?;
        let section = &self.config.queue;
        let settings = QueueSettings {
            glitch_retry_interval: section.glitch_retry_interval,
            transient_failure_retry_interval: section.transient_failure_retry_interval,
            message_retry_interval: section.message_retry_interval,
            message_expiration_timeout: section.message_expiration_timeout,
            delay_notification_timeout: section.delay_notification_timeout,
            ..QueueSettings::default()
        };
        crate::spool::describe_metrics();
        crate::queue::describe_metrics();
        crate::outbound::describe_metrics();
        tls::describe_metrics();
        let deps = QueueDeps { view: raft.view(), node: facts, outbound: Arc::new(outbound), settings };
        let queue = QueueManager::start(spool.clone(), deps, &member_scope);
        let (verify, told) = (spool.verify(), queue.clone());
        member_scope.spawn_until_ended(async move {
            let aside = verify.await.unwrap_or_default().quarantined;
            told.forget(aside.iter().map(|letter| letter.id));
        });
        let _ = queued.set(queue.clone());

        let failed_handshakes = Arc::new(FailedHandshakes::default());
        let open = Sessions::default();
        let protocol_log = ProtocolLog::start(protocol_log_settings(&self.config, &dir), &member_scope);
        let usages = Usages::start(dir.join("usage"), still_there(raft.view()), &member_scope).await;
        let context = Arc::new(Context {
            raft: raft.clone(),
            spool: spool.clone(),
            queue: queue.clone(),
            dialer,
            data_key: data_key.clone(),
            failed_handshakes: Arc::clone(&failed_handshakes),
            live: protocol_log.live(),
            scope: member_scope.clone(),
            usages: usages.clone(),
            sessions: open.clone(),
            node_name: identity.name.clone(),
            node_id: identity.node_id,
            local_facts,
            fronts: FrontReports::default(),
            own_uid: self.own_uid,
        });
        let _ = self.slot.set(Arc::clone(&context));
        let counts = Counts::new();
        crate::counts::start(&counts, raft.view(), context.dialer.clone(), identity.node_id, &member_scope);
        let router = Server::builder()
            .add_service(raft.peer_server())
            .add_service(CountsService::server(&counts, raft.view()))
            .add_service(AdminServer::new(AdminService::new(Arc::clone(&self.slot))))
            .add_service(JoinServer::new(JoinService::new(Arc::clone(&self.slot))))
            .add_service(FrontLinkServer::new(FrontLinkService::new(
                Arc::clone(&self.slot),
                self.readiness.subscribe(),
                member_scope.clone(),
            )));
        serve_tls(rpc, tls::member_server_config(&identity)?, identity.cluster_id.clone(), router, &member_scope);

        let inbound = Inbound::start(
            sockets,
            InboundOptions {
                view: raft.view(),
                spool,
                tls: Arc::new(DeviceTls::new(data_key.clone())),
                failed_handshakes,
                data_key,
                node_name: identity.name.clone(),
                fqdn,
                front_clocks: dir.join("front-clocks.json"),
                proxy: self.config.proxy_protocol.clone(),
                xclient: self.config.xclient.clone(),
                admission: self.admission.subscribe(),
                sessions,
                open,
                usages,
                counts,
                protocol_log,
            },
        );
        self.announce(&member_scope, &context, &identity);
        let free_enough_bytes = self.config.health.disk_free_enough_mib << 20;
        self.pressure.start(dir.join("spool"), free_enough_bytes, context.spool.clone(), &member_scope);
        let cluster = identity.cluster.clone();
        let _ = self.running.set(Running { inbound, member_scope, cluster: cluster.clone() });
        tracing::info!(%cluster, node.id = identity.node_id, address = %advertise, "this node is a member");
        Ok(())
    }

    fn local_facts(
        &self,
        sessions: Arc<std::sync::atomic::AtomicU64>,
        queue: Arc<OnceLock<crate::queue::QueueHandle>>,
    ) -> Arc<dyn Fn() -> LocalFacts + Send + Sync> {
        let readiness = self.readiness.subscribe();
        Arc::new(move || {
            let PushedReadiness { ready, reason, .. } = readiness.borrow().clone();
            LocalFacts {
                ready,
                reason,
                sessions: sessions.load(std::sync::atomic::Ordering::Relaxed),
                queued: queue.get().map_or(0, |queue| queue.len() as u64),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            }
        })
    }

    /// What this node says of itself to the cluster.
    pub(super) fn services(&self) -> Vec<MemberService> {
        let sockets = self.config.smtp.iter().map(|socket| MemberService {
            port: socket.service(),
            address: self.config.advertise_smtp(socket),
            implicit_tls: socket.is_implicit_tls(),
        });
        sockets.collect()
    }

    /// Keeps the cluster's record of this node equal to its file: addresses change, versions are upgraded.
    fn announce(&self, scope: &Scope, context: &Arc<Context>, identity: &Identity) {
        let (context, id, name) = (Arc::clone(context), identity.node_id, identity.name.clone());
        let (rpc_address, services) = (self.config.advertise(), self.services());
        let (version, http_address) = (env!("CARGO_PKG_VERSION").to_owned(), self.config.node.http.to_string());
        scope.spawn_until_ended(async move {
            let mut views = context.raft.view();
            loop {
                let differs = views.borrow_and_update().state.members.get(&id).is_some_and(|found| {
                    let Member { rpc_address: rpc, services: known, version: v, http_address: http, .. } = &found.value;
                    *rpc != rpc_address || *known != services || *v != version || *http != http_address
                });
                if !differs {
                    if views.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                let command = Command {
                    who: format!("node:{name}"),
                    from: "itself".to_owned(),
                    at_ms: now_ms(),
                    reason: String::new(),
                    if_revision: None,
                    accept_risk: false,
                    change: Change::UpdateMember {
                        id,
                        rpc_address: rpc_address.clone(),
                        services: services.clone(),
                        version: version.clone(),
                        http_address: http_address.clone(),
                    },
                };
                if let Err(error) = context.raft.propose(command).await {
                    tracing::debug!(%error, "could not announce this node yet");
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }

    fn assess(&self) -> Readiness {
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        facts.listening = self.running.get().is_some();
        if let Some(context) = self.slot.get() {
            let view = context.view();
            facts.is_member = view.state.facts.is_some();
            facts.spool_failing = context.spool.failing();
            facts.draining = view
                .state
                .members
                .get(&context.node_id)
                .is_some_and(|found| found.value.state == MemberState::Draining);
            facts.has_connector = view.state.connectors.values().any(|found| found.value.enabled);
            let raft = context.raft.status();
            facts.has_leader = raft.has_leader;
            facts.raft_failed = raft.failed;
            facts.catching_up = raft.progress == Progress::CatchingUp;
            facts.behind = raft.progress == Progress::Behind;
            facts.certificate = certificates::expired(&view, now_ms());
            let settings = &view.state.settings.back_pressure;
            facts.pressure = self.pressure.assess(settings, &context.spool, context.queue.len());
        }
        facts.disk = self.disk.trouble();
        facts.front_key = self.running.get().and_then(|running| running.inbound.unknown_front_key());
        assess(&facts)
    }

    /// What HAProxy's agent checks are told. Its `weight` is this node's share of the heaviest member's.
    fn agent_state(&self) -> AgentState {
        let readiness = self.assess();
        let draining = !(readiness.is_well("drain") && readiness.is_well("shutdown"));
        let mut weight_percent = 100;
        if let Some(context) = self.slot.get() {
            let view = context.view();
            let weights = || view.state.members.values().map(|found| found.value.weight);
            let own = view.state.members.get(&context.node_id).map_or(1, |found| found.value.weight);
            weight_percent = own.saturating_mul(100) / weights().max().unwrap_or(1).max(1);
        }
        AgentState { draining, trouble: readiness.reason(), weight_percent }
    }

    /// Publishes readiness whenever it changes, and logs the flip.
    fn watch_readiness(self: &Arc<Self>) {
        let node = Arc::clone(self);
        // Runs in a scope of its own kind: it must outlive the signal, because stopping is a readiness too.
        self.scope.spawn(async move {
            loop {
                node.publish_readiness();
                if node.scope.is_ended() && node.readiness.receiver_count() == 0 {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(READINESS_INTERVAL) => {}
                    () = node.scope.ended() => {
                        node.publish_readiness();
                        return;
                    }
                }
            }
        });
    }

    fn publish_readiness(&self) -> Readiness {
        // One at a time, so that an older finding never follows a newer one.
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.scope.is_ended() {
            self.facts.lock().unwrap_or_else(PoisonError::into_inner).stopping = true;
        }
        let readiness = self.assess();
        let now = PushedReadiness {
            ready: readiness.is_ready(),
            reason: readiness.reason().unwrap_or_default(),
            refuses: readiness.refuses().is_some(),
            has_leader: readiness.is_well("leader"),
        };
        // Back pressure refuses no connection: a node under pressure serves whoever comes, until it takes no letter.
        let admission = Admission { refusing: readiness.refuses(), shortage: self.pressure.shortage() };
        self.admission.send_if_modified(|before| {
            let differs = *before != admission;
            *before = admission;
            differs
        });
        self.readiness.send_if_modified(|before| {
            if *before == now {
                return false;
            }
            if before.ready != now.ready {
                if now.ready {
                    tracing::info!("this node is ready");
                } else {
                    tracing::warn!(reason = %now.reason, "this node is not ready");
                }
            }
            *before = now;
            true
        });
        readiness
    }

    /// Ends in order, each step with its share of the time: fronts are told, listeners close, sessions end at their
    /// next command boundary, running deliveries finish, Raft stops, stores close.
    async fn drain(&self, timeout: Duration) {
        self.publish_readiness();
        let Some(running) = self.running.get() else { return };
        tracing::info!(cluster = %running.cluster, "draining");
        tokio::time::sleep(FRONTS_NOTICE).await;
        if !running.inbound.drain(timeout).await {
            tracing::warn!("sessions were still open at the end of node.drain_timeout");
        }
        if let Some(context) = self.slot.get() {
            context.queue.stop_new_attempts(timeout).await;
            context.raft.shutdown().await;
        }
        running.member_scope.end();
        if !running.member_scope.join(CLOSE_TIMEOUT).await {
            tracing::warn!(tasks = running.member_scope.tasks(), "some work did not end in time");
        }
        if let Some(context) = self.slot.get()
            && tokio::time::timeout(CLOSE_TIMEOUT, context.spool.close()).await.is_err()
        {
            tracing::warn!("the spool did not close in time; what was acknowledged is on disk");
        }
    }
}

#[tonic::async_trait]
impl Lifecycle for Node {
    fn local_status(&self) -> v1::LocalStatusReply {
        let running = self.running.get();
        v1::LocalStatusReply {
            name: self.config.node.name.clone(),
            state: if running.is_some() { "member" } else { "uninitialised" }.to_owned(),
            cluster: running.map(|running| running.cluster.clone()).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            next_step: match running {
                Some(_) => "posthousectl cluster status",
                None => {
                    "first node: posthousectl cluster init; any other: posthousectl node add --token TOKEN \
                     (a token comes from posthousectl cluster join-token create on a member)"
                }
            }
            .to_owned(),
            kind: IdentityRole::Node.as_str().to_owned(),
            role: String::new(),
        }
    }

    async fn init(&self, request: v1::InitClusterRequest) -> Result<v1::InitClusterReply, Status> {
        let _one_at_a_time = self.lifecycle.lock().await;
        self.must_be_new()?;
        bootstrap::init(self, request).await
    }

    async fn join(&self, request: v1::JoinClusterRequest) -> Result<v1::JoinClusterReply, Status> {
        let _one_at_a_time = self.lifecycle.lock().await;
        self.must_be_new()?;
        bootstrap::join_node(self, request).await
    }
}

impl Node {
    fn must_be_new(&self) -> Result<(), Status> {
        match self.running.get() {
            None => Ok(()),
            Some(running) => Err(failure(
                6,
                "PH-NODE-007",
                format!("this node belongs to cluster \"{}\" already", running.cluster),
                "a node is a member of one cluster for its life",
                "to start anew, stop it and empty its data directory",
            )),
        }
    }
}
