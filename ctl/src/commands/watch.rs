//! `-w`: the same answer again and again. On a terminal it is redrawn in place under a heading with the time;
//! elsewhere it is one JSON line each time.

use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;

use crate::error::{Exit, Failure};
use crate::output::{self, Format};
use crate::parse;

/// Flags of what can be watched.
#[derive(Debug, Args)]
pub(crate) struct WatchFlags {
    /// Ask again and again until Ctrl-C, this often [default: 2s]
    #[arg(short, long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "2s",
          value_parser = parse::duration)]
    watch: Option<Duration>,
}

/// Between two questions, at least.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Cursor home, clear to the end of the screen (ECMA-48).
const REDRAW: &str = "\x1b[H\x1b[J";

impl WatchFlags {
    /// Prints once, or until interrupted: `print` asks and prints in the format that it is given.
    ///
    /// # Errors
    /// Once: what `print` answers. Watching: never; a failure is shown, and it goes on.
    pub(crate) async fn run(
        &self,
        format: Format,
        mut print: impl AsyncFnMut(Format) -> Result<Exit, Failure>,
    ) -> Result<Exit, Failure> {
        let Some(interval) = self.watch else { return print(format).await };
        let terminal = io::stdout().is_terminal();
        let format = match format {
            Format::Table | Format::Wide | Format::Name if !terminal => Format::Jsonl,
            Format::Json => Format::Jsonl,
            other => other,
        };
        loop {
            if terminal && !format.is_json() {
                output::raw(REDRAW)?;
                let now = jiff::Timestamp::now().to_string();
                output::text(&format!(
                    "{} UTC   every {}\n\n",
                    output::short_time(&now),
                    humantime::format_duration(interval)
                ))?;
            }
            if let Err(failure) = print(format).await {
                output::complain(&failure.render(format));
            }
            tokio::time::sleep(interval.max(INTERVAL_MIN)).await;
        }
    }
}
