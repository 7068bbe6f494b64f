//! Whose connection is this? The source address says whether a PROXY header is owed; from our fronts only a
//! signature is believed, from a listed balancer any well-formed header, from everybody else none. We never guess.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics::counter;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Shared;
use super::front_keys::is_front_address;
use super::metrics_names::PROXY_HEADERS;
use crate::clock::now_ms;
use crate::proxy_protocol::{
    Command, HEADER_BYTES_MAX, Header, Parsed, Replay, SignatureError, Version, parse, verify,
};
use crate::state::StateView;

/// What the first bytes of a version 1 and of a version 2 header look like.
const V1_START: &[u8] = b"PROXY ";
const V2_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// One complaint about one address in this time.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
/// How long a node that refuses waits to see whose connection it refuses; fronts send their header at once.
const CHECK_HEADER_TIMEOUT: Duration = Duration::from_millis(200);
/// Addresses complained about that are remembered.
const COMPLAINTS_MAX: usize = 1024;

/// What a connection's source address says about a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owed {
    /// One of our fronts dials from there: a signed header.
    Signed,
    /// A balancer of the node file: any well-formed header.
    Plain,
    /// A device: none.
    Nothing,
}

/// Whose connection it is.
#[derive(Debug)]
pub(super) struct Introduced {
    /// The device.
    pub(super) source: SocketAddr,
    /// The address that the device dialled.
    pub(super) dialled: IpAddr,
    /// The front or balancer that passed it on.
    pub(super) front: Option<String>,
    /// A check by the front itself: it greets and leaves.
    pub(super) probe: bool,
    /// One of our fronts has signed for all this.
    pub(super) signed: bool,
    /// One string that finds everything about the session.
    pub(super) session_id: String,
    /// What came after the header in the same segment.
    pub(super) rest: Vec<u8>,
}

/// What is owed by a connection from `peer`.
pub(super) fn owed(shared: &Shared, view: &StateView, peer: IpAddr) -> Owed {
    if is_front_address(view, peer) {
        Owed::Signed
    } else if shared.options.proxy.trusted.iter().any(|trusted| trusted.contains(peer)) {
        Owed::Plain
    } else {
        Owed::Nothing
    }
}

/// Reads the header that `peer` owes. `None`: the connection is to be closed without a byte; it was counted and,
/// not too often, logged with the setting to change.
pub(super) async fn introduce(
    shared: &Shared,
    view: &StateView,
    tcp: &mut TcpStream,
    peer: SocketAddr,
    owed: Owed,
    service_port: u16,
) -> Option<Introduced> {
    if owed == Owed::Nothing {
        let dialled = tcp.local_addr().map_or_else(|_| peer.ip(), |local| local.ip()).to_canonical();
        return Some(Introduced {
            source: peer,
            dialled,
            front: None,
            probe: false,
            signed: false,
            session_id: new_session_id(),
            rest: Vec::new(),
        });
    }
    let read = tokio::time::timeout(shared.options.proxy.header_timeout, read_header(tcp)).await;
    let (header, raw, rest) = match read {
        Ok(Ok(read)) => read,
        Ok(Err(Refused::Silent)) => return None,
        Ok(Err(Refused::Missing(cause))) => {
            refuse(shared, peer, "missing", &cause, must_send(owed));
            return None;
        }
        Err(_) => {
            refuse(
                shared,
                peer,
                "missing",
                "no PROXY header in time",
                "have it send one, or raise proxy_protocol.header_timeout if it is slow",
            );
            return None;
        }
    };
    let (version, command) = words(&header);
    let front = if owed == Owed::Signed {
        match believe(shared, view, &header, &raw, service_port) {
            Ok(front) => front,
            Err(cause) => {
                let fix = "a front joins with its own key: posthousectl cluster join-token create --role front";
                refuse(shared, peer, "unsigned", &cause, fix);
                return None;
            }
        }
    } else {
        peer.ip().to_string()
    };
    counter!(PROXY_HEADERS, "version" => version, "command" => command, "result" => "ok").increment(1);
    let session_id = header
        .unique_id
        .as_deref()
        .filter(|_| owed == Owed::Signed)
        .and_then(|id| std::str::from_utf8(id).ok())
        .filter(|id| id.len() == SESSION_ID_CHARS && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map_or_else(new_session_id, str::to_owned);
    let (probe, source, dialled) = match (header.source, header.destination) {
        (Some(source), Some(destination)) => (false, source, destination.ip()),
        _ => (true, peer, tcp.local_addr().map_or_else(|_| peer.ip(), |local| local.ip())),
    };
    let (dialled, signed) = (dialled.to_canonical(), owed == Owed::Signed);
    Some(Introduced { source, dialled, front: Some(front), probe, signed, session_id, rest })
}

/// Whether a connection from the address of a front is no more than a check, for a node that takes none anyway. It
/// changes nothing: a header of which only so much is asked may be seen again.
pub(super) async fn is_check(shared: &Shared, view: &StateView, tcp: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(CHECK_HEADER_TIMEOUT, read_header(tcp)).await;
    let Ok(Ok((header, raw, _))) = read else { return false };
    let keys = shared.front_keys.of(view);
    header.command == Command::Local
        && verify(&header, &raw, |id| keys.get(id).cloned(), &shared.options.node_name, now_ms()).is_ok()
}

/// Checks a front's signature, its freshness and the service it names.
fn believe(
    shared: &Shared,
    view: &StateView,
    header: &Header,
    raw: &[u8],
    service_port: u16,
) -> Result<String, String> {
    let (keys, now_ms) = (shared.front_keys.of(view), now_ms());
    let verified = verify(header, raw, |id| keys.get(id).cloned(), &shared.options.node_name, now_ms);
    let verified = verified.map_err(|error| {
        if let SignatureError::UnknownKey(id) = &error {
            shared.unknown_key.saw(header, id, view);
        }
        error.to_string()
    })?;
    if verified.service_port != service_port {
        return Err(format!("the header is for service {}, the socket for {service_port}", verified.service_port));
    }
    shared.front_clocks.saw(&verified.key_id, verified.time_ms, now_ms);
    let mut replay = shared.replay.lock().unwrap_or_else(PoisonError::into_inner);
    match replay.check_and_insert(&verified.key_id, verified.nonce, verified.time_ms, now_ms) {
        Replay::Fresh => Ok(verified.front),
        Replay::Repeated | Replay::TooOld => Err("the header was seen before or is too old".to_owned()),
    }
}

/// A key that one of our fronts signs with and this node does not know: it lags behind the cluster, and fronts should
/// ask others. Nothing of such a header is believed, so this can only make the node unready, never refuse.
#[derive(Default)]
pub(super) struct UnknownKey(Mutex<Option<(Instant, String)>>);

/// How long one such header counts. A front that goes on is heard again long before: it checks twice a second.
const UNKNOWN_KEY_COUNTS: Duration = Duration::from_secs(2);

impl UnknownKey {
    fn saw(&self, header: &Header, id: &str, view: &StateView) {
        let claimed = header.signature.as_ref().map(|signature| signature.claimed_front()).unwrap_or_default();
        if view.state.fronts.contains_key(claimed) {
            let said = format!("front \"{claimed}\" signs with key {id}, which this node does not know yet");
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), said));
        }
    }

    /// The trouble in words, while it is fresh.
    pub(super) fn trouble(&self) -> Option<String> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.as_ref().filter(|(at, _)| at.elapsed() < UNKNOWN_KEY_COUNTS).map(|(_, said)| said.clone())
    }
}

enum Refused {
    /// The peer connected and left: a port check, not worth a word.
    Silent,
    /// Not a header.
    Missing(String),
}

async fn read_header(tcp: &mut TcpStream) -> Result<(Header, Vec<u8>, Vec<u8>), Refused> {
    let mut bytes = Vec::with_capacity(256);
    loop {
        match parse(&bytes) {
            Parsed::Header { header, consumed } => {
                let rest = bytes.split_off(consumed);
                return Ok((header, bytes, rest));
            }
            Parsed::Invalid(error) => return Err(Refused::Missing(error.to_string())),
            Parsed::Incomplete if bytes.len() >= 2 * HEADER_BYTES_MAX => {
                return Err(Refused::Missing("too long".to_owned()));
            }
            Parsed::Incomplete => {}
        }
        match tcp.read_buf(&mut bytes).await {
            Ok(0) if bytes.is_empty() => return Err(Refused::Silent),
            Ok(0) => return Err(Refused::Missing("the connection ended inside the header".to_owned())),
            Ok(_) => {}
            Err(_) => return Err(Refused::Silent),
        }
    }
}

/// What to change about a peer that owes a header and sends something else.
fn must_send(owed: Owed) -> &'static str {
    match owed {
        Owed::Signed => {
            "a front dials from this address; if devices or another program share it, give the front one of its own \
             (front.dial_from in the front file)"
        }
        Owed::Plain | Owed::Nothing => {
            "have the balancer send PROXY headers, or take its address out of proxy_protocol.trusted in the node file"
        }
    }
}

fn words(header: &Header) -> (&'static str, &'static str) {
    let version = match header.version {
        Version::V1 => "v1",
        Version::V2 => "v2",
    };
    let command = match header.command {
        Command::Proxy => "proxy",
        Command::Local => "local",
    };
    (version, command)
}

/// Whether the first bytes of a device are a PROXY header, which it has no right to send.
pub(super) fn is_header(bytes: &[u8]) -> bool {
    bytes.starts_with(V1_START) || bytes.starts_with(V2_START)
}

/// A device sent a PROXY header.
pub(super) fn refuse_unlisted(shared: &Shared, peer: SocketAddr) {
    let fix = "if it is a load balancer, add it to proxy_protocol.trusted in the node file";
    refuse(shared, peer, "unlisted", "a PROXY header from an address that is not listed", fix);
}

fn refuse(shared: &Shared, peer: SocketAddr, result: &'static str, cause: &str, fix: &'static str) {
    counter!(PROXY_HEADERS, "version" => "none", "command" => "none", "result" => result).increment(1);
    if shared.complaints.is_due(peer.ip()) {
        tracing::warn!(peer = %peer, cause, fix, "connection closed: PROXY header");
    }
}

/// When each address was complained about last: a misconfigured balancer must not fill the log.
#[derive(Default)]
pub(super) struct Complaints(Mutex<BTreeMap<IpAddr, Instant>>);

impl Complaints {
    fn is_due(&self, address: IpAddr) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if last.get(&address).is_some_and(|at| now - *at < COMPLAINT_INTERVAL) {
            return false;
        }
        if last.len() >= COMPLAINTS_MAX {
            last.retain(|_, at| now - *at < COMPLAINT_INTERVAL);
            if last.len() >= COMPLAINTS_MAX {
                return false;
            }
        }
        last.insert(address, now);
        true
    }
}

/// 64 random bits in hexadecimal, as fronts make them too.
const SESSION_ID_CHARS: usize = 16;

fn new_session_id() -> String {
    crate::pki::random::<8>().iter().map(|byte| format!("{byte:02X}")).collect()
}
