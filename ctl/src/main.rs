//! posthousectl: everything an administrator does, over gRPC to any node.

mod cli;
mod client;
mod commands;
mod console;
mod context;
mod error;
mod mutation;
mod output;
mod parse;
mod problem_codes;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;
use crate::console::Console;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = cli.global.output;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::note(&format!("error  the runtime cannot start: {error}"));
            return ExitCode::from(error::Exit::Other as u8);
        }
    };
    match runtime.block_on(commands::run(cli.command, Console::new(cli.global))) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            output::complain(&failure.render(format));
            ExitCode::from(failure.exit_code())
        }
    }
}
