//! Certificates as administrators handle them: imported with their key sealed before the cluster hears of it, listed,
//! deleted while nobody names them; the authorities of devices' own certificates; and the devices that could not shake
//! hands, over all nodes.

use std::sync::Arc;

use posthouse_proto::v1;
use tonic::{Request, Status};

use super::problem::{internal, invalid};
use super::queue::ask;
use super::service::{Actor, AdminService, Context};
use crate::clock::{now_ms, rfc3339};
use crate::config::is_name;
use crate::pki::check_certificate;
use crate::state::{Certificate, CertificateName, Change, StateView, Versioned};
use crate::tls::{certificate_context, certified_key, client_authorities};

/// More than any chain or bundle has.
const PEM_OCTETS_MAX: usize = 256 * 1024;
/// Failed handshakes are answered for so long unless somebody says otherwise.
const SINCE_SECS: u64 = 30 * 24 * 3600;
const DAY_MS: i64 = 24 * 3600 * 1000;

/// Checks and stores a certificate; one of that name is replaced, and no session ends for it.
pub(super) async fn import(
    context: &Arc<Context>,
    actor: &Actor,
    request: v1::ImportCertificateRequest,
) -> Result<v1::WriteReply, Status> {
    let v1::ImportCertificateRequest { name, chain_pem, key_pem, options } = request;
    let bad = |cause: &dyn std::fmt::Display| {
        let fix = "the file has the server's own certificate first, then whoever signed it; the key is unencrypted PEM";
        invalid("PH-TLS-003", format!("certificate \"{name}\" cannot be used"), cause, fix)
    };
    if !is_name(&name) {
        return Err(bad(&"its name must be 1 to 63 letters, digits or hyphens"));
    }
    if chain_pem.len() > PEM_OCTETS_MAX || key_pem.len() > PEM_OCTETS_MAX {
        return Err(bad(&"the file is too large"));
    }
    let checked = check_certificate(&chain_pem, &key_pem, now_ms()).map_err(|error| bad(&error))?;
    certified_key(&chain_pem, checked.key_der.clone()).map_err(|error| bad(&error))?;
    let sealed_key = context
        .data_key
        .seal(&certificate_context(&name), &checked.key_der)
        .map_err(|error| internal("the private key cannot be sealed", error))?;
    let certificate = Certificate {
        name,
        chain_pem,
        sealed_key,
        names: checked.names,
        subject: checked.subject,
        issuer: checked.issuer,
        not_after_ms: checked.not_after_ms,
    };
    AdminService::write(context, actor, options, Change::PutCertificate { certificate }, checked.warnings).await
}

/// Replaces the authorities of devices' certificates; an empty text trusts none.
pub(super) async fn put_client_authorities(
    context: &Arc<Context>,
    actor: &Actor,
    request: v1::PutClientAuthoritiesRequest,
) -> Result<v1::WriteReply, Status> {
    let v1::PutClientAuthoritiesRequest { pem, options } = request;
    if !pem.is_empty() {
        let fix = "a PEM bundle of authorities' certificates is meant";
        if pem.len() > PEM_OCTETS_MAX {
            return Err(invalid("PH-TLS-005", "the authorities cannot be used", "the file is too large", fix));
        }
        client_authorities(&pem)
            .map_err(|error| invalid("PH-TLS-005", "the authorities cannot be used", error, fix))?;
    }
    AdminService::write(context, actor, options, Change::PutClientAuthorities { pem }, vec![]).await
}

/// Every certificate, who names it, and where devices see it.
pub(super) fn list(view: &StateView) -> v1::ListCertificatesReply {
    let certificates = view.state.certificates.values().map(|found| certificate_out(view, found)).collect();
    let endpoints = view
        .state
        .members
        .values()
        .flat_map(|member| member.value.services.iter().map(move |service| (&member.value, service)))
        .map(|(member, service)| v1::TlsEndpoint {
            node: member.name.clone(),
            port: u32::from(service.port),
            address: service.address.clone(),
            implicit_tls: service.implicit_tls,
        })
        .collect();
    v1::ListCertificatesReply {
        certificates,
        cluster_ca_pem: view.state.facts.as_ref().map(|facts| facts.ca_pem.clone()).unwrap_or_default(),
        client_ca_pem: view.state.settings.client_ca_pem.clone(),
        endpoints,
    }
}

fn certificate_out(view: &StateView, found: &Versioned<Arc<Certificate>>) -> v1::Certificate {
    let certificate = &found.value;
    let named_by = |wanted: &Option<String>| {
        wanted.as_deref().is_some_and(|wanted| CertificateName::parse(wanted).selects(certificate))
    };
    let connectors = view.state.connectors.values().map(|connector| &connector.value);
    v1::Certificate {
        name: certificate.name.clone(),
        subject: certificate.subject.clone(),
        issuer: certificate.issuer.clone(),
        names: certificate.names.clone(),
        not_after: rfc3339(certificate.not_after_ms),
        revision: found.revision,
        connectors: connectors
            .filter(|connector| named_by(&connector.tls_certificate_name))
            .map(|connector| connector.name.clone())
            .collect(),
        exchange_name: format!("<I>{}<S>{}", certificate.issuer, certificate.subject),
    }
}

/// What an administrator should hear of certificates: 30, 14 and 3 days before one ends, each more urgent.
pub(super) fn warnings(view: &StateView, now_ms: i64) -> Vec<String> {
    let fix = |name: &str| format!("posthousectl tls import {name} --cert FILE --key FILE");
    let certificates = view.state.certificates.values().map(|found| &found.value);
    certificates
        .filter_map(|certificate| {
            let left = certificate.not_after_ms.saturating_sub(now_ms);
            let name = &certificate.name;
            let days = left / DAY_MS;
            match (left, days) {
                (..=0, _) => {
                    Some(format!("certificate \"{name}\" has expired: devices that verify it refuse   {}", fix(name)))
                }
                (_, 0..3) => Some(format!(
                    "URGENT: certificate \"{name}\" expires in {} hours   {}",
                    left / 3_600_000,
                    fix(name)
                )),
                (_, 3..14) => Some(format!("certificate \"{name}\" expires in {days} days, soon   {}", fix(name))),
                (_, 14..30) => Some(format!("certificate \"{name}\" expires in {days} days   {}", fix(name))),
                _ => None,
            }
        })
        .collect()
}

/// Failed handshakes of this node, and of the others unless only this one is asked.
pub(super) async fn failed_handshakes(
    context: &Arc<Context>,
    request: v1::ListFailedHandshakesRequest,
) -> v1::ListFailedHandshakesReply {
    let secs = if request.since_secs == 0 { SINCE_SECS } else { request.since_secs };
    let since_ms = now_ms().saturating_sub(i64::try_from(secs).unwrap_or(i64::MAX).saturating_mul(1000));
    let own = context
        .failed_handshakes
        .since(since_ms)
        .into_iter()
        .filter(|entry| !request.weak_only || entry.hello.is_weak());
    let mut handshakes: Vec<v1::FailedHandshake> = own
        .map(|entry| v1::FailedHandshake {
            node: context.node_name.clone(),
            source: entry.source.to_string(),
            port: u32::from(entry.port),
            connector: entry.connector,
            offered: entry.hello.versions.iter().map(ToString::to_string).collect(),
            weak: entry.hello.is_weak(),
            server_name: entry.hello.server_name.unwrap_or_default(),
            error: entry.error,
            count: entry.count,
            first_at: rfc3339(entry.first_at_ms),
            last_at: rfc3339(entry.last_at_ms),
        })
        .collect();
    let mut unreachable = Vec::new();
    if !request.this_node_only {
        let asked = v1::ListFailedHandshakesRequest { this_node_only: true, ..request };
        let (came, missing) =
            ask(context, "", |mut client| async move { client.list_failed_handshakes(Request::new(asked)).await })
                .await;
        handshakes.extend(came.into_iter().flat_map(|reply: v1::ListFailedHandshakesReply| reply.handshakes));
        unreachable = missing;
    }
    handshakes.sort_by(|a, b| b.last_at.cmp(&a.last_at));
    v1::ListFailedHandshakesReply { handshakes, unreachable }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{ClusterState, SealedSecret};

    fn view(not_after_ms: i64) -> StateView {
        let certificate = Certificate {
            name: "smtp".to_owned(),
            chain_pem: String::new(),
            sealed_key: SealedSecret(String::new()),
            names: Vec::new(),
            subject: "CN=smtp".to_owned(),
            issuer: "CN=ca".to_owned(),
            not_after_ms,
        };
        let found = Versioned { revision: 1, value: Arc::new(certificate) };
        let certificates = Arc::new([("smtp".to_owned(), found)].into());
        StateView::build(ClusterState { certificates, ..ClusterState::default() }, 1, None)
    }

    #[test]
    fn a_certificate_is_warned_of_at_thirty_fourteen_and_three_days() {
        let said = |days: i64| warnings(&view(days * DAY_MS + 3_600_000), 0).into_iter().next().unwrap_or_default();
        assert_eq!(said(31), "");
        assert!(said(29).starts_with("certificate \"smtp\" expires in 29 days   posthousectl tls import smtp"));
        assert!(said(13).starts_with("certificate \"smtp\" expires in 13 days, soon"));
        assert!(said(2).starts_with("URGENT: certificate \"smtp\" expires in 49 hours"));
        assert!(said(-1).starts_with("certificate \"smtp\" has expired"));
    }
}
