//! `completion`: a script for the shell.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::{Exit, Failure};
use crate::output;

/// Flags of `completion`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl completion bash > /etc/bash_completion.d/posthousectl
  posthousectl completion fish > ~/.config/fish/completions/posthousectl.fish")]
pub(crate) struct CompletionArgs {
    /// Whose completion
    shell: Shell,
}

/// Prints it.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn run(args: &CompletionArgs) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "posthousectl", &mut script);
    output::raw(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
