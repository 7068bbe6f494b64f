//! One file per noun of the command tree: its flags, what it asks, and how the answer looks.

pub(crate) mod allowlist;
pub(crate) mod allowlist_stale;
pub(crate) mod cluster;
pub(crate) mod completion;
pub(crate) mod connector;
pub(crate) mod connector_flags;
pub(crate) mod connector_hits;
pub(crate) mod connector_look;
pub(crate) mod context;
pub(crate) mod credential;
pub(crate) mod domain;
pub(crate) mod explain;
pub(crate) mod explain_words;
pub(crate) mod front;
mod front_haproxy;
mod front_keepalived;
pub(crate) mod history;
pub(crate) mod local;
pub(crate) mod log;
pub(crate) mod message;
mod message_export;
pub(crate) mod node;
pub(crate) mod queue;
pub(crate) mod queue_view;
pub(crate) mod route;
pub(crate) mod session;
pub(crate) mod settings;
pub(crate) mod status;
pub(crate) mod tls;
mod tls_check;
mod usage;
pub(crate) mod watch;

use serde_json::json;

use crate::cli::Command;
use crate::console::Console;
use crate::error::{Exit, Failure, code, nearest};
use crate::output;

/// Runs one command.
///
/// # Errors
/// What went wrong, ready to be printed.
pub(crate) async fn run(command: Command, console: Console) -> Result<Exit, Failure> {
    match command {
        Command::Status(args) => status::run(args, &console).await,
        Command::Explain(command) => explain::run(command, &console).await,
        Command::Cluster(command) => cluster::run(command, &console).await,
        Command::Node(command) => node::run(command, &console).await,
        Command::Front(command) => front::run(command, &console).await,
        Command::Connector(command) => connector::run(*command, &console).await,
        Command::Allowlist(command) => allowlist::run(command, &console).await,
        Command::Credential(command) => credential::run(command, &console).await,
        Command::Domain(command) => domain::run(command, &console).await,
        Command::Route(command) => route::run(command, &console).await,
        Command::Settings(command) => settings::run(command, &console).await,
        Command::Queue(command) => queue::run(command, &console).await,
        Command::Session(command) => session::run(command, &console).await,
        Command::Log(command) => log::run(command, &console).await,
        Command::Message(command) => message::run(command, &console).await,
        Command::Tls(command) => tls::run(command, &console).await,
        Command::History(command) => history::run(command, &console).await,
        Command::Context(command) => context::run(command, &console),
        Command::Completion(args) => completion::run(&args),
        Command::Version => version(&console),
    }
}

fn version(console: &Console) -> Result<Exit, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if console.out.format.is_json() {
        console.out.json("version", &json!({"version": version}))?;
    } else {
        output::text(&format!("posthousectl {version}\n"))?;
    }
    Ok(Exit::Done)
}

/// What a noun is called, and what its absence is.
#[derive(Clone, Copy)]
pub(crate) struct Noun {
    /// `connector`.
    pub(crate) name: &'static str,
    /// The cluster's own code of "not found".
    pub(crate) missing: &'static str,
    /// The command that lists them.
    pub(crate) list: &'static str,
}

impl Noun {
    /// The object of that name, or "not found" with the nearest name.
    pub(crate) fn find<T>(self, items: Vec<T>, wanted: &str, name_of: impl Fn(&T) -> &str) -> Result<T, Failure> {
        match items.iter().position(|item| name_of(item) == wanted) {
            Some(index) => items.into_iter().nth(index).ok_or_else(|| self.not_found(wanted, None)),
            None => Err(self.not_found(wanted, nearest(wanted, items.iter().map(name_of)))),
        }
    }

    fn not_found(self, wanted: &str, near: Option<&str>) -> Failure {
        let Self { name, missing, list } = self;
        let message = format!("{name} \"{wanted}\" not found");
        let cause = format!("the cluster has no {name} of that name");
        Failure::new(Exit::NotFound, missing, message, cause, format!("posthousectl {list}")).with_suggestion(near)
    }
}

/// Adds the nearest of `names` when the cluster says that it has no such `noun`; any other failure stays as it is.
pub(crate) async fn suggest<N: AsRef<str>>(
    noun: Noun,
    failure: Failure,
    wanted: &str,
    names: impl Future<Output = Result<Vec<N>, Failure>>,
) -> Failure {
    if failure.code() != noun.missing {
        return failure;
    }
    match names.await {
        Ok(names) => failure.with_suggestion(nearest(wanted, names.iter().map(AsRef::as_ref))),
        Err(_) => failure,
    }
}

/// Says which nodes did not answer, after what is known was printed.
///
/// # Errors
/// When there is such a node.
pub(crate) fn complete(unreachable: &[String], what: &str) -> Result<Exit, Failure> {
    if unreachable.is_empty() {
        return Ok(Exit::Done);
    }
    Err(Failure::new(
        Exit::Unreachable,
        code::PARTIAL,
        format!("{} did not answer: {what}", unreachable.join(", ")),
        "only the node itself knows what it has",
        "see how it is: posthousectl cluster status; then ask again",
    ))
}
