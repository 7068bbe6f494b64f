//! One round of the committer: turns changes into puts and deletes of one batch, seeing what earlier changes of the
//! same round did.

use rocksdb::WriteBatch;

use super::committer::{Change, Overlay, Pending, Tally, Update, Updated, apply, new_batch};
use super::id::IdSource;
use super::record::{Held, Redirect, Summer};
use super::store::{BODY, META, QUARANTINE, Store, TAG_BODY, TAG_META, TAG_REASON, TRACE, chunk_key, key, step_key};
use super::trace::{EVENTS_PER_LETTER_MAX, TraceEvent, TraceHead, TraceKind, TraceStatus, TraceStep};
use super::upkeep::traced_bytes;
use super::{Arrival, MessageId, Record, SpoolError};

/// The last word on a letter is told even when its events are used up.
const LAST_EVENTS: usize = 20;
/// Exchange's PoisonThreshold: a letter that was there at so many crashes waits for a person.
const CRASHES_MAX: u32 = 2;
/// The key that a probe writes, in the family that holds nothing else.
const PROBE: &[u8] = b"probe";
/// From here on one range is removed instead of many keys.
const CHUNKS_REMOVED_SINGLY: u32 = 16;

/// A batch in the making.
pub(super) struct Round<'a> {
    store: &'a Store,
    ids: &'a IdSource,
    sequence: &'a mut u64,
    overlay: Overlay,
    pub(super) batch: WriteBatch,
    /// Whether anybody in it needs to know that it is on the disk.
    pub(super) sync: bool,
    pub(super) answers: Vec<Pending>,
    pub(super) arrivals: Vec<Arrival>,
    pub(super) tally: Tally,
}

impl<'a> Round<'a> {
    pub(super) fn new(store: &'a Store, ids: &'a IdSource, sequence: &'a mut u64) -> Self {
        Self {
            store,
            ids,
            sequence,
            overlay: Overlay::new(),
            batch: new_batch(),
            sync: false,
            answers: Vec::new(),
            arrivals: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Adds one change. A change that cannot be made is answered at once and leaves nothing in the batch.
    pub(super) fn add(&mut self, change: Change) {
        match change {
            Change::Chunk { id, chunk, bytes, done } => match self.put_chunk(id, chunk, &bytes) {
                Ok(()) => self.answers.push(Pending::Done(done)),
                Err(error) => drop(done.send(Err(error))),
            },
            Change::Commit { record, tail, done } => match self.commit(*record, tail) {
                Ok(()) => self.answers.push(Pending::Done(done)),
                Err(error) => drop(done.send(Err(error))),
            },
            Change::Update { update, done } => match self.update(*update) {
                Ok(updated) => self.answers.push(Pending::Updated(done, updated)),
                Err(error) => drop(done.send(Err(error))),
            },
            Change::Delete { id, at_ms, by, done } => match self.delete(id, at_ms, by) {
                Ok(found) => self.answers.push(Pending::Deleted(done, found)),
                Err(error) => drop(done.send(Err(error))),
            },
            Change::Hold { id, at_ms, held, by, done } => match self.hold(id, at_ms, held, by) {
                Ok(found) => self.answers.push(Pending::Deleted(done, found)),
                Err(error) => drop(done.send(Err(error))),
            },
            Change::Redirect { id, at_ms, redirect, by, done } => match self.redirect(id, at_ms, redirect, by) {
                Ok(found) => self.answers.push(Pending::Deleted(done, found)),
                Err(error) => drop(done.send(Err(error))),
            },
            Change::Crashed { id, at_ms, done } => match self.crashed(id, at_ms) {
                Ok(aside) => self.answers.push(Pending::Deleted(done, aside)),
                Err(error) => drop(done.send(Err(error))),
            },
            Change::Quarantine { id, at_ms, reason, done } => match self.quarantine(id, at_ms, &reason) {
                Ok(found) => self.answers.push(Pending::Deleted(done, found)),
                Err(error) => drop(done.send(Err(error))),
            },
            Change::Probe { done } => {
                self.batch.put(PROBE, []);
                self.sync = true;
                self.answers.push(Pending::Done(done));
            }
            Change::Close { done } => drop(done.send(Ok(()))),
        }
    }

    /// Removes the pieces of letters that were given up. Needs no sync: start-up would find them too.
    pub(super) fn add_forgotten(&mut self, forgotten: Vec<(MessageId, u32)>) {
        let Ok(body) = self.store.family(BODY) else { return };
        for (id, chunks) in forgotten {
            for chunk in 0..chunks {
                self.batch.delete_cf(&body, chunk_key(id, chunk));
            }
        }
    }

    fn put_chunk(&mut self, id: MessageId, chunk: u32, bytes: &[u8]) -> Result<(), SpoolError> {
        self.batch.put_cf(&self.store.family(BODY)?, chunk_key(id, chunk), bytes);
        Ok(())
    }

    fn commit(&mut self, record: Record, tail: Option<(u32, Vec<u8>)>) -> Result<(), SpoolError> {
        let encoded = record.encode().map_err(|error| SpoolError::Encode(error.to_string()))?;
        let head = to_json(&TraceHead::of(&record, &self.store.node_name))?;
        let (meta, body, trace) = (self.store.family(META)?, self.store.family(BODY)?, self.store.family(TRACE)?);
        if let Some((chunk, bytes)) = tail {
            self.batch.put_cf(&body, chunk_key(record.id, chunk), bytes);
        }
        self.batch.put_cf(&meta, key(record.id), encoded);
        self.tally.traced_bytes += traced_bytes(&key(record.id), &head);
        self.batch.put_cf(&trace, key(record.id), head);
        self.sync = true;
        self.tally.commits += 1;
        self.tally.bytes_added += record.length;
        self.arrivals.push(Arrival::of(&record));
        self.overlay.insert(record.id, Some(record));
        Ok(())
    }

    fn update(&mut self, update: Update) -> Result<Updated, SpoolError> {
        let Update { id, at_ms, outcomes, mut events, reports } = update;
        let Some(mut record) = self.record(id)? else {
            // Removed by an administrator while it was on its way: the trace still tells what came of it.
            self.put_step(id, None, events)?;
            self.sync = true;
            return Ok(Updated { status: None, reports: Vec::new() });
        };
        let changed = apply(&mut record, outcomes);
        let status = TraceStatus::of(&record);
        let finished = record.is_finished();
        let mut queued = Vec::new();
        for report in reports {
            if !report.about.iter().any(|place| changed.contains(place)) {
                continue;
            }
            let id = self.ids.next(at_ms);
            let mut sum = Summer::new();
            sum.add(&report.bytes);
            let letter = Record::new(id, self.store.node_id, report.message, sum.finish(1));
            self.commit(letter, Some((0, report.bytes)))?;
            events.push(TraceEvent {
                at_ms,
                event: TraceKind::Dsn,
                node: self.store.node_name.clone(),
                detail: id.to_string(),
                ..TraceEvent::default()
            });
            queued.push(id);
        }
        let room = usize::from(EVENTS_PER_LETTER_MAX.saturating_sub(record.events));
        events.truncate(room.max(if finished { LAST_EVENTS } else { 0 }));
        record.events = record.events.saturating_add(u16::try_from(events.len()).unwrap_or(u16::MAX));
        self.put_step(id, Some(status), events)?;
        if finished {
            self.remove(&record)?;
        } else {
            let encoded = record.encode().map_err(|error| SpoolError::Encode(error.to_string()))?;
            self.batch.put_cf(&self.store.family(META)?, key(id), encoded);
            self.overlay.insert(id, Some(record));
        }
        self.sync = true;
        Ok(Updated { status: Some(status), reports: queued })
    }

    fn delete(&mut self, id: MessageId, at_ms: i64, by: String) -> Result<bool, SpoolError> {
        let Some(record) = self.record(id)? else { return Ok(false) };
        let node = self.store.node_name.clone();
        let event = TraceEvent { at_ms, event: TraceKind::Deleted, node, detail: by, ..TraceEvent::default() };
        self.put_step(id, Some(TraceStatus::Deleted), vec![event])?;
        self.remove(&record)?;
        self.sync = true;
        Ok(true)
    }

    /// Answers whether that changed anything.
    fn hold(&mut self, id: MessageId, at_ms: i64, held: Option<Held>, by: String) -> Result<bool, SpoolError> {
        let Some(mut record) = self.record(id)? else { return Ok(false) };
        if record.held.is_some() == held.is_some() {
            return Ok(false);
        }
        let event = if held.is_some() { TraceKind::Held } else { TraceKind::Released };
        let node = self.store.node_name.clone();
        let event = TraceEvent { at_ms, event, node, detail: by, ..TraceEvent::default() };
        record.held = held;
        self.put_step(id, None, vec![event])?;
        let encoded = record.encode().map_err(|error| SpoolError::Encode(error.to_string()))?;
        self.batch.put_cf(&self.store.family(META)?, key(id), encoded);
        self.overlay.insert(id, Some(record));
        self.sync = true;
        Ok(true)
    }

    /// Answers whether that changed anything.
    fn redirect(
        &mut self,
        id: MessageId,
        at_ms: i64,
        redirect: Option<Redirect>,
        by: String,
    ) -> Result<bool, SpoolError> {
        let Some(mut record) = self.record(id)? else { return Ok(false) };
        let way = |redirect: &Option<Redirect>| redirect.as_ref().map(|it| (it.to.clone(), it.domains.clone()));
        if way(&record.redirect) == way(&redirect) {
            return Ok(false);
        }
        let next_hop = redirect.as_ref().map(|it| it.to.clone()).unwrap_or_default();
        let detail = if redirect.is_some() { by } else { format!("by its routes again: {by}") };
        let (event, node) = (TraceKind::Redirected, self.store.node_name.clone());
        let event = TraceEvent { at_ms, event, node, next_hop, detail, ..TraceEvent::default() };
        record.redirect = redirect;
        self.put_step(id, None, vec![event])?;
        let encoded = record.encode().map_err(|error| SpoolError::Encode(error.to_string()))?;
        self.batch.put_cf(&self.store.family(META)?, key(id), encoded);
        self.overlay.insert(id, Some(record));
        self.sync = true;
        Ok(true)
    }

    /// Answers whether the letter was set aside.
    fn crashed(&mut self, id: MessageId, at_ms: i64) -> Result<bool, SpoolError> {
        let Some(mut record) = self.record(id)? else { return Ok(false) };
        record.crashes = record.crashes.saturating_add(1);
        if record.crashes >= CRASHES_MAX {
            self.quarantine(id, at_ms, &format!("it crashed a delivery worker {} times", record.crashes))?;
            return Ok(true);
        }
        let encoded = record.encode().map_err(|error| SpoolError::Encode(error.to_string()))?;
        self.batch.put_cf(&self.store.family(META)?, key(id), encoded);
        self.overlay.insert(id, Some(record));
        self.sync = true;
        Ok(false)
    }

    /// Answers whether the letter was still here.
    fn quarantine(&mut self, id: MessageId, at_ms: i64, reason: &str) -> Result<bool, SpoolError> {
        if matches!(self.overlay.get(&id), Some(None)) {
            return Ok(false);
        }
        let stored = self.store.db.get_cf(&self.store.family(META)?, key(id));
        let Some(meta) = stored.map_err(|error| SpoolError::Io(error.to_string()))? else { return Ok(false) };
        self.tally.bytes_removed += Record::decode(&meta).map_or(0, |record| record.length);
        set_aside(self.store, &mut self.batch, &key(id), &meta, reason)?;
        let node = self.store.node_name.clone();
        let detail = reason.to_owned();
        let event = TraceEvent { at_ms, event: TraceKind::Quarantined, node, detail, ..TraceEvent::default() };
        self.put_step(id, None, vec![event])?;
        self.overlay.insert(id, None);
        self.tally.removed += 1;
        self.sync = true;
        Ok(true)
    }

    /// Reads a record as the changes before this one leave it.
    fn record(&self, id: MessageId) -> Result<Option<Record>, SpoolError> {
        match self.overlay.get(&id) {
            Some(known) => Ok(known.clone()),
            None => self.store.record(id),
        }
    }

    fn remove(&mut self, record: &Record) -> Result<(), SpoolError> {
        let body = self.store.family(BODY)?;
        self.batch.delete_cf(&self.store.family(META)?, key(record.id));
        if record.chunks <= CHUNKS_REMOVED_SINGLY {
            for chunk in 0..record.chunks {
                self.batch.delete_cf(&body, chunk_key(record.id, chunk));
            }
        } else {
            self.batch.delete_range_cf(&body, chunk_key(record.id, 0), chunk_key(record.id, record.chunks));
        }
        self.tally.removed += 1;
        self.tally.bytes_removed += record.length;
        self.overlay.insert(record.id, None);
        Ok(())
    }

    fn put_step(
        &mut self,
        id: MessageId,
        status: Option<TraceStatus>,
        events: Vec<TraceEvent>,
    ) -> Result<(), SpoolError> {
        // Steps sort by time, also across restarts: microseconds, made unique by counting on.
        let now = u64::try_from(crate::clock::now_ms()).unwrap_or(0).saturating_mul(1000);
        *self.sequence = now.max(self.sequence.saturating_add(1));
        let value = to_json(&TraceStep { status, events })?;
        let stored = step_key(id, *self.sequence);
        self.tally.traced_bytes += traced_bytes(&stored, &value);
        self.batch.put_cf(&self.store.family(TRACE)?, stored, value);
        Ok(())
    }
}

/// Moves what is stored under `stored` (a record's key) and its pieces into quarantine, with the reason.
pub(super) fn set_aside(
    store: &Store,
    batch: &mut WriteBatch,
    stored: &[u8],
    meta: &[u8],
    reason: &str,
) -> Result<(), SpoolError> {
    let (quarantine, body) = (store.family(QUARANTINE)?, store.family(BODY)?);
    let tagged = |tag: u8, rest: &[u8]| [stored, &[tag], rest].concat();
    batch.put_cf(&quarantine, tagged(TAG_REASON, &[]), reason);
    batch.put_cf(&quarantine, tagged(TAG_META, &[]), meta);
    batch.delete_cf(&store.family(META)?, stored);
    let Some(id) = super::store::id_of(stored).filter(|_| stored.len() == super::store::ID_BYTES) else {
        return Ok(());
    };
    let mut options = rocksdb::ReadOptions::default();
    options.set_iterate_lower_bound(chunk_key(id, 0));
    options.set_iterate_upper_bound(key(MessageId(id.0.saturating_add(1))));
    for item in store.db.iterator_cf_opt(&body, options, rocksdb::IteratorMode::Start) {
        // A piece that cannot be read stays where it is: nothing of a letter is thrown away.
        let Ok((piece, bytes)) = item else { break };
        batch.put_cf(&quarantine, tagged(TAG_BODY, &piece[super::store::ID_BYTES..]), &bytes);
        batch.delete_cf(&body, &piece);
    }
    Ok(())
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, SpoolError> {
    serde_json::to_vec(value).map_err(|error| SpoolError::Encode(error.to_string()))
}
