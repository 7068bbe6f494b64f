//! The command tree and the flags that every command has. The flags of a noun stand beside what it does, in
//! `commands/`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand};

use crate::commands::{
    allowlist, cluster, completion, connector, context, credential, domain, explain, front, history, log, message,
    node, queue, route, session, settings, status, tls,
};
use crate::output::Format;
use crate::parse;

/// The administrator's command line for a Posthouse cluster.
#[derive(Debug, Parser)]
#[command(
    name = "posthousectl",
    version,
    disable_help_subcommand = true,
    before_help = "Examples:
  posthousectl status
  posthousectl connector create printers --template anonymous-relay --from 10.20.31.0/26
  posthousectl explain ip 10.20.31.7 --from scan@corp.example --to a@partner.example
  posthousectl message trace --client-ip 10.20.31.7 --since 1h",
    after_help = "Exit codes:
  0  done, healthy, or would be accepted      5  no endpoint, no leader, or part did not answer
  1  the answer is no                         6  the revision moved
  2  usage                                    7  timed out waiting; the change may still land
  3  not found                                8  invalid
  4  not permitted                            9  anything else"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command; each has an environment variable.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Use this context instead of the current one (`cluster init`: the context to create)
    #[arg(long, global = true, value_name = "NAME", env = "POSTHOUSECTL_CONTEXT", hide_env = true)]
    pub(crate) context: Option<String>,
    /// Ask here: HOST:PORT or unix:/path; repeat to have them tried in turn
    #[arg(
        long,
        global = true,
        value_name = "H:P",
        env = "POSTHOUSECTL_ENDPOINT",
        hide_env = true,
        value_delimiter = ','
    )]
    pub(crate) endpoint: Vec<String>,
    /// Ask the node or front behind this local socket
    #[arg(long, global = true, value_name = "PATH", env = "POSTHOUSECTL_SOCKET", hide_env = true)]
    pub(crate) socket: Option<PathBuf>,
    /// This very node must answer
    #[arg(long, global = true, value_name = "NAME", env = "POSTHOUSECTL_NODE", hide_env = true)]
    pub(crate) node: Option<String>,
    /// How long one call may take
    #[arg(long, global = true, value_name = "TIME", env = "POSTHOUSECTL_TIMEOUT", hide_env = true, default_value = "10s", value_parser = parse::duration)]
    pub(crate) timeout: Duration,
    /// Where contexts.toml is kept [default: $XDG_CONFIG_HOME/posthouse]
    #[arg(long, global = true, value_name = "DIR", env = "POSTHOUSECTL_CONFIG_DIR", hide_env = true)]
    pub(crate) config_dir: Option<PathBuf>,
    /// How answers look
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        env = "POSTHOUSECTL_OUTPUT",
        hide_env = true,
        default_value_t
    )]
    pub(crate) output: Format,
    /// Leave the headings of tables out
    #[arg(long, global = true, env = "POSTHOUSECTL_NO_HEADERS", hide_env = true, value_parser = FalseyValueParser::new())]
    pub(crate) no_headers: bool,
    /// Do not ask before a dangerous change
    #[arg(short, long, global = true, env = "POSTHOUSECTL_YES", hide_env = true, value_parser = FalseyValueParser::new())]
    pub(crate) yes: bool,
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// One screen: cluster, nodes, fronts, queue, warnings
    Status(status::StatusArgs),
    /// Why: which connector takes an address, or what an error code means
    #[command(subcommand)]
    Explain(explain::ExplainCommand),
    /// The cluster: make it, watch it, let machines join
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Nodes: join, drain, resume
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Fronts: join, list, remove
    #[command(subcommand)]
    Front(front::FrontCommand),
    /// Receive connectors: who may connect, submit and relay
    #[command(subcommand)]
    Connector(Box<connector::ConnectorCommand>),
    /// The addresses of a connector (its remote IP ranges)
    #[command(subcommand)]
    Allowlist(allowlist::AllowlistCommand),
    /// User names and passwords of devices and applications
    #[command(subcommand)]
    Credential(credential::CredentialCommand),
    /// Accepted domains
    #[command(subcommand)]
    Domain(domain::DomainCommand),
    /// Where letters go: smart hosts per address space
    #[command(subcommand)]
    Route(route::RouteCommand),
    /// What holds for the whole cluster: the open-relay guard's limit, copies of reports, postmaster, back pressure
    #[command(subcommand)]
    Settings(settings::SettingsCommand),
    /// Letters that wait
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// SMTP sessions that devices have open
    #[command(subcommand)]
    Session(session::SessionCommand),
    /// What devices say and are told, as it happens
    #[command(subcommand)]
    Log(log::LogCommand),
    /// What happened to a letter
    #[command(subcommand)]
    Message(message::MessageCommand),
    /// Certificates and the cluster's authority
    #[command(subcommand)]
    Tls(tls::TlsCommand),
    /// Who changed what
    #[command(subcommand)]
    History(history::HistoryCommand),
    /// Clusters that this account knows
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Completion for a shell
    Completion(completion::CompletionArgs),
    /// The version of this program
    Version,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_tree_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands() {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{path} says nothing about itself");
                for arg in sub.get_arguments().filter(|arg| !arg.is_hide_set()) {
                    assert!(arg.get_help().is_some(), "{path} {} has no help", arg.get_id());
                }
                check(sub, &path);
            }
        }
        check(&Cli::command(), "posthousectl");
    }

    #[test]
    fn both_verb_spellings_are_understood() {
        for line in [
            "posthousectl domain create corp.example",
            "posthousectl domain add corp.example",
            "posthousectl domain delete corp.example",
            "posthousectl domain remove corp.example",
            "posthousectl route create * --to h:25",
            "posthousectl route add * --to h:25",
            "posthousectl route delete default",
            "posthousectl node join --token T",
            "posthousectl node add --token T",
            "posthousectl allowlist remove c 10.0.0.1",
            "posthousectl credential rotate u --generate",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_password_is_never_a_flag_value() {
        for line in ["credential create u --password x --sender *", "credential set u --password=x"] {
            let words = std::iter::once("posthousectl").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
