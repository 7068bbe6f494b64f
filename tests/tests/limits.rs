//! Limits are the cluster's: a device that spreads itself over all nodes gets no more than one that does not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use posthouse_tests::dialog::Dialog;
use posthouse_tests::{TestCluster, Wire, http_get, until};

/// A session that is greeted and has said hello, or what it was told instead.
fn open(source: &str, target: std::net::SocketAddr) -> Result<Dialog, String> {
    let mut dialog = Dialog::connect(source.parse().unwrap(), target).map_err(|error| error.to_string())?;
    let banner = dialog.reply().map_err(|error| error.to_string())?;
    if !banner.starts_with("220") {
        return Err(banner);
    }
    dialog.command("EHLO device.example").unwrap();
    Ok(dialog)
}

/// Sends a letter, and answers the first reply that was not positive.
fn letter(dialog: &mut Dialog, id: &str) -> Result<(), String> {
    let body = format!("Message-ID: <{id}@device.example>\r\n\r\n{id}\r\n.");
    for line in ["MAIL FROM:<scan@corp.example>", "RCPT TO:<a@corp.example>", "DATA", &body] {
        let reply = dialog.command(line).map_err(|error| error.to_string())?;
        if !reply.starts_with('2') && !reply.starts_with('3') {
            return Err(reply);
        }
    }
    Ok(())
}

/// What a login with a wrong password is told.
fn guess(source: &str, target: std::net::SocketAddr, tries: usize) -> Vec<String> {
    let mut dialog = open(source, target).expect("a session");
    // "\0nobody@corp.example\0wrong"
    let line = "AUTH PLAIN AG5vYm9keUBjb3JwLmV4YW1wbGUAd3Jvbmc=";
    (0..tries).map(|_| dialog.command(line).unwrap_or_else(|error| error.to_string())).collect()
}

#[test]
fn an_address_that_guesses_passwords_is_put_off_by_every_node() {
    let cluster = TestCluster::start();
    cluster.wait_healthy();
    let create = "connector create guessed --from 127.0.51.0/24 --auth-mechanism tls,basic_auth --permission-groups \
                  exchange_users --auth-tarpit-interval 0s --max-logon-failures 0 --max-protocol-errors 0";
    cluster.ctl.ok(&create.split_ascii_whitespace().collect::<Vec<_>>());
    // 34 on each node; none of them sees a hundred by itself.
    for node in &cluster.nodes {
        let told = guess("127.0.51.1", node.smtp, 34);
        assert!(told.iter().filter(|reply| reply.starts_with("535 5.7.3")).count() >= 30, "{told:?}");
    }
    for node in &cluster.nodes {
        until(Duration::from_secs(5), "the node puts the address off", || {
            guess("127.0.51.1", node.smtp, 1)[0].starts_with("454 4.7.0").then_some(())
        });
        assert!(guess("127.0.51.2", node.smtp, 1)[0].starts_with("535 5.7.3"), "another address answers for itself");
        let page = http_get(node.http, "/metrics").1;
        let counted = |words: &[&str]| page.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(counted(&["posthouse_inbound_auth_total", "put_off"]), "{page}");
        let refused = ["posthouse_inbound_rejections_total", "guessed", "\"535\"", "\"5.7.3\""];
        assert!(counted(&refused), "{page}");
    }
}

#[test]
fn a_rate_and_a_number_of_connections_hold_for_the_whole_cluster() {
    let cluster = TestCluster::start();
    cluster.wait_healthy();
    cluster.ctl.ok(&[
        "connector",
        "create",
        "slow",
        "--from",
        "127.0.50.0/24",
        "--relay",
        "internal",
        "--message-rate-limit",
        "60",
        "--max-inbound-connection-per-source",
        "6",
    ]);

    // One device, one session to each node, turn by turn, until every node refuses: 60 letters, and what comes in the
    // half second in which a letter is not known everywhere yet.
    let rate = "421 4.4.2 Message submission rate for this client has exceeded the configured limit";
    let (mut accepted, mut sent, mut refused) = (0_u32, 0_u32, 0_u32);
    let began = Instant::now();
    let mut in_flight_max = 0;
    let mut recent = std::collections::VecDeque::new();
    while refused < 30 {
        assert!(began.elapsed() < Duration::from_secs(50), "{accepted} accepted, {refused} refused");
        for (index, node) in cluster.nodes.iter().enumerate() {
            let mut dialog = open("127.0.50.1", node.smtp).expect("a session");
            for turn in 0..5 {
                match letter(&mut dialog, &format!("rate-{index}-{sent}-{turn}")) {
                    Ok(()) => {
                        accepted += 1;
                        recent.push_back(Instant::now());
                        while recent.front().is_some_and(|at| at.elapsed() > Duration::from_millis(500)) {
                            recent.pop_front();
                        }
                        in_flight_max = in_flight_max.max(u32::try_from(recent.len()).unwrap());
                    }
                    Err(reply) => {
                        assert!(reply.starts_with(rate), "{reply}");
                        assert!(reply.ends_with(']'), "the session id: {reply}");
                        assert!(dialog.command("NOOP").is_err(), "421 closes");
                        refused += 1;
                        break;
                    }
                }
            }
            sent += 1;
        }
    }
    println!("{accepted} letters accepted of 60; at most {in_flight_max} came in 500 ms");
    assert!(accepted >= 60, "{accepted}: the limit is not lower than it says");
    assert!(accepted <= 60 + in_flight_max, "{accepted} accepted, {in_flight_max} within 500 ms");
    // Another device has its own count.
    letter(&mut open("127.0.50.2", cluster.nodes[0].smtp).unwrap(), "other").unwrap();

    // Six sessions, two on each node; the seventh is one too many wherever it goes.
    let held: Vec<Dialog> =
        (0..6).map(|index| open("127.0.50.9", cluster.nodes[index % 3].smtp).expect("one of six")).collect();
    let full = "421 4.3.2 The maximum number of concurrent server connections has exceeded a per-source limit";
    for node in &cluster.nodes {
        let reply = until(Duration::from_secs(5), "the other nodes' sessions are known", || {
            open("127.0.50.9", node.smtp).err()
        });
        assert!(reply.starts_with(full) && reply.ends_with(']'), "{reply}");
    }
    let counted = |reason: &str| -> f64 {
        let series = format!("posthouse_inbound_limit_refusals_total{{connector=\"slow\",reason=\"{reason}\"}} ");
        let pages = cluster.nodes.iter().map(|node| http_get(node.http, "/metrics").1);
        let lines: Vec<String> = pages.flat_map(|page| page.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        lines.iter().filter_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok()).sum()
    };
    assert!((counted("message_rate") - f64::from(refused)).abs() < 0.5, "{}", counted("message_rate"));
    assert!(counted("max_connections_per_source") >= 3.0);
    drop(held);
    until(Duration::from_secs(5), "there is room again", || open("127.0.50.9", cluster.nodes[0].smtp).ok());
}

/// What a slow client is in the middle of.
#[derive(Clone, Copy, Debug)]
enum Within {
    Command,
    Data,
    Chunk,
    Handshake,
}

/// Sends one octet a second, and answers how long that was put up with and what was said at the end.
fn dribble(cluster: &TestCluster, source: &str, within: Within) -> (Duration, String) {
    let node = &cluster.nodes[0];
    let mut wire = match within {
        Within::Handshake => Wire::connect(source.parse().unwrap(), node.submissions).unwrap(),
        _ => Wire::greeted(source, node.smtp).unwrap(),
    };
    let lines: &[(&str, &str)] = match within {
        Within::Command | Within::Handshake => &[],
        Within::Data => {
            &[("EHLO x.example", "250"), ("MAIL FROM:<>", "250"), ("RCPT TO:<a@corp.example>", "250"), ("DATA", "354")]
        }
        Within::Chunk => &[("EHLO x.example", "250"), ("MAIL FROM:<>", "250"), ("RCPT TO:<a@corp.example>", "250")],
    };
    for (line, beginning) in lines {
        wire.expect_to(line, beginning).unwrap();
    }
    if matches!(within, Within::Chunk) {
        wire.send("BDAT 100000 LAST\r\n").unwrap();
    }
    // The beginning of a handshake record (RFC 8446 §5.1) that promises 500 octets.
    let begin: &[u8] =
        if matches!(within, Within::Handshake) { &[0x16, 0x03, 0x01, 0x01, 0xf4, 0x01] } else { b"X-SLOW" };
    let mut octets = begin.iter().copied().chain(std::iter::repeat(b'x'));
    let began = Instant::now();
    loop {
        // A connection that is closed may only be known as such with the next octet.
        let _ = wire.send([octets.next().unwrap()]);
        if let Some(said) = wire.until_closed(Duration::from_secs(1)) {
            return (began.elapsed(), String::from_utf8_lossy(&said).into_owned());
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{within:?}: for ever");
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident size");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// One octet a second in a command, in mail data, in a chunk and in a TLS handshake. (In a PROXY header: `proxy_table`.)
#[test]
fn slow_clients_cost_a_bounded_wait_and_bounded_memory() {
    const EACH: usize = 40;
    let cluster = TestCluster::start();
    cluster.wait_healthy();
    let create = "connector create slow --from 127.0.52.0/24 --relay internal --connection-inactivity-timeout 4s \
                  --max-inbound-connection-per-source unlimited";
    cluster.ctl.ok(&create.split_ascii_whitespace().collect::<Vec<_>>());
    let pid = cluster.procs[0].as_ref().unwrap().child.id();
    let before = resident_kib(pid);
    let ways = [Within::Command, Within::Data, Within::Chunk, Within::Handshake];
    let (outcomes, held) = std::thread::scope(|scope| {
        let clients: Vec<_> = ways
            .iter()
            .flat_map(|&within| (0..EACH).map(move |number| (within, format!("127.0.52.{}", 1 + number % 200))))
            .map(|(within, source)| {
                let cluster = &cluster;
                (within, scope.spawn(move || dribble(cluster, &source, within)))
            })
            .collect();
        std::thread::sleep(Duration::from_secs(3));
        let held = resident_kib(pid);
        (clients.into_iter().map(|(within, client)| (within, client.join().unwrap())).collect::<Vec<_>>(), held)
    });
    for (within, (took, said)) in &outcomes {
        let (least, most) = if matches!(within, Within::Handshake) { (25, 40) } else { (3, 12) };
        assert!((least..most).contains(&took.as_secs()), "{within:?}: {took:?}");
        match within {
            Within::Handshake => {}
            _ => assert!(said.starts_with("451 4.7.0 Timeout waiting for client input"), "{within:?}: {said}"),
        }
    }
    let each = held.saturating_sub(before) / (ways.len() * EACH) as u64;
    println!("{} slow clients held {each} KiB each", ways.len() * EACH);
    assert!(each <= 128, "{each} KiB for each slow client");
    // Everybody else was served meanwhile, and is now.
    let mut dialog = open("127.0.52.250", cluster.nodes[0].smtp).expect("a session");
    letter(&mut dialog, "after-the-slow").unwrap();
}
