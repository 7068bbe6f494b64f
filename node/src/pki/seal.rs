//! Sealing secrets with the cluster's data key (AES-256-GCM) before they are proposed: log, snapshot and backup
//! never hold them in clear. The context (what the secret is for) is authenticated with it, so that one sealed
//! secret cannot be put in another's place.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::state::SealedSecret;

/// What the authority's private key is sealed for.
pub const CA_KEY_CONTEXT: &str = "ca-key";

/// What a front's signing key is sealed for.
#[must_use]
pub fn front_key_context(front: &str, key_id: &str) -> String {
    format!("front-key:{front}:{key_id}")
}

/// What a route's password is sealed for.
#[must_use]
pub fn route_password_context(route: &str) -> String {
    format!("route-password:{route}")
}

/// 32 bytes that every voter keeps beside its data (mode 0600) and that no log or snapshot holds.
#[derive(Clone)]
pub struct DataKey([u8; 32]);

/// Why a sealed secret cannot be opened. Ours, lasting: another cluster's key, or a damaged state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sealed secret cannot be opened with this cluster's data key")]
pub struct SealError;

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey(<redacted>)")
    }
}

impl DataKey {
    /// Makes a new one.
    #[must_use]
    pub fn generate() -> Self {
        Self(super::random())
    }

    /// Takes 32 bytes.
    ///
    /// # Errors
    /// When there are more or fewer.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SealError> {
        bytes.try_into().map(Self).map_err(|_| SealError)
    }

    /// The bytes, for the file beside the data and for a joining voter.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Seals `secret` for `context`.
    ///
    /// # Errors
    /// When the secret is too long for the cipher (64 GiB).
    pub fn seal(&self, context: &str, secret: &[u8]) -> Result<SealedSecret, SealError> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, &self.0).map_err(|_| SealError)?;
        let mut sealed = secret.to_vec();
        let nonce = key.seal_in_place_append_tag(Aad::from(context.as_bytes()), &mut sealed).map_err(|_| SealError)?;
        let mut bytes = nonce.as_ref().to_vec();
        bytes.extend(sealed);
        Ok(SealedSecret(STANDARD.encode(bytes)))
    }

    /// Opens what was sealed for the same `context`.
    ///
    /// # Errors
    /// When key, context or bytes are not the ones it was sealed with.
    pub fn open(&self, context: &str, sealed: &SealedSecret) -> Result<Vec<u8>, SealError> {
        let bytes = STANDARD.decode(&sealed.0).map_err(|_| SealError)?;
        let (nonce, rest) = bytes.split_at_checked(NONCE_LEN).ok_or(SealError)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &self.0).map_err(|_| SealError)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError)?;
        let mut rest = rest.to_vec();
        let opened = key.open_in_place(nonce, Aad::from(context.as_bytes()), &mut rest).map_err(|_| SealError)?;
        Ok(opened.to_vec())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_the_same_key_and_context_only() {
        let key = DataKey::generate();
        let sealed = key.seal("ca", b"secret").unwrap();
        assert_eq!(key.open("ca", &sealed).unwrap(), b"secret");
        assert!(key.open("tls", &sealed).is_err());
        assert!(DataKey::generate().open("ca", &sealed).is_err());
        assert!(!sealed.0.contains("secret"));
    }
}
