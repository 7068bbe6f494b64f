//! Join tokens: everything a new machine needs to find the cluster, to recognise it before it says its secret, and
//! to be let in. One word that survives copying: a prefix, base64url, and a checksum that catches a lost character.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// What a token says. Written by a member, read by the joiner.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenText {
    /// Public part; names the token in the state.
    pub id: String,
    /// 32 random bytes in hexadecimal.
    pub secret: String,
    /// SHA-256 of the authority's certificate (DER), in hexadecimal: the joiner verifies the cluster by it.
    pub ca_sha256: String,
    /// `host:port` of members.
    pub endpoints: Vec<String>,
    /// `voter`, `learner` or `front`.
    pub role: String,
}

impl std::fmt::Debug for JoinTokenText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinTokenText").field("id", &self.id).field("role", &self.role).finish_non_exhaustive()
    }
}

/// Why a word is not a token. Theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Does not begin as one.
    #[error("a join token begins with PHJ1-; was something else pasted?")]
    Prefix,
    /// A character was lost or changed.
    #[error("the join token is damaged: was all of it copied?")]
    Damaged,
}

const PREFIX: &str = "PHJ1-";
const CHECKSUM_BYTES: usize = 4;

impl JoinTokenText {
    /// The token as one word.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut bytes = serde_json::to_vec(self).expect("a token has string keys only");
        let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
        bytes.extend(sum.as_ref().iter().take(CHECKSUM_BYTES));
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads a token.
    ///
    /// # Errors
    /// When it is not one, or is damaged.
    pub fn decode(text: &str) -> Result<Self, TokenError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged)?;
        let split = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(TokenError::Damaged)?;
        let (json, sum) = bytes.split_at(split);
        let expected = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, json);
        if !expected.as_ref().starts_with(sum) {
            return Err(TokenError::Damaged);
        }
        serde_json::from_slice(json).map_err(|_| TokenError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn token() -> JoinTokenText {
        JoinTokenText {
            id: "abc".into(),
            secret: "00ff".into(),
            ca_sha256: "11".into(),
            endpoints: vec!["127.0.0.1:1".into()],
            role: "voter".into(),
        }
    }

    #[test]
    fn a_token_survives_the_round_trip() {
        let word = token().encode();
        assert_eq!(JoinTokenText::decode(&format!(" {word}\n")).unwrap(), token());
    }

    #[test]
    fn a_lost_character_is_noticed() {
        let word = token().encode();
        assert_eq!(JoinTokenText::decode(&word[..word.len() - 1]), Err(TokenError::Damaged));
        assert_eq!(JoinTokenText::decode("K10abc"), Err(TokenError::Prefix));
    }
}
