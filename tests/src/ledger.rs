//! What was promised, matched with what arrived: the only judge of "nothing is lost".

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster::TestCluster;
use crate::wait::until;

/// Ids that were answered `250` after the mail data.
#[derive(Default)]
pub struct Ledger {
    promised: Vec<String>,
}

impl Ledger {
    pub fn promise(&mut self, id: String) {
        self.promised.push(id);
    }

    pub fn promised(&self) -> usize {
        self.promised.len()
    }

    /// Waits until every promised letter lies in the sink. Answers how many arrived more than once.
    #[track_caller]
    pub fn settle(&self, cluster: &TestCluster, deadline: Duration) -> usize {
        let mut missing = Vec::new();
        let began = std::time::Instant::now();
        until(deadline + Duration::from_secs(1), "the ledger is settled", || {
            let arrived = arrived(cluster);
            missing = self.promised.iter().filter(|id| !arrived.contains_key(*id)).cloned().collect();
            (missing.is_empty() || began.elapsed() > deadline).then_some(())
        });
        assert!(missing.is_empty(), "LOST {} of {} promised letters: {missing:?}", missing.len(), self.promised.len());
        let arrived = arrived(cluster);
        self.promised.iter().map(|id| arrived[id] - 1).sum()
    }
}

/// How often each id lies in the sink.
fn arrived(cluster: &TestCluster) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for letter in cluster.letters() {
        let id = letter.lines().find_map(|line| line.strip_prefix("Message-ID: <")?.strip_suffix("@device.example>"));
        if let Some(id) = id {
            *counts.entry(id.to_owned()).or_default() += 1;
        }
    }
    counts
}
