//! Who someone is: a credential's verifiers, as whom it may send, from where and until when. Pure, except that hashing
//! takes tens of milliseconds and must not run on an async worker. Salts, keys and time are passed in.

mod cache;
mod verifier;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use cache::{CacheKey, Cached, VERIFY_CACHE_ENTRIES, VerifyCache};
pub use verifier::{HashError, generate_password, hash, verify, verify_any, verify_dummy};

use crate::connector::{CredentialFacts, RemoteIpRange, SenderRule};
use crate::mail::ReversePath;

/// How many secrets of one credential may be alive: the old and the new one, while devices are changed over.
pub const VERIFIERS_MAX: usize = 2;
/// RFC 5321 §4.5.3.1.3: a path has at most 256 octets with its brackets.
const USER_CHARS_MAX: usize = 254;
const TEXT_CHARS_MAX: usize = 1024;
const LIST_MAX: usize = 1000;

/// One secret, as far as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verifier {
    /// Unique within the credential, never used again.
    pub id: u32,
    /// The argon2id hash in PHC string format.
    pub phc: String,
    /// When it was set, in unix milliseconds.
    #[serde(default)]
    pub created_at_ms: i64,
}

/// A user name with its secrets and limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Credential {
    /// In lower case, 1 to 254 characters.
    pub user: String,
    /// At most [`VERIFIERS_MAX`].
    pub verifiers: Vec<Verifier>,
    /// As whom it may send.
    pub senders: SenderRule,
    /// From where it may log in; empty: from everywhere.
    pub source_ranges: Vec<RemoteIpRange>,
    /// On which connectors; empty: on all.
    pub connectors: Vec<String>,
    /// Whether it may be used.
    pub enabled: bool,
    /// For people.
    pub note: String,
    /// Whom to ask.
    pub owner: String,
    /// From when on it may not be used, in unix milliseconds.
    pub expires_at_ms: Option<i64>,
}

/// Why a credential cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Not a user name.
    #[error("user must have 1 to {USER_CHARS_MAX} characters in lower case, without control characters or spaces")]
    User,
    /// No secret, or too many, or two with one id.
    #[error("it must have 1 to {VERIFIERS_MAX} passwords")]
    Verifiers,
    /// A verifier that no password can match.
    #[error("its password hash is not argon2id in PHC format")]
    Phc,
    /// A list or text beyond its limit.
    #[error("{0} is too long")]
    TooLong(&'static str),
    /// A text with control characters.
    #[error("{0} has control characters")]
    Control(&'static str),
}

/// Why a credential with the right password is refused all the same. The device is told no more than that it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialRefusal {
    /// An administrator disabled it.
    #[error("credential is disabled")]
    Disabled,
    /// Its time has passed.
    #[error("credential has expired")]
    Expired,
    /// The device's address is not among its ranges.
    #[error("credential may not be used from this address")]
    Source,
    /// The connector is not among its connectors.
    #[error("credential may not be used on this connector")]
    Connector,
}

impl Default for Credential {
    fn default() -> Self {
        Self::new("")
    }
}

impl Credential {
    /// A credential without password and senders. The user name is taken in lower case, as it is looked up.
    #[must_use]
    pub fn new(user: impl AsRef<str>) -> Self {
        Self {
            user: Self::canonical_user(user.as_ref()),
            verifiers: Vec::new(),
            senders: SenderRule::default(),
            source_ranges: Vec::new(),
            connectors: Vec::new(),
            enabled: true,
            note: String::new(),
            owner: String::new(),
            expires_at_ms: None,
        }
    }

    /// The form in which user names are kept and looked up.
    #[must_use]
    pub fn canonical_user(user: &str) -> String {
        user.trim().to_lowercase()
    }

    /// Makes `phc` the only secret.
    pub fn set_verifier(&mut self, phc: String, created_at_ms: i64) {
        let id = self.verifiers.iter().map(|verifier| verifier.id).max().unwrap_or(0).saturating_add(1);
        self.verifiers = vec![Verifier { id, phc, created_at_ms }];
    }

    /// Checks everything that the credential alone can tell.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), CredentialError> {
        let user = &self.user;
        let count = user.chars().count();
        if !(1..=USER_CHARS_MAX).contains(&count)
            || *user != user.to_lowercase()
            || user.chars().any(|c| c.is_control() || c.is_whitespace())
        {
            return Err(CredentialError::User);
        }
        let mut ids: Vec<u32> = self.verifiers.iter().map(|verifier| verifier.id).collect();
        ids.sort_unstable();
        ids.dedup();
        if !(1..=VERIFIERS_MAX).contains(&self.verifiers.len()) || ids.len() != self.verifiers.len() {
            return Err(CredentialError::Verifiers);
        }
        if !self.verifiers.iter().all(|verifier| verifier::is_acceptable(&verifier.phc)) {
            return Err(CredentialError::Phc);
        }
        for (name, length) in [
            ("senders", self.senders.0.len()),
            ("source_ranges", self.source_ranges.len()),
            ("connectors", self.connectors.len()),
        ] {
            if length > LIST_MAX {
                return Err(CredentialError::TooLong(name));
            }
        }
        for (name, text) in [("note", &self.note), ("owner", &self.owner)] {
            if text.chars().count() > TEXT_CHARS_MAX {
                return Err(CredentialError::TooLong(name));
            }
            if text.chars().any(char::is_control) {
                return Err(CredentialError::Control(name));
            }
        }
        Ok(())
    }

    /// Whether it may be used by a device at `source` on `connector` now. Asked at login, and again at each `MAIL` and
    /// `RCPT`.
    ///
    /// # Errors
    /// Why not.
    pub fn facts_ok(&self, source: IpAddr, connector: &str, now_ms: i64) -> Result<(), CredentialRefusal> {
        if !self.enabled {
            return Err(CredentialRefusal::Disabled);
        }
        if self.expires_at_ms.is_some_and(|at| at <= now_ms) {
            return Err(CredentialRefusal::Expired);
        }
        if !self.source_ranges.is_empty() && !self.source_ranges.iter().any(|range| range.contains(source)) {
            return Err(CredentialRefusal::Source);
        }
        if !self.connectors.is_empty() && !self.connectors.iter().any(|name| name == connector) {
            return Err(CredentialRefusal::Connector);
        }
        Ok(())
    }

    /// Whether `path` is one of its own senders.
    #[must_use]
    pub fn may_send_as(&self, path: &ReversePath) -> bool {
        self.senders.allows(path)
    }

    /// What the relay decision needs to know of it.
    #[must_use]
    pub fn facts(&self, source: IpAddr, connector: &str, now_ms: i64) -> CredentialFacts<'_> {
        CredentialFacts {
            user: &self.user,
            senders: &self.senders,
            usable: self.facts_ok(source, connector, now_ms).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn credential() -> Credential {
        let mut credential = Credential::new(" Scanner@Corp.Example ");
        credential.set_verifier(hash(b"correct horse", &[7; 16]).unwrap(), 5);
        credential
    }

    #[test]
    fn a_credential_is_kept_in_lower_case_and_passes() {
        let credential = credential();
        assert_eq!(credential.user, "scanner@corp.example");
        credential.check().unwrap();
        let read: Credential = serde_json::from_str(&serde_json::to_string(&credential).unwrap()).unwrap();
        assert_eq!(read, credential);
    }

    #[test]
    fn what_cannot_be_a_credential_is_refused() {
        let refused = |change: fn(&mut Credential)| {
            let mut changed = credential();
            change(&mut changed);
            changed.check().unwrap_err()
        };
        for user in ["", "A", "a\0b", "a b", &"x".repeat(255)] {
            let changed = Credential { user: user.to_owned(), ..credential() };
            assert_eq!(changed.check(), Err(CredentialError::User), "{user:?}");
        }
        assert_eq!(refused(|c| c.verifiers.clear()), CredentialError::Verifiers);
        assert_eq!(refused(|c| c.verifiers.push(c.verifiers[0].clone())), CredentialError::Verifiers);
        assert_eq!(refused(|c| c.verifiers[0].phc = "secret".into()), CredentialError::Phc);
        assert_eq!(refused(|c| c.note = "a\r\nb".into()), CredentialError::Control("note"));
        assert_eq!(refused(|c| c.owner = "x".repeat(1025)), CredentialError::TooLong("owner"));
    }

    #[test]
    fn a_new_password_replaces_the_old_one_under_a_new_id() {
        let mut credential = credential();
        let old = credential.verifiers[0].clone();
        credential.set_verifier(hash(b"another", &[8; 16]).unwrap(), 6);
        assert_eq!(credential.verifiers.len(), 1);
        assert!(credential.verifiers[0].id > old.id);
    }

    #[test]
    fn it_is_refused_when_disabled_expired_or_out_of_place() {
        let mut credential = credential();
        assert_eq!(credential.facts_ok(ip("192.0.2.1"), "submission", 99), Ok(()));
        credential.source_ranges = vec!["10.0.0.0/24".parse().unwrap()];
        credential.connectors = vec!["submission".into()];
        credential.expires_at_ms = Some(100);
        assert_eq!(credential.facts_ok(ip("::ffff:10.0.0.7"), "submission", 99), Ok(()));
        assert_eq!(credential.facts_ok(ip("10.0.1.7"), "submission", 99), Err(CredentialRefusal::Source));
        assert_eq!(credential.facts_ok(ip("10.0.0.7"), "default", 99), Err(CredentialRefusal::Connector));
        assert_eq!(credential.facts_ok(ip("10.0.0.7"), "submission", 100), Err(CredentialRefusal::Expired));
        credential.enabled = false;
        assert_eq!(credential.facts_ok(ip("10.0.0.7"), "submission", 99), Err(CredentialRefusal::Disabled));
        assert!(!credential.facts(ip("10.0.0.7"), "submission", 99).usable);
    }
}
