//! When two ranges cannot stand beside each other: on one binding, ranges must nest or stay apart, so that the most
//! specific one is always exactly one.

use std::fmt;

use super::range::{Relation, RemoteIpRange};
use super::receive::{Binding, ReceiveConnector};

/// Two ranges on one binding that are equal or overlap in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeConflict {
    /// One connector.
    pub connector_a: String,
    /// Its range.
    pub range_a: RemoteIpRange,
    /// The other connector, or the same.
    pub connector_b: String,
    /// Its range.
    pub range_b: RemoteIpRange,
    /// Where both listen.
    pub binding: Binding,
}

impl fmt::Display for RangeConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connector_a, range_a, connector_b, range_b, binding } = self;
        let how = match range_a.relation(range_b) {
            Relation::Equal => "are the same addresses",
            _ => "overlap in part; one must contain the other, or they must be apart",
        };
        if connector_a == connector_b {
            write!(f, "ranges {range_a} and {range_b} of connector {connector_a:?} on {binding} {how}")
        } else {
            write!(
                f,
                "range {range_a} of connector {connector_a:?} and range {range_b} of connector {connector_b:?} on \
                 {binding} {how}"
            )
        }
    }
}

/// Finds two ranges that conflict, among those of `connector` itself and between it and `others`, which must not
/// include it. A wildcard binding and one on a specific address are different bindings. Whether a connector is enabled
/// does not matter: enabling it must not be the step that fails. Takes n log n, and about n where the ranges come
/// sorted.
pub fn conflict<'a, R: AsRef<[RemoteIpRange]>>(
    connector: &'a ReceiveConnector,
    ranges: &[RemoteIpRange],
    others: impl IntoIterator<Item = (&'a ReceiveConnector, R)>,
) -> Option<RangeConflict> {
    let others: Vec<(&ReceiveConnector, R)> = others
        .into_iter()
        .filter(|(other, _)| other.bindings.iter().any(|binding| connector.bindings.contains(binding)))
        .collect();
    let mut checked: Vec<Vec<bool>> = Vec::new();
    for binding in &connector.bindings {
        let sharing: Vec<bool> = others.iter().map(|(other, _)| other.bindings.contains(binding)).collect();
        // The usual connectors have two bindings and share both with the same others: once is enough.
        if checked.contains(&sharing) {
            continue;
        }
        let neighbours = others.iter().zip(&sharing).filter(|(_, shares)| **shares).map(|(other, _)| other);
        let with_names =
            neighbours.flat_map(|(other, list)| list.as_ref().iter().map(|range| (*range, other.name.as_str())));
        let own = ranges.iter().map(|range| (*range, connector.name.as_str()));
        let all = with_names.chain(own).collect();
        if let Some(((range_a, connector_a), (range_b, connector_b))) = first_crossing(all) {
            return Some(RangeConflict {
                connector_a: connector_a.to_owned(),
                range_a,
                connector_b: connector_b.to_owned(),
                range_b,
                binding: *binding,
            });
        }
        checked.push(sharing);
    }
    None
}

type Owned<'a> = (RemoteIpRange, &'a str);

/// Sweeps the ranges from low to high, outer before inner, with the open ones on a stack.
fn first_crossing(mut all: Vec<Owned<'_>>) -> Option<(Owned<'_>, Owned<'_>)> {
    all.sort_by(|(a, _), (b, _)| a.first().cmp(&b.first()).then_with(|| b.last().cmp(&a.last())));
    let mut open: Vec<Owned<'_>> = Vec::new();
    for next in all {
        while let Some(around) = open.last() {
            match next.0.relation(&around.0) {
                Relation::Apart => {
                    open.pop();
                }
                Relation::Inside => break,
                Relation::Equal | Relation::Partial | Relation::Contains => return Some((*around, next)),
            }
        }
        open.push(next);
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn connector(name: &str, bindings: &[&str]) -> ReceiveConnector {
        let mut connector = ReceiveConnector::new(name);
        connector.bindings = bindings.iter().map(|text| text.parse().unwrap()).collect();
        connector
    }

    fn ranges(texts: &[&str]) -> Vec<RemoteIpRange> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn between(a: (&[&str], &[&str]), b: (&[&str], &[&str])) -> Option<RangeConflict> {
        let (one, other) = (connector("one", a.0), connector("other", b.0));
        conflict(&one, &ranges(a.1), [(&other, ranges(b.1))])
    }

    #[test]
    fn ranges_on_one_binding_nest_or_stay_apart() {
        let on: &[&str] = &["0.0.0.0:25"];
        assert_eq!(between((on, &["10.0.0.0/24", "10.0.0.7"]), (on, &["10.0.0.0/8", "10.0.1.0/24", "::/0"])), None);
        let equal = between((on, &["10.0.0.0/24"]), (on, &["10.0.0.0-10.0.0.255"])).unwrap();
        let words = equal.to_string();
        for word in ["\"one\"", "\"other\"", "10.0.0.0/24", "0.0.0.0:25", "same"] {
            assert!(words.contains(word), "{words}");
        }
        let partial = between((on, &["10.0.0.0/24"]), (on, &["10.0.0.128-10.0.1.5"])).unwrap().to_string();
        assert!(partial.contains("10.0.0.128-10.0.1.5") && partial.contains("in part"), "{partial}");
        // Far apart in the order of the sweep, with others in between.
        let long: &[&str] = &["10.0.0.0-10.9.0.0"];
        assert!(between((on, &["10.0.0.1", "10.3.0.0/16", "10.8.0.0-10.10.0.0"]), (on, long)).is_some());
    }

    #[test]
    fn other_ports_and_specific_addresses_are_other_bindings() {
        let all: &[&str] = &["10.0.0.0/24"];
        assert_eq!(between((&["0.0.0.0:25"], all), (&["0.0.0.0:587"], all)), None);
        assert_eq!(between((&["0.0.0.0:25"], all), (&["10.9.9.9:25"], all)), None);
        assert_eq!(between((&["0.0.0.0:25"], all), (&["[::]:25"], all)), None);
        assert!(between((&["10.9.9.9:25", "0.0.0.0:587"], all), (&["[::]:25", "0.0.0.0:587"], all)).is_some());
    }

    #[test]
    fn one_connector_may_not_cross_itself_and_disabled_ones_count() {
        let one = connector("one", &["0.0.0.0:25"]);
        let none: [(&ReceiveConnector, Vec<RemoteIpRange>); 0] = [];
        let twice = conflict(&one, &ranges(&["10.0.0.7", "10.0.0.0/24", "10.0.0.7"]), none).unwrap();
        assert!(twice.to_string().starts_with("ranges 10.0.0.7 and 10.0.0.7 of connector \"one\""), "{twice}");
        let mut off = connector("off", &["0.0.0.0:25"]);
        off.enabled = false;
        assert!(conflict(&one, &ranges(&["10.0.0.7"]), [(&off, ranges(&["10.0.0.7"]))]).is_some());
    }
}
