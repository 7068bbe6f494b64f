//! The queue on a real spool, with next hops on loopback that do what they are told.
#![allow(clippy::unwrap_used)]

mod million;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::connector::{RouteAuth, SendConnector, SendTls};
use crate::mail::{BodyType, Domain, Envelope, ForwardPath, ReversePath};
use crate::outbound::Health;
use crate::outbound::tests::{FakeHop, Manner, outbound, route};
use crate::shutdown::{Scope, run_blocking};
use crate::spool::{NewMessage, Spool, TraceFilter, TraceLimits, TraceStatus};
use crate::state::{ClusterState, Settings, StateView, Versioned};

/// A node's queue, on a spool in a directory.
struct Bench {
    spool: Spool,
    queue: QueueHandle,
    scope: Scope,
    _view: watch::Sender<Arc<StateView>>,
}

impl Bench {
    async fn start(dir: &Path, routes: Vec<SendConnector>, out: Outbound) -> Self {
        Self::start_with(dir, routes, out, |_, _| {}).await
    }

    async fn start_with(
        dir: &Path,
        routes: Vec<SendConnector>,
        out: Outbound,
        change: impl FnOnce(&mut QueueSettings, &mut Settings),
    ) -> Self {
        let scope = Scope::new();
        let (at, within) = (dir.to_owned(), scope.clone());
        let (spool, _) = run_blocking(move || {
            for _ in 0..500 {
                match Spool::open(&at, 1, "n1", TraceLimits::default(), &within) {
                    Err(SpoolError::Locked { .. }) => std::thread::sleep(Duration::from_millis(10)),
                    opened => return opened.unwrap(),
                }
            }
            panic!("the lock was never let go");
        })
        .await;
        let mut state = ClusterState::default();
        let by_name = routes.into_iter().map(|route| {
            route.check().unwrap();
            (route.name.clone(), Versioned { revision: 1, value: Arc::new(route) })
        });
        state.routes = Arc::new(by_name.collect::<BTreeMap<_, _>>());
        let short = Duration::from_millis(20);
        let mut settings = QueueSettings {
            glitch_retry_interval: short,
            transient_failure_retry_interval: short,
            message_retry_interval: short,
            ..QueueSettings::default()
        };
        let mut agreed = Settings::default();
        change(&mut settings, &mut agreed);
        state.settings = Arc::new(agreed);
        let (sender, view) = watch::channel(Arc::new(StateView::build(state, 1, None)));
        let deps = QueueDeps {
            view,
            node: Arc::new(NodeFacts {
                node_id: 1,
                name: "n1".to_owned(),
                fqdn: Domain::parse("relay.example").unwrap(),
            }),
            outbound: Arc::new(out),
            settings,
        };
        let queue = QueueManager::start(spool.clone(), deps, &scope);
        Self { spool, queue, scope, _view: sender }
    }

    async fn put(&self, from: &str, to: &[&str], letter: &[u8]) -> MessageId {
        let mut append = self.spool.begin();
        let id = append.id();
        append.write(letter.to_vec()).await.unwrap();
        let reverse_path = ReversePath::try_from(from.to_owned()).unwrap();
        let to = to.iter().map(|&path| ForwardPath::try_from(path.to_owned()).unwrap());
        let envelope = Envelope { body: BodyType::EightBitMime, ..Envelope::new(reverse_path, to) };
        append.commit(message(envelope)).await.unwrap();
        id
    }

    /// The letters that `filter` means.
    async fn chosen(&self, filter: &QueueFilter) -> Vec<MessageId> {
        self.queue.choose(filter, None, usize::MAX).await.unwrap().0
    }

    async fn emptied(&self) {
        // The spool is the truth: the queue hears of a letter, and of a report, a moment after it is durable.
        wait("the queue empties", || self.spool.stats().letters == 0 && self.queue.is_empty()).await;
    }

    async fn stop(self) {
        self.queue.stop_new_attempts(Duration::from_secs(10)).await;
        self.scope.end();
        self.spool.close().await;
    }
}

fn message(envelope: Envelope) -> NewMessage {
    NewMessage {
        envelope,
        message_id: "<one@corp.example>".to_owned(),
        source_addr: "10.1.2.3".parse().unwrap(),
        front: None,
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

async fn wait(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..24_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what}: not within two minutes");
}

const LETTER: &[u8] = b"Subject: x\r\n\r\nhello\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_crashes_a_worker_twice_is_set_aside_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let scope = Scope::new();
    let hop = FakeHop::start(&scope, Manner::default()).await;
    let mut poison = route(&[hop.addr], SendTls::Off);
    poison.name = "poison".to_owned();
    poison.address_spaces = vec!["poison.example".parse().unwrap()];
    poison.auth = Some(RouteAuth { user: "u".to_owned(), sealed_password: "x".to_owned() });
    let mut out = outbound(None);
    out.open_secret = Arc::new(|_| panic!("a letter that no worker survives"));
    let bench = Bench::start(dir.path(), vec![route(&[hop.addr], SendTls::Off), poison], out).await;
    let bad = bench.put("a@corp.example", &["x@poison.example"], LETTER).await;
    for index in 0..10 {
        bench.put("a@corp.example", &[&format!("r{index}@x.example")], LETTER).await;
    }
    bench.emptied().await;
    assert_eq!(hop.taken().len(), 10);
    let aside = bench.spool.quarantined().await.unwrap();
    assert_eq!(aside.len(), 1);
    assert!(format!("{aside:?}").contains("crashed"), "{aside:?}");
    let trace = bench.spool.trace(TraceFilter { id: Some(bad), limit: 1, ..TraceFilter::default() }).await.unwrap();
    assert!(trace[0].events.iter().any(|event| event.event.as_str() == "quarantined"));
    bench.stop().await;
    scope.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_letter_stays_through_a_restart_and_leaves_when_it_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let scope = Scope::new();
    let hop = FakeHop::start(&scope, Manner { after_dot: "451 not yet", ..Manner::default() }).await;
    let routes = || vec![route(&[hop.addr], SendTls::Off)];
    let bench = Bench::start(dir.path(), routes(), outbound(None)).await;
    bench.put("a@corp.example", &["x@x.example"], LETTER).await;
    wait("the letter is there", || bench.queue.len() == 1).await;
    let all = QueueFilter { all: true, ..QueueFilter::default() };
    let ids = bench.chosen(&all).await;
    let held = bench.queue.hold(&ids, true, "admin: checking").await.unwrap();
    assert_eq!((held.len(), bench.queue.hold(&ids, true, "again").await.unwrap().len()), (1, 0));
    // What was under way finishes first.
    wait("the letter is held", || bench.queue.book().count(LetterState::Held) == 1).await;
    hop.manner.lock().unwrap().after_dot = "250 ok";
    bench.stop().await;
    let bench = Bench::start(dir.path(), routes(), outbound(None)).await;
    wait("the letter is there", || bench.queue.len() == 1).await;
    let listed = bench.queue.list(&all, 10).await.unwrap();
    assert_eq!(listed.messages[0].state, LetterState::Held);
    let (rows, letters) = bench.queue.shape(&all, ShapeBy::Sender).await.unwrap();
    assert_eq!((rows[0].key.as_str(), rows[0].total, rows[0].by_age[0], letters), ("a@corp.example", 1, 1, 1));
    let shown = bench.queue.show(held[0], true).await.unwrap().unwrap();
    assert_eq!((shown.record.held.unwrap().by.as_str(), &*shown.header), ("admin: checking", &b"Subject: x\r\n"[..]));
    assert!(bench.queue.show(MessageId(1), false).await.unwrap().is_none());
    bench.queue.retry(&held);
    assert!(hop.taken().is_empty(), "a retry is not a release");
    bench.queue.hold(&held, false, "admin: fine").await.unwrap();
    bench.emptied().await;
    assert_eq!(hop.taken().len(), 1);
    bench.stop().await;
    scope.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_filter_means_its_letters_and_no_others_page_by_page() {
    let dir = tempfile::tempdir().unwrap();
    let scope = Scope::new();
    let hop = FakeHop::start(&scope, Manner { after_dot: "451 4.7.1 Greylisted for now", ..Manner::default() }).await;
    let mut slow = route(&[hop.addr], SendTls::Off);
    slow.retry.glitch_retry_interval_secs = Some(3600);
    let bench = Bench::start(dir.path(), vec![slow], outbound(None)).await;
    let now = crate::clock::now_ms();
    let mut ids = Vec::new();
    for (index, (source, user)) in
        [("10.1.2.3", None), ("10.1.2.9", Some("erp")), ("10.9.9.9", None)].iter().enumerate()
    {
        let path = ForwardPath::try_from(format!("r{index}@x{index}.example")).unwrap();
        let envelope = Envelope::new(ReversePath::try_from(format!("s{index}@corp.example")).unwrap(), [path]);
        let mut new = message(envelope);
        (new.source_addr, new.user) = (source.parse().unwrap(), user.map(str::to_owned));
        new.connector = format!("c{index}");
        let mut append = bench.spool.begin();
        ids.push(append.id());
        append.write(LETTER.to_vec()).await.unwrap();
        append.commit(new).await.unwrap();
    }
    wait("all wait", || bench.queue.book().count(LetterState::Retry) == 3).await;
    let none = QueueFilter::default;
    let text = |text: &str| Some(text.to_owned());
    let (a, b, c) = (ids[0], ids[1], ids[2]);
    let cases = [
        (QueueFilter { all: true, ..none() }, vec![a, b, c]),
        (QueueFilter { ids: vec![c, a, c, MessageId(1)], ..none() }, vec![a, c]),
        (QueueFilter { domain: Some(Domain::parse("x1.example").unwrap()), ..none() }, vec![b]),
        (QueueFilter { sender: text("S2@corp.example"), ..none() }, vec![c]),
        (QueueFilter { recipient: text("R0@x0.example"), ..none() }, vec![a]),
        (QueueFilter { connector: text("C1"), ..none() }, vec![b]),
        (QueueFilter { client: Some("10.1.2.0/24".parse().unwrap()), ..none() }, vec![a, b]),
        (QueueFilter { client: Some("10.9.9.9".parse().unwrap()), ..none() }, vec![c]),
        (QueueFilter { credential: text("ERP"), ..none() }, vec![b]),
        (QueueFilter { accepted_before_ms: Some(now), ..none() }, vec![]),
        (QueueFilter { accepted_before_ms: Some(now + 60_000), ..none() }, vec![a, b, c]),
        (QueueFilter { accepted_since_ms: Some(now), ..none() }, vec![a, b, c]),
        (QueueFilter { accepted_since_ms: Some(now + 60_000), ..none() }, vec![]),
        (QueueFilter { state: Some(LetterState::Held), ..none() }, vec![]),
        (QueueFilter { state: Some(LetterState::Retry), ..none() }, vec![a, b, c]),
        (QueueFilter { error: text("greylisted"), ..none() }, vec![a, b, c]),
        (QueueFilter { error: text("no such user"), ..none() }, vec![]),
        (
            QueueFilter {
                error: text("greylisted"),
                client: Some("10.1.2.0/24".parse().unwrap()),
                sender: text("s1@corp.example"),
                ..none()
            },
            vec![b],
        ),
    ];
    for (filter, wanted) in cases {
        assert_eq!(bench.chosen(&filter).await, wanted, "{filter:?}");
        let listed = bench.queue.list(&filter, 10).await.unwrap();
        let ids: Vec<_> = listed.messages.iter().map(|message| message.id).collect();
        assert_eq!((ids, listed.matched), (wanted.clone(), wanted.len() as u64), "{filter:?}");
        assert_eq!(bench.queue.summary(&filter).await.unwrap().messages, wanted.len() as u64, "{filter:?}");
        // One at a time it comes to the same.
        let (mut after, mut singly) = (None, Vec::new());
        loop {
            let (chosen, next) = bench.queue.choose(&filter, after, 1).await.unwrap();
            singly.extend(chosen);
            after = next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(singly, wanted, "{filter:?}");
    }
    assert_eq!(bench.queue.choose(&none(), None, 1).await, Err(QueueError::NothingChosen));
    let (rows, _) = bench.queue.shape(&QueueFilter { all: true, ..none() }, ShapeBy::Error).await.unwrap();
    assert_eq!((rows.len(), rows[0].total), (1, 3));
    assert!(rows[0].key.contains("Greylisted"), "{rows:?}");
    bench.stop().await;
    scope.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirected_letter_goes_elsewhere_also_after_a_restart_and_its_trace_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let scope = Scope::new();
    let first = FakeHop::start(&scope, Manner { after_dot: "451 not here", ..Manner::default() }).await;
    let other = FakeHop::start(&scope, Manner { after_dot: "451 not yet", ..Manner::default() }).await;
    let routes = || {
        let mut slow = route(&[first.addr], SendTls::Off);
        slow.retry.glitch_retry_interval_secs = Some(3600);
        vec![slow]
    };
    let bench = Bench::start(dir.path(), routes(), outbound(None)).await;
    let id = bench.put("a@corp.example", &["x@x.example", "y@y.example"], LETTER).await;
    wait("it waits", || bench.queue.book().count(LetterState::Retry) == 1).await;
    let host = other.addr.to_string().parse().unwrap();
    let only_x = [Domain::parse("x.example").unwrap()];
    let by = "admin: first is down";
    assert_eq!(bench.queue.redirect(&[id], Some(&host), &only_x, by).await.unwrap(), [id]);
    assert!(bench.queue.redirect(&[id], Some(&host), &only_x, "again").await.unwrap().is_empty(), "it was so already");
    let shown = bench.queue.show(id, false).await.unwrap().unwrap().record.redirect.unwrap();
    assert_eq!((shown.to, shown.by.as_str()), (other.addr.to_string(), by));
    wait("it waits again", || bench.queue.book().count(LetterState::Retry) == 1).await;
    bench.stop().await;

    for hop in [&first, &other] {
        hop.manner.lock().unwrap().after_dot = "250 ok";
    }
    let bench = Bench::start(dir.path(), routes(), outbound(None)).await;
    wait("the letter is there", || bench.queue.len() == 1).await;
    bench.queue.retry(&[id]);
    bench.emptied().await;
    assert_eq!((&other.taken()[0].to, other.taken().len()), (&vec!["x@x.example".to_owned()], 1));
    assert_eq!((&first.taken()[0].to, first.taken().len()), (&vec!["y@y.example".to_owned()], 1));
    let trace = bench.spool.trace(TraceFilter { id: Some(id), limit: 1, ..TraceFilter::default() }).await.unwrap();
    let event = trace[0].events.iter().find(|event| event.event.as_str() == "redirected").unwrap();
    assert_eq!((&event.next_hop, event.detail.as_str()), (&other.addr.to_string(), by));
    bench.stop().await;
    scope.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_recipients_that_were_named_are_returned() {
    let dir = tempfile::tempdir().unwrap();
    let scope = Scope::new();
    let hop = FakeHop::start(&scope, Manner { after_dot: "451 not yet", ..Manner::default() }).await;
    let mut slow = route(&[hop.addr], SendTls::Off);
    slow.retry.glitch_retry_interval_secs = Some(3600);
    let bench = Bench::start(dir.path(), vec![slow], outbound(None)).await;
    let id = bench.put("<>", &["x@x.example", "z@x.example", "y@y.example"], LETTER).await;
    wait("it waits", || bench.queue.book().count(LetterState::Retry) == 1).await;
    let whom = QueueFilter { recipient: Some("z@x.example".to_owned()), ..QueueFilter::default() };
    assert_eq!(bench.queue.bounce(&[id], &whom, "gone", "admin").await.unwrap(), [id]);
    hop.manner.lock().unwrap().after_dot = "250 ok";
    bench.queue.retry(&[id]);
    bench.emptied().await;
    let mut taken: Vec<String> = hop.taken().into_iter().flat_map(|taken| taken.to).collect();
    taken.sort();
    assert_eq!(taken, ["x@x.example", "y@y.example"]);
    bench.stop().await;
    scope.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_8_bit_letter_is_made_fit_for_a_7_bit_next_hop_or_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let scope = Scope::new();
    let wide = FakeHop::start(&scope, Manner::default()).await;
    let narrow = FakeHop::start(&scope, Manner { ehlo: "250-sink\r\n250 PIPELINING", ..Manner::default() }).await;
    let home = FakeHop::start(&scope, Manner::default()).await;
    let to = |name: &str, hop: &FakeHop| {
        let mut route = route(&[hop.addr], SendTls::Off);
        (route.name, route.address_spaces) = (name.to_owned(), vec![name.parse().unwrap()]);
        route
    };
    let routes = vec![to("wide.example", &wide), to("narrow.example", &narrow), to("corp.example", &home)];
    let bench = Bench::start(dir.path(), routes, outbound(None)).await;
    let mime = "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n";
    let letter = format!("{mime}\r\ngrün\r\n");
    bench.put("a@corp.example", &["x@wide.example", "x@narrow.example"], letter.as_bytes()).await;
    bench.emptied().await;
    assert_eq!(wide.taken()[0].data, letter.as_bytes());
    let narrowed = String::from_utf8(narrow.taken()[0].data.clone()).unwrap();
    assert!(narrowed.ends_with("quoted-printable\r\n\r\ngr=C3=BCn\r\n"), "{narrowed}");
    bench.put("a@corp.example", &["x@narrow.example"], "Subject: grün\r\n\r\nx\r\n".as_bytes()).await;
    bench.emptied().await;
    // Between the letter that is done with and its report the queue is empty for a moment.
    wait("the report arrives", || !home.taken().is_empty()).await;
    assert_eq!(narrow.taken().len(), 1);
    let report = String::from_utf8(home.taken()[0].data.clone()).unwrap();
    assert!(report.contains("5.6.3") && report.contains("8BITMIME"), "{report}");
    bench.stop().await;
    scope.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_hears_once_of_a_delay_and_once_of_the_end_and_so_does_who_runs_the_relay() {
    let dir = tempfile::tempdir().unwrap();
    let scope = Scope::new();
    let busy = FakeHop::start(&scope, Manner { after_dot: "451 4.7.1 greylisted", ..Manner::default() }).await;
    let home = FakeHop::start(&scope, Manner::default()).await;
    let mut back = route(&[home.addr], SendTls::Off);
    (back.name, back.address_spaces) = ("corp.example".to_owned(), vec!["corp.example".parse().unwrap()]);
    let mut away = route(&[busy.addr], SendTls::Off);
    away.retry.message_expiration_timeout_secs = Some(2);
    let bench = Bench::start_with(dir.path(), vec![away, back], outbound(None), |settings, state| {
        settings.delay_notification_timeout = Duration::from_millis(300);
        let copy = "admins@corp.example".parse().unwrap();
        state.dsn_copy_to = vec![copy];
    })
    .await;
    bench.put("printer@corp.example", &["x@x.example", "y@x.example"], LETTER).await;
    // A report that cannot be delivered is never answered by another.
    bench.put("<>", &["z@x.example"], LETTER).await;
    bench.emptied().await;
    let told: Vec<(String, Vec<String>)> = home
        .taken()
        .iter()
        .map(|taken| {
            let text = String::from_utf8(taken.data.clone()).unwrap();
            let subject = text.lines().find(|line| line.starts_with("Subject: ")).unwrap_or_default().to_owned();
            assert!(text.contains("greylisted") && taken.from.is_empty(), "{text}");
            assert!(text.contains("x@x.example") && text.contains("y@x.example"), "one report names both: {text}");
            (subject, taken.to.clone())
        })
        .collect();
    let printer = "printer@corp.example".to_owned();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].0.contains("Delayed") && told[0].1 == [printer.clone()], "{told:?}");
    assert!(told[1].0.contains("Undeliverable"), "{told:?}");
    assert_eq!(told[1].1, [printer, "admins@corp.example".to_owned()]);
    bench.stop().await;
    scope.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn success_is_reported_where_it_was_asked_for_and_by_whoever_can() {
    let dir = tempfile::tempdir().unwrap();
    let scope = Scope::new();
    let telling =
        FakeHop::start(&scope, Manner { ehlo: "250-sink\r\n250-8BITMIME\r\n250 DSN", ..Manner::default() }).await;
    let silent = FakeHop::start(&scope, Manner::default()).await;
    let home = FakeHop::start(&scope, Manner::default()).await;
    let to = |name: &str, hop: &FakeHop| {
        let mut route = route(&[hop.addr], SendTls::Off);
        (route.name, route.address_spaces) = (name.to_owned(), vec![name.parse().unwrap()]);
        route
    };
    let routes = vec![to("telling.example", &telling), to("silent.example", &silent), to("corp.example", &home)];
    let bench = Bench::start(dir.path(), routes, outbound(None)).await;
    for (from, notify, to) in [
        ("tell@corp.example", Some("SUCCESS"), "x@telling.example"),
        ("tell@corp.example", Some("SUCCESS,FAILURE"), "x@silent.example"),
        ("ask-not@corp.example", None, "x@silent.example"),
        ("never@corp.example", Some("NEVER"), "refuse@silent.example"),
        ("delay@corp.example", Some("DELAY"), "refuse@silent.example"),
        ("tell@corp.example", Some("FAILURE"), "refuse@silent.example"),
    ] {
        let path = ForwardPath::try_from(to.to_owned()).unwrap();
        let mut envelope = Envelope::new(ReversePath::try_from(from.to_owned()).unwrap(), [path]);
        envelope.recipients[0].notify = notify.map(|words| words.parse().unwrap());
        let mut append = bench.spool.begin();
        append.write(LETTER.to_vec()).await.unwrap();
        append.commit(message(envelope)).await.unwrap();
    }
    bench.emptied().await;
    assert_eq!((telling.taken().len(), silent.taken().len()), (1, 2));
    let mut told: Vec<(String, String)> = home
        .taken()
        .iter()
        .map(|taken| {
            let text = String::from_utf8(taken.data.clone()).unwrap();
            let action = text.lines().find(|line| line.starts_with("Action: ")).unwrap_or_default();
            (taken.to[0].clone(), action.to_owned())
        })
        .collect();
    told.sort();
    let tell = |action: &str| ("tell@corp.example".to_owned(), action.to_owned());
    assert_eq!(told, [tell("Action: failed"), tell("Action: relayed")]);
    bench.stop().await;
    scope.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn postmaster_has_a_reader_and_an_administrator_may_return_letters() {
    let dir = tempfile::tempdir().unwrap();
    let scope = Scope::new();
    let home = FakeHop::start(&scope, Manner::default()).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut back = route(&[home.addr], SendTls::Off);
    (back.name, back.address_spaces) = ("corp.example".to_owned(), vec!["corp.example".parse().unwrap()]);
    let routes = vec![route(&[closed], SendTls::Off), back];
    let bench = Bench::start_with(dir.path(), routes, outbound(None), |_, state| {
        state.postmaster = Some("admins@corp.example".parse().unwrap());
    })
    .await;
    bench.put("a@x.example", &["postmaster"], LETTER).await;
    bench.emptied().await;
    assert_eq!(home.taken()[0].to, ["admins@corp.example"]);
    bench.put("printer@corp.example", &["x@x.example"], LETTER).await;
    wait("the letter waits", || bench.queue.len() == 1).await;
    let to_x = QueueFilter { domain: Some(Domain::parse("x.example").unwrap()), ..QueueFilter::default() };
    // An attempt may be under way; then the letter is left alone.
    for _ in 0..1000 {
        let ids = bench.chosen(&to_x).await;
        if !bench.queue.bounce(&ids, &to_x, "wrong printer", "admin").await.unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench.emptied().await;
    let report = String::from_utf8(home.taken()[1].data.clone()).unwrap();
    assert!(report.contains("550 5.7.1 returned by an administrator: wrong printer"), "{report}");
    bench.stop().await;
    scope.end();
}

/// What a moody next hop did with a letter, by its recipient.
#[derive(Default)]
struct Ledger {
    taken: BTreeMap<String, usize>,
    refused: BTreeMap<String, usize>,
}

/// Refuses, defers, drops and stalls at random.
async fn moody(scope: &Scope, seed: u64) -> (std::net::SocketAddr, Arc<Mutex<Ledger>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, ledger) = (listener.local_addr().unwrap(), Arc::<Mutex<Ledger>>::default());
    let (within, book) = (scope.clone(), Arc::clone(&ledger));
    scope.spawn_until_ended(async move {
        let mut random = StdRng::seed_from_u64(seed);
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (book, mood) = (Arc::clone(&book), StdRng::seed_from_u64(random.random()));
            within.spawn_until_ended(async move {
                serve_moodily(stream, &book, mood).await;
            });
        }
    });
    (addr, ledger)
}

async fn serve_moodily(stream: TcpStream, book: &Mutex<Ledger>, mut mood: StdRng) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let mut percent = move || mood.random_range(0..100);
    match percent() {
        0..2 => return stream.write_all(b"421 4.3.2 busy\r\n").await.ok(),
        2..4 => return None,
        _ => stream.write_all(b"220 moody\r\n").await.ok()?,
    }
    let mut to = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        // Each command has its accident.
        match percent() {
            0..1 => return None,
            1..2 => {
                stream.write_all(b"421 4.3.2 no more\r\n").await.ok()?;
                return None;
            }
            2..3 if !line.starts_with("EHLO") => std::future::pending().await,
            _ => {}
        }
        let path = line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
        let reply = match (line.get(..4).unwrap_or_default(), percent()) {
            ("EHLO", _) => "250-moody\r\n250-8BITMIME\r\n250 SIZE 1000000",
            ("MAIL", 0..5) => "451 4.7.1 greylisted",
            ("RCPT", 0..10) => "450 4.2.0 busy",
            ("RCPT", 10..15) => {
                *book.lock().unwrap().refused.entry(path).or_default() += 1;
                "550 5.1.1 no such user"
            }
            ("RCPT", _) => {
                to.push(path);
                "250 ok"
            }
            ("DATA", 0..3) => {
                to.clear();
                "452 4.3.1 full"
            }
            ("DATA", _) if to.is_empty() => "503 no recipients",
            ("DATA", _) => {
                stream.write_all(b"354 go\r\n").await.ok()?;
                loop {
                    let mut data = String::new();
                    if stream.read_line(&mut data).await.ok()? == 0 {
                        return None;
                    }
                    if data == ".\r\n" {
                        break;
                    }
                }
                match percent() {
                    0..3 => "451 4.3.0 not today",
                    3..5 => {
                        to.drain(..).for_each(|path| *book.lock().unwrap().refused.entry(path).or_default() += 1);
                        "554 5.6.0 not with me"
                    }
                    mood => {
                        to.drain(..).for_each(|path| *book.lock().unwrap().taken.entry(path).or_default() += 1);
                        // It has the letter, and we never hear so: the duplicate that no one can avoid.
                        if mood < 8 {
                            return None;
                        }
                        "250 2.0.0 taken"
                    }
                }
            }
            ("RSET", _) => {
                to.clear();
                "250 ok"
            }
            ("QUIT", _) => return stream.write_all(b"221 bye\r\n").await.ok(),
            _ => "250 ok",
        };
        stream.write_all(format!("{reply}\r\n").as_bytes()).await.ok()?;
        if reply.starts_with("451") || reply.starts_with("452") || reply.starts_with("554") {
            to.clear();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_through_a_next_hop_that_refuses_defers_drops_and_stalls() {
    let letters: usize = std::env::var("POSTHOUSE_TEST_LETTERS").map_or(2_000, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let scope = Scope::new();
    let seed = 0x00D1_5EA5;
    let (addr, ledger) = moody(&scope, seed).await;
    let home = FakeHop::start(&scope, Manner::default()).await;
    let mut back = route(&[home.addr], SendTls::Off);
    (back.name, back.address_spaces) = ("corp.example".to_owned(), vec!["corp.example".parse().unwrap()]);
    let mut out = outbound(None);
    out.health = Health::new(Duration::from_millis(5), Duration::from_millis(20));
    let bench = Bench::start(dir.path(), vec![route(&[addr], SendTls::Off), back], out).await;
    for index in 0..letters {
        bench.put(&format!("s{index}@corp.example"), &[&format!("r{index}@x.example")], LETTER).await;
    }
    bench.emptied().await;
    let reports = home.taken();
    let ledger = std::mem::take(&mut *ledger.lock().unwrap());
    println!("seed {seed:#x}: {letters} letters, {} refused, {} reports", ledger.refused.len(), reports.len());
    let (mut lost, mut duplicates) = (Vec::new(), 0);
    for index in 0..letters {
        let (from, to) = (format!("s{index}@corp.example"), format!("r{index}@x.example"));
        let taken = ledger.taken.get(&to).copied().unwrap_or(0);
        let refused = ledger.refused.get(&to).copied().unwrap_or(0);
        let told = reports.iter().filter(|report| report.to == [from.clone()]).count();
        duplicates += taken.saturating_sub(1);
        // A reply that the connection swallowed is no refusal: then the letter was tried again.
        let right = match told {
            0 => taken > 0,
            1 => refused > 0,
            _ => false,
        };
        if !right {
            lost.push(format!("{to}: taken {taken}, refused {refused}, told {told}"));
        }
    }
    assert!(lost.is_empty(), "{}", lost.join("\n"));
    assert!(reports.len() > letters / 50, "the next hop refused so few that the test shows nothing");
    assert!(duplicates > 0, "it dropped none after the dot: the test shows nothing");
    assert!(reports.iter().all(|report| report.from.is_empty()), "reports have the null reverse-path");
    let traced = bench.spool.trace(TraceFilter { limit: 10, ..TraceFilter::default() }).await.unwrap();
    assert!(traced.iter().all(|letter| letter.status != TraceStatus::Queued));
    bench.stop().await;
    scope.end();
}
