//! Connecting to a backend, for checks and devices alike, and what our first words to it are: the signed header.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::rand;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::check::CheckFailure;
use super::config::FrontConfig;
use crate::clock;
use crate::proxy_protocol::{FrontKey, HeaderFacts, build_signed};

/// How a front reaches backends, and who it is to them.
pub(super) struct Outward {
    key: ArcSwap<FrontKey>,
    dial_from: Option<IpAddr>,
    connect_timeout: Duration,
    pub(super) sockets: SocketOptions,
}

/// What every connection of a front gets.
#[derive(Clone, Copy)]
pub(super) struct SocketOptions {
    user_timeout: Duration,
    keepalive: Duration,
}

impl SocketOptions {
    /// Best effort: a socket that refuses an option still carries mail.
    pub(super) fn apply(&self, stream: &TcpStream) {
        let socket = SockRef::from(stream);
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_tcp_user_timeout(Some(self.user_timeout));
        let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(self.keepalive).with_interval(self.keepalive));
    }
}

/// What one header is about.
pub(super) struct About<'a> {
    pub node: &'a str,
    pub service_port: u16,
    pub session_id: &'a str,
    pub is_stale: bool,
    /// Source and destination of the device; nothing for a check.
    pub device: Option<(SocketAddr, SocketAddr)>,
}

impl Outward {
    pub(super) fn new(key: FrontKey, config: &FrontConfig) -> Self {
        Self {
            key: ArcSwap::from_pointee(key),
            dial_from: config.front.dial_from,
            connect_timeout: config.check.connect_timeout,
            sockets: SocketOptions { user_timeout: config.limits.user_timeout, keepalive: config.limits.keepalive },
        }
    }

    /// The id of the key that headers are signed with.
    pub(super) fn key_id(&self) -> String {
        self.key.load().id.clone()
    }

    /// Signs with another key from now on.
    pub(super) fn sign_with(&self, key: FrontKey) {
        self.key.store(Arc::new(key));
    }

    /// `check.connect_timeout`, which grows under overload.
    pub(super) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Connects within a deadline, name lookup included.
    ///
    /// # Cancel safety
    /// Cancel safe: the connection is dropped.
    pub(super) async fn connect(&self, address: &str, deadline: Duration) -> Result<TcpStream, CheckFailure> {
        match timeout(deadline, self.connect_patiently(address)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(CheckFailure::Refused(error.to_string())),
            Err(_) => Err(CheckFailure::ConnectTimeout),
        }
    }

    /// Connects, however long the kernel takes.
    ///
    /// # Cancel safety
    /// Cancel safe: the connection is dropped.
    pub(super) async fn connect_patiently(&self, address: &str) -> std::io::Result<TcpStream> {
        let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
        for address in lookup(address).await? {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            if let Some(from) = self.dial_from.filter(|from| from.is_ipv4() == address.is_ipv4()) {
                socket.bind(SocketAddr::new(from, 0))?;
            }
            match socket.connect(address).await {
                // On loopback, dialling a port that nobody listens on can meet itself (RFC 9293 §3.5: simultaneous
                // open).
                Ok(stream) if stream.local_addr()? == address => {
                    last = std::io::ErrorKind::ConnectionRefused.into();
                }
                Ok(stream) => {
                    self.sockets.apply(&stream);
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The header that opens a connection to a backend.
    pub(super) fn header(&self, about: &About<'_>) -> Vec<u8> {
        let mut nonce = [0; 16];
        fill(&mut nonce);
        let nobody = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let (source, destination) = about.device.unwrap_or((nobody, nobody));
        let facts = HeaderFacts {
            node: about.node,
            source,
            destination,
            service_port: about.service_port,
            time_ms: clock::now_ms(),
            nonce,
            unique_id: about.session_id,
            local: about.device.is_none(),
            deep_probe: false,
            stale: about.is_stale,
        };
        build_signed(&self.key.load(), &facts)
    }
}

async fn lookup(address: &str) -> std::io::Result<Vec<SocketAddr>> {
    match address.parse() {
        Ok(address) => Ok(vec![address]),
        Err(_) => Ok(tokio::net::lookup_host(address).await?.collect()),
    }
}

/// A new session id: 16 hexadecimal digits, the string that finds a session in every log.
pub(super) fn session_id() -> String {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    format!("{:016X}", u64::from_be_bytes(bytes))
}

fn fill(bytes: &mut [u8]) {
    // Without randomness nothing here is safe; the kernel's generator does not fail once it is seeded.
    rand::fill(bytes).expect("the system's random generator must work");
}
