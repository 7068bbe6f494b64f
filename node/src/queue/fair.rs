//! A line in which every source has its turn: a device that floods the relay waits behind itself and nobody else.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use crate::spool::MessageId;

/// Letters in line, first come first served within one source, and the sources in turn.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    lines: HashMap<IpAddr, VecDeque<MessageId>>,
    turn: VecDeque<IpAddr>,
}

impl FairQueue {
    /// Puts a letter of `source` in line. One that already stands at the end is not put there twice.
    pub(super) fn push(&mut self, source: IpAddr, id: MessageId) {
        let source = site(source);
        let line = self.lines.entry(source).or_insert_with(|| {
            self.turn.push_back(source);
            VecDeque::new()
        });
        if line.back() != Some(&id) {
            line.push_back(id);
        }
    }

    /// Takes the next letter.
    pub(super) fn pop(&mut self) -> Option<MessageId> {
        let source = self.turn.pop_front()?;
        let line = self.lines.get_mut(&source)?;
        let id = line.pop_front();
        if line.is_empty() {
            self.lines.remove(&source);
        } else {
            self.turn.push_back(source);
        }
        id
    }

    pub(super) fn is_empty(&self) -> bool {
        self.turn.is_empty()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// One machine has a whole /64 of IPv6 addresses (RFC 4291 §2.5.4) and must not have as many turns.
fn site(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_flooding_device_waits_behind_itself() {
        let mut line = FairQueue::default();
        for id in 0..1000 {
            line.push(ip("10.0.0.1"), MessageId(id));
        }
        for (id, source) in [(5000, "10.0.0.2"), (5001, "10.0.0.3"), (5002, "10.0.0.2")] {
            line.push(ip(source), MessageId(id));
        }
        let first: Vec<u64> = std::iter::from_fn(|| line.pop()).take(7).map(|id| id.0).collect();
        assert_eq!(first, [0, 5000, 5001, 1, 5002, 2, 3]);
        assert_eq!(std::iter::from_fn(|| line.pop()).count(), 996);
        assert!(line.is_empty() && line.lines.is_empty());
    }

    #[test]
    fn many_addresses_of_one_machine_are_one_source() {
        let mut line = FairQueue::default();
        for id in 0..10 {
            line.push(ip(&format!("2001:db8::{id}")), MessageId(id));
        }
        line.push(ip("2001:db8:0:1::1"), MessageId(99));
        assert_eq!([line.pop(), line.pop()], [Some(MessageId(0)), Some(MessageId(99))]);
    }
}
