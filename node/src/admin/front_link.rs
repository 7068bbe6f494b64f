//! The FrontLink service: tells a front which backends there are and whether this node is ready, at once when
//! either changes and from time to time when neither does, so that silence means trouble.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use posthouse_proto::v1::{self, front_link_server::FrontLink};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::problem::{exit, problem, status};
use super::rpc::peer;
use super::service::ContextSlot;
use crate::clock::now_ms;
use crate::pki::{DataKey, PeerIdentity, front_key_context};
use crate::shutdown::Scope;
use crate::state::{Change, Command, FrontMember, MemberState, StateView};

/// A front that hears nothing for several of these takes the stream for dead.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// Views that a slow front may be behind; it needs only the newest.
const VIEWS_MAX: usize = 4;

/// What a node says of itself to the fronts. Whatever changes in it is pushed at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushedReadiness {
    /// Whether it should get new connections.
    pub ready: bool,
    /// Why not.
    pub reason: String,
    /// Whether it would close them without a word. A node that is merely not well serves when there is nobody better.
    pub refuses: bool,
    /// Whether it hears a leader with a quorum.
    pub has_leader: bool,
}

/// This node's readiness as it changes.
pub type ReadinessWatch = watch::Receiver<PushedReadiness>;

/// The FrontLink service.
#[derive(Clone)]
pub struct FrontLinkService {
    slot: ContextSlot,
    readiness: ReadinessWatch,
    scope: Scope,
}

impl FrontLinkService {
    /// The service for whatever is in `slot`.
    #[must_use]
    pub fn new(slot: ContextSlot, readiness: ReadinessWatch, scope: Scope) -> Self {
        Self { slot, readiness, scope }
    }
}

#[tonic::async_trait]
impl FrontLink for FrontLinkService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::FrontView, Status>> + Send>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let info = peer(&request);
        let context = self.slot.get().cloned().ok_or_else(|| Status::unavailable("not a member yet"))?;
        let PeerIdentity::Front { name } = &info.identity else {
            return Err(status(problem(
                exit::NOT_PERMITTED,
                "PH-AUTH-002",
                "not permitted",
                format!("{} is not a front", info.identity),
                "join with: posthousectl cluster join-token create --role front",
            )));
        };
        let view = context.view();
        let Some(front) = view.state.fronts.get(name).map(|found| found.value.clone()) else {
            return Err(status(problem(
                exit::NOT_PERMITTED,
                "PH-FRONT-001",
                format!("front \"{name}\" is not a member"),
                "it was removed from the cluster",
                "join it anew: posthousectl cluster join-token create --role front",
            )));
        };
        let said = request.into_inner();
        let said_addresses: Vec<IpAddr> =
            said.source_addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok()).collect();
        if (!said_addresses.is_empty() && said_addresses != front.source_addresses)
            || (!said.http_address.is_empty() && said.http_address != front.http_address)
        {
            let command = Command {
                who: info.identity.to_string(),
                from: info.from.clone(),
                at_ms: now_ms(),
                reason: String::new(),
                if_revision: None,
                accept_risk: false,
                change: Change::UpdateFront {
                    name: name.clone(),
                    source_addresses: if said_addresses.is_empty() { front.source_addresses } else { said_addresses },
                    http_address: said.http_address,
                },
            };
            // The front works from its last known addresses meanwhile; the next watch says it again.
            if let Err(error) = context.raft.propose(command).await {
                tracing::warn!(front = %name, %error, "the front's addresses could not be recorded");
            }
        }
        let (sender, receiver) = mpsc::channel(VIEWS_MAX);
        let (mut views, mut readiness) = (context.raft.view(), self.readiness.clone());
        let (node, name) = (context.node_name.clone(), name.clone());
        let (data_key, said_to_sign_with) = (context.data_key.clone(), said.signing_key_id);
        tracing::info!(front = %name, from = %info.from, "front is watching");
        self.scope.spawn_until_ended(async move {
            loop {
                let view: Arc<StateView> = Arc::clone(&views.borrow_and_update());
                let said = readiness.borrow_and_update().clone();
                let Some(front) = view.state.fronts.get(&name).map(|found| &found.value) else {
                    let _ = sender.send(Err(Status::permission_denied("this front was removed"))).await;
                    return;
                };
                let mut told = front_view(&view, &node, said);
                told.front_draining = front.state == MemberState::Draining;
                front.signing_key_id().clone_into(&mut told.signing_key_id);
                let signs_with = context.fronts.signs_with(&name).unwrap_or_else(|| said_to_sign_with.clone());
                if told.signing_key_id != signs_with {
                    told.signing_key = signing_key(&data_key, front).unwrap_or_default();
                }
                if sender.send(Ok(told)).await.is_err() {
                    return;
                }
                tokio::select! {
                    changed = views.changed() => if changed.is_err() { return },
                    changed = readiness.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(HEARTBEAT) => {}
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn report(&self, request: Request<v1::FrontReport>) -> Result<Response<v1::FrontReportReply>, Status> {
        let info = peer(&request);
        let context = self.slot.get().cloned().ok_or_else(|| Status::unavailable("not a member yet"))?;
        let PeerIdentity::Front { name } = &info.identity else {
            return Err(Status::permission_denied("only fronts report"));
        };
        if !context.view().state.fronts.contains_key(name) {
            return Err(Status::permission_denied("this front was removed"));
        }
        context.fronts.keep(name, request.into_inner());
        Ok(Response::new(v1::FrontReportReply {}))
    }
}

/// Opens the key that a front is to sign with, for that front alone.
fn signing_key(data_key: &DataKey, front: &FrontMember) -> Option<Vec<u8>> {
    let key = front.keys.iter().find(|key| key.id == front.signing_key_id())?;
    let opened = data_key.open(&front_key_context(&front.name, &key.id), &key.sealed_key);
    if opened.is_err() {
        tracing::error!(front = %front.name, key.id = %key.id, "a front's signing key cannot be opened");
    }
    opened.ok()
}

fn front_view(view: &StateView, node: &str, said: PushedReadiness) -> v1::FrontView {
    let backends = view.state.members.values().map(|found| {
        let member = &found.value;
        let services = member.services.iter().map(|service| v1::ServiceAddress {
            port: u32::from(service.port),
            address: service.address.clone(),
            implicit_tls: service.implicit_tls,
        });
        v1::FrontBackend {
            node_id: member.id,
            node: member.name.clone(),
            state: member.state.as_str().to_owned(),
            services: services.collect(),
            rpc_address: member.rpc_address.clone(),
            weight: member.weight,
        }
    });
    v1::FrontView {
        cluster_id: view.state.facts.as_ref().map(|facts| facts.id.clone()).unwrap_or_default(),
        revision: view.revision,
        backends: backends.collect(),
        node: node.to_owned(),
        ready: said.ready,
        reason: said.reason,
        has_leader: said.has_leader,
        refuses: said.refuses,
        front_draining: false,
        signing_key_id: String::new(),
        signing_key: Vec::new(),
    }
}
