//! Which connector takes a connection: the table beside a binary search over sorted disjoint ranges, the plainest
//! structure that could do it. `cargo bench -p posthouse-benches --bench match`

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use posthouse_benches::{Numbers, alternate};
use posthouse_node::connector::{AllowlistRange, Binding, ConnectorTable, ReceiveConnector, RemoteIpRange};

const LOOKUPS: usize = 200_000;
const SIZES: [u32; 3] = [1_000, 100_000, 1_000_000];

/// One family's share: addresses, their ranges, and the peer.
struct Case<K> {
    /// First addresses of the ranges, sorted; each range covers the first half of its step.
    starts: Vec<K>,
    half: K,
    wanted: Vec<K>,
}

fn main() {
    println!("connector look-up, {LOOKUPS} a round, half of them hits; medians of 9 alternating rounds");
    println!(
        "{:>4} {:>10} {:>10} {:>10} {:>8} {:>10} {:>10}",
        "", "ranges", "table ns", "search ns", "ratio", "octets", "build ms"
    );
    for count in SIZES {
        let step = u32::MAX / count;
        let mut numbers = Numbers::new(7);
        let case = Case {
            starts: (0..count).map(|index| index * step).collect(),
            half: step / 2,
            wanted: (0..LOOKUPS).map(|_| (numbers.next_number() >> 32) as u32).collect::<Vec<u32>>(),
        };
        run("IPv4", &case, |bits| IpAddr::V4(Ipv4Addr::from(bits)));
    }
    for count in SIZES {
        // Sites get /48 networks; devices in them are listed by /64, and asked for by full address.
        let step = u128::from(u32::MAX / count) << 80;
        let mut numbers = Numbers::new(7);
        let prefix = 0x2001_u128 << 112;
        let case = Case {
            starts: (0..u128::from(count)).map(|index| prefix + index * step).collect(),
            half: step / 2,
            wanted: (0..LOOKUPS)
                .map(|_| {
                    let network = u128::from(numbers.next_number() >> 32) << 80;
                    prefix + network + u128::from(numbers.next_number())
                })
                .collect::<Vec<u128>>(),
        };
        run("IPv6", &case, |bits| IpAddr::V6(Ipv6Addr::from(bits)));
    }
}

fn run<K: Copy + Ord + std::ops::Add<Output = K>>(family: &str, case: &Case<K>, address: impl Fn(K) -> IpAddr) {
    let Case { starts, half, wanted } = case;
    let ranges: Vec<AllowlistRange> = starts
        .iter()
        .filter_map(|first| RemoteIpRange::from_ends(address(*first), address(*first + *half)))
        .map(|range| AllowlistRange { range, expires_at_ms: None })
        .collect();
    let mut connector = ReceiveConnector::new("bench");
    connector.bindings = Binding::everywhere(25);
    let began = Instant::now();
    let table = ConnectorTable::build([(Arc::new(connector), &ranges)]);
    let built = began.elapsed();
    let (held, octets) = table.footprint();
    let local = SocketAddr::from(([0, 0, 0, 0], 25));
    let addresses: Vec<IpAddr> = wanted.iter().map(|bits| address(*bits)).collect();
    let pair = alternate(
        || {
            let hit = |ip: &&IpAddr| table.lookup(local, **ip).is_some_and(|hit| !hit.is_expired(0));
            addresses.iter().filter(hit).count()
        },
        || {
            let hit = |bits: &&K| {
                let index = starts.partition_point(|first| first <= *bits);
                index > 0 && **bits <= starts[index - 1] + *half
            };
            wanted.iter().filter(hit).count()
        },
    );
    let each = |time: Duration| time.as_secs_f64() * 1e9 / LOOKUPS as f64;
    println!(
        "{family:>4} {:>10} {:>10.1} {:>10.1} {:>8.2} {:>10.1} {:>10.1}",
        starts.len(),
        each(pair.ours),
        each(pair.peer),
        pair.ratio(),
        octets as f64 / held as f64,
        built.as_secs_f64() * 1e3,
    );
}
