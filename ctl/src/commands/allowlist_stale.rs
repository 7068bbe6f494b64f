//! `allowlist stale`: entries that no device has used for a long time. What is not known is not called stale: an entry
//! younger than the time asked for never is, and nothing is removed while a node's memory is missing or too short.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use posthouse_proto::v1::{
    AllowlistEntry, ListAllowlistEntriesReply, ListAllowlistEntriesRequest, RemoveAllowlistEntriesRequest, UsageScope,
    WriteOptions, WriteReply,
};
use serde_json::json;

use super::allowlist::{BATCH, pages};
use super::connector::{self, CONNECTOR};
use super::usage::{before, seen, was_seen_since};
use super::{complete, suggest};
use crate::client::Client;
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::mutation::{Deed, WriteFlags, finish, gains_table};
use crate::output::{self, Rows, or_dash, short_time};

/// Flags of `allowlist stale`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl allowlist stale
  posthousectl allowlist stale scanners --days 30
  posthousectl allowlist stale --days 365 --remove --reason 'yearly review'")]
#[command(
    after_help = "Exits 0 when there is none or they were removed, 1 when there are some, 5 when a node cannot be \
                        asked; then nothing is removed. An entry younger than --days is never stale."
)]
pub(crate) struct StaleArgs {
    /// Its connector [default: all]
    connector: Option<String>,
    /// Unseen for so many days
    #[arg(long, value_name = "N", default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..))]
    days: u16,
    /// Remove them
    #[arg(long)]
    remove: bool,
    /// Remove them although a node has kept the use of entries for less than --days
    #[arg(long, requires = "remove")]
    accept_gap: bool,
    /// Override the open-relay guard, on record (needs --reason)
    #[arg(long, requires = "remove")]
    accept_risk: bool,
    #[command(flatten)]
    write: WriteFlags,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What was found, and how far what is known reaches.
struct Found {
    stale: Vec<AllowlistEntry>,
    usage: UsageScope,
    /// A node's memory begins after that: an entry may have been used there.
    has_gap: bool,
}

/// Runs `allowlist stale`.
///
/// # Errors
/// What went wrong; also that a node did not answer.
pub(crate) async fn run(args: StaleArgs, console: &Console) -> Result<Exit, Failure> {
    let options = args.write.options_at_risk(args.accept_risk)?;
    let mut client = console.client().await?;
    let found = find(&mut client, &args).await?;
    let gap = format!(
        "{} has kept the use of entries since {} only: what was used there before is not known",
        found.usage.since_node,
        short_time(&found.usage.since)
    );
    if !args.remove || !console.out.format.is_json() {
        print(console, &found, args.days)?;
    }
    complete(&found.usage.unreachable, "what was used there is not known, and nothing was removed")?;
    if found.stale.is_empty() {
        return if args.remove {
            done(console, &mut client, &args, &[], WriteReply::default()).await
        } else {
            Ok(Exit::Done)
        };
    }
    if !args.remove {
        if found.has_gap && !console.out.format.is_json() {
            output::note(&format!("! {gap}"));
        }
        return Ok(Exit::No);
    }
    if found.has_gap && !args.accept_gap {
        return Err(Failure::new(
            Exit::No,
            "PH-ALLOW-010",
            format!("whether these entries were used in the last {} days is not known", args.days),
            gap,
            "choose fewer --days, wait, or say --accept-gap",
        ));
    }
    remove(console, &mut client, &args, &options, found).await
}

async fn find(client: &mut Client, args: &StaleArgs) -> Result<Found, Failure> {
    let name = args.connector.clone().unwrap_or_default();
    let request = ListAllowlistEntriesRequest {
        connector: name.clone(),
        with_usage: true,
        ..ListAllowlistEntriesRequest::default()
    };
    match pages(client, request).await {
        Ok(reply) => Ok(stale(reply, args.days)),
        Err(failure) => Err(suggest(CONNECTOR, failure, &name, connector::names(client)).await),
    }
}

fn stale(reply: ListAllowlistEntriesReply, days: u16) -> Found {
    let usage = reply.usage.unwrap_or_default();
    let limit = before(Some(&usage), DAY * u32::from(days));
    let is_older = |at: &str| limit.is_some_and(|limit| at.parse::<Timestamp>().is_ok_and(|at| at < limit));
    let has_gap = !is_older(&usage.since);
    let is_stale = |entry: &AllowlistEntry| is_older(&entry.created_at) && !was_seen_since(&entry.last_seen, limit);
    Found { stale: reply.entries.into_iter().filter(is_stale).collect(), usage, has_gap }
}

fn print(console: &Console, found: &Found, days: u16) -> Result<(), Failure> {
    let reply = json!({"entries": found.stale, "usage": found.usage, "days": days});
    console.out.list("allowlist-stale", &reply, "entries", "range", |_| {
        let mut rows = Rows::new(&["CONNECTOR", "RANGE", "LAST SEEN", ">COUNT", "CREATED", "NOTE", "OWNER"]);
        for entry in &found.stale {
            rows.push(vec![
                entry.connector.clone(),
                entry.range.clone(),
                seen(&entry.last_seen),
                crate::parse::grouped(entry.count),
                short_time(&entry.created_at),
                or_dash(&entry.note),
                or_dash(&entry.owner),
            ]);
        }
        rows
    })?;
    Ok(())
}

/// Ranges by connector.
fn by_connector(entries: &[AllowlistEntry]) -> BTreeMap<String, Vec<String>> {
    let mut lists: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in entries {
        lists.entry(entry.connector.clone()).or_default().push(entry.range.clone());
    }
    lists
}

async fn remove(
    console: &Console,
    client: &mut Client,
    args: &StaleArgs,
    options: &WriteOptions,
    found: Found,
) -> Result<Exit, Failure> {
    if args.write.dry_run {
        let reply = change(client, &found.stale, options).await?;
        return done(console, client, args, &found.stale, reply).await;
    }
    let trial = WriteOptions { dry_run: true, ..options.clone() };
    let gains = change(client, &found.stale, &trial).await?.gains;
    let mut consequence =
        "a device that still has such an address falls to the next wider range, or is refused".to_owned();
    if !gains.is_empty() {
        consequence.push_str(&format!("; strangers at these addresses may relay then:\n{}", gains_table(&gains)));
    }
    let count = found.stale.len();
    console.confirm(&format!("removing {count} unused entries"), &consequence)?;
    // Somebody may have thought for a while: what was used meanwhile stays.
    let now = find(client, args).await?;
    complete(&now.usage.unreachable, "what was used there is not known, and nothing was removed")?;
    let shown: BTreeSet<_> = found.stale.iter().map(|entry| (&entry.connector, &entry.range)).collect();
    let still = now.stale.into_iter().filter(|entry| shown.contains(&(&entry.connector, &entry.range)));
    let still: Vec<AllowlistEntry> = still.collect();
    let reply = change(client, &still, options).await?;
    done(console, client, args, &still, reply).await
}

/// Removes them in bounded changes.
async fn change(
    client: &mut Client,
    entries: &[AllowlistEntry],
    options: &WriteOptions,
) -> Result<WriteReply, Failure> {
    let mut sum = WriteReply { dry_run: options.dry_run, ..WriteReply::default() };
    for (connector, ranges) in by_connector(entries) {
        for batch in ranges.chunks(BATCH) {
            let request = RemoveAllowlistEntriesRequest {
                connector: connector.clone(),
                ranges: batch.to_vec(),
                options: Some(options.clone()),
            };
            let reply = client.write(async |mut admin| admin.remove_allowlist_entries(request.clone()).await).await?;
            sum.revision = reply.revision;
            sum.changed |= reply.changed;
            sum.gains.extend(reply.gains);
            sum.warnings.extend(reply.warnings);
        }
    }
    Ok(sum)
}

async fn done(
    console: &Console,
    client: &mut Client,
    args: &StaleArgs,
    removed: &[AllowlistEntry],
    reply: WriteReply,
) -> Result<Exit, Failure> {
    let mut deed =
        Deed::new("allowlist-stale-remove", "connector", args.connector.as_deref().unwrap_or_default(), "removed");
    deed.object = format!("{} unused entries", removed.len());
    let ranges = removed.iter().map(|entry| json!({"connector": entry.connector, "range": entry.range}));
    deed.extra.insert("removed".to_owned(), ranges.collect::<Vec<_>>().into());
    if removed.is_empty() {
        deed.instead = Some("no entry is stale: nothing was removed\n".to_owned());
        // There is no revision to wait for.
        return crate::mutation::finish_unchanged(console, reply, &deed);
    }
    finish(console, client, &args.write, reply, deed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(created_at: &str, last_seen: &str) -> AllowlistEntry {
        AllowlistEntry { created_at: created_at.into(), last_seen: last_seen.into(), ..AllowlistEntry::default() }
    }

    fn found(since: &str, entries: &[(&str, &str)]) -> Found {
        let usage =
            UsageScope { since: since.into(), answered_at: "2026-06-30T00:00:00Z".into(), ..UsageScope::default() };
        let entries = entries.iter().map(|(created_at, last_seen)| entry(created_at, last_seen)).collect();
        stale(ListAllowlistEntriesReply { entries, usage: Some(usage), ..Default::default() }, 90)
    }

    #[test]
    fn only_what_is_old_and_unseen_is_stale() {
        let entries = [
            ("2026-01-01T00:00:00Z", ""),
            ("2026-01-01T00:00:00Z", "2026-03-01T00:00:00Z"),
            ("2026-01-01T00:00:00Z", "2026-04-02T00:00:00Z"),
            ("2026-06-01T00:00:00Z", ""),
            ("nonsense", ""),
        ];
        let found = found("2025-01-01T00:00:00Z", &entries);
        assert_eq!(found.stale.len(), 2, "{:?}", found.stale);
        assert!(
            found
                .stale
                .iter()
                .all(|entry| entry.created_at.starts_with("2026-01") && entry.last_seen.as_str() < "2026-04")
        );
        assert!(!found.has_gap);
    }

    #[test]
    fn a_memory_that_is_shorter_than_the_time_asked_for_is_a_gap() {
        assert!(found("2026-06-01T00:00:00Z", &[]).has_gap);
        assert!(found("", &[("2020-01-01T00:00:00Z", "")]).has_gap, "a node that does not say");
    }
}
