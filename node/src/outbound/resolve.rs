//! From a send connector to addresses to dial, in order. Only smart hosts are known so far; MX comes with its own rules.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::connector::{SendConnector, SmartHost};
use crate::mail::{EnhancedCode, Reply};

/// A name server that does not answer within this is asked again at the next attempt.
pub(super) const LOOKUP_DEADLINE: Duration = Duration::from_secs(10);
/// How many addresses of one smart host are tried in one attempt.
pub(super) const ADDRESSES_PER_HOST_MAX: usize = 4;

/// One address to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The smart host's name, or its address.
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

/// A smart host that cannot be dialled, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreachable {
    pub(super) label: String,
    pub(super) reply: Reply,
}

/// Looks up one smart host.
pub(super) async fn lookup(host: &SmartHost, own: &[SocketAddr]) -> Result<Vec<NextHop>, Unreachable> {
    let unreachable = |subject, detail, text: String| Unreachable {
        label: format!("{}:{}", host.host, host.port),
        reply: Reply::new(451, Some(EnhancedCode::new(4, subject, detail)), text),
    };
    let name = host.host.trim_start_matches('[').trim_end_matches(']');
    let found = match tokio::time::timeout(LOOKUP_DEADLINE, tokio::net::lookup_host((name, host.port))).await {
        Err(_) => return Err(unreachable(4, 3, "the name server did not answer in time".to_owned())),
        // A smart host is configured: a name that does not exist today is a mistake to be corrected, not a reason to
        // give letters up.
        Ok(Err(error)) => return Err(unreachable(4, 3, format!("the name cannot be resolved: {error}"))),
        Ok(Ok(found)) => found,
    };
    let (mut hops, mut loops) = (Vec::new(), 0);
    for addr in found {
        if is_own(addr, own) {
            loops += 1;
        } else if hops.len() < ADDRESSES_PER_HOST_MAX {
            hops.push(NextHop { host: host.host.clone(), addr });
        }
    }
    match (hops.is_empty(), loops) {
        (false, _) => Ok(hops),
        (true, 0) => Err(unreachable(4, 3, "the name has no address".to_owned())),
        (true, _) => Err(unreachable(4, 6, "the smart host is this node itself: a loop".to_owned())),
    }
}

/// Whether dialling `addr` would reach a socket in `own`, on which this node itself takes mail.
pub(super) fn is_own(addr: SocketAddr, own: &[SocketAddr]) -> bool {
    let ip = addr.ip().to_canonical();
    own.iter().filter(|listening| listening.port() == addr.port()).any(|listening| {
        let listening = listening.ip().to_canonical();
        listening == ip || (listening.is_unspecified() && is_local(ip))
    })
}

/// Whether `ip` is an address of this machine: only those can be bound.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

/// Says that no send connector takes a domain. Not a failure for good: adding the route rescues the letter.
#[must_use]
pub fn no_route(domain: &str) -> Reply {
    Reply::new(451, Some(EnhancedCode::new(4, 4, 4)), format!("no route for domain {domain}"))
}

/// Joins what was wrong with each next hop of `route` into one reply.
pub(super) fn none_usable(route: &SendConnector, tried: &[Unreachable]) -> Reply {
    let Some(first) = tried.first() else {
        return Reply::new(451, Some(EnhancedCode::new(4, 4, 4)), format!("route {} has no smart host", route.name));
    };
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
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn our_own_sockets_are_never_dialled() {
        let own = [addr("127.0.0.1:2525"), addr("0.0.0.0:25"), addr("[::]:465")];
        for loops in ["127.0.0.1:2525", "127.0.0.9:25", "[::1]:465", "[::ffff:127.0.0.1]:2525", "127.0.0.1:465"] {
            assert!(is_own(addr(loops), &own), "{loops}");
        }
        for other in ["127.0.0.1:2526", "127.0.0.2:2525", "192.0.2.1:25", "[2001:db8::1]:465"] {
            assert!(!is_own(addr(other), &own), "{other}");
        }
    }

    #[tokio::test]
    async fn a_smart_host_that_is_this_node_is_a_loop_and_not_a_next_hop() {
        let host = SmartHost { host: "127.0.0.1".to_owned(), port: 2525 };
        let refused = lookup(&host, &[addr("127.0.0.1:2525")]).await.unwrap_err();
        assert!(refused.reply.to_string().contains("loop"), "{refused:?}");
        let hops = lookup(&host, &[]).await.unwrap();
        assert_eq!(hops[0].label(), "127.0.0.1:2525");
    }

    #[test]
    fn a_next_hop_is_named_by_name_and_address() {
        let hop = NextHop { host: "mx.example".to_owned(), addr: addr("192.0.2.1:25") };
        assert_eq!(hop.label(), "mx.example:25 [192.0.2.1]");
    }
}
