//! Commands and whole members for the tests of this room.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Status};

use super::handle::LogLimits;
use super::{Dial, ELECTION_TIMEOUT_MAX, ELECTION_TIMEOUT_MIN, HEARTBEAT, LocalFacts, RaftHandle, RaftOptions};
use crate::connector::DomainKind;
use crate::pki::{PeerIdentity, PeerInfo};
use crate::shutdown::Scope;
use crate::state::{
    AcceptedDomain, Certificate, Change, ClusterFacts, Command, JoinRole, JoinToken, Member, MemberRole, MemberState,
    NewCluster, SealedSecret,
};

pub(super) const CLUSTER: &str = "cluster-id";
const TOKEN: &str = "token";
const TOKEN_HASH: &str = "00ff";

pub(super) fn command(change: Change) -> Command {
    Command {
        who: "test".to_owned(),
        from: "unix".to_owned(),
        at_ms: 1_700_000_000_000,
        reason: String::new(),
        if_revision: None,
        accept_risk: false,
        change,
    }
}

pub(super) fn init_cluster(name: &str, address: &str) -> Command {
    command(Change::InitCluster(Box::new(NewCluster {
        facts: ClusterFacts {
            name: "test".to_owned(),
            id: CLUSTER.to_owned(),
            ca_pem: String::new(),
            sealed_ca_key: SealedSecret(String::new()),
            next_node_id: 2,
            created_at_ms: 0,
        },
        member: Member {
            id: 1,
            name: name.to_owned(),
            rpc_address: address.to_owned(),
            services: Vec::new(),
            role: MemberRole::Voter,
            state: MemberState::Active,
            version: String::new(),
            http_address: String::new(),
            joined_at_ms: 0,
            weight: crate::state::MEMBER_WEIGHT_DEFAULT,
        },
        connectors: Vec::new(),
        certificate: Certificate {
            name: "default".to_owned(),
            chain_pem: String::new(),
            sealed_key: SealedSecret(String::new()),
            names: Vec::new(),
            subject: String::new(),
            issuer: String::new(),
            not_after_ms: 0,
        },
    })))
}

pub(super) fn create_token() -> Command {
    command(Change::CreateJoinToken {
        token: JoinToken {
            id: TOKEN.to_owned(),
            secret_sha256: TOKEN_HASH.to_owned(),
            role: JoinRole::Voter,
            uses_left: 9,
            expires_at_ms: i64::MAX,
            created_by: "test".to_owned(),
        },
    })
}

pub(super) fn add_member(name: &str, address: &str) -> Command {
    command(Change::AddMember {
        token_id: TOKEN.to_owned(),
        secret_sha256: TOKEN_HASH.to_owned(),
        name: name.to_owned(),
        rpc_address: address.to_owned(),
        services: Vec::new(),
        version: String::new(),
        http_address: String::new(),
    })
}

pub(super) fn put_domain(name: &str) -> Command {
    command(Change::PutDomain {
        create: true,
        domain: AcceptedDomain { name: name.to_owned(), with_subdomains: false, kind: DomainKind::Authoritative },
    })
}

pub(super) fn delete_domain(name: &str) -> Command {
    command(Change::DeleteDomain { name: name.to_owned() })
}

/// Dials in plaintext and says who it is in the user agent, where a real dialer shows a certificate.
pub(super) struct PlainDialer {
    pub(super) name: String,
    pub(super) channels: Mutex<BTreeMap<String, Channel>>,
}

impl PlainDialer {
    pub(super) fn new(name: &str) -> Arc<Self> {
        Arc::new(Self { name: name.to_owned(), channels: Mutex::default() })
    }
}

impl Dial for PlainDialer {
    fn channel(&self, address: &str, _node: &str) -> Channel {
        let make = || {
            Endpoint::from_shared(format!("http://{address}"))
                .unwrap()
                .user_agent(self.name.clone())
                .unwrap()
                .connect_timeout(Duration::from_secs(1))
                .connect_lazy()
        };
        self.channels.lock().unwrap().entry(address.to_owned()).or_insert_with(make).clone()
    }
}

/// The test's stand-in for the certificate: `n2 tonic/0.14` is node `n2`.
fn identify(mut request: Request<()>) -> Result<Request<()>, Status> {
    let agent = request.metadata().get("user-agent").and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let name = agent.split(' ').next().unwrap_or_default().to_owned();
    request.extensions_mut().insert(PeerInfo { identity: PeerIdentity::Node { name }, from: "test".to_owned() });
    Ok(request)
}

/// A member with a runtime of its own, so that it can be killed with everything it does.
pub(super) struct TestNode {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) address: SocketAddr,
    pub(super) handle: RaftHandle,
    runtime: Runtime,
}

/// Binds a port that a member keeps for the length of a test.
pub(super) fn bind(address: Option<SocketAddr>) -> std::net::TcpListener {
    let address = address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        // The standard library sets SO_REUSEADDR, which a restart on the same port needs.
        match std::net::TcpListener::bind(address) {
            Ok(listener) => return listener,
            Err(error) => {
                assert!(std::time::Instant::now() < deadline, "cannot bind {address}: {error}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

impl TestNode {
    pub(super) fn start(
        id: u64,
        name: &str,
        listener: std::net::TcpListener,
        dir: &std::path::Path,
        limits: LogLimits,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let options = RaftOptions {
            data_dir: dir.to_owned(),
            node_id: id,
            node_name: name.to_owned(),
            cluster_id: CLUSTER.to_owned(),
            heartbeat: HEARTBEAT,
            election_timeout_min: ELECTION_TIMEOUT_MIN,
            election_timeout_max: ELECTION_TIMEOUT_MAX,
            dialer: PlainDialer::new(name),
            local_facts: Arc::new(|| LocalFacts { ready: true, version: "9.9".to_owned(), ..LocalFacts::default() }),
            data_key: Arc::new(|| vec![7; 32]),
        };
        let scope = Scope::new();
        let started = runtime.spawn(async move {
            // A killed predecessor's last blocking write may still hold the database's lock.
            let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
            let handle = loop {
                match RaftHandle::open_with(options.clone(), limits, &scope).await {
                    Ok(handle) => break handle,
                    Err(error) => {
                        assert!(tokio::time::Instant::now() < deadline, "cannot open: {error}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            };
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            let service = InterceptedService::new(handle.peer_server(), identify);
            scope.spawn(async move {
                let _ = Server::builder().add_service(service).serve_with_incoming(incoming).await;
            });
            handle
        });
        let handle = block_on(started).unwrap();
        Self { id, name: name.to_owned(), address, handle, runtime }
    }

    /// Runs a call on the member's own runtime: the connections that it makes live as long as the member.
    pub(super) fn run<F>(&self, call: impl FnOnce(RaftHandle) -> F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        block_on(self.runtime.spawn(call(self.handle.clone()))).unwrap()
    }

    /// Everything stops in the middle of what it does; sockets are closed by the kernel.
    pub(super) fn kill(self) -> SocketAddr {
        self.runtime.shutdown_background();
        self.address
    }

    /// Stops in good order.
    pub(super) fn stop(self) -> SocketAddr {
        self.run(|handle| async move { handle.shutdown().await });
        self.kill()
    }

    pub(super) fn digest(&self) -> String {
        self.handle.view().borrow().state.digest.to_string()
    }

    pub(super) fn revision(&self) -> u64 {
        self.handle.view().borrow().revision
    }
}

/// Runs a future of the test itself.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Waits for a condition, not for a duration.
pub(super) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
