//! `front`: the proxies that devices reach.

use clap::{Args, Subcommand};
use posthouse_proto::v1::{ListFrontsReply, ListRequest, NameRequest};

use super::{Noun, local, suggest};
use crate::client::Client;
use crate::console::{Console, FRONT_SOCKET};
use crate::error::{Exit, Failure};
use crate::mutation::{Deed, WriteFlags, finish};
use crate::output::{Rows, or_dash};

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
    }
}

async fn fronts(client: &mut Client) -> Result<ListFrontsReply, Failure> {
    client.read(async |mut admin| admin.list_fronts(ListRequest {}).await).await
}

async fn list(console: &Console) -> Result<Exit, Failure> {
    let reply = fronts(&mut console.client().await?).await?;
    console.out.list("front-list", &reply, "fronts", "name", |wide| {
        let mut headings = vec!["FRONT", "STATE", "DIALS FROM", "HTTP"];
        if wide {
            headings.extend(["KEY", ">REVISION"]);
        }
        let mut rows = Rows::new(&headings);
        for front in &reply.fronts {
            let mut row = vec![
                front.name.clone(),
                front.state.clone(),
                or_dash(&front.source_addresses.join(", ")),
                or_dash(&front.http_address),
            ];
            if wide {
                row.extend([front.key_id.clone(), front.revision.to_string()]);
            }
            rows.push(row);
        }
        rows
    })?;
    Ok(Exit::Done)
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
