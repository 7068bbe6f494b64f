#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use posthouse_proto::v1::front_link_server::{FrontLink, FrontLinkServer};
use posthouse_proto::v1::{FrontBackend, FrontReportReply, ServiceAddress};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

use super::*;
use crate::front::dial::Outward;
use crate::front::fake::{PATIENCE, config, eventually, key};
use crate::front::pool::tests::pool;

/// A node's FrontLink whose view the test sets.
#[derive(Clone)]
struct Node {
    view: watch::Sender<FrontView>,
    address: SocketAddr,
}

/// A view with this reason ends the stream.
const GONE: &str = "gone";

struct Link(watch::Receiver<FrontView>);

#[tonic::async_trait]
impl FrontLink for Link {
    type WatchStream = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<FrontView, Status>> + Send>>;

    async fn report(&self, _: Request<FrontReport>) -> Result<Response<FrontReportReply>, Status> {
        Ok(Response::new(FrontReportReply {}))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        assert_eq!(request.into_inner().source_addresses, ["127.0.0.2"]);
        Ok(Response::new(Box::pin(
            WatchStream::new(self.0.clone())
                .map(|view| if view.reason == GONE { Err(Status::unavailable("gone")) } else { Ok(view) }),
        )))
    }
}

impl Node {
    async fn start(name: &str, scope: &Scope) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let view = FrontView { node: name.to_owned(), ready: true, has_leader: true, ..FrontView::default() };
        let (sender, receiver) = watch::channel(view);
        let ended = scope.clone();
        scope.spawn_until_ended(async move {
            Server::builder()
                .add_service(FrontLinkServer::new(Link(receiver)))
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move { ended.ended().await })
                .await
                .unwrap();
        });
        Self { view: sender, address }
    }

    fn says(&self, change: impl FnOnce(&mut FrontView)) {
        self.view.send_modify(change);
    }
}

struct Plain;

impl Dial for Plain {
    fn channel(&self, address: &str, _: &str) -> Channel {
        Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
    }
}

fn set_of(nodes: &[(&str, &Node, &str)]) -> impl Fn(&mut FrontView) {
    let backends: Vec<_> = nodes
        .iter()
        .map(|(name, node, state)| FrontBackend {
            node: (*name).to_owned(),
            state: (*state).to_owned(),
            rpc_address: node.address.to_string(),
            services: vec![ServiceAddress { port: 25, address: "127.0.0.1:1".to_owned(), implicit_tls: false }],
            ..FrontBackend::default()
        })
        .collect();
    move |view| {
        view.cluster_id = "c".to_owned();
        view.backends = backends.clone();
        view.revision += 1;
    }
}

fn start(pool: &Arc<Pool>, seed: &Node, scope: &Scope) -> Arc<Orders> {
    start_with(pool, seed, scope, PATIENCE)
}

fn start_with(pool: &Arc<Pool>, seed: &Node, scope: &Scope, silence: Duration) -> Arc<Orders> {
    let request = WatchRequest { source_addresses: vec!["127.0.0.2".to_owned()], ..WatchRequest::default() };
    let seeds = vec![(String::new(), seed.address.to_string())];
    let dir = tempfile::tempdir().unwrap();
    let outward = Arc::new(Outward::new(key(), &config(dir.path(), "")));
    let orders = Arc::new(Orders::new("f1".to_owned(), outward, Arc::new(|_| Ok(()))));
    let watching = Watching {
        pool: Arc::clone(pool),
        dial: Arc::new(Plain),
        seeds,
        request,
        is_succeeded: Arc::default(),
        silence,
        orders: Arc::clone(&orders),
        report: Arc::new(FrontReport::default),
    };
    scope.spawn(run(Arc::new(watching), scope.clone()));
    orders
}

fn status(pool: &Pool, node: &str) -> Option<crate::front::BackendStatus> {
    pool.status().into_iter().find(|backend| backend.name == node)
}

#[tokio::test]
async fn the_set_comes_from_anybody_and_readiness_only_from_the_node_itself() {
    let (scope, pool) = (Scope::new(), pool());
    let (one, two) = (Node::start("n1", &scope).await, Node::start("n2", &scope).await);
    start(&pool, &one, &scope);
    one.says(set_of(&[("n1", &one, "active"), ("n2", &two, "active")]));
    eventually("both are known and ready", || pool.status().iter().filter(|of| of.ready == Some(true)).count() == 2)
        .await;
    two.says(|view| (view.ready, view.reason) = (false, "spool: disk full".to_owned()));
    eventually("n2 says no", || status(&pool, "n2").is_some_and(|of| of.reason == "spool: disk full")).await;
    assert_eq!(status(&pool, "n1").unwrap().ready, Some(true));
    // n1 cannot speak for n2.
    one.says(|view| (view.node, view.ready) = ("n2".to_owned(), true));
    two.says(|view| view.reason = "spool: still full".to_owned());
    eventually("n2 says no", || status(&pool, "n2").is_some_and(|of| of.reason == "spool: still full")).await;
    scope.end();
    assert!(scope.join(PATIENCE).await);
}

#[tokio::test]
async fn a_drain_arrives_at_once_and_an_old_view_does_not_undo_it() {
    let (scope, pool) = (Scope::new(), pool());
    let (one, two) = (Node::start("n1", &scope).await, Node::start("n2", &scope).await);
    start(&pool, &one, &scope);
    one.says(set_of(&[("n1", &one, "active"), ("n2", &two, "active")]));
    eventually("both are known", || pool.status().len() == 2).await;
    one.says(|view| view.revision = 9);
    one.says(set_of(&[("n1", &one, "active"), ("n2", &two, "draining")]));
    let began = tokio::time::Instant::now();
    eventually("n2 drains", || status(&pool, "n2").is_some_and(|of| of.state == "draining")).await;
    assert!(began.elapsed() < Duration::from_secs(1));
    two.says(set_of(&[("n1", &one, "active"), ("n2", &two, "active")]));
    two.says(|view| view.ready = false);
    eventually("n2's view arrived", || status(&pool, "n2").is_some_and(|of| of.ready == Some(false))).await;
    assert_eq!(status(&pool, "n2").unwrap().state, "draining");
    scope.end();
}

#[tokio::test]
async fn a_lost_stream_makes_readiness_unknown_and_counts_as_a_failure() {
    let (scope, pool) = (Scope::new(), pool());
    let one = Node::start("n1", &scope).await;
    start(&pool, &one, &scope);
    one.says(set_of(&[("n1", &one, "active")]));
    eventually("n1 is ready", || status(&pool, "n1").is_some_and(|of| of.ready == Some(true))).await;
    one.says(|view| view.reason = GONE.to_owned());
    eventually("n1 is unknown", || status(&pool, "n1").is_some_and(|of| of.ready.is_none())).await;
    eventually("that is a failure", || status(&pool, "n1").is_some_and(|of| of.failures == 1)).await;
    scope.end();
}

#[tokio::test]
async fn the_last_set_survives_on_disk_and_a_broken_file_is_no_set() {
    let (scope, pool, dir) = (Scope::new(), pool(), tempfile::tempdir().unwrap());
    let path = known_path(dir.path());
    scope.spawn(persist(pool.known(), path.clone(), scope.clone()));
    let one = Node::start("n1", &scope).await;
    start(&pool, &one, &scope);
    one.says(set_of(&[("n1", &one, "active")]));
    eventually("the file is there", || path.exists()).await;
    let set = load(path.clone()).await.unwrap();
    assert_eq!((set.cluster_id.as_str(), set.backends[0].node.as_str()), ("c", "n1"));
    std::fs::write(&path, "{").unwrap();
    assert!(load(path).await.is_none());
    scope.end();
}

#[tokio::test]
async fn a_silent_stream_counts_as_a_failure() {
    let (scope, pool) = (Scope::new(), pool());
    let one = Node::start("n1", &scope).await;
    start_with(&pool, &one, &scope, Duration::from_millis(100));
    one.says(set_of(&[("n1", &one, "active")]));
    eventually("n1 has said nothing", || {
        status(&pool, "n1").is_some_and(|of| of.failures > 0 && of.last_failure.contains("nothing in 100 ms"))
    })
    .await;
    scope.end();
}

#[tokio::test]
async fn a_front_is_drained_and_signs_with_a_new_key_when_it_is_told_and_an_old_view_undoes_nothing() {
    let (scope, pool) = (Scope::new(), pool());
    let (one, two) = (Node::start("n1", &scope).await, Node::start("n2", &scope).await);
    let orders = start(&pool, &one, &scope);
    one.says(set_of(&[("n1", &one, "active"), ("n2", &two, "active")]));
    eventually("both are known", || pool.status().len() == 2).await;
    assert!(!orders.is_draining() && orders.key_id() == "f1-1");
    one.says(|view| {
        view.revision = 9;
        view.front_draining = true;
        (view.signing_key_id, view.signing_key) = ("f1-2".to_owned(), vec![7; 32]);
    });
    eventually("it drains and signs anew", || orders.is_draining() && orders.key_id() == "f1-2").await;
    two.says(|view| {
        view.revision = 8;
        view.ready = false;
        (view.signing_key_id, view.signing_key) = ("f1-1".to_owned(), vec![3; 32]);
    });
    eventually("n2's view arrived", || status(&pool, "n2").is_some_and(|of| of.ready == Some(false))).await;
    assert!(orders.is_draining() && orders.key_id() == "f1-2");
    scope.end();
}

#[test]
fn a_node_that_belongs_to_no_cluster_names_no_backends() {
    assert!(known_set(FrontView { node: "n9".to_owned(), ..FrontView::default() }).is_none());
}
