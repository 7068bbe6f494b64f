//! How many sessions are open: per connector, and per source address on it. The counters belong to one node and are
//! moved by its listener; what they are compared with is the connector's.

use std::collections::HashMap;
use std::net::IpAddr;

use super::range::canonical_ip;
use super::receive::ReceiveConnector;
use crate::mail::{Reply, reply};

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitRefusal {
    /// `max_inbound_connection`.
    #[error("max_inbound_connection ({0}) reached")]
    Total(u32),
    /// `max_inbound_connection_per_source`.
    #[error("max_inbound_connection_per_source ({0}) reached")]
    PerSource(u32),
}

impl LimitRefusal {
    /// What the device reads before the connection is closed.
    #[must_use]
    pub fn reply(&self) -> Reply {
        match self {
            Self::Total(_) => reply::too_many_connections(),
            Self::PerSource(_) => reply::too_many_connections_per_source(),
        }
    }
}

/// Open sessions by connector and source. Holds one entry per source with an open session, so its size is bounded by
/// the number of open connections.
#[derive(Debug, Default)]
pub struct ConnectionCounters {
    connectors: HashMap<String, PerConnector>,
}

#[derive(Debug, Default)]
struct PerConnector {
    total: u32,
    sources: HashMap<IpAddr, u32>,
}

impl ConnectionCounters {
    /// Counts a session in, if the connector's limits allow one more. Who was counted in must be counted out with
    /// [`Self::close`], under the same name and address.
    ///
    /// # Errors
    /// The limit that was reached; nothing is counted then.
    pub fn open(&mut self, connector: &ReceiveConnector, source: IpAddr) -> Result<(), LimitRefusal> {
        let (total_max, source_max) = (connector.max_inbound_connection, connector.max_inbound_connection_per_source);
        let source = canonical_ip(source);
        if total_max != 0 && self.total(&connector.name) >= total_max {
            return Err(LimitRefusal::Total(total_max));
        }
        if source_max != 0 && self.of_source(&connector.name, source) >= source_max {
            return Err(LimitRefusal::PerSource(source_max));
        }
        let counts = self.connectors.entry(connector.name.clone()).or_default();
        counts.total = counts.total.saturating_add(1);
        let of_source = counts.sources.entry(source).or_default();
        *of_source = of_source.saturating_add(1);
        Ok(())
    }

    /// Counts a session out.
    pub fn close(&mut self, connector: &str, source: IpAddr) {
        let source = canonical_ip(source);
        let Some(counts) = self.connectors.get_mut(connector) else { return };
        counts.total = counts.total.saturating_sub(1);
        if let Some(of_source) = counts.sources.get_mut(&source) {
            *of_source = of_source.saturating_sub(1);
            if *of_source == 0 {
                counts.sources.remove(&source);
            }
        }
        if counts.total == 0 {
            self.connectors.remove(connector);
        }
    }

    /// Sessions open on a connector.
    #[must_use]
    pub fn total(&self, connector: &str) -> u32 {
        self.connectors.get(connector).map_or(0, |counts| counts.total)
    }

    /// Sessions open on a connector from one address.
    #[must_use]
    pub fn of_source(&self, connector: &str, source: IpAddr) -> u32 {
        let counts = self.connectors.get(connector);
        counts.and_then(|counts| counts.sources.get(&canonical_ip(source)).copied()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_limit_stops_one_more_and_a_closed_session_makes_room() {
        let mut connector = ReceiveConnector::new("in");
        connector.max_inbound_connection = 3;
        connector.max_inbound_connection_per_source = 2;
        let mut counters = ConnectionCounters::default();
        counters.open(&connector, ip("10.0.0.1")).unwrap();
        counters.open(&connector, ip("::ffff:10.0.0.1")).unwrap();
        assert_eq!(counters.open(&connector, ip("10.0.0.1")), Err(LimitRefusal::PerSource(2)));
        counters.open(&connector, ip("10.0.0.2")).unwrap();
        assert_eq!(counters.open(&connector, ip("10.0.0.3")), Err(LimitRefusal::Total(3)));
        counters.close("in", ip("10.0.0.1"));
        counters.open(&connector, ip("10.0.0.3")).unwrap();
        assert_eq!((counters.total("in"), counters.of_source("in", ip("10.0.0.1"))), (3, 1));
    }

    #[test]
    fn zero_is_unlimited_and_nothing_is_left_behind() {
        let mut connector = ReceiveConnector::new("in");
        connector.max_inbound_connection = 0;
        connector.max_inbound_connection_per_source = 0;
        let mut counters = ConnectionCounters::default();
        for _ in 0..50_000 {
            counters.open(&connector, ip("10.0.0.1")).unwrap();
        }
        for _ in 0..50_000 {
            counters.close("in", ip("10.0.0.1"));
        }
        counters.close("in", ip("10.0.0.1"));
        counters.close("never", ip("10.0.0.1"));
        assert!(counters.connectors.is_empty());
    }
}
