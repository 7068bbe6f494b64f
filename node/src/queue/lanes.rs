//! What goes one way: the letters of one destination that are due, and how many attempts run there. A destination is
//! the smart hosts of a route, or one recipient domain of a route that delivers by MX. Lanes have their turns, so that
//! a dead or slow destination holds up nobody else.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use super::fair::FairQueue;
use crate::connector::SendConnector;
use crate::mail::Domain;
use crate::spool::MessageId;

/// Letters without a route are only recorded as such; a few at a time are enough.
const NO_ROUTE_ATTEMPTS: usize = 4;
/// So many seconds' worth of letters may go at once under a rate, so that a connection carries more than one.
const RATE_BURST_SECS: f64 = 10.0;
/// Idle lanes that remember how fast they may go are kept up to this many.
const RATED_LANES_MAX: usize = 10_000;

/// The name of a lane: the route, and the domain where each domain has its own servers.
pub(super) type LaneName = (Option<String>, Option<Domain>);

/// One way out.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) route: Option<Arc<SendConnector>>,
    /// The recipient domain whose servers take the letters; absent with smart hosts.
    pub(super) destination: Option<Domain>,
    ready: FairQueue,
    active: usize,
    in_turn: bool,
    /// Letters that wait because no next hop could be reached.
    unreached: HashSet<MessageId>,
    /// Letters that may go at once under the route's rate, and when that was counted.
    tokens: f64,
    counted_ms: i64,
}

/// Every lane.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    index: HashMap<LaneName, u32>,
    free: Vec<u32>,
    /// The lanes with work, in the order of their turns.
    turn: VecDeque<u32>,
    /// When the first lane that only its rate holds back may go on.
    rate_due_ms: Option<i64>,
    active: usize,
}

impl Lanes {
    /// The lane of `route` towards `domain`; made if there is none.
    pub(super) fn of(&mut self, route: Option<Arc<SendConnector>>, domain: &Domain) -> u32 {
        let destination = route.as_ref().filter(|route| route.mx).map(|_| domain.clone());
        let name = (route.as_ref().map(|route| route.name.clone()), destination);
        if let Some(&known) = self.index.get(&name) {
            self.lanes[known as usize].route = route;
            return known;
        }
        let tokens = route.as_ref().map_or(0.0, |route| burst(route));
        let lane = Lane {
            route,
            destination: name.1.clone(),
            ready: FairQueue::default(),
            active: 0,
            in_turn: false,
            unreached: HashSet::new(),
            tokens,
            counted_ms: 0,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.lanes[at as usize] = lane;
                at
            }
            None => {
                self.lanes.push(lane);
                u32::try_from(self.lanes.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.index.insert(name, at);
        at
    }

    pub(super) fn get(&self, at: u32) -> Option<&Lane> {
        self.lanes.get(at as usize)
    }

    /// Puts a letter in line.
    pub(super) fn push(&mut self, at: u32, source: IpAddr, id: MessageId) {
        let Some(lane) = self.lanes.get_mut(at as usize) else { return };
        lane.ready.push(source, id);
        if !lane.in_turn {
            lane.in_turn = true;
            self.turn.push_back(at);
        }
    }

    /// Takes the next letter in line, if the route's rate lets it go.
    pub(super) fn pop(&mut self, at: u32, now_ms: i64) -> Option<MessageId> {
        let lane = self.lanes.get_mut(at as usize)?;
        if lane.ready.is_empty() {
            return None;
        }
        if let Some(due_ms) = lane.wait_for_rate(now_ms) {
            self.rate_due_ms = Some(self.rate_due_ms.map_or(due_ms, |known| known.min(due_ms)));
            return None;
        }
        lane.ready.pop()
    }

    /// A letter was taken to be sent: counts it against the rate.
    pub(super) fn spend(&mut self, at: u32) {
        if let Some(lane) = self.lanes.get_mut(at as usize) {
            lane.tokens -= 1.0;
        }
    }

    /// The lane whose turn it is, if it may have another attempt. Every lane is asked once.
    pub(super) fn next_turn(&mut self) -> Option<u32> {
        for _ in 0..self.turn.len() {
            let at = self.turn.pop_front()?;
            let lane = &mut self.lanes[at as usize];
            if lane.ready.is_empty() {
                lane.in_turn = false;
                self.forget_if_idle(at);
                continue;
            }
            self.turn.push_back(at);
            if lane.active < lane.attempts_max() {
                return Some(at);
            }
        }
        None
    }

    /// How many lanes have work.
    pub(super) fn with_work(&self) -> usize {
        self.turn.len()
    }

    /// An attempt begins.
    pub(super) fn begin(&mut self, at: u32) {
        self.lanes[at as usize].active += 1;
        self.active += 1;
    }

    /// An attempt ended.
    pub(super) fn end(&mut self, at: u32) {
        let Some(lane) = self.lanes.get_mut(at as usize).filter(|lane| lane.active > 0) else { return };
        lane.active -= 1;
        self.active -= 1;
        self.forget_if_idle(at);
    }

    pub(super) fn active(&self) -> usize {
        self.active
    }

    /// A letter waits because no next hop could be reached.
    pub(super) fn note_unreached(&mut self, at: u32, id: MessageId) {
        if let Some(lane) = self.lanes.get_mut(at as usize) {
            lane.unreached.insert(id);
        }
    }

    /// A letter waits no longer for the destination to be reached.
    pub(super) fn forget_unreached(&mut self, at: u32, id: MessageId) {
        if self.lanes.get_mut(at as usize).is_some_and(|lane| lane.unreached.remove(&id)) {
            self.forget_if_idle(at);
        }
    }

    /// The destination was reached: who waited for that.
    pub(super) fn take_unreached(&mut self, at: u32) -> Vec<MessageId> {
        self.lanes.get_mut(at as usize).map(|lane| lane.unreached.drain().collect()).unwrap_or_default()
    }

    /// Empties every line: routes changed, and everybody is put in line anew.
    pub(super) fn clear_lines(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.ready.clear());
    }

    /// When a lane that only its rate holds back may go on; asked once per search.
    pub(super) fn take_rate_due(&mut self) -> Option<i64> {
        self.rate_due_ms.take()
    }

    fn forget_if_idle(&mut self, at: u32) {
        let lane = &self.lanes[at as usize];
        let idle = lane.active == 0 && !lane.in_turn && lane.ready.is_empty() && lane.unreached.is_empty();
        let rated = lane.route.as_ref().is_some_and(|route| route.rate_per_minute > 0);
        if !idle || (rated && self.index.len() <= RATED_LANES_MAX) {
            return;
        }
        let name = (lane.route.as_ref().map(|route| route.name.clone()), lane.destination.clone());
        if self.index.get(&name) == Some(&at) {
            self.index.remove(&name);
            self.free.push(at);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }
}

impl Lane {
    fn attempts_max(&self) -> usize {
        self.route.as_ref().map_or(NO_ROUTE_ATTEMPTS, |route| (route.max_connections as usize).max(1))
    }

    /// When the rate lets the next letter go; `None`: now.
    fn wait_for_rate(&mut self, now_ms: i64) -> Option<i64> {
        let route = self.route.as_ref().filter(|route| route.rate_per_minute > 0)?;
        let per_ms = f64::from(route.rate_per_minute) / 60_000.0;
        let passed = now_ms.saturating_sub(self.counted_ms).max(0) as f64;
        self.tokens = (self.tokens + passed * per_ms).min(burst(route));
        self.counted_ms = now_ms;
        if self.tokens >= 1.0 {
            return None;
        }
        let wait = ((1.0 - self.tokens) / per_ms).ceil().min(60_000.0);
        Some(now_ms.saturating_add(wait as i64).saturating_add(1))
    }
}

fn burst(route: &SendConnector) -> f64 {
    (f64::from(route.rate_per_minute) / 60.0 * RATE_BURST_SECS).max(1.0)
}
