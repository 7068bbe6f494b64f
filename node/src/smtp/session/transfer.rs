//! Mail data on its way, by `DATA` (RFC 5321 §4.1.1.4) or by `BDAT` (RFC 3030), and the driver's answers about it.
//!
//! A letter that is refused is read to its end all the same, so that nothing of it is ever taken for a command: to its
//! dot, or to the octets that its chunk announced.

use std::mem;
use std::time::Instant;

use super::{Action, Awaiting, CloseReason, DATA_PROGRESS, Note, OUTPUT_MAX, Phase, Session};
use crate::mail::trace_header::HeaderFacts;
use crate::mail::{BodyType, Reply, reply};
use crate::smtp::Leniency;
use crate::smtp::chunk::{ChunkDecoder, ChunkText};
use crate::smtp::command::{Chunk, Command};
use crate::smtp::data::{Collected, DataDecoder, DataFault, HeaderCollector, header_fault};

/// Octets read on over the limit of a letter that is refused already, so that its sender hears why; an endless one is
/// not worth it.
const OVERSIZE_READ: u64 = 64 * 1024 * 1024;

/// Mail data on its way.
#[derive(Debug)]
pub(super) struct Transfer {
    framing: Framing,
    /// Octets of the letter so far.
    size: u64,
    stage: Stage,
    /// Whether a repair of its line ends was told.
    repaired: bool,
}

/// How its end is found.
#[derive(Debug)]
enum Framing {
    /// By `CRLF . CRLF`.
    Dot(DataDecoder),
    /// By counting; `left` octets of the current chunk are still to come.
    Chunk { decoder: ChunkDecoder, chunk: Chunk, left: u64 },
}

#[derive(Debug)]
enum Stage {
    Header(HeaderCollector),
    Body,
    /// Read to its end and thrown away; then this is said.
    Refused(Reply),
}

/// What one step of decoding brought.
struct Decoded {
    letter: Vec<u8>,
    used: usize,
    fault: Option<DataFault>,
    repaired: bool,
    /// The dot, or the end of a chunk.
    ended: bool,
}

impl Transfer {
    fn new(framing: Framing, stage: Stage) -> Box<Self> {
        Box::new(Self { framing, size: 0, stage, repaired: false })
    }

    /// Whether the driver holds a part of the letter, or may.
    pub(super) fn is_kept(&self) -> bool {
        !matches!(self.stage, Stage::Refused(_))
    }

    fn is_chunked(&self) -> bool {
        matches!(self.framing, Framing::Chunk { .. })
    }

    /// Takes what there is of mail data in `rest`, at most [`OUTPUT_MAX`] octets. `None`: nothing.
    fn decode(&mut self, rest: &[u8]) -> Option<Decoded> {
        let mut letter = Vec::new();
        match &mut self.framing {
            Framing::Dot(decoder) => {
                let piece = &rest[..rest.len().min(OUTPUT_MAX)];
                if piece.is_empty() {
                    return None;
                }
                letter.reserve(piece.len());
                let used = decoder.decode(piece, &mut letter);
                let (fault, repaired) = (decoder.fault(), decoder.has_repaired());
                Some(Decoded { letter, used, fault, repaired, ended: decoder.is_ended() })
            }
            Framing::Chunk { decoder, chunk, left } => {
                let used = rest.len().min(OUTPUT_MAX).min(usize::try_from(*left).unwrap_or(usize::MAX));
                if used == 0 && *left > 0 {
                    return None;
                }
                letter.reserve(used);
                decoder.decode(&rest[..used], &mut letter);
                *left -= u64::try_from(used).unwrap_or(u64::MAX);
                let ended = *left == 0;
                if ended && chunk.last {
                    decoder.finish(&mut letter);
                }
                let (fault, repaired) = (decoder.fault(), decoder.has_repaired());
                Some(Decoded { letter, used, fault, repaired, ended })
            }
        }
    }
}

/// The commands.
impl Session {
    pub(super) fn handle_data_command(&mut self) {
        self.begin_letter(None);
    }

    pub(super) fn handle_bdat_command(&mut self, chunk: Chunk) {
        if let Some(refusal) = self.out_of_order(&Command::Bdat(chunk)) {
            return self.swallow(chunk.size, refusal);
        }
        if chunk.size == 0 && !chunk.last {
            self.idle_commands = self.idle_commands.saturating_add(1);
        }
        let begun = self.transaction.as_mut().and_then(|transaction| transaction.chunks.take());
        let Some(mut transfer) = begun else {
            return self.begin_letter(Some(chunk));
        };
        if let Framing::Chunk { chunk: current, left, .. } = &mut transfer.framing {
            *current = chunk;
            *left = chunk.size;
        }
        self.phase = Phase::Data(transfer);
        self.refuse_oversize_chunk(chunk);
    }

    fn begin_letter(&mut self, chunk: Option<Chunk>) {
        if let Some(transaction) = &self.transaction {
            let action = Action::BeginData { envelope: transaction.envelope() };
            self.ask(action, Awaiting::DataReady(chunk));
        }
    }

    /// What a chunk announces counts before it comes (RFC 1870 §6.3): an endless one is not waited for.
    fn refuse_oversize_chunk(&mut self, chunk: Chunk) {
        let Phase::Data(transfer) = &self.phase else { return };
        let size = transfer.size.saturating_add(chunk.size);
        if self.is_oversize(size) {
            self.refuse_letter(reply::message_too_large());
            self.refuse_endless(size);
        }
    }

    /// Reads past the octets of a chunk that cannot stand here, then says why.
    fn swallow(&mut self, size: u64, reply: Reply) {
        if size > self.config.limits.max_message_size.saturating_add(OVERSIZE_READ) {
            self.send(&reply);
            return self.close(CloseReason::Oversize);
        }
        self.phase = Phase::Swallow { left: size, reply };
    }

    pub(super) fn step_swallow(&mut self) -> bool {
        let Phase::Swallow { left, reply } = &mut self.phase else {
            return false;
        };
        let used = self.input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        if used == 0 && *left > 0 {
            return false;
        }
        *left -= u64::try_from(used).unwrap_or(u64::MAX);
        let ended = (*left == 0).then(|| reply.clone());
        self.input.consume(used);
        self.count_progress(used);
        if let Some(reply) = ended {
            self.phase = Phase::Command;
            self.protocol_error(&reply);
        }
        true
    }

    /// A chunk came of which nobody knows where it ends: whatever follows may be its octets or a command.
    pub(super) fn lost_chunk(&mut self) {
        self.send(&reply::invalid_chunk_size());
        self.close(CloseReason::Synchronization);
    }

    /// The driver's answer to [`Action::BeginData`].
    pub fn handle_data_ready(&mut self, now: Instant, ready: Result<(), Reply>) {
        self.now = now;
        let chunk = match self.awaiting.take() {
            Some(Awaiting::DataReady(chunk)) => chunk,
            other => {
                self.awaiting = other;
                return;
            }
        };
        self.progress();
        match (chunk, ready) {
            (None, Ok(())) if !self.input.is_empty() => {
                self.act(Action::Abort);
                self.desynchronized();
            }
            (None, Ok(())) => {
                let repair = self.config.leniencies.contains(Leniency::RepairLineEndings);
                let decoder = if repair { DataDecoder::repairing() } else { DataDecoder::new() };
                self.phase = Phase::Data(Transfer::new(Framing::Dot(decoder), self.first_stage()));
                self.send(&reply::start_mail_input());
            }
            (None, Err(reply)) => {
                self.transaction = None;
                self.send_verdict(&reply);
            }
            (Some(chunk), ready) => {
                // Its octets are on their way whatever the answer.
                let stage = ready.map_or_else(Stage::Refused, |()| self.first_stage());
                let framing = Framing::Chunk { decoder: ChunkDecoder::new(self.text()), chunk, left: chunk.size };
                self.phase = Phase::Data(Transfer::new(framing, stage));
                self.refuse_oversize_chunk(chunk);
            }
        }
    }

    fn first_stage(&self) -> Stage {
        Stage::Header(HeaderCollector::new(self.config.limits.max_header_size))
    }

    fn text(&self) -> ChunkText {
        match self.body() {
            BodyType::BinaryMime => ChunkText::Binary,
            _ if self.config.leniencies.contains(Leniency::RepairLineEndings) => ChunkText::Repair,
            _ => ChunkText::Lines,
        }
    }
}

/// The octets.
impl Session {
    /// The driver could not keep what it was given: the letter is read to its end and answered with `reply`.
    pub fn handle_append_failed(&mut self, now: Instant, reply: Reply) {
        self.now = now;
        let between = self.transaction.as_mut().and_then(|transaction| transaction.chunks.as_mut());
        match (&mut self.phase, between) {
            (Phase::Data(transfer), _) | (_, Some(transfer)) => transfer.stage = Stage::Refused(reply.clone()),
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
        let Some(Decoded { letter, used, fault, repaired, ended }) = transfer.decode(self.input.rest()) else {
            return false;
        };
        transfer.size = transfer.size.saturating_add(u64::try_from(letter.len()).unwrap_or(u64::MAX));
        let size = transfer.size;
        let tell = repaired && !mem::replace(&mut transfer.repaired, repaired);
        self.input.consume(used);
        self.count_progress(used);
        if tell {
            self.act(Action::Note(Note::Lenient(Leniency::RepairLineEndings)));
        }
        if let Some(fault) = fault {
            self.refuse_letter(fault_reply(fault));
        } else if self.is_oversize(size) {
            self.refuse_letter(reply::message_too_large());
        }
        self.keep(letter);
        if ended {
            self.end_of_data();
        } else {
            self.refuse_endless(size);
        }
        true
    }

    fn count_progress(&mut self, octets: usize) {
        self.data_progress += octets;
        if self.data_progress >= DATA_PROGRESS {
            self.progress();
        }
    }

    pub(super) fn is_oversize(&self, size: u64) -> bool {
        !self.bypass_size_limit && size > self.config.limits.max_message_size
    }

    fn refuse_endless(&mut self, size: u64) {
        if size > self.config.limits.max_message_size.saturating_add(OVERSIZE_READ) && self.is_oversize(size) {
            self.send(&reply::message_too_large());
            self.close(CloseReason::Oversize);
        }
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
                if self.body() == BodyType::BinaryMime
                    && let Some(fault) = header_fault(&header)
                {
                    return self.refuse_letter(fault_reply(fault));
                }
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
        let outranks = is_fault(&reply);
        let Phase::Data(transfer) = &mut self.phase else {
            return;
        };
        let kept = transfer.is_kept();
        if kept || outranks {
            transfer.stage = Stage::Refused(reply);
        }
        if kept {
            self.act(Action::Abort);
        }
    }

    fn end_of_data(&mut self) {
        if let Phase::Data(transfer) = &self.phase
            && let Framing::Chunk { chunk, .. } = transfer.framing
            && !chunk.last
        {
            return self.end_of_chunk(chunk);
        }
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
        match &transfer.stage {
            Stage::Refused(reply) => {
                let reply = reply.clone();
                self.end_refused(&reply);
            }
            Stage::Header(_) | Stage::Body => self.ask(Action::Commit { size }, Awaiting::Committed),
        }
    }

    /// RFC 3030 §2: each chunk is answered. A letter that is refused stays so until `RSET` or its last chunk.
    fn end_of_chunk(&mut self, chunk: Chunk) {
        let Phase::Data(transfer) = mem::replace(&mut self.phase, Phase::Command) else {
            return;
        };
        let refused = match &transfer.stage {
            Stage::Refused(reply) => Some(reply.clone()),
            Stage::Header(_) | Stage::Body => None,
        };
        if let Some(transaction) = &mut self.transaction {
            transaction.chunks = Some(transfer);
        }
        match refused {
            Some(reply) => self.send_verdict(&reply),
            // Chunks of nothing hold a session and bring no letter.
            None if self.idle_commands > super::IDLE_COMMANDS_MAX => {
                self.protocol_error(&reply::chunk_received(chunk.size));
            }
            None => self.send(&reply::chunk_received(chunk.size)),
        }
    }

    fn end_refused(&mut self, reply: &Reply) {
        let dots = matches!(&self.phase, Phase::Data(transfer) if !transfer.is_chunked());
        self.transaction = None;
        self.send_verdict(reply);
        if dots && is_fault(reply) {
            // A peer whose line endings we do not share cannot be trusted to frame its next command. One that counts
            // its octets can.
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

fn is_fault(reply: &Reply) -> bool {
    *reply == reply::bare_line_end() || *reply == reply::nul_in_message()
}
