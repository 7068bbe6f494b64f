//! openraft's own suite on our stores, and what has to survive a restart.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::testing::{StoreBuilder, Suite, blank_ent, log_id, membership_ent};
use openraft::{EntryPayload, RaftSnapshotBuilder};
use tempfile::TempDir;
use tokio::sync::watch;

use super::fixtures::{add_member, create_token, delete_domain, init_cluster, put_domain};
use super::log_store::LogStore;
use super::state_machine::StateMachine;
use super::store::Store;
use super::types::{Entry, Proposal, Snapshot, StorageError, TypeConfig};
use crate::state::{Command, Outcome, StateView};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db"), "c", 1).unwrap();
        let (machine, _) = StateMachine::open(Arc::clone(&store), &dir.path().join("snapshots")).unwrap();
        Ok((dir, LogStore::new(store), machine))
    }
}

#[test]
fn openrafts_own_suite_passes() {
    Suite::test_all(Builder).unwrap();
}

fn open(dir: &Path) -> (StateMachine, watch::Receiver<Arc<StateView>>) {
    let store = Store::open(&dir.join("db"), "c", 1).unwrap();
    StateMachine::open(store, &dir.join("snapshots")).unwrap()
}

fn entry(index: u64, command: &Command) -> Entry {
    Entry { log_id: log_id(1, 1, index), payload: EntryPayload::Normal(Proposal(command.encode())) }
}

fn first_entries() -> Vec<Entry> {
    vec![
        membership_ent(0, 1, 0, vec![BTreeSet::from([1])]),
        blank_ent(1, 1, 1),
        entry(2, &init_cluster("n1", "127.0.0.1:1")),
        entry(3, &create_token()),
        entry(4, &add_member("n2", "127.0.0.1:2")),
        entry(5, &put_domain("one.example")),
        entry(6, &put_domain("two.example")),
        entry(7, &delete_domain("one.example")),
    ]
}

#[tokio::test]
async fn the_state_is_the_same_after_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let (digest, applied) = {
        let (mut machine, view) = open(dir.path());
        let answers = machine.apply(first_entries()).await.unwrap();
        assert_eq!(answers.len(), 8);
        let refused: Vec<_> = answers.iter().filter(|answer| matches!(answer.0, Some(Outcome::Refused(_)))).collect();
        assert!(refused.is_empty(), "{refused:?}");
        let view = view.borrow();
        assert_eq!(view.revision, 7);
        assert_eq!(view.state.domains.keys().collect::<Vec<_>>(), ["two.example"]);
        (view.state.digest, machine.applied_state().await.unwrap())
    };
    let (mut machine, view) = open(dir.path());
    assert_eq!(machine.applied_state().await.unwrap(), applied);
    let view = view.borrow();
    assert_eq!((view.revision, view.state.digest), (7, digest));
    assert_eq!(view.state.domains.keys().collect::<Vec<_>>(), ["two.example"]);
}

#[tokio::test]
async fn a_refusal_is_an_outcome_and_changes_nothing_but_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, view) = open(dir.path());
    machine.apply(first_entries()).await.unwrap();
    let before = view.borrow().state.digest;
    let answers = machine.apply([entry(8, &put_domain("two.example"))]).await.unwrap();
    assert!(matches!(answers[0].0, Some(Outcome::Refused(_))));
    assert_eq!((view.borrow().state.digest, view.borrow().revision), (before, 8));
}

#[tokio::test]
async fn a_command_of_a_newer_version_stops_the_member_and_leaves_its_state() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, view) = open(dir.path());
    machine.apply(first_entries()).await.unwrap();
    let mut newer = entry(9, &put_domain("three.example"));
    newer.payload = EntryPayload::Normal(Proposal(vec![99, b'{', b'}']));
    let error = machine.apply([entry(8, &put_domain("three.example")), newer]).await.unwrap_err();
    assert!(error.to_string().contains("command version 99"), "{error}");
    assert_eq!(view.borrow().revision, 7);
}

async fn snapshot_of(machine: &mut StateMachine) -> Snapshot {
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap()
}

#[tokio::test]
async fn an_installed_snapshot_replaces_everything_and_survives_a_reopen() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut leader, leader_view) = open(from.path());
    leader.apply(first_entries()).await.unwrap();
    let snapshot = snapshot_of(&mut leader).await;
    {
        let (mut follower, view) = open(to.path());
        // What the follower had and the snapshot has not must go.
        follower
            .apply([
                membership_ent(0, 1, 0, vec![BTreeSet::from([1])]),
                entry(1, &init_cluster("n1", "127.0.0.1:9")),
                entry(2, &put_domain("stale.example")),
            ])
            .await
            .unwrap();
        assert!(view.borrow().state.domains.contains_key("stale.example"));
        follower.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
        assert_eq!(view.borrow().revision, 7);
    }
    let (mut follower, view) = open(to.path());
    assert_eq!(view.borrow().state.digest, leader_view.borrow().state.digest);
    assert!(!view.borrow().state.domains.contains_key("stale.example"));
    assert_eq!(follower.applied_state().await.unwrap(), leader.applied_state().await.unwrap());
    let kept = follower.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(kept.meta, snapshot.meta);
    assert_eq!(kept.snapshot.read().unwrap().state.digest, leader_view.borrow().state.digest);
}

#[tokio::test]
async fn a_snapshot_ahead_of_the_state_is_dropped_at_start() {
    // As after a crash between the two halves of an installation, had they happened the other way round.
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut leader, _) = open(from.path());
    leader.apply(first_entries()).await.unwrap();
    snapshot_of(&mut leader).await;
    std::fs::create_dir_all(to.path().join("snapshots")).unwrap();
    let file = "snapshots/current.snapshot";
    std::fs::copy(from.path().join(file), to.path().join(file)).unwrap();
    let (mut follower, view) = open(to.path());
    assert!(follower.get_current_snapshot().await.unwrap().is_none());
    assert_eq!(view.borrow().revision, 0);
}

#[tokio::test]
async fn a_damaged_snapshot_is_not_installed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, view) = open(dir.path());
    machine.apply(first_entries()).await.unwrap();
    let snapshot = snapshot_of(&mut machine).await;
    snapshot.snapshot.put(60, b"XXXX").unwrap();
    let before = view.borrow().state.digest;
    assert!(machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.is_err());
    assert_eq!(view.borrow().state.digest, before);
}
