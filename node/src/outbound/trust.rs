//! TLS towards next hops as a route wants it: verified against the right authorities, for the right names.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::connector::SendConnector;

/// Configurations kept; beyond this they are made anew each time.
const KEPT_MAX: usize = 64;

/// What makes one configuration differ from another: the names and the authorities.
type Wanted = (Vec<String>, String);

/// The TLS configurations of all routes.
#[derive(Debug)]
pub struct Trust {
    /// Verifies nothing.
    anybody: Arc<ClientConfig>,
    /// What a route trusts that names no authorities.
    roots: Arc<RootCertStore>,
    made: Mutex<HashMap<Wanted, Arc<ClientConfig>>>,
}

impl Trust {
    /// `anybody` verifies nothing; `roots` are the authorities of routes that name none.
    #[must_use]
    pub fn new(anybody: Arc<ClientConfig>, roots: RootCertStore) -> Self {
        Self { anybody, roots: Arc::new(roots), made: Mutex::new(HashMap::new()) }
    }

    /// Where the certificate proves nothing.
    pub(super) fn anybody(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.anybody)
    }

    /// Where the certificate must be one that `route` trusts.
    ///
    /// # Errors
    /// When the route's authorities cannot be read: the letter waits for an administrator.
    pub(super) fn verified(&self, route: &SendConnector) -> Result<Arc<ClientConfig>, String> {
        let key = (route.tls_names.clone(), route.tls_ca_pem.clone());
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made.get(&key) {
            return Ok(Arc::clone(known));
        }
        let config = Arc::new(self.make(route)?);
        if made.len() >= KEPT_MAX {
            made.clear();
        }
        made.insert(key, Arc::clone(&config));
        Ok(config)
    }

    fn make(&self, route: &SendConnector) -> Result<ClientConfig, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = if route.tls_ca_pem.is_empty() { Arc::clone(&self.roots) } else { Arc::new(bundle(route)?) };
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| format!("the route's authorities cannot be used: {error}"))?;
        let names = route
            .tls_names
            .iter()
            .map(|name| ServerName::try_from(name.clone()).map_err(|error| format!("{name}: {error}")))
            .collect::<Result<Vec<_>, _>>()?;
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyOf { verifier, names, provider }))
            .with_no_client_auth();
        Ok(config)
    }
}

fn bundle(route: &SendConnector) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for found in CertificateDer::pem_slice_iter(route.tls_ca_pem.as_bytes()) {
        let found = found.map_err(|error| format!("tls_ca of route {} cannot be read: {error}", route.name))?;
        roots.add(found).map_err(|error| format!("tls_ca of route {} cannot be used: {error}", route.name))?;
    }
    if roots.is_empty() {
        return Err(format!("tls_ca of route {} holds no certificate", route.name));
    }
    Ok(roots)
}

/// The ordinary verifier, with other names than the one that was dialled.
#[derive(Debug)]
struct AnyOf {
    verifier: Arc<WebPkiServerVerifier>,
    /// Empty: the one that was dialled.
    names: Vec<ServerName<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyOf {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |name| self.verifier.verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
        let mut last = None;
        for name in &self.names {
            match verify(name) {
                Ok(verified) => return Ok(verified),
                Err(error) => last = Some(error),
            }
        }
        last.map_or_else(|| verify(server_name), Err)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
