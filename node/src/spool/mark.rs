//! How far the database was known to be on the disk. RocksDB replays its log up to the first record that is not whole,
//! and takes that for the end; so it does with the MANIFEST, which says what files there are. After a power cut it is
//! the end. When the medium changes or loses what it had acknowledged, everything behind it would be forgotten without
//! a word. So the number of the last write that a sync confirmed, and the length of the synced MANIFEST, are kept
//! beside the database. A database that comes back with less is refused, and its logs are kept as they were.
//!
//! The mark is written after each sync, and synced itself once a second: after the death of a process it is exact, after
//! a power cut it may be that old. It never tells of anything that was not confirmed, so a power cut alone never makes
//! a node refuse.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::SpoolError;

/// The name of the mark.
pub(super) const FILE: &str = "CONFIRMED";
/// Where the logs are kept when the database came back with less than was confirmed.
const KEPT: &str = "logs-before-start";
/// Between two syncs of the mark.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// The places that are written in turn: when the power goes while one is written, the other is whole. One sector each.
const PLACES: [u64; 2] = [0, 512];
/// Six numbers of twenty digits, five spaces and the end of the line.
const LINE_BYTES: usize = 126;

/// What was confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Confirmed {
    /// The last write.
    write: u64,
    /// The number of the MANIFEST, and its length.
    manifest: (u64, u64),
}

/// The open mark.
pub(super) struct Mark {
    dir: PathBuf,
    file: File,
    confirmed: Confirmed,
    turn: usize,
    synced: Instant,
}

/// Refuses a database whose MANIFEST is older or shorter than one that was confirmed. Call it before the database is
/// opened: opening removes the files that the MANIFEST does not name.
///
/// # Errors
/// Then, and when the disk fails.
pub(super) fn check_manifest(dir: &Path) -> Result<(), SpoolError> {
    let (number, length) = read(dir)?.manifest;
    // Without a CURRENT that names a MANIFEST it is for RocksDB to refuse.
    let Ok((found, file)) = manifest(dir) else { return Ok(()) };
    let found_length = file.metadata().map_err(|error| refuse(dir, format!("MANIFEST: {error}")))?.len();
    if (found, found_length) >= (number, length) {
        return Ok(());
    }
    Err(refuse(
        dir,
        format!(
            "MANIFEST-{number:06} had {length} bytes on the disk, and what is there now is MANIFEST-{found:06} with \
             {found_length}: it is damaged or was replaced, and files with letters are missing from it. Put it back; to \
             go on without what is missing, remove {FILE}"
        ),
    ))
}

/// The MANIFEST in use.
fn manifest(dir: &Path) -> io::Result<(u64, File)> {
    let name = std::fs::read_to_string(dir.join("CURRENT"))?;
    let number = name.trim_end().strip_prefix("MANIFEST-").and_then(|number| number.parse().ok());
    Ok((number.ok_or(io::ErrorKind::InvalidData)?, File::open(dir.join(name.trim_end()))?))
}

fn refuse(dir: &Path, reason: String) -> SpoolError {
    SpoolError::Open { dir: dir.to_owned(), reason }
}

/// What the mark in `dir` says; nothing, when there is none.
fn read(dir: &Path) -> Result<Confirmed, SpoolError> {
    match std::fs::read(dir.join(FILE)) {
        Ok(bytes) => Ok(PLACES.iter().filter_map(|at| parse(&bytes, *at)).max().unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Confirmed::default()),
        Err(error) => Err(refuse(dir, format!("{FILE}: {error}"))),
    }
}

impl Mark {
    /// Reads the mark in `dir`, or makes one for a database whose last write is `found`.
    ///
    /// # Errors
    /// When the database has less than the mark says, or the disk fails.
    pub(super) fn open(dir: &Path, found: u64) -> Result<Self, SpoolError> {
        let failed = |error: io::Error| refuse(dir, format!("{FILE}: {error}"));
        let confirmed = read(dir)?;
        if found < confirmed.write {
            let log = newest_log(&dir.join(KEPT)).unwrap_or_else(|| "a file of the log (*.log)".to_owned());
            return Err(refuse(
                dir,
                format!(
                    "write {} was on the disk, and what is there now ends at write {found}: {log} is damaged or was \
                     removed or replaced. The logs as they were before this start are in {KEPT}. To go on without what \
                     is missing, remove {FILE}",
                    confirmed.write
                ),
            ));
        }
        let path = dir.join(FILE);
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
        let confirmed = Confirmed { write: found, ..confirmed };
        let mut mark = Self { dir: dir.to_owned(), file, confirmed, turn: 0, synced: Instant::now() };
        mark.look_at_manifest().and_then(|()| mark.write()).and_then(|()| mark.write()).map_err(failed)?;
        mark.file.sync_all().and_then(|()| File::open(dir)?.sync_all()).map_err(failed)?;
        Ok(mark)
    }

    /// Notes that a sync confirmed every write up to `write`.
    pub(super) fn confirm(&mut self, write: u64) -> io::Result<()> {
        if write <= self.confirmed.write {
            return Ok(());
        }
        self.confirmed.write = write;
        self.write()
    }

    /// Syncs the mark if that is due. Not on anybody's way to an acknowledgement.
    pub(super) fn sync_if_due(&mut self) -> io::Result<()> {
        if self.synced.elapsed() < SYNC_INTERVAL {
            return Ok(());
        }
        self.synced = Instant::now();
        self.look_at_manifest()?;
        self.write()?;
        self.file.sync_data()
    }

    fn look_at_manifest(&mut self) -> io::Result<()> {
        // While RocksDB exchanges it there may be none for a moment.
        let Ok((number, file)) = manifest(&self.dir) else { return Ok(()) };
        let found = (number, file.metadata()?.len());
        if found > self.confirmed.manifest {
            // What was written to it and not synced could still be lost: it is synced before it counts.
            file.sync_all()?;
            self.confirmed.manifest = found;
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        self.turn = (self.turn + 1) % PLACES.len();
        self.file.write_all_at(line(self.confirmed).as_bytes(), PLACES[self.turn])
    }
}

/// Everything twice: half a line is none.
fn line(confirmed: Confirmed) -> String {
    let Confirmed { write, manifest: (number, length) } = confirmed;
    let once = format!("{write:020} {number:020} {length:020}");
    format!("{once} {once}\n")
}

fn parse(bytes: &[u8], at: u64) -> Option<Confirmed> {
    let start = usize::try_from(at).ok()?;
    let text = std::str::from_utf8(bytes.get(start..start + LINE_BYTES)?).ok()?;
    let numbers: Vec<u64> = text.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect();
    match *numbers.as_slice() {
        [write, number, length, ref again @ ..] if *again == [write, number, length] => {
            Some(Confirmed { write, manifest: (number, length) })
        }
        _ => None,
    }
}

/// Links to the logs as they are before the database is opened: opening moves what it can read into tables and removes
/// the logs, whatever it could not read.
pub(super) struct KeptLogs(Option<PathBuf>);

impl KeptLogs {
    /// Links every log of `dir`. Links that an earlier, refused start made stay as they are. A file system without hard
    /// links keeps nothing.
    pub(super) fn link(dir: &Path) -> Self {
        if !dir.join(FILE).exists() {
            return Self(None);
        }
        let kept = dir.join(KEPT);
        if std::fs::create_dir(&kept).is_ok() {
            for path in logs(dir) {
                if let Err(error) = std::fs::hard_link(&path, kept.join(path.file_name().unwrap_or_default())) {
                    tracing::warn!(file = %path.display(), %error, "this log is not kept while it is read");
                }
            }
        }
        Self(Some(kept))
    }

    /// The database is whole: the links are not needed.
    pub(super) fn forget(self) {
        if let Some(kept) = self.0
            && let Err(error) = std::fs::remove_dir_all(&kept)
        {
            tracing::warn!(dir = %kept.display(), %error, "old logs were not removed");
        }
    }
}

fn logs(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut logs: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    logs.sort();
    logs
}

fn newest_log(dir: &Path) -> Option<String> {
    Some(logs(dir).pop()?.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_database_with_less_than_was_confirmed_is_refused_until_the_mark_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        Mark::open(dir.path(), 7).unwrap().confirm(20).unwrap();
        assert!(Mark::open(dir.path(), 20).is_ok());
        let refused = Mark::open(dir.path(), 19).err().unwrap().to_string();
        assert!(refused.contains("write 20 was on the disk") && refused.contains("ends at write 19"), "{refused}");
        assert!(Mark::open(dir.path(), 19).is_err(), "it stays refused");
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        assert!(Mark::open(dir.path(), 19).is_ok());
    }

    #[test]
    fn half_a_place_does_not_count_and_the_other_one_does() {
        let dir = tempfile::tempdir().unwrap();
        let mut mark = Mark::open(dir.path(), 5).unwrap();
        mark.confirm(8).unwrap();
        mark.confirm(9).unwrap();
        let newest = PLACES[mark.turn];
        mark.file.write_all_at(b"00000000000000000777", newest).unwrap();
        assert!(Mark::open(dir.path(), 7).is_err(), "8 was confirmed");
        assert!(Mark::open(dir.path(), 8).is_ok());
    }

    #[test]
    fn a_manifest_that_is_older_or_shorter_than_was_confirmed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let put = |number: u64, bytes: &[u8]| {
            std::fs::write(dir.path().join(format!("MANIFEST-{number:06}")), bytes).unwrap();
            std::fs::write(dir.path().join("CURRENT"), format!("MANIFEST-{number:06}\n")).unwrap();
        };
        put(5, b"twelve bytes");
        Mark::open(dir.path(), 1).unwrap();
        assert!(check_manifest(dir.path()).is_ok());
        put(5, b"eleven byte");
        let refused = check_manifest(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("MANIFEST-000005 had 12 bytes"), "{refused}");
        put(4, b"twelve bytes and more");
        assert!(check_manifest(dir.path()).is_err());
        put(7, b"new");
        assert!(check_manifest(dir.path()).is_ok());
    }

    #[test]
    fn logs_are_kept_while_they_are_read_and_after_a_refusal() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("000004.log"), "as it was").unwrap();
        KeptLogs::link(dir.path()).forget();
        let kept = dir.path().join(KEPT).join("000004.log");
        assert!(!kept.exists(), "nothing is kept before there is a mark");
        Mark::open(dir.path(), 3).unwrap();
        let links = KeptLogs::link(dir.path());
        std::fs::remove_file(dir.path().join("000004.log")).unwrap();
        assert!(Mark::open(dir.path(), 2).err().unwrap().to_string().contains("000004.log"));
        drop(links);
        KeptLogs::link(dir.path());
        assert_eq!(std::fs::read(&kept).unwrap(), b"as it was");
        KeptLogs::link(dir.path()).forget();
        assert!(!kept.exists());
    }
}
