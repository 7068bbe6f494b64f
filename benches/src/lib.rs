//! How measurements are made: two ways of doing the same work, in one process, alternating, several rounds, and the
//! ratio of their medians. Absolute times on shared machines mean little.
#![forbid(unsafe_code)]

#[expect(clippy::disallowed_methods, reason = "a measurement ends with its process; nothing here must be drained")]
pub mod proxy;
#[expect(clippy::disallowed_methods, reason = "a measurement ends with its process; nothing here must be drained")]
pub mod relay;
pub mod session;

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Rounds of each side; odd, so that there is a median.
const ROUNDS: usize = 9;

/// Medians of two sides that did the same work.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Ours.
    pub ours: Duration,
    /// The peer's.
    pub peer: Duration,
}

impl Pair {
    /// Ours divided by the peer's: below 1 is faster.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.ours.as_secs_f64() / self.peer.as_secs_f64()
    }
}

/// Runs both sides, alternating, and answers the medians of one run each.
pub fn alternate<A, B>(mut ours: impl FnMut() -> A, mut peer: impl FnMut() -> B) -> Pair {
    let (mut a, mut b) = (Vec::with_capacity(ROUNDS), Vec::with_capacity(ROUNDS));
    for round in 0..=ROUNDS {
        let began = Instant::now();
        black_box(ours());
        let first = began.elapsed();
        let began = Instant::now();
        black_box(peer());
        let second = began.elapsed();
        // The first round only warms up.
        if round > 0 {
            a.push(first);
            b.push(second);
        }
    }
    a.sort_unstable();
    b.sort_unstable();
    Pair { ours: a[ROUNDS / 2], peer: b[ROUNDS / 2] }
}

/// A small generator of numbers, the same on every run.
pub struct Numbers(u64);

impl Numbers {
    /// From a seed that is not zero.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (xorshift64*).
    pub fn next_number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}
