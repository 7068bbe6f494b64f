//! Handshakes in memory between a device's rustls and what a connector is given.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConnection, ServerConfig, ServerConnection};
use time::OffsetDateTime;

use super::*;
use crate::pki::{Authority, DataKey, IdentityRole, IssuedKey, certificate_details};
use crate::state::{Certificate, ClusterState, Settings, StateView, Versioned};

struct House {
    authority: Authority,
    data_key: DataKey,
}

impl House {
    fn new() -> Self {
        let (authority, _) = Authority::create("test", "id", OffsetDateTime::now_utc()).unwrap();
        Self { authority, data_key: DataKey::generate() }
    }

    fn certificate(&self, name: &str, names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let made = self.authority.issue_server(&names, OffsetDateTime::now_utc()).unwrap();
        let (subject, issuer, names, not_after_ms) = certificate_details(&made.chain_pem).unwrap();
        let sealed_key = self.data_key.seal(&certificate_context(name), &made.key_der).unwrap();
        Certificate {
            name: name.to_owned(),
            chain_pem: made.chain_pem,
            sealed_key,
            names,
            subject,
            issuer,
            not_after_ms,
        }
    }

    fn view(&self, certificates: &[(&Certificate, u64)], client_ca_pem: &str) -> StateView {
        let certificates = certificates
            .iter()
            .map(|&(found, revision)| (found.name.clone(), Versioned { revision, value: Arc::new(found.clone()) }))
            .collect();
        let settings = Settings { client_ca_pem: client_ca_pem.to_owned(), ..Settings::default() };
        let state = ClusterState {
            certificates: Arc::new(certificates),
            settings: Arc::new(settings),
            ..ClusterState::default()
        };
        StateView::build(state, 1, None)
    }

    fn tls(&self) -> DeviceTls {
        DeviceTls::new(self.data_key.clone())
    }
}

/// Both ends of one connection.
struct Pair {
    client: ClientConnection,
    server: ServerConnection,
}

impl Pair {
    fn connect(server: &Arc<ServerConfig>, sni: &str, own: Option<&IssuedKey>) -> Self {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer(provider())));
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let chain = CertificateDer::pem_slice_iter(own.chain_pem.as_bytes()).map(|der| der.unwrap()).collect();
                let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        let client = ClientConnection::new(Arc::new(config), name).unwrap();
        let server = ServerConnection::new(Arc::clone(server)).unwrap();
        let mut pair = Self { client, server };
        pair.settle();
        pair
    }

    fn settle(&mut self) {
        while self.client.is_handshaking() || self.server.is_handshaking() || self.client.wants_write() {
            self.carry();
        }
        self.carry();
    }

    fn carry(&mut self) {
        let mut wire = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            self.server.read_tls(&mut rest).unwrap();
            self.server.process_new_packets().unwrap();
        }
        let mut wire = Vec::new();
        while self.server.wants_write() {
            self.server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            self.client.read_tls(&mut rest).unwrap();
            self.client.process_new_packets().unwrap();
        }
    }

    /// What the client sees first of the server's chain.
    fn shown(&self) -> String {
        let leaf = self.client.peer_certificates().unwrap()[0].clone();
        sha256_hex(&leaf)
    }

    /// Says something to the server, and hears the echo.
    fn echo(&mut self, text: &str) -> String {
        self.client.writer().write_all(text.as_bytes()).unwrap();
        self.carry();
        let mut heard = vec![0; text.len()];
        self.server.reader().read_exact(&mut heard).unwrap();
        self.server.writer().write_all(&heard).unwrap();
        self.carry();
        let mut back = vec![0; text.len()];
        self.client.reader().read_exact(&mut back).unwrap();
        String::from_utf8(back).unwrap()
    }
}

fn leaf_hash(certificate: &Certificate) -> String {
    sha256_hex(&CertificateDer::from_pem_slice(certificate.chain_pem.as_bytes()).unwrap())
}

fn shown_for(tls: &DeviceTls, view: &StateView, wanted: Wanted<'_>, sni: &str) -> String {
    Pair::connect(&tls.server_config(view, wanted).unwrap().unwrap(), sni, None).shown()
}

#[test]
fn the_device_gets_the_certificate_for_the_name_it_asks_for() {
    let house = House::new();
    let (default, a, wild) = (
        house.certificate("default", &["mx.example"]),
        house.certificate("a", &["a.example"]),
        house.certificate("wild", &["*.corp.example"]),
    );
    let view = house.view(&[(&default, 1), (&a, 1), (&wild, 1)], "");
    let tls = house.tls();
    let any = Wanted::default();
    assert_eq!(shown_for(&tls, &view, any, "a.example"), leaf_hash(&a));
    assert_eq!(shown_for(&tls, &view, any, "A.Example"), leaf_hash(&a));
    assert_eq!(shown_for(&tls, &view, any, "printers.corp.example"), leaf_hash(&wild));
    assert_eq!(shown_for(&tls, &view, any, "x.printers.corp.example"), leaf_hash(&default));
    assert_eq!(shown_for(&tls, &view, any, "unknown.example"), leaf_hash(&default));
    // Without SNI (an address): the connector's own name decides, then the default.
    assert_eq!(shown_for(&tls, &view, any, "192.0.2.1"), leaf_hash(&default));
    let named = Wanted { fqdn: Some("a.example"), ..any };
    assert_eq!(shown_for(&tls, &view, named, "192.0.2.1"), leaf_hash(&a));
    assert_eq!(shown_for(&tls, &view, named, "printers.corp.example"), leaf_hash(&wild));
}

#[test]
fn a_connector_that_names_a_certificate_shows_it_whatever_is_asked_for() {
    let house = House::new();
    let (default, a) = (house.certificate("default", &["mx.example"]), house.certificate("a", &["a.example"]));
    let view = house.view(&[(&default, 1), (&a, 1)], "");
    let tls = house.tls();
    let by_name = Wanted { certificate: Some("a"), ..Wanted::default() };
    assert_eq!(shown_for(&tls, &view, by_name, "mx.example"), leaf_hash(&a));
    // As Exchange writes it: most specific attribute first, other spaces.
    let mut subject: Vec<&str> = a.subject.split(", ").collect();
    subject.reverse();
    let exchange = format!("<I>{}<S>{}", a.issuer.to_uppercase(), subject.join(","));
    let by_subject = Wanted { certificate: Some(&exchange), ..Wanted::default() };
    assert_eq!(shown_for(&tls, &view, by_subject, "mx.example"), leaf_hash(&a));
    let unknown = Wanted { certificate: Some("<I>CN=x<S>CN=y"), ..Wanted::default() };
    assert!(tls.server_config(&view, unknown).unwrap().is_none());
    assert!(tls.server_config(&house.view(&[], ""), Wanted::default()).unwrap().is_none());
}

#[test]
fn a_renewal_is_shown_at_once_and_drops_no_open_session() {
    let house = House::new();
    let old = house.certificate("default", &["mx.example"]);
    let tls = house.tls();
    let before = house.view(&[(&old, 1)], "");
    let config = tls.server_config(&before, Wanted::default()).unwrap().unwrap();
    let mut open = Pair::connect(&config, "mx.example", None);
    assert_eq!(open.echo("MAIL FROM:<a@b.example>"), "MAIL FROM:<a@b.example>");

    let new = house.certificate("default", &["mx.example"]);
    let after = house.view(&[(&new, 2)], "");
    assert_eq!(shown_for(&tls, &after, Wanted::default(), "mx.example"), leaf_hash(&new));
    assert_ne!(leaf_hash(&old), leaf_hash(&new));
    assert_eq!(open.echo("RCPT TO:<c@d.example>"), "RCPT TO:<c@d.example>", "the open session goes on");
    assert_eq!(open.shown(), leaf_hash(&old));
}

#[test]
fn an_unchanged_state_makes_no_new_configuration() {
    let house = House::new();
    let certificate = house.certificate("default", &["mx.example"]);
    let tls = house.tls();
    let view = house.view(&[(&certificate, 1)], "");
    let config = || tls.server_config(&view, Wanted::default()).unwrap().unwrap();
    assert!(Arc::ptr_eq(&config(), &config()), "resumption lives in the configuration");
}

#[test]
fn a_certificate_that_cannot_be_opened_spoils_only_itself() {
    let house = House::new();
    let good = house.certificate("good", &["good.example"]);
    let mut broken = house.certificate("default", &["mx.example"]);
    broken.sealed_key = House::new().data_key.seal("x", b"y").unwrap();
    let tls = house.tls();
    let view = house.view(&[(&good, 1), (&broken, 1)], "");
    assert_eq!(shown_for(&tls, &view, Wanted::default(), "mx.example"), leaf_hash(&good));
    let alone = house.view(&[(&broken, 1)], "");
    assert!(matches!(house.tls().server_config(&alone, Wanted::default()), Err(TlsError::Sealed(_))));
}

#[test]
fn a_devices_certificate_is_asked_for_only_where_it_counts_and_judged_afterwards() {
    let (house, factory) = (House::new(), House::new());
    let server = house.certificate("default", &["mx.example"]);
    let ca = house.authority.ca_pem().to_owned();
    let view = house.view(&[(&server, 1)], &ca);
    let tls = house.tls();
    let wanted = Wanted { client_certificates: true, ..Wanted::default() };
    let now = OffsetDateTime::now_utc();
    let now_ms = now.unix_timestamp() * 1000;
    let own = house.authority.issue_identity(IdentityRole::Node, "printer7", now).unwrap();
    let foreign = factory.authority.issue_identity(IdentityRole::Node, "printer7", now).unwrap();

    let judged = |own: Option<&IssuedKey>, wanted| {
        let config = tls.server_config(&view, wanted).unwrap().unwrap();
        let mut pair = Pair::connect(&config, "mx.example", own);
        assert_eq!(pair.echo("hello"), "hello", "no certificate makes the handshake fail");
        pair.server.peer_certificates().and_then(|chain| judge_client_certificate(chain, &ca, now_ms))
    };
    let mine = judged(Some(&own), wanted).unwrap();
    assert!(mine.is_trusted && mine.dns_names.iter().any(|name| name.starts_with("printer7.")), "{mine:?}");
    let theirs = judged(Some(&foreign), wanted).unwrap();
    assert!(!theirs.is_trusted, "the same names under an authority that we do not trust");
    assert_ne!(theirs.fingerprint, mine.fingerprint);
    assert!(judged(None, wanted).is_none());
    assert!(judged(Some(&own), Wanted::default()).is_none(), "it was not asked for");

    let chain: Vec<_> = CertificateDer::pem_slice_iter(own.chain_pem.as_bytes()).map(|der| der.unwrap()).collect();
    assert!(!judge_client_certificate(&chain, "", now_ms).unwrap().is_trusted, "without authorities nobody is");
    let later = now_ms + 4000 * 24 * 3_600_000;
    assert!(!judge_client_certificate(&chain, &ca, later).unwrap().is_trusted, "it has expired");
    let server_only: Vec<_> =
        CertificateDer::pem_slice_iter(server.chain_pem.as_bytes()).map(|der| der.unwrap()).collect();
    let judged = judge_client_certificate(&server_only, &ca, now_ms).unwrap();
    assert!(!judged.is_trusted, "a server's certificate is not a client's");
}

#[test]
fn a_real_hello_is_read_from_its_bytes() {
    let config = opportunistic_client_config().unwrap();
    let mut client = ClientConnection::new(config, ServerName::try_from("mx.example").unwrap()).unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    let hello = Hello::read(&wire);
    assert_eq!(hello.versions, [OfferedVersion::TLS12, OfferedVersion::TLS13]);
    assert_eq!(hello.server_name.as_deref(), Some("mx.example"));
    assert!(wire.len() < HELLO_BYTES_MAX && !hello.is_weak());
}

/// What a joiner thinks of a server that shows `chain`, with a token for the cluster of `wanted`.
fn joiner_accepts(chain: &[CertificateDer<'static>], wanted: &Authority) -> bool {
    let ca = CertificateDer::from_pem_slice(wanted.ca_pem().as_bytes()).unwrap();
    let verifier = AuthorityByHash { ca_sha256: sha256_hex(&ca), provider: provider() };
    let name = ServerName::try_from(MEMBER_DNS_NAME).unwrap();
    verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now()).is_ok()
}

#[test]
fn a_joiner_tells_its_secret_to_a_member_of_its_tokens_cluster_and_to_nobody_else() {
    let (house, other) = (House::new(), House::new());
    let chain = |pem: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).map(|der| der.unwrap()).collect()
    };
    let now = OffsetDateTime::now_utc();
    let issue = |house: &House, role| chain(&house.authority.issue_identity(role, "n1", now).unwrap().chain_pem);
    let member = issue(&house, IdentityRole::Node);
    assert!(joiner_accepts(&member, &house.authority));
    assert!(!joiner_accepts(&issue(&other, IdentityRole::Node), &house.authority), "another cluster");
    // The authority's certificate is no secret: whoever shows it must have been given a certificate by it.
    let liar = [&issue(&other, IdentityRole::Node)[..1], &member[1..]].concat();
    assert!(!joiner_accepts(&liar, &house.authority), "somebody else's certificate beside our authority's");
    assert!(!joiner_accepts(&member[..1], &house.authority), "without its authority");
    // Who may ask is not who may answer.
    assert!(!joiner_accepts(&issue(&house, IdentityRole::Admin), &house.authority), "an administrator is no member");
    assert!(!joiner_accepts(&issue(&house, IdentityRole::Front), &house.authority), "nor is a front");
}
