//! The way to the cluster: gRPC over mutual TLS to any member, or over a local Unix socket. Endpoints are tried in
//! turn; a read may be repeated on the next one, a change only when it is certain that nothing was changed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use posthouse_proto::v1::admin_client::AdminClient;
use posthouse_proto::v1::local_client::LocalClient;
use posthouse_proto::v1::{ClusterStatusReply, ClusterStatusRequest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::context::{Context, ContextStore};
use crate::error::{Exit, Failure, code, deepest_cause, nearest};

/// Every member's certificate carries this name.
const MEMBER_DNS_NAME: &str = "node.posthouse.internal";
/// Before the next endpoint is tried. A dead host says nothing; a live one shakes hands in milliseconds.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(3);
/// An allowlist of a million entries fits.
const REPLY_BYTES_MAX: usize = 256 << 20;
/// An election takes half a second; a cluster that has no leader after this long will not have one soon.
const ELECTION_PATIENCE: Duration = Duration::from_secs(3);
/// Between two rounds of asking for a leader.
const ELECTION_PAUSE: Duration = Duration::from_millis(200);
/// What the cluster may take beyond the time that it was asked to wait, before we stop listening.
pub(crate) const WAIT_MARGIN: Duration = Duration::from_secs(5);

/// Where a member, or the local process, listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `host:port`, over mutual TLS.
    Tcp(String),
    /// A Unix socket; the kernel says who we are.
    Unix(PathBuf),
}

impl Target {
    /// Reads `host:port` or `unix:/path`.
    ///
    /// # Errors
    /// When it is neither.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let port =
            text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
        match port {
            Some(1..) => Ok(Self::Tcp(text.to_owned())),
            _ => Err(Failure::usage(
                format!("\"{text}\" is not an endpoint"),
                "an endpoint is HOST:PORT or unix:/path",
                "--endpoint n1.corp.example:7100",
            )),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The context that was used, so that what the cluster says of its members can be kept.
struct Learner {
    store: ContextStore,
    context: String,
}

/// A client of one cluster, or of one process on this machine.
pub(crate) struct Client {
    targets: Vec<Target>,
    tls: Option<Arc<ClientConfig>>,
    server_name: String,
    timeout: Duration,
    /// The target to ask.
    at: usize,
    /// The connection to it.
    open: Option<Channel>,
    learner: Option<Learner>,
}

impl Client {
    /// A client that tries `targets` in turn, each call within `timeout`.
    ///
    /// # Errors
    /// When the identity of `context` cannot be used.
    pub(crate) fn new(targets: Vec<Target>, context: Option<&Context>, timeout: Duration) -> Result<Self, Failure> {
        let tls = context.filter(|context| !context.ca.is_empty()).map(client_config).transpose()?;
        Ok(Self { targets, tls, server_name: MEMBER_DNS_NAME.to_owned(), timeout, at: 0, open: None, learner: None })
    }

    /// Keeps the members' addresses in `context` whenever the cluster tells them, so that the context outlives the
    /// node that it was made on.
    pub(crate) fn learn_into(&mut self, store: ContextStore, context: &str) {
        self.learner = Some(Learner { store, context: context.to_owned() });
    }

    /// Asks `call`. On an endpoint that cannot be reached or does not answer, the next one is asked.
    ///
    /// # Errors
    /// What the cluster answered, or that nobody did.
    pub(crate) async fn read<T>(
        &mut self,
        call: impl AsyncFn(AdminClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        let mut last = None;
        for _ in 0..self.targets.len() {
            let channel = match self.channel().await {
                Ok(channel) => channel,
                Err(failure) => return Err(last.unwrap_or(failure)),
            };
            last = Some(match timeout(self.timeout, call(admin(channel))).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner()),
                Ok(Err(status)) => {
                    let failure = Failure::from_status(&status);
                    if connection_broke(&status, &failure) {
                        let target = self.targets.get(self.at).map(ToString::to_string).unwrap_or_default();
                        unreachable(&[format!("{target}: {}", deepest_cause(&status))])
                    } else if nothing_was_done(&failure) {
                        failure
                    } else {
                        return Err(failure);
                    }
                }
                Err(_) => no_answer(self.timeout, "the endpoint took the question and did not answer"),
            });
            self.advance();
        }
        Err(last.unwrap_or_else(|| unreachable(&[])))
    }

    /// Asks for a change. Only where nothing was changed for certain (no connection, a node that knows no leader or
    /// belongs to no cluster) is the next endpoint asked, round and round while an election may be under way;
    /// otherwise the change may have been made, and the failure says so.
    ///
    /// # Errors
    /// What the cluster answered, or that nobody did.
    pub(crate) async fn write<T>(
        &mut self,
        call: impl AsyncFn(AdminClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        let patience = Instant::now() + self.timeout.min(ELECTION_PATIENCE);
        loop {
            let mut last = None;
            for _ in 0..self.targets.len() {
                let channel = match self.channel().await {
                    Ok(channel) => channel,
                    Err(failure) => return Err(last.unwrap_or(failure)),
                };
                match timeout(self.timeout, call(admin(channel))).await {
                    Ok(Ok(reply)) => return Ok(reply.into_inner()),
                    Ok(Err(status)) => {
                        let failure = Failure::from_status(&status);
                        if connection_broke(&status, &failure) {
                            return Err(no_answer(self.timeout, &deepest_cause(&status)));
                        }
                        if !nothing_was_done(&failure) {
                            return Err(failure);
                        }
                        last = Some(failure);
                    }
                    Err(_) => return Err(no_answer(self.timeout, "the endpoint took the change and did not answer")),
                }
                self.advance();
            }
            let failure = last.unwrap_or_else(|| unreachable(&[]));
            if failure.code() != code::NO_LEADER || Instant::now() >= patience {
                return Err(failure);
            }
            tokio::time::sleep(ELECTION_PAUSE).await;
        }
    }

    /// The state of the cluster. Remembers the members' addresses in the context.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub(crate) async fn cluster_status(&mut self) -> Result<ClusterStatusReply, Failure> {
        let request = ClusterStatusRequest::default();
        let reply = self.read(async |mut admin| admin.cluster_status(request).await).await?;
        self.learn(&reply);
        Ok(reply)
    }

    /// A client of the local process behind the first target.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub(crate) async fn local(&mut self) -> Result<LocalClient<Channel>, Failure> {
        Ok(LocalClient::new(self.channel().await?))
    }

    /// How long the next calls may take.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Whether the only way is a local socket.
    pub(crate) fn is_local(&self) -> bool {
        self.targets.iter().all(|target| matches!(target, Target::Unix(_)))
    }

    /// Narrows to the very node `name`: its address comes from the cluster, and its certificate must be its own.
    ///
    /// # Errors
    /// When there is no such node, or it cannot be reached with the identity at hand.
    pub(crate) async fn narrow_to(mut self, name: &str) -> Result<Self, Failure> {
        let status = self.cluster_status().await?;
        let Some(member) = status.members.iter().find(|member| member.name == name) else {
            let names = status.members.iter().map(|member| member.name.as_str());
            return Err(Failure::new(
                Exit::NotFound,
                "PH-NODE-001",
                format!("node \"{name}\" not found"),
                "the cluster has no node of that name",
                "posthousectl node list",
            )
            .with_suggestion(nearest(name, names)));
        };
        if self.tls.is_none() {
            if status.answered_by == name {
                return Ok(self);
            }
            return Err(Failure::new(
                Exit::NotPermitted,
                code::NO_IDENTITY,
                format!("node \"{name}\" cannot be asked from here"),
                format!("the local socket leads to \"{}\" only", status.answered_by),
                "use a context with an administrator's certificate: --context NAME",
            ));
        }
        self.targets = vec![Target::Tcp(member.address.clone())];
        self.server_name = format!("{name}.{MEMBER_DNS_NAME}");
        self.at = 0;
        self.open = None;
        Ok(self)
    }

    fn learn(&self, status: &ClusterStatusReply) {
        let Some(Learner { store, context }) = &self.learner else { return };
        let members: Vec<String> =
            status.members.iter().map(|member| member.address.clone()).filter(|address| !address.is_empty()).collect();
        let known = store.load().ok().and_then(|contexts| contexts.contexts.get(context).map(|c| c.members.clone()));
        if members.is_empty() || known.is_none_or(|known| known == members) {
            return;
        }
        // A convenience: an answer is not withheld because the context file cannot be written.
        let _ = store.update(|contexts| {
            if let Some(context) = contexts.contexts.get_mut(context) {
                context.members = members;
            }
            Ok(())
        });
    }

    /// The open connection, or a new one to the first target that takes it, beginning with the current one.
    async fn channel(&mut self) -> Result<Channel, Failure> {
        if let Some(channel) = &self.open {
            return Ok(channel.clone());
        }
        let mut refused = Vec::new();
        for _ in 0..self.targets.len() {
            let Some(target) = self.targets.get(self.at) else { break };
            match self.connect(target).await {
                Ok(channel) => {
                    self.open = Some(channel.clone());
                    return Ok(channel);
                }
                Err(cause) => refused.push(format!("{target}: {cause}")),
            }
            self.advance();
        }
        Err(unreachable(&refused))
    }

    /// Goes on to the next target; after the last one comes the first.
    fn advance(&mut self) {
        self.open = None;
        self.at = (self.at + 1) % self.targets.len().max(1);
    }

    async fn connect(&self, target: &Target) -> Result<Channel, String> {
        let limit = if self.targets.len() > 1 { self.timeout.min(CONNECT_TIMEOUT_MAX) } else { self.timeout };
        // The URI only names the authority of requests; the connectors below know where to go.
        let endpoint = Endpoint::from_static("http://node.posthouse.internal");
        let connected = match target {
            Target::Unix(path) => {
                let path = path.clone();
                let connector = tower::service_fn(move |_| connect_unix(path.clone()));
                timeout(limit, endpoint.connect_with_connector(connector)).await
            }
            Target::Tcp(address) => {
                let config = self.tls.clone().ok_or("no certificate to show; use a context")?;
                let (address, name) = (address.clone(), self.server_name.clone());
                let connector =
                    tower::service_fn(move |_| connect_tls(address.clone(), name.clone(), Arc::clone(&config)));
                timeout(limit, endpoint.connect_with_connector(connector)).await
            }
        };
        match connected {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(deepest_cause(&error)),
            Err(_) => Err(format!("no connection within {}", humantime::format_duration(limit))),
        }
    }
}

fn admin(channel: Channel) -> AdminClient<Channel> {
    AdminClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX)
}

async fn connect_unix(path: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(&path).await.map(TokioIo::new)
}

async fn connect_tls(
    address: String,
    name: String,
    config: Arc<ClientConfig>,
) -> io::Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>> {
    let tcp = TcpStream::connect(&address).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    TlsConnector::from(config).connect(name, tcp).await.map(TokioIo::new)
}

/// Mutual TLS with the context's identity; only the cluster's own authority is believed.
fn client_config(context: &Context) -> Result<Arc<ClientConfig>, Failure> {
    let broken = |what: &str, error: &dyn std::error::Error| {
        Failure::new(
            Exit::Invalid,
            code::CONTEXT_FILE,
            format!("the context's {what} cannot be used"),
            error.to_string(),
            "make the context anew: posthousectl context add",
        )
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(context.ca.as_bytes()) {
        let certificate = certificate.map_err(|error| broken("ca", &error))?;
        roots.add(certificate).map_err(|error| broken("ca", &error))?;
    }
    let chain: Vec<_> = CertificateDer::pem_slice_iter(context.cert.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| broken("cert", &error))?;
    let key = PrivateKeyDer::from_pem_slice(context.key.as_bytes()).map_err(|error| broken("key", &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| broken("tls", &error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| broken("cert and key", &error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Whether the node has certainly not acted, and another one may: it knows no leader, or belongs to no cluster (yet).
fn nothing_was_done(failure: &Failure) -> bool {
    matches!(failure.code(), code::NO_LEADER | code::NO_CLUSTER)
}

/// Whether the call ended because the connection did, and not because the node answered: only a failure of our own
/// transport has a source, and a node's "unavailable" or "too late" without a problem says no more.
fn connection_broke(status: &Status, failure: &Failure) -> bool {
    match failure.code() {
        code::UNREACHABLE => true,
        code::NO_ANSWER | code::UNNAMED => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

fn no_answer(waited: Duration, cause: &str) -> Failure {
    Failure::new(
        Exit::TimedOut,
        code::NO_ANSWER,
        format!(
            "no answer within {}; a change that was asked for may still be made",
            humantime::format_duration(waited)
        ),
        cause,
        "look before repeating it: posthousectl history list",
    )
}

fn unreachable(refused: &[String]) -> Failure {
    let cause = if refused.is_empty() { "there is no endpoint to try".to_owned() } else { refused.join("\n") };
    Failure::new(
        Exit::Unreachable,
        code::UNREACHABLE,
        "no endpoint could be reached",
        cause,
        "start a node, or name a living one: --endpoint HOST:PORT, --socket PATH or --context NAME",
    )
}

/// The failure of a command that found neither a context nor a local node.
pub(crate) fn nowhere_to_go(socket: &Path) -> Failure {
    Failure::new(
        Exit::Unreachable,
        code::UNREACHABLE,
        "no cluster to talk to",
        format!("no context is chosen, and no node runs here ({} does not exist)", socket.display()),
        "choose one with --context NAME, --endpoint HOST:PORT or --socket PATH",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn endpoints_are_a_host_and_port_or_a_socket() {
        assert_eq!(Target::parse("n1:7100").unwrap(), Target::Tcp("n1:7100".into()));
        assert_eq!(Target::parse("[::1]:7100").unwrap(), Target::Tcp("[::1]:7100".into()));
        assert_eq!(Target::parse("unix:/run/x.sock").unwrap(), Target::Unix("/run/x.sock".into()));
        for text in ["", "n1", ":7100", "n1:", "n1:0", "n1:70000", "http://n1"] {
            assert_eq!(Target::parse(text).unwrap_err().exit_code(), Exit::Usage as u8, "{text}");
        }
    }

    #[test]
    fn a_context_with_a_broken_identity_is_invalid() {
        let context = Context { ca: "not pem".into(), ..Context::default() };
        let failure = Client::new(vec![], Some(&context), Duration::from_secs(1)).map(|_| ()).unwrap_err();
        assert_eq!(failure.exit_code(), Exit::Invalid as u8);
    }
}
