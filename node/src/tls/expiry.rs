//! When the devices' certificates end, as a metric.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use metrics::{describe_gauge, gauge};

use crate::state::StateView;

/// End of validity of a certificate, by name.
const EXPIRY: &str = "posthouse_certificate_expiry_timestamp_seconds";

/// Names that were published: one that is gone must not go on warning.
static PUBLISHED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Describes the series.
pub fn describe_metrics() {
    describe_gauge!(
        EXPIRY,
        "End of validity of a devices' server certificate, in seconds since 1970; NaN once it was deleted."
    );
}

/// Publishes the end of every certificate.
pub fn publish_expiry(view: &StateView) {
    let mut published = PUBLISHED.lock().unwrap_or_else(PoisonError::into_inner);
    for name in published.iter().filter(|name| !view.state.certificates.contains_key(*name)) {
        gauge!(EXPIRY, "name" => name.clone()).set(f64::NAN);
    }
    for found in view.state.certificates.values() {
        let name = found.value.name.clone();
        published.insert(name.clone());
        // Milliseconds since 1970 are exact in a float for the next quarter of a million years.
        #[allow(clippy::cast_precision_loss)]
        gauge!(EXPIRY, "name" => name).set(found.value.not_after_ms as f64 / 1000.0);
    }
}
