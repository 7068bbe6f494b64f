//! The envelope of a letter (RFC 5321 §2.3.1): reverse-path, forward-paths and the body type of the transaction.

use serde::{Deserialize, Serialize};

use super::{ForwardPath, ReversePath};

/// What `BODY=` declared (RFC 6152 §2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BodyType {
    /// `7BIT`, or no `BODY` parameter.
    #[default]
    SevenBit,
    /// `8BITMIME`.
    EightBitMime,
}

/// Who sent a letter and who should have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Where failures are reported; the null reverse-path for reports themselves.
    pub reverse_path: ReversePath,
    /// The accepted recipients, in the order given, at least one once accepted.
    pub forward_paths: Vec<ForwardPath>,
    /// The declared body type.
    pub body: BodyType,
    /// `SIZE=` as declared (RFC 1870 §6), in bytes, when it was.
    pub declared_size: Option<u64>,
}
