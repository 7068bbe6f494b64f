//! Ranges of integers, cut into segments that each belong to the smallest range around them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The expiry of what never expires.
pub(super) const NEVER: i64 = i64::MAX;

/// A segment that belongs to no range.
const NOBODY: u32 = u32::MAX;

/// An address as a number.
pub(super) trait Bits: Copy + Ord + std::ops::Sub<Output = Self> {
    const MIN: Self;
    const MAX: Self;
    fn successor(self) -> Option<Self>;
    fn predecessor(self) -> Self;
}

macro_rules! bits {
    ($($int:ty),+) => {
        $(impl Bits for $int {
            const MIN: Self = <$int>::MIN;
            const MAX: Self = <$int>::MAX;
            fn successor(self) -> Option<Self> {
                self.checked_add(1)
            }
            fn predecessor(self) -> Self {
                self.saturating_sub(1)
            }
        })+
    };
}
bits!(u32, u128);

/// One range. Its ends are starts of segments and are not stored again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// The segment that begins with its first address.
    first_segment: u32,
    /// The segment that begins after its last address.
    end_segment: u32,
    /// Whose it is.
    pub(super) owner: u32,
    /// Unix milliseconds, or [`NEVER`].
    pub(super) expires_at_ms: i64,
}

/// Every segment between two neighbouring ends, with the smallest range around it. Two arrays rather than one of
/// pairs: a search touches only the first.
#[derive(Debug)]
pub(super) struct Segments<K> {
    starts: Vec<K>,
    innermost: Vec<u32>,
    entries: Vec<Entry>,
}

impl<K: Bits> Segments<K> {
    /// Builds from `((first, last), owner, expiry)`, first ≤ last. Ranges may lie to each other in any way; where
    /// sizes are equal the smaller owner wins, then the one that came first. Takes n log n.
    pub(super) fn build(ranges: impl Iterator<Item = ((K, K), u32, i64)>) -> Self {
        let mut ranges: Vec<_> = ranges.collect();
        // Indexes are 32 bits wide and two segments a range may be needed: 2 thousand million ranges are refused by
        // no machine's memory that could hold them, but must not wrap around.
        ranges.truncate((NOBODY / 2 - 1) as usize);
        ranges.sort_by_key(|((first, _), ..)| *first);

        let mut starts: Vec<K> = Vec::with_capacity(ranges.len() * 2);
        starts.extend(ranges.iter().map(|((first, _), ..)| *first));
        starts.extend(ranges.iter().filter_map(|((_, last), ..)| last.successor()));
        starts.sort_unstable();
        starts.dedup();
        starts.shrink_to_fit();

        let position = |key: K| starts.partition_point(|start| *start < key) as u32;
        let entries: Vec<Entry> = ranges
            .iter()
            .map(|((first, last), owner, expires_at_ms)| Entry {
                first_segment: position(*first),
                end_segment: last.successor().map_or(starts.len() as u32, position),
                owner: *owner,
                expires_at_ms: *expires_at_ms,
            })
            .collect();

        // One sweep: ranges enter at their first address; the smallest that has not ended owns the segment.
        let mut open = BinaryHeap::new();
        let mut upcoming = (0_u32..).zip(&ranges).peekable();
        let innermost = starts
            .iter()
            .map(|start| {
                while let Some((index, ((first, last), owner, _))) =
                    upcoming.next_if(|(_, ((first, _), ..))| first <= start)
                {
                    open.push(Reverse((*last - *first, *owner, index)));
                }
                while let Some(Reverse((.., index))) = open.peek() {
                    if ranges[*index as usize].0.1 >= *start {
                        return *index;
                    }
                    open.pop();
                }
                NOBODY
            })
            .collect();
        Self { starts, innermost, entries }
    }

    /// The smallest range around `key`.
    pub(super) fn innermost(&self, key: K) -> Option<&Entry> {
        let segment = self.starts.partition_point(|start| *start <= key).checked_sub(1)?;
        self.entries.get(*self.innermost.get(segment)? as usize)
    }

    /// First and last of a range.
    pub(super) fn ends(&self, entry: &Entry) -> (K, K) {
        let first = self.starts.get(entry.first_segment as usize).copied().unwrap_or(K::MIN);
        let last = self.starts.get(entry.end_segment as usize).map_or(K::MAX, |after| after.predecessor());
        (first, last)
    }

    /// Every range.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Octets held.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.starts.capacity() * size_of::<K>()
            + self.innermost.capacity() * size_of::<u32>()
            + self.entries.capacity() * size_of::<Entry>()
    }
}
