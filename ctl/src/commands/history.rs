//! `history`: who changed what, when and why.

use clap::{Args, Subcommand};
use posthouse_proto::v1::ListAuditRequest;

use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::output::{Rows, or_dash, short_time};

/// `history …`.
#[derive(Debug, Subcommand)]
pub(crate) enum HistoryCommand {
    /// The newest changes
    List(ListArgs),
}

/// Flags of `history list`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl history list --limit 20
  posthousectl history list -o json")]
pub(crate) struct ListArgs {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// Runs `history …`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(command: HistoryCommand, console: &Console) -> Result<Exit, Failure> {
    let HistoryCommand::List(ListArgs { limit }) = command;
    let mut client = console.client().await?;
    let reply = client.read(async |mut admin| admin.list_audit(ListAuditRequest { limit }).await).await?;
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
