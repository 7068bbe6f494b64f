//! One connection to a next hop: moves bytes between the socket and `smtp::client`, and keeps the deadlines.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::resolve::NextHop;
use super::stream::Stream;
use crate::mail::{EnhancedCode, Reply};
use crate::shutdown::run_blocking;
use crate::smtp::client::{
    Action, Client, ClientAuth, ClientConfig as Introduction, Extensions, Outcome, Phase, TlsUse, Transaction,
};

const READ_BYTES: usize = 8 * 1024;
/// After a failed write: what the next hop said before it closed may still lie in the socket.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long to wait for a next hop, step by step.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// The TCP connection. The kernel alone would wait for two minutes.
    pub connect: Duration,
    /// The greeting.
    pub greeting: Duration,
    /// `EHLO`, `HELO`, `STARTTLS`, the TLS handshake and `AUTH`.
    pub ehlo: Duration,
    /// `MAIL` and `RSET`.
    pub mail: Duration,
    /// `RCPT`.
    pub rcpt: Duration,
    /// `DATA`.
    pub data_initiation: Duration,
    /// Each block of mail data.
    pub data_block: Duration,
    /// The reply to the end of mail data. Giving up earlier makes duplicates.
    pub data_termination: Duration,
    /// `QUIT`: nothing depends on it.
    pub quit: Duration,
}

/// The connection itself.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// RFC 5321 §4.5.3.2.1: at least 5 minutes.
pub const GREETING_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// Not in the RFC; as long as `MAIL`.
pub const EHLO_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// RFC 5321 §4.5.3.2.2: at least 5 minutes.
pub const MAIL_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// RFC 5321 §4.5.3.2.3: at least 5 minutes.
pub const RCPT_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// RFC 5321 §4.5.3.2.4: at least 2 minutes.
pub const DATA_INITIATION_DEADLINE: Duration = Duration::from_secs(2 * 60);
/// RFC 5321 §4.5.3.2.5: at least 3 minutes.
pub const DATA_BLOCK_DEADLINE: Duration = Duration::from_secs(3 * 60);
/// RFC 5321 §4.5.3.2.6: at least 10 minutes.
pub const DATA_TERMINATION_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// Long enough for a polite next hop.
pub const QUIT_DEADLINE: Duration = Duration::from_secs(5);

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: CONNECT_DEADLINE,
            greeting: GREETING_DEADLINE,
            ehlo: EHLO_DEADLINE,
            mail: MAIL_DEADLINE,
            rcpt: RCPT_DEADLINE,
            data_initiation: DATA_INITIATION_DEADLINE,
            data_block: DATA_BLOCK_DEADLINE,
            data_termination: DATA_TERMINATION_DEADLINE,
            quit: QUIT_DEADLINE,
        }
    }
}

impl Deadlines {
    fn of(&self, phase: Phase) -> Duration {
        match phase {
            Phase::Greeting => self.greeting,
            Phase::Ehlo | Phase::StartTls | Phase::Handshake | Phase::Auth => self.ehlo,
            Phase::Ready | Phase::Mail => self.mail,
            Phase::Rcpt => self.rcpt,
            Phase::Data => self.data_initiation,
            Phase::Body => self.data_block,
            Phase::EndOfData => self.data_termination,
            Phase::Quit | Phase::Closed => self.quit,
        }
    }
}

/// Where a letter's bytes come from.
pub trait BodySource: Send {
    /// The next piece; `None` after the last. An error ends the connection before the end of mail data is said.
    fn next_piece(&mut self) -> impl Future<Output = Result<Option<Vec<u8>>, String>> + Send;
}

/// What became of a letter at a next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// One outcome per recipient, in order.
    pub outcomes: Vec<Outcome>,
    /// The connection was gone before the next hop said anything about this letter.
    pub unanswered: bool,
}

/// Why a connection did not come to be.
pub(super) enum OpenError {
    /// The TLS handshake failed; what came before it was fine.
    Handshake(Reply),
    /// Anything else.
    Other(Reply),
}

/// How a next hop is dialled and greeted.
pub(super) struct Dialling {
    /// The name for `EHLO`.
    pub(super) helo: String,
    /// The local address to connect from.
    pub(super) source: Option<IpAddr>,
    /// Who we are.
    pub(super) auth: Option<ClientAuth>,
    pub(super) tls: TlsUse,
    pub(super) config: Arc<ClientConfig>,
}

/// A connection on which letters can be sent.
pub struct Connection {
    stream: Stream,
    client: Client,
    next_hop: String,
    deadlines: Deadlines,
    letters: u32,
    closed: bool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("next_hop", &self.next_hop).field("letters", &self.letters).finish()
    }
}

enum Event {
    Ready,
    StartTls,
    Derive(Vec<u8>, u32),
    NeedBody,
    Finished(Sent),
    Closed(Option<Reply>),
}

impl Connection {
    /// Connects, greets and, where asked for, begins TLS.
    pub(super) async fn open(hop: &NextHop, dialling: Dialling, deadlines: Deadlines) -> Result<Self, OpenError> {
        let other =
            |detail, text: String| OpenError::Other(Reply::new(451, Some(EnhancedCode::new(4, 4, detail)), text));
        let stream = match timeout(deadlines.connect, dial(hop.addr, dialling.source)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(other(1, format!("connection failed: {error}"))),
            Err(_) => return Err(other(1, "connection timed out".to_owned())),
        };
        // Commands are small and each waits for its reply; a failure here costs only speed.
        let _ = stream.set_nodelay(true);
        let password = dialling.auth.as_ref().map(|auth| auth.password.clone()).unwrap_or_default();
        let client = Client::new(Introduction { helo: dialling.helo, tls: dialling.tls, auth: dialling.auth });
        let next_hop = hop.label();
        let mut connection =
            Self { stream: Stream::Plain(stream), client, next_hop, deadlines, letters: 0, closed: false };
        loop {
            match connection.drive().await {
                Event::Ready => return Ok(connection),
                Event::StartTls => connection = connection.start_tls(&hop.host, &dialling.config).await?,
                Event::Derive(salt, iterations) => {
                    // The rounds are the smart host's choice and cost up to half a second.
                    let password = password.clone();
                    let salted = run_blocking(move || derive(&password, &salt, iterations)).await;
                    connection.client.handle_salted(&salted);
                }
                Event::Closed(Some(reply)) => return Err(OpenError::Other(reply)),
                Event::NeedBody | Event::Finished(_) | Event::Closed(None) => {
                    return Err(other(2, "connection closed".to_owned()));
                }
            }
        }
    }

    async fn start_tls(mut self, host: &str, config: &Arc<ClientConfig>) -> Result<Self, OpenError> {
        let failed = |text: String| OpenError::Handshake(Reply::new(451, Some(EnhancedCode::new(4, 7, 5)), text));
        let Stream::Plain(stream) = self.stream else {
            return Err(failed("TLS is already in use".to_owned()));
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(format!("{host}: {error}")))?;
        let handshake = TlsConnector::from(Arc::clone(config)).connect(name, stream);
        match timeout(self.deadlines.ehlo, handshake).await {
            Ok(Ok(stream)) => self.stream = Stream::Tls(Box::new(stream)),
            Ok(Err(error)) => return Err(failed(format!("TLS handshake failed: {error}"))),
            Err(_) => return Err(failed("TLS handshake timed out".to_owned())),
        }
        self.client.handle_tls_established();
        Ok(self)
    }

    /// As traces and reports name the next hop.
    #[must_use]
    pub fn next_hop(&self) -> &str {
        &self.next_hop
    }

    /// Whether TLS protects it.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.client.is_secure()
    }

    /// What the next hop offers.
    #[must_use]
    pub fn offers(&self) -> &Extensions {
        self.client.extensions()
    }

    /// How many letters it has carried.
    #[must_use]
    pub fn letters(&self) -> u32 {
        self.letters
    }

    /// Whether another letter can be sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.closed && self.client.phase() == Phase::Ready
    }

    /// Sends one letter.
    ///
    /// # Cancel safety
    /// Not cancel safe: the connection must be dropped afterwards, and the letter may have been taken.
    pub async fn send(&mut self, transaction: Transaction, body: &mut impl BodySource) -> Sent {
        let recipients = transaction.recipients.len();
        self.letters += 1;
        self.client.begin(transaction);
        loop {
            match self.drive().await {
                Event::Finished(sent) => {
                    // A goodbye that came with the last reply must be seen before the next letter.
                    self.note_close();
                    return sent;
                }
                Event::NeedBody => self.send_body(body).await,
                Event::Ready | Event::StartTls | Event::Derive(..) => {}
                Event::Closed(reply) => {
                    let closed = || Reply::new(451, Some(EnhancedCode::new(4, 4, 2)), "connection closed");
                    let outcome = Outcome::Deferred { reply: reply.unwrap_or_else(closed) };
                    return Sent { outcomes: vec![outcome; recipients], unanswered: true };
                }
            }
        }
    }

    /// Says goodbye and closes.
    pub async fn quit(mut self) {
        if self.is_open() {
            self.client.quit();
            self.drive().await;
        }
        if !self.closed {
            let _ = timeout(self.deadlines.quit, self.stream.shutdown()).await;
        }
    }

    /// Does what the client wants until it wants something of the caller.
    async fn drive(&mut self) -> Event {
        loop {
            while let Some(action) = self.client.poll_action() {
                match action {
                    Action::Send(bytes) => self.write(&bytes).await,
                    Action::StartTls => return Event::StartTls,
                    Action::Derive { salt, iterations } => return Event::Derive(salt, iterations),
                    Action::Ready => return Event::Ready,
                    Action::NeedBody => return Event::NeedBody,
                    Action::Finished { outcomes, unanswered } => return Event::Finished(Sent { outcomes, unanswered }),
                    Action::Close(reply) => {
                        self.closed = true;
                        return Event::Closed(reply);
                    }
                }
            }
            if self.closed || self.client.phase() == Phase::Closed {
                self.closed = true;
                return Event::Closed(None);
            }
            self.read(self.deadlines.of(self.client.phase())).await;
        }
    }

    async fn read(&mut self, deadline: Duration) {
        let mut buffer = [0; READ_BYTES];
        let got = timeout(deadline, self.stream.read(&mut buffer)).await;
        take(&mut self.client, &buffer, got.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())));
    }

    async fn write(&mut self, bytes: &[u8]) {
        let deadline = self.deadlines.of(self.client.phase());
        let written = timeout(deadline, async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.hear_last_words(&error).await,
            Err(_) => self.client.handle_timeout(),
        }
    }

    /// The next hop closed its ear; what it said before explains why.
    async fn hear_last_words(&mut self, error: &io::Error) {
        let mut buffer = [0; READ_BYTES];
        if let Ok(Ok(count @ 1..)) = timeout(LAST_WORDS, self.stream.read(&mut buffer)).await {
            self.client.handle_bytes(&buffer[..count]);
        }
        self.client.handle_disconnected(&error.to_string());
    }

    async fn send_body(&mut self, body: &mut impl BodySource) {
        while self.client.phase() == Phase::Body {
            match body.next_piece().await {
                Ok(Some(bytes)) => self.client.handle_body(&bytes),
                Ok(None) => self.client.handle_body_end(),
                Err(why) => self.client.handle_body_failed(&why),
            }
            // In the phase after the end the ordinary loop reads on.
            while self.client.phase() == Phase::Body {
                let Some(Action::Send(bytes)) = self.client.poll_action() else { break };
                self.write_listening(&bytes).await;
            }
        }
    }

    /// Writes a block of mail data and listens meanwhile: a next hop that speaks now has heard enough.
    async fn write_listening(&mut self, bytes: &[u8]) {
        let mut buffer = [0; READ_BYTES];
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        let writing = async {
            writer.write_all(bytes).await?;
            writer.flush().await
        };
        let got = tokio::select! {
            biased;
            written = timeout(self.deadlines.data_block, writing) => match written {
                Ok(Ok(())) => return,
                Ok(Err(error)) => Err(error),
                Err(_) => return self.client.handle_timeout(),
            },
            got = reader.read(&mut buffer) => Ok(got),
        };
        match got {
            Ok(got) => take(&mut self.client, &buffer, got),
            Err(error) => self.hear_last_words(&error).await,
        }
        // The block is half written: whatever comes, no byte may follow it.
        while self.client.phase() == Phase::Body {
            self.read(self.deadlines.data_block).await;
        }
    }

    fn note_close(&mut self) {
        if self.client.phase() == Phase::Closed {
            self.closed = true;
        }
    }
}

/// RFC 5802 §2.2: Hi(password, salt, iterations).
fn derive(password: &str, salt: &[u8], iterations: u32) -> [u8; 32] {
    let mut salted = [0; 32];
    let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    aws_lc_rs::pbkdf2::derive(aws_lc_rs::pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, password.as_bytes(), &mut salted);
    salted
}

/// Connects, from `source` where a route names one.
async fn dial(addr: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let Some(source) = source else { return TcpStream::connect(addr).await };
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(SocketAddr::new(source, 0)).map_err(|error| {
        io::Error::new(error.kind(), format!("the route's source address {source} cannot be used: {error}"))
    })?;
    socket.connect(addr).await
}

fn take(client: &mut Client, buffer: &[u8], got: io::Result<usize>) {
    match got {
        Ok(0) => client.handle_disconnected("closed by the next hop"),
        Ok(count) => client.handle_bytes(&buffer[..count]),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => client.handle_timeout(),
        Err(error) => client.handle_disconnected(&error.to_string()),
    }
}
