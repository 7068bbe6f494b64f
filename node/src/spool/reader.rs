//! Reading a letter back for delivery: piece by piece, summed on the way, so that damaged bytes never reach a next hop
//! as if they were whole.

use std::sync::Arc;

use super::record::Summer;
use super::store::Store;
use super::{MessageId, Record, SpoolError};
use crate::shutdown::run_blocking;

/// A letter that is being read.
pub struct Letter {
    /// What is known about it.
    pub record: Record,
    /// Its bytes.
    pub body: BodyReader,
}

/// The bytes of a letter, in pieces of at most [`super::CHUNK_BYTES`].
pub struct BodyReader {
    store: Arc<Store>,
    id: MessageId,
    chunks: u32,
    length: u64,
    checksum: String,
    next: u32,
    /// Read together with the record: most letters are one piece.
    first: Option<Vec<u8>>,
    sum: Summer,
}

/// Reads the record and the first piece in one go. Blocking.
pub(super) fn open(store: &Arc<Store>, id: MessageId) -> Result<Option<Letter>, SpoolError> {
    let Some(record) = store.record(id)? else { return Ok(None) };
    let first = if record.chunks > 0 { store.chunk(id, 0)? } else { None };
    let body = BodyReader {
        store: Arc::clone(store),
        id,
        chunks: record.chunks,
        length: record.length,
        checksum: record.checksum.clone(),
        next: 0,
        first,
        sum: Summer::new(),
    };
    Ok(Some(Letter { record, body }))
}

impl BodyReader {
    /// Whether a piece was handed out already.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.next > 0
    }

    /// Reads the next piece; `None` after the last. The last piece is handed out only when length and checksum of
    /// the whole are right.
    ///
    /// # Errors
    /// [`SpoolError::Damaged`] when bytes are missing or changed, [`SpoolError::Gone`] when the letter was removed
    /// meanwhile.
    ///
    /// # Cancel safety
    /// Not cancel safe: a cancelled read may have skipped a piece.
    pub async fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, SpoolError> {
        if self.next >= self.chunks {
            return Ok(None);
        }
        let chunk = self.next;
        self.next += 1;
        let found = match self.first.take() {
            Some(bytes) if chunk == 0 => Some(bytes),
            _ => {
                let (store, id) = (Arc::clone(&self.store), self.id);
                run_blocking(move || match store.chunk(id, chunk)? {
                    None if store.record(id)?.is_none() => Err(SpoolError::Gone { id }),
                    found => Ok(found),
                })
                .await?
            }
        };
        let Some(bytes) = found else { return Err(self.damaged(format!("piece {chunk} is missing"))) };
        self.sum.add(&bytes);
        if self.next == self.chunks {
            self.check()?;
        }
        Ok(Some(bytes))
    }

    /// Reads the header block, without the empty line that ends it, at most `bytes_max` bytes of it, cut at a line.
    ///
    /// # Errors
    /// As [`BodyReader::next_chunk`].
    pub async fn into_header(mut self, bytes_max: usize) -> Result<Vec<u8>, SpoolError> {
        let mut header = Vec::new();
        while header.len() < bytes_max {
            let Some(bytes) = self.next_chunk().await? else { break };
            header.extend_from_slice(&bytes);
            if header.windows(4).any(|window| window == b"\r\n\r\n") {
                break;
            }
        }
        Ok(header_block(header, bytes_max))
    }

    fn check(&mut self) -> Result<(), SpoolError> {
        let sum = std::mem::replace(&mut self.sum, Summer::new());
        if sum.length() != self.length {
            let found = sum.length();
            return Err(self.damaged(format!("{found} bytes are stored, {} were accepted", self.length)));
        }
        if sum.finish(self.chunks).checksum != self.checksum {
            return Err(self.damaged("the checksum is wrong".to_owned()));
        }
        Ok(())
    }

    fn damaged(&self, reason: String) -> SpoolError {
        SpoolError::Damaged { id: self.id, reason }
    }
}

/// Cuts `bytes` to the header block: everything before the first empty line.
fn header_block(mut bytes: Vec<u8>, bytes_max: usize) -> Vec<u8> {
    if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
        bytes.truncate(end + 2);
    }
    if bytes.len() > bytes_max {
        bytes.truncate(bytes_max);
        let end = bytes.windows(2).rposition(|window| window == b"\r\n").map_or(0, |at| at + 2);
        bytes.truncate(end);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_block_ends_at_the_empty_line_and_at_the_limit() {
        assert_eq!(header_block(b"A: 1\r\nB: 2\r\n\r\nbody".to_vec(), 100), b"A: 1\r\nB: 2\r\n");
        assert_eq!(header_block(b"A: 1\r\nB: 2\r\n\r\nbody".to_vec(), 8), b"A: 1\r\n");
        assert_eq!(header_block(b"A: 1\r\nB: 2\r\n".to_vec(), 100), b"A: 1\r\nB: 2\r\n");
        assert_eq!(header_block(b"AAAAAAAAAAAA".to_vec(), 5), b"");
    }
}
