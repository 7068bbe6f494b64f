//! `ReceiveConnector`: what an Exchange administrator sets with `New-` and `Set-ReceiveConnector`, under the same
//! names and with the same defaults, except where a constant says why not. Its remote IP ranges are allowlist entries
//! and are kept beside it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::range::canonical_ip;
use super::recipient_domain::RecipientDomainPattern;
use super::rights::{AuthMechanism, GrantedRight, PermissionGroup, Principal, Right, effective_rights};
use super::switches::{Leniency, MessageRateSource, ProtocolLoggingLevel};
use crate::mail::{Domain, Mailbox};

/// Exchange's 36 MB: about 25 MB of payload after base64.
const MAX_MESSAGE_SIZE_DEFAULT: u64 = 36 * 1024 * 1024;
/// Exchange's 256 KB.
const MAX_HEADER_SIZE_DEFAULT: u64 = 256 * 1024;
/// Exchange's 200; RFC 5321 §4.5.3.1.8 demands at least 100.
const MAX_RECIPIENTS_PER_MESSAGE_DEFAULT: u32 = 200;
/// What Exchange servers are found to use; its documentation says 30 in places. RFC 5321 §6.3 would like 100, and a
/// loop is caught by either.
const MAX_HOP_COUNT_DEFAULT: u32 = 60;
/// What Exchange documents; its set-up writes 5. The larger one, because a letter from an application may pass a few
/// relays inside before it comes here, and a loop is caught by either.
const MAX_LOCAL_HOP_COUNT_DEFAULT: u32 = 8;
/// Exchange's 5.
const MAX_PROTOCOL_ERRORS_DEFAULT: u32 = 5;
/// Exchange's 3.
const MAX_LOGON_FAILURES_DEFAULT: u32 = 3;
/// Exchange's 5,000.
const MAX_INBOUND_CONNECTION_DEFAULT: u32 = 5000;
/// Exchange's 20.
const MAX_INBOUND_CONNECTION_PER_SOURCE_DEFAULT: u32 = 20;
/// Exchange has 2, a share of one server's free connections; behind fronts a busy application would meet it first.
const MAX_INBOUND_CONNECTION_PERCENTAGE_PER_SOURCE_DEFAULT: u32 = 100;
/// Exchange's Client connectors have 5 letters a minute, which stops every scanner at its sixth page; its Edge
/// servers have 600.
const SUBMISSION_MESSAGE_RATE_LIMIT_DEFAULT: u32 = 600;
/// Exchange's 10 minutes; here it ends a session between transactions, never inside one.
const CONNECTION_TIMEOUT_SECS_DEFAULT: u64 = 600;
/// Exchange's 5 minutes, which RFC 5321 §4.5.3.2.7 demands too.
const CONNECTION_INACTIVITY_TIMEOUT_SECS_DEFAULT: u64 = 300;
/// Exchange's 5 seconds.
const TARPIT_INTERVAL_MS_DEFAULT: u64 = 5000;
/// Exchange's 5 seconds.
const AUTH_TARPIT_INTERVAL_MS_DEFAULT: u64 = 5000;

/// The most bindings of one connector.
const BINDINGS_MAX: usize = 64;
const NAME_CHARS_MAX: usize = 64;
const COMMENT_CHARS_MAX: usize = 1024;
/// Recipient domains in one list: all of them are looked at with each recipient.
const RECIPIENT_DOMAINS_MAX: usize = 1000;
/// RFC 5321 §4.5.3.1.5: 512 octets with the CRLF.
const BANNER_OCTETS_MAX: usize = 510;

/// A local address (or the wildcard of its family) and a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Binding {
    /// The address that devices dial, or `0.0.0.0` or `::` for every one of that family.
    pub addr: IpAddr,
    /// The service port: 25, 587, 465.
    pub port: u16,
}

/// How `EHLO` speaks of the message size limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SizeMode {
    /// `SIZE` with the limit.
    #[default]
    Enabled,
    /// Not at all.
    Disabled,
    /// `SIZE` without a number.
    EnabledWithoutValue,
}

/// A receive connector without its remote IP ranges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReceiveConnector {
    /// Unique, 1 to 64 printable characters.
    pub name: String,
    /// For people.
    pub comment: String,
    /// Whether it takes connections.
    pub enabled: bool,
    /// Where it listens.
    pub bindings: Vec<Binding>,
    /// What it offers for TLS and authentication.
    pub auth_mechanism: BTreeSet<AuthMechanism>,
    /// Named sets of rights.
    pub permission_groups: BTreeSet<PermissionGroup>,
    /// Single rights on top.
    pub rights: BTreeSet<GrantedRight>,
    /// Whether `MAIL` needs TLS.
    pub require_tls: bool,
    /// A certificate by name or by `<I>issuer<S>subject`; absent: the one whose names fit.
    pub tls_certificate_name: Option<String>,
    /// The greeting, beginning with `220 `; absent: the default one.
    pub banner: Option<String>,
    /// The name in the greeting, in replies and in `Received:`; absent: the node's own.
    pub fqdn: Option<String>,
    /// Octets of a message.
    pub max_message_size: u64,
    /// Octets of its header section.
    pub max_header_size: u64,
    /// Recipients of one message; those beyond are refused with `452`.
    pub max_recipients_per_message: u32,
    /// `Received:` fields.
    pub max_hop_count: u32,
    /// `Received:` fields that this cluster wrote; 0: not looked at.
    pub max_local_hop_count: u32,
    /// Errors until the session is closed; 0: never.
    pub max_protocol_errors: u32,
    /// Failed logins until the session is closed; 0: never.
    pub max_logon_failures: u32,
    /// Open sessions in the whole cluster; 0: unlimited.
    pub max_inbound_connection: u32,
    /// Open sessions of one address in the whole cluster; 0: unlimited.
    pub max_inbound_connection_per_source: u32,
    /// Open sessions of one address, as a percentage of those still free on the connector; 100: no such limit.
    pub max_inbound_connection_percentage_per_source: u32,
    /// Letters a minute of one source, for the whole cluster; 0: unlimited.
    pub message_rate_limit: u32,
    /// What a source is for `message_rate_limit`.
    pub message_rate_source: MessageRateSource,
    /// Total life of a session, in seconds.
    pub connection_timeout_secs: u64,
    /// Silence until a session is closed, in seconds.
    pub connection_inactivity_timeout_secs: u64,
    /// Delay of replies to an abusive stranger, in milliseconds; 0: none.
    pub tarpit_interval_ms: u64,
    /// Delay of the reply to a failed login, in milliseconds; 0: none.
    pub auth_tarpit_interval_ms: u64,
    /// How `EHLO` speaks of the size limit.
    pub size_enabled: SizeMode,
    /// Whether `EHLO` says `PIPELINING`.
    pub pipelining_enabled: bool,
    /// Whether `EHLO` says `8BITMIME`.
    pub eight_bit_mime_enabled: bool,
    /// Whether `EHLO` says `ENHANCEDSTATUSCODES`.
    pub enhanced_status_codes_enabled: bool,
    /// Whether `EHLO` says `CHUNKING`.
    pub chunking_enabled: bool,
    /// Whether `EHLO` says `BINARYMIME`; off, unlike in Exchange, because few next hops take such letters.
    pub binary_mime_enabled: bool,
    /// Whether `EHLO` says `DSN`.
    pub delivery_status_notification_enabled: bool,
    /// Whether `EHLO` says `SMTPUTF8`.
    pub smtp_utf8_enabled: bool,
    /// Whether `EHLO` says `LIMITS` (RFC 9422).
    pub limits_enabled: bool,
    /// Refuses letters with a bare CR or LF; on, unlike in Exchange. See [`Self::repairs_line_endings`].
    pub bare_linefeed_rejection_enabled: bool,
    /// Habits of old devices that are put up with.
    pub leniencies: BTreeSet<Leniency>,
    /// Where letters may go, whoever sends; empty: anywhere.
    pub allowed_recipient_domains: BTreeSet<RecipientDomainPattern>,
    /// Where letters may not go, whoever sends. Outranks `allowed_recipient_domains`.
    pub denied_recipient_domains: BTreeSet<RecipientDomainPattern>,
    /// The domain of `postmaster` without one; absent: postmaster stays local.
    pub default_domain: Option<String>,
    /// How much of its sessions is written down.
    pub protocol_logging_level: ProtocolLoggingLevel,
    /// Until when they are logged verbosely whatever the level says, in unix milliseconds: switches itself off.
    pub protocol_logging_until_ms: Option<i64>,
    /// Refuses recipients in `.test`, `.example`, `.invalid` and `.localhost` with `501 5.1.4`.
    pub reject_reserved_top_level_recipient_domains: bool,
    /// Refuses recipients in `example.com`, `example.net` and `example.org` with `501 5.1.5`.
    pub reject_reserved_second_level_recipient_domains: bool,
    /// Refuses recipients in a domain of one label with `501 5.1.6`.
    pub reject_single_label_recipient_domains: bool,
    /// Whether `EHLO` must carry a domain.
    pub require_ehlo_domain: bool,
}

/// Why a connector cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectorError {
    /// Empty, too long, or with characters that do not print.
    #[error("name must have 1 to {NAME_CHARS_MAX} printable characters and no space at either end")]
    Name,
    /// Too long, or with control characters.
    #[error("comment must have at most {COMMENT_CHARS_MAX} characters and no control characters")]
    Comment,
    /// No binding, or too many.
    #[error("bindings must name 1 to {BINDINGS_MAX} of the form 0.0.0.0:25 or [::]:25")]
    Bindings,
    /// The same binding twice.
    #[error("bindings names {0} twice")]
    DuplicateBinding(Binding),
    /// A text that is not a binding.
    #[error("bindings: {0:?} is not an address and port such as 0.0.0.0:25 or [::]:25")]
    BindingSyntax(String),
    /// `none` with something else.
    #[error("auth_mechanism none stands alone")]
    NoneStandsAlone,
    /// Basic authentication under TLS needs both.
    #[error("auth_mechanism basic_auth_require_tls needs basic_auth and tls beside it")]
    BasicAuthRequireTlsNeedsBoth,
    /// TLS cannot be required where it is not offered.
    #[error("require_tls needs auth_mechanism tls")]
    RequireTlsNeedsTls,
    /// A client certificate is shown in a TLS handshake.
    #[error("auth_mechanism client_certificate needs tls beside it")]
    ClientCertificateNeedsTls,
    /// Permission group `none` with another.
    #[error("permission_groups none stands alone")]
    NoGroupStandsAlone,
    /// Letters of the one kind come by the other only.
    #[error("binary_mime_enabled needs chunking_enabled")]
    BinaryMimeNeedsChunking,
    /// RFC 6531 §3.1: a server that offers SMTPUTF8 offers 8BITMIME.
    #[error("smtp_utf8_enabled needs eight_bit_mime_enabled")]
    SmtpUtf8NeedsEightBitMime,
    /// Too many recipient domains.
    #[error("{field} must have at most {RECIPIENT_DOMAINS_MAX} domains, not {found}")]
    RecipientDomains {
        /// The parameter.
        field: &'static str,
        /// How many there are.
        found: usize,
    },
    /// Not a domain that an address could have.
    #[error("default_domain must be a domain name of at most 255 octets")]
    DefaultDomain,
    /// The greeting is not one.
    #[error("banner must begin with \"220 \", be printable ASCII and have at most {BANNER_OCTETS_MAX} octets")]
    Banner,
    /// Not a name to say in a greeting.
    #[error("fqdn must be a domain name of at most 255 octets")]
    Fqdn,
    /// An empty or overlong certificate name.
    #[error("tls_certificate_name must have 1 to 1024 characters and no control characters")]
    TlsCertificateName,
    /// A number out of range.
    #[error("{field} must be from {min} to {max}, not {value}{note}")]
    OutOfRange {
        /// The parameter.
        field: &'static str,
        /// What was asked for.
        value: u64,
        /// Smallest value.
        min: u64,
        /// Largest value.
        max: u64,
        /// What 0 means, where it is allowed.
        note: &'static str,
    },
    /// The inactivity timeout must be the shorter one.
    #[error("connection_inactivity_timeout ({inactivity} s) must be shorter than connection_timeout ({total} s)")]
    InactivityNotShorter {
        /// Seconds of silence.
        inactivity: u64,
        /// Seconds in all.
        total: u64,
    },
}

impl Default for ReceiveConnector {
    fn default() -> Self {
        Self::new("")
    }
}

impl ReceiveConnector {
    /// A connector of that name with Exchange's defaults for usage `Custom`: TLS offered, no permission group, so
    /// that nobody may submit before somebody says who.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            comment: String::new(),
            enabled: true,
            bindings: Binding::everywhere(25),
            auth_mechanism: [AuthMechanism::Tls].into(),
            permission_groups: BTreeSet::new(),
            rights: BTreeSet::new(),
            require_tls: false,
            tls_certificate_name: None,
            banner: None,
            fqdn: None,
            max_message_size: MAX_MESSAGE_SIZE_DEFAULT,
            max_header_size: MAX_HEADER_SIZE_DEFAULT,
            max_recipients_per_message: MAX_RECIPIENTS_PER_MESSAGE_DEFAULT,
            max_hop_count: MAX_HOP_COUNT_DEFAULT,
            max_local_hop_count: MAX_LOCAL_HOP_COUNT_DEFAULT,
            max_protocol_errors: MAX_PROTOCOL_ERRORS_DEFAULT,
            max_logon_failures: MAX_LOGON_FAILURES_DEFAULT,
            max_inbound_connection: MAX_INBOUND_CONNECTION_DEFAULT,
            max_inbound_connection_per_source: MAX_INBOUND_CONNECTION_PER_SOURCE_DEFAULT,
            max_inbound_connection_percentage_per_source: MAX_INBOUND_CONNECTION_PERCENTAGE_PER_SOURCE_DEFAULT,
            message_rate_limit: 0,
            message_rate_source: MessageRateSource::IpAddress,
            connection_timeout_secs: CONNECTION_TIMEOUT_SECS_DEFAULT,
            connection_inactivity_timeout_secs: CONNECTION_INACTIVITY_TIMEOUT_SECS_DEFAULT,
            tarpit_interval_ms: TARPIT_INTERVAL_MS_DEFAULT,
            auth_tarpit_interval_ms: AUTH_TARPIT_INTERVAL_MS_DEFAULT,
            size_enabled: SizeMode::Enabled,
            pipelining_enabled: true,
            eight_bit_mime_enabled: true,
            enhanced_status_codes_enabled: true,
            chunking_enabled: true,
            binary_mime_enabled: false,
            delivery_status_notification_enabled: true,
            smtp_utf8_enabled: true,
            limits_enabled: true,
            bare_linefeed_rejection_enabled: true,
            leniencies: BTreeSet::new(),
            allowed_recipient_domains: BTreeSet::new(),
            denied_recipient_domains: BTreeSet::new(),
            default_domain: None,
            protocol_logging_level: ProtocolLoggingLevel::None,
            protocol_logging_until_ms: None,
            reject_reserved_top_level_recipient_domains: false,
            reject_reserved_second_level_recipient_domains: false,
            reject_single_label_recipient_domains: false,
            require_ehlo_domain: false,
        }
    }

    /// The connector of a fresh cluster on 25, for every address: strangers may write to accepted domains.
    #[must_use]
    pub fn default_receive() -> Self {
        Self {
            comment: "anonymous mail for accepted domains".to_owned(),
            protocol_logging_level: ProtocolLoggingLevel::Errors,
            permission_groups: [PermissionGroup::AnonymousUsers].into(),
            ..Self::new("default")
        }
    }

    /// The connector of a fresh cluster on 587, for every address: credentials after `STARTTLS` (RFC 6409).
    #[must_use]
    pub fn default_submission() -> Self {
        Self {
            comment: "submission by credential, STARTTLS".to_owned(),
            message_rate_limit: SUBMISSION_MESSAGE_RATE_LIMIT_DEFAULT,
            message_rate_source: MessageRateSource::User,
            protocol_logging_level: ProtocolLoggingLevel::Errors,
            bindings: Binding::everywhere(587),
            auth_mechanism: [AuthMechanism::Tls, AuthMechanism::BasicAuth, AuthMechanism::BasicAuthRequireTls].into(),
            permission_groups: [PermissionGroup::ExchangeUsers].into(),
            ..Self::new("submission")
        }
    }

    /// The connector of a fresh cluster on 465, for every address: credentials under implicit TLS (RFC 8314 §3.3;
    /// Exchange has its Client Proxy there).
    #[must_use]
    pub fn default_submissions() -> Self {
        Self {
            name: "submissions".to_owned(),
            comment: "submission by credential, implicit TLS".to_owned(),
            bindings: Binding::everywhere(465),
            ..Self::default_submission()
        }
    }

    /// Whether TLS is offered.
    #[must_use]
    pub fn offers_tls(&self) -> bool {
        self.auth_mechanism.contains(&AuthMechanism::Tls)
    }

    /// Who reads what is sent to `postmaster` without a domain (RFC 5321 §4.5.1), where this connector says so.
    #[must_use]
    pub fn default_postmaster(&self) -> Option<Mailbox> {
        let domain = Domain::parse(self.default_domain.as_deref()?).ok()?;
        Mailbox::try_new("postmaster", domain).ok()
    }

    /// Whether passwords are taken on a connection that is (`tls`) or is not encrypted. Where TLS is required, none has
    /// any business before it.
    #[must_use]
    pub fn takes_passwords(&self, tls: bool) -> bool {
        let in_clear = !self.require_tls && !self.auth_mechanism.contains(&AuthMechanism::BasicAuthRequireTls);
        self.auth_mechanism.contains(&AuthMechanism::BasicAuth) && (tls || in_clear)
    }

    /// Whether SCRAM is offered on such a connection: before TLS only where passwords are taken, so that a connector
    /// which does not take them teaches no device to try.
    #[must_use]
    pub fn offers_scram(&self, tls: bool) -> bool {
        self.auth_mechanism.contains(&AuthMechanism::ScramSha256) && (tls || self.takes_passwords(false))
    }

    /// Whether a device may log in with a certificate of its own, which it shows in TLS.
    #[must_use]
    pub fn offers_client_certificate(&self, tls: bool) -> bool {
        tls && self.auth_mechanism.contains(&AuthMechanism::ClientCertificate)
    }

    /// Whether any way to log in is offered on such a connection.
    #[must_use]
    pub fn offers_auth(&self, tls: bool) -> bool {
        self.takes_passwords(tls) || self.offers_scram(tls) || self.offers_client_certificate(tls)
    }

    /// How much of a session is written down at `now_ms`: all of it until `protocol_logging_until_ms`, then what the
    /// level says.
    #[must_use]
    pub fn protocol_logging(&self, now_ms: i64) -> ProtocolLoggingLevel {
        match self.protocol_logging_until_ms {
            Some(until_ms) if now_ms < until_ms => ProtocolLoggingLevel::Verbose,
            _ => self.protocol_logging_level,
        }
    }

    /// Whether a bare CR or LF in mail data becomes CRLF rather than refusing the letter. A bare one never leaves, so
    /// that not refusing can only mean repairing.
    #[must_use]
    pub fn repairs_line_endings(&self) -> bool {
        !self.bare_linefeed_rejection_enabled || self.leniencies.contains(&Leniency::RepairLineEndings)
    }

    /// Whether strangers who match one of its ranges may relay anywhere.
    #[must_use]
    pub fn relays_anonymously(&self) -> bool {
        let rights = effective_rights(self, Principal::Anonymous);
        rights.contains(Right::Submit) && rights.contains(Right::AcceptAnyRecipient)
    }

    /// Checks everything that the connector alone can tell.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), ConnectorError> {
        check_name(&self.name)?;
        if self.comment.chars().count() > COMMENT_CHARS_MAX || self.comment.chars().any(char::is_control) {
            return Err(ConnectorError::Comment);
        }
        self.check_bindings()?;
        self.check_mechanisms()?;
        self.check_texts()?;
        self.check_keywords()?;
        self.check_recipient_domains()?;
        self.check_limits()
    }

    fn check_bindings(&self) -> Result<(), ConnectorError> {
        if self.bindings.is_empty() || self.bindings.len() > BINDINGS_MAX {
            return Err(ConnectorError::Bindings);
        }
        let mut seen = BTreeSet::new();
        match self.bindings.iter().find(|binding| !seen.insert(**binding)) {
            Some(twice) => Err(ConnectorError::DuplicateBinding(*twice)),
            None => Ok(()),
        }
    }

    fn check_mechanisms(&self) -> Result<(), ConnectorError> {
        let has = |mechanism| self.auth_mechanism.contains(&mechanism);
        if has(AuthMechanism::None) && self.auth_mechanism.len() > 1 {
            return Err(ConnectorError::NoneStandsAlone);
        }
        if has(AuthMechanism::BasicAuthRequireTls) && !(has(AuthMechanism::BasicAuth) && has(AuthMechanism::Tls)) {
            return Err(ConnectorError::BasicAuthRequireTlsNeedsBoth);
        }
        if self.require_tls && !has(AuthMechanism::Tls) {
            return Err(ConnectorError::RequireTlsNeedsTls);
        }
        if has(AuthMechanism::ClientCertificate) && !has(AuthMechanism::Tls) {
            return Err(ConnectorError::ClientCertificateNeedsTls);
        }
        if self.permission_groups.contains(&PermissionGroup::None) && self.permission_groups.len() > 1 {
            return Err(ConnectorError::NoGroupStandsAlone);
        }
        Ok(())
    }

    fn check_texts(&self) -> Result<(), ConnectorError> {
        let printable = |text: &str| text.bytes().all(|b| (0x20..0x7f).contains(&b));
        if let Some(banner) = &self.banner
            && !(banner.starts_with("220 ") && banner.len() <= BANNER_OCTETS_MAX && printable(banner))
        {
            return Err(ConnectorError::Banner);
        }
        if let Some(fqdn) = &self.fqdn
            && !is_host_name(fqdn)
        {
            return Err(ConnectorError::Fqdn);
        }
        if let Some(name) = &self.tls_certificate_name
            && (name.is_empty() || name.chars().count() > 1024 || name.chars().any(char::is_control))
        {
            return Err(ConnectorError::TlsCertificateName);
        }
        Ok(())
    }

    fn check_keywords(&self) -> Result<(), ConnectorError> {
        if self.binary_mime_enabled && !self.chunking_enabled {
            return Err(ConnectorError::BinaryMimeNeedsChunking);
        }
        if self.smtp_utf8_enabled && !self.eight_bit_mime_enabled {
            return Err(ConnectorError::SmtpUtf8NeedsEightBitMime);
        }
        Ok(())
    }

    fn check_recipient_domains(&self) -> Result<(), ConnectorError> {
        let lists = [
            ("allowed_recipient_domains", self.allowed_recipient_domains.len()),
            ("denied_recipient_domains", self.denied_recipient_domains.len()),
        ];
        if let Some((field, found)) = lists.into_iter().find(|(_, found)| *found > RECIPIENT_DOMAINS_MAX) {
            return Err(ConnectorError::RecipientDomains { field, found });
        }
        if self.default_domain.as_ref().is_some_and(|domain| !is_host_name(domain)) {
            return Err(ConnectorError::DefaultDomain);
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), ConnectorError> {
        const UNLIMITED: &str = " (0: unlimited)";
        const NEVER: &str = " (0: never disconnect)";
        const DAY_SECS: u64 = 24 * 60 * 60;
        const TEN_MINUTES_MS: u64 = 10 * 60 * 1000;

        in_range("max_message_size", self.max_message_size, 65_536, 2_147_483_647, "")?;
        // Exchange allows 2 GB; ours ends at 4 MiB, because the header section is held in memory.
        in_range("max_header_size", self.max_header_size, 4096, 4 * 1024 * 1024, "")?;
        in_range("max_recipients_per_message", u64::from(self.max_recipients_per_message), 1, 512_000, "")?;
        in_range("max_hop_count", u64::from(self.max_hop_count), 1, 500, "")?;
        in_range("max_local_hop_count", u64::from(self.max_local_hop_count), 0, 50, " (0: not looked at)")?;
        in_range("max_protocol_errors", u64::from(self.max_protocol_errors), 0, 2_147_483_647, UNLIMITED)?;
        in_range("max_logon_failures", u64::from(self.max_logon_failures), 0, 10, NEVER)?;
        in_range("max_inbound_connection", u64::from(self.max_inbound_connection), 0, 2_147_483_647, UNLIMITED)?;
        let per_source = u64::from(self.max_inbound_connection_per_source);
        in_range("max_inbound_connection_per_source", per_source, 0, 10_000, UNLIMITED)?;
        let percentage = u64::from(self.max_inbound_connection_percentage_per_source);
        in_range("max_inbound_connection_percentage_per_source", percentage, 1, 100, "")?;
        in_range("message_rate_limit", u64::from(self.message_rate_limit), 0, 2_147_483_647, UNLIMITED)?;
        in_range("connection_timeout", self.connection_timeout_secs, 1, DAY_SECS, " seconds")?;
        let inactivity = self.connection_inactivity_timeout_secs;
        in_range("connection_inactivity_timeout", inactivity, 1, DAY_SECS, " seconds")?;
        in_range("tarpit_interval", self.tarpit_interval_ms, 0, TEN_MINUTES_MS, " milliseconds (0: none)")?;
        in_range("auth_tarpit_interval", self.auth_tarpit_interval_ms, 0, TEN_MINUTES_MS, " milliseconds (0: none)")?;
        if inactivity >= self.connection_timeout_secs {
            return Err(ConnectorError::InactivityNotShorter { inactivity, total: self.connection_timeout_secs });
        }
        Ok(())
    }
}

fn in_range(field: &'static str, value: u64, min: u64, max: u64, note: &'static str) -> Result<(), ConnectorError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(ConnectorError::OutOfRange { field, value, min, max, note }) }
}

fn check_name(name: &str) -> Result<(), ConnectorError> {
    if is_object_name(name) { Ok(()) } else { Err(ConnectorError::Name) }
}

/// 1 to 64 characters that print, without a space at either end: it stands in log lines and tables.
pub(super) fn is_object_name(name: &str) -> bool {
    let count = name.chars().count();
    (1..=NAME_CHARS_MAX).contains(&count) && name.trim() == name && !name.chars().any(is_unprintable)
}

/// Control characters, and those that change the order or the lines of the text around them: a name must not be able
/// to forge a line of a log.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Labels of letters, digits, `-` and `_`, 1 to 63 octets each, at most 255 in all (RFC 1035 §2.3.4).
pub(super) fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 255 && name.split('.').all(label)
}

impl Binding {
    /// Parses `0.0.0.0:25` or `[::]:25`.
    ///
    /// # Errors
    /// [`ConnectorError::BindingSyntax`] with the text: no port, port 0, a zone id, or no address.
    pub fn parse(text: &str) -> Result<Self, ConnectorError> {
        let error = || ConnectorError::BindingSyntax(text.chars().take(64).collect());
        let socket: SocketAddr = text.trim().parse().map_err(|_| error())?;
        if socket.port() == 0 || text.contains('%') {
            return Err(error());
        }
        Ok(Self { addr: canonical_ip(socket.ip()), port: socket.port() })
    }

    /// The wildcards of both families on `port`.
    #[must_use]
    pub fn everywhere(port: u16) -> Vec<Self> {
        vec![
            Self { addr: IpAddr::V4(Ipv4Addr::UNSPECIFIED), port },
            Self { addr: IpAddr::V6(Ipv6Addr::UNSPECIFIED), port },
        ]
    }

    /// Whether it stands for every address of its family.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.addr.is_unspecified()
    }

    /// Whether a connection to `local` on service `port` is for this binding, were there no other.
    #[must_use]
    pub fn matches(&self, local: IpAddr, port: u16) -> bool {
        let local = canonical_ip(local);
        self.port == port && (self.addr == local || self.is_wildcard() && self.addr.is_ipv4() == local.is_ipv4())
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.addr, self.port).fmt(f)
    }
}

impl FromStr for Binding {
    type Err = ConnectorError;
    fn from_str(text: &str) -> Result<Self, ConnectorError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Binding {
    type Error = ConnectorError;
    fn try_from(text: String) -> Result<Self, ConnectorError> {
        Self::parse(&text)
    }
}

impl From<Binding> for String {
    fn from(binding: Binding) -> Self {
        binding.to_string()
    }
}

super::rights::words!(SizeMode, "a size mode", "", {
    Enabled => "enabled",
    Disabled => "disabled",
    EnabledWithoutValue => "enabled_without_value",
});

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn good() -> ReceiveConnector {
        ReceiveConnector::default_submission()
    }

    /// Changes a good connector and expects it to be refused.
    fn refused(change: impl FnOnce(&mut ReceiveConnector)) -> ConnectorError {
        let mut connector = good();
        change(&mut connector);
        connector.check().unwrap_err()
    }

    #[test]
    fn the_default_connectors_pass_and_let_no_stranger_relay() {
        for connector in [
            ReceiveConnector::default_receive(),
            ReceiveConnector::default_submission(),
            ReceiveConnector::default_submissions(),
            ReceiveConnector::new("custom"),
        ] {
            connector.check().unwrap();
            assert!(!connector.relays_anonymously());
        }
        assert!(!ReceiveConnector::default_submission().offers_auth(false));
        assert!(ReceiveConnector::default_submission().offers_auth(true));
        assert!(!ReceiveConnector::default_receive().offers_auth(true));
        assert_eq!(ReceiveConnector::default_submissions().bindings[1].to_string(), "[::]:465");
    }

    #[test]
    fn a_name_must_print() {
        for name in ["", " a", "a ", "a\nb", "a\u{202e}b", &"x".repeat(65)] {
            assert_eq!(refused(|c| c.name = name.to_owned()), ConnectorError::Name, "{name:?}");
        }
        let mut connector = good();
        connector.name = "Büro 3 – Drucker".to_owned();
        connector.check().unwrap();
    }

    #[test]
    fn auth_mechanisms_depend_on_each_other_as_in_exchange() {
        use AuthMechanism::{BasicAuth, BasicAuthRequireTls, None, Tls};
        assert_eq!(refused(|c| c.auth_mechanism = [None, Tls].into()), ConnectorError::NoneStandsAlone);
        for set in [vec![BasicAuthRequireTls], vec![BasicAuthRequireTls, Tls], vec![BasicAuthRequireTls, BasicAuth]] {
            let error = refused(|c| c.auth_mechanism = set.into_iter().collect());
            assert_eq!(error, ConnectorError::BasicAuthRequireTlsNeedsBoth);
        }
        let error = refused(|c| {
            c.auth_mechanism = [BasicAuth].into();
            c.require_tls = true;
        });
        assert_eq!(error, ConnectorError::RequireTlsNeedsTls);
        let error = refused(|c| c.auth_mechanism = [AuthMechanism::ClientCertificate].into());
        assert_eq!(error, ConnectorError::ClientCertificateNeedsTls);
        let mut plain = good();
        plain.auth_mechanism = [BasicAuth].into();
        plain.check().unwrap();
        assert!(plain.offers_auth(false));
    }

    #[test]
    fn keywords_that_need_another_are_refused_without_it() {
        let error = refused(|c| {
            c.binary_mime_enabled = true;
            c.chunking_enabled = false;
        });
        assert_eq!(error, ConnectorError::BinaryMimeNeedsChunking);
        assert_eq!(refused(|c| c.eight_bit_mime_enabled = false), ConnectorError::SmtpUtf8NeedsEightBitMime);
    }

    #[test]
    fn recipient_domain_lists_are_bounded_and_a_default_domain_is_a_name() {
        let many = |n: usize| (0..n).map(|i| format!("d{i}.example").parse().unwrap()).collect();
        let error = refused(|c| c.denied_recipient_domains = many(RECIPIENT_DOMAINS_MAX + 1));
        assert!(error.to_string().starts_with("denied_recipient_domains must have at most 1000"), "{error}");
        for domain in ["", "a b", "@corp.example", "-x.example"] {
            assert_eq!(refused(|c| c.default_domain = Some(domain.to_owned())), ConnectorError::DefaultDomain);
        }
    }

    #[test]
    fn verbose_logging_switches_itself_off() {
        let mut connector = good();
        connector.protocol_logging_level = ProtocolLoggingLevel::Errors;
        connector.protocol_logging_until_ms = Some(1000);
        assert_eq!(connector.protocol_logging(999), ProtocolLoggingLevel::Verbose);
        assert_eq!(connector.protocol_logging(1000), ProtocolLoggingLevel::Errors);
    }

    #[test]
    fn bare_line_endings_are_refused_unless_somebody_says_repair() {
        let mut connector = good();
        assert!(!connector.repairs_line_endings());
        connector.leniencies.insert(Leniency::RepairLineEndings);
        assert!(connector.repairs_line_endings());
        connector.leniencies.clear();
        connector.bare_linefeed_rejection_enabled = false;
        assert!(connector.repairs_line_endings());
    }

    #[test]
    fn a_banner_is_a_greeting_of_one_line() {
        for banner in
            ["hello", "250 hello", "220", "220-a", "220 a\r\n250 b", "220 ü", &format!("220 {}", "x".repeat(510))]
        {
            assert_eq!(refused(|c| c.banner = Some(banner.to_owned())), ConnectorError::Banner, "{banner:?}");
        }
        let mut connector = good();
        connector.banner = Some("220 scanners relay".to_owned());
        connector.check().unwrap();
    }

    #[test]
    fn limits_keep_to_exchanges_ranges() {
        type Change = fn(&mut ReceiveConnector);
        let cases: [(Change, &str); 13] = [
            (|c| c.max_message_size = 65_535, "max_message_size"),
            (|c| c.max_message_size = 1 << 31, "max_message_size"),
            (|c| c.max_header_size = 1, "max_header_size"),
            (|c| c.max_recipients_per_message = 0, "max_recipients_per_message"),
            (|c| c.max_hop_count = 501, "max_hop_count"),
            (|c| c.max_local_hop_count = 51, "max_local_hop_count"),
            (|c| c.max_inbound_connection_percentage_per_source = 0, "max_inbound_connection_percentage_per_source"),
            (|c| c.max_inbound_connection_percentage_per_source = 101, "max_inbound_connection_percentage_per_source"),
            (|c| c.message_rate_limit = u32::MAX, "message_rate_limit"),
            (|c| c.max_logon_failures = 11, "max_logon_failures"),
            (|c| c.max_inbound_connection_per_source = 10_001, "max_inbound_connection_per_source"),
            (|c| c.connection_timeout_secs = 86_401, "connection_timeout"),
            (|c| c.tarpit_interval_ms = 600_001, "tarpit_interval"),
        ];
        for (change, name) in cases {
            let error = refused(change);
            assert!(matches!(error, ConnectorError::OutOfRange { field, .. } if field == name), "{error}");
        }
        assert!(matches!(
            refused(|c| c.connection_inactivity_timeout_secs = c.connection_timeout_secs),
            ConnectorError::InactivityNotShorter { .. }
        ));
    }

    #[test]
    fn bindings_parse_show_and_match_as_devices_dial() {
        for (text, shown) in
            [("0.0.0.0:25", "0.0.0.0:25"), ("[::]:587", "[::]:587"), ("[::ffff:10.0.0.1]:25", "10.0.0.1:25")]
        {
            assert_eq!(Binding::parse(text).unwrap().to_string(), shown);
        }
        for text in ["", "25", ":25", "0.0.0.0", "0.0.0.0:0", "::25", "[fe80::1%1]:25", "host:25", "0.0.0.0:65536"] {
            assert!(Binding::parse(text).is_err(), "{text}");
        }
        let any = Binding::parse("0.0.0.0:25").unwrap();
        assert!(any.matches("10.0.0.1".parse().unwrap(), 25) && any.matches("::ffff:10.0.0.1".parse().unwrap(), 25));
        assert!(!any.matches("10.0.0.1".parse().unwrap(), 587) && !any.matches("2001:db8::1".parse().unwrap(), 25));
        let one = Binding::parse("10.0.0.1:25").unwrap();
        assert!(one.matches("10.0.0.1".parse().unwrap(), 25) && !one.matches("10.0.0.2".parse().unwrap(), 25));
        assert_eq!(refused(|c| c.bindings.push(c.bindings[0])), ConnectorError::DuplicateBinding(good().bindings[0]));
        assert_eq!(refused(|c| c.bindings.clear()), ConnectorError::Bindings);
    }

    #[test]
    fn a_stored_connector_of_an_older_version_takes_defaults_for_what_it_lacks() {
        let read: ReceiveConnector = serde_json::from_str(
            r#"{"name":"old","bindings":["10.0.0.1:25"],"rights":["anonymous:accept_any_recipient"]}"#,
        )
        .unwrap();
        assert_eq!(read.max_message_size, MAX_MESSAGE_SIZE_DEFAULT);
        assert_eq!(read.bindings, [Binding::parse("10.0.0.1:25").unwrap()]);
        let round: ReceiveConnector = serde_json::from_str(&serde_json::to_string(&read).unwrap()).unwrap();
        assert_eq!(round, read);
    }
}
