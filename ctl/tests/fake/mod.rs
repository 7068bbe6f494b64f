//! A member that says what it was told to say, and remembers what it was asked. Served on a Unix socket, or over
//! mutual TLS with an authority of its own.

use std::any::Any;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use posthouse_proto::PROBLEM_METADATA;
use posthouse_proto::v1::admin_server::{Admin, AdminServer};
use posthouse_proto::v1::local_server::{Local, LocalServer};
use posthouse_proto::v1::{self, Problem};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::Serialize;
use serde_json::Value;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::metadata::MetadataValue;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

/// A scripted member.
#[derive(Clone, Default)]
pub(crate) struct Fake {
    answers: Arc<Mutex<BTreeMap<&'static str, Box<dyn Any + Send>>>>,
    asked: Arc<Mutex<Vec<(&'static str, Value)>>>,
}

impl Fake {
    /// Answers `method` with `answer` from now on.
    pub(crate) fn says<T: Clone + Send + 'static>(&self, method: &'static str, answer: Result<T, Status>) -> &Self {
        self.answers.lock().unwrap().insert(method, Box::new(answer));
        self
    }

    /// What was asked of `method`, in order.
    pub(crate) fn asked(&self, method: &str) -> Vec<Value> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(name, _)| *name == method).map(|(_, request)| request.clone()).collect()
    }

    fn answer<Q: Serialize, T: Clone + 'static>(
        &self,
        method: &'static str,
        request: &Q,
    ) -> Result<Response<T>, Status> {
        self.asked.lock().unwrap().push((method, serde_json::to_value(request).unwrap()));
        let answers = self.answers.lock().unwrap();
        let found = answers.get(method).and_then(|answer| answer.downcast_ref::<Result<T, Status>>());
        found.cloned().unwrap_or_else(|| Err(Status::unimplemented(method))).map(Response::new)
    }

    /// Serves on a Unix socket for the rest of the test.
    pub(crate) fn serve_unix(&self, path: &Path) {
        let listener = StdUnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let fake = self.clone();
        std::thread::spawn(move || {
            runtime().block_on(async move {
                let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener).unwrap());
                fake.router().serve_with_incoming(incoming).await.unwrap();
            });
        });
    }

    /// Serves over mutual TLS as the node `name` for the rest of the test.
    pub(crate) fn serve_tls(&self, authority: &Authority, name: &str) -> SocketAddr {
        let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(authority.server_config(name));
        let fake = self.clone();
        std::thread::spawn(move || {
            runtime().block_on(async move {
                let tcp = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
                let incoming = tcp.then(move |tcp| {
                    let acceptor = acceptor.clone();
                    async move { acceptor.accept(tcp?).await }
                });
                fake.router().serve_with_incoming(incoming).await.unwrap();
            });
        });
        address
    }

    fn router(self) -> tonic::transport::server::Router {
        Server::builder().add_service(AdminServer::new(self.clone())).add_service(LocalServer::new(self))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A status with a problem in its metadata, as a node makes it.
pub(crate) fn refusal(code: &str, exit_code: u32) -> Status {
    let problem = Problem {
        code: code.to_owned(),
        message: "what".to_owned(),
        cause: "why".to_owned(),
        fix: "fix".to_owned(),
        retryable: false,
        exit_code,
    };
    let mut status = Status::new(Code::Internal, "what");
    status.metadata_mut().insert_bin(PROBLEM_METADATA, MetadataValue::from_bytes(&problem.encode_to_vec()));
    status
}

/// The authority of a made-up cluster.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a made-up authority");
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Its certificate.
    pub(crate) fn ca_pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate and key for these names.
    pub(crate) fn issue(&self, names: &[String]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn server_config(&self, name: &str) -> Arc<ServerConfig> {
        let names = ["node.posthouse.internal".to_owned(), format!("{name}.node.posthouse.internal")];
        let (certificate, key) = self.issue(&names);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

macro_rules! service {
    ($service:ident $({ $($more:tt)* })?: $($method:ident($request:ident) -> $reply:ident),+ $(,)?) => {
        #[tonic::async_trait]
        impl $service for Fake {
            $($($more)*)?
            $(async fn $method(&self, request: Request<v1::$request>) -> Result<Response<v1::$reply>, Status> {
                self.answer(stringify!($method), request.get_ref())
            })+
        }
    };
}

service!(Admin {
    type LogSessionStream = tokio_stream::Iter<std::vec::IntoIter<Result<v1::SessionLine, Status>>>;

    async fn log_session(
        &self,
        request: Request<v1::LogSessionRequest>,
    ) -> Result<Response<Self::LogSessionStream>, Status> {
        let lines: Vec<v1::SessionLine> = self.answer("log_session", request.get_ref())?.into_inner();
        Ok(Response::new(tokio_stream::iter(lines.into_iter().map(Ok).collect::<Vec<_>>())))
    }
}:
    cluster_status(ClusterStatusRequest) -> ClusterStatusReply,
    create_join_token(CreateJoinTokenRequest) -> CreateJoinTokenReply,
    list_join_tokens(ListRequest) -> ListJoinTokensReply,
    revoke_join_token(NameRequest) -> WriteReply,
    set_node_state(SetNodeStateRequest) -> WriteReply,
    list_nodes(ListRequest) -> ListNodesReply,
    put_connector(PutConnectorRequest) -> WriteReply,
    delete_connector(NameRequest) -> WriteReply,
    list_connectors(ListRequest) -> ListConnectorsReply,
    add_allowlist_entries(AddAllowlistEntriesRequest) -> WriteReply,
    remove_allowlist_entries(RemoveAllowlistEntriesRequest) -> WriteReply,
    list_allowlist_entries(ListAllowlistEntriesRequest) -> ListAllowlistEntriesReply,
    put_domain(PutDomainRequest) -> WriteReply,
    delete_domain(NameRequest) -> WriteReply,
    list_domains(ListRequest) -> ListDomainsReply,
    put_route(PutRouteRequest) -> WriteReply,
    delete_route(NameRequest) -> WriteReply,
    list_routes(ListRequest) -> ListRoutesReply,
    test_route(TestRouteRequest) -> TestRouteReply,
    put_credential(PutCredentialRequest) -> PutCredentialReply,
    test_credential(TestCredentialRequest) -> TestCredentialReply,
    delete_credential(NameRequest) -> WriteReply,
    list_credentials(ListRequest) -> ListCredentialsReply,
    list_certificates(ListRequest) -> ListCertificatesReply,
    import_certificate(ImportCertificateRequest) -> WriteReply,
    delete_certificate(NameRequest) -> WriteReply,
    put_client_authorities(PutClientAuthoritiesRequest) -> WriteReply,
    list_failed_handshakes(ListFailedHandshakesRequest) -> ListFailedHandshakesReply,
    list_fronts(ListRequest) -> ListFrontsReply,
    remove_front(NameRequest) -> WriteReply,
    set_front_state(SetFrontStateRequest) -> WriteReply,
    rotate_front_key(NameRequest) -> RotateFrontKeyReply,
    set_node_weight(SetNodeWeightRequest) -> WriteReply,
    await_revision(AwaitRevisionRequest) -> AwaitRevisionReply,
    explain_ip(ExplainIpRequest) -> ExplainIpReply,
    queue_summary(QueueRequest) -> QueueSummaryReply,
    queue_list(QueueRequest) -> QueueListReply,
    queue_retry(QueueRequest) -> QueueChangeReply,
    queue_shape(QueueShapeRequest) -> QueueShapeReply,
    queue_show(QueueShowRequest) -> QueueShowReply,
    queue_bounce(QueueRequest) -> QueueChangeReply,
    queue_redirect(QueueRequest) -> QueueChangeReply,
    queue_hold(QueueRequest) -> QueueChangeReply,
    queue_release(QueueRequest) -> QueueChangeReply,
    queue_delete(QueueRequest) -> QueueChangeReply,
    read_usage(ReadUsageRequest) -> ReadUsageReply,
    session_list(SessionRequest) -> SessionListReply,
    session_kill(SessionRequest) -> SessionKillReply,
    message_trace(MessageTraceRequest) -> MessageTraceReply,
    message_export(MessageExportRequest) -> MessageExportReply,
    list_audit(ListAuditRequest) -> ListAuditReply,
    history_diff(HistoryDiffRequest) -> HistoryDiffReply,
    rollback(RollbackRequest) -> WriteReply,
    lint_allowlist(LintAllowlistRequest) -> LintAllowlistReply,
    connector_overlaps(ConnectorOverlapsRequest) -> ConnectorOverlapsReply,
    list_settings(ListRequest) -> ListSettingsReply,
    set_settings(SetSettingsRequest) -> WriteReply,
);

service!(Local:
    local_status(LocalStatusRequest) -> LocalStatusReply,
    init_cluster(InitClusterRequest) -> InitClusterReply,
    join_cluster(JoinClusterRequest) -> JoinClusterReply,
);
