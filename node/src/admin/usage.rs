//! What all nodes know of the use of connectors, ranges and credentials, put together when somebody reads it.

use std::sync::Arc;

use posthouse_proto::v1;
use tonic::{Request, Status};

use super::problem::invalid;
use super::queue::ask_some;
use super::service::Context;
use crate::clock::{now_ms, rfc3339};
use crate::connector::RemoteIpRange;
use crate::usage::{Usage, UsageKey};

/// Things asked for at once.
const ASKED_MAX: usize = 20_000;

/// What is known of some things, in their order, and how far that reaches.
pub(super) struct Known {
    pub(super) usages: Vec<Option<Usage>>,
    pub(super) scope: v1::UsageScope,
}

/// Asks every node but those in `without`.
pub(super) async fn gather(context: &Arc<Context>, keys: &[UsageKey], without: &[String]) -> Known {
    let mut usages: Vec<Option<Usage>> = keys.iter().map(|key| here(context, key)).collect();
    let mut request = v1::ReadUsageRequest { this_node_only: true, ..v1::ReadUsageRequest::default() };
    for key in keys {
        match key {
            UsageKey::Connector(name) => request.connectors.push(name.to_string()),
            UsageKey::Range(connector, range) => {
                request.ranges.push(v1::UsedRange { connector: connector.to_string(), range: range.to_string() });
            }
            UsageKey::Credential(user) => request.credentials.push(user.to_string()),
        }
    }
    let (came, mut unreachable) = ask_some(
        context,
        |name| !without.iter().any(|without| without == name),
        |mut client| {
            let asked = request.clone();
            async move { client.read_usage(Request::new(asked)).await }
        },
    )
    .await;
    unreachable.extend(without.iter().cloned());
    let mut since = (context.usages.since_ms(), context.node_name.clone());
    for other in came {
        for row in other.rows {
            let usage = Usage::new(row.first_ms, row.last_ms, row.count);
            if let Some(known) = usages.get_mut(row.index as usize) {
                *known = Some(known.map_or(usage, |known| known.and(usage)));
            }
        }
        let scope = other.usage.unwrap_or_default();
        let theirs = scope.since.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_millisecond);
        if let Ok(theirs) = theirs
            && theirs > since.0
        {
            since = (theirs, scope.since_node);
        }
    }
    Known { usages, scope: scope(since, unreachable) }
}

fn scope((since_ms, since_node): (i64, String), unreachable: Vec<String>) -> v1::UsageScope {
    v1::UsageScope { unreachable, since: rfc3339(since_ms), since_node, answered_at: rfc3339(now_ms()) }
}

fn here(context: &Context, key: &UsageKey) -> Option<Usage> {
    match key {
        UsageKey::Connector(name) => context.usages.of_connector(name),
        UsageKey::Range(connector, range) => context.usages.of_range(connector, range),
        UsageKey::Credential(user) => context.usages.of_credential(user),
    }
}

/// Answers what this node, or all of them, know.
pub(super) async fn read(context: &Arc<Context>, request: v1::ReadUsageRequest) -> Result<v1::ReadUsageReply, Status> {
    let v1::ReadUsageRequest { this_node_only, connectors, ranges, credentials, without } = request;
    let count = connectors.len() + ranges.len() + credentials.len();
    if count > ASKED_MAX {
        let cause = format!("{count} things were named, {ASKED_MAX} are the limit");
        return Err(invalid("PH-USE-001", "too much is asked for at once", cause, "ask in parts"));
    }
    let connectors = connectors.into_iter().map(|name| Ok(UsageKey::Connector(name.into())));
    let ranges = ranges.into_iter().map(|used| {
        let range = used
            .range
            .parse::<RemoteIpRange>()
            .map_err(|error| invalid("PH-ALLOW-002", format!("\"{}\" is not a range", used.range), error, ""))?;
        Ok(UsageKey::Range(used.connector.into(), range))
    });
    let credentials = credentials.into_iter().map(|user| Ok(UsageKey::Credential(user.into())));
    let keys: Vec<UsageKey> = connectors.chain(ranges).chain(credentials).collect::<Result<_, Status>>()?;
    let Known { usages, scope } = if this_node_only {
        let usages = keys.iter().map(|key| here(context, key)).collect();
        Known { usages, scope: scope((context.usages.since_ms(), context.node_name.clone()), Vec::new()) }
    } else {
        gather(context, &keys, &without).await
    };
    let rows = (0..).zip(usages).filter_map(|(index, usage)| {
        let usage = usage?;
        Some(v1::UsageRow { index, first_ms: usage.first_ms(), last_ms: usage.last_ms(), count: usage.count })
    });
    Ok(v1::ReadUsageReply { rows: rows.collect(), usage: Some(scope) })
}

/// First and last use and their number, as administrators read them.
fn words(usage: Option<Usage>) -> (String, String, u64) {
    usage.map_or_else(Default::default, |usage| (rfc3339(usage.first_ms()), rfc3339(usage.last_ms()), usage.count))
}

/// Adds what is known of their use to connectors.
pub(super) async fn of_connectors(context: &Arc<Context>, connectors: &mut [v1::Connector]) -> v1::UsageScope {
    let keys: Vec<_> = connectors.iter().map(|found| UsageKey::Connector(found.name.as_str().into())).collect();
    let Known { usages, scope } = gather(context, &keys, &[]).await;
    for (found, usage) in connectors.iter_mut().zip(usages) {
        (found.first_seen, found.last_seen, found.hits) = words(usage);
    }
    scope
}

/// Adds what is known of their use to credentials.
pub(super) async fn of_credentials(context: &Arc<Context>, credentials: &mut [v1::Credential]) -> v1::UsageScope {
    let keys: Vec<_> = credentials.iter().map(|found| UsageKey::Credential(found.user.as_str().into())).collect();
    let Known { usages, scope } = gather(context, &keys, &[]).await;
    for (found, usage) in credentials.iter_mut().zip(usages) {
        (found.first_seen, found.last_seen, found.count) = words(usage);
    }
    scope
}

/// Adds what is known of their use to allowlist entries.
pub(super) async fn of_entries(
    context: &Arc<Context>,
    entries: &mut [v1::AllowlistEntry],
    without: &[String],
) -> Result<v1::UsageScope, Status> {
    let keys = entries.iter().map(|entry| {
        let range = entry.range.parse::<RemoteIpRange>();
        range.map(|range| UsageKey::Range(entry.connector.as_str().into(), range))
    });
    let keys: Vec<_> = keys.collect::<Result<_, _>>().map_err(|error| super::problem::internal("a range", error))?;
    let Known { usages, scope } = gather(context, &keys, without).await;
    for (entry, usage) in entries.iter_mut().zip(usages) {
        (entry.first_seen, entry.last_seen, entry.count) = words(usage);
    }
    Ok(scope)
}
