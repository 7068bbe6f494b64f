//! Checks a user name and password: argon2id off the async workers and bounded, what was verified remembered for a
//! while, and the same cost for a user who does not exist.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::clock::now_ms;
use crate::credential::{Cached, Credential, VerifyCache, verify_any, verify_dummy};
use crate::shutdown::run_blocking;
use crate::state::{StateView, Versioned};

/// Hashes at once: 19 MiB and 17 ms of one core each. One core stays for mail.
const HASHES_MAX: usize = 2;
/// Logins that may wait for a hash; more are told to come back.
const WAITING_MAX: usize = 64;
/// How long a login may wait for a hash.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Verified and failed logins remembered, each.
const CACHE_CAPACITY: usize = 10_000;

/// What came of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// It is this credential.
    Verified(String),
    /// Unknown user, wrong password, or a credential that may not be used here: the device is not told which.
    Refused(&'static str),
    /// Too many logins are waiting.
    Busy,
}

/// Checks passwords.
pub(super) struct Authenticator {
    cache: Mutex<VerifyCache>,
    hashes: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Authenticator {
    /// With a cache under a key of this process.
    pub(super) fn new() -> Self {
        Self {
            cache: Mutex::new(VerifyCache::new(&crate::pki::random(), CACHE_CAPACITY)),
            hashes: Arc::new(Semaphore::new(HASHES_MAX)),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        }
    }

    /// Checks a login from `source` on `connector` against the newest state.
    pub(super) async fn check(
        &self,
        view: &StateView,
        source: IpAddr,
        connector: &str,
        user: &str,
        password: Vec<u8>,
    ) -> Login {
        let user = Credential::canonical_user(user);
        let found = view.state.credentials.get(&user).cloned();
        let (ids, revision) = found.as_ref().map_or((Vec::new(), 0), |found| {
            (found.value.verifiers.iter().map(|verifier| verifier.id).collect(), found.revision)
        });
        let key = {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.key(&user, source, &ids, revision, &password)
        };
        let cached = {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.find(&key, Instant::now().into_std())
        };
        let outcome = match cached {
            Some(outcome) => outcome,
            None => {
                let Some(outcome) = self.hash(found.clone(), password).await else { return Login::Busy };
                let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
                cache.remember(key, outcome, Instant::now().into_std());
                outcome
            }
        };
        match (outcome, found) {
            (Cached::Verified(_), Some(found)) => match found.value.facts_ok(source, connector, now_ms()) {
                Ok(()) => Login::Verified(user),
                // The password was right: the log may say why, the device may not.
                Err(_) => Login::Refused("not usable here"),
            },
            _ => Login::Refused("unknown user or wrong password"),
        }
    }

    /// Hashes, bounded. `None`: too many wait.
    async fn hash(&self, found: Option<Versioned<Arc<Credential>>>, password: Vec<u8>) -> Option<Cached> {
        let _waiting = Arc::clone(&self.waiting).try_acquire_owned().ok()?;
        let permit = tokio::time::timeout(WAIT_MAX, Arc::clone(&self.hashes).acquire_owned()).await.ok()?.ok()?;
        let verified = run_blocking(move || {
            let _permit = permit;
            match found {
                Some(found) => verify_any(
                    &password,
                    found.value.verifiers.iter().map(|verifier| (verifier.id, verifier.phc.as_str())),
                ),
                None => {
                    verify_dummy(&password);
                    None
                }
            }
        })
        .await;
        Some(verified.map_or(Cached::Failed, Cached::Verified))
    }
}
