//! The tracking of all letters, oldest first, page by page: for exports, which want everything and may take their time.

use rocksdb::{Direction, IteratorMode, ReadOptions};

use super::store::{ID_BYTES, Store, TRACE, id_of, key};
use super::trace::{TraceHead, TraceStep};
use super::{MessageId, SpoolError, TraceFilter, TraceRecord};

/// Letters of one page at most.
const PAGE_LETTERS: usize = 500;
/// Events of one page at most, but for those of its last letter.
const PAGE_EVENTS: usize = 5_000;
/// Letters looked at for one page at most: a question that means few answers in time all the same.
const PAGE_LOOKS: usize = 20_000;

/// One page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TracePage {
    /// The letters, in the order in which they were accepted, each with its events of the time asked for.
    pub letters: Vec<TraceRecord>,
    /// The last letter that was looked at; absent at the end.
    pub next: Option<MessageId>,
}

impl Store {
    /// The letters after `after` that have events at or after `since_ms` and before `until_ms`. The filter's own time and
    /// limit do not count.
    pub(super) fn export(
        &self,
        filter: &TraceFilter,
        (since_ms, until_ms): (i64, i64),
        after: Option<MessageId>,
    ) -> Result<TracePage, SpoolError> {
        let family = self.family(TRACE)?;
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let first = after.map_or(0, |after| after.0.saturating_add(1)).max(filter.id.map_or(0, |id| id.0));
        // What is accepted later has no event before.
        let end = MessageId::first_at(until_ms).0.min(filter.id.map_or(u64::MAX, |id| id.0.saturating_add(1)));
        let mut page = TracePage::default();
        if first >= end {
            return Ok(page);
        }
        options.set_iterate_upper_bound(key(MessageId(end)));
        let start = key(MessageId(first));
        let mut current: Option<(MessageId, TraceHead, Vec<TraceStep>)> = None;
        let (mut looks, mut events) = (0, 0);
        let mut add = |page: &mut TracePage, (id, head, steps): (MessageId, TraceHead, Vec<TraceStep>)| {
            let mut record = head.join(id, steps);
            record.events.retain(|event| (since_ms..until_ms).contains(&event.at_ms));
            if !record.events.is_empty() {
                events += record.events.len();
                page.letters.push(record);
            }
            page.letters.len() >= PAGE_LETTERS || events >= PAGE_EVENTS
        };
        for item in self.db.iterator_cf_opt(&family, options, IteratorMode::From(&start, Direction::Forward)) {
            let (stored, value) = item.map_err(|error| SpoolError::Io(error.to_string()))?;
            if stored.len() > ID_BYTES {
                // What a later version wrote and this one cannot read is left out.
                if let (Some((_, _, steps)), Ok(step)) = (&mut current, serde_json::from_slice::<TraceStep>(&value)) {
                    steps.push(step);
                }
                continue;
            }
            let Some(id) = id_of(&stored) else { continue };
            let full = current.take().is_some_and(|letter| add(&mut page, letter));
            if full || looks >= PAGE_LOOKS {
                page.next = Some(MessageId(id.0 - 1));
                return Ok(page);
            }
            looks += 1;
            if let Ok(head) = serde_json::from_slice::<TraceHead>(&value)
                && filter.matches(id, &head)
            {
                current = Some((id, head, Vec::new()));
            }
        }
        if let Some(letter) = current {
            add(&mut page, letter);
        }
        Ok(page)
    }
}
