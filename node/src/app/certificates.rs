//! Which certificates devices are shown, and whether they have expired: a device that checks them would fail on every
//! node that shows one, and a front is told before it does.

use std::collections::BTreeSet;

use crate::state::{Certificate, StateView};

/// The first certificate in use that has expired, in words.
pub(super) fn expired(view: &StateView, now_ms: i64) -> Option<String> {
    let certificates = &view.state.certificates;
    let wanted: BTreeSet<&str> = view
        .state
        .connectors
        .values()
        .filter(|found| found.value.enabled)
        .filter_map(|found| found.value.tls_certificate_name.as_deref())
        .collect();
    let all = certificates.values().map(|found| found.value.as_ref());
    let default = certificates.get(crate::pki::SUBMISSION_CERTIFICATE_NAME).or_else(|| certificates.values().next());
    let default = default.map(|found| found.value.name.as_str());
    let in_use =
        all.filter(|certificate| Some(certificate.name.as_str()) == default || is_wanted(certificate, &wanted));
    let gone = in_use
        .filter(|certificate| certificate.not_after_ms > 0 && certificate.not_after_ms <= now_ms)
        .min_by_key(|certificate| certificate.not_after_ms)?;
    Some(format!("\"{}\" expired at {}", gone.name, crate::clock::rfc3339(gone.not_after_ms)))
}

/// By name, or as Exchange writes it, by issuer and subject.
fn is_wanted(certificate: &Certificate, wanted: &BTreeSet<&str>) -> bool {
    let by_names = format!("<I>{}<S>{}", certificate.issuer, certificate.subject);
    wanted.contains(certificate.name.as_str()) || wanted.contains(by_names.as_str())
}
