//! The immutable picture of the state that the data path reads: the state itself, and the look-up structures made
//! from it once per change.

use std::sync::Arc;

use super::{AcceptedDomain, ClusterState, Versioned};
use crate::connector::{AllowlistRange, ConnectorTable, DomainKind, Domains, RouteTable};
use crate::mail::Domain;

/// The state at one revision, ready to be asked. Published by the raft room alone; everybody may read it.
#[derive(Debug)]
pub struct StateView {
    /// Log index of the last change applied.
    pub revision: u64,
    /// The objects.
    pub state: ClusterState,
    /// Which connector takes a connection.
    pub table: Arc<ConnectorTable>,
    /// Which route takes a letter.
    pub routes: Arc<RouteTable>,
}

impl StateView {
    /// Makes the picture of `state`. Structures of `previous` whose objects did not change are kept.
    #[must_use]
    pub fn build(state: ClusterState, revision: u64, previous: Option<&Self>) -> Self {
        let table = match previous {
            Some(old)
                if Arc::ptr_eq(&old.state.connectors, &state.connectors)
                    && Arc::ptr_eq(&old.state.allowlist, &state.allowlist) =>
            {
                Arc::clone(&old.table)
            }
            _ => Arc::new(build_table(&state)),
        };
        let routes = match previous {
            Some(old) if Arc::ptr_eq(&old.state.routes, &state.routes) => Arc::clone(&old.routes),
            _ => Arc::new(RouteTable::build(state.routes.values().map(|route| Arc::clone(&route.value)))),
        };
        Self { revision, state, table, routes }
    }

    /// Finds the accepted domain that covers `domain`: the exact name first, then the closest parent with subdomains.
    #[must_use]
    pub fn accepted_domain(&self, domain: &Domain) -> Option<&AcceptedDomain> {
        let name = domain.as_str();
        if let Some(Versioned { value, .. }) = self.state.domains.get(name) {
            return Some(value);
        }
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(Versioned { value, .. }) = self.state.domains.get(parent)
                && value.with_subdomains
            {
                return Some(value);
            }
            rest = parent;
        }
        None
    }
}

impl Domains for StateView {
    fn accepted(&self, domain: &Domain) -> Option<DomainKind> {
        self.accepted_domain(domain).map(|found| found.kind)
    }
}

fn build_table(state: &ClusterState) -> ConnectorTable {
    let with_ranges: Vec<_> = state
        .connectors
        .values()
        .map(|connector| {
            let ranges: Vec<AllowlistRange> = state
                .ranges_of(&connector.value.name)
                .map(|entry| AllowlistRange { range: entry.range, expires_at_ms: entry.expires_at_ms })
                .collect();
            (Arc::clone(&connector.value), ranges)
        })
        .collect();
    ConnectorTable::build(with_ranges)
}
