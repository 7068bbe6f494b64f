//! The open-relay guard: what a connector may let strangers relay from without somebody saying on record that it is
//! meant.

use std::net::IpAddr;

use super::range::RemoteIpRange;
use super::receive::ReceiveConnector;

/// How many addresses one connector may let relay: a site's printers fit in a handful of /24 networks. For IPv6, how
/// many /64 networks, because a device picks its address in one freely (RFC 4291 §2.5.4).
pub const RELAY_ADDRESSES_MAX: u128 = 4096;

/// Why a connector that relays for strangers is too open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardRefusal {
    /// The whole world.
    #[error("connector {connector:?} relays for anonymous clients and {range} is every address there is")]
    WholeWorld {
        /// The connector.
        connector: String,
        /// `0.0.0.0/0` or `::/0`.
        range: RemoteIpRange,
    },
    /// An address of our own: behind it stands everybody.
    #[error("connector {connector:?} relays for anonymous clients and {range} contains {address}, a front or node")]
    OwnAddress {
        /// The connector.
        connector: String,
        /// The range.
        range: RemoteIpRange,
        /// What it contains.
        address: IpAddr,
    },
    /// Too many addresses, all ranges together.
    #[error(
        "connector {connector:?} relays for anonymous clients and its ranges have {found} {unit} together, more than {limit}"
    )]
    TooWide {
        /// The connector.
        connector: String,
        /// How many.
        found: u128,
        /// How many there may be.
        limit: u128,
        /// `IPv4 addresses` or `IPv6 /64 networks`.
        unit: &'static str,
    },
}

/// Checks a connector with all its ranges. One that does not relay for strangers passes; whether it is enabled does
/// not matter, because enabling it must not be the step that opens the relay.
///
/// `own` are the addresses of fronts and nodes; `limit` is usually [`RELAY_ADDRESSES_MAX`], for IPv4 and IPv6 each.
///
/// # Errors
/// Why the connector is too open.
pub fn check(
    connector: &ReceiveConnector,
    ranges: &[RemoteIpRange],
    own: &[IpAddr],
    limit: u128,
) -> Result<(), GuardRefusal> {
    if !connector.relays_anonymously() {
        return Ok(());
    }
    let name = || connector.name.clone();
    let worlds = [RemoteIpRange::all_v4(), RemoteIpRange::all_v6()];
    if let Some(range) = ranges.iter().find(|range| worlds.contains(range)) {
        return Err(GuardRefusal::WholeWorld { connector: name(), range: *range });
    }
    for range in ranges {
        if let Some(address) = own.iter().find(|address| range.contains(**address)) {
            return Err(GuardRefusal::OwnAddress { connector: name(), range: *range, address: *address });
        }
    }
    let v4 = ranges.iter().filter_map(RemoteIpRange::v4_bits).map(|(first, last)| (first.into(), last.into()));
    let v6 = ranges.iter().filter_map(RemoteIpRange::v6_bits).map(|(first, last)| (first >> 64, last >> 64));
    let counts = [(covered(v4.collect()), "IPv4 addresses"), (covered(v6.collect()), "IPv6 /64 networks")];
    match counts.into_iter().find(|(found, _)| *found > limit) {
        Some((found, unit)) => Err(GuardRefusal::TooWide { connector: name(), found, limit, unit }),
        None => Ok(()),
    }
}

/// How many numbers the inclusive ranges cover together, each counted once: two halves of the world are the world,
/// and a printer listed inside its floor's network adds nothing.
fn covered(mut ranges: Vec<(u128, u128)>) -> u128 {
    ranges.sort_unstable();
    let mut sum = 0_u128;
    let mut next = Some(0_u128);
    for (first, last) in ranges {
        let Some(free) = next else { break };
        let from = first.max(free);
        if last >= from {
            sum = sum.saturating_add((last - from).saturating_add(1));
            next = last.checked_add(1);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::connector::PermissionGroup;

    fn relay() -> ReceiveConnector {
        let mut connector = ReceiveConnector::new("relay");
        connector.permission_groups = [PermissionGroup::AnonymousUsers].into();
        connector.rights.insert("anonymous:accept_any_recipient".parse().unwrap());
        connector
    }

    fn run(connector: &ReceiveConnector, ranges: &[&str], own: &[&str], limit: u128) -> Result<(), GuardRefusal> {
        let ranges: Vec<_> = ranges.iter().map(|text| text.parse().unwrap()).collect();
        let own: Vec<_> = own.iter().map(|text| text.parse().unwrap()).collect();
        check(connector, &ranges, &own, limit)
    }

    #[test]
    fn the_world_is_refused_whole_and_in_halves() {
        for (ranges, limit) in [
            (&["0.0.0.0/0"][..], u128::MAX),
            (&["::/0"][..], u128::MAX),
            (&["0.0.0.0/1", "128.0.0.0/1"][..], RELAY_ADDRESSES_MAX),
            (&["10.0.0.0/20", "10.9.9.9"][..], RELAY_ADDRESSES_MAX),
            (&["2001:db8::/51"][..], RELAY_ADDRESSES_MAX),
        ] {
            assert!(run(&relay(), ranges, &[], limit).is_err(), "{ranges:?}");
        }
        assert!(run(&relay(), &["10.0.0.0/20", "10.0.1.0/24", "10.0.1.7", "2001:db8::/52"], &[], 4096).is_ok());
    }

    #[test]
    fn an_address_of_our_own_is_refused_in_any_spelling() {
        for range in ["10.0.0.0/24", "10.0.0.7", "10.0.0.1-10.0.0.9"] {
            let refused = run(&relay(), &[range], &["10.9.9.9", "::ffff:10.0.0.7"], u128::MAX);
            assert!(matches!(refused, Err(GuardRefusal::OwnAddress { .. })), "{range}");
        }
        assert!(run(&relay(), &["10.0.1.0/24"], &["10.0.0.7"], u128::MAX).is_ok());
    }

    #[test]
    fn who_does_not_relay_for_strangers_may_listen_to_the_world() {
        let world = ["0.0.0.0/0", "::/0"];
        assert!(run(&ReceiveConnector::default_receive(), &world, &["10.0.0.7"], 1).is_ok());
        assert!(run(&ReceiveConnector::default_submission(), &world, &["10.0.0.7"], 1).is_ok());
        let mut disabled = relay();
        disabled.enabled = false;
        assert!(run(&disabled, &world, &[], 1).is_err());
    }

    proptest! {
        #[test]
        fn the_sum_counts_each_address_once(ranges in prop::collection::vec((0_u128..60, 0_u128..60), 0..12)) {
            let ranges: Vec<_> = ranges.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
            let naive = (0..60).filter(|n| ranges.iter().any(|(first, last)| first <= n && n <= last)).count();
            prop_assert_eq!(covered(ranges), naive as u128);
        }
    }

    #[test]
    fn the_sum_does_not_overflow() {
        assert_eq!(covered(vec![(0, u128::MAX), (5, u128::MAX), (0, 3)]), u128::MAX);
    }
}
