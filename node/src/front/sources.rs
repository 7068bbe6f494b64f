//! How many connections one device has and how fast it makes them: pure. The cluster-wide limits are the nodes'; here
//! a flood is held off before it costs a node anything.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::time::Instant;

/// What one source may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct SourceLimits {
    /// Connections at once; 0: any number.
    pub connections: usize,
    /// New connections a second, over the long run; a second's worth may come at once. 0: any number.
    pub per_second: u32,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooMany {
    /// Too many at once.
    Connections,
    /// Too fast.
    Rate,
}

/// Every source that has a connection, or had one a moment ago.
#[derive(Debug)]
pub(super) struct Sources {
    limits: SourceLimits,
    by_source: HashMap<IpAddr, Source>,
    swept_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Source {
    open: usize,
    /// Connections that it may make now.
    tokens: f64,
    filled_at: Instant,
}

/// A source without a connection is forgotten after so long: its bucket is full again by then.
const FORGET_AFTER: Duration = Duration::from_secs(2);

impl Sources {
    pub(super) fn new(limits: SourceLimits) -> Self {
        Self { limits, by_source: HashMap::new(), swept_at: None }
    }

    /// Counts one more connection of `address`, or says why not.
    pub(super) fn open(&mut self, address: IpAddr, now: Instant) -> Result<(), TooMany> {
        let limits = self.limits;
        self.sweep(now);
        let burst = f64::from(limits.per_second);
        let entry = self.by_source.entry(source_of(address));
        let source = entry.or_insert(Source { open: 0, tokens: burst, filled_at: now });
        if limits.per_second > 0 {
            let since = now.saturating_duration_since(source.filled_at).as_secs_f64();
            source.tokens = since.mul_add(burst, source.tokens).min(burst);
            source.filled_at = now;
            if source.tokens < 1.0 {
                return Err(TooMany::Rate);
            }
            source.tokens -= 1.0;
        }
        if limits.connections > 0 && source.open >= limits.connections {
            return Err(TooMany::Connections);
        }
        source.open += 1;
        Ok(())
    }

    /// One connection of `address` has ended.
    pub(super) fn close(&mut self, address: IpAddr) {
        if let Some(source) = self.by_source.get_mut(&source_of(address)) {
            source.open = source.open.saturating_sub(1);
        }
    }

    /// Forgets sources that have nothing open, so that a scan leaves nothing behind.
    fn sweep(&mut self, now: Instant) {
        if self.swept_at.is_some_and(|at| now.saturating_duration_since(at) < FORGET_AFTER) {
            return;
        }
        self.swept_at = Some(now);
        self.by_source
            .retain(|_, source| source.open > 0 || now.saturating_duration_since(source.filled_at) < FORGET_AFTER);
        if self.by_source.capacity() > 1024 && self.by_source.len() < self.by_source.capacity() / 8 {
            self.by_source.shrink_to_fit();
        }
    }
}

/// RFC 6177: a site has a /64 or more to itself, so a device could come from 2^64 addresses.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED))
    }

    #[test]
    fn one_source_has_so_many_connections_and_its_neighbour_too() {
        let (mut sources, now) = (Sources::new(SourceLimits { connections: 2, per_second: 0 }), Instant::now());
        assert!(sources.open(address("10.0.0.1"), now).is_ok() && sources.open(address("10.0.0.1"), now).is_ok());
        assert_eq!(sources.open(address("::ffff:10.0.0.1"), now), Err(TooMany::Connections), "the same device");
        assert!(sources.open(address("10.0.0.2"), now).is_ok());
        sources.close(address("10.0.0.1"));
        assert!(sources.open(address("10.0.0.1"), now).is_ok());
    }

    #[test]
    fn a_burst_is_a_seconds_worth_and_then_the_rate_holds() {
        let (mut sources, now) = (Sources::new(SourceLimits { connections: 0, per_second: 10 }), Instant::now());
        let made =
            |sources: &mut Sources, now| (0..50).filter(|_| sources.open(address("10.0.0.1"), now).is_ok()).count();
        assert_eq!(made(&mut sources, now), 10);
        assert_eq!(made(&mut sources, now + Duration::from_millis(500)), 5);
        assert_eq!(made(&mut sources, now + Duration::from_secs(60)), 10);
    }

    #[test]
    fn an_ipv6_site_is_one_source_and_nothing_is_kept_of_who_left() {
        let (mut sources, now) = (Sources::new(SourceLimits { connections: 1, per_second: 0 }), Instant::now());
        assert!(sources.open(address("2001:db8::1"), now).is_ok());
        assert_eq!(sources.open(address("2001:db8::ffff:2"), now), Err(TooMany::Connections));
        assert!(sources.open(address("2001:db8:0:1::1"), now).is_ok());
        sources.close(address("2001:db8::1"));
        sources.close(address("2001:db8:0:1::1"));
        assert!(sources.open(address("10.0.0.1"), now + FORGET_AFTER * 2).is_ok());
        assert_eq!(sources.by_source.len(), 1);
    }
}
