//! What an administrator must know about the backends of a service as a whole, as metrics at once and as log lines.
//! Mail goes on in every case: the best that there is stays in rotation. Pure but for the log: time is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use metrics::gauge;
use tokio::time::Instant;
use tracing::{error, info};

use super::backend::Standing;
use super::metrics_names::{PANIC, STALE, StaleReason};

/// An election and a lost stream last a moment; what lasts longer is worth waking somebody.
const STALE_FOR: Duration = Duration::from_secs(2);

/// What is wrong with whole services.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    /// Services of which no backend is well.
    panicking: BTreeSet<u16>,
    /// Services of which every backend in rotation may act on old state.
    stale: BTreeMap<u16, Stale>,
}

#[derive(Debug)]
struct Stale {
    reason: StaleReason,
    since: Instant,
    is_said: bool,
}

impl Alarms {
    /// Looks at the best standing that each service has.
    pub(super) fn look(&mut self, best: &BTreeMap<u16, Standing>, now: Instant) {
        for (port, standing) in best {
            self.look_for_panic(*port, *standing);
            self.look_for_stale(*port, *standing, now);
        }
        self.panicking.retain(|port| best.contains_key(port));
        self.stale.retain(|port, _| best.contains_key(port));
    }

    fn look_for_panic(&mut self, port: u16, best: Standing) {
        let is_panic = !best.is_well();
        gauge!(PANIC, "service" => port.to_string()).set(f64::from(u8::from(is_panic)));
        if is_panic && self.panicking.insert(port) {
            let least_sick = if best.is_usable() { "used" } else { "none can be used" };
            error!(service = port, least_sick, "no backend of this service is well");
        } else if !is_panic && self.panicking.remove(&port) {
            info!(service = port, "a backend of this service is well again");
        }
    }

    fn look_for_stale(&mut self, port: u16, best: Standing, now: Instant) {
        let found = match best {
            Standing::Leaderless => Some(StaleReason::Leaderless),
            Standing::Unheard => Some(StaleReason::Unheard),
            _ => None,
        };
        for reason in StaleReason::ALL {
            let is_it = f64::from(u8::from(found == Some(reason)));
            gauge!(STALE, "service" => port.to_string(), "reason" => reason.as_str()).set(is_it);
        }
        let Some(reason) = found else {
            if self.stale.remove(&port).is_some_and(|stale| stale.is_said) {
                info!(service = port, "a backend of this service knows the newest state again");
            }
            return;
        };
        let stale = self.stale.entry(port).or_insert(Stale { reason, since: now, is_said: false });
        if stale.reason != reason {
            *stale = Stale { reason, since: now, is_said: false };
        }
    }

    /// Says what has lasted, once. Answers what was said.
    pub(super) fn say(&mut self, now: Instant) -> Vec<(u16, StaleReason)> {
        let mut said = Vec::new();
        for (port, stale) in &mut self.stale {
            if stale.is_said || now.duration_since(stale.since) < STALE_FOR {
                continue;
            }
            stale.is_said = true;
            said.push((*port, stale.reason));
            let (cause, next_step) = match stale.reason {
                StaleReason::Leaderless => {
                    ("no node hears a leader: the cluster has no quorum", "posthousectl cluster status")
                }
                StaleReason::Unheard => {
                    ("no node's stream can be had", "look at this front's certificate and at the nodes' cluster port")
                }
            };
            error!(
                service = port,
                cause, next_step, "every backend of this service may act on old state, mail goes on"
            );
        }
        said
    }

    #[cfg(test)]
    pub(super) fn is_panicking(&self, port: u16) -> bool {
        self.panicking.contains(&port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_said_once_and_an_election_is_not() {
        let (mut alarms, now) = (Alarms::default(), Instant::now());
        let of = |standing| BTreeMap::from([(25, standing)]);
        alarms.look(&of(Standing::Leaderless), now);
        assert_eq!(alarms.say(now + STALE_FOR / 2), []);
        alarms.look(&of(Standing::Eligible), now + STALE_FOR / 2);
        assert_eq!(alarms.say(now + STALE_FOR), [], "it was an election");
        alarms.look(&of(Standing::Leaderless), now);
        alarms.look(&of(Standing::Leaderless), now + STALE_FOR);
        assert_eq!(alarms.say(now + STALE_FOR), [(25, StaleReason::Leaderless)]);
        assert_eq!(alarms.say(now + STALE_FOR * 2), [], "once");
        alarms.look(&of(Standing::Unheard), now + STALE_FOR * 2);
        assert_eq!(alarms.say(now + STALE_FOR * 4), [(25, StaleReason::Unheard)], "another cause is another alarm");
        assert!(!alarms.is_panicking(25), "it is well enough when nobody is better");
        alarms.look(&of(Standing::NotReady), now + STALE_FOR * 5);
        assert!(alarms.is_panicking(25) && alarms.say(now + STALE_FOR * 9).is_empty());
    }
}
