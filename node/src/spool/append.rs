//! A letter that is arriving. Memory is bounded whatever its size: full pieces go to disk, unsynced, as they come; a
//! small letter rides wholly in the batch that commits it, a large one has a file of its own.

use std::sync::{Arc, PoisonError};

use tokio::sync::oneshot;

use super::committer::{Change, Committer};
use super::large::{CHUNKS_IN_BATCHES, Large};
use super::record::Summer;
use super::store::Store;
use super::{MessageId, NewMessage, Record, SpoolError};
use crate::shutdown::run_blocking;

/// The size of a piece, and the most that a session keeps in memory of a letter.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// A letter that is arriving. Dropped without [`Append::commit`], it never was.
pub struct Append {
    id: MessageId,
    store: Arc<Store>,
    committer: Arc<Committer>,
    buffer: Vec<u8>,
    /// Pieces handed over; they are forgotten when the letter is not committed.
    chunks: u32,
    /// Where the pieces beyond the first few go.
    large: Option<Large>,
    sum: Option<Summer>,
}

impl Append {
    pub(super) fn new(id: MessageId, store: Arc<Store>, committer: Arc<Committer>) -> Self {
        Self { id, store, committer, buffer: Vec::new(), chunks: 0, large: None, sum: Some(Summer::new()) }
    }

    /// The name that the letter will have.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// Adds bytes. Returns once everything beyond [`CHUNK_BYTES`] has left memory.
    ///
    /// # Errors
    /// When the disk fails or the spool is closed.
    ///
    /// # Cancel safety
    /// Not cancel safe: a cancelled write leaves a letter that can only be dropped.
    pub async fn write(&mut self, mut bytes: Vec<u8>) -> Result<(), SpoolError> {
        if let Some(reason) = self.store.failing() {
            return Err(SpoolError::Failing(reason));
        }
        let Some(sum) = self.sum.as_mut() else { return Err(SpoolError::Closed) };
        sum.add(&bytes);
        if self.buffer.is_empty() && bytes.len() <= CHUNK_BYTES {
            self.buffer = bytes;
            return Ok(());
        }
        while self.buffer.len() + bytes.len() > CHUNK_BYTES {
            let rest = bytes.split_off((CHUNK_BYTES - self.buffer.len()).min(bytes.len()));
            self.buffer.append(&mut bytes);
            bytes = rest;
            self.put_chunk().await?;
        }
        self.buffer.append(&mut bytes);
        Ok(())
    }

    async fn put_chunk(&mut self) -> Result<(), SpoolError> {
        let bytes = std::mem::take(&mut self.buffer);
        let chunk = self.chunks;
        // Counted before it is handed over: a piece that may be on disk is one to forget.
        self.chunks = chunk.checked_add(1).ok_or(SpoolError::TooLarge)?;
        if chunk >= CHUNKS_IN_BATCHES {
            return self.put_large(chunk, bytes).await;
        }
        let (done, answer) = oneshot::channel();
        let change = Change::Chunk { id: self.id, chunk, bytes, done };
        self.committer.send(change).await?;
        answer.await.map_err(|_| SpoolError::Closed)?
    }

    async fn put_large(&mut self, chunk: u32, bytes: Vec<u8>) -> Result<(), SpoolError> {
        let (begun, store, id) = (self.large.take(), Arc::clone(&self.store), self.id);
        let large = run_blocking(move || {
            let mut large = begun.map_or_else(|| Large::create(store, id), Ok)?;
            large.put(chunk, &bytes).map(|()| large)
        });
        self.large = Some(large.await?);
        Ok(())
    }

    /// Makes the letter durable. When this returns `Ok`, it is on the disk and in the queue: now, and not before, the
    /// device may be told so.
    ///
    /// # Errors
    /// When the disk fails or the spool is closed: the letter was not accepted.
    ///
    /// # Cancel safety
    /// A commit that is cancelled after it was handed over still happens; the letter is then delivered although
    /// nobody was told that it was accepted.
    pub async fn commit(mut self, message: NewMessage) -> Result<(), SpoolError> {
        if let Some(reason) = self.store.failing() {
            return Err(SpoolError::Failing(reason));
        }
        let Some(sum) = self.sum.take() else { return Err(SpoolError::Closed) };
        if let Some(mut large) = self.large.take() {
            let last = std::mem::take(&mut self.buffer);
            let chunk = self.chunks;
            if !last.is_empty() {
                self.chunks = chunk.checked_add(1).ok_or(SpoolError::TooLarge)?;
            }
            run_blocking(move || {
                if !last.is_empty() {
                    large.put(chunk, &last)?;
                }
                large.ingest()
            })
            .await?;
        }
        let tail = std::mem::take(&mut self.buffer);
        let tail = (!tail.is_empty()).then_some((self.chunks, tail));
        let chunks = self.chunks + u32::from(tail.is_some());
        debug_assert!(chunks > 0 || sum.length() == 0);
        let record = Box::new(Record::new(self.id, self.store.node_id, message, sum.finish(chunks)));
        let (done, answer) = oneshot::channel();
        self.committer.send(Change::Commit { record, tail, done }).await?;
        // The committer owns the letter from here; dropping this must not remove its pieces.
        let chunks = std::mem::take(&mut self.chunks);
        let committed = answer.await.map_err(|_| SpoolError::Closed)?;
        if committed.is_err() {
            self.chunks = chunks;
        }
        committed
    }
}

impl Drop for Append {
    fn drop(&mut self) {
        if self.chunks > 0 {
            let mut forgotten = self.store.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
            forgotten.push((self.id, self.chunks));
        }
    }
}
