//! The server's side of a session (RFC 5321), sans-io.
//!
//! Drive it so: call [`Session::poll_action`] until it answers `None`, doing what it says; hand in what came, and when
//! the time of [`Session::poll_timeout`] passes call [`Session::handle_timeout`]; after each `handle_*` poll again.
//! Read from the socket only while [`Session::wants_input`]: that bounds the memory of a session to what one read
//! brings, one line, one header and [`OUTPUT_MAX`].
//!
//! Commands are taken strictly one after the other. While an answer of the driver is outstanding nothing further is
//! looked at, so whatever a client sends ahead is decided in order (RFC 2920 §3.2).

mod action;
mod auth;
mod commands;
mod config;
mod heard;
mod transaction;
mod transfer;
mod xclient;

#[cfg(test)]
mod auth_tests;
#[cfg(test)]
mod chunks_tests;
#[cfg(test)]
mod dialogs;
#[cfg(test)]
mod extensions_tests;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use action::{Action, AuthOutcome, CloseReason, Note, SessionState, Verdict};
pub use config::{Limits, Offer, SessionConfig, SizeMode, TlsMode};

use super::command::{self, Chunk, MailCommand, RcptCommand};
use super::line::{LineBuffer, LineError};
use super::sasl::{Exchange, Mechanism};
use crate::mail::trace_header::TransferProtocol;
use crate::mail::{EnvelopeRecipient, Reply, reply};
use transaction::Transaction;
use transfer::Transfer;

/// Octets of replies and mail data after which a session waits for its driver before it looks at further input.
pub const OUTPUT_MAX: usize = 32 * 1024;
/// Commands that change nothing, such as `NOOP`, that a session may give between two letters; the next ones count as
/// errors. Postfix's number.
const IDLE_COMMANDS_MAX: u32 = 100;
/// Room for a reply or two (RFC 5321 §4.5.3.1.5 allows 512 octets); more are appended as they come.
const REPLY_BYTES: usize = 256;
/// Octets of mail data that must come within `inactivity_timeout`: one octet now and then is not activity.
const DATA_PROGRESS: usize = 1024;

/// One session.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    input: LineBuffer,
    /// The command under way.
    line: Vec<u8>,
    actions: VecDeque<Action>,
    /// Memory that is used again: of replies that were written, and of recipients that were given up.
    spare_reply: Vec<u8>,
    spare_recipients: Vec<EnvelopeRecipient>,
    /// Octets in `actions`.
    queued: usize,
    phase: Phase,
    awaiting: Option<Awaiting>,
    hello: Option<Hello>,
    tls_active: bool,
    /// Mechanisms that this connection, beyond its connector, makes possible.
    possible: Vec<Mechanism>,
    /// Who its certificate says the client is.
    certificate_user: Option<String>,
    user: Option<String>,
    transaction: Option<Transaction>,
    bypass_size_limit: bool,
    greeting_polled: bool,
    early_talker: bool,
    shutting_down: bool,
    /// A line named `AUTH`: what comes without being understood may be a secret.
    auth_seen: bool,
    protocol_errors: u32,
    logon_failures: u32,
    idle_commands: u32,
    letters: u64,
    opened: Instant,
    now: Instant,
    last_progress: Instant,
    data_progress: usize,
}

/// What the next octet from the client belongs to.
#[derive(Debug)]
enum Phase {
    Command,
    Sasl(Exchange),
    Data(Box<Transfer>),
    /// Octets of a chunk that nobody wants; then `reply` is said.
    Swallow {
        left: u64,
        reply: Reply,
    },
    Closed,
}

/// The answer that the driver owes us.
#[derive(Debug)]
enum Awaiting {
    Tls,
    Auth {
        user: String,
    },
    Sasl(Exchange),
    Mail(MailCommand),
    Rcpt(RcptCommand),
    /// For the first chunk of a letter, or for `DATA`.
    DataReady(Option<Chunk>),
    Committed,
    Xclient {
        hello: Option<Hello>,
    },
}

/// What `EHLO` or `HELO` said.
#[derive(Debug)]
struct Hello {
    name: String,
    extended: bool,
}

/// Getters.
impl Session {
    /// What the client called itself since the last TLS handshake.
    #[must_use]
    pub fn helo(&self) -> Option<&str> {
        self.hello.as_ref().map(|hello| hello.name.as_str())
    }

    /// Who the client has proved to be.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref().or(self.certificate_user.as_deref())
    }

    /// Whether the session is inside TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls_active
    }

    /// The word for the `Received:` line.
    #[must_use]
    pub fn protocol(&self) -> TransferProtocol {
        TransferProtocol {
            extended: self.hello.as_ref().is_some_and(|hello| hello.extended),
            tls: self.tls_active,
            authenticated: self.user().is_some(),
            smtp_utf8: self.transaction.as_ref().is_some_and(Transaction::is_smtp_utf8),
        }
    }

    /// Whether a sender has been permitted whose letter has not ended.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some() || matches!(self.awaiting, Some(Awaiting::Mail(_)))
    }

    /// Letters that were answered with a 2yz.
    #[must_use]
    pub fn letters(&self) -> u64 {
        self.letters
    }

    /// What the session is doing.
    #[must_use]
    pub fn state(&self) -> SessionState {
        match (&self.phase, &self.awaiting) {
            (Phase::Closed, _) => SessionState::Closing,
            (_, Some(Awaiting::Committed)) => SessionState::Commit,
            (_, Some(Awaiting::Tls)) => SessionState::Tls,
            (Phase::Sasl(_), _) | (_, Some(Awaiting::Auth { .. } | Awaiting::Sasl(_))) => SessionState::Login,
            (Phase::Data(_) | Phase::Swallow { .. }, _) | (_, Some(Awaiting::DataReady(_))) => SessionState::Data,
            _ if self.has_chunks() => SessionState::Data,
            _ if self.in_transaction() => SessionState::Transaction,
            _ if self.hello.is_some() => SessionState::Ready,
            _ => SessionState::Connected,
        }
    }

    /// Whether the session has ended. The last actions may still be there to be polled.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Whether the session can use bytes from the client now.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.can_proceed() && self.actions.is_empty()
    }
}

/// Inputs.
impl Session {
    /// Begins a session: the greeting is the first action.
    #[must_use]
    pub fn new(config: SessionConfig, now: Instant) -> Self {
        let mut session = Self {
            tls_active: config.tls == TlsMode::Implicit,
            config,
            input: LineBuffer::default(),
            line: Vec::new(),
            actions: VecDeque::new(),
            spare_reply: Vec::new(),
            spare_recipients: Vec::new(),
            queued: 0,
            phase: Phase::Command,
            awaiting: None,
            hello: None,
            possible: Vec::new(),
            certificate_user: None,
            user: None,
            transaction: None,
            bypass_size_limit: false,
            greeting_polled: false,
            early_talker: false,
            shutting_down: false,
            auth_seen: false,
            protocol_errors: 0,
            logon_failures: 0,
            idle_commands: 0,
            letters: 0,
            opened: now,
            now,
            last_progress: now,
            data_progress: 0,
        };
        session.greet();
        session
    }

    /// Takes what has come from the client. Call it while [`Session::wants_input`].
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) {
        self.now = now;
        if self.is_closed() || bytes.is_empty() {
            return;
        }
        if !self.greeting_polled && !self.early_talker {
            // RFC 5321 §4.3.1: the client waits for the greeting. One that does not is a poor client, not yet an enemy.
            self.early_talker = true;
            self.protocol_errors += 1;
        }
        self.input.push(bytes);
    }

    /// TLS is there: everything said before it is forgotten (RFC 3207 §4.2).
    pub fn handle_tls_established(&mut self, now: Instant) {
        self.now = now;
        if matches!(self.awaiting, Some(Awaiting::Tls)) {
            self.awaiting = None;
            self.tls_active = true;
            self.hello = None;
            self.user = None;
            self.transaction = None;
            self.input.clear();
            self.progress();
        }
    }

    /// What the TLS connection brings: mechanisms that need something of it, and the user that the client's certificate
    /// stands for. Call it when the handshake is done, before anything else of the session.
    pub fn handle_tls_facts(&mut self, possible: Vec<Mechanism>, certificate_user: Option<String>) {
        self.possible = possible;
        self.certificate_user = certificate_user;
    }

    /// No TLS came of it. What follows on this connection is nobody's.
    pub fn handle_tls_failed(&mut self, now: Instant) {
        self.now = now;
        self.close(CloseReason::TlsFailed);
    }

    /// The client closed its side, or the connection broke: an unfinished letter is forgotten. A commit that is under
    /// way goes on, only its answer reaches nobody.
    pub fn handle_disconnect(&mut self, now: Instant) {
        self.now = now;
        if !self.is_closed() {
            // Nothing that is still queued can be sent, and a letter whose commit was not yet polled will come again.
            if self.actions.iter().any(|action| matches!(action, Action::Commit { .. })) {
                self.awaiting = None;
            }
            self.actions.retain(|action| matches!(action, Action::Abort));
            self.queued = 0;
            self.close(CloseReason::Disconnected);
        }
    }

    /// We stop: the session ends with `421` when no letter is under way, now or later. A letter whose `MAIL` has been
    /// answered is finished first.
    pub fn handle_shutdown(&mut self, now: Instant) {
        self.now = now;
        self.shutting_down = true;
    }

    /// An administrator ends the session: it says `421` now, and what has come of a letter is forgotten. While the
    /// driver owes an answer nothing happens, so that a letter that is being committed gets its own: call it again
    /// after that.
    pub fn handle_killed(&mut self, now: Instant) {
        self.now = now;
        if self.can_proceed() {
            self.send(&reply::service_not_available_closing());
            self.close(CloseReason::Killed);
        }
    }

    /// The time of [`Session::poll_timeout`] has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if self.inactivity_deadline().is_some_and(|deadline| now >= deadline) {
            self.send(&reply::input_timeout());
            self.close(CloseReason::Inactivity);
        } else if self.connection_deadline().is_some_and(|deadline| now >= deadline) {
            self.send(&reply::connection_timed_out());
            self.close(CloseReason::ConnectionTimeout);
        }
    }
}

/// Outputs.
impl Session {
    /// The next thing to do, or `None` until something happens.
    pub fn poll_action(&mut self) -> Option<Action> {
        while self.can_proceed() && self.queued < OUTPUT_MAX && self.step() {}
        let action = self.actions.pop_front()?;
        self.queued -= weight(&action);
        self.greeting_polled = true;
        Some(action)
    }

    /// Takes the memory of an [`Action::Send`] back, once it is written, so that the next reply needs none.
    pub fn give_back(&mut self, mut sent: Vec<u8>) {
        // What a long EHLO or a burst made large is not kept.
        if sent.capacity() <= 4 * REPLY_BYTES {
            sent.clear();
            self.spare_reply = sent;
        }
    }

    /// When [`Session::handle_timeout`] wants to be called, if the client stays silent. `None` while the driver owes
    /// an answer: it has deadlines of its own.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match (self.inactivity_deadline(), self.connection_deadline()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

/// The engine.
impl Session {
    fn can_proceed(&self) -> bool {
        self.awaiting.is_none() && !self.is_closed()
    }

    /// Takes one line, or one piece of mail data. Answers whether there was one.
    fn step(&mut self) -> bool {
        match self.phase {
            Phase::Command => self.step_command(),
            Phase::Sasl(_) => match self.input.next_line(|_| command::AUTH_LINE_MAX) {
                None => false,
                Some(line) => {
                    self.progress();
                    self.tell_secret();
                    self.handle_sasl_line(line);
                    true
                }
            },
            Phase::Data(_) => self.step_data(),
            Phase::Swallow { .. } => self.step_swallow(),
            Phase::Closed => false,
        }
    }

    fn step_command(&mut self) -> bool {
        if self.shutting_down && self.transaction.is_none() {
            self.send(&reply::service_not_available_closing());
            self.close(CloseReason::Shutdown);
            return true;
        }
        let auth = command::line_limit(self.input.rest()) == command::AUTH_LINE_MAX;
        let bdat = command::is_bdat(self.input.rest());
        // One line after the other in the same memory: most commands allocate nothing for it.
        let mut line = std::mem::take(&mut self.line);
        let Some(read) = self.input.next_line_into(command::line_limit, &mut line) else {
            self.line = line;
            return false;
        };
        // Within a letter only its octets are progress: chunks of nothing would hold a session for ever.
        if !self.has_chunks() {
            self.progress();
        }
        match read {
            Ok(()) => {
                self.tell_line(&line);
                self.handle_line(&line);
            }
            Err(_) if bdat => self.lost_chunk(),
            Err(LineError::TooLong) if auth => self.protocol_error(&reply::authentication_line_too_long()),
            Err(LineError::TooLong) => self.protocol_error(&reply::line_too_long()),
            Err(LineError::BareLineEnd) => self.protocol_error(&reply::bare_line_end_in_command()),
        }
        self.line = line;
        true
    }

    /// Queues a reply. A refusal ends with the session id, so that one string finds everything.
    fn send(&mut self, reply: &Reply) {
        let refusal = reply.code.is_transient() || reply.code.is_permanent();
        // RFC 2920 §3.2: replies to commands that came together go out together.
        if !matches!(self.actions.back(), Some(Action::Send(_))) {
            let mut wire = std::mem::take(&mut self.spare_reply);
            wire.reserve(REPLY_BYTES);
            self.actions.push_back(Action::Send(wire));
        }
        let Some(Action::Send(wire)) = self.actions.back_mut() else { return };
        let before = wire.len();
        if refusal && !self.config.session_id.is_empty() {
            let suffix = format!("[{}]", self.config.session_id);
            reply.clone().with_suffix(&suffix).write_to(wire, self.config.offer.enhanced_status_codes);
        } else {
            reply.write_to(wire, self.config.offer.enhanced_status_codes);
        }
        self.queued += wire.len() - before;
    }

    /// Queues a reply that the driver chose.
    fn send_verdict(&mut self, reply: &Reply) {
        self.send(reply);
        // RFC 5321 §3.8: 421 says that the channel closes.
        if reply.code.0 == 421 {
            self.close(CloseReason::Refused);
        }
    }

    fn act(&mut self, action: Action) {
        self.queued += weight(&action);
        self.actions.push_back(action);
    }

    fn ask(&mut self, action: Action, awaiting: Awaiting) {
        self.act(action);
        self.awaiting = Some(awaiting);
    }

    /// Answers an error of the client's, or ends the session if it has made too many.
    fn protocol_error(&mut self, reply: &Reply) {
        self.protocol_errors = self.protocol_errors.saturating_add(1);
        let max = self.config.limits.max_protocol_errors;
        if max > 0 && self.protocol_errors > max {
            self.send(&reply::too_many_errors());
            self.close(CloseReason::ProtocolErrors);
        } else {
            self.send(reply);
        }
    }

    /// Answers a command that changes nothing; too many of them are errors.
    fn send_idle(&mut self, reply: &Reply) {
        self.idle_commands = self.idle_commands.saturating_add(1);
        if self.idle_commands > IDLE_COMMANDS_MAX {
            self.protocol_error(reply);
        } else {
            self.send(reply);
        }
    }

    fn close(&mut self, reason: CloseReason) {
        if self.is_closed() {
            return;
        }
        let under_way = match &self.phase {
            Phase::Data(transfer) => transfer.is_kept(),
            _ => self.keeps_chunks() || matches!(self.awaiting, Some(Awaiting::DataReady(_))),
        };
        // A commit that has been handed over is past forgetting: the letter is whole.
        if under_way && !matches!(self.awaiting, Some(Awaiting::Committed)) {
            self.act(Action::Abort);
        }
        self.phase = Phase::Closed;
        self.awaiting = None;
        self.transaction = None;
        self.input.clear();
        self.act(Action::Close { reason });
    }

    fn progress(&mut self) {
        self.last_progress = self.now;
        self.data_progress = 0;
    }

    fn inactivity_deadline(&self) -> Option<Instant> {
        self.can_proceed().then(|| self.last_progress.checked_add(self.config.limits.inactivity_timeout)).flatten()
    }

    /// A letter under way is not cut. A transaction that does not come to its letter is, at twice the age.
    fn connection_deadline(&self) -> Option<Instant> {
        let age: Duration = self.config.limits.connection_timeout;
        match (&self.phase, &self.transaction) {
            _ if !self.can_proceed() => None,
            (Phase::Data(_), _) => None,
            _ if self.has_chunks() => None,
            (_, None) => self.opened.checked_add(age),
            (_, Some(_)) => self.opened.checked_add(age.saturating_mul(2)),
        }
    }
}

fn weight(action: &Action) -> usize {
    match action {
        Action::Send(bytes) | Action::Append(bytes) | Action::Header { block: bytes, .. } | Action::Heard(bytes) => {
            bytes.len()
        }
        _ => 0,
    }
}
