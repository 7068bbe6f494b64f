//! `queue shape` and `queue show`: the queue seen from afar, and one letter of it.

use clap::{Args, ValueEnum};
use posthouse_proto::v1::{QueueShapeReply, QueueShapeRequest, QueueShowReply, QueueShowRequest};

use super::complete;
use super::queue::FilterFlags;
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::output::{self, Rows, or_dash, short_time};
use crate::parse::grouped;

/// What letters are put together by.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    /// The recipient's domain
    Domain,
    /// The receive connector
    Connector,
    /// The sender
    Sender,
    /// The node
    Node,
    /// What the last attempt brought
    Error,
}

/// Flags of `queue shape`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl queue shape
  posthousectl queue shape --by connector --state retry
  posthousectl queue shape --by error --older-than 1h")]
pub(crate) struct ShapeArgs {
    #[command(flatten)]
    filter: FilterFlags,
    /// What letters are put together by
    #[arg(long, value_enum, default_value = "domain")]
    by: By,
}

/// Flags of `queue show`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl queue show 01ABCDEFGHJKM
  posthousectl queue show 01ABCDEFGHJKM --headers")]
pub(crate) struct ShowArgs {
    /// Its id
    id: String,
    /// With the header of the letter
    #[arg(long)]
    headers: bool,
}

/// The headings of the ages that the cluster counts.
const AGES: [&str; 7] = [">5m", ">10m", ">20m", ">40m", ">1h20", ">2h40", ">OLDER"];

/// Runs `queue shape`.
///
/// # Errors
/// What went wrong; also that a node did not answer, after what is known was printed.
pub(crate) async fn shape(args: ShapeArgs, console: &Console) -> Result<Exit, Failure> {
    let by = match args.by {
        By::Domain => "domain",
        By::Connector => "connector",
        By::Sender => "sender",
        By::Node => "node",
        By::Error => "error",
    };
    let request = QueueShapeRequest { filter: Some(args.filter.request()), by: by.to_owned() };
    let mut client = console.client().await?;
    let reply = client.read(async |mut admin| admin.queue_shape(request.clone()).await).await?;
    if console.out.format.is_json() {
        console.out.json("queue-shape", &reply)?;
    } else {
        output::text(&describe(&reply, by, console.out.headers))?;
    }
    complete(&reply.unreachable, "its letters are not counted")
}

fn describe(reply: &QueueShapeReply, by: &str, headers: bool) -> String {
    let heading = match by {
        "connector" => "CONNECTOR",
        "sender" => "SENDER",
        "node" => "NODE",
        "error" => "ERROR",
        _ => "DOMAIN",
    };
    let mut headings = vec![heading, ">TOTAL"];
    headings.extend(AGES);
    headings.push("LAST ERROR");
    let mut rows = Rows::new(&headings);
    let mut sums = vec![0; AGES.len()];
    for row in &reply.rows {
        sums.iter_mut().zip(&row.by_age).for_each(|(sum, count)| *sum += count);
    }
    let cells = |key: &str, total: u64, by_age: &[u64], error: &str| {
        let mut cells = vec![key.to_owned(), grouped(total)];
        cells.extend(by_age.iter().map(|count| grouped(*count)));
        cells.push(or_dash(error));
        cells
    };
    rows.push(cells("TOTAL", reply.rows.iter().map(|row| row.total).sum(), &sums, ""));
    for row in &reply.rows {
        rows.push(cells(&row.key, row.total, &row.by_age, &row.last_error));
    }
    rows.render(headers, "")
}

/// Runs `queue show`.
///
/// # Errors
/// What went wrong; also that the letter is not there.
pub(crate) async fn show(args: ShowArgs, console: &Console) -> Result<Exit, Failure> {
    let request = QueueShowRequest { id: args.id.clone(), header: args.headers, this_node_only: false };
    let mut client = console.client().await?;
    let reply = client.read(async |mut admin| admin.queue_show(request.clone()).await).await?;
    if !reply.found {
        complete(&reply.unreachable, "the letter may be there")?;
        return Err(Failure::new(
            Exit::NotFound,
            "PH-QUEUE-006",
            format!("no letter {} is queued", args.id),
            "it was delivered, returned or deleted",
            format!("posthousectl message trace --id {}", args.id),
        ));
    }
    if console.out.format.is_json() {
        console.out.json("queue-show", &reply)?;
    } else {
        output::text(&one(&reply, console.out.headers))?;
    }
    Ok(Exit::Done)
}

fn one(reply: &QueueShowReply, headers: bool) -> String {
    let message = reply.message.clone().unwrap_or_default();
    let mut text =
        format!("{}   {} on {}   {} bytes\n", message.id, message.state, message.node, grouped(message.size));
    let mut fact = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("  {name:<11} {}\n", output::printable(value)));
        }
    };
    fact("from", if message.sender.is_empty() { "<>" } else { &message.sender });
    fact("subject", &reply.subject);
    fact("message-id", &message.message_id);
    fact("received", &short_time(&message.received_at));
    fact("client", &message.client_ip);
    fact("connector", &message.connector);
    fact("credential", &reply.user);
    fact("session", &reply.session_id);
    if !reply.held_at.is_empty() {
        fact("held", &format!("{} by {}", short_time(&reply.held_at), reply.held_by));
    }
    if !reply.redirected_to.is_empty() {
        let whom = if reply.redirected_domains.is_empty() {
            String::new()
        } else {
            format!("what is for {} ", reply.redirected_domains.join(", "))
        };
        let at = short_time(&reply.redirected_at);
        fact("redirected", &format!("{whom}to {}, {at} by {}", reply.redirected_to, reply.redirected_by));
    }
    let mut rows = Rows::new(&["TO", "STATE", ">ATTEMPTS", "NEXT", "LAST REPLY"]);
    for recipient in &reply.recipients {
        rows.push(vec![
            recipient.address.clone(),
            recipient.state.clone(),
            recipient.attempts.to_string(),
            if recipient.next_attempt_at.is_empty() { "-".to_owned() } else { short_time(&recipient.next_attempt_at) },
            or_dash(&recipient.last_reply),
        ]);
    }
    text.push_str(&format!("\n{}", rows.render(headers, "")));
    if !reply.header.is_empty() {
        let lines: String = reply.header.lines().map(|line| format!("{}\n", output::printable(line))).collect();
        text.push_str(&format!("\n{lines}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use posthouse_proto::v1::QueueShapeRow;

    use super::*;

    #[test]
    fn a_shape_has_its_sum_first_and_every_age() {
        let row = |key: &str, total, by_age: &[u64], error: &str| QueueShapeRow {
            key: key.to_owned(),
            total,
            by_age: by_age.to_vec(),
            last_error: error.to_owned(),
        };
        let reply = QueueShapeReply {
            rows: vec![
                row("partner.example", 11, &[0, 1, 2, 2, 4, 2, 0], "451 4.7.1 greylisted"),
                row("hotmail.example", 8, &[8, 0, 0, 0, 0, 0, 0], ""),
            ],
            ..QueueShapeReply::default()
        };
        let text = describe(&reply, "domain", true);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..9], ["TOTAL", "19", "8", "1", "2", "2", "4", "2", "0"], "{text}");
        assert!(lines[2].starts_with(&["partner.example", "11"]) && text.contains("greylisted"), "{text}");
    }
}
