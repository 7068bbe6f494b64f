//! Dialogues as they happen, for whoever listens. Sessions never wait for a listener: one that is slow loses lines, and
//! is told how many.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::record::Record;

/// Who may listen at once: each of them costs the sessions that it hears.
const LISTENERS_MAX: usize = 16;
/// Lines that may wait for a listener.
const WAITING_MAX: usize = 1024;

/// Everybody who listens at this node. Clones share them.
#[derive(Clone, Default)]
pub struct Live(Arc<Shared>);

#[derive(Default)]
struct Shared {
    ears: Mutex<Vec<Arc<Ear>>>,
    /// Changes when somebody comes or goes.
    generation: AtomicU64,
}

/// Whose sessions a listener wants to hear.
type Wants = dyn Fn(IpAddr) -> bool + Send + Sync;

/// A listener as sessions see it.
pub(super) struct Ear {
    wants: Box<Wants>,
    lines: mpsc::Sender<Heard>,
    lost: AtomicU64,
}

/// What a listener hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A line.
    Record(Record),
    /// So many lines were lost here: the listener was too slow.
    Lost(u64),
}

/// Hears what the sessions that it wants say and are told, from now on.
pub struct Listener {
    live: Live,
    ear: Arc<Ear>,
    lines: mpsc::Receiver<Heard>,
}

impl Live {
    /// Listens to the sessions of devices that `wants` names. `None`: too many listen already.
    #[must_use]
    pub fn listen(&self, wants: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Option<Listener> {
        let (sender, lines) = mpsc::channel(WAITING_MAX);
        let ear = Arc::new(Ear { wants: Box::new(wants), lines: sender, lost: AtomicU64::new(0) });
        let mut ears = self.ears();
        if ears.len() >= LISTENERS_MAX {
            return None;
        }
        ears.push(Arc::clone(&ear));
        drop(ears);
        self.0.generation.fetch_add(1, Ordering::Release);
        Some(Listener { live: self.clone(), ear, lines })
    }

    /// Which listeners there are: another number after each change. What a session asks at every line.
    pub(super) fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Those who want to hear a device.
    pub(super) fn ears_for(&self, source: IpAddr) -> Vec<Arc<Ear>> {
        self.ears().iter().filter(|ear| (ear.wants)(source)).cloned().collect()
    }

    fn ears(&self) -> MutexGuard<'_, Vec<Arc<Ear>>> {
        self.0.ears.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ear {
    /// Tells a line, or counts it as lost.
    pub(super) fn tell(&self, record: Record) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 && self.lines.try_send(Heard::Lost(lost)).is_err() {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        } else if self.lines.try_send(Heard::Record(record)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Listener {
    /// The next line.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> Heard {
        match self.lines.try_recv() {
            Ok(heard) => return heard,
            // Nothing waits, and nothing more may come: what was lost is told now.
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => match self.ear.lost.swap(0, Ordering::Relaxed) {
                0 => {}
                lost => return Heard::Lost(lost),
            },
        }
        match self.lines.recv().await {
            Some(heard) => heard,
            // We hold a sender ourselves.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.live.ears().retain(|ear| !Arc::ptr_eq(ear, &self.ear));
        self.live.0.generation.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::protocol_log::Event;

    fn record(sequence: u64) -> Record {
        Record {
            at_ms: 0,
            connector_id: "n1\\printers".to_owned(),
            session_id: "0A1B".to_owned(),
            sequence,
            local: "10.0.0.1:25".parse().unwrap(),
            remote: "10.1.2.3:55171".parse().unwrap(),
            event: Event::Receive,
            data: "NOOP".to_owned(),
            context: String::new(),
        }
    }

    #[tokio::test]
    async fn a_listener_that_is_slow_loses_lines_and_hears_how_many() {
        let live = Live::default();
        let mut listener = live.listen(|_| true).unwrap();
        let ear = live.ears_for("10.1.2.3".parse().unwrap()).remove(0);
        let told = WAITING_MAX as u64 + 10;
        (0..told).for_each(|sequence| ear.tell(record(sequence)));
        for sequence in 0..WAITING_MAX as u64 {
            assert_eq!(listener.next().await, Heard::Record(record(sequence)));
        }
        assert_eq!(listener.next().await, Heard::Lost(10), "also when nothing more comes");
        (0..told).for_each(|sequence| ear.tell(record(sequence)));
        listener.next().await;
        listener.next().await;
        ear.tell(record(9_999));
        for _ in 2..WAITING_MAX {
            listener.next().await;
        }
        assert_eq!(listener.next().await, Heard::Lost(10), "where they are missing");
        assert_eq!(listener.next().await, Heard::Record(record(9_999)));
    }

    #[test]
    fn listeners_hear_what_they_want_and_there_is_a_limit() {
        let live = Live::default();
        let wanted: IpAddr = "10.0.0.1".parse().unwrap();
        let before = live.generation();
        let mut listeners: Vec<_> = (0..LISTENERS_MAX).map(|_| live.listen(move |ip| ip == wanted).unwrap()).collect();
        assert!(live.listen(|_| true).is_none());
        assert_ne!(live.generation(), before);
        assert_eq!((live.ears_for(wanted).len(), live.ears_for("10.0.0.2".parse().unwrap()).len()), (LISTENERS_MAX, 0));
        listeners.clear();
        assert!(live.ears_for(wanted).is_empty());
        assert!(live.listen(|_| true).is_some());
    }
}
