//! Raft, at the edge: openraft on RocksDB, spoken over gRPC between members. This room turns committed entries into
//! the state and publishes it; it never decides what a change means (that is [`crate::state::apply`]), and no type of
//! openraft, RocksDB or the wire leaves it.

mod codec;
mod handle;
mod lag;
mod log_store;
mod membership;
mod metrics;
mod network;
mod propose;
mod service;
mod snapshot_file;
mod state_machine;
mod store;
mod types;

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod store_tests;

pub use codec::CodecError;
pub use handle::{
    DataKeyFn, ELECTION_TIMEOUT_MAX, ELECTION_TIMEOUT_MIN, HEARTBEAT, LocalFacts, LocalFactsFn, RaftError, RaftHandle,
    RaftOptions, RaftStatus,
};
pub use lag::Progress;
pub use metrics::{APPLIED_INDEX, HAS_LEADER, IS_LEADER, LAG_ENTRIES, LEADER_CHANGES_TOTAL, PROPOSALS_TOTAL, TERM};
pub use network::Dial;
pub use propose::{Announcement, COMMAND_BYTES_MAX, Committed, PROPOSE_DEADLINE, ProposeError};
pub use service::PeerService;
pub use snapshot_file::SnapshotFileError;
pub use store::StoreError;
