//! Client side of SMTP (RFC 5321), without socket or clock: greeting → EHLO → STARTTLS → EHLO → transactions → QUIT.
//!
//! The driver feeds `handle_*` and then drains [`Client::poll_action`]; how long to wait is its affair, with
//! [`Client::phase`] as the hint.

mod auth;
mod downgrade;
mod encoder;
mod extensions;
mod reply_parser;
mod stuffing;
#[cfg(test)]
mod tests;
mod transaction;

use std::collections::VecDeque;

pub use auth::{ClientAuth, SCRAM_ITERATIONS_MAX};
pub use downgrade::{Downgrade, DowngradeError};
pub use extensions::Extensions;
pub use reply_parser::{REPLY_BYTES_MAX, REPLY_LINES_MAX, ReplyError};
pub use transaction::Transaction;

use crate::mail::{EnhancedCode, Reply};
use auth::{AuthStep, Login, Mechanism};
use encoder::Encoder;
use reply_parser::ReplyParser;
use transaction::{Expect, Manner, Progress, Step};

/// What became of one recipient at a next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The next hop took responsibility.
    Delivered {
        /// Its words.
        reply: Reply,
    },
    /// Not now.
    Deferred {
        /// Its words, or ours when it said nothing.
        reply: Reply,
    },
    /// Never.
    Failed {
        /// Its words, or ours.
        reply: Reply,
    },
}

impl Outcome {
    /// Reads the final reply to a letter. What is neither yes nor no is "not now".
    #[must_use]
    pub fn of(reply: &Reply) -> Self {
        if reply.code.is_positive() { Self::Delivered { reply: reply.clone() } } else { Self::refused(reply) }
    }

    /// Reads a refusal.
    #[must_use]
    pub fn refused(reply: &Reply) -> Self {
        let reply = reply.clone();
        if reply.code.is_permanent() { Self::Failed { reply } } else { Self::Deferred { reply } }
    }

    /// The words.
    #[must_use]
    pub fn reply(&self) -> &Reply {
        match self {
            Self::Delivered { reply } | Self::Deferred { reply } | Self::Failed { reply } => reply,
        }
    }
}

/// Whether to ask for TLS (RFC 3207).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsUse {
    /// Never.
    Off,
    /// When it is offered.
    Opportunistic,
    /// Or not at all.
    Required,
}

/// How a client introduces itself.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The name for `EHLO`.
    pub helo: String,
    /// Whether to ask for TLS.
    pub tls: TlsUse,
    /// Who we are; absent: nobody asks.
    pub auth: Option<ClientAuth>,
}

/// What the driver is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Write these bytes.
    Send(Vec<u8>),
    /// Begin the TLS handshake, then call [`Client::handle_tls_established`].
    StartTls,
    /// Derive 32 bytes from the password with PBKDF2 and HMAC-SHA-256, off the async workers, then call
    /// [`Client::handle_salted`].
    Derive {
        /// The salt.
        salt: Vec<u8>,
        /// The rounds, at most [`SCRAM_ITERATIONS_MAX`].
        iterations: u32,
    },
    /// A transaction may begin, or the session may end.
    Ready,
    /// Call [`Client::handle_body`] with the letter's bytes, then [`Client::handle_body_end`].
    NeedBody,
    /// The transaction is over: one outcome per recipient, in order.
    Finished {
        /// What became of them.
        outcomes: Vec<Outcome>,
        /// The connection ended before the next hop said anything about this letter: on a connection that was used
        /// before, it had only grown tired of waiting.
        unanswered: bool,
    },
    /// Close the socket. The reply says why, unless everything was said.
    Close(Option<Reply>),
}

/// What the client waits for, for the driver's deadlines (RFC 5321 §4.5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The greeting.
    Greeting,
    /// The reply to `EHLO` or `HELO`.
    Ehlo,
    /// The reply to `STARTTLS`.
    StartTls,
    /// The TLS handshake.
    Handshake,
    /// The reply to `AUTH`.
    Auth,
    /// The driver.
    Ready,
    /// The reply to `MAIL` or `RSET`.
    Mail,
    /// The reply to `RCPT`.
    Rcpt,
    /// The reply to `DATA`.
    Data,
    /// The letter's bytes, from the driver.
    Body,
    /// The reply to the end of mail data.
    EndOfData,
    /// The reply to `QUIT`.
    Quit,
    /// Nothing any more.
    Closed,
}

impl Phase {
    /// As it stands in a log line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Greeting => "the greeting",
            Self::Ehlo => "the reply to EHLO",
            Self::StartTls => "the reply to STARTTLS",
            Self::Handshake => "the TLS handshake",
            Self::Auth => "the reply to AUTH",
            Self::Ready => "the next letter",
            Self::Mail => "the reply to MAIL",
            Self::Rcpt => "the reply to RCPT",
            Self::Data => "the reply to DATA",
            Self::Body => "the transfer of mail data",
            Self::EndOfData => "the reply to the end of mail data",
            Self::Quit => "the reply to QUIT",
            Self::Closed => "nothing",
        }
    }
}

#[derive(Debug)]
enum State {
    Greeting,
    Ehlo,
    Helo,
    StartTls,
    Handshake,
    Auth(Box<Login>),
    Ready,
    Transaction(Box<Progress>),
    Body(Box<Progress>, Encoder),
    EndOfData(Box<Progress>),
    Quit,
    Closed,
}

/// One SMTP connection from the client's side.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    state: State,
    parser: ReplyParser,
    actions: VecDeque<Action>,
    extensions: Extensions,
    secure: bool,
    /// The next hop still has a transaction open that we gave up.
    reset: bool,
    greeting: Option<Reply>,
}

impl Client {
    /// Makes a client that waits for the greeting.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        Self {
            config,
            state: State::Greeting,
            parser: ReplyParser::default(),
            actions: VecDeque::new(),
            extensions: Extensions::default(),
            secure: false,
            reset: false,
            greeting: None,
        }
    }

    /// What the client waits for.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Greeting => Phase::Greeting,
            State::Ehlo | State::Helo => Phase::Ehlo,
            State::StartTls => Phase::StartTls,
            State::Handshake => Phase::Handshake,
            State::Auth(_) => Phase::Auth,
            State::Ready => Phase::Ready,
            State::Transaction(progress) => match progress.awaiting() {
                Some(Expect::Rcpt(_)) => Phase::Rcpt,
                Some(Expect::Data) => Phase::Data,
                Some(Expect::Chunk | Expect::EndOfData) => Phase::EndOfData,
                Some(Expect::Rset | Expect::Mail) | None => Phase::Mail,
            },
            State::Body(..) => Phase::Body,
            State::EndOfData(_) => Phase::EndOfData,
            State::Quit => Phase::Quit,
            State::Closed => Phase::Closed,
        }
    }

    /// Whether TLS protects the connection.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// What the next hop offers.
    #[must_use]
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// Takes what the driver is to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Takes bytes from the next hop.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.parser.feed(bytes);
        loop {
            if matches!(self.state, State::Closed | State::Handshake) {
                return;
            }
            match self.parser.next() {
                Ok(Some(reply)) => self.handle_reply(reply),
                Ok(None) => return,
                Err(error) => {
                    let text = format!("next hop does not speak SMTP: {error} instead of {}", self.phase().as_str());
                    return self.give_up(&ours(4, 5, 0, text));
                }
            }
        }
    }

    /// TLS is established. Everything said before is forgotten (RFC 3207 §4.2).
    pub fn handle_tls_established(&mut self) {
        if matches!(self.state, State::Handshake) {
            self.secure = true;
            self.extensions = Extensions::default();
            self.say_ehlo();
        }
    }

    /// Begins a transaction; only after [`Action::Ready`] or [`Action::Finished`].
    pub fn begin(&mut self, transaction: Transaction) {
        if !matches!(self.state, State::Ready) {
            let outcomes = vec![
                Outcome::Deferred { reply: ours(4, 4, 2, "no connection to the next hop".to_owned()) };
                transaction.recipients.len()
            ];
            self.actions.push_back(Action::Finished { outcomes, unanswered: true });
            return;
        }
        if let Some(limit @ 1..) = self.extensions.size
            && transaction.size > limit
        {
            // RFC 1870 §5: known before anything is sent.
            let text =
                format!("message of {} bytes exceeds the {limit} bytes that the next hop takes", transaction.size);
            let reply = Reply::new(552, Some(EnhancedCode::new(5, 3, 4)), text);
            let outcomes = vec![Outcome::Failed { reply }; transaction.recipients.len()];
            self.actions.push_back(Action::Finished { outcomes, unanswered: false });
            return;
        }
        let outcomes = self.refused_for_utf8(&transaction);
        if outcomes.iter().all(Option::is_some) {
            let outcomes = outcomes.into_iter().flatten().collect();
            self.actions.push_back(Action::Finished { outcomes, unanswered: false });
            return;
        }
        let mut parameters = String::new();
        if self.extensions.size.is_some() {
            parameters.push_str(&format!(" SIZE={}", transaction.size));
        }
        if transaction.eight_bit && self.extensions.eight_bit_mime {
            parameters.push_str(" BODY=8BITMIME");
        }
        if transaction.needs_utf8() && self.extensions.smtp_utf8 {
            parameters.push_str(" SMTPUTF8");
        }
        if self.extensions.dsn {
            parameters.push_str(&transaction.dsn_mail);
        }
        let manner = Manner {
            reset: std::mem::take(&mut self.reset),
            pipelining: self.extensions.pipelining,
            // Without pipelining each chunk would wait for its reply; DATA waits once.
            chunking: self.extensions.chunking && self.extensions.pipelining,
            dsn: self.extensions.dsn,
        };
        let (progress, out) = Progress::begin(transaction, &parameters, manner, outcomes);
        self.state = State::Transaction(Box::new(progress));
        self.actions.push_back(Action::Send(out));
    }

    /// What a next hop without SMTPUTF8 cannot have (RFC 6531 §3.1, RFC 6533 §3).
    fn refused_for_utf8(&self, transaction: &Transaction) -> Vec<Option<Outcome>> {
        let refuse = |detail, text: &str| {
            let reply = Reply::new(553, Some(EnhancedCode::new(5, 6, detail)), text.to_owned());
            Some(Outcome::Failed { reply })
        };
        let for_all = if self.extensions.smtp_utf8 {
            None
        } else if transaction.utf8_header {
            refuse(9, "the letter has a header in UTF-8 and the next hop does not offer SMTPUTF8")
        } else if !transaction.reverse_path.is_ascii() {
            refuse(7, "the sender's address is not ASCII and the next hop does not offer SMTPUTF8")
        } else {
            None
        };
        let for_one = |path: &String| match path.is_ascii() || self.extensions.smtp_utf8 {
            true => None,
            false => refuse(7, "the recipient's address is not ASCII and the next hop does not offer SMTPUTF8"),
        };
        transaction.recipients.iter().map(|path| for_all.clone().or_else(|| for_one(path))).collect()
    }

    /// Takes bytes of the letter, after [`Action::NeedBody`].
    pub fn handle_body(&mut self, bytes: &[u8]) {
        if let State::Body(progress, encoder) = &mut self.state {
            let (out, chunks) = encoder.add(bytes);
            progress.note_chunks(chunks);
            if !out.is_empty() {
                self.actions.push_back(Action::Send(out));
            }
        }
    }

    /// The letter is complete.
    pub fn handle_body_end(&mut self) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Body(mut progress, encoder) => {
                self.actions.push_back(Action::Send(encoder.finish()));
                progress.note_end();
                self.state = State::EndOfData(progress);
            }
            other => self.state = other,
        }
    }

    /// The letter's bytes cannot be read to the end: the connection is cut, so that the next hop never sees an end.
    pub fn handle_body_failed(&mut self, why: &str) {
        self.give_up(&ours(4, 3, 0, format!("letter could not be read: {why}")));
    }

    /// The connection is gone.
    pub fn handle_disconnected(&mut self, why: &str) {
        let text = format!("connection lost during {}: {why}{}", self.phase().as_str(), self.doubt());
        self.give_up(&ours(4, 4, 2, text));
    }

    /// The driver waited long enough.
    pub fn handle_timeout(&mut self) {
        let text = format!("timed out waiting for {}{}", self.phase().as_str(), self.doubt());
        self.give_up(&ours(4, 4, 2, text));
    }

    /// Says goodbye; only when ready.
    pub fn quit(&mut self) {
        if matches!(self.state, State::Ready) {
            self.state = State::Quit;
            self.actions.push_back(Action::Send(b"QUIT\r\n".to_vec()));
        }
    }

    fn doubt(&self) -> &'static str {
        match &self.state {
            State::EndOfData(progress) | State::Transaction(progress) if progress.is_doubtful(true) => {
                " (possible duplicate)"
            }
            _ => "",
        }
    }

    fn handle_reply(&mut self, reply: Reply) {
        // RFC 5321 §3.8: 421 may come at any time, and nothing follows it.
        if reply.code.0 == 421 && !matches!(self.state, State::Quit) {
            return self.give_up(&reply);
        }
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Greeting => self.handle_greeting(reply),
            State::Ehlo => self.handle_ehlo(&reply),
            State::Helo => match reply.code.is_positive() {
                true => self.go_on_after_ehlo(),
                false => self.refuse(&reply),
            },
            State::StartTls => self.handle_start_tls(&reply),
            State::Auth(mut login) => {
                let step = login.handle_reply(&reply);
                self.take_auth_step(login, step);
            }
            State::Transaction(progress) => self.handle_transaction(progress, &reply),
            State::EndOfData(mut progress) => {
                let step = progress.handle_reply(&reply);
                match step {
                    Step::Wait => self.state = State::EndOfData(progress),
                    step => self.take_step(progress, step, &reply),
                }
            }
            State::Body(mut progress, encoder)
                if reply.code.is_positive() && progress.awaiting() == Some(Expect::Chunk) =>
            {
                progress.handle_reply(&reply);
                self.state = State::Body(progress, encoder);
            }
            // A next hop that answers while the letter is still being sent has stopped listening.
            State::Body(progress, _) if !reply.code.is_positive() && !reply.code.is_intermediate() => {
                let mut progress = progress;
                progress.settle_rest(&reply);
                self.finish(*progress, &reply);
                self.actions.push_back(Action::Close(Some(reply)));
            }
            state @ (State::Body(..) | State::Ready | State::Handshake) => {
                self.state = state;
                let text = format!("next hop said {} when nothing was asked", reply.code.0);
                self.give_up(&ours(4, 5, 0, text));
            }
            State::Quit | State::Closed => self.actions.push_back(Action::Close(None)),
        }
    }

    fn handle_greeting(&mut self, reply: Reply) {
        if reply.code.0 == 220 {
            self.greeting = Some(reply);
            self.say_ehlo();
        } else {
            self.refuse(&reply);
        }
    }

    fn say_ehlo(&mut self) {
        self.actions.push_back(Action::Send(format!("EHLO {}\r\n", self.config.helo).into_bytes()));
        self.state = State::Ehlo;
    }

    fn handle_ehlo(&mut self, reply: &Reply) {
        if reply.code.is_positive() {
            self.extensions = Extensions::read(reply);
            self.go_on_after_ehlo();
        } else if reply.code.is_permanent() {
            // RFC 5321 §3.2: a server that does not know EHLO is greeted with HELO.
            self.actions.push_back(Action::Send(format!("HELO {}\r\n", self.config.helo).into_bytes()));
            self.state = State::Helo;
        } else {
            self.refuse(reply);
        }
    }

    fn go_on_after_ehlo(&mut self) {
        match self.config.tls {
            TlsUse::Opportunistic | TlsUse::Required if !self.secure && self.extensions.start_tls => {
                self.actions.push_back(Action::Send(b"STARTTLS\r\n".to_vec()));
                self.state = State::StartTls;
            }
            TlsUse::Required if !self.secure => {
                self.refuse(&ours(
                    4,
                    7,
                    4,
                    "TLS is required for this route and the next hop does not offer it".to_owned(),
                ));
            }
            _ => self.log_in(),
        }
    }

    fn log_in(&mut self) {
        let Some(auth) = &self.config.auth else { return self.be_ready() };
        match Mechanism::choose(&self.extensions.auth, self.secure) {
            Some(mechanism) => {
                let (login, out) = Login::begin(auth, mechanism);
                self.actions.push_back(Action::Send(out));
                self.state = State::Auth(Box::new(login));
            }
            None => {
                let offered = self.extensions.auth.join(" ");
                let text = match (offered.is_empty(), self.secure) {
                    (true, _) => "the route has a credential and the next hop offers no login".to_owned(),
                    (false, true) => format!("the next hop offers no login that we know, only {offered}"),
                    (false, false) => {
                        format!("the next hop offers {offered} without TLS: no password is sent in clear text")
                    }
                };
                self.refuse(&ours(4, 7, 0, text));
            }
        }
    }

    fn take_auth_step(&mut self, login: Box<Login>, step: AuthStep) {
        match step {
            AuthStep::Send(out) => {
                self.actions.push_back(Action::Send(out));
                self.state = State::Auth(login);
            }
            AuthStep::Derive { salt, iterations } => {
                self.actions.push_back(Action::Derive { salt, iterations });
                self.state = State::Auth(login);
            }
            AuthStep::Done => self.be_ready(),
            // A wrong password is our administrator's mistake, not the letter's: it waits.
            AuthStep::Failed(why) => self.refuse(&ours(4, 7, 8, why)),
        }
    }

    /// Takes what [`Action::Derive`] asked for.
    pub fn handle_salted(&mut self, salted: &[u8]) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Auth(mut login) => {
                let step = login.handle_salted(salted);
                self.take_auth_step(login, step);
            }
            other => self.state = other,
        }
    }

    fn handle_start_tls(&mut self, reply: &Reply) {
        if reply.code.0 == 220 {
            // RFC 3207 §4.2: what came in clear text behind the 220 was put there by somebody in between.
            if self.parser.is_empty() {
                self.state = State::Handshake;
                self.actions.push_back(Action::StartTls);
            } else {
                let text =
                    "next hop spoke in clear text after it agreed to TLS: somebody in between may have".to_owned();
                self.actions.push_back(Action::Close(Some(ours(4, 7, 5, text))));
            }
        } else if self.config.tls == TlsUse::Required {
            let text = format!("TLS is required for this route and the next hop refused it: {reply}");
            self.refuse(&ours(4, 7, 4, text));
        } else {
            self.log_in();
        }
    }

    fn be_ready(&mut self) {
        self.state = State::Ready;
        self.actions.push_back(Action::Ready);
    }

    fn handle_transaction(&mut self, mut progress: Box<Progress>, reply: &Reply) {
        progress.answered = true;
        let step = progress.handle_reply(reply);
        self.take_step(progress, step, reply);
    }

    fn take_step(&mut self, progress: Box<Progress>, step: Step, reply: &Reply) {
        match step {
            Step::Wait => self.state = State::Transaction(progress),
            Step::Send(out) => {
                self.actions.push_back(Action::Send(out));
                self.state = State::Transaction(progress);
            }
            Step::Body => {
                self.actions.push_back(Action::NeedBody);
                let encoder = Encoder::new(progress.is_chunking());
                self.state = State::Body(progress, encoder);
            }
            Step::Finished { reset } => {
                self.reset = reset;
                self.state = State::Ready;
                self.finish(*progress, reply);
            }
        }
    }

    fn finish(&mut self, progress: Progress, otherwise: &Reply) {
        let unanswered = !progress.answered;
        let outcomes = progress.into_outcomes(otherwise);
        self.actions.push_back(Action::Finished { outcomes, unanswered });
    }

    /// Says goodbye to a next hop that refused us before any letter was named.
    fn refuse(&mut self, reply: &Reply) {
        self.state = State::Closed;
        self.actions.push_back(Action::Send(b"QUIT\r\n".to_vec()));
        self.actions.push_back(Action::Close(Some(reply.clone())));
    }

    /// Ends the connection now; whoever has no outcome is deferred with `reply`.
    fn give_up(&mut self, reply: &Reply) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Closed => return,
            State::Transaction(progress) | State::Body(progress, _) | State::EndOfData(progress) => {
                self.finish(*progress, reply);
            }
            _ => {}
        }
        self.actions.push_back(Action::Close(Some(reply.clone())));
    }
}

/// A reply of our own, for what a next hop did not say.
fn ours(class: u8, subject: u16, detail: u16, text: String) -> Reply {
    Reply::new(451, Some(EnhancedCode::new(class, subject, detail)), text)
}
