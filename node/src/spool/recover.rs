//! The scan at start: every record is read, what is damaged is set aside with a reason, nothing is dropped without a
//! word. Bytes are not read here: that is `verify`'s, so that a node with a million letters starts in seconds. The queue
//! then fetches the letters page by page, so that they never lie in memory twice.

use std::sync::atomic::Ordering;

use rocksdb::{Direction, IteratorMode, ReadOptions, WriteBatch};

use super::round::set_aside;
use super::store::{BODY, META, QUARANTINE, Store, TRACE, id_of, key};
use super::{Arrival, MessageId, Record, SpoolError};

/// Letters of one page for the queue.
const PAGE_LETTERS: usize = 10_000;

/// What the scan at start found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Letters still to be delivered.
    pub kept: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Letters that were accepted and whose records are damaged: set aside for a person to look at.
    pub quarantined: Vec<QuarantinedLetter>,
}

/// A letter that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantinedLetter {
    /// Its name.
    pub id: MessageId,
    /// What is wrong with it.
    pub reason: String,
}

/// Letters that were here at start and that the queue has not fetched: those from `next` to `last`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backlog {
    next: MessageId,
    last: MessageId,
}

/// Reads all records. Answers the report and the newest id that the disk knows. Blocking: a million letters take
/// seconds.
pub(super) fn recover(store: &Store) -> Result<(RecoveryReport, Option<MessageId>), SpoolError> {
    let mut report = RecoveryReport::default();
    let (mut oldest, mut newest) = (None, None);
    let meta = store.family(META)?;
    for item in store.db.iterator_cf_opt(&meta, passing(), IteratorMode::Start) {
        let (stored, value) = item.map_err(|error| SpoolError::Io(error.to_string()))?;
        match read(&stored, &value) {
            Ok(record) => {
                report.kept += 1;
                report.bytes += record.length;
                oldest = oldest.or(Some(record.id));
                newest = Some(record.id);
            }
            Err(reason) => {
                let id = id_of(&stored).unwrap_or(MessageId(0));
                tracing::error!(message.id = %id, reason, "damaged letter set aside");
                metrics::counter!(super::QUARANTINED_TOTAL).increment(1);
                let mut batch = WriteBatch::default();
                set_aside(store, &mut batch, &stored, &value, &reason)?;
                store.write(batch, true)?;
                report.quarantined.push(QuarantinedLetter { id, reason });
            }
        }
    }
    store.counters.letters.store(report.kept, Ordering::Relaxed);
    store.counters.bytes.store(report.bytes, Ordering::Relaxed);
    if let (Some(next), Some(last)) = (oldest, newest) {
        store.set_backlog(Some(Backlog { next, last }));
    }
    // Ids are never used twice: neither those of letters that are gone and remembered, nor those of half letters.
    for family in [META, BODY, TRACE, QUARANTINE] {
        let last = store.db.iterator_cf(&store.family(family)?, IteratorMode::End).next();
        match last.transpose() {
            Ok(last) => newest = newest.max(last.and_then(|(stored, _)| id_of(&stored))),
            // One letter's bytes: they are for `verify` to set aside, and ids are made of the time as well.
            Err(error) if family == BODY && error.kind() == rocksdb::ErrorKind::Corruption => {
                tracing::error!(%error, "the newest bytes in the spool cannot be read");
            }
            Err(error) => return Err(SpoolError::Io(error.to_string())),
        }
    }
    Ok((report, newest))
}

/// The next letters that were here at start; nothing after the last. Blocking.
pub(super) fn next_page(store: &Store, backlog: Backlog) -> Result<(Vec<Arrival>, Option<Backlog>), SpoolError> {
    let meta = store.family(META)?;
    let mut page = Vec::new();
    let from = key(backlog.next);
    for item in store.db.iterator_cf_opt(&meta, passing(), IteratorMode::From(&from, Direction::Forward)) {
        let (stored, value) = item.map_err(|error| SpoolError::Io(error.to_string()))?;
        let id = id_of(&stored).unwrap_or(MessageId(0));
        if id > backlog.last {
            break;
        }
        if page.len() >= PAGE_LETTERS {
            return Ok((page, Some(Backlog { next: id, ..backlog })));
        }
        // What could be read a moment ago and cannot be now is set aside by `verify`.
        page.extend(read(&stored, &value).map(|record| Arrival::of(&record)));
    }
    Ok((page, None))
}

/// How things are read that are read once: ahead, and without driving others out of the cache.
pub(super) fn passing() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_readahead_size(2 * 1024 * 1024);
    options
}

fn read(stored: &[u8], value: &[u8]) -> Result<Record, String> {
    let record = Record::decode(value).map_err(|error| error.to_string())?;
    if stored != key(record.id) {
        return Err(format!("the record of {} is stored under another key", record.id));
    }
    Ok(record)
}
