//! Fronts as administrators see them: what the state says of each, what each said of itself lately, and the rotation
//! of their signing keys. Reports are kept in memory only, on every node a front watches.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use posthouse_proto::v1;
use tokio::time::Instant;
use tonic::Status;

use super::cluster::await_revision;
use super::problem::{exit, internal, invalid, problem, status as failed};
use super::service::{Actor, AdminService, Context};
use crate::clock::{now_ms, rfc3339};
use crate::pki::front_key_context;
use crate::state::{Change, FrontSigningKey, MemberState, StateView};

/// A report that is older than this says nothing any more: fronts report about once a second.
const REPORT_VALID: Duration = Duration::from_secs(5);
/// More fronts than a cluster can have are a mistake.
const FRONTS_MAX: usize = 256;
/// How long every node may take to know a new key.
const PUBLISH_TIMEOUT_MS: u64 = 10_000;
/// How long a front may take to sign with a new key.
const SIGN_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at what the front says.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Headers that were signed with the old key are on their way for at most so long: a connect and a write.
const IN_FLIGHT: Duration = Duration::from_secs(2);

/// What each front said of itself last.
#[derive(Default)]
pub struct FrontReports(Mutex<BTreeMap<String, Report>>);

struct Report {
    said: v1::FrontReport,
    at: Instant,
    at_ms: i64,
}

impl FrontReports {
    /// Keeps a front's report.
    pub(super) fn keep(&self, front: &str, said: v1::FrontReport) {
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reports.len() < FRONTS_MAX || reports.contains_key(front) {
            reports.insert(front.to_owned(), Report { said, at: Instant::now(), at_ms: now_ms() });
        }
    }

    /// The key that a front said it signs with.
    pub(super) fn signs_with(&self, front: &str) -> Option<String> {
        self.of(front).map(|(report, _)| report.signing_key_id)
    }

    /// What a front said, and when, unless that is too long ago.
    fn of(&self, front: &str) -> Option<(v1::FrontReport, i64)> {
        let reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let report = reports.get(front)?;
        (report.at.elapsed() < REPORT_VALID).then(|| (report.said.clone(), report.at_ms))
    }
}

/// The fronts that have joined, with what they said lately.
pub(super) fn list(view: &StateView, reports: &FrontReports) -> Vec<v1::Front> {
    let fronts = view.state.fronts.values().map(|found| {
        let front = &found.value;
        let (report, at_ms) = reports.of(&front.name).unzip();
        v1::Front {
            name: front.name.clone(),
            source_addresses: front.source_addresses.iter().map(ToString::to_string).collect(),
            key_id: front.signing_key_id().to_owned(),
            state: front.state.as_str().to_owned(),
            http_address: front.http_address.clone(),
            revision: found.revision,
            report,
            reported_at: at_ms.map(rfc3339).unwrap_or_default(),
            key_ids: front.keys.iter().map(|key| key.id.clone()).collect(),
        }
    });
    fronts.collect()
}

/// Drains or resumes a front.
pub(super) async fn set_state(
    context: &Context,
    actor: &Actor,
    request: v1::SetFrontStateRequest,
) -> Result<v1::WriteReply, Status> {
    let state = match request.state.as_str() {
        "active" => MemberState::Active,
        "draining" => MemberState::Draining,
        other => {
            let cause = format!("\"{other}\" is not active or draining");
            return Err(invalid(
                "PH-FRONT-011",
                "the front state is not valid",
                cause,
                "posthousectl front drain|resume",
            ));
        }
    };
    let change = Change::SetFrontState { name: request.front, state };
    AdminService::write(context, actor, request.options, change, vec![]).await
}

/// Rotates a front's signing key: publish, applied everywhere, sign, retire. A rotation that was left half-way is
/// taken up where it stopped.
pub(super) async fn rotate_key(
    context: &Context,
    actor: &Actor,
    request: v1::NameRequest,
) -> Result<v1::RotateFrontKeyReply, Status> {
    let v1::NameRequest { name, options } = request;
    let view = context.view();
    let front = view.state.fronts.get(&name).map(|found| found.value.clone());
    let front = front.ok_or_else(|| {
        failed(problem(
            exit::NOT_FOUND,
            "PH-FRONT-001",
            format!("front \"{name}\" not found"),
            "the cluster has no front of that name",
            "posthousectl front list",
        ))
    })?;
    let signs_with = front.signing_key_id().to_owned();
    let pending = front.keys.iter().find(|key| key.id != signs_with);
    // A key that is signed with while older ones are still believed: only the last step is missing.
    let is_signing = pending.is_some() && front.keys.last().is_some_and(|key| key.id == signs_with);
    let (old_key_id, new_key_id) = match pending {
        Some(old) if is_signing => (old.id.clone(), signs_with),
        Some(new) => (signs_with, new.id.clone()),
        None => {
            let id: String = crate::pki::random::<8>().iter().map(|byte| format!("{byte:02x}")).collect();
            let sealed_key = context
                .data_key
                .seal(&front_key_context(&name, &id), &crate::pki::random::<32>())
                .map_err(|error| internal("the signing key cannot be sealed", error))?;
            let key = FrontSigningKey { id: id.clone(), sealed_key };
            let change = Change::AddFrontKey { name: name.clone(), key };
            let written = AdminService::write(context, actor, options.clone(), change, vec![]).await?;
            if written.dry_run {
                return Ok(v1::RotateFrontKeyReply {
                    old_key_id: signs_with,
                    new_key_id: id,
                    revision: written.revision,
                });
            }
            (signs_with, id)
        }
    };
    let mut options = options.unwrap_or_default();
    // The conditions of the request were for its first step.
    options.if_revision = None;
    if !is_signing {
        everywhere(context, context.view().revision, &name).await?;
        let change = Change::SignWithFrontKey { name: name.clone(), id: new_key_id.clone() };
        AdminService::write(context, actor, Some(options.clone()), change, vec![]).await?;
    }
    signs(context, &name, &new_key_id).await?;
    tokio::time::sleep(IN_FLIGHT).await;
    let change = Change::RetireFrontKeys { name: name.clone(), keep: new_key_id.clone() };
    let written = AdminService::write(context, actor, Some(options), change, vec![]).await?;
    Ok(v1::RotateFrontKeyReply { old_key_id, new_key_id, revision: written.revision })
}

/// Waits until every node has applied `revision`: one that has not would refuse what is signed with the new key.
async fn everywhere(context: &Context, revision: u64, front: &str) -> Result<(), Status> {
    let request = v1::AwaitRevisionRequest { revision, timeout_ms: PUBLISH_TIMEOUT_MS };
    let reply = await_revision(context, &request).await;
    if reply.missing.is_empty() {
        return Ok(());
    }
    Err(failed(problem(
        exit::TIMED_OUT,
        "PH-FRONT-012",
        format!("the new key of front \"{front}\" is published, and not known everywhere yet"),
        format!("{} have not confirmed it; the front goes on with its old key", reply.missing.join(", ")),
        &format!("when they are back: posthousectl front rotate-key {front}, which takes it up from here"),
    )))
}

/// Waits until the front says that it signs with `id`.
async fn signs(context: &Context, front: &str, id: &str) -> Result<(), Status> {
    let until = Instant::now() + SIGN_TIMEOUT;
    loop {
        let said = context.fronts.of(front);
        if said.as_ref().is_some_and(|(report, _)| report.signing_key_id == id) {
            return Ok(());
        }
        if Instant::now() >= until {
            let cause = match said {
                Some((report, _)) => format!("it says that it signs with {}", report.signing_key_id),
                None => "it does not watch the node that was asked".to_owned(),
            };
            return Err(failed(problem(
                exit::TIMED_OUT,
                "PH-FRONT-013",
                format!("front \"{front}\" does not sign with its new key yet"),
                format!("{cause}; both keys are believed until it does"),
                &format!("when it is back: posthousectl front rotate-key {front}, which takes it up from here"),
            )));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
