//! A sorted list of keys in which the last one at or below a wanted key is found with few cache misses: a static
//! B+ tree without pointers. A node is one cache line, and how many of its keys are small enough is counted without a
//! branch, so that neither the order of questions nor the distribution of the keys matters. Each key carries one
//! octet, in the same line, so that the answer itself costs no further miss.

/// Keys of an inner node: one cache line of them.
const INNER_U32: usize = 16;
const INNER_U64: usize = 8;
/// Keys of a leaf, so that they and their octets fill one cache line.
const LEAF_U32: usize = 12;
const LEAF_U64: usize = 7;

/// A list of 32-bit keys.
pub(super) type StepsU32 = Steps<u32, INNER_U32, LEAF_U32>;
/// A list of 64-bit keys.
pub(super) type StepsU64 = Steps<u64, INNER_U64, LEAF_U64>;

/// What can be a key.
pub(super) trait Key: Copy + Ord {
    /// Fills what is left of a node. A key of this value is told from it by the length of the list.
    const LAST: Self;
}

impl Key for u32 {
    const LAST: Self = Self::MAX;
}

impl Key for u64 {
    const LAST: Self = Self::MAX;
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Inner<K, const N: usize>([K; N]);

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Leaf<K, const L: usize> {
    keys: [K; L],
    marks: [u8; L],
}

/// Nodes of which each key is the first key of the node below that it leads to.
#[derive(Debug)]
struct Level<K, const N: usize> {
    nodes: Box<[Inner<K, N>]>,
    /// How many nodes there are below.
    children: usize,
}

/// The list.
#[derive(Debug)]
pub(super) struct Steps<K, const N: usize, const L: usize> {
    /// From the root down.
    levels: Vec<Level<K, N>>,
    leaves: Box<[Leaf<K, L>]>,
    len: usize,
}

impl<K: Key, const N: usize, const L: usize> Steps<K, N, L> {
    /// Builds from sorted keys, each with its octet.
    pub(super) fn build(keys: impl ExactSizeIterator<Item = (K, u8)>) -> Self {
        let len = keys.len();
        let mut leaves: Vec<Leaf<K, L>> = Vec::with_capacity(len.div_ceil(L));
        for (index, (key, mark)) in keys.enumerate() {
            if index % L == 0 {
                leaves.push(Leaf { keys: [K::LAST; L], marks: [0; L] });
            }
            if let Some(leaf) = leaves.last_mut() {
                leaf.keys[index % L] = key;
                leaf.marks[index % L] = mark;
            }
        }
        let mut levels: Vec<Level<K, N>> = Vec::new();
        let mut firsts: Vec<K> = leaves.iter().map(|leaf| leaf.keys[0]).collect();
        while firsts.len() > 1 {
            let children = firsts.len();
            let nodes: Box<[Inner<K, N>]> = firsts
                .chunks(N)
                .map(|chunk| {
                    let mut node = [K::LAST; N];
                    node[..chunk.len()].copy_from_slice(chunk);
                    Inner(node)
                })
                .collect();
            firsts = nodes.iter().map(|node| node.0[0]).collect();
            levels.push(Level { nodes, children });
        }
        levels.reverse();
        Self { levels, leaves: leaves.into_boxed_slice(), len }
    }

    /// The place of the last key that is not above `key`, and its octet; the first place where all are above.
    #[inline]
    pub(super) fn find(&self, key: K) -> (usize, u8) {
        let mut node = 0;
        for Level { nodes, children } in &self.levels {
            let Some(Inner(keys)) = nodes.get(node) else { break };
            // What fills a node counts where the key is the last there can be: hence the bound.
            node = (node * N + not_above(keys, key).saturating_sub(1)).min(children.saturating_sub(1));
        }
        let Some(leaf) = self.leaves.get(node) else { return (0, 0) };
        let within = not_above(&leaf.keys, key).saturating_sub(1);
        let place = (node * L + within).min(self.len.saturating_sub(1));
        (place, leaf.marks.get(place - node * L).copied().unwrap_or(0))
    }

    /// The key at a place.
    #[inline]
    pub(super) fn key(&self, place: usize) -> Option<K> {
        if place < self.len { Some(self.leaves.get(place / L)?.keys[place % L]) } else { None }
    }

    /// The octet at a place.
    #[inline]
    pub(super) fn mark(&self, place: usize) -> u8 {
        self.leaves.get(place / L).map_or(0, |leaf| leaf.marks[place % L])
    }

    /// Octets held.
    pub(super) fn bytes(&self) -> usize {
        let inner: usize = self.levels.iter().map(|level| size_of_val(&*level.nodes)).sum();
        inner + size_of_val(&*self.leaves)
    }
}

/// How many keys of a node are not above `key`. Without a branch: compilers make a few vector instructions of it.
#[inline]
fn not_above<K: Key, const N: usize>(keys: &[K; N], key: K) -> usize {
    keys.iter().map(|found| u32::from(*found <= key)).sum::<u32>() as usize
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

    #[test]
    fn an_empty_list_and_the_largest_key_do_no_harm() {
        let none = StepsU64::build(std::iter::empty());
        assert_eq!((none.find(7), none.key(0), none.mark(0)), ((0, 0), None, 0));
        let last = StepsU64::build([(0, 1), (u64::MAX, 2)].into_iter());
        assert_eq!((last.find(u64::MAX), last.find(u64::MAX - 1)), ((1, 2), (0, 1)));
    }
}
