//! `route`: send connectors. How the letters of which address spaces, senders and receive connectors leave.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use posthouse_proto::v1::{
    ListRequest, ListRoutesReply, NameRequest, PutRouteRequest, Route, StringList, TestRouteReply, TestRouteRequest,
};

use super::{Noun, suggest};
use crate::client::Client;
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::mutation::{Deed, WriteFlags, finish};
use crate::output::{self, Rows, or_dash};
use crate::parse;

/// `route …`.
#[derive(Debug, Subcommand)]
pub(crate) enum RouteCommand {
    /// All routes
    List,
    /// One route
    Show {
        /// Its name, or its pattern
        route: String,
    },
    /// Add a route
    #[command(visible_alias = "create")]
    Add(AddArgs),
    /// Change a route
    Set(SetArgs),
    /// Remove a route; its letters wait until another one covers them
    #[command(visible_alias = "delete")]
    Remove(RemoveArgs),
    /// Where a letter would go, without sending it
    Test(TestArgs),
}

/// TLS towards a smart host.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum RouteTls {
    /// Never
    Off,
    /// Where it is offered
    Opportunistic,
    /// Always, whoever the certificate belongs to; else the letter waits
    Required,
    /// Always, with a valid certificate for the next hop's name; else the letter waits
    Verified,
}

impl RouteTls {
    fn word(self) -> String {
        match self {
            Self::Off => "off",
            Self::Opportunistic => "opportunistic",
            Self::Required => "required",
            Self::Verified => "verified",
        }
        .to_owned()
    }
}

/// The settings of a route, beside its patterns and smart hosts.
#[derive(Debug, Args)]
pub(crate) struct RouteFlags {
    /// TLS towards the next hops
    #[arg(long, value_enum)]
    tls: Option<RouteTls>,
    /// With --tls verified: a name that the certificate may have instead of the next hop's own; empty: none
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    tls_names: Option<Vec<String>>,
    /// With --tls verified: PEM file of the authorities to trust; empty: the machine's trust store
    #[arg(long, value_name = "FILE")]
    tls_ca_file: Option<PathBuf>,
    /// Log in to the smart hosts as this user; empty: do not
    #[arg(long, value_name = "USER")]
    auth_user: Option<String>,
    /// Read the password for --auth-user from a file (the first line)
    #[arg(long, value_name = "FILE", conflicts_with = "auth_password_stdin")]
    auth_password_file: Option<PathBuf>,
    /// Read the password for --auth-user from standard input (the first line)
    #[arg(long)]
    auth_password_stdin: bool,
    /// Only letters of these senders: an address, @domain or *; empty: any
    #[arg(long, visible_alias = "from", value_name = "PATTERN", value_delimiter = ',')]
    senders: Option<Vec<String>>,
    /// Only letters that these receive connectors took; empty: any
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    connectors: Option<Vec<String>>,
    /// Among routes for the same address space the cheapest one wins
    #[arg(long, value_name = "N")]
    cost: Option<u32>,
    /// Connections to one destination at once, per node
    #[arg(long, value_name = "N")]
    max_connections: Option<u32>,
    /// Letters on one connection
    #[arg(long, value_name = "N")]
    max_messages_per_connection: Option<u32>,
    /// Letters to one destination per minute, per node, or unlimited
    #[arg(long, visible_alias = "rate", value_name = "N", value_parser = parse::limit)]
    rate_per_minute: Option<u32>,
    /// Connect from this address, at most one IPv4 and one IPv6; empty: the machine decides
    #[arg(long, visible_alias = "source-address", value_name = "IP", value_delimiter = ',')]
    source_addresses: Option<Vec<String>>,
    /// Time between the first four retries; 0: as the node file says, here and below
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    glitch_retry_interval: Option<Duration>,
    /// Time between the next six
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    transient_failure_retry_interval: Option<Duration>,
    /// Time between all others
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    message_retry_interval: Option<Duration>,
    /// When a letter is given up and its sender told
    #[arg(long, visible_alias = "expire", value_name = "TIME", value_parser = parse::duration)]
    message_expiration_timeout: Option<Duration>,
    /// What this node says in EHLO; empty: its own name
    #[arg(long, value_name = "NAME")]
    fqdn: Option<String>,
    /// For people
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    /// Whether it is used
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    enabled: Option<bool>,
}

/// Flags of `route add`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl route add '*' --to smarthost.corp.example:25
  posthousectl route add '*' --to a.corp.example:25=3 --to b.corp.example:25=1 --to standby.corp.example
  posthousectl route add '*' --to mail.provider.example:587 --tls verified --auth-user relay --auth-password-file pw
  posthousectl route add partner.example --mx --tls required
  posthousectl route add '*' --name scanners --connectors scanners --to archive.corp.example")]
pub(crate) struct AddArgs {
    /// `*`, corp.example, or *.corp.example with every subdomain
    #[arg(required = true, value_name = "PATTERN")]
    patterns: Vec<String>,
    /// HOST:PORT of a smart host, with =WEIGHT for a share; repeat: those without weight are tried last, in this order
    #[arg(
        long,
        required_unless_present = "mx",
        value_name = "H:P",
        visible_alias = "smart-hosts",
        value_delimiter = ','
    )]
    to: Vec<String>,
    /// Deliver to the recipient domain's own mail servers, as the DNS names them
    #[arg(long, conflicts_with = "to")]
    mx: bool,
    /// Its name [default: from the first pattern; `*` is "default"]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    flags: RouteFlags,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `route set`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl route set default --to smarthost2.corp.example:25
  posthousectl route set default --tls required --if-revision 41")]
pub(crate) struct SetArgs {
    /// Its name, or its pattern
    route: String,
    /// Replace its patterns
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    address_spaces: Option<Vec<String>>,
    /// Replace its smart hosts
    #[arg(long, value_name = "H:P", visible_alias = "smart-hosts", value_delimiter = ',')]
    to: Option<Vec<String>>,
    /// Deliver to the recipient domain's own mail servers from now on
    #[arg(long, conflicts_with = "to")]
    mx: bool,
    #[command(flatten)]
    flags: RouteFlags,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `route remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Its name, or its pattern
    route: String,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `route test`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl route test a@partner.example
  posthousectl route test a@partner.example --from scan@corp.example --connector scanners --connect")]
pub(crate) struct TestArgs {
    /// The recipient
    address: String,
    /// The sender
    #[arg(long, visible_alias = "sender", value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    from: String,
    /// The receive connector that would take the letter
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    connector: String,
    /// Also connect to the first next hop, with TLS and login, and say goodbye
    #[arg(long)]
    connect: bool,
}

const ROUTE: Noun = Noun { name: "route", missing: "PH-ROUTE-001", list: "route list" };

/// Runs `route …`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(command: RouteCommand, console: &Console) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    match command {
        RouteCommand::List => list(console, &routes(&mut client).await?),
        RouteCommand::Show { route } => {
            let all = routes(&mut client).await?.routes;
            let found = ROUTE.find(all, &named(&route), |route| &route.name)?;
            console.out.show("route-show", &found, "name")?;
            Ok(Exit::Done)
        }
        RouteCommand::Add(args) => {
            let first = args.patterns.first().map(String::as_str).unwrap_or_default();
            let password = password(&args.flags)?;
            let route = Route {
                name: args.name.clone().unwrap_or_else(|| named(first)),
                address_spaces: Some(StringList { values: args.patterns }),
                smart_hosts: Some(StringList { values: args.to }),
                mx: Some(args.mx),
                ..from_flags(args.flags)?
            };
            put(console, &mut client, route, password, true, &args.write).await
        }
        RouteCommand::Set(args) => {
            let password = password(&args.flags)?;
            // Each way takes the place of the other.
            let smart_hosts = if args.mx { Some(Vec::new()) } else { args.to };
            let route = Route {
                name: named(&args.route),
                address_spaces: args.address_spaces.map(|values| StringList { values }),
                mx: smart_hosts.is_some().then_some(args.mx),
                smart_hosts: smart_hosts.map(|values| StringList { values }),
                ..from_flags(args.flags)?
            };
            put(console, &mut client, route, password, false, &args.write).await
        }
        RouteCommand::Remove(args) => remove(console, &mut client, &args).await,
        RouteCommand::Test(args) => test(console, &mut client, args).await,
    }
}

/// The name that a route has when nobody gives it one. A name stays itself.
fn named(pattern: &str) -> String {
    match pattern.trim() {
        "*" => "default".to_owned(),
        other => other.trim_start_matches("*.").to_owned(),
    }
}

fn from_flags(flags: RouteFlags) -> Result<Route, Failure> {
    // An empty text clears a list.
    let list = |values: Option<Vec<String>>| {
        values.map(|values| StringList { values: values.into_iter().filter(|value| !value.is_empty()).collect() })
    };
    let secs = |time: Option<Duration>| time.map(|time| time.as_secs());
    let tls_ca = match &flags.tls_ca_file {
        None => None,
        Some(path) if path.as_os_str().is_empty() => Some(String::new()),
        Some(path) => Some(
            std::fs::read_to_string(path)
                .map_err(|error| unreadable(&format!("{} cannot be read", path.display()), &error))?,
        ),
    };
    Ok(Route {
        tls: flags.tls.map(RouteTls::word),
        tls_names: list(flags.tls_names),
        tls_ca,
        auth_user: flags.auth_user,
        senders: list(flags.senders),
        connectors: list(flags.connectors),
        cost: flags.cost,
        max_connections: flags.max_connections,
        max_messages_per_connection: flags.max_messages_per_connection,
        rate_per_minute: flags.rate_per_minute,
        source_addresses: list(flags.source_addresses),
        glitch_retry_interval_secs: secs(flags.glitch_retry_interval),
        transient_failure_retry_interval_secs: secs(flags.transient_failure_retry_interval),
        message_retry_interval_secs: secs(flags.message_retry_interval),
        message_expiration_timeout_secs: secs(flags.message_expiration_timeout),
        fqdn: flags.fqdn,
        comment: flags.comment,
        enabled: flags.enabled,
        ..Route::default()
    })
}

/// The password for the smart hosts, never from the command line: others can read that.
fn password(flags: &RouteFlags) -> Result<Option<String>, Failure> {
    let read = |reader: &mut dyn BufRead| {
        let mut line = String::new();
        reader.read_line(&mut line).map(|_| line.trim_end_matches(['\r', '\n']).to_owned())
    };
    if flags.auth_password_stdin {
        let line = read(&mut io::stdin().lock());
        return line.map(Some).map_err(|error| unreadable("the password cannot be read from standard input", &error));
    }
    let Some(path) = &flags.auth_password_file else { return Ok(None) };
    let line = File::open(path).and_then(|file| read(&mut BufReader::new(file)));
    line.map(Some).map_err(|error| unreadable(&format!("{} cannot be read", path.display()), &error))
}

fn unreadable(what: &str, error: &io::Error) -> Failure {
    Failure::usage(what, error.to_string(), "name a file that can be read")
}

async fn test(console: &Console, client: &mut Client, args: TestArgs) -> Result<Exit, Failure> {
    let request = TestRouteRequest {
        recipient: args.address,
        sender: args.from,
        connector: args.connector,
        connect: args.connect,
    };
    let reply = client.read(async |mut admin| admin.test_route(request.clone()).await).await?;
    if console.out.format.is_json() {
        console.out.json("route-test", &reply)?;
    } else {
        output::text(&describe(&reply, console.out.headers))?;
    }
    Ok(if reply.deliverable { Exit::Done } else { Exit::No })
}

fn describe(reply: &TestRouteReply, headers: bool) -> String {
    let mut text = format!("{}    (asked {}, nothing was sent)\n", reply.verdict, reply.node);
    if !reply.connected.is_empty() {
        text.push_str(&format!("connected to {}\n", reply.connected));
    }
    if !reply.hops.is_empty() {
        let mut rows = Rows::new(&["NEXT HOP", "ADDRESS", ">PREFERENCE", "STATE"]);
        for hop in &reply.hops {
            rows.push(vec![
                hop.host.clone(),
                hop.address.clone(),
                hop.preference.map_or_else(|| "-".to_owned(), |preference| preference.to_string()),
                if hop.passed_over { "failed lately, passed over" } else { "usable" }.to_owned(),
            ]);
        }
        text.push_str(&format!("\n{}", rows.render(headers, "")));
    }
    if !reply.unusable.is_empty() {
        let mut rows = Rows::new(&["UNUSABLE", "WHY"]);
        for hop in &reply.unusable {
            rows.push(vec![hop.host.clone(), hop.reply.clone()]);
        }
        text.push_str(&format!("\n{}", rows.render(headers, "")));
    }
    text
}

async fn routes(client: &mut Client) -> Result<ListRoutesReply, Failure> {
    client.read(async |mut admin| admin.list_routes(ListRequest::default()).await).await
}

async fn names(client: &mut Client) -> Result<Vec<String>, Failure> {
    Ok(routes(client).await?.routes.into_iter().map(|route| route.name).collect())
}

fn list(console: &Console, reply: &ListRoutesReply) -> Result<Exit, Failure> {
    console.out.list("route-list", reply, "routes", "name", |wide| {
        let mut headings = vec!["NAME", "ADDRESS SPACES", "SMART HOSTS", "TLS", ">COST", "STATE"];
        if wide {
            headings.extend(["SENDERS", "CONNECTORS", ">CONNECTIONS", "COMMENT", ">REVISION"]);
        }
        let mut rows = Rows::new(&headings);
        for route in &reply.routes {
            let words = |list: &Option<StringList>| {
                or_dash(&list.as_ref().map(|list| list.values.join(", ")).unwrap_or_default())
            };
            let mut row = vec![
                route.name.clone(),
                words(&route.address_spaces),
                if route.mx == Some(true) { "MX".to_owned() } else { words(&route.smart_hosts) },
                or_dash(route.tls.as_deref().unwrap_or_default()),
                route.cost.unwrap_or_default().to_string(),
                if route.enabled == Some(false) { "disabled" } else { "enabled" }.to_owned(),
            ];
            if wide {
                row.extend([
                    words(&route.senders),
                    words(&route.connectors),
                    route.max_connections.unwrap_or_default().to_string(),
                    or_dash(route.comment.as_deref().unwrap_or_default()),
                    route.revision.to_string(),
                ]);
            }
            rows.push(row);
        }
        rows
    })?;
    Ok(Exit::Done)
}

async fn put(
    console: &Console,
    client: &mut Client,
    route: Route,
    auth_password: Option<String>,
    create: bool,
    write: &WriteFlags,
) -> Result<Exit, Failure> {
    let name = route.name.clone();
    let request = PutRouteRequest { route: Some(route), create, options: Some(write.options(false)), auth_password };
    match client.write(async |mut admin| admin.put_route(request.clone()).await).await {
        Ok(reply) => {
            let (schema, done) = if create { ("route-add", "added") } else { ("route-set", "changed") };
            finish(console, client, write, reply, Deed::new(schema, ROUTE.name, &name, done)).await
        }
        Err(failure) => Err(suggest(ROUTE, failure, &name, names(client)).await),
    }
}

async fn remove(console: &Console, client: &mut Client, args: &RemoveArgs) -> Result<Exit, Failure> {
    let name = named(&args.route);
    let request = NameRequest { name: name.clone(), options: Some(args.write.options(false)) };
    match client.write(async |mut admin| admin.delete_route(request.clone()).await).await {
        Ok(reply) => {
            finish(console, client, &args.write, reply, Deed::new("route-remove", ROUTE.name, &name, "removed")).await
        }
        Err(failure) => Err(suggest(ROUTE, failure, &name, names(client)).await),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_named_after_its_pattern() {
        assert_eq!(named("*"), "default");
        assert_eq!(named("*.corp.example"), "corp.example");
        assert_eq!(named("corp.example"), "corp.example");
        assert_eq!(named("default"), "default");
    }
}
