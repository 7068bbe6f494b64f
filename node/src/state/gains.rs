//! Who may relay after a change and could not before. Taking a range away does not only take: its addresses fall to the
//! next wider range, perhaps with more rights, and the administrator must be told before, not by a blocklist after.

use std::collections::{BTreeMap, BTreeSet};

use super::{ClusterState, Entries, RelayGain};
use crate::connector::{Binding, ReceiveConnector, RemoteIpRange};

/// How many ranges an answer lists; the rest is counted.
const SHOWN_MAX: usize = 100;

/// All ranges that gain relay by one change.
#[derive(Debug, Default)]
pub(super) struct Gains(Vec<RelayGain>);

impl Gains {
    /// Without those that `name` itself grants.
    pub(super) fn without(mut self, name: &str) -> Self {
        self.0.retain(|gain| gain.after != name);
        self
    }

    /// The ranges by the connector that takes them over.
    pub(super) fn by_winner(&self) -> BTreeMap<&str, Vec<RemoteIpRange>> {
        let mut found: BTreeMap<&str, Vec<RemoteIpRange>> = BTreeMap::new();
        for gain in &self.0 {
            found.entry(&gain.after).or_default().push(gain.range);
        }
        found
    }

    /// One warning in all.
    pub(super) fn in_words(&self) -> Option<String> {
        let addresses = self.0.iter().fold(0_u128, |sum, gain| sum.saturating_add(gain.range.size()));
        match self.0.as_slice() {
            [] => None,
            [one] => Some(format!("gains relay: {one}")),
            many => Some(format!("{} ranges with {addresses} addresses gain relay", many.len())),
        }
    }

    /// The first of them.
    pub(super) fn shown(mut self) -> Vec<RelayGain> {
        self.0.truncate(SHOWN_MAX);
        self.0
    }
}

/// Compares for every range that the connectors `changed` have or had.
pub(super) fn gains(before: &ClusterState, after: &ClusterState, changed: &BTreeSet<&str>, now_ms: i64) -> Gains {
    let mut found = Vec::new();
    for name in changed {
        let none = Entries::default();
        let (old, new) = (before.allowlist.get(*name).unwrap_or(&none), after.allowlist.get(*name).unwrap_or(&none));
        let added = new.keys().filter(|range| !old.contains_key(range));
        let ranges: Vec<RemoteIpRange> = old.keys().chain(added).copied().collect();
        found.extend(gains_of(before, after, name, &ranges, now_ms).0);
    }
    found.sort();
    found.dedup();
    Gains(found)
}

/// Compares for certain ranges of the connector `name`.
pub(super) fn gains_of(
    before: &ClusterState,
    after: &ClusterState,
    name: &str,
    ranges: &[RemoteIpRange],
    now_ms: i64,
) -> Gains {
    let bindings: BTreeSet<Binding> = [before, after]
        .iter()
        .filter_map(|state| state.connectors.get(name))
        .flat_map(|connector| connector.value.bindings.iter().copied())
        .collect();
    let mut found = BTreeSet::new();
    for binding in bindings {
        let (old, new) = (Listening::on(before, binding), Listening::on(after, binding));
        if !new.relays() {
            continue;
        }
        for range in ranges.iter().filter(|range| range.is_v4() == binding.addr.is_ipv4()) {
            let Some((connector, true)) = new.winner(range, now_ms) else { continue };
            let earlier = old.winner(range, now_ms);
            if earlier.is_none_or(|(_, relays)| !relays) {
                found.insert(RelayGain {
                    range: *range,
                    before: earlier.map(|(connector, _)| connector.name.clone()).unwrap_or_default(),
                    after: connector.name.clone(),
                });
            }
        }
    }
    Gains(found.into_iter().collect())
}

/// The enabled connectors that a connection to one binding is decided among.
struct Listening<'a>(Vec<(&'a ReceiveConnector, &'a Entries)>);

impl<'a> Listening<'a> {
    fn on(state: &'a ClusterState, binding: Binding) -> Self {
        let exactly = Self::bound(state, binding);
        if !exactly.0.is_empty() || binding.is_wildcard() {
            return exactly;
        }
        // Nobody is bound to that very address: the wildcard decides.
        let everywhere = Binding::everywhere(binding.port).into_iter();
        let wildcard = everywhere.filter(|any| any.addr.is_ipv4() == binding.addr.is_ipv4());
        Self(wildcard.flat_map(|any| Self::bound(state, any).0).collect())
    }

    fn bound(state: &'a ClusterState, binding: Binding) -> Self {
        let enabled = state.connectors.values().map(|found| &*found.value).filter(|found| found.enabled);
        let bound = enabled.filter(|connector| connector.bindings.contains(&binding));
        Self(bound.filter_map(|connector| Some((connector, state.allowlist.get(&connector.name)?))).collect())
    }

    fn relays(&self) -> bool {
        self.0.iter().any(|(connector, _)| connector.relays_anonymously())
    }

    /// The connector of the smallest range around `range`, and whether strangers there may relay.
    fn winner(&self, range: &RemoteIpRange, now_ms: i64) -> Option<(&'a ReceiveConnector, bool)> {
        let around = self.0.iter().filter_map(|(connector, entries)| Some((*connector, &entries.around(range)?.value)));
        let (connector, entry) = around.min_by_key(|(_, entry)| entry.range.size())?;
        let expired = entry.expires_at_ms.is_some_and(|at| at <= now_ms);
        Some((connector, !expired && connector.relays_anonymously()))
    }
}
