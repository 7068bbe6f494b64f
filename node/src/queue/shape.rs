//! The queue seen from afar: how many letters have something in common, how old they are, and what they hear.

use std::collections::BTreeMap;

use super::find::{Found, Search};
use super::{QueueError, QueueFilter, QueueHandle, QueuedMessage};
use crate::clock::now_ms;
use crate::mail::dsn::DSN_HEADER_BYTES_MAX;
use crate::spool::{MessageId, Record};

/// The ages, in minutes, up to which letters are counted together; what is older has a place of its own.
pub const SHAPE_MINUTES: [i64; 6] = [5, 10, 20, 40, 80, 160];
/// Rows of one node's answer.
pub const SHAPE_ROWS_MAX: usize = 1000;

/// What letters are put together by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShapeBy {
    /// The recipient's domain.
    #[default]
    Domain,
    /// The receive connector.
    Connector,
    /// The sender.
    Sender,
    /// The node.
    Node,
    /// What the last attempt brought.
    Error,
}

impl ShapeBy {
    /// Reads the word; nothing means the domain.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        match word.to_ascii_lowercase().as_str() {
            "" | "domain" => Some(Self::Domain),
            "connector" => Some(Self::Connector),
            "sender" => Some(Self::Sender),
            "node" => Some(Self::Node),
            "error" => Some(Self::Error),
            _ => None,
        }
    }
}

/// Letters with something in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShapeRow {
    /// What they have in common.
    pub key: String,
    /// How many.
    pub total: u64,
    /// How many of each age.
    pub by_age: [u64; SHAPE_MINUTES.len() + 1],
    /// What the oldest of them heard last.
    pub last_error: String,
}

/// One letter with all that is known of it.
#[derive(Clone, Debug)]
pub struct ShownLetter {
    /// As lists show it.
    pub listed: QueuedMessage,
    /// All of it.
    pub record: Record,
    /// The header, where it was asked for.
    pub header: Vec<u8>,
}

impl QueueHandle {
    /// Counts the letters that `filter` means by what they have in common, the most first.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub async fn shape(&self, filter: &QueueFilter, by: ShapeBy) -> Result<(Vec<ShapeRow>, u64), QueueError> {
        let (mut letters, mut rows) = (0, BTreeMap::<String, (ShapeRow, MessageId)>::new());
        let mut search = Search::new(filter);
        search.with_records = by == ShapeBy::Error;
        while let Some(page) = self.next_page(&mut search).await? {
            let (now, book) = (now_ms(), self.book());
            for letter in &page {
                letters += 1;
                let keys: Vec<String> = match by {
                    ShapeBy::Domain => letter.domains.iter().map(ToString::to_string).collect(),
                    ShapeBy::Node => vec![self.node_name().to_owned()],
                    ShapeBy::Connector => book.origin(letter.id).map(|(_, name)| name.to_owned()).into_iter().collect(),
                    ShapeBy::Sender => book.origin(letter.id).map(|(from, _)| from.to_string()).into_iter().collect(),
                    ShapeBy::Error => letter.record.iter().map(|record| last_error(record)).collect(),
                };
                for key in keys {
                    let (row, oldest) = rows.entry(key).or_insert_with(|| (ShapeRow::default(), letter.id));
                    row.total += 1;
                    row.by_age[place(letter, now)] += 1;
                    *oldest = letter.id.min(*oldest);
                }
            }
        }
        let mut rows: Vec<_> = rows.into_iter().map(|(key, (row, id))| (ShapeRow { key, ..row }, id)).collect();
        rows.sort_by(|(a, _), (b, _)| b.total.cmp(&a.total).then_with(|| a.key.cmp(&b.key)));
        rows.truncate(SHAPE_ROWS_MAX);
        let records = self.spool().records(rows.iter().map(|(_, id)| *id).collect()).await?;
        for (row, id) in &mut rows {
            let record = records.iter().find(|record| record.id == *id);
            row.last_error = record.map(last_error).unwrap_or_default();
        }
        Ok((rows.into_iter().map(|(row, _)| row).collect(), letters))
    }

    /// Shows one letter; `None`: it is not here.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub async fn show(&self, id: MessageId, header: bool) -> Result<Option<ShownLetter>, QueueError> {
        let filter = QueueFilter { ids: vec![id], ..QueueFilter::default() };
        let Some(listed) = self.list(&filter, 1).await?.messages.pop() else { return Ok(None) };
        let Some(letter) = self.spool().open_letter(id).await? else { return Ok(None) };
        let record = letter.record;
        let header = if header { letter.body.into_header(DSN_HEADER_BYTES_MAX).await? } else { Vec::new() };
        Ok(Some(ShownLetter { listed, record, header }))
    }
}

/// What a recipient that waits heard last.
pub(super) fn last_error(record: &Record) -> String {
    let heard = record.pending().find(|(_, recipient)| !recipient.last_reply.is_empty());
    heard.map(|(_, recipient)| recipient.last_reply.clone()).unwrap_or_default()
}

fn place(letter: &Found, now_ms: i64) -> usize {
    let minutes = now_ms.saturating_sub(letter.id.made_at_ms()) / 60_000;
    SHAPE_MINUTES.iter().position(|up_to| minutes < *up_to).unwrap_or(SHAPE_MINUTES.len())
}
