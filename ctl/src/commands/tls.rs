//! `tls`: the certificates that devices see, and the authority that signs for members.

use clap::Subcommand;
use posthouse_proto::v1::{ListCertificatesReply, ListRequest};
use serde_json::json;

use super::Noun;
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::output::{self, Rows, or_dash, short_time};

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
    /// The cluster's authority, PEM: what devices verify the STARTTLS certificate with
    Ca,
}

const CERTIFICATE: Noun = Noun { name: "certificate", missing: "PH-TLS-001", list: "tls list" };

/// Runs `tls …`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(command: TlsCommand, console: &Console) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    let reply = client.read(async |mut admin| admin.list_certificates(ListRequest {}).await).await?;
    match command {
        TlsCommand::List => list(console, &reply)?,
        TlsCommand::Show { name } => {
            let found = CERTIFICATE.find(reply.certificates, &name, |certificate| &certificate.name)?;
            console.out.show("tls-show", &found, "name")?;
        }
        TlsCommand::Ca if console.out.format.is_json() => {
            console.out.json("tls-ca", &json!({"ca_pem": reply.cluster_ca_pem}))?;
        }
        TlsCommand::Ca => output::text(&format!("{}\n", reply.cluster_ca_pem.trim_end()))?,
    }
    Ok(Exit::Done)
}

fn list(console: &Console, reply: &ListCertificatesReply) -> Result<(), Failure> {
    console.out.list("tls-list", reply, "certificates", "name", |wide| {
        let mut headings = vec!["NAME", "NAMES", "EXPIRES"];
        if wide {
            headings.extend(["SUBJECT", "ISSUER", ">REVISION"]);
        }
        let mut rows = Rows::new(&headings);
        for certificate in &reply.certificates {
            let mut row = vec![
                certificate.name.clone(),
                or_dash(&certificate.names.join(", ")),
                short_time(&certificate.not_after),
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
