//! A session as a node drives it, without sockets and disks: parsed, decided by the same policy, answered.

use std::net::IpAddr;
use std::time::Instant;

use posthouse_node::connector::{
    Client, DomainKind, Domains, GrantedRight, PermissionGroup, ReceiveConnector, Verdict as Decided, decide_mail,
    decide_rcpt,
};
use posthouse_node::mail::{Domain, ReversePath};
use posthouse_node::smtp::{Action, Session, SessionConfig, Verdict};

/// What a device says for a letter, without the letter.
pub const TRANSACTION: &str = "MAIL FROM:<scanner@corp.example> SIZE=1000 BODY=8BITMIME\r\n\
    RCPT TO:<somebody@partner.example>\r\nRCPT TO:<somebody.else@partner.example>\r\nRSET\r\n";
/// Commands in it.
pub const COMMANDS: usize = 4;

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

/// A connector on which anybody may relay.
#[must_use]
pub fn relay() -> ReceiveConnector {
    let mut connector = ReceiveConnector::new("bench");
    connector.permission_groups.insert(PermissionGroup::AnonymousUsers);
    connector.rights.extend("anonymous:accept_any_recipient".parse::<GrantedRight>());
    connector
}

/// A session, greeted, and what its driver knows.
pub struct Dialogue<'a> {
    session: Session,
    connector: &'a ReceiveConnector,
    reverse_path: ReversePath,
    now: Instant,
}

impl<'a> Dialogue<'a> {
    /// Begins one, and says `EHLO`.
    #[must_use]
    pub fn begin(connector: &'a ReceiveConnector) -> Self {
        let now = Instant::now();
        let mut config = SessionConfig::new("mx.example", IpAddr::from([192, 0, 2, 7]));
        config.limits.max_protocol_errors = 0;
        let session = Session::new(config, now);
        let mut dialogue = Self { session, connector, reverse_path: ReversePath::Null, now };
        dialogue.say(b"EHLO device.example\r\n");
        dialogue
    }

    /// Hears what one read of a socket brought. Answers how many commands were accepted.
    pub fn say(&mut self, piece: &[u8]) -> usize {
        let Self { session, connector, reverse_path, now } = self;
        let client = Client { connector, range_expired: false, tls: false, credential: None };
        let mut accepted = 0;
        session.handle_bytes(*now, piece);
        while let Some(action) = session.poll_action() {
            match action {
                Action::Send(bytes) => {
                    accepted += bytes.windows(5).filter(|window| window == b"\n250 ").count();
                    accepted += usize::from(bytes.starts_with(b"250 "));
                    session.give_back(bytes);
                }
                Action::CheckMail { reverse_path: from, .. } => {
                    session.handle_mail(*now, verdict(decide_mail(&client, &from, &Corp).verdict));
                    *reverse_path = from;
                }
                Action::CheckRcpt { forward_path } => {
                    let decided = decide_rcpt(&client, reverse_path, &forward_path, &Corp);
                    session.handle_rcpt(*now, verdict(decided.verdict));
                }
                _ => {}
            }
        }
        accepted
    }
}
