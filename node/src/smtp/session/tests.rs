//! Sessions with a small driver whose policy is made for tests, and a clock that is moved by hand.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::mail::Envelope;
use crate::mail::trace_header::HeaderFacts;
use crate::smtp::Mechanism;

/// A letter as the driver holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Letter {
    pub(super) envelope: Envelope,
    pub(super) bytes: Vec<u8>,
    pub(super) facts: Option<HeaderFacts>,
}

/// A session and its driver. `user`/`pass` is the one credential; recipients beginning with `deny` are refused,
/// senders beginning with `close` end the session, `full@…` finds no room for its letter.
#[derive(Debug)]
pub(super) struct Driven {
    pub(super) session: Session,
    pub(super) now: Instant,
    pub(super) sent: Vec<u8>,
    pub(super) letters: Vec<Letter>,
    pub(super) aborted: usize,
    pub(super) closed: Option<CloseReason>,
    pub(super) tls_works: bool,
    pub(super) holds_commits: bool,
    pub(super) notes: Vec<Note>,
    open: Option<Letter>,
    largest_append: usize,
}

pub(super) fn config() -> SessionConfig {
    SessionConfig {
        session_id: "0A1B".to_owned(),
        tls: TlsMode::Available,
        auth_tls: vec![Mechanism::Plain, Mechanism::Login],
        ..SessionConfig::new("mx.test", "192.0.2.7".parse().unwrap())
    }
}

impl Driven {
    pub(super) fn new(config: SessionConfig) -> Self {
        let now = Instant::now();
        let mut driven = Self {
            session: Session::new(config, now),
            now,
            sent: Vec::new(),
            letters: Vec::new(),
            aborted: 0,
            closed: None,
            tls_works: true,
            holds_commits: false,
            notes: Vec::new(),
            open: None,
            largest_append: 0,
        };
        driven.drive();
        driven
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.session.handle_bytes(self.now, bytes);
        self.drive();
    }

    /// What was sent since the last call.
    pub(super) fn said(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.sent)).unwrap()
    }

    /// Feeds, and answers what was said to it.
    pub(super) fn say(&mut self, text: &str) -> String {
        self.said();
        self.feed(text.as_bytes());
        self.said()
    }

    pub(super) fn drive(&mut self) {
        while let Some(action) = self.session.poll_action() {
            assert_eq!(self.closed, None, "close is the last action");
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        let now = self.now;
        match action {
            Action::Send(bytes) => self.sent.extend_from_slice(&bytes),
            Action::StartTls if self.tls_works => self.session.handle_tls_established(now),
            Action::StartTls => self.session.handle_tls_failed(now),
            Action::CheckAuth { user, password, .. } => {
                let known = user == "user" && password.expose() == b"pass";
                self.session.handle_auth(now, if known { AuthOutcome::Accepted } else { AuthOutcome::Refused });
            }
            Action::SaslMessage { mechanism, first, message } => {
                let outcome = auth_tests::answer(mechanism, first, message.expose());
                self.session.handle_auth(now, outcome);
            }
            Action::CheckMail { reverse_path, .. } => {
                let close = reverse_path.to_string().starts_with("close");
                let verdict = if close { Verdict::Close(reply::service_not_available()) } else { Verdict::Permit };
                self.session.handle_mail(now, verdict);
            }
            Action::CheckRcpt { forward_path } => {
                let deny = forward_path.to_string().starts_with("deny");
                let verdict = if deny { Verdict::Deny(reply::unable_to_relay()) } else { Verdict::Permit };
                self.session.handle_rcpt(now, verdict);
            }
            Action::BeginData { envelope } => {
                assert!(!envelope.recipients.is_empty());
                let full = envelope.reverse_path.to_string().starts_with("full");
                self.open = Some(Letter { envelope, bytes: Vec::new(), facts: None });
                let ready = if full { Err(reply::insufficient_system_resources()) } else { Ok(()) };
                self.session.handle_data_ready(now, ready);
            }
            Action::Header { block, facts } => {
                let open = self.open.as_mut().unwrap();
                assert!(open.facts.is_none() && open.bytes.is_empty(), "the header comes once and first");
                assert!(block.ends_with(b"\r\n"));
                open.bytes = block;
                open.facts = Some(facts);
            }
            Action::Append(bytes) => {
                let open = self.open.as_mut().unwrap();
                assert!(open.facts.is_some(), "the header comes first");
                self.largest_append = self.largest_append.max(bytes.len());
                open.bytes.extend_from_slice(&bytes);
            }
            Action::Commit { size } => {
                let letter = self.open.take().unwrap();
                let counted = u64::try_from(letter.bytes.len()).unwrap();
                assert!(size <= counted && counted <= size + 2, "{size} of {counted}");

                self.letters.push(letter);
                if !self.holds_commits {
                    self.session.handle_committed(now, reply::queued("m@test", 1, "n1"));
                }
            }
            Action::Abort => {
                self.open = None;
                self.aborted += 1;
            }
            Action::Xclient(said) => {
                // The address says what the session may do: 198.51.100.0/24 has a connector, nobody else.
                let known = matches!(said.addr, Some(std::net::IpAddr::V4(v4)) if v4.octets()[..3] == [198, 51, 100]);
                let decided = match said.addr {
                    Some(source_addr) if known => Ok(SessionConfig { source_addr, ..config() }),
                    _ => Err(reply::service_not_available()),
                };
                self.session.handle_xclient(now, decided);
            }
            Action::Note(note) => self.notes.push(note),
            Action::Heard(_) => {}
            Action::Close { reason } => self.closed = Some(reason),
        }
    }
}

/// A session that has said `EHLO`.
pub(super) fn greeted() -> Driven {
    let mut driven = Driven::new(config());
    driven.say("EHLO client.test\r\n");
    driven
}

/// A session that has been told to send mail data.
pub(super) fn in_data(config: SessionConfig) -> Driven {
    let mut driven = Driven::new(config);
    let said = driven.say("EHLO client.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n");
    assert!(said.ends_with("354 Start mail input; end with <CRLF>.<CRLF>\r\n"), "{said}");
    driven
}

const TRANSACTION: &str = "MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n";

#[test]
fn a_letter_is_the_same_wherever_its_session_is_split() {
    let letter = "Subject: x\r\n\r\n..dot\r\n.. \r\nbody\r\n.\r\n";
    let mut whole = greeted();
    whole.say(TRANSACTION);
    let said = whole.say(&format!("{letter}MAIL FROM:<>\r\nQUIT\r\n"));
    assert_eq!(
        said,
        "250 2.6.0 <m@test> [InternalId=1, Hostname=n1] Queued mail for delivery\r\n250 2.1.0 Sender OK\r\n\
         221 2.0.0 Service closing transmission channel\r\n"
    );
    assert_eq!(whole.letters[0].bytes, b"Subject: x\r\n\r\n.dot\r\n. \r\nbody\r\n");
    let stream = format!("{letter}MAIL FROM:<>\r\nQUIT\r\n").into_bytes();
    for at in 0..stream.len() {
        let mut split = greeted();
        split.say(TRANSACTION);
        split.feed(&stream[..at]);
        split.feed(&stream[at..]);
        assert_eq!(split.said(), said, "split at {at}");
        assert_eq!(split.letters, whole.letters, "split at {at}");
        assert_eq!(split.closed, Some(CloseReason::Quit));
    }
}

#[test]
fn no_250_before_the_driver_says_so() {
    let mut driven = in_data(config());
    driven.holds_commits = true;
    assert_eq!(driven.say("x: y\r\n\r\nz\r\n.\r\nQUIT\r\n"), "");
    assert!(!driven.session.wants_input());
    assert_eq!(driven.session.poll_timeout(), None);
    driven.session.handle_committed(driven.now, reply::insufficient_system_resources());
    driven.drive();
    assert_eq!(
        driven.said(),
        "452 4.3.1 Insufficient system resources [0A1B]\r\n221 2.0.0 Service closing transmission channel\r\n"
    );
    assert_eq!(driven.session.letters(), 0);
}

/// The table of SMTP smuggling: none ends the letter, none starts another, none is kept.
#[test]
fn smuggling_never_makes_a_second_letter() {
    for (name, bytes) in [
        ("lflf", "\n.\n"),
        ("crcr", "\r.\r"),
        ("crlf", "\r.\n"),
        ("lfcr", "\n.\r"),
        ("lfcrlf", "\n.\r\n"),
        ("crlflf", "\r\n.\n"),
        ("crcrlf", "\r.\r\n"),
        ("crlfcr", "\r\n.\r"),
        ("nullbefore", "\r\n\0.\r\n"),
        ("nullafter", "\r\n.\0\r\n"),
        ("out-1", "\r\n.\r\r\n"),
        ("out-2", "\r\r\n.\r\r\n"),
        ("exim 0900", "\r\n.\nMAIL FROM:<evil@b.test>\r\n"),
    ] {
        let stream = format!(
            "Subject: x\r\n\r\ntext{bytes}MAIL FROM:<evil@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n\
             Subject: evil\r\n\r\nevil\r\n.\r\nNOOP\r\n"
        );
        for at in 0..stream.len() {
            let mut driven = in_data(config());
            driven.said();
            driven.feed(&stream.as_bytes()[..at]);
            driven.feed(&stream.as_bytes()[at..]);
            let said = driven.said();
            assert!(said.starts_with("550 5.6."), "{name} split at {at}: {said}");
            assert_eq!(said.lines().count(), 1, "{name} split at {at}: {said}");
            assert_eq!(driven.closed, Some(CloseReason::LineEndings), "{name} split at {at}");
            assert_eq!((driven.letters.len(), driven.aborted), (0, 1), "{name} split at {at}");
        }
    }
}

#[test]
fn a_second_transaction_behind_the_dot_stops_at_its_data() {
    let mut driven = in_data(config());
    let said = driven.say(&format!("x: y\r\n\r\n1\r\n.\r\n{TRANSACTION}x: y\r\n\r\n2\r\n.\r\n"));
    assert!(said.ends_with("554 5.5.0 SMTP protocol synchronization error [0A1B]\r\n"), "{said}");
    assert_eq!(driven.letters.len(), 1);
    assert_eq!(driven.closed, Some(CloseReason::Synchronization));
}

#[test]
fn nothing_said_in_the_clear_survives_starttls() {
    for injected in ["EHLO x\r\n", "MAIL FROM:<a@b.test>\r\n", "\0", "A"] {
        let mut driven = greeted();
        let said = driven.say(&format!("STARTTLS\r\n{injected}"));
        assert_eq!(said, "554 5.5.0 SMTP protocol synchronization error [0A1B]\r\n");
        assert_eq!(driven.closed, Some(CloseReason::Synchronization), "{injected:?}");
        assert!(!driven.session.is_tls());
    }
    let mut driven = greeted();
    driven.say("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nSTARTTLS\r\n");
    assert!(driven.session.is_tls() && !driven.session.in_transaction());
    assert_eq!(driven.session.helo(), None);
    assert_eq!(driven.say("DATA\r\n"), "503 5.5.2 Send hello first [0A1B]\r\n");
    let ehlo = driven.say("EHLO x.test\r\n");
    assert!(!ehlo.contains("STARTTLS") && ehlo.contains("AUTH PLAIN LOGIN\r\n"), "{ehlo}");
    assert_eq!(driven.say("STARTTLS\r\n"), "503 5.5.1 TLS is already active [0A1B]\r\n");
    assert_eq!(driven.say("DATA\r\n"), "503 5.5.2 Need mail command [0A1B]\r\n");
}

#[test]
fn nobody_is_heard_after_a_failed_handshake() {
    let mut driven = greeted();
    driven.tls_works = false;
    assert_eq!(driven.say("STARTTLS\r\n"), "220 2.0.0 SMTP server ready\r\n");
    assert_eq!(driven.closed, Some(CloseReason::TlsFailed));
    assert_eq!(driven.say("NOOP\r\n"), "");
}

#[test]
fn an_end_of_tls_within_a_letter_forgets_it_and_whatever_follows() {
    let mut driven = in_data(SessionConfig { tls: TlsMode::Implicit, ..config() });
    driven.feed(b"Subject: x\r\n\r\nhalf");
    driven.session.handle_disconnect(driven.now);
    driven.drive();
    driven.feed(b"\r\n.\r\n");
    assert_eq!((driven.letters.len(), driven.aborted), (0, 1));
    assert_eq!(driven.closed, Some(CloseReason::Disconnected));
}

#[test]
fn a_disconnect_before_the_commit_was_polled_forgets_the_letter() {
    let mut driven = in_data(config());
    driven.session.handle_bytes(driven.now, b"x: y\r\n\r\nz\r\n.\r\n");
    while !driven.session.actions.iter().any(|action| matches!(action, Action::Commit { .. })) {
        let action = driven.session.poll_action().unwrap();
        driven.act(action);
    }
    driven.session.handle_disconnect(driven.now);
    driven.drive();
    assert_eq!((driven.letters.len(), driven.aborted), (0, 1));
}

#[test]
fn a_commit_under_way_outlives_its_client() {
    let mut driven = in_data(config());
    driven.holds_commits = true;
    driven.feed(b"x: y\r\n\r\nz\r\n.\r\n");
    driven.session.handle_disconnect(driven.now);
    driven.drive();
    driven.session.handle_committed(driven.now, reply::queued("m@test", 1, "n1"));
    driven.drive();
    assert_eq!((driven.letters.len(), driven.aborted), (1, 0));
}

#[test]
fn a_letter_over_its_limit_is_read_and_refused() {
    let mut limited = config();
    limited.limits.max_message_size = 100;
    let mut driven = in_data(limited.clone());
    assert_eq!(driven.say(&format!("x: y\r\n\r\n{}\r\n", "z".repeat(200))), "");
    assert_eq!(driven.aborted, 1);
    let said = driven.say("more\r\n.\r\nNOOP\r\n");
    assert_eq!(said, "552 5.3.4 Message size exceeds fixed maximum message size [0A1B]\r\n250 2.0.0 OK\r\n");

    // RFC 1870 §3: line ends count, transparency and the end do not.
    let mut exact = in_data(limited.clone());
    assert!(exact.say(&format!("x: y\r\n\r\n..{}\r\n.\r\n", "z".repeat(89))).starts_with("250 2.6.0"));
    let mut above = in_data(limited.clone());
    assert!(above.say(&format!("x: y\r\n\r\n..{}\r\n.\r\n", "z".repeat(90))).starts_with("552 5.3.4"));

    let mut declared = Driven::new(limited.clone());
    declared.say("EHLO x.test\r\n");
    assert!(declared.say("MAIL FROM:<a@b.test> SIZE=101\r\n").starts_with("552 5.3.4 Message size"));
    assert!(declared.say("MAIL FROM:<a@b.test> SIZE=99999999999999999999\r\n").starts_with("552 5.3.4"));
    assert!(declared.say("MAIL FROM:<a@b.test> SIZE=100\r\n").starts_with("250 2.1.0"));

    let mut trusted = Driven::new(limited);
    trusted.say("EHLO x.test\r\n");
    trusted.session.handle_bytes(trusted.now, b"MAIL FROM:<a@b.test> SIZE=5000\r\n");
    assert!(matches!(trusted.session.poll_action(), Some(Action::CheckMail { size: Some(5000), .. })));
    trusted.session.bypass_size_limit();
    trusted.session.handle_mail(trusted.now, Verdict::Permit);
    trusted.drive();
    assert_eq!(trusted.said(), "250 2.1.0 Sender OK\r\n");
}

#[test]
fn an_endless_letter_is_not_read_to_its_end() {
    let mut limited = config();
    limited.limits.max_message_size = 100;
    let mut driven = in_data(limited);
    let megabyte = vec![b'x'; 1024 * 1024];
    for _ in 0..80 {
        driven.feed(&megabyte);
    }
    assert_eq!(driven.closed, Some(CloseReason::Oversize));
    assert!(driven.said().contains("552 5.3.4"));
}

#[test]
fn headers_have_limits_of_their_own() {
    let mut limited = config();
    limited.limits.max_header_size = 100;
    limited.limits.max_hop_count = 2;
    let mut driven = in_data(limited.clone());
    driven.said();
    driven.feed(format!("Subject: {}\r\n\r\nbody\r\n.\r\n", "s".repeat(100)).as_bytes());
    assert_eq!(driven.said(), "552 5.3.4 Header size exceeds fixed maximum size [0A1B]\r\n");
    assert_eq!((driven.letters.len(), driven.aborted, driven.closed), (0, 1, None));
    let mut hops = in_data(limited.clone());
    assert!(hops.say(&format!("{}\r\n.\r\n", "Received: x\r\n".repeat(2))).starts_with("250"));
    let mut loops = in_data(limited);
    let said = loops.say(&format!("{}\r\n.\r\n", "Received: x\r\n".repeat(3)));
    assert_eq!(said, "554 5.4.6 Hop count exceeded - possible mail loop [0A1B]\r\n");
    assert_eq!(loops.aborted, 1);
}

#[test]
fn a_letter_that_cannot_be_kept_is_refused_at_its_end() {
    let mut driven = in_data(config());
    driven.feed(b"x: y\r\n\r\nhalf");
    driven.session.handle_append_failed(driven.now, reply::insufficient_system_resources());
    driven.said();
    driven.feed(b"rest\r\n.\r\nNOOP\r\n");
    assert_eq!(driven.said(), "452 4.3.1 Insufficient system resources [0A1B]\r\n250 2.0.0 OK\r\n");
    assert!(driven.letters.is_empty());
    assert!(greeted().say("MAIL FROM:<full@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n").contains("452 4.3.1"));
}

#[test]
fn surplus_recipients_do_not_spoil_the_others() {
    let mut limited = config();
    limited.limits.max_recipients = 2;
    let mut driven = Driven::new(limited);
    driven.say("EHLO x.test\r\nMAIL FROM:<>\r\n");
    let said = driven.say(&"RCPT TO:<c@d.test>\r\n".repeat(1001));
    assert_eq!(said.matches("250 2.1.5 Recipient OK").count(), 2);
    assert_eq!(said.matches("452 4.5.3 Too many recipients [0A1B]").count(), 999);
    driven.say("DATA\r\n");
    driven.say("\r\n.\r\n");
    assert_eq!(driven.letters[0].envelope.recipients.len(), 2);
}

#[test]
fn a_flood_of_commands_is_answered_without_growing() {
    let mut limited = config();
    limited.limits.max_protocol_errors = 0;
    let mut session = Session::new(limited, greeted().now);
    while session.poll_action().is_some() {}
    session.handle_bytes(session.opened, &b"\r\n".repeat(32 * 1024));
    let mut answered = 0;
    while let Some(action) = session.poll_action() {
        if let Action::Send(bytes) = action {
            assert!(bytes.len() < OUTPUT_MAX + 1024);
            answered += bytes.iter().filter(|byte| **byte == b'\n').count();
        }
    }
    assert_eq!(answered, 32 * 1024);
}

#[test]
fn mail_data_is_handed_over_in_pieces() {
    let mut driven = in_data(config());
    driven.feed(b"x: y\r\n\r\n");
    driven.feed(&[b'z'; 300_000]);
    driven.feed(b"\r\n.\r\n");
    assert_eq!(driven.letters[0].bytes.len(), 300_010);
    assert!(driven.largest_append <= OUTPUT_MAX);
}

#[test]
fn too_many_errors_close() {
    let mut driven = greeted();
    for _ in 0..5 {
        assert_eq!(driven.say("NONSENSE\r\n"), "500 5.3.3 Unrecognized command [0A1B]\r\n");
    }
    let said = driven.say("NONSENSE\r\nNOOP\r\n");
    assert_eq!(said, "421 4.7.0 Too many errors on this connection, closing transmission channel [0A1B]\r\n");
    assert_eq!(driven.closed, Some(CloseReason::ProtocolErrors));
}

#[test]
fn endless_noops_are_errors() {
    let mut driven = greeted();
    driven.feed(&b"NOOP\r\n".repeat(120));
    assert_eq!(driven.closed, Some(CloseReason::ProtocolErrors));
}

#[test]
fn a_client_that_talks_before_the_greeting_has_made_one_error() {
    let mut early = Session::new(config(), greeted().now);
    let now = early.opened;
    early.handle_bytes(now, b"EHLO x.test\r\n");
    early.handle_bytes(now, b"NOOP\r\n");
    assert_eq!(early.protocol_errors, 1);
    let Some(Action::Send(bytes)) = early.poll_action() else { panic!("a greeting") };
    let said = String::from_utf8(bytes).unwrap();
    assert!(said.starts_with("220 mx.test ") && said.ends_with("250 2.0.0 OK\r\n"), "{said}");
}

#[test]
fn failed_logins_close() {
    let mut driven = Driven::new(SessionConfig { tls: TlsMode::Implicit, ..config() });
    driven.say("EHLO x.test\r\n");
    // "\0user\0wrong", "\0nobody\0pass": the same words for both.
    for attempt in ["AHVzZXIAd3Jvbmc=", "AG5vYm9keQBwYXNz"] {
        let said = driven.say(&format!("AUTH PLAIN {attempt}\r\n"));
        assert_eq!(said, "535 5.7.3 Authentication unsuccessful [0A1B]\r\n");
    }
    let said = driven.say("AUTH PLAIN AHVzZXIAd3Jvbmc=\r\n");
    assert!(said.starts_with("535 5.7.3 Authentication unsuccessful [0A1B]\r\n421 4.7.0 Too many errors"), "{said}");
    assert_eq!(driven.closed, Some(CloseReason::LogonFailures));
}

#[test]
fn credentials_are_not_read_where_they_are_not_offered() {
    let mut driven = greeted();
    for line in ["AUTH PLAIN AHVzZXIAcGFzcw==\r\n", "AUTH LOGIN\r\n", "AUTH NTLM\r\n", "AUTH PLAIN !!!\r\n"] {
        assert_eq!(driven.say(line), "504 5.7.4 Unrecognized authentication type [0A1B]\r\n", "{line}");
    }
    assert_eq!(driven.session.user(), None);
    let required = SessionConfig { tls: TlsMode::Required, auth_plaintext: vec![Mechanism::Plain], ..config() };
    let mut driven = Driven::new(required);
    assert!(!driven.say("EHLO x.test\r\n").contains("AUTH"));
    assert!(driven.say("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").starts_with("504 5.7.4"));
    assert_eq!(driven.say("MAIL FROM:<>\r\n"), "451 5.7.3 STARTTLS is required to send mail [0A1B]\r\n");
}

#[test]
fn overlong_lines_are_answered_and_skipped() {
    let mut driven = Driven::new(SessionConfig { tls: TlsMode::Implicit, ..config() });
    driven.say("EHLO x.test\r\n");
    let said = driven.say(&format!("NOOP {}\r\nNOOP\r\n", "x".repeat(600)));
    assert_eq!(said, "500 5.5.2 Line too long [0A1B]\r\n250 2.0.0 OK\r\n");
    assert!(driven.say(&format!("NOOP {}\r\n", "x".repeat(505))).starts_with("250"));
    let said = driven.say(&format!("AUTH PLAIN {}\r\nNOOP\r\n", "A".repeat(12_288)));
    assert_eq!(said, "500 5.5.6 Authentication exchange line is too long [0A1B]\r\n250 2.0.0 OK\r\n");
    driven.say("AUTH PLAIN\r\n");
    let said = driven.say(&format!("{}\r\nNOOP\r\n", "A".repeat(12_288)));
    assert_eq!(said, "500 5.5.6 Authentication exchange line is too long [0A1B]\r\n250 2.0.0 OK\r\n");
    // A 10 kB blob fits its line and is refused as what it is.
    assert!(driven.say(&format!("AUTH PLAIN {}\r\n", "A".repeat(10_000))).starts_with("501 5.5.2"));
}

#[test]
fn silence_ends_a_session() {
    let mut driven = greeted();
    let deadline = driven.session.poll_timeout().unwrap();
    assert_eq!(deadline, driven.now + Duration::from_secs(300));
    driven.now += Duration::from_secs(200);
    driven.feed(b"NOO");
    assert_eq!(driven.session.poll_timeout(), Some(deadline), "half a line is no progress");
    driven.session.handle_timeout(driven.now);
    driven.drive();
    assert_eq!(driven.closed, None, "too early");
    driven.now = deadline;
    driven.said();
    driven.session.handle_timeout(driven.now);
    driven.drive();
    assert_eq!(driven.said(), "451 4.7.0 Timeout waiting for client input [0A1B]\r\n");
    assert_eq!(driven.closed, Some(CloseReason::Inactivity));
}

#[test]
fn an_octet_now_and_then_is_not_activity() {
    let mut driven = in_data(config());
    for _ in 0..299 {
        driven.now += Duration::from_secs(1);
        driven.feed(b"x");
    }
    driven.now += Duration::from_secs(1);
    driven.session.handle_timeout(driven.now);
    driven.drive();
    assert_eq!((driven.closed, driven.aborted), (Some(CloseReason::Inactivity), 1));
}

#[test]
fn age_ends_a_session_only_between_letters() {
    let mut driven = in_data(config());
    for _ in 0..60 {
        driven.now += Duration::from_secs(60);
        driven.feed(&[b'x'; 2000]);
        driven.session.handle_timeout(driven.now);
        driven.drive();
        assert_eq!(driven.closed, None);
    }
    driven.said();
    driven.feed(b"\r\n.\r\n");
    driven.session.handle_timeout(driven.now);
    driven.drive();
    let said = driven.said();
    assert!(said.starts_with("250 2.6.0") && said.ends_with("421 4.4.1 Connection timed out [0A1B]\r\n"), "{said}");
    assert_eq!(driven.closed, Some(CloseReason::ConnectionTimeout));
}

#[test]
fn a_transaction_without_a_letter_does_not_keep_a_session_for_ever() {
    let mut driven = greeted();
    driven.feed(b"MAIL FROM:<>\r\n");
    for minutes in 1..=20 {
        assert_eq!(driven.closed, None, "minute {minutes}");
        driven.now += Duration::from_secs(60);
        driven.feed(b"NOOP\r\n");
        driven.session.handle_timeout(driven.now);
        driven.drive();
    }
    assert_eq!(driven.closed, Some(CloseReason::ConnectionTimeout));
}

#[test]
fn a_stop_waits_for_the_letter_under_way() {
    let mut idle = greeted();
    idle.said();
    idle.session.handle_shutdown(idle.now);
    idle.drive();
    assert_eq!(idle.said(), "421 4.3.2 Service not available, closing transmission channel [0A1B]\r\n");

    let mut busy = in_data(config());
    busy.session.handle_shutdown(busy.now);
    busy.drive();
    assert_eq!(busy.closed, None);
    let said = busy.say("x: y\r\n\r\nz\r\n.\r\nMAIL FROM:<>\r\n");
    assert!(said.starts_with("250 2.6.0") && said.contains("\r\n421 4.3.2 Service not available"), "{said}");
    assert_eq!(said.lines().count(), 2);
    assert_eq!(busy.closed, Some(CloseReason::Shutdown));
}

#[test]
fn a_closing_verdict_closes() {
    let mut driven = greeted();
    assert_eq!(driven.say("MAIL FROM:<close@b.test>\r\nNOOP\r\n"), "421 4.3.2 Service not available [0A1B]\r\n");
    assert_eq!(driven.closed, Some(CloseReason::Refused));
}

#[test]
fn answers_to_questions_that_were_not_asked_change_nothing() {
    let mut driven = greeted();
    let now = driven.now;
    driven.said();
    driven.session.handle_auth(now, AuthOutcome::Accepted);
    driven.session.handle_mail(now, Verdict::Permit);
    driven.session.handle_rcpt(now, Verdict::Permit);
    driven.session.handle_data_ready(now, Ok(()));
    driven.session.handle_committed(now, reply::queued("x", 1, "n"));
    driven.session.handle_tls_established(now);
    driven.drive();
    assert_eq!(driven.said(), "");
    assert!(driven.session.user().is_none() && !driven.session.is_tls() && !driven.session.in_transaction());
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic_and_nothing_unfinished_is_kept(
        pieces in proptest::collection::vec(0usize..34, 0..40),
        noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40),
        size in 1usize..40,
    ) {
        const WORDS: [&str; 34] = [
            "BDAT 6\r\nx: y\r\n", "BDAT 4 LAST\r\n\r\nz\n", "BDAT 4\r\n\r\nzz", "BDAT 0 LAST\r\n", "BDAT 0\r\n",
            "BDAT 9999999\r\n", "BDAT x\r\n", "XCLIENT ADDR=198.51.100.1\r\n", "XCLIENT ADDR=1.1.1.1\r\n",
            "MAIL FROM:<a@b.test> BODY=BINARYMIME SMTPUTF8\r\n",
            "EHLO a.test\r\n", "HELO a.test\r\n", "MAIL FROM:<a@b.test>\r\n", "MAIL FROM:<a@b.test> SIZE=9\r\n",
            "RCPT TO:<c@d.test>\r\n", "RCPT TO:<deny@d.test>\r\n", "DATA\r\n", "DATA\r\n", "x: y\r\n\r\n", ".\r\n", ".\r\n",
            "STARTTLS\r\n", "AUTH LOGIN\r\n", "dXNlcg==\r\n", "cGFzcw==\r\n", "AUTH PLAIN AHVzZXIAcGFzcw==\r\n", "*\r\n",
            "RSET\r\n", "QUIT\r\n", "\n.\n", "\r", "\0", "Received: x\r\n", "text",
        ];
        let mut limited = config();
        limited.limits.max_protocol_errors = 0;
        limited.auth_plaintext = vec![Mechanism::Plain, Mechanism::Login];
        limited.xclient = size % 2 == 0;
        limited.offer.binary_mime = size % 3 == 0;
        let binary = limited.offer.binary_mime;
        let mut stream: Vec<u8> = pieces.iter().flat_map(|index| WORDS[*index].bytes()).collect();
        stream.extend_from_slice(&noise);
        let mut driven = Driven::new(limited);
        for piece in stream.chunks(size) {
            driven.feed(piece);
        }
        driven.session.handle_disconnect(driven.now);
        driven.drive();
        proptest::prop_assert!(driven.closed.is_some());
        proptest::prop_assert!(driven.open.is_none() || driven.aborted > 0 || driven.letters.is_empty());
        for letter in &driven.letters {
            proptest::prop_assert!(binary || !letter.bytes.contains(&0));
        }
    }
}

#[test]
fn an_administrator_ends_a_session_but_not_between_a_letter_and_its_answer() {
    let mut idle = greeted();
    assert_eq!(idle.session.state(), SessionState::Ready);
    idle.said();
    idle.session.handle_killed(idle.now);
    idle.drive();
    assert_eq!(idle.said(), "421 4.3.2 Service not available, closing transmission channel [0A1B]\r\n");
    assert_eq!(idle.closed, Some(CloseReason::Killed));

    let mut sending = in_data(config());
    assert_eq!(sending.session.state(), SessionState::Data);
    sending.feed(b"x: y\r\n\r\nz\r\n");
    sending.session.handle_killed(sending.now);
    sending.drive();
    assert!(sending.said().ends_with("421 4.3.2 Service not available, closing transmission channel [0A1B]\r\n"));
    assert_eq!((sending.letters.len(), sending.aborted), (0, 1));

    let mut complete = in_data(config());
    complete.holds_commits = true;
    assert_eq!(complete.say("x: y\r\n\r\nz\r\n.\r\n"), "");
    assert_eq!(complete.session.state(), SessionState::Commit);
    complete.session.handle_killed(complete.now);
    complete.drive();
    assert_eq!((complete.said().as_str(), complete.closed), ("", None), "it gets its answer first");
    complete.session.handle_committed(complete.now, reply::queued("m@test", 1, "n1"));
    complete.drive();
    complete.session.handle_killed(complete.now);
    complete.drive();
    let said = complete.said();
    assert!(said.starts_with("250 2.6.0") && said.contains("\r\n421 4.3.2 "), "{said}");
    assert_eq!((complete.letters.len(), complete.aborted), (1, 0));
}
