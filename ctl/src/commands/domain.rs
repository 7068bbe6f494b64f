//! `domain`: accepted domains, whose mail the cluster takes from anybody.

use clap::{Args, Subcommand, ValueEnum};
use posthouse_proto::v1::{Domain, ListDomainsReply, ListRequest, NameRequest, PutDomainRequest};

use super::{Noun, suggest};
use crate::client::Client;
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::mutation::{Deed, WriteFlags, finish};
use crate::output::{Rows, or_dash};

/// `domain …`.
#[derive(Debug, Subcommand)]
pub(crate) enum DomainCommand {
    /// All accepted domains
    List,
    /// One accepted domain
    Show {
        /// Its name
        domain: String,
    },
    /// Accept a domain
    #[command(visible_alias = "create")]
    Add(AddArgs),
    /// Change what a domain is to us
    Set(SetArgs),
    /// Accept a domain no longer
    #[command(visible_alias = "delete")]
    Remove(RemoveArgs),
}

/// What a domain is to us.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum DomainType {
    /// Every mailbox of it is ours
    Authoritative,
    /// Ours together with another system inside
    #[value(aliases = ["internal_relay", "internal"])]
    InternalRelay,
    /// Somebody else's, whose mail we pass on
    #[value(aliases = ["external_relay", "external", "relay"])]
    ExternalRelay,
}

impl DomainType {
    fn word(self) -> String {
        match self {
            Self::Authoritative => "authoritative",
            Self::InternalRelay => "internal_relay",
            Self::ExternalRelay => "external_relay",
        }
        .to_owned()
    }
}

/// Flags of `domain add`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl domain add corp.example
  posthousectl domain add '*.corp.example' --type internal-relay   # with every subdomain")]
pub(crate) struct AddArgs {
    /// corp.example, or *.corp.example with every subdomain
    domain: String,
    /// What it is to us [default: authoritative]
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    kind: Option<DomainType>,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `domain set`.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// corp.example, or *.corp.example with every subdomain
    domain: String,
    /// What it is to us
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    kind: Option<DomainType>,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `domain remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Its name
    domain: String,
    #[command(flatten)]
    write: WriteFlags,
}

const DOMAIN: Noun = Noun { name: "accepted domain", missing: "PH-DOM-001", list: "domain list" };

/// Runs `domain …`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(command: DomainCommand, console: &Console) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    match command {
        DomainCommand::List => list(console, &domains(&mut client).await?),
        DomainCommand::Show { domain } => {
            let wanted = bare(&domain);
            let all = domains(&mut client).await?.domains;
            let found = DOMAIN.find(all, &wanted, |found| found.name.trim_start_matches("*."))?;
            console.out.show("domain-show", &found, "name")?;
            Ok(Exit::Done)
        }
        DomainCommand::Add(args) => put(console, &mut client, args.domain, args.kind, true, &args.write).await,
        DomainCommand::Set(args) => put(console, &mut client, args.domain, args.kind, false, &args.write).await,
        DomainCommand::Remove(args) => remove(console, &mut client, &args).await,
    }
}

/// The name under which the cluster keeps it: lower case, without the mark of its subdomains.
fn bare(name: &str) -> String {
    name.trim().to_ascii_lowercase().trim_start_matches("*.").to_owned()
}

async fn domains(client: &mut Client) -> Result<ListDomainsReply, Failure> {
    client.read(async |mut admin| admin.list_domains(ListRequest::default()).await).await
}

async fn names(client: &mut Client) -> Result<Vec<String>, Failure> {
    Ok(domains(client).await?.domains.into_iter().map(|domain| domain.name).collect())
}

fn list(console: &Console, reply: &ListDomainsReply) -> Result<Exit, Failure> {
    console.out.list("domain-list", reply, "domains", "name", |wide| {
        let mut headings = vec!["DOMAIN", "TYPE"];
        if wide {
            headings.push(">REVISION");
        }
        let mut rows = Rows::new(&headings);
        for domain in &reply.domains {
            let mut row = vec![domain.name.clone(), or_dash(domain.r#type.as_deref().unwrap_or_default())];
            if wide {
                row.push(domain.revision.to_string());
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
    name: String,
    kind: Option<DomainType>,
    create: bool,
    write: &WriteFlags,
) -> Result<Exit, Failure> {
    let domain = Domain { name: name.clone(), r#type: kind.map(DomainType::word), revision: 0 };
    let request = PutDomainRequest { domain: Some(domain), create, options: Some(write.options(false)) };
    match client.write(async |mut admin| admin.put_domain(request.clone()).await).await {
        Ok(reply) => {
            let (schema, done) = if create { ("domain-add", "added") } else { ("domain-set", "changed") };
            finish(console, client, write, reply, Deed::new(schema, DOMAIN.name, &name, done)).await
        }
        Err(failure) => Err(suggest(DOMAIN, failure, &name, names(client)).await),
    }
}

async fn remove(console: &Console, client: &mut Client, args: &RemoveArgs) -> Result<Exit, Failure> {
    let request = NameRequest { name: args.domain.clone(), options: Some(args.write.options(false)) };
    match client.write(async |mut admin| admin.delete_domain(request.clone()).await).await {
        Ok(reply) => {
            let deed = Deed::new("domain-remove", DOMAIN.name, &args.domain, "removed");
            finish(console, client, &args.write, reply, deed).await
        }
        Err(failure) => Err(suggest(DOMAIN, failure, &args.domain, names(client)).await),
    }
}
