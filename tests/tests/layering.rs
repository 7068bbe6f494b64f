//! Which room may know which: reads the `use crate::` lines (and plain `crate::` paths) of every room and holds the
//! table of ARCHITECTURE.md true.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use posthouse_tests::repository;

/// What each room may import. A new arrow needs a line here and a reason in the commit.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("mail", &[]),
    ("clock", &[]),
    ("shutdown", &[]),
    ("config", &[]),
    ("telemetry", &["config"]),
    ("proxy_protocol", &[]),
    ("smtp", &["mail"]),
    ("connector", &["mail"]),
    ("credential", &["connector", "mail"]),
    ("state", &["connector", "credential", "health", "mail"]),
    ("health", &["shutdown"]),
    ("pki", &["state"]),
    ("tls", &["clock", "credential", "pki", "state"]),
    ("raft", &["state", "shutdown", "pki", "clock"]),
    ("counts", &["connector", "pki", "shutdown", "state", "tls"]),
    ("spool", &["mail", "shutdown", "clock"]),
    ("queue", &["connector", "mail", "outbound", "spool", "state", "shutdown", "clock"]),
    ("outbound", &["connector", "mail", "smtp", "shutdown", "clock"]),
    (
        "inbound",
        &[
            "admin",
            "clock",
            "config",
            "connector",
            "counts",
            "credential",
            "mail",
            "pki",
            "protocol_log",
            "proxy_protocol",
            "queue",
            "sessions",
            "shutdown",
            "smtp",
            "spool",
            "state",
            "tls",
            "usage",
        ],
    ),
    ("protocol_log", &["clock", "shutdown"]),
    ("sessions", &["connector", "smtp"]),
    ("usage", &["clock", "connector", "shutdown"]),
    ("sink", &["mail", "smtp", "shutdown", "clock"]),
    ("front", &["proxy_protocol", "config", "shutdown", "clock", "tls"]),
    (
        "admin",
        &[
            "clock",
            "config",
            "connector",
            "credential",
            "mail",
            "pki",
            "protocol_log",
            "queue",
            "raft",
            "sessions",
            "shutdown",
            "spool",
            "state",
            "tls",
            "usage",
        ],
    ),
];

/// Rooms that name a library, each alone.
const OWNS: &[(&str, &[&str])] =
    &[("openraft::", &["raft"]), ("rocksdb::", &["raft", "spool"]), ("hickory_resolver::", &["outbound"])];

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn room(path: &Path, root: &Path) -> String {
    let first = path.strip_prefix(root).unwrap().components().next().unwrap();
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

fn sources() -> BTreeMap<String, Vec<(PathBuf, String)>> {
    let root = repository().join("node/src");
    let mut found = Vec::new();
    files(&root, &mut found);
    let mut rooms: BTreeMap<String, Vec<(PathBuf, String)>> = BTreeMap::new();
    for path in found {
        // What a room's tests borrow is not an arrow.
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if name == "tests" || name.ends_with("_tests") || name == "fixtures" || name == "fake" {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        rooms.entry(room(&path, &root)).or_default().push((path, text));
    }
    rooms
}

/// The rooms that a text names as `crate::room`, and those of a nested `use crate::{a::…, b::…}`.
fn imports(text: &str) -> BTreeSet<String> {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let word = regex::Regex::new(r"crate::([a-z_]+)").unwrap();
    let mut rooms: BTreeSet<String> = word.captures_iter(&code).map(|found| found[1].to_owned()).collect();
    let nested = regex::Regex::new(r"use crate::\{([^;]*)\};").unwrap();
    let head = regex::Regex::new(r"(?:^|,)\s*([a-z_]+)").unwrap();
    for group in nested.captures_iter(&code) {
        rooms.extend(head.captures_iter(&group[1]).map(|found| found[1].to_owned()));
    }
    rooms
}

#[test]
fn arrows_point_down_only() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        MAY_IMPORT.iter().map(|(room, may)| (*room, may.iter().copied().collect())).collect();
    let mut wrong = Vec::new();
    for (room, sources) in sources() {
        if matches!(room.as_str(), "app" | "main" | "lib") {
            continue;
        }
        let may = allowed.get(room.as_str()).unwrap_or_else(|| panic!("room {room} is not in the table"));
        for (path, text) in sources {
            for import in imports(&text) {
                if import != room && !may.contains(import.as_str()) {
                    wrong.push(format!("{}: {room} may not import {import}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn libraries_stay_in_the_room_that_names_them() {
    let mut wrong = Vec::new();
    for (library, owners) in OWNS {
        for (room, sources) in sources() {
            for (path, text) in sources {
                let named = text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(library));
                if named && !owners.contains(&room.as_str()) {
                    wrong.push(format!("{}: {library} belongs to {owners:?}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_arrow_that_points_up_would_be_seen() {
    assert!(imports("use crate::{state::X, raft::{Y, Z}};").contains("raft"));
    assert!(imports("let x = crate::spool::open();").contains("spool"));
    assert!(imports("// crate::spool is not imported").is_empty());
}
