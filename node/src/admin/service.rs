//! The Admin service: requests → commands for the cluster, and answers read from the state. What only one node knows
//! (its queue, its traces, its sessions) is asked of every node and put together.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use posthouse_proto::v1::{self, admin_server::Admin};
use tonic::{Request, Response, Status};

use super::convert;
use super::problem::{exit, internal, invalid, not_committed, problem, refused, status};
use super::rpc::peer;
use crate::clock::now_ms;
use crate::connector::{ReceiveConnector, SendConnector};
use crate::pki::{DataKey, PeerIdentity, PeerInfo};
use crate::protocol_log::Live;
use crate::queue::QueueHandle;
use crate::raft::{LocalFacts, RaftHandle};
use crate::sessions::Sessions;
use crate::shutdown::Scope;
use crate::spool::Spool;
use crate::state::{AllowlistEntry, Change, Command, NEVER_MS, Outcome, StateView, apply};
use crate::tls::{Dialer, FailedHandshakes};
use crate::usage::Usages;

/// What the services of a member work with.
pub struct Context {
    /// Proposes, and knows the state.
    pub raft: RaftHandle,
    /// Accepted letters.
    pub spool: Spool,
    /// What is done with them.
    pub queue: QueueHandle,
    /// Reaches the other members.
    pub dialer: Dialer,
    /// Seals secrets.
    pub data_key: DataKey,
    /// Devices of this node that could not shake hands.
    pub failed_handshakes: Arc<FailedHandshakes>,
    /// Who listens to dialogues as they happen.
    pub live: Live,
    /// Ends what goes on for as long as the node runs.
    pub scope: Scope,
    /// What this node knows of the use of ranges and credentials.
    pub usages: Usages,
    /// Sessions that devices have open at this node.
    pub sessions: Sessions,
    /// This node's name.
    pub node_name: String,
    /// This node's id.
    pub node_id: u64,
    /// What fronts said of themselves lately.
    pub fronts: super::FrontReports,
    /// What this node knows of itself.
    pub local_facts: Arc<dyn Fn() -> LocalFacts + Send + Sync>,
    /// Random per-process key of the cache of verified passwords is elsewhere; this is the user that runs us, who
    /// may use the local socket beside root.
    pub own_uid: u32,
}

/// The context, once this node is a member.
pub type ContextSlot = Arc<OnceLock<Arc<Context>>>;

/// The Admin service.
#[derive(Clone)]
pub struct AdminService {
    slot: ContextSlot,
}

/// Who wants a change, and from where.
#[derive(Clone)]
pub(super) struct Actor {
    pub(super) who: String,
    pub(super) from: String,
    /// A member asks on behalf of somebody it has checked.
    pub(super) is_member: bool,
}

impl Context {
    /// The newest state.
    #[must_use]
    pub fn view(&self) -> Arc<StateView> {
        Arc::clone(&self.raft.view().borrow())
    }
}

impl AdminService {
    /// The service for whatever is in `slot`; until then every call says what to do first.
    #[must_use]
    pub fn new(slot: ContextSlot) -> Self {
        Self { slot }
    }

    /// Lets administrators, root and our own user in, and members; nobody else.
    pub(super) fn open<T>(&self, request: &Request<T>) -> Result<(Arc<Context>, Actor), Status> {
        let PeerInfo { identity, from } = peer(request);
        let is_member = matches!(identity, PeerIdentity::Node { .. });
        let context = self.slot.get().cloned().ok_or_else(|| {
            status(problem(
                exit::OTHER,
                "PH-NODE-005",
                "this node belongs to no cluster yet",
                "neither cluster init nor a join has run here",
                "first node: posthousectl cluster init; any other: posthousectl node add --token TOKEN",
            ))
        })?;
        let allowed = match &identity {
            PeerIdentity::Admin { .. } | PeerIdentity::Node { .. } => true,
            PeerIdentity::Local { uid } => *uid == 0 || *uid == context.own_uid,
            PeerIdentity::Front { .. } | PeerIdentity::Anonymous => false,
        };
        if !allowed {
            return Err(status(problem(
                exit::NOT_PERMITTED,
                "PH-AUTH-001",
                "not permitted",
                format!("{identity} is not an administrator of this cluster"),
                "use the context that cluster init made, or the local socket as root",
            )));
        }
        Ok((context, Actor { who: identity.to_string(), from, is_member }))
    }

    /// Proposes a change, or for a dry run tries it on a copy of the state.
    pub(super) async fn write(
        context: &Context,
        actor: &Actor,
        options: Option<v1::WriteOptions>,
        change: Change,
        mut warnings: Vec<String>,
    ) -> Result<v1::WriteReply, Status> {
        let options = options.unwrap_or_default();
        if options.accept_risk && options.reason.trim().is_empty() {
            return Err(invalid(
                "PH-ALLOW-008",
                "the override of the open-relay guard needs a reason",
                "--accept-risk puts the risk on record, and a record without a reason is none",
                "add --reason TEXT",
            ));
        }
        let command = Command {
            who: actor.who.clone(),
            from: actor.from.clone(),
            at_ms: now_ms(),
            reason: options.reason,
            if_revision: options.if_revision,
            accept_risk: options.accept_risk,
            change,
        };
        let (revision, outcome) = if options.dry_run {
            let view = context.view();
            let mut state = view.state.clone();
            (view.revision, apply(&mut state, &command, view.revision + 1).outcome)
        } else {
            let committed = context.raft.propose(command).await.map_err(|error| not_committed(&error))?;
            (committed.revision, committed.outcome)
        };
        match outcome {
            Outcome::Applied { changed, warnings: more, gains, .. } => {
                warnings.extend(more);
                let gains = gains.iter().map(convert::gain_out).collect();
                Ok(v1::WriteReply { revision, warnings, dry_run: options.dry_run, changed, gains })
            }
            Outcome::Refused(refusal) => Err(refused(refusal)),
        }
    }
}

/// How often a read-modify-write is repeated when somebody else was quicker.
pub(super) const MERGE_ATTEMPTS: usize = 5;

/// Repeats a read-modify-write whose object moved between the read and the write, unless the caller named the
/// revision: then moving is the caller's answer.
macro_rules! merged_write {
    ($context:expr, $actor:expr, $options:expr, |$view:ident| $build:block) => {{
        let named = $options.as_ref().is_some_and(|options| options.if_revision.is_some());
        let mut attempt = 0;
        loop {
            attempt += 1;
            let $view = $context.view();
            let (change, revision, warnings): (Change, Option<u64>, Vec<String>) = $build;
            let mut options = $options.clone().unwrap_or_default();
            if !named {
                options.if_revision = revision;
            }
            match AdminService::write($context, $actor, Some(options), change, warnings).await {
                Err(status) if status.code() == tonic::Code::Aborted && !named && attempt < MERGE_ATTEMPTS => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                result => break result,
            }
        }
    }};
}

pub(super) use merged_write;

#[tonic::async_trait]
impl Admin for AdminService {
    async fn cluster_status(
        &self,
        request: Request<v1::ClusterStatusRequest>,
    ) -> Result<Response<v1::ClusterStatusReply>, Status> {
        let (context, _) = self.open(&request)?;
        Ok(Response::new(super::cluster::status(&context).await))
    }

    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenReply>, Status> {
        let (context, actor) = self.open(&request)?;
        super::cluster::create_join_token(&context, &actor, request.into_inner()).await.map(Response::new)
    }

    async fn list_join_tokens(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListJoinTokensReply>, Status> {
        let (context, _) = self.open(&request)?;
        Ok(Response::new(super::cluster::list_join_tokens(&context)))
    }

    async fn revoke_join_token(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        let v1::NameRequest { name, options } = request.into_inner();
        let change = Change::RevokeJoinToken { id: name };
        Ok(Response::new(Self::write(&context, &actor, options, change, vec![]).await?))
    }

    async fn set_node_state(
        &self,
        request: Request<v1::SetNodeStateRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        super::cluster::set_node_state(&context, &actor, request.into_inner()).await.map(Response::new)
    }

    async fn list_nodes(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListNodesReply>, Status> {
        let (context, _) = self.open(&request)?;
        let reply = super::cluster::status(&context).await;
        let unreachable = reply.members.iter().filter(|member| !member.reachable).map(|member| member.name.clone());
        let unreachable = unreachable.collect();
        Ok(Response::new(v1::ListNodesReply { nodes: reply.members, unreachable }))
    }

    async fn put_connector(
        &self,
        request: Request<v1::PutConnectorRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        let v1::PutConnectorRequest { connector, create, options } = request.into_inner();
        let from = connector.unwrap_or_default();
        let ranges = match &from.remote_ip_ranges {
            Some(list) => Some(convert::ranges(&list.values)?),
            None => None,
        };
        let written = merged_write!(&context, &actor, options, |view| {
            let found = view.state.connectors.get(&from.name);
            let base = match found {
                Some(found) if !create => (*found.value).clone(),
                _ => ReceiveConnector::new(from.name.clone()),
            };
            let connector = Box::new(convert::merge_connector(base, &from)?);
            let (ranges, warnings) = ranges.clone().map_or((None, vec![]), |(ranges, said)| (Some(ranges), said));
            let revision = found.filter(|_| !create).map(|found| found.revision);
            (Change::PutConnector { create, connector, ranges }, revision, warnings)
        });
        Ok(Response::new(written?))
    }

    async fn delete_connector(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        let v1::NameRequest { name, options } = request.into_inner();
        let change = Change::DeleteConnector { name };
        Ok(Response::new(Self::write(&context, &actor, options, change, vec![]).await?))
    }

    async fn list_connectors(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListConnectorsReply>, Status> {
        let (context, _) = self.open(&request)?;
        let view = context.view();
        let connectors = view.state.connectors.values().map(|found| convert::connector_out(&view, found));
        let mut connectors: Vec<v1::Connector> = connectors.collect();
        let usage = match request.get_ref().with_usage {
            true => Some(super::usage::of_connectors(&context, &mut connectors).await),
            false => None,
        };
        Ok(Response::new(v1::ListConnectorsReply { connectors, revision: view.revision, usage }))
    }

    async fn add_allowlist_entries(
        &self,
        request: Request<v1::AddAllowlistEntriesRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        let request = request.into_inner();
        let (ranges, warnings) = convert::ranges(&request.ranges)?;
        if ranges.is_empty() {
            return Err(invalid("PH-ALLOW-003", "no range was named", "there is nothing to add", "name at least one"));
        }
        let now_ms = now_ms();
        let expires_at_ms = request.expires_in_secs.map(|secs| match secs {
            0 => NEVER_MS,
            secs => now_ms.saturating_add(i64::try_from(secs).unwrap_or(i64::MAX).saturating_mul(1000)),
        });
        let entries = ranges
            .into_iter()
            .map(|range| AllowlistEntry {
                range,
                note: request.note.clone(),
                owner: request.owner.clone(),
                ticket: request.ticket.clone(),
                expires_at_ms,
                created_by: actor.who.clone(),
                created_at_ms: now_ms,
            })
            .collect();
        let change = Change::AddAllowlistEntries { connector: request.connector, entries };
        Ok(Response::new(Self::write(&context, &actor, request.options, change, warnings).await?))
    }

    async fn remove_allowlist_entries(
        &self,
        request: Request<v1::RemoveAllowlistEntriesRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        let request = request.into_inner();
        let (ranges, warnings) = convert::ranges(&request.ranges)?;
        let change = Change::RemoveAllowlistEntries { connector: request.connector, ranges };
        Ok(Response::new(Self::write(&context, &actor, request.options, change, warnings).await?))
    }

    async fn list_allowlist_entries(
        &self,
        request: Request<v1::ListAllowlistEntriesRequest>,
    ) -> Result<Response<v1::ListAllowlistEntriesReply>, Status> {
        let (context, _) = self.open(&request)?;
        let request = request.into_inner();
        let mut reply = super::allowlist::list(&context.view(), &request)?;
        if request.with_usage {
            reply.usage = Some(super::usage::of_entries(&context, &mut reply.entries, &request.without).await?);
        }
        Ok(Response::new(reply))
    }

    async fn lint_allowlist(
        &self,
        request: Request<v1::LintAllowlistRequest>,
    ) -> Result<Response<v1::LintAllowlistReply>, Status> {
        let (context, _) = self.open(&request)?;
        super::allowlist::lint(&context.view(), request.get_ref()).map(Response::new)
    }

    async fn connector_overlaps(
        &self,
        request: Request<v1::ConnectorOverlapsRequest>,
    ) -> Result<Response<v1::ConnectorOverlapsReply>, Status> {
        let (context, _) = self.open(&request)?;
        Ok(Response::new(super::allowlist::overlaps(&context.view())))
    }

    async fn put_domain(&self, request: Request<v1::PutDomainRequest>) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        let v1::PutDomainRequest { domain, create, options } = request.into_inner();
        let from = domain.unwrap_or_default();
        let written = merged_write!(&context, &actor, options, |view| {
            let name = from.name.trim().to_ascii_lowercase();
            let found = view.state.domains.get(name.strip_prefix("*.").unwrap_or(&name));
            let domain = convert::domain_in(&from, found.map(|found| &found.value))?;
            let revision = found.filter(|_| !create).map(|found| found.revision);
            (Change::PutDomain { create, domain }, revision, vec![])
        });
        Ok(Response::new(written?))
    }

    async fn delete_domain(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        let v1::NameRequest { name, options } = request.into_inner();
        let name = name.trim().to_ascii_lowercase();
        let change = Change::DeleteDomain { name: name.strip_prefix("*.").unwrap_or(&name).to_owned() };
        Ok(Response::new(Self::write(&context, &actor, options, change, vec![]).await?))
    }

    async fn list_domains(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListDomainsReply>, Status> {
        let (context, _) = self.open(&request)?;
        let view = context.view();
        let domains = view.state.domains.values().map(convert::domain_out).collect();
        Ok(Response::new(v1::ListDomainsReply { domains, revision: view.revision }))
    }

    async fn put_route(&self, request: Request<v1::PutRouteRequest>) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        let v1::PutRouteRequest { route, create, options, auth_password } = request.into_inner();
        let from = route.unwrap_or_default();
        let written = merged_write!(&context, &actor, options, |view| {
            let found = view.state.routes.get(&from.name);
            let base = match found {
                Some(found) if !create => (*found.value).clone(),
                _ => SendConnector::new(from.name.clone()),
            };
            let route = super::route::merge(&context, base, &from, auth_password.as_deref())?;
            let revision = found.filter(|_| !create).map(|found| found.revision);
            (Change::PutRoute { create, route }, revision, vec![])
        });
        Ok(Response::new(written?))
    }

    async fn delete_route(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        let v1::NameRequest { name, options } = request.into_inner();
        let change = Change::DeleteRoute { name };
        Ok(Response::new(Self::write(&context, &actor, options, change, vec![]).await?))
    }

    async fn list_routes(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListRoutesReply>, Status> {
        let (context, _) = self.open(&request)?;
        let view = context.view();
        let routes = view.state.routes.values().map(super::route::route_out).collect();
        Ok(Response::new(v1::ListRoutesReply { routes, revision: view.revision }))
    }

    async fn test_route(&self, request: Request<v1::TestRouteRequest>) -> Result<Response<v1::TestRouteReply>, Status> {
        let (context, _) = self.open(&request)?;
        Ok(Response::new(super::route::test(&context, request.into_inner()).await?))
    }

    async fn put_credential(
        &self,
        request: Request<v1::PutCredentialRequest>,
    ) -> Result<Response<v1::PutCredentialReply>, Status> {
        let (context, actor) = self.open(&request)?;
        super::credential::put(&context, &actor, request.into_inner()).await.map(Response::new)
    }

    async fn test_credential(
        &self,
        request: Request<v1::TestCredentialRequest>,
    ) -> Result<Response<v1::TestCredentialReply>, Status> {
        let (context, _) = self.open(&request)?;
        super::credential::test(&context, request.into_inner()).await.map(Response::new)
    }

    async fn delete_credential(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        let v1::NameRequest { name, options } = request.into_inner();
        let change = Change::DeleteCredential { user: name.trim().to_lowercase() };
        Ok(Response::new(Self::write(&context, &actor, options, change, vec![]).await?))
    }

    async fn list_credentials(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListCredentialsReply>, Status> {
        let (context, _) = self.open(&request)?;
        let (view, now_ms) = (context.view(), now_ms());
        let credentials = view.state.credentials.values().map(|found| convert::credential_out(found, now_ms));
        let mut credentials: Vec<v1::Credential> = credentials.collect();
        let usage = match request.get_ref().with_usage {
            true => Some(super::usage::of_credentials(&context, &mut credentials).await),
            false => None,
        };
        Ok(Response::new(v1::ListCredentialsReply { credentials, revision: view.revision, usage }))
    }

    async fn list_certificates(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListCertificatesReply>, Status> {
        let (context, _) = self.open(&request)?;
        Ok(Response::new(super::tls::list(&context.view())))
    }

    async fn import_certificate(
        &self,
        request: Request<v1::ImportCertificateRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        super::tls::import(&context, &actor, request.into_inner()).await.map(Response::new)
    }

    async fn delete_certificate(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        let v1::NameRequest { name, options } = request.into_inner();
        let change = Change::DeleteCertificate { name };
        Ok(Response::new(Self::write(&context, &actor, options, change, vec![]).await?))
    }

    async fn put_client_authorities(
        &self,
        request: Request<v1::PutClientAuthoritiesRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        super::tls::put_client_authorities(&context, &actor, request.into_inner()).await.map(Response::new)
    }

    async fn list_failed_handshakes(
        &self,
        request: Request<v1::ListFailedHandshakesRequest>,
    ) -> Result<Response<v1::ListFailedHandshakesReply>, Status> {
        let (context, _) = self.open(&request)?;
        Ok(Response::new(super::tls::failed_handshakes(&context, request.into_inner()).await))
    }

    async fn list_fronts(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListFrontsReply>, Status> {
        let (context, _) = self.open(&request)?;
        Ok(Response::new(v1::ListFrontsReply { fronts: super::fronts::list(&context.view(), &context.fronts) }))
    }

    async fn set_front_state(
        &self,
        request: Request<v1::SetFrontStateRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        super::fronts::set_state(&context, &actor, request.into_inner()).await.map(Response::new)
    }

    async fn rotate_front_key(
        &self,
        request: Request<v1::NameRequest>,
    ) -> Result<Response<v1::RotateFrontKeyReply>, Status> {
        let (context, actor) = self.open(&request)?;
        super::fronts::rotate_key(&context, &actor, request.into_inner()).await.map(Response::new)
    }

    async fn set_node_weight(
        &self,
        request: Request<v1::SetNodeWeightRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        let v1::SetNodeWeightRequest { node, weight, options } = request.into_inner();
        let change = Change::SetMemberWeight { name: node, weight };
        Ok(Response::new(Self::write(&context, &actor, options, change, vec![]).await?))
    }

    async fn remove_front(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        let v1::NameRequest { name, options } = request.into_inner();
        let change = Change::RemoveFront { name };
        Ok(Response::new(Self::write(&context, &actor, options, change, vec![]).await?))
    }

    async fn list_settings(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListSettingsReply>, Status> {
        let (context, _) = self.open(&request)?;
        Ok(Response::new(convert::settings_out(&context.view().state.settings)))
    }

    async fn set_settings(&self, request: Request<v1::SetSettingsRequest>) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        let v1::SetSettingsRequest { values, options } = request.into_inner();
        let values = values.into_iter().map(|one| (one.key, one.value)).collect();
        let change = Change::SetSettings { values };
        Ok(Response::new(Self::write(&context, &actor, options, change, vec![]).await?))
    }

    async fn await_revision(
        &self,
        request: Request<v1::AwaitRevisionRequest>,
    ) -> Result<Response<v1::AwaitRevisionReply>, Status> {
        let (context, _) = self.open(&request)?;
        Ok(Response::new(super::cluster::await_revision(&context, request.get_ref()).await))
    }

    async fn explain_ip(&self, request: Request<v1::ExplainIpRequest>) -> Result<Response<v1::ExplainIpReply>, Status> {
        let (context, _) = self.open(&request)?;
        super::explain::explain_ip(&context.view(), request.get_ref()).map(Response::new)
    }

    async fn queue_summary(
        &self,
        request: Request<v1::QueueRequest>,
    ) -> Result<Response<v1::QueueSummaryReply>, Status> {
        let (context, _) = self.open(&request)?;
        super::queue::summary(&context, request.into_inner()).await.map(Response::new)
    }

    async fn queue_list(&self, request: Request<v1::QueueRequest>) -> Result<Response<v1::QueueListReply>, Status> {
        let (context, _) = self.open(&request)?;
        super::queue::list(&context, request.into_inner()).await.map(Response::new)
    }

    async fn queue_retry(&self, request: Request<v1::QueueRequest>) -> Result<Response<v1::QueueChangeReply>, Status> {
        let (context, actor) = self.open(&request)?;
        super::queue::change(&context, &actor, request.into_inner(), super::queue::Verb::Retry).await.map(Response::new)
    }

    async fn queue_shape(
        &self,
        request: Request<v1::QueueShapeRequest>,
    ) -> Result<Response<v1::QueueShapeReply>, Status> {
        let (context, _) = self.open(&request)?;
        super::queue_view::shape(&context, request.into_inner()).await.map(Response::new)
    }

    async fn queue_show(&self, request: Request<v1::QueueShowRequest>) -> Result<Response<v1::QueueShowReply>, Status> {
        let (context, _) = self.open(&request)?;
        super::queue_view::show(&context, request.into_inner()).await.map(Response::new)
    }

    async fn queue_bounce(&self, request: Request<v1::QueueRequest>) -> Result<Response<v1::QueueChangeReply>, Status> {
        let (context, actor) = self.open(&request)?;
        super::queue::change(&context, &actor, request.into_inner(), super::queue::Verb::Bounce)
            .await
            .map(Response::new)
    }

    async fn queue_redirect(
        &self,
        request: Request<v1::QueueRequest>,
    ) -> Result<Response<v1::QueueChangeReply>, Status> {
        let (context, actor) = self.open(&request)?;
        super::queue::change(&context, &actor, request.into_inner(), super::queue::Verb::Redirect)
            .await
            .map(Response::new)
    }

    async fn queue_hold(&self, request: Request<v1::QueueRequest>) -> Result<Response<v1::QueueChangeReply>, Status> {
        let (context, actor) = self.open(&request)?;
        super::queue::change(&context, &actor, request.into_inner(), super::queue::Verb::Hold).await.map(Response::new)
    }

    async fn queue_release(
        &self,
        request: Request<v1::QueueRequest>,
    ) -> Result<Response<v1::QueueChangeReply>, Status> {
        let (context, actor) = self.open(&request)?;
        super::queue::change(&context, &actor, request.into_inner(), super::queue::Verb::Release)
            .await
            .map(Response::new)
    }

    async fn queue_delete(&self, request: Request<v1::QueueRequest>) -> Result<Response<v1::QueueChangeReply>, Status> {
        let (context, actor) = self.open(&request)?;
        super::queue::change(&context, &actor, request.into_inner(), super::queue::Verb::Delete)
            .await
            .map(Response::new)
    }

    async fn read_usage(&self, request: Request<v1::ReadUsageRequest>) -> Result<Response<v1::ReadUsageReply>, Status> {
        let (context, _) = self.open(&request)?;
        super::usage::read(&context, request.into_inner()).await.map(Response::new)
    }

    type LogSessionStream = super::dialogue::Lines;

    async fn log_session(
        &self,
        request: Request<v1::LogSessionRequest>,
    ) -> Result<Response<Self::LogSessionStream>, Status> {
        let (context, _) = self.open(&request)?;
        super::dialogue::listen(&context, request.into_inner()).map(Response::new)
    }

    async fn session_list(
        &self,
        request: Request<v1::SessionRequest>,
    ) -> Result<Response<v1::SessionListReply>, Status> {
        let (context, _) = self.open(&request)?;
        super::sessions::list(&context, request.into_inner()).await.map(Response::new)
    }

    async fn session_kill(
        &self,
        request: Request<v1::SessionRequest>,
    ) -> Result<Response<v1::SessionKillReply>, Status> {
        let (context, actor) = self.open(&request)?;
        super::sessions::kill(&context, &actor, request.into_inner()).await.map(Response::new)
    }

    async fn message_trace(
        &self,
        request: Request<v1::MessageTraceRequest>,
    ) -> Result<Response<v1::MessageTraceReply>, Status> {
        let (context, _) = self.open(&request)?;
        super::tracking::trace(&context, request.into_inner()).await.map(Response::new)
    }

    async fn message_export(
        &self,
        request: Request<v1::MessageExportRequest>,
    ) -> Result<Response<v1::MessageExportReply>, Status> {
        let (context, _) = self.open(&request)?;
        super::tracking::export(&context, request.into_inner()).await.map(Response::new)
    }

    async fn list_audit(&self, request: Request<v1::ListAuditRequest>) -> Result<Response<v1::ListAuditReply>, Status> {
        let (context, _) = self.open(&request)?;
        Ok(Response::new(super::history::list(&context.view(), request.get_ref())))
    }

    async fn history_diff(
        &self,
        request: Request<v1::HistoryDiffRequest>,
    ) -> Result<Response<v1::HistoryDiffReply>, Status> {
        let (context, _) = self.open(&request)?;
        super::history::diff(&context.view(), request.get_ref()).map(Response::new)
    }

    async fn rollback(&self, request: Request<v1::RollbackRequest>) -> Result<Response<v1::WriteReply>, Status> {
        let (context, actor) = self.open(&request)?;
        let v1::RollbackRequest { to, object, options } = request.into_inner();
        let object = (!object.is_empty()).then_some(object);
        let change = Change::Rollback { to, object };
        Ok(Response::new(Self::write(&context, &actor, options, change, vec![]).await?))
    }
}

/// Opens a secret of the state, or says that this node cannot.
pub(super) fn open_secret(
    context: &Context,
    purpose: &str,
    sealed: &crate::state::SealedSecret,
) -> Result<Vec<u8>, Status> {
    context.data_key.open(purpose, sealed).map_err(|error| internal("a sealed secret cannot be opened", error))
}
