//! The flags of a receive connector: Exchange's parameter names in kebab case, and shortcuts for the common cases
//! (`--relay`, `--auth`, `--tls`, `--template`) that become permission groups, rights and auth mechanisms here, so
//! that the cluster knows one vocabulary only.

use std::time::Duration;

use clap::{Args, ValueEnum};
use posthouse_proto::v1::{Connector, StringList};

use crate::error::Failure;
use crate::parse;

/// A connector for a common case; every other flag overrides its part of it.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Template {
    /// Printers and scanners: no password, relay anywhere
    AnonymousRelay,
    /// No password, accepted domains only
    InternalOnly,
    /// Port 587: a password under TLS, relay anywhere
    Authenticated,
    /// An application server: no password, relay anywhere, TLS required
    App,
}

/// How far letters of anonymous clients go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Relay {
    /// Anywhere
    External,
    /// To accepted domains
    Internal,
    /// Nowhere
    None,
}

/// Whether a password is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Auth {
    /// AUTH is not offered
    None,
    /// AUTH is offered
    Optional,
    /// Nothing goes without AUTH
    Required,
}

/// Whether the connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tls {
    /// STARTTLS is not offered
    Off,
    /// STARTTLS is offered
    Opportunistic,
    /// Nothing goes without TLS
    Required,
}

/// Every setting of a connector.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Connector settings")]
pub(crate) struct ConnectorFlags {
    /// Begin with a common case
    #[arg(long, value_enum)]
    pub(crate) template: Option<Template>,
    /// How far anonymous clients' letters go
    #[arg(long, value_enum)]
    relay: Option<Relay>,
    /// Whether a password is asked for
    #[arg(long, value_enum)]
    auth: Option<Auth>,
    /// Whether the connection is encrypted
    #[arg(long, value_enum, conflicts_with = "require_tls")]
    tls: Option<Tls>,
    /// ADDR:PORT, or a bare port for every address; repeat or separate by commas
    #[arg(long, visible_alias = "bind", value_name = "BINDING", value_delimiter = ',')]
    bindings: Option<Vec<String>>,
    /// Address, first-last or CIDR; repeat or separate by commas; replaces all of them
    #[arg(long, visible_alias = "from", value_name = "RANGE", value_delimiter = ',')]
    remote_ip_ranges: Option<Vec<String>>,
    /// none, tls, basic_auth, basic_auth_require_tls, scram_sha_256, client_certificate
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    auth_mechanism: Option<Vec<String>>,
    /// none, anonymous_users, exchange_users, partners, exchange_servers
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    permission_groups: Option<Vec<String>>,
    /// Single rights on top, as anonymous:accept_any_recipient; empty: none
    #[arg(long, value_name = "WHO:RIGHT", value_delimiter = ',')]
    rights: Option<Vec<String>>,
    /// For people
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    /// Whether it takes connections
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    enabled: Option<bool>,
    /// Whether messages need TLS
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    require_tls: Option<bool>,
    /// A certificate by name or `<I>issuer<S>subject`; empty: the one whose names fit
    #[arg(long, visible_alias = "cert", value_name = "NAME")]
    tls_certificate_name: Option<String>,
    /// The greeting, beginning with 220; empty: the default
    #[arg(long, value_name = "TEXT")]
    banner: Option<String>,
    /// The name in greeting and replies; empty: the node's own
    #[arg(long, value_name = "NAME")]
    fqdn: Option<String>,
    /// Size of a message (1 MB = 1024 KB)
    #[arg(long, visible_alias = "max-size", value_name = "SIZE", value_parser = parse::size)]
    max_message_size: Option<u64>,
    /// Size of its header
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    max_header_size: Option<u64>,
    /// Recipients of one message
    #[arg(long, value_name = "N")]
    max_recipients_per_message: Option<u32>,
    /// Received: fields until it is a loop
    #[arg(long, value_name = "N")]
    max_hop_count: Option<u32>,
    /// Received: fields of our own until it is a loop; 0: not looked at
    #[arg(long, value_name = "N")]
    max_local_hop_count: Option<u32>,
    /// Errors until the session is closed, or unlimited
    #[arg(long, value_name = "N", value_parser = parse::limit)]
    max_protocol_errors: Option<u32>,
    /// Failed logins until the session is closed; 0: never
    #[arg(long, value_name = "N", value_parser = parse::limit)]
    max_logon_failures: Option<u32>,
    /// Open sessions in the whole cluster, or unlimited
    #[arg(long, value_name = "N", value_parser = parse::limit)]
    max_inbound_connection: Option<u32>,
    /// Open sessions of one address in the whole cluster, or unlimited
    #[arg(long, visible_alias = "max-conn-per-source", value_name = "N", value_parser = parse::limit)]
    max_inbound_connection_per_source: Option<u32>,
    /// Open sessions of one address, in percent of the free ones of the connector, of the whole cluster
    #[arg(long, value_name = "PERCENT")]
    max_inbound_connection_percentage_per_source: Option<u32>,
    /// Letters a minute of one source in the whole cluster, as 60, 60/min or unlimited
    #[arg(long, visible_alias = "rate", value_name = "N", value_parser = parse::rate)]
    message_rate_limit: Option<u32>,
    /// What a source is for the rate: none, ip_address, user or all
    #[arg(long, value_name = "WORD")]
    message_rate_source: Option<String>,
    /// Life of a session; it ends between letters
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    connection_timeout: Option<Duration>,
    /// Silence until a session is closed
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    connection_inactivity_timeout: Option<Duration>,
    /// Delay of replies to an abusive stranger
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    tarpit_interval: Option<Duration>,
    /// Delay of the reply to a failed login
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    auth_tarpit_interval: Option<Duration>,
    /// SIZE in EHLO: enabled, disabled or enabled_without_value
    #[arg(long, value_name = "WORD")]
    size_enabled: Option<String>,
    /// PIPELINING in EHLO
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    pipelining_enabled: Option<bool>,
    /// 8BITMIME in EHLO
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    eight_bit_mime_enabled: Option<bool>,
    /// ENHANCEDSTATUSCODES in EHLO
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    enhanced_status_codes_enabled: Option<bool>,
    /// CHUNKING in EHLO
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    chunking_enabled: Option<bool>,
    /// BINARYMIME in EHLO
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    binary_mime_enabled: Option<bool>,
    /// DSN in EHLO
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    delivery_status_notification_enabled: Option<bool>,
    /// SMTPUTF8 in EHLO
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    smtp_utf8_enabled: Option<bool>,
    /// LIMITS in EHLO
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    limits_enabled: Option<bool>,
    /// Refuse letters with a bare CR or LF; off: they are repaired
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    bare_linefeed_rejection_enabled: Option<bool>,
    /// Habits of old devices to put up with: space_after_colon, helo_without_domain,
    /// repair_line_endings; empty: none
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    leniencies: Option<Vec<String>>,
    /// Recipient domains that letters may go to, whoever sends; empty: any
    #[arg(long, value_name = "DOMAIN", value_delimiter = ',')]
    allowed_recipient_domains: Option<Vec<String>>,
    /// Recipient domains that letters may not go to, whoever sends; empty: none
    #[arg(long, value_name = "DOMAIN", value_delimiter = ',')]
    denied_recipient_domains: Option<Vec<String>>,
    /// The domain of postmaster without one; empty: none
    #[arg(long, value_name = "DOMAIN")]
    default_domain: Option<String>,
    /// How much of its sessions is logged: none, errors or verbose
    #[arg(long, visible_alias = "log", value_name = "WORD")]
    protocol_logging_level: Option<String>,
    /// Log verbosely for so long from now, whatever the level; 0: no longer
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    protocol_logging_for: Option<Duration>,
    /// Refuse recipients in .test, .example, .invalid, .localhost
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    reject_reserved_top_level_recipient_domains: Option<bool>,
    /// Refuse recipients in example.com, example.net, example.org
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    reject_reserved_second_level_recipient_domains: Option<bool>,
    /// Refuse recipients in a domain of one label
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    reject_single_label_recipient_domains: Option<bool>,
    /// EHLO must carry a domain
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    require_ehlo_domain: Option<bool>,
}

/// The shortcuts in force: those of the template, overridden by those that were typed.
#[derive(Clone, Copy, Debug, Default)]
struct Shortcuts {
    relay: Option<Relay>,
    auth: Option<Auth>,
    tls: Option<Tls>,
}

/// The three lists that the shortcuts change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Policy {
    auth_mechanism: Vec<String>,
    permission_groups: Vec<String>,
    rights: Vec<String>,
}

const ANONYMOUS_USERS: &str = "anonymous_users";
const EXCHANGE_USERS: &str = "exchange_users";
const ANONYMOUS_RELAY: &str = "anonymous:accept_any_recipient";

impl ConnectorFlags {
    /// Whether a shortcut is among them, so that the connector as it is must be known first.
    pub(crate) fn has_shortcuts(&self) -> bool {
        self.relay.is_some() || self.auth.is_some() || self.tls.is_some()
    }

    /// What the cluster is asked to put: `base` is the connector as it is, or `None` for a new one.
    ///
    /// # Errors
    /// When the flags contradict each other, or a binding cannot be read.
    pub(crate) fn connector(&self, name: &str, base: Option<&Connector>) -> Result<Connector, Failure> {
        let shortcuts = self.shortcuts();
        let mut connector = self.plain_fields(name)?;
        if connector.bindings.is_none() && matches!(self.template, Some(Template::Authenticated)) {
            connector.bindings = list(bindings(&["587".to_owned()])?);
        }
        if shortcuts.relay.is_none() && shortcuts.auth.is_none() && shortcuts.tls.is_none() {
            return Ok(connector);
        }
        let mut policy = Policy::of(&connector, base);
        policy.apply(shortcuts, base.is_some())?;
        let Policy { auth_mechanism, permission_groups, rights } = policy;
        connector.auth_mechanism =
            list(if auth_mechanism.is_empty() { vec!["none".to_owned()] } else { auth_mechanism });
        connector.permission_groups = list(permission_groups);
        connector.rights = list(rights);
        connector.require_tls = shortcuts.tls.map(|tls| tls == Tls::Required).or(connector.require_tls);
        Ok(connector)
    }

    fn shortcuts(&self) -> Shortcuts {
        let (relay, auth, tls) = match self.template {
            None => (None, None, None),
            Some(Template::AnonymousRelay) => (Some(Relay::External), Some(Auth::None), Some(Tls::Opportunistic)),
            Some(Template::InternalOnly) => (Some(Relay::Internal), Some(Auth::None), Some(Tls::Opportunistic)),
            Some(Template::Authenticated) => (None, Some(Auth::Required), Some(Tls::Required)),
            Some(Template::App) => (Some(Relay::External), Some(Auth::None), Some(Tls::Required)),
        };
        // `--require-tls` is the precise form of the same question and outranks the template.
        let tls = match self.require_tls {
            Some(true) => Some(Tls::Required),
            Some(false) if tls == Some(Tls::Required) => Some(Tls::Opportunistic),
            _ => tls,
        };
        let tls = if self.template.is_some() { tls } else { None };
        Shortcuts { relay: self.relay.or(relay), auth: self.auth.or(auth), tls: self.tls.or(tls) }
    }

    fn plain_fields(&self, name: &str) -> Result<Connector, Failure> {
        let flags = self.clone();
        let words = |given: &Option<Vec<String>>| given.as_ref().and_then(|given| list(parse::words(given)));
        let secs = |time: Option<Duration>| time.map(|time| time.as_secs());
        let millis = |time: Option<Duration>| time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        Ok(Connector {
            name: name.to_owned(),
            comment: flags.comment,
            enabled: flags.enabled,
            bindings: match &flags.bindings {
                Some(given) => list(bindings(&parse::words(given))?),
                None => None,
            },
            remote_ip_ranges: words(&flags.remote_ip_ranges),
            auth_mechanism: words(&flags.auth_mechanism),
            permission_groups: words(&flags.permission_groups),
            rights: words(&flags.rights),
            require_tls: flags.require_tls,
            tls_certificate_name: flags.tls_certificate_name,
            banner: flags.banner,
            fqdn: flags.fqdn,
            max_message_size: flags.max_message_size,
            max_header_size: flags.max_header_size,
            max_recipients_per_message: flags.max_recipients_per_message,
            max_hop_count: flags.max_hop_count,
            max_protocol_errors: flags.max_protocol_errors,
            max_logon_failures: flags.max_logon_failures,
            max_inbound_connection: flags.max_inbound_connection,
            max_inbound_connection_per_source: flags.max_inbound_connection_per_source,
            connection_timeout_secs: secs(flags.connection_timeout),
            connection_inactivity_timeout_secs: secs(flags.connection_inactivity_timeout),
            tarpit_interval_ms: millis(flags.tarpit_interval),
            auth_tarpit_interval_ms: millis(flags.auth_tarpit_interval),
            size_enabled: flags.size_enabled.map(|word| word.trim().to_ascii_lowercase().replace('-', "_")),
            pipelining_enabled: flags.pipelining_enabled,
            eight_bit_mime_enabled: flags.eight_bit_mime_enabled,
            enhanced_status_codes_enabled: flags.enhanced_status_codes_enabled,
            reject_reserved_top_level_recipient_domains: flags.reject_reserved_top_level_recipient_domains,
            reject_reserved_second_level_recipient_domains: flags.reject_reserved_second_level_recipient_domains,
            reject_single_label_recipient_domains: flags.reject_single_label_recipient_domains,
            require_ehlo_domain: flags.require_ehlo_domain,
            max_local_hop_count: flags.max_local_hop_count,
            max_inbound_connection_percentage_per_source: flags.max_inbound_connection_percentage_per_source,
            message_rate_limit: flags.message_rate_limit,
            message_rate_source: flags.message_rate_source,
            chunking_enabled: flags.chunking_enabled,
            binary_mime_enabled: flags.binary_mime_enabled,
            delivery_status_notification_enabled: flags.delivery_status_notification_enabled,
            smtp_utf8_enabled: flags.smtp_utf8_enabled,
            limits_enabled: flags.limits_enabled,
            bare_linefeed_rejection_enabled: flags.bare_linefeed_rejection_enabled,
            leniencies: words(&flags.leniencies),
            allowed_recipient_domains: words(&flags.allowed_recipient_domains),
            denied_recipient_domains: words(&flags.denied_recipient_domains),
            default_domain: flags.default_domain,
            protocol_logging_level: flags.protocol_logging_level,
            protocol_logging_for_secs: secs(flags.protocol_logging_for),
            ..Connector::default()
        })
    }
}

impl Policy {
    /// The lists that were typed, else those of the connector as it is, else those of a new one: TLS offered, nobody
    /// may submit.
    fn of(typed: &Connector, base: Option<&Connector>) -> Self {
        let pick = |of: fn(&Connector) -> &Option<StringList>, fresh: &[&str]| {
            let given = of(typed).as_ref().or_else(|| base.and_then(|base| of(base).as_ref()));
            match (given, base) {
                (Some(given), _) => given.values.clone(),
                (None, Some(_)) => Vec::new(),
                (None, None) => fresh.iter().map(|word| (*word).to_owned()).collect(),
            }
        };
        Self {
            auth_mechanism: pick(|connector| &connector.auth_mechanism, &["tls"]),
            permission_groups: pick(|connector| &connector.permission_groups, &[]),
            rights: pick(|connector| &connector.rights, &[]),
        }
    }

    fn demands_password(&self) -> bool {
        has(&self.auth_mechanism, "basic_auth") && !has(&self.permission_groups, ANONYMOUS_USERS)
    }

    fn apply(&mut self, shortcuts: Shortcuts, exists: bool) -> Result<(), Failure> {
        let Shortcuts { relay, auth, tls } = shortcuts;
        if exists
            && auth.is_none()
            && self.demands_password()
            && matches!(relay, Some(Relay::External | Relay::Internal))
        {
            return Err(Failure::usage(
                "this connector asks for a password",
                "--relay speaks of anonymous clients, and it takes none; those with a password relay already",
                "if anonymous clients are meant as well, say so: --auth optional, or --auth none",
            ));
        }
        match tls {
            Some(Tls::Off) => {
                remove(&mut self.auth_mechanism, "tls");
                remove(&mut self.auth_mechanism, "basic_auth_require_tls");
            }
            Some(Tls::Opportunistic | Tls::Required) => add(&mut self.auth_mechanism, "tls"),
            None => {}
        }
        match auth {
            Some(Auth::None) => {
                remove(&mut self.auth_mechanism, "basic_auth");
                remove(&mut self.auth_mechanism, "basic_auth_require_tls");
            }
            Some(Auth::Optional | Auth::Required) => {
                add(&mut self.auth_mechanism, "basic_auth");
                // Passwords in clear only where TLS was switched off explicitly.
                if has(&self.auth_mechanism, "tls") {
                    add(&mut self.auth_mechanism, "basic_auth_require_tls");
                }
                add(&mut self.permission_groups, EXCHANGE_USERS);
            }
            None => {}
        }
        match (relay, auth) {
            (Some(Relay::Internal), Some(Auth::Required)) => {
                return Err(Failure::usage(
                    "--relay internal and --auth required contradict each other",
                    "--relay internal lets anonymous clients in, and whoever has a password may relay anywhere",
                    "leave --relay out, or give partners instead: --permission-groups partners",
                ));
            }
            (_, Some(Auth::Required)) | (Some(Relay::None), _) => {
                remove(&mut self.permission_groups, ANONYMOUS_USERS);
                self.rights.retain(|right| !fold(right).starts_with("anonymous:"));
            }
            (Some(Relay::External), _) => {
                add(&mut self.permission_groups, ANONYMOUS_USERS);
                add(&mut self.rights, ANONYMOUS_RELAY);
            }
            (Some(Relay::Internal), _) => {
                add(&mut self.permission_groups, ANONYMOUS_USERS);
                remove(&mut self.rights, ANONYMOUS_RELAY);
            }
            (None, _) => {}
        }
        Ok(())
    }
}

fn bindings(words: &[String]) -> Result<Vec<String>, Failure> {
    let mut all = Vec::new();
    for word in words {
        let read = parse::binding(word)
            .map_err(|cause| Failure::usage(format!("--bindings \"{word}\" is not a binding"), cause, "--bind 25"))?;
        all.extend(read);
    }
    all.dedup();
    Ok(all)
}

fn list(values: Vec<String>) -> Option<StringList> {
    Some(StringList { values })
}

/// Exchange's spelling, snake case and kebab case are the same word.
fn fold(word: &str) -> String {
    word.chars().filter(|c| !matches!(c, '-' | '_' | ' ')).map(|c| c.to_ascii_lowercase()).collect()
}

/// Whether `word` is in the list, in any spelling.
pub(crate) fn has(list: &[String], word: &str) -> bool {
    list.iter().any(|found| fold(found) == fold(word))
}

fn add(list: &mut Vec<String>, word: &str) {
    remove(list, "none");
    if !has(list, word) {
        list.push(word.to_owned());
    }
}

fn remove(list: &mut Vec<String>, word: &str) {
    list.retain(|found| fold(found) != fold(word));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: ConnectorFlags,
    }

    fn flags(line: &str) -> ConnectorFlags {
        Line::try_parse_from(std::iter::once("x").chain(line.split_whitespace())).unwrap().flags
    }

    fn create(line: &str) -> Connector {
        flags(line).connector("x", None).unwrap()
    }

    fn values(list: &Option<StringList>) -> Vec<&str> {
        list.as_ref().unwrap().values.iter().map(String::as_str).collect()
    }

    #[test]
    fn relay_external_is_a_group_and_a_right() {
        let connector = create("--relay external --from 10.0.0.1,10.0.0.2 --from 10.0.1.0/24 --bind 25");
        assert_eq!(values(&connector.permission_groups), ["anonymous_users"]);
        assert_eq!(values(&connector.rights), ["anonymous:accept_any_recipient"]);
        assert_eq!(values(&connector.remote_ip_ranges), ["10.0.0.1", "10.0.0.2", "10.0.1.0/24"]);
        assert_eq!(values(&connector.bindings), ["0.0.0.0:25", "[::]:25"]);
        assert_eq!(values(&connector.auth_mechanism), ["tls"]);
    }

    #[test]
    fn relay_internal_is_the_group_alone() {
        let connector = create("--relay internal");
        assert_eq!(values(&connector.permission_groups), ["anonymous_users"]);
        assert!(values(&connector.rights).is_empty());
    }

    #[test]
    fn relay_none_takes_every_anonymous_right_away() {
        let base =
            create("--relay external --rights anonymous:bypass_message_size_limit,authenticated:accept_any_sender");
        let connector = flags("--relay none").connector("x", Some(&base)).unwrap();
        assert!(values(&connector.permission_groups).is_empty());
        assert_eq!(values(&connector.rights), ["authenticated:accept_any_sender"]);
    }

    #[test]
    fn auth_required_leaves_nothing_to_anonymous_clients() {
        let connector = create("--auth required --tls required --relay external");
        assert_eq!(values(&connector.permission_groups), ["exchange_users"]);
        assert!(values(&connector.rights).is_empty());
        assert_eq!(values(&connector.auth_mechanism), ["tls", "basic_auth", "basic_auth_require_tls"]);
        assert_eq!(connector.require_tls, Some(true));
    }

    #[test]
    fn passwords_go_in_clear_only_where_tls_is_off() {
        assert_eq!(values(&create("--auth optional --tls off").auth_mechanism), ["basic_auth"]);
        assert_eq!(values(&create("--tls off").auth_mechanism), ["none"]);
    }

    #[test]
    fn a_contradiction_is_refused() {
        assert!(flags("--auth required --relay internal").connector("x", None).is_err());
        let submission = create("--template authenticated");
        assert!(flags("--relay external").connector("x", Some(&submission)).is_err());
        assert!(flags("--relay external --auth optional").connector("x", Some(&submission)).is_ok());
        assert!(Line::try_parse_from(["x", "--tls", "off", "--require-tls", "true"]).is_err());
    }

    #[test]
    fn a_set_changes_only_what_was_typed() {
        let base = create("--template anonymous-relay --banner 220-x");
        let connector = flags("--max-size 50MB --tarpit-interval 500ms --connection-timeout 00:10:00")
            .connector("x", Some(&base))
            .unwrap();
        assert_eq!(
            connector,
            Connector {
                name: "x".into(),
                max_message_size: Some(50 << 20),
                tarpit_interval_ms: Some(500),
                connection_timeout_secs: Some(600),
                ..Connector::default()
            }
        );
    }

    #[test]
    fn a_set_keeps_the_groups_it_does_not_speak_of() {
        let base =
            create("--permission-groups Partners,AnonymousUsers --auth-mechanism Tls,BasicAuth,BasicAuthRequireTLS");
        let connector = flags("--relay external").connector("x", Some(&base)).unwrap();
        assert_eq!(values(&connector.permission_groups), ["Partners", "AnonymousUsers"]);
        assert_eq!(values(&connector.auth_mechanism), ["Tls", "BasicAuth", "BasicAuthRequireTLS"]);
    }

    #[test]
    fn templates_are_overridden_by_what_was_typed() {
        let app = create("--template app");
        assert_eq!((app.require_tls, values(&app.rights)), (Some(true), vec![ANONYMOUS_RELAY]));
        let app = create("--template app --tls opportunistic --relay internal");
        assert_eq!((app.require_tls, values(&app.rights).len()), (Some(false), 0));
        let app = create("--template app --require-tls false");
        assert_eq!(app.require_tls, Some(false));
        assert_eq!(values(&create("--template authenticated").bindings), ["0.0.0.0:587", "[::]:587"]);
        assert_eq!(values(&create("--template authenticated --bind 10.0.0.1:587").bindings), ["10.0.0.1:587"]);
        assert_eq!(create("--template anonymous-relay").bindings, None);
    }

    #[test]
    fn require_tls_alone_is_passed_on_as_it_is() {
        let connector = create("--require-tls $true");
        assert_eq!((connector.require_tls, connector.auth_mechanism), (Some(true), None));
    }

    #[test]
    fn an_empty_list_is_a_list() {
        let line = Line::try_parse_from(["x", "--rights", ""]).unwrap().flags;
        assert_eq!(line.connector("x", None).unwrap().rights, Some(StringList::default()));
    }

    #[test]
    fn exchange_limits_may_be_unlimited() {
        let connector = create("--max-conn-per-source unlimited --max-inbound-connection 100");
        assert_eq!(connector.max_inbound_connection_per_source, Some(0));
        assert_eq!(connector.max_inbound_connection, Some(100));
    }

    #[test]
    fn a_bad_binding_is_a_usage_error() {
        let failure = flags("--bind smtp").connector("x", None).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
    }
}
