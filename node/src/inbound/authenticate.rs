//! Checks a user name and password: argon2id off the async workers and bounded, what was verified remembered for a
//! while, and the same cost for a user who does not exist.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::clock::now_ms;
use crate::connector::canonical_ip;
use crate::credential::{
    CacheKey, Cached, Credential, SecretId, VERIFY_CACHE_ENTRIES, Verifier, VerifyCache, verify_any, verify_dummy,
};
use crate::shutdown::run_blocking;
use crate::state::StateView;

/// Hashes at once: 19 MiB and 17 ms of one core each. One core stays for mail.
const HASHES_MAX: usize = 2;
/// Logins that may wait for a hash; more are told to come back.
const WAITING_MAX: usize = 64;
/// Logins of one address that may wait: a device that tries one old password after the other on many connections
/// stands in its own way, not in everybody's.
const WAITING_PER_SOURCE_MAX: u32 = 8;
/// How long a login may wait for a hash.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// What came of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// It is this credential, by this secret.
    Verified(String, SecretId),
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
    waiting_by_source: Mutex<HashMap<IpAddr, u32>>,
}

impl Authenticator {
    /// With a cache under a key of this process.
    pub(super) fn new() -> Self {
        Self {
            cache: Mutex::new(VerifyCache::new(&crate::pki::random(), VERIFY_CACHE_ENTRIES)),
            hashes: Arc::new(Semaphore::new(HASHES_MAX)),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            waiting_by_source: Mutex::default(),
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
        let found = view.state.credentials.get(&user);
        let now_ms = now_ms();
        // Only secrets that are alive now: when one ends, its remembered success has another key and is not found.
        let live: Vec<Verifier> =
            found.map(|found| found.value.live_verifiers(now_ms).cloned().collect()).unwrap_or_default();
        let ids: Vec<u32> = live.iter().map(|verifier| verifier.id).collect();
        let revision = found.map_or(0, |found| found.revision);
        let key = self.cache().key(&user, source, &ids, revision, &password);
        let cached = self.remembered(&key);
        let outcome = match cached {
            Some(outcome) => outcome,
            None => match self.hash(source, key, live.clone(), found.is_some(), password).await {
                Some(outcome) => outcome,
                None => return Login::Busy,
            },
        };
        let (Cached::Verified(id), Some(found)) = (outcome, found) else {
            return Login::Refused("unknown user or wrong password");
        };
        let Some(secret) = live.iter().find(|verifier| verifier.id == id).map(Verifier::secret_id) else {
            return Login::Refused("unknown user or wrong password");
        };
        match found.value.facts_ok(source, connector, now_ms) {
            Ok(()) => Login::Verified(user, secret),
            // The password was right: the log may say why, the device may not.
            Err(_) => Login::Refused("not usable here"),
        }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, VerifyCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, key: &CacheKey) -> Option<Cached> {
        self.cache().find(key, Instant::now().into_std())
    }

    /// Hashes, bounded, and remembers what came of it. `None`: too many wait.
    async fn hash(
        &self,
        source: IpAddr,
        key: CacheKey,
        live: Vec<Verifier>,
        known: bool,
        password: Vec<u8>,
    ) -> Option<Cached> {
        let _waiting = Arc::clone(&self.waiting).try_acquire_owned().ok()?;
        let _own = self.wait_for(source)?;
        let permit = tokio::time::timeout(WAIT_MAX, Arc::clone(&self.hashes).acquire_owned()).await.ok()?.ok()?;
        // Another connection of the same device may have asked the same meanwhile: one hash answers all of them.
        if let Some(outcome) = self.remembered(&key) {
            return Some(outcome);
        }
        let verified = run_blocking(move || {
            let _permit = permit;
            if known {
                verify_any(&password, live.iter().map(|verifier| (verifier.id, verifier.phc.as_str())))
            } else {
                verify_dummy(&password);
                None
            }
        })
        .await;
        let outcome = verified.map_or(Cached::Failed, Cached::Verified);
        self.cache().remember(key, outcome, Instant::now().into_std());
        Some(outcome)
    }

    /// Counts one more login of `source` that waits, for as long as the answer lives.
    fn wait_for(&self, source: IpAddr) -> Option<WaitingSource<'_>> {
        let source = canonical_ip(source);
        let mut waiting = self.waiting_by_source.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.entry(source).or_default();
        if *count >= WAITING_PER_SOURCE_MAX {
            return None;
        }
        *count += 1;
        Some(WaitingSource { authenticator: self, source })
    }
}

/// One waiting login of an address. The map holds no more entries than logins wait.
struct WaitingSource<'a> {
    authenticator: &'a Authenticator,
    source: IpAddr,
}

impl Drop for WaitingSource<'_> {
    fn drop(&mut self) {
        let mut waiting = self.authenticator.waiting_by_source.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
#[path = "authenticate_tests.rs"]
mod tests;
