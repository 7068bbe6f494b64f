//! `front`: the proxies that devices reach.

use std::time::Duration;

use clap::{Args, Subcommand};
use posthouse_proto::v1::{Front, ListFrontsReply, ListNodesReply, ListRequest, NameRequest, SetFrontStateRequest};
use serde_json::json;

use super::front_haproxy::{self, HaproxyArgs};
use super::front_keepalived::{self, KeepalivedArgs};
use super::watch::WatchFlags;
use super::{Noun, local, suggest};
use crate::client::Client;
use crate::console::{Console, FRONT_SOCKET};
use crate::error::{Exit, Failure};
use crate::mutation::{Deed, WriteFlags, finish};
use crate::output::{self, Format, Out, Rows, or_dash};
use crate::parse::grouped;

/// `front …`.
#[derive(Debug, Subcommand)]
pub(crate) enum FrontCommand {
    /// Fronts that have joined
    List,
    /// Everything about one front
    Show {
        /// Its name
        front: String,
    },
    /// Join a cluster with the front on this machine
    #[command(visible_alias = "join")]
    Add(AddArgs),
    /// Stop believing a front
    #[command(visible_alias = "delete")]
    Remove(RemoveArgs),
    /// The nodes as each front sees them
    Backends(BackendsArgs),
    /// Move the address elsewhere; what still arrives is served
    Drain(StateArgs),
    /// Let the address come back
    Resume(StateArgs),
    /// Give a front a new signing key: published, known everywhere, signed with, and the old one retired
    RotateKey(RotateArgs),
    /// Write a configuration from the live cluster
    #[command(subcommand)]
    Render(RenderCommand),
}

/// `front render …`.
#[derive(Debug, Subcommand)]
pub(crate) enum RenderCommand {
    /// keepalived (VRRP) for one front: the address that devices know, and when it moves
    Keepalived(KeepalivedArgs),
    /// HAProxy instead of a front
    Haproxy(HaproxyArgs),
}

/// Flags of `front backends`.
#[derive(Debug, Args)]
pub(crate) struct BackendsArgs {
    /// Only this front's
    front: Option<String>,
    #[command(flatten)]
    watch: WatchFlags,
}

/// Flags of `front drain` and `front resume`.
#[derive(Debug, Args)]
#[command(
    before_help = "A drained front answers 503 at /readyz and serves whoever still comes. Behind keepalived the address moves to another
front within about two seconds; the sessions that are open then cannot move with it and end; a letter
that had no 250 yet is the device's to send again. Where devices reach the front at an address of its own, or through a
balancer that asks /readyz, open sessions go on until they are done.

Examples:
  posthousectl front drain front1
  posthousectl front resume front1"
)]
pub(crate) struct StateArgs {
    /// Its name
    front: String,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `front rotate-key`.
#[derive(Debug, Args)]
#[command(before_help = "A rotation that stopped half-way is taken up where it stopped: repeat the command.")]
pub(crate) struct RotateArgs {
    /// Its name
    front: String,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `front add`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  sudo posthousectl front add --token PHJ1-…
  (the token: posthousectl cluster join-token create --role front, on a member)")]
pub(crate) struct AddArgs {
    /// The join token
    #[arg(long, env = "POSTHOUSECTL_TOKEN", hide_env_values = true)]
    token: String,
}

/// Flags of `front remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Its name
    front: String,
    #[command(flatten)]
    write: WriteFlags,
}

const FRONT: Noun = Noun { name: "front", missing: "PH-FRONT-001", list: "front list" };

/// Runs `front …`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(command: FrontCommand, console: &Console) -> Result<Exit, Failure> {
    match command {
        FrontCommand::List => list(console).await,
        FrontCommand::Show { front } => {
            let found = FRONT.find(fronts(&mut console.client().await?).await?.fronts, &front, |front| &front.name)?;
            console.out.show("front-show", &found, "name")?;
            Ok(Exit::Done)
        }
        FrontCommand::Add(args) => local::join(console, FRONT_SOCKET, "front-add", args.token, None).await,
        FrontCommand::Remove(args) => remove(args, console).await,
        FrontCommand::Backends(args) => backends(args, console).await,
        FrontCommand::Drain(args) => set_state(args, "draining", console).await,
        FrontCommand::Resume(args) => set_state(args, "active", console).await,
        FrontCommand::RotateKey(args) => rotate(args, console).await,
        FrontCommand::Render(command) => {
            let mut client = console.client().await?;
            let fronts = fronts(&mut client).await?.fronts;
            let text = match command {
                RenderCommand::Keepalived(args) => front_keepalived::render(&args, &fronts)?,
                RenderCommand::Haproxy(args) => {
                    let nodes: ListNodesReply =
                        client.read(async |mut admin| admin.list_nodes(ListRequest::default()).await).await?;
                    front_haproxy::render(&args, &nodes.nodes)?
                }
            };
            output::raw(&text)?;
            Ok(Exit::Done)
        }
    }
}

async fn fronts(client: &mut Client) -> Result<ListFrontsReply, Failure> {
    client.read(async |mut admin| admin.list_fronts(ListRequest::default()).await).await
}

async fn list(console: &Console) -> Result<Exit, Failure> {
    let reply = fronts(&mut console.client().await?).await?;
    console.out.list("front-list", &reply, "fronts", "name", |wide| {
        let mut headings = vec!["FRONT", "STATE", ">SESSIONS", "DIALS FROM", "HTTP"];
        if wide {
            headings.extend(["KEY", "VERSION", ">REVISION"]);
        }
        let mut rows = Rows::new(&headings);
        for front in &reply.fronts {
            let mut row = vec![
                front.name.clone(),
                serving(front),
                front.report.as_ref().map_or_else(|| "-".to_owned(), |report| grouped(report.sessions)),
                or_dash(&front.source_addresses.join(", ")),
                or_dash(&front.http_address),
            ];
            if wide {
                let version = front.report.as_ref().map(|report| report.version.clone()).unwrap_or_default();
                row.extend([front.key_id.clone(), or_dash(&version), front.revision.to_string()]);
            }
            rows.push(row);
        }
        rows
    })?;
    Ok(Exit::Done)
}

/// How a front is, in a few words.
fn serving(front: &Front) -> String {
    match &front.report {
        _ if front.state != "active" => front.state.clone(),
        None => "silent".to_owned(),
        Some(report) if report.ready => "ready".to_owned(),
        Some(report) => format!("not ready: {}", report.reasons.join("; ")),
    }
}

async fn backends(args: BackendsArgs, console: &Console) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    let headers = console.out.headers;
    args.watch
        .run(console.out.format, async |format| {
            let mut reply = fronts(&mut client).await?;
            if let Some(name) = &args.front {
                reply.fronts = vec![FRONT.find(reply.fronts, name, |front| &front.name)?];
            }
            print_backends(Out { format, headers }, &reply.fronts)?;
            let all_well = reply.fronts.iter().all(|front| {
                front.report.as_ref().is_some_and(|report| report.backends.iter().all(|backend| backend.eligible))
            });
            Ok(if all_well { Exit::Done } else { Exit::No })
        })
        .await
}

fn print_backends(out: Out, fronts: &[Front]) -> Result<(), Failure> {
    let rows = fronts.iter().flat_map(|front| {
        let backends = front.report.iter().flat_map(|report| report.backends.iter());
        backends.map(|backend| (front.name.clone(), backend))
    });
    let items: Vec<_> = rows
        .clone()
        .map(|(front, backend)| {
            let mut item = output::flattened(backend);
            item["front"] = front.into();
            item
        })
        .collect();
    let silent: Vec<_> = fronts.iter().filter(|front| front.report.is_none()).map(|front| front.name.clone()).collect();
    out.list("front-backends", &json!({ "backends": items, "silent_fronts": silent }), "backends", "node", |wide| {
        let mut headings = vec!["FRONT", "BACKEND", "STATE", "CHECK", "ROTATION", ">SESSIONS", ">WEIGHT"];
        if wide {
            headings.extend(["NODE SAYS", "REASON", "LAST FAILURE"]);
        }
        let mut table = Rows::new(&headings);
        for (front, backend) in rows {
            let weight = match backend.effective_weight_percent {
                percent if percent < backend.weight.saturating_mul(100) && backend.eligible => {
                    format!("{} ({} %)", backend.weight, percent / backend.weight.max(1))
                }
                _ => backend.weight.to_string(),
            };
            let mut row = vec![
                front,
                backend.node.clone(),
                backend.state.clone(),
                if backend.up { "up".to_owned() } else { format!("down ({})", backend.failures) },
                if backend.eligible { "in" } else { "out" }.to_owned(),
                grouped(backend.sessions),
                weight,
            ];
            if wide {
                row.extend([backend.readiness.clone(), or_dash(&backend.reason), or_dash(&backend.last_failure)]);
            }
            table.push(row);
        }
        table
    })?;
    if matches!(out.format, Format::Table | Format::Wide) {
        for front in silent {
            output::note(&format!("front {front} has said nothing to the node that answered for some seconds"));
        }
    }
    Ok(())
}

async fn set_state(args: StateArgs, state: &str, console: &Console) -> Result<Exit, Failure> {
    let StateArgs { front, write } = args;
    let mut client = console.client().await?;
    let request =
        SetFrontStateRequest { front: front.clone(), state: state.to_owned(), options: Some(write.options(false)) };
    let (schema, done) = if state == "active" { ("front-resume", "resumed") } else { ("front-drain", "draining") };
    match client.write(async |mut admin| admin.set_front_state(request.clone()).await).await {
        Ok(reply) => finish(console, &mut client, &write, reply, Deed::new(schema, "front", &front, done)).await,
        Err(failure) => Err(missing(&mut client, failure, &front).await),
    }
}

/// The steps of a rotation, each with its deadline in the cluster, and a margin.
const ROTATE_TIMEOUT: Duration = Duration::from_secs(45);

async fn rotate(args: RotateArgs, console: &Console) -> Result<Exit, Failure> {
    let RotateArgs { front, write } = args;
    let mut client = console.client().await?;
    // Every node must know the key, and the front must have signed with it, before the answer comes.
    client.set_timeout(ROTATE_TIMEOUT);
    let request = NameRequest { name: front.clone(), options: Some(write.options(false)) };
    match client.write(async |mut admin| admin.rotate_front_key(request.clone()).await).await {
        Ok(reply) if console.out.format.is_json() => {
            console.out.json("front-rotate-key", &reply)?;
            Ok(Exit::Done)
        }
        Ok(reply) if write.dry_run => {
            output::text(&format!("front \"{front}\" would get a new signing key instead of {}\n", reply.old_key_id))?;
            Ok(Exit::Done)
        }
        Ok(reply) => {
            let (old, new) = (&reply.old_key_id, &reply.new_key_id);
            output::text(&format!(
                "front \"{front}\" signs with key {new}; {old} is retired   revision {}\n",
                reply.revision
            ))?;
            Ok(Exit::Done)
        }
        Err(failure) => Err(missing(&mut client, failure, &front).await),
    }
}

/// The failure, with the nearest name when there is no front of that name.
async fn missing(client: &mut Client, failure: Failure, front: &str) -> Failure {
    let names = async { Ok(fronts(client).await?.fronts.into_iter().map(|front| front.name).collect::<Vec<_>>()) };
    suggest(FRONT, failure, front, names).await
}

async fn remove(args: RemoveArgs, console: &Console) -> Result<Exit, Failure> {
    let RemoveArgs { front, write } = args;
    let mut client = console.client().await?;
    if !write.dry_run {
        console.confirm(
            &format!("removing front \"{front}\""),
            "nodes stop believing it at once, and devices that reach it find nobody",
        )?;
    }
    let request = NameRequest { name: front.clone(), options: Some(write.options(false)) };
    match client.write(async |mut admin| admin.remove_front(request.clone()).await).await {
        Ok(reply) => {
            finish(console, &mut client, &write, reply, Deed::new("front-remove", "front", &front, "removed")).await
        }
        Err(failure) => {
            let names =
                async { Ok(fronts(&mut client).await?.fronts.into_iter().map(|front| front.name).collect::<Vec<_>>()) };
            Err(suggest(FRONT, failure, &front, names).await)
        }
    }
}
