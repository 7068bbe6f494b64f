//! Waiting for a condition with a deadline, never for a duration.

use std::time::{Duration, Instant};

/// Asks `condition` until it answers something, and panics with `what` after `deadline`.
#[track_caller]
pub fn until<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(began.elapsed() < deadline, "{what}: not within {deadline:?}");
        std::thread::sleep(Duration::from_millis(25));
    }
}
