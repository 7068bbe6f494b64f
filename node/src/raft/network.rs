//! The client side of the `Peer` service: what this member says to the others. Every call has a deadline.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use openraft::error::{
    Fatal as CoreFatal, NetworkError, RPCError, RaftError as CoreError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{OptionalSend, Snapshot};
use posthouse_proto::v1::peer_client::PeerClient;
use posthouse_proto::v1::{self as pb, snapshot_part::Part};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::codec;
use super::types::{RaftNode, TypeConfig, Vote};
use crate::shutdown::run_blocking;

/// The largest message between members: one replication message is about 1 MiB, or a single command.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// How long a whole snapshot may take on its way.
pub(crate) const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(120);

/// Makes channels to members. Implemented by the TLS room; tests dial in plaintext.
pub trait Dial: Send + Sync + 'static {
    /// A channel to the member `node` at `address` (`host:port`), which connects when first used and again whenever
    /// needed, finds a dead connection by keep-alive, and verifies that it is that very member. Asked for at each
    /// election: the same address and name are expected to share one channel.
    fn channel(&self, address: &str, node: &str) -> Channel;
}

/// How this member reaches the others.
#[derive(Clone)]
pub(crate) struct Peers {
    dialer: Arc<dyn Dial>,
    node_id: u64,
    cluster_id: Arc<str>,
    /// After a failed connection, when to try again. It must be shorter than an election timeout: openraft sends no
    /// heartbeat meanwhile, and a member that just came back would call an election.
    backoff: Duration,
}

impl Peers {
    pub(crate) fn new(dialer: Arc<dyn Dial>, node_id: u64, cluster_id: &str, backoff: Duration) -> Self {
        Self { dialer, node_id, cluster_id: cluster_id.into(), backoff }
    }

    pub(crate) fn client(&self, node: &RaftNode) -> PeerClient<Channel> {
        PeerClient::new(self.dialer.channel(&node.address, &node.name))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Whether the member answers and says that it leads itself.
    pub(crate) async fn leads(&self, node: &RaftNode, id: u64, timeout: Duration) -> bool {
        let mut client = self.client(node);
        let call = client.member_status(with_timeout(pb::MemberStatusRequest {}, timeout));
        within(timeout, call).await.is_ok_and(|reply| reply.id == id && reply.leader == Some(id))
    }

    /// Hands a command to the leader.
    pub(crate) async fn propose(
        &self,
        leader: &RaftNode,
        command: Vec<u8>,
        timeout: Duration,
    ) -> Result<pb::ProposeReply, Status> {
        let message = pb::ProposeRequest { command, cluster_id: self.cluster_id.to_string() };
        let mut client = self.client(leader);
        within(timeout, client.propose(with_timeout(message, timeout))).await
    }
}

/// The deadline is sent along, so that the other side gives up too.
fn with_timeout<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

async fn within<T>(
    timeout: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(timeout, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

/// Whether the call certainly never left this machine: there was no connection to send it on.
pub(crate) fn was_not_sent(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The way to one member.
pub(crate) struct PeerNetwork {
    peers: Peers,
    node: RaftNode,
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = PeerNetwork;

    async fn new_client(&mut self, _target: u64, node: &RaftNode) -> PeerNetwork {
        PeerNetwork { peers: self.clone(), node: node.clone() }
    }
}

type CallError = RPCError<u64, RaftNode, CoreError<u64>>;

fn call_error(status: &Status) -> CallError {
    match status.code() {
        tonic::Code::DeadlineExceeded => RPCError::Network(NetworkError::new(status)),
        _ => RPCError::Unreachable(Unreachable::new(status)),
    }
}

fn misunderstood(what: &'static str) -> CallError {
    RPCError::Unreachable(Unreachable::new(&codec::CodecError::Missing(what)))
}

impl RaftNetwork<TypeConfig> for PeerNetwork {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError> {
        let message = pb::AppendEntriesRequest {
            from: self.peers.node_id,
            vote: Some(codec::vote_ident(&rpc.vote)),
            prev: rpc.prev_log_id.as_ref().map(codec::log_ident),
            entries: rpc.entries.iter().map(codec::log_entry).collect(),
            leader_commit: rpc.leader_commit.as_ref().map(codec::log_ident),
            cluster_id: self.peers.cluster_id.to_string(),
        };
        let timeout = option.hard_ttl();
        let mut client = self.peers.client(&self.node);
        let reply = within(timeout, client.append_entries(with_timeout(message, timeout)))
            .await
            .map_err(|status| call_error(&status))?;
        match reply.result.as_str() {
            "success" => Ok(AppendEntriesResponse::Success),
            "conflict" => Ok(AppendEntriesResponse::Conflict),
            "partial" => Ok(AppendEntriesResponse::PartialSuccess(reply.partial.as_ref().map(codec::log_id))),
            "higher_vote" => {
                let vote = reply.higher_vote.as_ref().ok_or_else(|| misunderstood("higher vote"))?;
                Ok(AppendEntriesResponse::HigherVote(codec::vote(vote)))
            }
            _ => Err(misunderstood("known result")),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, option: RPCOption) -> Result<VoteResponse<u64>, CallError> {
        let message = pb::VoteRequest {
            from: self.peers.node_id,
            vote: Some(codec::vote_ident(&rpc.vote)),
            last_log: rpc.last_log_id.as_ref().map(codec::log_ident),
            cluster_id: self.peers.cluster_id.to_string(),
        };
        let timeout = option.hard_ttl();
        let mut client = self.peers.client(&self.node);
        let reply =
            within(timeout, client.vote(with_timeout(message, timeout))).await.map_err(|status| call_error(&status))?;
        let vote = reply.vote.as_ref().ok_or_else(|| misunderstood("vote"))?;
        Ok(VoteResponse {
            vote: codec::vote(vote),
            vote_granted: reply.granted,
            last_log_id: reply.last_log.as_ref().map(codec::log_id),
        })
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, CoreFatal<u64>>> {
        let Snapshot { meta, snapshot: data } = snapshot;
        let header = pb::SnapshotHeader {
            from: self.peers.node_id,
            vote: Some(codec::vote_ident(&vote)),
            last_log: meta.last_log_id.as_ref().map(codec::log_ident),
            membership_log: meta.last_membership.log_id().as_ref().map(codec::log_ident),
            membership: Some(codec::membership_config(meta.last_membership.membership())),
            snapshot_id: meta.snapshot_id.clone(),
            cluster_id: self.peers.cluster_id.to_string(),
        };
        let head = stream::iter([pb::SnapshotPart { part: Some(Part::Header(header)) }]);
        let chunks = stream::unfold((Arc::from(data), 0_u64), |(data, offset)| async move {
            let reader: Arc<super::snapshot_file::SnapshotData> = Arc::clone(&data);
            match run_blocking(move || reader.chunk(offset)).await {
                Ok(chunk) if chunk.is_empty() => None,
                Ok(chunk) => {
                    let next = offset + chunk.len() as u64;
                    Some((pb::SnapshotPart { part: Some(Part::Chunk(chunk)) }, (data, next)))
                }
                Err(error) => {
                    // The receiver misses the checksum and refuses what it has.
                    tracing::error!(%error, "a snapshot cannot be read while it is sent");
                    None
                }
            }
        });
        let mut client = self.peers.client(&self.node);
        let call =
            within(SNAPSHOT_DEADLINE, client.install_snapshot(with_timeout(head.chain(chunks), SNAPSHOT_DEADLINE)));
        let reply = tokio::select! {
            closed = cancel => return Err(closed.into()),
            reply = call => reply.map_err(|status| StreamingError::Unreachable(Unreachable::new(&status)))?,
        };
        match reply.vote {
            Some(vote) => Ok(SnapshotResponse::new(codec::vote(&vote))),
            None => Err(StreamingError::Unreachable(Unreachable::new(&codec::CodecError::Missing("vote")))),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.peers.backoff))
    }
}
