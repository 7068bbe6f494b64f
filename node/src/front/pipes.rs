//! Pipes for `splice(2)`, kept per worker thread: bytes that go from socket to socket through a pipe are never copied
//! into the process. A session borrows one only while a stream of bytes moves and gives it back empty.

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// One call moves at most so much: what the pipe holds. The kernel's budget for pipes is 64 MiB per user
/// (`fs.pipe-user-pages-soft`), and more than a megabyte did not make streams faster.
pub(super) const PIPE_BYTES: usize = 1 << 20;
/// Pipes that a thread keeps while nobody uses them.
const KEPT_MAX: usize = 16;

thread_local! {
    static KEPT: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// An empty pipe.
#[derive(Debug)]
pub(super) struct Pipe {
    pub read: OwnedFd,
    pub write: OwnedFd,
}

impl Pipe {
    /// One that this thread kept, or a new one; nothing when there are too many open files: copying goes on without.
    pub(super) fn borrow() -> Option<Self> {
        KEPT.with_borrow_mut(Vec::pop).or_else(|| {
            let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
            // Above the user's budget the kernel refuses, and the pipe keeps its 64 KiB (pipe(7)): slower, not wrong.
            let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
            Some(Self { read, write })
        })
    }

    /// Takes an *empty* pipe back.
    pub(super) fn give_back(self) {
        KEPT.with_borrow_mut(|kept| {
            if kept.len() < KEPT_MAX {
                kept.push(self);
            }
        });
    }

    /// How many pipes this thread keeps.
    #[cfg(test)]
    pub(super) fn kept() -> usize {
        KEPT.with_borrow(Vec::len)
    }
}
