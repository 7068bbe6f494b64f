//! Keeps the Raft group as the state wants it, one step at a time, on the leader: members of the state enter as
//! learners, are promoted when they have caught up, follow their addresses, and leave when the state drops them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::{ChangeMembers, RaftMetrics, ServerState};

use super::handle::RaftHandle;
use super::types::{Membership, RaftNode};
use crate::state::{ClusterState, MemberRole};

const INTERVAL: Duration = Duration::from_millis(200);
/// After a failed step, the longest pause before the next try.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long one change of the membership may take; it needs a quorum of the new one, too.
const CHANGE_DEADLINE: Duration = Duration::from_secs(5);
/// A learner this close to the end of the leader's log has caught up: whoever waits for none would, under steady
/// writes, wait for ever.
const CAUGHT_UP_ENTRIES: u64 = 16;

/// One step towards what the state wants.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// A change of voters was interrupted half-way by an election: finish it.
    Finish(BTreeSet<u64>),
    AddLearner(u64, RaftNode),
    Move(u64, RaftNode),
    Promote(u64),
    Demote(u64),
    RemoveVoter(u64),
    RemoveLearner(u64),
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Finish(voters) => write!(f, "finish the change to voters {voters:?}"),
            Self::AddLearner(id, node) => write!(f, "add node {id} ({}) as a learner", node.name),
            Self::Move(id, node) => write!(f, "node {id} ({}) is now at {}", node.name, node.address),
            Self::Promote(id) => write!(f, "make node {id} a voter"),
            Self::Demote(id) => write!(f, "make node {id} a learner"),
            Self::RemoveVoter(id) => write!(f, "remove voter {id}"),
            Self::RemoveLearner(id) => write!(f, "remove learner {id}"),
        }
    }
}

/// The next step, if any is needed. Pure. `behind` says how many entries a learner lacks, if it was heard of.
fn next_step(state: &ClusterState, group: &Membership, behind: impl Fn(u64) -> Option<u64>) -> Option<Step> {
    // Before `cluster init` is applied the state knows no members, and the first voter must not remove itself.
    state.facts.as_ref()?;
    if let [_, .., target] = group.get_joint_config().as_slice() {
        return Some(Step::Finish(target.clone()));
    }
    let voters: BTreeSet<u64> = group.voter_ids().collect();
    let nodes: BTreeMap<u64, &RaftNode> = group.nodes().map(|(&id, node)| (id, node)).collect();
    for member in state.members.values().map(|member| &member.value) {
        let wanted = RaftNode { address: member.rpc_address.clone(), name: member.name.clone() };
        match nodes.get(&member.id) {
            None => return Some(Step::AddLearner(member.id, wanted)),
            Some(node) if **node != wanted => return Some(Step::Move(member.id, wanted)),
            Some(_) => {}
        }
        match (member.role, voters.contains(&member.id)) {
            (MemberRole::Voter, false) if behind(member.id).is_some_and(|entries| entries <= CAUGHT_UP_ENTRIES) => {
                return Some(Step::Promote(member.id));
            }
            (MemberRole::Learner, true) if voters.len() > 1 => return Some(Step::Demote(member.id)),
            _ => {}
        }
    }
    let gone = nodes.keys().copied().find(|id| !state.members.contains_key(id))?;
    match voters.contains(&gone) {
        true if voters.len() > 1 => Some(Step::RemoveVoter(gone)),
        true => None,
        false => Some(Step::RemoveLearner(gone)),
    }
}

fn entries_behind(metrics: &RaftMetrics<u64, RaftNode>, id: u64) -> Option<u64> {
    let matched = (*metrics.replication.as_ref()?.get(&id)?)?;
    Some(metrics.last_log_index?.saturating_sub(matched.index))
}

impl RaftHandle {
    /// The next step if this member leads and its state is complete.
    fn membership_step(&self) -> Option<Step> {
        let metrics = self.inner.raft.metrics().borrow().clone();
        if metrics.state != ServerState::Leader {
            return None;
        }
        // A new leader may not have applied everything that was committed before its term; a member that a later
        // entry adds must not be removed meanwhile. An applied entry of its own term comes after all of those.
        if metrics.last_applied?.leader_id.term != metrics.current_term {
            return None;
        }
        let view = self.current_view();
        if view.revision < metrics.last_applied?.index {
            return None;
        }
        next_step(&view.state, metrics.membership_config.membership(), |id| entries_behind(&metrics, id))
    }

    async fn take_step(&self, step: Step) -> Result<(), String> {
        let raft = &self.inner.raft;
        let change = async {
            match step {
                Step::AddLearner(id, node) => raft.add_learner(id, node, false).await,
                Step::Finish(voters) => raft.change_membership(voters, true).await,
                Step::Move(id, node) => {
                    raft.change_membership(ChangeMembers::SetNodes(BTreeMap::from([(id, node)])), true).await
                }
                Step::Promote(id) => {
                    raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true).await
                }
                Step::Demote(id) => {
                    raft.change_membership(ChangeMembers::RemoveVoters(BTreeSet::from([id])), true).await
                }
                Step::RemoveVoter(id) => {
                    raft.change_membership(ChangeMembers::RemoveVoters(BTreeSet::from([id])), false).await
                }
                Step::RemoveLearner(id) => {
                    raft.change_membership(ChangeMembers::RemoveNodes(BTreeSet::from([id])), false).await
                }
            }
        };
        match tokio::time::timeout(CHANGE_DEADLINE, change).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no quorum agreed in time".to_owned()),
        }
    }
}

/// Runs until the handle's scope ends.
pub(crate) async fn reconcile(handle: RaftHandle) {
    let mut view = handle.view();
    let mut pause = INTERVAL;
    let mut last_failed: Option<Step> = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // After a failure the pause is kept: a change elsewhere in the state does not mend it.
            changed = view.changed(), if last_failed.is_none() => {
                if changed.is_err() {
                    return;
                }
            }
        }
        let Some(step) = handle.membership_step() else {
            pause = INTERVAL;
            last_failed = None;
            continue;
        };
        match handle.take_step(step.clone()).await {
            Ok(()) => {
                tracing::info!("raft membership: {step}");
                pause = INTERVAL;
                last_failed = None;
            }
            Err(reason) => {
                // Said once per step, not once per try.
                if last_failed.as_ref() != Some(&step) {
                    tracing::warn!(%reason, "raft membership: could not {step}; will be tried again");
                }
                pause = (pause * 2).min(PAUSE_MAX);
                last_failed = Some(step);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use MemberRole::{Learner, Voter};

    use super::*;
    use crate::state::{ClusterFacts, Member, MemberState, SealedSecret, Versioned};

    fn state(members: &[(u64, MemberRole)]) -> ClusterState {
        let facts = ClusterFacts {
            name: "c".to_owned(),
            id: "c".to_owned(),
            ca_pem: String::new(),
            sealed_ca_key: SealedSecret(String::new()),
            next_node_id: 10,
            created_at_ms: 0,
        };
        let member = |&(id, role): &(u64, MemberRole)| {
            let value = Member {
                id,
                name: format!("n{id}"),
                rpc_address: format!("10.0.0.{id}:7000"),
                services: Vec::new(),
                role,
                state: MemberState::Active,
                version: String::new(),
                http_address: String::new(),
                joined_at_ms: 0,
                weight: crate::state::MEMBER_WEIGHT_DEFAULT,
            };
            (id, Versioned { revision: 1, value })
        };
        ClusterState {
            facts: Some(Arc::new(facts)),
            members: Arc::new(members.iter().map(member).collect()),
            ..ClusterState::default()
        }
    }

    fn nobody() -> ClusterState {
        state(&[])
    }

    fn group(configs: &[&[u64]], nodes: &[u64]) -> Membership {
        let nodes: BTreeMap<u64, RaftNode> = nodes
            .iter()
            .map(|&id| (id, RaftNode { address: format!("10.0.0.{id}:7000"), name: format!("n{id}") }))
            .collect();
        Membership::new(configs.iter().map(|ids| ids.iter().copied().collect()).collect(), nodes)
    }

    #[test]
    fn a_member_enters_as_learner_and_is_promoted_only_when_caught_up() {
        let state = state(&[(1, Voter), (2, Voter)]);
        let step = next_step(&state, &group(&[&[1]], &[1]), |_| None);
        assert!(matches!(step, Some(Step::AddLearner(2, _))));
        let joined = group(&[&[1]], &[1, 2]);
        assert_eq!(next_step(&state, &joined, |_| None), None);
        assert_eq!(next_step(&state, &joined, |_| Some(CAUGHT_UP_ENTRIES + 1)), None);
        assert_eq!(next_step(&state, &joined, |_| Some(CAUGHT_UP_ENTRIES)), Some(Step::Promote(2)));
        assert_eq!(next_step(&state, &group(&[&[1, 2]], &[1, 2]), |_| Some(0)), None);
    }

    #[test]
    fn a_learner_by_role_is_never_promoted() {
        let state = state(&[(1, Voter), (2, Learner)]);
        assert_eq!(next_step(&state, &group(&[&[1]], &[1, 2]), |_| Some(0)), None);
        assert_eq!(next_step(&state, &group(&[&[1, 2]], &[1, 2]), |_| Some(0)), Some(Step::Demote(2)));
    }

    #[test]
    fn who_left_the_state_leaves_the_group_but_never_the_last_voter() {
        let state = state(&[(1, Voter)]);
        assert_eq!(next_step(&state, &group(&[&[1]], &[1, 2]), |_| Some(0)), Some(Step::RemoveLearner(2)));
        assert_eq!(next_step(&state, &group(&[&[1, 2]], &[1, 2]), |_| Some(0)), Some(Step::RemoveVoter(2)));
        assert_eq!(next_step(&nobody(), &group(&[&[1]], &[1]), |_| Some(0)), None);
    }

    #[test]
    fn a_moved_member_is_followed_and_a_half_done_change_is_finished_first() {
        let state = state(&[(1, Voter), (2, Voter)]);
        let mut moved = group(&[&[1, 2]], &[1]);
        assert!(matches!(next_step(&state, &moved, |_| Some(0)), Some(Step::Move(2, _))));
        moved = group(&[&[1], &[1, 2]], &[1, 2]);
        assert_eq!(next_step(&state, &moved, |_| Some(0)), Some(Step::Finish(BTreeSet::from([1, 2]))));
    }

    #[test]
    fn before_the_cluster_is_initialised_nothing_is_touched() {
        assert_eq!(next_step(&ClusterState::default(), &group(&[&[1]], &[1]), |_| Some(0)), None);
    }
}
