//! The Join service: a machine with a token asks to become a member or a front. It has no certificate yet; it has
//! verified us by the hash in its token before it said its secret.

use std::net::IpAddr;

use posthouse_proto::v1::{self, join_server::Join};
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::convert::machine_name;
use super::problem::{exit, internal, not_committed, problem, refused, status};
use super::rpc::peer;
use super::service::{Context, ContextSlot, open_secret};
use crate::clock::now_ms;
use crate::pki::{Authority, CA_KEY_CONTEXT, IdentityRole, front_key_context, sha256_hex};
use crate::state::{Change, Command, FrontSigningKey, JoinRole, MemberService, Outcome};

/// The Join service.
#[derive(Clone)]
pub struct JoinService {
    slot: ContextSlot,
}

impl JoinService {
    /// The service for whatever is in `slot`.
    #[must_use]
    pub fn new(slot: ContextSlot) -> Self {
        Self { slot }
    }
}

#[tonic::async_trait]
impl Join for JoinService {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let from = peer(&request).from;
        let context = self.slot.get().cloned().ok_or_else(|| Status::unavailable("not a member yet"))?;
        let request = request.into_inner();
        machine_name(&request.name)?;
        let secret_sha256 = sha256_hex(&request.token_secret);
        let role = context.view().state.join_tokens.get(&request.token_id).map(|found| found.value.role);
        let joined = match role {
            Some(JoinRole::Front) => add_front(&context, request, secret_sha256, &from).await,
            // An unknown token is refused by the state, in its own words.
            _ => add_member(&context, request, secret_sha256, &from).await,
        };
        match &joined {
            Ok(reply) => tracing::info!(role = %reply.role, node.id = reply.node_id, %from, "joined"),
            Err(error) => tracing::warn!(%from, error = error.message(), "join refused"),
        }
        joined.map(Response::new)
    }
}

async fn propose(context: &Context, name: &str, from: &str, change: Change) -> Result<(u64, Option<u64>), Status> {
    let command = Command {
        who: format!("join:{name}"),
        from: from.to_owned(),
        at_ms: now_ms(),
        reason: String::new(),
        if_revision: None,
        accept_risk: false,
        change,
    };
    let committed = context.raft.propose(command).await.map_err(|error| not_committed(&error))?;
    match committed.outcome {
        Outcome::Applied { assigned, .. } => Ok((committed.revision, assigned)),
        Outcome::Refused(refusal) => Err(refused(refusal)),
    }
}

async fn add_member(
    context: &Context,
    request: v1::JoinRequest,
    secret_sha256: String,
    from: &str,
) -> Result<v1::JoinReply, Status> {
    let services = request
        .services
        .iter()
        .map(|service| MemberService {
            port: u16::try_from(service.port).unwrap_or(0),
            address: service.address.clone(),
            implicit_tls: service.implicit_tls,
        })
        .collect();
    let change = Change::AddMember {
        token_id: request.token_id.clone(),
        secret_sha256,
        name: request.name.clone(),
        rpc_address: request.advertise.clone(),
        services,
        version: request.version.clone(),
        http_address: request.http_address.clone(),
    };
    // The request is checked before the token is spent on it.
    let authority = authority(context)?;
    let certificate_pem = sign(&authority, &request, IdentityRole::Node)?;
    let (revision, assigned) = propose(context, &request.name, from, change).await?;
    let node_id = assigned.ok_or_else(|| internal("no node id was given out", "the state answered none"))?;
    let view = context.view();
    let role = view.state.members.get(&node_id).map_or("voter", |found| match found.value.role {
        crate::state::MemberRole::Voter => "voter",
        crate::state::MemberRole::Learner => "learner",
    });
    let mut reply = reply(context, &authority, role, certificate_pem, revision)?;
    reply.node_id = node_id;
    Ok(reply)
}

async fn add_front(
    context: &Context,
    request: v1::JoinRequest,
    secret_sha256: String,
    from: &str,
) -> Result<v1::JoinReply, Status> {
    let mut source_addresses = Vec::new();
    for text in &request.source_addresses {
        let address: IpAddr = text.parse().map_err(|_| {
            super::problem::invalid(
                "PH-FRONT-004",
                format!("\"{text}\" is not an address"),
                "the front says from where it dials nodes",
                "correct front.dial_from in the front file",
            )
        })?;
        source_addresses.push(address.to_canonical());
    }
    if source_addresses.is_empty()
        && let Some(address) = from.rsplit_once(':').and_then(|(host, _)| host.trim_matches(['[', ']']).parse().ok())
    {
        source_addresses.push(IpAddr::to_canonical(&address));
    }
    let authority = authority(context)?;
    let certificate_pem = sign(&authority, &request, IdentityRole::Front)?;
    let key_id: String = crate::pki::random::<8>().iter().map(|byte| format!("{byte:02x}")).collect();
    let key = crate::pki::random::<32>();
    let sealed_key = context
        .data_key
        .seal(&front_key_context(&request.name, &key_id), &key)
        .map_err(|error| internal("the signing key cannot be sealed", error))?;
    let change = Change::AddFront {
        token_id: request.token_id.clone(),
        secret_sha256,
        name: request.name.clone(),
        source_addresses,
        key: FrontSigningKey { id: key_id.clone(), sealed_key },
        http_address: request.http_address.clone(),
    };
    let (revision, _) = propose(context, &request.name, from, change).await?;
    let mut reply = reply(context, &authority, "front", certificate_pem, revision)?;
    reply.front_key_id = key_id;
    reply.front_key = key.to_vec();
    Ok(reply)
}

fn authority(context: &Context) -> Result<Authority, Status> {
    let view = context.view();
    let facts = view.state.facts.as_ref().ok_or_else(|| internal("the state is empty", "cluster init has not run"))?;
    let key = open_secret(context, CA_KEY_CONTEXT, &facts.sealed_ca_key)?;
    Authority::load(&facts.ca_pem, &key, &facts.id).map_err(|error| internal("the authority cannot sign", error))
}

fn sign(authority: &Authority, request: &v1::JoinRequest, role: IdentityRole) -> Result<String, Status> {
    authority.sign_request(&request.csr_pem, role, &request.name, OffsetDateTime::now_utc()).map_err(|error| {
        status(problem(exit::INVALID, "PH-JOIN-004", "the certificate request is not valid", error, ""))
    })
}

fn reply(
    context: &Context,
    authority: &Authority,
    role: &str,
    certificate_pem: String,
    revision: u64,
) -> Result<v1::JoinReply, Status> {
    let view = context.view();
    let facts = view.state.facts.as_ref().ok_or_else(|| internal("the state is empty", "cluster init has not run"))?;
    Ok(v1::JoinReply {
        cluster: facts.name.clone(),
        cluster_id: facts.id.clone(),
        node_id: 0,
        role: role.to_owned(),
        certificate_pem,
        ca_pem: authority.ca_pem().to_owned(),
        endpoints: view.state.members.values().map(|found| found.value.rpc_address.clone()).collect(),
        front_key_id: String::new(),
        front_key: Vec::new(),
        revision,
    })
}
