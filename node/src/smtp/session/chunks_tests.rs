//! `BDAT`: whatever the order, the octets of a chunk are never commands, and a letter is kept once or not at all.
#![allow(clippy::unwrap_used)]

use super::tests::{Driven, config, greeted};
use super::*;

const ENVELOPE: &str = "MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n";
const KEPT: &str = "250 2.6.0 <m@test> [InternalId=1, Hostname=n1] Queued mail for delivery\r\n";

/// A session with a sender and a recipient.
fn addressed(config: SessionConfig) -> Driven {
    let mut driven = Driven::new(config);
    driven.say("EHLO client.test\r\n");
    driven.say(ENVELOPE);
    driven
}

#[test]
fn a_letter_in_chunks_is_the_same_wherever_its_session_is_split() {
    let stream = "BDAT 12\r\nSubject: x\r\nBDAT 0\r\nBDAT 5\r\n\r\n.\r\nBDAT 5 LAST\r\nbodyzMAIL FROM:<>\r\nQUIT\r\n";
    let mut whole = addressed(config());
    let said = whole.say(stream);
    assert_eq!(
        said,
        format!(
            "250 2.6.0 CHUNK received OK, 12 octets\r\n250 2.6.0 CHUNK received OK, 0 octets\r\n\
             250 2.6.0 CHUNK received OK, 5 octets\r\n{KEPT}250 2.1.0 Sender OK\r\n\
             221 2.0.0 Service closing transmission channel\r\n"
        )
    );
    assert_eq!(whole.letters[0].bytes, b"Subject: x\r\n\r\n.\r\nbodyz");
    for at in 0..stream.len() {
        let mut split = addressed(config());
        split.feed(&stream.as_bytes()[..at]);
        split.feed(&stream.as_bytes()[at..]);
        assert_eq!(split.said(), said, "split at {at}");
        assert_eq!(split.letters, whole.letters, "split at {at}");
    }
}

#[test]
fn a_line_end_may_be_split_between_chunks_and_an_empty_letter_is_one() {
    let mut driven = addressed(config());
    driven.say("BDAT 11\r\nSubject: x\rBDAT 3 LAST\r\n\n\r\n");
    assert_eq!(driven.letters[0].bytes, b"Subject: x\r\n\r\n");
    driven.say(ENVELOPE);
    assert_eq!(driven.say("BDAT 0 LAST\r\n"), KEPT);
    assert_eq!(driven.letters.len(), 2);
}

/// The table of SMTP smuggling within chunks and across them.
#[test]
fn smuggling_never_makes_a_second_letter_of_a_chunk() {
    for bytes in [
        "\n.\n",
        "\r.\r",
        "\r.\n",
        "\n.\r",
        "\n.\r\n",
        "\r\n.\n",
        "\r.\r\n",
        "\r\n.\r",
        "\r\n\0.\r\n",
        "\r\n.\0\r\n",
        "\r\n.\r\r\n",
        "\r\r\n.\r\r\n",
        "\r\n.\nMAIL FROM:<evil@b.test>\r\n",
    ] {
        let evil = format!(
            "Subject: x\r\n\r\ntext{bytes}MAIL FROM:<evil@b.test>\r\nRCPT TO:<c@d.test>\r\nBDAT 6 LAST\r\nevil\r\n"
        );
        for at in 0..=evil.len() {
            let (first, second) = evil.split_at(at);
            let chunks =
                [format!("BDAT {}\r\n{first}", first.len()), format!("BDAT {} LAST\r\n{second}NOOP\r\n", second.len())];
            let mut driven = addressed(config());
            let said = driven.say(&chunks[0]) + &driven.say(&chunks[1]);
            assert!(
                said.ends_with(" [0A1B]\r\n250 2.0.0 OK\r\n") && said.contains("550 5.6."),
                "{bytes:?} {at}: {said}"
            );
            assert_eq!(said.lines().count(), 3, "{bytes:?} {at}: {said}");
            assert_eq!((driven.letters.len(), driven.aborted, driven.closed), (0, 1, None), "{bytes:?} {at}");
        }
    }
}

#[test]
fn a_dot_on_its_line_is_text_in_a_chunk() {
    let mut driven = addressed(config());
    let letter = "A: b\r\n\r\n.\r\nMAIL FROM:<evil@b.test>\r\n";
    assert_eq!(driven.say(&format!("BDAT {} LAST\r\n{letter}", letter.len())), KEPT);
    assert_eq!(driven.letters[0].bytes, letter.as_bytes());
}

#[test]
fn the_octets_of_a_refused_chunk_are_swallowed() {
    let evil = "MAIL FROM:<evil@b.test>\r\nQUIT\r\n";
    let chunk = format!("BDAT {} LAST\r\n{evil}NOOP\r\n", evil.len());
    for (before, refusal) in [
        ("", "503 5.5.2 Need mail command"),
        ("MAIL FROM:<a@b.test>\r\n", "503 5.5.2 Need rcpt command"),
        ("MAIL FROM:<a@b.test>\r\nRCPT TO:<deny@b.test>\r\n", "503 5.5.2 Need rcpt command"),
        ("HELO x.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n", "502 5.5.1 CHUNKING is not offered"),
        ("MAIL FROM:<full@b.test>\r\nRCPT TO:<c@d.test>\r\n", "452 4.3.1 Insufficient system resources"),
    ] {
        let stream = format!("{before}{chunk}");
        for at in 0..stream.len() {
            let mut driven = greeted();
            driven.said();
            driven.feed(&stream.as_bytes()[..at]);
            driven.feed(&stream.as_bytes()[at..]);
            let said = driven.said();
            assert!(said.ends_with(&format!("{refusal} [0A1B]\r\n250 2.0.0 OK\r\n")), "{before:?} {at}: {said}");
            assert_eq!((driven.letters.len(), driven.closed), (0, None), "{before:?} {at}");
        }
    }
    let mut early = Driven::new(config());
    let said = early.say(&chunk);
    assert!(said.starts_with("503 5.5.2 Send hello first [0A1B]\r\n250 2.0.0 OK"), "{said}");
    let mut off = config();
    off.offer.chunking = false;
    let mut driven = addressed(off);
    assert!(driven.say(&chunk).starts_with("502 5.5.1 CHUNKING is not offered [0A1B]\r\n250 2.0.0 OK"));
}

#[test]
fn whoever_cannot_say_where_a_chunk_ends_is_closed() {
    for line in [
        "BDAT\r\n",
        "BDAT LAST\r\n",
        "BDAT -1\r\n",
        "BDAT 99999999999999999999999 LAST\r\n",
        "BDAT 5 5\r\n",
        "BDAT\t5\r\n",
        "BDAT 5\n",
        "BDAT 5\rLAST\r\n",
    ] {
        let mut driven = addressed(config());
        let said = driven.say(&format!("{line}MAIL FROM:<evil@b.test>\r\n"));
        assert_eq!(said, "501 5.5.4 Invalid chunk size [0A1B]\r\n", "{line:?}");
        assert_eq!(driven.closed, Some(CloseReason::Synchronization));
    }
}

#[test]
fn chunks_and_data_do_not_mix() {
    let mut driven = addressed(config());
    driven.say("BDAT 6\r\nA: b\r\n");
    for command in ["DATA", "MAIL FROM:<x@y.test>", "RCPT TO:<x@y.test>", "STARTTLS", "AUTH PLAIN"] {
        let said = driven.say(&format!("{command}\r\n"));
        assert_eq!(said, "503 5.5.1 The message is being sent with BDAT [0A1B]\r\n", "{command}");
    }
    assert_eq!(driven.say("NOOP\r\n"), "250 2.0.0 OK\r\n");
    assert_eq!(driven.say("BDAT 2 LAST\r\n\r\n"), KEPT);
    assert_eq!(driven.letters[0].bytes, b"A: b\r\n\r\n");
    // RFC 3030 §2: after the last chunk there is no transaction any more.
    let said = driven.say("BDAT 4 LAST\r\nevil");
    assert_eq!(said, "421 4.7.0 Too many errors on this connection, closing transmission channel [0A1B]\r\n");
}

#[test]
fn rset_ehlo_and_the_end_of_the_connection_forget_the_chunks() {
    for (ended_by, said) in [("RSET\r\n", "250 2.0.0 Resetting"), ("EHLO x.test\r\n", "250-mx.test Hello")] {
        let mut driven = addressed(config());
        driven.say("BDAT 6\r\nA: b\r\n");
        assert!(driven.say(ended_by).starts_with(said));
        assert_eq!((driven.aborted, driven.letters.len()), (1, 0));
        assert!(!driven.session.in_transaction());
        // The next letter begins with nothing of it.
        driven.say(ENVELOPE);
        assert_eq!(driven.say("BDAT 9 LAST\r\nC: d\r\n\r\nz"), KEPT);
        assert_eq!(driven.letters[0].bytes, b"C: d\r\n\r\nz");
    }
    for open in ["BDAT 6\r\nA: b\r\n", "BDAT 60\r\nA: b\r\n"] {
        let mut driven = addressed(config());
        driven.feed(open.as_bytes());
        driven.session.handle_disconnect(driven.now);
        driven.drive();
        assert_eq!((driven.aborted, driven.letters.len()), (1, 0), "{open}");
    }
    let mut quits = addressed(config());
    quits.say("BDAT 6\r\nA: b\r\nQUIT\r\n");
    assert_eq!((quits.aborted, quits.closed), (1, Some(CloseReason::Quit)));
}

#[test]
fn size_is_counted_over_all_chunks_in_every_mode() {
    for mode in [SizeMode::Enabled, SizeMode::Disabled, SizeMode::EnabledWithoutValue] {
        let mut limited = config();
        limited.limits.max_message_size = 20;
        limited.offer.size = mode;
        let mut exact = addressed(limited.clone());
        exact.say("BDAT 6\r\nA: b\r\n");
        assert_eq!(exact.say("BDAT 14 LAST\r\n\r\n0123456789\r\n"), KEPT, "{mode:?}");
        let mut above = addressed(limited.clone());
        above.say("BDAT 6\r\nA: b\r\n");
        let refusal = "552 5.3.4 Message size exceeds fixed maximum message size [0A1B]\r\n";
        assert_eq!(above.say("BDAT 15\r\n\r\n01234567890\r\n"), refusal, "{mode:?}");
        assert_eq!(above.aborted, 1);
        assert_eq!(above.say("BDAT 4\r\nmore"), refusal, "a refused letter stays refused");
        assert_eq!(above.say("BDAT 0 LAST\r\n"), refusal);
        assert_eq!(above.say("MAIL FROM:<a@b.test>\r\n"), "250 2.1.0 Sender OK\r\n");
        // Refused as soon as it is announced, and not waited for when it is endless.
        let mut endless = addressed(limited.clone());
        assert_eq!(endless.say("BDAT 18446744073709551615\r\n"), refusal);
        assert_eq!(endless.closed, Some(CloseReason::Oversize));
        let mut never = Driven::new(limited.clone());
        never.say("EHLO x.test\r\n");
        assert!(never.say("BDAT 18446744073709551615\r\n").starts_with("503 5.5.2 Need mail command"));
        assert_eq!(never.closed, Some(CloseReason::Oversize));
        let mut sum = addressed(limited);
        sum.say("BDAT 6\r\nA: b\r\n");
        assert_eq!(sum.say("BDAT 18446744073709551615\r\n"), refusal, "a sum that overflows");
    }
}

#[test]
fn the_driver_may_refuse_a_letter_between_chunks() {
    let mut driven = addressed(config());
    driven.say("BDAT 9\r\nA: b\r\n\r\nz");
    driven.session.handle_append_failed(driven.now, reply::insufficient_system_resources());
    driven.drive();
    let refusal = "452 4.3.1 Insufficient system resources [0A1B]\r\n";
    assert_eq!(driven.say("BDAT 4\r\nmore"), refusal);
    assert_eq!(driven.say("BDAT 4 LAST\r\nmore"), refusal);
    assert!(driven.letters.is_empty());
    assert_eq!(driven.say("NOOP\r\n"), "250 2.0.0 OK\r\n");
}

#[test]
fn no_250_for_the_last_chunk_before_the_driver_says_so() {
    let mut driven = addressed(config());
    driven.holds_commits = true;
    assert_eq!(driven.say("BDAT 9 LAST\r\nA: b\r\n\r\nzQUIT\r\n"), "");
    assert!(!driven.session.wants_input());
    driven.session.handle_committed(driven.now, reply::insufficient_system_resources());
    driven.drive();
    assert!(driven.said().starts_with("452 4.3.1"));
    assert_eq!(driven.session.letters(), 0);
}

#[test]
fn an_octet_now_and_then_and_chunks_of_nothing_do_not_hold_a_session() {
    let mut slow = addressed(config());
    slow.feed(b"BDAT 100000\r\n");
    for _ in 0..299 {
        slow.now += Duration::from_secs(1);
        slow.feed(b"x");
    }
    slow.now += Duration::from_secs(1);
    slow.session.handle_timeout(slow.now);
    slow.drive();
    assert_eq!((slow.closed, slow.aborted), (Some(CloseReason::Inactivity), 1));

    let mut tiny = addressed(config());
    for _ in 0..299 {
        tiny.now += Duration::from_secs(1);
        tiny.feed(b"BDAT 1\r\nx");
    }
    // The first of them was the driver's answer, and progress.
    tiny.now += Duration::from_secs(2);
    tiny.session.handle_timeout(tiny.now);
    tiny.drive();
    assert_eq!(tiny.closed, Some(CloseReason::Inactivity));

    let mut nothing = addressed(config());
    nothing.feed(&b"BDAT 0\r\n".repeat(120));
    assert_eq!(nothing.closed, Some(CloseReason::ProtocolErrors));
}

#[test]
fn age_does_not_cut_a_letter_between_its_chunks() {
    let mut driven = addressed(config());
    for _ in 0..60 {
        driven.now += Duration::from_secs(60);
        driven.feed(format!("BDAT 2000\r\n{}", "x".repeat(2000)).as_bytes());
        driven.session.handle_timeout(driven.now);
        driven.drive();
        assert_eq!(driven.closed, None);
    }
    driven.said();
    driven.feed(b"BDAT 2 LAST\r\n\r\n");
    driven.session.handle_timeout(driven.now);
    driven.drive();
    let said = driven.said();
    assert!(said.starts_with(KEPT) && said.ends_with("421 4.4.1 Connection timed out [0A1B]\r\n"), "{said}");
}

#[test]
fn a_stop_waits_for_the_last_chunk() {
    let mut driven = addressed(config());
    driven.say("BDAT 6\r\nA: b\r\n");
    driven.session.handle_shutdown(driven.now);
    driven.drive();
    assert_eq!(driven.closed, None);
    let said = driven.say("BDAT 2 LAST\r\n\r\nNOOP\r\n");
    assert!(said.starts_with(KEPT) && said.ends_with("closing transmission channel [0A1B]\r\n"), "{said}");
    assert_eq!(driven.closed, Some(CloseReason::Shutdown));
}

#[test]
fn a_binary_letter_comes_only_where_it_is_offered_and_only_in_chunks() {
    let mail = "MAIL FROM:<a@b.test> BODY=BINARYMIME\r\n";
    assert!(greeted().say(mail).starts_with("555 5.5.4 Unsupported parameter"));
    let mut binary = config();
    binary.offer.binary_mime = true;
    let mut driven = Driven::new(binary.clone());
    let ehlo = driven.say("EHLO x.test\r\n");
    assert!(ehlo.contains("BINARYMIME\r\n250-CHUNKING\r\n"), "{ehlo}");
    driven.say(&format!("{mail}RCPT TO:<c@d.test>\r\n"));
    assert_eq!(driven.say("DATA\r\n"), "503 5.5.1 BODY=BINARYMIME must be sent with BDAT [0A1B]\r\n");
    driven.feed(b"BDAT 14 LAST\r\nA: b\r\n\r\n\0\n.\n\r\xff");
    assert_eq!(driven.said(), KEPT);
    assert_eq!(driven.letters[0].bytes, b"A: b\r\n\r\n\0\n.\n\r\xff");
    // Its header is lines all the same.
    driven.say(&format!("{mail}RCPT TO:<c@d.test>\r\n"));
    assert!(driven.say("BDAT 12 LAST\r\nA: b\nC: d\r\n\r\nz").starts_with("550 5.6.11"));
    let mut alone = binary;
    alone.offer.chunking = false;
    assert!(!Driven::new(alone).say("EHLO x.test\r\n").contains("BINARYMIME"));
}

#[test]
fn mail_data_in_chunks_is_handed_over_in_pieces() {
    let mut driven = addressed(config());
    driven.feed(b"BDAT 300008 LAST\r\nx: y\r\n\r\n");
    for _ in 0..300 {
        driven.feed(&[b'z'; 1000]);
    }
    assert_eq!(driven.letters[0].bytes.len(), 300_008);
}
