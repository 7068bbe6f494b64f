//! The server side of the `Peer` service. It believes certificates, not messages: a call counts as a member's when
//! the identity that TLS verified carries the name that the state (or the Raft membership) has for that id.

use std::time::Duration;

use openraft::error::RaftError as CoreError;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use posthouse_proto::v1::peer_server::{Peer, PeerServer};
use posthouse_proto::v1::{self as pb, snapshot_part::Part};
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use super::codec::{self, CodecError};
use super::handle::RaftHandle;
use super::network::{MESSAGE_BYTES_MAX, SNAPSHOT_DEADLINE};
use super::propose::{Announcement, COMMAND_BYTES_MAX, NOT_LEADER_METADATA, PROPOSE_DEADLINE, ProposeError};
use super::snapshot_file::SNAPSHOT_BYTES_MAX;
use super::types::{Snapshot, SnapshotMeta};
use crate::pki::{PeerIdentity, PeerInfo};
use crate::shutdown::run_blocking;
use crate::state::{Command, MemberService, StateView};

/// The longest that `AwaitPublished` waits.
const AWAIT_MAX: Duration = Duration::from_secs(60);
/// How long the next part of a snapshot may take.
const PART_DEADLINE: Duration = Duration::from_secs(10);
/// A node has a handful of SMTP sockets.
const SERVICES_MAX: usize = 64;

/// Answers the other members.
#[derive(Clone, Debug)]
pub struct PeerService {
    handle: RaftHandle,
}

impl RaftHandle {
    /// The service that other members call. Whoever mounts it puts a [`PeerInfo`] into each request's extensions.
    #[must_use]
    pub fn peer_server(&self) -> PeerServer<PeerService> {
        PeerServer::new(PeerService { handle: self.clone() })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

/// The name of the node that calls.
fn node_name<T>(request: &Request<T>) -> Result<String, Status> {
    match request.extensions().get::<PeerInfo>().map(|info| &info.identity) {
        Some(PeerIdentity::Node { name }) => Ok(name.clone()),
        Some(_) => Err(Status::permission_denied("only members may call this")),
        None => Err(Status::unauthenticated("no identity")),
    }
}

fn broken(error: &CodecError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn missing(what: &'static str) -> Status {
    broken(&CodecError::Missing(what))
}

/// Whether the node `name` may speak as the Raft member `from`.
///
/// A node that knows nothing yet believes any node certificate of its cluster. An id that was given out after all we
/// know of (ids are never used twice) is believed too: a member that was away would otherwise never let a newer
/// leader bring it up to date. An id that we know to be gone is refused.
fn may_speak_as(view: &StateView, in_group: Option<&str>, from: u64, name: &str) -> bool {
    match (view.state.members.get(&from), in_group) {
        (Some(member), _) => member.value.name == name,
        (None, Some(known)) => known == name,
        (None, None) => view.state.facts.as_ref().is_none_or(|facts| from >= facts.next_node_id),
    }
}

impl PeerService {
    fn check_cluster(&self, cluster_id: &str) -> Result<(), Status> {
        if cluster_id == self.handle.inner.cluster_id {
            return Ok(());
        }
        Err(Status::permission_denied("that is another cluster"))
    }

    fn admit_raft<T>(&self, request: &Request<T>, from: u64, cluster_id: &str) -> Result<(), Status> {
        self.check_cluster(cluster_id)?;
        self.admit_as(&node_name(request)?, from)
    }

    fn admit_as(&self, name: &str, from: u64) -> Result<(), Status> {
        let node = self.handle.node(from);
        let in_group = node.as_ref().map(|node| node.name.as_str());
        if may_speak_as(&self.handle.current_view(), in_group, from, name) {
            return Ok(());
        }
        tracing::debug!(name, from, "a node speaks for a member that it is not");
        Err(Status::permission_denied("not the member that it says it is"))
    }

    /// A member by name; anybody with a node's certificate while we know no members.
    fn admit_member<T>(&self, request: &Request<T>) -> Result<String, Status> {
        let name = node_name(request)?;
        let view = self.handle.current_view();
        if view.state.facts.is_none() || view.state.member_named(&name).is_some() {
            return Ok(name);
        }
        Err(Status::permission_denied("not a member of this cluster"))
    }
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("raft has stopped: {error}"))
}

fn core_stopped(error: CoreError<u64>) -> Status {
    match error {
        CoreError::Fatal(error) => stopped(error),
        CoreError::APIError(never) => match never {},
    }
}

fn proposal_status(error: ProposeError) -> Status {
    match error {
        ProposeError::NoLeader => not_leader(),
        ProposeError::Timeout => Status::deadline_exceeded(error.to_string()),
        ProposeError::TooLarge { .. } => Status::invalid_argument(error.to_string()),
        ProposeError::Refused(reason) => Status::permission_denied(reason),
        ProposeError::Fatal(_) => Status::internal(error.to_string()),
    }
}

/// Says that nothing was proposed, in a way that survives translation.
fn not_leader() -> Status {
    let mut status = Status::failed_precondition("this member does not lead");
    status.metadata_mut().insert(NOT_LEADER_METADATA, MetadataValue::from_static("1"));
    status
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn append_entries(
        &self,
        request: Request<pb::AppendEntriesRequest>,
    ) -> Result<Response<pb::AppendEntriesReply>, Status> {
        self.admit_raft(&request, request.get_ref().from, &request.get_ref().cluster_id)?;
        let message = request.into_inner();
        let rpc = AppendEntriesRequest {
            vote: codec::vote(message.vote.as_ref().ok_or_else(|| missing("vote"))?),
            prev_log_id: message.prev.as_ref().map(codec::log_id),
            entries: message
                .entries
                .into_iter()
                .map(codec::entry)
                .collect::<Result<_, _>>()
                .map_err(|error| broken(&error))?,
            leader_commit: message.leader_commit.as_ref().map(codec::log_id),
        };
        let committed = rpc.leader_commit.map(|id| id.index);
        let answer = self.handle.inner.raft.append_entries(rpc).await.map_err(core_stopped)?;
        let mut reply = pb::AppendEntriesReply::default();
        let result = match answer {
            AppendEntriesResponse::Success => "success",
            AppendEntriesResponse::Conflict => "conflict",
            AppendEntriesResponse::PartialSuccess(log) => {
                reply.partial = log.as_ref().map(codec::log_ident);
                "partial"
            }
            AppendEntriesResponse::HigherVote(vote) => {
                reply.higher_vote = Some(codec::vote_ident(&vote));
                "higher_vote"
            }
        };
        if reply.higher_vote.is_none() {
            self.handle.heard_leader(committed);
        }
        reply.result = result.to_owned();
        Ok(Response::new(reply))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteReply>, Status> {
        self.admit_raft(&request, request.get_ref().from, &request.get_ref().cluster_id)?;
        let message = request.into_inner();
        let rpc = VoteRequest {
            vote: codec::vote(message.vote.as_ref().ok_or_else(|| missing("vote"))?),
            last_log_id: message.last_log.as_ref().map(codec::log_id),
        };
        let answer = self.handle.inner.raft.vote(rpc).await.map_err(core_stopped)?;
        Ok(Response::new(pb::VoteReply {
            vote: Some(codec::vote_ident(&answer.vote)),
            granted: answer.vote_granted,
            last_log: answer.last_log_id.as_ref().map(codec::log_ident),
        }))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotPart>>,
    ) -> Result<Response<pb::SnapshotReply>, Status> {
        let name = node_name(&request)?;
        let mut parts = request.into_inner();
        let received = tokio::time::timeout(SNAPSHOT_DEADLINE, self.receive_snapshot(&name, &mut parts));
        let (vote, snapshot) =
            received.await.map_err(|_| Status::deadline_exceeded("the snapshot took too long"))??;
        let answer = self.handle.inner.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        self.handle.heard_leader(None);
        Ok(Response::new(pb::SnapshotReply { vote: Some(codec::vote_ident(&answer.vote)) }))
    }

    async fn propose(&self, request: Request<pb::ProposeRequest>) -> Result<Response<pb::ProposeReply>, Status> {
        self.check_cluster(&request.get_ref().cluster_id)?;
        self.admit_member(&request)?;
        let command = request.into_inner().command;
        if command.len() > COMMAND_BYTES_MAX {
            return Err(proposal_status(ProposeError::TooLarge { bytes: command.len() }));
        }
        // What does not decode here would stop every member when it is applied.
        Command::decode(&command).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let deadline = Instant::now() + PROPOSE_DEADLINE;
        match self.handle.propose_here(command, deadline).await {
            None => Err(not_leader()),
            Some(Ok(committed)) => Ok(Response::new(pb::ProposeReply {
                outcome: committed.outcome.encode(),
                revision: committed.revision,
            })),
            Some(Err(error)) => Err(proposal_status(error)),
        }
    }

    async fn member_status(
        &self,
        request: Request<pb::MemberStatusRequest>,
    ) -> Result<Response<pb::MemberStatusReply>, Status> {
        self.admit_member(&request)?;
        let (status, view) = (self.handle.status(), self.handle.current_view());
        let facts = (self.handle.inner.local_facts)();
        Ok(Response::new(pb::MemberStatusReply {
            id: self.handle.inner.node_id,
            name: self.handle.inner.node_name.clone(),
            applied: view.revision,
            last_log: status.last_log,
            term: status.term,
            leader: status.leader,
            digest: view.state.digest.to_string(),
            version: facts.version,
            ready: facts.ready,
            reason: facts.reason,
            sessions: facts.sessions,
            queued: facts.queued,
            raft_state: status.state.to_owned(),
        }))
    }

    async fn await_published(
        &self,
        request: Request<pb::AwaitPublishedRequest>,
    ) -> Result<Response<pb::AwaitPublishedReply>, Status> {
        self.admit_member(&request)?;
        let pb::AwaitPublishedRequest { revision, timeout_ms } = request.into_inner();
        let timeout = Duration::from_millis(timeout_ms).min(AWAIT_MAX);
        let published = self.handle.await_published(revision, timeout).await;
        Ok(Response::new(pb::AwaitPublishedReply { published }))
    }

    async fn data_key(&self, request: Request<pb::DataKeyRequest>) -> Result<Response<pb::DataKeyReply>, Status> {
        // Unlike elsewhere, knowing nothing is no reason to believe: the state must list the node.
        let name = node_name(&request)?;
        if self.handle.current_view().state.member_named(&name).is_none() {
            return Err(Status::permission_denied("not a member of this cluster, as far as this node knows"));
        }
        tracing::info!(node = %name, "handing the cluster's data key to a member");
        Ok(Response::new(pb::DataKeyReply { data_key: (self.handle.inner.data_key)() }))
    }

    async fn announce(&self, request: Request<pb::AnnounceRequest>) -> Result<Response<pb::AnnounceReply>, Status> {
        let name = self.admit_member(&request)?;
        let message = request.into_inner();
        if message.services.len() > SERVICES_MAX {
            return Err(Status::invalid_argument("too many services"));
        }
        let services = message.services.into_iter().map(member_service).collect::<Result<_, _>>()?;
        let announcement = Announcement {
            rpc_address: message.advertise,
            services,
            version: message.version,
            http_address: message.http_address,
        };
        self.handle.announce(&name, announcement).await.map_err(proposal_status)?;
        Ok(Response::new(pb::AnnounceReply {}))
    }
}

fn member_service(service: pb::ServiceAddress) -> Result<MemberService, Status> {
    let port = u16::try_from(service.port).map_err(|_| Status::invalid_argument("a port is above 65535"))?;
    Ok(MemberService { port, address: service.address, implicit_tls: service.implicit_tls })
}

impl PeerService {
    /// Receives a whole snapshot into a file and checks it, before the core hears of it: to the core a snapshot that
    /// cannot be installed is broken storage and the end.
    async fn receive_snapshot(
        &self,
        name: &str,
        parts: &mut Streaming<pb::SnapshotPart>,
    ) -> Result<(super::types::Vote, Snapshot), Status> {
        let Ok(_permit) = self.handle.inner.incoming.try_acquire() else {
            return Err(Status::resource_exhausted("another snapshot is being received"));
        };
        let Some(Part::Header(header)) = next_part(parts).await? else {
            return Err(missing("snapshot header"));
        };
        self.check_cluster(&header.cluster_id)?;
        self.admit_as(name, header.from)?;
        let vote = codec::vote(header.vote.as_ref().ok_or_else(|| missing("vote"))?);
        let meta = SnapshotMeta {
            last_log_id: header.last_log.as_ref().map(codec::log_id),
            last_membership: codec::stored_membership(header.membership_log.as_ref(), header.membership.as_ref()),
            snapshot_id: header.snapshot_id,
        };
        let mut data = self.handle.inner.raft.begin_receiving_snapshot().await.map_err(stopped)?;
        let mut offset = 0_u64;
        while let Some(part) = next_part(parts).await? {
            let Part::Chunk(chunk) = part else { return Err(missing("chunk")) };
            let next = offset.saturating_add(chunk.len() as u64);
            if next > SNAPSHOT_BYTES_MAX {
                return Err(Status::resource_exhausted("the snapshot is too large"));
            }
            let (written, file) = run_blocking(move || (data.put(offset, &chunk), data)).await;
            written.map_err(|error| Status::internal(format!("cannot write the snapshot: {error}")))?;
            (data, offset) = (file, next);
        }
        let (read, data) = run_blocking(move || (data.read(), data)).await;
        let contents = read.map_err(|error| Status::data_loss(error.to_string()))?;
        if contents.applied.last_log() != meta.last_log_id {
            return Err(Status::data_loss("the snapshot is not the one that its header names"));
        }
        Ok((vote, Snapshot { meta, snapshot: data }))
    }
}

async fn next_part(parts: &mut Streaming<pb::SnapshotPart>) -> Result<Option<Part>, Status> {
    let message = tokio::time::timeout(PART_DEADLINE, parts.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the next part of the snapshot did not come"))??;
    match message {
        None => Ok(None),
        Some(pb::SnapshotPart { part: Some(part) }) => Ok(Some(part)),
        Some(pb::SnapshotPart { part: None }) => Err(missing("part")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::raft::fixtures::init_cluster;
    use crate::state::{ClusterState, apply};

    fn view_of_one_member() -> StateView {
        let mut state = ClusterState::default();
        apply(&mut state, &init_cluster("n1", "127.0.0.1:1"), 1);
        StateView::build(state, 1, None)
    }

    #[test]
    fn a_known_member_speaks_only_under_its_own_name() {
        let view = view_of_one_member();
        assert!(may_speak_as(&view, None, 1, "n1"));
        assert!(!may_speak_as(&view, None, 1, "n2"));
        assert!(!may_speak_as(&view, Some("n2"), 1, "n2"), "the state outranks the Raft membership");
    }

    #[test]
    fn a_later_id_is_believed_and_a_gone_one_is_not() {
        let view = view_of_one_member();
        assert!(may_speak_as(&view, None, 2, "n2"), "given out after what we know");
        assert!(!may_speak_as(&view, Some("n2"), 2, "n9"));
        assert!(!may_speak_as(&view, None, 0, "n0"), "below the next id and not a member: gone");
    }

    #[test]
    fn a_node_that_knows_nothing_believes_the_certificate() {
        let view = StateView::build(ClusterState::default(), 0, None);
        assert!(may_speak_as(&view, None, 3, "n3"));
    }
}
