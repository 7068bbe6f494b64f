//! `tls check`: what a device sees when it asks for TLS at an address: versions, certificate, chain, names, expiry and
//! who vouches for it. Everything is tried from here, as a device would try it.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, SupportedProtocolVersion};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Lines of a greeting or an EHLO answer; more is no mail server.
const LINES_MAX: usize = 100;

/// Where to look, and how.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// `host:port`.
    pub(crate) address: String,
    /// Whether TLS starts with the first byte.
    pub(crate) implicit: bool,
    /// The name to ask for and to hold the certificate against; empty: the certificate's names are not judged.
    pub(crate) name: String,
}

/// What was seen at one address.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Seen {
    pub(crate) address: String,
    /// `starttls` or `implicit`.
    pub(crate) mode: &'static str,
    /// The name that was asked for.
    pub(crate) name: String,
    pub(crate) versions: Vec<Version>,
    /// The server's own certificate first.
    pub(crate) chain: Vec<Shown>,
    /// Who vouches for it: `cluster`, `machine` or `nobody`.
    pub(crate) trusted_by: String,
    /// Absent: no name was asked for.
    pub(crate) name_matches: Option<bool>,
    pub(crate) days_left: i64,
    /// What a device would stumble over.
    pub(crate) problems: Vec<String>,
}

/// One protocol version.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Version {
    pub(crate) version: &'static str,
    pub(crate) offered: bool,
    pub(crate) cipher_suite: String,
    pub(crate) error: String,
}

/// One certificate of the chain.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Shown {
    pub(crate) subject: String,
    pub(crate) issuer: String,
    pub(crate) names: Vec<String>,
    pub(crate) not_after: String,
    #[serde(skip)]
    not_after_secs: i64,
}

/// Looks at one address.
pub(crate) async fn look(target: &Target, cluster_ca_pem: &str, limit: Duration) -> Seen {
    let mut seen = Seen {
        address: target.address.clone(),
        mode: if target.implicit { "implicit" } else { "starttls" },
        name: target.name.clone(),
        ..Seen::default()
    };
    let mut chain = Vec::new();
    let tried: [(&str, &SupportedProtocolVersion); 2] =
        [("TLS 1.3", &rustls::version::TLS13), ("TLS 1.2", &rustls::version::TLS12)];
    for (version, protocol) in tried {
        let outcome = tokio::time::timeout(limit, handshake(target, protocol));
        let outcome = outcome.await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        let (offered, cipher_suite, error) = match outcome {
            Ok((shown, suite)) => {
                chain = shown;
                (true, suite, String::new())
            }
            Err(error) => (false, String::new(), error),
        };
        seen.versions.push(Version { version, offered, cipher_suite, error });
    }
    judge(&mut seen, &chain, cluster_ca_pem);
    seen
}

fn judge(seen: &mut Seen, chain: &[CertificateDer<'static>], cluster_ca_pem: &str) {
    seen.chain = chain.iter().map(|der| shown(der)).collect();
    let Some(leaf) = seen.chain.first().cloned() else {
        let error = seen.versions.first().map(|version| version.error.clone()).unwrap_or_default();
        seen.problems.push(format!("no TLS: {error}"));
        return;
    };
    let now = jiff::Timestamp::now().as_second();
    seen.days_left = (leaf.not_after_secs - now).div_euclid(24 * 3600);
    if leaf.not_after_secs <= now {
        seen.problems.push(format!("the certificate expired on {}", leaf.not_after));
    } else if seen.days_left < 30 {
        seen.problems.push(format!("the certificate expires in {} days", seen.days_left));
    }
    let mut cluster = RootCertStore::empty();
    let authorities = CertificateDer::pem_slice_iter(cluster_ca_pem.as_bytes()).flatten();
    cluster.add_parsable_certificates(authorities);
    let mut machine = RootCertStore::empty();
    machine.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let own = leaf.names.first().cloned().unwrap_or_default();
    // Whoever vouches is asked about a name that the certificate has; whether it is the right one is a question apart.
    seen.trusted_by = if vouches(cluster, chain, &own) {
        "cluster"
    } else if vouches(machine, chain, &own) {
        "machine"
    } else {
        "nobody"
    }
    .to_owned();
    if seen.trusted_by == "nobody" {
        seen.problems.push("neither the cluster's authority nor this machine's trust store vouches for it".to_owned());
    }
    if !seen.name.is_empty() {
        let matches = chain.first().is_some_and(|leaf| is_for(leaf, &seen.name));
        seen.name_matches = Some(matches);
        if !matches {
            seen.problems.push(format!("it is for {}, not for {}", leaf.names.join(", "), seen.name));
        }
    }
}

fn vouches(roots: RootCertStore, chain: &[CertificateDer<'static>], name: &str) -> bool {
    let (Some((leaf, rest)), Ok(name)) = (chain.split_first(), ServerName::try_from(name.replace('*', "wildcard")))
    else {
        return false;
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .is_ok_and(|verifier| verifier.verify_server_cert(leaf, rest, &name, &[], UnixTime::now()).is_ok())
}

fn is_for(leaf: &CertificateDer<'_>, name: &str) -> bool {
    let (Ok(name), Ok(cert)) = (ServerName::try_from(name), rustls::server::ParsedCertificate::try_from(leaf)) else {
        return false;
    };
    rustls::client::verify_server_name(&cert, &name).is_ok()
}

fn shown(der: &CertificateDer<'_>) -> Shown {
    let Ok((_, parsed)) = X509Certificate::from_der(der) else {
        return Shown { subject: "unreadable".to_owned(), ..Shown::default() };
    };
    let mut names = Vec::new();
    if let Ok(Some(extension)) = parsed.subject_alternative_name() {
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push((*name).to_owned()),
                GeneralName::IPAddress([a, b, c, d]) => names.push(format!("{a}.{b}.{c}.{d}")),
                GeneralName::IPAddress(octets) => {
                    if let Ok(octets) = <[u8; 16]>::try_from(*octets) {
                        names.push(std::net::Ipv6Addr::from(octets).to_string());
                    }
                }
                _ => {}
            }
        }
    }
    let secs = parsed.validity().not_after.timestamp();
    Shown {
        subject: parsed.subject().to_string(),
        issuer: parsed.issuer().to_string(),
        names,
        not_after: jiff::Timestamp::from_second(secs).map(|at| at.to_string()).unwrap_or_default(),
        not_after_secs: secs,
    }
}

/// Shakes hands with one version. Answers the chain and the cipher suite.
async fn handshake(
    target: &Target,
    version: &'static SupportedProtocolVersion,
) -> Result<(Vec<CertificateDer<'static>>, String), String> {
    let mut tcp = TcpStream::connect(&target.address).await.map_err(|error| error.to_string())?;
    if !target.implicit {
        starttls(&mut tcp).await?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let witness = Arc::new(Witness { provider: Arc::clone(&provider), chain: Mutex::default() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&witness) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let host = target.address.rsplit_once(':').map_or(target.address.as_str(), |(host, _)| host);
    let asked = if target.name.is_empty() { host.trim_matches(['[', ']']) } else { target.name.as_str() };
    let name = ServerName::try_from(asked.to_owned()).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|error| error.to_string())?;
    let suite = stream.get_ref().1.negotiated_cipher_suite();
    let suite = suite.map(|suite| format!("{:?}", suite.suite())).unwrap_or_default();
    let chain = witness.chain.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok((chain, suite))
}

async fn starttls(tcp: &mut TcpStream) -> Result<(), String> {
    let mut stream = BufReader::new(tcp);
    expect(&mut stream, "220").await?;
    let offer = {
        say(&mut stream, "EHLO check.posthouse.invalid\r\n").await?;
        expect(&mut stream, "250").await?
    };
    if !offer.to_ascii_uppercase().contains("STARTTLS") {
        return Err("STARTTLS is not offered".to_owned());
    }
    say(&mut stream, "STARTTLS\r\n").await?;
    expect(&mut stream, "220").await?;
    if stream.buffer().is_empty() {
        Ok(())
    } else {
        Err("bytes came in the clear behind the STARTTLS reply".to_owned())
    }
}

async fn say(stream: &mut BufReader<&mut TcpStream>, line: &str) -> Result<(), String> {
    stream.get_mut().write_all(line.as_bytes()).await.map_err(|error| error.to_string())
}

/// Reads a reply of that code; answers its lines.
async fn expect(stream: &mut BufReader<&mut TcpStream>, code: &str) -> Result<String, String> {
    let mut whole = String::new();
    for _ in 0..LINES_MAX {
        let mut line = Vec::new();
        let mut bounded = tokio::io::AsyncReadExt::take(&mut *stream, 1024);
        let count = bounded.read_until(b'\n', &mut line).await.map_err(|error| error.to_string())?;
        if count == 0 {
            return Err("the connection was closed".to_owned());
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        if !line.starts_with(code) {
            return Err(line.trim_end().to_owned());
        }
        whole.push_str(&line);
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(whole);
        }
    }
    Err("a reply without end".to_owned())
}

/// Accepts every certificate and remembers it: this is about looking, not about trusting.
#[derive(Debug)]
struct Witness {
    provider: Arc<CryptoProvider>,
    chain: Mutex<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(end_entity).chain(intermediates).map(|der| der.clone().into_owned()).collect();
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = chain;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl Seen {
    /// For people.
    pub(crate) fn render(&self) -> String {
        let mut out = format!("{}   {}\n", self.address, self.mode);
        for version in &self.versions {
            let state = if version.offered { &version.cipher_suite } else { &version.error };
            let yes = if version.offered { "yes" } else { "no " };
            let _ = writeln!(out, "  {}      {yes}  {state}", version.version);
        }
        out.push_str(
            "  TLS 1.0/1.1  no   never offered: such a device needs a plaintext connector fenced to its address\n",
        );
        for (index, certificate) in self.chain.iter().enumerate() {
            let what = if index == 0 { "certificate" } else { "signed by  " };
            let _ = writeln!(out, "  {what}  {}", certificate.subject);
        }
        if let Some(leaf) = self.chain.first() {
            let _ = writeln!(out, "  names        {}", leaf.names.join(", "));
            let _ = writeln!(out, "  expires      {}   in {} days", leaf.not_after, self.days_left);
            let _ = writeln!(out, "  trusted by   {}", self.trusted_by);
        }
        for problem in &self.problems {
            let _ = writeln!(out, "  !! {problem}");
        }
        out
    }
}
