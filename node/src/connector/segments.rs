//! Ranges of integers, cut into segments that each belong to the smallest range around them. Immutable: built once
//! per change of the state, asked by every connection and every `MAIL`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::steps::{StepsU32, StepsU64};

/// The expiry of what never expires.
pub(super) const NEVER: i64 = i64::MAX;

/// A segment that belongs to no range.
const NOBODY: u32 = u32::MAX;
/// The mark of such a segment.
const MARK_NOBODY: u8 = u8::MAX;
/// The mark of a segment whose grant is not among the few common ones.
const MARK_RARE: u8 = u8::MAX - 1;

/// An address as a number, and how its list is searched.
pub(super) trait Bits: Copy + Ord + std::ops::Sub<Output = Self> {
    /// The search structure.
    type Index: Index<Self> + std::fmt::Debug;
    /// The first address.
    const MIN: Self;
    /// The last address.
    const MAX: Self;
    /// The next address.
    fn successor(self) -> Option<Self>;
    /// The address before.
    fn predecessor(self) -> Self;
}

/// A sorted list of the first addresses of segments, each with its mark.
pub(super) trait Index<K> {
    /// Builds from sorted starts; the first is the first address there is.
    fn build(starts: impl ExactSizeIterator<Item = (K, u8)> + Clone) -> Self;
    /// The segment that `key` is in, and its mark.
    fn find(&self, key: K) -> (usize, u8);
    /// The first address of a segment.
    fn start(&self, segment: usize) -> Option<K>;
    /// Octets held.
    fn bytes(&self) -> usize;
}

macro_rules! bits {
    ($($int:ty => $index:ty),+) => {
        $(impl Bits for $int {
            type Index = $index;
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
bits!(u32 => StepsU32, u128 => Halves);

impl Index<u32> for StepsU32 {
    fn build(starts: impl ExactSizeIterator<Item = (u32, u8)> + Clone) -> Self {
        Self::build(starts)
    }
    #[inline]
    fn find(&self, key: u32) -> (usize, u8) {
        self.find(key)
    }
    fn start(&self, segment: usize) -> Option<u32> {
        self.key(segment)
    }
    fn bytes(&self) -> usize {
        self.bytes()
    }
}

/// 128-bit starts, searched by their upper halves: networks differ there. The lower halves are looked at only where
/// an address is in the very /64 of a start.
#[derive(Debug)]
pub(super) struct Halves {
    upper: StepsU64,
    lower: Box<[u64]>,
}

impl Index<u128> for Halves {
    fn build(starts: impl ExactSizeIterator<Item = (u128, u8)> + Clone) -> Self {
        Self {
            lower: starts.clone().map(|(start, _)| start as u64).collect(),
            upper: StepsU64::build(starts.map(|(start, mark)| ((start >> 64) as u64, mark))),
        }
    }

    #[inline]
    fn find(&self, key: u128) -> (usize, u8) {
        let (upper, lower) = ((key >> 64) as u64, key as u64);
        let (place, mark) = self.upper.find(upper);
        if self.upper.key(place) != Some(upper) || self.lower.get(place).is_none_or(|start| *start <= lower) {
            return (place, mark);
        }
        // Several starts in this /64, and the last of them is above: the right one is among them or just before.
        let first = upper.checked_sub(1).map_or(0, |before| self.upper.find(before).0 + 1);
        let run = self.lower.get(first..place).unwrap_or_default();
        let place = (first + run.partition_point(|start| *start <= lower)).saturating_sub(1);
        (place, self.upper.mark(place))
    }

    fn start(&self, segment: usize) -> Option<u128> {
        Some(u128::from(self.upper.key(segment)?) << 64 | u128::from(*self.lower.get(segment)?))
    }

    fn bytes(&self) -> usize {
        self.upper.bytes() + size_of_val(&*self.lower)
    }
}

/// Whose a range is and until when it grants anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Grant {
    /// Whose it is.
    pub(super) owner: u32,
    /// Unix milliseconds, or [`NEVER`].
    pub(super) expires_at_ms: i64,
}

/// The same in eight octets: 20 bits of owner, 44 bits of milliseconds (until the year 2527; later is never).
#[derive(Clone, Copy, Debug)]
struct Packed(u64);

const EXPIRY_BITS: u32 = 44;
const EXPIRY_MASK: u64 = (1 << EXPIRY_BITS) - 1;
/// The most owners that a grant can tell apart.
pub(super) const OWNERS_MAX: u32 = 1 << (u64::BITS - EXPIRY_BITS);

impl Packed {
    fn of(grant: Grant) -> Self {
        // What expired before 1970 has expired just as well at its first millisecond.
        let expiry = u64::try_from(grant.expires_at_ms.max(0)).unwrap_or(EXPIRY_MASK).min(EXPIRY_MASK);
        Self(u64::from(grant.owner) << EXPIRY_BITS | expiry)
    }

    fn grant(self) -> Grant {
        let expiry = self.0 & EXPIRY_MASK;
        let expires_at_ms = if expiry == EXPIRY_MASK { NEVER } else { i64::try_from(expiry).unwrap_or(NEVER) };
        Grant { owner: (self.0 >> EXPIRY_BITS) as u32, expires_at_ms }
    }
}

/// Where one range begins, and the segment after its end.
#[derive(Clone, Copy, Debug)]
struct Extent {
    first: u32,
    end: u32,
}

/// Every segment between two neighbouring ends, with the smallest range around it.
#[derive(Debug)]
pub(super) struct Segments<K: Bits> {
    index: K::Index,
    /// Segment → range.
    innermost: Box<[u32]>,
    /// Range → its segments.
    extents: Box<[Extent]>,
    /// Range → its grant, by mark.
    marks: Box<[u8]>,
    /// The grants that have a mark of their own: the first 254.
    common: Vec<Grant>,
    /// Range → its grant; empty where every grant has a mark.
    rare: Box<[Packed]>,
}

/// One range as it is given: its ends, whose it is, and until when.
pub(super) type Given<K> = ((K, K), u32, i64);

impl<K: Bits> Segments<K> {
    /// Builds from `((first, last), owner, expiry)`, first ≤ last. Ranges may lie to each other in any way; where
    /// sizes are equal the smaller owner wins, then the one that came first. Takes n log n, and about n where they
    /// come sorted.
    pub(super) fn build(ranges: impl Iterator<Item = Given<K>>) -> Self {
        let mut ranges: Vec<Given<K>> = ranges.filter(|(_, owner, _)| *owner < OWNERS_MAX).collect();
        // Indexes are 32 bits wide and two segments a range may be needed: 2 thousand million ranges are refused by
        // no machine's memory that could hold them, but must not wrap around.
        ranges.truncate((NOBODY / 2 - 1) as usize);
        ranges.sort_by_key(|((first, _), ..)| *first);

        let mut ends: Vec<(K, u32)> =
            (0_u32..).zip(&ranges).filter_map(|(range, ((_, last), ..))| Some((last.successor()?, range))).collect();
        ends.sort_unstable();
        let (starts, extents) = cut(&ranges, &ends);
        drop(ends);
        let (marks, common, rare) = grants(&ranges);
        let innermost = innermost(&ranges, &starts);
        drop(ranges);
        let mark = |range: &u32| marks.get(*range as usize).copied().unwrap_or(MARK_NOBODY);
        let index = K::Index::build(starts.iter().copied().zip(innermost.iter().map(mark)));
        Self { index, innermost, extents, marks, common, rare }
    }

    /// The segment that `key` is in and what the smallest range around it grants.
    #[inline]
    pub(super) fn find(&self, key: K) -> Option<(u32, Grant)> {
        let (segment, mark) = self.index.find(key);
        let grant = match self.common.get(usize::from(mark)) {
            Some(grant) => *grant,
            None => self.rare_grant(segment, mark)?,
        };
        Some((segment as u32, grant))
    }

    #[cold]
    fn rare_grant(&self, segment: usize, mark: u8) -> Option<Grant> {
        if mark != MARK_RARE {
            return None;
        }
        let range = *self.innermost.get(segment)?;
        self.rare.get(range as usize).map(|packed| packed.grant())
    }

    /// First and last of the smallest range around a segment.
    pub(super) fn ends_at(&self, segment: u32) -> Option<(K, K)> {
        let range = *self.innermost.get(segment as usize)?;
        self.extents.get(range as usize).map(|extent| self.ends(*extent))
    }

    fn ends(&self, extent: Extent) -> (K, K) {
        let first = self.index.start(extent.first as usize).unwrap_or(K::MIN);
        let last = self.index.start(extent.end as usize).map_or(K::MAX, |after| after.predecessor());
        (first, last)
    }

    /// Every range, with what it grants.
    pub(super) fn ranges(&self) -> impl Iterator<Item = ((K, K), Grant)> {
        self.extents.iter().zip(&self.marks).enumerate().filter_map(|(range, (extent, mark))| {
            let grant = match self.common.get(usize::from(*mark)) {
                Some(grant) => *grant,
                None => self.rare.get(range)?.grant(),
            };
            Some((self.ends(*extent), grant))
        })
    }

    /// Octets held.
    pub(super) fn bytes(&self) -> usize {
        self.index.bytes()
            + size_of_val(&*self.innermost)
            + size_of_val(&*self.extents)
            + size_of_val(&*self.marks)
            + size_of_val(&*self.rare)
            + self.common.capacity() * size_of::<Grant>()
    }

    /// How many ranges there are.
    pub(super) fn len(&self) -> usize {
        self.extents.len()
    }

    /// How many segments there are.
    #[cfg(test)]
    pub(super) fn segments(&self) -> usize {
        self.innermost.len()
    }
}

/// The starts of all segments, and each range's segments, from ranges sorted by first and ends sorted.
fn cut<K: Bits>(ranges: &[Given<K>], ends: &[(K, u32)]) -> (Vec<K>, Box<[Extent]>) {
    let mut starts: Vec<K> = Vec::with_capacity(ranges.len() + ends.len() + 1);
    let mut extents = vec![Extent { first: 0, end: 0 }; ranges.len()];
    starts.push(K::MIN);
    let (mut next_first, mut next_end) = (0, 0);
    loop {
        let first = ranges.get(next_first).map(|((first, _), ..)| *first);
        let end = ends.get(next_end).map(|(end, _)| *end);
        let Some(key) = first.into_iter().chain(end).min() else { break };
        if starts.last() != Some(&key) {
            starts.push(key);
        }
        let segment = (starts.len() - 1) as u32;
        while ranges.get(next_first).is_some_and(|((first, _), ..)| *first == key) {
            extents[next_first].first = segment;
            next_first += 1;
        }
        while let Some((_, range)) = ends.get(next_end).filter(|(end, _)| *end == key) {
            extents[*range as usize].end = segment;
            next_end += 1;
        }
    }
    // Ranges that go to the last address end after the last segment.
    for (extent, ((_, last), ..)) in extents.iter_mut().zip(ranges) {
        if last.successor().is_none() {
            extent.end = starts.len() as u32;
        }
    }
    (starts, extents.into_boxed_slice())
}

/// Gives a mark to the first grants that differ, and keeps all grants where there are more.
fn grants<K: Bits>(ranges: &[Given<K>]) -> (Box<[u8]>, Vec<Grant>, Box<[Packed]>) {
    let mut known: BTreeMap<Grant, u8> = BTreeMap::new();
    let mut common: Vec<Grant> = Vec::new();
    let mut last: Option<(Grant, u8)> = None;
    let mut overflow = false;
    let marks = ranges
        .iter()
        .map(|(_, owner, expires_at_ms)| {
            let grant = Grant { owner: *owner, expires_at_ms: *expires_at_ms };
            if let Some((same, mark)) = last
                && same == grant
            {
                return mark;
            }
            let mark = match known.get(&grant) {
                Some(mark) => *mark,
                None if common.len() < usize::from(MARK_RARE) => {
                    let mark = common.len() as u8;
                    common.push(grant);
                    known.insert(grant, mark);
                    mark
                }
                None => {
                    overflow = true;
                    MARK_RARE
                }
            };
            last = Some((grant, mark));
            mark
        })
        .collect();
    let packed =
        |(_, owner, expires_at_ms): &Given<K>| Packed::of(Grant { owner: *owner, expires_at_ms: *expires_at_ms });
    let rare = if overflow { ranges.iter().map(packed).collect() } else { Box::default() };
    common.shrink_to_fit();
    (marks, common, rare)
}

/// One sweep: ranges enter at their first address; the smallest that has not ended owns the segment.
fn innermost<K: Bits>(ranges: &[Given<K>], starts: &[K]) -> Box<[u32]> {
    let mut open = BinaryHeap::new();
    let mut upcoming = (0_u32..).zip(ranges).peekable();
    starts
        .iter()
        .map(|start| {
            while let Some((range, ((first, last), owner, _))) =
                upcoming.next_if(|(_, ((first, _), ..))| first <= start)
            {
                open.push(Reverse((*last - *first, *owner, range)));
            }
            while let Some(Reverse((.., range))) = open.peek() {
                if ranges[*range as usize].0.1 >= *start {
                    return *range;
                }
                open.pop();
            }
            NOBODY
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_smallest_of_any_ranges_is_found(list in prop::collection::vec((0_u8..64, 0_u8..64), 0..20)) {
            // Even those that the state would refuse: the answer must not depend on the order of building.
            let list: Vec<(u32, u32)> = list.into_iter().map(|(a, b)| (a.min(b).into(), a.max(b).into())).collect();
            let segments = Segments::build(list.iter().map(|ends| (*ends, 0, NEVER)));
            prop_assert!(segments.segments() <= 2 * list.len() + 1);
            for key in 0..70_u32 {
                let expected = list.iter().filter(|(a, b)| (*a..=*b).contains(&key)).map(|(a, b)| b - a).min();
                let found = segments.find(key).and_then(|(segment, _)| segments.ends_at(segment));
                prop_assert_eq!(found.map(|(a, b)| b - a), expected);
                prop_assert!(found.is_none_or(|ends| list.contains(&ends)));
            }
        }

        #[test]
        fn six_is_searched_by_halves_and_finds_the_same(
            list in prop::collection::vec((0_u128..4, 0_u128..5, 0_u128..4, 0_u128..5), 0..25),
        ) {
            // Few networks and few hosts, and both edges of each half, so that runs of one network are long.
            let lower = |n: u128| [0, 1, 2, u128::from(u64::MAX) - 1, u128::from(u64::MAX)][n as usize];
            let list: Vec<(u128, u128)> = list
                .into_iter()
                .map(|(a, b, c, d)| (a << 64 | lower(b), c << 64 | lower(d)))
                .map(|(a, b)| (a.min(b), a.max(b)))
                .collect();
            let segments = Segments::build(list.iter().map(|ends| (*ends, 0, NEVER)));
            for network in 0..5_u128 {
                for host in [0, 1, 2, 3, u128::from(u64::MAX) - 2, u128::from(u64::MAX) - 1, u128::from(u64::MAX)] {
                    let key = network << 64 | host;
                    let expected = list.iter().filter(|(a, b)| (*a..=*b).contains(&key)).map(|(a, b)| b - a).min();
                    let found = segments.find(key).and_then(|(segment, _)| segments.ends_at(segment));
                    prop_assert_eq!(found.map(|(a, b)| b - a), expected, "{:x}", key);
                }
            }
        }

        #[test]
        fn a_packed_grant_is_the_grant(owner in 0..OWNERS_MAX, at in prop_oneof![Just(NEVER), 0_i64..(1 << 43)]) {
            let grant = Grant { owner, expires_at_ms: at };
            prop_assert_eq!(Packed::of(grant).grant(), grant);
        }
    }

    #[test]
    fn more_grants_than_marks_are_told_apart_all_the_same() {
        let given: Vec<Given<u32>> = (0..1000_u32).map(|n| ((n * 10, n * 10 + 3), n % 300, i64::from(n) + 1)).collect();
        let segments = Segments::build(given.iter().copied());
        assert_eq!(segments.len(), given.len());
        for (ends, owner, expires_at_ms) in &given {
            let (segment, grant) = segments.find(ends.0 + 1).unwrap();
            assert_eq!(
                (segments.ends_at(segment), grant),
                (Some(*ends), Grant { owner: *owner, expires_at_ms: *expires_at_ms })
            );
            assert_eq!(segments.find(ends.1 + 1), None);
        }
        let listed: Vec<Given<u32>> =
            segments.ranges().map(|(ends, grant)| (ends, grant.owner, grant.expires_at_ms)).collect();
        assert_eq!(listed, given);
    }

    #[test]
    fn what_expired_before_time_began_has_expired() {
        assert_eq!(Packed::of(Grant { owner: 1, expires_at_ms: -5 }).grant().expires_at_ms, 0);
    }
}
