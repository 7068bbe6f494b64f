//! Devices that never retry, many at once: one connection for each letter, at a steady pace, until they are stopped.

use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::device::{Device, Outcome};
use crate::ledger::Ledger;

/// Each device sends a letter so often.
const PACE: Duration = Duration::from_millis(500);

/// A letter that was not taken.
pub struct Failed {
    pub id: String,
    pub outcome: Outcome,
    pub from: Instant,
    pub to: Instant,
}

/// What became of the letters.
#[derive(Default)]
pub struct Tally {
    pub tried: AtomicUsize,
    pub ledger: Mutex<Ledger>,
    pub failed: Mutex<Vec<Failed>>,
}

impl Tally {
    /// Sends from addresses in 10.98.31.0/24 until `stop`.
    pub fn storm(&self, devices: usize, target: SocketAddr, stop: &AtomicBool) {
        std::thread::scope(|scope| {
            for first in 0..devices {
                scope.spawn(move || {
                    // Spread over the pace, and never catching up: a device that was held up has sent fewer letters.
                    std::thread::sleep(PACE * first as u32 / devices as u32);
                    while !stop.load(Ordering::SeqCst) {
                        let from = Instant::now();
                        self.send(target, from);
                        std::thread::sleep(PACE.saturating_sub(from.elapsed()));
                    }
                });
            }
        });
    }

    fn send(&self, target: SocketAddr, from: Instant) {
        let number = self.tried.fetch_add(1, Ordering::SeqCst);
        let id = format!("storm-{number}");
        let source: IpAddr = [10, 98, 31, 1 + (number % 250) as u8].into();
        match (Device { source, target }).send(&id, "x@partner.example") {
            Outcome::Promised(_) => self.ledger.lock().unwrap().promise(id),
            outcome => self.failed.lock().unwrap().push(Failed { id, outcome, from, to: Instant::now() }),
        }
    }
}

/// Says stop when forgotten, also by a panic: a scope waits for its threads.
pub struct OnDrop<'a>(pub &'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
