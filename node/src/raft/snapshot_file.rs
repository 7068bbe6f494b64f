//! A snapshot as a file: a versioned header, every object as a length-prefixed pair, and a checksum over all of it.
//! One file is current; a new one is written beside it, synced, and renamed over it.
//!
//! ```text
//! "PHSN" version:u8 | header:u32+bytes | objects:u64 | (key:u32+bytes value:u32+bytes)* | SHA-256
//! ```
//! Numbers are big-endian; the checksum covers everything before it.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

use super::codec::{AppliedRecord, CodecError, from_record, to_record};
use super::types::{Snapshot, SnapshotMeta};
use crate::state::{ClusterState, SnapshotError};

const MAGIC: &[u8; 4] = b"PHSN";
const FORMAT_VERSION: u8 = 1;
const CURRENT: &str = "current.snapshot";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// Larger than any header, key or value that the state holds; a damaged length must not become an allocation.
const FIELD_BYTES_MAX: u32 = 64 << 20;
/// What one read of a snapshot on its way to another member returns.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;
/// What a member accepts as a snapshot.
pub(crate) const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;

/// Why a snapshot file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFileError {
    /// The disk refused.
    #[error("snapshot file: {0}")]
    Io(#[from] io::Error),
    /// Not a snapshot, or a damaged one.
    #[error("snapshot file is damaged: {0}")]
    Damaged(&'static str),
    /// From a newer version.
    #[error("snapshot format {0} is not known here")]
    Version(u8),
    /// Its header is damaged.
    #[error(transparent)]
    Header(#[from] CodecError),
    /// One of its objects is damaged or from a newer version.
    #[error(transparent)]
    Object(#[from] SnapshotError),
}

/// The bytes of a snapshot, in a file. Reading needs no position of its own, so that a file that was replaced
/// meanwhile can still be sent to the end.
#[derive(Debug)]
pub(crate) struct SnapshotData {
    file: File,
}

/// What a snapshot says.
pub(crate) struct SnapshotContents {
    pub(crate) applied: AppliedRecord,
    pub(crate) state: ClusterState,
    pub(crate) objects: Vec<(Vec<u8>, Vec<u8>)>,
}

impl SnapshotData {
    /// A nameless file in `dir`: whatever becomes of the process, nothing stays behind.
    fn scratch(dir: &Path) -> io::Result<Self> {
        let (path, file) = create_temporary(dir)?;
        std::fs::remove_file(path)?;
        Ok(Self { file })
    }

    /// At most [`CHUNK_BYTES`] from `offset`; empty at the end. Blocking.
    pub(crate) fn chunk(&self, offset: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; CHUNK_BYTES];
        loop {
            match self.file.read_at(&mut bytes, offset) {
                Ok(length) => {
                    bytes.truncate(length);
                    return Ok(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts `bytes` at `offset`. Blocking.
    pub(crate) fn put(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Reads the whole file and checks everything in it. Blocking.
    pub(crate) fn read(&self) -> Result<SnapshotContents, SnapshotFileError> {
        let mut reader =
            Checked { input: BufReader::new(At { file: &self.file, offset: 0 }), hash: Context::new(&SHA256) };
        let magic: [u8; 5] = reader.array()?;
        if magic[..4] != *MAGIC {
            return Err(SnapshotFileError::Damaged("it does not begin like one"));
        }
        if magic[4] != FORMAT_VERSION {
            return Err(SnapshotFileError::Version(magic[4]));
        }
        let applied = from_record(&reader.field()?)?;
        let count = u64::from_be_bytes(reader.array()?);
        let mut state = ClusterState::default();
        let mut objects = Vec::new();
        for _ in 0..count {
            let (key, value) = (reader.field()?, reader.field()?);
            state.restore_object(&key, &value)?;
            objects.push((key, value));
        }
        let Checked { mut input, hash } = reader;
        let mut checksum = [0_u8; SHA256_OUTPUT_LEN];
        input.read_exact(&mut checksum).map_err(ended)?;
        if hash.finish().as_ref() != checksum {
            return Err(SnapshotFileError::Damaged("its checksum does not match"));
        }
        if input.read(&mut [0])? != 0 {
            return Err(SnapshotFileError::Damaged("it goes on after its end"));
        }
        Ok(SnapshotContents { applied, state, objects })
    }
}

fn ended(error: io::Error) -> SnapshotFileError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => SnapshotFileError::Damaged("it ends early"),
        _ => SnapshotFileError::Io(error),
    }
}

/// A file read from an offset of our own.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.offset)?;
        self.offset += length as u64;
        Ok(length)
    }
}

struct Checked<R> {
    input: R,
    hash: Context,
}

impl<R: Read> Checked<R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotFileError> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(ended)?;
        self.hash.update(&bytes);
        Ok(bytes)
    }

    fn field(&mut self) -> Result<Vec<u8>, SnapshotFileError> {
        let length = u32::from_be_bytes(self.array()?);
        if length > FIELD_BYTES_MAX {
            return Err(SnapshotFileError::Damaged("a length is out of bounds"));
        }
        // Grows as the bytes come: a damaged length is found by the early end, not by the allocator.
        let mut bytes = Vec::new();
        (&mut self.input).take(u64::from(length)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != u64::from(length) {
            return Err(SnapshotFileError::Damaged("it ends early"));
        }
        self.hash.update(&bytes);
        Ok(bytes)
    }
}

struct Summed<W> {
    output: W,
    hash: Context,
}

impl<W: Write> Summed<W> {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.output.write_all(bytes)
    }

    fn field(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).ok().filter(|&length| length <= FIELD_BYTES_MAX);
        let length = length.ok_or_else(|| io::Error::other("an object is too large for a snapshot"))?;
        self.bytes(&length.to_be_bytes())?;
        self.bytes(bytes)
    }
}

/// Writes a whole snapshot of `state`.
fn write_snapshot(file: &File, applied: &AppliedRecord, state: &ClusterState) -> io::Result<()> {
    let mut out = Summed { output: BufWriter::new(file), hash: Context::new(&SHA256) };
    out.bytes(MAGIC)?;
    out.bytes(&[FORMAT_VERSION])?;
    out.field(&to_record(applied))?;
    let keys = state.object_keys();
    out.bytes(&(keys.len() as u64).to_be_bytes())?;
    for key in keys {
        let value = state.encode_object(&key).ok_or_else(|| io::Error::other("a listed object does not exist"))?;
        out.field(&key.to_bytes())?;
        out.field(&value)?;
    }
    let Summed { mut output, hash } = out;
    output.write_all(hash.finish().as_ref())?;
    output.flush()
}

fn create_temporary(dir: &Path) -> io::Result<(PathBuf, File)> {
    // The counter keeps a snapshot being built apart from one being received.
    static COUNTER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = dir.join(format!("{}-{number}{TEMPORARY_SUFFIX}", std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    Ok((path, file))
}

/// The snapshots of this member: at most one is current.
pub(crate) struct SnapshotStore {
    dir: PathBuf,
    current: Mutex<Option<SnapshotMeta>>,
}

impl SnapshotStore {
    /// Opens the directory, clears away what was not finished and checks what is there. `usable` says whether a
    /// snapshot fits the log and the state beside it. A damaged one is dropped: it can be made anew from the state.
    /// Blocking.
    pub(crate) fn open(dir: &Path, usable: impl FnOnce(&SnapshotMeta) -> bool) -> Result<Self, SnapshotFileError> {
        std::fs::create_dir_all(dir)?;
        for item in std::fs::read_dir(dir)? {
            let path = item?.path();
            if path.to_string_lossy().ends_with(TEMPORARY_SUFFIX) {
                std::fs::remove_file(path)?;
            }
        }
        let store = Self { dir: dir.to_owned(), current: Mutex::new(None) };
        let path = store.path();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(store),
            Err(error) => return Err(error.into()),
        };
        match (SnapshotData { file }).read() {
            Ok(contents) => {
                let meta = meta_of(&contents.applied);
                if usable(&meta) {
                    *store.lock() = Some(meta);
                } else {
                    std::fs::remove_file(path)?;
                }
            }
            Err(SnapshotFileError::Io(error)) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "dropping a snapshot that cannot be read");
                std::fs::remove_file(path)?;
            }
        }
        Ok(store)
    }

    fn path(&self) -> PathBuf {
        self.dir.join(CURRENT)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<SnapshotMeta>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a snapshot that another member sends. Blocking.
    pub(crate) fn incoming(&self) -> Result<SnapshotData, SnapshotFileError> {
        Ok(SnapshotData::scratch(&self.dir)?)
    }

    /// Writes a snapshot of `state` and makes it the current one, unless a later one is. Blocking.
    pub(crate) fn save(&self, mut applied: AppliedRecord, state: &ClusterState) -> Result<Snapshot, SnapshotFileError> {
        // The same entries make the same bytes on every node, so the last log id names the snapshot.
        applied.snapshot_id = applied.last_log().map_or_else(|| "empty".to_owned(), |id| id.to_string());
        let (path, file) = create_temporary(&self.dir)?;
        let written = write_snapshot(&file, &applied, state).and_then(|()| file.sync_all());
        if let Err(error) = written {
            let _ = std::fs::remove_file(&path);
            return Err(error.into());
        }
        let meta = meta_of(&applied);
        self.make_current(&path, &meta)?;
        Ok(Snapshot { meta, snapshot: Box::new(SnapshotData { file }) })
    }

    /// Copies a received snapshot and makes it the current one. Blocking.
    pub(crate) fn adopt(&self, meta: &SnapshotMeta, data: &SnapshotData) -> Result<(), SnapshotFileError> {
        let (path, file) = create_temporary(&self.dir)?;
        let mut input = At { file: &data.file, offset: 0 };
        let copied = io::copy(&mut input, &mut &file).and_then(|_| file.sync_all());
        if let Err(error) = copied {
            let _ = std::fs::remove_file(&path);
            return Err(error.into());
        }
        self.make_current(&path, meta)
    }

    /// Renames under the lock, so that the name and what we believe of it change together.
    fn make_current(&self, path: &Path, meta: &SnapshotMeta) -> Result<(), SnapshotFileError> {
        let mut current = self.lock();
        if current.as_ref().is_some_and(|current| current.last_log_id > meta.last_log_id) {
            std::fs::remove_file(path)?;
            return Ok(());
        }
        std::fs::rename(path, self.path())?;
        File::open(&self.dir)?.sync_all()?;
        *current = Some(meta.clone());
        Ok(())
    }

    /// The current snapshot, open for reading. Blocking.
    pub(crate) fn current(&self) -> Result<Option<Snapshot>, SnapshotFileError> {
        let current = self.lock();
        let Some(meta) = current.as_ref() else { return Ok(None) };
        let file = File::open(self.path())?;
        Ok(Some(Snapshot { meta: meta.clone(), snapshot: Box::new(SnapshotData { file }) }))
    }
}

fn meta_of(applied: &AppliedRecord) -> SnapshotMeta {
    SnapshotMeta {
        last_log_id: applied.last_log(),
        last_membership: applied.membership(),
        snapshot_id: applied.snapshot_id.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use openraft::testing::log_id;

    use super::*;
    use crate::raft::types::StoredMembership;

    fn record(index: u64) -> AppliedRecord {
        AppliedRecord::new(Some(log_id(1, 1, index)), &StoredMembership::default())
    }

    fn open(dir: &Path) -> SnapshotStore {
        SnapshotStore::open(dir, |_| true).unwrap()
    }

    fn index(store: &SnapshotStore) -> Option<u64> {
        store.current().unwrap().map(|snapshot| snapshot.meta.last_log_id.unwrap().index)
    }

    #[test]
    fn a_half_written_snapshot_is_cleared_away_and_the_old_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).save(record(5), &ClusterState::default()).unwrap();
        std::fs::write(dir.path().join("1-1.tmp"), b"PHSN\x01half").unwrap();
        assert_eq!(index(&open(dir.path())), Some(5));
        assert!(!dir.path().join("1-1.tmp").exists());
    }

    #[test]
    fn every_flipped_byte_and_every_shorter_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).save(record(5), &ClusterState::default()).unwrap();
        let good = std::fs::read(dir.path().join(CURRENT)).unwrap();
        let read = |bytes: &[u8]| {
            let data = SnapshotData::scratch(dir.path()).unwrap();
            data.put(0, bytes).unwrap();
            data.read()
        };
        assert_eq!(read(&good).unwrap().objects.len(), ClusterState::default().object_keys().len());
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 0x20;
            assert!(read(&bad).is_err(), "flipped byte {position} was not found");
            assert!(read(&good[..position]).is_err(), "cut at {position} was not found");
        }
    }

    #[test]
    fn a_damaged_snapshot_is_dropped_at_start() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CURRENT), b"PHSN\x01").unwrap();
        assert_eq!(index(&open(dir.path())), None);
        assert!(!dir.path().join(CURRENT).exists());
    }

    #[test]
    fn a_late_builder_does_not_replace_a_newer_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        store.save(record(9), &ClusterState::default()).unwrap();
        let late = store.save(record(5), &ClusterState::default()).unwrap();
        assert_eq!(index(&store), Some(9));
        assert!(late.snapshot.read().is_ok(), "the builder still holds its own file");
    }
}
