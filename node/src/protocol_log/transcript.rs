//! The dialogue of one session: numbered records, and at level `errors` only of sessions in which something was refused.
//! Whoever listens hears it whatever the level.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::ProtocolLog;
use super::live::Ear;
use super::record::{Event, Record, printable};
use crate::clock::now_ms;

/// Records that are held back at level `errors`; beyond, the middle of a session that goes well is forgotten.
const HELD_MAX: usize = 100;
/// Octets of one line that are kept: the longest command, and the longest authentication line would say no more.
const LINE_MAX: usize = 2048;

/// How much of a session is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// All of it, once something in it was refused.
    Errors,
    /// All of it.
    Verbose,
}

/// What is said in one session.
pub struct Transcript {
    log: ProtocolLog,
    /// How much of it is written, if any.
    level: Option<Level>,
    /// Who listens to it, as of this generation of listeners.
    ears: Vec<Arc<Ear>>,
    generation: Option<u64>,
    /// Who the device is, for those who listen.
    source: IpAddr,
    connector_id: String,
    session_id: String,
    local: SocketAddr,
    remote: SocketAddr,
    sequence: u64,
    held: Vec<Record>,
    reason: &'static str,
}

impl Transcript {
    /// Begins with the connection. Its end is written when the transcript is dropped.
    #[must_use]
    pub fn begin(
        log: ProtocolLog,
        level: Option<Level>,
        connector_id: String,
        session_id: String,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Self {
        let mut this = Self {
            log,
            level,
            ears: Vec::new(),
            generation: None,
            source: remote.ip(),
            connector_id,
            session_id,
            local,
            remote,
            sequence: 0,
            held: Vec::new(),
            reason: "",
        };
        this.add(Event::Connect, String::new, String::new());
        this
    }

    /// Whether anybody wants it: the log, or somebody who listens now. Asked at every line, it costs a look at a number.
    pub fn is_wanted(&mut self) -> bool {
        let generation = self.log.live.generation();
        if self.generation != Some(generation) {
            self.generation = Some(generation);
            self.ears = self.log.live.ears_for(self.source);
        }
        self.level.is_some() || !self.ears.is_empty()
    }

    /// The connection speaks for another device from now on: who listens to that one hears it.
    pub fn speaks_for(&mut self, source: IpAddr) {
        self.source = source;
        self.generation = None;
    }

    /// Something worth knowing.
    pub fn note(&mut self, data: &str, context: &str) {
        self.add(Event::Information, || printable(data.as_bytes()), context.to_owned());
    }

    /// A line of the device, without its secrets: who hands it over has masked them.
    pub fn heard(&mut self, line: &[u8]) {
        self.add(Event::Receive, || printable(&line[..line.len().min(LINE_MAX)]), String::new());
    }

    /// What the device is told: replies, each line a record.
    pub fn said(&mut self, bytes: &[u8]) {
        if !self.is_wanted() {
            return;
        }
        for line in bytes.split(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                continue;
            }
            // Challenges say something of the secret in some mechanisms, and nothing that would be missed in the others.
            let shown = if line.starts_with(b"334") { b"334 *".as_slice() } else { line };
            if matches!(line.first(), Some(b'4' | b'5')) && self.level.is_some() {
                self.release();
            }
            self.add(Event::Send, || printable(&shown[..shown.len().min(LINE_MAX)]), String::new());
        }
    }

    /// Why the connection will be over.
    pub fn close(&mut self, reason: &'static str) {
        self.reason = reason;
    }

    /// Something was refused: from now on, and what was held back.
    fn release(&mut self) {
        self.level = Some(Level::Verbose);
        for record in std::mem::take(&mut self.held) {
            self.log.record(record);
        }
    }

    fn add(&mut self, event: Event, data: impl FnOnce() -> String, context: String) {
        if !self.is_wanted() {
            return;
        }
        let record = Record {
            at_ms: now_ms(),
            connector_id: self.connector_id.clone(),
            session_id: self.session_id.clone(),
            sequence: self.sequence,
            local: self.local,
            remote: self.remote,
            event,
            data: data(),
            context,
        };
        self.sequence += 1;
        self.ears.iter().for_each(|ear| ear.tell(record.clone()));
        match self.level {
            None => {}
            Some(Level::Verbose) => self.log.record(record),
            Some(Level::Errors) => {
                if self.held.len() >= HELD_MAX {
                    self.held.remove(HELD_MAX / 2);
                }
                self.held.push(record);
            }
        }
    }
}

impl Drop for Transcript {
    fn drop(&mut self) {
        let reason = self.reason.to_owned();
        self.add(Event::Disconnect, String::new, reason);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;
    use crate::protocol_log::{Heard, Live};

    #[tokio::test]
    async fn who_listens_hears_a_session_that_is_not_written_from_then_on() {
        let (records, waiting) = sync_channel(1000);
        let live = Live::default();
        let log = ProtocolLog { records, live: live.clone() };
        let (local, remote) = ("127.0.0.1:25".parse().unwrap(), "127.0.31.7:5000".parse().unwrap());
        let mut transcript = Transcript::begin(log, None, "n1\\printers".into(), "0A1B".into(), local, remote);
        transcript.said(b"220 hello\r\n");
        assert!(!transcript.is_wanted());
        let other = live.listen(|ip| ip == IpAddr::from([127, 0, 31, 8])).unwrap();
        assert!(!transcript.is_wanted());
        let mut listener = live.listen(|ip| ip == IpAddr::from([127, 0, 31, 7])).unwrap();
        assert!(transcript.is_wanted());
        transcript.heard(b"EHLO device");
        transcript.speaks_for([127, 0, 31, 8].into());
        drop(other);
        assert!(!transcript.is_wanted());
        transcript.speaks_for([127, 0, 31, 7].into());
        drop(transcript);
        let mut heard = Vec::new();
        for _ in 0..2 {
            if let Heard::Record(record) = listener.next().await {
                heard.push((record.event, record.data));
            }
        }
        assert_eq!(heard, [(Event::Receive, "EHLO device".to_owned()), (Event::Disconnect, String::new())]);
        assert_eq!(written(&waiting), []);
    }

    fn begin(level: Level) -> (Transcript, Receiver<Record>) {
        let (records, waiting) = sync_channel(1000);
        let (local, remote) = ("127.0.0.1:25".parse().unwrap(), "127.0.31.7:5000".parse().unwrap());
        let log = ProtocolLog { records, live: Live::default() };
        (Transcript::begin(log, Some(level), "n1\\printers".into(), "0A1B".into(), local, remote), waiting)
    }

    fn written(waiting: &Receiver<Record>) -> Vec<(u64, Event, String)> {
        waiting.try_iter().map(|record| (record.sequence, record.event, record.data)).collect()
    }

    #[test]
    fn at_errors_a_session_that_goes_well_leaves_nothing_and_another_all_of_it() {
        let (mut well, waiting) = begin(Level::Errors);
        well.said(b"220 hello\r\n");
        well.heard(b"QUIT");
        drop(well);
        assert_eq!(written(&waiting), []);

        let (mut ill, waiting) = begin(Level::Errors);
        ill.said(b"220 hello\r\n");
        ill.heard(b"NOSUCH");
        ill.said(b"500 5.3.3 Unrecognized command\r\n");
        drop(ill);
        let events: Vec<_> = written(&waiting).into_iter().map(|(sequence, event, _)| (sequence, event)).collect();
        let due = [Event::Connect, Event::Send, Event::Receive, Event::Send, Event::Disconnect];
        assert_eq!(events, (0..).zip(due).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_held_back_has_a_limit() {
        let (mut transcript, waiting) = begin(Level::Errors);
        for _ in 0..5000 {
            transcript.heard(b"NOOP");
        }
        transcript.said(b"421 4.7.0 enough\r\n");
        assert!(written(&waiting).len() <= HELD_MAX + 1);
    }

    #[test]
    fn each_line_of_a_reply_is_a_record_and_challenges_are_masked() {
        let (mut transcript, waiting) = begin(Level::Verbose);
        transcript.said(b"250-one\r\n250 two\r\n334 cj1zZWNyZXQ=\r\n");
        let data: Vec<String> = written(&waiting).into_iter().map(|(_, _, data)| data).collect();
        assert_eq!(data, ["", "250-one", "250 two", "334 *"]);
    }
}
