//! Between openraft's types and our own encoding: the messages of `raft.proto`, and on disk the same messages behind
//! a version byte. openraft's own serialisation is never written, so that a change of its line is a change of this
//! file and not a migration.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{CommittedLeaderId, EntryPayload};
use posthouse_proto::v1::{self as pb, log_entry::Payload};
use prost::Message;

use super::types::{Entry, LogId, Membership, Proposal, RaftNode, StoredMembership, Vote};

/// The first byte of each record on disk.
const RECORD_VERSION: u8 = 1;

/// Why bytes are not what they should be. On the wire theirs, on disk ours and lasting.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// From a newer version.
    #[error("record version {0} is not known here; this node is older than the one that wrote it")]
    Version(u8),
    /// Nothing there.
    #[error("record is empty")]
    Empty,
    /// Not a message.
    #[error("record cannot be decoded: {0}")]
    Broken(#[from] prost::DecodeError),
    /// A part without which the message says nothing.
    #[error("record has no {0}")]
    Missing(&'static str),
}

/// How far the state has come: the last applied entry and the membership in force there.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct AppliedRecord {
    #[prost(message, optional, tag = "1")]
    pub(crate) last_log: Option<pb::LogIdent>,
    #[prost(message, optional, tag = "2")]
    pub(crate) membership_log: Option<pb::LogIdent>,
    #[prost(message, optional, tag = "3")]
    pub(crate) membership: Option<pb::MembershipConfig>,
    /// Only in snapshots.
    #[prost(string, tag = "4")]
    pub(crate) snapshot_id: String,
}

/// Whose data directory this is.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct IdentityRecord {
    #[prost(string, tag = "1")]
    pub(crate) cluster_id: String,
    #[prost(uint64, tag = "2")]
    pub(crate) node_id: u64,
}

impl AppliedRecord {
    pub(crate) fn new(last_log: Option<LogId>, membership: &StoredMembership) -> Self {
        Self {
            last_log: last_log.as_ref().map(log_ident),
            membership_log: membership.log_id().as_ref().map(log_ident),
            membership: Some(membership_config(membership.membership())),
            snapshot_id: String::new(),
        }
    }

    pub(crate) fn last_log(&self) -> Option<LogId> {
        self.last_log.as_ref().map(log_id)
    }

    pub(crate) fn membership(&self) -> StoredMembership {
        stored_membership(self.membership_log.as_ref(), self.membership.as_ref())
    }
}

/// A message as it is kept on disk: the version byte, then the message.
pub(crate) fn to_record(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(message.encoded_len() + 1);
    bytes.push(RECORD_VERSION);
    bytes.extend(message.encode_to_vec());
    bytes
}

/// Reads a message back from disk.
pub(crate) fn from_record<M: Message + Default>(bytes: &[u8]) -> Result<M, CodecError> {
    match bytes.split_first() {
        None => Err(CodecError::Empty),
        Some((&RECORD_VERSION, rest)) => Ok(M::decode(rest)?),
        Some((&version, _)) => Err(CodecError::Version(version)),
    }
}

pub(crate) fn log_ident(id: &LogId) -> pb::LogIdent {
    pb::LogIdent { term: id.leader_id.term, leader: id.leader_id.node_id, index: id.index }
}

pub(crate) fn log_id(ident: &pb::LogIdent) -> LogId {
    LogId::new(CommittedLeaderId::new(ident.term, ident.leader), ident.index)
}

pub(crate) fn vote_ident(vote: &Vote) -> pb::VoteIdent {
    pb::VoteIdent { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub(crate) fn vote(ident: &pb::VoteIdent) -> Vote {
    if ident.committed { Vote::new_committed(ident.term, ident.node) } else { Vote::new(ident.term, ident.node) }
}

pub(crate) fn membership_config(membership: &Membership) -> pb::MembershipConfig {
    pb::MembershipConfig {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|ids| pb::NodeSet { ids: ids.iter().copied().collect() })
            .collect(),
        nodes: membership
            .nodes()
            .map(|(&id, node)| pb::RaftNode { id, address: node.address.clone(), name: node.name.clone() })
            .collect(),
    }
}

pub(crate) fn membership(config: &pb::MembershipConfig) -> Membership {
    let configs: Vec<BTreeSet<u64>> = config.configs.iter().map(|set| set.ids.iter().copied().collect()).collect();
    let nodes: BTreeMap<u64, RaftNode> = config
        .nodes
        .iter()
        .map(|node| (node.id, RaftNode { address: node.address.clone(), name: node.name.clone() }))
        .collect();
    Membership::new(configs, nodes)
}

pub(crate) fn stored_membership(log: Option<&pb::LogIdent>, config: Option<&pb::MembershipConfig>) -> StoredMembership {
    StoredMembership::new(log.map(log_id), config.map(membership).unwrap_or_default())
}

pub(crate) fn log_entry(entry: &Entry) -> pb::LogEntry {
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank(pb::Blank {}),
        EntryPayload::Normal(proposal) => Payload::Command(proposal.0.clone()),
        EntryPayload::Membership(membership) => Payload::Membership(membership_config(membership)),
    };
    pb::LogEntry { id: Some(log_ident(&entry.log_id)), payload: Some(payload) }
}

pub(crate) fn entry(message: pb::LogEntry) -> Result<Entry, CodecError> {
    let id = message.id.as_ref().ok_or(CodecError::Missing("log id"))?;
    let payload = match message.payload.ok_or(CodecError::Missing("payload"))? {
        Payload::Blank(_) => EntryPayload::Blank,
        Payload::Command(bytes) => EntryPayload::Normal(Proposal(bytes)),
        Payload::Membership(config) => EntryPayload::Membership(membership(&config)),
    };
    Ok(Entry { log_id: log_id(id), payload })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn joint() -> Membership {
        let nodes = (1..=4)
            .map(|id| (id, RaftNode { address: format!("10.0.0.{id}:7000"), name: format!("n{id}") }))
            .collect::<BTreeMap<_, _>>();
        Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([1, 2, 3])], nodes)
    }

    #[test]
    fn every_kind_of_entry_survives_the_disk() {
        let id = LogId::new(CommittedLeaderId::new(3, 2), 77);
        for payload in
            [EntryPayload::Blank, EntryPayload::Normal(Proposal(vec![1, 0, 255])), EntryPayload::Membership(joint())]
        {
            let before = Entry { log_id: id, payload };
            let bytes = to_record(&log_entry(&before));
            assert_eq!(entry(from_record(&bytes).unwrap()).unwrap(), before);
        }
    }

    #[test]
    fn a_joint_membership_with_a_learner_survives() {
        let stored = StoredMembership::new(Some(LogId::new(CommittedLeaderId::new(1, 1), 5)), joint());
        let record = AppliedRecord::new(None, &stored);
        let read: AppliedRecord = from_record(&to_record(&record)).unwrap();
        assert_eq!(read.membership(), stored);
        assert_eq!(read.last_log(), None);
    }

    #[test]
    fn a_committed_vote_stays_committed() {
        for before in [Vote::new(4, 2), Vote::new_committed(4, 2)] {
            assert_eq!(vote(&vote_ident(&before)), before);
        }
    }

    #[test]
    fn a_newer_version_and_broken_bytes_are_refused() {
        let mut bytes = to_record(&vote_ident(&Vote::new(1, 1)));
        bytes[0] = 9;
        assert!(matches!(from_record::<pb::VoteIdent>(&bytes), Err(CodecError::Version(9))));
        assert!(matches!(from_record::<pb::VoteIdent>(&[]), Err(CodecError::Empty)));
        assert!(matches!(from_record::<pb::VoteIdent>(&[1, 0xff]), Err(CodecError::Broken(_))));
        assert!(matches!(entry(pb::LogEntry::default()), Err(CodecError::Missing("log id"))));
    }
}
