//! A disk of the test's own: a file with ext4 in it, mounted through a loop device. It can be filled, frozen and
//! broken as real ones are. Needs root.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::netns::{need_root, run};

/// Unmounted when forgotten.
pub struct Disk {
    dir: TempDir,
}

/// Every directory of ours is called `posthouse-disk-PID-…`.
pub(crate) const PREFIX: &str = "posthouse-disk-";

impl Disk {
    /// A disk of so many MiB. Forget it after whoever writes to it.
    #[track_caller]
    pub fn new(mib: u32) -> Self {
        need_root();
        remove_leftovers();
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let disk = Self { dir: tempfile::Builder::new().prefix(&prefix).tempdir().unwrap() };
        std::fs::create_dir(disk.path()).unwrap();
        let image = disk.image();
        run("truncate", &["-s", &format!("{mib}M"), &image]);
        run("mkfs.ext4", &["-q", "-F", "-m", "0", &image]);
        disk.mount();
        disk
    }

    fn image(&self) -> String {
        self.dir.path().join("image").display().to_string()
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    fn mount(&self) {
        let path = self.path().display().to_string();
        run("mount", &["-o", "loop,errors=remount-ro", &self.image(), &path]);
    }

    /// Fills it to the last block; answers the file that does.
    pub fn fill(&self) -> PathBuf {
        fill(&self.path())
    }

    /// Every write and sync hangs from now on, until it is thawed.
    pub fn freeze(&self) {
        run("fsfreeze", &["--freeze", &self.path().display().to_string()]);
    }

    /// Ends that.
    pub fn thaw(&self) {
        run("fsfreeze", &["--unfreeze", &self.path().display().to_string()]);
    }

    /// The kernel finds an error in it, and mounts it read-only, as it does with a disk that goes bad.
    pub fn fail(&self) {
        fail(&self.path());
    }

    /// Checked and mounted anew. Nobody may be using it.
    pub fn repair(&self) {
        run("umount", &[&self.path().display().to_string()]);
        // 1 says that there was something to mend.
        let _ = Command::new("e2fsck").args(["-p", "-f", &self.image()]).stdout(Stdio::null()).status();
        self.mount();
    }
}

/// Fills a file system of the test's own; answers the file that does.
pub(crate) fn fill(mount: &Path) -> PathBuf {
    let path = mount.join("filler");
    let found = rustix::fs::statvfs(mount).unwrap();
    let free = (found.f_bavail * found.f_frsize).to_string();
    // Allocated, not written: a disk is full at once.
    let _ = Command::new("fallocate").args(["-l", &free]).arg(&path).stderr(Stdio::null()).status();
    path
}

/// Makes the kernel find an error in an ext4 of the test's own.
pub(crate) fn fail(mount: &Path) {
    let device = run("findmnt", &["--noheadings", "--output", "SOURCE", &mount.display().to_string()]);
    let device = Path::new(device.trim()).file_name().unwrap().to_string_lossy().into_owned();
    std::fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "the test says so").unwrap();
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.path());
    }
}

pub(crate) fn unmount(path: &Path) {
    // One that a failed test left frozen cannot be let go of.
    let _ = Command::new("fsfreeze").arg("--unfreeze").arg(path).stderr(Stdio::null()).status();
    let _ = Command::new("umount").arg("--lazy").arg(path).stderr(Stdio::null()).status();
}

/// Removes the disks of test processes that are gone.
pub(crate) fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            unmount(&entry.path().join("mount"));
            // What a disk of `power` lies on.
            unmount(&entry.path().join("platter"));
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
