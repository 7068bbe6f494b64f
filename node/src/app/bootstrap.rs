//! How a cluster begins and how machines join it. `identity.json` is written last: whatever was interrupted before
//! that is cleared away at the next try.

use std::path::Path;
use std::time::Duration;

use posthouse_proto::v1::{self, join_client::JoinClient, peer_client::PeerClient};
use time::OffsetDateTime;
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use super::node::Node;
use crate::admin::failure;
use crate::clock::now_ms;
use crate::connector::{ReceiveConnector, RemoteIpRange};
use crate::pki::{
    Authority, CA_KEY_CONTEXT, DataKey, Identity, IdentityRole, JoinTokenText, Redacted, SUBMISSION_CERTIFICATE_NAME,
    certificate_details, sha256_hex,
};
use crate::raft::{ProposeError, RaftHandle};
use crate::shutdown::run_blocking;
use crate::state::{Certificate, Change, ClusterFacts, Command, Member, MemberRole, MemberState, NewCluster, Outcome};
use crate::tls::{self, Dialer, certificate_context};

/// The first node's id.
const FIRST_NODE_ID: u64 = 1;
/// How long a joiner waits for the cluster to let it in and bring it up to date.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one call of a join may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);

fn broken(what: &str, cause: impl ToString) -> Status {
    failure(9, "PH-NODE-009", what, cause, "see the node's log")
}

/// Removes what an interrupted init or join left: without an identity it belongs to nobody.
fn clear_half_made(dir: &Path) -> std::io::Result<()> {
    for name in ["raft", "data.key", "identity.key", "identity.crt", "ca.crt"] {
        let path = dir.join(name);
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Makes a cluster with this node as its first voter.
pub(super) async fn init(node: &Node, request: v1::InitClusterRequest) -> Result<v1::InitClusterReply, Status> {
    let config = &node.config;
    let name = if request.cluster.is_empty() { "posthouse".to_owned() } else { request.cluster };
    crate::config::is_name(&name).then_some(()).ok_or_else(|| {
        failure(
            8,
            "PH-RAFT-006",
            "the cluster's name is not valid",
            "letters, digits and hyphens",
            "choose another --name",
        )
    })?;
    let cluster_id = uuid::Uuid::now_v7().to_string();
    let (now, at_ms) = (OffsetDateTime::now_utc(), now_ms());
    let data_key = DataKey::generate();
    let (authority, ca_key) =
        Authority::create(&name, &cluster_id, now).map_err(|error| broken("the authority cannot be made", error))?;
    let seal = |context: &str, secret: &[u8]| {
        data_key.seal(context, secret).map_err(|error| broken("a secret cannot be sealed", error))
    };
    let issue = |role, holder: &str| {
        authority.issue_identity(role, holder, now).map_err(|error| broken("a certificate cannot be made", error))
    };
    let own = issue(IdentityRole::Node, &config.node.name)?;
    let admin = issue(IdentityRole::Admin, "admin")?;
    let server_names = server_names(node, &request.smtp_names);
    let server = authority.issue_server(&server_names, now).map_err(|error| {
        failure(8, "PH-TLS-002", "the server certificate cannot be made", error, "correct --smtp-name")
    })?;
    let (subject, issuer, names, not_after_ms) =
        certificate_details(&server.chain_pem).map_err(|error| broken("the certificate cannot be read", error))?;
    let certificate = Certificate {
        name: SUBMISSION_CERTIFICATE_NAME.to_owned(),
        sealed_key: seal(&certificate_context(SUBMISSION_CERTIFICATE_NAME), &server.key_der)?,
        chain_pem: server.chain_pem,
        names,
        subject,
        issuer,
        not_after_ms,
    };
    let advertise = if request.advertise.is_empty() { config.advertise() } else { request.advertise };
    let member = Member {
        id: FIRST_NODE_ID,
        name: config.node.name.clone(),
        rpc_address: advertise.clone(),
        services: node.services(),
        role: MemberRole::Voter,
        state: MemberState::Active,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        http_address: config.node.http.to_string(),
        joined_at_ms: at_ms,
        weight: crate::state::MEMBER_WEIGHT_DEFAULT,
    };
    let everywhere = vec![RemoteIpRange::all_v4(), RemoteIpRange::all_v6()];
    let connectors = [
        ReceiveConnector::default_receive(),
        ReceiveConnector::default_submission(),
        ReceiveConnector::default_submissions(),
    ];
    let facts = ClusterFacts {
        name: name.clone(),
        id: cluster_id.clone(),
        ca_pem: authority.ca_pem().to_owned(),
        sealed_ca_key: seal(CA_KEY_CONTEXT, &ca_key)?,
        next_node_id: FIRST_NODE_ID + 1,
        created_at_ms: at_ms,
    };
    let command = Command {
        who: "local".to_owned(),
        from: "unix".to_owned(),
        at_ms,
        reason: "cluster init".to_owned(),
        if_revision: None,
        accept_risk: false,
        change: Change::InitCluster(Box::new(NewCluster {
            facts,
            member,
            connectors: connectors.into_iter().map(|connector| (connector, everywhere.clone())).collect(),
            certificate,
        })),
    };
    let identity = Identity {
        cluster: name.clone(),
        cluster_id: cluster_id.clone(),
        name: config.node.name.clone(),
        role: IdentityRole::Node,
        node_id: FIRST_NODE_ID,
        endpoints: vec![advertise.clone()],
        front_key_id: String::new(),
        chain_pem: own.chain_pem,
        key_pem: Redacted(own.key_pem),
        ca_pem: authority.ca_pem().to_owned(),
    };
    let (dir, saved_key) = (config.node.data_dir.clone(), data_key.clone());
    run_blocking(move || {
        clear_half_made(&dir).map_err(|error| error.to_string())?;
        Identity::save_data_key(&dir, &saved_key).map_err(|error| error.to_string())
    })
    .await
    .map_err(|error| broken("the data directory cannot be used", error))?;
    node.start_member(identity.clone(), Some(command)).await.map_err(|error| broken("the node cannot start", error))?;
    let dir = config.node.data_dir.clone();
    run_blocking(move || identity.save(&dir)).await.map_err(|error| broken("the identity cannot be kept", error))?;
    let ca_pem = authority.ca_pem().to_owned();
    Ok(v1::InitClusterReply {
        cluster: name,
        cluster_id,
        ca_hash: ca_hash(&ca_pem)?,
        ca_pem,
        admin_cert_pem: admin.chain_pem,
        admin_key_pem: admin.key_pem,
        endpoint: advertise,
        revision: node.slot.get().map_or(0, |context| context.view().revision),
    })
}

fn ca_hash(ca_pem: &str) -> Result<String, Status> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(ca_pem.as_bytes())
        .map(|der| sha256_hex(&der))
        .map_err(|error| broken("the authority's certificate cannot be read", error))
}

/// The names that devices may use for the address: what was asked for, this node, and the machine itself.
fn server_names(node: &Node, wanted: &[String]) -> Vec<String> {
    let host = |address: &str| address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned();
    let mut names = wanted.to_vec();
    names.extend([node.config.fqdn(), host(&node.config.advertise()), "localhost".to_owned()]);
    names.extend(["127.0.0.1".to_owned(), "::1".to_owned()]);
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.trim_matches(['[', ']']).to_owned()));
    names.iter().map(|name| name.trim_matches(['[', ']']).to_owned()).collect()
}

/// Proposes the first entry of the log, once this node has elected itself.
pub(super) async fn first_command(raft: &RaftHandle, command: Command) -> Result<(), String> {
    let deadline = Instant::now() + CALL_TIMEOUT;
    loop {
        match raft.propose(command.clone()).await {
            Ok(committed) => {
                return match committed.outcome {
                    Outcome::Applied { .. } => Ok(()),
                    Outcome::Refused(refusal) => Err(format!("{}: {}", refusal.message, refusal.cause)),
                };
            }
            Err(ProposeError::NoLeader) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// What a joiner says and gets: shared by nodes and fronts.
pub(super) struct Joined {
    pub(super) reply: v1::JoinReply,
    pub(super) key_pem: Redacted,
}

/// Reads a token and asks the members that it names, in turn.
pub(super) async fn ask_to_join(token: &str, expected: &[&str], request: v1::JoinRequest) -> Result<Joined, Status> {
    let token = JoinTokenText::decode(token)
        .map_err(|error| failure(8, "PH-JOIN-005", "the join token cannot be read", error, "copy the whole word"))?;
    if !expected.contains(&token.role.as_str()) {
        let cause = format!("it was made for a {}", token.role);
        let fix = "make one of the right kind: posthousectl cluster join-token create --role …";
        return Err(failure(8, "PH-JOIN-006", "the join token is of the wrong kind", cause, fix));
    }
    let (key_pem, csr_pem) = Identity::request().map_err(|error| broken("no key can be made", error))?;
    let mut last = failure(5, "PH-JOIN-007", "the token names no member", "it has no addresses", "make a new one");
    for endpoint in &token.endpoints {
        let request = v1::JoinRequest {
            token_id: token.id.clone(),
            token_secret: token.secret.clone().into_bytes(),
            csr_pem: csr_pem.clone(),
            ..request.clone()
        };
        let channel =
            tls::join_channel(endpoint, &token.ca_sha256).map_err(|error| broken("TLS cannot be configured", error))?;
        let call = async { JoinClient::new(channel).join(Request::new(request)).await };
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(reply)) => return Ok(Joined { reply: reply.into_inner(), key_pem }),
            Ok(Err(status)) if status.code() == Code::Unavailable || status.code() == Code::Unknown => {
                last = failure(
                    5,
                    "PH-JOIN-007",
                    "no member that the token names could be reached",
                    format!("{endpoint}: {}", deepest(&status)),
                    "check that the members run and that their cluster port can be reached from here",
                );
            }
            Ok(Err(status)) => return Err(status),
            Err(_) => {
                let cause = format!("{endpoint} did not answer within {} s", CALL_TIMEOUT.as_secs());
                last = failure(5, "PH-JOIN-007", "no member answered", cause, "check the network");
            }
        }
    }
    Err(last)
}

/// The innermost cause: "transport error" helps nobody.
fn deepest(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Joins this node to a cluster, and waits until it is what the token said.
pub(super) async fn join_node(node: &Node, request: v1::JoinClusterRequest) -> Result<v1::JoinClusterReply, Status> {
    let config = &node.config;
    let advertise = if request.advertise.is_empty() { config.advertise() } else { request.advertise };
    let services = node.services().into_iter().map(|service| v1::ServiceAddress {
        port: u32::from(service.port),
        address: service.address,
        implicit_tls: service.implicit_tls,
    });
    let asked = v1::JoinRequest {
        name: config.node.name.clone(),
        advertise,
        services: services.collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        http_address: config.node.http.to_string(),
        ..Default::default()
    };
    let Joined { reply, key_pem } = ask_to_join(&request.token, &["voter", "learner"], asked).await?;
    let identity = Identity {
        cluster: reply.cluster.clone(),
        cluster_id: reply.cluster_id.clone(),
        name: config.node.name.clone(),
        role: IdentityRole::Node,
        node_id: reply.node_id,
        endpoints: reply.endpoints.clone(),
        front_key_id: String::new(),
        chain_pem: reply.certificate_pem.clone(),
        key_pem,
        ca_pem: reply.ca_pem.clone(),
    };
    let data_key = fetch_data_key(&identity).await?;
    let (dir, saved) = (config.node.data_dir.clone(), identity.clone());
    run_blocking(move || {
        clear_half_made(&dir).map_err(|error| error.to_string())?;
        Identity::save_data_key(&dir, &data_key).map_err(|error| error.to_string())?;
        saved.save(&dir).map_err(|error| error.to_string())
    })
    .await
    .map_err(|error| broken("the identity cannot be kept", error))?;
    node.start_member(identity, None).await.map_err(|error| broken("the node cannot start", error))?;
    wait_until_caught_up(node, &reply).await?;
    Ok(v1::JoinClusterReply {
        cluster: reply.cluster,
        name: config.node.name.clone(),
        role: reply.role,
        revision: reply.revision,
    })
}

/// Gets the data key over mutual TLS, under the certificate that was just received.
async fn fetch_data_key(identity: &Identity) -> Result<DataKey, Status> {
    let dialer = Dialer::new(identity).map_err(|error| broken("TLS cannot be configured", error))?;
    let deadline = Instant::now() + CALL_TIMEOUT;
    loop {
        let mut last = Status::unavailable("no member is known");
        for endpoint in &identity.endpoints {
            let mut client = PeerClient::new(dialer.channel(endpoint, ""));
            let call = client.data_key(Request::new(v1::DataKeyRequest {}));
            match tokio::time::timeout(CALL_TIMEOUT, call).await {
                Ok(Ok(reply)) => {
                    return DataKey::from_bytes(&reply.get_ref().data_key)
                        .map_err(|error| broken("the data key that was received is not one", error));
                }
                // A follower that has not applied our admission yet refuses; the next, or a moment later, will not.
                Ok(Err(status)) => last = status,
                Err(_) => last = Status::deadline_exceeded("no answer in time"),
            }
        }
        if Instant::now() >= deadline {
            return Err(broken("the data key could not be received", last.message()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until this node has the state of the moment it was let in, and votes if it is to vote.
async fn wait_until_caught_up(node: &Node, reply: &v1::JoinReply) -> Result<(), Status> {
    let Some(context) = node.slot.get() else { return Err(broken("the node did not start", "no context")) };
    let deadline = Instant::now() + JOIN_TIMEOUT;
    loop {
        let status = context.raft.status();
        let has_state = context.view().revision >= reply.revision;
        let votes = status.voters.contains(&reply.node_id);
        if has_state && (votes || reply.role == "learner") {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(failure(
                7,
                "PH-JOIN-008",
                format!("this node joined, but is not a {} yet", reply.role),
                if has_state { "its vote is not confirmed" } else { "it has not received the state" },
                "it goes on trying; watch it with: posthousectl cluster status -w",
            ));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
