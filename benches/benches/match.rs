//! Which connector takes a connection: the table beside a binary search over sorted disjoint ranges, the plainest
//! structure that could do it. `cargo bench -p posthouse-benches --bench match`

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use posthouse_benches::{Numbers, alternate};
use posthouse_node::connector::{AllowlistRange, Binding, ConnectorTable, ReceiveConnector, RemoteIpRange};

const LOOKUPS: usize = 200_000;

fn main() {
    println!("connector lookup, IPv4, {LOOKUPS} look-ups a round, half of them hits; medians of 9 alternating rounds");
    println!("{:>10} {:>14} {:>14} {:>8}", "ranges", "table ns", "search ns", "ratio");
    for count in [1_000_u32, 100_000, 1_000_000] {
        let step = u32::MAX / count;
        let mut connector = ReceiveConnector::new("bench");
        connector.bindings = Binding::everywhere(25);
        let starts: Vec<u32> = (0..count).map(|index| index * step).collect();
        let ranges: Vec<AllowlistRange> = starts
            .iter()
            .filter_map(|&first| {
                let ends = (IpAddr::V4(Ipv4Addr::from(first)), IpAddr::V4(Ipv4Addr::from(first + step / 2)));
                RemoteIpRange::from_ends(ends.0, ends.1)
            })
            .map(|range| AllowlistRange { range, expires_at_ms: None })
            .collect();
        let table = ConnectorTable::build([(Arc::new(connector), ranges)]);
        let mut numbers = Numbers::new(7);
        let addresses: Vec<Ipv4Addr> =
            (0..LOOKUPS).map(|_| Ipv4Addr::from((numbers.next_number() >> 32) as u32)).collect();
        let local = SocketAddr::from(([0, 0, 0, 0], 25));
        let pair = alternate(
            || addresses.iter().filter(|&&ip| table.find(local, IpAddr::V4(ip), 0).is_some()).count(),
            || {
                let hit = |ip: Ipv4Addr| {
                    let ip = u32::from(ip);
                    let index = starts.partition_point(|&first| first <= ip);
                    index > 0 && ip <= starts[index - 1] + step / 2
                };
                addresses.iter().filter(|&&ip| hit(ip)).count()
            },
        );
        let each = |time: std::time::Duration| time.as_secs_f64() * 1e9 / LOOKUPS as f64;
        println!("{count:>10} {:>14.1} {:>14.1} {:>8.2}", each(pair.ours), each(pair.peer), pair.ratio());
    }
}
