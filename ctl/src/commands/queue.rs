//! `queue`: letters that wait, on every node.

use clap::{Args, Subcommand, ValueEnum};
use posthouse_proto::v1::{QueueChangeReply, QueueRequest, QueueSummaryReply, QueuedMessage};
use serde_json::json;

use super::complete;
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::mutation::WriteFlags;
use crate::output::{self, Rows, or_dash, short_time};
use crate::parse::{age, grouped};

/// `queue …`.
#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// How many wait, by state, node and domain
    Summary(SummaryArgs),
    /// How old the letters are, by domain, connector, sender or node, and what they hear
    Shape(super::queue_view::ShapeArgs),
    /// The letters
    List(ListArgs),
    /// One letter: its recipients, its attempts, who holds it
    Show(super::queue_view::ShowArgs),
    /// Try now
    Retry(ChangeArgs),
    /// Throw away: the sender is not told
    Delete(ChangeArgs),
    /// Return to the sender with a report; what is under way is left alone
    Bounce(ChangeArgs),
    /// Keep back until released; what is under way finishes
    Hold(ChangeArgs),
    /// Let go on what was held, at once
    Release(ChangeArgs),
}

/// What a letter waits for.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    /// For its first attempt
    Ready,
    /// For the next attempt
    Retry,
    /// For the end of the present attempt
    Active,
    /// For an administrator
    Held,
}

/// Which letters.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Filter")]
pub(crate) struct FilterFlags {
    /// A letter by its id; repeat
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    id: Vec<String>,
    /// To this domain
    #[arg(long, value_name = "DOMAIN", default_value = "", hide_default_value = true)]
    domain: String,
    /// From this sender
    #[arg(long, visible_alias = "from", value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    sender: String,
    /// To this recipient
    #[arg(long, visible_aliases = ["recipient", "to"], value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    rcpt: String,
    /// Taken by this connector
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    connector: String,
    /// In this state
    #[arg(long, value_enum)]
    state: Option<State>,
    /// On this node
    #[arg(long, value_name = "NODE", default_value = "", hide_default_value = true)]
    on_node: String,
}

/// Flags of `queue summary`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl queue summary
  posthousectl queue summary --domain partner.example -o json")]
pub(crate) struct SummaryArgs {
    #[command(flatten)]
    filter: FilterFlags,
}

/// Flags of `queue list`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl queue list --state retry
  posthousectl queue list --domain partner.example -o jsonl")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    filter: FilterFlags,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// Flags of `queue retry`, `delete`, `bounce`, `hold` and `release`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl queue retry --domain partner.example
  posthousectl queue delete --id 01ABCDEFGHJKM --reason 'sent by mistake'
  posthousectl queue hold --sender erp@corp.example --reason 'sends everything twice'
  posthousectl queue retry --all")]
pub(crate) struct ChangeArgs {
    #[command(flatten)]
    filter: FilterFlags,
    /// Every letter of the cluster
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    write: WriteFlags,
}

impl FilterFlags {
    fn is_empty(&self) -> bool {
        let texts = [&self.domain, &self.sender, &self.rcpt, &self.connector, &self.on_node];
        self.id.is_empty() && self.state.is_none() && texts.iter().all(|text| text.is_empty())
    }

    pub(super) fn request(self) -> QueueRequest {
        QueueRequest {
            ids: self.id,
            domain: self.domain,
            sender: self.sender,
            recipient: self.rcpt,
            connector: self.connector,
            state: match self.state {
                None => "",
                Some(State::Ready) => "ready",
                Some(State::Retry) => "retry",
                Some(State::Active) => "active",
                Some(State::Held) => "held",
            }
            .to_owned(),
            node: self.on_node,
            ..QueueRequest::default()
        }
    }
}

/// Runs `queue …`.
///
/// # Errors
/// What went wrong; also that a node did not answer, after what is known was printed.
pub(crate) async fn run(command: QueueCommand, console: &Console) -> Result<Exit, Failure> {
    match command {
        QueueCommand::Summary(args) => summary(args, console).await,
        QueueCommand::Shape(args) => super::queue_view::shape(args, console).await,
        QueueCommand::Show(args) => super::queue_view::show(args, console).await,
        QueueCommand::List(args) => list(args, console).await,
        QueueCommand::Retry(args) => change(args, console, Verb::Retry).await,
        QueueCommand::Delete(args) => change(args, console, Verb::Delete).await,
        QueueCommand::Bounce(args) => change(args, console, Verb::Bounce).await,
        QueueCommand::Hold(args) => change(args, console, Verb::Hold).await,
        QueueCommand::Release(args) => change(args, console, Verb::Release).await,
    }
}

async fn summary(args: SummaryArgs, console: &Console) -> Result<Exit, Failure> {
    let request = args.filter.request();
    let mut client = console.client().await?;
    let reply = client.read(async |mut admin| admin.queue_summary(request.clone()).await).await?;
    if console.out.format.is_json() {
        console.out.json("queue-summary", &reply)?;
    } else {
        output::text(&describe(&reply, console.out.headers))?;
    }
    complete(&reply.unreachable, "its letters are not counted")
}

fn describe(reply: &QueueSummaryReply, headers: bool) -> String {
    let mut text = format!("{} letters   {} bytes", grouped(reply.messages), grouped(reply.bytes));
    if reply.messages > 0 {
        text.push_str(&format!("   oldest {}", age(reply.oldest_age_secs)));
    }
    text.push('\n');
    for (heading, counts) in [("STATE", &reply.by_state), ("NODE", &reply.by_node), ("DOMAIN", &reply.by_domain)] {
        let mut counts: Vec<_> = counts.iter().collect();
        counts.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        if counts.is_empty() {
            continue;
        }
        let mut rows = Rows::new(&[heading, ">LETTERS"]);
        for (name, count) in counts {
            rows.push(vec![name.clone(), grouped(*count)]);
        }
        text.push_str(&format!("\n{}", rows.render(headers, "")));
    }
    text
}

async fn list(args: ListArgs, console: &Console) -> Result<Exit, Failure> {
    let request = QueueRequest { limit: args.limit, ..args.filter.request() };
    let mut client = console.client().await?;
    let reply = client.read(async |mut admin| admin.queue_list(request.clone()).await).await?;
    console.out.list("queue-list", &reply, "messages", "id", |wide| {
        let mut headings = vec!["ID", "NODE", "STATE", "RECEIVED", "FROM", "TO", ">ATTEMPTS", "NEXT", "LAST ERROR"];
        if wide {
            headings.extend([">BYTES", "CONNECTOR", "CLIENT", "MESSAGE-ID"]);
        }
        let mut rows = Rows::new(&headings);
        reply.messages.iter().for_each(|message| rows.push(row(message, wide)));
        rows
    })?;
    let shown = u64::try_from(reply.messages.len()).unwrap_or(u64::MAX);
    if reply.matched > shown && !console.out.format.is_json() {
        output::note(&format!("{shown} of {} shown; --limit {} shows all", grouped(reply.matched), reply.matched));
    }
    complete(&reply.unreachable, "its letters are not listed")
}

/// The first recipient and how many more.
pub(super) fn recipients(list: &[String]) -> String {
    match list {
        [] => "-".to_owned(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first} +{}", rest.len()),
    }
}

fn row(message: &QueuedMessage, wide: bool) -> Vec<String> {
    let sender = if message.sender.is_empty() { "<>" } else { &message.sender };
    let mut row = vec![
        message.id.clone(),
        message.node.clone(),
        message.state.clone(),
        short_time(&message.received_at),
        sender.to_owned(),
        recipients(&message.recipients),
        message.attempts.to_string(),
        short_time(&message.next_attempt_at),
        or_dash(&message.last_error),
    ];
    if wide {
        row.extend([
            grouped(message.size),
            or_dash(&message.connector),
            or_dash(&message.client_ip),
            or_dash(&message.message_id),
        ]);
    }
    row
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Retry,
    Delete,
    Hold,
    Release,
    Bounce,
}

async fn change(args: ChangeArgs, console: &Console, verb: Verb) -> Result<Exit, Failure> {
    let ChangeArgs { filter, all, write } = args;
    if filter.is_empty() && !all {
        return Err(Failure::usage(
            "which letters?",
            "without a filter this would be every letter of the cluster",
            "name --id, --domain, --sender, --rcpt, --connector, --state or --on-node; or type --all",
        ));
    }
    if verb == Verb::Delete && !write.dry_run {
        let which = if filter.is_empty() { "deleting every letter of the cluster" } else { "deleting letters" };
        console.confirm(which, "they are lost, and their senders are not told")?;
    }
    if verb == Verb::Bounce && !write.dry_run {
        let which = if filter.is_empty() { "bouncing every letter of the cluster" } else { "bouncing letters" };
        console.confirm(which, "they do not arrive; their senders are told")?;
    }
    let request = QueueRequest { all, options: Some(write.options(false)), ..filter.request() };
    let mut client = console.client().await?;
    let reply = match verb {
        Verb::Retry => client.write(async |mut admin| admin.queue_retry(request.clone()).await).await?,
        Verb::Delete => client.write(async |mut admin| admin.queue_delete(request.clone()).await).await?,
        Verb::Bounce => client.write(async |mut admin| admin.queue_bounce(request.clone()).await).await?,
        Verb::Hold => client.write(async |mut admin| admin.queue_hold(request.clone()).await).await?,
        Verb::Release => client.write(async |mut admin| admin.queue_release(request.clone()).await).await?,
    };
    print_change(console, verb, &reply)?;
    complete(&reply.unreachable, "its letters are as they were")
}

fn print_change(console: &Console, verb: Verb, reply: &QueueChangeReply) -> Result<(), Failure> {
    let QueueChangeReply { changed, ids, unreachable, dry_run } = reply;
    let (schema, done) = match verb {
        Verb::Retry => ("queue-retry", "tried again now"),
        Verb::Delete => ("queue-delete", "deleted"),
        Verb::Bounce => ("queue-bounce", "returned to their senders"),
        Verb::Hold => ("queue-hold", "held"),
        Verb::Release => ("queue-release", "released"),
    };
    if console.out.format.is_json() {
        let object = json!({"changed": changed, "ids": ids, "unreachable": unreachable, "dry_run": dry_run});
        console.out.json(schema, &object)?;
    } else if *dry_run {
        output::text(&format!("{} letters would be {done}   dry run, nothing was changed\n", grouped(*changed)))?;
    } else {
        output::text(&format!("{} letters {done}\n", grouped(*changed)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_alone_is_a_filter_and_nothing_is_none() {
        assert!(FilterFlags::default().is_empty());
        assert!(!FilterFlags { on_node: "n1".into(), ..FilterFlags::default() }.is_empty());
        assert!(!FilterFlags { state: Some(State::Retry), ..FilterFlags::default() }.is_empty());
    }

    #[test]
    fn the_largest_domains_come_first() {
        let reply = QueueSummaryReply {
            messages: 1204,
            bytes: 5_000_000,
            oldest_age_secs: 7200,
            by_domain: [("a.example".to_owned(), 4), ("b.example".to_owned(), 1200)].into(),
            ..QueueSummaryReply::default()
        };
        let text = describe(&reply, true);
        assert!(text.starts_with("1,204 letters   5,000,000 bytes   oldest 2h\n"), "{text}");
        assert!(text.find("b.example") < text.find("a.example"), "{text}");
    }
}
