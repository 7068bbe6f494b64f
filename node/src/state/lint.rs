//! What an administrator should look at again: ranges that are too wide, that contain our own machines, that have
//! expired or add nothing; and which connectors lie inside which.

use std::collections::BTreeSet;

use super::connectors::own_addresses;
use super::{AllowlistEntry, ClusterState, Entries};
use crate::connector::{Binding, ReceiveConnector, RemoteIpRange};

/// How many findings an answer lists; the rest is counted.
pub const SHOWN_MAX: usize = 1000;
/// A /24: what one floor of printers needs.
const WIDE: u128 = 256;
/// A device picks its address in a /64 freely (RFC 4291 §2.5.4), so that one device has all of it.
const WIDE_V6: u128 = 1 << 64;
/// Two weeks are enough to ask for more time.
const SOON_MS: i64 = 14 * 24 * 60 * 60 * 1000;

/// What is wrong with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// Strangers from more than a /24 may relay.
    TooWide,
    /// It contains a front or node, and strangers there may relay.
    OwnAddress,
    /// It grants nothing any more.
    Expired,
    /// It will soon grant nothing.
    Expiring,
    /// A wider range of the same connector grants the same.
    Redundant,
}

impl Problem {
    /// The word in answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooWide => "too_wide",
            Self::OwnAddress => "own_address",
            Self::Expired => "expired",
            Self::Expiring => "expiring",
            Self::Redundant => "redundant",
        }
    }
}

/// One range that deserves a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its connector.
    pub connector: String,
    /// The range.
    pub range: RemoteIpRange,
    /// What is wrong.
    pub problem: Problem,
    /// The facts.
    pub detail: String,
    /// What to do.
    pub fix: String,
}

/// One range of a connector inside one of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Connector and range.
    pub inner: (String, RemoteIpRange),
    /// Connector and range.
    pub outer: (String, RemoteIpRange),
    /// Where both listen.
    pub binding: Binding,
    /// What the inner one changes.
    pub effect: String,
}

/// Looks at every range, or at those of one connector.
#[must_use]
pub fn allowlist(state: &ClusterState, only: Option<&str>, now_ms: i64) -> Vec<Finding> {
    let own = own_addresses(state);
    let mut findings = Vec::new();
    for (name, entries) in state.allowlist.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        let Some(connector) = state.connectors.get(name).map(|found| &*found.value) else { continue };
        let relays = connector.relays_anonymously();
        // Ranges around the one at hand, outermost first: they come in order.
        let mut around: Vec<&AllowlistEntry> = Vec::new();
        for entry in outer_first(entries) {
            around.retain(|outer| entry.range.is_within(&outer.range));
            let mut note = |problem: Problem, detail: String, fix: String| {
                findings.push(Finding { connector: name.clone(), range: entry.range, problem, detail, fix });
            };
            let remove = || format!("posthousectl allowlist remove {} {}", shell(name), entry.range);
            let wide = if entry.range.is_v4() { WIDE } else { WIDE_V6 };
            if relays && entry.range.size() > wide {
                let detail = format!("strangers at {} addresses may send to anyone", entry.range.size());
                note(Problem::TooWide, detail, "list the devices, or the networks that hold nothing else".to_owned());
            }
            if relays && let Some(address) = own.iter().find(|address| entry.range.contains(**address)) {
                let detail = format!("it contains {address}, a front or node");
                note(Problem::OwnAddress, detail, "list what lies on either side of it".to_owned());
            }
            match entry.expires_at_ms {
                Some(at) if at <= now_ms => {
                    note(Problem::Expired, "it still matches and grants nothing".to_owned(), remove());
                }
                Some(at) if at <= now_ms.saturating_add(SOON_MS) => {
                    let days = (at - now_ms) / 86_400_000;
                    let fix = format!("posthousectl allowlist add {} {} --expires 90d", shell(name), entry.range);
                    note(Problem::Expiring, format!("it grants nothing from in {days} days on"), fix);
                }
                _ => {}
            }
            if let Some(outer) = around.last().filter(|outer| outer.expires_at_ms == entry.expires_at_ms)
                && !separated(state, connector, &entry.range, &outer.range)
            {
                note(Problem::Redundant, format!("{} of the same connector grants the same", outer.range), remove());
            }
            around.push(entry);
        }
    }
    findings
}

/// Whether a range of another connector lies between two of this one, so that the inner one brings addresses back.
fn separated(state: &ClusterState, connector: &ReceiveConnector, inner: &RemoteIpRange, outer: &RemoteIpRange) -> bool {
    let others = state.connectors.values().map(|found| &found.value).filter(|other| other.name != connector.name);
    let sharing = others.filter(|other| other.bindings.iter().any(|binding| connector.bindings.contains(binding)));
    sharing
        .filter_map(|other| state.allowlist.get(&other.name)?.around(inner))
        .any(|between| between.value.range.is_within(outer))
}

/// The entries with outer ranges before those inside them.
fn outer_first(entries: &Entries) -> impl Iterator<Item = &AllowlistEntry> {
    let mut all: Vec<&AllowlistEntry> = entries.values().map(|entry| &entry.value).collect();
    // Ranges are in the order of first, then last address: of those that begin alike the widest must come first.
    all.sort_by(|a, b| a.range.first().cmp(&b.range.first()).then_with(|| b.range.last().cmp(&a.range.last())));
    all.into_iter()
}

/// Every range of one connector that lies inside one of another on the same binding, with the closest one around it.
#[must_use]
pub fn overlaps(state: &ClusterState) -> Vec<Overlap> {
    let connectors: Vec<&ReceiveConnector> = state.connectors.values().map(|found| &*found.value).collect();
    let mut found = Vec::new();
    for inner in &connectors {
        let mut seen: BTreeSet<(RemoteIpRange, &str)> = BTreeSet::new();
        for binding in &inner.bindings {
            let others: Vec<_> = connectors
                .iter()
                .filter(|other| other.name != inner.name && other.bindings.contains(binding))
                .filter_map(|other| Some((*other, state.allowlist.get(&other.name)?)))
                .collect();
            for entry in state.ranges_of(&inner.name) {
                let around = others.iter().filter_map(|(other, list)| Some((*other, list.around(&entry.range)?)));
                let Some((outer, outer_entry)) = around.min_by_key(|(_, entry)| entry.value.range.size()) else {
                    continue;
                };
                if seen.insert((entry.range, outer.name.as_str())) {
                    found.push(Overlap {
                        inner: (inner.name.clone(), entry.range),
                        outer: (outer.name.clone(), outer_entry.value.range),
                        binding: *binding,
                        effect: effect(inner, outer),
                    });
                }
            }
        }
    }
    found
}

fn effect(inner: &ReceiveConnector, outer: &ReceiveConnector) -> String {
    let words = |yes: bool| if yes { "may relay" } else { "may not relay" };
    if !inner.enabled {
        return format!("none: {:?} is disabled, so {:?} takes them", inner.name, outer.name);
    }
    match (inner.relays_anonymously(), outer.relays_anonymously()) {
        (inner, outer) if inner == outer => format!("strangers {} by either", words(inner)),
        (inner, outer) => format!("strangers {} here and {} around it", words(inner), words(outer)),
    }
}

/// A name as a shell takes it.
fn shell(name: &str) -> String {
    if name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) && !name.starts_with('-') {
        name.to_owned()
    } else {
        format!("'{}'", name.replace('\'', r"'\''"))
    }
}
