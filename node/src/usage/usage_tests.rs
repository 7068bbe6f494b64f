//! The book and its file: what is counted, what is read again, and what a cut-off line costs.
#![allow(clippy::unwrap_used)]

use super::*;

fn range(text: &str) -> RemoteIpRange {
    text.parse().unwrap()
}

fn read(dir: &tempfile::TempDir) -> (Usages, UsageFile) {
    Usages::read(dir.path().join("usage"))
}

fn everything(_: &UsageKey) -> bool {
    true
}

#[test]
fn uses_are_counted_and_a_session_that_goes_on_is_seen_without_being_counted_again() {
    let (usages, _) = read(&tempfile::tempdir().unwrap());
    usages.connected("printers", range("10.0.0.0/24"), 1_000_500);
    usages.connected("printers", range("10.0.1.0/24"), 2_000_000);
    usages.logged_in("erp", 2_000_000);
    usages.still_here("printers", range("10.0.0.0/24"), Some("erp"), 9_000_000);
    assert_eq!(usages.of_range("printers", &range("10.0.0.0/24")), Some(Usage::new(1_000_000, 9_000_000, 1)));
    assert_eq!(usages.of_connector("printers"), Some(Usage::new(1_000_000, 9_000_000, 2)));
    assert_eq!(usages.of_credential("erp"), Some(Usage::new(2_000_000, 9_000_000, 1)));
    assert_eq!(usages.of_range("printers", &range("10.0.0.0")), None, "never used");
    // A clock that was set back.
    usages.connected("printers", range("10.0.0.0/24"), 500_000);
    assert_eq!(usages.of_range("printers", &range("10.0.0.0/24")), Some(Usage::new(500_000, 9_000_000, 2)));
}

#[test]
fn what_two_nodes_know_is_put_together() {
    let both = Usage::new(5_000, 8_000, 2).and(Usage::new(3_000, 7_000, 40));
    assert_eq!((both.first_ms(), both.last_ms(), both.count), (3_000, 8_000, 42));
    assert_eq!(Usage::new(-5, i64::MAX, 1).first_ms(), 0);
}

#[test]
fn it_is_there_again_after_a_restart_and_a_line_that_was_cut_off_costs_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (usages, mut file) = read(&dir);
    let since_ms = usages.since_ms();
    usages.connected("a \"name\"\n", range("2001:db8::/32"), 1_000_000);
    usages.logged_in("erp", 2_000_000);
    usages.keep(&mut file, &everything);
    usages.logged_in("erp", 3_000_000);
    usages.keep(&mut file, &everything);
    let path = dir.path().join("usage");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 4]).unwrap();

    let (again, mut file) = read(&dir);
    assert_eq!(again.since_ms(), since_ms);
    assert_eq!(again.of_range("a \"name\"\n", &range("2001:db8::/32")), Some(Usage::new(1_000_000, 1_000_000, 1)));
    assert_eq!(again.of_credential("erp"), Some(Usage::new(2_000_000, 2_000_000, 1)), "the line before it counts");
    again.logged_in("erp", 4_000_000);
    again.keep(&mut file, &everything);
    let (third, _) = read(&dir);
    assert_eq!(third.of_credential("erp"), Some(Usage::new(2_000_000, 4_000_000, 2)));
}

#[test]
fn a_file_that_says_the_same_again_and_again_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (usages, mut file) = read(&dir);
    for number in 0..3_000_u32 {
        usages.connected("printers", range(&std::net::Ipv4Addr::from(number).to_string()), 1_000);
    }
    (0..7_u32).for_each(|turn| {
        (0..3_000_u32).for_each(|number| {
            let one = range(&std::net::Ipv4Addr::from(number).to_string());
            usages.connected("printers", one, i64::from(turn + 2) * 1000);
        });
        usages.keep(&mut file, &everything);
    });
    let lines = std::fs::read_to_string(dir.path().join("usage")).unwrap().lines().count();
    assert!((3_002..=16_002).contains(&lines), "{lines} lines for 3,001 things");
    let (again, _) = read(&dir);
    assert_eq!(again.of_connector("printers"), Some(Usage::new(1_000, 8_000, 24_000)));
    assert_eq!(again.of_range("printers", &range("0.0.11.183")), Some(Usage::new(1_000, 8_000, 8)));
    assert_eq!(again.lock().keys, 3_001);
}

#[test]
fn what_the_disk_did_not_take_is_written_later() {
    let dir = tempfile::tempdir().unwrap();
    let (usages, mut file) = read(&dir);
    std::fs::create_dir(dir.path().join("usage")).unwrap();
    usages.logged_in("erp", 2_000_000);
    usages.keep(&mut file, &everything);
    std::fs::remove_dir(dir.path().join("usage")).unwrap();
    usages.keep(&mut file, &everything);
    assert_eq!(read(&dir).0.of_credential("erp"), Some(Usage::new(2_000_000, 2_000_000, 1)));
}

#[test]
fn what_the_state_has_no_more_makes_room() {
    let (usages, _) = read(&tempfile::tempdir().unwrap());
    for number in 0..5_000_u32 {
        usages.connected("printers", range(&std::net::Ipv4Addr::from(number).to_string()), 1_000);
        usages.logged_in(&format!("user{number:04}"), 1_000);
    }
    usages.connected("gone", range("10.0.0.1"), 1_000);
    usages.forget(&|key| match key {
        UsageKey::Connector(name) => &**name == "printers",
        UsageKey::Range(_, range) => matches!(range.first(), std::net::IpAddr::V4(first) if first.to_bits() % 2 == 0),
        UsageKey::Credential(user) => &**user != "user0007",
    });
    assert_eq!(usages.lock().keys, 1 + 2_500 + 4_999);
    assert_eq!((usages.of_credential("user0007"), usages.of_range("gone", &range("10.0.0.1"))), (None, None));
    assert!(usages.of_credential("user0008").is_some());
}
