//! The limits on connections and on the rate of letters: which one is reached, and what the device reads then. What
//! they are compared with is counted by [`super::ClusterCounts`] for the whole cluster.

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
    /// `max_inbound_connection_percentage_per_source`.
    #[error("max_inbound_connection_percentage_per_source ({0} %) reached")]
    PercentagePerSource(u32),
    /// `message_rate_limit`.
    #[error("message_rate_limit ({0} a minute) reached")]
    MessageRate(u32),
}

impl LimitRefusal {
    /// What the device reads before the connection is closed.
    #[must_use]
    pub fn reply(&self) -> Reply {
        match self {
            Self::Total(_) => reply::too_many_connections(),
            Self::PerSource(_) | Self::PercentagePerSource(_) => reply::too_many_connections_per_source(),
            Self::MessageRate(_) => reply::submission_rate_exceeded(),
        }
    }

    /// Every word of [`Self::reason`].
    pub const REASONS: [&'static str; 4] =
        ["max_connections", "max_connections_per_source", "max_connections_percentage_per_source", "message_rate"];

    /// A word of a closed set, for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Total(_) => "max_connections",
            Self::PerSource(_) => "max_connections_per_source",
            Self::PercentagePerSource(_) => "max_connections_percentage_per_source",
            Self::MessageRate(_) => "message_rate",
        }
    }
}

/// Whether one more session fits beside `total` open ones, of which `of_source` are of the same address.
///
/// The percentage is of the connections that are still free, as in Exchange: a source may hold fewer the fuller the
/// connector is, and one at least. 100 means no such limit: taken literally it would stop a source at half of an
/// otherwise empty connector.
pub(super) fn check_connections(connector: &ReceiveConnector, total: u32, of_source: u32) -> Result<(), LimitRefusal> {
    let (total_max, source_max) = (connector.max_inbound_connection, connector.max_inbound_connection_per_source);
    if total_max != 0 && total >= total_max {
        return Err(LimitRefusal::Total(total_max));
    }
    if source_max != 0 && of_source >= source_max {
        return Err(LimitRefusal::PerSource(source_max));
    }
    let percentage = connector.max_inbound_connection_percentage_per_source;
    if total_max != 0 && percentage < 100 {
        let free = u64::from(total_max - total);
        let allowed = (free * u64::from(percentage) / 100).max(1);
        if u64::from(of_source) >= allowed {
            return Err(LimitRefusal::PercentagePerSource(percentage));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connector(total: u32, source: u32, percentage: u32) -> ReceiveConnector {
        ReceiveConnector {
            max_inbound_connection: total,
            max_inbound_connection_per_source: source,
            max_inbound_connection_percentage_per_source: percentage,
            ..ReceiveConnector::new("in")
        }
    }

    #[test]
    fn each_limit_stops_one_more() {
        for (limits, total, of_source, expected) in [
            ((3, 2, 100), 2, 1, Ok(())),
            ((3, 2, 100), 3, 0, Err(LimitRefusal::Total(3))),
            ((3, 2, 100), 2, 2, Err(LimitRefusal::PerSource(2))),
            ((0, 0, 1), 4_000_000_000, 4_000_000_000, Ok(())),
            // Exchange's 2 %: of 5000 free ones 100, of 50 free ones one.
            ((5000, 0, 2), 99, 97, Ok(())),
            ((5000, 0, 2), 99, 98, Err(LimitRefusal::PercentagePerSource(2))),
            ((5000, 0, 2), 4950, 1, Err(LimitRefusal::PercentagePerSource(2))),
            ((5000, 0, 2), 4999, 0, Ok(())),
            ((100, 0, 100), 99, 99, Ok(())),
        ] {
            let (a, b, c) = limits;
            assert_eq!(check_connections(&connector(a, b, c), total, of_source), expected, "{limits:?}");
        }
    }

    #[test]
    fn every_reason_is_in_the_closed_set() {
        let all = [
            LimitRefusal::Total(1),
            LimitRefusal::PerSource(1),
            LimitRefusal::PercentagePerSource(1),
            LimitRefusal::MessageRate(1),
        ];
        assert_eq!(all.map(|limit| limit.reason()), LimitRefusal::REASONS);
    }

    #[test]
    fn replies_are_exchanges() {
        for (refusal, text) in [
            (
                LimitRefusal::Total(1),
                "421 4.3.2 The maximum number of concurrent server connections has exceeded a limit, closing transmission channel",
            ),
            (
                LimitRefusal::PercentagePerSource(1),
                "421 4.3.2 The maximum number of concurrent server connections has exceeded a per-source limit, closing transmission channel",
            ),
            (
                LimitRefusal::MessageRate(1),
                "421 4.4.2 Message submission rate for this client has exceeded the configured limit",
            ),
        ] {
            assert_eq!(refusal.reply().to_string(), text);
        }
    }
}
