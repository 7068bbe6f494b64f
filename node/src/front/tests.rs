#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use super::fake::{Fake, HELLO, Manner, PATIENCE, config, device, eventually, key, line, quit};
use super::pool::{Known, KnownSet};
use super::*;

/// Nobody answers: these fronts live from their last known set.
struct NoCluster;

impl Dial for NoCluster {
    fn channel(&self, _: &str, _: &str) -> Channel {
        Endpoint::from_static("http://127.0.0.1:1").connect_lazy()
    }
}

/// A running front over some backends.
struct House {
    scope: Scope,
    handle: FrontHandle,
    _dir: tempfile::TempDir,
}

impl House {
    async fn open(backends: Vec<Known>, up: usize) -> Self {
        Self::open_with(backends, up, "").await
    }

    /// Returns when `up` backends are up.
    async fn open_with(backends: Vec<Known>, up: usize, more: &str) -> Self {
        Self::open_patient(backends, up, more, None).await
    }

    /// With another `banner_timeout_max`.
    async fn open_patient(backends: Vec<Known>, up: usize, more: &str, most: Option<Duration>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let set = KnownSet { cluster_id: "c".to_owned(), revision: 1, backends };
        std::fs::write(watch::known_path(dir.path()), serde_json::to_vec(&set).unwrap()).unwrap();
        let mut config = config(dir.path(), more);
        config.check.banner_timeout_max = most.unwrap_or(config.check.banner_timeout_max);
        let options = FrontOptions {
            config,
            key: key(),
            dial: Arc::new(NoCluster),
            seeds: vec![],
            keep_key: Arc::new(|_| Ok(())),
            inherited: Inherited::default(),
        };
        let front = Front::bind(options).await.unwrap();
        let (handle, scope) = (front.handle(), Scope::new());
        let inner = scope.clone();
        scope.spawn(async move { front.run(&inner).await });
        let house = Self { scope, handle, _dir: dir };
        let is_up = || house.handle.status().backends.iter().filter(|backend| backend.up).count() == up;
        eventually("the backends are up", is_up).await;
        house
    }

    fn address(&self, service: u16) -> SocketAddr {
        self.handle.listeners().iter().find(|(_, port)| *port == service).unwrap().0
    }

    async fn device(&self) -> tokio::net::TcpStream {
        device("127.0.31.7", self.address(25)).await
    }
}

#[tokio::test]
async fn a_node_sees_the_device_and_believes_it() {
    let scope = Scope::new();
    let node = Fake::start("n1", Manner::Good, &scope).await;
    let house = House::open(vec![node.known("active")], 1).await;
    let mut device = house.device().await;
    assert_eq!(line(&mut device).await, "220 n1 ESMTP\r\n");
    let seen = node.devices().remove(0);
    assert_eq!(seen.header.source, Some(device.local_addr().unwrap()));
    assert_eq!(seen.header.destination, Some(house.address(25)));
    assert_eq!((seen.front.front.as_str(), seen.front.service_port), ("f1", 25));
    assert_eq!(seen.from.ip().to_string(), "127.0.0.2");
    let id = String::from_utf8(seen.header.unique_id.unwrap()).unwrap();
    assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert_eq!(quit(device).await, "221 bye\r\n");
    assert!(node.checks() > 0);
    scope.end();
}

/// The heart of the front: whatever the first backends do, the device sees one greeting, from the good one.
#[tokio::test]
async fn a_device_sees_exactly_one_greeting_whatever_the_others_do() {
    let scope = Scope::new();
    for manner in [Manner::Closes, Manner::Resets, Manner::Silent] {
        let sick = [Fake::start("a1", Manner::Good, &scope).await, Fake::start("a2", Manner::Good, &scope).await];
        let absent = Fake::absent("a3").await;
        let good = Fake::start("n1", Manner::Good, &scope).await;
        let backends = [&sick[0], &sick[1], &good].map(|fake| fake.known("active")).to_vec();
        let house = House::open([backends, vec![absent.known("active")]].concat(), 3).await;
        sick.iter().for_each(|fake| fake.behave(manner));
        for _ in 0..6 {
            let mut device = house.device().await;
            assert_eq!(line(&mut device).await, "220 n1 ESMTP\r\n", "{manner:?}");
            assert_eq!(quit(device).await, "221 bye\r\n", "{manner:?}");
        }
        assert!(sick.iter().any(|fake| !fake.devices().is_empty()), "{manner:?}: nobody was sent to the sick ones");
        house.scope.end();
    }
    scope.end();
}

#[tokio::test]
async fn a_sick_node_is_out_after_one_check_interval_and_back_when_it_is_well() {
    let scope = Scope::new();
    let (one, two) = (Fake::start("n1", Manner::Good, &scope).await, Fake::start("n2", Manner::Good, &scope).await);
    let house = House::open(vec![one.known("active"), two.known("active")], 2).await;
    for manner in [Manner::Silent, Manner::Closes, Manner::Refuses421, Manner::Refuses554, Manner::Refuses502] {
        one.behave(manner);
        let is_down = || house.handle.status().backends.iter().any(|backend| !backend.up && backend.failures >= 2);
        eventually("n1 is down", is_down).await;
        let before = one.devices().len();
        for _ in 0..4 {
            assert_eq!(line(&mut house.device().await).await, "220 n2 ESMTP\r\n");
        }
        assert_eq!(one.devices().len(), before, "{manner:?}: a backend that is down was used");
        one.behave(Manner::Good);
        eventually("n1 is up", || house.handle.status().backends.iter().all(|backend| backend.up)).await;
    }
    scope.end();
}

#[tokio::test]
async fn a_421_from_a_node_is_meant_for_the_device() {
    let scope = Scope::new();
    let node = Fake::start("n1", Manner::Good, &scope).await;
    let other = Fake::start("n2", Manner::Good, &scope).await;
    let house = House::open(vec![node.known("active"), other.known("active")], 2).await;
    node.behave(Manner::Refuses421);
    other.behave(Manner::Refuses421);
    let answer = quit(house.device().await).await;
    assert!(answer.starts_with("421 4.3.2 n") && answer.ends_with(" says no\r\n"), "{answer}");
    assert_eq!(node.devices().len() + other.devices().len(), 1, "it was not offered to the other one");
    scope.end();
}

#[tokio::test]
async fn slow_backends_are_waited_for_when_there_is_nobody_else() {
    let scope = Scope::new();
    let (one, two) = (Fake::start("n1", Manner::Good, &scope).await, Fake::start("n2", Manner::Good, &scope).await);
    let absent = Fake::absent("n3").await;
    let house = House::open([&one, &two, &absent].map(|fake| fake.known("active")).to_vec(), 2).await;
    // Longer than banner_timeout, shorter than banner_timeout_max.
    for fake in [&one, &two] {
        fake.behave(Manner::Slow(Duration::from_millis(700)));
    }
    let mut devices = vec![house.device().await, house.device().await, house.device().await];
    for device in &mut devices {
        assert!(line(device).await.starts_with("220 n"));
    }
    for device in devices {
        assert_eq!(quit(device).await, "221 bye\r\n", "a second greeting was heard");
    }
    scope.end();
}

#[tokio::test]
async fn backends_that_are_slow_to_connect_are_waited_for_when_there_is_nobody_else() {
    let (scope, relief) = (Scope::new(), Arc::new(tokio::sync::Semaphore::new(0)));
    let one = Fake::overrun("n1", Arc::clone(&relief), &scope).await;
    let two = Fake::overrun("n2", Arc::clone(&relief), &scope).await;
    let backends = [&one, &two].map(|fake| fake.known("active")).to_vec();
    let house = House::open_patient(backends, 0, "", Some(PATIENCE)).await;
    let mut device = house.device().await;
    // Much longer than two times connect_timeout; the kernel asks again after one second.
    tokio::time::sleep(Duration::from_millis(800)).await;
    relief.add_permits(2);
    let greeting = line(&mut device).await;
    assert!(greeting.starts_with("220 n"), "{greeting:?}");
    assert_eq!(quit(device).await, "221 bye\r\n", "a second greeting was heard");
    eventually("they pass again", || house.handle.status().backends.iter().all(|backend| backend.up)).await;
    scope.end();
}

#[tokio::test]
async fn the_panic_floor_keeps_the_only_one_in() {
    let scope = Scope::new();
    let node = Fake::start("n1", Manner::Slow(Duration::from_millis(500)), &scope).await;
    let house = House::open(vec![node.known("active")], 0).await;
    eventually("n1 fails its checks", || house.handle.status().backends[0].failures > 2).await;
    assert_eq!(line(&mut house.device().await).await, "220 n1 ESMTP\r\n");
    scope.end();
}

#[tokio::test]
async fn a_device_that_leaves_before_the_greeting_frees_its_place() {
    let scope = Scope::new();
    let node = Fake::start("n1", Manner::Good, &scope).await;
    let house = House::open(vec![node.known("active")], 1).await;
    node.behave(Manner::Slow(Duration::from_secs(60)));
    let device = house.device().await;
    eventually("it has a place", || house.handle.status().sessions == 1).await;
    let left = Instant::now();
    drop(device);
    eventually("its place is free", || house.handle.status().sessions == 0).await;
    // Unnoticed it would be kept for banner_timeout and banner_timeout_max, 1.2 s.
    assert!(left.elapsed() < Duration::from_millis(900), "{:?}", left.elapsed());
    scope.end();
}

#[tokio::test]
async fn nobody_is_said_only_when_nobody_can_be_had() {
    let scope = Scope::new();
    let draining = Fake::start("n1", Manner::Good, &scope).await;
    let house = House::open(vec![draining.known("draining"), Fake::absent("n2").await.known("active")], 1).await;
    let started = Instant::now();
    let answer = quit(house.device().await).await;
    assert_eq!(answer, "421 4.3.2 Service not available, closing transmission channel\r\n");
    assert!(started.elapsed() < PATIENCE / 2);
    assert!(draining.devices().is_empty(), "a draining node was used");
    assert_eq!(quit(device("127.0.31.7", house.address(465)).await).await, "", "a TLS device understands no 421");
    let status = house.handle.status();
    assert!(!status.ready && status.reasons.len() == 2, "{status:?}");
    assert!(status.verbose().contains("[-]service 25: no backend is up and ready\n"), "{}", status.verbose());
    scope.end();
}

#[tokio::test]
async fn a_client_hello_is_said_again_to_the_next_backend() {
    let scope = Scope::new();
    for manner in [Manner::Closes, Manner::Silent, Manner::Resets] {
        let sick = Fake::start("a1", Manner::Good, &scope).await;
        let good = Fake::start("n1", Manner::Good, &scope).await;
        let house = House::open(vec![sick.known("active"), good.known("active")], 2).await;
        sick.behave(manner);
        good.behave(Manner::Tls);
        for _ in 0..2 {
            let mut device = device("127.0.31.7", house.address(465)).await;
            device.write_all(&HELLO[..7]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(30)).await;
            device.write_all(&HELLO[7..]).await.unwrap();
            assert_eq!(line(&mut device).await, "220 n1 ESMTP\r\n", "{manner:?}");
        }
        assert!(!sick.devices().is_empty(), "{manner:?}: nobody was sent to the sick one");
        house.scope.end();
    }
    scope.end();
}

#[tokio::test]
async fn a_device_that_does_not_say_hello_is_not_the_nodes_fault() {
    let scope = Scope::new();
    let node = Fake::start("n1", Manner::Good, &scope).await;
    let house = House::open(vec![node.known("active")], 1).await;
    node.behave(Manner::Tls);
    let mut device = device("127.0.31.7", house.address(465)).await;
    // Much longer than banner_timeout_max.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(node.devices().len(), 1, "it was given to another one");
    device.write_all(&HELLO).await.unwrap();
    assert_eq!(line(&mut device).await, "220 n1 ESMTP\r\n");
    scope.end();
}

#[tokio::test]
async fn a_device_that_talks_too_early_is_still_heard_once() {
    let scope = Scope::new();
    let sick = Fake::start("a1", Manner::Good, &scope).await;
    let good = Fake::start("n1", Manner::Good, &scope).await;
    let house = House::open(vec![sick.known("active"), good.known("active")], 2).await;
    sick.behave(Manner::Closes);
    for _ in 0..3 {
        let mut device = house.device().await;
        device.write_all(b"EHLO early\r\nQUIT\r\n").await.unwrap();
        let mut bytes = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut device, &mut bytes).await.unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text, "220 n1 ESMTP\r\n250-fake\r\n250-SIZE 1000\r\n250 PIPELINING\r\n221 bye\r\n");
    }
    assert!(good.devices().iter().chain(&sick.devices()).all(|seen| seen.early.is_empty()));
    scope.end();
}

#[tokio::test]
async fn one_device_too_many_is_answered_421() {
    let scope = Scope::new();
    let node = Fake::start("n1", Manner::Good, &scope).await;
    let house = House::open(vec![node.known("active")], 1).await;
    let mut devices = Vec::new();
    for _ in 0..8 {
        let mut device = house.device().await;
        assert!(line(&mut device).await.starts_with("220"));
        devices.push(device);
    }
    assert_eq!(house.handle.status().sessions, 8);
    assert!(line(&mut house.device().await).await.starts_with("421 4.3.2"));
    drop(devices.pop());
    eventually("a place is free", || house.handle.status().sessions < 8).await;
    assert!(line(&mut house.device().await).await.starts_with("220"));
    scope.end();
}

#[tokio::test]
async fn stopping_lets_sessions_finish_and_takes_no_new_ones() {
    let scope = Scope::new();
    let node = Fake::start("n1", Manner::Good, &scope).await;
    let house = House::open(vec![node.known("active")], 1).await;
    let mut device = house.device().await;
    assert!(line(&mut device).await.starts_with("220"));
    house.scope.end();
    eventually("the front drains", || house.handle.status().draining).await;
    let refused = tokio::net::TcpStream::connect(house.address(25));
    let until = Instant::now() + PATIENCE;
    let mut refused = refused.await;
    while refused.is_ok() {
        assert!(Instant::now() < until, "a stopping front accepts");
        refused = tokio::net::TcpStream::connect(house.address(25)).await;
    }
    assert_eq!(quit(device).await, "221 bye\r\n");
    assert!(house.scope.join(PATIENCE).await);
    scope.end();
}

#[tokio::test]
async fn stopping_cuts_sessions_at_the_deadline() {
    let scope = Scope::new();
    let node = Fake::start("n1", Manner::Good, &scope).await;
    let house = House::open_with(vec![node.known("active")], 1, "drain_timeout = \"200ms\"").await;
    let mut device = house.device().await;
    assert!(line(&mut device).await.starts_with("220"));
    house.scope.end();
    assert!(house.scope.join(PATIENCE).await);
    assert_eq!(line(&mut device).await, "", "the session is closed");
    scope.end();
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(dir.path(), "");
    config.listen[0].address = taken.local_addr().unwrap();
    let options = FrontOptions {
        config,
        key: key(),
        dial: Arc::new(NoCluster),
        seeds: vec![],
        keep_key: Arc::new(|_| Ok(())),
        inherited: Inherited::default(),
    };
    let Err(error) = Front::bind(options).await else { panic!("bound twice") };
    assert!(error.to_string().contains(&taken.local_addr().unwrap().to_string()), "{error}");
}
