//! `log`: what devices say and are told, as it happens, at whichever node they are.

use clap::{Args, Subcommand};
use posthouse_proto::v1::{LogSessionRequest, SessionLine};

use crate::console::Console;
use crate::error::{Exit, Failure, code};
use crate::output;

/// `log …`.
#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// The SMTP dialogue of devices at some addresses, until Ctrl-C
    Session(SessionArgs),
}

/// Flags of `log session`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl log session --source 10.20.31.7
  posthousectl log session --source 10.20.31.0/24 --only-one --terse
  posthousectl log session --source 10.20.31.7 -o json | jq .data

Sessions that are open are heard from now on, new ones from their beginning, whatever the protocol logging of their
connector. Passwords are masked; the letters themselves are not shown. + begins, - ends, < says the device, > say we, * is
worth knowing. With -o json each line is an object.")]
pub(crate) struct SessionArgs {
    /// The devices: 10.1.2.3, 10.1.2.3-10.1.2.9, 10.1.2.0/24
    #[arg(long, visible_alias = "client-ip", value_name = "RANGE")]
    source: String,
    /// Sessions at this node only
    #[arg(long, value_name = "NODE", default_value = "", hide_default_value = true)]
    on_node: String,
    /// Only the first session that is heard; ends with it
    #[arg(long)]
    only_one: bool,
    /// Only what is said, without times and names
    #[arg(long)]
    terse: bool,
}

/// Runs `log …`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(command: LogCommand, console: &Console) -> Result<Exit, Failure> {
    match command {
        LogCommand::Session(args) => session(args, console).await,
    }
}

async fn session(args: SessionArgs, console: &Console) -> Result<Exit, Failure> {
    let request = LogSessionRequest { source: args.source.clone(), node: args.on_node.clone(), ..Default::default() };
    let mut client = console.client().await?;
    let mut lines = client.read(async |mut admin| admin.log_session(request.clone()).await).await?;
    let mut one = OnlyOne { wanted: args.only_one, session: None };
    loop {
        let line = match lines.message().await {
            Ok(Some(line)) => line,
            Ok(None) => {
                return Err(Failure::new(
                    Exit::Unreachable,
                    code::PARTIAL,
                    "the node that was asked is stopping",
                    "what follows would have come through it",
                    "ask another one: repeat the command",
                ));
            }
            Err(status) => return Err(Failure::from_status(&status)),
        };
        match one.judge(&line) {
            Judged::Another => continue,
            Judged::Shown | Judged::Last if console.out.format.is_json() => {
                output::raw(&format!("{}\n", output::flattened(&line)))?;
            }
            Judged::Shown | Judged::Last => match note(&line) {
                Some(said) => output::note(&said),
                None => output::text(&text(&line, args.terse))?,
            },
        }
        if one.is_over(&line) {
            return Ok(Exit::Done);
        }
    }
}

/// Whether a line is to be shown.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    /// It is of a session that nobody asked for.
    Another,
    Shown,
    /// It ends the one session that was asked for.
    Last,
}

/// With `--only-one`: the first session that was heard.
struct OnlyOne {
    wanted: bool,
    session: Option<(String, String)>,
}

impl OnlyOne {
    fn judge(&mut self, line: &SessionLine) -> Judged {
        if !self.wanted || line.session_id.is_empty() {
            return Judged::Shown;
        }
        let key = (line.node.clone(), line.session_id.clone());
        let session = self.session.get_or_insert_with(|| key.clone());
        match (*session == key, line.event.as_str()) {
            (false, _) => Judged::Another,
            (true, "-") => Judged::Last,
            (true, _) => Judged::Shown,
        }
    }

    /// Whether this line, which was shown, was the last one.
    fn is_over(&self, line: &SessionLine) -> bool {
        self.wanted && line.event == "-"
    }
}

/// What is said beside the dialogue.
fn note(line: &SessionLine) -> Option<String> {
    if line.lost > 0 {
        return Some(format!(
            "! {} lines of {} were lost here: they came faster than they were read",
            line.lost, line.node
        ));
    }
    match line.event.as_str() {
        "unheard" => Some(format!("! {} does not answer: what is said there is not heard", line.node)),
        "heard" => Some(format!("{} is heard again", line.node)),
        _ => None,
    }
}

fn text(line: &SessionLine, terse: bool) -> String {
    let SessionLine { time, node, connector, session_id, remote, event, data, context, .. } = line;
    let words = match event.as_str() {
        "+" => format!("{remote} {connector} at {node}, session {session_id}"),
        _ => [data.as_str(), context.as_str()]
            .into_iter()
            .filter(|word| !word.is_empty())
            .collect::<Vec<_>>()
            .join("   "),
    };
    match (terse, event.as_str()) {
        (true, "*") => String::new(),
        (true, _) => format!("{}\n", format!("{event} {words}").trim_end()),
        (false, _) => {
            let clock = time.get(11..23).unwrap_or(time);
            format!("{}\n", format!("{clock}  {node}  {session_id}  {remote}  {event} {words}").trim_end())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(session_id: &str, event: &str, data: &str) -> SessionLine {
        SessionLine {
            time: "2026-08-02T10:11:12.123Z".into(),
            node: "n2".into(),
            connector: "printers".into(),
            session_id: session_id.into(),
            remote: "10.1.2.3:5000".into(),
            event: event.into(),
            data: data.into(),
            ..SessionLine::default()
        }
    }

    #[test]
    fn one_session_is_shown_to_its_end_and_no_other() {
        let mut one = OnlyOne { wanted: true, session: None };
        assert_eq!(one.judge(&line("", "unheard", "")), Judged::Shown);
        assert_eq!(one.judge(&line("A1", "<", "EHLO")), Judged::Shown);
        assert_eq!(one.judge(&line("B2", "+", "")), Judged::Another);
        assert_eq!(one.judge(&line("A1", "-", "")), Judged::Last);
        let mut all = OnlyOne { wanted: false, session: None };
        assert_eq!((all.judge(&line("A1", "-", "")), all.is_over(&line("A1", "-", ""))), (Judged::Shown, false));
    }

    #[test]
    fn a_line_has_its_time_and_session_unless_it_is_terse() {
        let said = line("A1", "<", "EHLO device");
        assert_eq!(text(&said, false), "10:11:12.123  n2  A1  10.1.2.3:5000  < EHLO device\n");
        assert_eq!(text(&said, true), "< EHLO device\n");
        assert_eq!(text(&line("A1", "*", "submit"), true), "");
        assert!(text(&line("A1", "+", ""), true).contains("printers at n2, session A1"));
    }

    #[test]
    fn what_was_lost_is_said() {
        let lost = SessionLine { lost: 7, node: "n2".into(), ..SessionLine::default() };
        assert!(note(&lost).is_some_and(|said| said.contains("7 lines of n2 were lost")));
        assert_eq!(note(&line("A1", "<", "x")), None);
    }
}
