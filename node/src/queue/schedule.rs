//! When a letter is tried again, and when it is given up. Pure: time and chance are passed in.

use std::time::Duration;

use crate::connector::RetryOverride;

/// Exchange's `QueueGlitchRetryCount`.
pub const GLITCH_RETRIES: u32 = 4;
/// Exchange's `TransientFailureRetryCount`.
pub const TRANSIENT_FAILURE_RETRIES: u32 = 6;
/// So much earlier or later, in per cent: letters that failed together do not come back together.
pub const JITTER_PERCENT: u32 = 10;

/// The schedule and the bounds of the queue, from the node file's `[queue]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// The first [`GLITCH_RETRIES`] retries.
    pub glitch_retry_interval: Duration,
    /// The next [`TRANSIENT_FAILURE_RETRIES`].
    pub transient_failure_retry_interval: Duration,
    /// All others.
    pub message_retry_interval: Duration,
    /// When a letter is given up and its sender told.
    pub message_expiration_timeout: Duration,
    /// When the sender of a letter that still waits is told so; zero: never.
    pub delay_notification_timeout: Duration,
    /// Attempts running at one time on this node, all routes together.
    pub attempts_max: usize,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            // Exchange: QueueGlitchRetryInterval.
            glitch_retry_interval: Duration::from_secs(60),
            // Exchange: TransientFailureRetryInterval.
            transient_failure_retry_interval: Duration::from_secs(5 * 60),
            // Exchange: MessageRetryInterval.
            message_retry_interval: Duration::from_secs(15 * 60),
            // RFC 5321 §4.5.4.1: at least 4-5 days. A weekend must not kill a letter.
            message_expiration_timeout: Duration::from_secs(5 * 24 * 3600),
            // Exchange: DelayNotificationTimeout.
            delay_notification_timeout: Duration::from_secs(4 * 3600),
            // Exchange: MaxOutboundConnections.
            attempts_max: 1000,
        }
    }
}

impl QueueSettings {
    /// The same, where a route does not differ.
    #[must_use]
    pub fn with(&self, route: &RetryOverride) -> Self {
        let or = |secs: Option<u64>, own| secs.map_or(own, Duration::from_secs);
        Self {
            glitch_retry_interval: or(route.glitch_retry_interval_secs, self.glitch_retry_interval),
            transient_failure_retry_interval: or(
                route.transient_failure_retry_interval_secs,
                self.transient_failure_retry_interval,
            ),
            message_retry_interval: or(route.message_retry_interval_secs, self.message_retry_interval),
            message_expiration_timeout: or(route.message_expiration_timeout_secs, self.message_expiration_timeout),
            ..*self
        }
    }
}

impl QueueSettings {
    /// When a letter is given up, in unix milliseconds.
    #[must_use]
    pub fn expires_at_ms(&self, received_at_ms: i64) -> i64 {
        received_at_ms.saturating_add(ms(self.message_expiration_timeout))
    }

    /// Whether the sender of a letter that still waits is to be told by now.
    #[must_use]
    pub fn is_delayed(&self, received_at_ms: i64, now_ms: i64) -> bool {
        let patience = self.delay_notification_timeout;
        !patience.is_zero() && now_ms.saturating_sub(received_at_ms) >= ms(patience)
    }
}

/// What follows a deferral.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try again then, in unix milliseconds.
    At(i64),
    /// Too old: tell the sender.
    Expired,
}

/// Says what follows the deferral of a recipient that was tried `attempts` times, the last one included.
///
/// `chance` is uniform in 0 to 1 and becomes the jitter. The last attempt falls on the expiry itself, never long
/// before it.
#[must_use]
pub fn next(settings: &QueueSettings, received_at_ms: i64, attempts: u32, now_ms: i64, chance: f64) -> Next {
    let expires_at = received_at_ms.saturating_add(ms(settings.message_expiration_timeout));
    if now_ms >= expires_at {
        return Next::Expired;
    }
    let interval = match attempts {
        0..=GLITCH_RETRIES => settings.glitch_retry_interval,
        attempts if attempts <= GLITCH_RETRIES + TRANSIENT_FAILURE_RETRIES => settings.transient_failure_retry_interval,
        _ => settings.message_retry_interval,
    };
    let jitter = (chance.clamp(0.0, 1.0) * 2.0 - 1.0) * f64::from(JITTER_PERCENT) / 100.0;
    let wait = Duration::from_secs_f64(interval.as_secs_f64() * (1.0 + jitter));
    Next::At(now_ms.saturating_add(ms(wait).max(1)).min(expires_at))
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_000_000_000;
    const MINUTE: i64 = 60_000;

    fn waits(chance: f64) -> Vec<i64> {
        let settings = QueueSettings::default();
        (1..=12)
            .map(|attempts| match next(&settings, NOW, attempts, NOW, chance) {
                Next::At(at) => at - NOW,
                Next::Expired => panic!("expired at once"),
            })
            .collect()
    }

    #[test]
    fn the_default_is_exchanges_schedule() {
        let expected: Vec<i64> =
            [1, 1, 1, 1, 5, 5, 5, 5, 5, 5, 15, 15].iter().map(|minutes| minutes * MINUTE).collect();
        assert_eq!(waits(0.5), expected);
    }

    #[test]
    fn jitter_is_ten_per_cent_at_most() {
        assert_eq!(waits(0.0)[0], 54_000);
        assert_eq!(waits(1.0)[0], 66_000);
        assert_eq!(waits(f64::INFINITY)[0], 66_000);
    }

    #[test]
    fn a_letter_expires_after_five_days_and_not_before() {
        let settings = QueueSettings::default();
        let end = NOW + 5 * 24 * 60 * MINUTE;
        assert_eq!(next(&settings, NOW, 500, end - 5 * MINUTE, 1.0), Next::At(end), "the last attempt is at the end");
        assert_eq!(next(&settings, NOW, 500, end - 1, 0.0), Next::At(end));
        assert_eq!(next(&settings, NOW, 500, end, 0.5), Next::Expired);
        assert_eq!(next(&settings, NOW, 1, i64::MAX, 0.5), Next::Expired);
    }

    #[test]
    fn a_route_may_have_a_schedule_of_its_own() {
        let route = RetryOverride {
            glitch_retry_interval_secs: Some(7),
            message_expiration_timeout_secs: Some(3600),
            ..RetryOverride::default()
        };
        let settings = QueueSettings::default().with(&route);
        assert_eq!(next(&settings, NOW, 1, NOW, 0.5), Next::At(NOW + 7000));
        assert_eq!(next(&settings, NOW, 5, NOW, 0.5), Next::At(NOW + 5 * MINUTE));
        assert_eq!(next(&settings, NOW, 9, NOW + 60 * MINUTE, 0.5), Next::Expired);
    }

    #[test]
    fn a_schedule_of_nothing_does_not_spin() {
        let zero = Duration::ZERO;
        let settings = QueueSettings { glitch_retry_interval: zero, ..QueueSettings::default() };
        assert_eq!(next(&settings, NOW, 1, NOW, 0.5), Next::At(NOW + 1));
    }
}
