//! When something was used: words for it, and how far what is known reaches.

use jiff::Timestamp;
use posthouse_proto::v1::UsageScope;

use crate::console::Console;
use crate::output::{self, short_time};

/// A time of use, or `never`.
pub(super) fn seen(at: &str) -> String {
    if at.is_empty() { "never".to_owned() } else { short_time(at) }
}

/// Says which nodes did not answer: what they know of the use of things is missing in an answer that is complete
/// otherwise.
pub(super) fn note_missing(console: &Console, scope: Option<&UsageScope>) {
    let missing = scope.map(|scope| scope.unreachable.join(", ")).unwrap_or_default();
    if !missing.is_empty() && !console.out.format.is_json() {
        output::note(&format!("{missing} did not answer: when things were used there is not known"));
    }
}

/// Whether something was last seen at or after `since`.
pub(super) fn was_seen_since(last_seen: &str, since: Option<Timestamp>) -> bool {
    match since {
        None => !last_seen.is_empty(),
        Some(since) => last_seen.parse::<Timestamp>().is_ok_and(|last| last >= since),
    }
}

/// The moment `ago` before now, by the clock of the node that answered.
pub(super) fn before(scope: Option<&UsageScope>, ago: std::time::Duration) -> Option<Timestamp> {
    let now: Timestamp = scope?.answered_at.parse().ok()?;
    now.checked_sub(ago).ok()
}
