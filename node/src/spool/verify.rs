//! After start, while mail flows: every letter that was here is read once, what is damaged is set aside with a reason,
//! and what was never committed is forgotten. Delivery does not wait for it; a reader sums what it reads as well.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rocksdb::WriteBatch;
use tokio::sync::oneshot;

use super::committer::{Change, Committer};
use super::record::Summer;
use super::recover::passing;
use super::store::{BODY, ID_BYTES, META, QUARANTINE, Store, TAG_REASON, TRACE, chunk_key, id_of, key};
use super::upkeep::traced_bytes;
use super::{MessageId, QuarantinedLetter, Record, SpoolError};
use crate::shutdown::run_blocking;

/// One page takes about this long, and then as long again belongs to others.
const PAGE: Duration = Duration::from_millis(20);

/// What reading everything found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Letters that are whole.
    pub whole: u64,
    /// Letters that were still arriving when the node ended: nobody was told that they were accepted.
    pub forgotten: u64,
    /// Letters that were accepted and are damaged: set aside for a person to look at.
    pub quarantined: Vec<QuarantinedLetter>,
}

/// Which letters, and how to set one aside.
pub(super) struct Verifier {
    pub(super) store: Weak<Store>,
    pub(super) committer: Weak<Committer>,
    /// The newest id of the start; what came later was checked by whoever wrote it.
    pub(super) newest: Option<MessageId>,
}

impl Verifier {
    /// Reads everything. `None`: the spool was closed before the end, or its disk failed.
    pub(super) async fn run(self) -> Option<VerifyReport> {
        let mut report = VerifyReport::default();
        let Some(newest) = self.newest else { return Some(report) };
        let began = Instant::now();
        let mut next = Some(Place::Traces(MessageId(0)));
        while let Some(place) = next {
            let store = self.store.upgrade()?;
            let page_began = Instant::now();
            let page = run_blocking(move || page(&store, place, newest)).await;
            let page = page.inspect_err(|error| tracing::error!(%error, "the spool could not be read through")).ok()?;
            report.whole += page.whole;
            report.forgotten += page.forgotten;
            for letter in page.damaged {
                // It may have left since: then nothing was set aside.
                if self.set_aside(&letter).await? {
                    tracing::error!(message.id = %letter.id, reason = letter.reason, "damaged letter set aside");
                    metrics::counter!(super::QUARANTINED_TOTAL).increment(1);
                    report.quarantined.push(letter);
                }
            }
            next = page.next;
            tokio::time::sleep(page_began.elapsed()).await;
        }
        let (whole, forgotten, quarantined) = (report.whole, report.forgotten, report.quarantined.len());
        tracing::info!(whole, forgotten, quarantined, took = ?began.elapsed(), "spool read through");
        Some(report)
    }

    /// Through the committer: it may be changing the letter at this moment.
    async fn set_aside(&self, letter: &QuarantinedLetter) -> Option<bool> {
        let (done, answer) = oneshot::channel();
        let (id, reason, at_ms) = (letter.id, letter.reason.clone(), crate::clock::now_ms());
        let committer = self.committer.upgrade()?;
        let sent = committer.send(Change::Quarantine { id, at_ms, reason, done }).await;
        // The last owner waits for the committer's thread, which is nothing for an async worker.
        run_blocking(move || drop(committer)).await;
        sent.ok()?;
        answer.await.ok()?.ok()
    }
}

/// How far it came.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// What is remembered, which is only counted.
    Traces(MessageId),
    /// The records, each with its pieces.
    Letters(MessageId),
    /// The pieces without a record.
    Strays(MessageId),
}

#[derive(Default)]
struct Page {
    whole: u64,
    forgotten: u64,
    damaged: Vec<QuarantinedLetter>,
    next: Option<Place>,
}

fn page(store: &Arc<Store>, place: Place, newest: MessageId) -> Result<Page, SpoolError> {
    match place {
        Place::Traces(from) => traces(store, from, newest),
        Place::Letters(from) => letters(store, from, newest),
        Place::Strays(from) => strays(store, from, newest),
    }
}

fn traces(store: &Store, from: MessageId, newest: MessageId) -> Result<Page, SpoolError> {
    let began = Instant::now();
    let mut options = passing();
    options.set_iterate_lower_bound(key(from));
    let mut iterator = store.db.raw_iterator_cf_opt(&store.family(TRACE)?, options);
    let (mut traced, mut bytes, mut next) = (0, 0, Some(Place::Letters(MessageId(0))));
    iterator.seek_to_first();
    while let Some(stored) = iterator.key() {
        let id = id_of(stored).unwrap_or(newest);
        if id > newest {
            break;
        }
        let is_head = stored.len() == ID_BYTES;
        if is_head && began.elapsed() > PAGE && id > from {
            next = Some(Place::Traces(id));
            break;
        }
        traced += u64::from(is_head);
        bytes += traced_bytes(stored, iterator.value().unwrap_or_default());
        iterator.next();
    }
    iterator.status().map_err(|error| SpoolError::Io(error.to_string()))?;
    // What was written of old letters since the start is counted twice: little, and it makes the log end sooner.
    store.counters.traced.fetch_add(traced, Ordering::Relaxed);
    store.counters.traced_bytes.fetch_add(bytes, Ordering::Relaxed);
    Ok(Page { next, ..Page::default() })
}

fn letters(store: &Store, from: MessageId, newest: MessageId) -> Result<Page, SpoolError> {
    let began = Instant::now();
    let mut page = Page { next: Some(Place::Strays(MessageId(0))), ..Page::default() };
    let (mut records, mut bodies) = (passing(), passing());
    records.set_iterate_lower_bound(key(from));
    bodies.set_iterate_lower_bound(key(from));
    // One state of the disk for both, so that a letter that leaves meanwhile leaves both or neither.
    let snapshot = store.db.snapshot();
    let mut records = snapshot.raw_iterator_cf_opt(&store.family(META)?, records);
    let mut bodies = snapshot.raw_iterator_cf_opt(&store.family(BODY)?, bodies);
    records.seek_to_first();
    bodies.seek_to_first();
    while let (Some(stored), Some(value)) = (records.key(), records.value()) {
        let id = id_of(stored).unwrap_or(newest);
        if id > newest {
            break;
        }
        if began.elapsed() > PAGE && id > from {
            page.next = Some(Place::Letters(id));
            break;
        }
        let checked = match Record::decode(value) {
            Ok(record) => check(&record, &mut bodies),
            Err(error) => Err(Flaw::Letter(error.to_string())),
        };
        match checked {
            Ok(()) => page.whole += 1,
            Err(Flaw::Letter(reason)) => page.damaged.push(QuarantinedLetter { id, reason }),
            Err(Flaw::Disk(error)) => return Err(error),
        }
        records.next();
    }
    records.status().map_err(|error| SpoolError::Io(error.to_string()))?;
    Ok(page)
}

enum Flaw {
    /// This letter is damaged.
    Letter(String),
    /// The disk cannot be read now, which says nothing about the letter.
    Disk(SpoolError),
}

/// Reads the pieces of `record`; `bodies` stands at or before them.
fn check(record: &Record, bodies: &mut rocksdb::DBRawIteratorWithThreadMode<'_, super::store::Db>) -> Result<(), Flaw> {
    let mut sum = Summer::new();
    for chunk in 0..record.chunks {
        let wanted = chunk_key(record.id, chunk);
        if bodies.key().is_none_or(|stored| stored < wanted.as_slice()) {
            bodies.seek(wanted);
        }
        match (bodies.key(), bodies.value()) {
            (Some(stored), Some(bytes)) if stored == wanted => sum.add(bytes),
            _ => {
                return Err(match bodies.status() {
                    Ok(()) => Flaw::Letter(format!("piece {chunk} of {} is missing", record.chunks)),
                    Err(error) if error.kind() == rocksdb::ErrorKind::Corruption => Flaw::Letter(error.to_string()),
                    Err(error) => Flaw::Disk(SpoolError::Io(error.to_string())),
                });
            }
        }
        bodies.next();
    }
    if sum.length() != record.length {
        let found = sum.length();
        return Err(Flaw::Letter(format!("{found} bytes are stored, {} were accepted", record.length)));
    }
    if sum.finish(record.chunks).checksum != record.checksum {
        return Err(Flaw::Letter("the checksum is wrong".to_owned()));
    }
    Ok(())
}

/// Removes pieces without a record.
fn strays(store: &Store, from: MessageId, newest: MessageId) -> Result<Page, SpoolError> {
    let began = Instant::now();
    let mut page = Page::default();
    let body = store.family(BODY)?;
    let mut options = passing();
    options.set_iterate_lower_bound(key(from));
    let snapshot = store.db.snapshot();
    let mut iterator = snapshot.raw_iterator_cf_opt(&body, options);
    let mut batch = WriteBatch::default();
    let mut known: Option<(MessageId, bool)> = None;
    iterator.seek_to_first();
    while let Some(stored) = iterator.key() {
        let id = id_of(stored).unwrap_or(newest);
        if id > newest {
            break;
        }
        let is_owned = match known {
            Some((last, is_owned)) if last == id => is_owned,
            _ => {
                if began.elapsed() > PAGE && id > from {
                    page.next = Some(Place::Strays(id));
                    break;
                }
                // Pieces that could not be moved with a quarantined letter belong to somebody too.
                let aside = [key(id).as_slice(), &[TAG_REASON]].concat();
                let has = |family: &str, key: &[u8]| {
                    let found = snapshot.get_pinned_cf(&store.family(family)?, key);
                    Ok::<_, SpoolError>(found.map_err(|error| SpoolError::Io(error.to_string()))?.is_some())
                };
                let is_owned = has(META, &key(id))? || has(QUARANTINE, &aside)?;
                page.forgotten += u64::from(!is_owned);
                is_owned
            }
        };
        known = Some((id, is_owned));
        if is_owned {
            // The pieces of a letter lie together: go on behind them.
            iterator.seek(chunk_key(MessageId(id.0.saturating_add(1)), 0));
        } else {
            batch.delete_cf(&body, stored);
            iterator.next();
        }
    }
    match iterator.status() {
        // Pieces that cannot be read were named with their letter, above; those behind them wait for another start.
        Err(error) if error.kind() == rocksdb::ErrorKind::Corruption => {
            tracing::warn!(%error, "pieces without a letter were not all removed");
            page.next = None;
        }
        Err(error) => return Err(SpoolError::Io(error.to_string())),
        Ok(()) => {}
    }
    if !batch.is_empty() {
        store.write(batch, false)?;
    }
    Ok(page)
}
