//! `apply`: the one place where a change meets the agreed state. A pure function of both; what it refuses, every node
//! refuses, in the same words.

use std::sync::Arc;

use super::connectors::{
    add_allowlist_entries, delete_connector, put_connector, refuse_addresses_that_relay, remove_allowlist_entries,
    warn_of_addresses_that_relay,
};
use super::fronts;
use super::history;
use super::refusals::{denied, exists, invalid, not_found, revision_moved, token_refused, uninitialised};
use super::settings;
use super::{
    AUDIT_RECORDS_MAX, AcceptedDomain, AuditRecord, CertificateName, Change, ClusterState, Command, FrontMember,
    JoinRole, Member, MemberRole, MemberState, NewCluster, ObjectKey, Objects, Outcome, Refusal, RelayGain, Versioned,
};
use crate::connector::{self, ReceiveConnector, SendConnector};
use crate::mail::Domain;

/// What a command did.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// For whoever asked.
    pub outcome: Outcome,
    /// The objects to write to disk (or to delete there, when they are gone).
    pub touched: Vec<ObjectKey>,
}

/// What a change answers when it is not refused.
#[derive(Default)]
pub(super) struct Done {
    pub(super) touched: Vec<ObjectKey>,
    pub(super) warnings: Vec<String>,
    pub(super) gains: Vec<RelayGain>,
    pub(super) assigned: Option<u64>,
    pub(super) what: String,
}

/// Applies `command` at `revision` (its log index).
///
/// A refusal is an [`Outcome`], the same on every node, and leaves the state untouched; it is never an error.
pub fn apply(state: &mut ClusterState, command: &Command, revision: u64) -> Applied {
    let before = state.clone();
    let done = match Change::run(state, command, revision) {
        Ok(done) => done,
        Err(refused) => {
            *state = before;
            return Applied { outcome: Outcome::Refused(refused), touched: Vec::new() };
        }
    };
    let Done { mut touched, warnings, gains, assigned, what } = done;
    let outcome = Outcome::Applied { changed: !touched.is_empty(), warnings, gains, assigned };
    if touched.is_empty() {
        return Applied { outcome, touched };
    }
    touched.extend(history::remember(state, &before, &touched, revision));
    touched.extend(record(state, command, revision, what));
    for key in &touched {
        let old = before.encode_object(key);
        state.digest.replace(key, old.as_deref(), state.encode_object(key).as_deref());
    }
    Applied { outcome, touched }
}

/// Writes the audit record and drops the oldest above the limit.
fn record(state: &mut ClusterState, command: &Command, revision: u64, what: String) -> Vec<ObjectKey> {
    let audit = Arc::make_mut(&mut state.audit);
    audit.insert(
        revision,
        AuditRecord {
            revision,
            at_ms: command.at_ms,
            who: command.who.clone(),
            from: command.from.clone(),
            what,
            reason: command.reason.clone(),
        },
    );
    let mut touched = vec![ObjectKey::Audit(revision)];
    while audit.len() > AUDIT_RECORDS_MAX {
        if let Some((oldest, _)) = audit.pop_first() {
            touched.push(ObjectKey::Audit(oldest));
        }
    }
    touched
}

impl Change {
    fn run(state: &mut ClusterState, command: &Command, revision: u64) -> Result<Done, Refusal> {
        if state.facts.is_none() && !matches!(command.change, Self::InitCluster(_)) {
            return Err(uninitialised());
        }
        match &command.change {
            Self::InitCluster(new) => init_cluster(state, command, revision, new),
            Self::PutConnector { create, connector, ranges } => {
                put_connector(state, command, revision, *create, connector, ranges.as_deref())
            }
            Self::DeleteConnector { name } => delete_connector(state, command, name),
            Self::AddAllowlistEntries { connector, entries } => {
                add_allowlist_entries(state, command, revision, connector, entries)
            }
            Self::RemoveAllowlistEntries { connector, ranges } => {
                remove_allowlist_entries(state, command, connector, ranges)
            }
            Self::Rollback { to, object } => history::roll_back(state, command, revision, *to, object.as_deref()),
            Self::PutDomain { create, domain } => put_domain(state, command, revision, *create, domain),
            Self::DeleteDomain { name } => {
                delete(&mut state.domains, command, name, "accepted domain", "PH-DOM-001", "domain list")?;
                Ok(one(ObjectKey::Domain(name.clone()), format!("deleted accepted domain {name}")))
            }
            Self::PutRoute { create, route } => put_route(state, command, revision, *create, route),
            Self::DeleteRoute { name } => {
                delete(&mut state.routes, command, name, "route", "PH-ROUTE-001", "route list")?;
                Ok(one(ObjectKey::Route(name.clone()), format!("deleted route {name}")))
            }
            Self::PutCredential { create, credential } => put_credential(state, command, revision, *create, credential),
            Self::DeleteCredential { user } => {
                delete(&mut state.credentials, command, user, "credential", "PH-CRED-001", "credential list")?;
                Ok(one(ObjectKey::Credential(user.clone()), format!("deleted credential {user}")))
            }
            Self::PutCertificate { certificate } => {
                let name = certificate.name.clone();
                put(&mut state.certificates, revision, name.clone(), Arc::new(certificate.clone()));
                Ok(one(ObjectKey::Certificate(name.clone()), format!("stored certificate {name}")))
            }
            Self::DeleteCertificate { name } => delete_certificate(state, command, name),
            Self::PutClientAuthorities { pem } => settings::put_client_authorities(state, command, revision, pem),
            Self::CreateJoinToken { token } => {
                // Spent and expired tokens are cleared away here, so that the list stays short.
                let tokens = Arc::make_mut(&mut state.join_tokens);
                let stale: Vec<String> = tokens
                    .iter()
                    .filter(|(_, kept)| kept.value.uses_left == 0 || kept.value.expires_at_ms <= command.at_ms)
                    .map(|(id, _)| id.clone())
                    .collect();
                stale.iter().for_each(|id| drop(tokens.remove(id)));
                put(&mut state.join_tokens, revision, token.id.clone(), token.clone());
                let mut done = one(
                    ObjectKey::JoinToken(token.id.clone()),
                    format!("created join token {} for a {}", token.id, token.role.as_str()),
                );
                done.touched.extend(stale.into_iter().map(ObjectKey::JoinToken));
                Ok(done)
            }
            Self::RevokeJoinToken { id } => {
                delete(&mut state.join_tokens, command, id, "join token", "PH-JOIN-002", "cluster join-token list")?;
                Ok(one(ObjectKey::JoinToken(id.clone()), format!("revoked join token {id}")))
            }
            Self::AddMember { .. } => add_member(state, command, revision),
            Self::UpdateMember { .. } => update_member(state, command, revision),
            Self::SetMemberState { name, state: wanted, force } => {
                set_member_state(state, command, revision, name, *wanted, *force)
            }
            Self::SetMemberWeight { name, weight } => {
                let id = fronts::set_member_weight(state, command, revision, name, *weight)?;
                Ok(one(ObjectKey::Member(id), format!("node {name} has weight {weight}")))
            }
            Self::SetFrontState { name, .. }
            | Self::AddFrontKey { name, .. }
            | Self::SignWithFrontKey { name, .. }
            | Self::RetireFrontKeys { name, .. } => {
                let what = fronts::change(state, command, revision)?;
                Ok(what.map(|what| one(ObjectKey::Front(name.clone()), what)).unwrap_or_default())
            }
            Self::AddFront { .. } => add_front(state, command, revision),
            Self::UpdateFront { name, source_addresses, http_address } => {
                let Some(found) = state.fronts.get(name) else {
                    return Err(not_found("PH-FRONT-001", "front", name, "front list"));
                };
                let mut front = found.value.clone();
                front.source_addresses.clone_from(source_addresses);
                front.http_address.clone_from(http_address);
                if front == found.value {
                    return Ok(Done::default());
                }
                refuse_addresses_that_relay(state, source_addresses, &format!("front {name}"))?;
                put(&mut state.fronts, revision, name.clone(), front);
                Ok(one(ObjectKey::Front(name.clone()), format!("front {name} dials from new addresses")))
            }
            Self::RemoveFront { name } => {
                delete(&mut state.fronts, command, name, "front", "PH-FRONT-001", "front list")?;
                Ok(one(ObjectKey::Front(name.clone()), format!("removed front {name}")))
            }
            Self::SetSettings { values } => settings::set(state, command, revision, values),
        }
    }
}

pub(super) fn one(key: ObjectKey, what: String) -> Done {
    Done { touched: vec![key], what, ..Done::default() }
}

pub(super) fn put<K: Ord + Clone, V: Clone>(objects: &mut Objects<K, V>, revision: u64, key: K, value: V) {
    Arc::make_mut(objects).insert(key, Versioned { revision, value });
}

/// Refuses when the object's revision is not the one that the request was made for.
pub(super) fn check_revision<V>(
    found: Option<&Versioned<V>>,
    command: &Command,
    noun: &str,
    name: &str,
) -> Result<(), Refusal> {
    let actual = found.map(|found| found.revision);
    match command.if_revision {
        Some(wanted) if actual.unwrap_or(0) != wanted => Err(revision_moved(noun, name, wanted, actual)),
        _ => Ok(()),
    }
}

pub(super) fn delete<V: Clone>(
    objects: &mut Objects<String, V>,
    command: &Command,
    name: &str,
    noun: &str,
    code: &str,
    list: &str,
) -> Result<(), Refusal> {
    let Some(found) = objects.get(name) else { return Err(not_found(code, noun, name, list)) };
    check_revision(Some(found), command, noun, name)?;
    Arc::make_mut(objects).remove(name);
    Ok(())
}

/// The checks of a put: does it exist as the request expects, at the revision it expects.
pub(super) fn check_put<V>(
    found: Option<&Versioned<V>>,
    command: &Command,
    create: bool,
    noun: &str,
    name: &str,
    (missing, taken, verb): (&str, &str, &str),
) -> Result<(), Refusal> {
    // A create with an explicit revision 0 says the same thing twice; the clearer answer is "exists".
    match (create, found) {
        (true, Some(found)) => Err(exists(taken, noun, name, found.revision, &format!("{verb} set {name}"))),
        (false, None) => Err(not_found(missing, noun, name, &format!("{verb} list"))),
        _ => check_revision(found, command, noun, name),
    }
}

fn init_cluster(state: &mut ClusterState, command: &Command, revision: u64, new: &NewCluster) -> Result<Done, Refusal> {
    let NewCluster { facts, member, connectors, certificate } = new;
    if let Some(facts) = &state.facts {
        return Err(denied(
            "PH-RAFT-005",
            format!("this node belongs to cluster \"{}\" already", facts.name),
            "cluster init runs once, on one node",
            "join more nodes with: posthousectl cluster join-token create",
        ));
    }
    state.facts = Some(Arc::new(facts.clone()));
    put(&mut state.members, revision, member.id, member.clone());
    put(&mut state.certificates, revision, certificate.name.clone(), Arc::new(certificate.clone()));
    let mut touched =
        vec![ObjectKey::Facts, ObjectKey::Member(member.id), ObjectKey::Certificate(certificate.name.clone())];
    for (connector, ranges) in connectors {
        let done = put_connector(state, command, revision, true, connector, Some(ranges))?;
        touched.extend(done.touched);
    }
    Ok(Done { touched, what: format!("created cluster {} on {}", facts.name, member.name), ..Done::default() })
}

/// Refused while a connector names it and nothing else would answer to that name: its TLS would be gone.
fn delete_certificate(state: &mut ClusterState, command: &Command, name: &str) -> Result<Done, Refusal> {
    let Some(found) = state.certificates.get(name) else {
        return Err(not_found("PH-TLS-001", "certificate", name, "tls list"));
    };
    let needs = |connector: &ReceiveConnector| {
        connector.tls_certificate_name.as_deref().map(CertificateName::parse).is_some_and(|wanted| {
            let mut others = state.certificates.values().filter(|other| other.value.name != name);
            wanted.selects(&found.value) && !others.any(|other| wanted.selects(&other.value))
        })
    };
    let connectors = state.connectors.values().map(|connector| &connector.value);
    let users: Vec<&str> = connectors.filter(|c| needs(c)).map(|connector| connector.name.as_str()).collect();
    if let Some(first) = users.first() {
        return Err(denied(
            "PH-TLS-004",
            format!("certificate \"{name}\" is in use"),
            format!("named by connector {}", users.join(", ")),
            format!("name another first: posthousectl connector set {first} --tls-certificate-name NAME"),
        ));
    }
    delete(&mut state.certificates, command, name, "certificate", "PH-TLS-001", "tls list")?;
    let mut done = one(ObjectKey::Certificate(name.to_owned()), format!("deleted certificate {name}"));
    if state.certificates.is_empty() {
        done.warnings.push("no certificate is left: TLS is not offered any more".to_owned());
    }
    Ok(done)
}

fn put_domain(
    state: &mut ClusterState,
    command: &Command,
    revision: u64,
    create: bool,
    domain: &AcceptedDomain,
) -> Result<Done, Refusal> {
    let name = &domain.name;
    let found = state.domains.get(name);
    check_put(found, command, create, "accepted domain", name, ("PH-DOM-001", "PH-DOM-002", "domain"))?;
    match Domain::parse(name) {
        Ok(parsed) if parsed.as_str() == name && !parsed.is_literal() => {}
        Ok(_) | Err(_) => {
            let cause = format!("\"{name}\" is not a domain name");
            let fix = "write it as corp.example, or *.corp.example with every subdomain";
            return Err(invalid("PH-DOM-003", "the accepted domain is not valid", cause, fix));
        }
    }
    if found.is_some_and(|found| found.value == *domain) {
        return Ok(Done::default());
    }
    let mut warnings = Vec::new();
    if let Ok(parsed) = Domain::parse(name) {
        let table = connector::RouteTable::build(state.routes.values().map(|route| Arc::clone(&route.value)));
        if !table.covers(&parsed) {
            warnings
                .push(format!("no route covers {name}: its letters wait until there is one (posthousectl route add)"));
        }
    }
    put(&mut state.domains, revision, name.clone(), domain.clone());
    let verb = if create { "created" } else { "changed" };
    Ok(Done {
        touched: vec![ObjectKey::Domain(name.clone())],
        warnings,
        what: format!("{verb} accepted domain {name}"),
        ..Done::default()
    })
}

fn put_route(
    state: &mut ClusterState,
    command: &Command,
    revision: u64,
    create: bool,
    route: &SendConnector,
) -> Result<Done, Refusal> {
    let name = &route.name;
    let found = state.routes.get(name);
    check_put(found, command, create, "route", name, ("PH-ROUTE-001", "PH-ROUTE-002", "route"))?;
    route.check().map_err(|error| {
        invalid("PH-ROUTE-003", format!("route \"{name}\" is not valid"), error, "change the setting that is named")
    })?;
    if found.is_some_and(|found| *found.value == *route) {
        return Ok(Done::default());
    }
    put(&mut state.routes, revision, name.clone(), Arc::new(route.clone()));
    let verb = if create { "created" } else { "changed" };
    Ok(one(ObjectKey::Route(name.clone()), format!("{verb} route {name}")))
}

fn put_credential(
    state: &mut ClusterState,
    command: &Command,
    revision: u64,
    create: bool,
    credential: &crate::credential::Credential,
) -> Result<Done, Refusal> {
    let user = &credential.user;
    let found = state.credentials.get(user);
    check_put(found, command, create, "credential", user, ("PH-CRED-001", "PH-CRED-002", "credential"))?;
    credential.check().map_err(|error| {
        invalid("PH-CRED-003", format!("credential \"{user}\" is not valid"), error, "change the setting that is named")
    })?;
    for name in &credential.connectors {
        if !state.connectors.contains_key(name) {
            return Err(not_found("PH-CONN-001", "connector", name, "connector list"));
        }
    }
    if found.is_some_and(|found| *found.value == *credential) {
        return Ok(Done::default());
    }
    put(&mut state.credentials, revision, user.clone(), Arc::new(credential.clone()));
    let verb = if create { "created" } else { "changed" };
    Ok(one(ObjectKey::Credential(user.clone()), format!("{verb} credential {user}")))
}

/// Checks a token and takes one use of it.
fn use_token(
    state: &mut ClusterState,
    command: &Command,
    token_id: &str,
    secret_sha256: &str,
    roles: &[JoinRole],
) -> Result<JoinRole, Refusal> {
    let Some(found) = state.join_tokens.get(token_id) else {
        return Err(token_refused("the cluster does not know it: revoked, spent, or another cluster's"));
    };
    let mut token = found.value.clone();
    // Both sides are hashes of random secrets, so that a plain comparison tells nothing by its time.
    if token.secret_sha256 != secret_sha256 {
        return Err(token_refused("its secret is wrong"));
    }
    if token.expires_at_ms <= command.at_ms {
        return Err(token_refused("it has expired"));
    }
    if token.uses_left == 0 {
        return Err(token_refused("it was used already"));
    }
    if !roles.contains(&token.role) {
        return Err(token_refused(&format!("it was made for a {}", token.role.as_str())));
    }
    token.uses_left -= 1;
    let (revision, role) = (found.revision, token.role);
    put(&mut state.join_tokens, revision, token_id.to_owned(), token);
    Ok(role)
}

fn add_member(state: &mut ClusterState, command: &Command, revision: u64) -> Result<Done, Refusal> {
    let Change::AddMember { token_id, secret_sha256, name, rpc_address, services, version, http_address } =
        &command.change
    else {
        return Ok(Done::default());
    };
    let role = use_token(state, command, token_id, secret_sha256, &[JoinRole::Voter, JoinRole::Learner])?;
    if let Some(found) = state.member_named(name) {
        return Err(denied(
            "PH-NODE-002",
            format!("a node named \"{name}\" is a member already"),
            format!("it is node {} at {}", found.id, found.rpc_address),
            "choose another name in the node file: names and ids are never used twice",
        ));
    }
    let Some(facts) = &state.facts else { return Err(uninitialised()) };
    let mut facts = (**facts).clone();
    let id = facts.next_node_id;
    facts.next_node_id += 1;
    state.facts = Some(Arc::new(facts));
    let member = Member {
        id,
        name: name.clone(),
        rpc_address: rpc_address.clone(),
        services: services.clone(),
        role: if role == JoinRole::Voter { MemberRole::Voter } else { MemberRole::Learner },
        state: MemberState::Active,
        version: version.clone(),
        http_address: http_address.clone(),
        joined_at_ms: command.at_ms,
        weight: super::MEMBER_WEIGHT_DEFAULT,
    };
    let warnings = warn_of_addresses_that_relay(state, &member);
    put(&mut state.members, revision, id, member);
    Ok(Done {
        touched: vec![ObjectKey::Facts, ObjectKey::Member(id), ObjectKey::JoinToken(token_id.clone())],
        assigned: Some(id),
        what: format!("node {name} joined as {id}"),
        warnings,
        ..Done::default()
    })
}

fn update_member(state: &mut ClusterState, command: &Command, revision: u64) -> Result<Done, Refusal> {
    let Change::UpdateMember { id, rpc_address, services, version, http_address } = &command.change else {
        return Ok(Done::default());
    };
    let Some(found) = state.members.get(id) else {
        return Err(not_found("PH-NODE-001", "node", &id.to_string(), "node list"));
    };
    let mut member = found.value.clone();
    member.rpc_address.clone_from(rpc_address);
    member.services.clone_from(services);
    member.version.clone_from(version);
    member.http_address.clone_from(http_address);
    if member == found.value {
        return Ok(Done::default());
    }
    let what = format!("node {} announced its addresses and version {version}", member.name);
    let warnings = warn_of_addresses_that_relay(state, &member);
    put(&mut state.members, revision, *id, member);
    Ok(Done { warnings, ..one(ObjectKey::Member(*id), what) })
}

fn set_member_state(
    state: &mut ClusterState,
    command: &Command,
    revision: u64,
    name: &str,
    wanted: MemberState,
    force: bool,
) -> Result<Done, Refusal> {
    let Some(found) = state.members.values().find(|found| found.value.name == name) else {
        return Err(not_found("PH-NODE-001", "node", name, "node list"));
    };
    check_revision(Some(found), command, "node", name)?;
    if found.value.state == wanted {
        return Ok(Done::default());
    }
    let others = state.members.values().map(|other| &other.value);
    let active = others.filter(|other| other.name != name && other.state == MemberState::Active).count();
    if wanted == MemberState::Draining && active == 0 && !force {
        return Err(denied(
            "PH-NODE-003",
            format!("\"{name}\" is the last active node"),
            "with it drained no node would take new connections and the address would stop answering",
            "resume another node first, or insist with --force",
        ));
    }
    let mut member = found.value.clone();
    member.state = wanted;
    let id = member.id;
    put(&mut state.members, revision, id, member);
    Ok(one(ObjectKey::Member(id), format!("node {name} is {}", wanted.as_str())))
}

fn add_front(state: &mut ClusterState, command: &Command, revision: u64) -> Result<Done, Refusal> {
    let Change::AddFront { token_id, secret_sha256, name, source_addresses, key, http_address } = &command.change
    else {
        return Ok(Done::default());
    };
    use_token(state, command, token_id, secret_sha256, &[JoinRole::Front])?;
    if state.fronts.contains_key(name) {
        return Err(denied(
            "PH-FRONT-003",
            format!("a front named \"{name}\" has joined already"),
            "its signing key stays valid until it is removed",
            format!("choose another name, or first: posthousectl front remove {name}"),
        ));
    }
    refuse_addresses_that_relay(state, source_addresses, &format!("front {name}"))?;
    let front = FrontMember {
        name: name.clone(),
        source_addresses: source_addresses.clone(),
        keys: vec![key.clone()],
        http_address: http_address.clone(),
        signs_with: String::new(),
        state: MemberState::Active,
        joined_at_ms: command.at_ms,
    };
    put(&mut state.fronts, revision, name.clone(), front);
    Ok(Done {
        touched: vec![ObjectKey::Front(name.clone()), ObjectKey::JoinToken(token_id.clone())],
        what: format!("front {name} joined"),
        ..Done::default()
    })
}
