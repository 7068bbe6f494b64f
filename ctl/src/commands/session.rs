//! `session`: SMTP sessions that devices have open, on every node.

use clap::{Args, Subcommand};
use posthouse_proto::v1::{SessionRequest, SmtpSession, WriteOptions};
use serde_json::json;

use super::complete;
use super::watch::WatchFlags;
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::output::{self, Format, Out, Rows, or_dash, short_time};
use crate::parse::{age, grouped};

/// `session …`.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// The sessions, the oldest first
    List(ListArgs),
    /// End sessions: each is told 421 and closed, after the answer to a letter that is being stored
    Kill(KillArgs),
}

/// Which sessions.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Filter")]
pub(crate) struct FilterFlags {
    /// Taken by this connector
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    connector: String,
    /// Of devices at this address or in this range: 10.1.2.3, 10.1.2.3-10.1.2.9, 10.1.2.0/24
    #[arg(long, visible_alias = "client-ip", value_name = "RANGE", default_value = "", hide_default_value = true)]
    source: String,
    /// On this node
    #[arg(long, value_name = "NODE", default_value = "", hide_default_value = true)]
    on_node: String,
}

/// Flags of `session list`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl session list
  posthousectl session list --source 10.20.31.0/24 -w
  posthousectl session list --connector printers --on-node n2 -o jsonl")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    filter: FilterFlags,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    watch: WatchFlags,
}

/// Flags of `session kill`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl session kill 08DE2C41F0A31B77 --reason 'hangs'
  posthousectl session kill --source 10.20.31.7 --dry-run
  posthousectl session kill --connector old-fax --yes

A letter that is on its way is forgotten, and the device is not told 250 for it. One that is complete gets its answer
first. What was accepted stays accepted. A device may connect again: to keep it out, take its range or credential away.")]
pub(crate) struct KillArgs {
    /// Sessions by their ids, as session list shows them
    ids: Vec<String>,
    #[command(flatten)]
    filter: FilterFlags,
    /// Every session of the cluster
    #[arg(long)]
    all: bool,
    /// Say which would end; end none
    #[arg(long)]
    dry_run: bool,
    /// Why; kept in the nodes' logs
    #[arg(
        long,
        value_name = "TEXT",
        env = "POSTHOUSECTL_REASON",
        hide_env = true,
        default_value = "",
        hide_default_value = true
    )]
    reason: String,
}

impl FilterFlags {
    fn is_empty(&self) -> bool {
        [&self.connector, &self.source, &self.on_node].iter().all(|text| text.is_empty())
    }

    fn request(self) -> SessionRequest {
        SessionRequest { connector: self.connector, source: self.source, node: self.on_node, ..Default::default() }
    }
}

/// Runs `session …`.
///
/// # Errors
/// What went wrong; also that a node did not answer, after what is known was printed.
pub(crate) async fn run(command: SessionCommand, console: &Console) -> Result<Exit, Failure> {
    match command {
        SessionCommand::List(args) => list(args, console).await,
        SessionCommand::Kill(args) => kill(args, console).await,
    }
}

async fn list(args: ListArgs, console: &Console) -> Result<Exit, Failure> {
    let ListArgs { filter, limit, watch } = args;
    let request = SessionRequest { limit, ..filter.request() };
    let mut client = console.client().await?;
    let headers = console.out.headers;
    watch
        .run(console.out.format, async |format| {
            let reply = client.read(async |mut admin| admin.session_list(request.clone()).await).await?;
            Out { format, headers }
                .list("session-list", &reply, "sessions", "id", |wide| table(&reply.sessions, wide))?;
            let shown = reply.sessions.len() as u64;
            if reply.matched > shown && !format.is_json() {
                output::note(&format!(
                    "{shown} of {} shown; --limit {} shows all",
                    grouped(reply.matched),
                    reply.matched
                ));
            }
            complete(&reply.unreachable, "its sessions are not listed")
        })
        .await
}

fn table(sessions: &[SmtpSession], wide: bool) -> Rows {
    let mut headings = vec!["ID", "NODE", "SOURCE", "CONNECTOR", "STATE", "TLS", "USER", ">LETTERS", ">AGE", ">IDLE"];
    if wide {
        headings.extend(["FRONT", "LOCAL", "SINCE", "LAST HEARD", "CIPHER"]);
    }
    let mut rows = Rows::new(&headings);
    for session in sessions {
        let mut row = vec![
            session.id.clone(),
            session.node.clone(),
            session.source.clone(),
            session.connector.clone(),
            session.state.clone(),
            if session.tls.is_empty() { "no" } else { "yes" }.to_owned(),
            or_dash(&session.user),
            grouped(session.letters),
            age(session.age_secs),
            age(session.idle_secs),
        ];
        if wide {
            row.extend([
                or_dash(&session.front),
                session.local.clone(),
                short_time(&session.since),
                short_time(&session.last_heard_at),
                or_dash(&session.tls),
            ]);
        }
        rows.push(row);
    }
    rows
}

async fn kill(args: KillArgs, console: &Console) -> Result<Exit, Failure> {
    let KillArgs { ids, filter, all, dry_run, reason } = args;
    if ids.is_empty() && filter.is_empty() && !all {
        return Err(Failure::usage(
            "which sessions?",
            "without a filter this would be every session of the cluster",
            "name ids, --connector, --source or --on-node; or type --all",
        ));
    }
    if !dry_run && ids.is_empty() {
        let which = if filter.is_empty() { "ending every session of the cluster" } else { "ending sessions" };
        console.confirm(which, "devices that do not try again lose the letter that they are sending")?;
    }
    let options = Some(WriteOptions { reason, dry_run, ..WriteOptions::default() });
    let request = SessionRequest { ids: ids.clone(), all, options, ..filter.request() };
    let mut client = console.client().await?;
    let reply = client.write(async |mut admin| admin.session_kill(request.clone()).await).await?;
    match console.out.format {
        Format::Json | Format::Jsonl => {
            let object =
                json!({"killed": reply.killed, "ids": reply.ids, "unreachable": reply.unreachable, "dry_run": dry_run});
            console.out.json("session-kill", &object)?;
        }
        Format::Name => output::text(&reply.ids.iter().map(|id| format!("{id}\n")).collect::<String>())?,
        Format::Table | Format::Wide if dry_run => {
            output::text(&format!("{} sessions would end   dry run, nothing was changed\n", grouped(reply.killed)))?;
        }
        Format::Table | Format::Wide => output::text(&format!("{} sessions ended\n", grouped(reply.killed)))?,
    }
    complete(&reply.unreachable, "its sessions are as they were")?;
    // Somebody who names a session wants to know that it was not there.
    Ok(if reply.ids.is_empty() && !ids.is_empty() { Exit::NotFound } else { Exit::Done })
}
