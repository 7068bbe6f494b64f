//! When letters are tried: what the spool holds is put in line when it is due, route by route, so that a slow or dead
//! next hop delays nobody else. The spool is the truth; this room only remembers when to look at it again.

mod book;
mod change;
mod fair;
mod find;
mod fit;
mod lanes;
mod manager;
mod report;
mod schedule;
mod shape;
mod slots;
mod test_route;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

pub use manager::{QueueHandle, QueueManager};
pub use schedule::{
    GLITCH_RETRIES, JITTER_PERCENT, Next, QueueSettings, TRANSIENT_FAILURE_RETRIES, next as next_attempt,
};

pub use shape::{SHAPE_MINUTES, SHAPE_ROWS_MAX, ShapeBy, ShapeRow, ShownLetter};
pub use test_route::TestedRoute;

use crate::connector::RemoteIpRange;
use crate::mail::Domain;
use crate::outbound::Outbound;
use crate::spool::{MessageId, SpoolError};
use crate::state::StateView;

/// Letters by `state`: active, ready, retry, held.
pub const MESSAGES: &str = "posthouse_queue_messages";
/// Seconds since the oldest letter was accepted; zero without letters.
pub const OLDEST_AGE_SECONDS: &str = "posthouse_queue_oldest_message_age_seconds";
/// Letters that are done, by `result`: delivered, failed, partial, deleted.
pub const FINISHED_TOTAL: &str = "posthouse_messages_finished_total";
/// Reports to senders that were queued.
pub const DSN_TOTAL: &str = "posthouse_queue_dsn_total";
/// The values of the `result` label.
pub const RESULTS: [&str; 4] = ["delivered", "failed", "partial", "deleted"];

/// Describes the metrics of this room and registers them at zero.
pub fn describe_metrics() {
    metrics::describe_gauge!(MESSAGES, "Letters in the queue, by state.");
    metrics::describe_gauge!(OLDEST_AGE_SECONDS, "Seconds since the oldest letter in the queue was accepted.");
    metrics::describe_counter!(FINISHED_TOTAL, "Letters that are done, by result.");
    metrics::describe_counter!(DSN_TOTAL, "Failure reports to senders that were queued.");
    for state in LetterState::ALL {
        metrics::gauge!(MESSAGES, "state" => state.as_str()).set(0.0);
    }
    metrics::gauge!(OLDEST_AGE_SECONDS).set(0.0);
    for result in RESULTS {
        metrics::counter!(FINISHED_TOTAL, "result" => result).absolute(0);
    }
    metrics::counter!(DSN_TOTAL).absolute(0);
}

/// Who this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Never reused.
    pub node_id: u64,
    /// The name of its node file.
    pub name: String,
    /// Its name towards next hops and in reports.
    pub fqdn: Domain,
}

/// What the queue needs of others.
#[derive(Clone)]
pub struct QueueDeps {
    /// Where the routes are.
    pub view: watch::Receiver<Arc<StateView>>,
    /// Who we are.
    pub node: Arc<NodeFacts>,
    /// The way out.
    pub outbound: Arc<Outbound>,
    /// When to try.
    pub settings: QueueSettings,
}

/// Where a letter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LetterState {
    /// An attempt is running.
    Active,
    /// Due, and waiting for its turn.
    Ready,
    /// Waiting for its time.
    Retry,
    /// Kept back by an administrator.
    Held,
}

impl LetterState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Active, Self::Ready, Self::Retry, Self::Held];

    /// The word that people read and type.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Ready => "ready",
            Self::Retry => "retry",
            Self::Held => "held",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str().eq_ignore_ascii_case(word))
    }
}

/// Which letters are meant. Every field given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueFilter {
    /// These letters; empty: any.
    pub ids: Vec<MessageId>,
    /// With a recipient in this domain.
    pub domain: Option<Domain>,
    /// From this sender, in any case; `<>` for the null reverse-path.
    pub sender: Option<String>,
    /// To this recipient, in any case.
    pub recipient: Option<String>,
    /// Taken by this receive connector.
    pub connector: Option<String>,
    /// From a device in this range.
    pub client: Option<RemoteIpRange>,
    /// Brought with this credential, in any case.
    pub credential: Option<String>,
    /// Accepted before, in unix milliseconds.
    pub accepted_before_ms: Option<i64>,
    /// Accepted then or later, in unix milliseconds.
    pub accepted_since_ms: Option<i64>,
    /// In this state.
    pub state: Option<LetterState>,
    /// With this in what the last attempt brought a recipient that waits, in any case.
    pub error: Option<String>,
    /// Said aloud that all are meant: changes need this or another field.
    pub all: bool,
}

impl QueueFilter {
    /// Whether anything was chosen.
    #[must_use]
    pub fn is_chosen(&self) -> bool {
        self.all || *self != Self::default()
    }
}

/// The queue in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueSummary {
    /// Letters.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Letters by state.
    pub by_state: BTreeMap<String, u64>,
    /// Letters by recipient domain; a letter counts in each of its domains.
    pub by_domain: BTreeMap<String, u64>,
    /// Age of the oldest, in milliseconds.
    pub oldest_age_ms: i64,
}

/// One letter of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedMessage {
    /// Its name.
    pub id: MessageId,
    /// Where it is.
    pub node: String,
    /// Where it stands.
    pub state: LetterState,
    /// The sender.
    pub sender: String,
    /// The recipients that still wait.
    pub recipients: Vec<String>,
    /// The receive connector.
    pub connector: String,
    /// The device.
    pub client_ip: std::net::IpAddr,
    /// Bytes.
    pub size: u64,
    /// When it was accepted, in unix milliseconds.
    pub received_at_ms: i64,
    /// When it is tried next, in unix milliseconds.
    pub next_attempt_at_ms: i64,
    /// How often it was tried: the most of any recipient.
    pub attempts: u32,
    /// What the last attempt brought.
    pub last_error: String,
    /// The `Message-ID`.
    pub message_id: String,
}

/// A list, and how many letters the filter meant in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueList {
    /// The oldest first, up to the limit.
    pub messages: Vec<QueuedMessage>,
    /// Including those beyond the limit.
    pub matched: u64,
}

/// Why a question to the queue was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// A change without a filter would mean everything by accident. Theirs.
    #[error("no letter was chosen: give a filter, or say that all are meant")]
    NothingChosen,
    /// Ours.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}
