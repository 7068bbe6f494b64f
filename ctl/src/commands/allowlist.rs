//! `allowlist`: the addresses of a connector, each with its note, owner, ticket and end.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use posthouse_proto::v1::{
    AddAllowlistEntriesRequest, LintAllowlistRequest, ListAllowlistEntriesReply, ListAllowlistEntriesRequest,
    RemoveAllowlistEntriesRequest, WriteOptions, WriteReply,
};

use super::connector::{self, CONNECTOR};
use super::suggest;
use super::usage::{note_missing, seen};
use crate::client::Client;
use crate::console::Console;
use crate::error::{Exit, Failure, code};
use crate::mutation::{Deed, WriteFlags, confirm_gains, finish};
use crate::output::{self, Rows, or_dash, short_time};
use crate::parse;

/// `allowlist …`.
#[derive(Debug, Subcommand)]
pub(crate) enum AllowlistCommand {
    /// Entries of one connector, or of all
    List {
        /// Its name [default: all]
        connector: Option<String>,
    },
    /// Entries that contain an address
    Find {
        /// The address
        ip: String,
    },
    /// Ranges that deserve a second look: too wide, our own machines, expired, adding nothing
    Lint {
        /// Its connector [default: all]
        connector: Option<String>,
    },
    /// Entries that no device has used for a long time, and with --remove their end
    Stale(super::allowlist_stale::StaleArgs),
    /// Add ranges to a connector
    #[command(visible_alias = "create")]
    Add(AddArgs),
    /// Remove ranges from a connector
    #[command(visible_alias = "delete")]
    Remove(RemoveArgs),
}

/// Flags of `allowlist add`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl allowlist add scanners 10.20.31.70 --note 'Printer 3rd floor' --owner facilities
  posthousectl allowlist add erp 10.30.4.11-10.30.4.14 --expires 90d
  posthousectl allowlist add scanners --from-file addresses.txt")]
pub(crate) struct AddArgs {
    /// The connector
    connector: String,
    /// Address, first-last or CIDR
    ranges: Vec<String>,
    /// More ranges, one a line (# begins a comment); - is standard input
    #[arg(long, value_name = "FILE")]
    from_file: Option<String>,
    /// What it is
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,
    /// Whose it is
    #[arg(long, value_name = "WHO", default_value = "", hide_default_value = true)]
    owner: String,
    /// Where it was asked for
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    ticket: String,
    /// For how long: from then on it matches and grants nothing (0s: for ever). A range that is listed already keeps
    /// what is not given
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    expires: Option<Duration>,
    /// Override the open-relay guard, on record (needs --reason)
    #[arg(long)]
    accept_risk: bool,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `allowlist remove`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl allowlist remove scanners 10.20.31.70")]
pub(crate) struct RemoveArgs {
    /// The connector
    connector: String,
    /// The ranges, as `allowlist list` shows them
    #[arg(required = true)]
    ranges: Vec<String>,
    /// Override the open-relay guard, on record (needs --reason)
    #[arg(long)]
    accept_risk: bool,
    #[command(flatten)]
    write: WriteFlags,
}

/// Runs `allowlist …`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(command: AllowlistCommand, console: &Console) -> Result<Exit, Failure> {
    match command {
        AllowlistCommand::List { connector } => list(console, connector.unwrap_or_default()).await,
        AllowlistCommand::Find { ip } => find(console, ip).await,
        AllowlistCommand::Lint { connector } => lint(console, connector.unwrap_or_default()).await,
        AllowlistCommand::Stale(args) => super::allowlist_stale::run(args, console).await,
        AllowlistCommand::Add(args) => add(args, console).await,
        AllowlistCommand::Remove(args) => remove(args, console).await,
    }
}

async fn list(console: &Console, name: String) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    let request = ListAllowlistEntriesRequest {
        connector: name.clone(),
        with_usage: true,
        ..ListAllowlistEntriesRequest::default()
    };
    match pages(&mut client, request).await {
        Ok(reply) => {
            print(console, "allowlist-list", &reply)?;
            Ok(Exit::Done)
        }
        Err(failure) => Err(suggest(CONNECTOR, failure, &name, connector::names(&mut client)).await),
    }
}

async fn find(console: &Console, ip: String) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    let request = ListAllowlistEntriesRequest {
        containing: ip.clone(),
        with_usage: true,
        ..ListAllowlistEntriesRequest::default()
    };
    let reply = pages(&mut client, request).await?;
    print(console, "allowlist-find", &reply)?;
    if reply.entries.is_empty() {
        output::note(&format!("no entry contains {ip}"));
        return Ok(Exit::No);
    }
    Ok(Exit::Done)
}

/// All pages of an answer. Each is as of its own revision; the last one's is told. A node that did not answer about the
/// use of entries is asked once.
///
/// # Errors
/// What the cluster answered, or that nobody did.
pub(super) async fn pages(
    client: &mut Client,
    mut request: ListAllowlistEntriesRequest,
) -> Result<ListAllowlistEntriesReply, Failure> {
    let mut all = ListAllowlistEntriesReply::default();
    loop {
        let page = client.read(async |mut admin| admin.list_allowlist_entries(request.clone()).await).await?;
        all.revision = page.revision;
        request.without = page.usage.as_ref().map(|usage| usage.unreachable.clone()).unwrap_or_default();
        all.usage = page.usage;
        all.entries.extend(page.entries);
        match all.entries.last() {
            Some(last) if page.more => {
                request.after_connector.clone_from(&last.connector);
                request.after_range.clone_from(&last.range);
            }
            _ => return Ok(all),
        }
    }
}

async fn lint(console: &Console, name: String) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    let request = LintAllowlistRequest { connector: name.clone() };
    let reply = match client.read(async |mut admin| admin.lint_allowlist(request.clone()).await).await {
        Ok(reply) => reply,
        Err(failure) => return Err(suggest(CONNECTOR, failure, &name, connector::names(&mut client)).await),
    };
    console.out.list("allowlist-lint", &reply, "findings", "range", |_| {
        let mut rows = Rows::new(&["CONNECTOR", "RANGE", "PROBLEM", "WHY", "FIX"]);
        for finding in &reply.findings {
            rows.push(vec![
                finding.connector.clone(),
                finding.range.clone(),
                finding.problem.replace('_', " "),
                finding.detail.clone(),
                finding.fix.clone(),
            ]);
        }
        rows
    })?;
    let shown = reply.findings.len() as u64;
    if reply.found > shown && !console.out.format.is_json() {
        output::note(&format!("{shown} of {} are shown", reply.found));
    }
    Ok(if reply.found == 0 { Exit::Done } else { Exit::No })
}

fn print(console: &Console, schema: &str, reply: &ListAllowlistEntriesReply) -> Result<(), Failure> {
    console.out.list(schema, reply, "entries", "range", |wide| {
        let mut headings = vec!["CONNECTOR", "RANGE", ">ADDRESSES", "NOTE", "OWNER", "EXPIRES"];
        headings.extend(["FIRST SEEN", "LAST SEEN", ">COUNT"]);
        if wide {
            headings.extend(["TICKET", "CREATED", "BY", ">REVISION"]);
        }
        let mut rows = Rows::new(&headings);
        for entry in &reply.entries {
            let expires = match (&entry.expires_at, entry.expired) {
                (None, _) => "never".to_owned(),
                (Some(at), false) => short_time(at),
                (Some(at), true) => format!("{} EXPIRED", short_time(at)),
            };
            let mut row = vec![
                entry.connector.clone(),
                entry.range.clone(),
                entry.addresses.clone(),
                or_dash(&entry.note),
                or_dash(&entry.owner),
                expires,
                seen(&entry.first_seen),
                seen(&entry.last_seen),
                parse::grouped(entry.count),
            ];
            if wide {
                row.extend([
                    or_dash(&entry.ticket),
                    short_time(&entry.created_at),
                    or_dash(&entry.created_by),
                    entry.revision.to_string(),
                ]);
            }
            rows.push(row);
        }
        rows
    })?;
    note_missing(console, reply.usage.as_ref());
    Ok(())
}

/// Ranges of one change: its entry in the log, with notes, stays well below the four megabytes that one may have.
pub(super) const BATCH: usize = 5_000;

/// A file of ranges may be this large: about a million of them.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// The ranges of a file: one a line, comments left out.
fn ranges_of(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split_once('#').map_or(line, |(range, _)| range));
    let words = lines.flat_map(|line| line.split([',', ' ', '\t']));
    words.map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn read_ranges(path: &str) -> Result<Vec<String>, Failure> {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        if path == "-" {
            io::stdin().lock().take(FILE_BYTES_MAX).read_to_string(&mut text)?;
        } else {
            File::open(Path::new(path))?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
        }
        Ok(text)
    };
    let text = read().map_err(|error| {
        let message = format!("\"{path}\" cannot be read");
        Failure::new(
            Exit::Invalid,
            code::FILE,
            message,
            error.to_string(),
            "name a readable file, or - for standard input",
        )
    })?;
    Ok(ranges_of(&text))
}

async fn add(args: AddArgs, console: &Console) -> Result<Exit, Failure> {
    let mut ranges = parse::words(&args.ranges);
    if let Some(path) = &args.from_file {
        ranges.extend(read_ranges(path)?);
    }
    if ranges.is_empty() {
        let fix = format!("posthousectl allowlist add {} 10.20.31.70", args.connector);
        return Err(Failure::usage("no range was named", "there is nothing to add", fix));
    }
    let options = args.write.options_at_risk(args.accept_risk)?;
    let request = |batch: &[String], first: bool| AddAllowlistEntriesRequest {
        connector: args.connector.clone(),
        ranges: batch.to_vec(),
        note: args.note.clone(),
        owner: args.owner.clone(),
        ticket: args.ticket.clone(),
        expires_in_secs: args.expires.map(|time| time.as_secs()),
        // After the first batch the connector's list is at a revision of our own making.
        options: Some(WriteOptions { if_revision: options.if_revision.filter(|_| first), ..options.clone() }),
    };
    let mut client = console.client().await?;
    let mut written = WriteReply::default();
    let mut done = 0;
    for batch in ranges.chunks(BATCH) {
        let request = request(batch, done == 0);
        let reply = match client.write(async |mut admin| admin.add_allowlist_entries(request.clone()).await).await {
            Ok(reply) => reply,
            Err(failure) => {
                let failure = suggest(CONNECTOR, failure, &args.connector, connector::names(&mut client)).await;
                if done > 0 {
                    output::note(&format!(
                        "{done} of {} ranges were added before this; to repeat the command adds the rest",
                        ranges.len()
                    ));
                }
                return Err(failure);
            }
        };
        done += batch.len();
        written.revision = reply.revision;
        written.dry_run = reply.dry_run;
        written.changed |= reply.changed;
        for warning in reply.warnings {
            // The guard says the same of each batch, with a larger number.
            const GUARD: &str = "open-relay guard";
            if warning.starts_with(GUARD) {
                written.warnings.retain(|known| !known.starts_with(GUARD));
            }
            written.warnings.push(warning);
        }
        if ranges.len() > BATCH && console.out.format == output::Format::Table {
            output::note(&format!("{done} of {} ranges", ranges.len()));
        }
    }
    let mut deed = Deed::new("allowlist-add", "connector", &args.connector, "changed");
    deed.object = format!("{} of connector \"{}\"", counted(&ranges), args.connector);
    deed.done = "added";
    if ranges.len() <= BATCH {
        deed.extra.insert("ranges".to_owned(), ranges.into());
    } else {
        deed.extra.insert("range_count".to_owned(), ranges.len().into());
    }
    finish(console, &mut client, &args.write, written, deed).await
}

async fn remove(args: RemoveArgs, console: &Console) -> Result<Exit, Failure> {
    let ranges = parse::words(&args.ranges);
    let request = RemoveAllowlistEntriesRequest {
        connector: args.connector.clone(),
        ranges: ranges.clone(),
        options: Some(args.write.options_at_risk(args.accept_risk)?),
    };
    let mut client = console.client().await?;
    if !args.write.dry_run {
        let mut trial = request.clone();
        trial.options.get_or_insert_default().dry_run = true;
        // What would be refused is refused by the change itself, in the same words.
        if let Ok(tried) = client.write(async |mut admin| admin.remove_allowlist_entries(trial.clone()).await).await {
            let what = format!("removing {} from connector \"{}\"", counted(&ranges), args.connector);
            confirm_gains(console, &tried, &what)?;
        }
    }
    let reply = client.write(async |mut admin| admin.remove_allowlist_entries(request.clone()).await).await;
    match reply {
        Ok(reply) => {
            let mut deed = Deed::new("allowlist-remove", "connector", &args.connector, "removed");
            deed.object = format!("{} of connector \"{}\"", counted(&ranges), args.connector);
            deed.extra.insert("ranges".to_owned(), ranges.into());
            finish(console, &mut client, &args.write, reply, deed).await
        }
        Err(failure) => Err(suggest(CONNECTOR, failure, &args.connector, connector::names(&mut client)).await),
    }
}

fn counted(ranges: &[String]) -> String {
    match ranges {
        [one] => one.clone(),
        many => format!("{} ranges", many.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_ranges_has_comments() {
        let text = "# printers\n10.0.0.1   # third floor\n\n10.0.0.2, 10.0.0.3\n10.1.0.0/24";
        assert_eq!(ranges_of(text), ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.1.0.0/24"]);
        assert!(ranges_of("").is_empty());
    }
}
