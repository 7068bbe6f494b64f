//! One function for each parser that a stranger's octets reach. Each takes any octets and panics when a promise of the
//! parser does not hold; that it does not panic by itself is the least of them. Used by the fuzz targets, by the long
//! run beside them, and by the short run in the gate.

use std::time::{Duration, Instant};

use crate::mail::header_firewall;
use crate::mail::reply;
use crate::mail::trace_header::{HeaderEnd, HeaderScan};
use crate::mail::{Domain, ForwardPath, Mailbox, ReversePath};
use crate::proxy_protocol::{HEADER_BYTES_MAX, Parsed, parse};
use crate::smtp::command::{Command, line_limit};
use crate::smtp::data::{Collected, HeaderCollector};
use crate::smtp::line::LineBuffer;
use crate::smtp::{Action, AuthOutcome, Leniency, Mechanism, Session, SessionConfig, TlsMode, Verdict};

/// A parser and what it is fed with at first.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: &'static [&'static [u8]],
}

/// Every one of them.
pub const TARGETS: [Target; 7] = [
    Target { name: "line", run: line, seeds: &[b"\x03EHLO a\r\nNOOP\r\n\r\n", b"\x01a\rb\nc\r\n", b"\x00\r\r\n\n"] },
    Target {
        name: "command",
        run: command,
        seeds: &[
            b"MAIL FROM:<a@b.example> SIZE=10 BODY=8BITMIME RET=HDRS ENVID=a+2Bb SMTPUTF8 AUTH=<>",
            b"RCPT TO:<@h.example:\"a b\"@[IPv6:::1]> NOTIFY=SUCCESS,DELAY ORCPT=utf-8;\\x{FC}@x",
            b"BDAT 12 LAST",
            b"XCLIENT ADDR=IPV6:::1 PORT=1 PROTO=ESMTP HELO=x LOGIN=[UNAVAILABLE]",
            b"AUTH PLAIN AHVzZXIAcGFzcw==",
            b"EHLO [192.0.2.1]",
        ],
    },
    Target {
        name: "address",
        run: address,
        seeds: &[
            b"a@b.example",
            b"\"a\\\"@b\"@x.example",
            "ü@bücher.example".as_bytes(),
            b"@a,@[192.0.2.1]:c@d",
            b"postmaster",
            b"a@[IPv6:2001:db8::1]",
        ],
    },
    Target {
        name: "bdat",
        run: bdat,
        seeds: &[
            b"\x05BDAT 6\r\nA: b\r\nBDAT 3 LAST\r\n\r\nz",
            b"\x00BDAT 0 LAST\r\n",
            b"\x02DATA\r\nA: b\r\n\r\n..\r\n.\r\nRSET\r\n",
            b"\x07BDAT 20\r\nMAIL FROM:<a@b>\r\n\r\n.",
        ],
    },
    Target {
        name: "proxy",
        run: proxy,
        seeds: &[
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 25\r\nEHLO",
            b"PROXY TCP6 ::1 ::2 1 2\r\n",
            b"PROXY UNKNOWN\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x02\x04\0\0\x19",
            b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\x7f\0\0\x01\x7f\0\0\x02\x04\0\0\x19\x05\0\x04abcd",
        ],
    },
    Target {
        name: "sasl",
        run: sasl,
        seeds: &[
            b"\x03AUTH PLAIN\r\nAHVzZXIAcGFzcw==\r\n",
            b"\x01AUTH LOGIN\r\ndXNlcg==\r\ncGFzcw==\r\n",
            b"\x00AUTH LOGIN =\r\n*\r\n",
            b"\x02AUTH SCRAM-SHA-256 biwsbj11c2VyLHI9YWJj\r\nYz1iaXdzLHI9YWJjZCxwPUFBPT0=\r\n",
        ],
    },
    Target {
        name: "header",
        run: header,
        seeds: &[
            b"\x04Received: from a\r\n\tby b; c\r\nSubject: x\r\n y\r\n\r\nbody",
            b"\x01Message-ID: <a@b>\r\nResent-To: c\r\nX-MS-Exchange-Organization-A: b\r\n",
            b"\x00hello\r\n",
        ],
    },
];

/// The first octet says in what pieces the rest comes.
fn pieces(data: &[u8]) -> (impl Iterator<Item = &[u8]>, &[u8]) {
    let (first, rest) = data.split_first().map_or((1, data), |(first, rest)| (usize::from(*first), rest));
    (rest.chunks(first + 1), rest)
}

/// Lines are the same however they come, hold neither CR nor LF, and are not longer than their limit.
pub fn line(data: &[u8]) {
    let (pieces, whole) = pieces(data);
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut buffer, mut lines) = (LineBuffer::default(), Vec::new());
        for piece in pieces {
            buffer.push(piece);
            while let Some(line) = buffer.next_line(line_limit) {
                if let Ok(line) = &line {
                    assert!(!line.contains(&b'\r') && !line.contains(&b'\n'));
                    assert!(line.len() + 2 <= line_limit(line));
                }
                lines.push(line);
            }
        }
        lines
    };
    let (mut pieces, mut once) = (pieces, std::iter::once(whole));
    assert_eq!(read(&mut pieces), read(&mut once));
}

/// A command that was read has addresses that read back, and nothing that could end a line.
pub fn command(data: &[u8]) {
    match Command::parse(data) {
        Ok(Command::Mail(mail)) => {
            assert_eq!(mail.reverse_path.to_string().parse::<ReversePath>().as_ref(), Ok(&mail.reverse_path));
            assert!(mail.smtp_utf8 || mail.reverse_path.to_string().is_ascii());
            assert!(mail.envid.is_none_or(|envid| envid.bytes().all(|byte| matches!(byte, b' '..=b'~'))));
        }
        Ok(Command::Rcpt(rcpt)) => {
            assert_eq!(rcpt.forward_path.to_string().parse::<ForwardPath>().as_ref(), Ok(&rcpt.forward_path));
            assert!(rcpt.orcpt.is_none_or(|orcpt| !orcpt.to_string().chars().any(char::is_control)));
        }
        Ok(Command::Helo(name) | Command::Ehlo(name)) => assert!(name.is_ascii() && !name.contains(['\r', '\n', ' '])),
        Ok(_) | Err(_) => {}
    }
}

/// An address that was read has one spelling, which reads back; its domain is ASCII in lower case.
pub fn address(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for mailbox in [Mailbox::parse(&text), Mailbox::parse_utf8(&text)].into_iter().flatten() {
        let written = mailbox.to_string();
        assert_eq!(Mailbox::parse_utf8(&written).as_ref(), Ok(&mailbox), "{written:?}");
        assert!(!written.chars().any(char::is_control));
        let domain = mailbox.domain().as_str();
        assert!(domain.is_ascii() && !domain.bytes().any(|byte| byte.is_ascii_uppercase()));
        assert!(domain.len() <= 255 && mailbox.local_part().len() <= 64);
    }
    if let Ok(domain) = Domain::parse_utf8(&text) {
        assert_eq!(Domain::parse(domain.as_str()).as_ref(), Ok(&domain));
    }
    let _ = (ReversePath::parse_path(&text), ForwardPath::parse_path_utf8(&format!("<{text}>")));
}

/// What a session's driver holds of a letter.
#[derive(Default)]
struct Kept {
    letters: Vec<Vec<u8>>,
    open: Option<Vec<u8>>,
    begun: usize,
}

/// Does what the session asks, as a relay does that takes everything.
fn drive(session: &mut Session, now: Instant, kept: &mut Kept) {
    while let Some(action) = session.poll_action() {
        match action {
            Action::CheckMail { .. } => session.handle_mail(now, Verdict::Permit),
            Action::CheckRcpt { .. } => session.handle_rcpt(now, Verdict::Permit),
            Action::CheckAuth { .. } => session.handle_auth(now, AuthOutcome::Refused),
            Action::SaslMessage { first, .. } => {
                let challenge = AuthOutcome::Challenge(b"r=abcd,s=AA==,i=4096".to_vec());
                session.handle_auth(now, if first { challenge } else { AuthOutcome::Refused });
            }
            Action::BeginData { envelope } => {
                assert!(!envelope.recipients.is_empty());
                kept.begun += 1;
                kept.open = Some(Vec::new());
                session.handle_data_ready(now, Ok(()));
            }
            Action::Header { block, .. } => {
                let open = kept.open.as_mut().expect("a letter was begun");
                assert!(open.is_empty(), "the header comes first");
                open.extend(block);
            }
            Action::Append(bytes) => kept.open.as_mut().expect("a letter was begun").extend(bytes),
            Action::Commit { .. } => {
                kept.letters.push(kept.open.take().expect("a letter was begun"));
                session.handle_committed(now, reply::queued("m@x", 1, "x"));
            }
            Action::Abort => kept.open = None,
            Action::StartTls => session.handle_tls_established(now),
            Action::Xclient(_) => session.handle_xclient(now, Ok(config())),
            _ => {}
        }
    }
}

fn config() -> SessionConfig {
    let mut config = SessionConfig::new("mx.test", [192, 0, 2, 7].into());
    config.limits.max_message_size = 4096;
    config.limits.max_header_size = 1024;
    config.limits.max_protocol_errors = 0;
    config.limits.max_logon_failures = 0;
    config.tls = TlsMode::Available;
    config.auth_plaintext = vec![Mechanism::Plain, Mechanism::Login, Mechanism::ScramSha256];
    config.auth_tls = config.auth_plaintext.clone();
    config.session_id = "0A".to_owned();
    config
}

/// Whether every CR has its LF and every LF its CR, and there is no NUL.
fn is_text(letter: &[u8]) -> bool {
    let mut after_cr = false;
    for &byte in letter {
        if (byte == b'\n') != after_cr || byte == 0 {
            return false;
        }
        after_cr = byte == b'\r';
    }
    !after_cr
}

fn converse(config: SessionConfig, start: &[u8], data: &[u8]) -> Vec<Vec<u8>> {
    let now = Instant::now();
    let (mut session, mut kept) = (Session::new(config, now), Kept::default());
    drive(&mut session, now, &mut kept);
    session.handle_bytes(now, start);
    drive(&mut session, now, &mut kept);
    let (pieces, _) = pieces(data);
    for piece in pieces {
        session.handle_bytes(now, piece);
        drive(&mut session, now, &mut kept);
        assert!(session.is_closed() || session.wants_input());
    }
    // Silence ends it, whatever it waits for.
    let mut waited = 0;
    while let Some(deadline) = session.poll_timeout() {
        session.handle_timeout(deadline + Duration::from_millis(1));
        drive(&mut session, now, &mut kept);
        waited += 1;
        assert!(waited < 3, "the session waits for ever");
    }
    session.handle_disconnect(now);
    drive(&mut session, now, &mut kept);
    assert!(session.is_closed());
    assert!(kept.open.is_none(), "an unfinished letter is forgotten");
    assert!(kept.letters.len() <= kept.begun);
    kept.letters
}

/// Behind an envelope: chunks, mail data and commands in any order. What is kept is lines, and small enough.
pub fn bdat(data: &[u8]) {
    let envelope = b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n";
    for letter in converse(config(), envelope, data) {
        assert!(is_text(&letter));
        assert!(letter.len() <= 4096 + 2);
    }
    let mut lenient = config();
    lenient.leniencies = Leniency::ALL.into_iter().collect();
    for letter in converse(lenient, envelope, data) {
        assert!(is_text(&letter));
    }
}

/// A header that is complete does not change when more comes behind it, and no prefix of it is another.
pub fn proxy(data: &[u8]) {
    let whole = parse(data);
    if let Parsed::Header { consumed, header } = &whole {
        assert!(*consumed <= data.len());
        let Parsed::Header { consumed: again, header: same } = parse(&data[..*consumed]) else {
            panic!("a whole header is one without what follows");
        };
        assert_eq!((again, &same), (*consumed, header));
    }
    for end in 0..data.len().min(HEADER_BYTES_MAX) {
        match (parse(&data[..end]), &whole) {
            (Parsed::Header { consumed, .. }, Parsed::Header { consumed: all, .. }) => assert_eq!(consumed, *all),
            (Parsed::Header { .. }, _) => panic!("more octets unmake a header"),
            _ => {}
        }
    }
}

/// An exchange ends in a question to the driver or in an error, and never in a letter.
pub fn sasl(data: &[u8]) {
    let letters = converse(SessionConfig { tls: TlsMode::Implicit, ..config() }, b"EHLO x.test\r\n", data);
    for letter in letters {
        assert!(is_text(&letter));
    }
}

/// The header ends at the same octet however it comes, and what is stripped of it are whole fields.
pub fn header(data: &[u8]) {
    let (pieces, letter) = pieces(data);
    let mut whole = HeaderScan::new();
    whole.push(letter);
    whole.finish();
    let mut collector = HeaderCollector::new(1024);
    let (mut collected, mut tail) = (Collected::More, Vec::new());
    for piece in pieces {
        if collected == Collected::More {
            collected = collector.push(piece);
        } else {
            tail.extend_from_slice(piece);
        }
    }
    if collected == Collected::More {
        collected = collector.finish();
    }
    if let Collected::Header { header, body, facts } = collected {
        assert_eq!(&facts, whole.facts());
        let added = if facts.end == Some(HeaderEnd::EmptyLine) { 0 } else { 2 };
        assert_eq!(header.len() - added + body.len() + tail.len(), letter.len());
        assert!(header.len() <= 1024 + 2);
        let (kept, _) = header_firewall::strip(header, false);
        let (again, stripped) = header_firewall::strip(kept.clone(), false);
        assert_eq!((again, stripped), (kept, header_firewall::Stripped::default()));
    }
}
