//! `ConnectorTable`: (address dialled, service port, source address) → the receive connector with the most specific
//! range. Built once per change of the state, then immutable; and the rule by which two ranges conflict.
//!
//! Ranges on one binding nest or stay apart, so they cut the address space into segments, each of which belongs to one
//! innermost range. A look-up is one search over the segments' first addresses ([`super::steps`]); whose the range is
//! and until when stands beside the address that was found.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::range::{RemoteIpRange, canonical_ip};
use super::receive::{Binding, ReceiveConnector};
use super::segments::{Grant, NEVER, OWNERS_MAX, Segments};

/// One range of a connector, as the table needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowlistRange {
    /// The addresses.
    pub range: RemoteIpRange,
    /// From when on it grants nothing, in unix milliseconds. It still matches then: expiry must not hand the device
    /// to a wider range with more rights.
    pub expires_at_ms: Option<i64>,
}

/// What [`ConnectorTable::find`] found.
#[derive(Clone, Debug)]
pub struct Match {
    /// The connector that takes the connection.
    pub connector: Arc<ReceiveConnector>,
    /// The range by which it does.
    pub range: RemoteIpRange,
    /// Whether that range has expired and grants nothing.
    pub expired: bool,
}

/// The same, borrowed from the table: what each connection and each `MAIL` asks. Copies nothing, and works out the
/// range only for whoever wants to see it.
#[derive(Clone, Copy, Debug)]
pub struct Hit<'a> {
    /// The connector that takes the connection.
    pub connector: &'a Arc<ReceiveConnector>,
    expires_at_ms: i64,
    group: &'a Group,
    segment: u32,
}

/// A range that contains the source address, and what became of it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its connector.
    pub connector: Arc<ReceiveConnector>,
    /// The range.
    pub range: RemoteIpRange,
    /// When it expires or has expired, in unix milliseconds.
    pub expires_at_ms: Option<i64>,
    /// Won, or why not.
    pub result: CandidateResult,
}

/// What became of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CandidateResult {
    /// The most specific range: this connector takes the connection.
    Wins,
    /// A narrower range contains the address too.
    Wider,
    /// A connector is bound to the very address that was dialled, so the wildcard is not looked at.
    Shadowed,
    /// The connector is disabled.
    Disabled,
}

/// Which connector takes a connection. Immutable.
#[derive(Debug, Default)]
pub struct ConnectorTable {
    /// Enabled connectors, sorted by name; the indexes refer to it.
    connectors: Vec<Arc<ReceiveConnector>>,
    /// The ranges on each binding. Bindings with the same connectors share one.
    groups: Vec<Group>,
    /// Port → group of the wildcard, per family. Short: a cluster has a handful of service ports.
    any_v4: Vec<(u16, u32)>,
    any_v6: Vec<(u16, u32)>,
    /// Bindings to one address, sorted; usually none.
    specific: Vec<(Binding, u32)>,
    /// Disabled connectors with their ranges, for `explain`.
    disabled: Vec<(Arc<ReceiveConnector>, Box<[AllowlistRange]>)>,
}

/// The ranges of one family of all connectors on a binding.
#[derive(Debug)]
enum Group {
    V4(Segments<u32>),
    V6(Segments<u128>),
}

impl ConnectorTable {
    /// Builds the table. Of connectors that conflict after all (the state refuses them) the one with the smaller
    /// range, then the smaller name, wins: the same on every node.
    pub fn build<R: AsRef<[AllowlistRange]>>(connectors: impl IntoIterator<Item = (Arc<ReceiveConnector>, R)>) -> Self {
        let mut all: Vec<_> = connectors.into_iter().collect();
        all.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        let (mut enabled, disabled): (Vec<_>, Vec<_>) = all.into_iter().partition(|(connector, _)| connector.enabled);
        // A million connectors: the state refuses far fewer.
        enabled.truncate(OWNERS_MAX as usize);

        let mut on_binding: BTreeMap<Binding, Vec<u32>> = BTreeMap::new();
        for (index, (connector, _)) in (0_u32..).zip(&enabled) {
            for binding in &connector.bindings {
                let users = on_binding.entry(*binding).or_default();
                if users.last() != Some(&index) {
                    users.push(index);
                }
            }
        }
        let mut shared: BTreeMap<(bool, Vec<u32>), u32> = BTreeMap::new();
        let mut table = Self::default();
        for (binding, users) in on_binding {
            let v4 = binding.addr.is_ipv4();
            let group = *shared.entry((v4, users)).or_insert_with_key(|(_, users)| {
                let ranges = users.iter().flat_map(|index| {
                    let (_, ranges) = &enabled[*index as usize];
                    ranges.as_ref().iter().map(|entry| (*index, entry))
                });
                table.groups.push(Group::build(v4, ranges));
                (table.groups.len() - 1) as u32
            });
            match (binding.is_wildcard(), v4) {
                (true, true) => table.any_v4.push((binding.port, group)),
                (true, false) => table.any_v6.push((binding.port, group)),
                (false, _) => table.specific.push((binding, group)),
            }
        }
        // `BTreeMap` gave the bindings in order, so that all three lists are sorted.
        table.disabled = disabled.into_iter().map(|(connector, ranges)| (connector, ranges.as_ref().into())).collect();
        table.connectors = enabled.into_iter().map(|(connector, _)| connector).collect();
        table
    }

    /// Finds the connector for a connection from `source` to `local`: the address as the device dialled it, and the
    /// service port. An unspecified `local` address stands for one to which no connector is specifically bound.
    #[must_use]
    #[inline]
    pub fn lookup(&self, local: SocketAddr, source: IpAddr) -> Option<Hit<'_>> {
        let source = canonical_ip(source);
        let group = self.listening(local, source)?;
        // One arm per family from here on: the address stays in registers.
        let (segment, grant) = match (group, source) {
            (Group::V4(segments), IpAddr::V4(ip)) => segments.find(ip.to_bits())?,
            (Group::V6(segments), IpAddr::V6(ip)) => segments.find(ip.to_bits())?,
            _ => return None,
        };
        let connector = self.connectors.get(grant.owner as usize)?;
        Some(Hit { connector, expires_at_ms: grant.expires_at_ms, group, segment })
    }

    /// The same as [`Self::lookup`], to be kept.
    #[must_use]
    pub fn find(&self, local: SocketAddr, source: IpAddr, now_ms: i64) -> Option<Match> {
        let hit = self.lookup(local, source)?;
        Some(Match { connector: Arc::clone(hit.connector), range: hit.range(), expired: hit.is_expired(now_ms) })
    }

    /// Lists every range that contains `source` on a binding that `local` fits, the winner first, then the losers from
    /// narrow to wide, then shadowed ones, then those of disabled connectors. Looks at every range: for people.
    #[must_use]
    pub fn candidates(&self, local: SocketAddr, source: IpAddr) -> Vec<Candidate> {
        let source = canonical_ip(source);
        let group = self.listening(local, source);
        // The wildcard is shadowed where it is not what decides.
        let wildcard = self.wildcard(local.port(), source);
        let shadowed = wildcard.filter(|wildcard| group.is_none_or(|group| !std::ptr::eq(*wildcard, group)));
        let mut found: Vec<Candidate> = Vec::new();
        for (group, lost) in [(group, CandidateResult::Wider), (shadowed, CandidateResult::Shadowed)] {
            for (grant, range) in group.map(|group| group.containing(source)).unwrap_or_default() {
                let Some(connector) = self.connectors.get(grant.owner as usize) else { continue };
                let expires_at_ms = (grant.expires_at_ms != NEVER).then_some(grant.expires_at_ms);
                found.push(Candidate { connector: Arc::clone(connector), range, expires_at_ms, result: lost });
            }
        }
        if let Some(won) = self.find(local, source, NEVER)
            && let Some(winner) = found.iter_mut().find(|candidate| {
                candidate.result == CandidateResult::Wider
                    && candidate.range == won.range
                    && candidate.connector.name == won.connector.name
            })
        {
            winner.result = CandidateResult::Wins;
        }
        for (connector, ranges) in &self.disabled {
            let dialled = canonical_ip(local.ip());
            let fits = |binding: &Binding| {
                let address = if dialled.is_unspecified() { wildcard_of(source) } else { dialled };
                binding.matches(address, local.port())
            };
            if !connector.bindings.iter().any(fits) {
                continue;
            }
            found.extend(ranges.iter().filter(|entry| entry.range.contains(source)).map(|entry| Candidate {
                connector: Arc::clone(connector),
                range: entry.range,
                expires_at_ms: entry.expires_at_ms,
                result: CandidateResult::Disabled,
            }));
        }
        found.sort_by(|a, b| {
            let key = |c: &Candidate| (c.result, c.range.size());
            key(a).cmp(&key(b)).then_with(|| a.connector.name.cmp(&b.connector.name))
        });
        found
    }

    /// The enabled connectors, by name.
    pub fn connectors(&self) -> impl Iterator<Item = &Arc<ReceiveConnector>> {
        self.connectors.iter()
    }

    /// How many ranges the table holds and how many octets they take, groups that several bindings share counted once.
    #[must_use]
    pub fn footprint(&self) -> (usize, usize) {
        self.groups.iter().fold((0, 0), |(ranges, octets), group| match group {
            Group::V4(segments) => (ranges + segments.len(), octets + segments.bytes()),
            Group::V6(segments) => (ranges + segments.len(), octets + segments.bytes()),
        })
    }

    /// The group that decides: that of the very address dialled, where a connector is bound to it, else the wildcard's
    /// of the source's family; both ends of a connection have the same.
    #[inline]
    fn listening(&self, local: SocketAddr, source: IpAddr) -> Option<&Group> {
        if !self.specific.is_empty()
            && let Some(group) = self.specific(local)
        {
            return Some(group);
        }
        self.wildcard(local.port(), source)
    }

    fn specific(&self, local: SocketAddr) -> Option<&Group> {
        let binding = Binding { addr: canonical_ip(local.ip()), port: local.port() };
        let index = self.specific.binary_search_by(|(found, _)| found.cmp(&binding)).ok()?;
        self.groups.get(self.specific.get(index)?.1 as usize)
    }

    #[inline]
    fn wildcard(&self, port: u16, source: IpAddr) -> Option<&Group> {
        let any = if source.is_ipv4() { &self.any_v4 } else { &self.any_v6 };
        let (_, group) = any.iter().find(|(found, _)| *found == port)?;
        self.groups.get(*group as usize)
    }
}

impl Hit<'_> {
    /// The range by which it does.
    #[must_use]
    pub fn range(&self) -> RemoteIpRange {
        match self.group {
            Group::V4(segments) => segments.ends_at(self.segment).map(v4_range),
            Group::V6(segments) => segments.ends_at(self.segment).map(v6_range),
        }
        // A segment that was found belongs to a range.
        .unwrap_or(RemoteIpRange::all_v4())
    }

    /// Whether that range has expired and grants nothing.
    #[must_use]
    pub fn is_expired(&self, now_ms: i64) -> bool {
        self.expires_at_ms <= now_ms
    }
}

fn wildcard_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

impl Group {
    fn build<'a>(v4: bool, ranges: impl Iterator<Item = (u32, &'a AllowlistRange)>) -> Self {
        let expiry = |entry: &AllowlistRange| entry.expires_at_ms.unwrap_or(NEVER);
        if v4 {
            Self::V4(Segments::build(
                ranges.filter_map(|(owner, entry)| Some((entry.range.v4_bits()?, owner, expiry(entry)))),
            ))
        } else {
            Self::V6(Segments::build(
                ranges.filter_map(|(owner, entry)| Some((entry.range.v6_bits()?, owner, expiry(entry)))),
            ))
        }
    }

    fn containing(&self, ip: IpAddr) -> Vec<(Grant, RemoteIpRange)> {
        let with = |range: RemoteIpRange| range.contains(ip);
        match self {
            Self::V4(segments) => {
                segments.ranges().map(|(ends, grant)| (grant, v4_range(ends))).filter(|(_, r)| with(*r)).collect()
            }
            Self::V6(segments) => {
                segments.ranges().map(|(ends, grant)| (grant, v6_range(ends))).filter(|(_, r)| with(*r)).collect()
            }
        }
    }
}

fn v4_range((first, last): (u32, u32)) -> RemoteIpRange {
    RemoteIpRange::from_v4_bits(first, last)
}

fn v6_range((first, last): (u128, u128)) -> RemoteIpRange {
    RemoteIpRange::from_v6_bits(first, last)
}

/// The words of `explain`.
impl fmt::Display for CandidateResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wins => "WINS most specific",
            Self::Wider => "lost wider",
            Self::Shadowed => "lost shadowed by specific binding",
            Self::Disabled => "disabled",
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::connector::{Relation, conflict};

    fn connector(name: &str, bindings: &[&str]) -> ReceiveConnector {
        let mut connector = ReceiveConnector::new(name);
        connector.bindings = bindings.iter().map(|text| text.parse().unwrap()).collect();
        connector
    }

    fn ranges(texts: &[&str]) -> Vec<AllowlistRange> {
        texts.iter().map(|text| AllowlistRange { range: text.parse().unwrap(), expires_at_ms: None }).collect()
    }

    fn table(list: &[(&str, &[&str], &[&str])]) -> ConnectorTable {
        ConnectorTable::build(list.iter().map(|(name, on, from)| (Arc::new(connector(name, on)), ranges(from))))
    }

    fn winner(table: &ConnectorTable, local: &str, source: &str) -> Option<String> {
        table.find(local.parse().unwrap(), source.parse().unwrap(), 0).map(|found| found.connector.name.clone())
    }

    const ANY: &[&str] = &["0.0.0.0:25", "[::]:25"];

    #[test]
    fn most_specific_range_wins() {
        // The example of Microsoft's documentation.
        let table = table(&[
            ("default", ANY, &["0.0.0.0/0", "::/0"]),
            ("a", ANY, &["192.168.1.0-192.168.1.255"]),
            ("b", ANY, &["192.168.1.75"]),
        ]);
        for (source, expected) in [
            ("192.168.1.75", "b"),
            ("192.168.1.100", "a"),
            ("192.168.1.0", "a"),
            ("192.168.1.255", "a"),
            ("192.168.2.0", "default"),
            ("192.168.0.255", "default"),
            ("0.0.0.0", "default"),
            ("255.255.255.255", "default"),
            ("::ffff:192.168.1.75", "b"),
        ] {
            assert_eq!(winner(&table, "10.0.0.25:25", source).as_deref(), Some(expected), "{source}");
        }
        assert_eq!(winner(&table, "[2001:db8::25]:25", "2001:db8::7").as_deref(), Some("default"));
        assert_eq!(winner(&table, "10.0.0.25:587", "192.168.1.75"), None);
        assert_eq!(winner(&table, "0.0.0.0:25", "192.168.1.75").as_deref(), Some("b"));
        assert_eq!(winner(&table, "[::]:25", "192.168.1.75").as_deref(), Some("b"));
    }

    #[test]
    fn a_specific_binding_shadows_the_wildcard_before_ranges_are_looked_at() {
        let table = table(&[
            ("default", ANY, &["0.0.0.0/0"]),
            ("narrow", ANY, &["10.1.1.7"]),
            ("bound", &["10.0.0.25:25"], &["10.1.0.0/16"]),
        ]);
        assert_eq!(winner(&table, "10.0.0.25:25", "10.1.1.7").as_deref(), Some("bound"));
        assert_eq!(winner(&table, "[::ffff:10.0.0.25]:25", "10.1.1.7").as_deref(), Some("bound"));
        assert_eq!(winner(&table, "10.0.0.25:25", "10.2.0.1"), None);
        assert_eq!(winner(&table, "10.0.0.26:25", "10.1.1.7").as_deref(), Some("narrow"));
        let listed: Vec<_> = table
            .candidates("10.0.0.25:25".parse().unwrap(), "10.1.1.7".parse().unwrap())
            .into_iter()
            .map(|found| (found.connector.name.clone(), found.result))
            .collect();
        assert_eq!(
            listed,
            [
                ("bound".to_owned(), CandidateResult::Wins),
                ("narrow".to_owned(), CandidateResult::Shadowed),
                ("default".to_owned(), CandidateResult::Shadowed)
            ]
        );
    }

    #[test]
    fn an_expired_range_still_matches_and_says_so() {
        let mut narrow = ranges(&["10.1.1.7"]);
        narrow[0].expires_at_ms = Some(1000);
        let table = ConnectorTable::build([
            (Arc::new(connector("default", ANY)), ranges(&["0.0.0.0/0"])),
            (Arc::new(connector("relay", ANY)), narrow),
        ]);
        let at = |now_ms| table.find("0.0.0.0:25".parse().unwrap(), "10.1.1.7".parse().unwrap(), now_ms).unwrap();
        assert!(!at(999).expired);
        assert!(at(1000).expired);
        assert_eq!(at(1000).connector.name, "relay");
        let candidates = table.candidates("0.0.0.0:25".parse().unwrap(), "10.1.1.7".parse().unwrap());
        assert_eq!(candidates[0].expires_at_ms, Some(1000));
        assert_eq!(candidates[1].expires_at_ms, None);
    }

    #[test]
    fn a_disabled_connector_is_no_candidate_but_is_shown() {
        let mut off = connector("off", &["0.0.0.0:25", "10.0.0.25:25"]);
        off.enabled = false;
        let table = ConnectorTable::build([
            (Arc::new(connector("default", ANY)), ranges(&["0.0.0.0/0"])),
            (Arc::new(off), ranges(&["10.1.1.7"])),
        ]);
        assert_eq!(winner(&table, "10.0.0.25:25", "10.1.1.7").as_deref(), Some("default"));
        let listed: Vec<_> = table
            .candidates("10.0.0.25:25".parse().unwrap(), "10.1.1.7".parse().unwrap())
            .into_iter()
            .map(|found| found.result)
            .collect();
        assert_eq!(listed, [CandidateResult::Wins, CandidateResult::Disabled]);
    }

    #[test]
    fn a_million_ranges_take_at_most_64_octets_each() {
        let connector = Arc::new(connector("many", ANY));
        let v6: Vec<AllowlistRange> = (0..100_000_u128)
            .map(|n| AllowlistRange { range: RemoteIpRange::from_v6_bits(n << 64, (n << 64) + 5), expires_at_ms: None })
            .collect();
        let v4: Vec<AllowlistRange> = (0..100_000_u32)
            .map(|n| AllowlistRange { range: RemoteIpRange::from_v4_bits(n << 8, (n << 8) + 5), expires_at_ms: None })
            .collect();
        // The worst there can be: each with an expiry of its own.
        let expiring = |list: &[AllowlistRange]| -> Vec<AllowlistRange> {
            (1..).zip(list).map(|(n, entry)| AllowlistRange { expires_at_ms: Some(n), ..*entry }).collect()
        };
        let (v6_expiring, v4_expiring) = (expiring(&v6), expiring(&v4));
        for (list, octets) in [(v6, 56), (v6_expiring, 64), (v4, 30), (v4_expiring, 38)] {
            let count = list.len();
            let table = ConnectorTable::build([(Arc::clone(&connector), list)]);
            let (ranges, held) = table.footprint();
            assert_eq!(ranges, count);
            assert!(held <= count * octets, "{held} octets for {count}");
        }
    }

    /// The rule, read off the page: no cleverness.
    fn linear(
        connectors: &[(Arc<ReceiveConnector>, Vec<AllowlistRange>)],
        local: SocketAddr,
        source: IpAddr,
    ) -> Option<(&str, RemoteIpRange)> {
        let source = canonical_ip(source);
        let enabled = || connectors.iter().filter(|(connector, _)| connector.enabled);
        let address = canonical_ip(local.ip());
        let bound_to = |addr: IpAddr| {
            move |(connector, _): &&(Arc<ReceiveConnector>, Vec<AllowlistRange>)| {
                connector.bindings.contains(&Binding { addr, port: local.port() })
            }
        };
        let specific = !address.is_unspecified() && enabled().any(|found| bound_to(address)(&found));
        let listening = if specific { address } else { wildcard_of(source) };
        enabled()
            .filter(bound_to(listening))
            .flat_map(|(connector, list)| list.iter().map(|entry| (connector.name.as_str(), entry.range)))
            // Both ends of a connection are of one family.
            .filter(|(_, range)| range.contains(source) && source.is_ipv4() == listening.is_ipv4())
            .min_by_key(|(_, range)| range.size())
    }

    /// A small world, so that ranges meet: 6 bits of address.
    fn address(v6: bool, n: u8) -> IpAddr {
        if v6 {
            IpAddr::V6(((0x2001_0db8_u128 << 96) + u128::from(n)).into())
        } else {
            IpAddr::V4((0x0a00_0000 + u32::from(n)).into())
        }
    }

    type Raw = (u8, bool, bool, u8, Vec<(bool, u8, u8)>);

    fn world() -> impl Strategy<Value = Vec<Raw>> {
        let range = (any::<bool>(), 0_u8..64, 0_u8..64);
        let one = (0_u8..7, prop::bool::weighted(0.9), any::<bool>(), 0_u8..4, prop::collection::vec(range, 0..6));
        prop::collection::vec(one, 0..7)
    }

    /// Connectors that the state would accept: whatever conflicts is left out.
    fn accepted(world: &[Raw]) -> Vec<(Arc<ReceiveConnector>, Vec<AllowlistRange>)> {
        let mut kept: Vec<(Arc<ReceiveConnector>, Vec<AllowlistRange>)> = Vec::new();
        for (index, (bindings, enabled, port587, _, list)) in world.iter().enumerate() {
            let port = if *port587 { 587 } else { 25 };
            let mut connector = connector(&format!("c{index}"), &[]);
            connector.enabled = *enabled;
            let all = [(1, "0.0.0.0"), (2, "::"), (4, "10.0.0.25")];
            connector.bindings = all
                .iter()
                .filter(|(bit, _)| bindings & bit != 0)
                .map(|(_, addr)| Binding { addr: addr.parse().unwrap(), port })
                .collect();
            let mut own: Vec<RemoteIpRange> = Vec::new();
            for (v6, a, b) in list {
                own.push(RemoteIpRange::from_ends(address(*v6, *a.min(b)), address(*v6, *a.max(b))).unwrap());
                let others: Vec<(&ReceiveConnector, Vec<RemoteIpRange>)> = kept
                    .iter()
                    .map(|(other, list)| (&**other, list.iter().map(|entry| entry.range).collect()))
                    .collect();
                if conflict(&connector, &own, others).is_some() {
                    own.pop();
                }
            }
            let list = own.into_iter().map(|range| AllowlistRange { range, expires_at_ms: None }).collect();
            kept.push((Arc::new(connector), list));
        }
        kept
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn the_table_agrees_with_a_linear_scan(world in world(), v6: bool, mapped: bool) {
            let connectors = accepted(&world);
            let table = ConnectorTable::build(connectors.iter().map(|(connector, list)| (Arc::clone(connector), list)));
            for local in ["10.0.0.25:25", "10.0.0.26:25", "10.0.0.25:587", "0.0.0.0:25", "[2001:db8::25]:25", "[::]:587"] {
                let local: SocketAddr = local.parse().unwrap();
                for n in 0..64 {
                    let mut source = address(v6, n);
                    if let (true, IpAddr::V4(ip)) = (mapped, source) {
                        source = IpAddr::V6(ip.to_ipv6_mapped());
                    }
                    let found = table.find(local, source, 0);
                    let found = found.as_ref().map(|found| (found.connector.name.as_str(), found.range));
                    let expected = linear(&connectors, local, source);
                    prop_assert_eq!(found, expected, "{} {}", local, source);
                    let candidates = table.candidates(local, source);
                    let wins: Vec<_> = candidates.iter().filter(|c| c.result == CandidateResult::Wins).collect();
                    prop_assert_eq!(wins.first().map(|c| (c.connector.name.as_str(), c.range)), expected);
                    prop_assert!(wins.len() <= 1);
                    prop_assert!(wins.is_empty() || candidates[0].result == CandidateResult::Wins);
                }
            }
        }

        #[test]
        fn conflict_means_equal_or_partly_overlapping_on_one_binding(world in world(), new in world()) {
            let existing = accepted(&world);
            let Some((bindings, .., list)) = new.first() else { return Ok(()) };
            let mut candidate = connector("new", &[]);
            candidate.bindings = [(1, "0.0.0.0:25"), (2, "[::]:25"), (4, "10.0.0.25:25")]
                .iter().filter(|(bit, _)| bindings & bit != 0).map(|(_, text)| text.parse().unwrap()).collect();
            let own: Vec<RemoteIpRange> = list.iter()
                .map(|(v6, a, b)| RemoteIpRange::from_ends(address(*v6, *a.min(b)), address(*v6, *a.max(b))).unwrap())
                .collect();
            let crosses = |a: &RemoteIpRange, b: &RemoteIpRange| matches!(a.relation(b), Relation::Equal | Relation::Partial);
            let among = !candidate.bindings.is_empty()
                && own.iter().enumerate().any(|(i, a)| own.iter().skip(i + 1).any(|b| crosses(a, b)));
            let between = existing.iter().any(|(other, list)| {
                other.bindings.iter().any(|binding| candidate.bindings.contains(binding))
                    && list.iter().any(|entry| own.iter().any(|range| crosses(range, &entry.range)))
            });
            let others: Vec<(&ReceiveConnector, Vec<RemoteIpRange>)> =
                existing.iter().map(|(other, list)| (&**other, list.iter().map(|entry| entry.range).collect())).collect();
            prop_assert_eq!(conflict(&candidate, &own, others).is_some(), among || between);
        }
    }
}
