//! The `Received:` line (RFC 5321 §4.4), and what the header of a letter says about it: hops, `Date`, `From`,
//! `Message-ID`, `Subject`. The header is scanned as it streams by; nothing of it is kept but these facts.

use std::fmt::Write as _;
use std::net::IpAddr;

/// With what a letter came (RFC 3848, RFC 5321 §4.4, RFC 6531 §4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransferProtocol {
    /// `EHLO` rather than `HELO`.
    pub extended: bool,
    /// Inside TLS.
    pub tls: bool,
    /// After `AUTH`.
    pub authenticated: bool,
    /// `MAIL` asked for `SMTPUTF8`.
    pub smtp_utf8: bool,
}

impl TransferProtocol {
    /// The word after `with`. RFC 3848 has no name for `HELO` inside TLS.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match (self.extended, self.smtp_utf8, self.tls, self.authenticated) {
            (false, _, _, _) => "SMTP",
            (true, false, false, false) => "ESMTP",
            (true, false, true, false) => "ESMTPS",
            (true, false, false, true) => "ESMTPA",
            (true, false, true, true) => "ESMTPSA",
            (true, true, false, false) => "UTF8SMTP",
            (true, true, true, false) => "UTF8SMTPS",
            (true, true, false, true) => "UTF8SMTPA",
            (true, true, true, true) => "UTF8SMTPSA",
        }
    }
}

/// What a `Received:` line tells.
#[derive(Clone, Debug)]
pub struct ReceivedInfo<'a> {
    /// What the client said in `EHLO` or `HELO`.
    pub helo: &'a str,
    /// The device's address, from the PROXY header where there is one.
    pub source_addr: IpAddr,
    /// The connector's fqdn.
    pub by_fqdn: &'a str,
    /// With what.
    pub protocol: TransferProtocol,
    /// The TLS version and cipher suite, where there is TLS.
    pub tls: Option<&'a str>,
    /// The queue id.
    pub id: &'a str,
    /// From [`date_rfc5322`].
    pub date: &'a str,
}

/// Builds the folded line with its CRLF. Nothing that a client chose can start a line of its own: characters that no
/// name has become `?`.
#[must_use]
pub fn received(info: &ReceivedInfo<'_>) -> String {
    let literal = match info.source_addr.to_canonical() {
        IpAddr::V4(v4) => format!("[{v4}]"),
        IpAddr::V6(v6) => format!("[IPv6:{v6}]"),
    };
    let tls = info.tls.map(|tls| format!(" ({})", harmless(tls, " .-_/=", "TLS"))).unwrap_or_default();
    format!(
        "Received: from {} ({literal})\r\n\tby {} with {}{tls}\r\n\tid {}; {}\r\n",
        harmless(info.helo, ".-_[]:", "unknown"),
        harmless(info.by_fqdn, ".-_[]:", "unknown"),
        info.protocol.as_str(),
        harmless(info.id, ".-_", "unknown"),
        harmless(info.date, " ,:+-", "Thu, 01 Jan 1970 00:00:00 +0000"),
    )
}

/// RFC 5321 §4.5.3.1.2 for names; keeps every line of ours far below 998 octets.
const WORD_MAX: usize = 255;

fn harmless(text: &str, punctuation: &str, otherwise: &str) -> String {
    let kept: String = text
        .chars()
        .take(WORD_MAX)
        .map(|c| if c.is_ascii_alphanumeric() || punctuation.contains(c) { c } else { '?' })
        .collect();
    if kept.is_empty() { otherwise.to_owned() } else { kept }
}

/// A date as RFC 5322 §3.3 writes it, in UTC, from unix milliseconds. A time that no calendar has is the epoch.
#[must_use]
pub fn date_rfc5322(now_ms: i64) -> String {
    let time = jiff::Timestamp::from_millisecond(now_ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}

/// The lines that a submitted letter needs and does not have (RFC 6409 §8.2, §8.3): `Date` and `Message-ID`, each
/// with its CRLF. `message_id` is written between angle brackets.
#[must_use]
pub fn missing_lines(facts: &HeaderFacts, date: &str, message_id: &str) -> String {
    let mut lines = String::new();
    if !facts.has_date {
        let _ = write!(lines, "Date: {date}\r\n");
    }
    if !facts.has_message_id {
        let _ = write!(lines, "Message-ID: <{}>\r\n", harmless(message_id, ".-_@", "unknown"));
    }
    lines
}

/// Where a header ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderEnd {
    /// At the empty line, which counts as header.
    EmptyLine,
    /// At a line that is neither a field nor a continuation: the body began without an empty line.
    NotAField,
    /// The letter ended within its header.
    EndOfData,
}

/// What a header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderFacts {
    /// How many `Received` fields there are: the hop count (RFC 5321 §6.3).
    pub received: u32,
    /// Whether there is a `Date`.
    pub has_date: bool,
    /// Whether there is a `From`.
    pub has_from: bool,
    /// Whether there is a `Message-ID`, usable or not.
    pub has_message_id: bool,
    /// The `Message-ID` with its angle brackets, when it is one word of printable ASCII of at most 250 octets, so
    /// that the reply that repeats it fits its 512 (RFC 5321 §4.5.3.1.5).
    pub message_id: Option<String>,
    /// The first 255 characters of the `Subject`, unfolded, not decoded; control characters become spaces.
    pub subject: Option<String>,
    /// Octets of the header, the empty line included.
    pub bytes: u64,
    /// Where it ended, once it has.
    pub end: Option<HeaderEnd>,
}

const MESSAGE_ID_MAX: usize = 250;
const SUBJECT_MAX: usize = 255;
/// Longer than every name that we look for; the rest of a longer name is not kept.
const NAME_MAX: usize = 16;
/// Room for a subject of 255 characters of four octets.
const VALUE_MAX: usize = 1024;

/// Reads a header in pieces of any size.
#[derive(Debug, Default)]
pub struct HeaderScan {
    facts: HeaderFacts,
    at: At,
    /// Octets seen so far, those of the current line included.
    seen: u64,
    /// Where the current line began.
    line_start: u64,
    name: Vec<u8>,
    field: Field,
    value: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// At the first octet of a line.
    #[default]
    LineStart,
    /// After the CR of a line that is empty so far.
    EmptyLineCr,
    Name,
    /// RFC 5322 §4.5 (obsolete syntax): white space between name and colon.
    NameSpace,
    Value,
}

/// The fields that matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Field {
    #[default]
    None,
    Other,
    MessageId,
    Subject,
}

impl HeaderScan {
    /// Starts at the first octet of a letter.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads on. Once the header has ended, [`HeaderFacts::end`] is set and the rest is not looked at.
    pub fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.facts.end.is_some() {
                return;
            }
            self.step(byte);
            self.seen += 1;
        }
    }

    /// The letter ended.
    pub fn finish(&mut self) {
        if self.facts.end.is_none() {
            // A last line without its colon is not a field; what was before it is the header.
            let unfinished = matches!(self.at, At::Name | At::NameSpace);
            let bytes = if unfinished { self.line_start } else { self.seen };
            self.end(HeaderEnd::EndOfData, bytes);
        }
    }

    /// What has been found so far; complete once [`HeaderFacts::end`] is set.
    #[must_use]
    pub fn facts(&self) -> &HeaderFacts {
        &self.facts
    }

    /// Octets read, header or not yet known.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }

    fn step(&mut self, byte: u8) {
        match (self.at, byte) {
            (At::LineStart, b' ' | b'\t') if self.field != Field::None => {
                self.at = At::Value;
                self.keep(b' ');
            }
            (At::LineStart, b'\r') => self.at = At::EmptyLineCr,
            (At::LineStart, _) => {
                self.close_field();
                self.line_start = self.seen;
                self.name.clear();
                self.at = At::Name;
                self.step_name(byte);
            }
            (At::EmptyLineCr, b'\n') => self.end(HeaderEnd::EmptyLine, self.seen + 1),
            (At::EmptyLineCr, _) => self.end(HeaderEnd::NotAField, self.seen - 1),
            (At::Name, _) => self.step_name(byte),
            (At::NameSpace, b' ' | b'\t') => {}
            (At::NameSpace, b':') => self.open_field(),
            (At::NameSpace, _) => self.end(HeaderEnd::NotAField, self.line_start),
            (At::Value, b'\n') => self.at = At::LineStart,
            (At::Value, b'\r') => {}
            (At::Value, _) => self.keep(byte),
        }
    }

    fn step_name(&mut self, byte: u8) {
        match byte {
            b':' if self.seen > self.line_start => self.open_field(),
            b' ' | b'\t' if self.seen > self.line_start => self.at = At::NameSpace,
            // RFC 5322 §2.2: printable ASCII without the colon.
            b'!'..=b'9' | b';'..=b'~' => {
                if self.name.len() <= NAME_MAX {
                    self.name.push(byte.to_ascii_lowercase());
                }
            }
            _ => self.end(HeaderEnd::NotAField, self.line_start),
        }
    }

    fn open_field(&mut self) {
        self.at = At::Value;
        self.value.clear();
        self.field = match self.name.as_slice() {
            b"received" => {
                self.facts.received = self.facts.received.saturating_add(1);
                Field::Other
            }
            b"date" => {
                self.facts.has_date = true;
                Field::Other
            }
            b"from" => {
                self.facts.has_from = true;
                Field::Other
            }
            b"message-id" if !self.facts.has_message_id => {
                self.facts.has_message_id = true;
                Field::MessageId
            }
            b"subject" if self.facts.subject.is_none() => Field::Subject,
            _ => Field::Other,
        };
    }

    fn keep(&mut self, byte: u8) {
        if matches!(self.field, Field::MessageId | Field::Subject) && self.value.len() < VALUE_MAX {
            self.value.push(byte);
        }
    }

    fn close_field(&mut self) {
        match self.field {
            Field::MessageId => self.facts.message_id = usable_message_id(&self.value),
            Field::Subject => {
                let text = String::from_utf8_lossy(&self.value);
                let clean = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
                self.facts.subject = Some(clean.take(SUBJECT_MAX).collect());
            }
            Field::None | Field::Other => {}
        }
        self.field = Field::None;
        self.value.clear();
    }

    fn end(&mut self, end: HeaderEnd, bytes: u64) {
        self.close_field();
        self.facts.bytes = bytes;
        self.facts.end = Some(end);
    }
}

fn usable_message_id(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let inside = text.strip_prefix('<')?.strip_suffix('>')?;
    let usable = !inside.is_empty()
        && text.len() <= MESSAGE_ID_MAX
        && inside.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>".contains(&byte));
    usable.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn scan(letter: &[u8]) -> HeaderFacts {
        let mut scan = HeaderScan::new();
        scan.push(letter);
        scan.finish();
        scan.facts().clone()
    }

    const LETTER: &[u8] = b"Received: from a\r\n\tby b; x\r\nreceived : from c\r\nDATE: now\r\nFrom: a@b\r\n\
        Message-Id:\r\n <x.y@z>\r\nSubject: one\r\n two\r\nX-Received: no\r\n\r\nReceived: in the body\r\n";

    #[test]
    fn facts_are_found_wherever_the_header_is_split() {
        let whole = scan(LETTER);
        assert_eq!(whole.received, 2);
        assert!(whole.has_date && whole.has_from && whole.has_message_id);
        assert_eq!(whole.message_id.as_deref(), Some("<x.y@z>"));
        assert_eq!(whole.subject.as_deref(), Some("one two"));
        assert_eq!(whole.end, Some(HeaderEnd::EmptyLine));
        assert!(LETTER[usize::try_from(whole.bytes).unwrap()..].starts_with(b"Received: in the body"));
        for at in 0..LETTER.len() {
            let mut pieces = HeaderScan::new();
            pieces.push(&LETTER[..at]);
            pieces.push(&LETTER[at..]);
            pieces.finish();
            assert_eq!(*pieces.facts(), whole, "split at {at}");
        }
    }

    #[test]
    fn a_body_without_an_empty_line_starts_at_its_line() {
        for (letter, end, bytes) in [
            (&b"hello world\r\n"[..], HeaderEnd::NotAField, 0),
            (b"Subject: x\r\nhello world\r\n", HeaderEnd::NotAField, 12),
            (b"Subject: x\r\n: y\r\n", HeaderEnd::NotAField, 12),
            (b" folded nothing\r\n", HeaderEnd::NotAField, 0),
            (b"From a@b Mon\r\nSubject: x\r\n", HeaderEnd::NotAField, 0),
            (b"\xffx: y\r\n", HeaderEnd::NotAField, 0),
            (b"Subject: x\r\n", HeaderEnd::EndOfData, 12),
            (b"\r\nbody\r\n", HeaderEnd::EmptyLine, 2),
            (b"", HeaderEnd::EndOfData, 0),
        ] {
            let facts = scan(letter);
            assert_eq!((facts.end, facts.bytes), (Some(end), bytes), "{letter:?}");
        }
    }

    #[test]
    fn a_message_id_that_could_spoil_a_reply_is_not_repeated() {
        for value in ["", "x@y", "<>", "<a b@c>", "<a@b> <c@d>", "<a\u{7f}@b>", &format!("<{}>", "x".repeat(300))] {
            let facts = scan(format!("Message-ID: {value}\r\n\r\n").as_bytes());
            assert!(facts.has_message_id);
            assert_eq!(facts.message_id, None, "{value}");
        }
    }

    #[test]
    fn received_is_one_folded_field_whatever_the_client_said() {
        let info = ReceivedInfo {
            helo: "x)\r\nBcc: y",
            source_addr: "::ffff:192.0.2.7".parse().unwrap(),
            by_fqdn: "mx.example",
            protocol: TransferProtocol { extended: true, tls: true, authenticated: true, smtp_utf8: false },
            tls: Some("TLSv1_3 TLS13_AES_256_GCM_SHA384"),
            id: "0123456789ABC",
            date: &date_rfc5322(1_700_000_000_123),
        };
        assert_eq!(
            received(&info),
            "Received: from x???Bcc:?y ([192.0.2.7])\r\n\tby mx.example with ESMTPSA \
             (TLSv1_3 TLS13_AES_256_GCM_SHA384)\r\n\tid 0123456789ABC; Tue, 14 Nov 2023 22:13:20 +0000\r\n"
        );
        let own = scan(format!("{}\r\n", received(&info)).as_bytes());
        assert_eq!((own.received, own.end), (1, Some(HeaderEnd::EmptyLine)));
    }

    #[test]
    fn only_what_is_missing_is_added() {
        assert_eq!(missing_lines(&scan(LETTER), "d", "m@n"), "");
        assert_eq!(missing_lines(&scan(b"x"), "d", "m@n"), "Date: d\r\nMessage-ID: <m@n>\r\n");
    }
}
