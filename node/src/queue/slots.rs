//! Values that many letters share, kept once: a letter holds a number. Counted, so that what nobody holds is forgotten.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Shared values by number.
#[derive(Debug)]
pub(super) struct Slots<T> {
    values: Vec<Option<(Arc<T>, u64)>>,
    index: HashMap<Arc<T>, u32>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { values: Vec::new(), index: HashMap::new(), free: Vec::new() }
    }
}

impl<T: Eq + Hash> Slots<T> {
    /// Takes hold of `value` and answers its number.
    pub(super) fn hold(&mut self, value: T) -> u32 {
        let known = self.index.get(&value).copied();
        let at = known.unwrap_or_else(|| {
            let value = Arc::new(value);
            let at = self.free.pop().unwrap_or_else(|| {
                self.values.push(None);
                u32::try_from(self.values.len() - 1).unwrap_or(u32::MAX)
            });
            self.values[at as usize] = Some((Arc::clone(&value), 0));
            self.index.insert(value, at);
            at
        });
        if let Some((_, holders)) = &mut self.values[at as usize] {
            *holders += 1;
        }
        at
    }

    /// Lets go of a number.
    pub(super) fn release(&mut self, at: u32) {
        let Some(slot) = self.values.get_mut(at as usize) else { return };
        let Some((value, holders)) = slot else { return };
        *holders -= 1;
        if *holders == 0 {
            self.index.remove(&**value);
            *slot = None;
            self.free.push(at);
        }
    }

    /// The value of a number that is held.
    pub(super) fn value(&self, at: u32) -> Option<&Arc<T>> {
        self.values.get(at as usize)?.as_ref().map(|(value, _)| value)
    }

    /// The number of a value that is held.
    pub(super) fn find(&self, value: &T) -> Option<u32> {
        self.index.get(value).copied()
    }

    /// How many values are held.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_kept_once_and_as_long_as_somebody_holds_it() {
        let mut slots = Slots::default();
        let (a, b, again) = (slots.hold("a"), slots.hold("b"), slots.hold("a"));
        assert_eq!((a, slots.len(), slots.find(&"b")), (again, 2, Some(b)));
        slots.release(a);
        assert_eq!(slots.value(a).map(|value| **value), Some("a"));
        slots.release(again);
        assert_eq!((slots.value(a), slots.len()), (None, 1));
        assert_eq!(slots.hold("c"), a, "a number is given out again");
    }
}
