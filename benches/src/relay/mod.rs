//! Letters through a relay: a generator before it, a sink behind it, both in this process; the relay is a process of
//! its own, and its processor time is read from `/proc`. Peers: Postfix, and a bare log-and-forward loop with the same
//! sync promise, which is the honest ceiling.

pub mod generator;
pub mod process;
pub mod reference;
pub mod relays;
pub mod sink;
mod wire;

/// What one run found.
#[derive(Clone, Debug)]
pub struct Run {
    /// Letters answered `250` per second.
    pub accepted: f64,
    /// Letters at the sink per second, from the first command to the last arrival.
    pub delivered: f64,
    /// From `MAIL` to the last `250`, in milliseconds.
    pub p50_ms: f64,
    /// The same of the slowest hundredth.
    pub p99_ms: f64,
    /// Processor time of the relay's processes for one letter, in milliseconds.
    pub cpu_ms: f64,
    /// Letters that were answered `250` and did not arrive.
    pub lost: u64,
    /// Letters that arrived twice.
    pub doubled: u64,
}

/// The middle of several runs, by each figure on its own; losses add up.
#[must_use]
pub fn median(runs: &[Run]) -> Run {
    let of = |figure: fn(&Run) -> f64| {
        let mut all: Vec<f64> = runs.iter().map(figure).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    };
    Run {
        accepted: of(|run| run.accepted),
        delivered: of(|run| run.delivered),
        p50_ms: of(|run| run.p50_ms),
        p99_ms: of(|run| run.p99_ms),
        cpu_ms: of(|run| run.cpu_ms),
        lost: runs.iter().map(|run| run.lost).sum(),
        doubled: runs.iter().map(|run| run.doubled).sum(),
    }
}
