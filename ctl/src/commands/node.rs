//! `node`: joining, and taking a node out and back in without cutting a session.

use std::time::Duration;

use clap::{Args, Subcommand};
use posthouse_proto::v1::{ListNodesReply, ListRequest, Member, SetNodeStateRequest, SetNodeWeightRequest};
use tokio::time::Instant;

use super::status::serving;
use super::{Noun, local, suggest};
use crate::client::Client;
use crate::console::{Console, NODE_SOCKET};
use crate::error::{Exit, Failure, code};
use crate::mutation::{Deed, WriteFlags, finish};
use crate::output::{self, Rows, or_dash};
use crate::parse;

/// `node …`.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Role, state, load and version of every node
    List,
    /// Everything about one node
    Show {
        /// Its name
        node: String,
    },
    /// Join a cluster with the node on this machine; waits until it has its role
    #[command(visible_alias = "join")]
    Add(AddArgs),
    /// Take no new connections; open sessions go on
    Drain(DrainArgs),
    /// Take connections again
    Resume(ResumeArgs),
    /// Change a node's share of new connections
    Set(SetArgs),
}

/// Flags of `node add`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  sudo posthousectl node add --token PHJ1-…
  (the token: posthousectl cluster join-token create, on a member)")]
pub(crate) struct AddArgs {
    /// The join token
    #[arg(long, env = "POSTHOUSECTL_TOKEN", hide_env_values = true)]
    token: String,
    /// HOST:PORT that the other members dial [default: the node file's]
    #[arg(long, value_name = "H:P")]
    advertise: Option<String>,
}

/// Flags of `node drain`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl node drain n2 --reason upgrade
  posthousectl node drain n2 --deadline 5m     # and wait until its sessions have ended")]
pub(crate) struct DrainArgs {
    /// Its name
    node: String,
    /// Drain the last active node all the same
    #[arg(long)]
    force: bool,
    /// Wait until its sessions have ended, at most this long
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    deadline: Option<Duration>,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `node resume`.
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// Its name
    node: String,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `node set`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl node set n2 --weight 2     # twice as many new connections as a node of weight 1")]
pub(crate) struct SetArgs {
    /// Its name
    node: String,
    /// Its share of new connections beside the others' weights, 1 to 256
    #[arg(long, value_name = "N")]
    weight: u32,
    #[command(flatten)]
    write: WriteFlags,
}

const NODE: Noun = Noun { name: "node", missing: "PH-NODE-001", list: "node list" };

/// Runs `node …`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(command: NodeCommand, console: &Console) -> Result<Exit, Failure> {
    match command {
        NodeCommand::List => list(console).await,
        NodeCommand::Show { node } => {
            let found = NODE.find(nodes(&mut console.client().await?).await?.nodes, &node, |member| &member.name)?;
            console.out.show("node-show", &found, "name")?;
            Ok(Exit::Done)
        }
        NodeCommand::Add(args) => local::join(console, NODE_SOCKET, "node-add", args.token, args.advertise).await,
        NodeCommand::Drain(args) => drain(args, console).await,
        NodeCommand::Resume(args) => {
            let mut client = console.client().await?;
            set_state(console, &mut client, &args.node, "active", false, &args.write).await
        }
        NodeCommand::Set(args) => set(args, console).await,
    }
}

async fn set(args: SetArgs, console: &Console) -> Result<Exit, Failure> {
    let SetArgs { node, weight, write } = args;
    let mut client = console.client().await?;
    let request = SetNodeWeightRequest { node: node.clone(), weight, options: Some(write.options(false)) };
    match client.write(async |mut admin| admin.set_node_weight(request.clone()).await).await {
        Ok(reply) => finish(console, &mut client, &write, reply, Deed::new("node-set", "node", &node, "changed")).await,
        Err(failure) => {
            let names =
                async { Ok(nodes(&mut client).await?.nodes.into_iter().map(|member| member.name).collect::<Vec<_>>()) };
            Err(suggest(NODE, failure, &node, names).await)
        }
    }
}

async fn nodes(client: &mut Client) -> Result<ListNodesReply, Failure> {
    client.read(async |mut admin| admin.list_nodes(ListRequest::default()).await).await
}

async fn list(console: &Console) -> Result<Exit, Failure> {
    let reply = nodes(&mut console.client().await?).await?;
    console.out.list("node-list", &reply, "nodes", "name", |wide| {
        let mut headings = vec!["NODE", "ROLE", "STATE", ">SESSIONS", ">QUEUE", "VERSION"];
        if wide {
            headings.extend(["ADDRESS", ">APPLIED", ">WEIGHT", "REASON"]);
        }
        let mut rows = Rows::new(&headings);
        reply.nodes.iter().for_each(|member| rows.push(row(member, wide)));
        rows
    })?;
    Ok(Exit::Done)
}

fn row(member: &Member, wide: bool) -> Vec<String> {
    let known = |number: u64| if member.reachable { parse::grouped(number) } else { "-".to_owned() };
    let mut row = vec![
        member.name.clone(),
        member.role.clone(),
        serving(member),
        known(member.sessions),
        known(member.queued),
        or_dash(&member.version),
    ];
    if wide {
        row.extend([member.address.clone(), known(member.applied), member.weight.to_string(), or_dash(&member.reason)]);
    }
    row
}

async fn set_state(
    console: &Console,
    client: &mut Client,
    node: &str,
    state: &str,
    force: bool,
    write: &WriteFlags,
) -> Result<Exit, Failure> {
    let request = SetNodeStateRequest {
        node: node.to_owned(),
        state: state.to_owned(),
        force,
        options: Some(write.options(false)),
    };
    let (schema, done) = if state == "active" { ("node-resume", "resumed") } else { ("node-drain", "draining") };
    match client.write(async |mut admin| admin.set_node_state(request.clone()).await).await {
        Ok(reply) => finish(console, client, write, reply, Deed::new(schema, "node", node, done)).await,
        Err(failure) => {
            let names =
                async { Ok(nodes(client).await?.nodes.into_iter().map(|member| member.name).collect::<Vec<_>>()) };
            Err(suggest(NODE, failure, node, names).await)
        }
    }
}

async fn drain(args: DrainArgs, console: &Console) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    let exit = set_state(console, &mut client, &args.node, "draining", args.force, &args.write).await?;
    match args.deadline {
        Some(deadline) if !args.write.dry_run => until_idle(&mut client, &args.node, deadline).await,
        _ => Ok(exit),
    }
}

/// Between two looks at a draining node.
const DRAIN_INTERVAL: Duration = Duration::from_millis(500);

/// Says how many sessions are left, one line a change, until there is none.
async fn until_idle(client: &mut Client, node: &str, deadline: Duration) -> Result<Exit, Failure> {
    let ends = Instant::now() + deadline;
    let mut said = None;
    loop {
        let found = NODE.find(nodes(client).await?.nodes, node, |member| &member.name)?;
        let left = if found.reachable { Some(found.sessions) } else { None };
        if said != Some(left) {
            output::note(&match left {
                Some(left) => format!("{node}: {left} sessions left"),
                None => format!("{node} does not answer"),
            });
            said = Some(left);
        }
        if left == Some(0) {
            return Ok(Exit::Done);
        }
        if Instant::now() >= ends {
            return Err(Failure::new(
                Exit::TimedOut,
                code::NO_ANSWER,
                format!("{node} still has sessions after {}", humantime::format_duration(deadline)),
                "it drains on: no session is cut",
                format!("posthousectl node show {node}"),
            ));
        }
        tokio::time::sleep(DRAIN_INTERVAL).await;
    }
}
