//! Log and vote in RocksDB. Entries can be read when `append` returns, and their completion is reported only after
//! the write-ahead log was synced; so is a vote. Writes run off the async workers, and openraft's core waits for each
//! before it begins the next, which keeps them in order.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use posthouse_proto::v1 as pb;
use rocksdb::{Direction, IteratorMode, WriteBatch};

use super::codec;
use super::store::{LOG, META, Store, StoreError};
use super::types::{Entry, LogId, StorageError, TypeConfig, Vote};
use crate::shutdown::run_blocking;

const VOTE: &[u8] = b"vote";
const COMMITTED: &[u8] = b"committed";
const PURGED: &[u8] = b"purged";

/// How many bytes of commands one replication message carries, unless a single one is larger: it has to be written
/// and answered within a heartbeat interval.
const APPEND_BYTES_MAX: usize = 1 << 20;

/// The log of this member.
#[derive(Clone)]
pub(crate) struct LogStore {
    store: Arc<Store>,
}

impl LogStore {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// Before the core starts: whoever led when it ended has to be elected again. The core would lead on in the same
    /// term (openraft 0.9, `Engine::startup`), also from a copy of the data that is older than what it has let others
    /// commit since, and the others would follow it back. A candidate's log is compared; a leader's is not.
    pub(crate) async fn lead_no_more(&mut self, node_id: u64) -> Result<(), StorageError> {
        match self.read_vote().await? {
            Some(vote) if vote.committed && vote.leader_id.node_id == node_id => {
                self.save_vote(&Vote::new(vote.leader_id.term, node_id)).await
            }
            _ => Ok(()),
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = Arc::clone(&self.store);
        run_blocking(move || work(&store)).await
    }

    async fn put_ident(&self, key: &'static [u8], value: Vec<u8>, synced: bool) -> Result<(), StorageError> {
        self.run(move |store| {
            let mut batch = WriteBatch::default();
            batch.put_cf(&store.family(META)?, key, value);
            if synced { store.write_synced(batch) } else { store.write(batch) }
        })
        .await
        .map_err(StoreError::write)
    }
}

fn read_ident(store: &Store, key: &[u8]) -> Result<Option<LogId>, StoreError> {
    let Some(bytes) = store.get(META, key)? else { return Ok(None) };
    let ident: pb::LogIdent = codec::from_record(&bytes)?;
    Ok(Some(codec::log_id(&ident)))
}

/// The last purged entry: the log begins after it.
pub(crate) fn last_purged(store: &Store) -> Result<Option<LogId>, StoreError> {
    read_ident(store, PURGED)
}

fn read_entry(value: &[u8]) -> Result<Entry, StoreError> {
    Ok(codec::entry(codec::from_record(value)?)?)
}

/// Reads entries from `start` to before `end`, stopping after the entry that passes `bytes_max`.
fn read_entries(store: &Store, start: u64, end: u64, bytes_max: usize) -> Result<Vec<Entry>, StoreError> {
    let mut entries = Vec::new();
    if start >= end {
        return Ok(entries);
    }
    let family = store.family(LOG)?;
    let mut bytes = 0_usize;
    let first = start.to_be_bytes();
    for item in store.db().iterator_cf(&family, IteratorMode::From(&first, Direction::Forward)) {
        let (key, value) = item?;
        if *key >= end.to_be_bytes()[..] {
            break;
        }
        entries.push(read_entry(&value)?);
        bytes = bytes.saturating_add(value.len());
        if bytes >= bytes_max {
            break;
        }
    }
    Ok(entries)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(&index) => index,
            Bound::Excluded(&index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&index) => index.saturating_add(1),
            Bound::Excluded(&index) => index,
            Bound::Unbounded => u64::MAX,
        };
        self.run(move |store| read_entries(store, start, end, usize::MAX)).await.map_err(StoreError::read)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.run(move |store| read_entries(store, start, end, APPEND_BYTES_MAX)).await.map_err(StoreError::read)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        self.run(|store| {
            let last_purged_log_id = last_purged(store)?;
            let family = store.family(LOG)?;
            let last = store.db().iterator_cf(&family, IteratorMode::End).next().transpose()?;
            let last_log_id = match last {
                Some((_, value)) => Some(read_entry(&value)?.log_id),
                None => last_purged_log_id,
            };
            Ok(LogState { last_purged_log_id, last_log_id })
        })
        .await
        .map_err(StoreError::read)
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    /// A vote that was forgotten could be given twice in one term: synced before it is reported.
    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.put_ident(VOTE, codec::to_record(&codec::vote_ident(vote)), true).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.run(|store| {
            let Some(bytes) = store.get(META, VOTE)? else { return Ok(None) };
            let ident: pb::VoteIdent = codec::from_record(&bytes)?;
            Ok(Some(codec::vote(&ident)))
        })
        .await
        .map_err(StoreError::read)
    }

    /// Not synced: it only lets a restarted node apply at once what it knew to be committed. Without it the leader
    /// says so again.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        match committed {
            Some(id) => self.put_ident(COMMITTED, codec::to_record(&codec::log_ident(&id)), false).await,
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        self.run(|store| read_ident(store, COMMITTED)).await.map_err(StoreError::read)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records: Vec<([u8; 8], Vec<u8>)> = entries
            .into_iter()
            .map(|entry| (entry.log_id.index.to_be_bytes(), codec::to_record(&codec::log_entry(&entry))))
            .collect();
        let written = self
            .run(move |store| {
                let family = store.family(LOG)?;
                let mut batch = WriteBatch::default();
                for (index, record) in &records {
                    batch.put_cf(&family, index, record);
                }
                store.write_synced(batch)
            })
            .await;
        match written {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(std::io::Error::other(error.to_string())));
                Err(error.write())
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        // Not synced: the entries that replace these follow in the same write-ahead log and are.
        self.run(move |store| {
            let mut batch = WriteBatch::default();
            let (from, to) = (log_id.index.to_be_bytes(), u64::MAX.to_be_bytes());
            batch.delete_range_cf(&store.family(LOG)?, from, to);
            store.write(batch)
        })
        .await
        .map_err(StoreError::write)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        // Synced, and with it every state batch written before: the log is never shorter than what was applied for
        // good. The mark and the deletion are one batch.
        self.run(move |store| {
            let mut batch = WriteBatch::default();
            batch.put_cf(&store.family(META)?, PURGED, codec::to_record(&codec::log_ident(&log_id)));
            let (from, to) = (0_u64.to_be_bytes(), log_id.index.saturating_add(1).to_be_bytes());
            batch.delete_range_cf(&store.family(LOG)?, from, to);
            store.write_synced(batch)
        })
        .await
        .map_err(StoreError::write)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use openraft::storage::RaftLogStorageExt;
    use openraft::testing::{blank_ent, log_id};
    use openraft::{CommittedLeaderId, EntryPayload};

    use super::*;
    use crate::raft::types::Proposal;

    fn open(dir: &tempfile::TempDir) -> LogStore {
        LogStore::new(Store::open(dir.path(), "c", 1).unwrap())
    }

    #[tokio::test]
    async fn whoever_led_has_to_be_elected_again_and_others_keep_their_leader() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(&dir);
        for (saved, after) in [
            (Vote::new_committed(3, 1), Vote::new(3, 1)),
            (Vote::new_committed(3, 2), Vote::new_committed(3, 2)),
            (Vote::new(3, 1), Vote::new(3, 1)),
        ] {
            log.save_vote(&saved).await.unwrap();
            log.lead_no_more(1).await.unwrap();
            assert_eq!(log.read_vote().await.unwrap(), Some(after));
        }
    }

    #[tokio::test]
    async fn vote_log_and_marks_are_there_after_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        {
            let mut log = open(&dir);
            log.save_vote(&Vote::new_committed(3, 2)).await.unwrap();
            log.blocking_append((0..=9).map(|index| blank_ent(1, 1, index))).await.unwrap();
            log.purge(log_id(1, 1, 2)).await.unwrap();
            log.truncate(log_id(1, 1, 8)).await.unwrap();
            log.save_committed(Some(log_id(1, 1, 6))).await.unwrap();
        }
        let mut log = open(&dir);
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new_committed(3, 2)));
        assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 1, 6)));
        let state = log.get_log_state().await.unwrap();
        assert_eq!(state.last_purged_log_id, Some(log_id(1, 1, 2)));
        assert_eq!(state.last_log_id, Some(log_id(1, 1, 7)));
        let indexes: Vec<u64> =
            log.try_get_log_entries(..).await.unwrap().iter().map(|entry| entry.log_id.index).collect();
        assert_eq!(indexes, [3, 4, 5, 6, 7]);
    }

    #[tokio::test]
    async fn one_replication_message_is_bounded_and_never_empty() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(&dir);
        let large = |index| Entry {
            log_id: openraft::LogId::new(CommittedLeaderId::new(1, 1), index),
            payload: EntryPayload::Normal(Proposal(vec![7; APPEND_BYTES_MAX / 2])),
        };
        log.blocking_append((0..5).map(large)).await.unwrap();
        assert_eq!(log.limited_get_log_entries(0, 5).await.unwrap().len(), 2);
        assert_eq!(log.limited_get_log_entries(4, 5).await.unwrap().len(), 1);
        assert_eq!(log.try_get_log_entries(0..5).await.unwrap().len(), 5);
    }
}
