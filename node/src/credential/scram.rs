//! SCRAM-SHA-256 and -PLUS, the server's side (RFC 5802, RFC 7677, RFC 9266): keys made from a password, and one
//! exchange, sans-io. The password is never here: what is kept cannot log in anywhere by itself.
//!
//! A user without keys, or nobody at all, gets an exchange that looks the same and fails at the end: its salt is made
//! from a key of the cluster and the name, so that it is the same on every node and at every try.

use std::fmt;
use std::num::NonZeroU32;

use aws_lc_rs::{constant_time, digest, hmac, pbkdf2};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::verifier::HashError;

/// RFC 7677 §4 demands at least 4096. A printer computes this once for each letter; 10,000 is a tenth of a second for
/// the slowest of them.
pub const SCRAM_ITERATIONS: u32 = 10_000;
/// What a stored key may ask for: a restored backup must not make every client compute for a minute.
const ITERATIONS_MAX: u32 = 1_000_000;
const SALT_OCTETS: usize = 16;
const KEY_OCTETS: usize = 32;
/// Names and nonces longer than this are nobody's.
const FIELD_OCTETS_MAX: usize = 1024;

/// What is kept for SCRAM-SHA-256: RFC 5802 §3 StoredKey and ServerKey with their salt. Base64 in the state.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScramKeys {
    /// How often the hash was iterated.
    pub iterations: u32,
    #[serde(with = "base64_octets")]
    salt: Vec<u8>,
    #[serde(with = "base64_octets")]
    stored_key: Vec<u8>,
    #[serde(with = "base64_octets")]
    server_key: Vec<u8>,
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramKeys").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

mod base64_octets {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl ScramKeys {
    /// Makes the keys of a password under `salt`. Takes some milliseconds.
    ///
    /// # Errors
    /// When the password is not plain ASCII: SASLprep (RFC 4013) would have to be the same in every printer.
    pub fn derive(password: &[u8], salt: &[u8; SALT_OCTETS]) -> Result<Self, HashError> {
        Self::derive_with(password, salt, SCRAM_ITERATIONS)
    }

    /// The same salt and cost for another password: during a rotation both are told to the client in one message.
    ///
    /// # Errors
    /// See [`ScramKeys::derive`].
    pub fn derive_beside(&self, password: &[u8]) -> Result<Self, HashError> {
        Self::derive_with(password, &self.salt, self.iterations)
    }

    fn derive_with(password: &[u8], salt: &[u8], iterations: u32) -> Result<Self, HashError> {
        if !password.iter().all(|byte| (0x20..0x7f).contains(byte)) {
            return Err(HashError::NotAscii);
        }
        let rounds = NonZeroU32::new(iterations).ok_or(HashError::Argon2)?;
        let mut salted = [0_u8; KEY_OCTETS];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, password, &mut salted);
        let client_key = mac(&salted, b"Client Key");
        let stored_key = digest::digest(&digest::SHA256, client_key.as_ref()).as_ref().to_vec();
        let server_key = mac(&salted, b"Server Key").as_ref().to_vec();
        Ok(Self { iterations, salt: salt.to_vec(), stored_key, server_key })
    }

    /// Keys that no password has, for a name that has none: the salt depends on name and `cluster_key` alone.
    #[must_use]
    pub fn fake(cluster_key: &[u8], user: &str) -> Self {
        let seed = |purpose: &str| mac(cluster_key, format!("scram-sha-256:{purpose}:{user}").as_bytes());
        let mut salt = seed("salt").as_ref().to_vec();
        salt.truncate(SALT_OCTETS);
        Self {
            iterations: SCRAM_ITERATIONS,
            salt,
            stored_key: seed("stored key").as_ref().to_vec(),
            server_key: seed("server key").as_ref().to_vec(),
        }
    }

    /// Whether they can be keys at all, and cost no client more than a moment.
    #[must_use]
    pub(super) fn is_acceptable(&self) -> bool {
        (4096..=ITERATIONS_MAX).contains(&self.iterations)
            && (8..=64).contains(&self.salt.len())
            && self.stored_key.len() == KEY_OCTETS
            && self.server_key.len() == KEY_OCTETS
    }

    /// Whether one exchange can be checked against both.
    fn shares_salt_with(&self, other: &Self) -> bool {
        self.salt == other.salt && self.iterations == other.iterations
    }
}

/// What the connection has for channel binding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// RFC 9266 `tls-exporter` octets; absent where there is no TLS 1.3.
    pub tls_exporter: Option<[u8; 32]>,
    /// Whether the mechanism that the client chose is the -PLUS one.
    pub plus: bool,
}

/// Why an exchange ended. The client is told no more than that it failed, except for messages that are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// Not what the RFC says.
    #[error("malformed message")]
    Malformed,
    /// To act for somebody else is not possible here.
    #[error("authorization identity differs from the user")]
    ForeignIdentity,
    /// The client believes that we offer no channel binding, and we did: somebody stands between (RFC 5802 §6).
    #[error("channel binding was taken out of our offer on its way")]
    Downgrade,
    /// A binding that is not ours, or not this connection's.
    #[error("channel binding does not match")]
    Binding,
    /// The proof is none.
    #[error("wrong password")]
    Proof,
}

/// The first message of a client, read.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientFirst {
    gs2_header: Vec<u8>,
    bare: String,
    user: String,
    nonce: String,
}

/// An exchange after the server's first message.
#[derive(Clone)]
pub struct ScramExchange {
    client: ClientFirst,
    server_first: String,
    nonce: String,
    binding: Binding,
}

impl fmt::Debug for ScramExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramExchange").field("user", &self.client.user).finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientFirst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientFirst").field("user", &self.user).finish_non_exhaustive()
    }
}

impl ClientFirst {
    /// Reads a client-first-message (RFC 5802 §7) and holds its GS2 header against what we offered.
    ///
    /// # Errors
    /// See [`ScramError`].
    pub fn parse(message: &[u8], binding: &Binding) -> Result<Self, ScramError> {
        let text = std::str::from_utf8(message).map_err(|_| ScramError::Malformed)?;
        if text.len() > 3 * FIELD_OCTETS_MAX || text.contains('\0') {
            return Err(ScramError::Malformed);
        }
        let mut parts = text.splitn(3, ',');
        let (Some(flag), Some(identity), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(ScramError::Malformed);
        };
        match (flag, binding.plus, binding.tls_exporter.is_some()) {
            ("p=tls-exporter", true, true) | ("n", false, _) | ("y", false, false) => {}
            ("y", false, true) => return Err(ScramError::Downgrade),
            (name, _, _) if name.starts_with("p=") => return Err(ScramError::Binding),
            ("n" | "y", true, _) => return Err(ScramError::Binding),
            _ => return Err(ScramError::Malformed),
        }
        let mut fields = bare.split(',');
        // An "m=" extension in front must be understood, and none is (RFC 5802 §5.1).
        let user = fields.next().and_then(|field| field.strip_prefix("n=")).ok_or(ScramError::Malformed)?;
        let nonce = fields.next().and_then(|field| field.strip_prefix("r=")).ok_or(ScramError::Malformed)?;
        if !is_nonce(nonce) {
            return Err(ScramError::Malformed);
        }
        let user = unescape(user)?;
        if user.is_empty() || user.len() > FIELD_OCTETS_MAX || user.chars().any(char::is_control) {
            return Err(ScramError::Malformed);
        }
        if !identity.is_empty() {
            let identity = identity.strip_prefix("a=").ok_or(ScramError::Malformed)?;
            if unescape(identity)? != user {
                return Err(ScramError::ForeignIdentity);
            }
        }
        let header = text.len() - bare.len();
        let gs2_header = message.get(..header).unwrap_or_default().to_vec();
        Ok(Self { gs2_header, bare: bare.to_owned(), nonce: nonce.to_owned(), user })
    }

    /// The user who wants to log in.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Makes the server-first-message from salt and cost of `keys`. `random` must come from a cryptographic source.
    #[must_use]
    pub fn challenge(self, keys: &ScramKeys, binding: Binding, random: &[u8; 18]) -> (ScramExchange, Vec<u8>) {
        let nonce = format!("{}{}", self.nonce, STANDARD.encode(random));
        let server_first = format!("r={nonce},s={},i={}", STANDARD.encode(&keys.salt), keys.iterations);
        let message = server_first.clone().into_bytes();
        (ScramExchange { client: self, server_first, nonce, binding }, message)
    }
}

impl ScramExchange {
    /// The user who wants to log in.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.client.user
    }

    /// Checks a client-final-message against each of `keys`. Answers which of them it proves, and the
    /// server-final-message that proves us to the client. Keys under another salt than the one that was told prove
    /// nothing; the work is the same for a yes and a no.
    ///
    /// # Errors
    /// See [`ScramError`].
    pub fn finish<'a, K: Copy>(
        &self,
        message: &[u8],
        told: &ScramKeys,
        keys: impl IntoIterator<Item = (K, &'a ScramKeys)>,
    ) -> Result<(K, Vec<u8>), ScramError> {
        let text = std::str::from_utf8(message).map_err(|_| ScramError::Malformed)?;
        if text.len() > 4 * FIELD_OCTETS_MAX {
            return Err(ScramError::Malformed);
        }
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let proof = STANDARD.decode(proof).map_err(|_| ScramError::Malformed)?;
        if proof.len() != KEY_OCTETS {
            return Err(ScramError::Malformed);
        }
        let mut fields = without_proof.split(',');
        let bound = fields.next().and_then(|field| field.strip_prefix("c=")).ok_or(ScramError::Malformed)?;
        let nonce = fields.next().and_then(|field| field.strip_prefix("r=")).ok_or(ScramError::Malformed)?;
        let bound = STANDARD.decode(bound).map_err(|_| ScramError::Malformed)?;
        let mut expected = self.client.gs2_header.clone();
        if let (true, Some(exporter)) = (self.binding.plus, self.binding.tls_exporter) {
            expected.extend(exporter);
        }
        if constant_time::verify_slices_are_equal(&bound, &expected).is_err() {
            return Err(ScramError::Binding);
        }
        if nonce != self.nonce {
            return Err(ScramError::Malformed);
        }
        let auth_message = format!("{},{},{without_proof}", self.client.bare, self.server_first);
        let mut proven = None;
        for (id, keys) in keys {
            if keys.proves(&auth_message, &proof) && keys.shares_salt_with(told) {
                proven = Some((id, keys));
            }
        }
        let (id, keys) = proven.ok_or(ScramError::Proof)?;
        let signature = mac(&keys.server_key, auth_message.as_bytes());
        Ok((id, format!("v={}", STANDARD.encode(signature.as_ref())).into_bytes()))
    }
}

impl ScramKeys {
    /// RFC 5802 §3: the proof hides ClientKey under ClientSignature; its hash must be StoredKey.
    fn proves(&self, auth_message: &str, proof: &[u8]) -> bool {
        let signature = mac(&self.stored_key, auth_message.as_bytes());
        let client_key: Vec<u8> = proof.iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        let stored = digest::digest(&digest::SHA256, &client_key);
        constant_time::verify_slices_are_equal(stored.as_ref(), &self.stored_key).is_ok()
    }
}

fn mac(key: &[u8], message: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message)
}

/// RFC 5802 §7 `printable`: ASCII without comma.
fn is_nonce(text: &str) -> bool {
    (1..=FIELD_OCTETS_MAX).contains(&text.len()) && text.bytes().all(|byte| (0x21..0x7f).contains(&byte))
}

/// RFC 5802 §5.1: `=2C` is a comma, `=3D` an equals sign, and any other `=` is an error.
fn unescape(text: &str) -> Result<String, ScramError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('=') {
        out.push_str(before);
        rest = if let Some(rest) = after.strip_prefix("2C") {
            out.push(',');
            rest
        } else if let Some(rest) = after.strip_prefix("3D") {
            out.push('=');
            rest
        } else {
            return Err(ScramError::Malformed);
        };
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
#[path = "scram_tests.rs"]
mod tests;
