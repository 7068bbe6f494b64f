//! rustls, configured once for each use: between members (mutual, verified against the cluster's authority), while
//! joining (the authority is recognised by its hash), and on the devices' side (certificates by name, from the
//! state). TLS 1.2 and 1.3 only. aws-lc-rs is the one provider.

mod client_certificate;
mod client_hello;
mod device;
mod expiry;
mod handshakes;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

pub use client_certificate::{judge as judge_client_certificate, roots as client_authorities};
pub use client_hello::{HELLO_BYTES_MAX, Hello, OfferedVersion};
pub use device::{DeviceTls, Wanted, certified_key};
pub use expiry::{describe_metrics, publish_expiry};
pub use handshakes::{FailedHandshake, FailedHandshakes};

use crate::pki::{Identity, MEMBER_DNS_NAME, PkiError, member_dns_name, sha256_hex};

/// Why a TLS configuration cannot be made. Ours, lasting.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls refused.
    #[error("tls: {0}")]
    Rustls(#[from] rustls::Error),
    /// A certificate or key cannot be read.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The verifier could not be built.
    #[error("tls verifier: {0}")]
    Verifier(String),
    /// A sealed private key does not open.
    #[error("certificate \"{0}\": its private key cannot be opened")]
    Sealed(String),
}

/// Makes aws-lc-rs the provider of this process. Called first thing in `main`; a second call changes nothing.
pub fn install_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(ca: CertificateDer<'static>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    Ok(roots)
}

/// The server side of a member's RPC port: client certificates of our authority are verified, and their absence is
/// allowed, because whoever joins has none yet; each service decides who may call it.
///
/// # Errors
/// When the identity cannot be used.
pub fn member_server_config(identity: &Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let (chain, key, ca) = identity.tls_parts()?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Verifier(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// The client side between members: our certificate, and only our authority.
fn member_client_config(identity: &Identity) -> Result<Arc<ClientConfig>, TlsError> {
    let (chain, key, ca) = identity.tls_parts()?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca)?)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// How long a TCP and TLS connection to a member may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A dead connection must be found before the election timeout makes matters worse: a peer that was partitioned
/// away leaves HTTP/2 connections that never answer.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_millis(500);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_millis(1000);

/// Makes gRPC channels to members.
#[derive(Clone)]
pub struct Dialer {
    config: Arc<ClientConfig>,
    /// One channel per (address, name): a channel is a connection that mends itself.
    channels: Arc<Mutex<BTreeMap<(String, String), Channel>>>,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dialer")
    }
}

/// More members than this at once are not known; the map is emptied rather than grown without end.
const CHANNELS_MAX: usize = 256;

impl Dialer {
    /// A dialer that shows `identity`.
    ///
    /// # Errors
    /// When the identity cannot be used.
    pub fn new(identity: &Identity) -> Result<Self, TlsError> {
        Ok(Self { config: member_client_config(identity)?, channels: Arc::default() })
    }

    /// A channel to the member `node` at `address` (`host:port`); with an empty name, to any member. It connects when
    /// first used and again whenever needed; the certificate must carry that very member's name.
    #[must_use]
    pub fn channel(&self, address: &str, node: &str) -> Channel {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        let key = (address.to_owned(), node.to_owned());
        channels.entry(key).or_insert_with(|| self.own_channel(address, node)).clone()
    }

    /// The same, shared with nobody. For what comes in any amount and may be read slowly: streams of one connection
    /// share its window (RFC 9113 §5.2), and what members say to each other must never wait for a reader.
    #[must_use]
    pub fn own_channel(&self, address: &str, node: &str) -> Channel {
        let name = if node.is_empty() { MEMBER_DNS_NAME.to_owned() } else { member_dns_name(node) };
        channel(Arc::clone(&self.config), address.to_owned(), name)
    }
}

fn channel(config: Arc<ClientConfig>, address: String, name: String) -> Channel {
    // The URI only names the authority of requests; the connector below knows where to go.
    Endpoint::from_static("http://node.posthouse.internal")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(tower::service_fn(move |_| {
            let (config, address, name) = (Arc::clone(&config), address.clone(), name.clone());
            async move {
                let tcp = TcpStream::connect(&address).await?;
                tcp.set_nodelay(true)?;
                let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
                let tls = TlsConnector::from(config).connect(name, tcp).await?;
                Ok::<_, std::io::Error>(TokioIo::new(tls))
            }
        }))
}

/// A channel for joining: any member at `address` whose chain leads to the authority with this hash. Our own secret
/// is said only after that was verified.
///
/// # Errors
/// When the configuration cannot be made.
pub fn join_channel(address: &str, ca_sha256: &str) -> Result<Channel, TlsError> {
    let verifier = Arc::new(AuthorityByHash { ca_sha256: ca_sha256.to_ascii_lowercase(), provider: provider() });
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(channel(Arc::new(config), address.to_owned(), MEMBER_DNS_NAME.to_owned()))
}

/// Accepts a server whose chain holds the authority with a known hash and is valid under it.
#[derive(Debug)]
struct AuthorityByHash {
    ca_sha256: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AuthorityByHash {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::General("this is not the cluster that the join token names".to_owned());
        let authority = intermediates.iter().find(|der| sha256_hex(der) == self.ca_sha256).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
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

/// Opportunistic TLS to a next hop (RFC 3207 §4.1, RFC 7435): encrypt, and accept whatever certificate is shown.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// TLS towards next hops that need not prove who they are (`tls = opportunistic` and `required`).
///
/// # Errors
/// When rustls refuses.
pub fn opportunistic_client_config() -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider())))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// TLS towards a server whose certificate is only looked at, by [`must_be_valid`].
///
/// # Errors
/// When rustls refuses.
pub fn looking_client_config() -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::clone(&*opportunistic_client_config()?);
    // A resumed session shows no certificate.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The name that is asked for where the certificate's name does not matter.
#[must_use]
pub fn nobody() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED).into())
}

/// Whether every certificate of a chain is within its dates.
///
/// # Errors
/// Why not, in words.
pub fn must_be_valid(chain: &[CertificateDer<'_>], now_ms: i64) -> Result<(), String> {
    if chain.is_empty() {
        return Err("none was shown".to_owned());
    }
    for der in chain {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|error| error.to_string())?;
        let validity = certificate.validity();
        let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        if now_ms < from.saturating_mul(1000) {
            return Err(format!("not before {}", crate::clock::rfc3339(from.saturating_mul(1000))));
        }
        if now_ms > until.saturating_mul(1000) {
            return Err(format!("expired at {}", crate::clock::rfc3339(until.saturating_mul(1000))));
        }
    }
    Ok(())
}

/// Whom next hops that must prove who they are (`tls = verified`) may be certified by, where a route names nobody: the
/// machine's own trust store, and the cluster's authority.
///
/// # Errors
/// When the identity cannot be used.
pub fn next_hop_roots(identity: &Identity) -> Result<RootCertStore, TlsError> {
    let (_, _, ca) = identity.tls_parts()?;
    let mut roots = roots(ca)?;
    let native = rustls_native_certs::load_native_certs();
    for error in native.errors {
        tracing::warn!(%error, "a certificate of the machine's trust store cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    Ok(roots)
}

/// What a certificate's private key is sealed for.
#[must_use]
pub fn certificate_context(name: &str) -> String {
    format!("certificate:{name}")
}
