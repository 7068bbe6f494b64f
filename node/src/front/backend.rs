//! Is a backend well: pure counting. Results of checks and of real connections go in; out comes whether the backend
//! *flipped*, and how it stands among the others. Being well, being ready and being wanted are different facts: the
//! first comes from checks, the second from the node itself, the third from the cluster.

/// How many results in a row change a mind.
#[derive(Clone, Copy, Debug)]
pub(super) struct CheckPolicy {
    /// Successes until up.
    pub rise: u32,
    /// Failures until down.
    pub fall: u32,
}

/// A backend turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flip {
    /// It passed `rise` checks.
    Up,
    /// It failed `fall` times.
    Down,
}

/// The rise and fall counter of one backend. It starts down: nobody is sent to a node that nobody has seen well.
#[derive(Clone, Debug, Default)]
pub(super) struct Counter {
    is_up: bool,
    /// Results in a row that contradict the state.
    against: u32,
    /// Failures in a row, whatever the state.
    failures: u32,
}

impl Counter {
    /// Counts one result.
    pub(super) fn observe(&mut self, success: bool, policy: CheckPolicy) -> Option<Flip> {
        self.failures = if success { 0 } else { self.failures.saturating_add(1) };
        if success == self.is_up {
            self.against = 0;
            return None;
        }
        self.against += 1;
        if self.against < if self.is_up { policy.fall } else { policy.rise } {
            return None;
        }
        self.is_up = success;
        self.against = 0;
        Some(if success { Flip::Up } else { Flip::Down })
    }

    /// Whether it passes its checks.
    pub(super) fn is_up(&self) -> bool {
        self.is_up
    }

    /// Whether the last results contradict the state: it is looked at more often.
    pub(super) fn is_changing(&self) -> bool {
        self.against > 0
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}

/// What the cluster wants of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Administrative {
    /// Take new connections.
    #[default]
    Active,
    /// None, but keep those that are open. Any state that we do not know counts as this one.
    Draining,
}

impl Administrative {
    /// `FrontBackend.state`.
    pub(super) fn from_wire(state: &str) -> Self {
        if state == "active" { Self::Active } else { Self::Draining }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
        }
    }
}

/// What a node says of itself, over its own stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Nothing, because there is no stream. The checks decide, and whoever speaks for itself is better.
    #[default]
    Unknown,
    /// Ready; `has_leader` is false when it cannot know how old its state is.
    Ready {
        /// Whether it hears a leader.
        has_leader: bool,
    },
    /// Not ready, and why.
    NotReady {
        /// In words.
        reason: String,
        /// It would close a connection without a word: there is no point in trying.
        refuses: bool,
    },
}

/// How a backend stands, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// Up, ready, active.
    Eligible,
    /// The same, but it hears no leader: its state may be old.
    Leaderless,
    /// Passes its checks, and its own stream is not there: what it knows may be as old as it likes.
    Unheard,
    /// Passes its checks and says itself that it is not ready.
    NotReady,
    /// Fails its checks; so many times in a row. The panic floor takes the smallest number first.
    Down {
        /// Failures in a row.
        failures: u32,
    },
    /// Says itself that it would refuse: its disk failed, or it is starting or stopping. Never used.
    Refusing,
    /// Not wanted. Never used, whatever happens to the others.
    Draining,
}

impl Standing {
    /// Whether nothing is known against it: it takes new connections as a matter of course when nobody is better.
    pub(super) fn is_well(self) -> bool {
        self <= Self::Unheard
    }

    /// Whether it is used when nobody better is left.
    pub(super) fn is_usable(self) -> bool {
        self < Self::Refusing
    }
}

/// Folds the three facts into one.
pub(super) fn standing(counter: &Counter, state: Administrative, readiness: &Readiness) -> Standing {
    match (state, readiness) {
        (Administrative::Draining, _) => Standing::Draining,
        (_, Readiness::NotReady { refuses: true, .. }) => Standing::Refusing,
        _ if !counter.is_up() => Standing::Down { failures: counter.failures() },
        (_, Readiness::NotReady { .. }) => Standing::NotReady,
        (_, Readiness::Ready { has_leader: false }) => Standing::Leaderless,
        (_, Readiness::Unknown) => Standing::Unheard,
        (_, Readiness::Ready { has_leader: true }) => Standing::Eligible,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: CheckPolicy = CheckPolicy { rise: 2, fall: 3 };

    fn flips(results: &str) -> Vec<Option<Flip>> {
        let mut counter = Counter::default();
        results.chars().map(|result| counter.observe(result == '+', POLICY)).collect()
    }

    #[test]
    fn a_backend_starts_down_and_rises_after_rise_successes_in_a_row() {
        assert_eq!(flips("+"), [None]);
        assert_eq!(flips("++"), [None, Some(Flip::Up)]);
        assert_eq!(flips("+-+")[2], None, "not in a row");
        assert_eq!(flips("+-++")[3], Some(Flip::Up));
    }

    #[test]
    fn a_backend_falls_after_fall_failures_in_a_row() {
        assert_eq!(flips("++--")[3], None);
        assert_eq!(flips("++---")[4], Some(Flip::Down));
        assert!(flips("++--+--").iter().skip(2).all(Option::is_none), "not in a row");
    }

    #[test]
    fn a_settled_state_is_never_reported_again() {
        let flips = flips("++++------++++");
        assert_eq!(flips.iter().flatten().copied().collect::<Vec<_>>(), [Flip::Up, Flip::Down, Flip::Up]);
    }

    #[test]
    fn standing_is_decided_by_the_worst_fact() {
        let down = Counter::default();
        let mut up = Counter::default();
        for _ in 0..2 {
            up.observe(true, POLICY);
        }
        let (active, draining) = (Administrative::Active, Administrative::Draining);
        let ready = |has_leader| Readiness::Ready { has_leader };
        let not_ready = Readiness::NotReady { reason: "disk: full".to_owned(), refuses: false };
        let refuses = Readiness::NotReady { reason: "spool: i/o error".to_owned(), refuses: true };
        let cases = [
            (&up, active, ready(true), Standing::Eligible),
            (&up, active, Readiness::Unknown, Standing::Unheard),
            (&up, active, ready(false), Standing::Leaderless),
            (&up, active, not_ready.clone(), Standing::NotReady),
            (&up, active, refuses.clone(), Standing::Refusing),
            (&down, active, refuses, Standing::Refusing),
            (&down, active, ready(true), Standing::Down { failures: 0 }),
            (&down, active, not_ready, Standing::Down { failures: 0 }),
            (&up, draining, ready(true), Standing::Draining),
            (&down, draining, Readiness::Unknown, Standing::Draining),
        ];
        for (counter, state, readiness, expected) in cases {
            assert_eq!(standing(counter, state, &readiness), expected, "{readiness:?}");
        }
    }

    #[test]
    fn an_unknown_administrative_state_takes_nothing_new() {
        for (text, expected) in [
            ("active", Administrative::Active),
            ("draining", Administrative::Draining),
            ("maintenance", Administrative::Draining),
            ("", Administrative::Draining),
        ] {
            assert_eq!(Administrative::from_wire(text), expected, "{text}");
        }
    }
}
