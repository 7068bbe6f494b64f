//! The cluster as administrators see it: members, tokens, draining, and waiting until every node has a change.

use std::sync::Arc;
use std::time::Duration;

use posthouse_proto::v1::{self, peer_client::PeerClient};
use tokio::time::Instant;
use tonic::{Request, Status};

use super::problem::{exit, internal, invalid, problem, status as failed};
use super::service::{Actor, AdminService, Context};
use crate::clock::{now_ms, rfc3339};
use crate::pki::{JoinTokenText, sha256_hex};
use crate::state::{Change, JoinRole, JoinToken, Member, MemberState};

/// How long a member may take to answer for `cluster status`.
const MEMBER_TIMEOUT: Duration = Duration::from_millis(800);
/// A member that refuses connections this long is not serving: waiting on would tell nothing new.
const REFUSING_MAX: Duration = Duration::from_secs(2);
/// Pause between two tries to reach a member.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// The longest `--wait`.
const AWAIT_MAX: Duration = Duration::from_secs(600);
/// RFC-less, but k3s and kubeadm agree on the order of a day at most; an hour is enough to type it.
const TOKEN_TTL_SECS: u64 = 3600;
/// A token that lives longer than this is a password.
const TOKEN_TTL_SECS_MAX: u64 = 7 * 24 * 3600;

/// What this node knows of itself, as one member's answer.
fn own_status(context: &Context) -> v1::MemberStatusReply {
    let (raft, facts, view) = (context.raft.status(), (context.local_facts)(), context.view());
    v1::MemberStatusReply {
        id: context.node_id,
        name: context.node_name.clone(),
        applied: view.revision,
        last_log: raft.last_log,
        term: raft.term,
        leader: raft.leader,
        digest: view.state.digest.to_string(),
        version: facts.version,
        ready: facts.ready,
        reason: facts.reason,
        sessions: facts.sessions,
        queued: facts.queued,
        raft_state: raft.state.to_string(),
    }
}

async fn member_status(context: &Context, member: &Member) -> Option<v1::MemberStatusReply> {
    if member.id == context.node_id {
        return Some(own_status(context));
    }
    let mut client = PeerClient::new(context.dialer.channel(&member.rpc_address, &member.name));
    let call = client.member_status(Request::new(v1::MemberStatusRequest {}));
    match tokio::time::timeout(MEMBER_TIMEOUT, call).await {
        Ok(Ok(reply)) => Some(reply.into_inner()),
        Ok(Err(_)) | Err(_) => None,
    }
}

/// Asks every member how it is.
pub(super) async fn status(context: &Context) -> v1::ClusterStatusReply {
    let (view, raft) = (context.view(), context.raft.status());
    let members: Vec<Member> = view.state.members.values().map(|found| found.value.clone()).collect();
    let answers = futures_util::future::join_all(members.iter().map(|member| member_status(context, member))).await;
    // The leader's own word about its log is the yardstick of lag.
    let leader_log = answers
        .iter()
        .flatten()
        .find(|answer| Some(answer.id) == raft.leader)
        .map_or(raft.last_log, |answer| answer.last_log);
    let mut warnings = Vec::new();
    let mut out = Vec::new();
    for (member, answer) in members.iter().zip(&answers) {
        let is_leader = raft.leader == Some(member.id) && answer.is_some();
        let voter = raft.voters.contains(&member.id);
        let role = match (is_leader, voter) {
            (true, _) => "leader",
            (false, true) => "follower",
            (false, false) => "learner",
        };
        let answered = answer.clone().unwrap_or_default();
        if answer.is_none() {
            warnings.push(format!("{} does not answer at {}", member.name, member.rpc_address));
        }
        out.push(v1::Member {
            name: member.name.clone(),
            id: member.id,
            role: role.to_owned(),
            state: member.state.as_str().to_owned(),
            reachable: answer.is_some(),
            applied: answered.applied,
            lag: if answer.is_some() { leader_log.saturating_sub(answered.applied) } else { 0 },
            digest: answered.digest,
            version: if answer.is_some() { answered.version } else { member.version.clone() },
            address: member.rpc_address.clone(),
            ready: answered.ready,
            reason: if answer.is_some() { answered.reason } else { "does not answer".to_owned() },
            sessions: answered.sessions,
            queued: answered.queued,
            voter,
            weight: member.weight,
            services: member
                .services
                .iter()
                .map(|service| v1::ServiceAddress {
                    port: u32::from(service.port),
                    address: service.address.clone(),
                    implicit_tls: service.implicit_tls,
                })
                .collect(),
        });
    }
    let digests_differ = out
        .iter()
        .any(|a| out.iter().any(|b| a.reachable && b.reachable && a.applied == b.applied && a.digest != b.digest));
    if digests_differ {
        warnings.push("members hold different states at the same index: this must never happen".to_owned());
    }
    warnings.extend(super::tls::warnings(&view, now_ms()));
    let voters = raft.voters.len();
    let quorum = voters / 2 + 1;
    let alive = out.iter().filter(|member| member.voter && member.reachable).count();
    if alive < quorum {
        warnings.push(format!("no quorum: {alive} of {voters} voters answer, {quorum} are needed; mail goes on"));
    }
    let leader = raft.leader.filter(|_| alive >= quorum);
    let leader = leader.and_then(|id| members.iter().find(|member| member.id == id)).map(|m| m.name.clone());
    let healthy = leader.is_some() && !digests_differ && out.iter().all(|member| member.reachable && member.voter);
    let facts = view.state.facts.as_deref();
    v1::ClusterStatusReply {
        cluster: facts.map(|facts| facts.name.clone()).unwrap_or_default(),
        cluster_id: facts.map(|facts| facts.id.clone()).unwrap_or_default(),
        leader,
        term: raft.term,
        revision: view.revision,
        voters: u32::try_from(voters).unwrap_or(u32::MAX),
        quorum: u32::try_from(quorum).unwrap_or(u32::MAX),
        may_lose: u32::try_from(alive.saturating_sub(quorum)).unwrap_or(0),
        healthy,
        answered_by: context.node_name.clone(),
        members: out,
        fronts: super::fronts::list(&view, &context.fronts),
        warnings,
    }
}

/// Makes a token and the one command that uses it.
pub(super) async fn create_join_token(
    context: &Context,
    actor: &Actor,
    request: v1::CreateJoinTokenRequest,
) -> Result<v1::CreateJoinTokenReply, Status> {
    let role = match request.role.as_str() {
        "" | "voter" => JoinRole::Voter,
        "learner" => JoinRole::Learner,
        "front" => JoinRole::Front,
        other => {
            let cause = format!("\"{other}\" is not voter, learner or front");
            return Err(invalid("PH-JOIN-003", "the role is not valid", cause, "--role voter, learner or front"));
        }
    };
    let ttl_secs = if request.ttl_secs == 0 { TOKEN_TTL_SECS } else { request.ttl_secs };
    if ttl_secs > TOKEN_TTL_SECS_MAX {
        let cause = "a token that lives longer than seven days is a password";
        return Err(invalid("PH-JOIN-003", "the lifetime is too long", cause, "--ttl 168h at most"));
    }
    let view = context.view();
    let facts = view.state.facts.clone().ok_or_else(|| internal("the state is empty", "cluster init has not run"))?;
    let ca_sha256 = ca_sha256(&facts.ca_pem)?;
    let (id, secret) = (hex(&crate::pki::random::<6>()), hex(&crate::pki::random::<32>()));
    let expires_at_ms = now_ms() + i64::try_from(ttl_secs).unwrap_or(i64::MAX / 2000) * 1000;
    let token = JoinToken {
        id: id.clone(),
        secret_sha256: sha256_hex(secret.as_bytes()),
        role,
        uses_left: request.uses.max(1),
        expires_at_ms,
        created_by: actor.who.clone(),
    };
    let written =
        AdminService::write(context, actor, request.options, Change::CreateJoinToken { token }, vec![]).await?;
    let endpoints = view.state.members.values().map(|found| found.value.rpc_address.clone()).collect();
    let token = JoinTokenText { id: id.clone(), secret, ca_sha256, endpoints, role: role.as_str().to_owned() }.encode();
    let noun = if role == JoinRole::Front { "front" } else { "node" };
    Ok(v1::CreateJoinTokenReply {
        id,
        command: format!("posthousectl {noun} add --token {token}"),
        token,
        expires_at: rfc3339(expires_at_ms),
        revision: written.revision,
    })
}

/// The hash by which a joiner recognises the cluster.
pub(super) fn ca_sha256(ca_pem: &str) -> Result<String, Status> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let der = CertificateDer::from_pem_slice(ca_pem.as_bytes())
        .map_err(|error| internal("the authority's certificate cannot be read", error))?;
    Ok(sha256_hex(&der))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The tokens that can still be used.
pub(super) fn list_join_tokens(context: &Context) -> v1::ListJoinTokensReply {
    let (view, now_ms) = (context.view(), now_ms());
    let tokens = view.state.join_tokens.values();
    let tokens = tokens.filter(|found| found.value.uses_left > 0 && found.value.expires_at_ms > now_ms);
    let tokens = tokens.map(|found| v1::JoinToken {
        id: found.value.id.clone(),
        role: found.value.role.as_str().to_owned(),
        uses_left: found.value.uses_left,
        expires_at: rfc3339(found.value.expires_at_ms),
        created_by: found.value.created_by.clone(),
        revision: found.revision,
    });
    v1::ListJoinTokensReply { tokens: tokens.collect() }
}

/// Drains or resumes a node.
pub(super) async fn set_node_state(
    context: &Context,
    actor: &Actor,
    request: v1::SetNodeStateRequest,
) -> Result<v1::WriteReply, Status> {
    let state = match request.state.as_str() {
        "active" => MemberState::Active,
        "draining" => MemberState::Draining,
        other => {
            let cause = format!("\"{other}\" is not active or draining");
            return Err(invalid("PH-NODE-006", "the node state is not valid", cause, "posthousectl node drain|resume"));
        }
    };
    if state == MemberState::Draining && !request.force {
        must_leave_one(context, &request.node).await?;
    }
    let change = Change::SetMemberState { name: request.node, state, force: request.force };
    AdminService::write(context, actor, request.options, change, vec![]).await
}

/// Refuses to drain the last node that would answer well. The agreed state knows only who is *wanted*; who is dead, or
/// not ready, has to be asked. When none is ready fronts use the least sick, and any of them may go but the last.
async fn must_leave_one(context: &Context, node: &str) -> Result<(), Status> {
    let view = context.view();
    let is_active = |member: &&Member| member.state == MemberState::Active;
    let members: Vec<Member> =
        view.state.members.values().map(|found| &found.value).filter(is_active).cloned().collect();
    let answers = futures_util::future::join_all(members.iter().map(|member| member_status(context, member))).await;
    let asked: Vec<_> = members.iter().zip(&answers).collect();
    let Some((_, own)) = asked.iter().find(|(member, _)| member.name == node) else {
        // Not there, or draining already: the agreed state says so.
        return Ok(());
    };
    let own_ready = own.as_ref().is_some_and(|answer| answer.ready);
    let others = || asked.iter().filter(|(member, _)| member.name != node);
    if others().filter_map(|(_, answer)| answer.as_ref()).any(|answer| answer.ready || !own_ready) {
        return Ok(());
    }
    let others = others().map(|(member, answer)| match answer {
        Some(answer) => format!("{} is not ready ({})", member.name, answer.reason),
        None => format!("{} does not answer", member.name),
    });
    let others = others.collect::<Vec<_>>().join(", ");
    let cause = if others.is_empty() { "no other node is active".to_owned() } else { others };
    Err(failed(problem(
        exit::NO,
        "PH-NODE-003",
        format!("\"{node}\" is the last node that would take new connections"),
        format!("{cause}: with it drained the address would stop answering, or be answered by a node that is not well"),
        "mend or resume another node first, or insist with --force",
    )))
}

/// Waits until every member uses a revision. Names those that do not in time.
pub(super) async fn await_revision(context: &Context, request: &v1::AwaitRevisionRequest) -> v1::AwaitRevisionReply {
    let began = Instant::now();
    let timeout = Duration::from_millis(request.timeout_ms).min(AWAIT_MAX);
    let view = context.view();
    let members: Vec<Member> = view.state.members.values().map(|found| found.value.clone()).collect();
    let waits = members.iter().map(|member| confirm(context, member, request.revision, began + timeout));
    let answers = futures_util::future::join_all(waits).await;
    let (mut confirmed, mut missing) = (Vec::new(), Vec::new());
    for (member, has_it) in members.into_iter().zip(answers) {
        if has_it { confirmed.push(member.name) } else { missing.push(member.name) }
    }
    let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    v1::AwaitRevisionReply { confirmed, missing, elapsed_ms }
}

/// Whether `member` uses `revision` before `deadline`.
async fn confirm(context: &Context, member: &Member, revision: u64, deadline: Instant) -> bool {
    if member.id == context.node_id {
        let left = deadline.saturating_duration_since(Instant::now());
        return context.raft.await_published(revision, left).await >= revision;
    }
    let mut refusing_since: Option<Instant> = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let mut client = PeerClient::new(context.dialer.channel(&member.rpc_address, &member.name));
        let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let call = client.await_published(Request::new(v1::AwaitPublishedRequest { revision, timeout_ms }));
        match tokio::time::timeout(left + RETRY_PAUSE, call).await {
            Ok(Ok(reply)) if reply.get_ref().published >= revision => return true,
            Ok(Ok(_)) => refusing_since = None,
            Ok(Err(_)) => {
                let since = *refusing_since.get_or_insert_with(Instant::now);
                if since.elapsed() > REFUSING_MAX {
                    return false;
                }
            }
            Err(_) => return false,
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// The names of the members other than this node, with their addresses.
pub(super) fn others(context: &Context) -> Vec<Member> {
    let view = context.view();
    let others = view.state.members.values().filter(|found| found.value.id != context.node_id);
    others.map(|found| found.value.clone()).collect()
}

/// A node that no member is called.
pub(super) fn unknown_node(context: &Arc<Context>, name: &str) -> Result<(), Status> {
    if context.view().state.member_named(name).is_some() {
        return Ok(());
    }
    Err(failed(problem(
        exit::NOT_FOUND,
        "PH-NODE-001",
        format!("node \"{name}\" not found"),
        "the cluster has no node of that name",
        "posthousectl node list",
    )))
}
