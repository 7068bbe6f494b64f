//! How many commands a session takes a second on one core: parsed, decided by the same policy as in a node, answered.
//! Beside it the plainest thing that could be done with the same octets: splitting them into lines.
//! `cargo bench -p posthouse-benches --bench parse`

use std::net::IpAddr;
use std::time::Instant;

use posthouse_benches::alternate;
use posthouse_node::connector::{
    Client, DomainKind, Domains, GrantedRight, PermissionGroup, ReceiveConnector, Verdict as Decided, decide_mail,
    decide_rcpt,
};
use posthouse_node::mail::{Domain, ReversePath};
use posthouse_node::smtp::{Action, Session, SessionConfig, Verdict};

/// Transactions in one run; each has [`COMMANDS`] commands.
const TRANSACTIONS: usize = 50_000;
/// What a device says for a letter, without the letter.
const TRANSACTION: &str = "MAIL FROM:<scanner@corp.example> SIZE=1000 BODY=8BITMIME\r\n\
    RCPT TO:<somebody@partner.example>\r\nRCPT TO:<somebody.else@partner.example>\r\nRSET\r\n";
const COMMANDS: usize = 4;
/// What one read of a socket brings.
const READ_BYTES: usize = 16 * 1024;

struct Corp;

impl Domains for Corp {
    fn accepted(&self, domain: &Domain) -> Option<DomainKind> {
        (domain.as_str() == "corp.example").then_some(DomainKind::Authoritative)
    }
}

fn verdict(decided: Decided) -> Verdict {
    match decided {
        Decided::Permit => Verdict::Permit,
        Decided::Deny(reply) => Verdict::Deny(reply),
    }
}

/// Runs one session to its end, and answers how many commands were accepted.
fn converse(connector: &ReceiveConnector, stream: &[u8]) -> usize {
    let now = Instant::now();
    let mut config = SessionConfig::new("mx.example", IpAddr::from([192, 0, 2, 7]));
    config.limits.max_protocol_errors = 0;
    let mut session = Session::new(config, now);
    let client = Client { connector, range_expired: false, tls: false, credential: None };
    let mut reverse_path = ReversePath::Null;
    let mut accepted = 0;
    for piece in [&b"EHLO device.example\r\n"[..]].into_iter().chain(stream.chunks(READ_BYTES)) {
        session.handle_bytes(now, piece);
        while let Some(action) = session.poll_action() {
            match action {
                Action::Send(bytes) => accepted += bytes.windows(5).filter(|window| window == b"\n250 ").count() + 1,
                Action::CheckMail { reverse_path: from, .. } => {
                    session.handle_mail(now, verdict(decide_mail(&client, &from, &Corp).verdict));
                    reverse_path = from;
                }
                Action::CheckRcpt { forward_path } => {
                    let decided = decide_rcpt(&client, &reverse_path, &forward_path, &Corp);
                    session.handle_rcpt(now, verdict(decided.verdict));
                }
                _ => {}
            }
        }
    }
    accepted
}

fn main() {
    let mut connector = ReceiveConnector::new("bench");
    connector.permission_groups.insert(PermissionGroup::AnonymousUsers);
    connector.rights.extend("anonymous:accept_any_recipient".parse::<GrantedRight>());
    let stream = TRANSACTION.repeat(TRANSACTIONS).into_bytes();
    let commands = TRANSACTIONS * COMMANDS;
    let accepted = converse(&connector, &stream);
    assert!(accepted > commands / 2, "only {accepted} of {commands} commands were accepted");
    let pair = alternate(
        || converse(&connector, &stream),
        || stream.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).filter(|line| !line.is_empty()).count(),
    );
    let rate = |time: std::time::Duration| commands as f64 / time.as_secs_f64() / 1e6;
    println!("session: parse, policy and replies of {commands} commands; medians of 9 alternating rounds");
    println!(
        "session {:.2} million commands/s, lines alone {:.2}, ratio {:.1}",
        rate(pair.ours),
        rate(pair.peer),
        pair.ratio()
    );
}
