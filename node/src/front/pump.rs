//! Copies bytes both ways until both sides have finished. One small future per session: while nothing moves it holds
//! no buffer and no pipe. A buffer per thread serves all sessions, because a read is written on at once; when one
//! read fills it, more is coming, and the bytes go on through a pipe without being copied (`splice(2)`). What the
//! other side cannot take yet waits on the heap or in the pipe, and only then is nothing more read.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::pipe::{SpliceFlags, splice};
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;

use super::idle::{Idle, Mark};
use super::pipes::{PIPE_BYTES, Pipe};

/// One read. Larger only helps streams, and those are spliced.
const BUFFER_BYTES: usize = 64 * 1024;
/// After so many moves in one go the other sessions of the thread have their turn.
const MOVES_MAX: u32 = 16;

thread_local! {
    /// Shared by all sessions of a worker: a read is written on at once, within one poll.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into_boxed_slice());
}

/// A backend has finished and the device neither takes the rest nor closes: so long it may.
const FIN_TIMEOUT: Duration = Duration::from_secs(30);

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// Both sides finished.
    Finished,
    /// Neither side said anything for too long.
    Idle,
    /// The device's connection broke.
    DeviceBroke(io::Error),
    /// The backend's connection broke.
    BackendBroke(io::Error),
}

/// The copying future.
pub(super) struct Pump {
    device: TcpStream,
    backend: TcpStream,
    up: Way,
    down: Way,
    idle: Arc<Idle>,
    mark: Arc<Mark>,
}

/// One direction.
#[derive(Default)]
struct Way {
    state: WayState,
    held: Held,
}

/// What was read and is not yet written.
#[derive(Default)]
enum Held {
    /// Nothing: an idle session holds nothing.
    #[default]
    Nothing,
    /// The rest of a buffer.
    Bytes { bytes: Box<[u8]>, written: usize },
    /// So many bytes in a pipe. With none it is about to be filled again, or given back.
    Piped { pipe: Box<Pipe>, bytes: usize },
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum WayState {
    #[default]
    Copying,
    /// The reader's end was reached; the writer is to be told.
    Closing,
    Closed,
}

enum Broke {
    Reading(io::Error),
    Writing(io::Error),
}

impl Pump {
    pub(super) fn new(device: TcpStream, backend: TcpStream, idle: Arc<Idle>) -> Self {
        // A socket that cannot say its address is about to break by itself.
        let called = device.local_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
        let mark = idle.watch(called);
        Self { device, backend, up: Way::default(), down: Way::default(), idle, mark }
    }
}

impl Future for Pump {
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = self.get_mut();
        let up = this.up.poll(cx, &this.device, &this.backend, &this.mark);
        if let Poll::Ready(Err(broke)) = up {
            return Poll::Ready(match broke {
                Broke::Reading(error) => End::DeviceBroke(error),
                Broke::Writing(error) => End::BackendBroke(error),
            });
        }
        let backend_was_copying = this.down.state == WayState::Copying;
        let down = this.down.poll(cx, &this.backend, &this.device, &this.mark);
        if let Poll::Ready(Err(broke)) = down {
            return Poll::Ready(match broke {
                Broke::Reading(error) => End::BackendBroke(error),
                Broke::Writing(error) => End::DeviceBroke(error),
            });
        }
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(End::Finished);
        }
        if backend_was_copying && this.down.state != WayState::Copying {
            this.idle.hurry(&this.mark, FIN_TIMEOUT);
        }
        this.mark.poll_over(cx).map(|()| End::Idle)
    }
}

impl Way {
    /// Copies until nothing moves. Ready when this direction is closed.
    fn poll(&mut self, cx: &mut Context<'_>, from: &TcpStream, to: &TcpStream, mark: &Mark) -> Poll<Result<(), Broke>> {
        let mut moves = 0;
        loop {
            if moves >= MOVES_MAX {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.holds_bytes() {
                ready!(to.poll_write_ready(cx)).map_err(Broke::Writing)?;
                if self.write_on(to).map_err(Broke::Writing)? {
                    mark.moved();
                    moves += 1;
                }
                continue;
            }
            match self.state {
                WayState::Closed => return Poll::Ready(Ok(())),
                WayState::Closing => {
                    self.state = WayState::Closed;
                    self.let_go();
                    // RFC 9293 §3.6: one direction ends, the other may still have much to say. A peer that has reset
                    // meanwhile shows that in the other direction.
                    let _ = socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write);
                }
                WayState::Copying => {
                    let Poll::Ready(ready) = from.poll_read_ready(cx) else {
                        self.let_go();
                        return Poll::Pending;
                    };
                    ready.map_err(Broke::Reading)?;
                    if self.read_once(from, to)? {
                        mark.moved();
                        moves += 1;
                    }
                }
            }
        }
    }

    fn holds_bytes(&self) -> bool {
        !matches!(self.held, Held::Nothing | Held::Piped { bytes: 0, .. })
    }

    /// Gives an empty pipe back.
    fn let_go(&mut self) {
        if let Held::Piped { pipe, bytes: 0 } = std::mem::take(&mut self.held) {
            pipe.give_back();
        }
    }

    /// Writes some of what is held. Answers whether anything moved.
    fn write_on(&mut self, to: &TcpStream) -> io::Result<bool> {
        let moved = match &mut self.held {
            Held::Nothing => return Ok(false),
            Held::Bytes { bytes, written } => to.try_write(&bytes[*written..]).inspect(|count| *written += count),
            Held::Piped { pipe, bytes } => {
                // SPLICE_F_MORE is not set: the last segment of a letter must not wait for another one.
                let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
                let moved = to.try_io(Interest::WRITABLE, || Ok(splice(&pipe.read, None, to, None, *bytes, flags)?));
                moved.inspect(|count| *bytes = bytes.saturating_sub(*count))
            }
        };
        if let Held::Bytes { bytes, written } = &self.held
            && *written >= bytes.len()
        {
            self.held = Held::Nothing;
        }
        match moved {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads once, into the pipe if one is held, else into the thread's buffer. Answers whether anything moved.
    fn read_once(&mut self, from: &TcpStream, to: &TcpStream) -> Result<bool, Broke> {
        if let Held::Piped { pipe, bytes } = &mut self.held {
            let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
            // The pipe is empty: that it would block means that the socket has nothing.
            let read =
                from.try_io(Interest::READABLE, || Ok(splice(from, None, &pipe.write, None, PIPE_BYTES, flags)?));
            return match read {
                Ok(0) => {
                    self.state = WayState::Closing;
                    Ok(false)
                }
                Ok(count) => {
                    *bytes = count;
                    Ok(true)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
                Err(error) => Err(Broke::Reading(error)),
            };
        }
        BUFFER.with_borrow_mut(|buffer| {
            let count = match from.try_read(buffer) {
                Ok(0) => {
                    self.state = WayState::Closing;
                    return Ok(false);
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(Broke::Reading(error)),
            };
            let mut bytes = &buffer[..count];
            while !bytes.is_empty() {
                match to.try_write(bytes) {
                    Ok(written) => bytes = &bytes[written..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.held = Held::Bytes { bytes: bytes.into(), written: 0 };
                        return Ok(true);
                    }
                    Err(error) => return Err(Broke::Writing(error)),
                }
            }
            if count == BUFFER_BYTES
                && let Some(pipe) = Pipe::borrow()
            {
                self.held = Held::Piped { pipe: Box::new(pipe), bytes: 0 };
            }
            Ok(true)
        })
    }
}

/// Writes everything under a deadline.
///
/// # Errors
/// When the connection broke or the deadline passed.
pub(super) async fn write_all(to: &mut TcpStream, bytes: &[u8], limit: Duration) -> io::Result<()> {
    let mut written = 0;
    let all = std::future::poll_fn(|cx| {
        while written < bytes.len() {
            match ready!(Pin::new(&mut *to).poll_write(cx, &bytes[written..])) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    });
    tokio::time::timeout(limit, all).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::shutdown::Scope;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn all_bytes_arrive_both_ways_also_when_the_reader_is_slow_and_after_a_half_close() {
        let (mut device, device_side) = pair().await;
        let (backend_side, mut backend) = pair().await;
        let idle = Idle::new(Duration::from_secs(20));
        let pump = Pump::new(device_side, backend_side, idle);
        let letter: Vec<u8> = (0..8_000_000u32).map(|at| (at % 251) as u8).collect();
        let sent = letter.clone();
        let device_task = async move {
            let (mut read, mut write) = device.split();
            let mut reply = Vec::new();
            let write_all = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            tokio::join!(write_all, async { read.read_to_end(&mut reply).await.unwrap() });
            reply
        };
        let backend_task = async move {
            sleep(Duration::from_millis(50)).await;
            let mut got = Vec::new();
            backend.read_to_end(&mut got).await.unwrap();
            backend.write_all(b"250 after your half-close\r\n").await.unwrap();
            got
        };
        let (end, reply, got) = tokio::join!(pump, device_task, backend_task);
        assert!(matches!(end, End::Finished), "{end:?}");
        assert!(got == letter, "{} of {} bytes", got.len(), letter.len());
        assert_eq!(reply, b"250 after your half-close\r\n");
    }

    #[tokio::test]
    async fn a_session_that_says_nothing_ends_and_one_that_does_lives() {
        let (_device, device_side) = pair().await;
        let (backend_side, mut backend) = pair().await;
        let (idle, scope) = (Idle::new(Duration::from_millis(200)), Scope::new());
        scope.spawn(Arc::clone(&idle).sweep(scope.clone()));
        let pump = Pump::new(device_side, backend_side, idle);
        let started = Instant::now();
        let speak = async {
            for _ in 0..5 {
                sleep(Duration::from_millis(80)).await;
                backend.write_all(b"x").await.unwrap();
            }
        };
        let (end, ()) = tokio::join!(pump, speak);
        assert!(matches!(end, End::Idle), "{end:?}");
        assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn a_backend_that_resets_is_told_from_a_device_that_does() {
        let (_device, device_side) = pair().await;
        let (backend_side, backend) = pair().await;
        socket2::SockRef::from(&backend).set_linger(Some(Duration::ZERO)).unwrap();
        drop(backend);
        let end = Pump::new(device_side, backend_side, Idle::new(Duration::from_secs(20))).await;
        assert!(matches!(end, End::BackendBroke(_)), "{end:?}");
    }

    #[tokio::test]
    async fn a_pipe_that_is_half_drained_loses_and_repeats_nothing() {
        // The reader takes a little, pauses, and takes again: the pipe is left half full many times.
        let (device, device_side) = pair().await;
        let (backend_side, mut backend) = pair().await;
        let pump = Pump::new(device_side, backend_side, Idle::new(Duration::from_secs(20)));
        let letter: Vec<u8> = (0..12_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let sent = letter.clone();
        let device_task = async move {
            let mut device = device;
            device.write_all(&sent).await.unwrap();
            device.shutdown().await.unwrap();
            let mut rest = Vec::new();
            device.read_to_end(&mut rest).await.unwrap();
        };
        let backend_task = async move {
            let (mut got, mut buffer) = (Vec::new(), vec![0; 300_000]);
            for round in 0.. {
                match backend.read(&mut buffer).await.unwrap() {
                    0 => break,
                    count => got.extend_from_slice(&buffer[..count]),
                }
                if round % 7 == 0 {
                    sleep(Duration::from_millis(1)).await;
                }
            }
            got
        };
        let (end, (), got) = tokio::join!(pump, device_task, backend_task);
        assert!(matches!(end, End::Finished), "{end:?}");
        assert!(got == letter, "{} of {} bytes", got.len(), letter.len());
        assert!(Pipe::kept() > 0, "nothing was spliced");
    }
}
