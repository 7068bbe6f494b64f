//! RocksDB as the spool uses it: the column families, the settings and the keys. Blocking; never called on an async
//! worker.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rocksdb::{
    BoundColumnFamily, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, DBWithThreadMode, IteratorMode,
    MultiThreaded, Options, ReadOptions, WriteBatch, WriteOptions,
};
use tokio::sync::Notify;

use super::recover::Backlog;
use super::trace::{TraceFilter, TraceHead, TraceRecord, TraceStep};
use super::{Arrival, MessageId, QuarantinedLetter, Record, SpoolError, SpoolStats};

pub(super) type Db = DBWithThreadMode<MultiThreaded>;
pub(super) type Family<'a> = Arc<BoundColumnFamily<'a>>;

/// Record by id.
pub(super) const META: &str = "meta";
/// Bytes by id and piece.
pub(super) const BODY: &str = "body";
/// What happened, by id; steps by id and sequence.
pub(super) const TRACE: &str = "trace";
/// What start-up or a read found damaged: the stored key followed by a tag.
pub(super) const QUARANTINE: &str = "quarantine";

/// Tags of the quarantine's keys.
pub(super) const TAG_REASON: u8 = b'r';
pub(super) const TAG_META: u8 = b'm';
pub(super) const TAG_BODY: u8 = b'b';

const MIB: usize = 1024 * 1024;
/// Bodies: 4 buffers of 64 MB were the best of 16, 64 and 256 MB when measured.
const BODY_BUFFER_BYTES: usize = 64 * MIB;
const BODY_BUFFERS: i32 = 4;
/// Records are small; a quarter of a body buffer holds those of several body buffers.
const META_BUFFER_BYTES: usize = 16 * MIB;
const SMALL_BUFFER_BYTES: usize = 8 * MIB;
/// The families share one log; the slowest to fill must not keep old logs forever.
const WAL_BYTES_MAX: u64 = 512 * MIB as u64;
/// Smooths the longest stall of a commit from 29-54 ms to 5-17 ms.
const WAL_BYTES_PER_SYNC: u64 = 512 * 1024;
/// Already written log files are overwritten instead of growing new ones: +43 % commits per second.
const RECYCLED_LOGS: usize = 4;
/// Bodies of this size live in blob files, which compaction does not copy around.
const BLOB_BYTES_MIN: u64 = 4 * 1024;
/// A spool must leave file descriptors to sockets.
const OPEN_FILES_MAX: i32 = 256;

/// The database and what all parts of the spool share.
pub(super) struct Store {
    pub(super) db: Db,
    pub(super) node_id: u64,
    pub(super) node_name: String,
    opened: tokio::time::Instant,
    failing: OnceLock<String>,
    /// What was here at start and waits for the queue to fetch it.
    backlog: Mutex<Option<Backlog>>,
    /// Letters that became durable since and that the queue has not fetched.
    arrivals: Mutex<Vec<Arrival>>,
    pub(super) arrived: Notify,
    /// Pieces of letters that were given up: removed with the next batch.
    pub(super) forgotten: Mutex<Vec<(MessageId, u32)>>,
    pub(super) counters: Counters,
    #[cfg(test)]
    pub(super) break_writes: std::sync::atomic::AtomicBool,
}

/// What is counted, for metrics, upkeep and tests.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) letters: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) commits: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) traced: AtomicU64,
    pub(super) traced_bytes: AtomicU64,
    /// Bytes removed since the last compaction.
    pub(super) drained: AtomicU64,
    /// When the synced write under way began, in milliseconds since the store was opened and one more; 0: none is.
    pub(super) sync_began_ms: AtomicU64,
    /// Milliseconds that the newest synced write took.
    pub(super) sync_took_ms: AtomicU64,
}

impl Store {
    /// Opens or makes the database at `dir`.
    pub(super) fn open(dir: &Path, node_id: u64, node_name: &str) -> Result<Self, SpoolError> {
        std::fs::create_dir_all(dir).map_err(|error| SpoolError::Open {
            dir: dir.to_owned(),
            reason: format!("the directory cannot be made: {error}"),
        })?;
        let families = [
            ColumnFamilyDescriptor::new(rocksdb::DEFAULT_COLUMN_FAMILY_NAME, small_options()),
            ColumnFamilyDescriptor::new(META, meta_options()),
            ColumnFamilyDescriptor::new(BODY, body_options()),
            ColumnFamilyDescriptor::new(TRACE, trace_options()),
            ColumnFamilyDescriptor::new(QUARANTINE, small_options()),
        ];
        let db = Db::open_cf_descriptors(&database_options(), dir, families)
            .map_err(|error| open_error(dir, error.as_ref()))?;
        super::large::remove_leftovers(dir)
            .map_err(|error| SpoolError::Open { dir: dir.to_owned(), reason: error.to_string() })?;
        Ok(Self {
            db,
            node_id,
            node_name: node_name.to_owned(),
            opened: tokio::time::Instant::now(),
            failing: OnceLock::new(),
            backlog: Mutex::new(None),
            arrivals: Mutex::new(Vec::new()),
            arrived: Notify::new(),
            forgotten: Mutex::new(Vec::new()),
            counters: Counters::default(),
            #[cfg(test)]
            break_writes: std::sync::atomic::AtomicBool::new(false),
        })
    }

    /// Finds one of our column families.
    pub(super) fn family(&self, name: &str) -> Result<Family<'_>, SpoolError> {
        self.db.cf_handle(name).ok_or_else(|| SpoolError::Io(format!("column family {name} is missing")))
    }

    /// Writes `batch`; with `sync` it is on the disk when this returns.
    ///
    /// The first failure is the last write: what a failed sync left behind is unknown (a second fsync may report
    /// success for pages that the kernel has dropped), so nothing is acknowledged after it.
    pub(super) fn write(&self, batch: WriteBatch, sync: bool) -> Result<(), SpoolError> {
        self.check_writes()?;
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        let began = self.since_opened_ms();
        if sync {
            self.counters.sync_began_ms.store(began + 1, Ordering::Relaxed);
        }
        let written = self.db.write_opt(batch, &options);
        if sync {
            self.counters.sync_took_ms.store(self.since_opened_ms().saturating_sub(began), Ordering::Relaxed);
            self.counters.sync_began_ms.store(0, Ordering::Relaxed);
            self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        }
        written.map_err(|error| self.fail(error.as_ref()))
    }

    fn since_opened_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// Milliseconds that the synced write under way has taken so far or, when none is, that the newest one took.
    pub(super) fn commit_latency_ms(&self) -> u64 {
        match self.counters.sync_began_ms.load(Ordering::Relaxed) {
            0 => self.counters.sync_took_ms.load(Ordering::Relaxed),
            began => self.since_opened_ms().saturating_sub(began - 1),
        }
    }

    /// Whether anything may still be written.
    pub(super) fn check_writes(&self) -> Result<(), SpoolError> {
        if let Some(reason) = self.failing.get() {
            return Err(SpoolError::Failing(reason.clone()));
        }
        #[cfg(test)]
        if self.break_writes.load(Ordering::SeqCst) {
            return Err(self.fail("Input/output error (injected)"));
        }
        Ok(())
    }

    /// Remembers the first failure of the disk and says what it was.
    pub(super) fn fail(&self, reason: &str) -> SpoolError {
        if self.failing.set(reason.to_owned()).is_ok() {
            tracing::error!(reason, "spool failed: no letter is accepted until the node is restarted");
            metrics::gauge!(super::FAILING).set(1.0);
        }
        SpoolError::Io(reason.to_owned())
    }

    pub(super) fn failing(&self) -> Option<String> {
        self.failing.get().cloned()
    }

    /// Reads a record. A record that cannot be read is an error of that letter, not of the disk.
    pub(super) fn record(&self, id: MessageId) -> Result<Option<Record>, SpoolError> {
        let found = self.db.get_pinned_cf(&self.family(META)?, key(id));
        let Some(bytes) = found.map_err(|error| self.read_error(id, &error))? else { return Ok(None) };
        Record::decode(&bytes).map(Some).map_err(|error| SpoolError::Damaged { id, reason: error.to_string() })
    }

    /// Reads one piece of a letter.
    pub(super) fn chunk(&self, id: MessageId, chunk: u32) -> Result<Option<Vec<u8>>, SpoolError> {
        let mut options = ReadOptions::default();
        // A letter is read once: the cache would only grow by what nobody reads again.
        options.fill_cache(false);
        let found = self.db.get_cf_opt(&self.family(BODY)?, chunk_key(id, chunk), &options);
        found.map_err(|error| self.read_error(id, &error))
    }

    fn read_error(&self, id: MessageId, error: &rocksdb::Error) -> SpoolError {
        match error.kind() {
            rocksdb::ErrorKind::Corruption => SpoolError::Damaged { id, reason: error.to_string() },
            _ => self.fail(error.as_ref()),
        }
    }

    pub(super) fn backlog(&self) -> Option<Backlog> {
        *self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_backlog(&self, backlog: Option<Backlog>) {
        *self.backlog.lock().unwrap_or_else(PoisonError::into_inner) = backlog;
    }

    /// Adds letters for the queue to fetch.
    pub(super) fn arrive(&self, arrivals: impl IntoIterator<Item = Arrival>) {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).extend(arrivals);
        self.arrived.notify_one();
    }

    /// Hands over the letters that became durable since the last call.
    pub(super) fn take_arrivals(&self) -> Vec<Arrival> {
        std::mem::take(&mut *self.arrivals.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Answers a question about the past, newest first.
    pub(super) fn trace(&self, filter: &TraceFilter) -> Result<Vec<TraceRecord>, SpoolError> {
        let family = self.family(TRACE)?;
        let mut options = ReadOptions::default();
        let first = filter.id.or_else(|| filter.since_ms.map(MessageId::first_at));
        if let Some(first) = first {
            options.set_iterate_lower_bound(key(first));
        }
        if let Some(next) = filter.id.and_then(|id| id.0.checked_add(1)) {
            options.set_iterate_upper_bound(next.to_be_bytes());
        }
        let mut found = Vec::new();
        // Backwards, so the steps of a letter come before its head.
        let mut steps = Vec::new();
        for item in self.db.iterator_cf_opt(&family, options, IteratorMode::End) {
            let (stored, value) = item.map_err(|error| SpoolError::Io(error.to_string()))?;
            if stored.len() > ID_BYTES {
                steps.push(value);
                continue;
            }
            let steps = std::mem::take(&mut steps);
            let (Some(id), Ok(head)) = (id_of(&stored), serde_json::from_slice::<TraceHead>(&value)) else { continue };
            if filter.matches(id, &head) {
                // What a later version wrote and this one cannot read is left out.
                let steps = steps.iter().rev().filter_map(|step| serde_json::from_slice::<TraceStep>(step).ok());
                found.push(head.join(id, steps.collect()));
                if found.len() >= filter.limit() {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Lists what was set aside.
    pub(super) fn quarantined(&self) -> Result<Vec<QuarantinedLetter>, SpoolError> {
        let family = self.family(QUARANTINE)?;
        let mut found = Vec::new();
        for item in self.db.iterator_cf(&family, IteratorMode::Start) {
            let (stored, value) = item.map_err(|error| SpoolError::Io(error.to_string()))?;
            if stored.len() == ID_BYTES + 1
                && stored.last() == Some(&TAG_REASON)
                && let Some(id) = id_of(&stored)
            {
                found.push(QuarantinedLetter { id, reason: String::from_utf8_lossy(&value).into_owned() });
            }
        }
        Ok(found)
    }

    pub(super) fn stats(&self) -> SpoolStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SpoolStats {
            letters: read(&self.counters.letters),
            bytes: read(&self.counters.bytes),
            commits: read(&self.counters.commits),
            syncs: read(&self.counters.syncs),
            traced: read(&self.counters.traced),
        }
    }
}

pub(super) const ID_BYTES: usize = 8;

/// Big-endian, so that the order of keys is the order of acceptance and old ranges can be compacted away.
pub(super) fn key(id: MessageId) -> [u8; ID_BYTES] {
    id.0.to_be_bytes()
}

pub(super) fn chunk_key(id: MessageId, chunk: u32) -> [u8; ID_BYTES + 4] {
    let mut out = [0; ID_BYTES + 4];
    out[..ID_BYTES].copy_from_slice(&key(id));
    out[ID_BYTES..].copy_from_slice(&chunk.to_be_bytes());
    out
}

pub(super) fn step_key(id: MessageId, sequence: u64) -> [u8; ID_BYTES + 8] {
    let mut out = [0; ID_BYTES + 8];
    out[..ID_BYTES].copy_from_slice(&key(id));
    out[ID_BYTES..].copy_from_slice(&sequence.to_be_bytes());
    out
}

/// The id at the front of a key.
pub(super) fn id_of(stored: &[u8]) -> Option<MessageId> {
    let bytes: [u8; ID_BYTES] = stored.get(..ID_BYTES)?.try_into().ok()?;
    Some(MessageId(u64::from_be_bytes(bytes)))
}

fn open_error(dir: &Path, reason: &str) -> SpoolError {
    // RocksDB's own words for a lock held by another process.
    if reason.contains("lock") && (reason.contains("LOCK") || reason.contains("lock hold")) {
        SpoolError::Locked { dir: dir.to_owned() }
    } else {
        SpoolError::Open { dir: dir.to_owned(), reason: reason.to_owned() }
    }
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_recycle_log_file_num(RECYCLED_LOGS);
    options.set_allow_concurrent_memtable_write(false);
    options.set_wal_bytes_per_sync(WAL_BYTES_PER_SYNC);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    // On purpose. The end of a recycled log file is followed by older, well-formed records, so "absolute consistency"
    // and "tolerate a corrupted tail" cannot tell the end from damage; with either of them RocksDB silently stops
    // recycling. Point in time replays up to the first record that is not whole: a commit whose sync returned is
    // always before it, unless the medium itself changed what it had acknowledged.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_paranoid_checks(true);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 * MIB);
    options.set_stats_dump_period_sec(0);
    options.set_max_background_jobs(2);
    options
}

fn body_options() -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(BODY_BUFFER_BYTES);
    options.set_max_write_buffer_number(BODY_BUFFERS);
    // Letters are mostly encoded attachments, which do not shrink; the processor is what limits a relay.
    options.set_compression_type(DBCompressionType::None);
    options.set_enable_blob_files(true);
    options.set_min_blob_size(BLOB_BYTES_MIN);
    options.set_blob_compression_type(DBCompressionType::None);
    options.set_enable_blob_gc(true);
    options
}

fn meta_options() -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(META_BUFFER_BYTES);
    options.set_max_write_buffer_number(BODY_BUFFERS);
    options.set_compression_type(DBCompressionType::None);
    options
}

fn trace_options() -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(SMALL_BUFFER_BYTES);
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

fn small_options() -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(MIB);
    options
}
