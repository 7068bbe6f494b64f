//! Proposing a change from any member: to our own core when it leads, else to the leader. A proposal whose fate is
//! not known is never sent again: it is reported as such, and who asked can look.

use std::time::Duration;

use metrics::counter;
use posthouse_proto::v1 as pb;
use tokio::time::Instant;
use tonic::Status;

use super::handle::{RaftHandle, WriteError};
use super::metrics::PROPOSALS_TOTAL;
use super::network::was_not_sent;
use crate::state::{Change, Command, MemberService, Outcome};

/// How long a proposal may take in all, elections included.
pub const PROPOSE_DEADLINE: Duration = Duration::from_secs(5);
/// The largest encoded command. One replication message must carry it within its deadline.
pub const COMMAND_BYTES_MAX: usize = 4 << 20;
/// Metadata key of a refusal "not the leader": proof that nothing was proposed.
pub(crate) const NOT_LEADER_METADATA: &str = "posthouse-not-leader";
/// A leader without its quorum for this long takes no proposals: it could not commit them now, and they might land
/// much later. openraft 0.9 has no such check of its own.
const QUORUM_FOR_WRITES: Duration = Duration::from_millis(1500);
/// How long the supposed leader may take to say that it leads; a hung one is replaced in less.
const PROBE_DEADLINE: Duration = Duration::from_millis(500);
/// An election takes a few hundred milliseconds; asking this often costs nothing.
const LEADER_POLL: Duration = Duration::from_millis(10);

/// A change that was committed and applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its log index.
    pub revision: u64,
    /// What came of it: the same on every node.
    pub outcome: Outcome,
}

/// Why a change was not committed, as far as is known.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// No leader was found in time. Nothing was written. Ours, passing.
    #[error("there is no leader with a quorum; nothing was changed")]
    NoLeader,
    /// It was handed to a leader and no answer came. It may have happened, or still happen.
    #[error("no answer from the leader; the change may still take effect")]
    Timeout,
    /// Larger than [`COMMAND_BYTES_MAX`]. Theirs.
    #[error("the change is {bytes} bytes; {COMMAND_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The leader does not accept this member.
    #[error("the leader refused: {0}")]
    Refused(String),
    /// Our own core has stopped. Ours, lasting.
    #[error("raft has stopped: {0}")]
    Fatal(String),
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Where it is dialled.
    pub rpc_address: String,
    /// Its SMTP sockets.
    pub services: Vec<MemberService>,
    /// Its version.
    pub version: String,
    /// Where its HTTP is.
    pub http_address: String,
}

impl RaftHandle {
    /// Proposes a change through whoever leads, and returns when it is committed and applied there.
    ///
    /// # Errors
    /// See [`ProposeError`]; after [`ProposeError::Timeout`] the change may still take effect. Dropping the future
    /// leaves the fate of the change open in the same way.
    pub async fn propose(&self, command: Command) -> Result<Committed, ProposeError> {
        let result = self.propose_encoded(command.encode(), Instant::now() + PROPOSE_DEADLINE).await;
        let word = match &result {
            Ok(Committed { outcome: Outcome::Applied { .. }, .. }) => "applied",
            Ok(Committed { outcome: Outcome::Refused(_), .. }) => "refused",
            Err(ProposeError::NoLeader) => "no_leader",
            Err(ProposeError::Timeout) => "unknown",
            Err(_) => "failed",
        };
        counter!(PROPOSALS_TOTAL, "result" => word).increment(1);
        result
    }

    pub(super) async fn propose_encoded(&self, command: Vec<u8>, deadline: Instant) -> Result<Committed, ProposeError> {
        if command.len() > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes: command.len() });
        }
        loop {
            let status = self.status();
            if let Some(reason) = status.failed {
                return Err(ProposeError::Fatal(reason));
            }
            match status.leader {
                Some(id) if id == self.inner.node_id => {
                    if let Some(result) = self.propose_here(command.clone(), deadline).await {
                        return result;
                    }
                }
                Some(id) => {
                    if let Some(node) = self.node(id) {
                        let left = deadline.saturating_duration_since(Instant::now());
                        // A connection that a killed leader left behind breaks at the next use. The question costs
                        // one round trip, may fail without harm, and leaves only changes that were really under way
                        // with an unknown fate.
                        if !self.inner.peers.leads(&node, id, left.min(PROBE_DEADLINE)).await {
                            continue_or_give_up(deadline).await?;
                            continue;
                        }
                        match self.inner.peers.propose(&node, command.clone(), left).await {
                            Ok(reply) => return from_reply(&reply),
                            Err(status) if was_refused(&status) => {}
                            Err(status) => return Err(lost(&status)),
                        }
                    }
                }
                None => {}
            }
            continue_or_give_up(deadline).await?;
        }
    }

    /// Proposes to our own core if it leads with a quorum; `None`: it does not, and nothing was proposed.
    pub(crate) async fn propose_here(
        &self,
        command: Vec<u8>,
        deadline: Instant,
    ) -> Option<Result<Committed, ProposeError>> {
        if !self.leads_with_quorum() {
            return None;
        }
        Some(match self.write(command, deadline).await {
            Ok(written) => Ok(Committed { revision: written.revision, outcome: written.outcome }),
            Err(WriteError::Unknown) => Err(ProposeError::Timeout),
            Err(WriteError::Stopped(reason)) => Err(ProposeError::Fatal(reason)),
        })
    }

    fn leads_with_quorum(&self) -> bool {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        metrics.state == openraft::ServerState::Leader
            && metrics.current_leader == Some(self.inner.node_id)
            && metrics.millis_since_quorum_ack.is_some_and(|ms| Duration::from_millis(ms) <= QUORUM_FOR_WRITES)
    }

    /// Says where the member `name` is now: proposes a change when the state says something else. Answers the
    /// revision of the change, or `None` when the state has it already.
    ///
    /// # Errors
    /// See [`ProposeError`]; [`ProposeError::Refused`] when the state has no such member.
    pub async fn announce(&self, name: &str, announcement: Announcement) -> Result<Option<Committed>, ProposeError> {
        let view = self.current_view();
        let Some(member) = view.state.member_named(name) else {
            return Err(ProposeError::Refused(format!("no member is called \"{name}\"")));
        };
        let Announcement { rpc_address, services, version, http_address } = announcement;
        if member.rpc_address == rpc_address
            && member.services == services
            && member.version == version
            && member.http_address == http_address
        {
            return Ok(None);
        }
        let command = Command {
            who: format!("node:{name}"),
            from: rpc_address.clone(),
            at_ms: crate::clock::now_ms(),
            reason: String::new(),
            if_revision: None,
            accept_risk: false,
            change: Change::UpdateMember { id: member.id, rpc_address, services, version, http_address },
        };
        self.propose(command).await.map(Some)
    }
}

/// Nothing was proposed so far: the leader is gone, not yet elected, or another by now. Waits a moment for that.
async fn continue_or_give_up(deadline: Instant) -> Result<(), ProposeError> {
    if Instant::now() + LEADER_POLL >= deadline {
        return Err(ProposeError::NoLeader);
    }
    tokio::time::sleep(LEADER_POLL).await;
    Ok(())
}

fn from_reply(reply: &pb::ProposeReply) -> Result<Committed, ProposeError> {
    // It is committed; only the words are lost.
    let outcome = Outcome::decode(&reply.outcome).map_err(|_| ProposeError::Timeout)?;
    Ok(Committed { revision: reply.revision, outcome })
}

/// Whether it is certain that nothing was proposed.
fn was_refused(status: &Status) -> bool {
    was_not_sent(status) || status.metadata().contains_key(NOT_LEADER_METADATA)
}

fn lost(status: &Status) -> ProposeError {
    match status.code() {
        tonic::Code::PermissionDenied | tonic::Code::Unauthenticated | tonic::Code::InvalidArgument => {
            ProposeError::Refused(status.message().to_owned())
        }
        _ => ProposeError::Timeout,
    }
}
