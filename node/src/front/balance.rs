//! Which backend takes the next connection: pure. The best standing that anybody has is chosen among; when nobody is
//! well the least sick is tried all the same (the panic floor), because a device that never retries loses nothing by
//! an attempt. One that drains, or says that it would refuse, is never chosen.

use std::net::IpAddr;

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
    /// The same device goes to the same backend, as long as that one is well; when one leaves, only its own devices
    /// move.
    SourceHash,
}

/// One backend as the balance sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// How it stands.
    pub standing: Standing,
    /// Its share, at least 1: its weight, scaled by its slow start.
    pub weight: u32,
    /// Sessions through this front, attempts included.
    pub sessions: usize,
    /// This device was offered to it already.
    pub tried: bool,
    /// Hash of the device's address and the backend's name; see [`affinity`].
    pub affinity: u64,
}

/// Picks an index. `turn` is a number that grows by one with each connection of a device.
pub(super) fn pick(algorithm: Algorithm, candidates: &[Candidate], turn: usize) -> Option<usize> {
    let open = |candidate: &&Candidate| !candidate.tried && candidate.standing.is_usable();
    let best = candidates.iter().filter(open).map(|candidate| candidate.standing).min()?;
    let among: Vec<usize> = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| open(candidate) && candidate.standing == best)
        .map(|(index, _)| index)
        .collect();
    match algorithm {
        Algorithm::LeastConnections => {
            // sessions / weight, compared without dividing.
            let load =
                |of: usize, by: usize| candidates[of].sessions as u128 * u128::from(candidates[by].weight.max(1));
            let least = among
                .iter()
                .copied()
                .reduce(|least, next| if load(next, least) < load(least, next) { next } else { least })?;
            let equals: Vec<usize> =
                among.into_iter().filter(|index| load(*index, least) == load(least, *index)).collect();
            in_turn(candidates, &equals, turn)
        }
        Algorithm::RoundRobin => in_turn(candidates, &among, turn),
        Algorithm::SourceHash => {
            among.into_iter().max_by(|left, right| score(&candidates[*left]).total_cmp(&score(&candidates[*right])))
        }
    }
}

/// Each of `among` as often as its weight says.
fn in_turn(candidates: &[Candidate], among: &[usize], turn: usize) -> Option<usize> {
    let weight = |index: usize| candidates[index].weight.max(1) as usize;
    // Equal weights of any size are turns of one.
    let unit = among.iter().map(|index| weight(*index)).reduce(gcd)?;
    let total: usize = among.iter().map(|index| weight(*index) / unit).sum();
    let mut left = place(turn, total);
    among.iter().copied().find(|index| {
        let share = weight(*index) / unit;
        let is_it = left < share;
        left = left.saturating_sub(share);
        is_it
    })
}

fn gcd(left: usize, right: usize) -> usize {
    if right == 0 { left } else { gcd(right, left % right) }
}

/// Where a turn falls in a round of `total`. Long rounds are gone through in steps of the golden section, so that a
/// backend with a large share does not get all of it in a row.
fn place(turn: usize, total: usize) -> usize {
    const SHORT: usize = 8;
    const GOLDEN: u32 = 2_654_435_769;
    if total <= SHORT {
        return turn % total.max(1);
    }
    let fraction = u64::from((turn as u32).wrapping_mul(GOLDEN));
    ((fraction * total as u64) >> 32) as usize
}

/// Weighted rendezvous hashing: each backend's chance to have the highest score is its share of the weights.
fn score(candidate: &Candidate) -> f64 {
    // 53 bits, never 0 and never 1.
    let unit = ((candidate.affinity >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -f64::from(candidate.weight.max(1)) / unit.ln()
}

/// Hash of a device and a backend, the same on every front and after every restart (FNV-1a, then mixed).
pub(super) fn affinity(source: IpAddr, backend: &str) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut add = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    match source.to_canonical() {
        IpAddr::V4(v4) => v4.octets().into_iter().for_each(&mut add),
        IpAddr::V6(v6) => v6.octets().into_iter().for_each(&mut add),
    }
    backend.bytes().for_each(&mut add);
    // splitmix64's finish: FNV alone leaves the high bits to the last bytes.
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(standing: Standing, sessions: usize) -> Candidate {
        Candidate { standing, weight: 1, sessions, tried: false, affinity: 0 }
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
    fn idle_backends_take_turns_by_their_weights_also_when_one_of_them_starts_slowly() {
        let slow = Candidate { weight: 10, ..backend(Standing::Eligible, 0) };
        let full = Candidate { weight: 100, ..backend(Standing::Eligible, 0) };
        let mut counts = [0usize; 3];
        let mut run = (0, 0);
        for turn in 0..2100 {
            let index = pick(Algorithm::LeastConnections, &[slow, full, full], turn).unwrap_or(0);
            counts[index] += 1;
            run = if run.0 == index { (index, run.1 + 1) } else { (index, 1) };
            assert!(run.1 < 6, "{} in a row for one backend", run.1);
        }
        assert!((80..=120).contains(&counts[0]) && counts[1].abs_diff(counts[2]) < 60, "{counts:?}");
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
        use Standing::{Down, Eligible, Leaderless, NotReady, Unheard};
        let order = [Eligible, Leaderless, Unheard, NotReady, Down { failures: 1 }, Down { failures: 9 }];
        for pair in order.windows(2) {
            assert_eq!(least(&[backend(pair[1], 0), backend(pair[0], 1_000)]), Some(1), "{pair:?}");
        }
    }

    #[test]
    fn draining_and_refusing_are_never_chosen_and_nobody_is_tried_twice() {
        for never in [Standing::Draining, Standing::Refusing] {
            assert_eq!(least(&[backend(never, 0)]), None);
            assert_eq!(least(&[backend(never, 0), backend(Standing::Down { failures: 9 }, 1_000)]), Some(1));
        }
        assert_eq!(least(&[]), None);
        let tried = Candidate { tried: true, ..backend(Standing::Eligible, 0) };
        assert_eq!(least(&[tried]), None);
        assert_eq!(least(&[tried, backend(Standing::Down { failures: 3 }, 0)]), Some(1));
    }

    fn hashed(device: u32, backends: &[(&str, u32)]) -> usize {
        let source = IpAddr::from(device.to_be_bytes());
        let candidates: Vec<_> = backends
            .iter()
            .map(|(name, weight)| Candidate {
                weight: *weight,
                affinity: affinity(source, name),
                ..backend(Standing::Eligible, device as usize % 7)
            })
            .collect();
        pick(Algorithm::SourceHash, &candidates, device as usize).unwrap_or(usize::MAX)
    }

    #[test]
    fn a_device_stays_with_its_backend_and_only_the_devices_of_one_that_leaves_move() {
        let (three, two) = ([("n1", 1), ("n2", 1), ("n3", 1)], [("n1", 1), ("n3", 1)]);
        let mut counts = [0usize; 3];
        for device in 0x0a00_0000..0x0a00_0000 + 3000u32 {
            let before = hashed(device, &three);
            counts[before] += 1;
            assert_eq!(hashed(device, &three), before, "whatever the turn and the load");
            let after = ["n1", "n3"][hashed(device, &two)];
            if three[before].0 != "n2" {
                assert_eq!(after, three[before].0, "the device of a backend that stayed has moved");
            }
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn source_hash_follows_the_weights() {
        let heavy = (0..3000u32).filter(|device| hashed(*device, &[("n1", 1), ("n2", 2)]) == 1).count();
        assert!((1850..2150).contains(&heavy), "{heavy} of 3000");
    }
}
