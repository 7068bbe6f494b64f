//! What the disk knows about a letter besides its bytes: whose it is, who should have it and how far it came.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::MessageId;
use crate::mail::{
    BodyType, Domain, Envelope, EnvelopeRecipient, ForwardPath, Notify, OriginalRecipient, Ret, ReversePath,
};

/// The first byte of a stored record. A reader refuses what it does not know instead of guessing.
pub const RECORD_FORMAT: u8 = 1;
/// The epoch of a letter that has never changed hands; taking over from a lost node raises it.
pub const FIRST_EPOCH: u64 = 1;
/// How much of a reply a record keeps, in bytes: the longest reply line of RFC 5321 §4.5.3.1.5.
pub const REPLY_BYTES_MAX: usize = 512;

/// What a session knows about a letter when it is complete.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// Who sent it and who should have it.
    pub envelope: Envelope,
    /// The `Message-ID`, with angle brackets.
    pub message_id: String,
    /// The device, not the front.
    pub source_addr: IpAddr,
    /// The front it came through.
    pub front: Option<String>,
    /// The receive connector that took it.
    pub connector: String,
    /// The session that brought it.
    pub session_id: String,
    /// What the device said in `EHLO`.
    pub helo: String,
    /// The credential it used.
    pub user: Option<String>,
    /// Protocol and cipher suite.
    pub tls: Option<String>,
    /// The `Subject`, as written.
    pub subject: String,
    /// Bytes of the letter as spooled.
    pub size: u64,
    /// When it was accepted, in unix milliseconds.
    pub received_at_ms: i64,
}

/// A letter as the disk knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub id: MessageId,
    /// The node that delivers it. Room for copies on a second node.
    pub owner: u64,
    /// Raised each time another node takes it over.
    pub epoch: u64,
    /// The sender.
    pub reverse_path: ReversePath,
    /// Every recipient, in the order given, with what became of it.
    pub recipients: Vec<Recipient>,
    /// The declared body type.
    pub body: BodyType,
    /// Whether the client asked for `SMTPUTF8` and the header needs it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub smtp_utf8: bool,
    /// `RET=`: how much of the letter a report of failure gives back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ret: Option<Ret>,
    /// `ENVID=`, decoded: what a report calls the letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envid: Option<String>,
    /// The `Message-ID`.
    pub message_id: String,
    /// The device.
    pub source_addr: IpAddr,
    /// The front it came through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front: Option<String>,
    /// The receive connector; `dsn` for our own reports.
    pub connector: String,
    /// The session that brought it.
    pub session_id: String,
    /// The credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The `Subject`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// When it was accepted, in unix milliseconds.
    pub received_at_ms: i64,
    /// Bytes of the letter.
    pub length: u64,
    /// In how many pieces the bytes are stored.
    pub chunks: u32,
    /// SHA-256 over the bytes, in hexadecimal.
    pub checksum: String,
    /// How many trace events were written: they are bounded per letter.
    #[serde(default)]
    pub events: u16,
    /// How often it crashed a worker.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub crashes: u32,
    /// An administrator keeps it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// An administrator sends it elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
}

// serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Who keeps a letter back, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Since when, in unix milliseconds.
    pub at_ms: i64,
    /// The administrator, with the reason given.
    pub by: String,
}

/// Where a letter goes instead of where its routes would send it, from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Redirect {
    /// `host:port` of the next hop.
    pub to: String,
    /// The recipient domains that this is about; empty: every one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<Domain>,
    /// Since when, in unix milliseconds.
    pub at_ms: i64,
    /// The administrator, with the reason given.
    pub by: String,
}

impl Redirect {
    /// Whether it is about recipients of `domain`.
    #[must_use]
    pub fn is_about(&self, domain: &Domain) -> bool {
        self.domains.is_empty() || self.domains.contains(domain)
    }
}

/// One recipient and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// The recipient.
    pub path: ForwardPath,
    /// How far it came.
    #[serde(default)]
    pub state: RecipientState,
    /// How often it was tried.
    #[serde(default)]
    pub attempts: u32,
    /// When to try next, in unix milliseconds; zero: at once.
    #[serde(default)]
    pub next_attempt_ms: i64,
    /// Whether its sender was told of the delay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delay_reported: bool,
    /// The last reply, on one line, at most [`REPLY_BYTES_MAX`] bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub last_reply: String,
    /// `NOTIFY=`: what the sender wants to hear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
    /// `ORCPT=`: whom the sender wrote to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orcpt: Option<OriginalRecipient>,
}

/// How far a recipient came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecipientState {
    /// Still to be delivered.
    #[default]
    Pending,
    /// A next hop took it.
    Delivered,
    /// It never will be.
    Failed,
}

/// Why a stored record was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    /// Nothing there.
    #[error("record is empty")]
    Empty,
    /// Written by a later version.
    #[error("record format {0} is not known to this version")]
    Format(u8),
    /// Not what we write.
    #[error("record cannot be decoded: {0}")]
    Decode(String),
}

impl Record {
    /// Makes the record of a letter whose bytes are known.
    pub(super) fn new(id: MessageId, owner: u64, new: NewMessage, sum: Summed) -> Self {
        let pending = |EnvelopeRecipient { path, notify, orcpt }| Recipient {
            path,
            notify,
            orcpt,
            state: RecipientState::Pending,
            attempts: 0,
            next_attempt_ms: 0,
            delay_reported: false,
            last_reply: String::new(),
        };
        Self {
            id,
            owner,
            epoch: FIRST_EPOCH,
            reverse_path: new.envelope.reverse_path,
            recipients: new.envelope.recipients.into_iter().map(pending).collect(),
            body: new.envelope.body,
            smtp_utf8: new.envelope.smtp_utf8,
            ret: new.envelope.ret,
            envid: new.envelope.envid,
            message_id: new.message_id,
            source_addr: new.source_addr,
            front: new.front,
            connector: new.connector,
            session_id: new.session_id,
            user: new.user,
            subject: new.subject,
            received_at_ms: new.received_at_ms,
            length: sum.length,
            chunks: sum.chunks,
            checksum: sum.checksum,
            events: 0,
            crashes: 0,
            held: None,
            redirect: None,
        }
    }

    /// The recipients still to be delivered, with their places.
    pub fn pending(&self) -> impl Iterator<Item = (usize, &Recipient)> {
        self.recipients.iter().enumerate().filter(|(_, recipient)| recipient.state == RecipientState::Pending)
    }

    /// Whether somebody still waits for it.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.pending().next().is_none()
    }

    /// Writes the format byte and the record.
    pub(super) fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let mut out = Vec::with_capacity(512);
        out.push(RECORD_FORMAT);
        serde_json::to_writer(&mut out, self).map_err(|error| RecordError::Decode(error.to_string()))?;
        Ok(out)
    }

    /// Reads what [`Record::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are of another format or damaged.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        match bytes.split_first() {
            None => Err(RecordError::Empty),
            Some((&RECORD_FORMAT, json)) => {
                serde_json::from_slice(json).map_err(|error| RecordError::Decode(error.to_string()))
            }
            Some((other, _)) => Err(RecordError::Format(*other)),
        }
    }
}

/// Length, pieces and checksum of a letter's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Summed {
    pub(super) length: u64,
    pub(super) chunks: u32,
    pub(super) checksum: String,
}

/// Counts and sums a letter's bytes as they pass.
pub(super) struct Summer {
    context: aws_lc_rs::digest::Context,
    length: u64,
}

impl Summer {
    pub(super) fn new() -> Self {
        Self { context: aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256), length: 0 }
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.length = self.length.saturating_add(bytes.len() as u64);
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn finish(self, chunks: u32) -> Summed {
        Summed { length: self.length, chunks, checksum: hex(self.context.finish().as_ref()) }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Cuts `text` to at most `max` bytes at a character boundary.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_an_unknown_format_is_refused_and_not_guessed() {
        assert_eq!(Record::decode(&[]), Err(RecordError::Empty));
        assert_eq!(Record::decode(&[9, b'{', b'}']), Err(RecordError::Format(9)));
        assert!(matches!(Record::decode(b"\x01{"), Err(RecordError::Decode(_))));
    }

    #[test]
    fn a_record_from_before_delivery_status_parameters_reads() {
        let old = br#"{"id":"0000000000001","owner":1,"epoch":1,"reverse_path":"a@x.example",
            "recipients":[{"path":"b@y.example"}],"body":"eight_bit_mime","message_id":"<m@x>",
            "source_addr":"192.0.2.7","connector":"c","session_id":"s","received_at_ms":1,"length":2,"chunks":1,
            "checksum":""}"#;
        let record = Record::decode(&[&[RECORD_FORMAT], &old[..]].concat()).unwrap();
        assert!(!record.smtp_utf8 && record.ret.is_none() && record.envid.is_none());
        assert!(record.recipients[0].notify.is_none() && record.recipients[0].orcpt.is_none());
        let mut told = record;
        told.ret = Some(Ret::Headers);
        told.envid = Some("QQ 1".to_owned());
        told.smtp_utf8 = true;
        told.recipients[0].notify = Some(Notify::NEVER);
        told.recipients[0].orcpt = OriginalRecipient::parse("rfc822;c@y.example", false).ok();
        assert_eq!(Record::decode(&told.encode().unwrap()).unwrap(), told);
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(cut("grüße", 3), "gr");
        assert_eq!(cut("grüße", 4), "grü");
        assert_eq!(cut("abc", 10), "abc");
    }
}
