#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn connector(rate: u32, source: MessageRateSource) -> ReceiveConnector {
    ReceiveConnector {
        message_rate_limit: rate,
        message_rate_source: source,
        max_inbound_connection: 4,
        max_inbound_connection_per_source: 3,
        max_inbound_connection_percentage_per_source: 100,
        ..ReceiveConnector::new("in")
    }
}

/// Nodes that tell each other everything, as often as a test says.
struct Nodes {
    nodes: Vec<ClusterCounts>,
    epochs: Vec<u64>,
    told: Vec<Vec<Option<u64>>>,
}

impl Nodes {
    fn new(count: usize) -> Self {
        Self {
            nodes: (0..count).map(|_| ClusterCounts::default()).collect(),
            epochs: (1..).take(count).collect(),
            told: vec![vec![None; count]; count],
        }
    }

    fn tell(&mut self, from: usize, to: usize, now_ms: u64) {
        let since = self.told[from][to];
        let report = self.nodes[from].report(since.unwrap_or(0), 1000, now_ms);
        let (name, epoch) = (format!("n{from}"), self.epochs[from]);
        let earlier = self.nodes[to].hear(&name, epoch, since.is_none(), report.entries, 1000, now_ms);
        self.nodes[from].recall(earlier, now_ms);
        self.told[from][to] = Some(report.version);
    }

    fn exchange(&mut self, now_ms: u64) {
        for from in 0..self.nodes.len() {
            for to in 0..self.nodes.len() {
                if from != to {
                    self.tell(from, to, now_ms);
                }
            }
        }
    }

    fn restart(&mut self, node: usize) {
        self.nodes[node] = ClusterCounts::default();
        self.epochs[node] += 100;
        self.told[node].fill(None);
        self.told.iter_mut().for_each(|told| told[node] = None);
    }
}

#[test]
fn sessions_of_all_nodes_count_and_a_silent_node_counts_no_longer() {
    let connector = connector(0, MessageRateSource::None);
    let mut nodes = Nodes::new(2);
    nodes.nodes[0].open(&connector, ip("10.0.0.1"), 0).unwrap();
    nodes.nodes[0].open(&connector, ip("::ffff:10.0.0.1"), 0).unwrap();
    nodes.nodes[1].open(&connector, ip("10.0.0.1"), 0).unwrap();
    nodes.exchange(10);
    assert_eq!(nodes.nodes[1].open(&connector, ip("10.0.0.1"), 20), Err(LimitRefusal::PerSource(3)));
    nodes.nodes[1].open(&connector, ip("10.0.0.2"), 20).unwrap();
    nodes.exchange(30);
    assert_eq!(nodes.nodes[0].open(&connector, ip("10.0.0.3"), 40), Err(LimitRefusal::Total(4)));
    nodes.nodes[0].close("in", ip("10.0.0.1"), 50);
    nodes.exchange(60);
    nodes.nodes[1].open(&connector, ip("10.0.0.1"), 70).unwrap();
    // Cut off: what the other held is not known any more, and this node counts alone.
    nodes.nodes[1].close("in", ip("10.0.0.1"), 80);
    assert!(nodes.nodes[1].open(&connector, ip("10.0.0.1"), 60 + SILENT_MS + 1).is_ok());
    assert_eq!(nodes.nodes[1].sum(&CountKey::Connections { connector: "in".into() }, 60 + SILENT_MS + 1), 3);
}

#[test]
fn failed_logins_of_an_address_count_on_every_node_and_are_forgotten_after_a_minute() {
    let mut nodes = Nodes::new(3);
    for at in 0..FAILED_LOGINS_MAX - 1 {
        nodes.nodes[at as usize % 3].failed_login(ip("10.0.0.1"), 0);
    }
    nodes.exchange(10);
    assert!(nodes.nodes.iter().all(|node| node.may_log_in(ip("10.0.0.1"), 20)));
    nodes.nodes[0].failed_login(ip("::ffff:10.0.0.1"), 30);
    assert!(!nodes.nodes[0].may_log_in(ip("10.0.0.1"), 40));
    nodes.exchange(50);
    assert!(nodes.nodes.iter().all(|node| !node.may_log_in(ip("10.0.0.1"), 60)));
    assert!(nodes.nodes.iter().all(|node| node.may_log_in(ip("10.0.0.2"), 60)), "an address answers for itself");
    assert!(nodes.nodes.iter().all(|node| node.may_log_in(ip("10.0.0.1"), 70_000)), "a minute later");
}

#[test]
fn a_rate_counts_by_address_by_user_or_both() {
    let mut counts = ClusterCounts::default();
    let by_user = connector(2, MessageRateSource::User);
    counts.letter(&by_user, ip("10.0.0.1"), Some("a"), 0).unwrap();
    counts.letter(&by_user, ip("10.0.0.2"), Some("a"), 0).unwrap();
    assert_eq!(counts.letter(&by_user, ip("10.0.0.3"), Some("a"), 0), Err(LimitRefusal::MessageRate(2)));
    counts.letter(&by_user, ip("10.0.0.3"), Some("b"), 0).unwrap();
    counts.letter(&by_user, ip("10.0.0.9"), None, 0).unwrap();
    counts.letter(&by_user, ip("10.0.0.9"), None, 0).unwrap();
    assert!(counts.letter(&by_user, ip("10.0.0.9"), None, 0).is_err(), "who has no name has an address");
    let both = ReceiveConnector { name: "both".into(), ..connector(2, MessageRateSource::All) };
    counts.letter(&both, ip("10.0.0.1"), Some("a"), 0).unwrap();
    counts.letter(&both, ip("10.0.0.1"), Some("b"), 0).unwrap();
    assert!(counts.letter(&both, ip("10.0.0.1"), Some("c"), 0).is_err(), "the address is full");
    counts.letter(&both, ip("10.0.0.2"), Some("a"), 0).unwrap();
    assert!(counts.letter(&both, ip("10.0.0.3"), Some("a"), 0).is_err(), "the user is full");
    let none = connector(1, MessageRateSource::None);
    assert!((0..9).all(|_| counts.letter(&none, ip("10.0.0.1"), None, 0).is_ok()));
    assert!(counts.letter(&by_user, ip("10.0.0.1"), Some("a"), 66_000).is_ok(), "a minute later");
}

#[test]
fn a_restarted_node_goes_on_from_what_the_others_say() {
    let connector = connector(10, MessageRateSource::IpAddress);
    let mut nodes = Nodes::new(3);
    for _ in 0..6 {
        nodes.nodes[0].letter(&connector, ip("10.0.0.1"), None, 0).unwrap();
    }
    nodes.exchange(100);
    nodes.restart(0);
    nodes.exchange(200);
    nodes.exchange(300);
    let key = CountKey::LettersOfAddress { connector: "in".into(), source: ip("10.0.0.1") };
    for node in &nodes.nodes {
        assert_eq!(node.sum(&key, 300), 6, "six letters, whoever remembers them");
    }
    for _ in 0..4 {
        nodes.nodes[0].letter(&connector, ip("10.0.0.1"), None, 300).unwrap();
    }
    assert!(nodes.nodes[0].letter(&connector, ip("10.0.0.1"), None, 300).is_err());
}

#[test]
fn an_ended_session_is_told_and_then_forgotten() {
    let connector = connector(5, MessageRateSource::IpAddress);
    let mut nodes = Nodes::new(2);
    nodes.nodes[0].open(&connector, ip("10.0.0.1"), 0).unwrap();
    nodes.nodes[0].letter(&connector, ip("10.0.0.1"), None, 0).unwrap();
    nodes.exchange(0);
    nodes.nodes[0].close("in", ip("10.0.0.1"), 10);
    nodes.nodes[0].close("never", ip("10.0.0.1"), 10);
    nodes.exchange(20);
    nodes.nodes[0].sweep(20);
    assert!(!nodes.nodes[0].is_empty(), "who has not heard of the end must still be told");
    for node in &mut nodes.nodes {
        node.sweep(200_000);
        assert!(node.is_empty());
    }
}

#[test]
fn the_table_is_bounded_and_never_forgets_an_open_session() {
    let connector = ReceiveConnector {
        message_rate_limit: 1,
        max_inbound_connection: 0,
        max_inbound_connection_per_source: 0,
        ..ReceiveConnector::new("in")
    };
    let mut counts = ClusterCounts::default();
    counts.open(&connector, ip("10.255.0.1"), 0).unwrap();
    for number in 0..=u32::try_from(OWN_KEYS_MAX).unwrap() {
        counts.letter(&connector, IpAddr::V4(number.into()), None, 0).unwrap();
    }
    assert_eq!(counts.own.len(), OWN_KEYS_MAX);
    assert_eq!(counts.changes.len(), counts.own.len());
    assert_eq!(counts.sum(&CountKey::Connections { connector: "in".into() }, 0), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// One device, three nodes, an exchange now and then: what is accepted is the limit, and at most what came between
    /// two exchanges on the nodes that had not heard of it.
    #[test]
    fn overshoot_is_bounded_by_the_traffic_between_two_exchanges(
        steps in proptest::collection::vec((0_usize..3, 1_u64..40), 50..400),
    ) {
        const EVERY_MS: u64 = 250;
        let connector = connector(60, MessageRateSource::IpAddress);
        let mut nodes = Nodes::new(3);
        let (mut now, mut last, mut accepted, mut burst, mut burst_max) = (0, 0, 0_u64, 0_u64, 0_u64);
        for (node, wait) in steps {
            now += wait;
            if now - last >= EVERY_MS {
                nodes.exchange(now);
                last = now;
                burst = 0;
            }
            burst += 1;
            burst_max = burst_max.max(burst);
            accepted += u64::from(nodes.nodes[node].letter(&connector, ip("10.0.0.1"), None, now).is_ok());
        }
        prop_assert!(now < 60_000);
        prop_assert!(accepted <= 60 + burst_max, "{accepted} accepted, {burst_max} between two exchanges");
    }
}
