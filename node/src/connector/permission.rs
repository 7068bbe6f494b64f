//! The relay decision: one pure place, asked by sessions and by `explain` alike, so that they cannot disagree.
//!
//! The rules are Exchange's (rights, principals, replies). Where they meet what Exchange does not have:
//!
//! * A credential's own senders take the place of a mailbox's addresses. Beyond them it needs the same rights as a
//!   stranger: `accept_authoritative_domain_sender` for our authoritative domains, `accept_any_sender` for the rest.
//! * The null reverse-path is nobody's. A stranger may use it (RFC 5321 §4.5.5: reports must get in); a credential
//!   only where its senders include `*` or it has `accept_any_sender`.
//! * An expired range, or a credential that was disabled, expired or deleted meanwhile, has no right at all.
//! * `RCPT` repeats the decision about the sender, because rights may have changed since `MAIL`.
//! * `RCPT TO:<Postmaster>` is always taken (RFC 5321 §4.5.1).
//! * The connector's recipient-domain lists only ever take away: they are looked at last, of what would be accepted.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::receive::ReceiveConnector;
use super::reserved::{Unroutable, unroutable};
use super::rights::{Principal, Right, Rights, effective_rights};
use super::sender::SenderRule;
use crate::mail::{Domain, ForwardPath, Mailbox, Reply, ReversePath, reply};

/// What an accepted domain is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DomainKind {
    /// Ours: every mailbox of it is in our organisation.
    Authoritative,
    /// Ours together with another system inside.
    InternalRelay,
    /// Somebody else's, whose mail we pass on.
    ExternalRelay,
}

super::rights::words!(DomainKind, "an accepted domain type", "", {
    Authoritative => "authoritative",
    InternalRelay => "internal_relay" | "internal",
    ExternalRelay => "external_relay" | "external" | "relay",
});

/// The accepted domains.
pub trait Domains {
    /// What `domain` is to us, if we take mail for it.
    fn accepted(&self, domain: &Domain) -> Option<DomainKind>;
}

/// What the decision needs to know of a credential.
#[derive(Clone, Copy, Debug)]
pub struct CredentialFacts<'a> {
    /// Its user name.
    pub user: &'a str,
    /// As whom it may send.
    pub senders: &'a SenderRule,
    /// Whether it may still be used here: false once it was disabled, expired, deleted or tied to other connectors
    /// or addresses.
    pub usable: bool,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// The connector that took the connection.
    pub connector: &'a ReceiveConnector,
    /// Whether the range by which it did has expired.
    pub range_expired: bool,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// The credential that authenticated.
    pub credential: Option<CredentialFacts<'a>>,
}

/// Yes, or the reply that says no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Permit,
    /// Answer this.
    Deny(Reply),
}

/// One fact on the way to a decision. The last one decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The connector demands TLS and there is none.
    TlsRequired,
    /// The matching range has expired.
    RangeExpired,
    /// The credential was disabled, expired or deleted, or does not belong here.
    CredentialUnusable,
    /// The principal has no right to submit.
    NoSubmit(Principal),
    /// The principal may submit.
    MaySubmit(Principal),
    /// The sender is one of the credential's own.
    OwnSender,
    /// A right covers the sender.
    SenderByRight(Right),
    /// The null reverse-path of a stranger.
    NullSender,
    /// The sender would need this right.
    SenderNeeds(Right),
    /// A null reverse-path from a credential that is held to its own addresses.
    NullSenderOfCredential,
    /// `Postmaster` without a domain.
    Postmaster,
    /// A reserved top-level domain.
    ReservedTopLevel,
    /// A reserved second-level domain.
    ReservedSecondLevel,
    /// A domain of one label.
    SingleLabel,
    /// The domain is in `denied_recipient_domains`.
    DeniedDomain,
    /// There are `allowed_recipient_domains`, and the domain is not among them.
    NotAllowedDomain,
    /// The connector has a recipient-domain list, and the local part names a way past it.
    RoutedPastList,
    /// The recipient's domain is accepted.
    AcceptedDomain(DomainKind),
    /// The domain is accepted, but the local part names a way further (`user%other`, `other!user`, `"user@other"`).
    RoutedLocalPart,
    /// The domain is not accepted, but the principal may relay.
    MayRelay(Principal),
    /// The domain is not accepted, and the principal may not relay.
    NoRelay(Principal),
}

/// The reasons of one decision, in order. Holds its few entries inline: decisions are made per command.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reasons {
    list: [Option<Reason>; REASONS_MAX],
}

/// Submit, sender, recipient.
const REASONS_MAX: usize = 3;

/// A verdict and how it came about.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Yes or no.
    pub verdict: Verdict,
    /// Why.
    pub reasons: Reasons,
}

impl<'a> CredentialFacts<'a> {
    /// A credential that exists no more.
    #[must_use]
    pub const fn gone(user: &'a str) -> Self {
        Self { user, senders: SenderRule::NONE, usable: false }
    }
}

impl Client<'_> {
    /// On whose behalf the session acts.
    #[must_use]
    pub fn principal(&self) -> Principal {
        if self.credential.is_some() { Principal::Authenticated } else { Principal::Anonymous }
    }

    /// What the session may do now.
    #[must_use]
    pub fn rights(&self) -> Rights {
        if self.range_expired || self.credential.is_some_and(|credential| !credential.usable) {
            return Rights::NONE;
        }
        effective_rights(self.connector, self.principal())
    }

    /// The first half of each decision: may this session submit at all?
    fn submit(&self, rights: Rights) -> Result<Reason, (Reason, Reply)> {
        if self.connector.require_tls && !self.tls {
            return Err((Reason::TlsRequired, reply::starttls_required()));
        }
        let refusal = if self.range_expired {
            Reason::RangeExpired
        } else if self.credential.is_some_and(|credential| !credential.usable) {
            Reason::CredentialUnusable
        } else if rights.contains(Right::Submit) {
            return Ok(Reason::MaySubmit(self.principal()));
        } else {
            Reason::NoSubmit(self.principal())
        };
        Err((refusal, reply::not_authenticated_to_send_anonymous()))
    }

    fn sender(&self, rights: Rights, path: &ReversePath, domains: &dyn Domains) -> Result<Reason, (Reason, Reply)> {
        if self.credential.is_some_and(|credential| credential.senders.allows(path)) {
            return Ok(Reason::OwnSender);
        }
        let Some(mailbox) = path.mailbox() else {
            return match (self.credential, rights.contains(Right::AcceptAnySender)) {
                (None, _) => Ok(Reason::NullSender),
                (Some(_), true) => Ok(Reason::SenderByRight(Right::AcceptAnySender)),
                (Some(_), false) => Err((Reason::NullSenderOfCredential, reply::cannot_send_as())),
            };
        };
        let needed = match domains.accepted(mailbox.domain()) {
            Some(DomainKind::Authoritative) => Right::AcceptAuthoritativeDomainSender,
            Some(DomainKind::InternalRelay | DomainKind::ExternalRelay) | None => Right::AcceptAnySender,
        };
        if rights.contains(needed) {
            Ok(Reason::SenderByRight(needed))
        } else {
            Err((Reason::SenderNeeds(needed), reply::cannot_send_as()))
        }
    }

    /// What the recipient-domain lists take away.
    fn listed(&self, mailbox: &Mailbox) -> Result<(), (Reason, Reply)> {
        let ReceiveConnector { allowed_recipient_domains: allowed, denied_recipient_domains: denied, .. } =
            self.connector;
        if allowed.is_empty() && denied.is_empty() {
            return Ok(());
        }
        let domain = mailbox.domain();
        let reason = if denied.iter().any(|pattern| pattern.matches(domain)) {
            Reason::DeniedDomain
        } else if !allowed.is_empty() && !allowed.iter().any(|pattern| pattern.matches(domain)) {
            Reason::NotAllowedDomain
        } else if is_routed(mailbox.local_part()) {
            // `user%denied.example@allowed.example`: we rewrite nothing, the system behind us might.
            Reason::RoutedPastList
        } else {
            return Ok(());
        };
        Err((reason, reply::recipient_domain_not_allowed()))
    }

    fn recipient(&self, rights: Rights, path: &ForwardPath, domains: &dyn Domains) -> Result<Reason, (Reason, Reply)> {
        let Some(mailbox) = path.mailbox() else {
            return Ok(Reason::Postmaster);
        };
        let domain = mailbox.domain();
        match unroutable(self.connector, domain) {
            Some(Unroutable::ReservedTopLevel) => {
                return Err((Reason::ReservedTopLevel, reply::reserved_top_level_domain()));
            }
            Some(Unroutable::ReservedSecondLevel) => {
                return Err((Reason::ReservedSecondLevel, reply::reserved_second_level_domain()));
            }
            Some(Unroutable::SingleLabel) => {
                return Err((Reason::SingleLabel, reply::single_label_domain()));
            }
            None => {}
        }
        // An address literal names a host, not a domain that somebody accepted.
        let accepted = if domain.is_literal() { None } else { domains.accepted(domain) };
        let relays = rights.contains(Right::AcceptAnyRecipient);
        let reason = match accepted {
            // We never rewrite a local part, but the system behind us might: then we would have relayed.
            Some(_) if !relays && is_routed(mailbox.local_part()) => {
                return Err((Reason::RoutedLocalPart, reply::unable_to_relay()));
            }
            Some(kind) => Reason::AcceptedDomain(kind),
            None if relays => Reason::MayRelay(self.principal()),
            None => return Err((Reason::NoRelay(self.principal()), reply::unable_to_relay())),
        };
        self.listed(mailbox).map(|()| reason)
    }
}

/// Whether a local part carries another address: the percent hack, a bang path, or a quoted address.
fn is_routed(local_part: &str) -> bool {
    local_part.contains(['%', '!', '@'])
}

/// Decides about a login that gave the right password: whether credentials may submit on this connector at all.
#[must_use]
pub fn decide_auth(client: &Client<'_>) -> Decision {
    let mut reasons = Reasons::default();
    let rights = effective_rights(client.connector, Principal::Authenticated);
    let refusal = if client.range_expired {
        Reason::RangeExpired
    } else if client.credential.is_some_and(|credential| !credential.usable) {
        Reason::CredentialUnusable
    } else if rights.contains(Right::Submit) {
        reasons.push(Reason::MaySubmit(Principal::Authenticated));
        return Decision { verdict: Verdict::Permit, reasons };
    } else {
        Reason::NoSubmit(Principal::Authenticated)
    };
    reasons.push(refusal);
    Decision { verdict: Verdict::Deny(reply::authentication_unsuccessful()), reasons }
}

/// Decides about `MAIL FROM`.
#[must_use]
pub fn decide_mail(client: &Client<'_>, reverse_path: &ReversePath, domains: &dyn Domains) -> Decision {
    let rights = client.rights();
    Decision::of([Some(&|| client.submit(rights)), Some(&|| client.sender(rights, reverse_path, domains)), None])
}

/// Decides about one `RCPT TO` of a mail transaction that began with `reverse_path`.
#[must_use]
pub fn decide_rcpt(
    client: &Client<'_>,
    reverse_path: &ReversePath,
    forward_path: &ForwardPath,
    domains: &dyn Domains,
) -> Decision {
    let rights = client.rights();
    if matches!(forward_path, ForwardPath::Postmaster) {
        return Decision::of([Some(&|| Ok(Reason::Postmaster)), None, None]);
    }
    Decision::of([
        Some(&|| client.submit(rights)),
        Some(&|| client.sender(rights, reverse_path, domains)),
        Some(&|| client.recipient(rights, forward_path, domains)),
    ])
}

type Check<'a> = &'a dyn Fn() -> Result<Reason, (Reason, Reply)>;

impl Decision {
    /// Asks one after the other until one says no.
    fn of(checks: [Option<Check<'_>>; REASONS_MAX]) -> Self {
        let mut reasons = Reasons::default();
        for check in checks.into_iter().flatten() {
            match check() {
                Ok(reason) => reasons.push(reason),
                Err((reason, reply)) => {
                    reasons.push(reason);
                    return Self { verdict: Verdict::Deny(reply), reasons };
                }
            }
        }
        Self { verdict: Verdict::Permit, reasons }
    }

    /// Whether it is yes.
    #[must_use]
    pub fn is_permitted(&self) -> bool {
        self.verdict == Verdict::Permit
    }

    /// The fact that decided.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.reasons.iter().last()
    }
}

impl Reasons {
    fn push(&mut self, reason: Reason) {
        if let Some(free) = self.list.iter_mut().find(|place| place.is_none()) {
            *free = Some(reason);
        }
    }

    /// The reasons in order.
    pub fn iter(&self) -> impl Iterator<Item = Reason> {
        self.list.into_iter().flatten()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = |principal: Principal| match principal {
            Principal::Anonymous => "anonymous clients",
            Principal::Authenticated => "credentials",
        };
        match *self {
            Self::TlsRequired => f.write_str("the connector requires TLS and the connection has none"),
            Self::RangeExpired => f.write_str("the matching range has expired and grants nothing"),
            Self::CredentialUnusable => f.write_str("the credential is disabled, expired, deleted or not for here"),
            Self::NoSubmit(principal) => write!(f, "{} may not submit on this connector", who(principal)),
            Self::MaySubmit(principal) => write!(f, "{} may submit on this connector", who(principal)),
            Self::OwnSender => f.write_str("the sender is one of the credential's own"),
            Self::SenderByRight(Right::AcceptAnySender) => f.write_str("any sender is allowed"),
            Self::SenderByRight(right) => write!(f, "the sender is allowed by {right}"),
            Self::NullSender => f.write_str("the null reverse-path is allowed"),
            Self::SenderNeeds(right) => write!(f, "the sender is not an allowed one; it would need {right}"),
            Self::NullSenderOfCredential => f.write_str("the credential may not use the null reverse-path"),
            Self::Postmaster => f.write_str("postmaster is always accepted"),
            Self::ReservedTopLevel => f.write_str("the connector rejects reserved top-level domains"),
            Self::ReservedSecondLevel => f.write_str("the connector rejects reserved second-level domains"),
            Self::SingleLabel => f.write_str("the connector rejects single-label domains"),
            Self::DeniedDomain => f.write_str("the connector denies this recipient domain to everybody"),
            Self::NotAllowedDomain => f.write_str("the connector allows certain recipient domains, and not this one"),
            Self::RoutedPastList => {
                f.write_str("the local part names a way further, past the connector's list of recipient domains")
            }
            Self::AcceptedDomain(kind) => write!(f, "the domain is accepted ({kind})"),
            Self::RoutedLocalPart => f.write_str("the local part names a way further, which only relaying clients may"),
            Self::MayRelay(principal) => write!(f, "{} may relay externally on this connector", who(principal)),
            Self::NoRelay(principal) => {
                write!(f, "the domain is not accepted and {} may not relay externally here", who(principal))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use super::*;
    use crate::connector::PermissionGroup;

    struct Accepted(BTreeMap<&'static str, DomainKind>);

    impl Domains for Accepted {
        fn accepted(&self, domain: &Domain) -> Option<DomainKind> {
            self.0.get(domain.as_str()).copied()
        }
    }

    fn domains() -> Accepted {
        Accepted(
            [
                ("corp.example", DomainKind::Authoritative),
                ("shared.example", DomainKind::InternalRelay),
                ("friend.example", DomainKind::ExternalRelay),
            ]
            .into(),
        )
    }

    fn relay() -> ReceiveConnector {
        let mut connector = ReceiveConnector::default_receive();
        connector.rights.insert("anonymous:accept_any_recipient".parse().unwrap());
        connector
    }

    fn client<'a>(connector: &'a ReceiveConnector, credential: Option<CredentialFacts<'a>>) -> Client<'a> {
        Client { connector, range_expired: false, tls: true, credential }
    }

    fn mail(client: &Client<'_>, sender: &str) -> String {
        words(&decide_mail(client, &ReversePath::parse_path(sender).unwrap(), &domains()))
    }

    fn rcpt(client: &Client<'_>, sender: &str, recipient: &str) -> String {
        let (sender, recipient) =
            (ReversePath::parse_path(sender).unwrap(), ForwardPath::parse_path(recipient).unwrap());
        words(&decide_rcpt(client, &sender, &recipient, &domains()))
    }

    /// `ok`, or code and enhanced code.
    fn words(decision: &Decision) -> String {
        match &decision.verdict {
            Verdict::Permit => "ok".to_owned(),
            Verdict::Deny(reply) => {
                let text = reply.to_string();
                text.split(' ').take(2).collect::<Vec<_>>().join(" ")
            }
        }
    }

    fn senders(list: &[&str]) -> SenderRule {
        SenderRule(list.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn the_replies_are_the_ones_that_administrators_search_for() {
        let deny = |decision: Decision| match decision.verdict {
            Verdict::Deny(reply) => reply.to_string(),
            Verdict::Permit => String::new(),
        };
        let path = |text| ReversePath::parse_path(text).unwrap();
        let (default, submission) = (ReceiveConnector::default_receive(), ReceiveConnector::default_submission());
        let rcpt = decide_rcpt(
            &client(&default, None),
            &path("<a@b.example>"),
            &ForwardPath::parse_path("<c@d.example>").unwrap(),
            &domains(),
        );
        assert_eq!(deny(rcpt), "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain");
        let mail = decide_mail(&client(&submission, None), &path("<a@b.example>"), &domains());
        assert_eq!(deny(mail), "530 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM");
        let own = senders(&["@corp.example"]);
        let facts = CredentialFacts { user: "u", senders: &own, usable: true };
        let mail = decide_mail(&client(&submission, Some(facts)), &path("<a@b.example>"), &domains());
        assert_eq!(deny(mail), "550 5.7.60 SMTP; Client does not have permissions to send as this sender");
        let mut tls = default.clone();
        tls.require_tls = true;
        let plain = Client { tls: false, ..client(&tls, None) };
        assert_eq!(
            deny(decide_mail(&plain, &path("<a@b.example>"), &domains())),
            "451 5.7.3 STARTTLS is required to send mail"
        );
    }

    /// Every form of a relay test that parses as a path (hostile.md §2.5: nmap's sixteen, MAPS, and more); S is
    /// corp.example, E other.example, I 192.0.2.1. What does not parse is refused by the session with 501.
    const RELAY_FORMS: &[&str] = &[
        "<r@other.example>",
        "<R@OTHER.EXAMPLE>",
        "<r@other.example.>",
        "<r%other.example@[192.0.2.1]>",
        "<r%other.example@corp.example>",
        "<\"r@other.example\">",
        "<\"r%other.example\">",
        "<r@other.example@[192.0.2.1]>",
        "<\"r@other.example\"@[192.0.2.1]>",
        "<\"r@other.example\"@corp.example>",
        "<r@other.example@corp.example>",
        "<@[192.0.2.1]:r@other.example>",
        "<@corp.example:r@other.example>",
        "<@corp.example,@shared.example:r@other.example>",
        "<other.example!r>",
        "<other.example!r@[192.0.2.1]>",
        "<other.example!r@corp.example>",
        "<other.example!r%third.example@corp.example>",
        "<r@corp.example@other.example>",
        "<r@[::ffff:192.0.2.1]>",
        "<r@[IPv6:::ffff:192.0.2.1]>",
        "<r@[192.0.2.1]>",
        "<r@localhost>",
        "<spamtest>",
        "<r(c)@other.example>",
        "<r@sub.corp.example>",
        "<r@xcorp.example>",
        "<r@corp.example.other.example>",
        "<\"r\\@other.example\"@corp.example>",
        "<\"other.example!r\"@shared.example>",
        "<r%other.example@friend.example>",
        "<r@[corp.example]>",
    ];

    #[test]
    fn no_form_of_a_relay_test_gets_past_a_client_that_may_not_relay() {
        let connector = ReceiveConnector::default_receive();
        let mut partners = ReceiveConnector::default_submission();
        partners.permission_groups = [PermissionGroup::Partners].into();
        let any = senders(&["*"]);
        let partner = CredentialFacts { user: "partner", senders: &any, usable: true };
        let mut parsed = 0;
        for client in [client(&connector, None), client(&partners, Some(partner))] {
            for form in RELAY_FORMS {
                let Ok(recipient) = ForwardPath::parse_path(form) else { continue };
                parsed += 1;
                for sender in ["<>", "<a@other.example>", "<a@corp.example>", "<a@[192.0.2.1]>", "<r@other.example>"] {
                    let sender = ReversePath::parse_path(sender).unwrap();
                    let decision = decide_rcpt(&client, &sender, &recipient, &domains());
                    assert!(!decision.is_permitted(), "{form} parsed as {recipient}: {:?}", decision.reason());
                }
                assert_eq!(rcpt(&client, "<a@other.example>", form), "550 5.7.54", "{form}");
            }
        }
        assert!(parsed >= 2 * 18, "only {parsed} forms parse: the test says little");
    }

    #[test]
    fn accepted_domains_and_postmaster_are_taken_from_strangers() {
        let connector = ReceiveConnector::default_receive();
        let stranger = client(&connector, None);
        for recipient in [
            "<a@corp.example>",
            "<a@CORP.example>",
            "<a@shared.example>",
            "<a@friend.example>",
            "<Postmaster>",
            "<postmaster@corp.example>",
            "<\"a b\"@corp.example>",
        ] {
            assert_eq!(rcpt(&stranger, "<>", recipient), "ok", "{recipient}");
        }
        assert_eq!(rcpt(&stranger, "<>", "<postmaster@other.example>"), "550 5.7.54");
    }

    #[test]
    fn who_may_relay_relays_every_form_unchanged() {
        let connector = relay();
        for form in RELAY_FORMS {
            if ForwardPath::parse_path(form).is_ok() {
                assert_eq!(rcpt(&client(&connector, None), "<a@corp.example>", form), "ok", "{form}");
            }
        }
    }

    #[test]
    fn an_expired_range_and_an_unusable_credential_grant_nothing() {
        let connector = relay();
        let expired = Client { range_expired: true, ..client(&connector, None) };
        assert_eq!(mail(&expired, "<a@b.example>"), "530 5.7.57");
        assert_eq!(rcpt(&expired, "<a@b.example>", "<a@corp.example>"), "530 5.7.57");
        assert_eq!(words(&decide_auth(&expired)), "535 5.7.3");
        let submission = ReceiveConnector::default_submission();
        let gone = client(&submission, Some(CredentialFacts::gone("u")));
        assert_eq!(mail(&gone, "<a@b.example>"), "530 5.7.57");
        assert_eq!(rcpt(&gone, "<a@b.example>", "<a@corp.example>"), "530 5.7.57");
        assert_eq!(words(&decide_auth(&gone)), "535 5.7.3");
        // Being logged in where credentials mean nothing takes away what a stranger may.
        let any = senders(&["*"]);
        let facts = CredentialFacts { user: "u", senders: &any, usable: true };
        assert_eq!(mail(&client(&connector, Some(facts)), "<a@b.example>"), "530 5.7.57");
        assert_eq!(words(&decide_auth(&client(&connector, Some(facts)))), "535 5.7.3");
        assert_eq!(words(&decide_auth(&client(&submission, Some(facts)))), "ok");
    }

    #[test]
    fn a_credential_sends_as_itself_unless_a_right_says_more() {
        let (own, any) = (senders(&["@corp.example"]), senders(&["*"]));
        let submission = ReceiveConnector::default_submission();
        let limited = CredentialFacts { user: "u", senders: &own, usable: true };
        let free = CredentialFacts { user: "u", senders: &any, usable: true };
        for (facts, sender, expected) in [
            (limited, "<a@corp.example>", "ok"),
            (limited, "<a@other.example>", "550 5.7.60"),
            (limited, "<a@shared.example>", "550 5.7.60"),
            (limited, "<>", "550 5.7.60"),
            (free, "<a@other.example>", "ok"),
            (free, "<>", "ok"),
        ] {
            let client = client(&submission, Some(facts));
            assert_eq!(mail(&client, sender), expected, "{sender}");
            // The sender is looked at again with each recipient.
            assert_eq!(rcpt(&client, sender, "<x@other.example>"), expected, "{sender}");
        }
        let mut wide = submission.clone();
        wide.rights.insert("authenticated:accept_any_sender".parse().unwrap());
        assert_eq!(mail(&client(&wide, Some(limited)), "<a@other.example>"), "ok");
        assert_eq!(mail(&client(&wide, Some(limited)), "<>"), "ok");
        let elsewhere = senders(&["@lab.example"]);
        let facts = CredentialFacts { user: "u", senders: &elsewhere, usable: true };
        assert_eq!(mail(&client(&wide, Some(facts)), "<a@corp.example>"), "550 5.7.60");
        wide.rights.insert("authenticated:accept_authoritative_domain_sender".parse().unwrap());
        assert_eq!(mail(&client(&wide, Some(facts)), "<a@corp.example>"), "ok");
    }

    #[test]
    fn without_anonymous_users_single_rights_decide_about_senders() {
        let mut connector = ReceiveConnector::new("in");
        assert_eq!(mail(&client(&connector, None), "<>"), "530 5.7.57");
        connector.rights.insert("anonymous:submit".parse().unwrap());
        assert_eq!(mail(&client(&connector, None), "<>"), "ok");
        assert_eq!(mail(&client(&connector, None), "<a@other.example>"), "550 5.7.60");
        connector.rights.insert("anonymous:accept_any_sender".parse().unwrap());
        assert_eq!(mail(&client(&connector, None), "<a@other.example>"), "ok");
        // The usual way to keep strangers from using our own domain.
        assert_eq!(mail(&client(&connector, None), "<boss@corp.example>"), "550 5.7.60");
    }

    #[test]
    fn reserved_domains_are_refused_where_the_connector_says_so_even_to_relaying_clients() {
        let mut connector = relay();
        connector.reject_reserved_top_level_recipient_domains = true;
        connector.reject_reserved_second_level_recipient_domains = true;
        connector.reject_single_label_recipient_domains = true;
        let client = client(&connector, None);
        for (recipient, expected) in [
            ("<a@b.example>", "501 5.1.4"),
            ("<a@example.com>", "501 5.1.5"),
            ("<a@printer>", "501 5.1.6"),
            ("<a@b.net>", "ok"),
            ("<postmaster>", "ok"),
        ] {
            assert_eq!(rcpt(&client, "<a@b.net>", recipient), expected, "{recipient}");
        }
    }

    fn listed(allowed: &[&str], denied: &[&str]) -> ReceiveConnector {
        let mut connector = relay();
        connector.allowed_recipient_domains = allowed.iter().map(|text| text.parse().unwrap()).collect();
        connector.denied_recipient_domains = denied.iter().map(|text| text.parse().unwrap()).collect();
        connector
    }

    #[test]
    fn recipient_domain_lists_hold_whoever_may_relay() {
        for (allowed, denied, recipient, expected) in [
            (&["partner.example"][..], &[][..], "<a@partner.example>", "ok"),
            (&["partner.example"], &[], "<a@PARTNER.example>", "ok"),
            (&["partner.example"], &[], "<a@sub.partner.example>", "550 5.7.1"),
            (&["*.partner.example"], &[], "<a@sub.partner.example>", "ok"),
            // Accepted domains are no exception: the list says where letters may go.
            (&["partner.example"], &[], "<a@corp.example>", "550 5.7.1"),
            (&["partner.example"], &[], "<a@[192.0.2.1]>", "550 5.7.1"),
            (&[], &["*.free.example"], "<a@free.example>", "550 5.7.1"),
            (&[], &["*.free.example"], "<a@mail.free.example>", "550 5.7.1"),
            (&[], &["*.free.example"], "<a@corp.example>", "ok"),
            // The narrower the better: a hole in what is allowed.
            (&["*.partner.example"], &["lab.partner.example"], "<a@lab.partner.example>", "550 5.7.1"),
            (&["*.partner.example"], &["lab.partner.example"], "<a@hq.partner.example>", "ok"),
            (&[], &["*"], "<a@corp.example>", "550 5.7.1"),
            (&[], &["*"], "<Postmaster>", "ok"),
            (&["partner.example"], &[], "<a%free.example@partner.example>", "550 5.7.1"),
            (&[], &["free.example"], "<\"a@free.example\"@partner.example>", "550 5.7.1"),
            (&[], &["free.example"], "<free.example!a@partner.example>", "550 5.7.1"),
        ] {
            let connector = listed(allowed, denied);
            let got = rcpt(&client(&connector, None), "<a@corp.example>", recipient);
            assert_eq!(got, expected, "{allowed:?} {denied:?} {recipient}");
        }
    }

    #[test]
    fn a_recipient_domain_list_never_gives_a_right() {
        let mut connector = listed(&["partner.example", "*"], &[]);
        connector.rights.clear();
        assert_eq!(rcpt(&client(&connector, None), "<>", "<a@partner.example>"), "550 5.7.54");
        assert_eq!(rcpt(&client(&connector, None), "<>", "<a@corp.example>"), "ok");
    }

    #[test]
    fn a_decision_says_how_it_came_about() {
        let connector = relay();
        let sender = ReversePath::parse_path("<a@other.example>").unwrap();
        let recipient = ForwardPath::parse_path("<b@other.example>").unwrap();
        let decision = decide_rcpt(&client(&connector, None), &sender, &recipient, &domains());
        assert_eq!(
            decision.reasons.iter().collect::<Vec<_>>(),
            [
                Reason::MaySubmit(Principal::Anonymous),
                Reason::SenderByRight(Right::AcceptAnySender),
                Reason::MayRelay(Principal::Anonymous)
            ]
        );
    }
}
