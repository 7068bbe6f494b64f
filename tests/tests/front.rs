//! Nobody notices when a node is sick, and nobody poses as a device.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use posthouse_tests::dialog::Dialog;
use posthouse_tests::{Device, Outcome, TestCluster, http_get, until};
use rustix::process::Signal;

/// A PROXY v2 header without a signature, for a device at 127.0.31.7.
fn unsigned_v2() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend([127, 0, 31, 7, 127, 0, 0, 1, 0x30, 0x39, 0, 25]);
    header
}

/// Everything the server says to these first bytes, until it closes or is silent for two seconds.
fn answer_to(source: &str, target: SocketAddr, bytes: &[u8]) -> String {
    let mut dialog = Dialog::connect(source.parse().unwrap(), target).unwrap();
    dialog.stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    dialog.send(bytes).unwrap();
    let mut said = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = dialog.stream.read(&mut buffer) {
        said.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn a_forged_header_is_never_believed() {
    let cluster = TestCluster::start();
    let letter = "EHLO x\r\nMAIL FROM:<a@corp.example>\r\nRCPT TO:<b@partner.example>\r\n";
    let v1 = b"PROXY TCP4 127.0.31.7 127.0.0.1 12345 25\r\n".to_vec();
    for node in &cluster.nodes {
        for header in [v1.clone(), unsigned_v2()] {
            let with_letter = [&header[..], letter.as_bytes()].concat();
            // From an address that owes none: it is a stranger, and closed.
            let said = answer_to("127.0.0.1", node.smtp, &with_letter);
            assert!(!said.contains("250 2.1.5"), "a stranger's header was believed by {}: {said}", node.name);
            // From the front's own address: another process there, without the key.
            let said = answer_to("127.0.0.2", node.smtp, &with_letter);
            assert_eq!(said, "", "an unsigned header from the front's address was answered by {}", node.name);
        }
        // From the front's address, no header at all: not a device either.
        assert_eq!(answer_to("127.0.0.2", node.smtp, letter.as_bytes()), "");
    }
    let metrics: String = cluster.nodes.iter().map(|node| http_get(node.http, "/metrics").1).collect();
    for result in ["unlisted", "unsigned"] {
        let counted = metrics.lines().any(|line| {
            line.starts_with("posthouse_proxy_headers_total{")
                && line.contains(&format!("result=\"{result}\""))
                && !line.ends_with(" 0")
        });
        assert!(counted, "{result} headers are counted");
    }
    let logs: String = cluster.procs.iter().flatten().map(posthouse_tests::Proc::log_text).collect();
    assert!(logs.contains("proxy_protocol.trusted"), "the log names the setting to change");
}

#[test]
fn a_listed_balancer_is_believed_and_must_send_a_header() {
    let cluster = TestCluster::start_with("[proxy_protocol]\ntrusted = [\"127.0.7.0/30\"]\n");
    let letter = "EHLO x\r\nMAIL FROM:<a@corp.example>\r\nRCPT TO:<b@partner.example>\r\nQUIT\r\n";
    let node = &cluster.nodes[0];
    for header in [b"PROXY TCP4 127.0.31.7 127.0.0.1 12345 25\r\n".to_vec(), unsigned_v2()] {
        let said = answer_to("127.0.7.1", node.smtp, &[&header[..], letter.as_bytes()].concat());
        assert!(said.contains("250 2.1.5"), "the device's address decides: {said}");
    }
    let stranger = b"PROXY TCP4 127.0.9.9 127.0.0.1 12345 25\r\n";
    let said = answer_to("127.0.7.1", node.smtp, &[&stranger[..], letter.as_bytes()].concat());
    assert!(said.contains("550 5.7.54"), "{said}");
    assert_eq!(answer_to("127.0.7.1", node.smtp, letter.as_bytes()), "", "no header: closed without a byte");
}

#[test]
fn a_node_that_hangs_is_invisible_to_devices() {
    let cluster = TestCluster::start();
    cluster.wait_healthy();
    let device = Device::new("127.0.31.7", cluster.smtp);
    // Stopped, not dead: the kernel still accepts its connections.
    let stopped = (cluster.leader() + 1) % 3;
    cluster.procs[stopped].as_ref().unwrap().signal(Signal::STOP);
    let mut slowest = Duration::ZERO;
    for index in 0..30 {
        let began = Instant::now();
        let outcome = device.send(&format!("hang-{index}"), "x@partner.example");
        slowest = slowest.max(began.elapsed());
        assert!(matches!(outcome, Outcome::Promised(_)), "letter {index}: {outcome:?}");
    }
    println!("30 letters beside a stopped node: slowest session {slowest:?}");
    cluster.procs[stopped].as_ref().unwrap().signal(Signal::CONT);
    until(Duration::from_secs(30), "the node is used again", || {
        let (_, text) = http_get(cluster.front_http, "/readyz?verbose");
        text.contains(&format!("[+]backend/{}", cluster.nodes[stopped].name)).then_some(())
    });
}

#[test]
fn a_drained_node_gets_no_connection_within_a_second_and_keeps_its_sessions() {
    let cluster = TestCluster::start();
    cluster.wait_healthy();
    // Open sessions until one is on n2, as its banner says.
    let source: IpAddr = "127.0.31.9".parse().unwrap();
    let mut on_n2 = until(Duration::from_secs(30), "a session on n2", || {
        let mut dialog = Dialog::connect(source, cluster.smtp).ok()?;
        dialog.reply().ok()?.contains("n2.posthouse.example").then_some(dialog)
    });
    on_n2.command("EHLO device.example").unwrap();
    let began = Instant::now();
    cluster.ctl.ok(&["node", "drain", "n2"]);
    println!("node drain returned after {:?}", began.elapsed());
    std::thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
    for _ in 0..40 {
        let mut dialog = Dialog::connect(source, cluster.smtp).unwrap();
        let banner = dialog.reply().unwrap();
        assert!(!banner.contains("n2.posthouse.example"), "a drained node took a new connection: {banner}");
        dialog.command("QUIT").unwrap();
    }
    // The session that was open goes on to its end.
    assert!(on_n2.command("MAIL FROM:<scan@corp.example>").unwrap().starts_with("250"));
    assert!(on_n2.command("RCPT TO:<x@partner.example>").unwrap().starts_with("250"));
    assert!(on_n2.command("DATA").unwrap().starts_with("354"));
    on_n2.send(b"Message-ID: <drained@device.example>\r\n\r\nhello\r\n.\r\n").unwrap();
    assert!(on_n2.reply().unwrap().starts_with("250 2.6.0"));
    cluster.letter_with("drained@device.example");
    // Its own open session would make n2 the busiest backend of three idle ones.
    on_n2.command("QUIT").unwrap();
    drop(on_n2);
    cluster.ctl.ok(&["node", "resume", "n2"]);
    until(Duration::from_secs(30), "n2 takes connections again", || {
        let mut dialog = Dialog::connect(source, cluster.smtp).ok()?;
        dialog.reply().ok()?.contains("n2.posthouse.example").then_some(())
    });
}

#[test]
fn a_front_starts_without_the_cluster_from_what_it_knew() {
    let mut cluster = TestCluster::start();
    cluster.wait_healthy();
    let known = cluster.path().join("front/data/backends.json");
    until(Duration::from_secs(10), "the set of backends is kept on disk", || known.exists().then_some(()));
    let mut front = cluster.front.take().unwrap();
    assert_eq!(front.terminate(), Some(0), "SIGTERM ends a front cleanly");
    drop(front);
    // Without a majority there is no leader; the node that is left still relays, through a front that starts now.
    cluster.kill_node(0);
    cluster.kill_node(1);
    cluster.start_front();
    cluster.wait_for_front();
    let outcome = Device::new("127.0.31.7", cluster.smtp).send("alone", "x@partner.example");
    assert!(matches!(outcome, Outcome::Promised(_)), "{outcome:?}");
    cluster.letter_with("alone@device.example");
}
