//! The client against scripts: what a next hop says, line by line, and what the client must then do.

use super::*;

const EHLO: &str = "250-mx.example\r\n250-PIPELINING\r\n250-SIZE 1000000\r\n250 8BITMIME\r\n";

fn client(tls: TlsUse) -> Client {
    Client::new(ClientConfig { helo: "relay.example".to_owned(), tls, auth: None })
}

fn transaction(recipients: usize) -> Transaction {
    let recipients = (0..recipients).map(|index| format!("r{index}@x.example")).collect();
    Transaction {
        reverse_path: "s@corp.example".to_owned(),
        recipients,
        size: 100,
        eight_bit: true,
        utf8_header: false,
        dsn_mail: " RET=HDRS ENVID=e1".to_owned(),
        dsn_recipients: vec![" NOTIFY=NEVER".to_owned()],
    }
}

/// Everything the client wants done, with what it sends as text.
fn drain(client: &mut Client) -> Vec<String> {
    std::iter::from_fn(|| client.poll_action())
        .map(|action| match action {
            Action::Send(bytes) => String::from_utf8_lossy(&bytes).replace("\r\n", "|"),
            Action::Finished { outcomes, unanswered } => {
                let outcome = |outcome: &Outcome| match outcome {
                    Outcome::Delivered { .. } => "delivered".to_owned(),
                    Outcome::Deferred { reply } => format!("deferred {}", reply.code.0),
                    Outcome::Failed { reply } => format!("failed {}", reply.code.0),
                };
                let words: Vec<_> = outcomes.iter().map(outcome).collect();
                format!("{}{}", words.join(", "), if unanswered { " unanswered" } else { "" })
            }
            Action::Close(reply) => format!("close {}", reply.map_or(0, |reply| reply.code.0)),
            Action::StartTls => "starttls".to_owned(),
            Action::Derive { iterations, .. } => format!("derive {iterations}"),
            Action::Ready => "ready".to_owned(),
            Action::NeedBody => "body".to_owned(),
        })
        .collect()
}

/// The next hop says `said`; the client must do `expected`.
fn talk(client: &mut Client, said: &str, expected: &[&str]) {
    client.handle_bytes(said.as_bytes());
    assert_eq!(drain(client), expected, "after {said:?}");
}

fn ready(tls: TlsUse, ehlo: &str) -> Client {
    let mut client = client(tls);
    talk(&mut client, "220 mx.example ESMTP\r\n", &["EHLO relay.example|"]);
    talk(&mut client, ehlo, &["ready"]);
    client
}

fn begin(client: &mut Client, recipients: usize) -> Vec<String> {
    client.begin(transaction(recipients));
    drain(client)
}

#[test]
fn a_letter_is_sent_in_one_round_when_pipelining_is_offered() {
    let mut client = ready(TlsUse::Off, EHLO);
    let sent = "MAIL FROM:<s@corp.example> SIZE=100 BODY=8BITMIME|RCPT TO:<r0@x.example>|RCPT TO:<r1@x.example>|DATA|";
    assert_eq!(begin(&mut client, 2), [sent]);
    talk(&mut client, "250 ok\r\n250 ok\r\n550 5.1.1 no\r\n354 go\r\n", &["body"]);
    client.handle_body(b"A: 1\r\n\r\n.dot");
    client.handle_body(b"\r\n");
    client.handle_body_end();
    assert_eq!(drain(&mut client).concat(), "A: 1||..dot|.|");
    assert_eq!(client.phase(), Phase::EndOfData);
    talk(&mut client, "250 2.0.0 queued\r\n", &["delivered, failed 550"]);
    assert_eq!(client.phase(), Phase::Ready);
    client.quit();
    assert_eq!(drain(&mut client), ["QUIT|"]);
    talk(&mut client, "221 bye\r\n", &["close 0"]);
}

#[test]
fn without_pipelining_each_command_waits() {
    let mut client = ready(TlsUse::Off, "250 mx.example\r\n");
    assert_eq!(begin(&mut client, 2), ["MAIL FROM:<s@corp.example>|"]);
    talk(&mut client, "250 ok\r\n", &["RCPT TO:<r0@x.example>|"]);
    talk(&mut client, "450 4.2.0 later\r\n", &["RCPT TO:<r1@x.example>|"]);
    talk(&mut client, "250 ok\r\n", &["DATA|"]);
    talk(&mut client, "354 go\r\n", &["body"]);
    client.handle_body_end();
    assert_eq!(drain(&mut client), [".|"]);
    talk(&mut client, "554 5.6.0 no\r\n", &["deferred 450, failed 554"]);
}

#[test]
fn many_recipients_go_out_in_groups() {
    let mut client = ready(TlsUse::Off, EHLO);
    let first = begin(&mut client, 150).concat();
    assert_eq!(first.matches("RCPT").count(), 100);
    assert!(!first.contains("DATA"));
    client.handle_bytes("250 ok\r\n".repeat(101).as_bytes());
    let second = drain(&mut client).concat();
    assert_eq!(second.matches("RCPT").count(), 50);
    assert!(second.ends_with("DATA|"));
    client.handle_bytes("250 ok\r\n".repeat(49).as_bytes());
    talk(&mut client, "552 too many\r\n354 go\r\n", &["body"]);
    client.handle_body_end();
    drain(&mut client);
    client.handle_bytes(b"250 ok\r\n");
    let outcomes = drain(&mut client).concat();
    assert_eq!(outcomes.matches("delivered").count(), 149);
    assert!(outcomes.ends_with("deferred 552"), "RFC 5321 section 4.5.3.1.10: 552 to RCPT is not the end");
}

#[test]
fn a_next_hop_that_refuses_everybody_gets_no_letter() {
    let mut client = ready(TlsUse::Off, EHLO);
    begin(&mut client, 1);
    talk(&mut client, "250 ok\r\n550 no\r\n503 no recipients\r\n", &["failed 550"]);
    // The transaction that it still has open is not continued with the next letter.
    assert!(begin(&mut client, 1)[0].starts_with("RSET|MAIL FROM:"));
    // One that says 354 all the same gets the end of mail data and nothing else.
    talk(&mut client, "250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n", &[".|"]);
    talk(&mut client, "554 no\r\n", &["failed 550"]);
}

#[test]
fn a_refused_reverse_path_decides_for_everybody() {
    let mut client = ready(TlsUse::Off, EHLO);
    begin(&mut client, 2);
    talk(&mut client, "451 4.7.1 greylisted\r\n503 no\r\n503 no\r\n503 no\r\n", &["deferred 451, deferred 451"]);
    begin(&mut client, 1);
    // RCPT accepted although MAIL was not: it means nothing.
    talk(&mut client, "550 no\r\n250 ok\r\n503 no\r\n", &["failed 550"]);
}

#[test]
fn the_letter_waits_when_the_connection_ends_after_the_dot() {
    let mut client = ready(TlsUse::Off, EHLO);
    begin(&mut client, 1);
    talk(&mut client, "250 ok\r\n250 ok\r\n354 go\r\n", &["body"]);
    client.handle_body_end();
    drain(&mut client);
    client.handle_disconnected("reset by peer");
    let Some(Action::Finished { outcomes, unanswered: false }) = client.poll_action() else { panic!("not finished") };
    assert!(matches!(&outcomes[0], Outcome::Deferred { reply } if reply.to_string().contains("possible duplicate")));
    assert_eq!(drain(&mut client), ["close 451"]);
}

#[test]
fn four_two_one_ends_it_wherever_it_comes() {
    let mut greeting = client(TlsUse::Off);
    talk(&mut greeting, "421 busy\r\n", &["close 421"]);
    let mut idle = ready(TlsUse::Off, EHLO);
    talk(&mut idle, "421 idle\r\n", &["close 421"]);
    let mut before = ready(TlsUse::Off, EHLO);
    begin(&mut before, 1);
    talk(&mut before, "421 idle\r\n", &["deferred 421 unanswered", "close 421"]);
    let mut between = ready(TlsUse::Off, EHLO);
    begin(&mut between, 2);
    talk(&mut between, "250 ok\r\n550 no\r\n421 bye\r\n", &["failed 550, deferred 421", "close 421"]);
    let mut during = ready(TlsUse::Off, EHLO);
    begin(&mut during, 1);
    talk(&mut during, "250 ok\r\n250 ok\r\n354 go\r\n", &["body"]);
    talk(&mut during, "421 bye\r\n", &["deferred 421", "close 421"]);
    let mut after = ready(TlsUse::Off, EHLO);
    begin(&mut after, 1);
    talk(&mut after, "250 ok\r\n250 ok\r\n354 go\r\n", &["body"]);
    after.handle_body_end();
    drain(&mut after);
    talk(&mut after, "421 bye\r\n", &["deferred 421", "close 421"]);
}

#[test]
fn an_answer_in_the_middle_of_the_letter_ends_the_connection() {
    for (said, expected) in [
        ("552 5.3.4 too big\r\n", ["failed 552", "close 552"]),
        ("452 4.3.1 full\r\n", ["deferred 452", "close 452"]),
        ("250 ok\r\n", ["deferred 451", "close 451"]),
        ("354 again\r\n", ["deferred 451", "close 451"]),
    ] {
        let mut client = ready(TlsUse::Off, EHLO);
        begin(&mut client, 1);
        talk(&mut client, "250 ok\r\n250 ok\r\n354 go\r\n", &["body"]);
        client.handle_body(b"half");
        drain(&mut client);
        talk(&mut client, said, &expected);
        client.handle_body(b"more");
        client.handle_body_end();
        assert!(drain(&mut client).is_empty(), "nothing more is sent, least of all an end");
    }
}

#[test]
fn a_next_hop_that_does_not_speak_smtp_means_not_now() {
    for said in ["HTTP/1.1 400\r\n", "999 x\r\n", "220-a\r\n221 b\r\n", "250 ok\r\n", "354 go\r\n"] {
        let mut client = client(TlsUse::Off);
        client.handle_bytes(said.as_bytes());
        let done = drain(&mut client);
        assert!(done.last().is_some_and(|last| last.starts_with("close")), "{said:?}: {done:?}");
        assert!(!done.iter().any(|action| action == "ready"));
    }
    let mut client = ready(TlsUse::Off, EHLO);
    begin(&mut client, 1);
    talk(&mut client, "250 ok\r\n650 what\r\n", &["deferred 451", "close 451"]);
}

#[test]
fn a_server_without_ehlo_is_greeted_with_helo() {
    let mut client = client(TlsUse::Opportunistic);
    talk(&mut client, "220 old\r\n", &["EHLO relay.example|"]);
    talk(&mut client, "502 what\r\n", &["HELO relay.example|"]);
    talk(&mut client, "250 hello\r\n", &["ready"]);
    assert_eq!(begin(&mut client, 1), ["MAIL FROM:<s@corp.example>|"]);
}

const EHLO_TLS: &str = "250-mx.example\r\n250-SIZE 1\r\n250 STARTTLS\r\n";

#[test]
fn tls_forgets_what_was_said_before_it() {
    for tls in [TlsUse::Opportunistic, TlsUse::Required] {
        let mut client = client(tls);
        talk(&mut client, "220 mx\r\n", &["EHLO relay.example|"]);
        talk(&mut client, EHLO_TLS, &["STARTTLS|"]);
        talk(&mut client, "220 go\r\n", &["starttls"]);
        client.handle_tls_established();
        assert_eq!(drain(&mut client), ["EHLO relay.example|"]);
        talk(&mut client, "250-mx\r\n250 STARTTLS\r\n", &["ready"]);
        assert!(client.is_secure());
        assert_eq!(client.extensions().size, None);
    }
}

#[test]
fn a_reply_injected_behind_the_agreement_to_tls_ends_the_connection() {
    for injected in ["250-mx\r\n250 AUTH PLAIN\r\n", "250 x", "\r\n"] {
        let mut client = client(TlsUse::Opportunistic);
        talk(&mut client, "220 mx\r\n", &["EHLO relay.example|"]);
        talk(&mut client, EHLO_TLS, &["STARTTLS|"]);
        talk(&mut client, &format!("220 go\r\n{injected}"), &["close 451"]);
    }
}

#[test]
fn required_tls_never_falls_back() {
    let mut hidden = client(TlsUse::Required);
    talk(&mut hidden, "220 mx\r\n", &["EHLO relay.example|"]);
    talk(&mut hidden, EHLO, &["QUIT|", "close 451"]);
    let mut no_ehlo = client(TlsUse::Required);
    talk(&mut no_ehlo, "220 mx\r\n", &["EHLO relay.example|"]);
    talk(&mut no_ehlo, "500 what\r\n", &["HELO relay.example|"]);
    talk(&mut no_ehlo, "250 mx\r\n", &["QUIT|", "close 451"]);
    for refusal in ["454 later\r\n", "502 no\r\n", "354 what\r\n", "250 fine\r\n"] {
        let mut refused = client(TlsUse::Required);
        talk(&mut refused, "220 mx\r\n", &["EHLO relay.example|"]);
        talk(&mut refused, EHLO_TLS, &["STARTTLS|"]);
        talk(&mut refused, refusal, &["QUIT|", "close 451"]);
        let mut opportunistic = client(TlsUse::Opportunistic);
        talk(&mut opportunistic, "220 mx\r\n", &["EHLO relay.example|"]);
        talk(&mut opportunistic, EHLO_TLS, &["STARTTLS|"]);
        talk(&mut opportunistic, refusal, &["ready"]);
    }
}

#[test]
fn a_letter_that_is_too_large_is_not_offered() {
    let mut client = ready(TlsUse::Off, "250-mx\r\n250 SIZE 99\r\n");
    assert_eq!(begin(&mut client, 2), ["failed 552, failed 552"]);
    let mut unlimited = ready(TlsUse::Off, "250-mx\r\n250 SIZE 0\r\n");
    assert_eq!(begin(&mut unlimited, 1), ["MAIL FROM:<s@corp.example> SIZE=100|"]);
}

#[test]
fn silence_means_not_now() {
    let mut client = ready(TlsUse::Off, EHLO);
    begin(&mut client, 1);
    client.handle_timeout();
    assert_eq!(drain(&mut client), ["deferred 451 unanswered", "close 451"]);
    client.handle_disconnected("late");
    assert!(drain(&mut client).is_empty());
}

fn with_password(tls: TlsUse) -> Client {
    let auth = ClientAuth { user: "relay".to_owned(), password: "s3cret".to_owned(), nonce: "n0nce".to_owned() };
    Client::new(ClientConfig { helo: "relay.example".to_owned(), tls, auth: Some(auth) })
}

#[test]
fn a_password_waits_for_tls_and_a_refused_one_keeps_the_letters() {
    let offer = "250-mx\r\n250-STARTTLS\r\n250 AUTH PLAIN LOGIN\r\n";
    let mut client = with_password(TlsUse::Opportunistic);
    talk(&mut client, "220 mx\r\n", &["EHLO relay.example|"]);
    talk(&mut client, offer, &["STARTTLS|"]);
    talk(&mut client, "220 go\r\n", &["starttls"]);
    client.handle_tls_established();
    drain(&mut client);
    talk(&mut client, "250-mx\r\n250 AUTH PLAIN\r\n", &["AUTH PLAIN AHJlbGF5AHMzY3JldA==|"]);
    assert_eq!(client.phase(), Phase::Auth);
    talk(&mut client, "235 2.7.0 welcome\r\n", &["ready"]);
    // Wrong, or not to be said in clear text, or not offered: the letters wait.
    for (tls, ehlo, said, expected) in [
        (TlsUse::Off, "250-mx\r\n250 AUTH PLAIN LOGIN\r\n", "", "QUIT|"),
        (TlsUse::Off, "250 mx\r\n", "", "QUIT|"),
        (
            TlsUse::Off,
            "250-mx\r\n250 AUTH SCRAM-SHA-256\r\n",
            "535 5.7.8 no\r\n",
            "AUTH SCRAM-SHA-256 biwsbj1yZWxheSxyPW4wbmNl|",
        ),
    ] {
        let mut client = with_password(tls);
        talk(&mut client, "220 mx\r\n", &["EHLO relay.example|"]);
        client.handle_bytes(ehlo.as_bytes());
        let first = drain(&mut client);
        assert_eq!(first[0], expected);
        client.handle_bytes(said.as_bytes());
        let last = [first, drain(&mut client)].concat();
        assert_eq!(last.last().map(String::as_str), Some("close 451"), "{ehlo:?}");
        assert!(!last.contains(&"ready".to_owned()));
    }
    let mut refused = with_password(TlsUse::Opportunistic);
    talk(&mut refused, "220 mx\r\n", &["EHLO relay.example|"]);
    talk(&mut refused, offer, &["STARTTLS|"]);
    talk(&mut refused, "454 not now\r\n", &["QUIT|", "close 451"]);
}

const EHLO_CHUNKING: &str = "250-mx.example\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 DSN\r\n";

#[test]
fn chunks_go_to_a_next_hop_that_takes_them() {
    let mut client = ready(TlsUse::Off, EHLO_CHUNKING);
    let asked = begin(&mut client, 2).concat();
    assert_eq!(
        asked,
        "MAIL FROM:<s@corp.example> RET=HDRS ENVID=e1|RCPT TO:<r0@x.example> NOTIFY=NEVER|RCPT TO:<r1@x.example>|"
    );
    talk(&mut client, "250 ok\r\n550 no\r\n250 ok\r\n", &["body"]);
    client.handle_body(b".a\r\n");
    client.handle_body(b".\r\n");
    client.handle_body_end();
    assert_eq!(drain(&mut client), ["BDAT 7 LAST|.a|.|"]);
    assert_eq!(client.phase(), Phase::EndOfData);
    talk(&mut client, "250 2.0.0 queued\r\n", &["failed 550, delivered"]);
    // A long letter: each chunk is answered, whenever that comes.
    begin(&mut client, 1);
    talk(&mut client, "250 ok\r\n250 ok\r\n", &["body"]);
    for _ in 0..3 {
        client.handle_body("x".repeat(70_000).as_bytes());
    }
    assert_eq!(drain(&mut client).concat().matches("BDAT 70000|").count(), 3);
    talk(&mut client, "250 got it\r\n", &[]);
    client.handle_body_end();
    assert_eq!(drain(&mut client), ["BDAT 2 LAST||"], "the unfinished line is ended");
    talk(&mut client, "250 ok\r\n250 ok\r\n", &[]);
    talk(&mut client, "250 queued\r\n", &["delivered"]);
    assert_eq!(client.phase(), Phase::Ready);
}

#[test]
fn a_refused_chunk_refuses_the_letter_and_the_connection_goes_on() {
    let mut client = ready(TlsUse::Off, EHLO_CHUNKING);
    begin(&mut client, 1);
    talk(&mut client, "250 ok\r\n250 ok\r\n", &["body"]);
    client.handle_body("x".repeat(70_000).as_bytes());
    client.handle_body_end();
    drain(&mut client);
    talk(&mut client, "552 5.3.4 too large\r\n", &[]);
    talk(&mut client, "503 5.5.1 no transaction\r\n", &["failed 552"]);
    assert_eq!(client.phase(), Phase::Ready);
    // In the middle of the letter there is no way back.
    let mut client = ready(TlsUse::Off, EHLO_CHUNKING);
    begin(&mut client, 1);
    talk(&mut client, "250 ok\r\n250 ok\r\n", &["body"]);
    client.handle_body("x".repeat(70_000).as_bytes());
    drain(&mut client);
    talk(&mut client, "452 4.3.1 full\r\n", &["deferred 452", "close 452"]);
    // Lost after the last chunk: the next hop may have it.
    let mut client = ready(TlsUse::Off, EHLO_CHUNKING);
    begin(&mut client, 1);
    talk(&mut client, "250 ok\r\n250 ok\r\n", &["body"]);
    client.handle_body_end();
    drain(&mut client);
    client.handle_disconnected("reset by peer");
    let Some(Action::Finished { outcomes, .. }) = client.poll_action() else { panic!("not finished") };
    assert!(outcomes[0].reply().to_string().contains("possible duplicate"));
}

#[test]
fn nobody_gets_a_letter_whose_recipients_were_all_refused_in_chunks_either() {
    let mut client = ready(TlsUse::Off, EHLO_CHUNKING);
    begin(&mut client, 2);
    talk(&mut client, "250 ok\r\n550 no\r\n450 later\r\n", &["failed 550, deferred 450"]);
    assert!(begin(&mut client, 1)[0].starts_with("RSET|MAIL FROM:"));
}

#[test]
fn what_needs_smtputf8_goes_only_where_it_is_offered() {
    let utf8 = |reverse_path: &str, recipients: &[&str], utf8_header| Transaction {
        reverse_path: reverse_path.to_owned(),
        recipients: recipients.iter().map(|&path| path.to_owned()).collect(),
        utf8_header,
        dsn_recipients: vec![],
        ..transaction(1)
    };
    let offers = "250-mx\r\n250-PIPELINING\r\n250 SMTPUTF8\r\n";
    let mut client = ready(TlsUse::Off, offers);
    client.begin(utf8("ö@x.example", &["ü@x.example"], true));
    assert_eq!(drain(&mut client), ["MAIL FROM:<ö@x.example> SMTPUTF8|RCPT TO:<ü@x.example>|DATA|"]);
    let mut client = ready(TlsUse::Off, offers);
    client.begin(utf8("a@x.example", &["b@x.example"], false));
    assert!(!drain(&mut client).concat().contains("SMTPUTF8"), "asked for and not needed: lossless without");
    let mut client = ready(TlsUse::Off, EHLO);
    client.begin(utf8("a@x.example", &["ü@x.example", "b@x.example"], false));
    assert!(drain(&mut client).concat().ends_with("|RCPT TO:<b@x.example>|DATA|"));
    talk(&mut client, "250 ok\r\n250 ok\r\n354 go\r\n", &["body"]);
    client.handle_body_end();
    drain(&mut client);
    talk(&mut client, "250 ok\r\n", &["failed 553, delivered"]);
    for transaction in [utf8("ö@x.example", &["b@x.example"], false), utf8("a@x.example", &["b@x.example"], true)] {
        client.begin(transaction);
        assert_eq!(drain(&mut client), ["failed 553"]);
    }
    client.begin(utf8("a@x.example", &["ü@x.example"], false));
    assert_eq!(drain(&mut client), ["failed 553"], "nothing is said to the next hop");
}
