//! The mail transaction (RFC 5321 §3.3): sender, recipients, mail data, and the driver's answers to each.

use std::mem;
use std::time::Instant;

use super::{Action, Awaiting, CloseReason, DATA_PROGRESS, OUTPUT_MAX, Phase, Session, Verdict};
use crate::mail::trace_header::HeaderFacts;
use crate::mail::{Envelope, ForwardPath, Reply, reply};
use crate::smtp::command::MailCommand;
use crate::smtp::data::{Collected, DataDecoder, DataFault, HeaderCollector};

/// Octets read on over the limit of a letter that is refused already, so that its sender hears why; an endless one is
/// not worth it.
const OVERSIZE_READ: u64 = 64 * 1024 * 1024;

/// A permitted sender and its permitted recipients.
#[derive(Debug)]
pub(super) struct Transaction {
    mail: MailCommand,
    pub(super) forward_paths: Vec<ForwardPath>,
}

impl Transaction {
    fn envelope(&self) -> Envelope {
        Envelope {
            reverse_path: self.mail.reverse_path.clone(),
            forward_paths: self.forward_paths.clone(),
            body: self.mail.body.unwrap_or_default(),
            declared_size: self.mail.size,
        }
    }
}

/// Mail data on its way.
#[derive(Debug)]
pub(super) struct Transfer {
    decoder: DataDecoder,
    /// Octets of the letter so far.
    size: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Header(HeaderCollector),
    Body,
    /// Read to its end and thrown away; then this is said.
    Refused(Reply),
}

impl Transfer {
    /// Whether the driver holds a part of the letter, or may.
    pub(super) fn is_kept(&self) -> bool {
        !matches!(self.stage, Stage::Refused(_))
    }
}

/// Senders and recipients.
impl Session {
    pub(super) fn handle_mail_command(&mut self, mail: MailCommand) {
        self.bypass_size_limit = false;
        let action = Action::CheckMail {
            reverse_path: mail.reverse_path.clone(),
            size: mail.size,
            body: mail.body.unwrap_or_default(),
        };
        self.ask(action, Awaiting::Mail(mail));
    }

    /// Lifts `max_message_size` for the sender about to be permitted: call it before [`Session::handle_mail`].
    pub fn bypass_size_limit(&mut self) {
        self.bypass_size_limit = true;
    }

    /// The driver's answer to [`Action::CheckMail`].
    pub fn handle_mail(&mut self, now: Instant, verdict: Verdict) {
        self.now = now;
        let mail = match self.awaiting.take() {
            Some(Awaiting::Mail(mail)) => mail,
            other => {
                self.awaiting = other;
                return;
            }
        };
        self.progress();
        match verdict {
            // RFC 1870 §6.1: refused before a byte of it is sent.
            Verdict::Permit if mail.size.is_some_and(|size| self.is_oversize(size)) => {
                self.send(&reply::message_too_large());
            }
            Verdict::Permit => {
                self.transaction = Some(Transaction { mail, forward_paths: Vec::new() });
                self.send(&reply::sender_ok());
            }
            Verdict::Deny(reply) => self.send_verdict(&reply),
            Verdict::Close(reply) => self.refuse_and_close(&reply),
        }
    }

    pub(super) fn handle_rcpt_command(&mut self, forward_path: ForwardPath) {
        let accepted = self.transaction.as_ref().map_or(0, |transaction| transaction.forward_paths.len());
        // RFC 5321 §4.5.3.1.10: 452, and the letter goes on for those accepted.
        if accepted >= usize::try_from(self.config.limits.max_recipients).unwrap_or(usize::MAX) {
            return self.send(&reply::too_many_recipients());
        }
        let action = Action::CheckRcpt { forward_path: forward_path.clone() };
        self.ask(action, Awaiting::Rcpt(forward_path));
    }

    /// The driver's answer to [`Action::CheckRcpt`].
    pub fn handle_rcpt(&mut self, now: Instant, verdict: Verdict) {
        self.now = now;
        let forward_path = match self.awaiting.take() {
            Some(Awaiting::Rcpt(forward_path)) => forward_path,
            other => {
                self.awaiting = other;
                return;
            }
        };
        self.progress();
        match verdict {
            Verdict::Permit => {
                if let Some(transaction) = &mut self.transaction {
                    transaction.forward_paths.push(forward_path);
                }
                self.send(&reply::recipient_ok());
            }
            Verdict::Deny(reply) => self.send_verdict(&reply),
            Verdict::Close(reply) => self.refuse_and_close(&reply),
        }
    }

    fn refuse_and_close(&mut self, reply: &Reply) {
        self.send(reply);
        self.close(CloseReason::Refused);
    }
}

/// Mail data.
impl Session {
    pub(super) fn handle_data_command(&mut self) {
        // RFC 2920 §3.1: DATA is the last command of a group. What comes before our 354 may be meant as mail data or
        // as commands; guessing would let one be taken for the other.
        if !self.input.is_empty() {
            return self.desynchronized();
        }
        if let Some(transaction) = &self.transaction {
            let action = Action::BeginData { envelope: transaction.envelope() };
            self.ask(action, Awaiting::DataReady);
        }
    }

    /// The driver's answer to [`Action::BeginData`].
    pub fn handle_data_ready(&mut self, now: Instant, ready: Result<(), Reply>) {
        self.now = now;
        if !matches!(self.awaiting, Some(Awaiting::DataReady)) {
            return;
        }
        self.progress();
        match ready {
            Ok(()) if !self.input.is_empty() => self.desynchronized(),
            Ok(()) => {
                self.awaiting = None;
                self.phase = Phase::Data(Box::new(Transfer {
                    decoder: DataDecoder::new(),
                    size: 0,
                    stage: Stage::Header(HeaderCollector::new(self.config.limits.max_header_size)),
                }));
                self.send(&reply::start_mail_input());
            }
            Err(reply) => {
                self.awaiting = None;
                self.transaction = None;
                self.send_verdict(&reply);
            }
        }
    }

    /// The driver could not keep what it was given: the letter is read to its end and answered with `reply`.
    pub fn handle_append_failed(&mut self, now: Instant, reply: Reply) {
        self.now = now;
        match &mut self.phase {
            Phase::Data(transfer) => transfer.stage = Stage::Refused(reply.clone()),
            _ => return,
        }
        // What is queued of this letter, its commit included, is of no use any more.
        let queued: Vec<Action> = self.actions.drain(..).collect();
        self.queued = 0;
        for action in queued {
            if !matches!(action, Action::Header { .. } | Action::Append(_) | Action::Commit { .. } | Action::Abort) {
                self.act(action);
            }
        }
        if matches!(self.awaiting, Some(Awaiting::Committed)) {
            self.awaiting = None;
            self.end_refused(&reply);
        }
    }

    /// Takes what has come of mail data. Answers whether there was any.
    pub(super) fn step_data(&mut self) -> bool {
        let Phase::Data(transfer) = &mut self.phase else {
            return false;
        };
        let rest = self.input.rest();
        let piece = &rest[..rest.len().min(OUTPUT_MAX)];
        if piece.is_empty() {
            return false;
        }
        let mut letter = Vec::new();
        let used = transfer.decoder.decode(piece, &mut letter);
        let fault = transfer.decoder.fault();
        let ended = transfer.decoder.is_ended();
        transfer.size = transfer.size.saturating_add(u64::try_from(letter.len()).unwrap_or(u64::MAX));
        let size = transfer.size;
        self.input.consume(used);
        self.data_progress += used;
        if self.data_progress >= DATA_PROGRESS {
            self.progress();
        }
        if let Some(fault) = fault {
            self.refuse_letter(fault_reply(fault));
        } else if self.is_oversize(size) {
            self.refuse_letter(reply::message_too_large());
        }
        self.keep(letter);
        if ended {
            self.end_of_data();
        } else if size > self.config.limits.max_message_size.saturating_add(OVERSIZE_READ) && self.is_oversize(size) {
            self.send(&reply::message_too_large());
            self.close(CloseReason::Oversize);
        }
        true
    }

    fn is_oversize(&self, size: u64) -> bool {
        !self.bypass_size_limit && size > self.config.limits.max_message_size
    }

    /// Hands a piece of the letter over, the header first.
    fn keep(&mut self, letter: Vec<u8>) {
        let Phase::Data(transfer) = &mut self.phase else {
            return;
        };
        match &mut transfer.stage {
            Stage::Refused(_) => {}
            Stage::Body => self.append(letter),
            Stage::Header(collector) => {
                let collected = collector.push(&letter);
                self.keep_header(collected);
            }
        }
    }

    fn keep_header(&mut self, collected: Collected) {
        match collected {
            Collected::More => {}
            Collected::TooLarge => self.refuse_letter(reply::header_too_large()),
            Collected::Header { facts, .. } if self.is_looping(&facts) => {
                self.refuse_letter(reply::hop_count_exceeded());
            }
            Collected::Header { header, body, facts } => {
                if let Phase::Data(transfer) = &mut self.phase {
                    transfer.stage = Stage::Body;
                }
                self.act(Action::Header { block: header, facts });
                self.append(body);
            }
        }
    }

    fn append(&mut self, body: Vec<u8>) {
        if !body.is_empty() {
            self.act(Action::Append(body));
        }
    }

    /// RFC 5321 §6.3.
    fn is_looping(&self, facts: &HeaderFacts) -> bool {
        facts.received > self.config.limits.max_hop_count
    }

    /// Has the driver forget the letter, and remembers what to say at its end. Of two reasons the first is said,
    /// except that bad line endings outrank the rest: they close the connection.
    fn refuse_letter(&mut self, reply: Reply) {
        let closes = closes_connection(&reply);
        let Phase::Data(transfer) = &mut self.phase else {
            return;
        };
        let kept = transfer.is_kept();
        if kept || closes {
            transfer.stage = Stage::Refused(reply);
        }
        if kept {
            self.act(Action::Abort);
        }
    }

    fn end_of_data(&mut self) {
        self.progress();
        if let Phase::Data(transfer) = &mut self.phase
            && let Stage::Header(collector) = &mut transfer.stage
        {
            let collected = collector.finish();
            self.keep_header(collected);
        }
        let Phase::Data(transfer) = &mut self.phase else {
            return;
        };
        let size = transfer.size;
        match mem::replace(&mut transfer.stage, Stage::Body) {
            Stage::Refused(reply) => {
                transfer.stage = Stage::Refused(reply.clone());
                self.end_refused(&reply);
            }
            Stage::Header(_) | Stage::Body => self.ask(Action::Commit { size }, Awaiting::Committed),
        }
    }

    fn end_refused(&mut self, reply: &Reply) {
        self.transaction = None;
        self.send_verdict(reply);
        if closes_connection(reply) {
            // A peer whose line endings we do not share cannot be trusted to frame its next command.
            self.close(CloseReason::LineEndings);
        } else if !self.is_closed() {
            self.phase = Phase::Command;
        }
    }

    /// The driver's answer to [`Action::Commit`]: the `250` itself, or why there is none. The session never makes
    /// that `250` (RFC 5321 §6.1).
    pub fn handle_committed(&mut self, now: Instant, reply: Reply) {
        self.now = now;
        if !matches!(self.awaiting, Some(Awaiting::Committed)) {
            return;
        }
        self.awaiting = None;
        self.phase = Phase::Command;
        self.transaction = None;
        self.idle_commands = 0;
        self.letters += u64::from(reply.code.is_positive());
        self.progress();
        self.send_verdict(&reply);
    }
}

fn fault_reply(fault: DataFault) -> Reply {
    match fault {
        DataFault::BareLineEnd => reply::bare_line_end(),
        DataFault::Nul => reply::nul_in_message(),
    }
}

fn closes_connection(reply: &Reply) -> bool {
    *reply == reply::bare_line_end() || *reply == reply::nul_in_message()
}
