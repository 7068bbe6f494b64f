//! The cluster's own certificate authority: a P-256 key made by `cluster init`, kept in the state sealed with the
//! data key. Every certificate says the holder's role (OU), name (CN) and cluster (O); what a request asks for
//! beyond its public key is ignored.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{IdentityRole, MEMBER_DNS_NAME, member_dns_name};

/// The name of the devices' server certificate that `cluster init` makes.
pub const SUBMISSION_CERTIFICATE_NAME: &str = "default";

/// Identities are renewed by joining again; ten years outlive the machines.
const IDENTITY_DAYS: i64 = 3650;
/// CA/Browser-style limits do not bind a private authority, but some clients refuse more than 825 days.
const SERVER_DAYS: i64 = 820;
/// Members whose clocks are behind must accept a fresh certificate.
const BACKDATE: Duration = Duration::hours(1);

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The library refused.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// Not a certificate, key or request.
    #[error("{0} cannot be read")]
    Unreadable(&'static str),
}

/// A certificate authority that can sign.
pub struct Authority {
    ca_pem: String,
    cluster_id: String,
    key: KeyPair,
}

/// A new key with its certificate.
pub struct IssuedKey {
    /// Leaf first, then the authority, PEM.
    pub chain_pem: String,
    /// PKCS#8 PEM.
    pub key_pem: String,
    /// PKCS#8 DER.
    pub key_der: Vec<u8>,
}

impl Authority {
    /// Makes a new authority for a cluster. Answers it and its private key (PKCS#8 DER).
    ///
    /// # Errors
    /// When the library refuses.
    pub fn create(cluster: &str, cluster_id: &str, now: OffsetDateTime) -> Result<(Self, Vec<u8>), PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&format!("Posthouse CA of {cluster}"), "ca", cluster_id);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = now - BACKDATE;
        params.not_after = now + Duration::days(2 * IDENTITY_DAYS);
        let ca_pem = params.self_signed(&key)?.pem();
        let der = key.serialize_der();
        Ok((Self { ca_pem, cluster_id: cluster_id.to_owned(), key }, der))
    }

    /// Puts an authority back together from its certificate and private key (PKCS#8 DER).
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn load(ca_pem: &str, key_der: &[u8], cluster_id: &str) -> Result<Self, PkiError> {
        let der = PrivateKeyDer::try_from(key_der).map_err(|_| PkiError::Unreadable("the CA's private key"))?;
        let key = KeyPair::try_from(&der)?;
        Ok(Self { ca_pem: ca_pem.to_owned(), cluster_id: cluster_id.to_owned(), key })
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    fn issuer(&self) -> Result<Issuer<'_, &KeyPair>, PkiError> {
        Ok(Issuer::from_ca_cert_pem(&self.ca_pem, &self.key)?)
    }

    /// Signs a certificate request of a node, front or administrator. Only its public key is taken from it.
    ///
    /// # Errors
    /// When the request cannot be read or its signature is wrong.
    pub fn sign_request(
        &self,
        csr_pem: &str,
        role: IdentityRole,
        name: &str,
        now: OffsetDateTime,
    ) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|_| PkiError::Unreadable("the certificate request"))?;
        let leaf = self.identity_params(role, name, now)?.signed_by(&request.public_key, &self.issuer()?)?;
        Ok(format!("{}{}", leaf.pem(), self.ca_pem))
    }

    /// Makes a key and its certificate for a node, front or administrator.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn issue_identity(&self, role: IdentityRole, name: &str, now: OffsetDateTime) -> Result<IssuedKey, PkiError> {
        let params = self.identity_params(role, name, now)?;
        self.issue(&params)
    }

    /// Makes a server certificate for the devices' side.
    ///
    /// # Errors
    /// When a name is not a DNS name or an address.
    pub fn issue_server(&self, names: &[String], now: OffsetDateTime) -> Result<IssuedKey, PkiError> {
        let mut params = CertificateParams::new(names)?;
        let common_name = names.first().map_or("posthouse", String::as_str);
        params.distinguished_name = subject(common_name, "smtp", &self.cluster_id);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = now - BACKDATE;
        params.not_after = now + Duration::days(SERVER_DAYS);
        params.use_authority_key_identifier_extension = true;
        self.issue(&params)
    }

    fn issue(&self, params: &CertificateParams) -> Result<IssuedKey, PkiError> {
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer()?)?;
        Ok(IssuedKey {
            chain_pem: format!("{}{}", leaf.pem(), self.ca_pem),
            key_pem: key.serialize_pem(),
            key_der: key.serialize_der(),
        })
    }

    fn identity_params(
        &self,
        role: IdentityRole,
        name: &str,
        now: OffsetDateTime,
    ) -> Result<CertificateParams, PkiError> {
        let names = match role {
            IdentityRole::Node => vec![MEMBER_DNS_NAME.to_owned(), member_dns_name(name)],
            IdentityRole::Front | IdentityRole::Admin => vec![],
        };
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = subject(name, role.as_str(), &self.cluster_id);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if role == IdentityRole::Node {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.not_before = now - BACKDATE;
        params.not_after = now + Duration::days(IDENTITY_DAYS);
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

fn subject(common_name: &str, unit: &str, cluster_id: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, cluster_id);
    name.push(DnType::OrganizationalUnitName, unit);
    name.push(DnType::CommonName, common_name);
    name
}

/// Makes a key and a certificate request. The request's names do not matter: the cluster decides them.
///
/// # Errors
/// When the library refuses.
pub(super) fn request() -> Result<(KeyPair, String), PkiError> {
    let key = KeyPair::generate()?;
    let pem = CertificateParams::default().serialize_request(&key)?.pem()?;
    Ok((key, pem))
}

/// Subject, issuer, names and end of validity (unix milliseconds) of the first certificate in a PEM chain.
///
/// # Errors
/// When there is no readable certificate.
pub fn certificate_details(chain_pem: &str) -> Result<(String, String, Vec<String>, i64), PkiError> {
    let der =
        CertificateDer::from_pem_slice(chain_pem.as_bytes()).map_err(|_| PkiError::Unreadable("the certificate"))?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| PkiError::Unreadable("the certificate"))?;
    let mut names = Vec::new();
    if let Ok(Some(extension)) = parsed.subject_alternative_name() {
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push((*name).to_owned()),
                GeneralName::IPAddress([a, b, c, d]) => names.push(format!("{a}.{b}.{c}.{d}")),
                GeneralName::IPAddress(bytes) => {
                    if let Ok(octets) = <[u8; 16]>::try_from(*bytes) {
                        names.push(std::net::Ipv6Addr::from(octets).to_string());
                    }
                }
                _ => {}
            }
        }
    }
    let not_after_ms = parsed.validity().not_after.timestamp() * 1000;
    Ok((parsed.subject().to_string(), parsed.issuer().to_string(), names, not_after_ms))
}
