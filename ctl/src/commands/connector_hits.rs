//! `connector hits`: who used connectors, and who did not.

use std::time::Duration;

use clap::Args;
use posthouse_proto::v1::{ListAllowlistEntriesRequest, UsageScope};
use serde_json::json;

use super::allowlist::pages;
use super::connector::{CONNECTOR, names, with_usage};
use super::usage::{before, seen, was_seen_since};
use super::{complete, suggest};
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::output::{Rows, or_dash};
use crate::parse::{self, grouped};

/// Flags of `connector hits`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl connector hits
  posthousectl connector hits printers --since 30d
  posthousectl connector hits --unused --since 90d")]
#[command(
    after_help = "A hit is a connection that the connector took, also one that a limit then refused. Counts are of all \
                        time: --since chooses by when something was last seen. Exits 5 when a node cannot be asked."
)]
pub(crate) struct HitsArgs {
    /// The ranges of this connector [default: all connectors]
    name: Option<String>,
    /// Only what was seen in this time; with --unused what was not
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    since: Option<Duration>,
    /// What was not used
    #[arg(long)]
    unused: bool,
}

impl HitsArgs {
    /// Whether something that was last seen then is wanted.
    fn wants(&self, scope: Option<&UsageScope>, last_seen: &str) -> bool {
        let since = self.since.and_then(|ago| before(scope, ago));
        match (self.since.is_some() && since.is_none(), self.unused) {
            // No clock to compare with.
            (true, _) => true,
            (false, unused) if unused || self.since.is_some() => was_seen_since(last_seen, since) != unused,
            (false, _) => true,
        }
    }
}

/// Runs `connector hits`.
///
/// # Errors
/// What went wrong; also that a node did not answer, after what is known was printed.
pub(crate) async fn run(args: HitsArgs, console: &Console) -> Result<Exit, Failure> {
    let scope = match &args.name {
        None => of_all(&args, console).await?,
        Some(name) => of_one(&args, name, console).await?,
    };
    complete(&scope.unwrap_or_default().unreachable, "what was used there is not known")
}

async fn of_all(args: &HitsArgs, console: &Console) -> Result<Option<UsageScope>, Failure> {
    let mut reply = with_usage(&mut console.client().await?).await?;
    let scope = reply.usage.take();
    reply.connectors.retain(|connector| args.wants(scope.as_ref(), &connector.last_seen));
    let hits = reply.connectors.iter().map(|found| {
        json!({"name": found.name, "hits": found.hits, "first_seen": found.first_seen, "last_seen": found.last_seen,
               "enabled": found.enabled})
    });
    let object = json!({"connectors": hits.collect::<Vec<_>>(), "usage": scope});
    console.out.list("connector-hits", &object, "connectors", "name", |_| {
        let mut rows = Rows::new(&["NAME", ">HITS", "FIRST SEEN", "LAST SEEN", "STATE"]);
        for found in &reply.connectors {
            let state = if found.enabled == Some(false) { "disabled" } else { "enabled" };
            let (first, last) = (seen(&found.first_seen), seen(&found.last_seen));
            rows.push(vec![found.name.clone(), grouped(found.hits), first, last, state.to_owned()]);
        }
        rows
    })?;
    Ok(scope)
}

async fn of_one(args: &HitsArgs, name: &str, console: &Console) -> Result<Option<UsageScope>, Failure> {
    let mut client = console.client().await?;
    let request = ListAllowlistEntriesRequest {
        connector: name.to_owned(),
        with_usage: true,
        ..ListAllowlistEntriesRequest::default()
    };
    let mut reply = match pages(&mut client, request).await {
        Ok(reply) => reply,
        Err(failure) => return Err(suggest(CONNECTOR, failure, name, names(&mut client)).await),
    };
    let scope = reply.usage.clone();
    reply.entries.retain(|entry| args.wants(scope.as_ref(), &entry.last_seen));
    console.out.list("connector-hits-ranges", &reply, "entries", "range", |_| {
        let mut rows = Rows::new(&["RANGE", ">HITS", "FIRST SEEN", "LAST SEEN", "NOTE", "OWNER"]);
        for entry in &reply.entries {
            rows.push(vec![
                entry.range.clone(),
                grouped(entry.count),
                seen(&entry.first_seen),
                seen(&entry.last_seen),
                or_dash(&entry.note),
                or_dash(&entry.owner),
            ]);
        }
        rows
    })?;
    Ok(scope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_chooses_by_the_last_use_and_unused_is_the_rest() {
        let scope = UsageScope { answered_at: "2026-06-30T00:00:00Z".into(), ..UsageScope::default() };
        let month = Some(Duration::from_secs(30 * 86_400));
        for (since, unused, wanted) in [
            (None, false, [true, true, true]),
            (None, true, [false, false, true]),
            (month, false, [true, false, false]),
            (month, true, [false, true, true]),
        ] {
            let args = HitsArgs { name: None, since, unused };
            let found = ["2026-06-20T00:00:00Z", "2026-01-01T00:00:00Z", ""].map(|last| args.wants(Some(&scope), last));
            assert_eq!(found, wanted, "{args:?}");
        }
    }
}
