//! One mail transaction as the client sees it: what was asked, what was answered, and what that means for each
//! recipient.

use std::collections::VecDeque;

use super::Outcome;
use crate::mail::Reply;

/// How many `RCPT` go out before their replies are read: what both sides then have in flight fits into any socket
/// buffer, so nobody waits for the other to read (RFC 2920 §3.1).
const PIPELINED_RCPT_MAX: usize = 100;

/// What the client wants a next hop to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Without angle brackets; empty for the null reverse-path.
    pub reverse_path: String,
    /// Without angle brackets, at least one.
    pub recipients: Vec<String>,
    /// Bytes of the letter.
    pub size: u64,
    /// Whether the letter is to be declared `BODY=8BITMIME`.
    pub eight_bit: bool,
    /// Whether the letter's header holds UTF-8: only a next hop with SMTPUTF8 may have it (RFC 6531 §3.1).
    pub utf8_header: bool,
    /// `RET` and `ENVID` as they follow `MAIL`, for a next hop with DSN (RFC 3461): empty, or ` RET=HDRS`.
    pub dsn_mail: String,
    /// `NOTIFY` and `ORCPT` as they follow `RCPT`, in the order of the recipients; missing ones are empty.
    pub dsn_recipients: Vec<String>,
}

impl Transaction {
    /// Whether an address or the header needs SMTPUTF8.
    #[must_use]
    pub fn needs_utf8(&self) -> bool {
        self.utf8_header || !self.reverse_path.is_ascii() || self.recipients.iter().any(|path| !path.is_ascii())
    }
}

/// The command that the next reply answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    Rset,
    Mail,
    Rcpt(usize),
    Data,
    /// A chunk that is not the last.
    Chunk,
    EndOfData,
}

/// How a transaction is told to a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Manner {
    /// An earlier transaction is still open there.
    pub(super) reset: bool,
    pub(super) pipelining: bool,
    pub(super) chunking: bool,
    pub(super) dsn: bool,
}

/// What to do after a reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Wait for the next reply.
    Wait,
    /// Send these commands.
    Send(Vec<u8>),
    /// Send the letter.
    Body,
    /// Every recipient has an outcome. `reset`: the next hop still has a transaction open.
    Finished { reset: bool },
}

/// A transaction on its way.
#[derive(Debug)]
pub(super) struct Progress {
    transaction: Transaction,
    outcomes: Vec<Option<Outcome>>,
    expected: VecDeque<Expect>,
    accepted: usize,
    asked: usize,
    manner: Manner,
    mail_accepted: bool,
    data_asked: bool,
    /// Whether a reply came that was not a goodbye.
    pub(super) answered: bool,
}

impl Progress {
    /// Begins. `parameters` follow the reverse-path; recipients that have an outcome already are not asked.
    pub(super) fn begin(
        transaction: Transaction,
        parameters: &str,
        manner: Manner,
        outcomes: Vec<Option<Outcome>>,
    ) -> (Self, Vec<u8>) {
        let mut expected = VecDeque::new();
        let mut out = Vec::new();
        if manner.reset {
            out.extend_from_slice(b"RSET\r\n");
            expected.push_back(Expect::Rset);
        }
        out.extend_from_slice(format!("MAIL FROM:<{}>{parameters}\r\n", transaction.reverse_path).as_bytes());
        expected.push_back(Expect::Mail);
        let mut progress = Self {
            transaction,
            outcomes,
            expected,
            accepted: 0,
            asked: 0,
            manner,
            mail_accepted: false,
            data_asked: false,
            answered: false,
        };
        if manner.pipelining {
            progress.ask_more(&mut out);
        }
        (progress, out)
    }

    /// What the next reply answers.
    pub(super) fn awaiting(&self) -> Option<Expect> {
        self.expected.front().copied()
    }

    /// Takes one reply.
    pub(super) fn handle_reply(&mut self, reply: &Reply) -> Step {
        let Some(expected) = self.expected.pop_front() else { return Step::Wait };
        match expected {
            Expect::Rset => {}
            Expect::Mail if reply.code.is_positive() => self.mail_accepted = true,
            Expect::Mail => self.settle_rest(reply),
            Expect::Rcpt(index) => self.handle_rcpt(index, reply),
            Expect::Data if reply.code.0 == 354 => {
                self.expected.push_back(Expect::EndOfData);
                if self.accepted > 0 {
                    return Step::Body;
                }
                // RFC 2920 §3.1: a server may say 354 although it refused everybody; the end is all it gets.
                return Step::Send(b".\r\n".to_vec());
            }
            Expect::Data => {
                self.settle_rest(reply);
                return Step::Finished { reset: self.mail_accepted };
            }
            Expect::Chunk if reply.code.is_positive() => return Step::Wait,
            Expect::Chunk => {
                // RFC 3030 §4.1: the chunks that are already on their way are refused too; the last one ends it.
                self.settle_rest(reply);
                return Step::Wait;
            }
            Expect::EndOfData => {
                self.settle_rest(reply);
                return Step::Finished { reset: false };
            }
        }
        if self.expected.is_empty() { self.go_on() } else { Step::Wait }
    }

    fn handle_rcpt(&mut self, index: usize, reply: &Reply) {
        if reply.code.is_positive() && self.mail_accepted {
            self.accepted += 1;
        } else if let Some(place @ None) = self.outcomes.get_mut(index) {
            *place = Some(match reply.code.0 {
                // RFC 5321 §4.5.3.1.10: 552 to RCPT means too many recipients, and is to be read as 452.
                552 => Outcome::Deferred { reply: reply.clone() },
                _ => Outcome::refused(reply),
            });
        }
    }

    /// Everything asked was answered: asks more, or ends.
    fn go_on(&mut self) -> Step {
        if !self.mail_accepted {
            return Step::Finished { reset: false };
        }
        if self.asked == self.transaction.recipients.len() && self.accepted == 0 {
            return Step::Finished { reset: true };
        }
        let mut out = Vec::new();
        self.ask_more(&mut out);
        if out.is_empty() { Step::Body } else { Step::Send(out) }
    }

    /// So many chunks went out that are not the last.
    pub(super) fn note_chunks(&mut self, chunks: usize) {
        self.expected.extend(std::iter::repeat_n(Expect::Chunk, chunks));
    }

    /// The last chunk went out, or the lone dot, which `DATA` has asked for already.
    pub(super) fn note_end(&mut self) {
        if self.manner.chunking {
            self.expected.push_back(Expect::EndOfData);
        }
    }

    pub(super) fn is_chunking(&self) -> bool {
        self.manner.chunking
    }

    fn ask_more(&mut self, out: &mut Vec<u8>) {
        let window = if self.manner.pipelining { PIPELINED_RCPT_MAX } else { 1 };
        let mut more = 0;
        while self.asked < self.transaction.recipients.len() && more < window {
            let index = self.asked;
            self.asked += 1;
            if self.outcomes[index].is_some() {
                continue;
            }
            more += 1;
            let parameters = self.transaction.dsn_recipients.get(index).filter(|_| self.manner.dsn);
            let parameters = parameters.map_or("", String::as_str);
            let path = &self.transaction.recipients[index];
            out.extend_from_slice(format!("RCPT TO:<{path}>{parameters}\r\n").as_bytes());
            self.expected.push_back(Expect::Rcpt(index));
        }
        // Pipelined, DATA is the last command of the last group (RFC 2920 §3.1). A chunk waits: it would carry the
        // letter to a next hop that refused everybody.
        let all = self.asked == self.transaction.recipients.len();
        let last = all && (self.manner.pipelining || more == 0);
        if last && !self.manner.chunking && !self.data_asked {
            out.extend_from_slice(b"DATA\r\n");
            self.expected.push_back(Expect::Data);
            self.data_asked = true;
        }
    }

    /// Whether the end of mail data was said and not answered: the next hop may have the letter.
    pub(super) fn is_doubtful(&self, end_sent: bool) -> bool {
        end_sent && self.accepted > 0 && self.expected.back() == Some(&Expect::EndOfData)
    }

    /// Gives every recipient without an outcome the one that `reply` means.
    pub(super) fn settle_rest(&mut self, reply: &Reply) {
        for place in &mut self.outcomes {
            if place.is_none() {
                *place = Some(Outcome::of(reply));
            }
        }
    }

    /// Every recipient's outcome, in the order given.
    pub(super) fn into_outcomes(self, otherwise: &Reply) -> Vec<Outcome> {
        let deferred = || Outcome::Deferred { reply: otherwise.clone() };
        self.outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(deferred)).collect()
    }
}
