//! From a send connector to addresses to dial, in order: weighted smart hosts, or the mail servers of the recipient's
//! domain (RFC 5321 §5.1), without those that would bring the letter back to us.

use std::net::{IpAddr, SocketAddr};

use rand::Rng;
use rand::seq::SliceRandom;

use super::Outbound;
use super::dns::{DnsFailure, MailServers};
use super::own::{forbidden, is_own};
use crate::connector::{SendConnector, SmartHost};
use crate::mail::{Domain, EnhancedCode, Reply};

/// One address to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The name of the smart host or mail server, or its address.
    pub host: String,
    /// Where to dial.
    pub addr: SocketAddr,
}

impl NextHop {
    /// As traces and reports name it: `host:port`, with the address where the name is another.
    #[must_use]
    pub fn label(&self) -> String {
        if self.host.parse::<IpAddr>() == Ok(self.addr.ip()) {
            self.addr.to_string()
        } else {
            format!("{}:{} [{}]", self.host, self.addr.port(), self.addr.ip())
        }
    }
}

/// A next hop that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// As traces name it.
    pub label: String,
    /// What it, or we for it, said.
    pub reply: Reply,
    /// Whether trying again cannot help: what the DNS says for certain.
    pub lasting: bool,
}

/// Hosts of equal standing, tried one after the other; the next group only when none of these can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Group {
    /// The MX preference; absent for smart hosts.
    pub(super) preference: Option<u16>,
    pub(super) hosts: Vec<(String, u16)>,
}

/// Orders the smart hosts of a route: weighted ones by chance according to their weights, then the others as written.
pub(super) fn weighted(hosts: &[SmartHost], random: &mut impl Rng) -> Vec<SmartHost> {
    let (mut shares, standby): (Vec<_>, Vec<_>) = hosts.iter().cloned().partition(|host| host.weight > 0);
    let mut order = Vec::with_capacity(hosts.len());
    while !shares.is_empty() {
        let total: u64 = shares.iter().map(|host| u64::from(host.weight)).sum();
        let mut at = random.random_range(0..total);
        let chosen = shares.iter().position(|host| match at.checked_sub(u64::from(host.weight)) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        });
        order.push(shares.swap_remove(chosen.unwrap_or(0)));
    }
    order.extend(standby);
    order
}

/// Groups the mail servers of a domain by preference, in random order within each (RFC 5321 §5.1).
pub(super) fn grouped(hosts: Vec<(u16, String)>, port: u16, random: &mut impl Rng) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (preference, host) in hosts {
        match groups.last_mut() {
            Some(group) if group.preference == Some(preference) => group.hosts.push((host, port)),
            _ => groups.push(Group { preference: Some(preference), hosts: vec![(host, port)] }),
        }
    }
    groups.iter_mut().for_each(|group| group.hosts.shuffle(random));
    groups
}

impl Outbound {
    /// The groups of next hops for `route`, or why there is none. `destination` is asked of routes by MX.
    pub(super) async fn groups(
        &self,
        route: &SendConnector,
        destination: Option<&Domain>,
    ) -> Result<Vec<Group>, Unreachable> {
        if !route.mx {
            let hosts = weighted(&route.smart_hosts, &mut rand::rng());
            let alone = |host: SmartHost| Group { preference: None, hosts: vec![(host.host, host.port)] };
            return Ok(hosts.into_iter().map(alone).collect());
        }
        let port = self.mx.port;
        let Some(domain) = destination else { return Ok(Vec::new()) };
        let alone = |host: String| vec![Group { preference: None, hosts: vec![(host, port)] }];
        if domain.is_literal() {
            return match literal(domain) {
                Some(ip) => Ok(alone(ip.to_string())),
                None => Err(lasting(domain.as_str(), 550, (1, 2), "the address literal cannot be read".to_owned())),
            };
        }
        match self.dns.mail_servers(domain).await {
            Ok(MailServers::Null) => {
                // RFC 7505 §4.2, RFC 7504 §4.2.
                let text = format!("{domain} takes no mail: its MX record says so (null MX)");
                Err(lasting(domain.as_str(), 556, (1, 10), text))
            }
            Ok(MailServers::Implicit) => Ok(alone(domain.as_str().to_owned())),
            Ok(MailServers::Hosts(hosts)) => Ok(grouped(hosts, port, &mut rand::rng())),
            Err(DnsFailure::NoSuchName | DnsFailure::NoData) => {
                let text = format!("the domain {domain} does not exist (NXDOMAIN)");
                Err(lasting(domain.as_str(), 550, (1, 2), text))
            }
            Err(failure @ DnsFailure::Passing(_)) => {
                Err(passing(domain.as_str(), (4, 3), format!("the mail servers of {domain} are not known: {failure}")))
            }
        }
    }

    /// The addresses of one host, and why others are not used. `Err` when it turns out to be ourselves.
    pub(super) async fn addresses(
        &self,
        route: &SendConnector,
        host: &str,
        port: u16,
    ) -> Result<(Vec<NextHop>, Vec<Unreachable>), Unreachable> {
        let label = format!("{host}:{port}");
        let cluster = if route.mx { (self.cluster)() } else { Vec::new() };
        let is_us = |name: &str| name.eq_ignore_ascii_case(host);
        if route.mx && (is_us(&self.fqdn) || cluster.iter().any(|name| is_us(name))) {
            return Err(lasting(&label, 554, (4, 6), "the mail server is this cluster itself: a loop".to_owned()));
        }
        let found = match (host.parse::<IpAddr>(), route.mx) {
            (Ok(ip), _) => Ok(vec![ip]),
            (Err(_), true) => self.dns.addresses(host).await,
            (Err(_), false) => self.dns.smart_host(host, port).await,
        };
        let found = match found {
            Ok(found) => found,
            Err(failure) => {
                let text = format!("no address for {host}: {failure}");
                // A smart host is configured: a name that does not exist today is a mistake to be corrected, not a
                // reason to give letters up.
                let unusable = match failure {
                    DnsFailure::NoSuchName | DnsFailure::NoData if route.mx => lasting(&label, 550, (4, 4), text),
                    _ => passing(&label, (4, 3), text),
                };
                return Ok((Vec::new(), vec![unusable]));
            }
        };
        let (mut hops, mut unusable) = (Vec::new(), Vec::new());
        for ip in found {
            let addr = SocketAddr::new(ip.to_canonical(), port);
            let hop = NextHop { host: host.to_owned(), addr };
            if is_own(addr, &self.own) {
                let text = "the next hop is this node itself: a loop".to_owned();
                return Err(match route.mx {
                    true => lasting(&hop.label(), 554, (4, 6), text),
                    false => passing(&hop.label(), (4, 6), text),
                });
            }
            let why = if route.mx { forbidden(ip, &cluster) } else { None };
            match why.filter(|_| !(self.mx.loopback_allowed && ip.is_loopback())) {
                None => hops.push(hop),
                Some(why) if why.ends_with("loop") => {
                    return Err(lasting(&hop.label(), 554, (4, 6), format!("the mail server has {why}")));
                }
                Some(why) => {
                    let text = format!("the DNS names {why}, where no letter of ours goes");
                    unusable.push(lasting(&hop.label(), 550, (4, 4), text));
                }
            }
        }
        Ok((hops, unusable))
    }
}

fn literal(domain: &Domain) -> Option<IpAddr> {
    let text = domain.as_str().strip_prefix('[')?.strip_suffix(']')?;
    let text = match text.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => &text[5..],
        _ => text,
    };
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn lasting(label: &str, code: u16, (subject, detail): (u16, u16), text: String) -> Unreachable {
    let reply = Reply::new(code, Some(EnhancedCode::new(5, subject, detail)), text);
    Unreachable { label: label.to_owned(), reply, lasting: true }
}

fn passing(label: &str, (subject, detail): (u16, u16), text: String) -> Unreachable {
    let reply = Reply::new(451, Some(EnhancedCode::new(4, subject, detail)), text);
    Unreachable { label: label.to_owned(), reply, lasting: false }
}

/// Says that no send connector takes a domain. Not a failure for good: adding the route rescues the letter.
#[must_use]
pub fn no_route(domain: &str) -> Reply {
    Reply::new(451, Some(EnhancedCode::new(4, 4, 4)), format!("no route for domain {domain}"))
}

/// Joins what was wrong with each next hop of `route` into one reply: for good only when nothing of it can change.
pub(super) fn none_usable(route: &SendConnector, tried: &[Unreachable]) -> Reply {
    let Some(first) = tried.first() else {
        return Reply::new(451, Some(EnhancedCode::new(4, 4, 4)), format!("route {} has no next hop", route.name));
    };
    let for_good = tried.iter().all(|one| one.lasting);
    if for_good {
        // A loop explains the rest.
        let loops = |one: &&Unreachable| one.reply.enhanced == Some(EnhancedCode::new(5, 4, 6));
        return tried.iter().find(loops).unwrap_or(first).reply.clone();
    }
    let first = tried.iter().find(|one| !one.lasting).unwrap_or(first);
    let enhanced = first.reply.enhanced.filter(|code| code.class == 4).unwrap_or(EnhancedCode::new(4, 4, 1));
    let words: Vec<String> =
        tried.iter().map(|one| format!("{} said {}", one.label, one.reply)).map(|text| shorten(&text)).collect();
    Reply::new(
        451,
        Some(enhanced),
        format!("no next hop of route {} took the letter: {}", route.name, words.join("; ")),
    )
}

fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_next_hop_is_named_by_name_and_address() {
        let hop = NextHop { host: "mx.example".to_owned(), addr: addr("192.0.2.1:25") };
        assert_eq!(hop.label(), "mx.example:25 [192.0.2.1]");
    }

    #[test]
    fn weights_are_shares_and_the_rest_stands_by_in_order() {
        let hosts: Vec<SmartHost> =
            ["s1:25", "a:25=1", "b:25=3", "s2:25"].iter().map(|text| text.parse().unwrap()).collect();
        let mut random = StdRng::seed_from_u64(1);
        let mut first = std::collections::BTreeMap::new();
        for _ in 0..4000 {
            let order: Vec<String> = weighted(&hosts, &mut random).into_iter().map(|host| host.host).collect();
            assert_eq!(order[2..], ["s1", "s2"]);
            assert_ne!(order[0], order[1]);
            *first.entry(order[0].clone()).or_insert(0) += 1;
        }
        assert!((2800..3200).contains(&first["b"]), "{first:?}");
        let plain: Vec<SmartHost> = ["c", "a", "b"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(weighted(&plain, &mut random), plain, "without weights the order is the administrator's");
    }

    #[test]
    fn equal_preferences_are_tried_in_random_order_and_lower_ones_first() {
        let hosts: Vec<(u16, String)> =
            vec![(5, "first".into()), (10, "a".into()), (10, "b".into()), (10, "c".into()), (20, "last".into())];
        let mut random = StdRng::seed_from_u64(7);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let groups = grouped(hosts.clone(), 25, &mut random);
            assert_eq!(groups.iter().map(|group| group.preference).collect::<Vec<_>>(), [Some(5), Some(10), Some(20)]);
            seen.insert(groups[1].hosts.iter().map(|(host, _)| host.as_str()).collect::<String>());
        }
        assert_eq!(seen.len(), 6, "{seen:?}");
    }

    #[test]
    fn an_address_literal_is_an_address() {
        for (text, ip) in [("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:db8::1]", "2001:db8::1")] {
            assert_eq!(literal(&Domain::parse(text).unwrap()), Some(ip.parse().unwrap()));
        }
    }
}
