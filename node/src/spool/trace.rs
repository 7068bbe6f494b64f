//! What happened to a letter, kept after the letter itself is gone: written in the same batch as the change it tells,
//! so that the trace never says more or less than the spool did.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{MessageId, RecipientState, Record};

/// How many events one letter may have; further ones are dropped, except the last word on it.
pub const EVENTS_PER_LETTER_MAX: u16 = 200;
/// How many records one question may be answered with.
pub const TRACE_ANSWER_MAX: usize = 10_000;

/// How much of the past is kept; the oldest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceLimits {
    /// How long a letter is remembered.
    pub age: Duration,
    /// How many bytes, as they are before RocksDB makes them smaller.
    pub bytes: u64,
}

impl Default for TraceLimits {
    /// Exchange's MessageTrackingLogMaxAge and MessageTrackingLogMaxDirectorySize: 30 days, 1000 MB.
    fn default() -> Self {
        Self { age: Duration::from_secs(30 * 24 * 3600), bytes: 1000 * 1024 * 1024 }
    }
}

/// A letter and what happened to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceRecord {
    /// Its name.
    pub id: MessageId,
    /// The `Message-ID`, with angle brackets.
    pub message_id: String,
    /// The device.
    pub client_ip: IpAddr,
    /// The receive connector.
    pub connector: String,
    /// The sender, `<>` for the null reverse-path.
    pub sender: String,
    /// Every recipient.
    pub recipients: Vec<String>,
    /// How far it came.
    pub status: TraceStatus,
    /// The node that took it.
    pub node: String,
    /// The session that brought it.
    pub session_id: String,
    /// The front it came through.
    pub front: Option<String>,
    /// The credential.
    pub user: Option<String>,
    /// The `Subject`.
    pub subject: String,
    /// Bytes.
    pub size: u64,
    /// When it was accepted, in unix milliseconds.
    pub received_at_ms: i64,
    /// What happened, oldest first, beginning with `accepted`.
    pub events: Vec<TraceEvent>,
}

/// How far a letter came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceStatus {
    /// Accepted, not tried.
    Queued,
    /// Tried, and to be tried again.
    Deferred,
    /// Every recipient has it.
    Delivered,
    /// No recipient ever will.
    Failed,
    /// Some have it, the others never will.
    Partial,
    /// An administrator removed it.
    Deleted,
}

impl TraceStatus {
    /// The word that people read.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Deferred => "deferred",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Partial => "partial",
            Self::Deleted => "deleted",
        }
    }

    /// Says how far `record` came.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let count = |state| record.recipients.iter().filter(|recipient| recipient.state == state).count();
        let attempted = record.recipients.iter().any(|recipient| recipient.attempts > 0);
        match (count(RecipientState::Pending), count(RecipientState::Delivered), count(RecipientState::Failed)) {
            (0, _, 0) => Self::Delivered,
            (0, 0, _) => Self::Failed,
            (0, _, _) => Self::Partial,
            _ if attempted => Self::Deferred,
            _ => Self::Queued,
        }
    }
}

/// One step of a letter's life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEvent {
    /// When, in unix milliseconds.
    pub at_ms: i64,
    /// Which step.
    pub event: TraceKind,
    /// Where.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// `host:port [address]` of the next hop.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next_hop: String,
    /// Whom it is about; empty: every recipient.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub recipient: String,
    /// What the next hop said, or what we said for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reply: String,
    /// Anything else.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// A step of a letter's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceKind {
    /// The spool has it.
    #[default]
    Accepted,
    /// A next hop was tried.
    Attempt,
    /// A next hop took it.
    Delivered,
    /// To be tried again.
    Deferred,
    /// Refused for good.
    Failed,
    /// A report to the sender was queued.
    Dsn,
    /// Removed by an administrator.
    Deleted,
    /// Kept back by an administrator.
    Held,
    /// Let go on by an administrator.
    Released,
    /// Sent elsewhere by an administrator, or back on its way.
    Redirected,
    /// Given up after the longest wait.
    Expired,
    /// Set aside because its bytes on disk are damaged.
    Quarantined,
}

impl TraceKind {
    /// The word that people read.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Attempt => "attempt",
            Self::Delivered => "delivered",
            Self::Deferred => "deferred",
            Self::Failed => "failed",
            Self::Dsn => "dsn",
            Self::Deleted => "deleted",
            Self::Held => "held",
            Self::Released => "released",
            Self::Redirected => "redirected",
            Self::Expired => "expired",
            Self::Quarantined => "quarantined",
        }
    }
}

/// Which letters are meant. Every field given must match.
#[derive(Clone, Debug, Default)]
pub struct TraceFilter {
    /// This letter.
    pub id: Option<MessageId>,
    /// The `Message-ID`, with or without angle brackets.
    pub message_id: Option<String>,
    /// The sender, in any case; `<>` for the null reverse-path.
    pub sender: Option<String>,
    /// One of the recipients, in any case.
    pub recipient: Option<String>,
    /// The device: between these addresses, both included.
    pub client: Option<(IpAddr, IpAddr)>,
    /// The receive connector.
    pub connector: Option<String>,
    /// The credential, in any case.
    pub user: Option<String>,
    /// The session.
    pub session_id: Option<String>,
    /// Accepted at or after, in unix milliseconds.
    pub since_ms: Option<i64>,
    /// At most so many, the newest; zero means 100.
    pub limit: usize,
}

impl TraceFilter {
    /// How many records answer the question.
    pub(super) fn limit(&self) -> usize {
        if self.limit == 0 { 100 } else { self.limit.min(TRACE_ANSWER_MAX) }
    }

    pub(super) fn matches(&self, id: MessageId, head: &TraceHead) -> bool {
        let same = |wanted: &Option<String>, found: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(found))
        };
        self.id.is_none_or(|wanted| wanted == id)
            && self.message_id.as_ref().is_none_or(|wanted| bare(wanted) == bare(&head.message_id))
            && same(&self.sender, &head.sender)
            && self
                .recipient
                .as_ref()
                .is_none_or(|wanted| head.recipients.iter().any(|recipient| recipient.eq_ignore_ascii_case(wanted)))
            && self.client.is_none_or(|(first, last)| {
                let ip = head.client_ip.to_canonical();
                ip.is_ipv4() == first.is_ipv4() && (first..=last).contains(&ip)
            })
            && self
                .user
                .as_ref()
                .is_none_or(|wanted| head.user.as_ref().is_some_and(|user| user.eq_ignore_ascii_case(wanted)))
            && same(&self.connector, &head.connector)
            && same(&self.session_id, &head.session_id)
            && self.since_ms.is_none_or(|since| head.received_at_ms >= since)
    }
}

fn bare(message_id: &str) -> &str {
    message_id.trim().trim_start_matches('<').trim_end_matches('>')
}

/// What is known from the start, written once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TraceHead {
    pub(super) message_id: String,
    pub(super) client_ip: IpAddr,
    pub(super) connector: String,
    pub(super) sender: String,
    pub(super) recipients: Vec<String>,
    pub(super) node: String,
    pub(super) session_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) front: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) subject: String,
    pub(super) size: u64,
    pub(super) received_at_ms: i64,
}

/// What one change adds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TraceStep {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<TraceStatus>,
    pub(super) events: Vec<TraceEvent>,
}

impl TraceHead {
    pub(super) fn of(record: &Record, node: &str) -> Self {
        Self {
            message_id: record.message_id.clone(),
            client_ip: record.source_addr,
            connector: record.connector.clone(),
            sender: record.reverse_path.to_string(),
            recipients: record.recipients.iter().map(|recipient| recipient.path.to_string()).collect(),
            node: node.to_owned(),
            session_id: record.session_id.clone(),
            front: record.front.clone(),
            user: record.user.clone(),
            subject: record.subject.clone(),
            size: record.length,
            received_at_ms: record.received_at_ms,
        }
    }

    /// Joins the head and the steps that followed, in order.
    pub(super) fn join(self, id: MessageId, steps: Vec<TraceStep>) -> TraceRecord {
        let mut status = TraceStatus::Queued;
        let accepted = TraceEvent {
            at_ms: self.received_at_ms,
            event: TraceKind::Accepted,
            node: self.node.clone(),
            ..TraceEvent::default()
        };
        let mut events = vec![accepted];
        for step in steps {
            status = step.status.unwrap_or(status);
            events.extend(step.events);
        }
        TraceRecord {
            id,
            message_id: self.message_id,
            client_ip: self.client_ip,
            connector: self.connector,
            sender: self.sender,
            recipients: self.recipients,
            status,
            node: self.node,
            session_id: self.session_id,
            front: self.front,
            user: self.user,
            subject: self.subject,
            size: self.size,
            received_at_ms: self.received_at_ms,
            events,
        }
    }
}
