//! `message export`: the message tracking of every node as one log, with Exchange's thirty fields. Page by page, so that
//! a month of letters costs no more memory than an hour.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use posthouse_proto::v1::{MessageExportRequest, TraceEvent, TracedMessage};
use serde_json::{Map, Value};

use super::complete;
use super::message::LetterFlags;
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::output;
use crate::parse::{self, grouped};

/// Exchange's fields, in its order.
const FIELDS: [&str; 30] = [
    "date-time",
    "client-ip",
    "client-hostname",
    "server-ip",
    "server-hostname",
    "source-context",
    "connector-id",
    "source",
    "event-id",
    "internal-message-id",
    "message-id",
    "network-message-id",
    "recipient-address",
    "recipient-status",
    "total-bytes",
    "recipient-count",
    "related-recipient-address",
    "reference",
    "message-subject",
    "sender-address",
    "return-path",
    "message-info",
    "directionality",
    "tenant-id",
    "original-client-ip",
    "original-server-ip",
    "custom-data",
    "transport-traffic-type",
    "log-id",
    "schema-version",
];
/// Between two words on how far it is.
const PROGRESS: Duration = Duration::from_secs(5);

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// As Exchange writes it: header lines, then comma-separated values
    Csv,
    /// One JSON object a line, with the same field names
    Jsonl,
}

/// Flags of `message export`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl message export --all --since 1d > tracking.csv
  posthousectl message export --all --since 2026-08-01T00:00:00Z --until 2026-08-02T00:00:00Z --file 2026-08-01.csv
  posthousectl message export --client-ip 10.20.31.0/24 --since 1h --format jsonl

One line for each event between --since and --until, so that exports of one day after the other neither lose a line nor
repeat one. Letters stand in the order in which they were accepted, each with its events. The names of the fields, the
events (RECEIVE, SEND, DEFER, FAIL, DSN, REDIRECT, POISONMESSAGE) and their sources are those of Exchange's message
tracking log; what Exchange has no event for is a DEFER or RESUBMIT of source ADMIN, with its own name in custom-data.")]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    letters: LetterFlags,
    /// Every letter
    #[arg(long)]
    all: bool,
    /// Events from then on: how long ago, or a time such as 2026-08-01T00:00:00Z
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = moment)]
    since: SystemTime,
    /// Events before then [default: now]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<SystemTime>,
    /// How it is written
    #[arg(long, value_enum, default_value = "csv")]
    format: LogFormat,
    /// Write to this file instead of standard output
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Reads how long ago, or a time.
fn moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = parse::duration(text) {
        return now().checked_sub(ago).ok_or_else(|| format!("{text} ago is before every clock"));
    }
    humantime::parse_rfc3339_weak(text.trim_end_matches('Z'))
        .map_err(|_| format!("\"{text}\" is neither a time such as 2026-08-01T00:00:00Z nor how long ago, such as 1d"))
}

/// The clock of this machine: "an hour ago" is typed by somebody who looks at it.
#[expect(clippy::disallowed_methods, reason = "the one place of this command that asks for the time")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn unix_ms(at: SystemTime) -> i64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Runs `message export`.
///
/// # Errors
/// What went wrong; also that a node did not answer, after what is known was written.
pub(crate) async fn run(args: ExportArgs, console: &Console) -> Result<Exit, Failure> {
    let letters = args.letters;
    if letters.is_empty() && !args.all {
        return Err(Failure::usage(
            "which letters?",
            "without a filter this would be every letter of the cluster",
            "name --id, --message-id, --from, --to, --client-ip, --connector, --credential or --session-id; or type --all",
        ));
    }
    let now = now();
    let until = args.until.unwrap_or(now);
    if until <= args.since {
        return Err(Failure::usage(
            "there is no time between --since and --until",
            "--until is not later than --since",
            "--since 2d --until 1d",
        ));
    }
    let mut request = MessageExportRequest {
        session_id: letters.session(),
        id: letters.id,
        message_id: letters.message_id,
        sender: letters.from,
        recipient: letters.to,
        client_ip: letters.client_ip,
        connector: letters.connector,
        credential: letters.credential,

        since_ms: unix_ms(args.since),
        until_ms: unix_ms(until),
        ..MessageExportRequest::default()
    };
    let mut client = console.client().await?;
    // The first page comes before the file is made: a mistake in a filter must not empty yesterday's.
    let mut page = client.read(async |mut admin| admin.message_export(request.clone()).await).await?;
    let mut sink = Sink::open(args.file.as_deref(), args.format)?;
    sink.begin(now)?;
    let (mut lines, mut said) = (0u64, tokio::time::Instant::now());
    loop {
        for message in &page.messages {
            for event in &message.events {
                lines += 1;
                sink.line(&fields(message, event))?;
            }
        }
        for node in page.unreachable {
            if !request.without.contains(&node) {
                request.without.push(node);
            }
        }
        if page.next.is_empty() || sink.is_closed() {
            break;
        }
        request.after = page.next;
        if said.elapsed() >= PROGRESS {
            said = tokio::time::Instant::now();
            output::note(&format!("{} lines so far", grouped(lines)));
        }
        page = client.read(async |mut admin| admin.message_export(request.clone()).await).await?;
    }
    sink.end()?;
    if let Some(file) = &args.file {
        output::note(&format!("{} lines in {}", grouped(lines), file.display()));
    }
    complete(&request.without, "letters that only it knows are not among them")
}

/// Where the lines go.
struct Sink {
    out: BufWriter<Box<dyn Write>>,
    format: LogFormat,
    /// The reader has gone away (`| head`) and wants no more, which is no error.
    closed: bool,
    name: String,
}

impl Sink {
    fn open(file: Option<&std::path::Path>, format: LogFormat) -> Result<Self, Failure> {
        let (out, name): (Box<dyn Write>, _) = match file {
            None => (Box::new(io::stdout()), "standard output".to_owned()),
            Some(path) => {
                let made = File::create(path);
                (
                    Box::new(made.map_err(|error| cannot(&path.display().to_string(), &error))?),
                    path.display().to_string(),
                )
            }
        };
        Ok(Self { out: BufWriter::new(out), format, closed: false, name })
    }

    fn begin(&mut self, now: SystemTime) -> Result<(), Failure> {
        if self.format == LogFormat::Jsonl {
            return Ok(());
        }
        let head = format!(
            "#Software: Posthouse\r\n#Version: {}\r\n#Log-Type: Message Tracking Log\r\n#Date: {}\r\n#Fields: {}\r\n",
            env!("CARGO_PKG_VERSION"),
            humantime::format_rfc3339_millis(now),
            FIELDS.join(",")
        );
        self.put(&head)
    }

    fn line(&mut self, values: &[String; 30]) -> Result<(), Failure> {
        let line = match self.format {
            LogFormat::Csv => csv(values),
            LogFormat::Jsonl => {
                let pairs =
                    FIELDS.iter().zip(values).map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str())));
                format!("{}\n", Value::Object(pairs.collect::<Map<_, _>>()))
            }
        };
        self.put(&line)
    }

    fn put(&mut self, text: &str) -> Result<(), Failure> {
        if self.closed {
            return Ok(());
        }
        let put = self.out.write_all(text.as_bytes());
        self.check(put)
    }

    fn end(&mut self) -> Result<(), Failure> {
        let put = if self.closed { Ok(()) } else { self.out.flush() };
        self.check(put)
    }

    fn check(&mut self, put: io::Result<()>) -> Result<(), Failure> {
        match put {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            Err(error) => Err(cannot(&self.name, &error)),
            Ok(()) => Ok(()),
        }
    }

    fn is_closed(&self) -> bool {
        self.closed
    }
}

fn cannot(name: &str, error: &io::Error) -> Failure {
    Failure::new(
        Exit::Other,
        crate::error::code::FILE,
        format!("{name} cannot be written"),
        error.to_string(),
        "name a file in a directory that you may write to",
    )
}

/// One line of comma-separated values (RFC 4180).
fn csv(values: &[String; 30]) -> String {
    let mut line = String::new();
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            line.push(',');
        }
        // A line is an event, whatever others wrote into a header or a reply.
        let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if value.contains([',', '"']) || value.starts_with('#') {
            let _ = write!(line, "\"{}\"", value.replace('"', "\"\""));
        } else {
            line.push_str(&value);
        }
    }
    line.push_str("\r\n");
    line
}

/// Exchange's words for an event: its id and its source; and our own word where Exchange has none.
fn words(message: &TracedMessage, event: &TraceEvent) -> (&'static str, &'static str, &'static str) {
    match event.event.as_str() {
        "accepted" if message.connector == "dsn" => ("RECEIVE", "DSN", ""),
        "accepted" => ("RECEIVE", "SMTP", ""),
        "delivered" => ("SEND", "SMTP", ""),
        "deferred" => ("DEFER", "SMTP", ""),
        "failed" => ("FAIL", "SMTP", ""),
        "expired" => ("FAIL", "QUEUE", ""),
        "dsn" => ("DSN", "DSN", ""),
        "deleted" => ("FAIL", "ADMIN", ""),
        "redirected" => ("REDIRECT", "ADMIN", ""),
        "quarantined" => ("POISONMESSAGE", "POISONMESSAGE", ""),
        "released" => ("RESUBMIT", "ADMIN", "released"),
        "resent" => ("RESUBMIT", "ADMIN", "resent"),
        "held" => ("DEFER", "ADMIN", "held"),
        _ => ("DEFER", "QUEUE", "other"),
    }
}

/// The thirty values of one event.
fn fields(message: &TracedMessage, event: &TraceEvent) -> [String; 30] {
    let (event_id, source, own) = words(message, event);
    let received = event_id == "RECEIVE";
    let sent = event.next_hop.as_str();
    // `host:port [address]`, or `host:port` alone.
    let (hop, address) = match sent.split_once(" [") {
        Some((hop, address)) => (hop, address.trim_end_matches(']')),
        None => (sent, ""),
    };
    let recipients = if event.recipient.is_empty() { message.recipients.join(";") } else { event.recipient.clone() };
    let count = if event.recipient.is_empty() { message.recipients.len() } else { 1 };
    let null = message.sender.is_empty() || message.sender == "<>";
    let sender = if null { "<>".to_owned() } else { message.sender.clone() };
    let mut custom = String::new();
    for (name, value) in [
        ("Event", own),
        ("Detail", if event_id == "DSN" { "" } else { event.detail.as_str() }),
        ("Front", if received { message.front.as_str() } else { "" }),
        ("User", if received { message.user.as_str() } else { "" }),
        ("NextHop", hop),
    ] {
        if !value.is_empty() {
            let _ = write!(custom, "{}S:{name}={}", if custom.is_empty() { "" } else { ";" }, value.replace(';', ","));
        }
    }
    let node = if event.node.is_empty() { &message.node } else { &event.node };
    let text = |text: &str| text.to_owned();
    let only = |yes: bool, value: &str| if yes { value.to_owned() } else { String::new() };
    [
        event.time.clone(),
        only(received, &message.client_ip),
        only(!received && !hop.is_empty(), node),
        text(address),
        if received || hop.is_empty() {
            node.clone()
        } else {
            text(hop.rsplit_once(':').map_or(hop, |(host, _)| host))
        },
        message.session_id.clone(),
        if message.connector.is_empty() { String::new() } else { format!("{}\\{}", message.node, message.connector) },
        text(source),
        text(event_id),
        message.internal_id.to_string(),
        message.message_id.clone(),
        message.id.clone(),
        recipients,
        event.reply.clone(),
        message.size.to_string(),
        count.to_string(),
        String::new(),
        only(event_id == "DSN", &event.detail),
        message.subject.clone(),
        sender.clone(),
        sender,
        message.received_at.clone(),
        text("Undefined"),
        String::new(),
        message.client_ip.clone(),
        String::new(),
        custom,
        text("Email"),
        format!("{}-{}-{}", message.id, event.time, event_id),
        text(env!("CARGO_PKG_VERSION")),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn message() -> TracedMessage {
        TracedMessage {
            id: "01ABC".into(),
            internal_id: 77,
            message_id: "<m@corp.example>".into(),
            client_ip: "10.1.2.3".into(),
            connector: "scanners".into(),
            sender: "scan@corp.example".into(),
            recipients: vec!["a@p.example".into(), "b@p.example".into()],
            node: "n1".into(),
            session_id: "9C1E".into(),
            size: 41_220,
            received_at: "2026-08-02T13:41:02.118Z".into(),
            subject: "an \"urgent\", scan\r\n#1".into(),
            front: "front-a".into(),
            ..TracedMessage::default()
        }
    }

    fn event(event: &str) -> TraceEvent {
        TraceEvent {
            time: "2026-08-02T13:41:03Z".into(),
            event: event.into(),
            node: "n1".into(),
            ..TraceEvent::default()
        }
    }

    fn at<'a>(values: &'a [String; 30], field: &str) -> &'a str {
        &values[FIELDS.iter().position(|name| *name == field).unwrap()]
    }

    #[test]
    fn a_letter_is_received_with_all_that_exchange_tells() {
        let values = fields(&message(), &event("accepted"));
        for (field, value) in [
            ("event-id", "RECEIVE"),
            ("source", "SMTP"),
            ("client-ip", "10.1.2.3"),
            ("original-client-ip", "10.1.2.3"),
            ("server-hostname", "n1"),
            ("connector-id", "n1\\scanners"),
            ("internal-message-id", "77"),
            ("network-message-id", "01ABC"),
            ("recipient-address", "a@p.example;b@p.example"),
            ("recipient-count", "2"),
            ("total-bytes", "41220"),
            ("custom-data", "S:Front=front-a"),
        ] {
            assert_eq!(at(&values, field), value, "{field}");
        }
    }

    #[test]
    fn an_attempt_names_the_next_hop_and_its_reply() {
        let mut one = event("delivered");
        one.next_hop = "mx1.p.example:25 [192.0.2.1]".into();
        (one.recipient, one.reply) = ("a@p.example".into(), "250 2.0.0 taken".into());
        let values = fields(&message(), &one);
        for (field, value) in [
            ("event-id", "SEND"),
            ("client-hostname", "n1"),
            ("server-ip", "192.0.2.1"),
            ("server-hostname", "mx1.p.example"),
            ("recipient-address", "a@p.example"),
            ("recipient-count", "1"),
            ("recipient-status", "250 2.0.0 taken"),
            ("client-ip", ""),
        ] {
            assert_eq!(at(&values, field), value, "{field}");
        }
    }

    #[test]
    fn what_administrators_do_is_theirs() {
        for (word, id, source) in [
            ("deleted", "FAIL", "ADMIN"),
            ("held", "DEFER", "ADMIN"),
            ("released", "RESUBMIT", "ADMIN"),
            ("redirected", "REDIRECT", "ADMIN"),
            ("expired", "FAIL", "QUEUE"),
            ("quarantined", "POISONMESSAGE", "POISONMESSAGE"),
            ("from a later version", "DEFER", "QUEUE"),
        ] {
            let values = fields(&message(), &event(word));
            assert_eq!((at(&values, "event-id"), at(&values, "source")), (id, source), "{word}");
        }
    }

    #[test]
    fn a_line_is_one_event_whatever_others_wrote() {
        let line = csv(&fields(&message(), &event("accepted")));
        assert!(line.contains("\"an \"\"urgent\"\", scan  #1\""), "{line}");
        assert_eq!((line.matches('\n').count(), line.ends_with("\r\n")), (1, true));
    }

    #[test]
    fn times_are_given_either_way() {
        assert_eq!(unix_ms(moment("2026-08-01T00:00:00Z").unwrap()), 1_785_542_400_000);
        assert_eq!(unix_ms(moment("2026-08-01 00:00:00").unwrap()), 1_785_542_400_000);
        assert!(moment("1h").unwrap() < now());
        assert!(moment("soon").is_err());
    }
}
