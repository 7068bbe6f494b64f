//! Is the disk well, also while no letter comes? Looks at free space and inodes, and syncs one small file again and
//! again, off the async workers: a disk that became read-only or hangs is noticed by the probe, not by a device.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::shutdown::{Scope, run_blocking};

/// When a disk counts as sick.
#[derive(Clone, Copy, Debug)]
pub struct DiskLimits {
    /// Between two probes.
    pub interval: Duration,
    /// A sync that takes longer makes the node unready while it lasts.
    pub sync_timeout: Duration,
    /// From this share of used space or inodes on the disk is full. It is well again five points below.
    pub used_max_percent: u8,
    /// As long as so much space is free the share does not matter: a tenth of a large disk is much.
    pub free_enough_bytes: u64,
}

/// Between full and well again, so that one letter more or less does not turn the node over and over.
const HYSTERESIS_PERCENT: u8 = 5;
/// Beside the data: the same file system, the same fate.
const PROBE_FILE: &str = ".sync-probe";

/// What the probe found last.
#[derive(Clone, Debug, Default)]
pub struct DiskProbe(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// A probe that has not returned.
    began: Option<Instant>,
    sync_timeout: Duration,
    trouble: Option<String>,
}

impl DiskProbe {
    /// Probes the file system of `dir` until `scope` ends.
    #[must_use]
    pub fn start(dir: PathBuf, limits: DiskLimits, scope: &Scope) -> Self {
        let probe = Self::default();
        probe.state().sync_timeout = limits.sync_timeout;
        let this = probe.clone();
        scope.spawn_until_ended(async move {
            let mut was_full = false;
            loop {
                this.state().began = Some(Instant::now());
                let dir = dir.clone();
                let (trouble, is_full) = run_blocking(move || look(&dir, limits, was_full)).await;
                was_full = is_full;
                {
                    let mut state = this.state();
                    (state.began, state.trouble) = (None, trouble);
                }
                tokio::time::sleep(limits.interval).await;
            }
        });
        probe
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong now.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let state = self.state();
        let waiting = state.began.map(|began| began.elapsed()).filter(|since| *since >= state.sync_timeout);
        match waiting {
            Some(_) => Some(format!("a sync has not returned for {} ms or more", state.sync_timeout.as_millis())),
            None => state.trouble.clone(),
        }
    }
}

/// One look: what is wrong, and whether it is full.
fn look(dir: &Path, limits: DiskLimits, was_full: bool) -> (Option<String>, bool) {
    let found = match rustix::fs::statvfs(dir) {
        Ok(found) => found,
        Err(error) => return (Some(format!("cannot be asked: {error}")), was_full),
    };
    let max = limits.used_max_percent - if was_full { HYSTERESIS_PERCENT.min(limits.used_max_percent) } else { 0 };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let space = used_percent(found.f_bavail, found.f_blocks);
    if space >= max && free < limits.free_enough_bytes {
        return (Some(format!("{space} % of its space is used")), true);
    }
    // Some file systems have no fixed number of inodes, and say 0.
    let inodes = used_percent(found.f_favail, found.f_files);
    if found.f_files > 0 && inodes >= max {
        return (Some(format!("{inodes} % of its inodes are used")), true);
    }
    (sync(&dir.join(PROBE_FILE)).err().map(|error| format!("cannot be written: {error}")), false)
}

fn used_percent(available: u64, all: u64) -> u8 {
    let used = u128::from(all.saturating_sub(available)) * 100 / u128::from(all.max(1));
    u8::try_from(used).unwrap_or(100)
}

/// The same block is written again: no space is needed, and the sync is as cheap as one can be.
fn sync(path: &Path) -> std::io::Result<()> {
    let mut file = std::fs::File::options().create(true).write(true).truncate(false).open(path)?;
    file.write_all(b"posthouse writes and syncs this file to know that the disk is well\n")?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LIMITS: DiskLimits = DiskLimits {
        interval: Duration::from_millis(10),
        sync_timeout: Duration::from_secs(5),
        used_max_percent: 100,
        free_enough_bytes: 0,
    };

    #[test]
    fn a_disk_that_can_be_written_is_well_and_a_missing_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look(dir.path(), LIMITS, false), (None, false));
        assert!(look(&dir.path().join("gone"), LIMITS, false).0.unwrap().contains("cannot be asked"));
    }

    #[test]
    fn full_is_a_share_and_little_space_together() {
        let dir = tempfile::tempdir().unwrap();
        let tight = DiskLimits { used_max_percent: 0, free_enough_bytes: u64::MAX, ..LIMITS };
        assert!(look(dir.path(), tight, false).0.unwrap().contains("space is used"));
        let roomy = DiskLimits { free_enough_bytes: 0, ..tight };
        assert!(look(dir.path(), roomy, false).0.is_none_or(|trouble| trouble.contains("inodes")));
    }

    #[test]
    fn shares_are_whole_percents() {
        assert_eq!((used_percent(0, 10), used_percent(10, 10), used_percent(1, 3)), (100, 0, 66));
        assert_eq!(used_percent(5, 0), 0);
    }
}
