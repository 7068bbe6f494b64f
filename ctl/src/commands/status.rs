//! `status`: one screen. A machine that belongs to no cluster yet says so, and what to do first.

use std::fmt::Write as _;

use clap::Args;
use posthouse_proto::v1::{ClusterStatusReply, LocalStatusRequest, Member};

use super::cluster::headline;
use super::local;
use super::watch::WatchFlags;
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::output::{self, Format, Out, Rows};
use crate::parse::grouped;

/// Flags of `status`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl status
  posthousectl status -w
  sudo posthousectl --socket /run/posthouse/node.sock status -o json")]
#[command(after_help = "Exits 0 when the cluster is healthy, 1 when it is not.")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    watch: WatchFlags,
}

/// Prints the screen.
///
/// # Errors
/// When nobody answers.
pub(crate) async fn run(args: StatusArgs, console: &Console) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    if client.is_local() {
        let request = LocalStatusRequest {};
        let timeout = console.global.timeout;
        let mut process = client.local().await?;
        // A node of an older version may not serve this; then the cluster's own answer says what there is to say.
        if let Ok(Ok(reply)) = tokio::time::timeout(timeout, process.local_status(request)).await {
            let reply = reply.into_inner();
            if reply.kind == "front" || reply.state == "uninitialised" {
                return local::print_status(console, &reply);
            }
        }
    }
    let headers = console.out.headers;
    args.watch
        .run(console.out.format, async |format| {
            let reply = client.cluster_status().await?;
            print(Out { format, headers }, &reply)?;
            Ok(if reply.healthy { Exit::Done } else { Exit::No })
        })
        .await
}

fn print(out: Out, reply: &ClusterStatusReply) -> Result<(), Failure> {
    match out.format {
        Format::Json | Format::Jsonl => out.json("status", reply)?,
        Format::Name => out.list("status", reply, "members", "name", |_| Rows::default())?,
        Format::Table | Format::Wide => {
            let mut text = headline(reply);
            text.push_str(&members(reply).render(out.headers, ""));
            for front in &reply.fronts {
                let _ = writeln!(
                    text,
                    "front {}   {}   dials from {}",
                    front.name,
                    front.state,
                    front.source_addresses.join(", ")
                );
            }
            for warning in &reply.warnings {
                let _ = writeln!(text, "! {warning}");
            }
            output::text(&text)?;
        }
    }
    Ok(())
}

fn members(reply: &ClusterStatusReply) -> Rows {
    let mut rows = Rows::new(&["NODE", "ROLE", "STATE", ">SESSIONS", ">QUEUE", "VERSION", ""]);
    for member in &reply.members {
        let leads = reply.leader.as_deref() == Some(member.name.as_str());
        let counts = |number: u64| if member.reachable { grouped(number) } else { "-".to_owned() };
        rows.push(vec![
            member.name.clone(),
            if member.voter { "relay+voter" } else { "relay" }.to_owned(),
            serving(member),
            counts(member.sessions),
            counts(member.queued),
            output::or_dash(&member.version),
            if leads { "<- leader" } else { "" }.to_owned(),
        ]);
    }
    rows
}

/// Whether a node takes letters, in one word, and why not.
pub(super) fn serving(member: &Member) -> String {
    match (member.reachable, member.state.as_str(), member.ready) {
        (false, ..) => "unreachable".to_owned(),
        (true, "active", true) => "serving".to_owned(),
        (true, "active", false) if member.reason.is_empty() => "not ready".to_owned(),
        (true, "active", false) => format!("not ready: {}", member.reason),
        (true, state, _) => state.to_owned(),
    }
}
