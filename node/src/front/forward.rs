//! A device's connection: accept, find a backend that speaks, pass its first bytes on, copy both ways. What a backend
//! says, `421` included, is meant for the device and passed on.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::config::FrontConfig;
use super::dial::{Outward, session_id};
use super::hello::Hello;
use super::idle::Idle;
use super::metrics_names::{CONNECTIONS_TOTAL, ConnectionResult, SESSIONS, SESSIONS_BROKEN_TOTAL};
use super::pool::{BackendSession, Pool};
use super::pump::{End, Pump, write_all};
use super::search::{Caller, Found, NotFound, Search};
use super::sources::{SourceLimits, Sources, TooMany};
use crate::shutdown::Scope;

/// What a device hears on a port where the server speaks first, when nobody can be had (RFC 5321 §3.8; the text is
/// Exchange's).
const SERVICE_NOT_AVAILABLE: &[u8] = b"421 4.3.2 Service not available, closing transmission channel\r\n";
/// And when it has too many of its own (Exchange's text for a per-source limit).
const PER_SOURCE_LIMIT: &[u8] = b"421 4.3.2 The maximum number of concurrent server connections has exceeded a \
    per-source limit, closing transmission channel\r\n";
/// And when it makes them too fast; Exchange counts no rate of connections, so the words are ours in its manner.
const PER_SOURCE_RATE: &[u8] = b"421 4.3.2 The rate of new server connections has exceeded a per-source limit, \
    closing transmission channel\r\n";
/// How long a device may take to accept a few bytes.
const DEVICE_WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (out of file descriptors, mostly): there is nothing to do but let sessions end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One bound socket for devices.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServiceSocket {
    pub port: u16,
    pub implicit_tls: bool,
}

/// Everything that a device's connection needs.
pub(super) struct Forwarder {
    pool: Arc<Pool>,
    outward: Arc<Outward>,
    max_attempts: usize,
    pub(super) idle: Arc<Idle>,
    hello_timeout: Duration,
    sources: Arc<Mutex<Sources>>,
    places: Arc<Semaphore>,
    places_max: usize,
    sessions: Scope,
}

impl Forwarder {
    pub(super) fn new(pool: Arc<Pool>, outward: Arc<Outward>, config: &FrontConfig, sessions: Scope) -> Self {
        let places_max = config.limits.max_connections.min(Semaphore::MAX_PERMITS);
        Self {
            pool,
            outward,
            max_attempts: config.check.max_attempts,
            idle: Idle::new(config.limits.idle_timeout),
            hello_timeout: config.limits.hello_timeout,
            sources: Arc::new(Mutex::new(Sources::new(SourceLimits {
                connections: config.limits.max_connections_per_source,
                per_second: config.limits.connections_per_source_per_second,
            }))),
            places: Arc::new(Semaphore::new(places_max)),
            places_max,
            sessions,
        }
    }

    /// Devices that are connected now.
    pub(super) fn sessions(&self) -> usize {
        self.places_max.saturating_sub(self.places.available_permits())
    }

    /// Accepts devices until `scope` ends. Sessions live on in the scope that [`Forwarder::new`] was given.
    pub(super) async fn accept(self: Arc<Self>, listener: TcpListener, service: ServiceSocket, scope: Scope) {
        loop {
            let accepted = tokio::select! {
                () = scope.ended() => return,
                accepted = listener.accept() => accepted,
            };
            let (device, source) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, service = service.port, "accept failed");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let of_source = match OfSource::open(&self.sources, source.ip()) {
                Ok(of_source) => of_source,
                Err(too_many) => {
                    count(ConnectionResult::SourceLimit);
                    debug!(source.addr = %source, service = service.port, ?too_many, "too many connections of one source");
                    if !service.implicit_tls {
                        let _ = device.try_write(match too_many {
                            TooMany::Connections => PER_SOURCE_LIMIT,
                            TooMany::Rate => PER_SOURCE_RATE,
                        });
                    }
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                count(ConnectionResult::Limit);
                debug!(source.addr = %source, service = service.port, "too many connections");
                if !service.implicit_tls {
                    // A new socket's buffer is empty: this does not block, and nothing waits for it.
                    let _ = device.try_write(SERVICE_NOT_AVAILABLE);
                }
                continue;
            };
            let (this, place) = (Arc::clone(&self), Place { _place: place, _of_source: of_source });
            self.sessions.spawn_until_ended(async move { this.serve(device, source, service, place).await });
        }
    }

    /// Finds a backend; copying is another, smaller task, so that what was needed for finding is freed.
    async fn serve(self: Arc<Self>, mut device: TcpStream, source: SocketAddr, service: ServiceSocket, place: Place) {
        self.outward.sockets.apply(&device);
        let id = session_id();
        let found = match self.find(&device, source, service, &id).await {
            Ok(found) => found,
            Err(NotFound::Gone) => {
                debug!(session.id = id, source.addr = %source, service = service.port, "device left before a greeting");
                return count(ConnectionResult::Gone);
            }
            Err(NotFound::Nobody) => {
                count(ConnectionResult::Unserved);
                warn!(session.id = id, source.addr = %source, service = service.port, "no backend could be had");
                if !service.implicit_tls {
                    let _ = write_all(&mut device, SERVICE_NOT_AVAILABLE, DEVICE_WRITE_TIMEOUT).await;
                }
                return;
            }
        };
        if let Err(error) = write_all(&mut device, &found.first, DEVICE_WRITE_TIMEOUT).await {
            debug!(session.id = id, source.addr = %source, %error, "device left before a greeting");
            return count(ConnectionResult::Gone);
        }
        count(ConnectionResult::Served);
        debug!(session.id = id, source.addr = %source, service = service.port, backend = %found.backend, "session opened");
        let Found { stream, backend, session, .. } = found;
        let pump = Pump::new(device, stream, Arc::clone(&self.idle));
        self.sessions.spawn_until_ended(copy(pump, id, backend, session, OpenSession::new(), place));
    }

    async fn find(
        &self,
        device: &TcpStream,
        source: SocketAddr,
        service: ServiceSocket,
        id: &str,
    ) -> Result<Found, NotFound> {
        let destination = device.local_addr().map_err(|_| NotFound::Gone)?;
        let hello = service.implicit_tls.then(|| Hello::new(Instant::now() + self.hello_timeout));
        let caller = Caller { device, source, destination, service: service.port, session_id: id };
        Search::new(&self.pool, &self.outward, caller, hello, self.max_attempts).run().await
    }
}

fn count(result: ConnectionResult) {
    counter!(CONNECTIONS_TOTAL, "result" => result.as_str()).increment(1);
}

async fn copy(pump: Pump, id: String, backend: Arc<str>, session: BackendSession, open: OpenSession, place: Place) {
    let end = pump.await;
    drop((session, open, place));
    match end {
        End::Finished => debug!(session.id = id, %backend, "session closed"),
        End::Idle => debug!(session.id = id, %backend, "session closed: idle"),
        End::DeviceBroke(error) => debug!(session.id = id, %backend, %error, "session broken by the device"),
        End::BackendBroke(error) => {
            counter!(SESSIONS_BROKEN_TOTAL).increment(1);
            warn!(session.id = id, %backend, %error, "session broken by the backend");
        }
    }
}

/// A device's place among all, and among those of its source, while its connection lives.
struct Place {
    _place: OwnedSemaphorePermit,
    _of_source: OfSource,
}

struct OfSource {
    sources: Arc<Mutex<Sources>>,
    address: IpAddr,
}

impl OfSource {
    fn open(sources: &Arc<Mutex<Sources>>, address: IpAddr) -> Result<Self, TooMany> {
        let opened = sources.lock().unwrap_or_else(PoisonError::into_inner).open(address, Instant::now());
        opened.map(|()| Self { sources: Arc::clone(sources), address })
    }
}

impl Drop for OfSource {
    fn drop(&mut self) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).close(self.address);
    }
}

/// Counts one open session in the gauge while it lives.
struct OpenSession;

impl OpenSession {
    fn new() -> Self {
        gauge!(SESSIONS).increment(1.0);
        Self
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        gauge!(SESSIONS).decrement(1.0);
    }
}
