//! What `EHLO` offers and what follows from it: parameters, leniencies, `XCLIENT`, orders that nobody foresaw.
#![allow(clippy::unwrap_used)]

use super::tests::{Driven, config, greeted};
use super::*;
use crate::mail::{BodyType, Notify, Ret};
use crate::smtp::Leniency;

const LETTER: &str = "DATA\r\n";

#[test]
fn ehlo_offers_what_is_switched_on_and_nothing_else() {
    let all = greeted_keywords(config());
    assert_eq!(
        all,
        [
            "SIZE 37748736",
            "PIPELINING",
            "DSN",
            "ENHANCEDSTATUSCODES",
            "STARTTLS",
            "8BITMIME",
            "CHUNKING",
            "SMTPUTF8",
            "LIMITS RCPTMAX=200"
        ]
    );
    let mut none = config();
    none.tls = TlsMode::Off;
    none.offer = Offer {
        pipelining: false,
        size: SizeMode::Disabled,
        dsn: false,
        eight_bit_mime: false,
        chunking: false,
        binary_mime: true,
        smtp_utf8: true,
        limits: false,
        enhanced_status_codes: false,
    };
    assert_eq!(greeted_keywords(none), Vec::<String>::new(), "BINARYMIME needs CHUNKING, SMTPUTF8 needs 8BITMIME");
    let mut trusted = config();
    trusted.xclient = true;
    let keywords = greeted_keywords(trusted);
    assert_eq!(keywords.last().unwrap(), "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT");
}

fn greeted_keywords(config: SessionConfig) -> Vec<String> {
    let said = Driven::new(config).say("EHLO client.test\r\n");
    said.lines().skip(1).map(|line| line[4..].to_owned()).collect()
}

#[test]
fn a_parameter_that_was_not_offered_is_refused() {
    let mut bare = config();
    bare.offer = Offer { dsn: false, eight_bit_mime: false, smtp_utf8: false, size: SizeMode::Disabled, ..bare.offer };
    for parameter in
        ["RET=HDRS", "ENVID=x", "BODY=8BITMIME", "BODY=7BIT", "BODY=BINARYMIME", "SMTPUTF8", "SIZE=1", "AUTH=<>"]
    {
        let mut driven = Driven::new(bare.clone());
        driven.say("EHLO x.test\r\n");
        let said = driven.say(&format!("MAIL FROM:<a@b.test> {parameter}\r\n"));
        assert_eq!(said, "555 5.5.4 Unsupported parameter [0A1B]\r\n", "{parameter}");
        let mut old = Driven::new(config());
        old.say("HELO x.test\r\n");
        let said = old.say(&format!("MAIL FROM:<a@b.test> {parameter}\r\n"));
        assert_eq!(said, "555 5.5.4 Unsupported parameter [0A1B]\r\n", "{parameter} after HELO");
    }
    let mut driven = Driven::new(bare);
    driven.say("EHLO x.test\r\nMAIL FROM:<a@b.test>\r\n");
    for parameter in ["NOTIFY=NEVER", "ORCPT=rfc822;a@b"] {
        assert!(driven.say(&format!("RCPT TO:<a@b.test> {parameter}\r\n")).starts_with("555 5.5.4"), "{parameter}");
    }
}

#[test]
fn what_the_sender_asked_is_in_the_envelope() {
    let mut driven = greeted();
    driven.say("MAIL FROM:<ü@b.test> SMTPUTF8 BODY=8BITMIME RET=HDRS ENVID=QQ+20314 SIZE=10\r\n");
    driven.say("RCPT TO:<c@d.test> NOTIFY=NEVER\r\nRCPT TO:<δ@bücher.test> ORCPT=utf-8;δ@bücher.test\r\n");
    driven.say("RCPT TO:<deny@d.test> NOTIFY=DELAY\r\n");
    driven.say(LETTER);
    assert_eq!(driven.session.protocol().as_str(), "UTF8SMTP");
    driven.say("\r\n.\r\n");
    let envelope = &driven.letters[0].envelope;
    assert_eq!(envelope.reverse_path.to_string(), "ü@b.test");
    assert_eq!((envelope.body, envelope.smtp_utf8), (BodyType::EightBitMime, true));
    assert_eq!((envelope.ret, envelope.envid.as_deref()), (Some(Ret::Headers), Some("QQ 314")));
    assert_eq!(envelope.recipients.len(), 2);
    assert_eq!(envelope.recipients[0].notify, Some(Notify::NEVER));
    assert_eq!(envelope.recipients[1].path.to_string(), "δ@xn--bcher-kva.test");
    assert_eq!(envelope.recipients[1].orcpt.as_ref().unwrap().to_string(), "utf-8; δ@bücher.test");
    // The next transaction has nothing of it.
    driven.say("MAIL FROM:<a@b.test>\r\n");
    assert_eq!(driven.session.protocol().as_str(), "ESMTP");
    assert!(driven.say("RCPT TO:<δ@d.test>\r\n").starts_with("553 5.6.7 Address is not ASCII"));
}

#[test]
fn a_leniency_is_told_at_each_use_and_only_where_it_is_permitted() {
    let mut lenient = config();
    lenient.leniencies = Leniency::ALL.into_iter().collect();
    let mut driven = Driven::new(lenient);
    assert!(driven.say("EHLO\r\n").starts_with("250-mx.test"));
    assert_eq!(driven.session.helo(), Some(""));
    driven.say("MAIL FROM: <a@b.test>\r\nRCPT TO: <c@d.test>\r\n");
    driven.say(LETTER);
    assert!(driven.say("A: b\n\nx\n.\nMAIL FROM:<evil@b.test>\n\r\n.\r\n").starts_with("250 2.6.0"));
    assert_eq!(driven.letters[0].bytes, b"A: b\r\n\r\nx\r\n.\r\nMAIL FROM:<evil@b.test>\r\n\r\n");
    let used = |leniency| driven.notes.iter().filter(|note| **note == Note::Lenient(leniency)).count();
    assert_eq!(
        [Leniency::HeloWithoutDomain, Leniency::SpaceAfterColon, Leniency::RepairLineEndings].map(used),
        [1, 2, 1],
        "once a letter, whatever there was to repair"
    );
    driven.say("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n");
    assert!(driven.say("BDAT 9 LAST\r\nA: b\n\nx\n\n").starts_with("250 2.6.0"));
    assert_eq!(driven.letters[1].bytes, b"A: b\r\n\r\nx\r\n\r\n");

    let mut strict = greeted();
    assert!(strict.say("MAIL FROM: <a@b.test>\r\n").starts_with("501 5.1.7"));
    assert!(strict.say("HELO\r\n").starts_with("501 5.5.4"));
    assert!(strict.notes.is_empty());
}

#[test]
fn a_required_name_is_required_whatever_is_forgiven() {
    let mut both = config();
    both.require_ehlo_domain = true;
    both.leniencies = Leniency::ALL.into_iter().collect();
    let mut driven = Driven::new(both);
    assert!(driven.say("HELO\r\n").starts_with("501 5.5.4 Invalid domain name"));
    assert_eq!(driven.closed, Some(CloseReason::EhloDomain));
}

#[test]
fn xclient_begins_the_session_anew_and_proves_nothing() {
    let mut trusted = SessionConfig { tls: TlsMode::Implicit, ..config() };
    trusted.xclient = true;
    let mut driven = Driven::new(trusted);
    driven.say("EHLO filter.test\r\n");
    assert!(driven.say("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").starts_with("235"));
    assert_eq!(driven.session.user(), Some("user"));
    let said = driven.say("XCLIENT ADDR=198.51.100.7 LOGIN=user HELO=printer.test PROTO=SMTP\r\n");
    assert_eq!(said, "220 mx.test ESMTP Posthouse\r\n");
    assert_eq!(driven.session.user(), None, "neither the proxy's login nor the one it claims");
    assert_eq!(driven.session.helo(), Some("printer.test"));
    assert_eq!(driven.session.protocol().as_str(), "SMTP");
    assert!(driven.say("EHLO printer.test\r\n").starts_with("250-mx.test Hello [198.51.100.7]"));
    assert!(driven.say("XCLIENT ADDR=198.51.100.8\r\n").starts_with("220"), "a proxy may speak for one after another");
    assert_eq!(driven.session.helo(), None);
    assert_eq!(driven.say("XCLIENT ADDR=203.0.113.1\r\n"), "421 4.3.2 Service not available [0A1B]\r\n");
    assert_eq!(driven.closed, Some(CloseReason::Refused));
}

#[test]
fn xclient_from_a_stranger_changes_nothing_and_is_counted() {
    let mut driven = greeted();
    for line in ["XCLIENT ADDR=198.51.100.7\r\n", "XCLIENT\r\n", "xclient LOGIN=user\r\n"] {
        assert_eq!(driven.say(line), "550 5.7.0 XCLIENT is not permitted from this address [0A1B]\r\n", "{line}");
    }
    assert_eq!(driven.notes, [Note::XclientRefused; 3]);
    assert_eq!(driven.session.helo(), Some("client.test"));
    driven.say("XCLIENT A=B\r\nXCLIENT A=B\r\n");
    assert!(driven.say("XCLIENT A=B\r\n").starts_with("421 4.7.0 Too many errors"));
}

/// Every order of commands that RFC 5321, 2920, 3030, 3207 and 4954 do not have: each is answered, none makes a letter,
/// none leaves a session that waits for ever.
#[test]
fn illegal_orders_make_no_letter() {
    const BODY: &str = "Subject: x\r\n\r\nevil\r\n.\r\n";
    let envelope = "MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n";
    let orders: Vec<(&str, String)> = vec![
        ("mail before ehlo", envelope.to_owned()),
        ("data before ehlo", "DATA\r\n".to_owned()),
        ("mail data before ehlo", BODY.to_owned()),
        ("rcpt before mail", format!("EHLO x.test\r\nRCPT TO:<c@d.test>\r\nDATA\r\n{BODY}")),
        ("data before mail", format!("EHLO x.test\r\nDATA\r\n{BODY}")),
        ("data before rcpt", format!("EHLO x.test\r\nMAIL FROM:<a@b.test>\r\nDATA\r\n{BODY}")),
        ("data after refused rcpt", format!("EHLO x.test\r\nMAIL FROM:<>\r\nRCPT TO:<deny@d.test>\r\nDATA\r\n{BODY}")),
        ("mail data before 354", format!("EHLO x.test\r\n{envelope}DATA\r\n{BODY}")),
        ("one octet before 354", format!("EHLO x.test\r\n{envelope}DATA\r\n.")),
        ("dot before 354", format!("EHLO x.test\r\n{envelope}DATA\r\n.\r\n")),
        ("quit behind data", format!("EHLO x.test\r\n{envelope}DATA\r\nQUIT\r\n")),
        ("no data at all", format!("EHLO x.test\r\n{envelope}{BODY}")),
        ("mail twice", format!("EHLO x.test\r\nMAIL FROM:<a@b.test>\r\n{envelope}QUIT\r\n")),
        ("rset then data", format!("EHLO x.test\r\n{envelope}RSET\r\nDATA\r\n{BODY}")),
        ("ehlo then data", format!("EHLO x.test\r\n{envelope}EHLO x.test\r\nDATA\r\n{BODY}")),
        ("starttls within", format!("EHLO x.test\r\n{envelope}STARTTLS\r\nDATA\r\n{BODY}")),
        ("auth within", format!("EHLO x.test\r\n{envelope}AUTH PLAIN AHVzZXIAcGFzcw==\r\nQUIT\r\n")),
        ("auth after helo", "HELO x.test\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\nQUIT\r\n".to_owned()),
        ("commands behind ehlo without an offer", format!("EHLO x.test\r\nMAIL FROM:<a@b.test>\r\nDATA\r\n{BODY}")),
        ("commands behind helo", format!("HELO x.test\r\n{envelope}DATA\r\n{BODY}")),
        ("bdat before mail", format!("EHLO x.test\r\nBDAT {} LAST\r\n{BODY}", BODY.len())),
        ("bdat before rcpt", format!("EHLO x.test\r\nMAIL FROM:<>\r\nBDAT {} LAST\r\n{BODY}", BODY.len())),
        ("bdat after helo", format!("HELO x.test\r\n{envelope}BDAT {} LAST\r\n{BODY}", BODY.len())),
        ("data after bdat", format!("EHLO x.test\r\n{envelope}BDAT 6\r\nA: b\r\nDATA\r\n{BODY}")),
        ("mail after bdat", format!("EHLO x.test\r\n{envelope}BDAT 6\r\nA: b\r\n{envelope}QUIT\r\n")),
        ("rset between chunks", format!("EHLO x.test\r\n{envelope}BDAT 6\r\nA: b\r\nRSET\r\nBDAT 2 LAST\r\n\r\n")),
        ("a chunk too short", format!("EHLO x.test\r\n{envelope}BDAT 600 LAST\r\n{BODY}QUIT\r\n")),
        ("a chunk of no size", format!("EHLO x.test\r\n{envelope}BDAT\r\n{BODY}")),
        ("early talker with a letter", format!("{envelope}DATA\r\n{BODY}QUIT\r\n")),
        ("nonsense", "\r\n \r\n\0\r\nDATA \r\nRSETX\r\n".to_owned()),
    ];
    assert!(orders.len() >= 25);
    for (name, order) in orders {
        for at in 0..order.len() {
            let (first, rest) = order.as_bytes().split_at(at);
            // Whoever waits behind DATA for our answer is in order.
            if first.ends_with(b"DATA\r\n") {
                continue;
            }
            let mut driven = Driven::new(config());
            driven.feed(first);
            driven.feed(rest);
            assert_eq!(driven.letters.len(), 0, "{name} split at {at}: {}", driven.said());
            // Whatever it waits for, it waits with a deadline.
            if driven.closed.is_none() {
                driven.now = driven.session.poll_timeout().unwrap();
                driven.session.handle_timeout(driven.now);
                driven.drive();
                assert!(driven.closed.is_some(), "{name} split at {at} is stuck");
                assert_eq!(driven.letters.len(), 0, "{name} split at {at}");
            }
        }
    }
}

#[test]
fn the_word_starttls_is_a_command_only_where_commands_are() {
    let mut driven = greeted();
    driven.say("MAIL FROM:<starttls@b.test>\r\nRCPT TO:<starttls@d.test>\r\n");
    driven.say(LETTER);
    assert!(driven.say("Subject: STARTTLS\r\n\r\nSTARTTLS\r\n.\r\n").starts_with("250 2.6.0"));
    assert!(!driven.session.is_tls());
    driven.say("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n");
    assert!(driven.say("BDAT 12 LAST\r\n\r\nSTARTTLS\r\n").starts_with("250 2.6.0"));
    assert!(!driven.session.is_tls());
    assert!(driven.say("STARTTLS now\r\n").starts_with("501 5.5.4"));
    assert!(driven.say("STARTTLS\r\n").starts_with("220"));
    assert!(driven.session.is_tls());
}
