//! What objects were before: kept with each change of a connector, its ranges, an accepted domain, a route or the
//! settings, so that a difference can be shown and a change taken back. Bounded; the oldest go first.
//!
//! Credentials, certificates, tokens and members are left out on purpose: to bring one of them back would undo a
//! revocation. The audit records name their changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::apply::Done;
use super::connectors::{check_conflicts, check_connector, guard, pass_gains};
use super::gains::gains;
use super::refusals::{denied, invalid, not_found};
use super::{ClusterState, Command, ObjectKey, Refusal};

/// How many changes are kept.
pub const HISTORY_RECORDS_MAX: usize = 1_000;
/// How many objects they may hold together.
pub const HISTORY_OBJECTS_MAX: usize = 20_000;
/// A change of more objects than this (an import) is kept as a name only: what came before it cannot be restored.
pub const HISTORY_OBJECTS_PER_CHANGE_MAX: usize = 2_000;

/// What one change replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// Its revision.
    pub revision: u64,
    /// Each object with what it was before, as JSON; absent: it did not exist.
    pub replaced: Vec<(ObjectKey, Option<String>)>,
    /// How many objects there were; more than `replaced` has where they were too many to keep.
    pub objects: usize,
}

impl HistoryRecord {
    /// Whether everything that was replaced is here.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.replaced.len() == self.objects
    }
}

/// Whether an object's past is kept.
fn is_kept(key: &ObjectKey) -> bool {
    matches!(
        key,
        ObjectKey::Connector(_)
            | ObjectKey::AllowlistEntry(..)
            | ObjectKey::Domain(_)
            | ObjectKey::Route(_)
            | ObjectKey::Settings
    )
}

/// Keeps what `touched` were before, and drops what is beyond the limits. Answers the keys of both.
pub(super) fn remember(
    state: &mut ClusterState,
    before: &ClusterState,
    touched: &[ObjectKey],
    revision: u64,
) -> Vec<ObjectKey> {
    let kept: BTreeSet<&ObjectKey> = touched.iter().filter(|key| is_kept(key)).collect();
    if kept.is_empty() {
        return Vec::new();
    }
    let objects = kept.len();
    let replaced = if objects > HISTORY_OBJECTS_PER_CHANGE_MAX {
        Vec::new()
    } else {
        kept.into_iter().map(|key| (key.clone(), before.object_json(key))).collect()
    };
    let history = Arc::make_mut(&mut state.history);
    history.insert(revision, Arc::new(HistoryRecord { revision, replaced, objects }));
    let mut keys = vec![ObjectKey::History(revision)];
    let mut held: usize = history.values().map(|record| record.replaced.len()).sum();
    while history.len() > HISTORY_RECORDS_MAX || held > HISTORY_OBJECTS_MAX {
        let Some((oldest, record)) = history.pop_first() else { break };
        held -= record.replaced.len();
        keys.push(ObjectKey::History(oldest));
    }
    keys
}

/// An object of the state as people name it: `connector/scanners`, `domain/corp.example`, `route/default`, `settings`.
/// A connector is meant with its ranges.
#[must_use]
pub fn names(object: &str, key: &ObjectKey) -> bool {
    let (kind, name) = object.split_once('/').unwrap_or((object, ""));
    match key {
        ObjectKey::Connector(found) | ObjectKey::AllowlistEntry(found, _) => kind == "connector" && found == name,
        ObjectKey::Domain(found) => kind == "domain" && found == name,
        ObjectKey::Route(found) => kind == "route" && found == name,
        ObjectKey::Settings => kind == "settings",
        _ => false,
    }
}

impl ClusterState {
    /// What the objects that changed after revision `to` were at `to`: the object, and its JSON then.
    ///
    /// # Errors
    /// The revision from which on the history is kept without a gap, when `to` is before it.
    pub fn as_of(&self, to: u64, object: Option<&str>) -> Result<BTreeMap<ObjectKey, Option<String>>, u64> {
        let oldest = self.history.keys().next().copied().unwrap_or(u64::MAX);
        let mut then = BTreeMap::new();
        let mut reach = oldest;
        // From the newest back: the last one written is the oldest value, which is the one at `to`.
        for record in self.history.range(to.saturating_add(1)..).rev().map(|(_, record)| record) {
            if !record.is_complete() {
                reach = reach.max(record.revision);
                break;
            }
            for (key, before) in &record.replaced {
                if object.is_none_or(|object| names(object, key)) {
                    then.insert(key.clone(), before.clone());
                }
            }
        }
        if to < reach { Err(reach) } else { Ok(then) }
    }
}

/// Makes objects what they were at revision `to`.
pub(super) fn roll_back(
    state: &mut ClusterState,
    command: &Command,
    revision: u64,
    to: u64,
    object: Option<&str>,
) -> Result<Done, Refusal> {
    let then = state.as_of(to, object).map_err(|oldest| {
        denied(
            "PH-HIST-001",
            format!("revision {to} cannot be restored"),
            format!("what came before revision {oldest} is not kept, or was one change of too many objects"),
            format!("posthousectl history list; the oldest that can be restored is {oldest}"),
        )
    })?;
    if then.is_empty() {
        return match object {
            Some(object) if !state.object_keys().iter().any(|key| names(object, key)) => {
                Err(not_found("PH-HIST-002", "object", object, "history list"))
            }
            _ => Ok(Done::default()),
        };
    }
    let before = state.clone();
    let mut touched = Vec::new();
    let mut connectors: BTreeSet<&str> = BTreeSet::new();
    for (key, value) in &then {
        if before.object_json(key) == *value {
            continue;
        }
        state.restore_json(key, value.as_deref(), revision).map_err(|error| {
            invalid("PH-HIST-001", format!("revision {to} cannot be restored"), error, "choose a newer revision")
        })?;
        // What only the client authorities of the settings tell apart stays as it is.
        if state.object_json(key) == before.object_json(key) {
            continue;
        }
        touched.push(key.clone());
        if let ObjectKey::Connector(name) | ObjectKey::AllowlistEntry(name, _) = key {
            connectors.insert(name);
        }
    }
    let mut warnings = Vec::new();
    for name in &connectors {
        let (Some(connector), entries) = (state.connectors.get(*name), state.allowlist.get(*name)) else { continue };
        let Some(entries) = entries.filter(|entries| !entries.is_empty()) else {
            return Err(invalid(
                "PH-CONN-004",
                format!("connector \"{name}\" would have no remote IP range"),
                "without one it could never take a connection",
                "roll back the connector as a whole, or to another revision",
            ));
        };
        check_connector(state, &connector.value)?;
        check_conflicts(state, &connector.value, entries)?;
        warnings.extend(guard(state, command, &connector.value, entries)?);
    }
    let gained = gains(&before, state, &connectors, command.at_ms);
    let gained = pass_gains(state, command, gained, &mut warnings)?;
    let what = match object {
        Some(object) => format!("rolled {object} back to revision {to}"),
        None => format!("rolled back to revision {to}"),
    };
    Ok(Done { touched, warnings, gains: gained, what, assigned: None })
}
