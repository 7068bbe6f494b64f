//! `history`: who changed what, when and why; what it was before; and taking changes back.

use clap::{Args, Subcommand};
use posthouse_proto::v1::{HistoryDiffReply, HistoryDiffRequest, ListAuditRequest, RollbackRequest};

use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::mutation::{Deed, WriteFlags, confirm_gains, finish};
use crate::output::{self, Rows, or_dash, short_time};

/// `history …`.
#[derive(Debug, Subcommand)]
pub(crate) enum HistoryCommand {
    /// The newest changes
    List(ListArgs),
    /// What one change replaced
    Show {
        /// Its revision
        revision: u64,
    },
    /// What differs between two revisions; exits 1 when something does
    Diff(DiffArgs),
    /// Make connectors, ranges, accepted domains, routes and settings what they were at a revision
    Rollback(RollbackArgs),
}

/// Flags of `history list`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl history list --limit 20
  posthousectl history list --object connector/scanners
  posthousectl history list -o json")]
pub(crate) struct ListArgs {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Only changes of connector/NAME, domain/NAME, route/NAME or settings
    #[arg(long, value_name = "KIND/NAME", default_value = "", hide_default_value = true)]
    object: String,
}

/// Flags of `history diff`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl history diff 41          # revision 41 against now
  posthousectl history diff 41 57 --object connector/scanners")]
pub(crate) struct DiffArgs {
    /// A revision
    from: u64,
    /// Another one [default: now]
    to: Option<u64>,
    /// Only connector/NAME, domain/NAME, route/NAME or settings
    #[arg(long, value_name = "KIND/NAME", default_value = "", hide_default_value = true)]
    object: String,
}

/// Flags of `history rollback`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl history rollback 41 --object connector/scanners --reason 'ticket 7 was wrong'
  posthousectl history rollback 41 --dry-run")]
#[command(
    after_help = "Credentials, certificates, tokens, nodes and fronts stay as they are: to bring one of them back would
undo a revocation."
)]
pub(crate) struct RollbackArgs {
    /// The revision to go back to: what it made stays, what came after goes
    revision: u64,
    /// Only connector/NAME (with its ranges), domain/NAME, route/NAME or settings
    #[arg(long, value_name = "KIND/NAME", default_value = "", hide_default_value = true)]
    object: String,
    /// Override the open-relay guard, on record (needs --reason)
    #[arg(long)]
    accept_risk: bool,
    #[command(flatten)]
    write: WriteFlags,
}

/// Runs `history …`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(command: HistoryCommand, console: &Console) -> Result<Exit, Failure> {
    match command {
        HistoryCommand::List(args) => list(args, console).await,
        HistoryCommand::Show { revision } => {
            let before = revision.saturating_sub(1);
            let reply = diff(console, HistoryDiffRequest { from: before, to: revision, object: String::new() }).await?;
            print(console, "history-show", &reply)?;
            Ok(Exit::Done)
        }
        HistoryCommand::Diff(DiffArgs { from, to, object }) => {
            let reply = diff(console, HistoryDiffRequest { from, to: to.unwrap_or_default(), object }).await?;
            print(console, "history-diff", &reply)?;
            Ok(if reply.objects.is_empty() { Exit::Done } else { Exit::No })
        }
        HistoryCommand::Rollback(args) => rollback(args, console).await,
    }
}

async fn list(args: ListArgs, console: &Console) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    let ListArgs { limit, object } = args;
    let request = ListAuditRequest { limit, object };
    let reply = client.read(async |mut admin| admin.list_audit(request.clone()).await).await?;
    console.out.list("history-list", &reply, "records", "what", |wide| {
        let mut headings = vec![">REVISION", "TIME", "WHO", "WHAT", "REASON"];
        if wide {
            headings.push("FROM");
        }
        let mut rows = Rows::new(&headings);
        for record in &reply.records {
            let mut row = vec![
                record.revision.to_string(),
                short_time(&record.time),
                or_dash(&record.who),
                record.what.clone(),
                or_dash(&record.reason),
            ];
            if wide {
                row.push(or_dash(&record.from));
            }
            rows.push(row);
        }
        rows
    })?;
    Ok(Exit::Done)
}

async fn diff(console: &Console, request: HistoryDiffRequest) -> Result<HistoryDiffReply, Failure> {
    let mut client = console.client().await?;
    client.read(async |mut admin| admin.history_diff(request.clone()).await).await
}

fn print(console: &Console, schema: &str, reply: &HistoryDiffReply) -> Result<(), Failure> {
    if matches!(console.out.format, output::Format::Table | output::Format::Wide) {
        return Ok(output::text(&describe(reply))?);
    }
    console.out.list(schema, reply, "objects", "object", |_| Rows::default())?;
    Ok(())
}

/// `+` created, `-` deleted, `~` changed, with the fields of a change below.
fn describe(reply: &HistoryDiffReply) -> String {
    let mut text = String::new();
    for object in &reply.objects {
        let mark = match object.change.as_str() {
            "created" => '+',
            "deleted" => '-',
            _ => '~',
        };
        text.push_str(&format!("{mark} {}\n", object.object));
        if mark == '~' {
            for field in &object.fields {
                let (before, after) = (or_dash(&field.before), or_dash(&field.after));
                text.push_str(&format!("    {}  {before} -> {after}\n", field.field.replace('_', "-")));
            }
        }
    }
    if text.is_empty() {
        text.push_str("no difference in connectors, ranges, accepted domains, routes and settings\n");
    }
    text
}

async fn rollback(args: RollbackArgs, console: &Console) -> Result<Exit, Failure> {
    let RollbackArgs { revision, object, accept_risk, write } = args;
    let mut client = console.client().await?;
    let request =
        RollbackRequest { to: revision, object: object.clone(), options: Some(write.options_at_risk(accept_risk)?) };
    let what = if object.is_empty() { "the configuration".to_owned() } else { object };
    if !write.dry_run {
        let mut trial = request.clone();
        trial.options.get_or_insert_default().dry_run = true;
        let tried = client.write(async |mut admin| admin.rollback(trial.clone()).await).await?;
        confirm_gains(console, &tried, &format!("rolling {what} back to revision {revision}"))?;
    }
    let reply = client.write(async |mut admin| admin.rollback(request.clone()).await).await?;
    let mut deed = Deed::new("history-rollback", "revision", &revision.to_string(), "rolled back");
    deed.object = format!("{what} to revision {revision}");
    finish(console, &mut client, &write, reply, deed).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthouse_proto::v1::{FieldDiff, ObjectDiff};

    #[test]
    fn a_difference_reads_like_a_diff() {
        let field = |field: &str, before: &str, after: &str| FieldDiff {
            field: field.into(),
            before: before.into(),
            after: after.into(),
        };
        let object = |object: &str, change: &str, fields: Vec<FieldDiff>| ObjectDiff {
            object: object.into(),
            change: change.into(),
            fields,
        };
        let reply = HistoryDiffReply {
            objects: vec![
                object("connector/scanners", "changed", vec![field("max_message_size", "25", "50")]),
                object("allowlist/scanners/10.0.0.1", "deleted", vec![field("note", "x", "")]),
                object("domain/corp.example", "created", vec![]),
            ],
            from: 1,
            to: 9,
        };
        assert_eq!(
            describe(&reply),
            "~ connector/scanners\n    max-message-size  25 -> 50\n- allowlist/scanners/10.0.0.1\n+ domain/corp.example\n"
        );
        assert!(describe(&HistoryDiffReply::default()).starts_with("no difference"));
    }
}
