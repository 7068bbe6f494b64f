//! What clients do to `AUTH`, on purpose and by accident (RFC 4954, RFC 4616, RFC 4422): each row is a claim.
#![allow(clippy::unwrap_used)]

use super::tests::{Driven, config};
use super::{AuthOutcome, CloseReason, Limits, SessionConfig, TlsMode};
use crate::smtp::Mechanism;
use crate::smtp::sasl::encode;

/// The test driver's side of SCRAM and EXTERNAL: it wants the messages "first" and "final", and then the client's
/// empty line.
pub(super) fn answer(mechanism: Mechanism, first: bool, message: &[u8]) -> AuthOutcome {
    match (mechanism, first, message) {
        (Mechanism::External, true, b"" | b"cert") => AuthOutcome::AcceptedAs("cert".to_owned()),
        (Mechanism::External, ..) => AuthOutcome::Refused,
        (_, true, b"first") => AuthOutcome::Challenge(b"server first".to_vec()),
        (_, false, b"final") => AuthOutcome::Challenge(b"v=proof".to_vec()),
        (_, false, b"") => AuthOutcome::AcceptedAs("user".to_owned()),
        (_, false, b"busy") => AuthOutcome::Unavailable,
        (_, false, b"wrong") => AuthOutcome::Refused,
        _ => AuthOutcome::Malformed,
    }
}

fn every_mechanism() -> SessionConfig {
    SessionConfig {
        tls: TlsMode::Implicit,
        auth_tls: vec![
            Mechanism::ScramSha256Plus,
            Mechanism::ScramSha256,
            Mechanism::External,
            Mechanism::Login,
            Mechanism::Plain,
        ],
        limits: Limits { max_protocol_errors: 0, max_logon_failures: 0, ..Limits::default() },
        ..config()
    }
}

fn greeted(config: SessionConfig) -> Driven {
    let mut driven = Driven::new(config);
    driven.say("EHLO printer.example\r\n");
    driven
}

const OK: &str = "235 2.7.0 Authentication successful\r\n";
const WRONG: &str = "535 5.7.3 Authentication unsuccessful [0A1B]\r\n";
const MALFORMED: &str = "501 5.5.2 Invalid authentication response [0A1B]\r\n";
const CANCELLED: &str = "501 5.7.0 Authentication cancelled [0A1B]\r\n";
const NOT_OFFERED: &str = "504 5.7.4 Unrecognized authentication type [0A1B]\r\n";
const SEQUENCE: &str = "503 5.5.1 ";

#[test]
fn the_table_of_exchanges_is_answered_line_for_line() {
    let e = |text: &str| encode(text.as_bytes());
    let good = e("\0user\0pass");
    // What the client says, line by line, and what it hears to each.
    let rows: Vec<(&str, Vec<(String, &str)>)> = vec![
        ("PLAIN inline", vec![(format!("AUTH PLAIN {good}"), OK)]),
        ("PLAIN in lower case", vec![(format!("auth plain {good}"), OK)]),
        ("PLAIN after a challenge", vec![("AUTH PLAIN".into(), "334 \r\n"), (good.clone(), OK)]),
        ("PLAIN as oneself", vec![(format!("AUTH PLAIN {}", e("user\0user\0pass")), OK)]),
        ("PLAIN as somebody else", vec![(format!("AUTH PLAIN {}", e("boss\0user\0pass")), WRONG)]),
        ("PLAIN wrong password", vec![(format!("AUTH PLAIN {}", e("\0user\0nope")), WRONG)]),
        ("PLAIN unknown user", vec![(format!("AUTH PLAIN {}", e("\0ghost\0pass")), WRONG)]),
        ("PLAIN empty", vec![("AUTH PLAIN =".into(), MALFORMED)]),
        ("PLAIN bad base64", vec![("AUTH PLAIN not-base64!".into(), MALFORMED)]),
        ("PLAIN base64 of wrong length", vec![("AUTH PLAIN AGE".into(), MALFORMED)]),
        ("PLAIN no NUL", vec![(format!("AUTH PLAIN {}", e("userpass")), MALFORMED)]),
        ("PLAIN one NUL", vec![(format!("AUTH PLAIN {}", e("user\0pass")), MALFORMED)]),
        ("PLAIN three NULs", vec![(format!("AUTH PLAIN {}", e("\0user\0pass\0")), MALFORMED)]),
        ("PLAIN no user", vec![(format!("AUTH PLAIN {}", e("\0\0pass")), MALFORMED)]),
        ("PLAIN no password", vec![(format!("AUTH PLAIN {}", e("\0user\0")), WRONG)]),
        ("PLAIN with a line end in its user", vec![(format!("AUTH PLAIN {}", e("\0us\r\ner\0pass")), MALFORMED)]),
        ("PLAIN 10 kB", vec![(format!("AUTH PLAIN {}", "A".repeat(10_000)), MALFORMED)]),
        ("PLAIN cancelled", vec![("AUTH PLAIN".into(), "334 \r\n"), ("*".into(), CANCELLED)]),
        ("PLAIN too many words", vec![(format!("AUTH PLAIN {good} x"), "501 5.5.4 Invalid arguments [0A1B]\r\n")]),
        (
            "LOGIN",
            vec![("AUTH LOGIN".into(), "334 VXNlcm5hbWU6\r\n"), (e("user"), "334 UGFzc3dvcmQ6\r\n"), (e("pass"), OK)],
        ),
        ("LOGIN inline user", vec![(format!("AUTH LOGIN {}", e("user")), "334 UGFzc3dvcmQ6\r\n"), (e("pass"), OK)]),
        ("LOGIN wrong", vec![(format!("AUTH LOGIN {}", e("user")), "334 UGFzc3dvcmQ6\r\n"), (e("nope"), WRONG)]),
        ("LOGIN empty user", vec![("AUTH LOGIN =".into(), MALFORMED)]),
        ("LOGIN cancelled at the user", vec![("AUTH LOGIN".into(), "334 VXNlcm5hbWU6\r\n"), ("*".into(), CANCELLED)]),
        (
            "LOGIN cancelled at the password",
            vec![(format!("AUTH LOGIN {}", e("user")), "334 UGFzc3dvcmQ6\r\n"), ("*".into(), CANCELLED)],
        ),
        (
            "LOGIN NUL in the password",
            vec![(format!("AUTH LOGIN {}", e("user")), "334 UGFzc3dvcmQ6\r\n"), (e("pa\0ss"), MALFORMED)],
        ),
        (
            "LOGIN 10 kB password",
            vec![(format!("AUTH LOGIN {}", e("user")), "334 UGFzc3dvcmQ6\r\n"), ("A".repeat(10_000), MALFORMED)],
        ),
        (
            "SCRAM inline",
            vec![
                (format!("AUTH SCRAM-SHA-256 {}", e("first")), "334 c2VydmVyIGZpcnN0\r\n"),
                (e("final"), "334 dj1wcm9vZg==\r\n"),
                (String::new(), OK),
            ],
        ),
        (
            "SCRAM after a challenge",
            vec![
                ("AUTH SCRAM-SHA-256".into(), "334 \r\n"),
                (e("first"), "334 c2VydmVyIGZpcnN0\r\n"),
                (e("wrong"), WRONG),
            ],
        ),
        (
            "SCRAM cancelled after our proof",
            vec![
                (format!("AUTH SCRAM-SHA-256 {}", e("first")), "334 c2VydmVyIGZpcnN0\r\n"),
                (e("final"), "334 dj1wcm9vZg==\r\n"),
                ("*".into(), CANCELLED),
            ],
        ),
        ("SCRAM nonsense", vec![(format!("AUTH SCRAM-SHA-256 {}", e("hello")), MALFORMED)]),
        ("SCRAM 10 kB", vec![(format!("AUTH SCRAM-SHA-256 {}", "A".repeat(10_000)), MALFORMED)]),
        (
            "SCRAM when nobody can check",
            vec![
                (format!("AUTH SCRAM-SHA-256 {}", e("first")), "334 c2VydmVyIGZpcnN0\r\n"),
                (e("busy"), "454 4.7.0 Temporary authentication failure [0A1B]\r\n"),
            ],
        ),
        ("-PLUS without a channel to bind", vec![("AUTH SCRAM-SHA-256-PLUS".into(), NOT_OFFERED)]),
        ("EXTERNAL without a certificate", vec![("AUTH EXTERNAL =".into(), NOT_OFFERED)]),
        ("a mechanism of others", vec![("AUTH NTLM TlRMTVNTUAAB".into(), NOT_OFFERED)]),
        ("CRAM-MD5", vec![("AUTH CRAM-MD5".into(), NOT_OFFERED)]),
        ("no mechanism", vec![("AUTH".into(), "501 5.5.4 Invalid arguments [0A1B]\r\n")]),
    ];
    for (name, lines) in rows {
        let mut driven = greeted(every_mechanism());
        for (said, expected) in lines {
            let heard = driven.say(&format!("{said}\r\n"));
            assert_eq!(heard, expected, "{name}: {}", &said[..said.len().min(60)]);
        }
        // Whatever came of it, the session stands where commands are read.
        assert_eq!(driven.say("NOOP\r\n"), "250 2.0.0 OK\r\n", "{name}");
    }
}

#[test]
fn a_session_logs_in_once() {
    let good = encode(b"\0user\0pass");
    let mut driven = greeted(every_mechanism());
    assert_eq!(driven.say(&format!("AUTH PLAIN {good}\r\n")), OK);
    assert_eq!(driven.session.user(), Some("user"));
    assert!(driven.say(&format!("AUTH PLAIN {good}\r\n")).starts_with(SEQUENCE));
    // RFC 4954 §4: RSET does not undo it.
    driven.say("RSET\r\n");
    assert!(driven.say("AUTH LOGIN\r\n").starts_with(SEQUENCE));
}

#[test]
fn no_login_inside_a_transaction_nor_before_ehlo() {
    let good = encode(b"\0user\0pass");
    let mut driven = Driven::new(every_mechanism());
    assert!(driven.say(&format!("AUTH PLAIN {good}\r\n")).starts_with("503 5.5.2 Send hello first"));
    driven.say("HELO printer.example\r\n");
    assert!(driven.say(&format!("AUTH PLAIN {good}\r\n")).starts_with("503 5.5.2 Send hello first"));
    driven.say("EHLO printer.example\r\nMAIL FROM:<a@b.example>\r\n");
    assert!(driven.say(&format!("AUTH PLAIN {good}\r\n")).starts_with(SEQUENCE));
    driven.say("RSET\r\n");
    assert_eq!(driven.say(&format!("AUTH PLAIN {good}\r\n")), OK);
}

#[test]
fn before_tls_nothing_is_offered_and_nothing_is_read() {
    let good = encode(b"\0user\0pass");
    let mut before = every_mechanism();
    before.tls = TlsMode::Available;
    let mut driven = greeted(before);
    assert!(!driven.say("EHLO printer.example\r\n").contains("AUTH"));
    for mechanism in ["PLAIN", "LOGIN", "SCRAM-SHA-256", "EXTERNAL"] {
        assert_eq!(driven.say(&format!("AUTH {mechanism} {good}\r\n")), NOT_OFFERED, "{mechanism}");
        assert_eq!(driven.session.user(), None);
    }
    driven.say("STARTTLS\r\n");
    let offer = driven.say("EHLO printer.example\r\n");
    assert!(offer.contains("AUTH SCRAM-SHA-256 LOGIN PLAIN\r\n") && !offer.contains("STARTTLS"), "{offer}");
    assert_eq!(driven.say(&format!("AUTH PLAIN {good}\r\n")), OK);
}

#[test]
fn what_the_connection_brings_decides_the_rest_of_the_offer() {
    let mut driven = Driven::new(every_mechanism());
    let possible = vec![Mechanism::ScramSha256Plus, Mechanism::External];
    driven.session.handle_tls_facts(possible, Some("cert".to_owned()));
    let offer = driven.say("EHLO printer.example\r\n");
    assert!(offer.contains("AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL LOGIN PLAIN\r\n"), "{offer}");
    assert_eq!(driven.session.user(), Some("cert"), "the certificate alone says who it is");
    assert_eq!(driven.say(&format!("AUTH EXTERNAL {}\r\n", encode(b"boss"))), WRONG);
    assert_eq!(driven.say("AUTH EXTERNAL =\r\n"), OK);
    assert!(driven.say("AUTH PLAIN\r\n").starts_with(SEQUENCE));
}

#[test]
fn a_connector_that_offers_no_plus_gets_none_from_its_connection() {
    let mut driven = Driven::new(SessionConfig { auth_tls: vec![Mechanism::Plain], ..every_mechanism() });
    driven.session.handle_tls_facts(vec![Mechanism::ScramSha256Plus, Mechanism::External], None);
    assert!(driven.say("EHLO printer.example\r\n").contains("AUTH PLAIN\r\n"));
    assert_eq!(driven.say("AUTH SCRAM-SHA-256-PLUS\r\n"), NOT_OFFERED);
}

#[test]
fn unknown_users_and_wrong_passwords_read_the_same() {
    let heard = |secret: &str| greeted(every_mechanism()).say(&format!("AUTH PLAIN {}\r\n", encode(secret.as_bytes())));
    assert_eq!(heard("\0ghost\0pass"), heard("\0user\0nope"));
}

#[test]
fn failed_logins_end_the_session_at_their_limit() {
    let wrong = format!("AUTH PLAIN {}\r\n", encode(b"\0user\0nope"));
    for (limit, survived) in [(1, 0), (3, 2), (10, 9)] {
        let mut config = every_mechanism();
        config.limits.max_logon_failures = limit;
        let mut driven = greeted(config);
        for _ in 0..survived {
            assert_eq!(driven.say(&wrong), WRONG);
        }
        let last = driven.say(&wrong);
        assert!(last.starts_with(WRONG) && last.contains("421 4.7.0 Too many errors"), "{last}");
        assert_eq!(driven.closed, Some(CloseReason::LogonFailures));
    }
    let mut driven = greeted(every_mechanism());
    for _ in 0..50 {
        assert_eq!(driven.say(&wrong), WRONG, "0 means never");
    }
}

#[test]
fn commands_behind_an_exchange_are_its_answers_and_not_commands() {
    // AUTH is a synchronisation point (RFC 2920 §3.1 leaves it out of pipelining): what comes behind it in one write
    // is read as the exchange's next line, never as mail.
    let mut driven = greeted(every_mechanism());
    let heard = driven.say("AUTH PLAIN\r\nMAIL FROM:<a@b.example>\r\nNOOP\r\n");
    assert_eq!(heard, format!("334 \r\n{MALFORMED}250 2.0.0 OK\r\n"));
    assert!(!driven.session.in_transaction());
    // After one that has ended they are commands again, decided in order.
    let good = encode(b"\0user\0pass");
    let heard = driven.say(&format!("AUTH PLAIN {good}\r\nMAIL FROM:<a@b.example>\r\n"));
    assert_eq!(heard, format!("{OK}250 2.1.0 Sender OK\r\n"));
}

#[test]
fn a_line_without_end_is_refused_at_its_limit() {
    let mut driven = greeted(every_mechanism());
    driven.say("AUTH LOGIN\r\n");
    let heard = driven.say(&format!("{}\r\n", "A".repeat(13_000)));
    assert!(heard.starts_with("500 5.5.6 Authentication exchange line is too long"), "{heard}");
    assert_eq!(driven.say("NOOP\r\n"), "250 2.0.0 OK\r\n");
}

#[test]
fn no_secret_stands_in_what_a_session_shows_of_itself() {
    let mut driven = greeted(every_mechanism());
    driven.session.handle_bytes(driven.now, format!("AUTH LOGIN {}\r\n", encode(b"user")).as_bytes());
    driven.drive();
    driven.session.handle_bytes(driven.now, format!("{}\r\n", encode(b"hunter2")).as_bytes());
    let mut shown = String::new();
    while let Some(action) = driven.session.poll_action() {
        shown.push_str(&format!("{action:?}"));
    }
    assert!(shown.contains("<redacted>") && !shown.contains("hunter2") && !shown.contains(&encode(b"hunter2")));
}
