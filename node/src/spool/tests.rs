//! The spool on a real RocksDB in a temporary directory: crashes are directories copied while it works.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::*;
use crate::mail::{Envelope, ForwardPath, ReversePath};

const NOW: i64 = 1_795_000_000_000;

fn message(recipients: &[&str]) -> NewMessage {
    NewMessage {
        envelope: Envelope::new(
            ReversePath::try_from("printer@corp.example".to_owned()).unwrap(),
            recipients.iter().map(|text| ForwardPath::try_from((*text).to_owned()).unwrap()),
        ),
        message_id: "<one@corp.example>".to_owned(),
        source_addr: "10.1.2.3".parse().unwrap(),
        front: Some("f1".to_owned()),
        connector: "printers".to_owned(),
        session_id: "0A1B".to_owned(),
        helo: "printer".to_owned(),
        user: None,
        tls: None,
        subject: "scan".to_owned(),
        size: 0,
        received_at_ms: crate::clock::now_ms(),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) async fn open(dir: &Path) -> (Spool, RecoveryReport) {
    let dir = dir.to_owned();
    // The committer of a dropped spool may need a moment to let go of the lock.
    for _ in 0..200 {
        let at = dir.clone();
        match run_blocking(move || Spool::open(&at, 1, "n1", TraceLimits::default(), &Scope::new())).await {
            Err(SpoolError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            opened => return opened.unwrap(),
        }
    }
    panic!("the lock was never let go");
}

async fn verified(spool: &Spool) -> VerifyReport {
    spool.verify().await.unwrap()
}

pub(super) async fn store_letter(spool: &Spool, bytes: &[u8], recipients: &[&str]) -> MessageId {
    let mut append = spool.begin();
    let id = append.id();
    for piece in bytes.chunks(10_000) {
        append.write(piece.to_vec()).await.unwrap();
    }
    append.commit(message(recipients)).await.unwrap();
    id
}

pub(super) async fn read(spool: &Spool, id: MessageId) -> Result<Vec<u8>, SpoolError> {
    let mut letter = spool.open_letter(id).await?.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = letter.body.next_chunk().await? {
        bytes.extend(piece);
    }
    Ok(bytes)
}

pub(super) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    // The mark first: it may be older than what it speaks of, as after a power cut, and never newer.
    let _ = std::fs::copy(from.join(mark::FILE), to.join(mark::FILE));
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "LOCK" && entry.file_name() != mark::FILE {
            // A file that RocksDB removed meanwhile is one that it no longer needs.
            let _ = std::fs::copy(entry.path(), to.join(entry.file_name()));
        }
    }
}

pub(super) fn outcome(index: usize, state: RecipientState) -> RecipientOutcome {
    RecipientOutcome {
        index,
        state,
        reply: "250 2.0.0 ok".to_owned(),
        next_attempt_ms: NOW + 60_000,
        delay_reported: false,
    }
}

pub(super) fn update(id: MessageId, outcomes: Vec<RecipientOutcome>) -> Update {
    let event = TraceEvent { at_ms: NOW, event: TraceKind::Attempt, ..TraceEvent::default() };
    Update { id, at_ms: NOW, outcomes, events: vec![event], reports: Vec::new() }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_and_large_letters_read_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, report) = open(dir.path()).await;
    assert_eq!(report, RecoveryReport::default());
    let mut letters = Vec::new();
    for size in [0, 1, 5_000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17] {
        let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        letters.push((store_letter(&spool, &bytes, &["a@x.example"]).await, bytes));
    }
    drop(spool);
    let (spool, report) = open(dir.path()).await;
    assert_eq!((report.kept, report.quarantined.len()), (letters.len() as u64, 0));
    assert_eq!(verified(&spool).await, VerifyReport { whole: letters.len() as u64, ..VerifyReport::default() });
    let arrivals = spool.take_arrivals().await.unwrap();
    for (id, bytes) in &letters {
        assert_eq!(&read(&spool, *id).await.unwrap(), bytes);
        assert!(arrivals.iter().any(|arrival| arrival.id == *id && arrival.size == bytes.len() as u64));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_letter_is_in_a_copy_taken_while_others_are_committed() {
    let dir = tempfile::tempdir().unwrap();
    let copies = tempfile::tempdir().unwrap();
    // Few enough bytes that nothing is flushed meanwhile: files copied one after the other are then a state that the
    // disk was in.
    let (spool, _) = open(dir.path()).await;
    let acked = Arc::new(Mutex::new(Vec::new()));
    let scope = Scope::new();
    for writer in 0..8u8 {
        let (spool, acked) = (spool.clone(), Arc::clone(&acked));
        scope.spawn_until_ended(async move {
            for round in 0.. {
                let bytes = vec![writer; 1000 + (round % 4) * 1000];
                let id = store_letter(&spool, &bytes, &["a@x.example"]).await;
                acked.lock().unwrap().push((id, bytes));
            }
        });
    }
    for cut in 0..4 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let promised = acked.lock().unwrap().clone();
        let to = copies.path().join(cut.to_string());
        let from = dir.path().to_owned();
        let target = to.clone();
        run_blocking(move || copy_dir(&from, &target)).await;
        let (copy, report) = open(&to).await;
        assert!(report.quarantined.is_empty(), "{report:?}");
        let report = verified(&copy).await;
        assert!(report.quarantined.is_empty(), "{report:?}");
        assert!(promised.len() > 10, "the run is void: only {} letters", promised.len());
        for (id, bytes) in promised {
            assert_eq!(read(&copy, id).await.unwrap(), bytes);
        }
    }
    scope.end();
    assert!(scope.join(Duration::from_secs(10)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_was_never_committed_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let mut left = spool.begin();
    let id = left.id();
    left.write(vec![7; 3 * CHUNK_BYTES]).await.unwrap();
    assert!(spool.store.chunk(id, 0).unwrap().is_some());
    // As a crash would: the pieces are on disk and nobody removes them.
    std::mem::forget(left);
    let dropped = {
        let mut dropped = spool.begin();
        dropped.write(vec![8; 3 * CHUNK_BYTES]).await.unwrap();
        dropped.id()
    };
    store_letter(&spool, b"kept", &["a@x.example"]).await;
    assert!(spool.store.chunk(dropped, 0).unwrap().is_none(), "dropping a letter removes its pieces");
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    let (spool, report) = open(copy.path()).await;
    assert_eq!((report.kept, verified(&spool).await.forgotten), (1, 1));
    assert!(spool.store.chunk(id, 0).unwrap().is_none());
}

/// The files of large letters that are still arriving.
fn arriving(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("arriving-")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_letter_is_whole_after_a_crash_that_follows_its_commit() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let bytes: Vec<u8> = (0..9 * CHUNK_BYTES + 17).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let id = store_letter(&spool, &bytes, &["a@x.example"]).await;
    let exact = store_letter(&spool, &bytes[..6 * CHUNK_BYTES], &["a@x.example"]).await;
    assert_eq!(arriving(dir.path()), 0, "the database took the files over");
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    assert_eq!(read(&spool, id).await.unwrap(), bytes);
    let (crashed, report) = open(copy.path()).await;
    assert_eq!((report.kept, verified(&crashed).await.forgotten), (2, 0));
    assert_eq!(read(&crashed, id).await.unwrap(), bytes);
    assert_eq!(read(&crashed, exact).await.unwrap(), &bytes[..6 * CHUNK_BYTES]);
    crashed.update(update(id, vec![outcome(0, RecipientState::Delivered)])).await.unwrap();
    assert!(crashed.open_letter(id).await.unwrap().is_none());
    assert!(crashed.store.chunk(id, 7).unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_letter_that_was_never_committed_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let mut dropped = spool.begin();
    dropped.write(vec![8; 9 * CHUNK_BYTES]).await.unwrap();
    assert_eq!(arriving(dir.path()), 1);
    drop(dropped);
    assert_eq!(arriving(dir.path()), 0);
    let mut left = spool.begin();
    left.write(vec![7; 9 * CHUNK_BYTES]).await.unwrap();
    store_letter(&spool, b"kept", &["a@x.example"]).await;
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    assert_eq!(arriving(copy.path()), 1, "as a crash leaves it");
    let (spool, report) = open(copy.path()).await;
    assert_eq!((report.kept, verified(&spool).await.forgotten), (1, 1));
    assert_eq!(arriving(copy.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_letter_is_not_accepted_once_the_disk_has_failed() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let mut letter = spool.begin();
    letter.write(vec![8; 9 * CHUNK_BYTES]).await.unwrap();
    spool.store.break_writes.store(true, Ordering::SeqCst);
    assert!(letter.commit(message(&["a@x.example"])).await.is_err());
    assert!(spool.failing().is_some());
    assert_eq!(arriving(dir.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_set_aside_with_a_reason_and_the_rest_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let whole = store_letter(&spool, b"whole", &["a@x.example"]).await;
    let missing = store_letter(&spool, &vec![1; 2 * CHUNK_BYTES], &["a@x.example"]).await;
    let changed = store_letter(&spool, b"changed", &["a@x.example"]).await;
    let shorter = store_letter(&spool, b"shorter", &["a@x.example"]).await;
    let garbled = store_letter(&spool, b"garbled", &["a@x.example"]).await;
    let db = &spool.store.db;
    let (meta, body) = (spool.store.family(store::META).unwrap(), spool.store.family(store::BODY).unwrap());
    db.delete_cf(&body, store::chunk_key(missing, 1)).unwrap();
    db.put_cf(&body, store::chunk_key(changed, 0), b"CHANGED").unwrap();
    db.put_cf(&body, store::chunk_key(shorter, 0), b"short").unwrap();
    db.put_cf(&meta, store::key(garbled), b"\x01{no").unwrap();
    db.flush_wal(true).unwrap();
    drop((meta, body));
    drop(spool);
    let (spool, report) = open(dir.path()).await;
    assert_eq!((report.kept, report.quarantined.len()), (4, 1), "records are read at once, bytes after that");
    let rest = verified(&spool).await;
    assert_eq!((rest.whole, rest.forgotten), (1, 0));
    assert_eq!((spool.stats().letters, spool.stats().bytes), (1, 5));
    assert_eq!(read(&spool, whole).await.unwrap(), b"whole");
    let all = [report.quarantined, rest.quarantined].concat();
    let reason = |id| all.iter().find(|letter| letter.id == id).unwrap().reason.clone();
    assert!(reason(missing).contains("piece 1 of 2 is missing"));
    assert!(reason(changed).contains("checksum"));
    assert!(reason(shorter).contains("5 bytes are stored, 7 were accepted"));
    assert!(reason(garbled).contains("decoded"));
    assert_eq!(spool.quarantined().await.unwrap().len(), 4);
    assert!(spool.open_letter(changed).await.unwrap().is_none());
    drop(spool);
    let (spool, report) = open(dir.path()).await;
    assert_eq!((report.kept, report.quarantined.len()), (1, 0));
    assert_eq!(spool.verify().await.unwrap(), VerifyReport { whole: 1, ..VerifyReport::default() });
    assert_eq!(spool.quarantined().await.unwrap().len(), 4, "what was set aside stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_change_on_disk_are_not_read_as_if_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let id = store_letter(&spool, &vec![1; 2 * CHUNK_BYTES], &["a@x.example"]).await;
    let body = spool.store.family(store::BODY).unwrap();
    spool.store.db.put_cf(&body, store::chunk_key(id, 1), vec![2; CHUNK_BYTES]).unwrap();
    assert!(matches!(read(&spool, id).await, Err(SpoolError::Damaged { .. })));
    spool.quarantine(id, NOW, "the checksum is wrong").await.unwrap();
    assert!(spool.open_letter(id).await.unwrap().is_none());
    let trace = spool.trace(TraceFilter { id: Some(id), ..TraceFilter::default() }).await.unwrap();
    assert_eq!(trace[0].events.last().unwrap().event, TraceKind::Quarantined);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_commits_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let scope = Scope::new();
    let (writers, each) = (64, 20);
    for _ in 0..writers {
        let spool = spool.clone();
        scope.spawn(async move {
            for _ in 0..each {
                store_letter(&spool, b"letter", &["a@x.example"]).await;
            }
        });
    }
    assert!(scope.join(Duration::from_secs(60)).await);
    let stats = spool.stats();
    assert_eq!(stats.commits, writers * each);
    assert!(stats.syncs * 4 < stats.commits, "{stats:?}");
    assert!(stats.syncs >= each, "a writer waits for its own sync each time: {stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_is_never_followed_by_an_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let before = store_letter(&spool, b"before", &["a@x.example"]).await;
    let _ = spool.take_arrivals().await.unwrap();
    spool.store.break_writes.store(true, Ordering::SeqCst);
    let mut append = spool.begin();
    append.write(b"during".to_vec()).await.unwrap();
    assert!(append.commit(message(&["a@x.example"])).await.is_err());
    assert!(spool.failing().unwrap().contains("Input/output error"));
    // The disk is well again: that changes nothing.
    spool.store.break_writes.store(false, Ordering::SeqCst);
    let append = spool.begin();
    assert!(matches!(append.commit(message(&["a@x.example"])).await, Err(SpoolError::Failing(_))));
    assert!(matches!(spool.update(update(before, vec![])).await, Err(SpoolError::Failing(_))));
    assert!(spool.take_arrivals().await.unwrap().is_empty(), "what is not durable is not delivered");
    drop(spool);
    let (spool, report) = open(dir.path()).await;
    assert_eq!((report.kept, spool.failing()), (1, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_cannot_have_one_spool() {
    let dir = tempfile::tempdir().unwrap();
    let (_spool, _) = open(dir.path()).await;
    let at = dir.path().to_owned();
    let second = run_blocking(move || Spool::open(&at, 1, "n1", TraceLimits::default(), &Scope::new()).map(|_| ()))
        .await
        .unwrap_err();
    assert_eq!(second, SpoolError::Locked { dir: dir.path().to_owned() });
    assert!(second.to_string().contains("in use by another process"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_forgotten_when_its_last_recipient_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let id = store_letter(&spool, &vec![1; 20 * CHUNK_BYTES], &["a@x.example", "b@y.example"]).await;
    let first = spool.update(update(id, vec![outcome(0, RecipientState::Delivered)])).await.unwrap();
    assert_eq!(first.status, Some(TraceStatus::Deferred));
    let deferred = spool.update(update(id, vec![outcome(1, RecipientState::Pending)])).await.unwrap();
    assert_eq!(deferred.status, Some(TraceStatus::Deferred));
    drop(spool);
    let (spool, report) = open(dir.path()).await;
    assert_eq!(report.kept, 1);
    let arrival = spool.take_arrivals().await.unwrap().remove(0);
    assert_eq!(arrival.domains, vec![(Some(Domain::parse("y.example").unwrap()), NOW + 60_000)]);
    let last = spool.update(update(id, vec![outcome(1, RecipientState::Failed)])).await.unwrap();
    assert_eq!(last.status, Some(TraceStatus::Partial));
    assert!(spool.open_letter(id).await.unwrap().is_none());
    assert!(spool.store.chunk(id, 0).unwrap().is_none() && spool.store.chunk(id, 19).unwrap().is_none());
    assert_eq!((spool.stats().letters, spool.stats().bytes), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_and_its_report_are_one_write_and_happen_once() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let id = store_letter(&spool, b"letter", &["a@x.example", "b@x.example"]).await;
    let _ = spool.take_arrivals().await.unwrap();
    let report = |about| {
        vec![Report { message: message(&["printer@corp.example"]), bytes: b"report".to_vec(), about: vec![about] }]
    };
    let failed = || Update { reports: report(0), ..update(id, vec![outcome(0, RecipientState::Failed)]) };
    let deferred = Update { reports: report(0), ..update(id, vec![outcome(1, RecipientState::Pending)]) };
    assert!(spool.update(deferred).await.unwrap().reports.is_empty(), "nothing happened to whom it is about");
    let queued = spool.update(failed()).await.unwrap().reports[0];
    assert!(spool.update(failed()).await.unwrap().reports.is_empty(), "the same failure is not reported twice");
    assert_eq!(spool.take_arrivals().await.unwrap().iter().map(|arrival| arrival.id).collect::<Vec<_>>(), vec![queued]);
    assert_eq!(read(&spool, queued).await.unwrap(), b"report");
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    let (after, found) = open(copy.path()).await;
    assert_eq!(found.kept, 2);
    assert!(after.update(failed()).await.unwrap().reports.is_empty(), "nor after a crash");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_tells_a_letters_life_and_is_found_by_every_field() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let id = store_letter(&spool, b"letter", &["a@x.example"]).await;
    let other = {
        let append = spool.begin();
        let id = append.id();
        let other = NewMessage { message_id: "<two@x>".to_owned(), ..message(&["b@y.example"]) };
        let other = NewMessage { source_addr: "10.9.9.9".parse().unwrap(), connector: "other".to_owned(), ..other };
        let other = NewMessage { user: Some("erp".to_owned()), ..other };
        append.commit(NewMessage { session_id: "FFFF".to_owned(), ..other }).await.unwrap();
        id
    };
    spool.update(update(id, vec![outcome(0, RecipientState::Pending)])).await.unwrap();
    spool.update(update(id, vec![outcome(0, RecipientState::Delivered)])).await.unwrap();
    assert!(spool.delete(other, NOW, "admin alice").await.unwrap());
    assert!(!spool.delete(other, NOW, "admin alice").await.unwrap());
    drop(spool);
    let (spool, _) = open(dir.path()).await;
    let all = spool.trace(TraceFilter::default()).await.unwrap();
    assert_eq!(all.iter().map(|record| record.id).collect::<Vec<_>>(), vec![other, id], "newest first");
    assert_eq!((all[0].status, all[1].status), (TraceStatus::Deleted, TraceStatus::Delivered));
    let kinds: Vec<_> = all[1].events.iter().map(|event| event.event).collect();
    assert_eq!(kinds, vec![TraceKind::Accepted, TraceKind::Attempt, TraceKind::Attempt]);
    assert_eq!(all[0].events[1].detail, "admin alice");
    let text = |text: &str| Some(text.to_owned());
    for filter in [
        TraceFilter { id: Some(id), ..TraceFilter::default() },
        TraceFilter { message_id: text("one@corp.example"), ..TraceFilter::default() },
        TraceFilter { recipient: text("A@X.example"), ..TraceFilter::default() },
        TraceFilter { client: Some((ip("10.1.2.0"), ip("10.1.2.3"))), ..TraceFilter::default() },
        TraceFilter { connector: text("Printers"), ..TraceFilter::default() },
        TraceFilter { session_id: text("0a1b"), ..TraceFilter::default() },
    ] {
        let found = spool.trace(filter.clone()).await.unwrap();
        assert_eq!(found.iter().map(|record| record.id).collect::<Vec<_>>(), vec![id], "{filter:?}");
    }
    let count = async |filter| spool.trace(filter).await.unwrap().len();
    assert_eq!(count(TraceFilter { sender: text("printer@corp.example"), ..TraceFilter::default() }).await, 2);
    assert_eq!(count(TraceFilter { sender: text("<>"), ..TraceFilter::default() }).await, 0);
    assert_eq!(count(TraceFilter { user: text("ERP"), ..TraceFilter::default() }).await, 1);
    assert_eq!(
        count(TraceFilter { client: Some((ip("10.0.0.0"), ip("10.255.0.0"))), ..TraceFilter::default() }).await,
        2
    );
    assert_eq!(count(TraceFilter { client: Some((ip("::"), ip("ffff::"))), ..TraceFilter::default() }).await, 0);
    assert_eq!(count(TraceFilter { limit: 1, ..TraceFilter::default() }).await, 1);
    let later = crate::clock::now_ms() + 60_000;
    assert_eq!(count(TraceFilter { since_ms: Some(later), ..TraceFilter::default() }).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_every_event_once_page_by_page_and_window_by_window() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let began = crate::clock::now_ms();
    let mut appends = tokio::task::JoinSet::new();
    for _ in 0..1_100 {
        let append = spool.begin();
        appends.spawn(async move {
            let id = append.id();
            append.commit(message(&["a@x.example"])).await.unwrap();
            id
        });
    }
    let mut ids: Vec<MessageId> = Vec::new();
    while let Some(id) = appends.join_next().await {
        ids.push(id.unwrap());
    }
    ids.sort();
    // Half an hour later something happens to some of them.
    let later = began + 30 * 60_000;
    for id in ids.iter().step_by(100) {
        let event = TraceEvent { at_ms: later, event: TraceKind::Delivered, ..TraceEvent::default() };
        let update = Update { events: vec![event], ..update(*id, vec![outcome(0, RecipientState::Delivered)]) };
        spool.update(update).await.unwrap();
    }
    let all = async |filter: &TraceFilter, window| {
        let (mut letters, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = spool.export(filter.clone(), window, after).await.unwrap();
            letters.extend(page.letters);
            pages += 1;
            after = page.next;
            if after.is_none() {
                return (letters, pages);
            }
        }
    };
    let none = TraceFilter::default();
    let (letters, pages) = all(&none, (0, i64::MAX)).await;
    assert_eq!(letters.iter().map(|letter| letter.id).collect::<Vec<_>>(), ids, "oldest first, each once");
    assert_eq!((pages, letters.iter().map(|letter| letter.events.len()).sum::<usize>()), (3, 1_111));
    let (first, _) = all(&none, (0, later)).await;
    let (second, _) = all(&none, (later, i64::MAX)).await;
    assert_eq!((first.len(), second.len()), (1_100, 11));
    assert!(second.iter().all(|letter| letter.events.len() == 1 && letter.events[0].event == TraceKind::Delivered));
    assert!(all(&none, (later + 1, i64::MAX)).await.0.is_empty());
    let (one, _) = all(&TraceFilter { id: Some(ids[700]), ..none.clone() }, (0, i64::MAX)).await;
    assert_eq!((one.len(), one[0].id, one[0].events.len()), (1, ids[700], 2));
    let other = TraceFilter { connector: Some("other".to_owned()), ..none };
    assert!(all(&other, (0, i64::MAX)).await.0.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_bounded_per_letter_and_letters_in_all() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(store_letter(&spool, b"letter", &["a@x.example"]).await);
    }
    for _ in 0..250 {
        spool.update(update(ids[9], vec![outcome(0, RecipientState::Pending)])).await.unwrap();
    }
    spool.update(update(ids[9], vec![outcome(0, RecipientState::Delivered)])).await.unwrap();
    let last = spool.trace(TraceFilter { id: Some(ids[9]), ..TraceFilter::default() }).await.unwrap().remove(0);
    assert_eq!(last.events.len(), usize::from(EVENTS_PER_LETTER_MAX) + 2);
    assert_eq!(last.status, TraceStatus::Delivered);
    // The last letter has most of the bytes; of the others two have room beside it.
    let bytes = |spool: &Spool| spool.store.counters.traced_bytes.load(Ordering::Relaxed);
    let all = bytes(&spool);
    let limit = |bytes| TraceLimits { bytes, ..TraceLimits::default() };
    upkeep::prune_trace(&spool.store, crate::clock::now_ms(), limit(all)).unwrap();
    assert_eq!((spool.stats().traced, bytes(&spool)), (10, all), "nothing is too much");
    let head = spool.store.db.get_cf(&spool.store.family("trace").unwrap(), ids[0].0.to_be_bytes()).unwrap().unwrap();
    let each = head.len() as u64 + 8;
    upkeep::prune_trace(&spool.store, crate::clock::now_ms(), limit(all - each * 7)).unwrap();
    let left: Vec<_> = spool.trace(TraceFilter::default()).await.unwrap().iter().map(|record| record.id).collect();
    assert_eq!(left, vec![ids[9], ids[8], ids[7]]);
    let late = crate::clock::now_ms() + 31 * 24 * 3600 * 1000;
    upkeep::prune_trace(&spool.store, late, TraceLimits::default()).unwrap();
    assert_eq!(bytes(&spool), 0);
    assert!(spool.trace(TraceFilter::default()).await.unwrap().is_empty());
    assert_eq!(spool.stats().traced, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn space_of_delivered_letters_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(store_letter(&spool, &vec![1; CHUNK_BYTES], &["a@x.example"]).await);
    }
    spool.store.db.flush_cf(&spool.store.family(store::BODY).unwrap()).unwrap();
    let used = || {
        let files = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
        let stored = |name: &str| name.ends_with(".sst") || name.ends_with(".blob");
        files
            .filter(|file| stored(&file.file_name().to_string_lossy()))
            .map(|file| file.metadata().unwrap().len())
            .sum::<u64>()
    };
    assert!(used() > 20 * CHUNK_BYTES as u64);
    for id in ids {
        spool.update(update(id, vec![outcome(0, RecipientState::Delivered)])).await.unwrap();
    }
    upkeep::compact(&spool.store, 1024 * 1024).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while used() > CHUNK_BYTES as u64 {
        assert!(tokio::time::Instant::now() < deadline, "{} bytes are still used", used());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_spool_takes_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    store_letter(&spool, b"letter", &["a@x.example"]).await;
    spool.close().await;
    spool.close().await;
    assert_eq!(spool.begin().commit(message(&["a@x.example"])).await, Err(SpoolError::Closed));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restart_found_is_told_in_pages_with_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(store_letter(&spool, b"letter", &["a@x.example"]).await);
    }
    drop(spool);
    let (spool, _) = open(dir.path()).await;
    // What leaves before it was told is not told.
    assert!(spool.delete(ids[1], NOW, "test").await.unwrap());
    let new = store_letter(&spool, b"new", &["a@x.example"]).await;
    let mut told = Vec::new();
    while told.len() < 3 {
        spool.arrived().await;
        told.extend(spool.take_arrivals().await.unwrap().into_iter().map(|arrival| arrival.id));
    }
    assert_eq!(told, [ids[0], ids[2], new]);
    assert!(spool.take_arrivals().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_while_everything_is_read_is_not_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path()).await;
    let mut ids = Vec::new();
    for _ in 0..300 {
        ids.push(store_letter(&spool, &[7; 3000], &["a@x.example"]).await);
    }
    drop(spool);
    let (spool, _) = open(dir.path()).await;
    let (report, ()) = tokio::join!(verified(&spool), async {
        for id in ids.iter().rev() {
            spool.update(update(*id, vec![outcome(0, RecipientState::Delivered)])).await.unwrap();
        }
    });
    assert!(report.quarantined.is_empty(), "{report:?}");
    assert_eq!((spool.stats().letters, spool.stats().bytes), (0, 0));
}
