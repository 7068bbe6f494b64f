//! The name of a letter: unique in the cluster, ordered by time, short enough to read over the telephone.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// 2024-01-01T00:00:00Z in unix milliseconds: 41 bits from here last until 2093.
const EPOCH_MS: i64 = 1_704_067_200_000;
const NODE_BITS: u32 = 10;
const SEQUENCE_BITS: u32 = 12;
const SEQUENCE_MAX: u64 = (1 << SEQUENCE_BITS) - 1;
const TICK_MAX: u64 = (1 << 41) - 1;
/// Crockford's base 32: no I, L, O, U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const TEXT_LEN: usize = 13;

/// The name of a letter: 41 bits of milliseconds since 2024, 10 bits of node id, 12 bits of sequence.
///
/// Shown as 13 characters of Crockford base 32; the number itself is what the final reply calls `InternalId`. The
/// order of ids is the order of acceptance on one node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MessageId(pub u64);

/// The text is not a message id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message id: 13 characters of 0-9 and A-Z without I, L, O, U are expected")]
pub struct NotAMessageId;

impl MessageId {
    /// When the id was made, in unix milliseconds: the age of a letter without reading it.
    #[must_use]
    pub fn made_at_ms(self) -> i64 {
        let tick = self.0 >> (NODE_BITS + SEQUENCE_BITS);
        EPOCH_MS.saturating_add(i64::try_from(tick).unwrap_or(i64::MAX))
    }

    /// The smallest id that a letter accepted at `at_ms` can have.
    #[must_use]
    pub fn first_at(at_ms: i64) -> Self {
        Self(tick_of(at_ms) << (NODE_BITS + SEQUENCE_BITS))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; TEXT_LEN];
        let mut rest = self.0;
        for place in text.iter_mut().rev() {
            *place = ALPHABET[(rest & 31) as usize];
            rest >>= 5;
        }
        f.pad(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads what people type: small letters, hyphens and the letters that are mistaken for digits are forgiven.
impl FromStr for MessageId {
    type Err = NotAMessageId;

    fn from_str(text: &str) -> Result<Self, NotAMessageId> {
        let mut value: u64 = 0;
        let mut places = 0;
        for byte in text.bytes().filter(|byte| *byte != b'-') {
            let byte = match byte.to_ascii_uppercase() {
                b'O' => b'0',
                b'I' | b'L' => b'1',
                other => other,
            };
            let digit = ALPHABET.iter().position(|letter| *letter == byte).ok_or(NotAMessageId)?;
            // 13 places hold 65 bits: the first may only be 0 to F.
            if value >> 59 != 0 {
                return Err(NotAMessageId);
            }
            value = (value << 5) | digit as u64;
            places += 1;
        }
        if places == TEXT_LEN { Ok(Self(value)) } else { Err(NotAMessageId) }
    }
}

impl From<MessageId> for String {
    fn from(id: MessageId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for MessageId {
    type Error = NotAMessageId;

    fn try_from(text: String) -> Result<Self, NotAMessageId> {
        text.parse()
    }
}

/// Makes ids. They only grow, also when the clock is set back.
#[derive(Debug)]
pub(super) struct IdSource {
    node: u64,
    last: Mutex<(u64, u64)>,
}

impl IdSource {
    /// Makes a source for `node_id`. No id will be below or equal to `newest`, the last one that the disk knows.
    pub(super) fn new(node_id: u64, newest: Option<MessageId>) -> Self {
        let last = newest.map_or((0, 0), |id| (id.0 >> (NODE_BITS + SEQUENCE_BITS), id.0 & SEQUENCE_MAX));
        Self { node: node_id & ((1 << NODE_BITS) - 1), last: Mutex::new(last) }
    }

    pub(super) fn next(&self, now_ms: i64) -> MessageId {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let tick = tick_of(now_ms);
        *last = match *last {
            (before, _) if tick > before => (tick, 0),
            (before, SEQUENCE_MAX) => (before + 1, 0),
            (before, sequence) => (before, sequence + 1),
        };
        let (tick, sequence) = *last;
        MessageId((tick << (NODE_BITS + SEQUENCE_BITS)) | (self.node << SEQUENCE_BITS) | sequence)
    }
}

fn tick_of(at_ms: i64) -> u64 {
    u64::try_from(at_ms.saturating_sub(EPOCH_MS)).unwrap_or(0).min(TICK_MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_000_000_000;

    #[test]
    fn the_text_of_an_id_reads_back() {
        for value in [0, 1, 31, 32, 0x7FFF_FFFF_FFFF_FFFF, u64::MAX] {
            let id = MessageId(value);
            assert_eq!(id.to_string().len(), TEXT_LEN);
            assert_eq!(id.to_string().parse::<MessageId>().unwrap(), id);
            assert_eq!(id.to_string().to_lowercase().parse::<MessageId>().unwrap(), id);
        }
        assert!("".parse::<MessageId>().is_err());
        assert!("ZZZZZZZZZZZZZ".parse::<MessageId>().is_err());
        assert!("00000000000000".parse::<MessageId>().is_err());
        assert!("000000000000U".parse::<MessageId>().is_err());
    }

    #[test]
    fn ids_grow_even_when_the_clock_goes_back() {
        let source = IdSource::new(3, None);
        let mut before = source.next(NOW);
        for step in 0..10_000 {
            let next = source.next(NOW - step);
            assert!(next > before);
            before = next;
        }
        let after_restart = IdSource::new(3, Some(before));
        assert!(after_restart.next(NOW - 60_000) > before);
    }

    #[test]
    fn two_nodes_never_make_the_same_id() {
        let first = IdSource::new(1, None);
        let second = IdSource::new(2, None);
        for _ in 0..5_000 {
            assert_ne!(first.next(NOW), second.next(NOW));
        }
    }

    #[test]
    fn an_id_tells_when_it_was_made() {
        let id = IdSource::new(7, None).next(NOW);
        assert_eq!(id.made_at_ms(), NOW);
        assert!(MessageId::first_at(NOW) <= id);
        assert!(MessageId::first_at(NOW + 1) > id);
    }
}
