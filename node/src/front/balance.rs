//! Which backend takes the next connection: pure. The best standing that anybody has is chosen among; when nobody is
//! well the least sick is tried all the same (the panic floor), because a device that never retries loses nothing by
//! an attempt. A draining backend is never chosen.

use serde::Deserialize;

use super::backend::Standing;

/// How to choose among equals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// The one with the fewest sessions for its weight; among those, in turn.
    #[default]
    LeastConnections,
    /// In turn, as often as its weight says.
    RoundRobin,
}

/// One backend as the balance sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// How it stands.
    pub standing: Standing,
    /// At least 1.
    pub weight: u32,
    /// Sessions through this front, attempts included.
    pub sessions: usize,
    /// This device was offered to it already.
    pub tried: bool,
}

/// Picks an index. `turn` is a number that grows by one with each connection of a device.
pub(super) fn pick(algorithm: Algorithm, candidates: &[Candidate], turn: usize) -> Option<usize> {
    let open = |candidate: &&Candidate| !candidate.tried && candidate.standing != Standing::Draining;
    let best = candidates.iter().filter(open).map(|candidate| candidate.standing).min()?;
    let among: Vec<usize> = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| open(candidate) && candidate.standing == best)
        .map(|(index, _)| index)
        .collect();
    match algorithm {
        Algorithm::LeastConnections => {
            // Starting at another place each time makes equals take turns: the minimum is the first of its kind.
            let start = turn % among.len();
            let (before, from) = among.split_at(start);
            from.iter().chain(before).copied().min_by(|left, right| {
                let (left, right) = (&candidates[*left], &candidates[*right]);
                // sessions / weight, compared without dividing.
                let load = |of: &Candidate, by: &Candidate| of.sessions as u128 * u128::from(by.weight.max(1));
                load(left, right).cmp(&load(right, left))
            })
        }
        Algorithm::RoundRobin => {
            let total: usize = among.iter().map(|index| candidates[*index].weight.max(1) as usize).sum();
            let mut left = turn % total;
            among.into_iter().find(|index| {
                let weight = candidates[*index].weight.max(1) as usize;
                let is_it = left < weight;
                left = left.saturating_sub(weight);
                is_it
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(standing: Standing, sessions: usize) -> Candidate {
        Candidate { standing, weight: 1, sessions, tried: false }
    }

    fn least(candidates: &[Candidate]) -> Option<usize> {
        pick(Algorithm::LeastConnections, candidates, 0)
    }

    #[test]
    fn the_least_loaded_is_chosen_and_equals_take_turns() {
        use Standing::Eligible;
        assert_eq!(least(&[backend(Eligible, 3), backend(Eligible, 1), backend(Eligible, 2)]), Some(1));
        let equal = [backend(Eligible, 0), backend(Eligible, 0), backend(Eligible, 0)];
        let turns: Vec<_> = (0..6).map(|turn| pick(Algorithm::LeastConnections, &equal, turn)).collect();
        assert_eq!(turns, [Some(0), Some(1), Some(2), Some(0), Some(1), Some(2)]);
        let heavy = Candidate { weight: 4, ..backend(Eligible, 3) };
        assert_eq!(least(&[backend(Eligible, 1), heavy]), Some(1));
    }

    #[test]
    fn round_robin_follows_the_weights() {
        let heavy = Candidate { weight: 2, ..backend(Standing::Eligible, 100) };
        let two = [heavy, backend(Standing::Eligible, 0)];
        let turns: Vec<_> = (0..6).map(|turn| pick(Algorithm::RoundRobin, &two, turn)).collect();
        assert_eq!(turns, [Some(0), Some(0), Some(1), Some(0), Some(0), Some(1)]);
    }

    #[test]
    fn a_better_standing_wins_whatever_the_load() {
        use Standing::{Down, Draining, Eligible, Leaderless, NotReady};
        let order = [Eligible, Leaderless, NotReady, Down { failures: 1 }, Down { failures: 9 }];
        for pair in order.windows(2) {
            assert_eq!(least(&[backend(pair[1], 0), backend(pair[0], 1_000)]), Some(1), "{pair:?}");
        }
        assert_eq!(least(&[backend(Draining, 0), backend(Down { failures: 9 }, 1_000)]), Some(1));
    }

    #[test]
    fn draining_is_never_chosen_and_nobody_is_tried_twice() {
        assert_eq!(least(&[backend(Standing::Draining, 0)]), None);
        assert_eq!(least(&[]), None);
        let tried = Candidate { tried: true, ..backend(Standing::Eligible, 0) };
        assert_eq!(least(&[tried]), None);
        assert_eq!(least(&[tried, backend(Standing::Down { failures: 3 }, 0)]), Some(1));
    }
}
