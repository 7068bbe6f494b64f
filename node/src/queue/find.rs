//! Which letters a filter means: first by what is in memory, then, where it asks for more, by their records. Page by
//! page, so that a question to a million letters costs no more memory than a question to a thousand, and never holds
//! the book for long.

use std::sync::Arc;

use super::{LetterState, QueueError, QueueFilter, QueueHandle};
use crate::mail::Domain;
use crate::spool::{MessageId, Record, SpoolError};

/// Letters of one page at most: so many records are read at a time.
pub(super) const PAGE_LETTERS: usize = 512;
/// Letters looked at for one page at most: the book is locked for so long.
pub(super) const PAGE_LOOKS: usize = 20_000;

/// What is known of a letter that a filter means.
pub(super) struct Found {
    pub(super) id: MessageId,
    pub(super) size: u64,
    pub(super) state: LetterState,
    pub(super) due_ms: i64,
    pub(super) domains: Vec<Arc<Domain>>,
    /// Where it was asked for.
    pub(super) record: Option<Box<Record>>,
}

/// A search under way.
pub(super) struct Search<'a> {
    pub(super) filter: &'a QueueFilter,
    /// Whether the records are wanted too.
    pub(super) with_records: bool,
    /// The last letter that was looked at.
    pub(super) after: Option<MessageId>,
    done: bool,
}

impl<'a> Search<'a> {
    pub(super) fn new(filter: &'a QueueFilter) -> Self {
        Self { filter, with_records: false, after: None, done: false }
    }
}

impl QueueHandle {
    /// The next letters, oldest first; `None` after the last. A page may be empty and not the last.
    pub(super) async fn next_page(&self, search: &mut Search<'_>) -> Result<Option<Vec<Found>>, SpoolError> {
        if search.done {
            return Ok(None);
        }
        let (found, next) = self.book().page(search.filter, search.after, PAGE_LETTERS, PAGE_LOOKS);
        search.done = next.is_none();
        search.after = next;
        if !search.with_records && !search.filter.needs_records() {
            return Ok(Some(found));
        }
        let records = self.spool().records(found.iter().map(|found| found.id).collect()).await?;
        // Both are in the order of ids; a record may be missing, where the letter left meanwhile.
        let mut records = records.into_iter().peekable();
        let with_record = found.into_iter().filter_map(|mut found| {
            let record = records.next_if(|record| record.id == found.id)?;
            found.record = Some(Box::new(record));
            Some(found)
        });
        Ok(Some(with_record.filter(|found| found.record.as_ref().is_some_and(|it| search.filter.fits(it))).collect()))
    }

    /// The next letters that a change is about, at most `letters_max`, oldest first, after the letter `after`; and where
    /// to go on, if there may be more.
    ///
    /// # Errors
    /// When nothing was chosen, or the spool cannot be read.
    pub async fn choose(
        &self,
        filter: &QueueFilter,
        after: Option<MessageId>,
        letters_max: usize,
    ) -> Result<(Vec<MessageId>, Option<MessageId>), QueueError> {
        if !filter.is_chosen() {
            return Err(QueueError::NothingChosen);
        }
        let (mut search, mut ids) = (Search::new(filter), Vec::new());
        search.after = after;
        while let Some(page) = self.next_page(&mut search).await? {
            for found in page {
                ids.push(found.id);
                if ids.len() >= letters_max {
                    return Ok((ids, Some(found.id)));
                }
            }
        }
        Ok((ids, None))
    }
}

impl QueueFilter {
    /// Whether it asks for what only records know.
    fn needs_records(&self) -> bool {
        self.recipient.is_some() || self.credential.is_some() || self.error.is_some()
    }

    /// Whether a record fits what only records know.
    fn fits(&self, record: &Record) -> bool {
        let waits = |wanted: &Option<String>, fits: &dyn Fn(&crate::spool::Recipient, &str) -> bool| {
            wanted.as_ref().is_none_or(|wanted| record.pending().any(|(_, recipient)| fits(recipient, wanted)))
        };
        waits(&self.recipient, &|recipient, wanted| recipient.path.to_string().eq_ignore_ascii_case(wanted))
            && waits(&self.error, &|recipient, wanted| contains(&recipient.last_reply, wanted))
            && self
                .credential
                .as_ref()
                .is_none_or(|wanted| record.user.as_ref().is_some_and(|user| user.eq_ignore_ascii_case(wanted)))
    }
}

/// Whether `text` has `part` in it, in any case.
fn contains(text: &str, part: &str) -> bool {
    text.to_lowercase().contains(&part.to_lowercase())
}
