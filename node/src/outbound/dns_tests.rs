//! Hostile and broken name servers (docs: RFC 5321 §5.1, RFC 7505): what certainly is not there ends a letter, what
//! nobody could say delays it, and nothing that a forger says sends it anywhere.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::dns_stub::{
    A, AAAA, Asked, FORMERR, MX, NOERROR, NOTIMP, NXDOMAIN, Packet, REFUSED, SERVFAIL, Script, Stub, a, aaaa, cname,
    mx, question, record, record_of, wire,
};
use super::tests::{FakeHop, Manner, outbound};
use super::*;
use crate::connector::{AddressSpace, SendTls};
use crate::mail::Domain;
use crate::shutdown::Scope;

/// Where the good next hop listens, and where nobody does.
const GOOD: [u8; 4] = [127, 0, 0, 1];
const DEAD: [u8; 4] = [127, 0, 0, 2];
/// Where forged and forbidden answers point: somebody listens there, and must never be called.
const EVIL: [u8; 4] = [127, 0, 0, 66];

/// What the stub says, by the first label of the domain asked for.
fn script() -> Script {
    Arc::new(|asked: &Asked| {
        let labels: Vec<&str> = asked.name.split('.').collect();
        let name = asked.name.as_str();
        let ok = |answers: Vec<Vec<u8>>| vec![Packet::to(asked, NOERROR, answers).bytes()];
        let code = |code| vec![Packet::to(asked, code, vec![]).bytes()];
        let forged = || Packet::to(asked, NOERROR, vec![mx(name, 1, "evil.hosts.example")]);
        // Hosts: their first label says where they are.
        if asked.name.ends_with("hosts.example") {
            return match (labels[0], asked.kind) {
                ("good" | "good2" | "plain", A) => ok(vec![a(name, GOOD)]),
                ("dead" | "dead2", A) => ok(vec![a(name, DEAD)]),
                ("evil", A) => ok(vec![a(name, EVIL)]),
                ("zero", A) => ok(vec![a(name, [0, 0, 0, 0])]),
                ("metadata", A) => ok(vec![a(name, [169, 254, 169, 254])]),
                ("multicast", A) => ok(vec![a(name, [224, 0, 0, 1])]),
                ("linklocal", AAAA) => ok(vec![aaaa(name, "fe80::1")]),
                ("member", A) => ok(vec![a(name, [192, 0, 2, 77])]),
                ("alias", A | AAAA) => {
                    let target = "good.hosts.example";
                    let mut answers = vec![cname(name, target)];
                    answers.extend((asked.kind == A).then(|| a(target, GOOD)));
                    ok(answers)
                }
                ("broken", _) => code(SERVFAIL),
                ("halfbroken", A) => code(SERVFAIL),
                ("missing", _) => code(NXDOMAIN),
                (many, A) if many.starts_with("many") => {
                    let number: u8 = many[4..].parse().unwrap_or(0);
                    ok(vec![a(name, [127, 0, 1, number])])
                }
                _ => ok(vec![]),
            };
        }
        let to = |hosts: &[(u16, &str)]| {
            let full = |host: &str| if host.is_empty() { String::new() } else { format!("{host}.hosts.example") };
            ok(hosts.iter().map(|(preference, host)| mx(name, *preference, &full(host))).collect())
        };
        match (labels[0], asked.kind) {
            ("plain", MX) => to(&[(10, "good")]),
            ("second", MX) => to(&[(10, "dead"), (20, "good")]),
            ("equal", MX) => to(&[(10, "dead"), (10, "good"), (10, "dead2")]),
            ("unsorted", MX) => to(&[(30, "evil"), (5, "good")]),
            ("twice", MX) => to(&[(5, "good"), (10, "good"), (10, "good")]),
            ("implicit" | "refusedmx", A) => ok(vec![a(name, GOOD)]),
            ("implicit", _) => ok(vec![]),
            ("refusedmx", MX) => code(REFUSED),
            ("null", MX) => to(&[(0, "")]),
            ("nullten", MX) => to(&[(10, "")]),
            ("nullandmore", MX) => to(&[(0, ""), (10, "good")]),
            ("nxdomain", _) => code(NXDOMAIN),
            ("nothing", _) => ok(vec![]),
            ("servfail", _) => code(SERVFAIL),
            ("formerr", _) => code(FORMERR),
            ("notimp", _) => code(NOTIMP),
            ("refused", _) => code(REFUSED),
            ("silent", _) => vec![],
            ("servfaila", MX) => ok(vec![]),
            ("servfaila", _) => code(SERVFAIL),
            ("wrongid", _) => vec![Packet { id: asked.id ^ 1, ..forged() }.bytes()],
            ("everyid", MX) => {
                // A blind forger's flood, without the right one; then the real answer.
                let mut packets: Vec<_> =
                    (1..200).map(|guess| Packet { id: asked.id.wrapping_add(guess), ..forged() }.bytes()).collect();
                packets.extend(to(&[(10, "good")]));
                packets
            }
            ("otherquestion", MX) => {
                let mut packets = vec![Packet { question: question("other.example", MX), ..forged() }.bytes()];
                packets.extend(to(&[(10, "good")]));
                packets
            }
            ("otherkind", MX) => {
                let mut packets = vec![Packet { question: question(name, A), ..forged() }.bytes()];
                packets.extend(to(&[(10, "good")]));
                packets
            }
            ("othername", MX) => ok(vec![mx("unasked.example", 1, "evil.hosts.example")]),
            ("echo", _) => vec![Packet { flags: 0x0100, ..forged() }.bytes()],
            ("truncated", MX) if !asked.tcp => vec![Packet { flags: 0x8380, ..Packet::to(asked, 0, vec![]) }.bytes()],
            ("truncated", MX) => to(&[(10, "good")]),
            ("truncatedonly", _) if !asked.tcp => {
                vec![Packet { flags: 0x8380, ..Packet::to(asked, 0, vec![]) }.bytes()]
            }
            ("truncatedonly", _) => vec![],
            ("garbage", _) => vec![[&asked.id.to_be_bytes()[..], b"not a name server at all"].concat()],
            ("short", _) => vec![asked.id.to_be_bytes().to_vec()],
            ("headeronly", _) => vec![Packet::to(asked, 0, vec![]).bytes()[..12].to_vec()],
            ("pointerloop", _) => {
                // A compression pointer that points at itself (RFC 1035 §4.1.4).
                let at = u16::try_from(Packet::to(asked, 0, vec![]).question.len() + 12).unwrap();
                let owner = (0xc000 | at).to_be_bytes();
                let rest = &record("", MX, &[0, 10, 0xc0, 12])[1..];
                let mut packet = Packet::to(asked, 0, vec![[&owner[..], rest].concat()]);
                packet.authority.clear();
                vec![packet.bytes()]
            }
            ("longdata", _) => {
                let mut packet = forged().bytes();
                let at = packet.len() - wire("evil.hosts.example").len() - 4;
                packet[at..at + 2].copy_from_slice(&60_000_u16.to_be_bytes());
                vec![packet]
            }
            ("manysaid", _) => vec![Packet { answers_said: Some(65_535), ..forged() }.bytes()],
            ("chaos", MX) => {
                let data = [vec![0, 1], wire("evil.hosts.example")].concat();
                ok(vec![record_of(name, MX, 3, 60, &data)])
            }
            ("forever", MX) => {
                let data = [vec![0, 10], wire("good.hosts.example")].concat();
                ok(vec![record_of(name, MX, 1, u32::MAX, &data)])
            }
            ("alias", MX) => to(&[(10, "alias")]),
            ("renamed", MX) => ok(vec![cname(name, "plain.example"), mx("plain.example", 10, "good.hosts.example")]),
            ("renamedloop", _) => ok(vec![cname(name, "renamedloop2.example"), cname("renamedloop2.example", name)]),
            ("missinghost", MX) => to(&[(10, "missing")]),
            ("brokenhost", MX) => to(&[(10, "broken")]),
            ("mixed", MX) => to(&[(10, "missing"), (20, "broken")]),
            ("halfbrokenhost", MX) => to(&[(10, "halfbroken")]),
            ("missingandgood", MX) => to(&[(10, "missing"), (20, "good")]),
            ("zero", MX) => to(&[(10, "zero")]),
            ("metadata", MX) => to(&[(10, "metadata")]),
            ("multicast", MX) => to(&[(10, "multicast")]),
            ("linklocal", MX) => to(&[(10, "linklocal")]),
            ("member", MX) => to(&[(10, "member")]),
            ("memberandgood", MX) => to(&[(10, "member"), (20, "good")]),
            ("self", MX) => ok(vec![mx(name, 10, "relay.example")]),
            ("selflower", MX) => {
                let mut hosts = vec![mx(name, 10, "relay.example"), mx(name, 20, "evil.hosts.example")];
                hosts.insert(0, mx(name, 5, "dead.hosts.example"));
                ok(hosts)
            }
            ("selfequal", MX) => ok(vec![mx(name, 10, "RELAY.example"), mx(name, 10, "evil.hosts.example")]),
            ("hundred", MX) => {
                let answers = (0..100).map(|index| mx(name, index, &format!("many{index}.hosts.example"))).collect();
                match asked.tcp {
                    true => ok(answers),
                    // Too much for a datagram: said as every server says it.
                    false => vec![Packet { flags: 0x8380, ..Packet::to(asked, 0, vec![]) }.bytes()],
                }
            }
            _ => code(NXDOMAIN),
        }
    })
}

struct Setting {
    outbound: Outbound,
    good: FakeHop,
    evil: FakeHop,
    stub: Stub,
}

async fn setting(scope: &Scope) -> Setting {
    let stub = Stub::start(scope, script()).await;
    let good = FakeHop::start(scope, Manner::default()).await;
    let evil = FakeHop::start_on(scope, SocketAddr::from((EVIL, good.addr.port())), Manner::default()).await;
    let settings = DnsSettings { servers: vec![stub.addr], timeout: Duration::from_millis(300), attempts: 1 };
    let mut outbound = outbound(None);
    outbound.dns = Dns::new(&settings).unwrap();
    outbound.mx = MxRules { port: good.addr.port(), loopback_allowed: true };
    outbound.cluster = Arc::new(|| vec!["n1.relay.example".to_owned(), "192.0.2.77".to_owned()]);
    Setting { outbound, good, evil, stub }
}

fn by_mx() -> SendConnector {
    let mut route = SendConnector::new("mx");
    (route.mx, route.address_spaces, route.tls) = (true, vec![AddressSpace::All], SendTls::Off);
    route.check().unwrap();
    route
}

/// `delivers`, `bounces CODE ENHANCED`, or `defers`.
async fn outcome(outbound: &Outbound, label: &str) -> (String, String) {
    // Each domain is asked for once; what another domain's servers did must not matter here.
    outbound.health.forget();
    let domain = Domain::parse(&format!("{label}.example")).unwrap();
    match outbound.connect(&by_mx(), Some(&domain)).await {
        Ok(connection) => {
            let hop = connection.next_hop().to_owned();
            connection.quit().await;
            ("delivers".to_owned(), hop)
        }
        Err(none) if none.reply.code.is_permanent() => {
            let enhanced = none.reply.enhanced.map(|code| code.to_string()).unwrap_or_default();
            (format!("bounces {} {enhanced}", none.reply.code.0), none.reply.to_string())
        }
        Err(none) => ("defers".to_owned(), none.reply.to_string()),
    }
}

#[tokio::test]
async fn only_what_the_dns_says_for_certain_ends_a_letter() {
    let scope = Scope::new();
    let Setting { outbound, good, evil, stub } = setting(&scope).await;
    let table = [
        ("plain", "delivers"),
        ("second", "delivers"),
        ("equal", "delivers"),
        ("unsorted", "delivers"),
        ("twice", "delivers"),
        ("implicit", "delivers"),
        ("nullandmore", "delivers"),
        ("everyid", "delivers"),
        ("otherquestion", "delivers"),
        ("otherkind", "delivers"),
        ("truncated", "delivers"),
        ("forever", "delivers"),
        ("alias", "delivers"),
        ("renamed", "delivers"),
        ("missingandgood", "delivers"),
        ("null", "bounces 556 5.1.10"),
        ("nullten", "bounces 556 5.1.10"),
        ("nxdomain", "bounces 550 5.1.2"),
        ("nothing", "bounces 550 5.4.4"),
        ("missinghost", "bounces 550 5.4.4"),
        ("zero", "bounces 550 5.4.4"),
        ("metadata", "bounces 550 5.4.4"),
        ("multicast", "bounces 550 5.4.4"),
        ("linklocal", "bounces 550 5.4.4"),
        ("member", "bounces 554 5.4.6"),
        ("memberandgood", "bounces 554 5.4.6"),
        ("self", "bounces 554 5.4.6"),
        ("selfequal", "bounces 554 5.4.6"),
        ("selflower", "defers"),
        ("servfail", "defers"),
        ("formerr", "defers"),
        ("notimp", "defers"),
        ("refused", "defers"),
        ("refusedmx", "defers"),
        ("silent", "defers"),
        ("servfaila", "defers"),
        ("wrongid", "defers"),
        ("echo", "defers"),
        ("truncatedonly", "defers"),
        ("garbage", "defers"),
        ("short", "defers"),
        ("headeronly", "defers"),
        ("pointerloop", "defers"),
        ("longdata", "defers"),
        ("manysaid", "defers"),
        ("renamedloop", "bounces 550 5.4.4"),
        ("brokenhost", "defers"),
        ("mixed", "defers"),
        ("halfbrokenhost", "defers"),
        ("hundred", "defers"),
    ];
    let mut wrong = Vec::new();
    for (label, expected) in table {
        let (found, words) = outcome(&outbound, label).await;
        if found != expected {
            wrong.push(format!("{label}: {found}, not {expected}: {words}"));
        }
    }
    // Answers that belong to nobody's question are not used; what follows from that is the library's affair.
    for label in ["othername", "chaos"] {
        let (found, words) = outcome(&outbound, label).await;
        if found == "delivers" {
            wrong.push(format!("{label}: {words}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(
        evil.connections.load(Ordering::SeqCst),
        0,
        "nothing forged, forbidden or worse than ourselves is called"
    );
    assert_eq!(good.connections.load(Ordering::SeqCst), 15);
    // The bound on servers that are all dead: twenty records looked at, five dialled.
    let is_many = |asked: &&Asked| asked.name.starts_with("many") && asked.kind == A;
    let many = stub.asked.lock().unwrap().iter().filter(is_many).count();
    assert!((CONNECTS_MAX..=MX_RECORDS_MAX).contains(&many), "{many}");
    let (_, words) = outcome(&outbound, "hundred").await;
    assert_eq!(words.matches(" said ").count(), CONNECTS_MAX, "{words}");
    scope.end();
}

#[tokio::test]
async fn a_loopback_answer_of_the_dns_is_never_dialled_but_a_smart_host_may_be_there() {
    let scope = Scope::new();
    let Setting { mut outbound, good, .. } = setting(&scope).await;
    outbound.mx.loopback_allowed = false;
    let (found, words) = outcome(&outbound, "plain").await;
    assert_eq!(found, "bounces 550 5.4.4", "{words}");
    assert!(words.contains("an address of the machine itself"), "{words}");
    assert_eq!(good.connections.load(Ordering::SeqCst), 0);
    let mut route = SendConnector::new("smart");
    route.address_spaces = vec![AddressSpace::All];
    route.smart_hosts = vec![format!("good.hosts.example:{}", good.addr.port()).parse().unwrap()];
    outbound.connect(&route, None).await.unwrap().quit().await;
    // A smart host that does not exist is a mistake to be corrected: letters wait.
    route.smart_hosts = vec!["missing.hosts.example:25".parse().unwrap()];
    let none = outbound.connect(&route, None).await.unwrap_err();
    assert!(none.reply.code.0 == 451, "{}", none.reply);
    scope.end();
}

#[tokio::test]
async fn servers_that_failed_are_passed_over_and_named_with_their_words() {
    let scope = Scope::new();
    let Setting { outbound, .. } = setting(&scope).await;
    let domain = Domain::parse("hundred.example").unwrap();
    let first = outbound.connect(&by_mx(), Some(&domain)).await.unwrap_err();
    let second = outbound.connect(&by_mx(), Some(&domain)).await.unwrap_err();
    // The second attempt goes on where the first stopped.
    let labels = |none: &NoConnection| none.next_hop.split(", ").map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(labels(&first).len(), CONNECTS_MAX);
    assert_eq!(labels(&second)[..CONNECTS_MAX], labels(&first)[..], "passed over, and still named");
    assert_eq!(labels(&second).len(), 2 * CONNECTS_MAX);
    scope.end();
}
