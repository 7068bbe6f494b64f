//! The book in memory: counted while sessions wait, so that nothing here looks at more than one key or one chunk.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::file::Line;
use super::{Usage, UsageKey, secs};
use crate::connector::RemoteIpRange;

/// Keys at most: those that the state may have, and room for some that have left it.
const KEYS_MAX: usize = 2_200_000;
/// Entries read under one lock: sessions wait for it.
const CHUNK: usize = 2_000;

/// One of them.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub(super) usage: Usage,
    /// It has changed since it was written.
    dirty: bool,
}

/// Everything by its key.
#[derive(Default)]
pub(super) struct Book {
    pub(super) connectors: BTreeMap<Arc<str>, Slot>,
    pub(super) ranges: BTreeMap<Arc<str>, BTreeMap<RemoteIpRange, Slot>>,
    pub(super) credentials: BTreeMap<Arc<str>, Slot>,
    pub(super) keys: usize,
    dirty: Vec<UsageKey>,
    /// There was no room for something.
    pub(super) crowded: bool,
}

/// Adds to a slot; answers whether it has become dirty.
fn add(slot: &mut Slot, now_secs: u32, count: u64) -> bool {
    if count == 0 && slot.usage.last_secs >= now_secs {
        return false;
    }
    // A clock that was set back makes nothing younger.
    slot.usage.first_secs = slot.usage.first_secs.min(now_secs);
    slot.usage.last_secs = slot.usage.last_secs.max(now_secs);
    slot.usage.count = slot.usage.count.saturating_add(count);
    !std::mem::replace(&mut slot.dirty, true)
}

fn slot(now_secs: u32, count: u64) -> Slot {
    Slot { usage: Usage { first_secs: now_secs, last_secs: now_secs, count }, dirty: true }
}

impl Book {
    fn has_room(&mut self) -> bool {
        self.crowded |= self.keys >= KEYS_MAX;
        !self.crowded
    }

    fn begin(&mut self, key: UsageKey, now_secs: u32, count: u64) {
        if self.has_room() {
            self.insert(key.clone(), slot(now_secs, count));
            self.dirty.push(key);
        }
    }

    pub(super) fn connector(&mut self, name: &str, now_ms: i64, count: u64) {
        let now_secs = secs(now_ms);
        match self.connectors.get_mut(name) {
            Some(slot) => {
                if add(slot, now_secs, count)
                    && let Some((name, _)) = self.connectors.get_key_value(name)
                {
                    self.dirty.push(UsageKey::Connector(Arc::clone(name)));
                }
            }
            None => self.begin(UsageKey::Connector(name.into()), now_secs, count),
        }
    }

    pub(super) fn range(&mut self, connector: &str, range: RemoteIpRange, now_ms: i64, count: u64) {
        let now_secs = secs(now_ms);
        match self.ranges.get_mut(connector).and_then(|ranges| ranges.get_mut(&range)) {
            Some(slot) => {
                if add(slot, now_secs, count)
                    && let Some((name, _)) = self.ranges.get_key_value(connector)
                {
                    self.dirty.push(UsageKey::Range(Arc::clone(name), range));
                }
            }
            None => {
                // One name for all of its ranges.
                let name = self.ranges.get_key_value(connector).map(|(name, _)| Arc::clone(name));
                let name = name.unwrap_or_else(|| connector.into());
                self.begin(UsageKey::Range(name, range), now_secs, count);
            }
        }
    }

    pub(super) fn credential(&mut self, user: &str, now_ms: i64, count: u64) {
        let now_secs = secs(now_ms);
        match self.credentials.get_mut(user) {
            Some(slot) => {
                if add(slot, now_secs, count)
                    && let Some((user, _)) = self.credentials.get_key_value(user)
                {
                    self.dirty.push(UsageKey::Credential(Arc::clone(user)));
                }
            }
            None => self.begin(UsageKey::Credential(user.into()), now_secs, count),
        }
    }

    /// Takes a line of the file in: a later one replaces an earlier one.
    pub(super) fn put(&mut self, line: Line) {
        if self.get(&line.key).is_some() || self.keys < KEYS_MAX {
            self.insert(line.key, Slot { usage: line.usage, dirty: false });
        }
    }

    fn insert(&mut self, key: UsageKey, slot: Slot) {
        let before = match key {
            UsageKey::Connector(name) => self.connectors.insert(name, slot),
            UsageKey::Range(connector, range) => {
                // One name for all of its ranges, however many lines of the file say it.
                self.ranges.entry(connector).or_default().insert(range, slot)
            }
            UsageKey::Credential(user) => self.credentials.insert(user, slot),
        };
        self.keys += usize::from(before.is_none());
    }

    pub(super) fn remove(&mut self, key: &UsageKey) {
        let before = match key {
            UsageKey::Connector(name) => self.connectors.remove(name),
            UsageKey::Range(connector, range) => {
                let Some(ranges) = self.ranges.get_mut(connector) else { return };
                let before = ranges.remove(range);
                if ranges.is_empty() {
                    self.ranges.remove(connector);
                }
                before
            }
            UsageKey::Credential(user) => self.credentials.remove(user),
        };
        self.keys -= usize::from(before.is_some());
    }

    fn get(&self, key: &UsageKey) -> Option<Slot> {
        match key {
            UsageKey::Connector(name) => self.connectors.get(name),
            UsageKey::Range(connector, range) => self.ranges.get(connector)?.get(range),
            UsageKey::Credential(user) => self.credentials.get(user),
        }
        .copied()
    }

    /// What has changed since it was last taken.
    pub(super) fn take_dirty(&mut self) -> Vec<Line> {
        let keys = std::mem::take(&mut self.dirty);
        let lines = keys.into_iter().filter_map(|key| {
            let slot = self.get_mut(&key)?;
            slot.dirty = false;
            let usage = slot.usage;
            Some(Line { key, usage })
        });
        lines.collect()
    }

    /// What was taken could not be written.
    pub(super) fn mark(&mut self, lines: &[Line]) {
        for line in lines {
            if let Some(slot) = self.get_mut(&line.key)
                && !std::mem::replace(&mut slot.dirty, true)
            {
                self.dirty.push(line.key.clone());
            }
        }
    }

    fn get_mut(&mut self, key: &UsageKey) -> Option<&mut Slot> {
        match key {
            UsageKey::Connector(name) => self.connectors.get_mut(name),
            UsageKey::Range(connector, range) => self.ranges.get_mut(connector)?.get_mut(range),
            UsageKey::Credential(user) => self.credentials.get_mut(user),
        }
    }

    /// The next entries after `after`, in the order of keys; none: that was all.
    pub(super) fn chunk(&self, after: Option<&UsageKey>) -> Vec<Line> {
        let mut found = Vec::new();
        let line = |key, slot: &Slot| Line { key, usage: slot.usage };
        let mut after = after;
        if matches!(after, None | Some(UsageKey::Connector(_))) {
            let from = match after {
                Some(UsageKey::Connector(name)) => Bound::Excluded(Arc::clone(name)),
                _ => Bound::Unbounded,
            };
            let rest = self.connectors.range((from, Bound::Unbounded));
            let left = CHUNK - found.len();
            found.extend(rest.take(left).map(|(name, slot)| line(UsageKey::Connector(Arc::clone(name)), slot)));
            after = None;
        }
        if matches!(after, None | Some(UsageKey::Range(..))) {
            let start = match after {
                Some(UsageKey::Range(connector, _)) => Bound::Included(Arc::clone(connector)),
                _ => Bound::Unbounded,
            };
            for (connector, ranges) in self.ranges.range((start, Bound::Unbounded)) {
                let from = match after {
                    Some(UsageKey::Range(same, range)) if same == connector => Bound::Excluded(*range),
                    _ => Bound::Unbounded,
                };
                let left = CHUNK - found.len();
                let rest = ranges.range((from, Bound::Unbounded)).take(left);
                found.extend(rest.map(|(range, slot)| line(UsageKey::Range(Arc::clone(connector), *range), slot)));
                if found.len() >= CHUNK {
                    return found;
                }
            }
            after = None;
        }
        let from = match after {
            Some(UsageKey::Credential(user)) => Bound::Excluded(Arc::clone(user)),
            _ => Bound::Unbounded,
        };
        let left = CHUNK - found.len();
        let rest = self.credentials.range((from, Bound::Unbounded)).take(left);
        found.extend(rest.map(|(user, slot)| line(UsageKey::Credential(Arc::clone(user)), slot)));
        found
    }
}
