//! What a front counts. Every series with a closed set of labels is registered at zero from the start; those per
//! backend as soon as the backend is known.

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

/// 1 while the backend passes its checks; label `backend`.
pub const BACKEND_UP: &str = "posthouse_front_backend_up";
/// 1 while the backend takes new connections: up, ready, not draining, and none is better; label `backend`.
pub const BACKEND_ELIGIBLE: &str = "posthouse_front_backend_eligible";
/// Sessions that are open now.
pub const SESSIONS: &str = "posthouse_front_sessions";
/// Connections of devices by how they began; label `result`.
pub const CONNECTIONS_TOTAL: &str = "posthouse_front_connections_total";
/// Devices that were given to another backend, by what the first one did; label `reason`.
pub const RETRIES_TOTAL: &str = "posthouse_front_retries_total";
/// Sessions that a backend cut after it had spoken.
pub const SESSIONS_BROKEN_TOTAL: &str = "posthouse_front_sessions_broken_total";
/// Checks that failed; labels `backend` and `reason`.
pub const CHECK_FAILURES_TOTAL: &str = "posthouse_front_check_failures_total";
/// Current patience with silent backends.
pub const BANNER_TIMEOUT_SECONDS: &str = "posthouse_front_banner_timeout_seconds";

/// 1 while no backend of the service is well and the least sick one is used; label `service`.
pub const PANIC: &str = "posthouse_front_panic";

/// 1 while every backend in rotation of the service may act on old state; labels `service` and `reason`.
pub const STALE: &str = "posthouse_front_stale";

/// Why what the backends of a service know may be old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StaleReason {
    /// None of them hears a leader: the quorum is gone.
    Leaderless,
    /// None of them speaks to this front.
    Unheard,
}

impl StaleReason {
    pub(super) const ALL: [Self; 2] = [Self::Leaderless, Self::Unheard];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Leaderless => "leaderless",
            Self::Unheard => "unheard",
        }
    }
}

/// How a connection began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionResult {
    /// A backend spoke and the device heard it.
    Served,
    /// Nobody could be had.
    Unserved,
    /// More than `limits.max_connections`.
    Limit,
    /// More than one source may have, or faster than it may.
    SourceLimit,
    /// The device left, or never spoke where it must speak first.
    Gone,
}

impl ConnectionResult {
    const ALL: [Self; 5] = [Self::Served, Self::Unserved, Self::Limit, Self::SourceLimit, Self::Gone];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Unserved => "unserved",
            Self::Limit => "limit",
            Self::SourceLimit => "source_limit",
            Self::Gone => "gone",
        }
    }
}

/// What a backend did instead of speaking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RetryReason {
    /// The connection was refused, or could not be made.
    Refused,
    /// No connection within `check.connect_timeout`.
    ConnectTimeout,
    /// Reset before its first byte.
    Reset,
    /// Closed before its first byte.
    Closed,
    /// Nothing within the banner deadline.
    Silent,
}

impl RetryReason {
    const ALL: [Self; 5] = [Self::Refused, Self::ConnectTimeout, Self::Reset, Self::Closed, Self::Silent];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Silent => "silent",
        }
    }
}

/// Describes every metric and registers the closed ones at zero.
pub(super) fn register() {
    describe_gauge!(BACKEND_UP, "1 while the backend passes its checks.");
    describe_gauge!(BACKEND_ELIGIBLE, "1 while the backend takes new connections.");
    describe_gauge!(SESSIONS, "Sessions of devices that are open now.");
    describe_counter!(CONNECTIONS_TOTAL, "Connections of devices, by how they began.");
    describe_counter!(RETRIES_TOTAL, "Times a device was given to another backend before it heard anything.");
    describe_counter!(SESSIONS_BROKEN_TOTAL, "Sessions that a backend reset after it had spoken.");
    describe_counter!(CHECK_FAILURES_TOTAL, "Checks of backends that failed.");
    describe_gauge!(BANNER_TIMEOUT_SECONDS, Unit::Seconds, "How long a backend may be silent now.");
    describe_gauge!(PANIC, "1 while no backend of the service is well and the least sick one is used.");
    describe_gauge!(STALE, "1 while every backend in rotation of the service may act on old state.");
    gauge!(SESSIONS).set(0.0);
    counter!(SESSIONS_BROKEN_TOTAL).absolute(0);
    for result in ConnectionResult::ALL {
        counter!(CONNECTIONS_TOTAL, "result" => result.as_str()).absolute(0);
    }
    for reason in RetryReason::ALL {
        counter!(RETRIES_TOTAL, "reason" => reason.as_str()).absolute(0);
    }
}

/// Registers the series of one service.
pub(super) fn register_service(port: u16) {
    gauge!(PANIC, "service" => port.to_string()).set(0.0);
    for reason in StaleReason::ALL {
        gauge!(STALE, "service" => port.to_string(), "reason" => reason.as_str()).set(0.0);
    }
}

/// Registers the series of one backend.
pub(super) fn register_backend(backend: &str) {
    gauge!(BACKEND_UP, "backend" => backend.to_owned()).set(0.0);
    gauge!(BACKEND_ELIGIBLE, "backend" => backend.to_owned()).set(0.0);
    for reason in super::check::CheckFailure::REASONS {
        counter!(CHECK_FAILURES_TOTAL, "backend" => backend.to_owned(), "reason" => reason).absolute(0);
    }
}
