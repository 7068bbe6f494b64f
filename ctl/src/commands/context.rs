//! `context`: clusters that this account knows. Keys are never shown.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::{Client, Target};
use crate::console::Console;
use crate::context::Context;
use crate::error::{Exit, Failure, code};
use crate::output::{self, Rows, or_dash};

/// `context …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Add a cluster: its endpoints, its authority, and an administrator's certificate and key
    Add(AddArgs),
    /// Use this context from now on
    Use {
        /// Its name
        name: String,
    },
    /// All contexts
    List,
    /// One context, without its key
    Show {
        /// Its name [default: the current one]
        name: Option<String>,
    },
    /// Forget a context and its key
    #[command(visible_alias = "delete")]
    Remove {
        /// Its name
        name: String,
    },
}

/// Flags of `context add`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl context add prod --endpoint n1.corp.example:7100 --endpoint n2.corp.example:7100 \\
      --ca-file ca.pem --cert-file admin.pem --key-file admin.key")]
pub(crate) struct AddArgs {
    /// Its name
    name: String,
    /// The cluster's authority, PEM
    #[arg(long, value_name = "FILE")]
    ca_file: PathBuf,
    /// The administrator's certificate, PEM
    #[arg(long, value_name = "FILE")]
    cert_file: PathBuf,
    /// The administrator's private key, PEM
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
}

/// Larger than any certificate chain.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Runs `context …`.
///
/// # Errors
/// What went wrong.
pub(crate) fn run(command: ContextCommand, console: &Console) -> Result<Exit, Failure> {
    match command {
        ContextCommand::Add(args) => add(&args, console),
        ContextCommand::Use { name } => {
            console.contexts()?.update(|contexts| {
                contexts.choose(Some(&name))?;
                contexts.current = Some(name.clone());
                Ok(())
            })?;
            done(console, "context-use", &name, "is current")
        }
        ContextCommand::List => list(console),
        ContextCommand::Show { name } => show(name.as_deref(), console),
        ContextCommand::Remove { name } => {
            console.confirm(&format!("removing context \"{name}\""), "its private key is forgotten")?;
            console.contexts()?.update(|contexts| {
                if contexts.contexts.remove(&name).is_none() {
                    return Err(contexts.not_found(&name));
                }
                contexts.current.take_if(|current| *current == name);
                Ok(())
            })?;
            done(console, "context-remove", &name, "removed")
        }
    }
}

fn done(console: &Console, schema: &str, name: &str, what: &str) -> Result<Exit, Failure> {
    if console.out.format.is_json() {
        console.out.json(schema, &json!({"name": name}))?;
    } else {
        output::text(&format!("context \"{name}\" {what}\n"))?;
    }
    Ok(Exit::Done)
}

fn add(args: &AddArgs, console: &Console) -> Result<Exit, Failure> {
    if console.global.endpoint.is_empty() {
        return Err(Failure::usage(
            "a context needs an endpoint",
            "without one it leads nowhere",
            "--endpoint HOST:PORT, once for each member",
        ));
    }
    for text in &console.global.endpoint {
        Target::parse(text)?;
    }
    let context = Context {
        cluster: String::new(),
        endpoints: console.global.endpoint.clone(),
        members: Vec::new(),
        ca: read_pem(&args.ca_file)?,
        cert: read_pem(&args.cert_file)?,
        key: read_pem(&args.key_file)?,
    };
    // An identity that cannot be used is better refused now than at the first call.
    Client::new(Vec::new(), Some(&context), console.global.timeout)?;
    console.contexts()?.update(|contexts| {
        if contexts.contexts.contains_key(&args.name) {
            return Err(Failure::new(
                Exit::Conflict,
                code::CONTEXT_FILE,
                format!("context \"{}\" exists already", args.name),
                "it may hold the only copy of a key",
                format!("choose another name, or first: posthousectl context remove {}", args.name),
            ));
        }
        contexts.contexts.insert(args.name.clone(), context);
        contexts.current.get_or_insert_with(|| args.name.clone());
        Ok(())
    })?;
    done(console, "context-add", &args.name, "added")
}

fn read_pem(path: &Path) -> Result<String, Failure> {
    let read = |path: &Path| -> io::Result<String> {
        let mut text = String::new();
        File::open(path)?.take(PEM_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    read(path).map_err(|error| {
        let message = format!("{} cannot be read", path.display());
        Failure::new(Exit::Invalid, code::FILE, message, error.to_string(), "name a readable PEM file")
    })
}

/// A context as it may be shown.
fn shown(name: &str, context: &Context, current: bool) -> Value {
    json!({"name": name, "cluster": context.cluster, "endpoints": context.endpoints, "members": context.members,
           "current": current})
}

fn list(console: &Console) -> Result<Exit, Failure> {
    let contexts = console.contexts()?.load()?;
    let is_current = |name: &str| contexts.current.as_deref() == Some(name);
    let all: Vec<Value> =
        contexts.contexts.iter().map(|(name, context)| shown(name, context, is_current(name))).collect();
    console.out.list("context-list", &json!({"contexts": all}), "contexts", "name", |_| {
        let mut rows = Rows::new(&["", "NAME", "CLUSTER", "ENDPOINTS"]);
        for (name, context) in &contexts.contexts {
            rows.push(vec![
                if is_current(name) { "*" } else { "" }.to_owned(),
                name.clone(),
                or_dash(&context.cluster),
                or_dash(&context.endpoints.join(", ")),
            ]);
        }
        rows
    })?;
    Ok(Exit::Done)
}

fn show(name: Option<&str>, console: &Console) -> Result<Exit, Failure> {
    let contexts = console.contexts()?.load()?;
    let wanted = name.or(console.global.context.as_deref());
    let Some((name, context)) = contexts.choose(wanted)? else {
        return Err(Failure::new(
            Exit::NotFound,
            code::CONTEXT_MISSING,
            "no context is current",
            "none was chosen yet",
            "posthousectl context use NAME",
        ));
    };
    let current = contexts.current.as_deref() == Some(name);
    console.out.show("context-show", &shown(name, context, current), "name")?;
    Ok(Exit::Done)
}
