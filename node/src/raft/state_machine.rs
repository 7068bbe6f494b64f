//! Committed entries → [`crate::state::apply`] → one write batch → the published [`StateView`]. The only place that
//! publishes it.
//!
//! **Durability.** The batch is written to the write-ahead log but not synced. The entries themselves were synced
//! before they were acknowledged, log and state share one write-ahead log (so that a crash keeps a prefix of both
//! together), and the log is purged only by a synced write. What a power cut takes from the state is therefore always
//! still in the log and is applied again.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use rocksdb::{Direction, IteratorMode, WriteBatch};
use tokio::sync::watch;

use super::codec::{AppliedRecord, from_record, to_record};
use super::log_store::last_purged;
use super::snapshot_file::{SnapshotData, SnapshotFileError, SnapshotStore};
use super::store::{STATE, Store, StoreError};
use super::types::{Answer, Entry, LogId, Snapshot, SnapshotMeta, StorageError, StoredMembership, TypeConfig};
use crate::shutdown::run_blocking;
use crate::state::{ClusterState, Command, StateView, apply};

/// How far the state has come; in the same column family as the objects, so that both are always one batch.
const APPLIED: &[u8] = &[0];
/// First byte of an object's key, and the first byte after all of them.
const OBJECT: u8 = 1;
const AFTER_OBJECTS: &[u8] = &[OBJECT + 1];

/// The state of this member, and its snapshots.
pub(crate) struct StateMachine {
    machine: Arc<Mutex<Machine>>,
    snapshots: Arc<SnapshotStore>,
}

struct Machine {
    store: Arc<Store>,
    state: ClusterState,
    applied: Option<LogId>,
    membership: StoredMembership,
    view: watch::Sender<Arc<StateView>>,
}

fn object_key(key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.len() + 1);
    bytes.push(OBJECT);
    bytes.extend(key);
    bytes
}

fn index_of(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index)
}

impl StateMachine {
    /// Loads the state from the database and the current snapshot from `snapshots`. Blocking.
    pub(crate) fn open(
        store: Arc<Store>,
        snapshots: &Path,
    ) -> Result<(Self, watch::Receiver<Arc<StateView>>), StoreError> {
        let applied: AppliedRecord = match store.get(STATE, APPLIED)? {
            Some(bytes) => from_record(&bytes)?,
            None => AppliedRecord::default(),
        };
        let mut state = ClusterState::default();
        {
            let family = store.family(STATE)?;
            for item in store.db().iterator_cf(&family, IteratorMode::From(&[OBJECT], Direction::Forward)) {
                let (key, value) = item?;
                state.restore_object(key.get(1..).unwrap_or_default(), &value)?;
            }
        }
        let (last, purged) = (applied.last_log(), last_purged(&store)?);
        // A snapshot ahead of the state was not installed to the end; one behind the purged log cannot bring anybody
        // to where the log begins.
        let snapshots = SnapshotStore::open(snapshots, |meta| meta.last_log_id <= last && meta.last_log_id >= purged)?;
        let view = Arc::new(StateView::build(state.clone(), index_of(last), None));
        let (sender, receiver) = watch::channel(view);
        let machine = Machine { store, state, applied: last, membership: applied.membership(), view: sender };
        Ok((Self { machine: Arc::new(Mutex::new(machine)), snapshots: Arc::new(snapshots) }, receiver))
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Machine, &SnapshotStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (machine, snapshots) = (Arc::clone(&self.machine), Arc::clone(&self.snapshots));
        run_blocking(move || work(&mut lock(&machine), &snapshots)).await
    }
}

fn lock(machine: &Mutex<Machine>) -> MutexGuard<'_, Machine> {
    // Nothing is left half changed by a panic: the state is replaced as a whole, after the disk has it.
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    fn apply(&mut self, entries: Vec<Entry>) -> Result<Vec<Answer>, StoreError> {
        let mut state = self.state.clone();
        let mut membership = self.membership.clone();
        let mut applied = self.applied;
        let mut touched = BTreeSet::new();
        let mut answers = Vec::with_capacity(entries.len());
        for entry in entries {
            applied = Some(entry.log_id);
            answers.push(match entry.payload {
                EntryPayload::Blank => Answer(None),
                EntryPayload::Normal(proposal) => {
                    // A command that this version does not know was committed by a newer one: going on without it
                    // would make another state of the same log.
                    let command = Command::decode(&proposal.0)?;
                    let done = apply(&mut state, &command, entry.log_id.index);
                    touched.extend(done.touched);
                    Answer(Some(done.outcome))
                }
                EntryPayload::Membership(config) => {
                    membership = StoredMembership::new(applied, config);
                    Answer(None)
                }
            });
        }
        let mut batch = WriteBatch::default();
        {
            let family = self.store.family(STATE)?;
            for key in &touched {
                let bytes = object_key(&key.to_bytes());
                match state.encode_object(key) {
                    Some(value) => batch.put_cf(&family, bytes, value),
                    None => batch.delete_cf(&family, bytes),
                }
            }
            batch.put_cf(&family, APPLIED, to_record(&AppliedRecord::new(applied, &membership)));
        }
        self.store.write(batch)?;
        self.become_state(state, applied, membership);
        Ok(answers)
    }

    /// Replaces everything by a snapshot, in one synced batch: a crash leaves the old state or the new one.
    fn install(&mut self, meta: &SnapshotMeta, data: &SnapshotData) -> Result<(), StoreError> {
        let contents = data.read()?;
        if contents.applied.last_log() != meta.last_log_id {
            return Err(SnapshotFileError::Damaged("its header is another snapshot's").into());
        }
        let mut batch = WriteBatch::default();
        {
            let family = self.store.family(STATE)?;
            batch.delete_range_cf(&family, &[OBJECT][..], AFTER_OBJECTS);
            for (key, value) in &contents.objects {
                batch.put_cf(&family, object_key(key), value);
            }
            let record = AppliedRecord::new(meta.last_log_id, &meta.last_membership);
            batch.put_cf(&family, APPLIED, to_record(&record));
        }
        self.store.write_synced(batch)?;
        self.become_state(contents.state, meta.last_log_id, meta.last_membership.clone());
        Ok(())
    }

    fn become_state(&mut self, state: ClusterState, applied: Option<LogId>, membership: StoredMembership) {
        let previous = Arc::clone(&self.view.borrow());
        let view = StateView::build(state.clone(), index_of(applied), Some(&previous));
        self.state = state;
        self.applied = applied;
        self.membership = membership;
        self.view.send_replace(Arc::new(view));
    }
}

/// A picture of the state as it was when the snapshot was asked for; built off the async workers.
pub(crate) struct SnapshotBuilder {
    state: ClusterState,
    applied: AppliedRecord,
    snapshots: Arc<SnapshotStore>,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let (state, applied, snapshots) = (self.state.clone(), self.applied.clone(), Arc::clone(&self.snapshots));
        run_blocking(move || snapshots.save(applied, &state)).await.map_err(|error| StoreError::from(error).write())
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let machine = lock(&self.machine);
        Ok((machine.applied, machine.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answer>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        self.run(move |machine, _| machine.apply(entries)).await.map_err(StoreError::write)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let machine = lock(&self.machine);
        SnapshotBuilder {
            state: machine.state.clone(),
            applied: AppliedRecord::new(machine.applied, &machine.membership),
            snapshots: Arc::clone(&self.snapshots),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotData>, StorageError> {
        self.run(|_, snapshots| Ok(Box::new(snapshots.incoming()?))).await.map_err(StoreError::write)
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Box<SnapshotData>) -> Result<(), StorageError> {
        let meta = meta.clone();
        // The state first: a file ahead of the state is dropped at the next start, a state ahead of the file is
        // whole and makes its snapshot anew.
        self.run(move |machine, snapshots| {
            machine.install(&meta, &snapshot)?;
            Ok(snapshots.adopt(&meta, &snapshot)?)
        })
        .await
        .map_err(StoreError::write)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        self.run(|_, snapshots| Ok(snapshots.current()?)).await.map_err(StoreError::read)
    }
}
