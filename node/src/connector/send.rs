//! `SendConnector` (a route, on the command line): address spaces → smart hosts, and the table that picks one for a
//! recipient's domain.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::receive::{is_host_name, is_object_name};
use crate::mail::Domain;

/// Exchange's cost of an address space.
const COST_DEFAULT: u32 = 1;
/// Exchange's MaxPerDomainOutboundConnections: 20 connections to one next hop.
const MAX_CONNECTIONS_DEFAULT: u32 = 20;
/// The port of mail between servers (RFC 5321 §2.3.4).
const PORT_DEFAULT: u16 = 25;
const LIST_MAX: usize = 1000;

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
    /// Always, with a certificate that is valid for the smart host; else the letter waits.
    Required,
}

super::rights::words!(SendTls, "a TLS setting", "", {
    Off => "off" | "none",
    Opportunistic => "opportunistic",
    Required => "required",
});

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
    /// The next hops, tried in this order.
    pub smart_hosts: Vec<SmartHost>,
    /// Whether delivery is encrypted.
    pub tls: SendTls,
    /// Connections to one smart host at a time, per node.
    pub max_connections: u32,
    /// The name in `EHLO`; absent: the node's own.
    pub fqdn: Option<String>,
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
    #[error("smart_hosts must name 1 to {LIST_MAX}, such as smarthost.corp.example:25")]
    SmartHosts,
    /// A text that is not a smart host.
    #[error("{0:?} is not a smart host such as smarthost.corp.example:25, 10.1.2.3:25 or [2001:db8::1]:25")]
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
            smart_hosts: Vec::new(),
            tls: SendTls::default(),
            max_connections: MAX_CONNECTIONS_DEFAULT,
            fqdn: None,
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
        if self.smart_hosts.is_empty() || self.smart_hosts.len() > LIST_MAX {
            return Err(SendError::SmartHosts);
        }
        if !(1..=100).contains(&self.cost) {
            return Err(SendError::Cost(self.cost));
        }
        if !(1..=1000).contains(&self.max_connections) {
            return Err(SendError::MaxConnections(self.max_connections));
        }
        if self.fqdn.as_ref().is_some_and(|fqdn| !is_host_name(fqdn)) {
            return Err(SendError::Fqdn);
        }
        Ok(())
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
        // An IPv6 address without brackets has no port; `2001:db8::1:25` would be read two ways.
        if let Ok(ip) = text.parse::<Ipv6Addr>() {
            return Ok(Self { host: IpAddr::V6(ip).to_canonical().to_string(), port: PORT_DEFAULT });
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
        Ok(Self { host, port })
    }
}

impl fmt::Display for SmartHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
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

/// Which send connector takes a letter for a domain. Immutable.
#[derive(Debug, Default)]
pub struct RouteTable {
    exact: HashMap<String, Arc<SendConnector>>,
    subdomains: HashMap<String, Arc<SendConnector>>,
    all: Option<Arc<SendConnector>>,
}

impl RouteTable {
    /// Builds the table from every send connector; disabled ones are left out.
    pub fn build(routes: impl IntoIterator<Item = Arc<SendConnector>>) -> Self {
        let mut routes: Vec<_> = routes.into_iter().filter(|route| route.enabled).collect();
        routes.sort_by(|a, b| a.cost.cmp(&b.cost).then_with(|| a.name.cmp(&b.name)));
        let mut table = Self::default();
        for route in routes {
            for space in &route.address_spaces {
                // The first one stays: the lowest cost, then the smallest name.
                match space {
                    AddressSpace::All => {
                        table.all.get_or_insert_with(|| Arc::clone(&route));
                    }
                    AddressSpace::Subdomains(parent) => {
                        table.subdomains.entry(parent.as_str().to_owned()).or_insert_with(|| Arc::clone(&route));
                    }
                    AddressSpace::Exact(domain) => {
                        table.exact.entry(domain.as_str().to_owned()).or_insert_with(|| Arc::clone(&route));
                    }
                }
            }
        }
        table
    }

    /// Finds the send connector with the most specific address space: the exact domain, then the closest parent with
    /// subdomains, then `*`; among equals the lowest cost, then the smallest name.
    #[must_use]
    pub fn find(&self, domain: &Domain) -> Option<&Arc<SendConnector>> {
        if !domain.is_literal() {
            let name = domain.as_str();
            if let Some(route) = self.exact.get(name) {
                return Some(route);
            }
            let parents = std::iter::successors(Some(name), |rest| rest.split_once('.').map(|(_, parent)| parent));
            for parent in parents {
                if let Some(route) = self.subdomains.get(parent) {
                    return Some(route);
                }
            }
        }
        self.all.as_ref()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn route(name: &str, cost: u32, spaces: &[&str]) -> Arc<SendConnector> {
        let mut route = SendConnector::new(name);
        route.cost = cost;
        route.address_spaces = spaces.iter().map(|text| text.parse().unwrap()).collect();
        route.smart_hosts = vec!["hub.corp.example".parse().unwrap()];
        route.check().unwrap();
        Arc::new(route)
    }

    fn winner<'a>(table: &'a RouteTable, domain: &str) -> Option<&'a str> {
        table.find(&Domain::parse(domain).unwrap()).map(|route| route.name.as_str())
    }

    #[test]
    fn the_most_specific_address_space_wins_then_cost_then_name() {
        let table = RouteTable::build([
            route("default", 1, &["*"]),
            route("backup", 2, &["*", "*.corp.example"]),
            route("corp", 5, &["*.corp.example"]),
            route("lab", 100, &["*.lab.corp.example"]),
            route("host-b", 7, &["mx.lab.corp.example"]),
            route("host-a", 7, &["mx.lab.corp.example"]),
        ]);
        for (domain, expected) in [
            ("mx.lab.corp.example", "host-a"),
            ("other.lab.corp.example", "lab"),
            ("lab.corp.example", "lab"),
            ("corp.example", "backup"),
            ("a.b.corp.example", "backup"),
            ("xcorp.example", "default"),
            ("[192.0.2.1]", "default"),
        ] {
            assert_eq!(winner(&table, domain), Some(expected), "{domain}");
        }
    }

    #[test]
    fn a_disabled_route_takes_nothing_and_no_route_is_no_answer() {
        let mut disabled = SendConnector::clone(&route("default", 1, &["*"]));
        disabled.enabled = false;
        assert_eq!(winner(&RouteTable::build([Arc::new(disabled)]), "corp.example"), None);
        assert_eq!(winner(&RouteTable::build([route("corp", 1, &["corp.example"])]), "sub.corp.example"), None);
    }

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
}
