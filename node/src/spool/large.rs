//! The greater part of a large letter goes past the memtables: straight into a table file of its own, which the database
//! takes over just before the letter is committed. So what the spool holds in memory does not depend on how large a
//! letter is, and its bytes are written once instead of twice (log and table).
//!
//! The file is synced, then the database durably knows it, then the record is committed: at no point is there a record
//! without its pieces. A file that was never taken over is nobody's, and is removed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rocksdb::{DBCompressionType, IngestExternalFileOptions, Options, SstFileWriter};

use super::store::{BODY, Store, chunk_key};
use super::{MessageId, SpoolError};

/// Pieces of a letter that ride in batches as those of every letter do; 1 MB with the size of a piece. Each file costs
/// a few syncs of its own, which a small letter is not worth.
pub(super) const CHUNKS_IN_BATCHES: u32 = 4;

/// How the files are called while they grow. RocksDB leaves names alone that it did not give.
const FILE_PREFIX: &str = "arriving-";

/// A table file that grows. Dropped before it is taken over, it is removed.
pub(super) struct Large {
    writer: SstFileWriter<'static>,
    path: PathBuf,
    store: Arc<Store>,
    id: MessageId,
}

impl Large {
    /// Begins the file of a letter. Blocking.
    pub(super) fn create(store: Arc<Store>, id: MessageId) -> Result<Self, SpoolError> {
        let path = store.db.path().join(format!("{FILE_PREFIX}{id}"));
        let large = Self { writer: SstFileWriter::create(options()), path, store, id };
        large.writer.open(&large.path).map_err(|error| large.store.fail(error.as_ref()))?;
        Ok(large)
    }

    /// Adds a piece; they come in order. Blocking.
    pub(super) fn put(&mut self, chunk: u32, bytes: &[u8]) -> Result<(), SpoolError> {
        self.store.check_writes()?;
        self.writer.put(chunk_key(self.id, chunk), bytes).map_err(|error| self.store.fail(error.as_ref()))
    }

    /// Syncs the file and has the database take it over, durably. Blocking.
    pub(super) fn ingest(mut self) -> Result<(), SpoolError> {
        self.store.check_writes()?;
        self.writer.finish().map_err(|error| self.store.fail(error.as_ref()))?;
        let mut ingest = IngestExternalFileOptions::default();
        ingest.set_move_files(true);
        let body = self.store.family(BODY)?;
        let taken = self.store.db.ingest_external_file_cf_opts(&body, &ingest, vec![&self.path]);
        taken.map_err(|error| self.store.fail(error.as_ref()))
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        // After it was taken over there is nothing under this name any more.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes files that a crash left behind: their letters were never acknowledged. Call it with the database open, so
/// that they are nobody else's.
pub(super) fn remove_leftovers(dir: &Path) -> std::io::Result<u64> {
    let mut removed = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(FILE_PREFIX) {
            std::fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn options() -> &'static Options {
    static OPTIONS: OnceLock<Options> = OnceLock::new();
    OPTIONS.get_or_init(|| {
        let mut options = Options::default();
        options.set_compression_type(DBCompressionType::None);
        // A piece is larger than this and is written as it is.
        options.set_writable_file_max_buffer_size(64 * 1024);
        options
    })
}
