//! The ranges of one connector: a sorted list in pieces that are shared between one state and the next, so that adding
//! one entry to a million copies a few hundred and not all.

use std::sync::Arc;

use super::{AllowlistEntry, Versioned};
use crate::connector::{Relation, RemoteIpRange};

/// Entries of one piece at most: what one change copies, beside one pointer per piece.
const PIECE_MAX: usize = 256;

/// Entries by range, in the order of ranges. A clone shares every piece until it changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entries {
    /// Sorted, none empty.
    pieces: Vec<Arc<Piece>>,
    len: usize,
}

#[derive(Clone, Debug, PartialEq)]
struct Piece {
    /// Sorted by range.
    entries: Vec<Versioned<AllowlistEntry>>,
    /// The range that reaches furthest, for [`Entries::crossing`].
    furthest: RemoteIpRange,
}

impl Piece {
    fn of(entries: Vec<Versioned<AllowlistEntry>>) -> Option<Self> {
        let furthest = entries.iter().map(|entry| entry.value.range).max_by_key(RemoteIpRange::last)?;
        Some(Self { entries, furthest })
    }

    fn first(&self) -> Option<&RemoteIpRange> {
        self.entries.first().map(|entry| &entry.value.range)
    }

    fn position(&self, range: &RemoteIpRange) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| entry.value.range.cmp(range))
    }
}

impl Entries {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entry of exactly this range.
    #[must_use]
    pub fn get(&self, range: &RemoteIpRange) -> Option<&Versioned<AllowlistEntry>> {
        let piece = self.pieces.get(self.piece_of(range)?)?;
        piece.entries.get(piece.position(range).ok()?)
    }

    /// Whether this very range is listed.
    #[must_use]
    pub fn contains_key(&self, range: &RemoteIpRange) -> bool {
        self.get(range).is_some()
    }

    /// All entries in the order of ranges.
    pub fn values(&self) -> impl Iterator<Item = &Versioned<AllowlistEntry>> {
        self.pieces.iter().flat_map(|piece| &piece.entries)
    }

    /// All ranges in order.
    pub fn keys(&self) -> impl Iterator<Item = &RemoteIpRange> {
        self.values().map(|entry| &entry.value.range)
    }

    /// The entries after `range` in order: for reading in pages.
    pub fn after(&self, range: &RemoteIpRange) -> impl Iterator<Item = &Versioned<AllowlistEntry>> {
        let piece = self.piece_of(range).unwrap_or(0);
        let rest = self.pieces.get(piece..).unwrap_or_default();
        rest.iter().flat_map(|piece| &piece.entries).skip_while(move |entry| entry.value.range <= *range)
    }

    /// Puts an entry in; answers the one of the same range that it replaces.
    pub fn insert(&mut self, entry: Versioned<AllowlistEntry>) -> Option<Versioned<AllowlistEntry>> {
        let range = entry.value.range;
        let Some(index) = self.piece_of(&range) else {
            self.pieces.insert(0, Arc::new(Piece { furthest: range, entries: vec![entry] }));
            self.len += 1;
            return None;
        };
        let piece = Arc::make_mut(&mut self.pieces[index]);
        match piece.position(&range) {
            Ok(found) => return Some(std::mem::replace(&mut piece.entries[found], entry)),
            Err(place) => piece.entries.insert(place, entry),
        }
        self.len += 1;
        if range.last() > piece.furthest.last() {
            piece.furthest = range;
        }
        if piece.entries.len() > PIECE_MAX {
            // What grows at its end (a sorted import) leaves full pieces behind, not half-empty ones.
            let at_end = piece.entries.last().is_some_and(|last| last.value.range == range);
            let upper = piece.entries.split_off(if at_end { PIECE_MAX } else { PIECE_MAX / 2 });
            let halves = (Piece::of(std::mem::take(&mut piece.entries)), Piece::of(upper));
            if let (Some(lower), Some(upper)) = halves {
                self.pieces[index] = Arc::new(lower);
                self.pieces.insert(index + 1, Arc::new(upper));
            }
        }
        None
    }

    /// Takes an entry out.
    pub fn remove(&mut self, range: &RemoteIpRange) -> Option<Versioned<AllowlistEntry>> {
        let index = self.piece_of(range)?;
        let place = self.pieces.get(index)?.position(range).ok()?;
        let piece = Arc::make_mut(&mut self.pieces[index]);
        let removed = piece.entries.remove(place);
        self.len -= 1;
        match Piece::of(std::mem::take(&mut piece.entries)) {
            Some(rest) => *piece = rest,
            None => drop(self.pieces.remove(index)),
        }
        Some(removed)
    }

    /// Finds a range that is equal to `wanted` or overlaps it in part. The ranges must nest or stay apart among
    /// themselves, as those of a state do. Looks at the ranges inside `wanted`, at those around it, and at one of
    /// every 256 others.
    #[must_use]
    pub fn crossing(&self, wanted: &RemoteIpRange) -> Option<RemoteIpRange> {
        let crosses = |range: &&RemoteIpRange| matches!(range.relation(wanted), Relation::Equal | Relation::Partial);
        // Ranges are in the order of their first address. Those that begin at or after `wanted` and cross it begin
        // inside it.
        let start =
            self.pieces.partition_point(|piece| piece.first().is_some_and(|first| first.first() < wanted.first()));
        let from = start.saturating_sub(1);
        let ahead = self.pieces.get(from..).unwrap_or_default().iter().flat_map(|piece| &piece.entries);
        let inside = ahead
            .map(|entry| &entry.value.range)
            .skip_while(|range| range.first() < wanted.first())
            .take_while(|range| range.first() <= wanted.last())
            .find(crosses);
        if let Some(found) = inside {
            return Some(*found);
        }
        // Those that begin before it reach into it only where their piece does.
        let before = self.pieces.get(..start).unwrap_or_default().iter();
        before
            .filter(|piece| piece.furthest.last() >= wanted.first())
            .flat_map(|piece| &piece.entries)
            .map(|entry| &entry.value.range)
            .find(|range| range.first() < wanted.first() && crosses(range))
            .copied()
    }

    /// The smallest range that contains all of `wanted`, itself included.
    #[must_use]
    pub fn around(&self, wanted: &RemoteIpRange) -> Option<&Versioned<AllowlistEntry>> {
        if let Some(found) = self.get(wanted) {
            return Some(found);
        }
        let end =
            self.pieces.partition_point(|piece| piece.first().is_some_and(|first| first.first() <= wanted.first()));
        let before = self.pieces.get(..end).unwrap_or_default().iter();
        before
            .filter(|piece| piece.furthest.last() >= wanted.last())
            .flat_map(|piece| &piece.entries)
            .filter(|entry| wanted.is_within(&entry.value.range))
            .min_by_key(|entry| entry.value.range.size())
    }

    /// The piece that a range is in or would go to; `None` where there is none at all.
    fn piece_of(&self, range: &RemoteIpRange) -> Option<usize> {
        let after = self.pieces.partition_point(|piece| piece.first().is_some_and(|first| first <= range));
        if self.pieces.is_empty() { None } else { Some(after.saturating_sub(1)) }
    }
}

impl FromIterator<Versioned<AllowlistEntry>> for Entries {
    fn from_iter<I: IntoIterator<Item = Versioned<AllowlistEntry>>>(entries: I) -> Self {
        let mut all = Self::default();
        for entry in entries {
            all.insert(entry);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn entry(range: RemoteIpRange, revision: u64) -> Versioned<AllowlistEntry> {
        let value = AllowlistEntry {
            range,
            note: String::new(),
            owner: String::new(),
            ticket: String::new(),
            expires_at_ms: None,
            created_by: String::new(),
            created_at_ms: 0,
        };
        Versioned { revision, value }
    }

    fn range(v6: bool, a: u16, b: u16) -> RemoteIpRange {
        let (a, b) = (a.min(b), a.max(b));
        let ip = |n: u16| if v6 { IpAddr::V6((u128::from(n) << 70).into()) } else { IpAddr::V4(u32::from(n).into()) };
        RemoteIpRange::from_ends(ip(a), ip(b)).unwrap()
    }

    proptest! {
        #[test]
        fn it_is_a_sorted_map(
            steps in prop::collection::vec((any::<bool>(), 1_u16..400, 1_u16..400, prop::bool::weighted(0.8)), 0..1500),
        ) {
            let (mut list, mut map) = (Entries::default(), BTreeMap::new());
            let mut before = list.clone();
            let mut kept: Vec<u64> = Vec::new();
            for (revision, (v6, a, b, put)) in (1..).zip(&steps) {
                let range = range(*v6, *a, *b);
                if *put {
                    let replaced = list.insert(entry(range, revision));
                    prop_assert_eq!(replaced.map(|old| old.revision), map.insert(range, revision));
                } else {
                    prop_assert_eq!(list.remove(&range).map(|old| old.revision), map.remove(&range));
                }
                if revision == 700 {
                    before = list.clone();
                    kept = list.values().map(|entry| entry.revision).collect();
                }
            }
            prop_assert_eq!(list.len(), map.len());
            prop_assert!(list.keys().eq(map.keys()));
            prop_assert!(list.values().map(|entry| entry.revision).eq(map.values().copied()));
            for (range, revision) in &map {
                prop_assert_eq!(list.get(range).unwrap().revision, *revision);
                let rest = map.range((std::ops::Bound::Excluded(*range), std::ops::Bound::Unbounded));
                prop_assert!(list.after(range).map(|entry| entry.revision).eq(rest.map(|(_, revision)| *revision)));
            }
            // What was shared has not changed.
            prop_assert!(before.values().map(|entry| entry.revision).eq(kept));
        }

        #[test]
        fn a_crossing_is_found_where_there_is_one(
            list in prop::collection::vec((any::<bool>(), 1_u16..200, 1_u16..200), 0..600),
            wanted in prop::collection::vec((any::<bool>(), 1_u16..200, 1_u16..200), 1..80),
        ) {
            let mut entries = Entries::default();
            for (v6, a, b) in list {
                let range = range(v6, a, b);
                if entries.crossing(&range).is_none() {
                    entries.insert(entry(range, 1));
                }
            }
            for (v6, a, b) in wanted {
                let wanted = range(v6, a, b);
                let crosses = |range: &&RemoteIpRange| {
                    matches!(range.relation(&wanted), Relation::Equal | Relation::Partial)
                };
                let found = entries.crossing(&wanted);
                prop_assert_eq!(found.is_some(), entries.keys().any(|range| crosses(&range)));
                prop_assert!(found.is_none_or(|found| crosses(&&found)));
                let around = entries.keys().filter(|range| wanted.is_within(range)).min_by_key(|range| range.size());
                prop_assert_eq!(entries.around(&wanted).map(|entry| &entry.value.range), around);
            }
        }
    }

    #[test]
    fn a_sorted_import_leaves_full_pieces() {
        let list: Entries = (1..=10_240_u16).map(|n| entry(range(false, n, n), 1)).collect();
        assert_eq!((list.len(), list.pieces.len()), (10_240, 40));
    }
}
