//! `posthouse`: node, front and sink. Flags, configuration, run, wait for a signal, drain, exit code.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use posthouse_node::config::{LogSection, NodeConfig};
use posthouse_node::front::FrontConfig;
use posthouse_node::shutdown::Scope;
use posthouse_node::sink::{SinkConfig, run as run_sink};
use posthouse_node::{app, telemetry, tls};
use tokio::signal::unix::{SignalKind, signal};

/// sysexits.h EX_USAGE: the file or the flags are wrong; nothing was started.
const EX_USAGE: u8 = 64;
/// sysexits.h EX_SOFTWARE: could not start or go on.
const EX_SOFTWARE: u8 = 70;

/// Posthouse, a highly available SMTP relay cluster.
#[derive(Parser)]
#[command(name = "posthouse", version, about, after_help = "Administration is done with posthousectl.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a relay node: receive, spool, deliver
    Node {
        /// The node file (see deploy/node.example.toml)
        #[arg(long, short, default_value = "/etc/posthouse/node.toml")]
        config: PathBuf,
    },
    /// Run a front: the health-checked TCP proxy that devices connect to
    Front {
        /// The front file (see deploy/front.example.toml)
        #[arg(long, short, default_value = "/etc/posthouse/front.toml")]
        config: PathBuf,
        /// Take the sockets of the front that runs with this data directory: it accepts no more once this one serves
        #[arg(long)]
        takeover: bool,
    },
    /// Run a small SMTP server that files every letter in a maildir, for trying things out
    Sink {
        /// Where to listen
        #[arg(long, default_value = "127.0.0.1:2526")]
        listen: Vec<SocketAddr>,
        /// The maildir; made if missing
        #[arg(long)]
        maildir: PathBuf,
        /// The name in the banner
        #[arg(long, default_value = "sink.example")]
        hostname: String,
        /// Wait this long before the reply to each letter
        #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
        delay: Duration,
    },
    /// Read a node or front file, say what is wrong with it, and start nothing
    CheckConfig {
        /// A node file
        #[arg(long, short, default_value = "/etc/posthouse/node.toml")]
        config: PathBuf,
        /// It is a front file
        #[arg(long)]
        front: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tls::install_provider();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            eprintln!("error  {message}");
            ExitCode::from(code)
        }
    }
}

fn usage(error: impl ToString) -> (u8, String) {
    (EX_USAGE, error.to_string())
}

fn run(command: Command) -> Result<(), (u8, String)> {
    match command {
        Command::CheckConfig { config, front: false } => {
            let node = NodeConfig::load(&config).map_err(usage)?;
            println!("{}: node \"{}\", {} SMTP sockets: ok", config.display(), node.node.name, node.smtp.len());
            Ok(())
        }
        Command::CheckConfig { config, front: true } => {
            let front = FrontConfig::load(&config).map_err(usage)?;
            println!("{}: front \"{}\", {} listeners: ok", config.display(), front.front.name, front.listen.len());
            Ok(())
        }
        Command::Node { config } => {
            let config = NodeConfig::load(&config).map_err(usage)?;
            telemetry::start_logging(&config.log).map_err(usage)?;
            let metrics = telemetry::start_metrics().map_err(usage)?;
            serve(|scope| app::run_node(config, metrics, scope))
        }
        Command::Front { config, takeover } => {
            let config = FrontConfig::load(&config).map_err(usage)?;
            telemetry::start_logging(&config.log).map_err(usage)?;
            let metrics = telemetry::start_metrics().map_err(usage)?;
            serve(|scope| app::run_front(config, takeover, metrics, scope))
        }
        Command::Sink { listen, maildir, hostname, delay } => {
            telemetry::start_logging(&LogSection::default()).map_err(usage)?;
            let config = SinkConfig { listen, maildir, hostname, delay };
            serve(|scope| async move { run_sink(config, &scope).await })
        }
    }
}

/// Runs a part until it ends by itself or a signal ends it; a second signal stops at once.
fn serve<F, E>(start: impl FnOnce(Scope) -> F) -> Result<(), (u8, String)>
where
    F: Future<Output = Result<(), E>>,
    E: ToString,
{
    let failed = |error: &dyn ToString| (EX_SOFTWARE, error.to_string());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| failed(&error))?;
    let result = runtime.block_on(async {
        let scope = Scope::new();
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| failed(&error))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| failed(&error))?;
        let part = start(scope.clone());
        tokio::pin!(part);
        tokio::select! {
            result = &mut part => return result.map_err(|error| failed(&error)),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        scope.end();
        tokio::select! {
            result = &mut part => result.map_err(|error| failed(&error)),
            // The spool makes stopping at once safe: what was acknowledged is on disk.
            _ = terminate.recv() => Err((EX_SOFTWARE, "stopped at once by a second signal".to_owned())),
            _ = interrupt.recv() => Err((EX_SOFTWARE, "stopped at once by a second signal".to_owned())),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}
