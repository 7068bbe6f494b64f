//! Certificates that devices show. A handshake never fails on one: a printer with a self-signed certificate from its
//! factory must still be able to log in with its password. What a certificate is worth is judged afterwards.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::device::Provider;
use super::{TlsError, provider};
use crate::credential::{ClientCertificate, X500Name};

/// Asks for a certificate, demands none, and takes every one whose key its holder has.
#[derive(Debug)]
pub(super) struct AnyClient {
    /// The subjects of our authorities, so that a device with several certificates shows the right one.
    hints: Vec<DistinguishedName>,
    provider: Provider,
}

impl AnyClient {
    pub(super) fn new(ca_pem: &str, provider: Provider) -> Self {
        Self { hints: roots(ca_pem).map(|roots| roots.subjects()).unwrap_or_default(), provider }
    }
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The authorities of a PEM bundle.
///
/// # Errors
/// When one of them cannot be read, or there is none.
pub fn roots(ca_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let der = der.map_err(|_| TlsError::Verifier("an authority's certificate cannot be read".to_owned()))?;
        roots.add(der)?;
    }
    if roots.is_empty() {
        return Err(TlsError::Verifier("there is no certificate in it".to_owned()));
    }
    Ok(roots)
}

/// Reads and judges the chain that a device showed, at `now_ms`. `None`: its certificate cannot be read.
#[must_use]
pub fn judge(chain: &[CertificateDer<'_>], ca_pem: &str, now_ms: i64) -> Option<ClientCertificate> {
    let (leaf, intermediates) = chain.split_first()?;
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    let mut certificate = ClientCertificate {
        fingerprint: sha256(leaf),
        subject: Some(X500Name::parse(&parsed.subject().to_string())).filter(|name| !name.is_empty()),
        is_trusted: is_trusted(leaf, intermediates, ca_pem, now_ms),
        ..ClientCertificate::default()
    };
    if let Ok(Some(extension)) = parsed.subject_alternative_name() {
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) => certificate.dns_names.push(name.to_lowercase()),
                GeneralName::RFC822Name(name) => certificate.emails.push(name.to_lowercase()),
                _ => {}
            }
        }
    }
    Some(certificate)
}

fn is_trusted(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], ca_pem: &str, now_ms: i64) -> bool {
    let Ok(roots) = roots(ca_pem) else { return false };
    let Ok(verifier) = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build() else {
        return false;
    };
    let now = std::time::Duration::from_millis(u64::try_from(now_ms).unwrap_or(0));
    verifier.verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(now)).is_ok()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    out.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
    out
}
