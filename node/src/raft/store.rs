//! The RocksDB of the Raft group: log, vote and state in one database with one write-ahead log, so that what was
//! written earlier is never less durable than what was written later.

use std::path::Path;
use std::sync::Arc;

use openraft::StorageIOError;
use rocksdb::{
    BlockBasedOptions, BoundColumnFamily, Cache, ColumnFamilyDescriptor, DB, LogLevel, Options, WriteBatch,
    WriteOptions,
};

use super::codec::{CodecError, IdentityRecord, from_record, to_record};
use super::snapshot_file::SnapshotFileError;
use super::types::StorageError;
use crate::state::{CommandDecodeError, SnapshotError};

/// Log entries by index.
pub(crate) const LOG: &str = "log";
/// Vote, committed, purged, identity.
pub(crate) const META: &str = "meta";
/// The state's objects, and how far it has come.
pub(crate) const STATE: &str = "state";

const IDENTITY: &[u8] = b"identity";

/// Administrators change little: small buffers keep memory and recovery short.
const WRITE_BUFFER_BYTES: usize = 8 << 20;
const WAL_BYTES_MAX: u64 = 64 << 20;
const BLOCK_CACHE_BYTES: usize = 8 << 20;
/// RocksDB's own log files, which nobody reads until something is wrong.
const INFO_LOGS_MAX: usize = 3;
const INFO_LOG_BYTES_MAX: usize = 1 << 20;

/// Why the store cannot go on. Ours, lasting: the node stops being a member rather than guess.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// RocksDB refused.
    #[error("database: {0}")]
    Database(#[from] rocksdb::Error),
    /// A record is damaged or from a newer version.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A committed command is damaged or from a newer version.
    #[error(transparent)]
    Command(#[from] CommandDecodeError),
    /// An object of the state is damaged or from a newer version.
    #[error(transparent)]
    Object(#[from] SnapshotError),
    /// A snapshot cannot be read or written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotFileError),
    /// A file or directory cannot be used.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Opened by another node, or moved between clusters.
    #[error("the data directory belongs to node {node_id} of cluster {cluster_id}")]
    Foreign {
        /// Whose.
        cluster_id: String,
        /// Whose.
        node_id: u64,
    },
    /// The database lacks a part that it was created with.
    #[error("the database has no column family \"{0}\"")]
    Incomplete(&'static str),
}

impl StoreError {
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::File { path, source }
    }

    /// A failed write: it ends the Raft core, and is never retried into an acknowledgement.
    pub(crate) fn write(self) -> StorageError {
        StorageIOError::write(&self).into()
    }

    /// A failed read.
    pub(crate) fn read(self) -> StorageError {
        StorageIOError::read(&self).into()
    }
}

/// The open database.
pub(crate) struct Store {
    db: DB,
}

impl Store {
    /// Opens or creates the database at `path`. Blocking.
    pub(crate) fn open(path: &Path, cluster_id: &str, node_id: u64) -> Result<Arc<Self>, StoreError> {
        std::fs::create_dir_all(path).map_err(StoreError::file(path))?;
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_total_wal_size(WAL_BYTES_MAX);
        options.set_log_level(LogLevel::Warn);
        options.set_keep_log_file_num(INFO_LOGS_MAX);
        options.set_max_log_file_size(INFO_LOG_BYTES_MAX);
        options.set_stats_dump_period_sec(0);
        options.set_max_background_jobs(2);
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        let families = [LOG, META, STATE].map(|name| {
            let mut table = BlockBasedOptions::default();
            table.set_block_cache(&cache);
            let mut options = Options::default();
            options.set_write_buffer_size(WRITE_BUFFER_BYTES);
            options.set_block_based_table_factory(&table);
            ColumnFamilyDescriptor::new(name, options)
        });
        let store = Self { db: DB::open_cf_descriptors(&options, path, families)? };
        store.claim(cluster_id, node_id)?;
        Ok(Arc::new(store))
    }

    /// Notes whose directory this is, or refuses somebody else's: the log of another member under this one's name
    /// could vote twice in one term.
    fn claim(&self, cluster_id: &str, node_id: u64) -> Result<(), StoreError> {
        match self.get(META, IDENTITY)? {
            None => {
                let mut batch = WriteBatch::default();
                let identity = IdentityRecord { cluster_id: cluster_id.to_owned(), node_id };
                batch.put_cf(&self.family(META)?, IDENTITY, to_record(&identity));
                self.write_synced(batch)
            }
            Some(bytes) => {
                let found: IdentityRecord = from_record(&bytes)?;
                if found.cluster_id == cluster_id && found.node_id == node_id {
                    return Ok(());
                }
                Err(StoreError::Foreign { cluster_id: found.cluster_id, node_id: found.node_id })
            }
        }
    }

    pub(crate) fn db(&self) -> &DB {
        &self.db
    }

    pub(crate) fn family(&self, name: &'static str) -> Result<Arc<BoundColumnFamily<'_>>, StoreError> {
        self.db.cf_handle(name).ok_or(StoreError::Incomplete(name))
    }

    pub(crate) fn get(&self, family: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.db.get_cf(&self.family(family)?, key)?)
    }

    /// Writes and returns when the batch, and everything written before it, is on stable storage.
    pub(crate) fn write_synced(&self, batch: WriteBatch) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        Ok(self.db.write_opt(batch, &options)?)
    }

    /// Writes to the write-ahead log without waiting for the disk: survives the process, not the power.
    pub(crate) fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        Ok(self.db.write_opt(batch, &WriteOptions::default())?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_directory_of_another_member_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path(), "c", 1).unwrap());
        assert!(matches!(Store::open(dir.path(), "c", 2), Err(StoreError::Foreign { node_id: 1, .. })));
        assert!(matches!(Store::open(dir.path(), "d", 1), Err(StoreError::Foreign { .. })));
        assert!(Store::open(dir.path(), "c", 1).is_ok());
    }
}
