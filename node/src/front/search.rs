//! Finding a backend that speaks, for one device. SMTP servers speak first: until a backend's first byte arrives
//! nothing has been said by the device, so a backend that refuses, resets or closes without a byte is replaced by the
//! next one. One that is silent or slow to connect is not given up, only joined: the next one is asked too, and whoever speaks first has
//! the device. So the device sees one greeting, and slow backends are not punished with more attempts than there are
//! backends.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use metrics::counter;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::check::CheckFailure;
use super::dial::{About, Outward};
use super::hello::Hello;
use super::metrics_names::{RETRIES_TOTAL, RetryReason};
use super::pool::{BackendSession, Picked, Pool};
use super::pump::write_all;

/// A backend's first bytes. A greeting has at most 512 (RFC 5321 §4.5.3.1.5); the rest is copied later.
const FIRST_BYTES_MAX: usize = 4096;
/// A header or a ClientHello fits into an empty socket buffer; a backend that does not take it is not well.
const WRITE_TIMEOUT: Duration = Duration::from_millis(500);

/// Whom a backend is looked for.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub device: &'a TcpStream,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub service: u16,
    pub session_id: &'a str,
}

/// A backend that spoke.
pub(super) struct Found {
    pub stream: TcpStream,
    pub backend: Arc<str>,
    pub session: BackendSession,
    pub first: Vec<u8>,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum NotFound {
    /// The device left, or never spoke where it must speak first.
    Gone,
    /// Nobody can be had.
    Nobody,
}

/// A backend that was told about the device and has not answered.
struct Waiting {
    stream: TcpStream,
    backend: Arc<str>,
    session: BackendSession,
}

/// A backend that has not connected in time, and still may.
struct Dialling<'a> {
    picked: Picked,
    connecting: Connecting<'a>,
}

type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + 'a>>;

/// What a backend did instead of speaking.
struct Fault(RetryReason, String);

/// One search.
pub(super) struct Search<'a> {
    pool: &'a Pool,
    outward: &'a Outward,
    caller: Caller<'a>,
    /// What the device said, where it must speak first.
    hello: Option<Hello>,
    attempts_max: usize,
    turn: usize,
    tried: Vec<Arc<str>>,
    /// The newest is last.
    waiting: Vec<Waiting>,
    dialling: Vec<Dialling<'a>>,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        pool: &'a Pool,
        outward: &'a Outward,
        caller: Caller<'a>,
        hello: Option<Hello>,
        attempts_max: usize,
    ) -> Self {
        let (tried, waiting, dialling) = (Vec::new(), Vec::new(), Vec::new());
        Self { pool, outward, caller, hello, attempts_max, turn: pool.turn(), tried, waiting, dialling }
    }

    /// Offers the device to one backend after the other, each at most once, until one speaks.
    ///
    /// # Errors
    /// When none does, or the device leaves.
    pub(super) async fn run(mut self) -> Result<Found, NotFound> {
        loop {
            let is_last = !self.offer().await;
            if self.is_alone() {
                return Err(NotFound::Nobody);
            }
            if let Some(end) = self.listen(is_last).await {
                return end;
            }
        }
    }

    /// Tells one more backend about the device. Answers whether there was one.
    async fn offer(&mut self) -> bool {
        while self.tried.len() < self.attempts_max {
            let Some(picked) = self.pool.pick(self.caller.service, self.caller.source.ip(), self.turn, &self.tried)
            else {
                return false;
            };
            self.tried.push(Arc::clone(&picked.name));
            let deadline = self.pool.connect_deadline(self.outward.connect_timeout());
            // Boxed, and with an address of its own: it may go on while others are asked.
            let (outward, address) = (self.outward, picked.address.clone());
            let mut connecting: Connecting<'a> = Box::pin(async move { outward.connect_patiently(&address).await });
            match timeout(deadline, &mut connecting).await {
                Ok(Ok(stream)) => {
                    let backend = Arc::clone(&picked.name);
                    match self.tell(picked, stream).await {
                        Ok(waiting) => {
                            self.waiting.push(waiting);
                            return true;
                        }
                        Err(fault) => self.blame(&backend, &fault),
                    }
                }
                Ok(Err(error)) => self.blame(&picked.name, &Fault(RetryReason::Refused, error.to_string())),
                Err(_) => {
                    let cause = format!("no connection in {} ms", deadline.as_millis());
                    self.blame(&picked.name, &Fault(RetryReason::ConnectTimeout, cause));
                    self.dialling.push(Dialling { picked, connecting });
                }
            }
        }
        false
    }

    /// Whether there is nobody left who could speak.
    fn is_alone(&self) -> bool {
        self.waiting.is_empty() && self.dialling.is_empty()
    }

    async fn tell(&mut self, picked: Picked, mut stream: TcpStream) -> Result<Waiting, Fault> {
        let mut bytes = self.outward.header(&About {
            node: &picked.name,
            service_port: self.caller.service,
            session_id: self.caller.session_id,
            is_stale: picked.is_stale,
            device: Some((self.caller.source, self.caller.destination)),
        });
        // Everything that the device has said to earlier backends is said again.
        bytes.extend_from_slice(self.hello.as_ref().map_or(&[], Hello::bytes));
        write_all(&mut stream, &bytes, WRITE_TIMEOUT).await.map_err(broken)?;
        Ok(Waiting { stream, backend: picked.name, session: picked.session })
    }

    /// One that was slow to connect has done so, or will not.
    async fn is_dialled(&mut self, index: usize, connected: io::Result<TcpStream>) {
        let Dialling { picked, .. } = self.dialling.remove(index);
        let backend = Arc::clone(&picked.name);
        let told = match connected {
            Ok(stream) => self.tell(picked, stream).await,
            Err(error) => Err(Fault(RetryReason::Refused, error.to_string())),
        };
        match told {
            // Not the newest: that one's deadline is running.
            Ok(waiting) => self.waiting.insert(0, waiting),
            Err(fault) => self.blame(&backend, &fault),
        }
    }

    /// Waits for a first byte. Nothing: another backend should be asked too, which is never so when `is_last`.
    async fn listen(&mut self, is_last: bool) -> Option<Result<Found, NotFound>> {
        let patience = self.pool.banner_deadline(is_last);
        // Where the device must speak first the backends' time starts when it has: until then the silence is its own.
        let mut deadline = self.spoken().then(|| Instant::now() + patience);
        loop {
            if let Some(found) = self.must_commit() {
                return Some(Ok(found));
            }
            let until = deadline.unwrap_or_else(|| self.hello.as_ref().map_or_else(Instant::now, Hello::deadline));
            let (waiting, dialling, device) = (&self.waiting, &mut self.dialling, self.caller.device);
            tokio::select! {
                // A backend that speaks wins over a device that leaves at the same moment.
                biased;
                (index, first) = first_bytes(waiting) => {
                    let Waiting { stream, backend, session } = self.waiting.remove(index);
                    let fault = match first {
                        Ok(first) => {
                            self.pool.was_in_time(&backend);
                            return Some(Ok(Found { stream, backend, session, first }));
                        }
                        Err(fault) => fault,
                    };
                    self.blame(&backend, &fault);
                    let was_newest = index == self.waiting.len();
                    if !is_last && was_newest {
                        return None;
                    }
                    if self.is_alone() {
                        return is_last.then_some(Err(NotFound::Nobody));
                    }
                }
                (index, connected) = first_dialled(dialling) => {
                    self.is_dialled(index, connected).await;
                    if self.is_alone() {
                        return is_last.then_some(Err(NotFound::Nobody));
                    }
                }
                said = device_speaks(self.hello.as_mut(), device) => {
                    let Ok(from) = said else { return Some(Err(NotFound::Gone)) };
                    self.pass_on(from).await;
                    if deadline.is_none() && self.spoken() {
                        deadline = Some(Instant::now() + patience);
                    }
                }
                () = sleep_until(until) => return self.is_over(deadline.is_some(), is_last, patience),
            }
        }
    }

    /// A device whose ClientHello is longer than what can be said again: the newest backend gets the rest, and no server
    /// would speak before it has.
    fn must_commit(&mut self) -> Option<Found> {
        self.hello.as_ref().filter(|hello| hello.is_too_long())?;
        let Waiting { stream, backend, session } = self.waiting.pop()?;
        Some(Found { stream, backend, session, first: Vec::new() })
    }

    /// The time is up: whose fault is it, and is there anything left to try?
    fn is_over(&self, has_spoken: bool, is_last: bool, patience: Duration) -> Option<Result<Found, NotFound>> {
        if !has_spoken {
            return Some(Err(NotFound::Gone));
        }
        if is_last {
            return Some(Err(NotFound::Nobody));
        }
        if let Some(newest) = self.waiting.last() {
            let fault = Fault(RetryReason::Silent, format!("nothing in {} ms", patience.as_millis()));
            self.blame(&newest.backend, &fault);
        }
        None
    }

    /// Whether a backend can be expected to speak.
    fn spoken(&self) -> bool {
        self.hello.as_ref().is_none_or(Hello::is_complete)
    }

    /// Passes on what the device said. A backend that cannot take it shows that when it is read from.
    async fn pass_on(&mut self, from: usize) {
        let Some(hello) = &self.hello else { return };
        for waiting in &mut self.waiting {
            let _ = write_all(&mut waiting.stream, &hello.bytes()[from..], WRITE_TIMEOUT).await;
        }
    }

    /// Counts what a backend did instead of speaking.
    fn blame(&self, backend: &str, Fault(reason, cause): &Fault) {
        counter!(RETRIES_TOTAL, "reason" => reason.as_str()).increment(1);
        debug!(session.id = self.caller.session_id, backend, reason = reason.as_str(), cause, "backend did not speak");
        match reason {
            RetryReason::Refused => _ = self.pool.failed(backend, &CheckFailure::Refused(cause.clone())),
            RetryReason::ConnectTimeout => return self.pool.was_late(backend, &CheckFailure::ConnectTimeout),
            RetryReason::Silent => return self.pool.was_late(backend, &CheckFailure::Silent),
            // A node may refuse one device for its own sake, and a device can provoke it: the check finds the truth.
            RetryReason::Reset | RetryReason::Closed => {}
        }
        self.pool.check_soon(backend);
    }
}

/// The first of the waiting backends that speaks or ends.
///
/// # Cancel safety
/// Cancel safe: bytes are taken only when the future is ready.
async fn first_bytes(waiting: &[Waiting]) -> (usize, Result<Vec<u8>, Fault>) {
    poll_fn(|cx| {
        for (index, Waiting { stream, .. }) in waiting.iter().enumerate() {
            while let Poll::Ready(ready) = stream.poll_read_ready(cx) {
                let mut first = Vec::with_capacity(FIRST_BYTES_MAX);
                match ready.and_then(|()| stream.try_read_buf(&mut first)) {
                    Ok(0) => {
                        let fault = Fault(RetryReason::Closed, "closed without a byte".to_owned());
                        return Poll::Ready((index, Err(fault)));
                    }
                    Ok(_) => return Poll::Ready((index, Ok(first))),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready((index, Err(broken(error)))),
                }
            }
        }
        Poll::Pending
    })
    .await
}

/// The first of the slow backends that connects or fails.
///
/// # Cancel safety
/// Cancel safe: what is ready is answered at once.
async fn first_dialled(dialling: &mut [Dialling<'_>]) -> (usize, io::Result<TcpStream>) {
    poll_fn(|cx| {
        for (index, one) in dialling.iter_mut().enumerate() {
            if let Poll::Ready(connected) = one.connecting.as_mut().poll(cx) {
                return Poll::Ready((index, connected));
            }
        }
        Poll::Pending
    })
    .await
}

/// Waits for the device. Where it must speak first, until it says more: answers from where on its words are new. Where
/// it must not, until it has left without a word: what it says too early stays in its socket for later.
///
/// # Errors
/// When the device has left.
///
/// # Cancel safety
/// Cancel safe.
async fn device_speaks(hello: Option<&mut Hello>, device: &TcpStream) -> io::Result<usize> {
    match hello {
        Some(hello) if !hello.is_full() => hello.read(device).await,
        Some(_) => std::future::pending().await,
        None => match device.peek(&mut [0]).await {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Err(error),
            Ok(_) => std::future::pending().await,
        },
    }
}

fn broken(error: io::Error) -> Fault {
    let reason = if error.kind() == io::ErrorKind::TimedOut { RetryReason::Silent } else { RetryReason::Reset };
    Fault(reason, error.to_string())
}
