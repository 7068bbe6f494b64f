//! The devices' side: the SMTP sockets of the node file, whose connection each one is, and the session between
//! socket and protocol. From here on "source" means the device, never the front. It decides nothing about policy:
//! it asks `connector` with the newest state.

mod authenticate;
mod driver;
mod front_clocks;
mod front_keys;
mod header;
mod leniencies;
mod listener;
mod login;
mod mechanisms;
mod metrics_names;
mod opening;
mod policy;
mod prefixed;
mod recorder;
mod xclient;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

pub use metrics_names::describe;

use crate::clock::now_ms;
use crate::config::{ProxyProtocolSection, SmtpSection, XclientSection};
use crate::connector::{Principal, ReceiveConnector, Right, effective_rights};
use crate::counts::Counts;
use crate::pki::DataKey;
use crate::protocol_log::ProtocolLog;
use crate::proxy_protocol::ReplayWindow;
use crate::sessions::Sessions;
use crate::shutdown::Scope;
use crate::spool::Spool;
use crate::state::StateView;
use crate::tls::{DeviceTls, FailedHandshakes};
use crate::usage::Usages;
use authenticate::Authenticator;
use front_clocks::FrontClocks;
use front_keys::FrontKeys;

/// Connections that the kernel holds for us while we are busy.
const BACKLOG: i32 = 1024;
/// Sessions of one node at once, over all connectors; each holds some tens of kilobytes.
const SESSIONS_MAX: usize = 10_000;

/// What the sockets need of the rest of the node.
pub struct InboundOptions {
    /// The newest state.
    pub view: watch::Receiver<Arc<StateView>>,
    /// Where letters go.
    pub spool: Spool,
    /// Server certificates.
    pub tls: Arc<DeviceTls>,
    /// Devices that could not shake hands.
    pub failed_handshakes: Arc<FailedHandshakes>,
    /// Opens the fronts' signing keys.
    pub data_key: DataKey,
    /// This node's name: what a front's signature must be made for.
    pub node_name: String,
    /// This node's name in banners and `Received` lines.
    pub fqdn: String,
    /// Where it is kept how far the fronts' clocks are from ours.
    pub front_clocks: PathBuf,
    /// Foreign balancers.
    pub proxy: ProxyProtocolSection,
    /// Proxies that speak SMTP themselves.
    pub xclient: XclientSection,
    /// Whether this node takes new connections and letters, and why not.
    pub admission: watch::Receiver<Admission>,
    /// How many sessions are open, for whoever asks.
    pub sessions: Arc<AtomicU64>,
    /// Which sessions are open, for whoever wants to see or end them.
    pub open: Sessions,
    /// Keeps what was used.
    pub usages: Usages,
    /// Sessions and letters of the whole cluster, for the limits.
    pub counts: Counts,
    /// Where connectors that want it have their dialogues written.
    pub protocol_log: ProtocolLog,
}

/// What keeps this node from taking what comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Why new connections are closed.
    pub refusing: Option<String>,
    /// The resource that is short: letters are refused with `452 4.3.1`.
    pub shortage: Option<String>,
}

/// What all connections share.
struct Shared {
    options: InboundOptions,
    authenticator: Authenticator,
    front_keys: FrontKeys,
    front_clocks: Arc<FrontClocks>,
    replay: Mutex<ReplayWindow>,
    permits: Arc<Semaphore>,
    complaints: header::Complaints,
    leniencies: leniencies::LeniencyCounts,
    unknown_key: header::UnknownKey,
}

impl Shared {
    /// The newest state.
    fn view(&self) -> Arc<StateView> {
        Arc::clone(&self.options.view.borrow())
    }

    /// Why no new connection is taken, if so.
    fn refusing(&self) -> Option<String> {
        self.options.admission.borrow().refusing.clone()
    }

    /// Which resource is too short for another letter, if one is.
    fn shortage(&self) -> Option<String> {
        self.options.admission.borrow().shortage.clone()
    }
}

/// A socket that is bound and not yet served.
struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    service_port: u16,
    implicit_tls: bool,
}

/// The bound sockets of a node.
pub struct Sockets(Vec<Bound>);

impl Sockets {
    /// Where they are bound: delivery must never go there.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().map(|bound| bound.address).collect()
    }
}

/// The running sockets and sessions.
pub struct Inbound {
    accepting: Scope,
    sessions: Scope,
    shared: Arc<Shared>,
}

impl Inbound {
    /// Binds every socket of the node file.
    ///
    /// # Errors
    /// The first that cannot be bound, and why.
    pub fn bind(sections: &[SmtpSection]) -> Result<Sockets, (SocketAddr, std::io::Error)> {
        let bound = sections.iter().map(|section| {
            let listener = bind(section.listen).map_err(|error| (section.listen, error))?;
            let address = listener.local_addr().unwrap_or(section.listen);
            Ok(Bound { listener, address, service_port: section.service(), implicit_tls: section.is_implicit_tls() })
        });
        bound.collect::<Result<_, _>>().map(Sockets)
    }

    /// Serves the sockets.
    #[must_use]
    pub fn start(sockets: Sockets, options: InboundOptions) -> Self {
        describe();
        let (accepting, sessions) = (Scope::new(), Scope::new());
        let front_clocks = Arc::new(FrontClocks::load(options.front_clocks.clone()));
        accepting.spawn_until_ended(Arc::clone(&front_clocks).keep());
        let shared = Arc::new(Shared {
            authenticator: Authenticator::new(),
            front_keys: FrontKeys::new(options.data_key.clone()),
            replay: Mutex::new(ReplayWindow::starting(front_clocks.floors(now_ms()))),
            front_clocks: Arc::clone(&front_clocks),
            permits: Arc::new(Semaphore::new(SESSIONS_MAX)),
            complaints: header::Complaints::default(),
            leniencies: leniencies::LeniencyCounts::default(),
            unknown_key: header::UnknownKey::default(),
            options,
        });
        for bound in sockets.0 {
            tracing::info!(
                address = %bound.address,
                service = bound.service_port,
                implicit_tls = bound.implicit_tls,
                "smtp socket is open"
            );
            accepting.spawn_until_ended(listener::run(Arc::clone(&shared), bound, sessions.clone()));
        }
        Self { accepting, sessions, shared }
    }

    /// A front signs with a key that this node does not know, in words.
    #[must_use]
    pub fn unknown_front_key(&self) -> Option<String> {
        self.shared.unknown_key.trouble()
    }

    /// Closes the sockets, ends sessions at their next command boundary, and waits for letters in transfer. Answers
    /// whether all were done before the deadline; the rest is cut, and was never acknowledged.
    pub async fn drain(&self, deadline: Duration) -> bool {
        self.accepting.end();
        self.accepting.join(deadline).await;
        self.sessions.end();
        self.sessions.join(deadline).await
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted node must have its port back at once, while old connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// How long the answer to the `refusals`th refusal of a session waits. Departures from Exchange: never for a client
/// that may relay or has logged in, and never for the first refusal.
fn tarpit(connector: &ReceiveConnector, refusals: u32, authenticated: bool) -> Duration {
    let relays = effective_rights(connector, Principal::Anonymous).contains(Right::AcceptAnyRecipient);
    if refusals <= 1 || authenticated || relays {
        return Duration::ZERO;
    }
    Duration::from_millis(connector.tarpit_interval_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_refusal_and_relaying_devices_are_not_tarpitted() {
        let mut connector = ReceiveConnector::new("in");
        connector.tarpit_interval_ms = 5000;
        assert_eq!(tarpit(&connector, 1, false), Duration::ZERO);
        assert_eq!(tarpit(&connector, 2, false), Duration::from_secs(5));
        assert_eq!(tarpit(&connector, 2, true), Duration::ZERO);
        connector.permission_groups.insert(crate::connector::PermissionGroup::AnonymousUsers);
        connector.rights.extend("anonymous:accept_any_recipient".parse::<crate::connector::GrantedRight>());
        assert_eq!(tarpit(&connector, 9, false), Duration::ZERO);
    }
}
