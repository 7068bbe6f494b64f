//! The scan at start: what is whole is kept, what was never committed is forgotten, what is damaged is set aside with a
//! reason. Nothing is dropped without a word.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use rocksdb::{IteratorMode, WriteBatch};

use super::record::Summer;
use super::round::set_aside;
use super::store::{BODY, ID_BYTES, META, Store, TRACE, chunk_key, id_of};
use super::upkeep::traced_bytes;
use super::{Arrival, MessageId, Record, SpoolError};

/// How many changes one batch of the scan makes.
const BATCH_CHANGES: usize = 1000;

/// What the scan at start found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Letters that are whole and still to be delivered.
    pub kept: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Letters that were still arriving: nobody was told that they were accepted.
    pub forgotten: u64,
    /// Letters that were accepted and are damaged: set aside for a person to look at.
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

/// What the scan found, and the newest id that the disk knows.
pub(super) struct Recovered {
    pub(super) report: RecoveryReport,
    pub(super) newest: Option<MessageId>,
    pub(super) arrivals: Vec<Arrival>,
}

/// Scans the whole spool. Blocking: a million letters take seconds.
pub(super) fn recover(store: &Store) -> Result<Recovered, SpoolError> {
    let mut found = Recovered { report: RecoveryReport::default(), newest: None, arrivals: Vec::new() };
    // Pieces that could not be moved with a quarantined letter belong to somebody too.
    let mut owned: BTreeSet<MessageId> = store.quarantined()?.into_iter().map(|letter| letter.id).collect();
    scan_records(store, &mut found, &mut owned)?;
    forget_strays(store, &mut found, &owned)?;
    count_traced(store, &mut found)?;
    store.counters.letters.store(found.report.kept, Ordering::Relaxed);
    store.counters.bytes.store(found.report.bytes, Ordering::Relaxed);
    Ok(found)
}

fn scan_records(store: &Store, found: &mut Recovered, owned: &mut BTreeSet<MessageId>) -> Result<(), SpoolError> {
    let meta = store.family(META)?;
    for item in store.db.iterator_cf(&meta, IteratorMode::Start) {
        let (stored, value) = item.map_err(|error| SpoolError::Io(error.to_string()))?;
        let id = id_of(&stored).unwrap_or(MessageId(0));
        found.newest = found.newest.max(Some(id));
        match check(store, &stored, &value) {
            Ok(record) => {
                owned.insert(id);
                found.report.kept += 1;
                found.report.bytes += record.length;
                found.arrivals.push(Arrival::of(&record));
            }
            Err(Flaw::Disk(error)) => return Err(error),
            Err(Flaw::Letter(reason)) => {
                tracing::error!(message.id = %id, reason, "damaged letter set aside");
                metrics::counter!(super::QUARANTINED_TOTAL).increment(1);
                let mut batch = WriteBatch::default();
                set_aside(store, &mut batch, &stored, &value, &reason)?;
                store.write(batch, true)?;
                owned.insert(id);
                found.report.quarantined.push(QuarantinedLetter { id, reason });
            }
        }
    }
    Ok(())
}

enum Flaw {
    /// This letter is damaged.
    Letter(String),
    /// The disk is.
    Disk(SpoolError),
}

fn check(store: &Store, stored: &[u8], value: &[u8]) -> Result<Record, Flaw> {
    let record = Record::decode(value).map_err(|error| Flaw::Letter(error.to_string()))?;
    if stored != super::store::key(record.id) {
        return Err(Flaw::Letter(format!("the record of {} is stored under another key", record.id)));
    }
    let mut sum = Summer::new();
    for chunk in 0..record.chunks {
        match store.chunk(record.id, chunk) {
            Ok(Some(bytes)) => sum.add(&bytes),
            Ok(None) => return Err(Flaw::Letter(format!("piece {chunk} of {} is missing", record.chunks))),
            Err(SpoolError::Damaged { reason, .. }) => return Err(Flaw::Letter(reason)),
            Err(other) => return Err(Flaw::Disk(other)),
        }
    }
    if sum.length() != record.length {
        let found = sum.length();
        return Err(Flaw::Letter(format!("{found} bytes are stored, {} were accepted", record.length)));
    }
    if sum.finish(record.chunks).checksum != record.checksum {
        return Err(Flaw::Letter("the checksum is wrong".to_owned()));
    }
    Ok(record)
}

/// Removes pieces without a record.
fn forget_strays(store: &Store, found: &mut Recovered, owned: &BTreeSet<MessageId>) -> Result<(), SpoolError> {
    let body = store.family(BODY)?;
    let mut batch = WriteBatch::default();
    let mut last = None;
    let mut iterator = store.db.raw_iterator_cf(&body);
    iterator.seek_to_first();
    while let Some(stored) = iterator.key() {
        let id = id_of(stored);
        match id {
            // The pieces of a letter lie together: go on behind them.
            Some(id) if owned.contains(&id) => {
                found.newest = found.newest.max(Some(id));
                iterator.seek(chunk_key(MessageId(id.0.saturating_add(1)), 0));
                continue;
            }
            _ => batch.delete_cf(&body, stored),
        }
        if id != last {
            found.report.forgotten += 1;
            last = id;
        }
        found.newest = found.newest.max(id);
        if batch.len() >= BATCH_CHANGES {
            store.write(std::mem::take(&mut batch), false)?;
        }
        iterator.next();
    }
    iterator.status().map_err(|error| SpoolError::Io(error.to_string()))?;
    if batch.is_empty() { Ok(()) } else { store.write(batch, false) }
}

fn count_traced(store: &Store, found: &mut Recovered) -> Result<(), SpoolError> {
    let trace = store.family(TRACE)?;
    let (mut traced, mut bytes) = (0, 0);
    let mut iterator = store.db.raw_iterator_cf(&trace);
    iterator.seek_to_first();
    while let Some(stored) = iterator.key() {
        bytes += traced_bytes(stored, iterator.value().unwrap_or_default());
        if stored.len() == ID_BYTES {
            traced += 1;
            found.newest = found.newest.max(id_of(stored));
        }
        iterator.next();
    }
    iterator.status().map_err(|error| SpoolError::Io(error.to_string()))?;
    store.counters.traced.store(traced, Ordering::Relaxed);
    store.counters.traced_bytes.store(bytes, Ordering::Relaxed);
    Ok(())
}
