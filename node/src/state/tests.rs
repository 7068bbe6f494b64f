//! The same log gives the same state, by whatever road; and what `apply` refuses, it refuses whole.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::connector::{DomainKind, PermissionGroup, ReceiveConnector, RemoteIpRange};
use crate::pki::sha256_hex;

const SECRET: &str = "00112233";

pub(super) fn command(change: Change) -> Command {
    Command {
        who: "admin".to_owned(),
        from: "unix".to_owned(),
        at_ms: 1_000,
        reason: "test".to_owned(),
        if_revision: None,
        accept_risk: false,
        change,
    }
}

fn member(id: u64, name: &str) -> Member {
    Member {
        id,
        name: name.to_owned(),
        rpc_address: format!("127.0.0.1:71{id:02}"),
        services: vec![],
        role: MemberRole::Voter,
        state: MemberState::Active,
        version: "0".to_owned(),
        http_address: String::new(),
        joined_at_ms: 0,
        weight: MEMBER_WEIGHT_DEFAULT,
    }
}

pub(super) fn init() -> Change {
    let sealed = SealedSecret("sealed".to_owned());
    Change::InitCluster(Box::new(NewCluster {
        facts: ClusterFacts {
            name: "test".to_owned(),
            id: "id".to_owned(),
            ca_pem: "pem".to_owned(),
            sealed_ca_key: sealed.clone(),
            next_node_id: 2,
            created_at_ms: 0,
        },
        member: member(1, "n1"),
        connectors: vec![(ReceiveConnector::default_receive(), vec![RemoteIpRange::all_v4(), RemoteIpRange::all_v6()])],
        certificate: Certificate {
            name: "default".to_owned(),
            chain_pem: String::new(),
            sealed_key: sealed,
            names: vec![],
            subject: String::new(),
            issuer: String::new(),
            not_after_ms: 0,
        },
    }))
}

pub(super) fn put(name: &str, create: bool, ranges: &[&str]) -> Change {
    let mut connector = ReceiveConnector::new(name);
    connector.bindings = crate::connector::Binding::everywhere(25);
    connector.permission_groups = [PermissionGroup::AnonymousUsers].into();
    let ranges = ranges.iter().map(|text| text.parse().unwrap()).collect();
    Change::PutConnector { create, connector: Box::new(connector), ranges: Some(ranges) }
}

pub(super) fn relay(name: &str, ranges: &[&str]) -> Change {
    let Change::PutConnector { create, mut connector, ranges } = put(name, true, ranges) else { unreachable!() };
    connector.rights.insert("anonymous:accept_any_recipient".parse().unwrap());
    Change::PutConnector { create, connector, ranges }
}

pub(super) fn set(values: &[(&str, Option<&str>)]) -> Change {
    let values = values.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect();
    Change::SetSettings { values }
}

pub(super) fn run(state: &mut ClusterState, revision: u64, change: Change) -> Outcome {
    apply(state, &command(change), revision).outcome
}

pub(super) fn refusal(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        Outcome::Applied { .. } => panic!("it should have been refused"),
    }
}

/// A state with something of everything, and the log that made it.
fn log() -> Vec<Change> {
    vec![
        init(),
        put("a", true, &["10.0.0.0/24", "10.0.1.5"]),
        relay("b", &["10.0.0.7"]),
        Change::PutDomain {
            create: true,
            domain: AcceptedDomain {
                name: "corp.example".to_owned(),
                with_subdomains: true,
                kind: DomainKind::Authoritative,
            },
        },
        Change::CreateJoinToken {
            token: JoinToken {
                id: "t".to_owned(),
                secret_sha256: sha256_hex(SECRET.as_bytes()),
                role: JoinRole::Voter,
                uses_left: 2,
                expires_at_ms: 5_000,
                created_by: "admin".to_owned(),
            },
        },
        join("n2", SECRET),
        put("a", false, &["10.0.0.0/24"]),
        Change::SetMemberState { name: "n2".to_owned(), state: MemberState::Draining, force: false },
        Change::DeleteConnector { name: "b".to_owned() },
        set(&[("relay_addresses_max", Some("7")), ("dsn_copy_to", Some("a@corp.example,b@corp.example"))]),
    ]
}

fn join(name: &str, secret: &str) -> Change {
    Change::AddMember {
        token_id: "t".to_owned(),
        secret_sha256: sha256_hex(secret.as_bytes()),
        name: name.to_owned(),
        rpc_address: "127.0.0.1:1".to_owned(),
        services: vec![],
        version: "0".to_owned(),
        http_address: String::new(),
    }
}

pub(super) fn apply_all(state: &mut ClusterState, changes: &[Change], first: u64) {
    for (revision, change) in (first..).zip(changes) {
        let outcome = run(state, revision, change.clone());
        assert!(matches!(outcome, Outcome::Applied { changed: true, .. }), "{change:?}: {outcome:?}");
    }
}

/// What a snapshot carries, put into an empty state.
pub(super) fn through_a_snapshot(state: &ClusterState) -> ClusterState {
    let mut copy = ClusterState::default();
    for key in state.object_keys() {
        copy.restore_object(&key.to_bytes(), &state.encode_object(&key).unwrap()).unwrap();
    }
    copy
}

#[test]
fn the_same_log_gives_the_same_state_also_through_a_snapshot() {
    let changes = log();
    for cut in 0..=changes.len() {
        let mut straight = ClusterState::default();
        apply_all(&mut straight, &changes, 1);
        let mut early = ClusterState::default();
        apply_all(&mut early, &changes[..cut], 1);
        let mut resumed = through_a_snapshot(&early);
        assert_eq!(resumed.digest, early.digest, "a snapshot after {cut} entries");
        apply_all(&mut resumed, &changes[cut..], cut as u64 + 1);
        assert_eq!(resumed, straight);
        assert_eq!(resumed.digest.to_string(), straight.digest.to_string());
    }
}

#[test]
fn the_digest_does_not_depend_on_the_road() {
    let mut one = ClusterState::default();
    apply_all(&mut one, &log()[..2], 1);
    let before = one.digest;
    apply_all(&mut one, &[relay("b", &["10.0.0.7"])], 3);
    assert_ne!(one.digest, before);
    assert_eq!(through_a_snapshot(&one).digest, one.digest);
}

#[test]
fn a_refusal_leaves_the_state_untouched() {
    let mut state = ClusterState::default();
    apply_all(&mut state, &log()[..3], 1);
    let before = state.clone();
    for change in [
        put("a", true, &["10.9.0.0/16"]),
        put("c", true, &["10.0.0.0/24"]),
        put("c", true, &["10.0.0.128-10.0.1.4"]),
        put("missing", false, &["10.9.0.1"]),
        put("a", false, &[]),
        relay("world", &["10.0.0.0/8"]),
        relay("world", &["0.0.0.0/0"]),
        join("n2", SECRET),
        Change::DeleteConnector { name: "missing".to_owned() },
        init(),
    ] {
        let refused = refusal(run(&mut state, 9, change));
        assert!(!refused.message.is_empty() && !refused.cause.is_empty(), "{refused:?}");
        assert_eq!(state, before);
    }
}

#[test]
fn overlapping_ranges_are_refused_naming_both_sides() {
    let mut state = ClusterState::default();
    apply_all(&mut state, &log()[..2], 1);
    let refused = refusal(run(&mut state, 9, put("c", true, &["10.0.0.128-10.0.1.4"])));
    for word in ["\"a\"", "10.0.0.0/24", "\"c\"", "10.0.0.128-10.0.1.4"] {
        assert!(refused.cause.contains(word), "{word} is not in {:?}", refused.cause);
    }
}

#[test]
fn a_token_is_good_for_its_uses_its_secret_and_its_time() {
    let mut state = ClusterState::default();
    apply_all(&mut state, &log()[..5], 1);
    assert!(refusal(run(&mut state, 9, join("n2", "wrong"))).cause.contains("secret"));
    let mut late = command(join("n2", SECRET));
    late.at_ms = 5_000;
    assert!(refusal(apply(&mut state, &late, 9).outcome).cause.contains("expired"));
    let joined = run(&mut state, 9, join("n2", SECRET));
    assert!(matches!(joined, Outcome::Applied { assigned: Some(2), .. }), "{joined:?}");
    assert!(refusal(run(&mut state, 10, join("n2", SECRET))).message.contains("n2"), "names are unique");
    let joined = run(&mut state, 10, join("n3", SECRET));
    assert!(matches!(joined, Outcome::Applied { assigned: Some(3), .. }), "ids are never reused: {joined:?}");
    assert!(refusal(run(&mut state, 11, join("n4", SECRET))).cause.contains("used"));
}

#[test]
fn a_stale_revision_is_a_conflict() {
    let mut state = ClusterState::default();
    apply_all(&mut state, &log()[..2], 1);
    let mut stale = command(put("a", false, &["10.0.0.0/24"]));
    stale.if_revision = Some(1);
    let refused = refusal(apply(&mut state, &stale, 9).outcome);
    assert_eq!((refused.kind, refused.code.as_str()), (RefusalKind::Conflict, "PH-REV-001"));
    stale.if_revision = Some(2);
    assert!(matches!(apply(&mut state, &stale, 9).outcome, Outcome::Applied { .. }));
}

#[test]
fn the_guard_gives_way_to_a_reason_only() {
    let mut state = ClusterState::default();
    apply_all(&mut state, &log()[..1], 1);
    let mut wide = command(relay("wide", &["10.0.0.0/16"]));
    wide.accept_risk = true;
    wide.reason = String::new();
    assert_eq!(refusal(apply(&mut state, &wide, 2).outcome).code, "PH-ALLOW-007");
    wide.reason = "ticket 1".to_owned();
    let Outcome::Applied { warnings, .. } = apply(&mut state, &wide, 2).outcome else { panic!("it has a reason now") };
    assert!(warnings[0].contains("guard"), "{warnings:?}");
    assert_eq!(state.audit.values().next_back().unwrap().reason, "ticket 1");
}

#[test]
fn the_last_active_node_is_not_drained_by_mistake() {
    let mut state = ClusterState::default();
    apply_all(&mut state, &log()[..8], 1);
    let drain = |force| Change::SetMemberState { name: "n1".to_owned(), state: MemberState::Draining, force };
    assert_eq!(refusal(run(&mut state, 9, drain(false))).code, "PH-NODE-003");
    assert!(matches!(run(&mut state, 9, drain(true)), Outcome::Applied { changed: true, .. }));
}

#[test]
fn a_front_that_dials_from_a_relaying_address_is_refused() {
    let mut state = ClusterState::default();
    apply_all(&mut state, &log()[..3], 1);
    let token = JoinToken {
        id: "f".to_owned(),
        secret_sha256: sha256_hex(SECRET.as_bytes()),
        role: JoinRole::Front,
        uses_left: 9,
        expires_at_ms: 5_000,
        created_by: String::new(),
    };
    apply_all(&mut state, &[Change::CreateJoinToken { token }], 4);
    let front = |address: &str| Change::AddFront {
        token_id: "f".to_owned(),
        secret_sha256: sha256_hex(SECRET.as_bytes()),
        name: "front1".to_owned(),
        source_addresses: vec![address.parse().unwrap()],
        key: FrontSigningKey { id: "k".to_owned(), sealed_key: SealedSecret(String::new()) },
        http_address: String::new(),
    };
    assert_eq!(refusal(run(&mut state, 5, front("10.0.0.7"))).code, "PH-FRONT-002");
    apply_all(&mut state, &[front("10.7.0.1")], 5);
    // And a connector that would let a front's address relay is refused afterwards.
    assert_eq!(refusal(run(&mut state, 6, relay("late", &["10.7.0.0/24"]))).code, "PH-ALLOW-007");
}

#[test]
fn commands_and_outcomes_survive_their_encoding() {
    for change in log() {
        let command = command(change);
        assert_eq!(Command::decode(&command.encode()).unwrap(), command);
    }
    assert!(matches!(Command::decode(&[]), Err(CommandDecodeError::Empty)));
    assert!(matches!(Command::decode(&[200, 1]), Err(CommandDecodeError::Version(200))));
    assert!(matches!(Command::decode(&[COMMAND_VERSION, b'{']), Err(CommandDecodeError::Broken(_))));
}

#[test]
fn keys_survive_their_encoding_and_nonsense_is_refused() {
    let mut state = ClusterState::default();
    apply_all(&mut state, &log(), 1);
    for key in state.object_keys() {
        assert_eq!(ObjectKey::from_bytes(&key.to_bytes()).unwrap(), key);
    }
    for bytes in [&b""[..], &[0], &[4, b'x'], &[9, 1], &[99, 1]] {
        assert!(ObjectKey::from_bytes(bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn a_certificate_is_deleted_only_when_no_connector_needs_it() {
    let mut state = ClusterState::default();
    run(&mut state, 1, init());
    let certificate = |name: &str, subject: &str| Certificate {
        name: name.to_owned(),
        chain_pem: String::new(),
        sealed_key: SealedSecret("sealed".to_owned()),
        names: vec![],
        subject: subject.to_owned(),
        issuer: "O=Corp, CN=Corp CA".to_owned(),
        not_after_ms: 0,
    };
    let store = |certificate| Change::PutCertificate { certificate };
    let delete = |name: &str| Change::DeleteCertificate { name: name.to_owned() };
    run(&mut state, 2, store(certificate("smtp", "CN=smtp.corp.example, O=Corp")));
    let Change::PutConnector { mut connector, ranges, .. } = put("erp", true, &["10.0.0.0/24"]) else { unreachable!() };
    connector.tls_certificate_name = Some("<I>CN=Corp CA,O=Corp<S>O=corp,CN=SMTP.corp.example".to_owned());
    run(&mut state, 3, Change::PutConnector { create: true, connector, ranges });
    let Outcome::Refused(refusal) = run(&mut state, 4, delete("smtp")) else { panic!("it is needed") };
    assert_eq!((refusal.code.as_str(), refusal.kind), ("PH-TLS-004", RefusalKind::Denied));
    assert!(refusal.cause.contains("erp"), "{refusal:?}");
    // A renewal under the same names takes its place.
    run(&mut state, 5, store(certificate("smtp-2027", "O=Corp, CN=smtp.corp.example")));
    assert!(matches!(run(&mut state, 6, delete("smtp")), Outcome::Applied { changed: true, .. }));
    assert!(matches!(run(&mut state, 7, delete("smtp-2027")), Outcome::Refused(_)));
    let Outcome::Refused(refusal) = run(&mut state, 8, delete("smtp")) else { panic!("it is gone") };
    assert_eq!(refusal.code, "PH-TLS-001");
    // The authorities of devices' certificates are one setting among others, and are written only when they change.
    let authorities = || Change::PutClientAuthorities { pem: "pem".to_owned() };
    assert!(matches!(run(&mut state, 9, authorities()), Outcome::Applied { changed: true, .. }));
    assert!(matches!(run(&mut state, 10, authorities()), Outcome::Applied { changed: false, .. }));
    assert_eq!(state.settings.relay_addresses_max, RELAY_ADDRESSES_MAX_DEFAULT);
    assert_eq!(state.settings.revision, 9);
}

#[test]
fn settings_are_set_by_name_all_or_none() {
    let mut state = ClusterState::default();
    run(&mut state, 1, init());
    assert!(matches!(run(&mut state, 2, set(&[("postmaster", None)])), Outcome::Applied { changed: false, .. }));
    let before = state.clone();
    let first = ("relay_addresses_max", Some("9"));
    assert_eq!(refusal(run(&mut state, 2, set(&[first, ("postmastr", Some("a@b.example"))]))).code, "PH-SET-001");
    assert_eq!(refusal(run(&mut state, 2, set(&[first, ("postmaster", Some("nonsense"))]))).code, "PH-SET-002");
    assert_eq!(state, before);
    apply_all(&mut state, &[set(&[first, ("postmaster", Some("a@b.example"))])], 2);
    assert_eq!((state.settings.revision, state.settings.relay_addresses_max), (2, 9));
    assert_eq!(state.audit[&2].what, "set relay_addresses_max = 9, postmaster = a@b.example");
    let mut stale = command(set(&[("postmaster", Some(""))]));
    stale.if_revision = Some(1);
    assert_eq!(refusal(apply(&mut state, &stale, 3).outcome).code, "PH-REV-001");
    stale.if_revision = Some(2);
    assert!(matches!(apply(&mut state, &stale, 3).outcome, Outcome::Applied { changed: true, .. }));
    assert_eq!(state.audit[&3].what, "set postmaster to nothing");
    apply_all(&mut state, &[set(&[("relay_addresses_max", None)])], 4);
    assert_eq!(*state.settings, Settings { revision: 4, ..Settings::default() });
    assert_eq!(through_a_snapshot(&state).digest, state.digest);
}
