//! A sorted list of keys in which the last one at or below a wanted key is found with two cache misses: a directory
//! over equal parts of the keys' span says which cache line to look into, and in the line a short search without
//! branches ends. Each key carries one octet, in the same line, so that the answer itself costs no further miss.
//!
//! Where keys lie so unevenly that one part of the directory holds many lines, the search among these is a binary
//! one: never worse than a binary search over everything.

/// Keys of a line, so that they and their octets fill it.
const LINE_U32: usize = 12;
const LINE_U64: usize = 7;
/// Parts of the directory for each line, rounded up to a power of two: few parts hold more than two lines then, and
/// the directory stays small enough for the nearer caches.
const PARTS_PER_LINE: usize = 1;

/// A list of 32-bit keys.
pub(super) type StepsU32 = Steps<u32, LINE_U32>;
/// A list of 64-bit keys.
pub(super) type StepsU64 = Steps<u64, LINE_U64>;

/// What can be a key.
pub(super) trait Key: Copy + Ord {
    /// Fills what is left of a line. A key of this value is told from it by the length of the list.
    const LAST: Self;
    /// How many parts of `1 << shift` lie between `base` and this key; 0 where it is below.
    fn part(self, base: Self, shift: u32) -> usize;
    /// The first key of a part.
    fn of_part(base: Self, shift: u32, part: usize) -> Self;
    /// The binary digits of the distance from `base`.
    fn digits(self, base: Self) -> u32;
}

macro_rules! key {
    ($($int:ty),+) => {
        $(impl Key for $int {
            const LAST: Self = Self::MAX;
            #[inline]
            fn part(self, base: Self, shift: u32) -> usize {
                (self.saturating_sub(base) >> shift) as usize
            }
            fn of_part(base: Self, shift: u32, part: usize) -> Self {
                base.saturating_add((part as Self) << shift)
            }
            fn digits(self, base: Self) -> u32 {
                Self::BITS - self.saturating_sub(base).leading_zeros()
            }
        })+
    };
}
key!(u32, u64);

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line<K, const L: usize> {
    keys: [K; L],
    marks: [u8; L],
}

/// The list.
#[derive(Debug)]
pub(super) struct Steps<K, const L: usize> {
    lines: Box<[Line<K, L>]>,
    /// Part → the last line that begins at or before it; one more at the end.
    directory: Box<[u32]>,
    base: K,
    shift: u32,
    len: usize,
}

impl<K: Key, const L: usize> Steps<K, L> {
    /// Builds from sorted keys, each with its octet.
    pub(super) fn build(keys: impl ExactSizeIterator<Item = (K, u8)>) -> Self {
        let len = keys.len();
        let mut lines: Vec<Line<K, L>> = Vec::with_capacity(len.div_ceil(L));
        // The first key is the first address there is, and says nothing about where the others are.
        let (mut base, mut top) = (K::LAST, K::LAST);
        for (index, (key, mark)) in keys.enumerate() {
            if index <= 1 {
                base = key;
            }
            top = key;
            if index % L == 0 {
                lines.push(Line { keys: [K::LAST; L], marks: [0; L] });
            }
            if let Some(line) = lines.last_mut() {
                line.keys[index % L] = key;
                line.marks[index % L] = mark;
            }
        }
        // Two at least: a key cannot be shifted by all of its digits.
        let parts = (lines.len() * PARTS_PER_LINE).next_power_of_two().max(2);
        let shift = top.digits(base).saturating_sub(parts.trailing_zeros());
        let parts = top.part(base, shift) + 1;
        let last = lines.len().saturating_sub(1);
        let mut line = 0;
        let directory = (0..parts).map(|part| {
            let begin = K::of_part(base, shift, part);
            while lines.get(line + 1).is_some_and(|next| next.keys[0] <= begin) {
                line += 1;
            }
            // Keys below the base are looked for in the first part, too, so that it must reach back to them even
            // where the base, many times over, fills more than one line.
            if part == 0 { 0 } else { line as u32 }
        });
        let directory = directory.collect::<Vec<u32>>().into_iter().chain([last as u32]).collect();
        Self { lines: lines.into_boxed_slice(), directory, base, shift, len }
    }

    /// The place of the last key that is not above `key`, and its octet; the first place where all are above.
    #[inline]
    pub(super) fn find(&self, key: K) -> (usize, u8) {
        let part = key.part(self.base, self.shift).min(self.directory.len().saturating_sub(2));
        let [low, high] = match self.directory.get(part..part + 2) {
            Some([low, high]) => [*low as usize, *high as usize],
            _ => return (0, 0),
        };
        // One line or two, mostly, and which is not to be predicted: so no branch.
        let second = (low + 1).min(high);
        let begins = self.lines.get(second).is_some_and(|line| line.keys[0] <= key);
        let mut line = if begins { second } else { low };
        if high - second > 0 && begins {
            let among = self.lines.get(second + 1..=high).unwrap_or_default();
            line += among.partition_point(|line| line.keys[0] <= key);
        }
        let Some(Line { keys, marks }) = self.lines.get(line) else { return (0, 0) };
        // What fills a line counts where the key is the last there can be: hence the bound.
        let within = keys.partition_point(|found| *found <= key).saturating_sub(1);
        let place = (line * L + within).min(self.len.saturating_sub(1));
        (place, marks.get(place - line * L).copied().unwrap_or(0))
    }

    /// The key at a place.
    #[inline]
    pub(super) fn key(&self, place: usize) -> Option<K> {
        if place < self.len { Some(self.lines.get(place / L)?.keys[place % L]) } else { None }
    }

    /// The octet at a place.
    #[inline]
    pub(super) fn mark(&self, place: usize) -> u8 {
        self.lines.get(place / L).map_or(0, |line| line.marks[place % L])
    }

    /// Octets held.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.lines) + size_of_val(&*self.directory)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_last_key_at_or_below_is_found(
            mut keys in prop::collection::vec(prop_oneof![0_u32..5000, Just(u32::MAX), u32::MAX - 40..u32::MAX], 1..3000),
            wanted in prop::collection::vec(prop_oneof![0_u32..5100, any::<u32>(), Just(u32::MAX)], 200),
        ) {
            keys.sort_unstable();
            keys.dedup();
            let list = StepsU32::build(keys.iter().map(|key| (*key, (*key % 251) as u8)));
            let long = StepsU64::build(keys.iter().map(|key| (u64::from(*key) << 20, (*key % 251) as u8)));
            prop_assert_eq!((list.len, list.key(keys.len())), (keys.len(), None));
            for key in wanted {
                let place = keys.partition_point(|found| *found <= key).saturating_sub(1);
                let expected = (place, (keys[place] % 251) as u8);
                prop_assert_eq!(list.find(key), expected);
                prop_assert_eq!(long.find(u64::from(key) << 20), expected);
                prop_assert_eq!((list.key(place), list.mark(place)), (Some(keys[place]), expected.1));
            }
        }
    }

    proptest! {
        #[test]
        fn equal_keys_are_found_at_their_last_and_their_neighbours_beside_them(
            keys in prop::collection::vec((0_u64..6, 1_usize..30), 1..6),
            far in prop::option::of(Just(u64::MAX)),
        ) {
            // As the upper halves of addresses in few networks.
            let mut keys: Vec<u64> = keys.into_iter().flat_map(|(key, times)| vec![key * 3; times]).chain([0]).collect();
            keys.extend(far);
            keys.sort_unstable();
            let list = StepsU64::build(keys.iter().map(|key| (*key, (*key % 251) as u8)));
            for key in (0..20).chain([u64::MAX - 1, u64::MAX]) {
                let place = keys.partition_point(|found| *found <= key).saturating_sub(1);
                prop_assert_eq!(list.find(key), (place, (keys[place] % 251) as u8), "{}", key);
            }
        }
    }

    #[test]
    fn an_empty_list_and_the_largest_key_do_no_harm() {
        let none = StepsU64::build(std::iter::empty());
        assert_eq!((none.find(7), none.key(0), none.mark(0)), ((0, 0), None, 0));
        let last = StepsU64::build([(0, 1), (u64::MAX, 2)].into_iter());
        assert_eq!((last.find(u64::MAX), last.find(u64::MAX - 1)), ((1, 2), (0, 1)));
        // One line, and a span of all digits.
        let wide = StepsU32::build([(0, 1), (1, 2), (u32::MAX, 3)].into_iter());
        assert_eq!(
            (wide.find(0), wide.find(1), wide.find(u32::MAX - 1), wide.find(u32::MAX)),
            ((0, 1), (1, 2), (1, 2), (2, 3))
        );
    }
}
