//! How many letters came in the last minute: thirteen slots of five seconds. A letter leaves the count 60 to 65
//! seconds after it came, so that no minute, wherever it begins, sees more than the limit.

/// Milliseconds of one slot.
const SLOT_MS: u64 = 5000;
/// Slots of a window: one minute, and the slot that is still filling.
pub const SLOTS: usize = 13;

/// Counts by slot. Times are milliseconds of a clock that never goes back; which one is the caller's affair, as long
/// as it is always the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Number of the newest slot.
    newest: u64,
    /// Index 0 is the newest slot.
    slots: [u32; SLOTS],
}

impl Window {
    /// Counts one at `now_ms`.
    pub fn add(&mut self, now_ms: u64) {
        self.advance(now_ms);
        self.slots[0] = self.slots[0].saturating_add(1);
    }

    /// How many came within the last minute.
    #[must_use]
    pub fn total(&self, now_ms: u64) -> u32 {
        self.ages(now_ms).into_iter().fold(0, u32::saturating_add)
    }

    /// The counts by age in slots, youngest first.
    #[must_use]
    pub fn ages(&self, now_ms: u64) -> [u32; SLOTS] {
        let mut moved = *self;
        moved.advance(now_ms);
        moved.slots
    }

    /// A window from counts by age, as another node tells them; what is older than a minute is dropped.
    #[must_use]
    pub fn of_ages(now_ms: u64, ages: &[u32]) -> Self {
        let mut slots = [0; SLOTS];
        for (slot, count) in slots.iter_mut().zip(ages) {
            *slot = *count;
        }
        Self { newest: now_ms / SLOT_MS, slots }
    }

    /// Slot by slot, the greater of the two: two nodes that tell of the same letters tell of them once.
    pub fn raise_to(&mut self, now_ms: u64, other: &Self) {
        self.advance(now_ms);
        for (slot, theirs) in self.slots.iter_mut().zip(other.ages(now_ms)) {
            *slot = (*slot).max(theirs);
        }
    }

    /// Slot by slot, the sum.
    #[must_use]
    pub fn plus(&self, now_ms: u64, other: &Self) -> Self {
        let mut sum = *self;
        sum.advance(now_ms);
        for (slot, theirs) in sum.slots.iter_mut().zip(other.ages(now_ms)) {
            *slot = slot.saturating_add(theirs);
        }
        sum
    }

    fn advance(&mut self, now_ms: u64) {
        let slot = now_ms / SLOT_MS;
        let passed = usize::try_from(slot.saturating_sub(self.newest)).unwrap_or(usize::MAX);
        if passed >= SLOTS {
            self.slots = [0; SLOTS];
        } else if passed > 0 {
            self.slots.rotate_right(passed);
            self.slots[..passed].fill(0);
        }
        self.newest = self.newest.max(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_last_minute_is_never_undercounted_and_five_seconds_more_at_most_overcounted(
            mut times in proptest::collection::vec(0_u64..200_000, 0..200), later in 0_u64..90_000,
        ) {
            times.sort_unstable();
            let mut window = Window::default();
            for time in &times {
                window.add(*time);
            }
            let now = times.last().copied().unwrap_or(0) + later;
            let within = |ms: u64| times.iter().filter(|time| **time + ms > now).count();
            let total = window.total(now) as usize;
            prop_assert!(within(60_000) <= total && total <= within(60_000 + SLOT_MS), "{total}");
        }
    }

    #[test]
    fn what_is_told_by_age_counts_the_same_under_another_clock() {
        let mut ours = Window::default();
        ours.add(1_000_000);
        ours.add(1_007_000);
        let theirs = Window::of_ages(77, &ours.ages(1_008_000));
        assert_eq!(theirs.total(77), 2);
        assert_eq!(theirs.total(77 + 59_000), 2);
        assert_eq!(theirs.total(77 + 60_000), 1, "the older one is gone first");
        assert_eq!(theirs.total(77 + 66_000), 0);
    }

    #[test]
    fn two_tellers_of_the_same_letters_do_not_double_them() {
        let mut told = Window::of_ages(0, &[3, 1]);
        told.raise_to(0, &Window::of_ages(0, &[2, 4]));
        assert_eq!(told.total(0), 7);
        assert_eq!(told.plus(0, &Window::of_ages(0, &[1])).total(0), 8);
    }
}
