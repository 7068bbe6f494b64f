//! Who someone is: a credential's verifiers, as whom it may send, from where and until when. Pure, except that hashing
//! takes tens of milliseconds and must not run on an async worker. Salts, keys and time are passed in.

mod cache;
mod certificate;
mod generate;
mod scram;
mod secret;
mod verifier;
mod x500;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use cache::{CacheKey, Cached, VERIFY_CACHE_ENTRIES, VerifyCache};
pub use certificate::{CertificatePattern, ClientCertificate, PatternError};
pub use generate::{Alphabet, GENERATED_LENGTH_MAX, GENERATED_LENGTH_MIN, GENERATED_RANDOM_BYTES, Recipe, RecipeError};
pub use scram::{Binding, ClientFirst, SCRAM_ITERATIONS, ScramError, ScramExchange, ScramKeys};
pub use secret::{NewSecret, RotationUnderWay, SecretId, Verifier};
pub use verifier::{HashError, hash, verify, verify_any, verify_dummy};
pub use x500::X500Name;

use crate::connector::{CredentialFacts, RemoteIpRange, SenderRule};
use crate::mail::ReversePath;

/// How many secrets of one credential may be alive: the old and the new one, while devices are changed over.
pub const VERIFIERS_MAX: usize = 2;
/// RFC 5321 §4.5.3.1.3: a path has at most 256 octets with its brackets.
const USER_CHARS_MAX: usize = 254;
const TEXT_CHARS_MAX: usize = 1024;
const LIST_MAX: usize = 1000;

/// A user name with its secrets and limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Credential {
    /// In lower case, 1 to 254 characters.
    pub user: String,
    /// At most [`VERIFIERS_MAX`]; none, where certificates alone prove who it is.
    pub verifiers: Vec<Verifier>,
    /// By which client certificates it is known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificatePattern>,
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
    #[error("it must have 1 to {VERIFIERS_MAX} passwords, or a client certificate")]
    Verifiers,
    /// A verifier that no password can match.
    #[error("its password hash is not argon2id in PHC format")]
    Phc,
    /// SCRAM keys that no password has.
    #[error("its SCRAM-SHA-256 keys are not valid")]
    Scram,
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
    /// The password of this login is no longer one of its own.
    #[error("the password of this login was replaced")]
    Secret,
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
            certificates: Vec::new(),
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
        let fewest = usize::from(self.certificates.is_empty());
        if !(fewest..=VERIFIERS_MAX).contains(&self.verifiers.len()) || ids.len() != self.verifiers.len() {
            return Err(CredentialError::Verifiers);
        }
        if !self.verifiers.iter().all(|verifier| verifier::is_acceptable(&verifier.phc)) {
            return Err(CredentialError::Phc);
        }
        if !self.verifiers.iter().filter_map(|verifier| verifier.scram.as_ref()).all(ScramKeys::is_acceptable) {
            return Err(CredentialError::Scram);
        }
        for (name, length) in [
            ("senders", self.senders.0.len()),
            ("source_ranges", self.source_ranges.len()),
            ("connectors", self.connectors.len()),
            ("certificates", self.certificates.len()),
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

    /// The same for a session that logged in with `secret`: it ends with the secret, too. Absent: it showed none.
    ///
    /// # Errors
    /// Why not.
    pub fn session_ok(
        &self,
        secret: Option<SecretId>,
        source: IpAddr,
        connector: &str,
        now_ms: i64,
    ) -> Result<(), CredentialRefusal> {
        if secret.is_some_and(|secret| !self.is_secret_live(secret, now_ms)) {
            return Err(CredentialRefusal::Secret);
        }
        self.facts_ok(source, connector, now_ms)
    }

    /// What the relay decision needs to know of it, for a session that logged in with `secret`.
    #[must_use]
    pub fn facts(&self, secret: Option<SecretId>, source: IpAddr, connector: &str, now_ms: i64) -> CredentialFacts<'_> {
        CredentialFacts {
            user: &self.user,
            senders: &self.senders,
            usable: self.session_ok(secret, source, connector, now_ms).is_ok(),
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
        let phc = hash(b"correct horse", &[7; 16]).unwrap();
        credential.set_secret(NewSecret { phc, scram: None, created_at_ms: 5 });
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
        let costly = |c: &mut Credential| {
            let mut keys = ScramKeys::derive(b"pw", &[1; 16]).unwrap();
            keys.iterations = u32::MAX;
            c.verifiers[0].scram = Some(keys);
        };
        assert_eq!(refused(costly), CredentialError::Scram);
        assert_eq!(refused(|c| c.note = "a\r\nb".into()), CredentialError::Control("note"));
        assert_eq!(refused(|c| c.owner = "x".repeat(1025)), CredentialError::TooLong("owner"));
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
        assert!(!credential.facts(None, ip("10.0.0.7"), "submission", 99).usable);
    }

    #[test]
    fn a_session_whose_password_was_replaced_is_refused() {
        let mut credential = credential();
        let (source, secret) = (ip("10.0.0.7"), credential.verifiers[0].secret_id());
        assert_eq!(credential.session_ok(Some(secret), source, "submission", 99), Ok(()));
        credential.set_secret(NewSecret { phc: hash(b"b", &[7; 16]).unwrap(), scram: None, created_at_ms: 6 });
        let refused = credential.session_ok(Some(secret), source, "submission", 99);
        assert_eq!(refused, Err(CredentialRefusal::Secret));
        assert_eq!(credential.session_ok(None, source, "submission", 99), Ok(()), "a client certificate");
    }
}
