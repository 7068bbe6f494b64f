//! Sessions in which nobody says anything, found by one task that looks at all of them a few times in each limit. A
//! timer per session would cost more than its copying, and the memory of every idle one. The same task ends the
//! sessions of an address that has left this machine: a VIP that moved takes its devices along, no word of theirs
//! arrives here any more, and until TCP gives up each of them would count against its device on a node.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::sleep;
use tracing::info;

use crate::shutdown::Scope;

/// How often within the limit all sessions are looked at: a session ends after its limit and at most an eighth more.
const LOOKS: u32 = 8;
/// How often the addresses of sessions are looked for. An address that is gone at two looks in a row has left: one that
/// comes back sooner finds its sessions as they were.
const ADDRESS_INTERVAL: Duration = Duration::from_secs(1);

/// All sessions of a front.
#[derive(Debug)]
pub(super) struct Idle {
    interval: Duration,
    /// With the address of this machine that the device called.
    watched: Mutex<Vec<(IpAddr, Weak<Mark>)>>,
}

/// One session, as the sweep sees it.
#[derive(Debug)]
pub(super) struct Mark {
    has_moved: AtomicBool,
    is_over: AtomicBool,
    /// Looks in a row that saw nothing move.
    quiet: AtomicU32,
    /// So many are too many.
    quiet_max: AtomicU32,
    waker: AtomicWaker,
}

impl Idle {
    /// Sessions may be quiet for `limit`.
    pub(super) fn new(limit: Duration) -> Arc<Self> {
        Arc::new(Self { interval: limit / LOOKS, watched: Mutex::default() })
    }

    /// Watches one more session, at the address of this machine that the device called.
    pub(super) fn watch(&self, address: IpAddr) -> Arc<Mark> {
        let mark = Arc::new(Mark {
            has_moved: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            quiet: AtomicU32::new(0),
            // The look that comes right after the session began has not seen a whole interval.
            quiet_max: AtomicU32::new(LOOKS + 1),
            waker: AtomicWaker::new(),
        });
        self.watched().push((address, Arc::downgrade(&mark)));
        mark
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, Vec<(IpAddr, Weak<Mark>)>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at every session again and again, until `scope` ends.
    pub(super) async fn sweep(self: Arc<Self>, scope: Scope) {
        let quiet = async {
            loop {
                sleep(self.interval).await;
                self.look();
            }
        };
        let left = async {
            let mut gone = BTreeSet::new();
            loop {
                sleep(ADDRESS_INTERVAL).await;
                gone = self.look_for_addresses(&gone, is_here);
            }
        };
        tokio::select! {
            () = scope.ended() => {}
            () = async { tokio::join!(quiet, left); } => {}
        }
    }

    /// Ends the sessions of addresses that are not here now and were `gone` before. Answers those that are gone now.
    fn look_for_addresses(&self, gone: &BTreeSet<IpAddr>, is_here: fn(IpAddr) -> bool) -> BTreeSet<IpAddr> {
        let addresses: BTreeSet<IpAddr> = self.watched().iter().map(|(address, _)| *address).collect();
        let (left, new): (BTreeSet<_>, BTreeSet<_>) =
            addresses.into_iter().filter(|address| !is_here(*address)).partition(|address| gone.contains(address));
        if !left.is_empty() {
            let watched = self.watched();
            let over =
                watched.iter().filter(|(address, _)| left.contains(address)).filter_map(|(_, mark)| mark.upgrade());
            let count = over.map(|mark| mark.end()).count();
            info!(addresses = ?left, sessions = count, "an address left this machine: its sessions are ended");
        }
        &left | &new
    }

    fn look(&self) {
        let mut watched = self.watched();
        watched.retain(|(_, mark)| {
            let Some(mark) = mark.upgrade() else { return false };
            mark.look();
            true
        });
        // A flood that is over should not keep its memory.
        if watched.capacity() > 64 && watched.capacity() / 4 > watched.len() {
            let len = watched.len();
            watched.shrink_to(len * 2);
        }
    }

    /// At most `limit` of quiet from now on, for a session that only has to finish.
    pub(super) fn hurry(&self, mark: &Mark, limit: Duration) {
        let looks = limit.as_nanos().div_ceil(self.interval.as_nanos().max(1));
        let looks = u32::try_from(looks).unwrap_or(LOOKS).clamp(1, LOOKS) + 1;
        mark.quiet.store(0, Ordering::Relaxed);
        mark.quiet_max.fetch_min(looks, Ordering::Relaxed);
    }
}

impl Mark {
    /// Something moved.
    pub(super) fn moved(&self) {
        self.has_moved.store(true, Ordering::Relaxed);
    }

    fn look(&self) {
        if self.has_moved.swap(false, Ordering::Relaxed) {
            self.quiet.store(0, Ordering::Relaxed);
            return;
        }
        let quiet = self.quiet.fetch_add(1, Ordering::Relaxed) + 1;
        if quiet >= self.quiet_max.load(Ordering::Relaxed) {
            self.end();
        }
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Ready when the session was quiet for too long.
    pub(super) fn poll_over(&self, cx: &Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.is_over.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Whether an address is one of this machine's: only then can a socket have it. Whatever else goes wrong says nothing.
fn is_here(address: IpAddr) -> bool {
    let bound = UdpSocket::bind((address, 0));
    !bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    /// RFC 5737: nobody's.
    const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn sessions_of_an_address_that_left_end_and_others_do_not() {
        let idle = Idle::new(Duration::from_secs(8));
        let (stays, leaves) = (idle.watch(HERE), idle.watch(ELSEWHERE));
        let gone = idle.look_for_addresses(&BTreeSet::new(), is_here);
        assert!(gone.contains(&ELSEWHERE) && !leaves.is_over.load(Ordering::Relaxed), "not at the first look");
        assert!(idle.look_for_addresses(&gone, |_| true).is_empty(), "it came back");
        assert!(!leaves.is_over.load(Ordering::Relaxed));
        idle.look_for_addresses(&gone, is_here);
        assert!(leaves.is_over.load(Ordering::Relaxed) && !stays.is_over.load(Ordering::Relaxed));
    }

    #[test]
    fn a_session_is_over_after_its_limit_of_quiet_and_never_while_something_moves() {
        let idle = Idle::new(Duration::from_secs(8));
        let mark = idle.watch(HERE);
        for _ in 0..100 {
            mark.moved();
            idle.look();
        }
        for _ in 0..LOOKS {
            idle.look();
            assert!(!mark.is_over.load(Ordering::Relaxed));
        }
        idle.look();
        assert!(mark.is_over.load(Ordering::Relaxed));
    }

    #[test]
    fn a_session_that_only_has_to_finish_gets_less() {
        let idle = Idle::new(Duration::from_secs(800));
        let mark = idle.watch(HERE);
        idle.hurry(&mark, Duration::from_secs(30));
        idle.look();
        assert!(!mark.is_over.load(Ordering::Relaxed));
        idle.look();
        assert!(mark.is_over.load(Ordering::Relaxed));
    }

    #[test]
    fn sessions_that_ended_are_forgotten() {
        let idle = Idle::new(Duration::from_secs(8));
        drop(idle.watch(HERE));
        idle.look();
        assert!(idle.watched().is_empty());
    }
}
