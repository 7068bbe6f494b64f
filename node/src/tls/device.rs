//! The devices' side: server configurations made from the state, by what a connector asks for, and made anew when a
//! certificate changes. Sessions keep the one they began with, so that a renewal drops nobody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::client_certificate::AnyClient;
use super::{TlsError, provider};
use crate::pki::{DataKey, PkiError, SUBMISSION_CERTIFICATE_NAME};
use crate::state::{Certificate, CertificateName, Objects, SealedSecret, StateView};

/// Configurations kept; more connectors than this make theirs anew.
const CONFIGS_MAX: usize = 1024;

/// What a connector asks of TLS.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Its `tls_certificate_name`: a name, or Exchange's `<I>issuer<S>subject`. Absent: whichever fits.
    pub certificate: Option<&'a str>,
    /// The name it greets with, for devices that do not say which name they want.
    pub fqdn: Option<&'a str>,
    /// Whether devices are asked for a certificate of their own.
    pub client_certificates: bool,
}

/// Server configurations by what was asked for.
#[derive(Debug)]
pub struct DeviceTls {
    data_key: DataKey,
    made: Mutex<Made>,
}

type Asked = (Option<String>, Option<String>, bool);

/// What was made from one set of certificates and authorities.
#[derive(Debug, Default)]
struct Made {
    certificates: Objects<String, Arc<Certificate>>,
    authorities: String,
    configs: BTreeMap<Asked, Arc<ServerConfig>>,
    keys: BTreeMap<String, (u64, Arc<CertifiedKey>)>,
}

impl DeviceTls {
    /// Opens private keys with `data_key`.
    #[must_use]
    pub fn new(data_key: DataKey) -> Self {
        Self { data_key, made: Mutex::default() }
    }

    /// The configuration that a connector asks for. Several certificates may fit: the device's SNI chooses among them
    /// (RFC 6066 §3), then the connector's own name, then the one called "default", then the one that ends last.
    /// `None`: the cluster has none that fits.
    ///
    /// # Errors
    /// When one fits and none that does can be used.
    pub fn server_config(&self, view: &StateView, wanted: Wanted<'_>) -> Result<Option<Arc<ServerConfig>>, TlsError> {
        let certificates = &view.state.certificates;
        let authorities = view.state.settings.client_ca_pem.as_str();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&made.certificates, certificates) || made.authorities != authorities {
            made.configs.clear();
            made.keys.retain(|name, _| certificates.contains_key(name));
            made.certificates = Arc::clone(certificates);
            authorities.clone_into(&mut made.authorities);
        }
        let asked = (wanted.certificate.map(str::to_owned), wanted.fqdn.map(str::to_owned), wanted.client_certificates);
        if let Some(config) = made.configs.get(&asked) {
            return Ok(Some(Arc::clone(config)));
        }
        let name = wanted.certificate.map(CertificateName::parse);
        let mut fitting: Vec<_> =
            certificates.values().filter(|found| name.as_ref().is_none_or(|name| name.selects(&found.value))).collect();
        // A renewal ends later than what it renews.
        fitting.sort_by_key(|found| {
            (found.value.name != SUBMISSION_CERTIFICATE_NAME, std::cmp::Reverse(found.value.not_after_ms))
        });
        if fitting.is_empty() {
            return Ok(None);
        }
        let mut usable = Vec::with_capacity(fitting.len());
        let mut failed = None;
        for found in fitting {
            match self.key(&mut made, found.revision, &found.value) {
                Ok(key) => usable.push((found.value.names.clone(), key)),
                Err(error) => {
                    tracing::error!(%error, certificate = %found.value.name, "a certificate cannot be used");
                    failed = Some(error);
                }
            }
        }
        let Some(by_name) = ByName::new(usable, wanted.fqdn) else { return failed.map_or(Ok(None), Err) };
        let config = Arc::new(make(by_name, wanted.client_certificates.then_some(authorities))?);
        if made.configs.len() >= CONFIGS_MAX {
            made.configs.clear();
        }
        made.configs.insert(asked, Arc::clone(&config));
        Ok(Some(config))
    }

    fn key(&self, made: &mut Made, revision: u64, certificate: &Certificate) -> Result<Arc<CertifiedKey>, TlsError> {
        if let Some((of, key)) = made.keys.get(&certificate.name)
            && *of == revision
        {
            return Ok(Arc::clone(key));
        }
        let key = Arc::new(certified_key(
            &certificate.chain_pem,
            open(&self.data_key, &certificate.name, &certificate.sealed_key)?,
        )?);
        made.keys.insert(certificate.name.clone(), (revision, Arc::clone(&key)));
        Ok(key)
    }
}

fn open(data_key: &DataKey, name: &str, sealed: &SealedSecret) -> Result<Vec<u8>, TlsError> {
    data_key.open(&super::certificate_context(name), sealed).map_err(|_| TlsError::Sealed(name.to_owned()))
}

/// A chain with its key, which must belong together.
///
/// # Errors
/// When one cannot be read, or the key is another certificate's.
pub fn certified_key(chain_pem: &str, key_der: Vec<u8>) -> Result<CertifiedKey, TlsError> {
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| PkiError::Unreadable("the server certificate"))?;
    let key = PrivateKeyDer::try_from(key_der).map_err(|_| PkiError::Unreadable("the server's private key"))?;
    Ok(CertifiedKey::from_der(chain, key, &provider())?)
}

fn make(by_name: ByName, client_ca_pem: Option<&str>) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match client_ca_pem {
        Some(pem) => builder.with_client_cert_verifier(Arc::new(AnyClient::new(pem, provider()))),
        None => builder.with_no_client_auth(),
    };
    Ok(builder.with_cert_resolver(Arc::new(by_name)))
}

/// Certificates by the names they are for.
#[derive(Debug)]
struct ByName {
    keys: Vec<(Vec<String>, Arc<CertifiedKey>)>,
    otherwise: Arc<CertifiedKey>,
}

impl ByName {
    /// `keys` in the order of preference.
    fn new(keys: Vec<(Vec<String>, Arc<CertifiedKey>)>, fqdn: Option<&str>) -> Option<Self> {
        let own = fqdn.and_then(|fqdn| find(&keys, fqdn));
        let otherwise = own.or_else(|| keys.first().map(|(_, key)| Arc::clone(key)))?;
        Some(Self { keys, otherwise })
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = client_hello.server_name().and_then(|name| find(&self.keys, name));
        Some(asked.unwrap_or_else(|| Arc::clone(&self.otherwise)))
    }
}

/// The exact name first, then a wildcard for its first label (RFC 6125 §6.4.3).
fn find(keys: &[(Vec<String>, Arc<CertifiedKey>)], name: &str) -> Option<Arc<CertifiedKey>> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let wildcard = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
    let has = |wanted: &str| keys.iter().find(|(names, _)| names.iter().any(|own| own.eq_ignore_ascii_case(wanted)));
    has(&name).or_else(|| wildcard.as_deref().and_then(has)).map(|(_, key)| Arc::clone(key))
}

/// The provider is named once; this keeps its type out of signatures elsewhere.
pub(super) type Provider = Arc<CryptoProvider>;
