//! The mail transaction (RFC 5321 §3.3): sender, recipients, and the driver's answers to each.

use std::time::Instant;

use super::transfer::Transfer;
use super::{Action, Awaiting, CloseReason, Session, Verdict};
use crate::mail::{BodyType, Envelope, EnvelopeRecipient, Reply, reply};
use crate::smtp::command::{MailCommand, RcptCommand};

/// Room for so many recipients is kept between two letters of a session.
const SPARE_RECIPIENTS_MAX: usize = 16;

/// A permitted sender and its permitted recipients.
#[derive(Debug)]
pub(super) struct Transaction {
    mail: MailCommand,
    pub(super) recipients: Vec<EnvelopeRecipient>,
    /// Between two chunks: what has come of the letter.
    pub(super) chunks: Option<Box<Transfer>>,
}

impl Transaction {
    pub(super) fn envelope(&self) -> Envelope {
        Envelope {
            reverse_path: self.mail.reverse_path.clone(),
            recipients: self.recipients.clone(),
            body: self.body(),
            declared_size: self.mail.size,
            smtp_utf8: self.mail.smtp_utf8,
            ret: self.mail.ret,
            envid: self.mail.envid.clone(),
        }
    }

    pub(super) fn body(&self) -> BodyType {
        self.mail.body.unwrap_or_default()
    }

    pub(super) fn is_smtp_utf8(&self) -> bool {
        self.mail.smtp_utf8
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
                let recipients = std::mem::take(&mut self.spare_recipients);
                self.transaction = Some(Transaction { mail, recipients, chunks: None });
                self.send(&reply::sender_ok());
            }
            Verdict::Deny(reply) => self.send_verdict(&reply),
            Verdict::Close(reply) => self.refuse_and_close(&reply),
        }
    }

    pub(super) fn handle_rcpt_command(&mut self, rcpt: RcptCommand) {
        let accepted = self.transaction.as_ref().map_or(0, |transaction| transaction.recipients.len());
        // RFC 5321 §4.5.3.1.10: 452, and the letter goes on for those accepted.
        if accepted >= usize::try_from(self.config.limits.max_recipients).unwrap_or(usize::MAX) {
            return self.send(&reply::too_many_recipients());
        }
        let action = Action::CheckRcpt { forward_path: rcpt.forward_path.clone() };
        self.ask(action, Awaiting::Rcpt(rcpt));
    }

    /// The driver's answer to [`Action::CheckRcpt`].
    pub fn handle_rcpt(&mut self, now: Instant, verdict: Verdict) {
        self.now = now;
        let RcptCommand { forward_path, notify, orcpt, .. } = match self.awaiting.take() {
            Some(Awaiting::Rcpt(rcpt)) => rcpt,
            other => {
                self.awaiting = other;
                return;
            }
        };
        self.progress();
        match verdict {
            Verdict::Permit => {
                if let Some(transaction) = &mut self.transaction {
                    transaction.recipients.push(EnvelopeRecipient { path: forward_path, notify, orcpt });
                }
                self.send(&reply::recipient_ok());
            }
            Verdict::Deny(reply) => self.send_verdict(&reply),
            Verdict::Close(reply) => self.refuse_and_close(&reply),
        }
    }

    /// Ends the transaction, and has the driver forget what it holds of the letter.
    pub(super) fn abandon_transaction(&mut self) {
        if self.keeps_chunks() {
            self.act(Action::Abort);
        }
        if let Some(Transaction { mut recipients, .. }) = self.transaction.take()
            && recipients.capacity() <= SPARE_RECIPIENTS_MAX
        {
            recipients.clear();
            self.spare_recipients = recipients;
        }
    }

    pub(super) fn body(&self) -> BodyType {
        self.transaction.as_ref().map(Transaction::body).unwrap_or_default()
    }

    /// Whether a letter is under way between two of its chunks.
    pub(super) fn has_chunks(&self) -> bool {
        self.transaction.as_ref().is_some_and(|transaction| transaction.chunks.is_some())
    }

    /// Whether the driver holds a part of it.
    pub(super) fn keeps_chunks(&self) -> bool {
        let chunks = self.transaction.as_ref().and_then(|transaction| transaction.chunks.as_ref());
        chunks.is_some_and(|transfer| transfer.is_kept())
    }

    fn refuse_and_close(&mut self, reply: &Reply) {
        self.send(reply);
        self.close(CloseReason::Refused);
    }
}
