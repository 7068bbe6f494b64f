//! `route`: send connectors. Which smart hosts take the letters of which address spaces.

use clap::{Args, Subcommand, ValueEnum};
use posthouse_proto::v1::{ListRequest, ListRoutesReply, NameRequest, PutRouteRequest, Route, StringList};

use super::{Noun, suggest};
use crate::client::Client;
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::mutation::{Deed, WriteFlags, finish};
use crate::output::{Rows, or_dash};
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
}

/// TLS towards a smart host.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum RouteTls {
    /// Never
    Off,
    /// Where it is offered
    Opportunistic,
    /// Verified, or the letter waits
    Required,
}

impl RouteTls {
    fn word(self) -> String {
        match self {
            Self::Off => "off",
            Self::Opportunistic => "opportunistic",
            Self::Required => "required",
        }
        .to_owned()
    }
}

/// The settings of a route, beside its patterns and smart hosts.
#[derive(Debug, Args)]
pub(crate) struct RouteFlags {
    /// TLS towards the smart hosts
    #[arg(long, value_enum)]
    tls: Option<RouteTls>,
    /// Among routes for the same address space the cheapest one wins
    #[arg(long, value_name = "N")]
    cost: Option<u32>,
    /// Connections to one smart host at once, per node
    #[arg(long, value_name = "N")]
    max_connections: Option<u32>,
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
  posthousectl route add partner.example '*.partner.example' --to mx1.partner.example:25 --to mx2.partner.example:25 --tls required")]
pub(crate) struct AddArgs {
    /// `*`, corp.example, or *.corp.example with every subdomain
    #[arg(required = true, value_name = "PATTERN")]
    patterns: Vec<String>,
    /// HOST:PORT of a smart host; repeat, tried in this order
    #[arg(long, required = true, value_name = "H:P", visible_alias = "smart-hosts", value_delimiter = ',')]
    to: Vec<String>,
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
            let route = Route {
                name: args.name.clone().unwrap_or_else(|| named(first)),
                address_spaces: Some(StringList { values: args.patterns }),
                smart_hosts: Some(StringList { values: args.to }),
                ..from_flags(args.flags)
            };
            put(console, &mut client, route, true, &args.write).await
        }
        RouteCommand::Set(args) => {
            let route = Route {
                name: named(&args.route),
                address_spaces: args.address_spaces.map(|values| StringList { values }),
                smart_hosts: args.to.map(|values| StringList { values }),
                ..from_flags(args.flags)
            };
            put(console, &mut client, route, false, &args.write).await
        }
        RouteCommand::Remove(args) => remove(console, &mut client, &args).await,
    }
}

/// The name that a route has when nobody gives it one. A name stays itself.
fn named(pattern: &str) -> String {
    match pattern.trim() {
        "*" => "default".to_owned(),
        other => other.trim_start_matches("*.").to_owned(),
    }
}

fn from_flags(flags: RouteFlags) -> Route {
    Route {
        tls: flags.tls.map(RouteTls::word),
        cost: flags.cost,
        max_connections: flags.max_connections,
        fqdn: flags.fqdn,
        comment: flags.comment,
        enabled: flags.enabled,
        ..Route::default()
    }
}

async fn routes(client: &mut Client) -> Result<ListRoutesReply, Failure> {
    client.read(async |mut admin| admin.list_routes(ListRequest {}).await).await
}

async fn names(client: &mut Client) -> Result<Vec<String>, Failure> {
    Ok(routes(client).await?.routes.into_iter().map(|route| route.name).collect())
}

fn list(console: &Console, reply: &ListRoutesReply) -> Result<Exit, Failure> {
    console.out.list("route-list", reply, "routes", "name", |wide| {
        let mut headings = vec!["NAME", "ADDRESS SPACES", "SMART HOSTS", "TLS", ">COST", "STATE"];
        if wide {
            headings.extend([">CONNECTIONS", "COMMENT", ">REVISION"]);
        }
        let mut rows = Rows::new(&headings);
        for route in &reply.routes {
            let words = |list: &Option<StringList>| {
                or_dash(&list.as_ref().map(|list| list.values.join(", ")).unwrap_or_default())
            };
            let mut row = vec![
                route.name.clone(),
                words(&route.address_spaces),
                words(&route.smart_hosts),
                or_dash(route.tls.as_deref().unwrap_or_default()),
                route.cost.unwrap_or_default().to_string(),
                if route.enabled == Some(false) { "disabled" } else { "enabled" }.to_owned(),
            ];
            if wide {
                row.extend([
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
    create: bool,
    write: &WriteFlags,
) -> Result<Exit, Failure> {
    let name = route.name.clone();
    let request = PutRouteRequest { route: Some(route), create, options: Some(write.options(false)) };
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
