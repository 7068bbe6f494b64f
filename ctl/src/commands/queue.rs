//! `queue`: letters that wait, on every node.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use posthouse_proto::v1::{QueueChangeReply, QueueRequest, QueueSummaryReply, QueuedMessage};
use serde_json::json;

use super::complete;
use crate::client::Client;
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::mutation::WriteFlags;
use crate::output::{self, Rows, or_dash, short_time};
use crate::parse::{self, age, grouped};

/// Between two words on how far a long change is.
const PROGRESS: Duration = Duration::from_secs(2);

/// `queue …`.
#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// How many wait, by state, node and domain
    Summary(SummaryArgs),
    /// How old the letters are, by domain, connector, sender, node or error, and what they hear
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
    /// Send to another next hop from now on; what is under way finishes first
    Redirect(RedirectArgs),
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
    #[arg(long, visible_alias = "recipient", value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    rcpt: String,
    /// Taken by this connector
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    connector: String,
    /// From devices at this address or in this range: 10.1.2.3, 10.1.2.3-10.1.2.9, 10.1.2.0/24
    #[arg(long, visible_alias = "client", value_name = "RANGE", default_value = "", hide_default_value = true)]
    client_ip: String,
    /// Brought with this credential
    #[arg(long, visible_alias = "user", value_name = "USER", default_value = "", hide_default_value = true)]
    credential: String,
    /// Accepted longer ago than this
    #[arg(long, visible_alias = "older", value_name = "TIME", value_parser = parse::duration)]
    older_than: Option<Duration>,
    /// Accepted not longer ago than this
    #[arg(long, visible_alias = "younger", value_name = "TIME", value_parser = parse::duration)]
    younger_than: Option<Duration>,
    /// With this in what the last attempt brought, in any case
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    error: String,
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
  posthousectl queue list --domain partner.example -o jsonl
  posthousectl queue list --older-than 4h --error greylisted
  posthousectl queue list --client-ip 10.20.31.0/24 --credential scanner@corp.example")]
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
  posthousectl queue bounce --older-than 2d --error 'user unknown' --dry-run
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

/// Flags of `queue redirect`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl queue redirect --domain partner.example --to backup.corp.example:25 --reason 'mx is down' --dry-run
  posthousectl queue redirect --error 'connection refused' --to 10.1.2.3
  posthousectl queue redirect --domain partner.example --back

A letter keeps its new way through retries and restarts; queue show and message trace tell it. With --domain or --rcpt,
only what goes to that domain is sent elsewhere. The route's credential is not used there.")]
pub(crate) struct RedirectArgs {
    /// The next hop: HOST or HOST:PORT
    #[arg(long, value_name = "HOST:PORT", required_unless_present = "back")]
    to: Option<String>,
    /// Where the routes send them, again
    #[arg(long, conflicts_with = "to")]
    back: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

impl FilterFlags {
    fn is_empty(&self) -> bool {
        let texts = [
            &self.domain,
            &self.sender,
            &self.rcpt,
            &self.connector,
            &self.client_ip,
            &self.credential,
            &self.error,
            &self.on_node,
        ];
        let ages = [self.older_than, self.younger_than];
        self.id.is_empty()
            && self.state.is_none()
            && ages.iter().all(Option::is_none)
            && texts.iter().all(|text| text.is_empty())
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
            client_ip: self.client_ip,
            credential: self.credential,
            older_than_secs: self.older_than.map(|age| age.as_secs()),
            younger_than_secs: self.younger_than.map(|age| age.as_secs()),
            error: self.error,
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
        QueueCommand::Redirect(RedirectArgs { to, change: args, .. }) => {
            change_to(args, to.unwrap_or_default(), console, Verb::Redirect).await
        }
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
    Redirect,
}

async fn change(args: ChangeArgs, console: &Console, verb: Verb) -> Result<Exit, Failure> {
    change_to(args, String::new(), console, verb).await
}

async fn change_to(args: ChangeArgs, to: String, console: &Console, verb: Verb) -> Result<Exit, Failure> {
    let ChangeArgs { filter, all, write } = args;
    if filter.is_empty() && !all {
        return Err(Failure::usage(
            "which letters?",
            "without a filter this would be every letter of the cluster",
            "name --id, --domain, --sender, --rcpt, --connector, --client-ip, --credential, --older-than, --younger-than, \
             --error, --state or --on-node; or type --all",
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
    let mut request = QueueRequest { all, to, options: Some(write.options(false)), ..filter.request() };
    let mut client = console.client().await?;
    let mut sum = QueueChangeReply { dry_run: write.dry_run, ..QueueChangeReply::default() };
    let mut said = Instant::now();
    loop {
        let reply = ask(&mut client, &request, verb).await?;
        sum.changed += reply.changed;
        sum.ids.extend(reply.ids);
        sum.unreachable.extend(reply.unreachable);
        if reply.more.is_empty() {
            break;
        }
        request.after = reply.more;
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            output::note(&format!("{} letters so far", grouped(sum.changed)));
        }
    }
    print_change(console, verb, &sum)?;
    complete(&sum.unreachable, "its letters are as they were")
}

/// The next letters of every node.
async fn ask(client: &mut Client, request: &QueueRequest, verb: Verb) -> Result<QueueChangeReply, Failure> {
    match verb {
        Verb::Retry => client.write(async |mut admin| admin.queue_retry(request.clone()).await).await,
        Verb::Delete => client.write(async |mut admin| admin.queue_delete(request.clone()).await).await,
        Verb::Bounce => client.write(async |mut admin| admin.queue_bounce(request.clone()).await).await,
        Verb::Hold => client.write(async |mut admin| admin.queue_hold(request.clone()).await).await,
        Verb::Release => client.write(async |mut admin| admin.queue_release(request.clone()).await).await,
        Verb::Redirect => client.write(async |mut admin| admin.queue_redirect(request.clone()).await).await,
    }
}

fn print_change(console: &Console, verb: Verb, reply: &QueueChangeReply) -> Result<(), Failure> {
    let QueueChangeReply { changed, ids, unreachable, dry_run, .. } = reply;
    let (schema, done) = match verb {
        Verb::Retry => ("queue-retry", "tried again now"),
        Verb::Delete => ("queue-delete", "deleted"),
        Verb::Bounce => ("queue-bounce", "returned to their senders"),
        Verb::Hold => ("queue-hold", "held"),
        Verb::Release => ("queue-release", "released"),
        Verb::Redirect => ("queue-redirect", "redirected"),
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
        assert!(!FilterFlags { older_than: Some(Duration::ZERO), ..FilterFlags::default() }.is_empty());
        assert!(!FilterFlags { client_ip: "10.0.0.0/8".into(), ..FilterFlags::default() }.is_empty());
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
