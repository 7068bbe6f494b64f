//! What the queue keeps in memory: per letter its domains, when each is due, and where it waits. No I/O, no clock;
//! about a hundred bytes per letter, whatever the letter's size.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use super::LetterState;
use crate::connector::SendConnector;
use crate::mail::Domain;
use crate::spool::{Arrival, MessageId};

/// Letters without a route are only recorded as such; a few at a time are enough.
const NO_ROUTE_ATTEMPTS: usize = 4;

/// Finds the route of a domain.
pub(super) type FindRoute<'a> = &'a dyn Fn(&Domain) -> Option<Arc<SendConnector>>;

/// Everything that waits or is under way.
#[derive(Debug)]
pub(super) struct Book {
    letters: BTreeMap<MessageId, Entry>,
    domains: Vec<DomainSlot>,
    domain_index: HashMap<Domain, u32>,
    free_domains: Vec<u32>,
    lanes: Vec<Lane>,
    lane_index: HashMap<Option<String>, u32>,
    /// Where the search for ready work goes on: every lane has its turn.
    cursor: usize,
    /// When a letter has a part that is due; may hold more than is true.
    due: BinaryHeap<Reverse<(i64, MessageId)>>,
    counts: [u64; 3],
    bytes: u64,
    active: usize,
    attempts_max: usize,
    /// The name under which the bare `postmaster` is queued.
    own: Domain,
}

#[derive(Debug)]
struct Entry {
    size: u64,
    parts: Vec<Part>,
}

/// The recipients of one domain of a letter.
#[derive(Clone, Copy, Debug)]
struct Part {
    due_ms: i64,
    domain: u32,
    lane: u32,
    state: LetterState,
}

#[derive(Debug)]
struct DomainSlot {
    name: Domain,
    parts: u64,
}

/// What goes one way: the letters of one route that are due, and how many attempts run there.
#[derive(Debug)]
struct Lane {
    route: Option<Arc<SendConnector>>,
    ready: VecDeque<MessageId>,
    active: usize,
}

/// One letter to be tried on one route.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) id: MessageId,
    pub(super) lane: u32,
    pub(super) route: Option<Arc<SendConnector>>,
    /// Its domains that go this way. The node's own name stands for the bare `postmaster`.
    pub(super) domains: Vec<Domain>,
}

impl Book {
    pub(super) fn new(own: Domain, attempts_max: usize) -> Self {
        Self {
            letters: BTreeMap::new(),
            domains: Vec::new(),
            domain_index: HashMap::new(),
            free_domains: Vec::new(),
            lanes: Vec::new(),
            lane_index: HashMap::new(),
            cursor: 0,
            due: BinaryHeap::new(),
            counts: [0; 3],
            bytes: 0,
            active: 0,
            attempts_max: attempts_max.max(1),
            own,
        }
    }

    pub(super) fn add(&mut self, arrival: Arrival) {
        if self.letters.contains_key(&arrival.id) || arrival.domains.is_empty() {
            return;
        }
        let mut parts: Vec<Part> = Vec::with_capacity(arrival.domains.len());
        for (domain, due_ms) in arrival.domains {
            let domain = self.domain_slot(domain.unwrap_or_else(|| self.own.clone()));
            match parts.iter_mut().find(|part| part.domain == domain) {
                Some(part) => part.due_ms = part.due_ms.min(due_ms),
                None => {
                    self.domains[domain as usize].parts += 1;
                    parts.push(Part { due_ms, domain, lane: 0, state: LetterState::Retry });
                }
            }
        }
        let first = parts.iter().map(|part| part.due_ms).min().unwrap_or(0);
        self.due.push(Reverse((first, arrival.id)));
        self.bytes += arrival.size;
        let entry = Entry { size: arrival.size, parts };
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
            let due: Vec<u32> = entry
                .parts
                .iter()
                .filter(|part| part.state == LetterState::Retry && part.due_ms <= now_ms)
                .map(|part| part.domain)
                .collect();
            for domain in due {
                let route = find(&self.domains[domain as usize].name);
                let lane = self.lane(route);
                self.set(id, domain, |part| (part.state, part.lane) = (LetterState::Ready, lane));
                let ready = &mut self.lanes[lane as usize].ready;
                if ready.back() != Some(&id) {
                    ready.push_back(id);
                }
            }
        }
    }

    /// Takes the next piece of work, lane by lane, within the limits of each and of all.
    pub(super) fn next_job(&mut self) -> Option<Job> {
        if self.active >= self.attempts_max {
            return None;
        }
        for step in 0..self.lanes.len() {
            let at = (self.cursor + step) % self.lanes.len();
            if self.lanes[at].active >= self.lanes[at].attempts_max() {
                continue;
            }
            let lane = u32::try_from(at).unwrap_or(u32::MAX);
            if let Some(job) = self.next_for(lane) {
                self.cursor = at + 1;
                self.lanes[at].active += 1;
                self.active += 1;
                return Some(job);
            }
        }
        None
    }

    /// Takes more work for somebody who already works on `lane`.
    pub(super) fn next_for(&mut self, lane: u32) -> Option<Job> {
        while let Some(id) = self.lanes.get_mut(lane as usize)?.ready.pop_front() {
            let Some(entry) = self.letters.get(&id) else { continue };
            let mine = |part: &&Part| part.state == LetterState::Ready && part.lane == lane;
            let domains: Vec<u32> = entry.parts.iter().filter(mine).map(|part| part.domain).collect();
            if domains.is_empty() {
                continue;
            }
            for domain in &domains {
                self.set(id, *domain, |part| part.state = LetterState::Active);
            }
            let name = |domain: &u32| self.domains[*domain as usize].name.clone();
            let domains = domains.iter().map(name).collect();
            return Some(Job { id, lane, route: self.lanes[lane as usize].route.clone(), domains });
        }
        None
    }

    /// Ends work on a lane that [`Book::next_job`] began.
    pub(super) fn release(&mut self, lane: u32) {
        if let Some(lane) = self.lanes.get_mut(lane as usize) {
            lane.active = lane.active.saturating_sub(1);
            self.active = self.active.saturating_sub(1);
        }
    }

    /// Notes what came of a job: for each domain when to try again, or nothing more to do.
    pub(super) fn settle(&mut self, id: MessageId, domains: impl IntoIterator<Item = (Domain, Option<i64>)>) {
        for (domain, next) in domains {
            let Some(&domain) = self.domain_index.get(&domain) else { continue };
            match next {
                Some(due_ms) => {
                    self.set(id, domain, |part| (part.state, part.due_ms) = (LetterState::Retry, due_ms));
                    self.due.push(Reverse((due_ms, id)));
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
        for part in entry.parts {
            self.drop_domain(part.domain);
        }
        true
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

    /// Takes up new routes: what was in line is put in line anew, and what waits for a domain whose route changed is
    /// due at once.
    pub(super) fn change_routes(&mut self, now_ms: i64, old: FindRoute<'_>, new: FindRoute<'_>) {
        let changed: Vec<bool> =
            self.domains.iter().map(|slot| slot.parts > 0 && old(&slot.name) != new(&slot.name)).collect();
        for lane in &mut self.lanes {
            lane.ready.clear();
        }
        let (counts, due) = (&mut self.counts, &mut self.due);
        for (id, entry) in &mut self.letters {
            counts[entry.state() as usize] -= 1;
            let mut touched = false;
            for part in &mut entry.parts {
                let wakes = part.state == LetterState::Retry && changed[part.domain as usize];
                if part.state == LetterState::Ready || wakes {
                    (part.state, part.due_ms) = (LetterState::Retry, part.due_ms.min(now_ms));
                    touched = true;
                }
            }
            counts[entry.state() as usize] += 1;
            if touched {
                due.push(Reverse((now_ms, *id)));
            }
        }
    }

    /// When the next letter is due, in unix milliseconds.
    pub(super) fn next_due_ms(&self) -> Option<i64> {
        self.due.peek().map(|Reverse((due_ms, _))| *due_ms)
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
        self.active
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

    /// Every letter, oldest first: id, size, state, when it is due next, and its domains.
    pub(super) fn iter(&self) -> impl Iterator<Item = (MessageId, u64, LetterState, i64, Vec<&Domain>)> {
        self.letters.iter().map(|(id, entry)| {
            let due = entry.parts.iter().map(|part| part.due_ms).min().unwrap_or(0);
            let domains = entry.parts.iter().map(|part| &self.domains[part.domain as usize].name).collect();
            (*id, entry.size, entry.state(), due, domains)
        })
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
            self.letters.remove(&id);
        } else {
            self.counts[entry.state() as usize] += 1;
        }
        self.drop_domain(domain);
    }

    fn domain_slot(&mut self, name: Domain) -> u32 {
        if let Some(&known) = self.domain_index.get(&name) {
            return known;
        }
        let slot = DomainSlot { name: name.clone(), parts: 0 };
        let at = match self.free_domains.pop() {
            Some(at) => {
                self.domains[at as usize] = slot;
                at
            }
            None => {
                self.domains.push(slot);
                u32::try_from(self.domains.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.domain_index.insert(name, at);
        at
    }

    fn drop_domain(&mut self, domain: u32) {
        let slot = &mut self.domains[domain as usize];
        slot.parts -= 1;
        if slot.parts == 0 {
            self.domain_index.remove(&slot.name);
            self.free_domains.push(domain);
        }
    }

    fn lane(&mut self, route: Option<Arc<SendConnector>>) -> u32 {
        let name = route.as_ref().map(|route| route.name.clone());
        if let Some(&known) = self.lane_index.get(&name) {
            self.lanes[known as usize].route = route;
            return known;
        }
        self.lanes.push(Lane { route, ready: VecDeque::new(), active: 0 });
        let at = u32::try_from(self.lanes.len() - 1).unwrap_or(u32::MAX);
        self.lane_index.insert(name, at);
        at
    }
}

impl Entry {
    /// Under way if any part is, else in line if any part is.
    fn state(&self) -> LetterState {
        self.parts.iter().map(|part| part.state).min().unwrap_or(LetterState::Retry)
    }
}

impl Lane {
    fn attempts_max(&self) -> usize {
        self.route.as_ref().map_or(NO_ROUTE_ATTEMPTS, |route| (route.max_connections as usize).max(1))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn domain(name: &str) -> Domain {
        Domain::parse(name).unwrap()
    }

    fn arrival(id: u64, domains: &[&str]) -> Arrival {
        Arrival { id: MessageId(id), size: 10, domains: domains.iter().map(|name| (Some(domain(name)), 0)).collect() }
    }

    fn book(attempts_max: usize) -> Book {
        Book::new(domain("relay.example"), attempts_max)
    }

    /// One route per domain, named like it, with two connections.
    fn each(name: &Domain) -> Option<Arc<SendConnector>> {
        let mut route = SendConnector::new(name.as_str());
        route.max_connections = 2;
        Some(Arc::new(route))
    }

    fn one(_: &Domain) -> Option<Arc<SendConnector>> {
        Some(Arc::new(SendConnector::new("all")))
    }

    fn none(_: &Domain) -> Option<Arc<SendConnector>> {
        None
    }

    fn jobs(book: &mut Book) -> Vec<(u64, Vec<String>)> {
        std::iter::from_fn(|| book.next_job())
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
        while let Some(job) = book.next_job().or_else(|| {
            let done: Job = running.pop_front()?;
            book.settle(done.id, done.domains.into_iter().map(|domain| (domain, None)));
            book.release(done.lane);
            book.next_job()
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
        book.settle(MessageId(1), [(domain("a.example"), None)]);
        assert_eq!(book.len(), 1);
        book.settle(MessageId(1), [(domain("b.example"), Some(500))]);
        assert_eq!((book.count(LetterState::Retry), book.next_due_ms()), (1, Some(500)));
        book.make_ready(499, &each);
        assert!(jobs(&mut book).is_empty());
        book.make_ready(500, &each);
        assert_eq!(jobs(&mut book), [(1, vec!["b.example".to_owned()])]);
        book.settle(MessageId(1), [(domain("b.example"), None)]);
        assert_eq!((book.len(), book.bytes(), book.domain_index.len()), (0, 0, 0));
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
            book.settle(MessageId(id), [(domain(name), Some(9_000))]);
        }
        let only_a = |name: &Domain| if name.as_str() == "a.example" { each(name) } else { None };
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
        let job = book.next_job().unwrap();
        assert_eq!(job.route.unwrap().name, "all");
        assert!(book.next_job().is_none());
    }

    #[test]
    fn a_letter_removed_while_under_way_stays_removed() {
        let mut book = book(10);
        book.add(arrival(1, &["a.example"]));
        book.make_ready(1, &one);
        let job = book.next_job().unwrap();
        assert!(book.remove(job.id));
        book.settle(job.id, [(domain("a.example"), Some(5))]);
        book.release(job.lane);
        assert_eq!((book.len(), book.active()), (0, 0));
        book.make_ready(10, &one);
        assert!(book.next_job().is_none());
    }

    #[test]
    fn a_letter_costs_about_a_hundred_bytes() {
        // A tree's nodes are two thirds full on average; a heap entry and an allocation's header come on top.
        let node = (size_of::<MessageId>() + size_of::<Entry>()) * 3 / 2;
        let each = node + size_of::<Part>() + 16 + size_of::<(i64, MessageId)>();
        assert!(each <= 120, "{each}");
    }
}
