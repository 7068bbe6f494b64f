//! What would happen to a device, and why: the table and the decision of the sessions, asked without mail. The words
//! are for people; every verdict comes from [`super::table`] and [`super::permission`].

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::permission::{
    Client, CredentialFacts, Decision, Domains, Reason, Verdict, decide_auth, decide_mail, decide_rcpt,
};
use super::receive::ReceiveConnector;
use super::recipient_domain::RecipientDomainPattern;
use super::rights::{Principal, Rights};
use super::table::{Candidate, CandidateResult, ConnectorTable, Match};
use crate::mail::{ForwardPath, Reply, ReversePath, reply};

/// What is asked.
pub struct Query<'a> {
    /// The address that the device dials, and the service port; the unspecified address for the wildcard.
    pub local: SocketAddr,
    /// The device's address.
    pub source: IpAddr,
    /// Unix milliseconds.
    pub now_ms: i64,
    /// Whether the device uses TLS.
    pub tls: bool,
    /// The credential as it is on the connector that wins, when the device authenticates.
    pub credential: Option<&'a dyn Fn(&ReceiveConnector) -> CredentialFacts<'a>>,
    /// What `MAIL FROM` says.
    pub sender: &'a ReversePath,
    /// What `RCPT TO` says, in order.
    pub recipients: &'a [ForwardPath],
}

/// One step of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `connect`, `STARTTLS`, `AUTH`, `MAIL FROM` or `RCPT address`.
    pub step: String,
    /// Whether it is accepted.
    pub accepted: bool,
    /// Why, and the reply where it is not accepted.
    pub detail: String,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The connector that takes the connection.
    pub winner: Option<Match>,
    /// Every range that contains the device's address, the winner first.
    pub candidates: Vec<Candidate>,
    /// What the session may do.
    pub rights: Rights,
    /// The steps, up to the end or the first refusal of the whole session; every recipient has one.
    pub steps: Vec<Step>,
    /// Whether every step is accepted.
    pub accepted: bool,
    /// What the device would read: the first refusal, or the reply to the last command.
    pub reply: Reply,
    /// One sentence: why.
    pub why: String,
    /// Commands that would allow it; empty when nothing is refused.
    pub fixes: Vec<String>,
}

/// Collects the steps and remembers the first refusal.
struct Walk {
    steps: Vec<Step>,
    refused: Option<(Reply, String, Option<Reason>, Option<ForwardPath>)>,
}

impl Walk {
    fn accept(&mut self, step: impl Into<String>, detail: impl fmt::Display) {
        self.steps.push(Step { step: step.into(), accepted: true, detail: detail.to_string() });
    }

    fn refuse(&mut self, step: impl Into<String>, reply: Reply, why: String, reason: Option<Reason>) {
        self.steps.push(Step { step: step.into(), accepted: false, detail: reply.to_string() });
        if self.refused.is_none() {
            self.refused = Some((reply, why, reason, None));
        }
    }

    /// Notes a decision; false if it was no.
    fn decide(&mut self, step: impl Into<String>, decision: &Decision) -> bool {
        let reason = decision.reason();
        let words = reason.map(|reason| reason.to_string()).unwrap_or_default();
        match &decision.verdict {
            Verdict::Permit => {
                self.accept(step, words);
                true
            }
            Verdict::Deny(reply) => {
                self.refuse(step, reply.clone(), words, reason);
                false
            }
        }
    }
}

/// Says what would happen to a device that connects, authenticates if it has a credential, and submits one letter.
#[must_use]
pub fn explain(table: &ConnectorTable, domains: &dyn Domains, query: &Query<'_>) -> Explanation {
    let candidates = table.candidates(query.local, query.source);
    let mut walk = Walk { steps: Vec::new(), refused: None };
    let winner = table.find(query.local, query.source, query.now_ms);
    let Some(winner) = winner else {
        let why = match candidates.first().map(|candidate| candidate.result) {
            Some(CandidateResult::Disabled) => "only disabled connectors have a range with this address",
            Some(CandidateResult::Shadowed) => {
                "a connector is bound to this very address, and none of its ranges contains the device"
            }
            _ => "no connector on this port has a range with this address",
        };
        walk.refuse("connect", reply::service_not_available(), why.to_owned(), None);
        return finish(walk, None, candidates, Rights::NONE, table, query);
    };
    let credential = query.credential.map(|facts| facts(&winner.connector));
    let client = Client { connector: &winner.connector, range_expired: winner.expired, tls: query.tls, credential };
    let rights = client.rights();
    walk_session(&mut walk, &client, &winner, domains, query);
    finish(walk, Some(winner.clone()), candidates, rights, table, query)
}

fn walk_session(walk: &mut Walk, client: &Client<'_>, winner: &Match, domains: &dyn Domains, query: &Query<'_>) {
    let connector = client.connector;
    let expired = if winner.expired { ", which has expired" } else { "" };
    walk.accept("connect", format_args!("connector {:?} by range {}{expired}", connector.name, winner.range));
    let tls = match (connector.offers_tls(), connector.require_tls) {
        (false, _) => "not offered",
        (true, false) => "optional",
        (true, true) => "required",
    };
    walk.accept("STARTTLS", tls);
    if client.credential.is_some() {
        if !connector.offers_auth(client.tls) {
            let why = if connector.offers_auth(true) {
                "the connector offers AUTH under TLS only"
            } else {
                "the connector offers no AUTH"
            };
            walk.refuse("AUTH", reply::unrecognized_authentication_type(), why.to_owned(), None);
            return;
        }
        if !walk.decide("AUTH", &decide_auth(client)) {
            return;
        }
    }
    if !walk.decide("MAIL FROM", &decide_mail(client, query.sender, domains)) {
        return;
    }
    for recipient in query.recipients {
        let before = walk.refused.is_some();
        let decision = decide_rcpt(client, query.sender, recipient, domains);
        walk.decide(format!("RCPT {recipient}"), &decision);
        if let (false, Some((.., path))) = (before, &mut walk.refused) {
            *path = Some(recipient.clone());
        }
    }
}

fn finish(
    walk: Walk,
    winner: Option<Match>,
    candidates: Vec<Candidate>,
    rights: Rights,
    table: &ConnectorTable,
    query: &Query<'_>,
) -> Explanation {
    let Walk { steps, refused } = walk;
    let accepted = refused.is_none();
    let (reply, why, fixes) = match refused {
        Some((reply, why, reason, recipient)) => {
            let connector = winner.as_ref().map(|winner| &winner.connector);
            let fixes = fixes(reason, connector, recipient.as_ref(), &candidates, table, query);
            (reply, why, fixes)
        }
        None if query.recipients.is_empty() => (reply::sender_ok(), last_detail(&steps), Vec::new()),
        None => (reply::recipient_ok(), last_detail(&steps), Vec::new()),
    };
    Explanation { winner, candidates, rights, steps, accepted, reply, why, fixes }
}

fn last_detail(steps: &[Step]) -> String {
    steps.last().map(|step| step.detail.clone()).unwrap_or_default()
}

/// The commands that would turn a refusal into a yes.
fn fixes(
    reason: Option<Reason>,
    connector: Option<&Arc<ReceiveConnector>>,
    recipient: Option<&ForwardPath>,
    candidates: &[Candidate],
    table: &ConnectorTable,
    query: &Query<'_>,
) -> Vec<String> {
    let source = query.source;
    let name = connector.map(|connector| quoted(&connector.name)).unwrap_or_default();
    let allow = |why: &str| {
        let relay = table.connectors().find(|other| {
            other.relays_anonymously() && other.bindings.iter().any(|binding| binding.port == query.local.port())
        });
        match relay {
            Some(relay) => format!("{why}: posthousectl allowlist add {} {source}", quoted(&relay.name)),
            None => format!("{why}: posthousectl connector create relay --from {source} --relay external"),
        }
    };
    match reason {
        None => match (connector, candidates.first()) {
            (None, Some(first)) if first.result == CandidateResult::Disabled => {
                vec![format!("posthousectl connector enable {}", quoted(&first.connector.name))]
            }
            (None, _) => vec![allow(&format!("if {source} should relay"))],
            (Some(connector), _) if connector.offers_auth(true) => {
                vec!["let the device use TLS before it logs in".to_owned()]
            }
            (Some(_), _) => vec!["let the device log in on the submission port, 587 or 465".to_owned()],
        },
        Some(Reason::TlsRequired) => vec![
            "let the device use STARTTLS".to_owned(),
            format!("if it cannot: posthousectl connector set {name} --require-tls false"),
        ],
        Some(Reason::RangeExpired) => match candidates.first() {
            Some(first) => vec![format!(
                "if {source} should still be allowed: posthousectl allowlist add {name} {} --expires 90d",
                first.range
            )],
            None => Vec::new(),
        },
        Some(Reason::CredentialUnusable) => vec!["posthousectl credential list".to_owned()],
        Some(Reason::NoSubmit(Principal::Anonymous)) => {
            let mut fixes = vec![allow(&format!("if {source} should relay"))];
            if connector.is_some_and(|connector| connector.offers_auth(true)) {
                fixes.insert(0, "let the device log in with a credential".to_owned());
            }
            fixes
        }
        Some(Reason::NoSubmit(Principal::Authenticated)) => {
            vec![format!(
                "if credentials should submit here: posthousectl connector set {name} --permission-groups exchange_users"
            )]
        }
        Some(Reason::SenderNeeds(_) | Reason::NullSenderOfCredential) => {
            let Some(credential) = connector.and_then(|connector| query.credential.map(|facts| facts(connector)))
            else {
                return vec![format!("posthousectl connector set {name} --permission-groups anonymous_users")];
            };
            let sender = match query.sender {
                ReversePath::Null => "'*'".to_owned(),
                ReversePath::Mailbox(mailbox) => quoted(&mailbox.to_string()),
            };
            vec![format!("posthousectl credential set {} --sender {sender}", quoted(credential.user))]
        }
        Some(Reason::NoRelay(_) | Reason::RoutedLocalPart) => {
            let mut fixes = vec![allow(&format!("if {source} should relay"))];
            if let (Some(Reason::NoRelay(_)), Some(domain)) = (reason, recipient.and_then(ForwardPath::domain))
                && !domain.is_literal()
            {
                fixes.push(format!("if {domain} is ours: posthousectl domain add {domain}"));
            }
            fixes
        }
        Some(Reason::DeniedDomain) => vec![format!(
            "take it out of the list: posthousectl connector set {name} --denied-recipient-domains {}",
            connector.map(|connector| rest(connector, recipient)).unwrap_or_default()
        )],
        Some(Reason::NotAllowedDomain) => {
            let listed = connector.map(|connector| words(&connector.allowed_recipient_domains)).unwrap_or_default();
            let domain = recipient.and_then(ForwardPath::domain).map(ToString::to_string).unwrap_or_default();
            vec![format!("posthousectl connector set {name} --allowed-recipient-domains {listed},{domain}")]
        }
        Some(Reason::RoutedPastList) => vec!["write to the recipient's own address".to_owned()],
        Some(Reason::ReservedTopLevel) => {
            vec![format!("posthousectl connector set {name} --reject-reserved-top-level-recipient-domains false")]
        }
        Some(Reason::ReservedSecondLevel) => {
            vec![format!("posthousectl connector set {name} --reject-reserved-second-level-recipient-domains false")]
        }
        Some(Reason::SingleLabel) => {
            vec![format!("posthousectl connector set {name} --reject-single-label-recipient-domains false")]
        }
        Some(
            Reason::MaySubmit(_)
            | Reason::OwnSender
            | Reason::SenderByRight(_)
            | Reason::NullSender
            | Reason::Postmaster
            | Reason::AcceptedDomain(_)
            | Reason::MayRelay(_),
        ) => Vec::new(),
    }
}

/// A list of patterns as a flag takes it.
fn words<'a>(patterns: impl IntoIterator<Item = &'a RecipientDomainPattern>) -> String {
    let list = patterns.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    quoted(&list)
}

/// The denied domains without those that rule this recipient out.
fn rest(connector: &ReceiveConnector, recipient: Option<&ForwardPath>) -> String {
    let domain = recipient.and_then(ForwardPath::domain);
    let matches = |pattern: &&RecipientDomainPattern| domain.is_some_and(|domain| pattern.matches(domain));
    words(connector.denied_recipient_domains.iter().filter(|pattern| !matches(pattern)))
}

/// A word as a shell takes it: these lines are made to be pasted.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@:/+,".contains(c);
    if !word.is_empty() && !word.starts_with('-') && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::connector::{AllowlistRange, AuthMechanism, DomainKind, GrantedRight, PermissionGroup, SenderRule};
    use crate::mail::Domain;

    struct Corp;

    impl Domains for Corp {
        fn accepted(&self, domain: &Domain) -> Option<DomainKind> {
            (domain.as_str() == "corp.example").then_some(DomainKind::Authoritative)
        }
    }

    fn entries(list: &[&str]) -> Vec<AllowlistRange> {
        list.iter().map(|text| AllowlistRange { range: text.parse().unwrap(), expires_at_ms: None }).collect()
    }

    fn scanners() -> ReceiveConnector {
        ReceiveConnector {
            name: "scanners".to_owned(),
            rights: ["anonymous:accept_any_recipient".parse().unwrap()].into(),
            ..ReceiveConnector::default_receive()
        }
    }

    fn table() -> ConnectorTable {
        ConnectorTable::build([
            (Arc::new(ReceiveConnector::default_receive()), entries(&["0.0.0.0/0", "::/0"])),
            (Arc::new(scanners()), entries(&["10.20.31.0-10.20.31.63"])),
            (Arc::new(ReceiveConnector::default_submission()), entries(&["0.0.0.0/0", "::/0"])),
        ])
    }

    fn ask(table: &ConnectorTable, source: &str, port: u16, sender: &str, recipients: &[&str]) -> Explanation {
        let sender = ReversePath::parse_path(sender).unwrap();
        let recipients: Vec<_> = recipients.iter().map(|text| ForwardPath::parse_path(text).unwrap()).collect();
        explain(
            table,
            &Corp,
            &Query {
                local: SocketAddr::new("0.0.0.0".parse().unwrap(), port),
                source: source.parse().unwrap(),
                now_ms: 0,
                tls: false,
                credential: None,
                sender: &sender,
                recipients: &recipients,
            },
        )
    }

    #[test]
    fn a_listed_device_is_told_its_connector_and_the_losers() {
        let told = ask(&table(), "10.20.31.7", 25, "<scan@corp.example>", &["<a@partner.example>"]);
        assert!(told.accepted, "{told:?}");
        assert_eq!(told.winner.unwrap().connector.name, "scanners");
        assert_eq!(told.reply.to_string(), "250 2.1.5 Recipient OK");
        let lines: Vec<_> =
            told.candidates.iter().map(|c| format!("{} {} {}", c.connector.name, c.range, c.result)).collect();
        assert_eq!(lines, ["scanners 10.20.31.0/26 WINS most specific", "default 0.0.0.0/0 lost wider"]);
        assert!(told.fixes.is_empty());
        assert_eq!(told.why, "anonymous clients may relay externally on this connector");
    }

    #[test]
    fn a_stranger_is_told_the_reply_and_the_commands_that_would_allow_it() {
        let told = ask(&table(), "10.9.8.7", 25, "<x@corp.example>", &["<b@corp.example>", "<a@partner.example>"]);
        assert!(!told.accepted);
        assert_eq!(told.reply.to_string(), "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain");
        assert_eq!(
            told.fixes,
            [
                "if 10.9.8.7 should relay: posthousectl allowlist add scanners 10.9.8.7",
                "if partner.example is ours: posthousectl domain add partner.example"
            ]
        );
        let accepted: Vec<_> = told.steps.iter().map(|step| (step.step.as_str(), step.accepted)).collect();
        assert_eq!(
            accepted,
            [
                ("connect", true),
                ("STARTTLS", true),
                ("MAIL FROM", true),
                ("RCPT b@corp.example", true),
                ("RCPT a@partner.example", false)
            ]
        );
    }

    #[test]
    fn a_recipient_domain_that_a_list_rules_out_is_told_with_the_list() {
        let mut connector = scanners();
        connector.allowed_recipient_domains = ["partner.example".parse().unwrap()].into();
        let table = |connector: &ReceiveConnector| {
            ConnectorTable::build([(Arc::new(connector.clone()), entries(&["10.0.0.0/8"]))])
        };
        let told = ask(&table(&connector), "10.20.31.7", 25, "<>", &["<a@other.example>"]);
        assert_eq!(told.reply.to_string(), "550 5.7.1 Delivery not authorized, recipient domain is not allowed here");
        assert_eq!(told.why, "the connector allows certain recipient domains, and not this one");
        assert_eq!(
            told.fixes,
            ["posthousectl connector set scanners --allowed-recipient-domains partner.example,other.example"]
        );
        connector.allowed_recipient_domains.clear();
        connector.denied_recipient_domains = ["a.example", "*.other.example"].map(|text| text.parse().unwrap()).into();
        let told = ask(&table(&connector), "10.20.31.7", 25, "<>", &["<a@mx.other.example>"]);
        assert_eq!(
            told.fixes,
            ["take it out of the list: posthousectl connector set scanners --denied-recipient-domains a.example"]
        );
    }

    #[test]
    fn nobody_home_is_421_and_says_who_could_be() {
        let told = ask(&table(), "10.9.8.7", 2525, "<>", &["<a@corp.example>"]);
        assert_eq!(told.reply.to_string(), "421 4.3.2 Service not available");
        assert!(told.winner.is_none() && told.candidates.is_empty() && !told.fixes.is_empty());
        let mut off = scanners();
        off.enabled = false;
        let table = ConnectorTable::build([(Arc::new(off), entries(&["10.0.0.0/8"]))]);
        let told = ask(&table, "10.9.8.7", 25, "<>", &["<a@corp.example>"]);
        assert_eq!(told.fixes, ["posthousectl connector enable scanners"]);
    }

    #[test]
    fn a_credential_without_tls_is_refused_at_auth() {
        let (sender, recipients) =
            (ReversePath::parse_path("<a@corp.example>").unwrap(), [ForwardPath::parse_path("<a@x.example>").unwrap()]);
        let rule = SenderRule(vec!["@corp.example".parse().unwrap()]);
        let facts = |_: &ReceiveConnector| CredentialFacts { user: "erp", senders: &rule, usable: true };
        let mut query = Query {
            local: "0.0.0.0:587".parse().unwrap(),
            source: "10.9.8.7".parse().unwrap(),
            now_ms: 0,
            tls: false,
            credential: Some(&facts),
            sender: &sender,
            recipients: &recipients,
        };
        let plain = explain(&table(), &Corp, &query);
        assert_eq!(plain.reply.to_string(), "504 5.7.4 Unrecognized authentication type");
        query.tls = true;
        assert!(explain(&table(), &Corp, &query).accepted);
        let other = ReversePath::parse_path("<a@other.example>").unwrap();
        query.sender = &other;
        let told = explain(&table(), &Corp, &query);
        assert_eq!(told.reply.to_string(), "550 5.7.60 SMTP; Client does not have permissions to send as this sender");
        assert_eq!(told.fixes, ["posthousectl credential set erp --sender a@other.example"]);
    }

    #[test]
    fn a_pasted_fix_is_one_word_per_name() {
        assert_eq!(quoted("scanners"), "scanners");
        assert_eq!(quoted("Büro 3"), "'Büro 3'");
        assert_eq!(quoted("a'; rm -rf b"), r"'a'\''; rm -rf b'");
        assert_eq!(quoted("--all"), "'--all'");
    }

    fn any_connector() -> impl Strategy<Value = (ReceiveConnector, Vec<AllowlistRange>)> {
        let groups = prop::collection::btree_set(prop::sample::select(&PermissionGroup::ALL[1..]), 0..3);
        let rights = prop::collection::btree_set(
            prop::sample::select(vec![
                "anonymous:submit",
                "anonymous:accept_any_sender",
                "anonymous:accept_any_recipient",
                "authenticated:submit",
                "authenticated:accept_any_sender",
                "authenticated:accept_any_recipient",
            ]),
            0..4,
        );
        let mechanisms = prop::sample::select(vec![
            vec![AuthMechanism::None],
            vec![AuthMechanism::Tls],
            vec![AuthMechanism::Tls, AuthMechanism::BasicAuth],
            vec![AuthMechanism::Tls, AuthMechanism::BasicAuth, AuthMechanism::BasicAuthRequireTls],
            vec![AuthMechanism::Tls, AuthMechanism::ScramSha256],
            vec![AuthMechanism::Tls, AuthMechanism::ClientCertificate],
        ]);
        let range = (
            prop::sample::select(vec!["10.0.0.0/8", "10.0.0.0/24", "10.0.0.7", "0.0.0.0/0"]),
            prop::option::of(0_i64..20),
        );
        let patterns = || {
            let some = prop::sample::select(vec!["corp.example", "*.net", "other.net", "*"]);
            prop_oneof![3 => Just(None), 1 => some.prop_map(Some)]
        };
        let lists = (patterns(), patterns());
        (groups, rights, mechanisms, prop::collection::vec(range, 1..3), any::<[bool; 5]>(), 0_usize..3, lists)
            .prop_map(
                |(groups, rights, mechanisms, ranges, [enabled, require_tls, top, single, specific], name, lists)| {
                    let (allowed, denied) = lists;
                    let mut connector = ReceiveConnector::new(format!("c{name}"));
                    connector.permission_groups = groups;
                    connector.rights = rights.into_iter().map(|text| text.parse::<GrantedRight>().unwrap()).collect();
                    connector.auth_mechanism = mechanisms.into_iter().collect();
                    connector.enabled = enabled;
                    connector.require_tls = require_tls && connector.offers_tls();
                    connector.reject_reserved_top_level_recipient_domains = top;
                    connector.reject_single_label_recipient_domains = single;
                    connector.allowed_recipient_domains =
                        allowed.into_iter().map(|text| text.parse().unwrap()).collect();
                    connector.denied_recipient_domains = denied.into_iter().map(|text| text.parse().unwrap()).collect();
                    if specific {
                        connector.bindings = vec!["10.0.0.25:25".parse().unwrap()];
                    }
                    let ranges = ranges
                        .into_iter()
                        .map(|(text, expires_at_ms)| AllowlistRange { range: text.parse().unwrap(), expires_at_ms })
                        .collect();
                    (connector, ranges)
                },
            )
    }

    /// The path of a session, written out a second time: accepted, or the reply that ends it for the recipient.
    fn session(table: &ConnectorTable, query: &Query<'_>, recipient: &ForwardPath) -> Result<(), String> {
        let Some(found) = table.find(query.local, query.source, query.now_ms) else {
            return Err("421 4.3.2 Service not available".to_owned());
        };
        let credential = query.credential.map(|facts| facts(&found.connector));
        let client = Client { connector: &found.connector, range_expired: found.expired, tls: query.tls, credential };
        if credential.is_some() && !found.connector.offers_auth(query.tls) {
            return Err("504 5.7.4 Unrecognized authentication type".to_owned());
        }
        let auth = credential.map(|_| decide_auth(&client));
        let mail = || decide_mail(&client, query.sender, &Corp);
        let rcpt = || decide_rcpt(&client, query.sender, recipient, &Corp);
        for decision in auth.into_iter().chain(std::iter::once_with(mail)).chain(std::iter::once_with(rcpt)) {
            if let Verdict::Deny(reply) = decision.verdict {
                return Err(reply.to_string());
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn a_session_and_explain_never_disagree(
            connectors in prop::collection::vec(any_connector(), 0..4),
            source in prop::sample::select(vec!["10.0.0.7", "10.0.0.8", "10.9.9.9", "192.0.2.1", "::ffff:10.0.0.7"]),
            local in prop::sample::select(vec!["0.0.0.0:25", "10.0.0.25:25", "10.0.0.26:25", "0.0.0.0:587"]),
            sender in prop::sample::select(vec!["<>", "<a@corp.example>", "<a@other.net>"]),
            recipient in prop::sample::select(vec!["<b@corp.example>", "<b@other.net>", "<b@x.test>", "<b@host>", "<Postmaster>", "<b%x@corp.example>", "<b@[192.0.2.1]>"]),
            credential in prop::option::of((prop::sample::select(vec!["*", "@corp.example"]), any::<bool>())),
            tls: bool,
            now_ms in 0_i64..20,
        ) {
            let table = ConnectorTable::build(connectors.into_iter().map(|(connector, list)| (Arc::new(connector), list)));
            let (sender, recipient) = (ReversePath::parse_path(sender).unwrap(), ForwardPath::parse_path(recipient).unwrap());
            let rule = SenderRule(credential.iter().map(|(text, _)| text.parse().unwrap()).collect());
            let usable = credential.is_some_and(|(_, usable)| usable);
            let facts = |_: &ReceiveConnector| CredentialFacts { user: "u", senders: &rule, usable };
            let query = Query {
                local: local.parse().unwrap(),
                source: source.parse().unwrap(),
                now_ms,
                tls,
                credential: credential.is_some().then_some(&facts as _),
                sender: &sender,
                recipients: std::slice::from_ref(&recipient),
            };
            let told = explain(&table, &Corp, &query);
            match session(&table, &query, &recipient) {
                Ok(()) => prop_assert!(told.accepted, "{told:?}"),
                Err(reply) => {
                    prop_assert!(!told.accepted, "{told:?}");
                    prop_assert_eq!(told.reply.to_string(), reply);
                }
            }
            let wins = told.candidates.iter().find(|candidate| candidate.result == CandidateResult::Wins);
            prop_assert_eq!(wins.map(|c| (&c.connector.name, c.range)), told.winner.as_ref().map(|w| (&w.connector.name, w.range)));
        }
    }
}
