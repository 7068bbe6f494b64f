//! Reading the allowlist: in pages, because there may be a million entries, and with an eye for what should not stay.

use posthouse_proto::v1;
use tonic::Status;

use super::convert;
use super::problem::{exit, invalid, problem, status};
use crate::clock::now_ms;
use crate::connector::RemoteIpRange;
use crate::state::{StateView, lint};

/// Entries of one page: about two megabytes.
const PAGE_MAX: usize = 10_000;

fn check_connector(view: &StateView, name: &str) -> Result<(), Status> {
    if name.is_empty() || view.state.connectors.contains_key(name) {
        return Ok(());
    }
    Err(status(problem(
        exit::NOT_FOUND,
        "PH-CONN-001",
        format!("connector \"{name}\" not found"),
        "the cluster has no connector of that name",
        "posthousectl connector list",
    )))
}

/// One page of entries, by connector and range.
pub(super) fn list(
    view: &StateView,
    request: &v1::ListAllowlistEntriesRequest,
) -> Result<v1::ListAllowlistEntriesReply, Status> {
    let v1::ListAllowlistEntriesRequest { connector, containing, limit, after_connector, after_range, .. } = request;
    check_connector(view, connector)?;
    let address = match containing.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            invalid("PH-ALLOW-002", format!("\"{text}\" is not an address"), "an IPv4 or IPv6 address is meant", "")
        })?),
    };
    let after: Option<RemoteIpRange> = match after_range.as_str() {
        "" => None,
        text => Some(
            text.parse().map_err(|error| invalid("PH-ALLOW-002", format!("\"{text}\" is not a range"), error, ""))?,
        ),
    };
    let limit = match *limit {
        0 => PAGE_MAX,
        limit => PAGE_MAX.min(limit as usize),
    };
    let now_ms = now_ms();
    let lists =
        view.state.allowlist.iter().filter(|(name, _)| {
            (connector.is_empty() || *name == connector) && name.as_str() >= after_connector.as_str()
        });
    let entries = lists.flat_map(|(name, entries)| {
        let rest: Box<dyn Iterator<Item = _>> = match &after {
            Some(after) if name == after_connector => Box::new(entries.after(after)),
            _ => Box::new(entries.values()),
        };
        rest.map(move |found| (name, found))
    });
    let mut entries = entries
        .filter(|(_, found)| address.is_none_or(|address| found.value.range.contains(address)))
        .map(|(name, found)| convert::entry_out(name, found, now_ms));
    let page: Vec<v1::AllowlistEntry> = entries.by_ref().take(limit).collect();
    let more = entries.next().is_some();
    Ok(v1::ListAllowlistEntriesReply { entries: page, revision: view.revision, more, usage: None })
}

/// Ranges that deserve a second look.
pub(super) fn lint(view: &StateView, request: &v1::LintAllowlistRequest) -> Result<v1::LintAllowlistReply, Status> {
    check_connector(view, &request.connector)?;
    let only = (!request.connector.is_empty()).then_some(request.connector.as_str());
    let found = lint::allowlist(&view.state, only, now_ms());
    let count = found.len() as u64;
    let findings = found.into_iter().take(lint::SHOWN_MAX).map(|finding| v1::LintFinding {
        connector: finding.connector,
        range: finding.range.to_string(),
        problem: finding.problem.as_str().to_owned(),
        detail: finding.detail,
        fix: finding.fix,
    });
    Ok(v1::LintAllowlistReply { findings: findings.collect(), revision: view.revision, found: count })
}

/// Which ranges lie inside ranges of another connector.
pub(super) fn overlaps(view: &StateView) -> v1::ConnectorOverlapsReply {
    let found = lint::overlaps(&view.state);
    let count = found.len() as u64;
    let overlaps = found.into_iter().take(lint::SHOWN_MAX).map(|overlap| v1::Overlap {
        inner_connector: overlap.inner.0,
        inner_range: overlap.inner.1.to_string(),
        outer_connector: overlap.outer.0,
        outer_range: overlap.outer.1.to_string(),
        binding: overlap.binding.to_string(),
        effect: overlap.effect,
    });
    v1::ConnectorOverlapsReply { overlaps: overlaps.collect(), revision: view.revision, found: count }
}
