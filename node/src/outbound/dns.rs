//! What the DNS says about a domain: its mail servers and their addresses (RFC 5321 §5.1, RFC 7505). The only place that
//! names the resolver library. "There is none" and "nobody could say" are kept apart: the first ends a letter, the
//! second only delays it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData};
use tokio::time::timeout;

use crate::mail::Domain;

/// A question that is not answered within this is asked again at the next attempt.
pub const LOOKUP_DEADLINE: Duration = Duration::from_secs(20);
/// How many MX records of one domain are looked at; the rest is noise, or an attack.
pub const MX_RECORDS_MAX: usize = 20;
/// How many addresses of one host are tried in one attempt.
pub const ADDRESSES_PER_HOST_MAX: usize = 4;

/// Whom to ask, and how patiently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSettings {
    /// The name servers; empty: those of the machine.
    pub servers: Vec<SocketAddr>,
    /// How long one server has for one try.
    pub timeout: Duration,
    /// Tries per question beyond the first.
    pub attempts: usize,
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self { servers: Vec::new(), timeout: Duration::from_secs(5), attempts: 2 }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsFailure {
    /// The name does not exist (NXDOMAIN).
    #[error("the name does not exist")]
    NoSuchName,
    /// The name exists and has nothing of the kind.
    #[error("the name has no such record")]
    NoData,
    /// Nobody could say: a timeout, SERVFAIL, or nonsense. To be asked again.
    #[error("the name servers gave no answer: {0}")]
    Passing(String),
}

/// Where a domain's mail goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MailServers {
    /// These hosts, by preference, the lowest first.
    Hosts(Vec<(u16, String)>),
    /// There is no MX record: the domain itself (RFC 5321 §5.1).
    Implicit,
    /// `MX 0 .`: it takes no mail (RFC 7505).
    Null,
}

/// Asks name servers.
#[derive(Clone)]
pub struct Dns {
    resolver: TokioResolver,
    /// Whether smart hosts are looked up as the machine does it, with its hosts file and search list.
    by_machine: bool,
}

impl std::fmt::Debug for Dns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dns").field("by_machine", &self.by_machine).finish_non_exhaustive()
    }
}

impl Dns {
    /// Prepares to ask the servers of `settings`. Sends nothing yet.
    ///
    /// # Errors
    /// When the machine's own configuration cannot be read.
    pub fn new(settings: &DnsSettings) -> Result<Self, String> {
        let by_machine = settings.servers.is_empty();
        let mut builder = if by_machine {
            TokioResolver::builder_tokio().map_err(|error| format!("the machine's name servers: {error}"))?
        } else {
            let servers = settings.servers.iter().map(server).collect();
            let config = ResolverConfig::from_parts(None, Vec::new(), servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        set(builder.options_mut(), settings);
        let resolver = builder.build().map_err(|error| format!("the resolver cannot be made: {error}"))?;
        Ok(Self { resolver, by_machine })
    }

    /// Asks for the mail servers of `domain`.
    ///
    /// # Errors
    /// When the domain does not exist, or nobody could say.
    pub async fn mail_servers(&self, domain: &Domain) -> Result<MailServers, DnsFailure> {
        let name = absolute(domain.as_str())?;
        let answer = match asked(self.resolver.mx_lookup(name)).await {
            Ok(answer) => answer,
            Err(DnsFailure::NoData) => return Ok(MailServers::Implicit),
            Err(other) => return Err(other),
        };
        let mut hosts: Vec<(u16, String)> = answer
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::MX(mx) => Some((mx.preference, host_text(&mx.exchange))),
                _ => None,
            })
            .collect();
        if hosts.is_empty() {
            return Ok(MailServers::Implicit);
        }
        // RFC 7505 §3: "." alone says that there is no mail; among others it says nothing.
        hosts.retain(|(_, host)| !host.is_empty());
        if hosts.is_empty() {
            return Ok(MailServers::Null);
        }
        hosts.sort();
        hosts.dedup_by(|a, b| a.1 == b.1);
        hosts.truncate(MX_RECORDS_MAX);
        Ok(MailServers::Hosts(hosts))
    }

    /// Asks for the addresses of a host that the DNS named; CNAMEs are followed.
    ///
    /// # Errors
    /// When it has none, or nobody could say.
    pub async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsFailure> {
        let name = absolute(host)?;
        let (four, six) =
            tokio::join!(asked(self.resolver.ipv4_lookup(name.clone())), asked(self.resolver.ipv6_lookup(name)));
        let of = |answer: &hickory_resolver::lookup::Lookup| -> Vec<IpAddr> {
            let address = |data: &RData| match data {
                RData::A(a) => Some(IpAddr::V4(a.0)),
                RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
                _ => None,
            };
            answer.answers().iter().filter_map(|record| address(&record.data)).collect()
        };
        // RFC 8305: both families in turn, so that one broken road does not use up the attempt.
        let fours = four.as_ref().map(of).unwrap_or_default();
        let sixes = six.as_ref().map(of).unwrap_or_default();
        let mut found = Vec::new();
        for index in 0..fours.len().max(sixes.len()) {
            found.extend(sixes.get(index).into_iter().chain(fours.get(index)).copied());
        }
        found.truncate(ADDRESSES_PER_HOST_MAX);
        if !found.is_empty() {
            return Ok(found);
        }
        match (four.err(), six.err()) {
            (Some(passing @ DnsFailure::Passing(_)), _) | (_, Some(passing @ DnsFailure::Passing(_))) => Err(passing),
            (Some(DnsFailure::NoSuchName), _) | (_, Some(DnsFailure::NoSuchName)) => Err(DnsFailure::NoSuchName),
            _ => Err(DnsFailure::NoData),
        }
    }

    /// Asks for the addresses of a smart host, which an administrator named.
    ///
    /// # Errors
    /// When it has none, or nobody could say.
    pub async fn smart_host(&self, host: &str, port: u16) -> Result<Vec<IpAddr>, DnsFailure> {
        if let Ok(ip) = host.parse() {
            return Ok(vec![ip]);
        }
        if !self.by_machine {
            return self.addresses(host).await;
        }
        match timeout(LOOKUP_DEADLINE, tokio::net::lookup_host((host, port))).await {
            Err(_) => Err(DnsFailure::Passing("no answer in time".to_owned())),
            Ok(Err(error)) => Err(DnsFailure::Passing(error.to_string())),
            Ok(Ok(found)) => {
                let found: Vec<IpAddr> = found.map(|addr| addr.ip()).take(ADDRESSES_PER_HOST_MAX).collect();
                if found.is_empty() { Err(DnsFailure::NoData) } else { Ok(found) }
            }
        }
    }
}

fn server(addr: &SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp_and_tcp(addr.ip());
    config.connections.iter_mut().for_each(|connection: &mut ConnectionConfig| connection.port = addr.port());
    config
}

fn set(options: &mut ResolverOpts, settings: &DnsSettings) {
    options.timeout = settings.timeout;
    options.attempts = settings.attempts;
    // An answer that says nothing for a day would keep a repaired domain dead for a day.
    options.negative_max_ttl = Some(Duration::from_secs(300));
    options.positive_max_ttl = Some(Duration::from_secs(3600));
    options.try_tcp_on_error = true;
}

/// Never completed by a search list: `partner.example` must not become `partner.example.corp.example`.
fn absolute(host: &str) -> Result<Name, DnsFailure> {
    let mut name = Name::from_ascii(host).map_err(|_| DnsFailure::NoSuchName)?;
    name.set_fqdn(true);
    Ok(name)
}

/// A name as text without the dot at its end: the root is empty.
fn host_text(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

async fn asked<T>(question: impl Future<Output = Result<T, NetError>>) -> Result<T, DnsFailure> {
    match timeout(LOOKUP_DEADLINE, question).await {
        Err(_) => Err(DnsFailure::Passing("no answer in time".to_owned())),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failure(&error)),
    }
}

fn failure(error: &NetError) -> DnsFailure {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => DnsFailure::NoSuchName,
            ResponseCode::NoError => DnsFailure::NoData,
            other => DnsFailure::Passing(other.to_str().to_owned()),
        },
        other => DnsFailure::Passing(other.to_string()),
    }
}
