//! Dialogues with devices, written down as Exchange's protocol log or as JSON lines, and told to whoever listens. Mail
//! never waits for it: what the one writer, or a listener, cannot take in time is dropped and counted.

mod live;
mod record;
mod transcript;
mod writer;

use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use metrics::{counter, describe_counter};

pub use live::{Heard, Listener, Live};
pub use record::{Event, Format, Record};
pub use transcript::{Level, Transcript};

use crate::shutdown::{Scope, run_blocking};

/// Records that may wait for the writer; some seconds of a busy node, and a few megabytes.
const WAITING_MAX: usize = 8192;
/// Records of the protocol log, by result: written, dropped (the writer was behind), failed (the disk).
const RECORDS: &str = "posthouse_protocol_log_records_total";

/// Where and how it is written.
#[derive(Clone, Debug)]
pub struct Settings {
    /// CSV or JSON.
    pub format: Format,
    /// Created when the first record comes.
    pub directory: PathBuf,
    /// A file is full from so many bytes on.
    pub max_file_bytes: u64,
    /// The oldest files go when all of them have more bytes.
    pub max_directory_bytes: u64,
    /// Older files go.
    pub max_age: Duration,
}

/// Takes records from any session.
#[derive(Clone)]
pub struct ProtocolLog {
    records: SyncSender<Record>,
    live: Live,
}

impl ProtocolLog {
    /// Starts the writer, until `scope` ends; what was recorded before is written then.
    #[must_use]
    pub fn start(settings: Settings, scope: &Scope) -> Self {
        describe_counter!(RECORDS, "Records of the protocol log, by result.");
        for result in ["written", "dropped", "failed"] {
            counter!(RECORDS, "result" => result).absolute(0);
        }
        let (records, waiting) = sync_channel(WAITING_MAX);
        let ended = scope.clone();
        scope.spawn(async move { run_blocking(move || writer::run(settings, &waiting, || ended.is_ended())).await });
        Self { records, live: Live::default() }
    }

    /// Who listens.
    #[must_use]
    pub fn live(&self) -> Live {
        self.live.clone()
    }

    fn record(&self, record: Record) {
        match self.records.try_send(record) {
            Ok(()) => {}
            // The writer is gone only when the node stops.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                counter!(RECORDS, "result" => "dropped").increment(1);
            }
        }
    }
}
