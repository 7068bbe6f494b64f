//! What openraft is told about us: ids, nodes, entries, answers. Its types stay inside this room.

use serde::{Deserialize, Serialize};

use super::snapshot_file::SnapshotData;
use crate::state::Outcome;

/// The types that openraft works with here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

impl openraft::RaftTypeConfig for TypeConfig {
    type D = Proposal;
    type R = Answer;
    type NodeId = u64;
    type Node = RaftNode;
    type Entry = openraft::Entry<Self>;
    type SnapshotData = SnapshotData;
    type AsyncRuntime = openraft::TokioRuntime;
    type Responder = openraft::impls::OneshotResponder<Self>;
}

/// An encoded [`crate::state::Command`]. The log stores and sends it as it is, so that a node which only passes a
/// command on need not understand it; `apply` must.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proposal(pub(crate) Vec<u8>);

/// What applying an entry answers: nothing for the entries that Raft itself writes. The serde traits are openraft's
/// condition; nothing on disk or wire uses them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer(pub(crate) Option<Outcome>);

/// Where a member is dialled, and whose certificate it must show there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RaftNode {
    /// `host:port`.
    pub(crate) address: String,
    /// The member's name.
    pub(crate) name: String,
}

pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type Membership = openraft::Membership<u64, RaftNode>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, RaftNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, RaftNode>;
pub(crate) type Snapshot = openraft::Snapshot<TypeConfig>;
pub(crate) type StorageError = openraft::StorageError<u64>;
pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Fatal = openraft::error::Fatal<u64>;
