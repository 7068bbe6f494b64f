//! The secrets of a credential: which are alive, and how a new one takes an old one's place. During a rotation two are
//! alive, so that devices can be changed over one by one without a letter lost in between.

use serde::{Deserialize, Serialize};

use super::scram::ScramKeys;
use super::{Credential, VERIFIERS_MAX};

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
    /// From when on it is no longer taken, in unix milliseconds: the older secret of a rotation with a deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<i64>,
    /// What SCRAM-SHA-256 needs, only where an administrator asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scram: Option<ScramKeys>,
}

/// A secret that was just hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSecret {
    /// The argon2id hash in PHC string format.
    pub phc: String,
    /// What SCRAM-SHA-256 needs, if it was asked for.
    pub scram: Option<ScramKeys>,
    /// When, in unix milliseconds.
    pub created_at_ms: i64,
}

/// The secret with which a session logged in, so that the session ends with it. A credential that was deleted and made
/// anew begins again with its ids, and not with their times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretId {
    /// Within the credential.
    pub id: u32,
    /// When it was set, in unix milliseconds.
    pub created_at_ms: i64,
}

/// Why a rotation cannot begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("two passwords are alive already: the one from before an earlier rotation still works")]
pub struct RotationUnderWay;

impl Verifier {
    /// Whether it is still taken.
    #[must_use]
    pub fn is_live(&self, now_ms: i64) -> bool {
        self.expires_at_ms.is_none_or(|at| at > now_ms)
    }

    /// Which secret it is.
    #[must_use]
    pub fn secret_id(&self) -> SecretId {
        SecretId { id: self.id, created_at_ms: self.created_at_ms }
    }
}

impl Credential {
    /// The secrets that are taken now, the newest last.
    pub fn live_verifiers(&self, now_ms: i64) -> impl Iterator<Item = &Verifier> {
        self.verifiers.iter().filter(move |verifier| verifier.is_live(now_ms)).take(VERIFIERS_MAX)
    }

    /// Whether the secret that a session logged in with is still one of them.
    #[must_use]
    pub fn is_secret_live(&self, secret: SecretId, now_ms: i64) -> bool {
        self.live_verifiers(now_ms).any(|verifier| verifier.secret_id() == secret)
    }

    /// Makes `secret` the only one.
    pub fn set_secret(&mut self, secret: NewSecret) {
        let id = self.next_secret_id();
        self.verifiers = vec![secret.verifier(id)];
    }

    /// Begins a rotation: `secret` is the new one, and the one before it is taken until `keep_old_until_ms` (absent:
    /// until [`Credential::finish_rotation`]).
    ///
    /// # Errors
    /// When two are alive already: a third would end one that devices may still use.
    pub fn rotate(
        &mut self,
        secret: NewSecret,
        keep_old_until_ms: Option<i64>,
        now_ms: i64,
    ) -> Result<(), RotationUnderWay> {
        let id = self.next_secret_id();
        self.verifiers.retain(|verifier| verifier.is_live(now_ms));
        if self.verifiers.len() >= VERIFIERS_MAX {
            return Err(RotationUnderWay);
        }
        for old in &mut self.verifiers {
            old.expires_at_ms = keep_old_until_ms;
        }
        self.verifiers.retain(|verifier| verifier.is_live(now_ms));
        self.verifiers.push(secret.verifier(id));
        Ok(())
    }

    /// Ends a rotation: the newest secret is the only one. Answers whether there was another.
    pub fn finish_rotation(&mut self) -> bool {
        let Some(newest) = self.verifiers.iter().max_by_key(|verifier| verifier.id).cloned() else { return false };
        let others = self.verifiers.len() > 1;
        self.verifiers = vec![Verifier { expires_at_ms: None, ..newest }];
        others
    }

    /// Forgets the SCRAM keys of every secret; the passwords stay.
    pub fn forget_scram(&mut self) {
        self.verifiers.iter_mut().for_each(|verifier| verifier.scram = None);
    }

    /// The SCRAM keys of its newest live secret that has some: their salt and iterations are what a client is told,
    /// and a rotation keeps them, so that one exchange can be checked against both secrets.
    #[must_use]
    pub fn scram(&self, now_ms: i64) -> Option<&ScramKeys> {
        self.live_verifiers(now_ms).filter_map(|verifier| verifier.scram.as_ref()).last()
    }

    fn next_secret_id(&self) -> u32 {
        self.verifiers.iter().map(|verifier| verifier.id).max().unwrap_or(0).saturating_add(1)
    }
}

impl NewSecret {
    fn verifier(self, id: u32) -> Verifier {
        let Self { phc, scram, created_at_ms } = self;
        Verifier { id, phc, created_at_ms, expires_at_ms: None, scram }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn secret(phc: &str, created_at_ms: i64) -> NewSecret {
        NewSecret { phc: phc.to_owned(), scram: None, created_at_ms }
    }

    fn live(credential: &Credential, now_ms: i64) -> Vec<&str> {
        credential.live_verifiers(now_ms).map(|verifier| verifier.phc.as_str()).collect()
    }

    #[test]
    fn a_rotation_keeps_two_alive_until_it_is_finished() {
        let mut credential = Credential::new("u");
        credential.set_secret(secret("old", 1));
        credential.rotate(secret("new", 2), None, 2).unwrap();
        assert_eq!(live(&credential, 1_000_000), ["old", "new"]);
        assert_eq!(credential.rotate(secret("third", 3), None, 3), Err(RotationUnderWay));
        assert!(credential.finish_rotation());
        assert_eq!(live(&credential, 3), ["new"]);
        assert!(!credential.finish_rotation());
        credential.rotate(secret("third", 4), None, 4).unwrap();
        assert_eq!(live(&credential, 4), ["new", "third"]);
    }

    #[test]
    fn a_deadline_ends_the_old_secret_by_itself_and_makes_room() {
        let mut credential = Credential::new("u");
        credential.set_secret(secret("old", 1));
        credential.rotate(secret("new", 2), Some(100), 2).unwrap();
        assert_eq!(live(&credential, 99), ["old", "new"]);
        assert_eq!(live(&credential, 100), ["new"]);
        credential.rotate(secret("third", 101), Some(101), 101).unwrap();
        assert_eq!(live(&credential, 101), ["third"], "kept until now means not kept");
    }

    #[test]
    fn a_session_ends_with_its_secret_and_with_its_credential() {
        let mut credential = Credential::new("u");
        credential.set_secret(secret("first", 1));
        let first = credential.verifiers[0].secret_id();
        credential.rotate(secret("second", 2), Some(10), 2).unwrap();
        assert!(credential.is_secret_live(first, 9));
        assert!(!credential.is_secret_live(first, 10));
        let mut anew = Credential::new("u");
        anew.set_secret(secret("other", 5));
        assert!(!anew.is_secret_live(first, 5), "the same id of another credential of that name");
    }

    #[test]
    fn ids_are_not_used_twice() {
        let mut credential = Credential::new("u");
        let mut seen = Vec::new();
        for round in 0..10 {
            credential.rotate(secret("x", round), Some(round), round).unwrap();
            seen.push(credential.verifiers.last().unwrap().id);
        }
        assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
    }

    #[test]
    fn records_from_before_rotation_are_read_and_written_alike() {
        let old = r#"{"id":3,"phc":"x","created_at_ms":7}"#;
        let read: Verifier = serde_json::from_str(old).unwrap();
        assert!(read.is_live(i64::MAX - 1) && read.scram.is_none());
        assert_eq!(serde_json::to_string(&read).unwrap(), old, "digests of two versions must agree");
    }
}
