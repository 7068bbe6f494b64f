//! Accepts connections, finds out whose they are, picks the connector, and hands them to the driver.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::driver::{self, Opened};
use super::header::{self, Introduced, Owed};
use super::metrics_names::{CONNECTIONS, SESSIONS, count_limit};
use super::{Bound, Shared};
use crate::clock::now_ms;
use crate::connector::Match;
use crate::mail::{EnhancedCode, Reply, reply};
use crate::shutdown::Scope;

/// How long the last words to a refused device may take.
const FAREWELL: Duration = Duration::from_secs(5);
/// Pause after a failed accept: out of descriptors, as a rule; trying again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until dropped.
pub(super) async fn run(shared: Arc<Shared>, bound: Bound, sessions: Scope) {
    let (service_port, implicit_tls) = (bound.service_port, bound.implicit_tls);
    loop {
        let Ok(permit) = Arc::clone(&shared.permits).acquire_owned().await else { return };
        match bound.listener.accept().await {
            Ok((tcp, peer)) => {
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                let (shared, ended) = (Arc::clone(&shared), sessions.clone());
                sessions.spawn(async move {
                    connection(&shared, tcp, peer, service_port, implicit_tls, permit, ended).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, address = %bound.address, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    shared: &Arc<Shared>,
    mut tcp: TcpStream,
    peer: SocketAddr,
    service_port: u16,
    implicit_tls: bool,
    _permit: OwnedSemaphorePermit,
    ended: Scope,
) {
    let _ = tcp.set_nodelay(true);
    let view = shared.view();
    let owed = header::owed(shared, &view, peer.ip());
    if let Some(reason) = shared.refusing() {
        if owed == Owed::Signed && header::is_check(shared, &view, &mut tcp).await {
            tracing::trace!(%peer, %reason, "check by a front refused");
            return;
        }
        counter!(CONNECTIONS, "connector" => "", "result" => "not_ready").increment(1);
        tracing::debug!(%peer, %reason, "connection refused: this node is not ready");
        // A front tries another node when it sees no byte; a device that came straight here is told.
        if owed == Owed::Nothing && !implicit_tls {
            farewell(&mut tcp, &not_active()).await;
        }
        return;
    }
    let introduced = header::introduce(shared, &view, &mut tcp, peer, owed, service_port).await;
    let Some(introduced) = introduced else { return };
    if introduced.probe {
        if introduced.signed {
            tracing::trace!(%peer, "check by a front");
        } else {
            tracing::debug!(%peer, "check by a balancer");
        }
        driver::probe(shared, tcp, introduced, implicit_tls, ended).await;
        return;
    }
    let local = SocketAddr::new(introduced.dialled, service_port);
    let found = view.table.find(local, introduced.source.ip(), now_ms());
    let Some(Match { connector, range, expired }) = found else {
        counter!(CONNECTIONS, "connector" => "", "result" => "no_connector").increment(1);
        tracing::debug!(source.addr = %introduced.source, session.id = %introduced.session_id, "no connector");
        if !implicit_tls {
            let refusal = reply::service_not_available().with_suffix(&format!("[{}]", introduced.session_id));
            farewell(&mut tcp, &refusal).await;
        }
        return;
    };
    // Also when a limit refuses it: the device is there, and its entry is in use.
    shared.options.usages.connected(&connector.name, range, now_ms());
    let (source, source_port) = (introduced.source.ip(), introduced.source.port());
    let counted = shared.options.counts.open(&connector, source);
    if let Err(refusal) = &counted {
        count_limit(&connector.name, *refusal);
        let name = connector.name.clone();
        counter!(CONNECTIONS, "connector" => name, "result" => "limit").increment(1);
        tracing::debug!(source.addr = %introduced.source, connector = %connector.name, %refusal, "connection refused");
        if !implicit_tls {
            farewell(&mut tcp, &refusal.reply().with_suffix(&format!("[{}]", introduced.session_id))).await;
        }
        return;
    }
    counter!(CONNECTIONS, "connector" => connector.name.clone(), "result" => "accepted").increment(1);
    let _open = OpenSession::new(shared);
    let Introduced { front, signed, session_id, rest, .. } = introduced;
    let opened =
        Opened { connector, range, expired, local, source, source_port, peer, front, signed, session_id, implicit_tls };
    driver::session(shared, tcp, rest, opened, ended).await;
}

/// Exchange's words for a component that is draining.
fn not_active() -> Reply {
    Reply::new(421, Some(EnhancedCode::new(4, 3, 2)), "Service not active")
}

async fn farewell(tcp: &mut TcpStream, refusal: &Reply) {
    let mut bytes = Vec::new();
    refusal.write_to(&mut bytes, true);
    let said = async {
        tcp.write_all(&bytes).await?;
        tcp.shutdown().await
    };
    // Whoever does not listen loses nothing but our last words.
    let _ = tokio::time::timeout(FAREWELL, said).await;
}

/// Counts a session for as long as it lives, however it ends.
struct OpenSession {
    shared: Arc<Shared>,
}

impl OpenSession {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.options.sessions.fetch_add(1, Ordering::Relaxed);
        gauge!(SESSIONS).increment(1.0);
        Self { shared: Arc::clone(shared) }
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.shared.options.sessions.fetch_sub(1, Ordering::Relaxed);
        gauge!(SESSIONS).decrement(1.0);
    }
}
