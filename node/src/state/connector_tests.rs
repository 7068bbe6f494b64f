//! Who gains relay, what can be taken back, and how many ranges there may be.
#![allow(clippy::unwrap_used)]

use super::tests::{apply_all, command, init, put, refusal, relay, run, set, through_a_snapshot};
use super::*;
use crate::connector::{ConnectorTable, RemoteIpRange};

fn begun() -> ClusterState {
    let mut state = ClusterState::default();
    apply_all(&mut state, &[init()], 1);
    state
}

fn applied(outcome: Outcome) -> (Vec<String>, Vec<String>) {
    match outcome {
        Outcome::Applied { gains, warnings, .. } => (gains.iter().map(ToString::to_string).collect(), warnings),
        Outcome::Refused(refused) => panic!("{refused:?}"),
    }
}

/// The same connector, changed.
fn changed(state: &ClusterState, name: &str, change: impl FnOnce(&mut ReceiveConnector)) -> Change {
    let mut connector = (*state.connectors[name].value).clone();
    change(&mut connector);
    Change::PutConnector { create: false, connector: Box::new(connector), ranges: None }
}

fn add(connector: &str, ranges: &[&str], expires_at_ms: Option<i64>) -> Change {
    let entries = ranges.iter().map(|text| AllowlistEntry {
        range: text.parse().unwrap(),
        note: "note".to_owned(),
        owner: String::new(),
        ticket: String::new(),
        expires_at_ms,
        created_by: "admin".to_owned(),
        created_at_ms: 0,
    });
    Change::AddAllowlistEntries { connector: connector.to_owned(), entries: entries.collect() }
}

fn remove(connector: &str, ranges: &[&str]) -> Change {
    let ranges = ranges.iter().map(|text| text.parse().unwrap()).collect();
    Change::RemoveAllowlistEntries { connector: connector.to_owned(), ranges }
}

fn roll_back(to: u64, object: Option<&str>) -> Change {
    Change::Rollback { to, object: object.map(ToOwned::to_owned) }
}

/// The connector that takes a device on 25, and whether strangers there may relay.
fn decided(state: &ClusterState, source: &str, now_ms: i64) -> (String, bool) {
    let view = StateView::build(state.clone(), 1, None);
    let found = view.table.find("0.0.0.0:25".parse().unwrap(), source.parse().unwrap(), now_ms).unwrap();
    (found.connector.name.clone(), !found.expired && found.connector.relays_anonymously())
}

/// `wide` relays for a /24; `carve` inside it does not.
fn carved() -> ClusterState {
    let mut state = begun();
    apply_all(&mut state, &[relay("wide", &["10.0.0.0/24"]), put("carve", true, &["10.0.0.64/26", "10.0.0.7"])], 2);
    state
}

#[test]
fn who_falls_to_a_relaying_connector_is_named_whichever_way() {
    let gain = |range: &str| format!("{range} falls from connector \"carve\" to \"wide\"");
    let both = vec![gain("10.0.0.7"), gain("10.0.0.64/26")];
    let disable = changed(&carved(), "carve", |connector| connector.enabled = false);
    assert_eq!(applied(run(&mut carved(), 9, disable)).0, both);
    assert_eq!(applied(run(&mut carved(), 9, Change::DeleteConnector { name: "carve".to_owned() })).0, both);
    assert_eq!(applied(run(&mut carved(), 9, remove("carve", &["10.0.0.7"]))).0, both[..1]);
    assert_eq!(applied(run(&mut carved(), 9, put("carve", false, &["10.0.0.7"]))).0, both[1..]);
    let moved =
        changed(&carved(), "carve", |connector| connector.bindings = crate::connector::Binding::everywhere(587));
    assert_eq!(applied(run(&mut carved(), 9, moved)).0, both);
    let (_, warnings) = applied(run(&mut carved(), 9, Change::DeleteConnector { name: "carve".to_owned() }));
    assert_eq!(warnings, ["2 ranges with 65 addresses gain relay"]);
    // Before and after really are so.
    let mut state = carved();
    assert_eq!(decided(&state, "10.0.0.7", 0), ("carve".to_owned(), false));
    run(&mut state, 9, remove("carve", &["10.0.0.7"]));
    assert_eq!(decided(&state, "10.0.0.7", 0), ("wide".to_owned(), true));
}

#[test]
fn nobody_gains_where_the_wider_range_does_not_relay_or_the_device_did_already() {
    let mut state = begun();
    apply_all(&mut state, &[put("wide", true, &["10.0.0.0/24"]), relay("inner", &["10.0.0.7"])], 2);
    assert_eq!(applied(run(&mut state.clone(), 9, Change::DeleteConnector { name: "inner".to_owned() })).0, [""; 0]);
    apply_all(&mut state, &[relay("inmost", &["10.0.1.0/24"])], 5);
    apply_all(&mut state, &[relay("within", &["10.0.1.9"])], 6);
    assert_eq!(applied(run(&mut state, 9, Change::DeleteConnector { name: "within".to_owned() })).0, [""; 0]);
}

#[test]
fn an_expired_range_holds_its_device_back_and_its_removal_is_told() {
    let mut state = begun();
    apply_all(&mut state, &[relay("wide", &["10.0.0.0/24"]), relay("lent", &["10.0.0.200"])], 2);
    apply_all(&mut state, &[add("lent", &["10.0.0.7"], Some(900))], 4);
    assert_eq!(decided(&state, "10.0.0.7", 899), ("lent".to_owned(), true));
    assert_eq!(decided(&state, "10.0.0.7", 900), ("lent".to_owned(), false));
    // The time of a command is 1000: the range has expired by then.
    let (gains, _) = applied(run(&mut state, 9, remove("lent", &["10.0.0.7"])));
    assert_eq!(gains, ["10.0.0.7 falls from connector \"lent\" to \"wide\""]);
}

#[test]
fn a_gain_beyond_the_guard_needs_a_reason() {
    let mut state = begun();
    let mut wide = command(relay("wide", &["10.0.0.0/8"]));
    wide.accept_risk = true;
    apply(&mut state, &wide, 2);
    apply_all(&mut state, &[put("carve", true, &["10.1.0.0/16"])], 3);
    let delete = Change::DeleteConnector { name: "carve".to_owned() };
    let disable = changed(&state, "carve", |connector| connector.enabled = false);
    let before = state.clone();
    for change in [delete.clone(), disable, put("carve", false, &["10.1.0.7"])] {
        assert_eq!(refusal(run(&mut state, 9, change)).code, "PH-ALLOW-007");
        assert_eq!(state, before);
    }
    let mut meant = command(delete);
    meant.accept_risk = true;
    let (gains, warnings) = applied(apply(&mut state, &meant, 9).outcome);
    assert_eq!(gains.len(), 1);
    assert!(warnings[0].contains("guard overridden"), "{warnings:?}");
}

#[test]
fn a_rollback_brings_back_what_was_and_nothing_else() {
    let mut state = begun();
    apply_all(&mut state, &[put("a", true, &["10.0.0.0/24"]), put("b", true, &["10.1.0.0/24"])], 2);
    let then = state.clone();
    let domain = AcceptedDomain {
        name: "corp.example".to_owned(),
        with_subdomains: false,
        kind: crate::connector::DomainKind::Authoritative,
    };
    let larger = changed(&state, "a", |connector| connector.max_message_size = 70_000);
    apply_all(
        &mut state,
        &[
            larger,
            add("a", &["10.0.0.7"], None),
            remove("a", &["10.0.0.0/24"]),
            Change::DeleteConnector { name: "b".to_owned() },
            put("c", true, &["10.2.0.0/24"]),
            Change::PutDomain { create: true, domain },
        ],
        4,
    );
    let late = state.clone();
    applied(run(&mut state, 10, roll_back(3, None)));
    let plain = |state: &ClusterState| {
        let keys = state.object_keys().into_iter();
        keys.filter_map(|key| Some((key.clone(), state.object_json(&key)?))).collect::<Vec<_>>()
    };
    assert_eq!(plain(&state), plain(&then));
    assert_eq!(state.connectors["b"].revision, 10, "what was brought back is new");
    assert_eq!(through_a_snapshot(&state).digest, state.digest);
    // The rollback itself can be taken back.
    applied(run(&mut state, 11, roll_back(9, None)));
    assert_eq!(plain(&state), plain(&late));
    // One object alone.
    applied(run(&mut state, 12, roll_back(3, Some("connector/a"))));
    assert_eq!(state.connectors["a"].value, then.connectors["a"].value);
    assert_eq!(state.allowlist["a"].keys().collect::<Vec<_>>(), then.allowlist["a"].keys().collect::<Vec<_>>());
    assert!(!state.connectors.contains_key("b") && state.connectors.contains_key("c"));
    assert_eq!(refusal(run(&mut state, 13, roll_back(3, Some("connector/none")))).code, "PH-HIST-002");
    let outcome = run(&mut state, 13, roll_back(12, None));
    assert!(matches!(outcome, Outcome::Applied { changed: false, .. }), "{outcome:?}");
}

#[test]
fn a_rollback_of_settings_keeps_the_authorities_of_certificates() {
    let mut state = begun();
    let authorities = |pem: &str| Change::PutClientAuthorities { pem: pem.to_owned() };
    let memory = |value| set(&[("postmaster", Some("a@corp.example")), ("back_pressure_memory", value)]);
    apply_all(&mut state, &[authorities("old"), memory(Some("4/6/5/3")), authorities("new")], 2);
    assert_eq!(state.settings.revision, 4);
    apply_all(&mut state, &[roll_back(2, Some("settings"))], 5);
    let expected = Settings { revision: 5, client_ca_pem: "new".to_owned(), ..Settings::default() };
    assert_eq!(*state.settings, expected);
    assert_eq!(through_a_snapshot(&state).digest, state.digest);
    // Where nothing but the authorities differs, nothing is done.
    let outcome = run(&mut state, 6, roll_back(1, Some("settings")));
    assert!(matches!(outcome, Outcome::Applied { changed: false, .. }), "{outcome:?}");
    assert_eq!(*state.settings, expected);
    // And the rollback can be taken back.
    apply_all(&mut state, &[roll_back(4, None)], 6);
    assert_eq!(state.settings.postmaster.as_ref().map(ToString::to_string).as_deref(), Some("a@corp.example"));
    assert_eq!((state.settings.revision, state.settings.client_ca_pem.as_str()), (6, "new"));
}

#[test]
fn a_rollback_is_held_to_every_rule() {
    let mut state = carved();
    // What a rollback would give back to `wide` is named.
    let before_carve = 2;
    let (gains, _) = applied(run(&mut state.clone(), 9, roll_back(before_carve, None)));
    assert_eq!(gains.len(), 2, "{gains:?}");
    // A conflict with what came since is refused.
    apply_all(&mut state, &[remove("carve", &["10.0.0.64/26"]), put("d", true, &["10.0.0.64/26"])], 4);
    assert_eq!(refusal(run(&mut state, 9, roll_back(3, Some("connector/carve")))).code, "PH-CONN-005");
    // And so is a relay wider than the guard allows.
    let mut state = begun();
    let mut wide = command(relay("wide", &["10.0.0.0/8"]));
    wide.accept_risk = true;
    apply(&mut state, &wide, 2);
    apply_all(&mut state, &[Change::DeleteConnector { name: "wide".to_owned() }], 3);
    assert_eq!(refusal(run(&mut state, 9, roll_back(2, None))).code, "PH-ALLOW-007");
}

#[test]
fn history_is_bounded_and_says_where_it_ends() {
    let mut state = begun();
    apply_all(&mut state, &[put("a", true, &["10.0.0.0/8"])], 2);
    let many: Vec<String> =
        (0..=HISTORY_OBJECTS_PER_CHANGE_MAX).map(|n| format!("10.1.{}.{}", n / 256, n % 256)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    apply_all(&mut state, &[add("a", &many, None)], 3);
    assert!(!state.history[&3].is_complete() && state.history[&3].replaced.is_empty());
    assert_eq!(refusal(run(&mut state, 4, roll_back(2, None))).code, "PH-HIST-001");
    assert_eq!(state.as_of(2, None).unwrap_err(), 3);
    assert!(state.as_of(3, None).unwrap().is_empty());
    for revision in 4..HISTORY_RECORDS_MAX as u64 + 10 {
        let size = 70_000 + revision;
        let change = changed(&state, "a", |connector| connector.max_message_size = size);
        run(&mut state, revision, change);
    }
    assert_eq!(state.history.len(), HISTORY_RECORDS_MAX);
    let oldest = *state.history.keys().next().unwrap();
    assert_eq!(refusal(run(&mut state, 9_999, roll_back(oldest - 1, None))).code, "PH-HIST-001");
    applied(run(&mut state, 9_999, roll_back(oldest, None)));
    assert_eq!(state.connectors["a"].value.max_message_size, 70_000 + oldest);
}

#[test]
fn a_node_inside_a_relaying_range_is_guarded_against() {
    let mut state = begun();
    let announce = |address: &str| Change::UpdateMember {
        id: 1,
        rpc_address: address.to_owned(),
        services: vec![],
        version: "1".to_owned(),
        http_address: String::new(),
    };
    apply_all(&mut state, &[announce("10.0.0.5:7"), put("inside", true, &["10.0.0.0/24"])], 2);
    assert_eq!(refusal(run(&mut state, 4, relay("r", &["10.0.0.0/28"]))).code, "PH-ALLOW-007");
    apply_all(&mut state, &[relay("r", &["10.0.0.64/28"])], 4);
    let (_, warnings) = applied(run(&mut state, 5, announce("10.0.0.66:7")));
    assert!(warnings[0].contains("10.0.0.66"), "a node that moves in is told: {warnings:?}");
    // Loopback is a cluster on one machine.
    apply_all(&mut state, &[announce("127.0.0.1:7"), relay("local", &["127.0.0.0/28"])], 6);
}

#[test]
fn lint_finds_what_should_not_stay() {
    let mut state = begun();
    let mut wide = command(relay("wide", &["10.0.0.0/22", "10.0.1.0/25", "10.9.0.1"]));
    wide.accept_risk = true;
    apply(&mut state, &wide, 2);
    let day = 86_400_000;
    apply_all(
        &mut state,
        &[
            add("wide", &["10.0.0.9"], Some(500)),
            add("wide", &["10.0.0.10"], Some(1_000 + 3 * day)),
            add("wide", &["10.0.0.11"], Some(1_000 + 30 * day)),
            put("carve", true, &["10.0.2.0/24"]),
            add("wide", &["10.0.2.7"], None),
        ],
        3,
    );
    let found = lint::allowlist(&state, None, 1_000);
    let words: Vec<String> = found.iter().map(|f| format!("{} {}", f.range, f.problem.as_str())).collect();
    assert_eq!(
        words,
        ["10.0.0.0/22 too_wide", "10.0.0.9 expired", "10.0.0.10 expiring", "10.0.1.0/25 redundant"],
        "10.0.2.7 is no news twice: `carve` lies between"
    );
    assert!(lint::allowlist(&state, Some("carve"), 1_000).is_empty());
    let overlaps = lint::overlaps(&state);
    assert!(
        overlaps.iter().any(|o| o.inner.0 == "carve" && o.outer.0 == "wide" && o.effect.contains("may not relay here"))
    );
    assert!(overlaps.iter().any(|o| o.inner.1 == "10.0.2.7".parse::<RemoteIpRange>().unwrap() && o.outer.0 == "carve"));
}

#[test]
fn a_range_listed_again_changes_its_entry_and_one_warning_says_so() {
    let mut state = begun();
    apply_all(&mut state, &[put("a", true, &["10.0.0.1", "10.0.0.2"])], 2);
    let (_, warnings) = applied(run(&mut state, 3, add("a", &["10.0.0.1", "10.0.0.2", "10.0.0.3"], Some(5))));
    assert_eq!(warnings, ["10.0.0.1, 10.0.0.2 were listed already; what was given is new, the rest stays"]);
    assert!(state.allowlist["a"].values().all(|entry| entry.value.expires_at_ms == Some(5)));

    // What a renewal does not say stays, and so does who made the entry.
    let entry = |note: &str, owner: &str, expires_at_ms, by: &str| AllowlistEntry {
        range: "10.0.0.9".parse().unwrap(),
        note: note.to_owned(),
        owner: owner.to_owned(),
        ticket: String::new(),
        expires_at_ms,
        created_by: by.to_owned(),
        created_at_ms: 7,
    };
    let add = |entry| Change::AddAllowlistEntries { connector: "a".to_owned(), entries: vec![entry] };
    let found = |state: &ClusterState| {
        let entries = &state.allowlist["a"];
        entries.get(&"10.0.0.9".parse().unwrap()).unwrap().value.clone()
    };
    applied(run(&mut state, 4, add(entry("printer", "anna", Some(50), "ops"))));
    applied(run(&mut state, 5, add(entry("", "", Some(90), "lint"))));
    assert_eq!(found(&state), entry("printer", "anna", Some(90), "ops"));
    applied(run(&mut state, 6, add(entry("scanner", "", None, "lint"))));
    assert_eq!(found(&state), entry("scanner", "anna", Some(90), "ops"));
    applied(run(&mut state, 7, add(entry("", "", Some(NEVER_MS), "lint"))));
    assert_eq!(found(&state), entry("scanner", "anna", None, "ops"));
}

/// What a change costs where many ranges are listed, and that every one of them is found. Ten thousand here; by hand
/// with `POSTHOUSE_RANGES=1000000` in release.
#[test]
fn many_ranges_are_added_in_batches_found_and_changed_one_by_one() {
    let count: u32 = std::env::var("POSTHOUSE_RANGES").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000);
    let address = |n: u32| std::net::Ipv4Addr::from(0x0a00_0000 + n * 3);
    let mut state = begun();
    apply_all(&mut state, &[put("many", true, &["192.0.2.1"])], 2);
    let began = std::time::Instant::now();
    let mut view = StateView::build(state.clone(), 2, None);
    let all: Vec<u32> = (0..count).collect();
    let mut revision = 3;
    for batch in all.chunks(5_000) {
        let texts: Vec<String> = batch.iter().map(|n| address(*n).to_string()).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        applied(run(&mut state, revision, add("many", &texts, None)));
        revision += 1;
    }
    let loaded = began.elapsed();
    let began = std::time::Instant::now();
    view = StateView::build(state.clone(), revision, Some(&view));
    let built = began.elapsed();
    for n in (0..count).step_by(97) {
        let local = "10.0.0.25:25".parse().unwrap();
        assert_eq!(view.table.lookup(local, address(n).into()).unwrap().connector.name, "many");
        assert_eq!(
            view.table
                .lookup(local, std::net::Ipv4Addr::from(u32::from(address(n)) + 1).into())
                .unwrap()
                .connector
                .name,
            "default"
        );
    }
    let began = std::time::Instant::now();
    applied(run(&mut state, revision, add("many", &["10.200.0.1"], None)));
    let one = began.elapsed();
    let began = std::time::Instant::now();
    view = StateView::build(state.clone(), revision, Some(&view));
    let rebuilt = began.elapsed();
    let began = std::time::Instant::now();
    let copy = through_a_snapshot(&state);
    let restored = began.elapsed();
    assert_eq!(copy.digest, state.digest);
    assert_eq!(copy.allowlist["many"].len(), count as usize + 2);
    let (held, octets) = ConnectorTable::footprint(&view.table);
    println!(
        "{count} ranges: added in {loaded:?}, table {built:?} and again {rebuilt:?} ({} octets a range), one more \
         range {one:?}, through a snapshot {restored:?}",
        octets / held
    );
}
