//! `SendConnector` (a route, on the command line): which letters it takes, and how they leave: to smart hosts or by MX,
//! with which TLS, credential, source address, limits and schedule. The table that picks one is in `route_table`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::SenderPattern;
use super::receive::{is_host_name, is_object_name};
use crate::mail::Domain;

/// Exchange's cost of an address space.
const COST_DEFAULT: u32 = 1;
/// Exchange's MaxPerDomainOutboundConnections: 20 connections to one next hop.
const MAX_CONNECTIONS_DEFAULT: u32 = 20;
/// The port of mail between servers (RFC 5321 §2.3.4).
const PORT_DEFAULT: u16 = 25;
const LIST_MAX: usize = 1000;
/// Exchange's SmtpMaxMessagesPerConnection.
const MAX_MESSAGES_PER_CONNECTION_DEFAULT: u32 = 20;
/// A bundle of a hundred authorities; the whole list of browsers belongs into the machine's own store.
const TLS_CA_BYTES_MAX: usize = 256 * 1024;
/// A year: whoever waits longer has forgotten.
const RETRY_SECS_MAX: u64 = 366 * 24 * 3600;
/// RFC 4954 §4: no credential in use is longer.
const AUTH_USER_CHARS_MAX: usize = 255;

/// Which recipient domains a send connector takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AddressSpace {
    /// `*`: every domain, address literals included.
    All,
    /// `*.corp.example`: `corp.example` with every subdomain.
    Subdomains(Domain),
    /// `corp.example`: exactly this domain.
    Exact(Domain),
}

/// A next hop by name or address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SmartHost {
    /// A host name, or an address without brackets.
    pub host: String,
    /// The port; 25 where none is written.
    pub port: u16,
    /// Its share among the weighted smart hosts; 0, where none is written: a standby, tried after those in the order
    /// given.
    pub weight: u16,
}

/// Whether delivery is encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SendTls {
    /// Never.
    Off,
    /// Where the next hop offers it, without looking at its certificate (RFC 7435).
    #[default]
    Opportunistic,
    /// Always, whoever the certificate belongs to; else the letter waits.
    Required,
    /// Always, with a certificate that an authority we trust gave to the next hop's name; else the letter waits.
    Verified,
}

super::rights::words!(SendTls, "a TLS setting", "", {
    Off => "off" | "none",
    Opportunistic => "opportunistic",
    Required => "required",
    Verified => "verified",
});

impl SendTls {
    /// Whether nothing may leave in clear text.
    #[must_use]
    pub fn is_mandatory(self) -> bool {
        matches!(self, Self::Required | Self::Verified)
    }
}

/// Who we are towards a smart host (RFC 4954).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteAuth {
    /// The user name.
    pub user: String,
    /// The password, sealed with the cluster's data key for this route. Never in clear text here.
    pub sealed_password: String,
}

/// When letters of a route are tried again, where it differs from the node file's `[queue]`. In seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetryOverride {
    /// Exchange's `QueueGlitchRetryInterval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub glitch_retry_interval_secs: Option<u64>,
    /// Exchange's `TransientFailureRetryInterval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transient_failure_retry_interval_secs: Option<u64>,
    /// Exchange's `MessageRetryInterval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_retry_interval_secs: Option<u64>,
    /// Exchange's `MessageExpirationTimeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_expiration_timeout_secs: Option<u64>,
}

impl RetryOverride {
    /// Every value, with the name of its setting.
    fn values(&self) -> [(&'static str, Option<u64>); 4] {
        [
            ("glitch_retry_interval", self.glitch_retry_interval_secs),
            ("transient_failure_retry_interval", self.transient_failure_retry_interval_secs),
            ("message_retry_interval", self.message_retry_interval_secs),
            ("message_expiration_timeout", self.message_expiration_timeout_secs),
        ]
    }
}

/// A send connector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SendConnector {
    /// Unique, 1 to 64 printable characters.
    pub name: String,
    /// For people.
    pub comment: String,
    /// Whether it takes letters.
    pub enabled: bool,
    /// Which domains it takes.
    pub address_spaces: Vec<AddressSpace>,
    /// Among equally specific address spaces the lowest cost wins.
    pub cost: u32,
    /// Only letters of these senders; empty: any.
    pub senders: Vec<SenderPattern>,
    /// Only letters that these receive connectors took; empty: any.
    pub connectors: Vec<String>,
    /// Delivers to the recipient domain's own servers, as the DNS names them, instead of to smart hosts.
    pub mx: bool,
    /// The next hops: weighted ones by chance, then the others in this order.
    pub smart_hosts: Vec<SmartHost>,
    /// Whether delivery is encrypted.
    pub tls: SendTls,
    /// With `verified`: the names of which the certificate must have one; empty: the next hop's own.
    pub tls_names: Vec<String>,
    /// With `verified`: the authorities to trust, PEM; empty: the machine's trust store and the cluster's authority.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tls_ca_pem: String,
    /// Who we are towards the smart hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<RouteAuth>,
    /// Connections to one destination at a time, per node: the smart hosts of the route, or a recipient domain.
    pub max_connections: u32,
    /// Letters on one connection, after which it is closed.
    pub max_messages_per_connection: u32,
    /// Letters to one destination per minute, per node; 0: unlimited.
    pub rate_per_minute: u32,
    /// The local addresses to connect from, at most one of each family; empty: the machine decides.
    pub source_addresses: Vec<IpAddr>,
    /// The name in `EHLO`; absent: the node's own.
    pub fqdn: Option<String>,
    /// Where the schedule differs from the node's.
    pub retry: RetryOverride,
}

/// Why a send connector cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Empty, too long, or with characters that do not print.
    #[error("name must have 1 to 64 printable characters and no space at either end")]
    Name,
    /// Too long, or with control characters.
    #[error("comment must have at most 1024 characters and no control characters")]
    Comment,
    /// No address space, or too many.
    #[error("address_spaces must name 1 to {LIST_MAX}, such as *, corp.example or *.corp.example")]
    AddressSpaces,
    /// A text that is not an address space.
    #[error("{0:?} is not an address space such as *, corp.example or *.corp.example")]
    AddressSpaceSyntax(String),
    /// No smart host, or too many.
    #[error(
        "smart_hosts must name 1 to {LIST_MAX}, such as smarthost.corp.example:25, unless the route delivers by MX"
    )]
    SmartHosts,
    /// Two ways at once.
    #[error("a route delivers by MX or to smart_hosts, not both")]
    MxAndSmartHosts,
    /// Too many, or a name that no receive connector can have.
    #[error("connectors must name at most {LIST_MAX} receive connectors")]
    Connectors,
    /// Too many.
    #[error("senders must name at most {LIST_MAX}, such as scan@corp.example or @corp.example")]
    Senders,
    /// Not a name that a certificate has.
    #[error("tls_names must be host names such as mx.partner.example, not {0:?}")]
    TlsNames(String),
    /// Not certificates.
    #[error("tls_ca must be PEM certificates of at most {} KiB", TLS_CA_BYTES_MAX / 1024)]
    TlsCa,
    /// A setting of `verified` without it.
    #[error("tls_names and tls_ca mean something with tls verified only")]
    TlsNotVerified,
    /// A password needs somebody it belongs to.
    #[error("auth_user must have 1 to {AUTH_USER_CHARS_MAX} characters and no control characters")]
    AuthUser,
    /// Servers found by the DNS know no password of ours.
    #[error("auth belongs to smart_hosts, not to a route that delivers by MX")]
    AuthWithMx,
    /// Letters per connection out of range.
    #[error("max_messages_per_connection must be from 1 to 10000, not {0}")]
    MaxMessagesPerConnection(u32),
    /// Rate out of range.
    #[error("rate_per_minute must be at most 1000000 (0: unlimited), not {0}")]
    Rate(u32),
    /// Not usable as a local address.
    #[error("source_addresses must be at most one IPv4 and one IPv6 address of this machine")]
    SourceAddresses,
    /// An interval out of range.
    #[error("{0} must be from 1 second to 366 days")]
    Retry(&'static str),
    /// A text that is not a smart host.
    #[error(
        "{0:?} is not a smart host such as smarthost.corp.example:25, 10.1.2.3:25 or [2001:db8::1]:25, with =WEIGHT behind it for a share"
    )]
    SmartHostSyntax(String),
    /// Cost out of range.
    #[error("cost must be from 1 to 100, not {0}")]
    Cost(u32),
    /// Connections out of range.
    #[error("max_connections must be from 1 to 1000, not {0}")]
    MaxConnections(u32),
    /// Not a name to say in `EHLO`.
    #[error("fqdn must be a domain name of at most 255 octets")]
    Fqdn,
}

impl Default for SendConnector {
    fn default() -> Self {
        Self::new("")
    }
}

impl SendConnector {
    /// A send connector of that name without address space or smart host.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            comment: String::new(),
            enabled: true,
            address_spaces: Vec::new(),
            cost: COST_DEFAULT,
            senders: Vec::new(),
            connectors: Vec::new(),
            mx: false,
            smart_hosts: Vec::new(),
            tls: SendTls::default(),
            tls_names: Vec::new(),
            tls_ca_pem: String::new(),
            auth: None,
            max_connections: MAX_CONNECTIONS_DEFAULT,
            max_messages_per_connection: MAX_MESSAGES_PER_CONNECTION_DEFAULT,
            rate_per_minute: 0,
            source_addresses: Vec::new(),
            fqdn: None,
            retry: RetryOverride::default(),
        }
    }

    /// The way of a letter that an administrator sends to `host` instead: as its route says, but for what belongs to the
    /// route's own next hops, such as the credential, which is nobody else's to see.
    #[must_use]
    pub fn redirected(base: Option<&Self>, host: SmartHost) -> Self {
        let base = base.cloned().unwrap_or_default();
        Self {
            name: format!("{} redirected to {}", base.name, host.address()).trim_start().to_owned(),
            mx: false,
            smart_hosts: vec![host],
            tls_names: Vec::new(),
            tls_ca_pem: String::new(),
            auth: None,
            ..base
        }
    }

    /// Checks everything that the send connector alone can tell.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), SendError> {
        if !is_object_name(&self.name) {
            return Err(SendError::Name);
        }
        if self.comment.chars().count() > 1024 || self.comment.chars().any(char::is_control) {
            return Err(SendError::Comment);
        }
        if self.address_spaces.is_empty() || self.address_spaces.len() > LIST_MAX {
            return Err(SendError::AddressSpaces);
        }
        self.check_next_hops()?;
        self.check_tls_and_auth()?;
        if !(1..=100).contains(&self.cost) {
            return Err(SendError::Cost(self.cost));
        }
        if !(1..=1000).contains(&self.max_connections) {
            return Err(SendError::MaxConnections(self.max_connections));
        }
        if !(1..=10_000).contains(&self.max_messages_per_connection) {
            return Err(SendError::MaxMessagesPerConnection(self.max_messages_per_connection));
        }
        if self.rate_per_minute > 1_000_000 {
            return Err(SendError::Rate(self.rate_per_minute));
        }
        if self.senders.len() > LIST_MAX {
            return Err(SendError::Senders);
        }
        if self.connectors.len() > LIST_MAX || !self.connectors.iter().all(|name| is_object_name(name)) {
            return Err(SendError::Connectors);
        }
        for (setting, secs) in self.retry.values() {
            if secs.is_some_and(|secs| !(1..=RETRY_SECS_MAX).contains(&secs)) {
                return Err(SendError::Retry(setting));
            }
        }
        if self.fqdn.as_ref().is_some_and(|fqdn| !is_host_name(fqdn)) {
            return Err(SendError::Fqdn);
        }
        Ok(())
    }

    fn check_next_hops(&self) -> Result<(), SendError> {
        match (self.mx, self.smart_hosts.len()) {
            (true, 0) | (false, 1..=LIST_MAX) => {}
            (true, _) => return Err(SendError::MxAndSmartHosts),
            (false, _) => return Err(SendError::SmartHosts),
        }
        let usable = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast();
        let fours = self.source_addresses.iter().filter(|ip| ip.is_ipv4()).count();
        let sixes = self.source_addresses.len() - fours;
        if fours > 1 || sixes > 1 || !self.source_addresses.iter().all(usable) {
            return Err(SendError::SourceAddresses);
        }
        Ok(())
    }

    fn check_tls_and_auth(&self) -> Result<(), SendError> {
        if self.tls != SendTls::Verified && !(self.tls_names.is_empty() && self.tls_ca_pem.is_empty()) {
            return Err(SendError::TlsNotVerified);
        }
        let wrong = |name: &&String| !is_host_name(name) && name.parse::<IpAddr>().is_err();
        if let Some(name) = self.tls_names.iter().find(wrong) {
            return Err(SendError::TlsNames(name.chars().take(300).collect()));
        }
        if self.tls_ca_pem.len() > TLS_CA_BYTES_MAX
            || !(self.tls_ca_pem.is_empty() || self.tls_ca_pem.contains("-----BEGIN CERTIFICATE-----"))
            || self.tls_names.len() > LIST_MAX
        {
            return Err(SendError::TlsCa);
        }
        if let Some(auth) = &self.auth {
            let count = auth.user.chars().count();
            if !(1..=AUTH_USER_CHARS_MAX).contains(&count) || auth.user.chars().any(char::is_control) {
                return Err(SendError::AuthUser);
            }
            if self.mx {
                return Err(SendError::AuthWithMx);
            }
        }
        Ok(())
    }

    /// The local address to connect from to `ip`.
    #[must_use]
    pub fn source_for(&self, ip: IpAddr) -> Option<IpAddr> {
        self.source_addresses.iter().find(|source| source.is_ipv4() == ip.is_ipv4()).copied()
    }
}

impl FromStr for AddressSpace {
    type Err = SendError;
    fn from_str(text: &str) -> Result<Self, SendError> {
        let error = || SendError::AddressSpaceSyntax(text.chars().take(300).collect());
        let name = text.trim();
        if name == "*" {
            return Ok(Self::All);
        }
        let domain = |name: &str| match Domain::parse(name) {
            Ok(domain) if !domain.is_literal() => Ok(domain),
            _ => Err(error()),
        };
        match name.strip_prefix("*.") {
            Some(parent) => domain(parent).map(Self::Subdomains),
            None => domain(name).map(Self::Exact),
        }
    }
}

impl fmt::Display for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Subdomains(parent) => write!(f, "*.{parent}"),
            Self::Exact(domain) => domain.fmt(f),
        }
    }
}

impl FromStr for SmartHost {
    type Err = SendError;
    fn from_str(text: &str) -> Result<Self, SendError> {
        let error = || SendError::SmartHostSyntax(text.chars().take(300).collect());
        let text = text.trim();
        let (text, weight) = match text.rsplit_once('=') {
            None => (text, 0),
            Some((text, digits)) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                (text, digits.parse().map_err(|_| error())?)
            }
            Some(_) => return Err(error()),
        };
        // An IPv6 address without brackets has no port; `2001:db8::1:25` would be read two ways.
        if let Ok(ip) = text.parse::<Ipv6Addr>() {
            return Ok(Self { host: IpAddr::V6(ip).to_canonical().to_string(), port: PORT_DEFAULT, weight });
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']').ok_or_else(error)?;
                let address: IpAddr = address.parse().map_err(|_| error())?;
                (address.to_canonical().to_string(), port)
            }
            None => {
                let end = text.find(':').unwrap_or(text.len());
                let (host, port) = text.split_at(end);
                (host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase(), port)
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => PORT_DEFAULT,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| error())?,
            _ => return Err(error()),
        };
        // A name whose last label is a number is a mistyped address (RFC 3696 §2).
        let numeric = host.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
        let named = is_host_name(&host) && !numeric;
        if port == 0 || !(named || host.parse::<IpAddr>().is_ok()) {
            return Err(error());
        }
        Ok(Self { host, port, weight })
    }
}

impl SmartHost {
    /// `host:port`, without the weight.
    #[must_use]
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for SmartHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address())?;
        if self.weight > 0 { write!(f, "={}", self.weight) } else { Ok(()) }
    }
}

macro_rules! string_serde {
    ($($type:ident),+) => {
        $(impl TryFrom<String> for $type {
            type Error = SendError;
            fn try_from(text: String) -> Result<Self, SendError> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        })+
    };
}
string_serde!(AddressSpace, SmartHost);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn smart_hosts_parse_and_show_the_same() {
        for (text, shown) in [
            ("Hub.Corp.Example", "hub.corp.example:25"),
            ("hub.corp.example.:587", "hub.corp.example:587"),
            ("localhost:2525", "localhost:2525"),
            ("10.1.2.3", "10.1.2.3:25"),
            ("[10.1.2.3]:26", "10.1.2.3:26"),
            ("[2001:db8::1]:26", "[2001:db8::1]:26"),
            ("2001:db8::1", "[2001:db8::1]:25"),
            ("[::ffff:10.1.2.3]", "10.1.2.3:25"),
            ("hub.corp.example=3", "hub.corp.example:25=3"),
            ("[2001:db8::1]:26=65535", "[2001:db8::1]:26=65535"),
            ("2001:db8::1=2", "[2001:db8::1]:25=2"),
            ("hub:25=0", "hub:25"),
        ] {
            let host: SmartHost = text.parse().unwrap();
            assert_eq!(host.to_string(), shown);
            assert_eq!(shown.parse::<SmartHost>().unwrap(), host);
        }
        for text in [
            "",
            ":25",
            "hub:",
            "hub:0",
            "hub:65536",
            "hub:+25",
            "hub:x",
            "a b",
            "[::1",
            "[x]:25",
            "10.1.2",
            "10.1.2.300",
            "hub..x",
            "-hub",
            "h\r\nx",
            "hub:25=",
            "hub:25=x",
            "hub:25=65536",
            "=3",
        ] {
            assert!(text.parse::<SmartHost>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn address_spaces_parse_and_show_the_same() {
        for text in ["*", "corp.example", "*.corp.example"] {
            assert_eq!(text.parse::<AddressSpace>().unwrap().to_string(), text);
        }
        for text in ["", "**", "*corp.example", "*.", "[192.0.2.1]", "a@b.example"] {
            assert!(text.parse::<AddressSpace>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_route_needs_a_space_and_a_smart_host() {
        let mut bad = SendConnector::new("x");
        assert_eq!(bad.check(), Err(SendError::AddressSpaces));
        bad.address_spaces = vec![AddressSpace::All];
        assert_eq!(bad.check(), Err(SendError::SmartHosts));
        bad.smart_hosts = vec!["hub.corp.example".parse().unwrap()];
        bad.cost = 0;
        assert_eq!(bad.check(), Err(SendError::Cost(0)));
        bad.cost = 1;
        bad.max_connections = 0;
        assert_eq!(bad.check(), Err(SendError::MaxConnections(0)));
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        type Change = fn(&mut SendConnector);
        let cases: [(Change, SendError); 14] = [
            (|route| route.mx = true, SendError::MxAndSmartHosts),
            (|route| route.tls_names = vec!["mx.example".into()], SendError::TlsNotVerified),
            (|route| route.tls_ca_pem = "x".into(), SendError::TlsNotVerified),
            (
                |route| (route.tls, route.tls_names) = (SendTls::Verified, vec!["a b".into()]),
                SendError::TlsNames("a b".into()),
            ),
            (|route| (route.tls, route.tls_ca_pem) = (SendTls::Verified, "x".into()), SendError::TlsCa),
            (
                |route| {
                    (route.mx, route.smart_hosts) = (true, vec![]);
                    route.auth = Some(RouteAuth { user: "u".into(), sealed_password: "x".into() });
                },
                SendError::AuthWithMx,
            ),
            (
                |route| route.auth = Some(RouteAuth { user: String::new(), sealed_password: "x".into() }),
                SendError::AuthUser,
            ),
            (|route| route.max_messages_per_connection = 0, SendError::MaxMessagesPerConnection(0)),
            (|route| route.rate_per_minute = 1_000_001, SendError::Rate(1_000_001)),
            (|route| route.source_addresses = vec!["0.0.0.0".parse().unwrap()], SendError::SourceAddresses),
            (
                |route| route.source_addresses = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().unwrap()).to_vec(),
                SendError::SourceAddresses,
            ),
            (|route| route.connectors = vec![String::new()], SendError::Connectors),
            (|route| route.retry.glitch_retry_interval_secs = Some(0), SendError::Retry("glitch_retry_interval")),
            (
                |route| route.retry.message_expiration_timeout_secs = Some(RETRY_SECS_MAX + 1),
                SendError::Retry("message_expiration_timeout"),
            ),
        ];
        for (change, expected) in cases {
            let mut route = SendConnector::new("x");
            route.address_spaces = vec![AddressSpace::All];
            route.smart_hosts = vec!["hub.corp.example".parse().unwrap()];
            assert_eq!(route.check(), Ok(()));
            change(&mut route);
            assert_eq!(route.check(), Err(expected));
        }
    }

    #[test]
    fn a_redirected_letter_keeps_the_manners_of_its_route_and_none_of_its_secrets() {
        let mut base = SendConnector::new("partner");
        (base.mx, base.tls, base.fqdn) = (true, SendTls::Verified, Some("relay.example".into()));
        base.auth = Some(RouteAuth { user: "u".into(), sealed_password: "x".into() });
        base.tls_names = vec!["mx.example".into()];
        let host: SmartHost = "10.1.2.3:26".parse().unwrap();
        let way = SendConnector::redirected(Some(&base), host.clone());
        assert_eq!((way.mx, way.tls, way.fqdn.as_deref()), (false, SendTls::Verified, Some("relay.example")));
        assert_eq!((way.auth, way.tls_names.len(), way.smart_hosts), (None, 0, vec![host.clone()]));
        assert_eq!(SendConnector::redirected(None, host).name, "redirected to 10.1.2.3:26");
    }

    #[test]
    fn a_route_of_an_older_version_is_read() {
        let old = r#"{"name":"default","comment":"","enabled":true,"address_spaces":["*"],"cost":1,
            "smart_hosts":["hub.corp.example:25"],"tls":"opportunistic","max_connections":20,"fqdn":null}"#;
        let route: SendConnector = serde_json::from_str(old).unwrap();
        assert_eq!(route.check(), Ok(()));
        assert_eq!((route.max_messages_per_connection, route.mx, route.smart_hosts[0].weight), (20, false, 0));
    }
}
