//! `AUTH PLAIN` with the password remembered: a session from its greeting to its login, and the cache, beside the same
//! session that hashes each time. `cargo bench -p posthouse-benches --bench auth`

use std::net::IpAddr;
use std::time::{Duration, Instant};

use posthouse_benches::alternate;
use posthouse_node::credential::{Cached, Credential, NewSecret, VerifyCache, hash, verify_any};
use posthouse_node::smtp::session::{Action, AuthOutcome, Session, SessionConfig, TlsMode};
use posthouse_node::smtp::{Mechanism, sasl};

/// Logins of one round with the cache.
const LOGINS: u32 = 2_000;
/// Logins of one round that hash; each takes tens of milliseconds.
const HASHED: u32 = 5;

const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));

/// One session up to `235`; `check` decides. Answers whether it was accepted.
fn login(line: &[u8], check: &mut impl FnMut(&str, &[u8]) -> bool) -> bool {
    let now = Instant::now();
    let mut config = SessionConfig::new("relay.example", SOURCE);
    config.tls = TlsMode::Implicit;
    config.auth_tls = vec![Mechanism::Login, Mechanism::Plain];
    let mut session = Session::new(config, now);
    let mut accepted = false;
    let mut drive = |session: &mut Session| {
        while let Some(action) = session.poll_action() {
            if let Action::CheckAuth { user, password, .. } = action {
                accepted = check(&user, password.expose());
                session.handle_auth(now, if accepted { AuthOutcome::Accepted } else { AuthOutcome::Refused });
            }
        }
    };
    drive(&mut session);
    session.handle_bytes(now, b"EHLO printer.example\r\n");
    drive(&mut session);
    session.handle_bytes(now, line);
    drive(&mut session);
    accepted
}

fn main() {
    let mut credential = Credential::new("scanner@corp.example");
    let phc = hash(b"correct horse", &[7; 16]).expect("a password that can be hashed");
    credential.set_secret(NewSecret { phc, scram: None, created_at_ms: 1 });
    let line = format!("AUTH PLAIN {}\r\n", sasl::encode(b"\0scanner@corp.example\0correct horse"));
    let ids: Vec<u32> = credential.verifiers.iter().map(|verifier| verifier.id).collect();
    let mut cache = VerifyCache::new(&[9; 32], 10_000);
    let key = cache.key(&credential.user, SOURCE, &ids, 7, b"correct horse");
    cache.remember(key, Cached::Verified(1), Instant::now());

    let mut remembered = |user: &str, password: &[u8]| {
        let user = Credential::canonical_user(user);
        let live: Vec<u32> = credential.live_verifiers(5).map(|verifier| verifier.id).collect();
        let key = cache.key(&user, SOURCE, &live, 7, password);
        let found = cache.find(&key, Instant::now());
        matches!(found, Some(Cached::Verified(_))) && credential.facts_ok(SOURCE, "submission", 5).is_ok()
    };
    let mut hashed = |_: &str, password: &[u8]| {
        let live = credential.live_verifiers(5).map(|verifier| (verifier.id, verifier.phc.as_str()));
        verify_any(password, live).is_some() && credential.facts_ok(SOURCE, "submission", 5).is_ok()
    };
    let pair = alternate(
        || (0..LOGINS).filter(|_| login(line.as_bytes(), &mut remembered)).count(),
        || (0..HASHED).filter(|_| login(line.as_bytes(), &mut hashed)).count(),
    );
    let each = |time: Duration, count: u32| time.as_secs_f64() / f64::from(count);
    let (ours, peer) = (each(pair.ours, LOGINS), each(pair.peer, HASHED));
    println!("AUTH PLAIN, one core, medians of 9 alternating rounds");
    println!("remembered: {:>10.0} logins/s   {:>9.2} us each", 1.0 / ours, ours * 1e6);
    println!("hashed:     {:>10.0} logins/s   {:>9.2} us each", 1.0 / peer, peer * 1e6);
    println!("ratio:      {:.6}", ours / peer);
}
