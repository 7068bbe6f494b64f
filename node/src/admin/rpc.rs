//! The gRPC edges of a node: the port for members, fronts and administrators (TLS, client certificate optional, each
//! service decides), and the local Unix socket (the kernel says who calls).

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::transport::server::{Connected, Router};

use crate::pki::{PeerIdentity, PeerInfo, certificate_identity};
use crate::shutdown::Scope;

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way at once; more wait in the listen queue.
const HANDSHAKES_MAX: usize = 64;
/// Finished handshakes waiting for the server task.
const ACCEPTED_MAX: usize = 16;

/// Who makes this call.
#[must_use]
pub fn peer<T>(request: &Request<T>) -> PeerInfo {
    request
        .extensions()
        .get::<PeerInfo>()
        .cloned()
        .unwrap_or_else(|| PeerInfo { identity: PeerIdentity::Anonymous, from: "unknown".to_owned() })
}

/// A connection with what is known of its peer.
pub(super) struct Conn<S> {
    stream: S,
    info: PeerInfo,
}

impl<S> Connected for Conn<S> {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Conn<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Conn<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Serves `router` on a TLS port until the scope ends.
pub fn serve_tls(listener: TcpListener, tls: Arc<ServerConfig>, cluster_id: String, router: Router, scope: &Scope) {
    let (sender, receiver) = mpsc::channel::<io::Result<Conn<TlsStream<TcpStream>>>>(ACCEPTED_MAX);
    let accepting = scope.clone();
    scope.spawn_until_ended(async move {
        let acceptor = TlsAcceptor::from(tls);
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        loop {
            let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
            let (tcp, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a cluster connection");
                    // Out of descriptors, as a rule: accepting again at once would only spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (acceptor, sender, cluster_id) = (acceptor.clone(), sender.clone(), cluster_id.clone());
            accepting.spawn_until_ended(async move {
                let _permit = permit;
                let _ = tcp.set_nodelay(true);
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
                    Ok(Ok(stream)) => {
                        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                        let identity =
                            certificate.map_or(PeerIdentity::Anonymous, |der| certificate_identity(der, &cluster_id));
                        let info = PeerInfo { identity, from: from.to_string() };
                        let _ = sender.send(Ok(Conn { stream, info })).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%from, %error, "cluster connection refused"),
                    Err(_) => tracing::debug!(%from, "cluster connection timed out in the handshake"),
                }
            });
        }
    });
    let ended = scope.clone();
    scope.spawn(async move {
        let incoming = ReceiverStream::new(receiver);
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, async move { ended.ended().await }).await {
            tracing::error!(%error, "the cluster port stopped answering");
        }
    });
}

/// Binds the local administration socket, mode 0600, replacing one that a dead process left.
///
/// # Errors
/// When the path cannot be bound, or a living process answers on it.
pub fn bind_local(path: &Path) -> io::Result<UnixListener> {
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers on it"));
        }
        std::fs::remove_file(path)?;
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves `router` on the local socket until the scope ends.
pub fn serve_local(listener: UnixListener, router: Router, scope: &Scope) {
    let (sender, receiver) = mpsc::channel::<io::Result<Conn<UnixStream>>>(ACCEPTED_MAX);
    scope.spawn_until_ended(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Without the kernel's word the caller is nobody.
                    let identity = stream
                        .peer_cred()
                        .map_or(PeerIdentity::Anonymous, |peer| PeerIdentity::Local { uid: peer.uid() });
                    let info = PeerInfo { identity, from: "unix".to_owned() };
                    if sender.send(Ok(Conn { stream, info })).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a local connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    let ended = scope.clone();
    scope.spawn(async move {
        let incoming = ReceiverStream::new(receiver);
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, async move { ended.ended().await }).await {
            tracing::error!(%error, "the local socket stopped answering");
        }
    });
}
