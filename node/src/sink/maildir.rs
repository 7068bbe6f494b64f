//! Filing letters in a maildir: written in `tmp`, synced, then moved to `new`, so that whoever looks sees whole
//! letters only.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use crate::clock::now_ms;
use crate::mail::{ForwardPath, ReversePath};

/// Where letters are filed.
pub(super) struct Maildir {
    root: PathBuf,
    next: AtomicU64,
}

/// A letter being written. Dropped unfinished, its temporary file is removed.
pub(super) struct Delivery {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    name: String,
    finished: bool,
}

impl Maildir {
    /// Makes what is missing of the maildir. Blocking.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        for part in ["tmp", "new", "cur"] {
            std::fs::create_dir_all(root.join(part))?;
        }
        Ok(Self { root: root.to_owned(), next: AtomicU64::new(0) })
    }

    /// Begins a letter; its envelope becomes its first lines.
    pub(super) async fn begin(
        &self,
        from: &ReversePath,
        to: impl Iterator<Item = &ForwardPath>,
    ) -> io::Result<Delivery> {
        // Unique among all processes of this machine: time, process, count.
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}.P{}Q{count}.sink", now_ms(), std::process::id());
        let temporary = self.root.join("tmp").join(&name);
        let file = File::create_new(&temporary).await?;
        let target = self.root.join("new").join(&name);
        let mut delivery = Delivery { file, temporary, target, name, finished: false };
        let sender = from.mailbox().map(ToString::to_string).unwrap_or_default();
        let mut lines = format!("X-Envelope-From: <{sender}>\r\n");
        for path in to {
            lines.push_str(&format!("X-Envelope-To: <{path}>\r\n"));
        }
        delivery.write(lines.as_bytes()).await?;
        Ok(delivery)
    }
}

impl Delivery {
    /// Adds bytes.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).await
    }

    /// Makes the letter durable and visible. Answers its name.
    pub(super) async fn finish(mut self) -> io::Result<String> {
        self.file.flush().await?;
        self.file.sync_all().await?;
        tokio::fs::rename(&self.temporary, &self.target).await?;
        self.finished = true;
        Ok(std::mem::take(&mut self.name))
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.finished {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
