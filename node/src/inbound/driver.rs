//! Between a socket and a `smtp::Session`: bytes in, actions out. Every wait has a deadline; between the first byte
//! of a letter handed to the spool and its commit nothing is forgotten that was promised, and nothing is promised
//! before the spool has answered.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::header::{self, Introduced};
use super::login::Scram;
use super::metrics_names::{ACCEPTED, HANDSHAKES, STRIPPED, XCLIENTS, count_limit, count_refusals};
use super::opening::{connector_tls, facts, server_tls, session_config, transcript};
use super::policy::{self, Now, Standing};
use super::prefixed::Prefixed;
use super::recorder::{Heard, Recorder};
use super::xclient::{Reopened, reopen};
use super::{Shared, tarpit};
use crate::clock::now_ms;
use crate::connector::{self, ReceiveConnector, RemoteIpRange, Right, Rights};
use crate::counts::OpenCount;
use crate::credential::{Binding, SecretId};
use crate::mail::trace_header::{HeaderFacts, ReceivedInfo, date_rfc5322, missing_lines, received};
use crate::mail::{Envelope, ForwardPath, Reply, ReversePath, header_firewall, reply};
use crate::protocol_log::Transcript;
use crate::sessions::{Entry, Facts};
use crate::shutdown::Scope;
use crate::smtp::session::{
    Action, CloseReason, Note, OUTPUT_MAX, Session, SessionConfig, SessionState, TlsMode, Verdict,
};
use crate::smtp::{Mechanism, Xclient};
use crate::spool::{Append, NewMessage};
use crate::state::StateView;
use crate::tls::Wanted;

/// What one read takes at most; with one line and one header it bounds the memory of a session.
const READ_BYTES: usize = 16 * 1024;
/// Octets of memory for replies that an idle session keeps.
const REPLIES_KEPT: usize = 512;
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to read our replies.
const WRITE_TIMEOUT: Duration = Duration::from_secs(300);
/// The same, once an administrator has ended the session: what was promised before is still said.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How often a session that sends letters says that its range and credential are in use.
const SEEN_INTERVAL_MS: i64 = 60_000;

/// A connection that a connector took.
pub(super) struct Opened {
    pub(super) connector: Arc<ReceiveConnector>,
    pub(super) range: RemoteIpRange,
    pub(super) expired: bool,
    /// The address dialled and the service port.
    pub(super) local: SocketAddr,
    /// The device.
    pub(super) source: IpAddr,
    /// Its port.
    pub(super) source_port: u16,
    /// The other end of the socket: the device, or the front.
    pub(super) peer: SocketAddr,
    pub(super) front: Option<String>,
    /// Whether that is one of our fronts, by its signature.
    pub(super) signed: bool,
    pub(super) session_id: String,
    pub(super) implicit_tls: bool,
}

/// Runs a device's session to its end.
pub(super) async fn session(shared: &Arc<Shared>, tcp: TcpStream, rest: Vec<u8>, opened: Opened, ended: Scope) {
    let connector = &opened.connector;
    tracing::debug!(
        session.id = %opened.session_id,
        source.addr = %opened.source,
        front = opened.front.as_deref().unwrap_or_default(),
        connector = %connector.name,
        range = %opened.range,
        expired = opened.expired,
        "session opened"
    );
    let tls = server_tls(shared, connector_tls(connector));
    let config = session_config(shared, &opened, tls.is_some());
    let implicit_tls = opened.implicit_tls;
    let transcript = transcript(shared, &opened);
    let entry = shared.options.open.enter(opened.session_id.clone(), facts(&opened), now_ms());
    let driver = Driver {
        shared,
        transcript,
        entry: Some(entry),
        source: opened.source,
        front: opened.front.clone(),
        session_id: opened.session_id.clone(),
        by_fqdn: config.fqdn.clone(),
        certificate: tls,
        user: None,
        secret: None,
        certificate_user: None,
        binding: Binding::default(),
        scram: None,
        tls: None,
        letter: None,
        reverse_path: ReversePath::Null,
        keeps_routing: false,
        refusals: 0,
        // A header is owed by fronts and balancers, and was taken; from a device one would be a forgery.
        watch_for_header: opened.front.is_none().then_some(opened.peer),
        opened: Some(opened),
        is_check: false,
        counted: None,
        ended,
    };
    run(driver, config, tcp, rest, implicit_tls).await;
}

/// Answers a front's check: a greeting, and whatever a session may say that sends nothing.
pub(super) async fn probe(shared: &Arc<Shared>, tcp: TcpStream, by: Introduced, implicit_tls: bool, ended: Scope) {
    let tls = server_tls(shared, Wanted::default());
    let mut config = SessionConfig::new(shared.options.fqdn.clone(), by.source.ip());
    config.probe = true;
    config.tls = match (implicit_tls, tls.is_some()) {
        (true, _) => TlsMode::Implicit,
        (false, true) => TlsMode::Available,
        (false, false) => TlsMode::Off,
    };
    let driver = Driver {
        shared,
        transcript: None,
        entry: None,
        source: by.source.ip(),
        front: by.front,
        session_id: by.session_id,
        by_fqdn: config.fqdn.clone(),
        certificate: tls,
        opened: None,
        counted: None,
        user: None,
        secret: None,
        certificate_user: None,
        binding: Binding::default(),
        scram: None,
        tls: None,
        letter: None,
        reverse_path: ReversePath::Null,
        keeps_routing: false,
        refusals: 0,
        watch_for_header: None,
        is_check: by.signed,
        ended,
    };
    run(driver, config, tcp, by.rest, implicit_tls).await;
}

/// What drives one session.
pub(super) struct Driver<'a> {
    pub(super) shared: &'a Arc<Shared>,
    /// What the protocol log, and who listens, gets of this session.
    transcript: Option<Transcript>,
    /// Where the session is listed; a front's check is not.
    entry: Option<Entry>,
    pub(super) source: IpAddr,
    front: Option<String>,
    pub(super) session_id: String,
    by_fqdn: String,
    /// What a TLS handshake shows.
    certificate: Option<Arc<ServerConfig>>,
    /// Absent for a front's check, which never gets as far as needing it.
    pub(super) opened: Option<Opened>,
    /// The place of the client that `XCLIENT` named, among those of its address.
    counted: Option<OpenCount>,
    /// The credential that the session acts for, and the password it logged in with, if it was one.
    pub(super) user: Option<String>,
    pub(super) secret: Option<SecretId>,
    /// The credential that the client's certificate stands for.
    pub(super) certificate_user: Option<String>,
    /// What the TLS connection has for SCRAM.
    pub(super) binding: Binding,
    pub(super) scram: Option<Scram>,
    /// Version and cipher suite, inside TLS.
    tls: Option<String>,
    letter: Option<Letter>,
    /// Of the letter under way, for the decisions about its recipients.
    reverse_path: ReversePath,
    /// Of its sender: whether `Received` and `Resent-*` may stay.
    keeps_routing: bool,
    refusals: u32,
    watch_for_header: Option<SocketAddr>,
    /// One of our fronts looks whether we are well: nothing of it is counted, and no line above trace is written.
    is_check: bool,
    ended: Scope,
}

/// A letter that is arriving.
struct Letter {
    append: Append,
    envelope: Envelope,
    message_id: String,
    subject: String,
}

/// Why the loop over one stream ended.
enum Left {
    /// Start TLS on it.
    StartTls,
    /// The connection is done with.
    Closed,
}

async fn run(mut driver: Driver<'_>, config: SessionConfig, tcp: TcpStream, rest: Vec<u8>, implicit_tls: bool) {
    let mut stream = Prefixed::new(rest, tcp);
    if implicit_tls {
        let Some(mut encrypted) = driver.handshake(stream).await else { return };
        let mut session = Session::new(config, now());
        driver.user = driver.certificate_user.clone();
        driver.list_user();
        session.handle_tls_facts(driver.possible(), driver.certificate_user.clone());
        driver.converse(&mut session, &mut encrypted).await;
        driver.within_patience(encrypted.shutdown()).await;
        return;
    }
    let mut session = Session::new(config, now());
    match driver.converse(&mut session, &mut stream).await {
        Left::Closed => {
            driver.within_patience(stream.shutdown()).await;
        }
        Left::StartTls => {
            let Some(mut encrypted) = driver.handshake(stream).await else { return };
            // RFC 3207 §4.2: the client starts afresh, and so do we.
            (driver.user, driver.secret, driver.scram) = (driver.certificate_user.clone(), None, None);
            driver.list_user();
            session.handle_tls_established(now());
            session.handle_tls_facts(driver.possible(), driver.certificate_user.clone());
            driver.converse(&mut session, &mut encrypted).await;
            driver.within_patience(encrypted.shutdown()).await;
        }
    }
}

/// The session's clock. tokio's, so that a test may stop it.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

impl Driver<'_> {
    async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: S) -> Option<TlsStream<Recorder<S>>> {
        let Some(tls) = &self.certificate else {
            tracing::warn!(session.id = %self.session_id, "TLS is not possible: the cluster has no usable certificate");
            return None;
        };
        let acceptor = TlsAcceptor::from(Arc::clone(tls));
        let heard = Heard::default();
        let accepting = acceptor.accept(Recorder::new(stream, heard.clone()));
        if let Some(entry) = &self.entry {
            entry.tell(SessionState::Tls, 0);
        }
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting) => shaken,
            () = killed(self.entry.as_ref()) => {
                self.note("", "Ended by an administrator");
                return None;
            }
        };
        let failed = match shaken {
            Ok(Ok(mut stream)) => {
                stream.get_mut().0.stop();
                if !self.is_check {
                    counter!(HANDSHAKES, "result" => "ok").increment(1);
                }
                let connection = stream.get_ref().1;
                let version = connection.protocol_version().map(|version| format!("{version:?}")).unwrap_or_default();
                let suite = connection.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()));
                let tls = format!("version={} cipher={}", version, suite.unwrap_or_default());
                self.note(&tls, "TLS handshake");
                if let Some(entry) = &self.entry {
                    entry.change(|facts| facts.tls = Some(tls.clone()));
                }
                self.tls = Some(tls);
                self.binding = channel_binding(connection);
                self.certificate_user = self.user_of_certificate(connection.peer_certificates());
                return Some(stream);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "timed out".to_owned(),
        };
        if self.is_check {
            tracing::trace!(session.id = %self.session_id, error = %failed, "TLS handshake of a check failed");
            return None;
        }
        counter!(HANDSHAKES, "result" => "failed").increment(1);
        self.note(&failed, "TLS handshake failed");
        self.handshake_failed(&heard.take(), &failed);
        None
    }

    fn note(&mut self, data: &str, context: &str) {
        if let Some(transcript) = &mut self.transcript {
            transcript.note(data, context);
        }
    }

    /// Who the session acts for from now on, for the transcript.
    fn note_login(&mut self, before: Option<&String>) {
        if let Some(user) = self.user.clone()
            && Some(&user) != before
        {
            self.note(&user, "authenticated");
            self.list_user();
        }
    }

    /// Who the session acts for, for whoever looks at the list.
    fn list_user(&self) {
        if let Some(entry) = &self.entry {
            entry.change(|facts| facts.user.clone_from(&self.user));
        }
    }

    /// Waits before an answer that is held back, unless there will be none.
    pub(super) async fn pause(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = killed(self.entry.as_ref()) => {}
        }
    }

    /// Waits for the client to take what it is told, for as long as we are patient. `None`: no longer.
    async fn within_patience<T>(&self, told: impl Future<Output = T>) -> Option<T> {
        let entry = self.entry.as_ref();
        let ended = async {
            killed(entry).await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            biased;
            told = told => Some(told),
            () = tokio::time::sleep(WRITE_TIMEOUT) => None,
            () = ended => None,
        }
    }

    /// The mechanisms that this connection makes possible.
    fn possible(&self) -> Vec<Mechanism> {
        let plus = self.binding.tls_exporter.map(|_| Mechanism::ScramSha256Plus);
        let external = self.certificate_user.as_ref().map(|_| Mechanism::External);
        plus.into_iter().chain(external).collect()
    }

    /// Speaks on one stream until it is to be upgraded or closed.
    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(&mut self, session: &mut Session, stream: &mut S) -> Left {
        let mut buffer = vec![0; READ_BYTES];
        let mut replies = Vec::new();
        let mut shutdown_told = false;
        loop {
            session.set_transcript(self.transcript.as_mut().is_some_and(Transcript::is_wanted));
            while let Some(action) = session.poll_action() {
                if !self.is_quick(&action) || replies.len() >= OUTPUT_MAX {
                    self.write(session, stream, &mut replies).await;
                    self.list_state(session);
                }
                if let (Action::Send(bytes), Some(transcript)) = (&action, &mut self.transcript) {
                    transcript.said(bytes);
                }
                match action {
                    Action::Send(bytes) => {
                        if let Some(opened) = &self.opened {
                            count_refusals(&opened.connector.name, &bytes);
                        }
                        replies.extend_from_slice(&bytes);
                        session.give_back(bytes);
                    }
                    Action::StartTls => return Left::StartTls,
                    Action::Close { reason } => {
                        self.closed(reason, session.letters());
                        return Left::Closed;
                    }
                    other => self.act(session, other).await,
                }
            }
            self.write(session, stream, &mut replies).await;
            self.list_state(session);
            let deadline = session.poll_timeout().map(Instant::from_std);
            tokio::select! {
                read = stream.read(&mut buffer), if session.wants_input() => match read {
                    Ok(0) | Err(_) => session.handle_disconnect(now()),
                    Ok(count) => {
                        if let Some(peer) = self.watch_for_header.take()
                            && header::is_header(&buffer[..count])
                        {
                            header::refuse_unlisted(self.shared, peer);
                            return Left::Closed;
                        }
                        if let Some(entry) = &self.entry {
                            entry.heard(now_ms());
                        }
                        session.handle_bytes(now(), &buffer[..count]);
                    }
                },
                () = sleep_until(deadline) => session.handle_timeout(now()),
                () = self.ended.ended(), if !shutdown_told => {
                    shutdown_told = true;
                    session.handle_shutdown(now());
                }
                // Here no answer of ours is outstanding: a letter whose end has come has its `250`.
                () = killed(self.entry.as_ref()), if session.wants_input() => session.handle_killed(now()),
            }
        }
    }

    /// Writes what is to be said, and forgets it. A client that does not read it is gone.
    async fn write<S: AsyncWrite + Unpin>(&self, session: &mut Session, stream: &mut S, replies: &mut Vec<u8>) {
        if replies.is_empty() {
            return;
        }
        let sent = async {
            stream.write_all(replies).await?;
            stream.flush().await
        };
        if !matches!(self.within_patience(sent).await, Some(Ok(()))) {
            session.handle_disconnect(now());
        }
        // Room for the next few replies stays; an idle session holds no more.
        replies.clear();
        replies.shrink_to(REPLIES_KEPT);
    }

    /// What the session is doing, for whoever looks at the list.
    fn list_state(&self, session: &Session) {
        if let Some(entry) = &self.entry {
            entry.tell(session.state(), session.letters());
        }
    }

    /// Whether the replies before `action` may wait for those behind it (RFC 2920 §3.2: replies to commands that came
    /// together go out together). Never for something slow: not for the disk, and not for a tarpit.
    fn is_quick(&self, action: &Action) -> bool {
        match action {
            Action::Send(_) | Action::Note(_) | Action::Heard(_) => true,
            Action::CheckMail { .. } | Action::CheckRcpt { .. } => self.refusals == 0,
            _ => false,
        }
    }

    fn closed(&mut self, reason: CloseReason, letters: u64) {
        if let Some(transcript) = &mut self.transcript {
            transcript.close(reason.as_str());
        }
        if self.opened.is_some() {
            tracing::debug!(session.id = %self.session_id, reason = reason.as_str(), letters, "session closed");
        } else {
            tracing::trace!(session.id = %self.session_id, reason = reason.as_str(), "check ended");
        }
    }

    /// Answers what the session asks.
    async fn act(&mut self, session: &mut Session, action: Action) {
        match action {
            Action::CheckAuth { user, password, .. } => {
                let before = self.user.clone();
                let outcome = self.check_auth(session.is_tls(), &user, &password).await;
                self.note_login(before.as_ref());
                session.handle_auth(now(), outcome);
            }
            Action::SaslMessage { mechanism, first, message } => {
                let before = self.user.clone();
                let outcome = self.sasl_message(session.is_tls(), mechanism, first, &message).await;
                self.note_login(before.as_ref());
                session.handle_auth(now(), outcome);
            }
            Action::CheckMail { reverse_path, .. } => {
                let (verdict, rights) = self.check_mail(session.is_tls(), &reverse_path);
                self.tarpit(&verdict).await;
                if rights.contains(Right::BypassMessageSizeLimit) {
                    session.bypass_size_limit();
                }
                self.keeps_routing = rights.contains(Right::AcceptHeadersRouting);
                self.reverse_path = reverse_path;
                session.handle_mail(now(), verdict);
            }
            Action::CheckRcpt { forward_path } => {
                let verdict = self.check_rcpt(session.is_tls(), &forward_path);
                self.tarpit(&verdict).await;
                session.handle_rcpt(now(), verdict);
            }
            Action::BeginData { envelope } => {
                let ready = self.begin(envelope);
                session.handle_data_ready(now(), ready);
            }
            Action::Header { block, facts } => {
                if let Err(refusal) = self.header(session, block, &facts).await {
                    session.handle_append_failed(now(), refusal);
                }
            }
            Action::Append(bytes) => {
                if let Err(refusal) = self.append(bytes).await {
                    session.handle_append_failed(now(), refusal);
                }
            }
            Action::Commit { size } => {
                let answer = self.commit(session, size).await;
                session.handle_committed(now(), answer);
            }
            Action::Abort => self.letter = None,
            Action::Xclient(said) => {
                let decided = self.xclient(&said);
                session.handle_xclient(now(), decided);
            }
            Action::Note(Note::Lenient(leniency)) => {
                if let Some(opened) = &self.opened {
                    let connector = &opened.connector.name;
                    self.shared.leniencies.count(leniency, self.source, connector, &self.session_id);
                }
            }
            Action::Note(Note::XclientRefused) => {
                counter!(XCLIENTS, "result" => "refused").increment(1);
                let fix = "if it is an SMTP proxy of yours, add it to xclient.trusted in the node file";
                tracing::debug!(session.id = %self.session_id, source.addr = %self.source, fix, "XCLIENT refused");
            }
            Action::Heard(line) => {
                if let Some(transcript) = &mut self.transcript {
                    transcript.heard(&line);
                }
            }
            // Done by the loop that owns the stream.
            Action::Send(_) | Action::StartTls | Action::Close { .. } => {}
        }
    }

    pub(super) fn standing(&self, tls: bool) -> Option<Standing<'_>> {
        self.opened.as_ref().map(|opened| Standing {
            connector: &opened.connector,
            local: opened.local,
            source: opened.source,
            tls,
            user: self.user.as_deref(),
            secret: self.secret,
        })
    }

    /// The connection becomes that of the client whom a listed peer names.
    fn xclient(&mut self, said: &Xclient) -> Result<SessionConfig, Reply> {
        let Some(opened) = &self.opened else { return Err(reply::service_not_available()) };
        // The client named before has left.
        self.counted = None;
        let Reopened { opened, counted } = reopen(self.shared, opened, said)?;
        self.certificate = server_tls(self.shared, connector_tls(&opened.connector));
        let config = session_config(self.shared, &opened, self.certificate.is_some());
        // The log goes on as it began, with the peer's connector, and says for whom from here.
        if let Some(transcript) = &mut self.transcript {
            let matched =
                format!("connector {}, range {}, device {}", opened.connector.name, opened.range, opened.source);
            transcript.speaks_for(opened.source);
            transcript.note(&matched, "XCLIENT");
        }
        self.source = opened.source;
        self.by_fqdn.clone_from(&config.fqdn);
        // Whoever logged in, by password or certificate, was the peer and not the client that it names.
        (self.user, self.secret, self.scram, self.certificate_user) = (None, None, None, None);
        self.reverse_path = ReversePath::Null;
        self.refusals = 0;
        if let Some(entry) = &self.entry {
            entry.change(|listed| *listed = Facts { tls: self.tls.clone(), ..facts(&opened) });
        }
        self.opened = Some(opened);
        self.counted = Some(counted);
        Ok(config)
    }

    /// Whether one of our fronts has vouched for the device's address, and is none of ours any more.
    fn is_disowned(&self, view: &StateView) -> bool {
        let opened = self.opened.as_ref().filter(|opened| opened.signed);
        opened.and_then(|opened| opened.front.as_ref()).is_some_and(|front| !view.state.fronts.contains_key(front))
    }

    fn check_mail(&self, tls: bool, reverse_path: &ReversePath) -> (Verdict, Rights) {
        let Some(standing) = self.standing(tls) else { return (closing(), Rights::default()) };
        let view = self.shared.view();
        if self.is_disowned(&view) {
            return (closing(), Rights::default());
        }
        let Now::Same(connector, expired) = policy::choose_again(&view, &standing) else {
            // What this connection was opened for is not what it would get now.
            return (closing(), Rights::default());
        };
        self.seen(standing.user);
        if let Some(shortage) = self.shared.shortage() {
            tracing::warn!(
                session.id = %self.session_id,
                source.addr = %self.source,
                connector = %connector.name,
                resource = %shortage,
                "letter refused: back pressure"
            );
            return (Verdict::Deny(reply::insufficient_system_resources()), Rights::default());
        }
        let decision = policy::mail(&view, &standing, &connector, expired, reverse_path);
        let rights = policy::rights(&view, &standing, &connector, expired);
        if decision.is_permitted()
            && let Err(limit) = self.shared.options.counts.letter(&connector, self.source, self.user.as_deref())
        {
            count_limit(&connector.name, limit);
            tracing::debug!(session.id = %self.session_id, source.addr = %self.source, %limit, "letter refused");
            return (Verdict::Close(limit.reply()), rights);
        }
        (self.verdict(&connector, decision), rights)
    }

    /// A device that keeps its connection for days is in use all the while; once a minute is often enough to know.
    fn seen(&self, user: Option<&str>) {
        let (Some(opened), Some(entry)) = (&self.opened, &self.entry) else { return };
        let now_ms = now_ms();
        if entry.is_due(now_ms, SEEN_INTERVAL_MS) {
            self.shared.options.usages.still_here(&opened.connector.name, opened.range, user, now_ms);
        }
    }

    fn check_rcpt(&self, tls: bool, forward_path: &ForwardPath) -> Verdict {
        let Some(standing) = self.standing(tls) else { return closing() };
        let view = self.shared.view();
        if self.is_disowned(&view) {
            return closing();
        }
        let Now::Same(connector, expired) = policy::choose_again(&view, &standing) else { return closing() };
        let decision = policy::rcpt(&view, &standing, &connector, expired, &self.reverse_path, forward_path);
        self.verdict(&connector, decision)
    }

    fn verdict(&self, connector: &ReceiveConnector, decision: connector::Decision) -> Verdict {
        let reason = decision.reason();
        match decision.verdict {
            connector::Verdict::Permit => Verdict::Permit,
            connector::Verdict::Deny(reply) => {
                tracing::debug!(
                    session.id = %self.session_id,
                    source.addr = %self.source,
                    connector = %connector.name,
                    reply = %reply,
                    reason = reason.map(|reason| reason.to_string()).unwrap_or_default(),
                    "refused"
                );
                Verdict::Deny(reply)
            }
        }
    }

    /// Exchange's tarpit: whoever collects refusals waits for the next ones. Never a client that may relay, and never
    /// the first refusal: a typing error is not an attack.
    async fn tarpit(&mut self, verdict: &Verdict) {
        if let (Verdict::Deny(_), Some(opened)) = (verdict, &self.opened) {
            self.refusals += 1;
            let interval = tarpit(&opened.connector, self.refusals, self.user.is_some());
            self.pause(interval).await;
        }
    }

    fn begin(&mut self, mut envelope: Envelope) -> Result<(), Reply> {
        if let Some(postmaster) = self.opened.as_ref().and_then(|opened| opened.connector.default_postmaster()) {
            let bare = envelope.recipients.iter_mut().filter(|to| matches!(to.path, ForwardPath::Postmaster));
            bare.for_each(|recipient| recipient.path = ForwardPath::Mailbox(postmaster.clone()));
        }
        if let Some(reason) = self.shared.options.spool.failing() {
            tracing::error!(session.id = %self.session_id, %reason, "letter refused: the spool has failed");
            return Err(reply::insufficient_system_resources());
        }
        self.letter = Some(Letter {
            append: self.shared.options.spool.begin(),
            envelope,
            message_id: String::new(),
            subject: String::new(),
        });
        Ok(())
    }

    /// Puts our `Received`, and what the letter lacks, in front of its header, and takes away what may not stay.
    async fn header(&mut self, session: &Session, block: Vec<u8>, facts: &HeaderFacts) -> Result<(), Reply> {
        let date = date_rfc5322(now_ms());
        let Some(letter) = &mut self.letter else { return Err(reply::insufficient_system_resources()) };
        let id = letter.append.id().to_string();
        let generated = format!("{id}@{}", self.by_fqdn);
        letter.message_id = match &facts.message_id {
            Some(given) => given.clone(),
            None => format!("<{generated}>"),
        };
        letter.subject = facts.subject.clone().unwrap_or_default();
        // RFC 6531 §3.2: what was asked for and is not needed binds no next hop. Addresses speak for themselves.
        letter.envelope.smtp_utf8 &= !block.is_ascii();
        let mut lines = received(&ReceivedInfo {
            helo: session.helo().unwrap_or_default(),
            source_addr: self.source,
            by_fqdn: &self.by_fqdn,
            protocol: session.protocol(),
            tls: self.tls.as_deref(),
            id: &id,
            date: &date,
        })
        .into_bytes();
        lines.extend(missing_lines(facts, &date, &generated).into_bytes());
        // RFC 5321 §6.3, and Exchange's second count: a loop through one of us is found sooner.
        let local_max = self.opened.as_ref().map_or(0, |opened| opened.connector.max_local_hop_count);
        let names = [self.by_fqdn.as_str(), self.shared.options.fqdn.as_str()];
        let ours = |name: &str| names.iter().any(|own| own.eq_ignore_ascii_case(name));
        if local_max > 0 && header_firewall::local_hops(&block, ours) > local_max {
            return Err(reply::hop_count_exceeded());
        }
        let (block, stripped) = header_firewall::strip(block, self.keeps_routing);
        for (kind, count) in [("organization", stripped.organization), ("routing", stripped.routing)] {
            if count > 0 {
                counter!(STRIPPED, "kind" => kind).increment(u64::from(count));
                let id = &self.session_id;
                tracing::debug!(session.id = %id, kind, count, "header fields stripped");
            }
        }
        lines.extend(block);
        self.append(lines).await
    }

    async fn append(&mut self, bytes: Vec<u8>) -> Result<(), Reply> {
        let Some(letter) = &mut self.letter else { return Err(reply::insufficient_system_resources()) };
        match letter.append.write(bytes).await {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::error!(session.id = %self.session_id, %error, "letter refused: it cannot be stored");
                self.letter = None;
                Err(reply::insufficient_system_resources())
            }
        }
    }

    /// Makes the letter durable. Only then there is a `250` (RFC 5321 §6.1).
    async fn commit(&mut self, session: &Session, size: u64) -> Reply {
        let (Some(letter), Some(opened)) = (self.letter.take(), &self.opened) else {
            return reply::insufficient_system_resources();
        };
        let Letter { append, envelope, message_id, subject } = letter;
        let (id, recipients) = (append.id(), envelope.recipients.len());
        let message = NewMessage {
            envelope,
            message_id: message_id.clone(),
            source_addr: self.source,
            front: self.front.clone(),
            connector: opened.connector.name.clone(),
            session_id: self.session_id.clone(),
            helo: session.helo().unwrap_or_default().to_owned(),
            user: self.user.clone(),
            tls: self.tls.clone(),
            subject,
            size,
            received_at_ms: now_ms(),
        };
        if let Err(error) = append.commit(message).await {
            tracing::error!(session.id = %self.session_id, message.id = %id, %error, "letter not accepted");
            return reply::insufficient_system_resources();
        }
        counter!(ACCEPTED, "connector" => opened.connector.name.clone()).increment(1);
        tracing::info!(
            message.id = %id,
            session.id = %self.session_id,
            source.addr = %self.source,
            front = self.front.as_deref().unwrap_or_default(),
            connector = %opened.connector.name,
            recipients,
            size,
            "message accepted"
        );
        reply::queued(&message_id, id.0, &self.shared.options.fqdn)
    }
}

/// RFC 9266: 32 octets that only the two ends of this connection know. Not before TLS 1.3: there they would be unique
/// only with the extended master secret, and not every client can say whether it has that.
fn channel_binding(connection: &rustls::ServerConnection) -> Binding {
    let exporter = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => {
            connection.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b"")).ok()
        }
        _ => None,
    };
    Binding { tls_exporter: exporter, plus: false }
}

fn closing() -> Verdict {
    Verdict::Close(reply::service_not_available_closing())
}

/// Returns when an administrator ends the session.
async fn killed(entry: Option<&Entry>) {
    match entry {
        Some(entry) => entry.killed().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        // The driver owes the session an answer, and has deadlines of its own.
        None => std::future::pending().await,
    }
}
