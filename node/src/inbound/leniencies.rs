//! How often each device needed a leniency, so that it can be switched off again one day: in a metric by leniency and
//! connector, and by device in the log, at its first use and then less and less often.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use metrics::counter;

use super::metrics_names::LENIENCIES;
use crate::connector::{self, ReceiveConnector};
use crate::smtp::{Leniencies, Leniency};

/// Devices that are told apart; further ones are counted in the metric alone.
const DEVICES_MAX: usize = 4096;

/// What a connector forgives in the protocol.
pub(super) fn of(connector: &ReceiveConnector) -> Leniencies {
    let forgives = |leniency: &Leniency| match leniency {
        Leniency::SpaceAfterColon => connector.leniencies.contains(&connector::Leniency::SpaceAfterColon),
        Leniency::HeloWithoutDomain => connector.leniencies.contains(&connector::Leniency::HeloWithoutDomain),
        // Also where Exchange's switch says so.
        Leniency::RepairLineEndings => connector.repairs_line_endings(),
    };
    Leniency::ALL.into_iter().filter(forgives).collect()
}

/// The counts of one node since it started.
#[derive(Default)]
pub(super) struct LeniencyCounts(Mutex<BTreeMap<(IpAddr, Leniency), u64>>);

impl LeniencyCounts {
    /// Counts one use.
    pub(super) fn count(&self, leniency: Leniency, source: IpAddr, connector: &str, session_id: &str) {
        counter!(LENIENCIES, "leniency" => leniency.as_str(), "connector" => connector.to_owned()).increment(1);
        let Some(uses) = self.add(leniency, source) else { return };
        if is_worth_telling(uses) {
            tracing::info!(
                source.addr = %source,
                connector,
                session.id = session_id,
                leniency = leniency.as_str(),
                uses,
                "device needs a leniency"
            );
        }
    }

    /// The uses of this device so far, unless there are too many devices.
    fn add(&self, leniency: Leniency, source: IpAddr) -> Option<u64> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (source.to_canonical(), leniency);
        if counts.len() >= DEVICES_MAX && !counts.contains_key(&key) {
            return None;
        }
        let uses = counts.entry(key).or_default();
        *uses = uses.saturating_add(1);
        Some(*uses)
    }
}

/// 1, 10, 100, …
fn is_worth_telling(uses: u64) -> bool {
    let mut power = 1_u64;
    while power < uses {
        let Some(next) = power.checked_mul(10) else { return false };
        power = next;
    }
    power == uses
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn nothing_is_forgiven_unless_the_connector_says_so() {
        let mut connector = ReceiveConnector::new("in");
        assert_eq!(of(&connector), Leniencies::default());
        connector.leniencies.insert(connector::Leniency::SpaceAfterColon);
        assert!(of(&connector).contains(Leniency::SpaceAfterColon));
        assert!(!of(&connector).contains(Leniency::HeloWithoutDomain));
        connector.bare_linefeed_rejection_enabled = false;
        assert!(of(&connector).contains(Leniency::RepairLineEndings));
    }

    #[test]
    fn each_device_is_counted_apart_and_their_number_is_bounded() {
        let counts = LeniencyCounts::default();
        let device = IpAddr::from([192, 0, 2, 7]);
        assert_eq!(counts.add(Leniency::SpaceAfterColon, device), Some(1));
        assert_eq!(counts.add(Leniency::SpaceAfterColon, device), Some(2));
        assert_eq!(counts.add(Leniency::RepairLineEndings, device), Some(1));
        for index in 0..2 * u32::try_from(DEVICES_MAX).unwrap_or(u32::MAX) {
            counts.add(Leniency::HeloWithoutDomain, Ipv4Addr::from(index).into());
        }
        assert_eq!(counts.0.lock().unwrap_or_else(PoisonError::into_inner).len(), DEVICES_MAX);
        assert_eq!(counts.add(Leniency::SpaceAfterColon, device), Some(3), "who is known goes on being counted");
    }

    #[test]
    fn the_log_tells_the_first_use_and_then_less_and_less() {
        let told: Vec<u64> = (0..=2000).filter(|uses| is_worth_telling(*uses)).collect();
        assert_eq!(told, [1, 10, 100, 1000]);
        assert!(!is_worth_telling(u64::MAX));
    }
}
