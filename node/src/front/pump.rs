//! Copies bytes both ways until both sides have finished. One small future per session: while nothing moves it holds
//! no buffer; bytes that the other side cannot take yet wait on the heap, and only then is nothing more read.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// One read. Larger only helps streams, which a mail session rarely is.
const BUFFER_BYTES: usize = 64 * 1024;

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
    idle_timeout: Duration,
    has_moved: bool,
    idle: Pin<Box<Sleep>>,
}

/// One direction.
#[derive(Default)]
struct Way {
    state: WayState,
    /// Read and not yet written.
    rest: Vec<u8>,
    written: usize,
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
    pub(super) fn new(device: TcpStream, backend: TcpStream, idle_timeout: Duration) -> Self {
        Self {
            device,
            backend,
            up: Way::default(),
            down: Way::default(),
            idle_timeout,
            has_moved: false,
            idle: Box::pin(sleep(idle_timeout)),
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.idle.as_mut().poll(cx));
            if !self.has_moved {
                return Poll::Ready(());
            }
            // Moving a timer at each byte would cost more than the copying: it is looked at when it fires, and a
            // session is cut after one to two times its limit.
            self.has_moved = false;
            let timeout = self.idle_timeout;
            self.idle.as_mut().reset(Instant::now() + timeout);
        }
    }
}

impl Future for Pump {
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = self.get_mut();
        let up = this.up.poll(cx, &this.device, &this.backend, &mut this.has_moved);
        if let Poll::Ready(Err(broke)) = up {
            return Poll::Ready(match broke {
                Broke::Reading(error) => End::DeviceBroke(error),
                Broke::Writing(error) => End::BackendBroke(error),
            });
        }
        let backend_was_copying = this.down.state == WayState::Copying;
        let down = this.down.poll(cx, &this.backend, &this.device, &mut this.has_moved);
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
            this.idle_timeout = this.idle_timeout.min(FIN_TIMEOUT);
            let timeout = this.idle_timeout;
            this.idle.as_mut().reset(Instant::now() + timeout);
        }
        this.poll_idle(cx).map(|()| End::Idle)
    }
}

impl Way {
    /// Copies until nothing moves. Ready when this direction is closed.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        has_moved: &mut bool,
    ) -> Poll<Result<(), Broke>> {
        loop {
            if !self.rest.is_empty() {
                match ready!(to.poll_write_ready(cx)).and_then(|()| to.try_write(&self.rest[self.written..])) {
                    Ok(count) => {
                        *has_moved = true;
                        self.written += count;
                        if self.written == self.rest.len() {
                            (self.rest, self.written) = (Vec::new(), 0);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(Broke::Writing(error))),
                }
                continue;
            }
            match self.state {
                WayState::Closed => return Poll::Ready(Ok(())),
                WayState::Closing => {
                    self.state = WayState::Closed;
                    // RFC 9293 §3.6: one direction ends, the other may still have much to say. A peer that has reset
                    // meanwhile shows that in the other direction.
                    let _ = socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write);
                }
                WayState::Copying => {
                    ready!(from.poll_read_ready(cx)).map_err(Broke::Reading)?;
                    self.copy_once(from, to, has_moved)?;
                }
            }
        }
    }

    fn copy_once(&mut self, from: &TcpStream, to: &TcpStream, has_moved: &mut bool) -> Result<(), Broke> {
        BUFFER.with_borrow_mut(|buffer| {
            let count = match from.try_read(buffer) {
                Ok(0) => {
                    self.state = WayState::Closing;
                    return Ok(());
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(Broke::Reading(error)),
            };
            *has_moved = true;
            let mut bytes = &buffer[..count];
            while !bytes.is_empty() {
                match to.try_write(bytes) {
                    Ok(written) => bytes = &bytes[written..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.rest = bytes.to_vec();
                        break;
                    }
                    Err(error) => return Err(Broke::Writing(error)),
                }
            }
            Ok(())
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

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn all_bytes_arrive_both_ways_also_when_the_reader_is_slow_and_after_a_half_close() {
        let (mut device, device_side) = pair().await;
        let (backend_side, mut backend) = pair().await;
        let pump = Pump::new(device_side, backend_side, Duration::from_secs(20));
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
        let pump = Pump::new(device_side, backend_side, Duration::from_millis(200));
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
        let end = Pump::new(device_side, backend_side, Duration::from_secs(20)).await;
        assert!(matches!(end, End::BackendBroke(_)), "{end:?}");
    }
}
