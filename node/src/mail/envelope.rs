//! The envelope of a letter (RFC 5321 §2.3.1): reverse-path, recipients, and what the transaction said about both and
//! about the letter.

use serde::{Deserialize, Serialize};

use super::dsn_parameters::{Notify, OriginalRecipient, Ret};
use super::{ForwardPath, ReversePath};

/// What `BODY=` declared (RFC 6152 §2, RFC 3030 §3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BodyType {
    /// `7BIT`, or no `BODY` parameter.
    #[default]
    SevenBit,
    /// `8BITMIME`.
    EightBitMime,
    /// `BINARYMIME`: its body is not lines, so it can only be sent on with `BDAT` to a next hop that offers
    /// `BINARYMIME`.
    BinaryMime,
}

/// Who sent a letter and who should have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Where failures are reported; the null reverse-path for reports themselves.
    pub reverse_path: ReversePath,
    /// The accepted recipients, in the order given, at least one once accepted.
    pub recipients: Vec<EnvelopeRecipient>,
    /// The declared body type.
    pub body: BodyType,
    /// `SIZE=` as declared (RFC 1870 §6), in bytes, when it was.
    pub declared_size: Option<u64>,
    /// Whether `SMTPUTF8` was asked for (RFC 6531 §3.4), and the header needs it: only a next hop that offers it may
    /// have the letter then. Addresses speak for themselves.
    pub smtp_utf8: bool,
    /// `RET=`.
    pub ret: Option<Ret>,
    /// `ENVID=`, decoded.
    pub envid: Option<String>,
}

impl Envelope {
    /// An envelope of which nothing else was said.
    #[must_use]
    pub fn new(reverse_path: ReversePath, recipients: impl IntoIterator<Item = ForwardPath>) -> Self {
        Self {
            reverse_path,
            recipients: recipients.into_iter().map(EnvelopeRecipient::from).collect(),
            body: BodyType::default(),
            declared_size: None,
            smtp_utf8: false,
            ret: None,
            envid: None,
        }
    }

    /// The recipients' paths.
    pub fn forward_paths(&self) -> impl Iterator<Item = &ForwardPath> {
        self.recipients.iter().map(|recipient| &recipient.path)
    }
}

/// One recipient, and what the sender wants to hear of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvelopeRecipient {
    /// The recipient.
    pub path: ForwardPath,
    /// `NOTIFY=`.
    pub notify: Option<Notify>,
    /// `ORCPT=`.
    pub orcpt: Option<OriginalRecipient>,
}

impl From<ForwardPath> for EnvelopeRecipient {
    fn from(path: ForwardPath) -> Self {
        Self { path, notify: None, orcpt: None }
    }
}
