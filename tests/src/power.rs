//! A disk whose power can be cut. It is ext4 in a file of another ext4; the outer one is the hardware: what was written
//! to the file and not flushed is in its page cache, as in the volatile cache of a drive, and a cut shuts the outer file
//! system down without writing anything (the kernel's `EXT4_IOC_SHUTDOWN`, as xfstests cuts the power). So both caches
//! are lost: the kernel's over the inner file system, and the drive's under it. Needs root.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::disk::{PREFIX, fail, fill, remove_leftovers, unmount};
use crate::netns::{need_root, run};
use crate::wait::until;

/// Takes the power of the file system at `argv[1]`: 0x8004587D is `EXT4_IOC_SHUTDOWN`, 2 says not to flush the journal.
const CUT: &str = "import fcntl,os,struct,sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";

/// Unmounted when forgotten.
pub struct PoweredDisk {
    dir: TempDir,
}

impl PoweredDisk {
    /// A disk of so many MiB. Forget it after whoever writes to it.
    #[track_caller]
    pub fn new(mib: u32) -> Self {
        need_root();
        remove_leftovers();
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let disk = Self { dir: tempfile::Builder::new().prefix(&prefix).tempdir().unwrap() };
        std::fs::create_dir(disk.path()).unwrap();
        std::fs::create_dir(disk.platter()).unwrap();
        let image = disk.dir.path().join("image").display().to_string();
        run("truncate", &["-s", &format!("{}M", mib + 64 + mib / 8), &image]);
        run("mkfs.ext4", &["-q", "-F", "-m", "0", &image]);
        run("mount", &["-o", "loop", &image, &disk.platter().display().to_string()]);
        // Written, not only allocated: a drive overwrites its sectors in place.
        let drive = disk.drive();
        run("dd", &["if=/dev/zero", &format!("of={drive}"), "bs=1M", &format!("count={mib}"), "status=none"]);
        run("mkfs.ext4", &["-q", "-F", "-m", "0", &drive]);
        run("sync", &["-f", &drive]);
        disk.mount();
        disk
    }

    fn platter(&self) -> PathBuf {
        self.dir.path().join("platter")
    }

    fn drive(&self) -> String {
        self.platter().join("drive").display().to_string()
    }

    fn mount(&self) {
        run("mount", &["-o", "loop,errors=remount-ro", &self.drive(), &self.path().display().to_string()]);
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    /// Fills it to the last block; answers the file that does.
    pub fn fill(&self) -> PathBuf {
        fill(&self.path())
    }

    /// The kernel finds an error in it, and mounts it read-only, as it does with a disk that goes bad.
    pub fn fail(&self) {
        fail(&self.path());
    }

    /// Nothing reaches the disk from now on. Every write and sync fails until [`PoweredDisk::restore`].
    pub fn cut(&self) {
        run("python3", &["-c", CUT, &self.platter().display().to_string()]);
    }

    /// The power is back: both journals are replayed. Nobody may be using it.
    pub fn restore(&self) {
        let image = self.dir.path().join("image").display().to_string();
        for path in [self.path(), self.platter()] {
            let path = path.display().to_string();
            // The loop device of the one above is let go of a moment after its file system.
            until(Duration::from_secs(20), &format!("{path} is unmounted"), || {
                let unmounted = Command::new("umount").arg(&path).stderr(Stdio::null()).status();
                (unmounted.is_ok_and(|status| status.success()) || !is_mounted(&path)).then_some(())
            });
        }
        run("mount", &["-o", "loop", &image, &self.platter().display().to_string()]);
        // Mends what the kernel noted as an error; 1 says that there was something to mend.
        let _ = Command::new("e2fsck").args(["-p", &self.drive()]).stdout(Stdio::null()).status();
        self.mount();
    }
}

fn is_mounted(path: &str) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(path))
}

impl Drop for PoweredDisk {
    fn drop(&mut self) {
        unmount(&self.path());
        unmount(&self.platter());
    }
}

/// The library that makes every sync succeed without doing anything, as Debian's package `eatmydata` has it.
///
/// # Panics
/// When it is not installed.
#[track_caller]
pub fn eat_my_data() -> PathBuf {
    let said = run(
        "sh",
        &["-c", "dpkg -L libeatmydata1 2>/dev/null || ls /usr/lib*/libeatmydata.so* /usr/lib/*/libeatmydata.so*"],
    );
    let found = said.lines().find(|line| line.ends_with("/libeatmydata.so") || line.ends_with("/libeatmydata.so.1"));
    Path::new(found.expect("tests/run.sh installs eatmydata")).to_owned()
}
