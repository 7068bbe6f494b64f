//! The report to a sender whose letter could not be delivered (RFC 3464, RFC 6522; with addresses beyond ASCII RFC 6533):
//! what a person can read, what a program can read, and the letter or its header, as `RET` asks. Never made for the null
//! reverse-path: whoever makes one needs a mailbox to send it to. A relay delivers to no mailbox itself, so of success it
//! reports only that it passed a letter on to a next hop that will not report (RFC 3461 §5.2.2: relayed).

use std::fmt::Write as _;

use super::trace_header::date_rfc5322;
use super::{EnhancedCode, Mailbox, OriginalRecipient, Reply};

/// How much of the letter's header is given back.
pub const DSN_HEADER_BYTES_MAX: usize = 64 * 1024;
/// The largest letter that is given back whole where `RET=FULL` asks for it; of larger ones the header is given back
/// (RFC 3461 §4.3 leaves that to the server). A report is held in memory.
pub const DSN_LETTER_BYTES_MAX: u64 = 256 * 1024;
/// How many failed recipients one report names; more are counted.
pub const DSN_RECIPIENTS_MAX: usize = 200;
/// How much of a reply is told, in characters: a line is at most 998 (RFC 5322 §2.1.1).
const REPLY_CHARS_MAX: usize = 500;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportKind {
    /// It will never arrive.
    Failed,
    /// It still waits, until then, in unix milliseconds.
    Delayed {
        /// When it is given up.
        until_ms: i64,
    },
    /// A next hop that does not report took it.
    Relayed,
}

impl ReportKind {
    /// The subject of the report.
    #[must_use]
    pub fn subject(self) -> &'static str {
        match self {
            Self::Failed => "Undeliverable: your message was not delivered",
            Self::Delayed { .. } => "Delayed: your message has not been delivered yet",
            Self::Relayed => "Relayed: your message was passed on",
        }
    }

    /// RFC 3464 §2.3.3.
    fn action(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Delayed { .. } => "delayed",
            Self::Relayed => "relayed",
        }
    }

    fn for_people(self) -> [&'static str; 2] {
        match self {
            Self::Failed => [
                "Your message could not be delivered to the recipients below. This is final: it will not be tried",
                "again, and these recipients have not received it.",
            ],
            Self::Delayed { .. } => [
                "Your message has not been delivered to the recipients below yet. It is tried again by itself: you need",
                "not send it again. You will hear of it again only if it is given up.",
            ],
            Self::Relayed => [
                "Your message was passed on to the next hop of the recipients below, as you asked to be told. The next",
                "hop does not report: whether it reached the mailbox is not known here.",
            ],
        }
    }
}

/// What a report tells.
#[derive(Clone, Debug)]
pub struct FailureReport<'a> {
    /// What happened.
    pub kind: ReportKind,
    /// A name that no other report of this node has: the boundary and the `Message-ID` are made of it.
    pub unique: &'a str,
    /// The node that gave up.
    pub reporting_mta: &'a str,
    /// The sender of the letter.
    pub to: &'a Mailbox,
    /// The letter's name in traces.
    pub letter_id: &'a str,
    /// The letter's `Message-ID`, with angle brackets; empty if it has none.
    pub message_id: &'a str,
    /// When the letter was accepted, in unix milliseconds.
    pub received_at_ms: i64,
    /// When the report is made, in unix milliseconds.
    pub now_ms: i64,
    /// `ENVID=` of the letter, decoded.
    pub envid: Option<&'a str>,
    /// Whom the letter does not reach.
    pub failed: &'a [FailedRecipient],
    /// What of the letter is given back.
    pub given_back: GivenBack<'a>,
}

/// What of a letter is given back to its sender.
#[derive(Clone, Copy, Debug)]
pub enum GivenBack<'a> {
    /// Its header block, without the empty line that ends it.
    Header(&'a [u8]),
    /// The whole letter.
    Letter(&'a [u8]),
}

impl<'a> GivenBack<'a> {
    fn bytes(self) -> &'a [u8] {
        match self {
            Self::Header(header) => cut_header(header),
            Self::Letter(letter) => letter,
        }
    }
}

impl FailureReport<'_> {
    /// Whether the report needs SMTPUTF8 (RFC 6533 §4): an address in it is not ASCII.
    #[must_use]
    pub fn needs_smtp_utf8(&self) -> bool {
        let international = |failed: &FailedRecipient| {
            !failed.recipient.is_ascii() || failed.orcpt.as_ref().is_some_and(|orcpt| !orcpt.address.is_ascii())
        };
        !self.to.is_ascii() || self.failed.iter().any(international)
    }
}

/// A recipient whom the letter does not reach.
#[derive(Clone, Debug)]
pub struct FailedRecipient {
    /// The recipient, without angle brackets.
    pub recipient: String,
    /// The next hop that said so; absent when none was reached.
    pub next_hop: Option<String>,
    /// What it said.
    pub reply: Reply,
    /// Whether it was given up after the longest wait.
    pub expired: bool,
    /// `ORCPT=`: whom the sender wrote to.
    pub orcpt: Option<OriginalRecipient>,
}

/// Writes the report, complete with header, lines ended by CRLF.
#[must_use]
pub fn failure_report(report: &FailureReport<'_>) -> Vec<u8> {
    let boundary = boundary(report);
    let mut text = String::with_capacity(4096);
    let mut line = |words: &str| {
        text.push_str(words);
        text.push_str("\r\n");
    };
    line(&format!("From: Mail Delivery System <postmaster@{}>", report.reporting_mta));
    line(&format!("To: <{}>", report.to));
    line(&format!("Subject: {}", report.kind.subject()));
    line(&format!("Date: {}", date_rfc5322(report.now_ms)));
    line(&format!("Message-ID: <{}@{}>", report.unique, report.reporting_mta));
    if !report.message_id.is_empty() && report.message_id.len() < 900 {
        line(&format!("In-Reply-To: {}", clean(report.message_id)));
        line(&format!("References: {}", clean(report.message_id)));
    }
    // RFC 3834 §5: so that no vacation message answers it.
    line("Auto-Submitted: auto-replied");
    line("MIME-Version: 1.0");
    line("Content-Type: multipart/report; report-type=delivery-status;");
    line(&format!("\tboundary=\"{boundary}\""));
    line("");
    line("This is a report in the format of RFC 3464.");
    line("");
    line(&format!("--{boundary}"));
    line("Content-Type: text/plain; charset=utf-8");
    line("Content-Transfer-Encoding: 8bit");
    line("");
    text.push_str(&for_people(report));
    let utf8 = report.needs_smtp_utf8();
    let status = if utf8 { "message/global-delivery-status" } else { "message/delivery-status" };
    text.push_str(&format!("\r\n--{boundary}\r\nContent-Type: {status}\r\n"));
    text.push_str(if utf8 { "Content-Transfer-Encoding: 8bit\r\n\r\n" } else { "\r\n" });
    text.push_str(&for_programs(report, utf8));
    let kind = match (report.given_back, utf8) {
        (GivenBack::Header(_), false) => "text/rfc822-headers",
        (GivenBack::Header(_), true) => "message/global-headers",
        (GivenBack::Letter(_), false) => "message/rfc822",
        (GivenBack::Letter(_), true) => "message/global",
    };
    text.push_str(&format!("\r\n--{boundary}\r\nContent-Type: {kind}\r\n"));
    let given_back = report.given_back.bytes();
    text.push_str(if given_back.is_ascii() {
        "Content-Transfer-Encoding: 7bit\r\n\r\n"
    } else {
        "Content-Transfer-Encoding: 8bit\r\n\r\n"
    });
    let mut out = text.into_bytes();
    out.extend_from_slice(given_back);
    out.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    out
}

fn for_people(report: &FailureReport<'_>) -> String {
    let mut text = String::new();
    let mut line = |words: &str| {
        text.push_str(words);
        text.push_str("\r\n");
    };
    line(&format!("This is the mail relay {}.", report.reporting_mta));
    line("");
    report.kind.for_people().into_iter().for_each(&mut line);
    if let ReportKind::Delayed { until_ms } = report.kind {
        line(&format!("It is given up on {}.", date_rfc5322(until_ms)));
    }
    for failed in report.failed.iter().take(DSN_RECIPIENTS_MAX) {
        line("");
        line(&format!("<{}>", clean(&failed.recipient)));
        match &failed.next_hop {
            Some(hop) => line(&format!("    Next hop: {}", clean(hop))),
            None => line("    Next hop: none could be reached"),
        }
        line(&format!("    It said:  {}", said(&failed.reply)));
        line(&format!("    What to do: {}", advice(report.kind, failed)));
    }
    if let Some(more) = report.failed.len().checked_sub(DSN_RECIPIENTS_MAX + 1) {
        line("");
        line(&format!("... and {} more recipients.", more + 1));
    }
    line("");
    line(&format!("When you ask your administrator, mention {}.", clean(report.letter_id)));
    text
}

fn for_programs(report: &FailureReport<'_>, utf8: bool) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    if let Some(envid) = report.envid {
        // RFC 3464 §2.2.1: as the sender meant it, not as it was encoded.
        let _ = write!(text, "Original-Envelope-Id: {}\r\n", clean(envid));
    }
    let _ = write!(text, "Reporting-MTA: dns; {}\r\n", report.reporting_mta);
    let _ = write!(text, "X-Posthouse-Letter: {}\r\n", clean(report.letter_id));
    let _ = write!(text, "Arrival-Date: {}\r\n", date_rfc5322(report.received_at_ms));
    for failed in report.failed.iter().take(DSN_RECIPIENTS_MAX) {
        text.push_str("\r\n");
        if let Some(orcpt) = &failed.orcpt {
            let _ = write!(text, "Original-Recipient: {}\r\n", clean(&orcpt.to_string()));
        }
        // RFC 6533 §3: an address beyond ASCII has a type of its own.
        let kind = if utf8 && !failed.recipient.is_ascii() { "utf-8" } else { "rfc822" };
        let _ = write!(text, "Final-Recipient: {kind}; {}\r\n", clean(&failed.recipient));
        let _ = write!(text, "Action: {}\r\nStatus: {}\r\n", report.kind.action(), status(report.kind, failed));
        if let Some(hop) = &failed.next_hop {
            let host = hop.split([' ', ':']).next().filter(|host| !host.is_empty()).unwrap_or("unknown");
            let _ = write!(text, "Remote-MTA: dns; {}\r\n", clean(host));
        }
        let _ = write!(text, "Diagnostic-Code: smtp; {}\r\n", said(&failed.reply));
        let _ = write!(text, "Last-Attempt-Date: {}\r\n", date_rfc5322(report.now_ms));
        if let ReportKind::Delayed { until_ms } = report.kind {
            let _ = write!(text, "Will-Retry-Until: {}\r\n", date_rfc5322(until_ms));
        }
    }
    text
}

/// The status for programs. A letter that was given up is a failure, whatever the last reply was (RFC 3463 §3.5:
/// `X.4.7`, delivery time expired).
fn status(kind: ReportKind, failed: &FailedRecipient) -> EnhancedCode {
    let (class, otherwise) = match kind {
        ReportKind::Failed if failed.expired => return EnhancedCode::new(5, 4, 7),
        ReportKind::Failed => (5, EnhancedCode::new(5, 0, 0)),
        ReportKind::Delayed { .. } => (4, EnhancedCode::new(4, 4, 7)),
        ReportKind::Relayed => (2, EnhancedCode::new(2, 0, 0)),
    };
    failed.reply.enhanced.filter(|code| code.class == class).unwrap_or(otherwise)
}

fn advice(kind: ReportKind, failed: &FailedRecipient) -> &'static str {
    match kind {
        ReportKind::Failed => {}
        ReportKind::Delayed { .. } => return "nothing; if it is urgent, reach the recipient another way.",
        ReportKind::Relayed => return "nothing.",
    }
    if failed.expired {
        return "the next hop could not take it for days; send it again, or ask your administrator.";
    }
    match failed.reply.enhanced.map(|code| (code.subject, code.detail)) {
        Some((1, _)) => "check the address for typing mistakes.",
        Some((2, _)) => "the mailbox cannot take it; reach the recipient another way.",
        Some((3, 4)) => "the message is too large; send it in smaller parts.",
        Some((7, _)) => "the next hop refuses it by its rules; ask your administrator what they are.",
        _ => "show this report to your administrator.",
    }
}

fn said(reply: &Reply) -> String {
    clean(&reply.to_string()).chars().take(REPLY_CHARS_MAX).collect()
}

/// One line, whatever a peer put into it.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The header block up to the limit, ended at a line.
fn cut_header(header: &[u8]) -> &[u8] {
    if header.len() <= DSN_HEADER_BYTES_MAX {
        return header;
    }
    let cut = &header[..DSN_HEADER_BYTES_MAX];
    let end = cut.windows(2).rposition(|window| window == b"\r\n").map_or(0, |at| at + 2);
    &cut[..end]
}

/// A boundary that what is given back does not contain.
fn boundary(report: &FailureReport<'_>) -> String {
    let mut boundary = format!("report-{}", report.unique);
    let given_back = report.given_back.bytes();
    while given_back.windows(boundary.len()).any(|window| window == boundary.as_bytes()) {
        boundary.push('x');
    }
    boundary
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn failed(recipient: &str, reply: Reply) -> FailedRecipient {
        let next_hop = Some("mx.example:25 [192.0.2.1]".to_owned());
        FailedRecipient { recipient: recipient.to_owned(), next_hop, reply, expired: false, orcpt: None }
    }

    const TO: &str = "printer@corp.example";

    fn report(failed: &[FailedRecipient], header: &[u8]) -> Vec<u8> {
        report_to(TO, failed, GivenBack::Header(header))
    }

    fn report_to(to: &str, failed: &[FailedRecipient], given_back: GivenBack<'_>) -> Vec<u8> {
        report_of(ReportKind::Failed, to, failed, given_back)
    }

    fn report_of(kind: ReportKind, to: &str, failed: &[FailedRecipient], given_back: GivenBack<'_>) -> Vec<u8> {
        failure_report(&FailureReport {
            kind,
            unique: "0ABC",
            reporting_mta: "relay.example",
            to: &to.parse().unwrap(),
            letter_id: "01HQXW5P7R8S9",
            message_id: "<one@corp.example>",
            received_at_ms: 1_795_000_000_000,
            now_ms: 1_795_000_060_000,
            envid: Some("QQ 314"),
            failed,
            given_back,
        })
    }

    #[test]
    fn what_the_sender_said_with_the_letter_comes_back() {
        let mut bounced = failed("b@y.example", Reply::new(550, None, "no"));
        bounced.orcpt = OriginalRecipient::parse("rfc822;list@x.example", false).ok();
        let letter = GivenBack::Letter(b"Subject: scan\r\n\r\nwhole letter\r\n");
        let text = String::from_utf8(report_to("printer@corp.example", &[bounced], letter)).unwrap();
        for expected in [
            "Content-Type: message/delivery-status\r\n\r\nOriginal-Envelope-Id: QQ 314\r\nReporting-MTA: dns; ",
            "\r\n\r\nOriginal-Recipient: rfc822; list@x.example\r\nFinal-Recipient: rfc822; b@y.example\r\n",
            "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: 7bit\r\n\r\nSubject: scan\r\n\r\nwhole letter\r\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is missing in\n{text}");
        }
    }

    #[test]
    fn addresses_beyond_ascii_are_reported_as_rfc_6533_says() {
        let mut bounced = failed("ü@y.example", Reply::new(550, None, "no"));
        bounced.orcpt = OriginalRecipient::parse("utf-8;\\x{FC}@y.example", false).ok();
        let header = GivenBack::Header("Subject: grüße\r\n".as_bytes());
        let text = String::from_utf8(report_to("drucker-ö@corp.example", &[bounced], header)).unwrap();
        for expected in [
            "To: <drucker-ö@corp.example>\r\n",
            "Content-Type: message/global-delivery-status\r\nContent-Transfer-Encoding: 8bit\r\n\r\n",
            "Original-Recipient: utf-8; ü@y.example\r\nFinal-Recipient: utf-8; ü@y.example\r\n",
            "Content-Type: message/global-headers\r\nContent-Transfer-Encoding: 8bit\r\n\r\nSubject: grüße\r\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is missing in\n{text}");
        }
    }

    #[test]
    fn a_mail_program_finds_three_parts_and_every_recipient() {
        let no = Reply::new(550, Some(EnhancedCode::new(5, 1, 1)), "User unknown");
        let late = Reply::new(451, Some(EnhancedCode::new(4, 4, 1)), "connection failed");
        let expired = FailedRecipient { expired: true, next_hop: None, ..failed("b@y.example", late) };
        let bytes = report(&[failed("a@x.example", no), expired], b"Subject: scan\r\nFrom: printer@corp.example\r\n");
        let text = String::from_utf8(bytes.clone()).unwrap();
        let (header, body) = text.split_once("\r\n\r\n").unwrap();
        let header = header.replace("\r\n\t", " ");
        assert!(header.contains("To: <printer@corp.example>\r\n"));
        assert!(header.contains("Auto-Submitted: auto-replied\r\n"));
        let kind = "Content-Type: multipart/report; report-type=delivery-status; boundary=\"report-0ABC\"";
        assert!(header.contains(kind), "{header}");
        let parts: Vec<_> = body.split("\r\n--report-0ABC").skip(1).collect();
        let kinds: Vec<_> = parts.iter().filter_map(|part| part.trim_start().split(['\r', ';']).next()).collect();
        assert_eq!(
            kinds,
            [
                "Content-Type: text/plain",
                "Content-Type: message/delivery-status",
                "Content-Type: text/rfc822-headers",
                "--"
            ]
        );
        let text = String::from_utf8(bytes).unwrap();
        for expected in [
            "Next hop: mx.example:25 [192.0.2.1]",
            "It said:  550 5.1.1 User unknown",
            "check the address",
            "Final-Recipient: rfc822; a@x.example\r\nAction: failed\r\nStatus: 5.1.1\r\nRemote-MTA: dns; mx.example\r\n",
            "Final-Recipient: rfc822; b@y.example\r\nAction: failed\r\nStatus: 5.4.7\r\nDiagnostic-Code: smtp; 451",
            "Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: 7bit\r\n\r\nSubject: scan\r\n",
            "mention 01HQXW5P7R8S9",
        ] {
            assert!(text.contains(expected), "{expected:?} is missing in\n{text}");
        }
    }

    #[test]
    fn nothing_that_a_peer_said_starts_a_line_of_its_own() {
        let mut evil = Reply::new(550, None, "x");
        evil.lines = smallvec::smallvec!["no\r\nBcc: victim@x.example\r\n\r\n--report-0ABC--".into()];
        let bytes = report(&[failed("a@x.example\r\nBcc: v", evil)], b"Subject: --report-0ABC\r\n");
        let text = String::from_utf8(bytes).unwrap();
        assert!(!text.contains("\r\nBcc"));
        assert!(!text.replace("\r\n", "").contains(['\r', '\n']));
        assert_eq!(text.matches("\r\n--report-0ABCx--").count(), 1);
    }

    #[test]
    fn a_report_is_bounded_whatever_it_reports() {
        let no = Reply::new(550, None, "x".repeat(10_000));
        let many: Vec<_> = (0..5000).map(|index| failed(&format!("r{index}@x.example"), no.clone())).collect();
        let header = b"X-Line: 0123456789\r\n".repeat(20_000);
        let bytes = report(&many, &header);
        assert!(bytes.len() < DSN_HEADER_BYTES_MAX + DSN_RECIPIENTS_MAX * 3 * REPLY_CHARS_MAX);
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("... and 4800 more recipients."));
        assert!(text.split("\r\n").all(|line| line.len() <= 998));
        assert!(text.contains("0123456789\r\n\r\n--report-0ABC--\r\n"));
    }

    #[test]
    fn a_delay_says_that_it_is_no_failure_and_until_when() {
        let later = Reply::new(451, Some(EnhancedCode::new(4, 7, 1)), "greylisted");
        let kind = ReportKind::Delayed { until_ms: 1_795_432_000_000 };
        let text = String::from_utf8(report_of(
            kind,
            TO,
            &[failed("a@x.example", later)],
            GivenBack::Header(b"Subject: x\r\n"),
        ))
        .unwrap();
        for expected in [
            "Subject: Delayed: ",
            "you need\r\nnot send it again",
            "Action: delayed\r\nStatus: 4.7.1\r\n",
            "Will-Retry-Until: ",
            "greylisted",
        ] {
            assert!(text.contains(expected), "{expected:?} is missing in\n{text}");
        }
        assert!(!text.contains("final"));
    }

    #[test]
    fn a_relayed_letter_is_a_success_that_nobody_further_on_reports() {
        let taken = Reply::new(250, Some(EnhancedCode::new(2, 6, 0)), "queued");
        let text =
            report_of(ReportKind::Relayed, TO, &[failed("a@x.example", taken)], GivenBack::Header(b"Subject: x\r\n"));
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("Action: relayed\r\nStatus: 2.6.0\r\n"), "{text}");
    }
}
