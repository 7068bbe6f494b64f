//! Changes of receive connectors and their ranges: ranges nest or stay apart, nobody opens a relay by accident, and
//! whoever would gain relay by a change is named.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::apply::{Done, check_put, check_revision, delete, one, put};
use super::gains::{Gains, gains};
use super::refusals::{denied, invalid, not_found};
use super::{AllowlistEntry, ClusterState, Command, Entries, Member, NEVER_MS, ObjectKey, Refusal, Versioned};
use crate::connector::{self, RangeConflict, ReceiveConnector, RemoteIpRange};

/// The most receive connectors of a cluster.
pub const CONNECTORS_MAX: usize = 10_000;
/// The most ranges of all connectors together. A node holds each of them in memory.
pub const ALLOWLIST_ENTRIES_MAX: usize = 2_000_000;

pub(super) fn put_connector(
    state: &mut ClusterState,
    command: &Command,
    revision: u64,
    create: bool,
    connector: &ReceiveConnector,
    ranges: Option<&[RemoteIpRange]>,
) -> Result<Done, Refusal> {
    let name = &connector.name;
    let found = state.connectors.get(name);
    check_put(found, command, create, "connector", name, ("PH-CONN-001", "PH-CONN-002", "connector"))?;
    check_connector(state, connector)?;
    if create && state.connectors.len() >= CONNECTORS_MAX {
        return Err(denied(
            "PH-CONN-006",
            "the cluster has as many connectors as it may have",
            format!("{CONNECTORS_MAX} are the limit"),
            "delete one that is not used, or put the addresses into one that has the same settings",
        ));
    }
    let old = state.allowlist.get(name).cloned().unwrap_or_default();
    let mut entries = old.clone();
    let mut touched = Vec::new();
    let mut added = Vec::new();
    if let Some(ranges) = ranges {
        let wanted: BTreeSet<RemoteIpRange> = ranges.iter().copied().collect();
        let gone: Vec<RemoteIpRange> = old.keys().filter(|range| !wanted.contains(range)).copied().collect();
        for range in &gone {
            entries.remove(range);
        }
        added.extend(wanted.into_iter().filter(|range| !old.contains_key(range)));
        touched.extend(gone.iter().chain(&added).map(|range| ObjectKey::AllowlistEntry(name.clone(), *range)));
    }
    let same_bindings = found.is_some_and(|found| found.value.bindings == connector.bindings);
    if same_bindings {
        add_ranges(state, connector, &mut entries, added.into_iter().map(|range| new_entry(range, command)), revision)?;
    } else {
        for range in added {
            entries.insert(Versioned { revision, value: new_entry(range, command) });
        }
        check_conflicts(state, connector, &entries)?;
    }
    if entries.is_empty() {
        return Err(invalid(
            "PH-CONN-004",
            format!("connector \"{name}\" has no remote IP range"),
            "without one it could never take a connection",
            "name at least one with --remote-ip-ranges",
        ));
    }
    let grows = entries.keys().any(|range| !old.contains_key(range));
    let differs = found.is_none_or(|found| *found.value != *connector);
    let mut warnings = if grows || differs { guard(state, command, connector, &entries)? } else { Vec::new() };
    let before = state.clone();
    if differs {
        put(&mut state.connectors, revision, name.clone(), Arc::new(connector.clone()));
        touched.push(ObjectKey::Connector(name.clone()));
    }
    if !Arc::ptr_eq(&before.connectors, &state.connectors) || !touched.is_empty() {
        Arc::make_mut(&mut state.allowlist).insert(name.clone(), entries);
    }
    check_total(state)?;
    // What the connector itself grants was asked for and has passed the guard; who falls to another one is news.
    let lost = gains(&before, state, &BTreeSet::from([name.as_str()]), command.at_ms).without(name);
    let gained = pass_gains(state, command, lost, &mut warnings)?;
    let verb = if create { "created" } else { "changed" };
    Ok(Done { touched, warnings, gains: gained, what: format!("{verb} connector {name}"), assigned: None })
}

/// What the connector alone, and the certificates, can tell.
pub(super) fn check_connector(state: &ClusterState, connector: &ReceiveConnector) -> Result<(), Refusal> {
    connector.check().map_err(|error| {
        let message = format!("connector \"{}\" is not valid", connector.name);
        invalid("PH-CONN-003", message, error, "change the setting that is named")
    })?;
    match &connector.tls_certificate_name {
        Some(certificate) if !certificate.starts_with("<I>") && !state.certificates.contains_key(certificate) => {
            Err(not_found("PH-TLS-001", "certificate", certificate, "tls list"))
        }
        _ => Ok(()),
    }
}

fn new_entry(range: RemoteIpRange, command: &Command) -> AllowlistEntry {
    AllowlistEntry {
        range,
        note: String::new(),
        owner: String::new(),
        ticket: String::new(),
        expires_at_ms: None,
        created_by: command.who.clone(),
        created_at_ms: command.at_ms,
    }
}

fn conflict_refused(conflict: &RangeConflict) -> Refusal {
    invalid(
        "PH-CONN-005",
        "remote IP ranges must nest or stay apart",
        conflict,
        "narrow or remove one of the two ranges, or give the connectors different bindings",
    )
}

/// Looks at all ranges of a connector and of those that share a binding with it.
pub(super) fn check_conflicts(
    state: &ClusterState,
    connector: &ReceiveConnector,
    entries: &Entries,
) -> Result<(), Refusal> {
    let own: Vec<RemoteIpRange> = entries.keys().copied().collect();
    let others = state.connectors.values().filter(|other| other.value.name != connector.name).map(|other| {
        let ranges: Vec<RemoteIpRange> = state.ranges_of(&other.value.name).map(|entry| entry.range).collect();
        (other.value.as_ref(), ranges)
    });
    match connector::conflict(connector, &own, others) {
        Some(conflict) => Err(conflict_refused(&conflict)),
        None => Ok(()),
    }
}

/// Puts new ranges among `entries`, each compared with its neighbours only: the others nest or stay apart already.
fn add_ranges(
    state: &ClusterState,
    connector: &ReceiveConnector,
    entries: &mut Entries,
    added: impl Iterator<Item = AllowlistEntry>,
    revision: u64,
) -> Result<(), Refusal> {
    let sharing: Vec<_> = state
        .connectors
        .values()
        .map(|other| &other.value)
        .filter(|other| other.name != connector.name)
        .filter_map(|other| {
            let binding = other.bindings.iter().find(|binding| connector.bindings.contains(binding))?;
            Some((&other.name, *binding, state.allowlist.get(&other.name)?))
        })
        .collect();
    for entry in added {
        let range = entry.range;
        let own = connector.bindings.first().map(|binding| (&connector.name, *binding, &*entries));
        let crossed = own
            .into_iter()
            .chain(sharing.iter().copied())
            .find_map(|(name, binding, ranges)| Some((name, binding, ranges.crossing(&range)?)));
        if let Some((other, binding, found)) = crossed {
            return Err(conflict_refused(&RangeConflict {
                connector_a: other.clone(),
                range_a: found,
                connector_b: connector.name.clone(),
                range_b: range,
                binding,
            }));
        }
        entries.insert(Versioned { revision, value: entry });
    }
    Ok(())
}

/// The open-relay guard over all ranges of a connector.
pub(super) fn guard(
    state: &ClusterState,
    command: &Command,
    connector: &ReceiveConnector,
    entries: &Entries,
) -> Result<Vec<String>, Refusal> {
    if !connector.relays_anonymously() {
        return Ok(Vec::new());
    }
    let ranges: Vec<RemoteIpRange> = entries.keys().copied().collect();
    guard_ranges(state, command, connector, &ranges)
}

fn guard_ranges(
    state: &ClusterState,
    command: &Command,
    connector: &ReceiveConnector,
    ranges: &[RemoteIpRange],
) -> Result<Vec<String>, Refusal> {
    let limit = u128::from(state.settings.relay_addresses_max);
    match connector::open_relay_guard(connector, ranges, &own_addresses(state), limit) {
        Ok(()) => Ok(Vec::new()),
        Err(refused) if command.accept_risk && !command.reason.is_empty() => {
            Ok(vec![format!("open-relay guard overridden: {refused}")])
        }
        Err(refused) => Err(denied(
            "PH-ALLOW-007",
            "these ranges would make an open relay",
            refused,
            "narrow the ranges, or accept it on record: --accept-risk --reason TEXT",
        )),
    }
}

/// Lets those who gain relay pass the guard as if they were listed anew where they fall to, and names them.
pub(super) fn pass_gains(
    state: &ClusterState,
    command: &Command,
    gains: Gains,
    warnings: &mut Vec<String>,
) -> Result<Vec<super::RelayGain>, Refusal> {
    for (name, ranges) in gains.by_winner() {
        if let Some(connector) = state.connectors.get(name) {
            warnings.extend(guard_ranges(state, command, &connector.value, &ranges)?);
        }
    }
    warnings.extend(gains.in_words());
    Ok(gains.shown())
}

/// The addresses of our own fronts and nodes: whoever relays for one of them relays for everybody behind it. A node on
/// loopback is a cluster on one machine, where every device has that address too.
pub(super) fn own_addresses(state: &ClusterState) -> Vec<IpAddr> {
    let fronts = state.fronts.values().flat_map(|front| front.value.source_addresses.iter().copied());
    let nodes = state.members.values().flat_map(|member| addresses_of(&member.value));
    fronts.filter(|address| !address.is_unspecified()).chain(nodes).collect()
}

/// The addresses by which a node is dialled, where they are addresses and not names.
fn addresses_of(member: &Member) -> Vec<IpAddr> {
    let dialled = std::iter::once(&member.rpc_address).chain(member.services.iter().map(|service| &service.address));
    let parsed = dialled.filter_map(|address| address.parse::<SocketAddr>().ok()).map(|address| address.ip());
    let found: BTreeSet<IpAddr> =
        parsed.filter(|address| !address.is_unspecified() && !address.to_canonical().is_loopback()).collect();
    found.into_iter().collect()
}

/// A new front must not dial from an address that a connector lets relay: its unsigned neighbours would relay too.
pub(super) fn refuse_addresses_that_relay(
    state: &ClusterState,
    addresses: &[IpAddr],
    who: &str,
) -> Result<(), Refusal> {
    match relaying(state, addresses).next() {
        None => Ok(()),
        Some((connector, refused)) => Err(denied(
            "PH-FRONT-002",
            format!("{who} dials from an address that may relay"),
            refused,
            format!("take the address out of connector \"{connector}\" first"),
        )),
    }
}

/// A node is not kept out for where it stands, but somebody should know that it may relay as a stranger.
pub(super) fn warn_of_addresses_that_relay(state: &ClusterState, member: &Member) -> Vec<String> {
    let addresses = addresses_of(member);
    let found = relaying(state, &addresses);
    found.map(|(_, refused)| format!("node \"{}\" has an address that may relay: {refused}", member.name)).collect()
}

/// The connectors that let one of `addresses` relay, each with the guard's words for it.
fn relaying<'a>(
    state: &'a ClusterState,
    addresses: &'a [IpAddr],
) -> impl Iterator<Item = (&'a str, connector::GuardRefusal)> {
    let relays = state.connectors.values().map(|found| &found.value).filter(|found| found.relays_anonymously());
    relays.filter_map(move |connector| {
        let entries = state.allowlist.get(&connector.name)?;
        addresses.iter().find_map(|address| {
            let range = entries.around(&RemoteIpRange::single(*address))?.value.range;
            let connector_name = connector.name.clone();
            let refused = connector::GuardRefusal::OwnAddress { connector: connector_name, range, address: *address };
            Some((connector.name.as_str(), refused))
        })
    })
}

pub(super) fn delete_connector(state: &mut ClusterState, command: &Command, name: &str) -> Result<Done, Refusal> {
    let before = state.clone();
    delete(&mut state.connectors, command, name, "connector", "PH-CONN-001", "connector list")?;
    let mut done = one(ObjectKey::Connector(name.to_owned()), format!("deleted connector {name}"));
    if let Some(entries) = Arc::make_mut(&mut state.allowlist).remove(name) {
        done.touched.extend(entries.keys().map(|range| ObjectKey::AllowlistEntry(name.to_owned(), *range)));
    }
    for credential in state.credentials.values().filter(|found| found.value.connectors.iter().any(|c| c == name)) {
        done.warnings.push(format!("credential \"{}\" was limited to it", credential.value.user));
    }
    let gained = gains(&before, state, &BTreeSet::from([name]), command.at_ms);
    done.gains = pass_gains(state, command, gained, &mut done.warnings)?;
    Ok(done)
}

pub(super) fn add_allowlist_entries(
    state: &mut ClusterState,
    command: &Command,
    revision: u64,
    name: &str,
    added: &[AllowlistEntry],
) -> Result<Done, Refusal> {
    let Some(connector) = state.connectors.get(name) else {
        return Err(not_found("PH-CONN-001", "connector", name, "connector list"));
    };
    check_revision(Some(connector), command, "connector", name)?;
    let connector = Arc::clone(&connector.value);
    let mut entries = state.allowlist.get(name).cloned().unwrap_or_default();
    let mut touched = Vec::new();
    let (mut fresh, mut again) = (Vec::new(), Vec::new());
    for entry in added {
        touched.push(ObjectKey::AllowlistEntry(name.to_owned(), entry.range));
        if let Some(before) = entries.get(&entry.range) {
            let value = renewed(&before.value, entry);
            entries.insert(Versioned { revision, value });
            again.push(entry.range);
        } else {
            fresh.push(AllowlistEntry { expires_at_ms: until(entry.expires_at_ms), ..entry.clone() });
        }
    }
    let mut warnings = Vec::new();
    if !again.is_empty() {
        let verb = if again.len() == 1 { "was" } else { "were" };
        let ranges = list(again.iter().copied());
        warnings.push(format!("{ranges} {verb} listed already; what was given is new, the rest stays"));
    }
    let grows = !fresh.is_empty();
    add_ranges(state, &connector, &mut entries, fresh.into_iter(), revision)?;
    if grows {
        warnings.extend(guard(state, command, &connector, &entries)?);
    }
    Arc::make_mut(&mut state.allowlist).insert(name.to_owned(), entries);
    check_total(state)?;
    let what = format!("added {} to connector {name}", list(added.iter().map(|entry| entry.range)));
    Ok(Done { touched, warnings, what, ..Done::default() })
}

/// An expiry of [`NEVER_MS`] is none.
fn until(expires_at_ms: Option<i64>) -> Option<i64> {
    expires_at_ms.filter(|at| *at != NEVER_MS)
}

/// An entry that is added again: what is said of it is new, what is not stays, and so does who made it.
fn renewed(before: &AllowlistEntry, entry: &AllowlistEntry) -> AllowlistEntry {
    let said = |new: &String, old: &String| if new.is_empty() { old.clone() } else { new.clone() };
    AllowlistEntry {
        note: said(&entry.note, &before.note),
        owner: said(&entry.owner, &before.owner),
        ticket: said(&entry.ticket, &before.ticket),
        expires_at_ms: entry.expires_at_ms.map_or(before.expires_at_ms, |at| until(Some(at))),
        ..before.clone()
    }
}

fn check_total(state: &ClusterState) -> Result<(), Refusal> {
    let total: usize = state.allowlist.values().map(Entries::len).sum();
    if total <= ALLOWLIST_ENTRIES_MAX {
        return Ok(());
    }
    Err(denied(
        "PH-ALLOW-009",
        "the cluster would have more ranges than it may have",
        format!("{total} ranges together; {ALLOWLIST_ENTRIES_MAX} are the limit, because every node holds all of them"),
        "write neighbouring addresses as one range, or remove what is not used",
    ))
}

pub(super) fn remove_allowlist_entries(
    state: &mut ClusterState,
    command: &Command,
    name: &str,
    removed: &[RemoteIpRange],
) -> Result<Done, Refusal> {
    let Some(connector) = state.connectors.get(name) else {
        return Err(not_found("PH-CONN-001", "connector", name, "connector list"));
    };
    check_revision(Some(connector), command, "connector", name)?;
    let before = state.clone();
    let mut entries = state.allowlist.get(name).cloned().unwrap_or_default();
    let mut touched = Vec::new();
    for range in removed {
        if entries.remove(range).is_none() {
            let noun = format!("range of connector \"{name}\"");
            return Err(not_found("PH-ALLOW-001", &noun, &range.to_string(), &format!("allowlist list {name}")));
        }
        touched.push(ObjectKey::AllowlistEntry(name.to_owned(), *range));
    }
    if entries.is_empty() {
        return Err(invalid(
            "PH-CONN-004",
            format!("connector \"{name}\" would have no remote IP range left"),
            "without one it could never take a connection",
            "disable or delete the connector instead",
        ));
    }
    Arc::make_mut(&mut state.allowlist).insert(name.to_owned(), entries);
    let mut warnings = Vec::new();
    let gained = super::gains::gains_of(&before, state, name, removed, command.at_ms);
    let gained = pass_gains(state, command, gained, &mut warnings)?;
    let what = format!("removed {} from connector {name}", list(removed.iter().copied()));
    Ok(Done { touched, warnings, gains: gained, what, assigned: None })
}

/// The first few ranges in words; an import of a million must not make an audit record of megabytes.
fn list(ranges: impl ExactSizeIterator<Item = RemoteIpRange>) -> String {
    const SHOWN: usize = 8;
    let count = ranges.len();
    let mut words: Vec<String> = ranges.take(SHOWN).map(|range| range.to_string()).collect();
    if count > SHOWN {
        words.push(format!("and {} more", count - SHOWN));
    }
    words.join(", ")
}
