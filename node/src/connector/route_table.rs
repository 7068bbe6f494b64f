//! Which send connector takes a letter: by the recipient's domain first, then by who sent it and which receive
//! connector took it, then by cost.

use std::collections::HashMap;
use std::sync::Arc;

use super::send::{AddressSpace, SendConnector};
use super::sender::SenderRule;
use crate::mail::{Domain, ReversePath};

/// What a letter is chosen by.
#[derive(Clone, Copy, Debug)]
pub struct LetterFacts<'a> {
    /// The recipient's domain.
    pub domain: &'a Domain,
    /// The sender.
    pub sender: &'a ReversePath,
    /// The receive connector that took it.
    pub connector: &'a str,
}

/// Picks the send connector of a letter. Immutable.
#[derive(Debug, Default)]
pub struct RouteTable {
    exact: HashMap<String, Vec<Arc<SendConnector>>>,
    subdomains: HashMap<String, Vec<Arc<SendConnector>>>,
    all: Vec<Arc<SendConnector>>,
}

impl RouteTable {
    /// Builds the table from every send connector; disabled ones are left out.
    pub fn build(routes: impl IntoIterator<Item = Arc<SendConnector>>) -> Self {
        let mut routes: Vec<_> = routes.into_iter().filter(|route| route.enabled).collect();
        // Among equals the first that takes the letter wins: one that asks for more first, then the lowest cost, then
        // the smallest name.
        routes.sort_by(|a, b| {
            let order = |route: &SendConnector| (std::cmp::Reverse(conditions(route)), route.cost);
            order(a).cmp(&order(b)).then_with(|| a.name.cmp(&b.name))
        });
        let mut table = Self::default();
        for route in routes {
            for space in &route.address_spaces {
                let list = match space {
                    AddressSpace::All => &mut table.all,
                    AddressSpace::Subdomains(parent) => table.subdomains.entry(parent.as_str().to_owned()).or_default(),
                    AddressSpace::Exact(domain) => table.exact.entry(domain.as_str().to_owned()).or_default(),
                };
                list.push(Arc::clone(&route));
            }
        }
        table
    }

    /// Finds the send connector with the most specific address space that takes this letter: the exact domain, then
    /// the closest parent with subdomains, then `*`. Among equals one that names senders or receive connectors comes
    /// before one that takes any, then the lowest cost, then the smallest name.
    #[must_use]
    pub fn find(&self, letter: LetterFacts<'_>) -> Option<&Arc<SendConnector>> {
        self.candidates(letter.domain).find(|route| takes(route, letter))
    }

    /// Whether some send connector takes letters for `domain`, whoever sends them.
    #[must_use]
    pub fn covers(&self, domain: &Domain) -> bool {
        self.candidates(domain).any(|route| conditions(route) == 0)
    }

    /// Every send connector whose address space has `domain`, the most specific first.
    fn candidates(&self, domain: &Domain) -> impl Iterator<Item = &Arc<SendConnector>> {
        let name = if domain.is_literal() { "" } else { domain.as_str() };
        let first = (!name.is_empty()).then_some(name);
        let parents = std::iter::successors(first, |rest| rest.split_once('.').map(|(_, parent)| parent));
        let exact = self.exact.get(name).into_iter().flatten();
        let subdomains = parents.filter_map(|parent| self.subdomains.get(parent)).flatten();
        exact.chain(subdomains).chain(&self.all)
    }
}

/// How many kinds of letters a send connector tells apart beside the domain.
fn conditions(route: &SendConnector) -> usize {
    usize::from(!route.senders.is_empty()) + usize::from(!route.connectors.is_empty())
}

fn takes(route: &SendConnector, letter: LetterFacts<'_>) -> bool {
    (route.senders.is_empty() || SenderRule::matches(&route.senders, letter.sender))
        && (route.connectors.is_empty()
            || route.connectors.iter().any(|name| name.eq_ignore_ascii_case(letter.connector)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn route(name: &str, cost: u32, spaces: &[&str]) -> SendConnector {
        let mut route = SendConnector::new(name);
        route.cost = cost;
        route.address_spaces = spaces.iter().map(|text| text.parse().unwrap()).collect();
        route.smart_hosts = vec!["hub.corp.example".parse().unwrap()];
        route.check().unwrap();
        route
    }

    fn table(routes: impl IntoIterator<Item = SendConnector>) -> RouteTable {
        RouteTable::build(routes.into_iter().map(Arc::new))
    }

    fn winner_of<'a>(table: &'a RouteTable, domain: &str, sender: &str, connector: &str) -> Option<&'a str> {
        let (domain, sender) = (Domain::parse(domain).unwrap(), ReversePath::parse_path(sender).unwrap());
        let letter = LetterFacts { domain: &domain, sender: &sender, connector };
        table.find(letter).map(|route| route.name.as_str())
    }

    fn winner<'a>(table: &'a RouteTable, domain: &str) -> Option<&'a str> {
        winner_of(table, domain, "<a@corp.example>", "default")
    }

    #[test]
    fn the_most_specific_address_space_wins_then_cost_then_name() {
        let table = table([
            route("default", 1, &["*"]),
            route("backup", 2, &["*", "*.corp.example"]),
            route("corp", 5, &["*.corp.example"]),
            route("lab", 100, &["*.lab.corp.example"]),
            route("host-b", 7, &["mx.lab.corp.example"]),
            route("host-a", 7, &["mx.lab.corp.example"]),
        ]);
        for (domain, expected) in [
            ("mx.lab.corp.example", "host-a"),
            ("other.lab.corp.example", "lab"),
            ("lab.corp.example", "lab"),
            ("corp.example", "backup"),
            ("a.b.corp.example", "backup"),
            ("xcorp.example", "default"),
            ("[192.0.2.1]", "default"),
        ] {
            assert_eq!(winner(&table, domain), Some(expected), "{domain}");
        }
    }

    #[test]
    fn a_disabled_route_takes_nothing_and_no_route_is_no_answer() {
        let mut disabled = route("default", 1, &["*"]);
        disabled.enabled = false;
        assert_eq!(winner(&table([disabled]), "corp.example"), None);
        assert_eq!(winner(&table([route("corp", 1, &["corp.example"])]), "sub.corp.example"), None);
    }

    #[test]
    fn senders_and_receive_connectors_choose_among_equal_address_spaces() {
        let by = |name: &str, senders: &[&str], connectors: &[&str]| {
            let mut route = route(name, 50, &["*"]);
            route.senders = senders.iter().map(|text| text.parse().unwrap()).collect();
            route.connectors = connectors.iter().map(|&name| name.to_owned()).collect();
            route
        };
        let table = table([
            route("default", 1, &["*"]),
            route("partner", 1, &["partner.example"]),
            by("erp", &["@erp.example", "boss@corp.example"], &[]),
            by("scanners", &[], &["scanners"]),
            by("erp-scanners", &["@erp.example"], &["scanners"]),
        ]);
        for (domain, sender, connector, expected) in [
            ("x.example", "<a@corp.example>", "default", "default"),
            ("x.example", "<a@erp.example>", "default", "erp"),
            ("x.example", "<BOSS@corp.example>", "default", "erp"),
            ("x.example", "<a@corp.example>", "Scanners", "scanners"),
            ("x.example", "<a@erp.example>", "scanners", "erp-scanners"),
            ("x.example", "<>", "default", "default"),
            // The domain is the more specific choice.
            ("partner.example", "<a@erp.example>", "scanners", "partner"),
        ] {
            assert_eq!(winner_of(&table, domain, sender, connector), Some(expected), "{domain} {sender} {connector}");
        }
    }

    #[test]
    fn a_domain_is_covered_only_by_a_route_that_takes_everybody() {
        let mut some = route("some", 1, &["*"]);
        some.senders = vec!["@corp.example".parse().unwrap()];
        let domain = Domain::parse("x.example").unwrap();
        assert!(!table([some.clone()]).covers(&domain));
        assert!(table([some, route("default", 1, &["*"])]).covers(&domain));
    }
}
