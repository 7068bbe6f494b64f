//! `message`: what happened to a letter, on whichever nodes it was.

use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, Subcommand};
use posthouse_proto::v1::{MessageTraceReply, MessageTraceRequest, TraceEvent, TracedMessage};

use super::complete;
use super::queue::recipients;
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::output::{self, Format, Rows, or_dash, short_time};
use crate::parse;

/// `message …`.
#[derive(Debug, Subcommand)]
pub(crate) enum MessageCommand {
    /// Follow letters from the device to the next hop
    Trace(TraceArgs),
    /// The message tracking of all nodes as one log, with Exchange's fields
    Export(super::message_export::ExportArgs),
}

/// Flags of `message trace`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl message trace --client-ip 10.20.31.7 --since 1h
  posthousectl message trace --message-id 20260802.1@corp.example
  posthousectl message trace --to a@partner.example -o json")]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    letters: LetterFlags,
    /// How far back
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = parse::duration)]
    since: Duration,
    /// How many letters
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// Which letters: the same in every command that looks back.
#[derive(Debug, Args)]
pub(super) struct LetterFlags {
    /// A letter by its id
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub(super) id: String,
    /// By its Message-ID, with or without angle brackets
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub(super) message_id: String,
    /// From this sender
    #[arg(long, visible_alias = "sender", value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    pub(super) from: String,
    /// To this recipient
    #[arg(long, visible_aliases = ["rcpt", "recipient"], value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    pub(super) to: String,
    /// From devices at this address or in this range
    #[arg(long, visible_alias = "client", value_name = "RANGE", default_value = "", hide_default_value = true)]
    pub(super) client_ip: String,
    /// Taken by this connector
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(super) connector: String,
    /// Brought with this credential
    #[arg(long, visible_alias = "user", value_name = "USER", default_value = "", hide_default_value = true)]
    pub(super) credential: String,
    /// In this session: the id at the end of a refusal
    #[arg(long, visible_alias = "session", value_name = "ID", default_value = "", hide_default_value = true)]
    pub(super) session_id: String,
}

impl LetterFlags {
    /// Whether anything was asked for.
    pub(super) fn is_empty(&self) -> bool {
        let Self { id, message_id, from, to, client_ip, connector, credential, session_id } = self;
        [id, message_id, from, to, client_ip, connector, credential, session_id].into_iter().all(String::is_empty)
    }

    /// The session's id without the brackets that it has in a reply.
    pub(super) fn session(&self) -> String {
        self.session_id.trim_matches(['[', ']']).to_owned()
    }
}

/// Runs `message …`.
///
/// # Errors
/// What went wrong; also that a node did not answer, after what is known was printed.
pub(crate) async fn run(command: MessageCommand, console: &Console) -> Result<Exit, Failure> {
    let args = match command {
        MessageCommand::Trace(args) => args,
        MessageCommand::Export(args) => return super::message_export::run(args, console).await,
    };
    let letters = args.letters;
    let request = MessageTraceRequest {
        session_id: letters.session(),
        this_node_only: false,
        id: letters.id,
        message_id: letters.message_id,
        sender: letters.from,
        recipient: letters.to,
        client_ip: letters.client_ip,
        connector: letters.connector,
        credential: letters.credential,
        since_secs: args.since.as_secs().max(1),
        limit: args.limit,
    };
    let mut client = console.client().await?;
    let reply = client.read(async |mut admin| admin.message_trace(request.clone()).await).await?;
    match console.out.format {
        Format::Table | Format::Wide => {
            output::text(&describe(&reply, console.out.format == Format::Wide, console.out.headers))?;
        }
        _ => console.out.list("message-trace", &reply, "messages", "id", |_| Rows::default())?,
    }
    if reply.messages.is_empty() {
        output::note("no letter matches");
    }
    complete(&reply.unreachable, "letters that only it knows are not shown")
}

/// The letters, each with its story below it.
fn describe(reply: &MessageTraceReply, wide: bool, headers: bool) -> String {
    if reply.messages.is_empty() {
        return String::new();
    }
    let mut headings = vec!["ID", "TIME", "CLIENT", "CONNECTOR", "FROM", "TO", "STATUS"];
    if wide {
        headings.extend(["NODE", "FRONT", "USER", "SESSION", ">BYTES", "MESSAGE-ID"]);
    }
    let mut rows = Rows::new(&headings);
    reply.messages.iter().for_each(|message| rows.push(row(message, wide)));
    let table = rows.render(headers, "");
    let mut lines = table.lines();
    let mut text = String::new();
    if headers {
        let _ = writeln!(text, "{}", lines.next().unwrap_or_default());
    }
    for (message, line) in reply.messages.iter().zip(lines) {
        let _ = writeln!(text, "{line}");
        let mut story = Rows::new(&["", "", "", ""]);
        for event in &message.events {
            story.push(vec![clock(&event.time), event.node.clone(), event.event.clone(), facts(event)]);
        }
        text.push_str(&story.render(false, " "));
    }
    text
}

fn row(message: &TracedMessage, wide: bool) -> Vec<String> {
    let sender = if message.sender.is_empty() { "<>" } else { &message.sender };
    let mut row = vec![
        message.id.clone(),
        short_time(&message.received_at),
        or_dash(&message.client_ip),
        or_dash(&message.connector),
        sender.to_owned(),
        recipients(&message.recipients),
        message.status.clone(),
    ];
    if wide {
        row.extend([
            or_dash(&message.node),
            or_dash(&message.front),
            or_dash(&message.user),
            or_dash(&message.session_id),
            parse::grouped(message.size),
            or_dash(&message.message_id),
        ]);
    }
    row
}

/// The time of day with milliseconds: events of one letter are close together.
fn clock(time: &str) -> String {
    const DIGITS: usize = "13:41:02.118".len();
    match (time.get(10..11), time.get(11..)) {
        (Some("T"), Some(clock)) => clock.trim_end_matches('Z').chars().take(DIGITS).collect(),
        _ => short_time(time),
    }
}

fn facts(event: &TraceEvent) -> String {
    let words = [&event.next_hop, &event.recipient, &event.reply, &event.detail];
    words.into_iter().filter(|word| !word.is_empty()).cloned().collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_followed_by_its_story() {
        let event = |time: &str, event: &str, reply: &str| TraceEvent {
            time: time.into(),
            event: event.into(),
            node: "n1".into(),
            reply: reply.into(),
            ..TraceEvent::default()
        };
        let reply = MessageTraceReply {
            messages: vec![TracedMessage {
                id: "01ABC".into(),
                received_at: "2026-08-02T13:41:02.118Z".into(),
                status: "deferred".into(),
                recipients: vec!["a@p.example".into(), "b@p.example".into()],
                events: vec![
                    event("2026-08-02T13:41:02.118Z", "accepted", ""),
                    event("2026-08-02T13:41:03Z", "attempt", "451 4.7.1 greylisted"),
                ],
                ..TracedMessage::default()
            }],
            unreachable: vec![],
        };
        let text = describe(&reply, false, true);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[1].starts_with("01ABC  2026-08-02 13:41:02") && lines[1].contains("a@p.example +1"), "{text}");
        assert!(lines[2].starts_with(" 13:41:02.118  n1"), "{text}");
        assert!(lines[3].starts_with(" 13:41:03 ") && lines[3].contains("451 4.7.1 greylisted"), "{text}");
    }
}
