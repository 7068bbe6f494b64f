//! Does this member know what the cluster has decided? A member that starts from an old copy of its data knows its
//! leader by name at once, and would go by rights that were revoked since. Pure: time is passed in.

use std::time::Duration;

use tokio::time::Instant;

/// So long a member that starts waits for a leader's first word. Then there is none, and mail goes on without.
const FIRST_WORD: Duration = Duration::from_secs(2);
/// An entry is on its way for some milliseconds; what lasts so long is more than that.
const TOLERATED: Duration = Duration::from_secs(1);

/// How far this member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// What the leader says is committed is applied here, or there is nobody to say so.
    Level,
    /// It has not been since this process started.
    CatchingUp,
    /// It was, and has not been for a while.
    Behind,
}

/// What leaders said, and when it was last all applied.
#[derive(Debug)]
pub(super) struct Lag {
    started: Instant,
    told: Option<u64>,
    level_at: Option<Instant>,
}

impl Lag {
    pub(super) fn new(now: Instant) -> Self {
        Self { started: now, told: None, level_at: None }
    }

    /// A leader says that the log is committed up to here.
    pub(super) fn told(&mut self, committed: u64) {
        self.told = Some(committed);
    }

    /// This member follows: how far is it, having applied up to `applied`? `heard` says whether its leader still speaks.
    pub(super) fn follows(&mut self, applied: u64, heard: bool, now: Instant) -> Progress {
        match (self.told, self.level_at) {
            (Some(told), _) if applied >= told => {
                self.level_at = Some(now);
                Progress::Level
            }
            (Some(_), None) if heard => Progress::CatchingUp,
            (Some(_), None) => Progress::Behind,
            (Some(_), Some(at)) if now.duration_since(at) > TOLERATED => Progress::Behind,
            (Some(_), Some(_)) => Progress::Level,
            (None, _) => self.unled(now),
        }
    }

    /// This member leads: nobody is further.
    pub(super) fn leads(&mut self, now: Instant) -> Progress {
        self.level_at = Some(now);
        Progress::Level
    }

    /// Nobody leads, as far as this member knows: it is as far as anybody it can ask, once it has waited for a leader.
    pub(super) fn unled(&self, now: Instant) -> Progress {
        match (self.told, self.level_at) {
            (None, None) if now.duration_since(self.started) < FIRST_WORD => Progress::CatchingUp,
            // It was told how far the cluster is, and lost its leader before it was there.
            (Some(_), None) => Progress::Behind,
            _ => Progress::Level,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_copy_catches_up_before_it_is_level() {
        let now = Instant::now();
        let mut lag = Lag::new(now);
        assert_eq!(lag.follows(7, false, now), Progress::CatchingUp, "nobody has said how far the cluster is");
        lag.told(20);
        assert_eq!(lag.follows(7, true, now + FIRST_WORD * 2), Progress::CatchingUp);
        assert_eq!(lag.follows(20, true, now + FIRST_WORD * 2), Progress::Level);
    }

    #[test]
    fn a_moment_behind_is_nothing_and_a_second_is_something() {
        let now = Instant::now();
        let mut lag = Lag::new(now);
        lag.told(20);
        assert_eq!(lag.follows(20, true, now), Progress::Level);
        lag.told(21);
        assert_eq!(lag.follows(20, true, now + TOLERATED), Progress::Level);
        assert_eq!(lag.follows(20, true, now + TOLERATED * 2), Progress::Behind);
        assert_eq!(lag.follows(21, true, now + TOLERATED * 2), Progress::Level);
    }

    #[test]
    fn without_a_leader_mail_goes_on() {
        let now = Instant::now();
        let mut lag = Lag::new(now);
        assert_eq!(lag.unled(now), Progress::CatchingUp, "a leader may still be found");
        assert_eq!(lag.unled(now + FIRST_WORD), Progress::Level);
        // A learner knows its last leader by name for ever: it waits for it only so long.
        assert_eq!(lag.follows(7, false, now + FIRST_WORD), Progress::Level);
        // One that was told, and lost its leader on the way: behind, which is no reason to refuse.
        lag.told(20);
        assert_eq!(lag.follows(7, false, now), Progress::Behind);
        assert_eq!(lag.unled(now), Progress::Behind);
        assert_eq!(Lag::new(now).leads(now), Progress::Level);
    }
}
