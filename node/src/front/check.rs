//! Active checks: the walk that a letter takes, without a letter. Connect, signed PROXY v2 `LOCAL` header, greeting,
//! `EHLO`, `STARTTLS` with a look at the certificate, `QUIT`. One task per backend; it looks more often while the backend's state is changing, and at once when
//! a device met trouble there.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::debug;

use super::config::CheckSection;
use super::dial::{About, Outward, session_id};
use super::pool::{Known, KnownSet, Pool};
use super::tasks::Tasks;
use crate::shutdown::Scope;
use crate::{clock, tls};

/// Why a backend did not pass, or failed a device. Theirs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CheckFailure {
    /// It has no SMTP socket.
    #[error("it has no address")]
    NoAddress,
    /// No connection.
    #[error("connection failed: {0}")]
    Refused(String),
    /// No connection in time.
    #[error("no connection in time")]
    ConnectTimeout,
    /// It said nothing, or stopped speaking.
    #[error("silent")]
    Silent,
    /// It closed before the walk was over.
    #[error("connection closed")]
    Closed,
    /// Its greeting was not 220.
    #[error("greeting was \"{0}\"")]
    Greeting(String),
    /// Its answer to `EHLO` was not 250.
    #[error("answer to EHLO was \"{0}\"")]
    Ehlo(String),
    /// `STARTTLS` was offered and refused, or the handshake failed.
    #[error("STARTTLS failed: {0}")]
    StartTls(String),
    /// Its certificate is expired, or not valid yet: devices that look at it would leave.
    #[error("its certificate is not valid: {0}")]
    Certificate(String),
    /// Its own stream ended.
    #[error("its stream ended: {0}")]
    Stream(String),
}

impl CheckFailure {
    /// All values of the label `reason`.
    pub(super) const REASONS: [&str; 10] = [
        "no_address",
        "refused",
        "connect_timeout",
        "silent",
        "closed",
        "greeting",
        "ehlo",
        "stream",
        "starttls",
        "certificate",
    ];

    pub(super) fn reason(&self) -> &'static str {
        let index = match self {
            Self::NoAddress => 0,
            Self::Refused(_) => 1,
            Self::ConnectTimeout => 2,
            Self::Silent => 3,
            Self::Closed => 4,
            Self::Greeting(_) => 5,
            Self::Ehlo(_) => 6,
            Self::Stream(_) => 7,
            Self::StartTls(_) => 8,
            Self::Certificate(_) => 9,
        };
        Self::REASONS[index]
    }
}

/// Checks every backend that the cluster knows, until `scope` ends.
pub(super) async fn run(pool: Arc<Pool>, outward: Arc<Outward>, config: CheckSection, scope: Scope) {
    let mut known = pool.known();
    let mut tasks = Tasks::new(&scope);
    loop {
        let set = Arc::clone(&known.borrow_and_update());
        tasks.reconcile(set.backends.iter().map(|backend| backend.node.clone()), |node| {
            check_forever(node.to_owned(), Arc::clone(&pool), Arc::clone(&outward), config.clone())
        });
        tokio::select! {
            () = scope.ended() => return,
            changed = known.changed() => if changed.is_err() { return },
        }
    }
}

async fn check_forever(node: String, pool: Arc<Pool>, outward: Arc<Outward>, config: CheckSection) {
    let known = pool.known();
    let Some(check_now) = pool.check_signal(&node) else { return };
    let tls = if config.starttls { tls::looking_client_config().ok() } else { None };
    let mut turn = 0u32;
    loop {
        // A certificate does not change by the second, and a node that knows it to be expired says so itself: every
        // fourth walk of a settled backend goes through TLS, and each one while its state is changing.
        let tls = tls.as_ref().filter(|_| turn.is_multiple_of(TLS_EVERY));
        let result = match find(&known, &node) {
            Some(backend) => {
                let limits = Limits {
                    connect: pool.connect_deadline(outward.connect_timeout()),
                    walk: pool.check_deadline(config.timeout),
                };
                check(&backend, &outward, tls, limits).await
            }
            None => return,
        };
        if let Err(failure) = &result {
            debug!(backend = %node, reason = %failure, "check failed");
        }
        let is_changing = pool.checked(&node, &result);
        turn = if is_changing { 0 } else { turn.wrapping_add(1) };
        let pause = jittered(if is_changing { config.fastinter } else { config.inter });
        tokio::select! {
            () = sleep(pause) => {}
            () = check_now.notified() => {
                // Many devices in trouble must not become many checks.
                sleep(config.fastinter.min(pause)).await;
            }
        }
    }
}

fn find(known: &watch::Receiver<Arc<KnownSet>>, node: &str) -> Option<Known> {
    known.borrow().backends.iter().find(|backend| backend.node == node).cloned()
}

/// A tenth more or less, so that several fronts do not check in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.9..1.1))
}

/// How long one check may take.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Until it is connected.
    pub connect: Duration,
    /// And then until the end.
    pub walk: Duration,
}

/// Walks once.
pub(super) async fn check(
    backend: &Known,
    outward: &Outward,
    tls: Option<&Arc<ClientConfig>>,
    limits: Limits,
) -> Result<(), CheckFailure> {
    let service = backend.checked_service().ok_or(CheckFailure::NoAddress)?;
    let mut stream = outward.connect(&service.address, limits.connect).await?;
    let header = outward.header(&About {
        node: &backend.node,
        service_port: service.port,
        session_id: &session_id(),
        is_stale: false,
        device: None,
    });
    let walk = async {
        stream.write_all(&header).await.map_err(|_| CheckFailure::Closed)?;
        if service.implicit_tls {
            // Only implicit TLS is offered: there the server waits for us.
            return match tls {
                Some(config) => look(stream, config).await.map(drop),
                None => Ok(()),
            };
        }
        let mut replies = Replies { stream, buffer: Vec::new(), offers_starttls: false };
        let greeting = replies.next().await?;
        if !greeting.starts_with("220") {
            return Err(CheckFailure::Greeting(greeting));
        }
        replies.send(b"EHLO front.invalid\r\n").await?;
        let answer = replies.next().await?;
        if !answer.starts_with("250") {
            return Err(CheckFailure::Ehlo(answer));
        }
        if let Some(config) = tls.filter(|_| replies.offers_starttls) {
            replies.send(b"STARTTLS\r\n").await?;
            let answer = replies.next().await?;
            if !answer.starts_with("220") || !replies.buffer.is_empty() {
                return Err(CheckFailure::StartTls(answer));
            }
            let mut stream = look(replies.stream, config).await?;
            let _ = stream.write_all(b"QUIT\r\n").await;
            let _ = stream.read(&mut [0; 64]).await;
            return Ok(());
        }
        // RFC 5321 §4.1.1.10: leave politely. What it answers no longer matters.
        replies.send(b"QUIT\r\n").await?;
        let _ = replies.next().await;
        Ok(())
    };
    timeout(limits.walk, walk).await.unwrap_or(Err(CheckFailure::Silent))
}

/// Shakes hands and looks at the certificate: whether devices could believe it *now*. By whom it was signed is not
/// the front's to judge.
async fn look(stream: TcpStream, config: &Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, CheckFailure> {
    let connector = TlsConnector::from(Arc::clone(config));
    let stream = connector.connect(tls::nobody(), stream).await;
    let stream = stream.map_err(|error| CheckFailure::StartTls(error.to_string()))?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    tls::must_be_valid(certificates, clock::now_ms()).map_err(CheckFailure::Certificate)?;
    Ok(stream)
}

/// Reads replies, one by one.
struct Replies {
    stream: TcpStream,
    buffer: Vec<u8>,
    offers_starttls: bool,
}

/// One walk in so many goes through TLS.
const TLS_EVERY: u32 = 4;

/// All lines of one reply. RFC 5321 §4.5.3.1.5: 512 bytes a line; no `EHLO` answer needs more than a few dozen.
const REPLY_BYTES_MAX: usize = 16 * 1024;
/// What of a reply is shown.
const SHOWN_CHARS_MAX: usize = 120;

impl Replies {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), CheckFailure> {
        self.stream.write_all(bytes).await.map_err(|_| CheckFailure::Closed)
    }

    /// The last line of the next reply, without its line end (RFC 5321 §4.2.1).
    async fn next(&mut self) -> Result<String, CheckFailure> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let is_last = line.get(3) != Some(&b'-');
                let keyword = line.get(4..).unwrap_or_default().trim_ascii();
                self.offers_starttls |= keyword.eq_ignore_ascii_case(b"STARTTLS");
                if is_last {
                    let text = String::from_utf8_lossy(&line);
                    return Ok(text
                        .trim_end()
                        .chars()
                        .filter(|char| !char.is_control())
                        .take(SHOWN_CHARS_MAX)
                        .collect());
                }
            }
            if self.buffer.len() >= REPLY_BYTES_MAX {
                return Err(CheckFailure::Closed);
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return Err(CheckFailure::Closed),
                Ok(_) => {}
            }
        }
    }
}
