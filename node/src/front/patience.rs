//! How long a backend may take to connect, to speak and to be checked: pure. One late backend is sick, and the device is given to another; most of them
//! late at the same time is overload, and then more attempts would only make it worse: patience grows instead.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// The deadline for a backend's first byte, and how it grows. Other deadlines grow with it.
#[derive(Debug)]
pub(super) struct Patience {
    base: Duration,
    most: Duration,
    current: Duration,
    changed_at: Option<Instant>,
    /// When each backend was last late for a device, and has not been in time since.
    late: BTreeMap<String, Instant>,
    /// The same for its checks.
    late_checks: BTreeMap<String, Instant>,
    /// How many backends there are.
    backends: usize,
}

/// Backends late within so long of each other, and their deadline, are late at the same time.
const WINDOW: Duration = Duration::from_secs(5);

impl Patience {
    pub(super) fn new(base: Duration, most: Duration) -> Self {
        Self {
            base,
            most: most.max(base),
            current: base,
            changed_at: None,
            late: BTreeMap::new(),
            late_checks: BTreeMap::new(),
            backends: 0,
        }
    }

    /// Another deadline, grown as much as the one for the first byte, at most to `most`.
    pub(super) fn grown(&mut self, deadline: Duration, most: Duration, now: Instant) -> Duration {
        self.relax(now);
        deadline.mul_f64(self.current.as_secs_f64() / self.base.as_secs_f64()).min(most).max(deadline)
    }

    /// The deadline for one attempt. When there is nobody else to ask it is all there is: the alternative would be to
    /// turn the device away.
    pub(super) fn deadline(&mut self, now: Instant, is_last: bool) -> Duration {
        self.relax(now);
        if is_last { self.most } else { self.current }
    }

    /// A backend missed its deadline for a device. Answers whether that is overload: then it says nothing about this
    /// backend.
    pub(super) fn was_late(&mut self, backend: &str, backends: usize, now: Instant) -> bool {
        self.backends = backends;
        self.relax(now);
        self.late.insert(backend.to_owned(), now);
        self.grow(now);
        self.are_most_late()
    }

    /// A backend missed the deadline of its check. All are checked all the time: as long as one of them is in time the
    /// others are sick. That all are late is said of them all the same, but then deadlines grow, so that backends that
    /// are only slow pass again.
    pub(super) fn was_late_for_check(&mut self, backend: &str, backends: usize, now: Instant) {
        self.backends = backends;
        self.relax(now);
        self.late_checks.insert(backend.to_owned(), now);
        self.grow(now);
    }

    /// A backend spoke to a device in time.
    pub(super) fn was_in_time(&mut self, backend: &str, now: Instant) {
        self.late.remove(backend);
        self.relax(now);
    }

    /// A backend was checked in time, well or not.
    pub(super) fn was_in_time_for_check(&mut self, backend: &str, now: Instant) {
        self.late_checks.remove(backend);
        self.relax(now);
    }

    fn are_most_late(&self) -> bool {
        self.late.len() > 1 && self.late.len() * 2 > self.backends
    }

    fn is_overload(&self) -> bool {
        self.are_most_late() || (self.late_checks.len() > 1 && self.late_checks.len() >= self.backends)
    }

    /// Doubles the deadline under overload, at most one step a deadline: those who miss it together are one event.
    fn grow(&mut self, now: Instant) {
        let may_step = self.changed_at.is_none_or(|at| now.duration_since(at) >= self.current);
        if self.is_overload() && may_step {
            self.current = (self.current * 2).min(self.most);
            self.changed_at = Some(now);
        }
    }

    /// Forgets what is long ago; each quiet window halves what was added.
    fn relax(&mut self, now: Instant) {
        // The next one to be late after the deadline has grown is late a whole deadline later.
        let window = WINDOW + self.current;
        self.late.retain(|_, at| now.duration_since(*at) < window);
        self.late_checks.retain(|_, at| now.duration_since(*at) < window);
        let is_quiet = !self.is_overload() && self.changed_at.is_none_or(|at| now.duration_since(at) >= WINDOW);
        if self.current > self.base && is_quiet {
            self.current = (self.current / 2).max(self.base);
            self.changed_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_secs(1);
    const MOST: Duration = Duration::from_secs(30);

    #[test]
    fn one_late_backend_of_three_is_sick_and_nobody_waits_longer() {
        let (mut patience, now) = (Patience::new(BASE, MOST), Instant::now());
        for second in 0..10 {
            let now = now + Duration::from_secs(second);
            assert!(!patience.was_late("n1", 3, now));
            assert_eq!(patience.deadline(now, false), BASE);
        }
    }

    #[test]
    fn most_backends_late_at_once_is_overload_and_patience_doubles_up_to_its_bound() {
        let (mut patience, mut now) = (Patience::new(BASE, MOST), Instant::now());
        assert!(!patience.was_late("n1", 3, now));
        assert!(patience.was_late("n2", 3, now));
        assert_eq!(patience.deadline(now, false), BASE * 2);
        assert!(patience.was_late("n3", 3, now));
        assert_eq!(patience.deadline(now, false), BASE * 2, "one event, one step");
        for _ in 0..10 {
            now += patience.deadline(now, false);
            patience.was_late("n1", 3, now);
            patience.was_late("n2", 3, now);
        }
        assert_eq!(patience.deadline(now, false), MOST);
    }

    #[test]
    fn patience_shrinks_again_when_backends_are_in_time() {
        let (mut patience, mut now) = (Patience::new(BASE, MOST), Instant::now());
        patience.was_late("n1", 2, now);
        patience.was_late("n2", 2, now);
        assert_eq!(patience.deadline(now, false), BASE * 2);
        patience.was_in_time("n1", now);
        patience.was_in_time("n2", now);
        now += WINDOW;
        assert_eq!(patience.deadline(now, false), BASE);
    }

    #[test]
    fn checks_that_are_all_late_make_all_deadlines_grow_and_two_of_three_do_not() {
        let (mut patience, now) = (Patience::new(BASE, MOST), Instant::now());
        let check = Duration::from_millis(750);
        patience.was_late_for_check("n1", 3, now);
        patience.was_late_for_check("n2", 3, now);
        assert_eq!(patience.grown(check, MOST, now), check, "the third one is in time");
        patience.was_late_for_check("n3", 3, now);
        assert_eq!(patience.grown(check, MOST, now), check * 2);
        assert_eq!(patience.grown(check, Duration::from_secs(1), now), Duration::from_secs(1));
        assert_eq!(patience.grown(check, Duration::ZERO, now), check, "never less than it was");
        assert_eq!(patience.deadline(now, false), BASE * 2);
        patience.was_in_time_for_check("n3", now + BASE);
        assert_eq!(patience.grown(check, MOST, now + WINDOW), check, "one in time: the others are sick");
    }

    #[test]
    fn two_that_stay_late_do_not_keep_the_deadline_long_when_more_are_in_time() {
        let (mut patience, now) = (Patience::new(BASE, MOST), Instant::now());
        patience.was_late("n1", 4, now);
        patience.was_late("n2", 4, now);
        assert_eq!(patience.deadline(now, false), BASE, "half is not most");
        patience.was_late("n3", 4, now);
        assert_eq!(patience.deadline(now, false), BASE * 2);
        patience.was_in_time("n3", now);
        patience.was_late("n1", 4, now + WINDOW);
        assert_eq!(patience.deadline(now + WINDOW, false), BASE);
    }

    #[test]
    fn late_long_apart_is_not_overload() {
        let (mut patience, now) = (Patience::new(BASE, MOST), Instant::now());
        assert!(!patience.was_late("n1", 3, now));
        assert!(!patience.was_late("n2", 3, now + WINDOW + BASE));
    }

    #[test]
    fn the_last_one_left_gets_all_there_is() {
        assert_eq!(Patience::new(BASE, MOST).deadline(Instant::now(), true), MOST);
    }
}
