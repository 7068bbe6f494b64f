//! Mail data (RFC 5321 §4.1.1.4, §4.5.2): dot-unstuffing, and the one end there is, CRLF `.` CRLF. Whatever looks
//! similar is not the end: two servers that disagree about it let one letter smuggle another.

use std::mem;

use super::chunk::{ChunkDecoder, ChunkText};
use crate::mail::trace_header::{HeaderEnd, HeaderFacts, HeaderScan};

/// What mail data must not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataFault {
    /// CR without LF, or LF without CR (RFC 5321 §2.3.8).
    #[error("bare CR or LF in message")]
    BareLineEnd,
    /// NUL (RFC 2045 §2.7, §2.8).
    #[error("NUL in message")]
    Nul,
}

/// Where the next byte stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    LineStart,
    /// After a dot that began a line.
    Dot,
    /// After a dot that began a line, and CR.
    DotCr,
    Text,
    Cr,
    End,
}

/// Takes the transparency away from mail data that comes in pieces of any size, and finds its end.
///
/// A fault is remembered and does not move the end: the letter is read on to its true end, so that nothing of it is
/// ever taken for a command. Repair does not move it either: a line that was ended by CR or LF alone is ended in the
/// letter, but what follows does not begin a line on the wire.
#[derive(Debug, Default)]
pub struct DataDecoder {
    at: At,
    fault: Option<DataFault>,
    repair: bool,
    repaired: bool,
}

impl DataDecoder {
    /// Starts after the CRLF of `DATA`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, but CR or LF alone becomes CRLF.
    #[must_use]
    pub fn repairing() -> Self {
        Self { repair: true, ..Self::default() }
    }

    /// Decodes `input` onto `out` and answers how much of it was mail data, the end included. What follows the end
    /// belongs to the next command.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> usize {
        let mut used = 0;
        while used < input.len() && self.at != At::End {
            let byte = input[used];
            if self.at == At::Text {
                // Most bytes are text: they are copied as far as the next one that matters.
                let tail = &input[used..];
                let run = tail.iter().position(|byte| matches!(byte, b'\r' | b'\n' | 0)).unwrap_or(tail.len());
                if run > 0 {
                    out.extend_from_slice(&tail[..run]);
                    used += run;
                    continue;
                }
            }
            used += 1;
            self.step(byte, out);
        }
        used
    }

    fn step(&mut self, byte: u8, out: &mut Vec<u8>) {
        if byte == 0 {
            self.fault.get_or_insert(DataFault::Nul);
        }
        match (self.at, byte) {
            (At::LineStart, b'.') => {
                self.at = At::Dot;
                return;
            }
            // RFC 5321 §4.5.2: a dot alone on its line is the end, any other first dot is taken away.
            (At::Dot, b'\r') => {
                self.at = At::DotCr;
                return;
            }
            (At::DotCr, b'\n') => {
                self.at = At::End;
                return;
            }
            (At::Cr, b'\n') => self.at = At::LineStart,
            (At::Cr | At::DotCr, _) => {
                if self.bare_line_end() {
                    // The CR of `Cr` is in the letter already, that of `DotCr` is not.
                    out.extend_from_slice(if self.at == At::Cr { &b"\n"[..] } else { &b"\r\n"[..] });
                }
                self.at = if byte == b'\r' { At::Cr } else { At::Text };
            }
            (_, b'\r') => self.at = At::Cr,
            (_, b'\n') => {
                if self.bare_line_end() {
                    out.push(b'\r');
                }
                self.at = At::Text;
            }
            (_, _) => self.at = At::Text,
        }
        out.push(byte);
    }

    /// Answers whether it is to be repaired.
    fn bare_line_end(&mut self) -> bool {
        if self.repair {
            self.repaired = true;
        } else {
            // Worse than NUL: it decides whether the connection can be trusted to frame anything.
            self.fault = Some(DataFault::BareLineEnd);
        }
        self.repair
    }

    /// Whether a line end was repaired.
    #[must_use]
    pub fn has_repaired(&self) -> bool {
        self.repaired
    }

    /// Whether the end has been found.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.at == At::End
    }

    /// The fault found so far. With one, what was decoded is not a letter.
    #[must_use]
    pub fn fault(&self) -> Option<DataFault> {
        self.fault
    }
}

/// Collects the header of a letter while it streams by, so that lines can be put in front of it.
#[derive(Debug)]
pub struct HeaderCollector {
    scan: HeaderScan,
    bytes: Vec<u8>,
    limit: u64,
}

/// The fault of a header on its own. A binary body (RFC 3030 §3) is not lines, its header is all the same.
#[must_use]
pub fn header_fault(header: &[u8]) -> Option<DataFault> {
    let mut decoder = ChunkDecoder::new(ChunkText::Lines);
    decoder.decode(header, &mut Vec::new());
    decoder.fault()
}

/// What came of collecting.
#[derive(Debug, PartialEq, Eq)]
pub enum Collected {
    /// The header has not ended.
    More,
    /// The header has ended.
    Header {
        /// The header as it came, with an empty line at its end, which is added where the letter has none.
        header: Vec<u8>,
        /// The beginning of the body.
        body: Vec<u8>,
        /// What the header says.
        facts: HeaderFacts,
    },
    /// The header is longer than its limit.
    TooLarge,
}

impl HeaderCollector {
    /// Starts at the first octet of a letter. `limit` is in octets.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { scan: HeaderScan::new(), bytes: Vec::new(), limit }
    }

    /// Takes the next piece of the letter, transparency removed.
    pub fn push(&mut self, piece: &[u8]) -> Collected {
        self.scan.push(piece);
        self.bytes.extend_from_slice(piece);
        if self.scan.facts().end.is_some() {
            return self.split();
        }
        if self.scan.seen() > self.limit {
            self.bytes = Vec::new();
            return Collected::TooLarge;
        }
        Collected::More
    }

    /// The letter ended within its header.
    pub fn finish(&mut self) -> Collected {
        self.scan.finish();
        self.split()
    }

    fn split(&mut self) -> Collected {
        let facts = self.scan.facts().clone();
        if facts.bytes > self.limit {
            return Collected::TooLarge;
        }
        let mut header = mem::take(&mut self.bytes);
        let at = usize::try_from(facts.bytes).unwrap_or(usize::MAX).min(header.len());
        let body = header.split_off(at);
        if facts.end != Some(HeaderEnd::EmptyLine) {
            header.extend_from_slice(b"\r\n");
        }
        Collected::Header { header, body, facts }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(pieces: &[&[u8]]) -> (Vec<u8>, bool, Option<DataFault>, usize) {
        let mut decoder = DataDecoder::new();
        let (mut out, mut used) = (Vec::new(), 0);
        for piece in pieces {
            used += decoder.decode(piece, &mut out);
        }
        (out, decoder.is_ended(), decoder.fault(), used)
    }

    #[test]
    fn only_crlf_dot_crlf_ends_mail_data() {
        let bare = Some(DataFault::BareLineEnd);
        for (name, bytes, fault) in [
            ("lflf", &b"\n.\n"[..], bare),
            ("crcr", b"\r.\r", bare),
            ("crlf", b"\r.\n", bare),
            ("lfcr", b"\n.\r", bare),
            ("lfcrlf", b"\n.\r\n", bare),
            ("crlflf", b"\r\n.\n", bare),
            ("crcrlf", b"\r.\r\n", bare),
            ("crlfcr", b"\r\n.\r", bare),
            ("nullbefore", b"\r\n\0.\r\n", Some(DataFault::Nul)),
            ("nullafter", b"\r\n.\0\r\n", Some(DataFault::Nul)),
            ("out-1", b"\r\n.\r\r\n", bare),
            ("out-2", b"\r\r\n.\r\r\n", bare),
            ("exim", b"\r\n.\nMAIL FROM:<a@b>\r\n", bare),
            ("dot cr text", b"\r\n.\rx\r\n", bare),
        ] {
            let mut stream = b"text".to_vec();
            stream.extend_from_slice(bytes);
            stream.extend_from_slice(b"x\r\n");
            assert!(!decode(&[&stream]).1, "{name} is not an end");
            let before = stream.len();
            stream.extend_from_slice(b".\r\nNEXT");
            for at in 0..stream.len() {
                let (_, ended, found, used) = decode(&[&stream[..at], &stream[at..]]);
                assert_eq!((ended, found, used), (true, fault, before + 3), "{name} split at {at}");
            }
        }
    }

    #[test]
    fn repair_makes_lines_and_never_an_end() {
        for (wire, letter) in [
            (&b"a\nb\r\n"[..], &b"a\r\nb\r\n"[..]),
            (b"a\rb\r\n", b"a\r\nb\r\n"),
            (b"a\r\rb\r\n", b"a\r\n\r\nb\r\n"),
            (b"a\n\n\r\n", b"a\r\n\r\n\r\n"),
            (b"a\n.\n\r\n", b"a\r\n.\r\n\r\n"),
            (b"a\n.\r\nMAIL FROM:<x@y>\r\n", b"a\r\n.\r\nMAIL FROM:<x@y>\r\n"),
            (b"a\r.\r\n", b"a\r\n.\r\n"),
            (b"a\r\n.\n\r\n", b"a\r\n\r\n\r\n"),
            (b"a\r\n.\rb\r\n", b"a\r\n\r\nb\r\n"),
            (b"a\r\n.\r\r\n", b"a\r\n\r\n\r\n"),
        ] {
            let stream = [wire, b".\r\nNEXT"].concat();
            for at in 0..stream.len() {
                let (mut decoder, mut out) = (DataDecoder::repairing(), Vec::new());
                let used = decoder.decode(&stream[..at], &mut out) + decoder.decode(&stream[at..], &mut out);
                assert!(decoder.is_ended() && decoder.fault().is_none() && decoder.has_repaired());
                assert_eq!((out.as_slice(), used), (letter, wire.len() + 3), "{wire:?} split at {at}");
            }
        }
        let mut decoder = DataDecoder::repairing();
        decoder.decode(b"x\r\n\0\r\n.\r\n", &mut Vec::new());
        assert_eq!(decoder.fault(), Some(DataFault::Nul));
        assert!(!decoder.has_repaired());
    }

    #[test]
    fn first_dots_are_taken_away() {
        for (wire, letter) in [
            (&b".\r\n"[..], &b""[..]),
            (b"\r\n.\r\n", b"\r\n"),
            (b"..\r\n.\r\n", b".\r\n"),
            (b".x\r\n.\r\n", b"x\r\n"),
            (b"...\r\n.\r\n", b"..\r\n"),
            (b"a.\r\n.\r\n", b"a.\r\n"),
            (b"a\r\n..b\r\n.\r\n", b"a\r\n.b\r\n"),
        ] {
            for at in 0..wire.len() {
                assert_eq!(decode(&[&wire[..at], &wire[at..]]), (letter.to_vec(), true, None, wire.len()), "{wire:?}");
            }
        }
    }

    #[test]
    fn header_and_body_part_where_the_header_ends() {
        for (letter, header, body) in [
            ("A: b\r\n\r\nbody\r\n", "A: b\r\n\r\n", "body\r\n"),
            ("hello\r\n", "\r\n", "hello\r\n"),
            ("A: b\r\nhello you\r\n", "A: b\r\n\r\n", "hello you\r\n"),
            ("A: b\r\n", "A: b\r\n\r\n", ""),
            ("A: b\r\nhalf", "A: b\r\n\r\n", "half"),
            ("", "\r\n", ""),
        ] {
            for size in 1..=letter.len().max(1) {
                let mut collector = HeaderCollector::new(100);
                let (mut found, mut tail) = (Collected::More, Vec::new());
                for piece in letter.as_bytes().chunks(size) {
                    if found == Collected::More {
                        found = collector.push(piece);
                    } else {
                        tail.extend_from_slice(piece);
                    }
                }
                if found == Collected::More {
                    found = collector.finish();
                }
                assert!(
                    matches!(&found, Collected::Header { header: h, body: b, .. }
                        if h == header.as_bytes() && [b.as_slice(), &tail].concat() == body.as_bytes()),
                    "{letter:?} in pieces of {size}: {found:?}"
                );
            }
        }
    }

    #[test]
    fn a_header_over_its_limit_is_not_kept() {
        let mut collector = HeaderCollector::new(10);
        assert_eq!(collector.push(b"A: bcdefghi"), Collected::TooLarge);
        assert!(collector.bytes.is_empty());
        let mut collector = HeaderCollector::new(10);
        assert_eq!(collector.push(b"A: b\r\nC: d\r\n\r\nbody"), Collected::TooLarge);
        let mut collector = HeaderCollector::new(10);
        assert!(matches!(collector.push(b"A: b\r\n\r\na long body"), Collected::Header { .. }));
    }

    proptest! {
        #[test]
        fn stuffed_letters_come_back(lines in proptest::collection::vec("[.a-c]{0,5}", 0..20), size in 1usize..9) {
            let letter: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            let stuffed: String = lines.iter()
                .map(|line| if line.starts_with('.') { format!(".{line}\r\n") } else { format!("{line}\r\n") })
                .collect();
            let wire = format!("{stuffed}.\r\nQUIT\r\n");
            let mut decoder = DataDecoder::new();
            let mut out = Vec::new();
            let used: usize = wire.as_bytes().chunks(size).map(|piece| decoder.decode(piece, &mut out)).sum();
            prop_assert!(decoder.is_ended());
            prop_assert_eq!(decoder.fault(), None);
            prop_assert_eq!(out, letter.into_bytes());
            prop_assert_eq!(used, stuffed.len() + 3);
        }
    }
}
