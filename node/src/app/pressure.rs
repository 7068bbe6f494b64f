//! Reads what the machine says of its resources, and folds it into back pressure. What may hang with the disk is asked
//! off the readiness loop: a disk that does not answer must not keep a node from saying so.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::gauge;

use crate::health::{Level, Pressure, PressureFlip, PressureSettings, Resource};
use crate::shutdown::{Scope, run_blocking};
use crate::spool::Spool;

/// How often disk and memory are read; Exchange polls every two seconds.
const POLL: Duration = Duration::from_secs(1);
/// How long a synced write may be watched before the next one is tried.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);
/// So many times the space with which a disk is full is plenty: the share does not matter, a tenth of a large disk is
/// much.
const PLENTY: u64 = 8;

/// 0 low, 1 medium, 2 high, per resource.
pub(super) const PRESSURE_LEVEL: &str = "posthouse_pressure_level";
/// The value that the level comes from.
pub(super) const PRESSURE_VALUE: &str = "posthouse_pressure_value";

/// What was read last.
#[derive(Debug, Default)]
struct Readings {
    disk_space: AtomicU64,
    inodes: AtomicU64,
    memory: AtomicU64,
}

/// Back pressure of this node.
#[derive(Debug, Default)]
pub(super) struct PressureWatch {
    readings: Arc<Readings>,
    pressure: Arc<Mutex<Pressure>>,
}

impl PressureWatch {
    /// Starts reading, until `scope` ends. `free_enough_bytes` is where the disk counts as full whatever its size.
    pub(super) fn start(&self, spool_dir: PathBuf, free_enough_bytes: u64, spool: Spool, scope: &Scope) {
        let plenty = free_enough_bytes.saturating_mul(PLENTY);
        metrics::describe_gauge!(PRESSURE_LEVEL, "Back pressure per resource: 0 low, 1 medium, 2 high.");
        metrics::describe_gauge!(PRESSURE_VALUE, "The value that the level of back pressure comes from.");
        let readings = Arc::clone(&self.readings);
        scope.spawn_until_ended(async move {
            loop {
                let (dir, readings) = (spool_dir.clone(), Arc::clone(&readings));
                run_blocking(move || readings.read(&dir, plenty)).await;
                tokio::time::sleep(POLL).await;
            }
        });
        let pressure = Arc::clone(&self.pressure);
        scope.spawn_until_ended(probe_while_slow(pressure, spool));
    }

    /// Takes the newest values. Answers what is short, in words.
    pub(super) fn assess(&self, settings: &PressureSettings, spool: &Spool, queued: usize) -> Option<String> {
        let mut pressure = self.pressure.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in Resource::ALL {
            let value = match resource {
                Resource::DiskSpace => self.readings.disk_space.load(Ordering::Relaxed),
                Resource::Inodes => self.readings.inodes.load(Ordering::Relaxed),
                Resource::Memory => self.readings.memory.load(Ordering::Relaxed),
                Resource::QueueLength => queued as u64,
                Resource::CommitLatency => spool.commit_latency_ms(),
            };
            if let Some(flip) = pressure.observe(settings, resource, value) {
                tell(flip);
            }
            publish(resource, pressure.of(resource));
        }
        pressure.trouble()
    }

    /// Which resource is too short for another letter, in words.
    pub(super) fn shortage(&self) -> Option<String> {
        let pressure = self.pressure.lock().unwrap_or_else(PoisonError::into_inner);
        (pressure.worst().0 == Level::High).then(|| pressure.trouble()).flatten()
    }
}

fn publish(resource: Resource, (level, value): (Level, u64)) {
    let level = match level {
        Level::Low => 0.0,
        Level::Medium => 1.0,
        Level::High => 2.0,
    };
    gauge!(PRESSURE_LEVEL, "resource" => resource.as_str()).set(level);
    gauge!(PRESSURE_VALUE, "resource" => resource.as_str()).set(value as f64);
}

fn tell(flip: PressureFlip) {
    let PressureFlip { resource, from, to, value } = flip;
    let (resource, from, level) = (resource.as_str(), from.as_str(), to.as_str());
    if to == Level::Low {
        tracing::info!(resource, value, from, level, "back pressure changed");
    } else {
        tracing::warn!(resource, value, from, level, "back pressure changed");
    }
}

/// A node that is out of rotation because its disk was slow commits nothing, and would never see that it has become
/// quick again.
async fn probe_while_slow(pressure: Arc<Mutex<Pressure>>, spool: Spool) {
    loop {
        tokio::time::sleep(POLL).await;
        let level = pressure.lock().unwrap_or_else(PoisonError::into_inner).of(Resource::CommitLatency).0;
        if level > Level::Low {
            // A failure is the spool's to tell, and a write that hangs is seen by its age.
            let _ = tokio::time::timeout(PROBE_TIMEOUT, spool.probe()).await;
        }
    }
}

impl Readings {
    /// Blocking. With `plenty` bytes free, disk space is no trouble.
    fn read(&self, dir: &std::path::Path, plenty: u64) {
        if let Ok(disk) = rustix::fs::statvfs(dir) {
            // As df says it: what only root may use counts as used.
            let used = disk.f_blocks.saturating_sub(disk.f_bfree);
            let is_plenty = disk.f_bavail.saturating_mul(disk.f_frsize) >= plenty;
            let share = if is_plenty { 0 } else { percent(used, used.saturating_add(disk.f_bavail)) };
            self.disk_space.store(share, Ordering::Relaxed);
            let used = disk.f_files.saturating_sub(disk.f_ffree);
            // A file system without a table of inodes says 0.
            self.inodes.store(percent(used, disk.f_files), Ordering::Relaxed);
        }
        if let (Some(own), Some(all)) = (resident_bytes(), memory_bytes()) {
            self.memory.store(percent(own, all), Ordering::Relaxed);
        }
    }
}

fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { u64::try_from(u128::from(part) * 100 / u128::from(whole)).unwrap_or(100) }
}

/// proc(5): `VmRSS` of `status`.
fn resident_bytes() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = rest.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(number.saturating_mul(1024))
}

/// The memory that this process may use: the machine's, or less where a control group says so (cgroups(7)).
fn memory_bytes() -> Option<u64> {
    let total = kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")?;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    Some(limit.map_or(total, |limit: u64| limit.min(total)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn this_machine_can_be_read() {
        let readings = Readings::default();
        readings.read(std::path::Path::new("/"), u64::MAX);
        assert!((1..=100).contains(&readings.disk_space.load(Ordering::Relaxed)));
        readings.read(std::path::Path::new("/"), 1);
        assert_eq!(readings.disk_space.load(Ordering::Relaxed), 0, "a byte is plenty");
        assert!(readings.inodes.load(Ordering::Relaxed) <= 100);
        assert!(resident_bytes().unwrap() > 1_000_000 && resident_bytes().unwrap() < memory_bytes().unwrap());
    }

    #[test]
    fn percent_is_of_the_whole_and_never_divides_by_nothing() {
        assert_eq!([percent(1, 3), percent(3, 3), percent(5, 0), percent(u64::MAX, u64::MAX)], [33, 100, 0, 100]);
    }
}
