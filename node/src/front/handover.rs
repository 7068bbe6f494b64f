//! Restarting and upgrading a front without refusing a connection. The process that runs hands its listening sockets
//! to the one that comes, as file descriptors over a local socket (`SCM_RIGHTS`, unix(7)). Both then accept from the
//! same queue, so that nothing in it is lost; when the new one says that it serves, the old one accepts no more and
//! lets its sessions finish. If the new one dies before that, nothing has happened.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};
use tracing::{info, warn};

use crate::shutdown::{Scope, run_blocking};

/// In the front's data directory, which is its own.
const SOCKET: &str = "handover.sock";
/// SCM_MAX_FD is 253 (unix(7)); a front has a handful of sockets.
const SOCKETS_MAX: usize = 64;
/// The names of the sockets.
const NAMES_BYTES_MAX: usize = 16 * 1024;
/// What the new process says first, and when it serves.
const GIVE: u8 = b'G';
const SERVING: u8 = b'S';
/// How long the other process may take for a few bytes.
const TALK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the new process may take until it serves: it reads its files and checks the backends first.
const SERVING_TIMEOUT: Duration = Duration::from_secs(60);

/// Why there is no taking over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// Nobody runs there, or the socket cannot be used.
    #[error("{path}: no running front hands its sockets over: {source}", path = path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It said something else.
    #[error("the running front handed over {0}")]
    Nonsense(String),
}

/// What a socket is, as both processes name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Name {
    /// Devices connect there; the address of the file, port 0 included.
    Listen(SocketAddr),
    /// `/readyz` and `/metrics`.
    Http,
    /// Local administration.
    Local,
}

/// The sockets that the process before this one handed over.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<(Name, OwnedFd)>,
    predecessor: Option<UnixStream>,
}

impl Inherited {
    fn find(&mut self, name: &Name) -> Option<OwnedFd> {
        let index = self.sockets.iter().position(|(known, _)| known == name)?;
        Some(self.sockets.remove(index).1)
    }

    /// The socket of `[[listen]] address`, if it was among them.
    pub(super) fn take(&mut self, address: SocketAddr) -> Option<io::Result<TcpListener>> {
        self.find(&Name::Listen(address)).map(|fd| TcpListener::from_std(fd.into()))
    }

    /// The socket of `/readyz`.
    pub fn take_http(&mut self) -> Option<io::Result<TcpListener>> {
        self.find(&Name::Http).map(|fd| TcpListener::from_std(fd.into()))
    }

    /// The socket of local administration.
    pub fn take_local(&mut self) -> Option<io::Result<UnixListener>> {
        self.find(&Name::Local).map(|fd| UnixListener::from_std(fd.into()))
    }

    /// The process that handed them over; it goes on until it is told that this one serves.
    pub fn take_predecessor(&mut self) -> Option<Predecessor> {
        self.predecessor.take().map(Predecessor)
    }
}

/// The process before this one.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

impl Predecessor {
    /// Tells it that this process serves: it accepts no more and lets its sessions finish.
    ///
    /// # Errors
    /// When it is gone; then there is nobody to tell.
    pub async fn serving(self) -> io::Result<()> {
        run_blocking(move || (&self.0).write_all(&[SERVING])).await
    }
}

/// Asks the front that runs with `data_dir` for its sockets.
///
/// # Errors
/// When none runs there.
pub async fn take_over(data_dir: &Path) -> Result<Inherited, HandoverError> {
    let path = data_dir.join(SOCKET);
    run_blocking(move || receive(&path)).await
}

fn receive(path: &Path) -> Result<Inherited, HandoverError> {
    let failed = |source| HandoverError::Socket { path: path.to_owned(), source };
    let mut stream = UnixStream::connect(path).map_err(failed)?;
    stream.set_read_timeout(Some(TALK_TIMEOUT)).map_err(failed)?;
    stream.set_write_timeout(Some(TALK_TIMEOUT)).map_err(failed)?;
    stream.write_all(&[GIVE]).map_err(failed)?;
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut length)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
    );
    let received = received.map_err(|error| failed(error.into()))?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let length = u32::from_be_bytes(length) as usize;
    if received.bytes != 4 || length > NAMES_BYTES_MAX {
        return Err(HandoverError::Nonsense(format!("{} bytes, then {length}", received.bytes)));
    }
    let mut names = vec![0; length];
    stream.read_exact(&mut names).map_err(failed)?;
    let names: Vec<Name> =
        serde_json::from_slice(&names).map_err(|error| HandoverError::Nonsense(error.to_string()))?;
    if names.len() != fds.len() {
        return Err(HandoverError::Nonsense(format!("{} sockets and {} names", fds.len(), names.len())));
    }
    Ok(Inherited { sockets: names.into_iter().zip(fds).collect(), predecessor: Some(stream) })
}

/// Hands this process's sockets to the one that comes after it.
#[derive(Debug)]
pub struct Handover {
    path: PathBuf,
    sockets: Vec<(Name, OwnedFd)>,
}

impl Handover {
    /// Nothing to hand over yet.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self { path: data_dir.join(SOCKET), sockets: Vec::new() }
    }

    /// The socket of `/readyz`.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn add_http(&mut self, listener: &TcpListener) -> io::Result<()> {
        self.add(Name::Http, listener.as_fd())
    }

    /// The socket of local administration.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn add_local(&mut self, listener: &UnixListener) -> io::Result<()> {
        self.add(Name::Local, listener.as_fd())
    }

    /// A socket for devices, under the address of the file.
    pub(super) fn add_listen(&mut self, address: SocketAddr, listener: &TcpListener) -> io::Result<()> {
        self.add(Name::Listen(address), listener.as_fd())
    }

    fn add(&mut self, name: Name, fd: BorrowedFd<'_>) -> io::Result<()> {
        if self.sockets.len() < SOCKETS_MAX {
            self.sockets.push((name, fd.try_clone_to_owned()?));
        }
        Ok(())
    }

    /// Waits for a successor that serves. Returns never if none comes; the caller then drains.
    ///
    /// # Cancel safety
    /// Cancel safe: a successor that is in the middle of it finds the connection closed.
    pub async fn serve(&self) {
        let listener = match self.bind() {
            Ok(listener) => listener,
            Err(error) => {
                warn!(path = %self.path.display(), %error, "this front cannot hand its sockets over");
                return std::future::pending().await;
            }
        };
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            match self.hand_over(stream).await {
                Ok(()) => return info!("another process of this front serves: this one accepts no more"),
                Err(error) => warn!(%error, "a successor did not come to serve: this process goes on"),
            }
        }
    }

    fn bind(&self) -> io::Result<UnixListener> {
        // Whoever had it is either gone or has heard that we serve.
        let _ = std::fs::remove_file(&self.path);
        let listener = UnixListener::bind(&self.path)?;
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    async fn hand_over(&self, stream: tokio::net::UnixStream) -> io::Result<()> {
        // Whoever takes our sockets takes our devices: it must be ourselves, or root.
        let peer = stream.peer_cred()?.uid();
        if peer != 0 && peer != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {peer} asked")));
        }
        let stream = stream.into_std()?;
        let mut sockets = Vec::new();
        for (name, fd) in &self.sockets {
            sockets.push((name.clone(), fd.try_clone()?));
        }
        run_blocking(move || give(stream, &sockets)).await
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        for (name, _) in &self.sockets {
            info!(?name, "a socket of the process before is in no file any more and is closed");
        }
    }
}

fn give(mut stream: UnixStream, sockets: &[(Name, OwnedFd)]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TALK_TIMEOUT))?;
    stream.set_write_timeout(Some(TALK_TIMEOUT))?;
    let mut word = [0; 1];
    stream.read_exact(&mut word)?;
    if word != [GIVE] {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let names: Vec<&Name> = sockets.iter().map(|(name, _)| name).collect();
    let names = serde_json::to_vec(&names)?;
    let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(|(_, fd)| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let length = u32::try_from(names.len()).unwrap_or(u32::MAX).to_be_bytes();
    rustix::net::sendmsg(&stream, &[IoSlice::new(&length)], &mut control, SendFlags::empty())?;
    stream.write_all(&names)?;
    stream.set_read_timeout(Some(SERVING_TIMEOUT))?;
    stream.read_exact(&mut word)?;
    if word == [SERVING] { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Waits for a successor that serves, calls `succeeded`, and then ends `scope`. Answers whether one came before `scope`
/// ended otherwise. Call it when this process serves: whoever had the handover socket before loses it.
pub async fn until_succeeded(handover: Handover, scope: &Scope, succeeded: impl FnOnce()) -> bool {
    tokio::select! {
        () = scope.ended() => {
            let _ = std::fs::remove_file(&handover.path);
            false
        }
        () = handover.serve() => {
            succeeded();
            scope.end();
            true
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn sockets_are_handed_over_with_the_connections_in_their_queue() {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut handover = Handover::new(dir.path());
        handover.add_listen(address, &listener).unwrap();
        handover.add_http(&listener).unwrap();
        let scope = Scope::new();
        let (inner, (sender, receiver)) = (scope.clone(), tokio::sync::oneshot::channel());
        scope.spawn(async move {
            let _ = sender.send(until_succeeded(handover, &inner, || ()).await);
        });
        let mut inherited = loop {
            match take_over(dir.path()).await {
                Ok(inherited) => break inherited,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        // Connected, and accepted by nobody yet: the old process closes its own descriptor.
        let device = tokio::net::TcpStream::connect(address).await.unwrap();
        drop(listener);
        let successor = inherited.take(address).unwrap().unwrap();
        assert!(inherited.take(address).is_none() && inherited.take_http().is_some());
        let (_, from) = successor.accept().await.unwrap();
        assert_eq!(from, device.local_addr().unwrap());
        assert!(!scope.is_ended(), "not before the new one serves");
        inherited.take_predecessor().unwrap().serving().await.unwrap();
        assert!(receiver.await.unwrap() && scope.is_ended());
    }

    #[tokio::test]
    async fn a_successor_that_dies_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let scope = Scope::new();
        let (inner, handover) = (scope.clone(), Handover::new(dir.path()));
        scope.spawn(async move {
            let _ = until_succeeded(handover, &inner, || ()).await;
        });
        for _ in 0..2 {
            let inherited = loop {
                match take_over(dir.path()).await {
                    Ok(inherited) => break inherited,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            drop(inherited);
        }
        assert!(!scope.is_ended());
        scope.end();
    }

    #[tokio::test]
    async fn there_is_nothing_to_take_where_nobody_runs() {
        let dir = tempfile::tempdir().unwrap();
        let error = take_over(dir.path()).await.unwrap_err().to_string();
        assert!(error.contains("no running front"), "{error}");
    }
}
