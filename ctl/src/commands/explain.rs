//! `explain`: which connector takes an address and what would become of a letter, without sending one; and what an
//! error code means.

use std::fmt::Write as _;
use std::net::IpAddr;

use clap::{Args, Subcommand};
use posthouse_proto::v1::{ExplainIpReply, ExplainIpRequest};
use serde_json::json;

use super::explain_words;
use crate::console::Console;
use crate::error::{Exit, Failure, code, nearest};
use crate::output::{self, Rows, or_dash};
use crate::problem_codes::{self, ProblemCode};

/// `explain …`.
#[derive(Debug, Subcommand)]
#[command(before_help = "Examples:
  posthousectl explain ip 10.20.31.7 --from scan@corp.example --to a@partner.example
  posthousectl explain PH-ALLOW-007
  posthousectl explain '550 5.7.54'
  posthousectl explain connector.message-rate-limit")]
pub(crate) enum ExplainCommand {
    /// Which connector takes an address, why, and what it would answer
    Ip(IpArgs),
    /// What an error code (PH-ALLOW-007), a reply (550 5.7.54) or a setting (connector.banner) means
    #[command(external_subcommand)]
    Code(Vec<String>),
}

/// Flags of `explain ip`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl explain ip 10.20.31.7
  posthousectl explain ip 10.20.31.7 --from scan@corp.example --to a@partner.example
  posthousectl explain ip 10.30.4.11 --port 587 --auth erp --tls --to b@partner.example")]
#[command(after_help = "Exits 0 when the letter would be accepted, 1 when it would be rejected. Nothing is sent.")]
pub(crate) struct IpArgs {
    /// The device's address
    ip: IpAddr,
    /// The service port it connects to
    #[arg(long, value_name = "P", default_value_t = 25, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The address it connects to [default: any]
    #[arg(long, value_name = "IP")]
    local_address: Option<IpAddr>,
    /// What it says in EHLO
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    helo: String,
    /// As if this credential had authenticated
    #[arg(long, value_name = "USER", default_value = "", hide_default_value = true)]
    auth: String,
    /// The sender; <> is the null one
    #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    from: String,
    /// A recipient; repeat
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    to: Vec<String>,
    /// As if over TLS
    #[arg(long)]
    tls: bool,
}

/// Runs `explain …`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(command: ExplainCommand, console: &Console) -> Result<Exit, Failure> {
    match command {
        ExplainCommand::Ip(args) => ip(args, console).await,
        ExplainCommand::Code(words) => {
            let wanted = words.join(" ");
            match explain_words::find(&wanted) {
                Some(told) => explain_words::print(&told, console),
                None => explain_code(&wanted, console),
            }
        }
    }
}

async fn ip(args: IpArgs, console: &Console) -> Result<Exit, Failure> {
    let request = ExplainIpRequest {
        ip: args.ip.to_string(),
        port: u32::from(args.port),
        local_address: args.local_address.map(|address| address.to_string()).unwrap_or_default(),
        helo: args.helo,
        user: args.auth,
        sender: args.from,
        recipients: args.to,
        tls: args.tls,
    };
    let mut client = console.client().await?;
    let reply = client.read(async |mut admin| admin.explain_ip(request.clone()).await).await?;
    if console.out.format.is_json() {
        console.out.json("explain-ip", &reply)?;
    } else {
        output::text(&describe(&request, &reply, console.out.headers))?;
    }
    Ok(if reply.verdict == "accept" { Exit::Done } else { Exit::No })
}

pub(super) fn describe(request: &ExplainIpRequest, reply: &ExplainIpReply, headers: bool) -> String {
    let local = if request.local_address.is_empty() { "*" } else { &request.local_address };
    let mut text = format!("{} -> {local}:{}   ", request.ip, request.port);
    match reply.connector.as_str() {
        "" => text.push_str("no connector takes it\n"),
        connector => {
            let _ = writeln!(text, "decided by connector \"{connector}\"");
        }
    }
    if !reply.candidates.is_empty() {
        let mut rows = Rows::new(&["CONNECTOR", "MATCHED RANGE", ">ADDRESSES", "RESULT"]);
        for found in &reply.candidates {
            rows.push(vec![
                found.connector.clone(),
                found.range.clone(),
                found.addresses.clone(),
                found.result.clone(),
            ]);
        }
        let _ = write!(text, "\n{}", rows.render(headers, "  "));
    }
    if !reply.steps.is_empty() {
        let mut rows = Rows::new(&["STEP", "DECISION", ""]);
        for step in &reply.steps {
            rows.push(vec![step.step.clone(), step.decision.clone(), step.detail.clone()]);
        }
        if !reply.next_hop.is_empty() {
            rows.push(vec!["next hop".to_owned(), reply.next_hop.clone(), String::new()]);
        }
        let _ = write!(text, "\n{}", rows.render(headers, "  "));
    }
    if !reply.rights.is_empty() {
        let _ = writeln!(text, "\nRights {}", reply.rights.join(", "));
    }
    let _ = writeln!(
        text,
        "\nWould be: {} {}   (dry run, nothing was sent)   revision {}",
        reply.verdict,
        or_dash(&reply.reply),
        reply.revision
    );
    if !reply.why.is_empty() {
        let _ = writeln!(text, "Why    {}", reply.why);
    }
    for (index, fix) in reply.fixes.iter().enumerate() {
        let _ = writeln!(text, "{}{fix}", if index == 0 { "Fix    " } else { "       " });
    }
    text
}

fn explain_code(wanted: &str, console: &Console) -> Result<Exit, Failure> {
    let Some(ProblemCode { code, what, why, fix }) = problem_codes::find(wanted) else {
        let codes = problem_codes::ALL.iter().map(|known| known.code);
        return Err(Failure::new(
            Exit::NotFound,
            code::UNKNOWN_CODE,
            format!("\"{wanted}\" is not known"),
            "this program explains addresses (explain ip), its error codes, replies and settings of a connector",
            "posthousectl explain ip ADDRESS, a code such as PH-ALLOW-007, '550 5.7.54', or connector.banner",
        )
        .with_suggestion(nearest(&wanted.to_ascii_uppercase(), codes)));
    };
    if console.out.format.is_json() {
        console.out.json("explain-code", &json!({"code": code, "what": what, "why": why, "fix": fix}))?;
    } else {
        output::text(&format!("{code}  {what}\nWhy    {why}\nFix    {fix}\n"))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthouse_proto::v1::ExplainCandidate;

    #[test]
    fn the_winner_the_losers_and_the_reply_are_named() {
        let request = ExplainIpRequest { ip: "10.9.8.7".into(), port: 25, ..ExplainIpRequest::default() };
        let candidate = |connector: &str, range: &str, result: &str| ExplainCandidate {
            connector: connector.into(),
            range: range.into(),
            result: result.into(),
            addresses: "256".into(),
        };
        let reply = ExplainIpReply {
            connector: "scanners".into(),
            verdict: "reject".into(),
            reply: "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain".into(),
            candidates: vec![
                candidate("scanners", "10.9.8.0/24", "wins"),
                candidate("default", "0.0.0.0/0", "lost: wider"),
            ],
            why: "not an accepted domain".into(),
            fixes: vec!["first".into(), "second".into()],
            ..ExplainIpReply::default()
        };
        let text = describe(&request, &reply, true);
        for part in [
            "10.9.8.7 -> *:25",
            "decided by connector \"scanners\"",
            "lost: wider",
            "550 5.7.54",
            "Why    not an",
            "Fix    first\n       second\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }

    #[test]
    fn no_connector_is_said_plainly() {
        let text = describe(&ExplainIpRequest::default(), &ExplainIpReply::default(), true);
        assert!(text.contains("no connector takes it"), "{text}");
    }
}
