//! What is counted about the Raft group, and the one task that watches openraft's own figures.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, gauge};
use openraft::RaftMetrics;
use tokio::sync::watch;

use super::handle::RaftHandle;
use super::types::RaftNode;

/// 1 on the leader, else 0.
pub const IS_LEADER: &str = "posthouse_raft_is_leader";
/// 1 while this member has lately heard a leader that has its quorum, else 0.
pub const HAS_LEADER: &str = "posthouse_raft_has_leader";
/// The current term.
pub const TERM: &str = "posthouse_raft_term";
/// Index of the last entry applied here.
pub const APPLIED_INDEX: &str = "posthouse_raft_applied_index";
/// Entries of our own log that are not yet applied.
pub const LAG_ENTRIES: &str = "posthouse_raft_lag_entries";
/// How often another member became leader, seen from here.
pub const LEADER_CHANGES_TOTAL: &str = "posthouse_raft_leader_changes_total";
/// Changes proposed through this member, by `result`: applied, refused, no_leader, unknown, failed.
pub const PROPOSALS_TOTAL: &str = "posthouse_raft_proposals_total";

/// Values of the label `result` of [`PROPOSALS_TOTAL`].
pub(crate) const PROPOSAL_RESULTS: [&str; 5] = ["applied", "refused", "no_leader", "unknown", "failed"];

/// Figures need not be fresher than this.
const INTERVAL: Duration = Duration::from_millis(200);

fn describe() {
    describe_gauge!(IS_LEADER, "1 on the Raft leader.");
    describe_gauge!(HAS_LEADER, "1 while this member has lately heard a leader that has its quorum.");
    describe_gauge!(TERM, "The Raft term.");
    describe_gauge!(APPLIED_INDEX, "Index of the last log entry applied here.");
    describe_gauge!(LAG_ENTRIES, "Log entries that are here and not yet applied.");
    describe_counter!(LEADER_CHANGES_TOTAL, "How often another member became Raft leader, seen from here.");
    describe_counter!(PROPOSALS_TOTAL, "Changes proposed through this member, by result.");
    counter!(LEADER_CHANGES_TOTAL).increment(0);
    for result in PROPOSAL_RESULTS {
        counter!(PROPOSALS_TOTAL, "result" => result).increment(0);
    }
}

/// A gauge is an `f64`; terms and indexes stay far below 2^53, where it would begin to round.
fn as_gauge(value: u64) -> f64 {
    value as f64
}

/// Who leads, as far as this member knows; tells of changes.
pub(super) struct Leadership {
    pub(super) metrics: watch::Receiver<RaftMetrics<u64, RaftNode>>,
    pub(super) known: Option<u64>,
}

impl Leadership {
    /// Returns when another leads, or nobody. `false`: the core has stopped.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn next_change(&mut self) -> bool {
        while self.metrics.changed().await.is_ok() {
            let leader = self.metrics.borrow_and_update().current_leader;
            if leader != self.known {
                self.known = leader;
                return true;
            }
        }
        false
    }
}

/// Watches until the handle's scope ends.
pub(crate) async fn watch(handle: RaftHandle) {
    describe();
    let mut last_leader = None;
    let mut had_leader = false;
    let mut failed = false;
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut leadership = handle.leadership();
    loop {
        // A new leader is told at once, the rest in its turn.
        tokio::select! {
            _ = ticks.tick() => {}
            changed = leadership.next_change() => if !changed {
                // The core has stopped; it is told with the tick.
                ticks.tick().await;
            }
        }
        let status = handle.status();
        gauge!(IS_LEADER).set(f64::from(u8::from(status.is_leader())));
        gauge!(HAS_LEADER).set(f64::from(u8::from(status.has_quorum_recently)));
        gauge!(TERM).set(as_gauge(status.term));
        gauge!(APPLIED_INDEX).set(as_gauge(status.last_applied));
        gauge!(LAG_ENTRIES).set(as_gauge(status.last_log.saturating_sub(status.last_applied)));
        if let Some(leader) = status.leader
            && last_leader != Some(leader)
        {
            last_leader = Some(leader);
            counter!(LEADER_CHANGES_TOTAL).increment(1);
            let name = status.leader_name.as_deref().unwrap_or("?");
            tracing::info!(leader = name, term = status.term, "raft leader is {name}");
        }
        if status.has_quorum_recently != had_leader {
            had_leader = status.has_quorum_recently;
            if had_leader {
                tracing::info!(term = status.term, "in touch with the quorum: changes are possible");
            } else {
                tracing::warn!(term = status.term, "no word from a leader with its quorum: no changes are possible");
            }
        }
        if let Some(reason) = status.failed
            && !failed
        {
            failed = true;
            tracing::error!(%reason, "the raft core has stopped; this node is no longer a working member");
        }
    }
}
