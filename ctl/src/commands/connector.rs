//! `connector`: receive connectors. Who may connect, submit and relay.

use clap::{Args, Subcommand};
use posthouse_proto::v1::{Connector, ListConnectorsReply, ListRequest, NameRequest, PutConnectorRequest, StringList};

use super::connector_flags::{ConnectorFlags, has};
use super::connector_look;
use super::usage::{note_missing, seen};
use super::{Noun, suggest};
use crate::client::Client;
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::mutation::{Deed, WriteFlags, confirm_gains, finish};
use crate::output::{self, Format, Rows, or_dash};

/// `connector …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConnectorCommand {
    /// All connectors
    List,
    /// Every setting of one connector
    Show {
        /// Its name
        name: String,
    },
    /// Make a connector
    #[command(visible_alias = "add")]
    Create(CreateArgs),
    /// Change a connector; what is not named stays as it is
    Set(SetArgs),
    /// Delete a connector and its ranges
    #[command(visible_alias = "remove")]
    Delete(NamedArgs),
    /// Let it take connections
    Enable(NamedArgs),
    /// Let it take no connections; its addresses fall to the next wider range
    Disable(NamedArgs),
    /// What would become of a letter that comes to it, without sending one
    Test(connector_look::TestArgs),
    /// Ranges of one connector inside ranges of another
    Overlaps,
    /// Who used it: connectors, or the ranges of one
    Hits(super::connector_hits::HitsArgs),
}

/// Flags of `connector create`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl connector create printers --template anonymous-relay --from 10.20.31.0/26
  posthousectl connector create erp --from 10.30.4.11,10.30.4.12 --relay external --tls required
  posthousectl connector create lan --from 10.0.0.0/8 --relay internal --max-size 50MB")]
pub(crate) struct CreateArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    settings: ConnectorFlags,
    /// Override the open-relay guard, on record (needs --reason)
    #[arg(long)]
    accept_risk: bool,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `connector set`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl connector set printers --max-size 50MB
  posthousectl connector set printers --relay internal --reason 'scan to mail inside only'
  posthousectl connector set erp --tls required --if-revision 41")]
pub(crate) struct SetArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    settings: ConnectorFlags,
    /// Override the open-relay guard, on record (needs --reason)
    #[arg(long)]
    accept_risk: bool,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of the verbs that need a name only.
#[derive(Debug, Args)]
pub(crate) struct NamedArgs {
    /// Its name
    name: String,
    /// Override the open-relay guard, on record (needs --reason)
    #[arg(long)]
    accept_risk: bool,
    #[command(flatten)]
    write: WriteFlags,
}

/// What a connector is called.
pub(crate) const CONNECTOR: Noun = Noun { name: "connector", missing: "PH-CONN-001", list: "connector list" };

/// Runs `connector …`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(command: ConnectorCommand, console: &Console) -> Result<Exit, Failure> {
    match command {
        ConnectorCommand::List => list(console, &with_usage(&mut console.client().await?).await?),
        ConnectorCommand::Show { name } => {
            let reply = with_usage(&mut console.client().await?).await?;
            let found = CONNECTOR.find(reply.connectors, &name, |connector| &connector.name)?;
            let exit = connector_look::show(console, &found)?;
            note_missing(console, reply.usage.as_ref());
            Ok(exit)
        }
        ConnectorCommand::Create(args) => create(args, console).await,
        ConnectorCommand::Set(args) => set(args, console).await,
        ConnectorCommand::Delete(args) => delete(args, console).await,
        ConnectorCommand::Enable(args) => switch(args, console, true).await,
        ConnectorCommand::Disable(args) => switch(args, console, false).await,
        ConnectorCommand::Test(args) => connector_look::test(args, console).await,
        ConnectorCommand::Overlaps => connector_look::overlaps(console).await,
        ConnectorCommand::Hits(args) => super::connector_hits::run(args, console).await,
    }
}

async fn connectors(client: &mut Client) -> Result<ListConnectorsReply, Failure> {
    client.read(async |mut admin| admin.list_connectors(ListRequest::default()).await).await
}

/// The same, with what every node knows of their use.
///
/// # Errors
/// When the cluster does not answer.
pub(super) async fn with_usage(client: &mut Client) -> Result<ListConnectorsReply, Failure> {
    client.read(async |mut admin| admin.list_connectors(ListRequest { with_usage: true }).await).await
}

/// The names of all connectors, for suggestions.
///
/// # Errors
/// When the cluster does not answer.
pub(crate) async fn names(client: &mut Client) -> Result<Vec<String>, Failure> {
    Ok(connectors(client).await?.connectors.into_iter().map(|connector| connector.name).collect())
}

pub(crate) async fn find(client: &mut Client, name: &str) -> Result<Connector, Failure> {
    CONNECTOR.find(connectors(client).await?.connectors, name, |connector| &connector.name)
}

async fn create(args: CreateArgs, console: &Console) -> Result<Exit, Failure> {
    let request = PutConnectorRequest {
        connector: Some(args.settings.connector(&args.name, None)?),
        create: true,
        options: Some(args.write.options_at_risk(args.accept_risk)?),
    };
    let deed = Deed::new("connector-create", "connector", &args.name, "created");
    put(console, &mut console.client().await?, request, &args.write, deed).await
}

async fn set(args: SetArgs, console: &Console) -> Result<Exit, Failure> {
    if args.settings.template.is_some() {
        return Err(Failure::usage(
            "--template is for connector create",
            "on an existing connector it would change more than it says",
            "name the settings: --relay, --auth, --tls",
        ));
    }
    let mut options = args.write.options_at_risk(args.accept_risk)?;
    let mut client = console.client().await?;
    let connector = if args.settings.has_shortcuts() {
        // The shortcuts add to what is there, so they hold only for the revision that was read.
        let base = find(&mut client, &args.name).await?;
        options.if_revision = options.if_revision.or(Some(base.revision));
        args.settings.connector(&args.name, Some(&base))?
    } else {
        args.settings.connector(&args.name, None)?
    };
    if connector == (Connector { name: args.name.clone(), ..Connector::default() }) {
        return Err(Failure::usage(
            "nothing to change",
            "no setting was named",
            format!("posthousectl connector set {} --max-size 50MB; see --help", args.name),
        ));
    }
    let request = PutConnectorRequest { connector: Some(connector), create: false, options: Some(options) };
    let deed = Deed::new("connector-set", "connector", &args.name, "changed");
    put(console, &mut client, request, &args.write, deed).await
}

async fn switch(args: NamedArgs, console: &Console, enabled: bool) -> Result<Exit, Failure> {
    let request = PutConnectorRequest {
        connector: Some(Connector { name: args.name.clone(), enabled: Some(enabled), ..Connector::default() }),
        create: false,
        options: Some(args.write.options_at_risk(args.accept_risk)?),
    };
    let (schema, done) = if enabled { ("connector-enable", "enabled") } else { ("connector-disable", "disabled") };
    let deed = Deed::new(schema, "connector", &args.name, done);
    let mut client = console.client().await?;
    if !enabled && !args.write.dry_run {
        let mut trial = request.clone();
        trial.options.get_or_insert_default().dry_run = true;
        // What would be refused is refused by the change itself, in the same words.
        if let Ok(tried) = client.write(async |mut admin| admin.put_connector(trial.clone()).await).await {
            confirm_gains(console, &tried, &format!("disabling connector \"{}\"", args.name))?;
        }
    }
    put(console, &mut client, request, &args.write, deed).await
}

async fn put(
    console: &Console,
    client: &mut Client,
    request: PutConnectorRequest,
    write: &WriteFlags,
    deed: Deed,
) -> Result<Exit, Failure> {
    match client.write(async |mut admin| admin.put_connector(request.clone()).await).await {
        Ok(reply) => finish(console, client, write, reply, deed).await,
        Err(failure) => {
            let name = request.connector.map(|connector| connector.name).unwrap_or_default();
            Err(suggest(CONNECTOR, failure, &name, names(client)).await)
        }
    }
}

async fn delete(args: NamedArgs, console: &Console) -> Result<Exit, Failure> {
    let NamedArgs { name, accept_risk, write } = args;
    let options = write.options_at_risk(accept_risk)?;
    let mut client = console.client().await?;
    let request = NameRequest { name: name.clone(), options: Some(options) };
    if !write.dry_run {
        let what = format!("deleting connector \"{name}\"");
        let mut trial = request.clone();
        trial.options.get_or_insert_default().dry_run = true;
        let tried = match client.write(async |mut admin| admin.delete_connector(trial.clone()).await).await {
            Ok(tried) => tried,
            Err(failure) => return Err(suggest(CONNECTOR, failure, &name, names(&mut client)).await),
        };
        if tried.gains.is_empty() {
            console.confirm(&what, "its addresses fall to the next wider range, or are refused; none gains relay")?;
        } else {
            confirm_gains(console, &tried, &what)?;
        }
    }
    match client.write(async |mut admin| admin.delete_connector(request.clone()).await).await {
        Ok(reply) => {
            let deed = Deed::new("connector-delete", "connector", &name, "deleted");
            finish(console, &mut client, &write, reply, deed).await
        }
        Err(failure) => Err(suggest(CONNECTOR, failure, &name, names(&mut client)).await),
    }
}

fn list(console: &Console, reply: &ListConnectorsReply) -> Result<Exit, Failure> {
    console.out.list("connector-list", reply, "connectors", "name", |wide| {
        let mut headings = vec!["NAME", "BIND", "FROM", "RELAY", "AUTH", "TLS", ">HITS", "LAST SEEN", "STATE"];
        if wide {
            headings.extend([">MAX SIZE", ">REVISION", "COMMENT"]);
        }
        let mut rows = Rows::new(&headings);
        for connector in &reply.connectors {
            let mark = if connector.warnings.is_empty() { "" } else { " !" };
            let state = if connector.enabled == Some(false) { "disabled" } else { "enabled" };
            let mut row = vec![
                connector.name.clone(),
                bind_words(values(&connector.bindings)),
                range_words(values(&connector.remote_ip_ranges), connector.range_count),
                relay_word(connector).to_owned(),
                auth_word(connector).to_owned(),
                tls_word(connector).to_owned(),
                crate::parse::grouped(connector.hits),
                seen(&connector.last_seen),
                format!("{state}{mark}"),
            ];
            if wide {
                row.extend([
                    crate::parse::grouped(connector.max_message_size.unwrap_or_default()),
                    connector.revision.to_string(),
                    or_dash(connector.comment.as_deref().unwrap_or_default()),
                ]);
            }
            rows.push(row);
        }
        rows
    })?;
    note_missing(console, reply.usage.as_ref());
    if matches!(console.out.format, Format::Table | Format::Wide) {
        for connector in &reply.connectors {
            for warning in &connector.warnings {
                output::text(&format!("! {}: {warning}\n", connector.name))?;
            }
        }
    }
    Ok(Exit::Done)
}

pub(super) fn values(list: &Option<StringList>) -> &[String] {
    list.as_ref().map_or(&[], |list| &list.values)
}

/// `:25` for every address of both families, else the bindings themselves.
fn bind_words(bindings: &[String]) -> String {
    let wildcard = |binding: &String| {
        let (address, port) = binding.rsplit_once(':')?;
        matches!(address, "0.0.0.0" | "[::]").then(|| format!(":{port}"))
    };
    let mut words: Vec<String> =
        bindings.iter().map(|binding| wildcard(binding).unwrap_or_else(|| binding.clone())).collect();
    let mut seen = std::collections::BTreeSet::new();
    words.retain(|word| seen.insert(word.clone()));
    or_dash(&words.join(" "))
}

/// The first ranges and how many more; `any` for all addresses.
fn range_words(ranges: &[String], count: u64) -> String {
    const SHOWN: usize = 2;
    let any = ["0.0.0.0/0", "0.0.0.0-255.255.255.255"];
    if ranges.iter().any(|range| any.contains(&range.as_str())) {
        return "any".to_owned();
    }
    let shown: Vec<&str> = ranges.iter().take(SHOWN).map(String::as_str).collect();
    let count = usize::try_from(count).unwrap_or(usize::MAX).max(ranges.len());
    match count.saturating_sub(SHOWN) {
        0 => or_dash(&shown.join(", ")),
        more => format!("{}, +{more} more", shown.join(", ")),
    }
}

/// Whether clients that get in may relay: anonymous ones, or, where nobody gets in without a password, those with one.
fn relay_word(connector: &Connector) -> &str {
    let authenticated = connector.effective_rights.iter().find(|line| line.starts_with("authenticated:"));
    let relays = authenticated.is_some_and(|line| line.contains("accept_any_recipient"));
    if auth_word(connector) == "required" && relays { "external" } else { &connector.relay }
}

pub(super) fn auth_word(connector: &Connector) -> &'static str {
    let ways = ["basic_auth", "scram_sha_256", "client_certificate"];
    if !ways.iter().any(|way| has(values(&connector.auth_mechanism), way)) {
        return "-";
    }
    if connector.relay == "none" { "required" } else { "optional" }
}

pub(super) fn tls_word(connector: &Connector) -> &'static str {
    if connector.require_tls == Some(true) {
        "required"
    } else if has(values(&connector.auth_mechanism), "tls") {
        "optional"
    } else {
        "off"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list_of(values: &[&str]) -> Option<StringList> {
        Some(StringList { values: values.iter().map(|value| (*value).to_owned()).collect() })
    }

    #[test]
    fn wildcards_of_both_families_are_one_word() {
        let words = |bindings: &[&str]| bind_words(&list_of(bindings).unwrap_or_default().values);
        assert_eq!(words(&["0.0.0.0:25", "[::]:25"]), ":25");
        assert_eq!(words(&["0.0.0.0:25", "0.0.0.0:587", "[::]:25", "[::]:587"]), ":25 :587");
        assert_eq!(words(&["10.0.0.1:25"]), "10.0.0.1:25");
        assert_eq!(words(&[]), "-");
    }

    #[test]
    fn many_ranges_are_counted() {
        let words = |ranges: &[&str]| range_words(&list_of(ranges).unwrap_or_default().values, 0);
        assert_eq!(words(&["0.0.0.0/0", "::/0"]), "any");
        assert_eq!(words(&["10.0.0.1", "10.0.0.2"]), "10.0.0.1, 10.0.0.2");
        assert_eq!(words(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]), "10.0.0.1, 10.0.0.2, +1 more");
        let many = ["10.0.0.1".to_owned(), "10.0.0.2".to_owned()];
        assert_eq!(range_words(&many, 1_000_000), "10.0.0.1, 10.0.0.2, +999998 more");
    }

    #[test]
    fn a_submission_connector_relays_for_those_with_a_password() {
        let connector = Connector {
            auth_mechanism: list_of(&["tls", "basic_auth", "basic_auth_require_tls"]),
            require_tls: Some(true),
            relay: "none".into(),
            effective_rights: vec!["anonymous: none".into(), "authenticated: submit, accept_any_recipient".into()],
            ..Connector::default()
        };
        assert_eq!(
            (relay_word(&connector), auth_word(&connector), tls_word(&connector)),
            ("external", "required", "required")
        );
    }

    #[test]
    fn a_plain_connector_says_what_anonymous_clients_may() {
        let connector =
            Connector { auth_mechanism: list_of(&["tls"]), relay: "internal".into(), ..Connector::default() };
        assert_eq!(
            (relay_word(&connector), auth_word(&connector), tls_word(&connector)),
            ("internal", "-", "optional")
        );
    }
}
