//! Whole members over real sockets on loopback: joining, forwarding, losing the leader, restarting, catching up.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use posthouse_proto::v1::peer_client::PeerClient;
use posthouse_proto::v1::{self as pb, snapshot_part::Part};
use tempfile::TempDir;
use tonic::Code;

use super::fixtures::{
    CLUSTER, PlainDialer, TestNode, add_member, bind, block_on, create_token, init_cluster, put_domain, wait_until,
};
use super::handle::LogLimits;
use super::{Committed, Dial, ProposeError};
use crate::state::{Command, Outcome};

const SMALL: LogLimits = LogLimits { snapshot_every: 20, entries_kept: 5 };

fn propose(node: &TestNode, command: Command) -> Result<Committed, ProposeError> {
    node.run(|handle| async move { handle.propose(command).await })
}

fn applied(node: &TestNode, command: Command) -> Committed {
    let committed = propose(node, command).unwrap();
    assert!(matches!(committed.outcome, Outcome::Applied { changed: true, .. }), "{committed:?}");
    committed
}

/// The first voter of a new cluster.
fn first(dir: &Path, limits: LogLimits) -> TestNode {
    let node = TestNode::start(1, "n1", bind(None), dir, limits);
    let address = node.address.to_string();
    let own = address.clone();
    node.run(|handle| async move { handle.bootstrap("n1", &own).await }).unwrap();
    applied(&node, init_cluster("n1", &address));
    applied(&node, create_token());
    node
}

/// Joins through `through` and starts.
fn join(through: &TestNode, name: &str, dir: &Path, limits: LogLimits) -> TestNode {
    let listener = bind(None);
    let address = listener.local_addr().unwrap().to_string();
    let committed = applied(through, add_member(name, &address));
    let Outcome::Applied { assigned: Some(id), .. } = committed.outcome else { panic!("no id was given out") };
    TestNode::start(id, name, listener, dir, limits)
}

fn wait_for_voters(nodes: &[TestNode]) {
    let ids: Vec<u64> = nodes.iter().map(|node| node.id).collect();
    wait_until("all are voters everywhere", || {
        nodes.iter().all(|node| {
            let status = node.handle.status();
            status.voters == ids && status.learners.is_empty() && status.leader.is_some()
        })
    });
}

fn wait_for_revision(nodes: &[TestNode], revision: u64) {
    for node in nodes {
        let reached = block_on(node.handle.await_published(revision, Duration::from_secs(20)));
        assert!(reached >= revision, "{} is at {reached}, not {revision}", node.name);
    }
}

fn assert_equal_digests(nodes: &[TestNode]) {
    wait_until("all digests are equal", || {
        nodes.iter().all(|node| node.digest() == nodes[0].digest() && node.revision() == nodes[0].revision())
    });
}

fn leader_position(nodes: &[TestNode]) -> usize {
    wait_until("somebody leads", || nodes.iter().any(|node| node.handle.status().is_leader()));
    nodes.iter().position(|node| node.handle.status().is_leader()).unwrap()
}

fn three(dirs: &[TempDir; 3]) -> Vec<TestNode> {
    let n1 = first(dirs[0].path(), LogLimits::default());
    let n2 = join(&n1, "n2", dirs[1].path(), LogLimits::default());
    let n3 = join(&n2, "n3", dirs[2].path(), LogLimits::default());
    let nodes = vec![n1, n2, n3];
    wait_for_voters(&nodes);
    nodes
}

fn dirs() -> [TempDir; 3] {
    [(); 3].map(|()| tempfile::tempdir().unwrap())
}

fn restart(id: u64, name: &str, address: std::net::SocketAddr, dirs: &[TempDir; 3]) -> TestNode {
    let dir = dirs[usize::try_from(id).unwrap() - 1].path();
    TestNode::start(id, name, bind(Some(address)), dir, LogLimits::default())
}

#[test]
fn a_cluster_of_three_forwards_survives_its_leader_and_a_full_stop() {
    let dirs = dirs();
    let mut nodes = three(&dirs);
    let mut last = 0;
    for (number, node) in nodes.iter().enumerate() {
        last = applied(node, put_domain(&format!("d{number}.example"))).revision;
    }
    wait_for_revision(&nodes, last);
    assert_equal_digests(&nodes);

    let leader = nodes.remove(leader_position(&nodes));
    let (dead_id, dead_name) = (leader.id, leader.name.clone());
    let killed = Instant::now();
    let dead_address = leader.kill();
    last = applied(&nodes[0], put_domain("after.example")).revision;
    println!("failover: first change {} ms after the leader was killed", killed.elapsed().as_millis());
    last = last.max(applied(&nodes[1], put_domain("later.example")).revision);
    wait_for_revision(&nodes, last);
    assert_equal_digests(&nodes);

    nodes.push(restart(dead_id, &dead_name, dead_address, &dirs));
    nodes.sort_by_key(|node| node.id);
    wait_for_voters(&nodes);
    wait_for_revision(&nodes, last);
    assert_equal_digests(&nodes);

    let digest = nodes[0].digest();
    let stopped: Vec<_> = nodes.into_iter().map(|node| (node.id, node.name.clone(), node.stop())).collect();
    let nodes: Vec<TestNode> =
        stopped.into_iter().map(|(id, name, address)| restart(id, &name, address, &dirs)).collect();
    for node in &nodes {
        assert_eq!(node.digest(), digest, "{} came back with another state", node.name);
    }
    last = applied(&nodes[1], put_domain("restarted.example")).revision;
    wait_for_revision(&nodes, last);
    assert_equal_digests(&nodes);
}

#[test]
fn a_minority_changes_nothing_and_still_answers_reads() {
    let dirs = dirs();
    let mut nodes = three(&dirs);
    let last = applied(&nodes[0], put_domain("before.example")).revision;
    wait_for_revision(&nodes, last);
    let leader = nodes.remove(leader_position(&nodes));
    nodes.remove(0).kill();
    leader.kill();
    let survivor = &nodes[0];
    let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
    let lost = put_domain("lost.example").encode();
    let result = survivor.run(|handle| async move { handle.propose_encoded(lost, deadline).await });
    assert!(matches!(result, Err(ProposeError::NoLeader)), "{result:?}");
    assert!(survivor.handle.view().borrow().state.domains.contains_key("before.example"));
    wait_until("the survivor says that it has no quorum", || !survivor.handle.status().has_quorum_recently);
}

#[test]
fn an_empty_node_behind_the_purged_log_gets_a_snapshot() {
    let dirs = dirs();
    let n1 = first(dirs[0].path(), SMALL);
    for number in 0..60 {
        applied(&n1, put_domain(&format!("d{number}.example")));
    }
    wait_until("the log was purged", || {
        n1.handle.inner.raft.metrics().borrow().purged.is_some_and(|purged| purged.index > 30)
    });
    let n2 = join(&n1, "n2", dirs[1].path(), SMALL);
    let mut nodes = vec![n1, n2];
    wait_for_voters(&nodes);
    assert!(nodes[1].handle.inner.raft.metrics().borrow().snapshot.is_some(), "it came by the log alone");
    wait_for_revision(&nodes, nodes[0].revision());
    assert_equal_digests(&nodes);

    let digest = nodes[1].digest();
    let n2 = nodes.remove(1);
    let address = n2.stop();
    let n2 = TestNode::start(2, "n2", bind(Some(address)), dirs[1].path(), SMALL);
    assert_eq!(n2.digest(), digest);
    nodes.push(n2);
    let last = applied(&nodes[1], put_domain("last.example")).revision;
    wait_for_revision(&nodes, last);
    assert_equal_digests(&nodes);
}

#[test]
fn a_member_that_moves_is_followed() {
    let dirs = dirs();
    let n1 = first(dirs[0].path(), LogLimits::default());
    let n2 = join(&n1, "n2", dirs[1].path(), LogLimits::default());
    let n3 = join(&n1, "n3", dirs[2].path(), LogLimits::default());
    let mut nodes = vec![n1, n2, n3];
    wait_for_voters(&nodes);
    // n3 comes back on another port and says so.
    nodes.pop().unwrap().stop();
    let n3 = TestNode::start(3, "n3", bind(None), dirs[2].path(), LogLimits::default());
    let announcement = super::Announcement {
        rpc_address: n3.address.to_string(),
        services: Vec::new(),
        version: "2".to_owned(),
        http_address: String::new(),
    };
    let announce = |n3: &TestNode| {
        let announcement = announcement.clone();
        n3.run(|handle| async move { handle.announce("n3", announcement).await })
    };
    wait_until("the announcement is taken", || announce(&n3).is_ok());
    nodes.push(n3);
    let last = applied(&nodes[0], put_domain("moved.example")).revision;
    wait_for_revision(&nodes, last);
    assert_equal_digests(&nodes);
    assert_eq!(announce(&nodes[2]).unwrap(), None, "nothing left to say");
}

#[test]
fn strangers_and_other_clusters_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let n1 = first(dir.path(), LogLimits::default());
    let command = put_domain("x.example").encode();
    let call = |name: &'static str, cluster: &'static str, command: Vec<u8>| {
        let address = n1.address.to_string();
        block_on(async move {
            let mut client = PeerClient::new(PlainDialer::new(name).channel(&address, "n1"));
            client.propose(pb::ProposeRequest { command, cluster_id: cluster.to_owned() }).await
        })
    };
    assert_eq!(call("n7", CLUSTER, command.clone()).unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(call("n1", "other", command.clone()).unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(call("n1", CLUSTER, vec![99, 1]).unwrap_err().code(), Code::InvalidArgument);
    assert!(call("n1", CLUSTER, command).is_ok());

    let address = n1.address.to_string();
    block_on(async {
        let mut stranger = PeerClient::new(PlainDialer::new("n7").channel(&address, "n1"));
        assert_eq!(stranger.data_key(pb::DataKeyRequest {}).await.unwrap_err().code(), Code::PermissionDenied);
        let vote = pb::VoteRequest { from: 1, cluster_id: CLUSTER.to_owned(), ..pb::VoteRequest::default() };
        assert_eq!(stranger.vote(vote).await.unwrap_err().code(), Code::PermissionDenied);
        let mut member = PeerClient::new(PlainDialer::new("n1").channel(&address, "n1"));
        let key = member.data_key(pb::DataKeyRequest {}).await.unwrap().into_inner().data_key;
        assert_eq!(key, vec![7; 32]);
        let status = member.member_status(pb::MemberStatusRequest {}).await.unwrap().into_inner();
        assert_eq!((status.id, status.name.as_str(), status.raft_state.as_str()), (1, "n1", "leader"));
        assert_eq!((status.version.as_str(), status.ready), ("9.9", true));
        assert_eq!(status.digest, n1.digest());
    });
}

#[test]
fn a_damaged_snapshot_from_a_member_does_not_reach_the_core() {
    let dir = tempfile::tempdir().unwrap();
    let n1 = first(dir.path(), LogLimits::default());
    let address = n1.address.to_string();
    let status = n1.handle.status();
    let header = pb::SnapshotHeader {
        from: 1,
        vote: Some(pb::VoteIdent { term: status.term, node: 1, committed: true }),
        last_log: Some(pb::LogIdent { term: status.term, leader: 1, index: 999 }),
        cluster_id: CLUSTER.to_owned(),
        ..pb::SnapshotHeader::default()
    };
    let parts = [Part::Header(header), Part::Chunk(b"PHSN\x01 and then nothing of sense".to_vec())];
    let parts = tokio_stream::iter(parts.map(|part| pb::SnapshotPart { part: Some(part) }));
    let refused = block_on(async move {
        let mut client = PeerClient::new(PlainDialer::new("n1").channel(&address, "n1"));
        client.install_snapshot(parts).await.unwrap_err()
    });
    assert_eq!(refused.code(), Code::DataLoss);
    applied(&n1, put_domain("still-alive.example"));
}

#[test]
fn a_second_bootstrap_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let n1 = first(dir.path(), LogLimits::default());
    let again = n1.run(|handle| async move { handle.bootstrap("n1", "127.0.0.1:1").await });
    assert!(matches!(again, Err(super::RaftError::AlreadyInitialised)), "{again:?}");
}
