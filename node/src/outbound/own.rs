//! Where letters must not go: to this node itself, and, when the DNS alone says so, to the machine, the cluster or the
//! services of a cloud. Whoever controls a domain controls its MX records; they must not become a way to reach what
//! only we can reach.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

/// Addresses at which clouds answer with credentials, beside the link-local ones.
const METADATA: [IpAddr; 3] = [
    // Alibaba Cloud.
    IpAddr::V4(std::net::Ipv4Addr::new(100, 100, 100, 200)),
    // Azure's wire server.
    IpAddr::V4(std::net::Ipv4Addr::new(168, 63, 129, 16)),
    // Amazon EC2: fd00:ec2::254.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

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

/// Why an address that the DNS gave is not dialled; `None`: it may be. `cluster` has the hosts of members and fronts.
pub(super) fn forbidden(ip: IpAddr, cluster: &[String]) -> Option<&'static str> {
    let ip = ip.to_canonical();
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if ip.is_loopback() || ip.is_unspecified() {
        Some("an address of the machine itself")
    } else if ip.is_multicast() {
        Some("a multicast address")
    } else if link_local || METADATA.contains(&ip) {
        Some("an address of the local link or of a cloud's metadata service")
    } else if cluster.iter().any(|host| host.parse::<IpAddr>().is_ok_and(|own| own.to_canonical() == ip)) {
        Some("an address of this cluster: a loop")
    } else {
        None
    }
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

    #[test]
    fn the_dns_cannot_send_us_to_ourselves_or_to_what_only_we_reach() {
        let cluster = ["n1.corp.example".to_owned(), "192.0.2.7".to_owned(), "2001:db8::7".to_owned()];
        for ip in [
            "127.0.0.1",
            "127.255.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "168.63.129.16",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "192.0.2.7",
            "::ffff:192.0.2.7",
            "2001:db8::7",
        ] {
            assert!(forbidden(ip.parse().unwrap(), &cluster).is_some(), "{ip}");
        }
        // Private networks are where many organisations keep their mail servers.
        for ip in ["192.0.2.8", "10.0.0.1", "192.168.1.1", "172.16.0.1", "fd12::1", "2001:db8::8"] {
            assert_eq!(forbidden(ip.parse().unwrap(), &cluster), None, "{ip}");
        }
    }
}
