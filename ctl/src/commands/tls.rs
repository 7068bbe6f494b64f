//! `tls`: the certificates that devices see, the authorities of their own ones, and what stands between an old device
//! and a handshake.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use posthouse_proto::v1::{
    Certificate, FailedHandshake, ImportCertificateRequest, ListCertificatesReply, ListFailedHandshakesReply,
    ListFailedHandshakesRequest, ListRequest, NameRequest, PutClientAuthoritiesRequest,
};
use serde_json::json;

use super::tls_check::{self, Target};
use super::{Noun, suggest};
use crate::client::Client;
use crate::console::Console;
use crate::error::{Exit, Failure, code};
use crate::mutation::{Deed, WriteFlags, finish};
use crate::output::{self, Rows, or_dash, short_time};
use crate::parse;

/// `tls …`.
#[derive(Debug, Subcommand)]
pub(crate) enum TlsCommand {
    /// Certificates, their names and when they end
    List,
    /// Everything about one certificate
    Show {
        /// Its name
        name: String,
    },
    /// Store a certificate with its key, or renew one; open sessions keep the old one
    Import(ImportArgs),
    /// Delete a certificate that no connector names
    #[command(visible_alias = "remove")]
    Delete(NamedArgs),
    /// The cluster's authority, PEM: what devices verify the STARTTLS certificate with
    Ca,
    /// The authorities whose client certificates name devices
    #[command(subcommand)]
    ClientCa(ClientCaCommand),
    /// What a device will see at an address, or at every node; or which devices are too old to shake hands
    Check(CheckArgs),
}

/// `tls client-ca …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCaCommand {
    /// The bundle, PEM
    Show,
    /// Replace the bundle
    Set(ClientCaArgs),
    /// Trust no client certificate but those pinned by fingerprint
    Clear {
        #[command(flatten)]
        write: WriteFlags,
    },
}

/// Flags of `tls import`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl tls import smtp-2026 --cert fullchain.pem --key privkey.pem
  posthousectl connector set submission --tls-certificate-name smtp-2026")]
pub(crate) struct ImportArgs {
    /// Its name in the cluster
    name: String,
    /// The chain, PEM: the server's own certificate first
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// The private key, unencrypted PEM; the cluster keeps it encrypted
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of the verbs that need a name only.
#[derive(Debug, Args)]
pub(crate) struct NamedArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `tls client-ca set`.
#[derive(Debug, Args)]
pub(crate) struct ClientCaArgs {
    /// The authorities, PEM
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `tls check`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl tls check smtp.corp.example:587
  posthousectl tls check 10.20.0.25:465 --name smtp.corp.example
  posthousectl tls check --weak-clients --since 7d")]
#[command(after_help = "Exits 1 when a device would stumble, or when there are weak clients.")]
pub(crate) struct CheckArgs {
    /// HOST:PORT; without it, the sockets of every node
    #[arg(conflicts_with = "weak_clients")]
    address: Option<String>,
    /// The name that devices are configured with, if the address is not it
    #[arg(long, value_name = "HOST", requires = "address")]
    name: Option<String>,
    /// TLS from the first byte [default: on port 465]
    #[arg(long, requires = "address")]
    implicit: bool,
    /// List the devices that offered only versions older than TLS 1.2
    #[arg(long, conflicts_with = "failed")]
    weak_clients: bool,
    /// List every device whose handshake failed
    #[arg(long, conflicts_with = "address")]
    failed: bool,
    /// How far back
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = parse::duration)]
    since: Duration,
}

const CERTIFICATE: Noun = Noun { name: "certificate", missing: "PH-TLS-001", list: "tls list" };
/// More than any chain has; the cluster refuses more, too.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Runs `tls …`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(command: TlsCommand, console: &Console) -> Result<Exit, Failure> {
    match command {
        TlsCommand::List => list(console, &certificates(&mut console.client().await?).await?)?,
        TlsCommand::Show { name } => {
            let all = certificates(&mut console.client().await?).await?.certificates;
            let found: Certificate = CERTIFICATE.find(all, &name, |certificate| &certificate.name)?;
            console.out.show("tls-show", &found, "name")?;
        }
        TlsCommand::Import(args) => return import(args, console).await,
        TlsCommand::Delete(args) => return delete(args, console).await,
        TlsCommand::Ca => {
            let reply = certificates(&mut console.client().await?).await?;
            if console.out.format.is_json() {
                console.out.json("tls-ca", &json!({"ca_pem": reply.cluster_ca_pem}))?;
            } else {
                output::text(&format!("{}\n", reply.cluster_ca_pem.trim_end()))?;
            }
        }
        TlsCommand::ClientCa(ClientCaCommand::Show) => {
            let reply = certificates(&mut console.client().await?).await?;
            if console.out.format.is_json() {
                console.out.json("tls-client-ca", &json!({"ca_pem": reply.client_ca_pem}))?;
            } else if reply.client_ca_pem.is_empty() {
                output::text(
                    "no authority: client certificates count only where a credential pins their fingerprint\n",
                )?;
            } else {
                output::text(&format!("{}\n", reply.client_ca_pem.trim_end()))?;
            }
        }
        TlsCommand::ClientCa(ClientCaCommand::Set(args)) => {
            let pem = read(&args.cert)?;
            return put_client_ca(console, pem, &args.write, "replaced").await;
        }
        TlsCommand::ClientCa(ClientCaCommand::Clear { write }) => {
            return put_client_ca(console, String::new(), &write, "cleared").await;
        }
        TlsCommand::Check(args) if args.weak_clients || args.failed => return failed(args, console).await,
        TlsCommand::Check(args) => return check(args, console).await,
    }
    Ok(Exit::Done)
}

async fn certificates(client: &mut Client) -> Result<ListCertificatesReply, Failure> {
    client.read(async |mut admin| admin.list_certificates(ListRequest::default()).await).await
}

async fn names(client: &mut Client) -> Result<Vec<String>, Failure> {
    Ok(certificates(client).await?.certificates.into_iter().map(|certificate| certificate.name).collect())
}

fn read(path: &Path) -> Result<String, Failure> {
    let unreadable = |cause: String| {
        let what = format!("{} cannot be read", path.display());
        Failure::new(Exit::Invalid, code::FILE, what, cause, "name a PEM file")
    };
    let length = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if length > FILE_BYTES_MAX {
        return Err(unreadable(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))
}

async fn import(args: ImportArgs, console: &Console) -> Result<Exit, Failure> {
    let ImportArgs { name, cert, key, write } = args;
    let (chain_pem, key_pem) = (read(&cert)?, read(&key)?);
    let mut client = console.client().await?;
    let request =
        ImportCertificateRequest { name: name.clone(), chain_pem, key_pem, options: Some(write.options(false)) };
    let reply = client.write(async |mut admin| admin.import_certificate(request.clone()).await).await?;
    finish(console, &mut client, &write, reply, Deed::new("tls-import", CERTIFICATE.name, &name, "imported")).await
}

async fn delete(args: NamedArgs, console: &Console) -> Result<Exit, Failure> {
    let NamedArgs { name, write } = args;
    let mut client = console.client().await?;
    let request = NameRequest { name: name.clone(), options: Some(write.options(false)) };
    match client.write(async |mut admin| admin.delete_certificate(request.clone()).await).await {
        Ok(reply) => {
            let deed = Deed::new("tls-delete", CERTIFICATE.name, &name, "deleted");
            finish(console, &mut client, &write, reply, deed).await
        }
        Err(failure) => Err(suggest(CERTIFICATE, failure, &name, names(&mut client)).await),
    }
}

async fn put_client_ca(
    console: &Console,
    pem: String,
    write: &WriteFlags,
    done: &'static str,
) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    let request = PutClientAuthoritiesRequest { pem, options: Some(write.options(false)) };
    let reply = client.write(async |mut admin| admin.put_client_authorities(request.clone()).await).await?;
    let deed = Deed::new("tls-client-ca", "authorities of", "client certificates", done);
    finish(console, &mut client, write, reply, deed).await
}

async fn check(args: CheckArgs, console: &Console) -> Result<Exit, Failure> {
    let certificates = match console.client().await {
        Ok(mut client) => certificates(&mut client).await,
        Err(failure) => Err(failure),
    };
    // An address can be looked at without a cluster; who vouches for it is then only the machine.
    let (ca, targets) = match (&args.address, certificates) {
        (Some(address), certificates) => {
            let ca = certificates.map(|reply| reply.cluster_ca_pem).unwrap_or_default();
            (ca, vec![target(address, &args)?])
        }
        (None, certificates) => {
            let reply = certificates?;
            let endpoints = reply.endpoints.iter();
            let targets = endpoints.map(|endpoint| Target {
                address: endpoint.address.clone(),
                implicit: endpoint.implicit_tls,
                name: String::new(),
            });
            (reply.cluster_ca_pem.clone(), targets.collect())
        }
    };
    let mut all = Vec::with_capacity(targets.len());
    for target in &targets {
        all.push(tls_check::look(target, &ca, console.global.timeout).await);
    }
    if console.out.format.is_json() {
        console.out.json("tls-check", &json!({"endpoints": all}))?;
    } else {
        output::text(&all.iter().map(tls_check::Seen::render).collect::<Vec<_>>().join("\n"))?;
    }
    Ok(if all.iter().all(|seen| seen.problems.is_empty()) { Exit::Done } else { Exit::No })
}

fn target(address: &str, args: &CheckArgs) -> Result<Target, Failure> {
    let Some((host, port)) = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)))
    else {
        return Err(Failure::usage(
            format!("\"{address}\" is not HOST:PORT"),
            "a device needs both",
            "posthousectl tls check smtp.corp.example:587",
        ));
    };
    let bare = host.trim_matches(['[', ']']);
    // A certificate for an address is rare: without a name to hold it against, its names are only shown.
    let name = match (&args.name, bare.parse::<std::net::IpAddr>()) {
        (Some(name), _) => name.clone(),
        (None, Ok(_)) => String::new(),
        (None, Err(_)) => bare.to_owned(),
    };
    Ok(Target { address: address.to_owned(), implicit: args.implicit || port == 465, name })
}

async fn failed(args: CheckArgs, console: &Console) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    let request = ListFailedHandshakesRequest {
        since_secs: args.since.as_secs().max(1),
        weak_only: args.weak_clients,
        this_node_only: false,
    };
    let reply: ListFailedHandshakesReply =
        client.read(async |mut admin| admin.list_failed_handshakes(request).await).await?;
    console.out.list("tls-failed-handshakes", &reply, "handshakes", "source", |wide| {
        let mut headings = vec!["DEVICE", "PORT", "OFFERED", ">TIMES", "LAST", "NODE"];
        if wide {
            headings.extend(["CONNECTOR", "NAME", "FIRST", "ERROR"]);
        }
        let mut rows = Rows::new(&headings);
        reply.handshakes.iter().for_each(|handshake| rows.push(row(handshake, wide)));
        rows
    })?;
    for node in &reply.unreachable {
        output::note(&format!("warning  {node} does not answer: what it saw is missing"));
    }
    let found = reply.handshakes.iter().any(|handshake| handshake.weak || args.failed);
    match (reply.unreachable.is_empty(), found) {
        (false, _) => Ok(Exit::Unreachable),
        (true, true) => Ok(Exit::No),
        (true, false) => Ok(Exit::Done),
    }
}

fn row(handshake: &FailedHandshake, wide: bool) -> Vec<String> {
    let mut row = vec![
        handshake.source.clone(),
        handshake.port.to_string(),
        or_dash(&handshake.offered.join(", ")),
        handshake.count.to_string(),
        short_time(&handshake.last_at),
        handshake.node.clone(),
    ];
    if wide {
        row.extend([
            or_dash(&handshake.connector),
            or_dash(&handshake.server_name),
            short_time(&handshake.first_at),
            handshake.error.clone(),
        ]);
    }
    row
}

fn list(console: &Console, reply: &ListCertificatesReply) -> Result<(), Failure> {
    console.out.list("tls-list", reply, "certificates", "name", |wide| {
        let mut headings = vec!["NAME", "NAMES", "EXPIRES", "CONNECTORS"];
        if wide {
            headings.extend(["SUBJECT", "ISSUER", ">REVISION"]);
        }
        let mut rows = Rows::new(&headings);
        for certificate in &reply.certificates {
            let mut row = vec![
                certificate.name.clone(),
                or_dash(&certificate.names.join(", ")),
                short_time(&certificate.not_after),
                or_dash(&certificate.connectors.join(", ")),
            ];
            if wide {
                row.extend([certificate.subject.clone(), certificate.issuer.clone(), certificate.revision.to_string()]);
            }
            rows.push(row);
        }
        rows
    })?;
    Ok(())
}
