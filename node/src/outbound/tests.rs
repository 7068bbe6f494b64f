//! Delivery over real sockets to a next hop that does what it is told: refuse, defer, stall, drop, break TLS.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::connector::{AddressSpace, SendTls, SmartHost};
use crate::shutdown::Scope;

/// How a next hop behaves. Recipients decide by their names: `refuse…` gets 550, `defer…` gets 450.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    pub(crate) greeting: &'static str,
    pub(crate) ehlo: &'static str,
    /// The reply to the end of mail data; empty: the connection is dropped instead.
    pub(crate) after_dot: &'static str,
    /// Says nothing any more from this command on.
    pub(crate) stall_at: &'static str,
    /// Answers STARTTLS with 220 and then with something that is not TLS.
    pub(crate) breaks_tls: bool,
    /// Answers this after the first bytes of mail data, and closes.
    pub(crate) interrupts: &'static str,
    /// Closes without a word after so many letters.
    pub(crate) letters_max: usize,
    pub(crate) tls: Option<Arc<ServerConfig>>,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            greeting: "220 sink ESMTP",
            ehlo: "250-sink\r\n250-PIPELINING\r\n250 8BITMIME",
            after_dot: "250 2.0.0 taken",
            stall_at: "",
            breaks_tls: false,
            interrupts: "",
            letters_max: usize::MAX,
            tls: None,
        }
    }
}

/// A letter that a next hop took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
    pub(crate) data: Vec<u8>,
    pub(crate) secure: bool,
}

/// A next hop.
#[derive(Clone)]
pub(crate) struct FakeHop {
    pub(crate) addr: SocketAddr,
    pub(crate) taken: Arc<Mutex<Vec<Taken>>>,
    pub(crate) connections: Arc<AtomicUsize>,
    /// Connections open at one time, at most.
    pub(crate) most_open: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    pub(crate) manner: Arc<Mutex<Manner>>,
}

impl FakeHop {
    pub(crate) async fn start(scope: &Scope, manner: Manner) -> Self {
        Self::start_on(scope, SocketAddr::from(([127, 0, 0, 1], 0)), manner).await
    }

    pub(crate) async fn start_on(scope: &Scope, addr: SocketAddr, manner: Manner) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let hop = Self {
            addr: listener.local_addr().unwrap(),
            taken: Arc::default(),
            connections: Arc::default(),
            most_open: Arc::default(),
            open: Arc::default(),
            manner: Arc::new(Mutex::new(manner)),
        };
        let (inner, within) = (hop.clone(), scope.clone());
        scope.spawn_until_ended(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                inner.connections.fetch_add(1, Ordering::SeqCst);
                let open = inner.open.fetch_add(1, Ordering::SeqCst) + 1;
                inner.most_open.fetch_max(open, Ordering::SeqCst);
                let hop = inner.clone();
                within.spawn_until_ended(async move {
                    let manner = hop.manner.lock().unwrap().clone();
                    hop.serve(stream, manner).await;
                    hop.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        hop
    }

    pub(crate) fn taken(&self) -> Vec<Taken> {
        self.taken.lock().unwrap().clone()
    }

    async fn serve(&self, mut stream: TcpStream, manner: Manner) {
        if manner.stall_at == "greeting" {
            return std::future::pending().await;
        }
        stream.write_all(format!("{}\r\n", manner.greeting).as_bytes()).await.ok();
        if self.commands(&mut stream, &manner, false).await != Some("STARTTLS") {
            return;
        }
        if manner.breaks_tls {
            // Only once the client has begun: earlier it would be an injection.
            let _ = stream.read(&mut [0; 64]).await;
            stream.write_all(b"this is not TLS at all, whatever you hoped for\r\n").await.ok();
            return;
        }
        let acceptor = tokio_rustls::TlsAcceptor::from(manner.tls.clone().unwrap());
        if let Ok(mut stream) = acceptor.accept(stream).await {
            self.commands(&mut stream, &manner, true).await;
        }
    }

    async fn commands<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        manner: &Manner,
        secure: bool,
    ) -> Option<&'static str> {
        let mut stream = BufReader::new(stream);
        let (mut from, mut to, mut letters) = (String::new(), Vec::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            let line = line.trim_end();
            let verb = line.split([' ', ':']).next()?.to_ascii_uppercase();
            if verb == manner.stall_at {
                std::future::pending::<()>().await;
            }
            let path = line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
            let mut close = false;
            let reply = match verb.as_str() {
                "EHLO" => manner.ehlo,
                "STARTTLS" => {
                    stream.write_all(b"220 go\r\n").await.ok()?;
                    return Some("STARTTLS");
                }
                "MAIL" => {
                    from = path;
                    "250 ok"
                }
                "RCPT" if path.starts_with("refuse") => "550 5.1.1 no such user",
                "RCPT" if path.starts_with("defer") => "450 4.2.0 mailbox busy",
                "RCPT" => {
                    to.push(path);
                    "250 ok"
                }
                "RSET" => {
                    to.clear();
                    "250 ok"
                }
                "DATA" if to.is_empty() => "503 5.5.1 no recipients",
                "DATA" => {
                    stream.write_all(b"354 go\r\n").await.ok()?;
                    if !manner.interrupts.is_empty() {
                        let mut some = [0; 10];
                        stream.read_exact(&mut some).await.ok()?;
                        stream.write_all(format!("{}\r\n", manner.interrupts).as_bytes()).await.ok()?;
                        return None;
                    }
                    let data = read_data(&mut stream).await?;
                    letters += 1;
                    if manner.stall_at == "dot" {
                        std::future::pending::<()>().await;
                    }
                    if manner.after_dot.is_empty() {
                        return None;
                    }
                    let taken = Taken { from: from.clone(), to: std::mem::take(&mut to), data, secure };
                    if manner.after_dot.starts_with('2') {
                        self.taken.lock().unwrap().push(taken);
                    }
                    close = letters >= manner.letters_max;
                    manner.after_dot
                }
                "QUIT" => {
                    close = true;
                    "221 bye"
                }
                _ => "500 what",
            };
            stream.write_all(format!("{reply}\r\n").as_bytes()).await.ok()?;
            if close {
                return None;
            }
        }
    }
}

async fn read_data(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Vec<u8>> {
    let mut letter = Vec::new();
    loop {
        let mut line = Vec::new();
        if stream.read_until(b'\n', &mut line).await.ok()? == 0 {
            return None;
        }
        if line == b".\r\n" {
            return Some(letter);
        }
        letter.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
    }
}

/// A route to `hosts`, in that order.
pub(crate) fn route(hosts: &[SocketAddr], tls: SendTls) -> SendConnector {
    let mut route = SendConnector::new("out");
    route.enabled = true;
    route.address_spaces = vec![AddressSpace::All];
    let host = |addr: &SocketAddr| SmartHost { host: addr.ip().to_string(), port: addr.port(), weight: 0 };
    route.smart_hosts = hosts.iter().map(host).collect();
    route.tls = tls;
    route
}

/// Short deadlines, and TLS that trusts only `certificate`.
pub(crate) fn outbound(trusted: Option<rustls::pki_types::CertificateDer<'static>>) -> Outbound {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut roots = RootCertStore::empty();
    if let Some(trusted) = trusted {
        roots.add(trusted).unwrap();
    }
    let short = Duration::from_millis(400);
    Outbound {
        fqdn: "relay.example".to_owned(),
        own: Vec::new(),
        cluster: Arc::new(Vec::new),
        open_secret: Arc::new(|_| Ok("secret".to_owned())),
        trust: Trust::new(crate::tls::opportunistic_client_config().unwrap(), roots),
        dns: Dns::new(&DnsSettings { servers: vec!["127.0.0.1:1".parse().unwrap()], ..DnsSettings::default() })
            .unwrap(),
        mx: MxRules::default(),
        health: Health::default(),
        deadlines: Deadlines {
            connect: short,
            greeting: short,
            ehlo: short,
            mail: short,
            rcpt: short,
            data_initiation: short,
            data_block: short,
            data_termination: short,
            quit: short,
        },
    }
}

struct Pieces(Vec<Result<Vec<u8>, String>>);

impl BodySource for Pieces {
    async fn next_piece(&mut self) -> Result<Option<Vec<u8>>, String> {
        if self.0.is_empty() { Ok(None) } else { self.0.remove(0).map(Some) }
    }
}

fn to(recipients: &[&str]) -> Transaction {
    let recipients = recipients.iter().map(|name| format!("{name}@x.example")).collect();
    Transaction {
        reverse_path: String::new(),
        recipients,
        size: 10,
        eight_bit: false,
        utf8_header: false,
        dsn_mail: String::new(),
        dsn_recipients: Vec::new(),
    }
}

fn words(outcome: &Outcome) -> String {
    let word = match outcome {
        Outcome::Delivered { .. } => "delivered",
        Outcome::Deferred { .. } => "deferred",
        Outcome::Failed { .. } => "failed",
    };
    format!("{word}: {}", outcome.reply())
}

async fn send_one(outbound: &Outbound, route: &SendConnector, recipients: &[&str], pieces: Pieces) -> Vec<String> {
    let mut connection = match outbound.connect(route, None).await {
        Ok(connection) => connection,
        Err(none) => return vec![format!("unreachable: {}", none.reply)],
    };
    let mut pieces = pieces;
    let sent = connection.send(to(recipients), &mut pieces).await;
    connection.quit().await;
    sent.outcomes.iter().map(words).collect()
}

fn letter() -> Pieces {
    Pieces(vec![Ok(b"Subject: x\r\n\r\n.dot\r".to_vec()), Ok(b"\n..\r\nend".to_vec())])
}

const LETTER: &[u8] = b"Subject: x\r\n\r\n.dot\r\n..\r\nend\r\n";

fn certificate() -> (Arc<ServerConfig>, rustls::pki_types::CertificateDer<'static>) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let chain = vec![made.cert.der().clone()];
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key.into()).unwrap();
    (Arc::new(config), made.cert.der().clone())
}

const EHLO_TLS: &str = "250-sink\r\n250 STARTTLS";

#[tokio::test]
async fn a_letter_arrives_as_it_was_and_each_recipient_has_its_own_outcome() {
    let scope = Scope::new();
    let hop = FakeHop::start(&scope, Manner::default()).await;
    let route = route(&[hop.addr], SendTls::Off);
    let outcomes = send_one(&outbound(None), &route, &["a", "refuse", "defer"], letter()).await;
    assert_eq!(
        outcomes,
        ["delivered: 250 2.0.0 taken", "failed: 550 5.1.1 no such user", "deferred: 450 4.2.0 mailbox busy"]
    );
    let expected =
        Taken { from: String::new(), to: vec!["a@x.example".to_owned()], data: LETTER.to_vec(), secure: false };
    assert_eq!(hop.taken(), [expected]);
    scope.end();
}

#[tokio::test]
async fn one_connection_carries_several_letters() {
    let scope = Scope::new();
    let hop = FakeHop::start(&scope, Manner::default()).await;
    let mut connection = outbound(None).connect(&route(&[hop.addr], SendTls::Off), None).await.unwrap();
    for recipients in [&["a"][..], &["refuse"], &["b", "defer"]] {
        assert!(connection.is_open());
        connection.send(to(recipients), &mut letter()).await;
    }
    assert_eq!(connection.letters(), 3);
    connection.quit().await;
    assert_eq!(hop.taken().len(), 2);
    assert_eq!(hop.taken()[1].to, ["b@x.example"]);
    assert_eq!(hop.connections.load(Ordering::SeqCst), 1);
    scope.end();
}

#[tokio::test]
async fn the_next_smart_host_is_tried_when_one_cannot_be_used() {
    let scope = Scope::new();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let busy = FakeHop::start(&scope, Manner { greeting: "421 busy", ..Manner::default() }).await;
    let rude = FakeHop::start(&scope, Manner { greeting: "554 go away", ..Manner::default() }).await;
    let silent = FakeHop::start(&scope, Manner { stall_at: "greeting", ..Manner::default() }).await;
    let good = FakeHop::start(&scope, Manner::default()).await;
    let all = [closed, busy.addr, rude.addr, silent.addr, good.addr];
    let outcomes = send_one(&outbound(None), &route(&all, SendTls::Off), &["a"], letter()).await;
    assert_eq!(outcomes, ["delivered: 250 2.0.0 taken"]);
    let none = send_one(&outbound(None), &route(&all[..4], SendTls::Off), &["a"], letter()).await;
    let told = &none[0];
    for part in ["unreachable: 451 4.4.1", "refused", "421 busy", "554 go away", "timed out waiting for the greeting"] {
        assert!(told.contains(part), "{told:?} lacks {part:?}");
    }
    scope.end();
}

#[tokio::test]
async fn stalls_drops_and_interruptions_defer() {
    let scope = Scope::new();
    let outbound = outbound(None);
    for (manner, expected) in [
        (Manner { after_dot: "", ..Manner::default() }, "possible duplicate"),
        (Manner { stall_at: "dot", ..Manner::default() }, "timed out waiting for the reply to the end of mail data"),
        (Manner { stall_at: "MAIL", ..Manner::default() }, "timed out waiting for the reply to MAIL"),
        (Manner { after_dot: "452 4.3.1 full", ..Manner::default() }, "deferred: 452 4.3.1 full"),
        (Manner { after_dot: "421 bye", ..Manner::default() }, "deferred: 421 bye"),
        (Manner { interrupts: "421 4.3.0 shutting down", ..Manner::default() }, "421 4.3.0 shutting down"),
    ] {
        let hop = FakeHop::start(&scope, manner).await;
        // Larger than every buffer in between: the interruption comes while we are still writing.
        let large = Pieces(vec![Ok(vec![b'x'; 8 * 1024 * 1024])]);
        let pieces = if expected.contains("shutting") { large } else { letter() };
        let outcomes = send_one(&outbound, &route(&[hop.addr], SendTls::Off), &["a"], pieces).await;
        assert!(outcomes[0].starts_with("deferred: 4") && outcomes[0].contains(expected), "{outcomes:?}");
        assert!(hop.taken().is_empty());
    }
    scope.end();
}

#[tokio::test]
async fn a_letter_that_cannot_be_read_to_the_end_never_gets_an_end() {
    let scope = Scope::new();
    let hop = FakeHop::start(&scope, Manner::default()).await;
    let damaged = Pieces(vec![Ok(b"Subject: x\r\n".to_vec()), Err("the checksum is wrong".to_owned())]);
    let outcomes = send_one(&outbound(None), &route(&[hop.addr], SendTls::Off), &["a"], damaged).await;
    assert!(outcomes[0].contains("deferred: 451 4.3.0 letter could not be read: the checksum is wrong"));
    assert!(hop.taken().is_empty());
    scope.end();
}

#[tokio::test]
async fn a_connection_that_went_away_between_letters_is_told_apart() {
    let scope = Scope::new();
    let hop = FakeHop::start(&scope, Manner { letters_max: 1, ..Manner::default() }).await;
    let mut connection = outbound(None).connect(&route(&[hop.addr], SendTls::Off), None).await.unwrap();
    assert!(!connection.send(to(&["a"]), &mut letter()).await.unanswered);
    let second = connection.send(to(&["b"]), &mut letter()).await;
    assert!(second.unanswered, "{second:?}");
    assert!(!connection.is_open());
    scope.end();
}

#[tokio::test]
async fn tls_is_used_where_it_works_and_clear_text_only_where_it_may_be() {
    let scope = Scope::new();
    let (server, trusted) = certificate();
    let good = FakeHop::start(&scope, Manner { ehlo: EHLO_TLS, tls: Some(server), ..Manner::default() }).await;
    let broken = FakeHop::start(&scope, Manner { ehlo: EHLO_TLS, breaks_tls: true, ..Manner::default() }).await;
    let plain = FakeHop::start(&scope, Manner::default()).await;
    let trusting = outbound(Some(trusted));
    let doubting = outbound(None);
    for tls in [SendTls::Opportunistic, SendTls::Verified] {
        send_one(&trusting, &route(&[good.addr], tls), &["a"], letter()).await;
    }
    send_one(&trusting, &route(&[good.addr], SendTls::Off), &["a"], letter()).await;
    assert_eq!(good.taken().iter().map(|taken| taken.secure).collect::<Vec<_>>(), [true, true, false]);

    // Opportunistic: the failed handshake costs a connection, not the letter.
    let outcomes = send_one(&trusting, &route(&[broken.addr], SendTls::Opportunistic), &["a"], letter()).await;
    assert_eq!(outcomes, ["delivered: 250 2.0.0 taken"]);
    assert_eq!(broken.connections.load(Ordering::SeqCst), 2);

    // Required: nothing leaves in clear text. Verified: nor to a next hop that cannot prove who it is.
    let before = (good.taken().len(), broken.taken().len());
    for (outbound, hop, tls) in [
        (&trusting, &broken, SendTls::Required),
        (&trusting, &plain, SendTls::Required),
        (&trusting, &broken, SendTls::Verified),
        (&trusting, &plain, SendTls::Verified),
        (&doubting, &good, SendTls::Verified),
    ] {
        let outcomes = send_one(outbound, &route(&[hop.addr], tls), &["a"], letter()).await;
        assert!(outcomes[0].starts_with("unreachable: 451 4.7."), "{outcomes:?}");
    }
    assert_eq!((good.taken().len(), broken.taken().len(), plain.taken().len()), (before.0, before.1, 0));
    scope.end();
}

#[tokio::test]
async fn a_route_may_trust_other_authorities_and_other_names() {
    let scope = Scope::new();
    let made = rcgen::generate_simple_self_signed(vec!["mx.partner.example".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let server = ServerConfig::builder().with_no_client_auth();
    let server = server.with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap();
    let hop = FakeHop::start(&scope, Manner { ehlo: EHLO_TLS, tls: Some(Arc::new(server)), ..Manner::default() }).await;
    let outbound = outbound(None);
    let mut route = route(&[hop.addr], SendTls::Verified);
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    for (pem, tls_names, trusted) in [
        ("", &[][..], false),
        ("", &["mx.partner.example"], false),
        (&*made.cert.pem(), &[], false),
        (&*made.cert.pem(), &["other.example"], false),
        (&*made.cert.pem(), &["other.example", "mx.partner.example"], true),
        ("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n", &["mx.partner.example"], false),
    ] {
        (route.tls_ca_pem, route.tls_names) = (pem.to_owned(), names(tls_names));
        outbound.health.forget();
        let outcomes = send_one(&outbound, &route, &["a"], letter()).await;
        assert_eq!(outcomes[0].starts_with("delivered"), trusted, "{tls_names:?}: {outcomes:?}");
    }
    assert!(hop.taken().iter().all(|taken| taken.secure));
    scope.end();
}

#[tokio::test]
async fn a_route_connects_from_its_source_address_and_says_its_own_name() {
    let scope = Scope::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut wanted = route(&[addr], SendTls::Off);
    wanted.source_addresses = vec!["127.0.0.9".parse().unwrap(), "::1".parse().unwrap()];
    wanted.fqdn = Some("out.corp.example".to_owned());
    let outbound = outbound(None);
    let (_, seen) = tokio::join!(outbound.connect(&wanted, None), async {
        let (mut stream, from) = listener.accept().await.unwrap();
        stream.write_all(b"220 hello\r\n").await.unwrap();
        let mut line = String::new();
        BufReader::new(&mut stream).read_line(&mut line).await.unwrap();
        (from.ip().to_string(), line)
    });
    assert_eq!(seen, ("127.0.0.9".to_owned(), "EHLO out.corp.example\r\n".to_owned()));
    // An address that is not ours is named, and the letter waits.
    outbound.health.forget();
    wanted.source_addresses = vec!["192.0.2.1".parse().unwrap()];
    let outcomes = send_one(&outbound, &wanted, &["a"], letter()).await;
    assert!(outcomes[0].contains("source address 192.0.2.1 cannot be used"), "{outcomes:?}");
    scope.end();
}
