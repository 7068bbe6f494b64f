//! Credentials as administrators change them: passwords are hashed here, before the cluster hears of them, and made
//! here when somebody asks for one.

use std::sync::Arc;
use std::time::Duration;

use posthouse_proto::v1;
use tonic::Status;

use super::convert;
use super::problem::{exit, invalid, problem, status};
use super::service::{Actor, AdminService, Context, MERGE_ATTEMPTS, merged_write};
use crate::clock::now_ms;
use crate::credential::{self, Alphabet, Credential, NewSecret, Recipe, ScramKeys, verify_any, verify_dummy};
use crate::shutdown::run_blocking;
use crate::state::{Change, Versioned};

/// How long the old password of a rotation works unless somebody says otherwise: a week, so that whoever comes on
/// Monday finds every device still printing, and nobody has to remember the second command.
const KEEP_OLD_SECS: u64 = 7 * 24 * 3600;

/// What becomes of the secrets.
enum Secrets {
    /// They stay.
    Kept,
    /// This one takes the place of all.
    Set(NewSecret),
    /// This one comes beside the newest, which is taken until then (absent: until the rotation is finished).
    Rotate(NewSecret, Option<i64>),
    /// The newest alone.
    Finish,
}

fn not_found(user: &str) -> Status {
    status(problem(
        exit::NOT_FOUND,
        "PH-CRED-001",
        format!("credential \"{user}\" not found"),
        "the cluster has no credential of that name",
        "posthousectl credential list",
    ))
}

fn recipe(request: &v1::PutCredentialRequest) -> Result<Recipe, Status> {
    let fix = "--alphabet readable, letters, digits, mixed or hex; --length 8 to 64";
    let bad = |error| invalid("PH-CRED-006", "no password can be made so", error, fix);
    let alphabet = match request.generate_alphabet.as_str() {
        "" => Alphabet::default(),
        word => word.parse().map_err(bad)?,
    };
    Recipe::try_new(alphabet, usize::try_from(request.generate_length).unwrap_or(usize::MAX)).map_err(bad)
}

/// Creates or changes a credential, or begins or ends a rotation.
pub(super) async fn put(
    context: &Arc<Context>,
    actor: &Actor,
    request: v1::PutCredentialRequest,
) -> Result<v1::PutCredentialReply, Status> {
    let from = request.credential.clone().unwrap_or_default();
    let (create, user) = (request.create, from.user.trim().to_lowercase());
    if create && from.senders.as_ref().is_none_or(|senders| senders.values.is_empty()) {
        return Err(invalid(
            "PH-CRED-004",
            "a credential needs to know as whom it may send",
            "without a choice it could send as nobody, or as everybody",
            "--own-domain, --sender ADDRESS|@domain, or --sender '*'",
        ));
    }
    let mut warnings = Vec::new();
    let generated = if request.generate {
        let recipe = recipe(&request)?;
        warnings.extend(recipe.warning());
        Some(recipe.generate(&crate::pki::random()))
    } else {
        None
    };
    let now_ms = now_ms();
    let found = context.view().state.credentials.get(&user).cloned();
    if found.is_none() && !create {
        return Err(not_found(&user));
    }
    let secrets = match generated.clone().or_else(|| request.password.clone()) {
        Some(password) => {
            let secret = hash(&request, found.as_ref(), password, now_ms).await?;
            match request.rotate {
                false => Secrets::Set(secret),
                true => Secrets::Rotate(secret, kept_until(request.keep_old_secs, now_ms)),
            }
        }
        None if request.finish_rotation => Secrets::Finish,
        None if create && from.certificates.as_ref().is_some_and(|list| !list.values.is_empty()) => Secrets::Kept,
        None if create || request.rotate => {
            return Err(invalid(
                "PH-CRED-005",
                "a credential needs a password",
                "none was given",
                "--generate, --password-stdin or --password-file FILE",
            ));
        }
        None if request.scram == Some(true) => {
            return Err(invalid(
                "PH-CRED-008",
                "SCRAM keys need the password",
                "they cannot be made from the hash that the cluster keeps",
                "name the password with it: --password-stdin, --password-file FILE or --generate",
            ));
        }
        None => Secrets::Kept,
    };
    let options = request.options.clone();
    let written = merged_write!(context, actor, options, |view| {
        let found = view.state.credentials.get(&user);
        let base = match found {
            Some(found) if !create => (*found.value).clone(),
            _ => Credential::new(user.clone()),
        };
        let mut credential = convert::merge_credential(base, &from)?;
        if request.scram == Some(false) {
            credential.forget_scram();
        }
        change_secrets(&mut credential, &secrets, now_ms)?;
        let revision = found.filter(|_| !create).map(|found| found.revision);
        (Change::PutCredential { create, credential }, revision, warnings.clone())
    });
    Ok(v1::PutCredentialReply { write: Some(written?), generated_password: generated.unwrap_or_default() })
}

/// 0: at once; absent: the default; the largest number: until the rotation is finished.
fn kept_until(keep_old_secs: Option<u64>, now_ms: i64) -> Option<i64> {
    match keep_old_secs.unwrap_or(KEEP_OLD_SECS) {
        u64::MAX => None,
        secs => Some(now_ms.saturating_add(i64::try_from(secs).unwrap_or(i64::MAX).saturating_mul(1000))),
    }
}

fn change_secrets(credential: &mut Credential, secrets: &Secrets, now_ms: i64) -> Result<(), Status> {
    match secrets {
        Secrets::Kept => {}
        Secrets::Set(secret) => credential.set_secret(secret.clone()),
        Secrets::Rotate(secret, until) => {
            credential.rotate(secret.clone(), *until, now_ms).map_err(|error| {
                invalid(
                    "PH-CRED-007",
                    format!("credential \"{}\" is being rotated already", credential.user),
                    error,
                    &format!("first: posthousectl credential rotate {} --finish", credential.user),
                )
            })?;
        }
        Secrets::Finish => {
            credential.finish_rotation();
        }
    }
    Ok(())
}

/// Hashes a password off the async workers, and makes SCRAM keys when they are asked for or were there before.
async fn hash(
    request: &v1::PutCredentialRequest,
    found: Option<&Versioned<Arc<Credential>>>,
    password: String,
    created_at_ms: i64,
) -> Result<NewSecret, Status> {
    let before = found.filter(|_| !request.create).and_then(|found| found.value.scram(created_at_ms).cloned());
    let wanted = request.scram.unwrap_or_else(|| before.is_some());
    let made = run_blocking(move || {
        let phc = credential::hash(password.as_bytes(), &crate::pki::random())?;
        let scram = match (wanted, before) {
            (false, _) => None,
            // The same salt: both passwords of a rotation must answer to one challenge.
            (true, Some(before)) => Some(before.derive_beside(password.as_bytes())?),
            (true, None) => Some(ScramKeys::derive(password.as_bytes(), &crate::pki::random())?),
        };
        Ok::<_, credential::HashError>((phc, scram))
    })
    .await;
    let (phc, scram) =
        made.map_err(|error| invalid("PH-CRED-006", "the password cannot be used", error, "choose another one"))?;
    Ok(NewSecret { phc, scram, created_at_ms })
}

/// Checks a password without mail. The administrator is told what a device is not: why.
pub(super) async fn test(
    context: &Arc<Context>,
    request: v1::TestCredentialRequest,
) -> Result<v1::TestCredentialReply, Status> {
    let user = Credential::canonical_user(&request.user);
    let (view, now_ms) = (context.view(), now_ms());
    let found = view.state.credentials.get(&user).cloned();
    let password = request.password;
    let live: Vec<_> = found.iter().flat_map(|found| found.value.live_verifiers(now_ms)).cloned().collect();
    let newest = live.iter().map(|verifier| verifier.id).max();
    let known = found.is_some();
    let matched = run_blocking(move || {
        if known {
            verify_any(password.as_bytes(), live.iter().map(|verifier| (verifier.id, verifier.phc.as_str())))
        } else {
            verify_dummy(password.as_bytes());
            None
        }
    })
    .await;
    let Some(found) = found else { return Err(not_found(&user)) };
    let source = match request.source.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            invalid("PH-CRED-003", format!("\"{text}\" is not an address"), "an IPv4 or IPv6 address is meant", "")
        })?),
    };
    let Some(id) = matched else {
        return Ok(v1::TestCredentialReply {
            reason: "the password is none of its own".to_owned(),
            ..Default::default()
        });
    };
    // A place that was not named is not held against it.
    let mut asked = (*found.value).clone();
    if source.is_none() {
        asked.source_ranges.clear();
    }
    if request.connector.is_empty() {
        asked.connectors.clear();
    }
    let source = source.unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
    let usable = asked.facts_ok(source, &request.connector, now_ms);
    Ok(v1::TestCredentialReply {
        ok: usable.is_ok(),
        reason: usable.err().map(|refusal| refusal.to_string()).unwrap_or_default(),
        old_password: Some(id) != newest,
    })
}
