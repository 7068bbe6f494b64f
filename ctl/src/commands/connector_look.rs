//! Looking at a connector: its settings with what they come to in words, a dry run of its decision, and which ranges
//! lie inside which.

use clap::Args;
use posthouse_proto::v1::{Connector, ConnectorOverlapsRequest, ExplainIpRequest};

use super::connector::{CONNECTOR, auth_word, find, names, tls_word, values};
use super::{explain, suggest};
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::output::{self, Rows};

/// Flags of `connector test`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl connector test scanners --rcpt-to a@partner.example
  posthousectl connector test submission --auth erp-app --tls --mail-from erp@corp.example --rcpt-to a@partner.example")]
#[command(
    after_help = "Exits 0 when the connector takes the connection and accepts the letter, else 1. Nothing is sent."
)]
pub(crate) struct TestArgs {
    /// Its name
    name: String,
    /// The device's address [default: the first one of the connector]
    #[arg(long, value_name = "IP")]
    from_ip: Option<std::net::IpAddr>,
    /// What it says in EHLO
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    helo: String,
    /// The sender; <> is the null one
    #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    mail_from: String,
    /// A recipient; repeat
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    rcpt_to: Vec<String>,
    /// As if this credential had authenticated
    #[arg(long, value_name = "USER", default_value = "", hide_default_value = true)]
    auth: String,
    /// As if over TLS
    #[arg(long)]
    tls: bool,
}

/// Prints a connector: what it comes to in words, then every setting.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn show(console: &Console, connector: &Connector) -> Result<Exit, Failure> {
    if matches!(console.out.format, output::Format::Table | output::Format::Wide) {
        output::text(&format!("{}\n\n", in_words(connector)))?;
    }
    console.out.show("connector-show", connector, "name")?;
    if !console.out.format.is_json() {
        connector.warnings.iter().for_each(|warning| output::note(&format!("! {warning}")));
    }
    Ok(Exit::Done)
}

/// What may be done here, in sentences.
fn in_words(connector: &Connector) -> String {
    let mut sentences = Vec::new();
    if connector.enabled == Some(false) {
        sentences.push("It is disabled and takes no connection.".to_owned());
    }
    sentences.push(match connector.relay.as_str() {
        "external" => "Strangers at its addresses may send to anyone.".to_owned(),
        "internal" => "Strangers at its addresses may send to accepted domains.".to_owned(),
        _ => "Strangers may not send.".to_owned(),
    });
    let authenticated = connector.effective_rights.iter().find_map(|line| line.strip_prefix("authenticated: "));
    let offered = auth_word(connector) != "-";
    sentences.push(match authenticated {
        Some(rights) if offered && rights.contains("submit") => {
            let whom = if rights.contains("accept_any_recipient") { "anyone" } else { "accepted domains" };
            let sender = if rights.contains("accept_any_sender") { "any sender" } else { "one of their own senders" };
            format!("Who logs in may send to {whom}, as {sender}.")
        }
        _ if offered => "Logging in gains nothing: credentials have no right to submit here.".to_owned(),
        _ => "Nobody can log in.".to_owned(),
    });
    sentences.push(match tls_word(connector) {
        "required" => "TLS is required.".to_owned(),
        "optional" => "TLS is offered.".to_owned(),
        _ => "TLS is not offered.".to_owned(),
    });
    let (allowed, denied) = (values(&connector.allowed_recipient_domains), values(&connector.denied_recipient_domains));
    if !allowed.is_empty() {
        sentences.push(format!("Whoever sends: only to {}.", allowed.join(", ")));
    }
    if !denied.is_empty() {
        sentences.push(format!("Whoever sends: never to {}.", denied.join(", ")));
    }
    sentences.join("\n")
}

/// The first address of a range.
fn first_of(range: &str) -> String {
    let end = range.find(['/', '-']).unwrap_or(range.len());
    range.get(..end).unwrap_or(range).to_owned()
}

/// Runs `connector test`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn test(args: TestArgs, console: &Console) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    let connector = match find(&mut client, &args.name).await {
        Ok(found) => found,
        Err(failure) => return Err(suggest(CONNECTOR, failure, &args.name, names(&mut client)).await),
    };
    let source = match (args.from_ip, values(&connector.remote_ip_ranges).first()) {
        (Some(ip), _) => ip.to_string(),
        (None, Some(range)) => first_of(range),
        (None, None) => {
            return Err(Failure::usage("the connector has no range", "there is no address to ask for", "--from-ip IP"));
        }
    };
    let v6 = source.contains(':');
    let bindings = values(&connector.bindings);
    let same_family = bindings.iter().find(|binding| binding.starts_with('[') == v6);
    let binding = same_family.or_else(|| bindings.first()).map_or("0.0.0.0:25", String::as_str);
    let (address, port) = binding.rsplit_once(':').unwrap_or(("", "25"));
    let address = address.trim_matches(['[', ']']);
    let wildcard = matches!(address, "0.0.0.0" | "::");
    let request = ExplainIpRequest {
        ip: source,
        port: port.parse().unwrap_or(25),
        local_address: if wildcard { String::new() } else { address.to_owned() },
        helo: args.helo,
        user: args.auth,
        sender: args.mail_from,
        recipients: args.rcpt_to,
        tls: args.tls,
    };
    let reply = client.read(async |mut admin| admin.explain_ip(request.clone()).await).await?;
    let takes = reply.connector == args.name;
    if console.out.format.is_json() {
        console.out.json("connector-test", &reply)?;
    } else {
        output::text(&explain::describe(&request, &reply, console.out.headers))?;
        if !takes {
            let other = if reply.connector.is_empty() {
                "no connector".to_owned()
            } else {
                format!("connector \"{}\"", reply.connector)
            };
            output::note(&format!("! {other} takes {}, not \"{}\"", request.ip, args.name));
        }
    }
    Ok(if takes && reply.verdict == "accept" { Exit::Done } else { Exit::No })
}

/// Runs `connector overlaps`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn overlaps(console: &Console) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    let reply = client.read(async |mut admin| admin.connector_overlaps(ConnectorOverlapsRequest {}).await).await?;
    console.out.list("connector-overlaps", &reply, "overlaps", "inner_range", |_| {
        let mut rows = Rows::new(&["CONNECTOR", "RANGE", "INSIDE", "OF CONNECTOR", "BINDING", "EFFECT"]);
        for found in &reply.overlaps {
            rows.push(vec![
                found.inner_connector.clone(),
                found.inner_range.clone(),
                found.outer_range.clone(),
                found.outer_connector.clone(),
                found.binding.clone(),
                found.effect.clone(),
            ]);
        }
        rows
    })?;
    let shown = reply.overlaps.len() as u64;
    if reply.found > shown && !console.out.format.is_json() {
        output::note(&format!("{shown} of {} are shown", reply.found));
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthouse_proto::v1::StringList;

    fn list(values: &[&str]) -> Option<StringList> {
        Some(StringList { values: values.iter().map(|value| (*value).to_owned()).collect() })
    }

    #[test]
    fn effective_rights_are_told_in_sentences() {
        let mut connector = Connector {
            enabled: Some(true),
            relay: "external".into(),
            auth_mechanism: list(&["tls"]),
            effective_rights: vec!["anonymous: submit, accept_any_recipient".into(), "authenticated: none".into()],
            allowed_recipient_domains: list(&["partner.example"]),
            ..Connector::default()
        };
        assert_eq!(
            in_words(&connector),
            "Strangers at its addresses may send to anyone.\nNobody can log in.\nTLS is offered.\n\
             Whoever sends: only to partner.example."
        );
        connector.relay = "none".into();
        connector.auth_mechanism = list(&["tls", "basic_auth"]);
        connector.effective_rights[1] = "authenticated: submit, accept_any_recipient".into();
        connector.allowed_recipient_domains = None;
        assert_eq!(
            in_words(&connector),
            "Strangers may not send.\nWho logs in may send to anyone, as one of their own senders.\nTLS is offered."
        );
    }

    #[test]
    fn the_first_address_of_a_range_stands_for_it() {
        assert_eq!(first_of("10.0.0.0/24"), "10.0.0.0");
        assert_eq!(first_of("10.0.0.1-10.0.0.9"), "10.0.0.1");
        assert_eq!(first_of("2001:db8::/64"), "2001:db8::");
        assert_eq!(first_of("10.0.0.7"), "10.0.0.7");
    }
}
