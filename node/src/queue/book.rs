//! What the queue keeps in memory: per letter its domains, when each is due, and where it waits. No I/O, no clock;
//! about a hundred bytes per letter, whatever the letter's size.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::IpAddr;
use std::sync::Arc;

use super::find::Found;
use super::lanes::Lanes;
use super::slots::Slots;
use super::{LetterState, QueueFilter};
use crate::connector::{LetterFacts, SendConnector, SmartHost};
use crate::mail::{Domain, ReversePath};
use crate::spool::{Arrival, MessageId, Redirect};

/// Finds the route of a letter.
pub(super) type FindRoute<'a> = &'a dyn Fn(LetterFacts<'_>) -> Option<Arc<SendConnector>>;

/// Everything that waits or is under way.
#[derive(Debug)]
pub(super) struct Book {
    letters: BTreeMap<MessageId, Entry>,
    domains: Slots<Domain>,
    origins: Slots<Origin>,
    lanes: Lanes,
    /// When a letter has a part that is due; may hold more than is true.
    due: BinaryHeap<Reverse<(i64, MessageId)>>,
    counts: [u64; LetterState::ALL.len()],
    bytes: u64,
    attempts_max: usize,
    /// When a lane that only its rate holds back may go on.
    rate_due_ms: Option<i64>,
    /// The name under which the bare `postmaster` is queued.
    own: Domain,
}

/// Where a letter came from: routes are chosen by it, and each source has its turn.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Origin {
    sender: ReversePath,
    connector: String,
    source: IpAddr,
    redirect: Option<Redirect>,
}

#[derive(Debug)]
struct Entry {
    size: u64,
    origin: u32,
    /// Whether an administrator keeps it back.
    held: bool,
    parts: Vec<Part>,
}

/// The recipients of one domain of a letter.
#[derive(Clone, Copy, Debug)]
struct Part {
    due_ms: i64,
    domain: u32,
    lane: u32,
    state: LetterState,
    /// It waits because no next hop could be reached.
    unreached: bool,
}

/// One letter to be tried on one route.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) id: MessageId,
    pub(super) lane: u32,
    pub(super) route: Option<Arc<SendConnector>>,
    /// The recipient domain whose servers take it, where the route delivers by MX.
    pub(super) destination: Option<Domain>,
    /// Its domains that go this way. The node's own name stands for the bare `postmaster`.
    pub(super) domains: Vec<Domain>,
}

/// When a part of a letter is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Again {
    pub(super) due_ms: i64,
    /// No next hop could be reached: a connection that succeeds wakes it earlier.
    pub(super) unreached: bool,
}

impl Again {
    pub(super) fn at(due_ms: i64) -> Self {
        Self { due_ms, unreached: false }
    }
}

impl Book {
    pub(super) fn new(own: Domain, attempts_max: usize) -> Self {
        Self {
            letters: BTreeMap::new(),
            domains: Slots::default(),
            origins: Slots::default(),
            lanes: Lanes::default(),
            due: BinaryHeap::new(),
            counts: [0; LetterState::ALL.len()],
            bytes: 0,
            attempts_max: attempts_max.max(1),
            rate_due_ms: None,
            own,
        }
    }

    pub(super) fn add(&mut self, arrival: Arrival) {
        if self.letters.contains_key(&arrival.id) || arrival.domains.is_empty() {
            return;
        }
        let state = if arrival.held { LetterState::Held } else { LetterState::Retry };
        let mut parts: Vec<Part> = Vec::with_capacity(arrival.domains.len());
        for (domain, due_ms) in arrival.domains {
            let domain = self.domains.hold(domain.unwrap_or_else(|| self.own.clone()));
            match parts.iter_mut().find(|part| part.domain == domain) {
                Some(part) => {
                    part.due_ms = part.due_ms.min(due_ms);
                    self.domains.release(domain);
                }
                None => parts.push(Part { due_ms, domain, lane: 0, state, unreached: false }),
            }
        }
        let first = parts.iter().map(|part| part.due_ms).min().unwrap_or(0);
        if !arrival.held {
            self.due.push(Reverse((first, arrival.id)));
        }
        self.bytes += arrival.size;
        let Arrival { sender, connector, source, redirect, .. } = arrival;
        let origin = Origin { sender, connector, source, redirect };
        let origin = self.origins.hold(origin);
        let entry = Entry { size: arrival.size, origin, held: arrival.held, parts };
        self.counts[entry.state() as usize] += 1;
        self.letters.insert(arrival.id, entry);
    }

    /// Puts what is due at `now_ms` in line.
    pub(super) fn make_ready(&mut self, now_ms: i64, find: FindRoute<'_>) {
        while let Some(&Reverse((due_ms, id))) = self.due.peek() {
            if due_ms > now_ms {
                return;
            }
            self.due.pop();
            let Some(entry) = self.letters.get(&id) else { continue };
            let Some(origin) = self.origins.value(entry.origin).cloned() else { continue };
            let is_due = |part: &&Part| part.state == LetterState::Retry && part.due_ms <= now_ms;
            let due: Vec<Part> = entry.parts.iter().filter(is_due).copied().collect();
            for Part { domain, lane: before, unreached, .. } in due {
                let Some(name) = self.domains.value(domain).cloned() else { continue };
                if unreached {
                    self.lanes.forget_unreached(before, id);
                }
                let lane = self.lanes.of(origin.route(&name, find), &name);
                self.set(id, domain, |part| {
                    (part.state, part.lane, part.unreached) = (LetterState::Ready, lane, false);
                });
                self.lanes.push(lane, origin.source, id);
            }
        }
    }

    /// Takes the next piece of work, lane by lane, within the limits of each and of all.
    pub(super) fn next_job(&mut self, now_ms: i64) -> Option<Job> {
        self.rate_due_ms = None;
        if self.lanes.active() >= self.attempts_max {
            return None;
        }
        for _ in 0..self.lanes.with_work() {
            let lane = self.lanes.next_turn()?;
            if let Some(job) = self.next_for(lane, now_ms) {
                self.lanes.begin(lane);
                return Some(job);
            }
        }
        self.rate_due_ms = self.lanes.take_rate_due();
        None
    }

    /// Takes more work for somebody who already works on `lane`.
    pub(super) fn next_for(&mut self, lane: u32, now_ms: i64) -> Option<Job> {
        while let Some(id) = self.lanes.pop(lane, now_ms) {
            let Some(entry) = self.letters.get(&id) else { continue };
            let mine = |part: &&Part| part.state == LetterState::Ready && part.lane == lane;
            let domains: Vec<u32> = entry.parts.iter().filter(mine).map(|part| part.domain).collect();
            if domains.is_empty() {
                continue;
            }
            for domain in &domains {
                self.set(id, *domain, |part| part.state = LetterState::Active);
            }
            self.lanes.spend(lane);
            let domains = domains.iter().filter_map(|domain| self.domains.value(*domain).map(|name| (**name).clone()));
            let domains = domains.collect();
            let way = self.lanes.get(lane)?;
            return Some(Job { id, lane, route: way.route.clone(), destination: way.destination.clone(), domains });
        }
        None
    }

    /// Ends work on a lane that [`Book::next_job`] began.
    pub(super) fn release(&mut self, lane: u32) {
        self.lanes.end(lane);
    }

    /// The destination of `lane` was reached: who waited for that is due at once.
    pub(super) fn reached(&mut self, lane: u32, now_ms: i64) {
        for id in self.lanes.take_unreached(lane) {
            let Some(entry) = self.letters.get_mut(&id) else { continue };
            let waits = |part: &&mut Part| part.unreached && part.lane == lane && part.state == LetterState::Retry;
            for part in entry.parts.iter_mut().filter(waits) {
                (part.due_ms, part.unreached) = (part.due_ms.min(now_ms), false);
            }
            self.due.push(Reverse((now_ms, id)));
        }
    }

    /// Notes what came of a job: for each domain when to try again, or nothing more to do.
    pub(super) fn settle(&mut self, job: &Job, domains: impl IntoIterator<Item = (Domain, Option<Again>)>) {
        let id = job.id;
        let held = self.letters.get(&id).is_some_and(|entry| entry.held);
        for (domain, next) in domains {
            let Some(domain) = self.domains.find(&domain) else { continue };
            match next {
                Some(again) => {
                    self.set(id, domain, |part| {
                        part.state = if held { LetterState::Held } else { LetterState::Retry };
                        (part.due_ms, part.unreached) = (again.due_ms, again.unreached);
                    });
                    self.due.push(Reverse((again.due_ms, id)));
                    if again.unreached && self.letters.contains_key(&id) {
                        self.lanes.note_unreached(job.lane, id);
                    }
                }
                None => self.remove_part(id, domain),
            }
        }
    }

    /// Forgets a letter. Answers whether it was known.
    pub(super) fn remove(&mut self, id: MessageId) -> bool {
        let Some(entry) = self.letters.remove(&id) else { return false };
        self.counts[entry.state() as usize] -= 1;
        self.bytes -= entry.size;
        self.origins.release(entry.origin);
        for part in entry.parts {
            self.domains.release(part.domain);
            if part.unreached {
                self.lanes.forget_unreached(part.lane, id);
            }
        }
        true
    }

    /// Takes a letter out of every line to work on the whole of it, unless an attempt is under way.
    pub(super) fn take(&mut self, id: MessageId) -> Option<Job> {
        let entry = self.letters.get_mut(&id)?;
        let before = entry.state();
        if before == LetterState::Active {
            return None;
        }
        entry.parts.iter_mut().for_each(|part| part.state = LetterState::Active);
        self.counts[before as usize] -= 1;
        self.counts[LetterState::Active as usize] += 1;
        let names = entry.parts.iter().filter_map(|part| self.domains.value(part.domain));
        let domains = names.map(|name| (**name).clone()).collect();
        Some(Job { id, lane: u32::MAX, route: None, destination: None, domains })
    }

    /// Makes what waits of these letters due at once.
    pub(super) fn retry(&mut self, ids: &[MessageId], now_ms: i64) {
        for id in ids {
            let Some(entry) = self.letters.get_mut(id) else { continue };
            for part in entry.parts.iter_mut().filter(|part| part.state == LetterState::Retry) {
                part.due_ms = now_ms;
            }
            self.due.push(Reverse((now_ms, *id)));
        }
    }

    /// Keeps these letters back, or lets them go on at once. What is under way finishes.
    pub(super) fn hold(&mut self, ids: &[MessageId], held: bool, now_ms: i64) {
        for id in ids {
            let Some(entry) = self.letters.get_mut(id) else { continue };
            self.counts[entry.state() as usize] -= 1;
            entry.held = held;
            for part in &mut entry.parts {
                match part.state {
                    LetterState::Retry | LetterState::Ready if held => part.state = LetterState::Held,
                    LetterState::Held if !held => (part.state, part.due_ms) = (LetterState::Retry, now_ms),
                    _ => {}
                }
            }
            self.counts[entry.state() as usize] += 1;
            if !held {
                self.due.push(Reverse((now_ms, *id)));
            }
        }
    }

    /// Sends these letters elsewhere, or again where their routes do: what waits is due at once, what is under way
    /// finishes first.
    pub(super) fn redirect(&mut self, ids: &[MessageId], redirect: Option<&Redirect>, now_ms: i64) {
        for id in ids {
            let Some(entry) = self.letters.get_mut(id) else { continue };
            let Some(known) = self.origins.value(entry.origin).map(Arc::clone) else { continue };
            let before = entry.origin;
            entry.origin = self.origins.hold(Origin {
                sender: known.sender.clone(),
                connector: known.connector.clone(),
                source: known.source,
                redirect: redirect.cloned(),
            });
            self.origins.release(before);
            self.counts[entry.state() as usize] -= 1;
            for part in &mut entry.parts {
                if matches!(part.state, LetterState::Retry | LetterState::Ready) {
                    (part.state, part.due_ms) = (LetterState::Retry, part.due_ms.min(now_ms));
                }
            }
            self.counts[entry.state() as usize] += 1;
            self.due.push(Reverse((now_ms, *id)));
        }
    }

    /// Takes up new routes: what was in line is put in line anew, and what waits for a domain whose route changed is
    /// due at once.
    pub(super) fn change_routes(&mut self, now_ms: i64, old: FindRoute<'_>, new: FindRoute<'_>) {
        self.lanes.clear_lines();
        let Self { letters, domains, origins, counts, due, .. } = self;
        for (id, entry) in letters {
            let Some(origin) = origins.value(entry.origin) else { continue };
            let before = entry.state();
            let mut touched = false;
            for part in &mut entry.parts {
                let wakes = part.state == LetterState::Retry
                    && domains
                        .value(part.domain)
                        .is_some_and(|name| origin.route(name, old) != origin.route(name, new));
                if part.state == LetterState::Ready || wakes {
                    (part.state, part.due_ms) = (LetterState::Retry, part.due_ms.min(now_ms));
                    touched = true;
                }
            }
            counts[before as usize] -= 1;
            counts[entry.state() as usize] += 1;
            if touched {
                due.push(Reverse((now_ms, *id)));
            }
        }
    }

    /// When something can be done next, in unix milliseconds.
    pub(super) fn next_due_ms(&self) -> Option<i64> {
        let due = self.due.peek().map(|Reverse((due_ms, _))| *due_ms);
        due.into_iter().chain(self.rate_due_ms).min()
    }

    /// How many letters wait or are under way.
    pub(super) fn len(&self) -> usize {
        self.letters.len()
    }

    /// Letters by state.
    pub(super) fn count(&self, state: LetterState) -> u64 {
        self.counts[state as usize]
    }

    /// How many attempts run.
    #[cfg(test)]
    pub(super) fn active(&self) -> usize {
        self.lanes.active()
    }

    /// The oldest letter.
    pub(super) fn oldest(&self) -> Option<MessageId> {
        self.letters.keys().next().copied()
    }

    /// Bytes of all letters.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The letters after `after` that `filter` means by what is known here, oldest first: at most `found_max`, among at
    /// most `looks_max`. Also the last one looked at, unless that was the end.
    pub(super) fn page(
        &self,
        filter: &QueueFilter,
        after: Option<MessageId>,
        found_max: usize,
        looks_max: usize,
    ) -> (Vec<Found>, Option<MessageId>) {
        let mut found = Vec::new();
        let first = filter.accepted_since_ms.map_or(MessageId(0), MessageId::first_at);
        let first = after.map_or(first, |after| first.max(MessageId(after.0.saturating_add(1))));
        let end = filter.accepted_before_ms.map_or(MessageId(u64::MAX), MessageId::first_at);
        if first >= end {
            return (found, None);
        }
        let mut looks = 0;
        let mut look = |id: MessageId, entry: &Entry| {
            found.extend(self.seen(filter, id, entry));
            looks += 1;
            (found.len() >= found_max || looks >= looks_max).then_some(id)
        };
        let stopped = if filter.ids.is_empty() {
            self.letters.range(first..end).find_map(|(id, entry)| look(*id, entry))
        } else {
            let mut ids: Vec<_> = filter.ids.iter().copied().filter(|id| (first..end).contains(id)).collect();
            ids.sort_unstable();
            ids.dedup();
            ids.into_iter().filter_map(|id| Some((id, self.letters.get(&id)?))).find_map(|(id, entry)| look(id, entry))
        };
        (found, stopped)
    }

    /// The letter, if `filter` means it.
    fn seen(&self, filter: &QueueFilter, id: MessageId, entry: &Entry) -> Option<Found> {
        let state = entry.state();
        if filter.state.is_some_and(|wanted| wanted != state) {
            return None;
        }
        let same = |wanted: &Option<String>, found: &dyn Fn() -> String| {
            wanted.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(&found()))
        };
        let origin = self.origins.value(entry.origin)?;
        let meant = same(&filter.connector, &|| origin.connector.clone())
            && same(&filter.sender, &|| origin.sender.to_string())
            && filter.client.is_none_or(|range| range.contains(origin.source));
        if !meant {
            return None;
        }
        let domains: Vec<_> =
            entry.parts.iter().filter_map(|part| self.domains.value(part.domain).map(Arc::clone)).collect();
        if filter.domain.as_ref().is_some_and(|wanted| domains.iter().all(|domain| **domain != *wanted)) {
            return None;
        }
        let due_ms = entry.parts.iter().map(|part| part.due_ms).min().unwrap_or(0);
        Some(Found { id, size: entry.size, state, due_ms, domains, record: None })
    }

    /// Who sent a letter, and which receive connector took it.
    pub(super) fn origin(&self, id: MessageId) -> Option<(&ReversePath, &str)> {
        let origin = self.origins.value(self.letters.get(&id)?.origin)?;
        Some((&origin.sender, &origin.connector))
    }

    fn set(&mut self, id: MessageId, domain: u32, change: impl FnOnce(&mut Part)) {
        let Some(entry) = self.letters.get_mut(&id) else { return };
        self.counts[entry.state() as usize] -= 1;
        if let Some(part) = entry.parts.iter_mut().find(|part| part.domain == domain) {
            change(part);
        }
        self.counts[entry.state() as usize] += 1;
    }

    fn remove_part(&mut self, id: MessageId, domain: u32) {
        let Some(entry) = self.letters.get_mut(&id) else { return };
        let Some(at) = entry.parts.iter().position(|part| part.domain == domain) else { return };
        self.counts[entry.state() as usize] -= 1;
        entry.parts.swap_remove(at);
        if entry.parts.is_empty() {
            self.bytes -= entry.size;
            let origin = entry.origin;
            self.letters.remove(&id);
            self.origins.release(origin);
        } else {
            self.counts[entry.state() as usize] += 1;
        }
        self.domains.release(domain);
    }
}

impl Origin {
    fn facts<'a>(&'a self, domain: &'a Domain) -> LetterFacts<'a> {
        LetterFacts { domain, sender: &self.sender, connector: &self.connector }
    }

    /// Which way letters to `domain` go: as an administrator says, else as `find` does.
    fn route(&self, domain: &Domain, find: FindRoute<'_>) -> Option<Arc<SendConnector>> {
        let found = find(self.facts(domain));
        match self.redirect.as_ref().filter(|redirect| redirect.is_about(domain)) {
            None => found,
            // What cannot be read goes nowhere: the way that an administrator did not want is the wrong one.
            Some(redirect) => {
                let host: SmartHost = redirect.to.parse().ok()?;
                Some(Arc::new(SendConnector::redirected(found.as_deref(), host)))
            }
        }
    }
}

impl Entry {
    /// Under way if any part is, else in line if any part is.
    fn state(&self) -> LetterState {
        self.parts.iter().map(|part| part.state).min().unwrap_or(LetterState::Retry)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const NOW: i64 = 1_000_000;

    fn domain(name: &str) -> Domain {
        Domain::parse(name).unwrap()
    }

    fn arrival(id: u64, domains: &[&str]) -> Arrival {
        Arrival {
            id: MessageId(id),
            size: 10,
            sender: ReversePath::Null,
            connector: "default".to_owned(),
            source: IpAddr::from([192, 0, 2, 1]),
            held: false,
            redirect: None,
            domains: domains.iter().map(|name| (Some(domain(name)), 0)).collect(),
        }
    }

    /// Some job of that letter, on the first lane.
    fn job(id: u64) -> Job {
        Job { id: MessageId(id), lane: 0, route: None, destination: None, domains: vec![] }
    }

    fn book(attempts_max: usize) -> Book {
        Book::new(domain("relay.example"), attempts_max)
    }

    /// One route per domain, named like it, with two connections.
    fn each(letter: LetterFacts<'_>) -> Option<Arc<SendConnector>> {
        let mut route = SendConnector::new(letter.domain.as_str());
        route.max_connections = 2;
        Some(Arc::new(route))
    }

    fn one(_: LetterFacts<'_>) -> Option<Arc<SendConnector>> {
        Some(Arc::new(SendConnector::new("all")))
    }

    fn none(_: LetterFacts<'_>) -> Option<Arc<SendConnector>> {
        None
    }

    fn jobs(book: &mut Book) -> Vec<(u64, Vec<String>)> {
        std::iter::from_fn(|| book.next_job(NOW))
            .map(|job| (job.id.0, job.domains.iter().map(ToString::to_string).collect()))
            .collect()
    }

    #[test]
    fn a_full_lane_never_holds_up_another() {
        let mut book = book(100);
        for id in 0..10 {
            book.add(arrival(id, &["slow.example"]));
        }
        book.add(arrival(99, &["quick.example"]));
        book.make_ready(1, &each);
        let taken = jobs(&mut book);
        assert_eq!(taken.iter().filter(|(_, domains)| domains[0] == "slow.example").count(), 2);
        assert!(taken.iter().any(|(id, _)| *id == 99));
        assert_eq!(book.active(), 3);
    }

    #[test]
    fn lanes_take_turns_under_the_common_limit() {
        let mut book = book(2);
        for id in 0..6 {
            book.add(arrival(id, &[["a.example", "b.example", "c.example"][id as usize % 3]]));
        }
        book.make_ready(1, &each);
        let mut order = Vec::new();
        let mut running = VecDeque::new();
        while let Some(job) = book.next_job(NOW).or_else(|| {
            let done: Job = running.pop_front()?;
            book.settle(&done, done.domains.iter().map(|domain| (domain.clone(), None)));
            book.release(done.lane);
            book.next_job(NOW)
        }) {
            order.push(job.domains[0].to_string().remove(0));
            running.push_back(job);
        }
        assert_eq!(order.iter().collect::<String>(), "abcabc");
    }

    #[test]
    fn domains_of_one_route_go_together_and_others_apart() {
        let mut book = book(10);
        book.add(arrival(1, &["a.example", "b.example"]));
        book.make_ready(1, &one);
        assert_eq!(jobs(&mut book), [(1, vec!["a.example".to_owned(), "b.example".to_owned()])]);
        let mut book = self::book(10);
        book.add(arrival(1, &["a.example", "b.example"]));
        book.make_ready(1, &each);
        assert_eq!(jobs(&mut book).len(), 2);
        assert_eq!(book.count(LetterState::Active), 1);
        book.settle(&job(1), [(domain("a.example"), None)]);
        assert_eq!(book.len(), 1);
        book.settle(&job(1), [(domain("b.example"), Some(Again::at(500)))]);
        assert_eq!((book.count(LetterState::Retry), book.next_due_ms()), (1, Some(500)));
        book.make_ready(499, &each);
        assert!(jobs(&mut book).is_empty());
        book.make_ready(500, &each);
        assert_eq!(jobs(&mut book), [(1, vec!["b.example".to_owned()])]);
        book.settle(&job(1), [(domain("b.example"), None)]);
        assert_eq!((book.len(), book.bytes(), book.domains.len()), (0, 0, 0));
        assert_eq!(
            [LetterState::Active, LetterState::Ready, LetterState::Retry].map(|state| book.count(state)),
            [0; 3]
        );
    }

    #[test]
    fn a_new_route_wakes_what_waited_for_it_and_nothing_else() {
        let mut book = book(10);
        book.add(arrival(1, &["a.example"]));
        book.add(arrival(2, &["b.example"]));
        book.make_ready(1, &none);
        assert_eq!(jobs(&mut book).len(), 2);
        for (id, name) in [(1, "a.example"), (2, "b.example")] {
            book.settle(&job(id), [(domain(name), Some(Again::at(9_000)))]);
        }
        let only_a = |letter: LetterFacts<'_>| if letter.domain.as_str() == "a.example" { each(letter) } else { None };
        book.change_routes(100, &none, &only_a);
        book.make_ready(100, &only_a);
        assert_eq!(jobs(&mut book), [(1, vec!["a.example".to_owned()])]);
    }

    #[test]
    fn what_is_in_line_follows_a_changed_route() {
        let mut book = book(10);
        book.add(arrival(1, &["a.example"]));
        book.make_ready(1, &none);
        assert_eq!(book.count(LetterState::Ready), 1);
        book.change_routes(2, &none, &one);
        book.make_ready(2, &one);
        let job = book.next_job(NOW).unwrap();
        assert_eq!(job.route.unwrap().name, "all");
        assert!(book.next_job(NOW).is_none());
    }

    #[test]
    fn a_redirected_letter_goes_there_until_it_is_sent_back_and_only_its_part() {
        let mut book = book(10);
        book.add(arrival(1, &["a.example", "b.example"]));
        book.add(arrival(2, &["a.example"]));
        book.make_ready(1, &one);
        let to = |domains: &[&str]| Redirect {
            to: "10.1.2.3:26".to_owned(),
            domains: domains.iter().map(|name| domain(name)).collect(),
            at_ms: 0,
            by: "admin".to_owned(),
        };
        book.redirect(&[MessageId(1)], Some(&to(&["a.example"])), 2);
        assert_eq!(book.count(LetterState::Retry), 1);
        book.make_ready(2, &one);
        let way =
            |job: &Job| job.route.as_ref().map(|route| route.smart_hosts.iter().map(|host| host.address()).collect());
        let mut jobs: Vec<(u64, String, Vec<String>)> = std::iter::from_fn(|| book.next_job(NOW))
            .map(|job| (job.id.0, job.domains[0].to_string(), way(&job).unwrap()))
            .collect();
        jobs.sort();
        let there = vec!["10.1.2.3:26".to_owned()];
        let part = |id, name: &str, way: &[String]| (id, name.to_owned(), way.to_vec());
        assert_eq!(jobs, [part(1, "a.example", &there), part(1, "b.example", &[]), part(2, "a.example", &[])]);
        // What is under way finishes; then it goes by its routes again.
        book.redirect(&[MessageId(1)], None, 3);
        for name in ["a.example", "b.example"] {
            book.settle(&job(1), [(domain(name), Some(Again::at(4)))]);
        }
        book.make_ready(4, &one);
        let again = book.next_job(NOW).unwrap();
        assert_eq!((again.id.0, way(&again), again.domains.len()), (1, Some(vec![]), 2));
        book.remove(MessageId(1));
        book.remove(MessageId(2));
        assert_eq!(book.origins.len(), 0);
    }

    #[test]
    fn a_letter_removed_while_under_way_stays_removed() {
        let mut book = book(10);
        book.add(arrival(1, &["a.example"]));
        book.make_ready(1, &one);
        let job = book.next_job(NOW).unwrap();
        assert!(book.remove(job.id));
        book.settle(&job, [(domain("a.example"), Some(Again::at(5)))]);
        book.release(job.lane);
        assert_eq!((book.len(), book.active()), (0, 0));
        book.make_ready(10, &one);
        assert!(book.next_job(NOW).is_none());
    }

    #[test]
    fn a_letter_costs_about_a_hundred_bytes() {
        // A tree's nodes are two thirds full on average; a heap entry and an allocation's header come on top.
        let node = (size_of::<MessageId>() + size_of::<Entry>()) * 3 / 2;
        let each = node + size_of::<Part>() + 16 + size_of::<(i64, MessageId)>();
        assert!(each <= 130, "{each}");
    }

    /// One route by MX for everything, at most two connections per domain.
    fn by_mx(_: LetterFacts<'_>) -> Option<Arc<SendConnector>> {
        let mut route = SendConnector::new("mx");
        (route.mx, route.max_connections) = (true, 2);
        Some(Arc::new(route))
    }

    #[test]
    fn each_domain_of_a_route_by_mx_is_a_destination_of_its_own() {
        let mut book = book(100);
        for id in 0..10 {
            book.add(arrival(id, &["dead.example", "also-dead.example"]));
        }
        book.add(arrival(99, &["quick.example"]));
        book.make_ready(1, &by_mx);
        let jobs: Vec<Job> = std::iter::from_fn(|| book.next_job(NOW)).collect();
        let to = |name: &str| jobs.iter().filter(|job| job.destination == Some(domain(name))).count();
        assert_eq!((to("dead.example"), to("also-dead.example"), to("quick.example")), (2, 2, 1));
    }

    #[test]
    fn lanes_without_letters_are_forgotten() {
        let mut book = book(1000);
        for id in 0..100 {
            book.add(arrival(id, &[&format!("d{id}.example")]));
        }
        book.make_ready(1, &by_mx);
        let jobs: Vec<Job> = std::iter::from_fn(|| book.next_job(NOW)).collect();
        assert_eq!((jobs.len(), book.lanes.len()), (100, 100));
        for job in &jobs {
            book.settle(job, job.domains.iter().map(|domain| (domain.clone(), None)));
            book.release(job.lane);
        }
        assert!(book.next_job(NOW).is_none());
        assert_eq!((book.lanes.len(), book.domains.len(), book.origins.len()), (0, 0, 0));
    }

    #[test]
    fn a_flooding_device_never_starves_the_rest() {
        let mut book = book(1);
        for id in 0..1000 {
            book.add(arrival(id, &["x.example"]));
        }
        let other = Arrival { source: IpAddr::from([192, 0, 2, 2]), ..arrival(5000, &["x.example"]) };
        book.add(other);
        book.make_ready(1, &one);
        let first = book.next_job(NOW).unwrap();
        let second = book.next_for(first.lane, NOW).unwrap();
        assert_eq!((first.id.0, second.id.0), (0, 5000), "the other device is next, whatever stands before it");
    }

    #[test]
    fn a_rate_holds_one_destination_back_and_says_until_when() {
        let rated = |_: LetterFacts<'_>| {
            let mut route = SendConnector::new("slow");
            route.rate_per_minute = 60;
            Some(Arc::new(route))
        };
        let mut book = book(1000);
        for id in 0..100 {
            book.add(arrival(id, &["x.example"]));
        }
        book.make_ready(1, &rated);
        assert_eq!(jobs(&mut book).len(), 10, "ten seconds' worth go at once");
        let due = book.next_due_ms().unwrap();
        assert!((NOW + 900..=NOW + 1100).contains(&due), "{due}");
        assert!(book.next_job(due - 100).is_none());
        assert!(book.next_job(due).is_some());
        assert!(book.next_job(due).is_none());
    }

    #[test]
    fn a_connection_that_succeeds_wakes_what_waited_for_it() {
        let mut book = book(10);
        for (id, name) in [(1, "a.example"), (2, "a.example"), (3, "b.example")] {
            book.add(arrival(id, &[name]));
        }
        book.make_ready(1, &by_mx);
        let jobs: Vec<Job> = std::iter::from_fn(|| book.next_job(NOW)).collect();
        for job in &jobs {
            // Letter 2 was refused by name: it waits for its own time.
            let again = Again { due_ms: NOW + 900_000, unreached: job.id.0 != 2 };
            book.settle(job, [(job.domains[0].clone(), Some(again))]);
            book.release(job.lane);
        }
        book.add(arrival(4, &["a.example"]));
        book.make_ready(NOW + 1, &by_mx);
        let probe = book.next_job(NOW + 1).unwrap();
        assert_eq!(probe.id.0, 4);
        book.reached(probe.lane, NOW + 1);
        book.make_ready(NOW + 1, &by_mx);
        let woken: Vec<u64> = std::iter::from_fn(|| book.next_job(NOW + 1)).map(|job| job.id.0).collect();
        assert_eq!(woken, [1]);
    }

    #[test]
    fn a_held_letter_waits_for_its_release_even_when_an_attempt_was_running() {
        let mut book = book(10);
        book.add(arrival(1, &["a.example"]));
        book.add(Arrival { held: true, ..arrival(2, &["a.example"]) });
        book.make_ready(1, &one);
        let job = book.next_job(NOW).unwrap();
        assert_eq!((job.id.0, book.count(LetterState::Held)), (1, 1));
        book.hold(&[MessageId(1)], true, NOW);
        assert_eq!(book.count(LetterState::Active), 1);
        book.settle(&job, [(domain("a.example"), Some(Again::at(NOW)))]);
        assert_eq!(book.count(LetterState::Held), 2);
        book.release(job.lane);
        book.make_ready(NOW + 1, &one);
        assert!(book.next_job(NOW).is_none());
        book.hold(&[MessageId(1), MessageId(2)], false, NOW);
        book.make_ready(NOW + 1, &one);
        assert_eq!(jobs(&mut book).len(), 2);
    }
}
