//! The limit of open files: each session takes two. It is raised at start as far as the kernel allows, and a shortfall
//! is said then, not found at the busiest hour.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

use super::config::LimitsSection;

/// One to the device, one to the backend.
const PER_SESSION: u64 = 2;
/// Attempts that race, pipes, checks, streams of nodes, logs, HTTP.
const BESIDES: u64 = 512;

/// Raises the limit to what `limits.max_connections` needs.
pub(super) fn raise(limits: &LimitsSection) {
    let needed = needed(limits.max_connections);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return;
    }
    // Only root may raise the second one.
    for maximum in [maximum.map(|maximum| maximum.max(needed)), maximum] {
        let wanted = maximum.map_or(needed, |maximum| maximum.min(needed));
        if setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).is_ok() {
            break;
        }
    }
    let now = getrlimit(Resource::Nofile).current;
    match shortfall(now, limits.max_connections) {
        None => info!(open_files = now, "limit of open files raised"),
        Some(enough_for) => warn!(
            open_files = now,
            needed,
            enough_for_connections = enough_for,
            fix = "LimitNOFILE= in the unit, or lower limits.max_connections",
            "the limit of open files is too low for limits.max_connections"
        ),
    }
}

fn needed(connections: usize) -> u64 {
    (connections as u64).saturating_mul(PER_SESSION).saturating_add(BESIDES)
}

/// For how many connections `limit` is enough, when it is not enough for `connections`.
fn shortfall(limit: Option<u64>, connections: usize) -> Option<u64> {
    let limit = limit.filter(|limit| *limit < needed(connections))?;
    Some(limit.saturating_sub(BESIDES) / PER_SESSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortfall_says_what_is_possible() {
        assert_eq!(shortfall(None, 1_000_000), None, "no limit");
        assert_eq!(shortfall(Some(20_512), 10_000), None);
        assert_eq!(shortfall(Some(1_024), 10_000), Some(256));
        assert_eq!(shortfall(Some(100), 10), Some(0));
    }
}
