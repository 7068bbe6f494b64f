//! Proof that the front sees: every kind of illness takes a node out of rotation within its bound, and it comes back
//! only when it is well. Measured and printed. Mail goes on all the while, also when everybody is sick.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use posthouse_tests::cluster::{Place, Stage};
use posthouse_tests::dialog::Dialog;
use posthouse_tests::disk::Disk;
use posthouse_tests::netns::{Lab, run};
use posthouse_tests::{Device, Outcome, TestCluster, try_http_get, until};
use rustix::process::Signal;

/// What says itself, or is said by a closed connection: pushed within 100 ms, or seen by two checks.
const SAID: Duration = Duration::from_secs(1);
/// What is only missing: four heartbeats of the node's stream (1 s), or two checks that wait 750 ms each, 500 ms and
/// 100 ms apart; within a second of the first of them.
const MISSING: Duration = Duration::from_millis(2_500);
/// A sync that does not return is an illness after `health.sync_timeout` (1 s); within a second of that.
const SYNC: Duration = Duration::from_secs(2);
/// A node notices after its election timeout that its leader is gone; within a second of that.
const LEADERLESS: Duration = Duration::from_secs(3);

/// The line of the front about a node.
fn line(cluster: &TestCluster, node: usize) -> String {
    let (_, text) = cluster.front_page("/readyz?verbose");
    let name = format!("backend/{} ", cluster.nodes[node].name);
    text.lines().find(|line| line.contains(&name)).unwrap_or_default().to_owned()
}

/// Waits until the front has a node out of rotation, and says why.
fn until_out(cluster: &TestCluster, node: usize, kind: &str, began: Instant, bound: Duration) {
    let line = until(Duration::from_secs(10), &format!("{kind}: out of rotation"), || {
        let line = line(cluster, node);
        line.starts_with("[!]").then_some(line)
    });
    let took = began.elapsed();
    println!("SICK {kind}: out after {} ms (bound {} ms): {line}", took.as_millis(), bound.as_millis());
    assert!(took <= bound, "{kind}: out of rotation after {took:?}, more than {bound:?}");
}

fn until_back(cluster: &TestCluster, node: usize, kind: &str) {
    let began = Instant::now();
    until(Duration::from_secs(60), &format!("{kind}: back"), || line(cluster, node).starts_with("[+]").then_some(()));
    println!("SICK {kind}: back {} ms after it was well", began.elapsed().as_millis());
}

/// Letters go on, and none of them meets `sick`.
fn mail_goes_on(cluster: &TestCluster, sick: &[usize]) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let source: IpAddr = if cluster.netns.is_some() { [10, 98, 31, 7] } else { [127, 0, 31, 7] }.into();
    cluster.at_devices(|| {
        for _ in 0..8 {
            let id = format!("sick-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
            let outcome = Device { source, target: cluster.smtp }.send(&id, "x@partner.example");
            assert!(matches!(outcome, Outcome::Promised(_)), "{id}: {outcome:?}");
            let mut dialog = Dialog::connect(source, cluster.smtp).unwrap();
            let banner = dialog.reply().unwrap();
            let met = sick.iter().find(|node| banner.contains(&format!("{}.posthouse", cluster.nodes[**node].name)));
            assert!(met.is_none(), "a new connection met a node that is out of rotation: {banner}");
            let _ = dialog.command("QUIT");
        }
    });
}

fn all_in(cluster: &TestCluster) {
    cluster.wait_healthy();
    (0..3).for_each(|node| {
        until(Duration::from_secs(30), "every node is in rotation", || {
            line(cluster, node).starts_with("[+]").then_some(())
        })
    });
}

#[test]
fn a_process_that_stops_or_dies_and_a_disk_that_is_full_hangs_or_breaks() {
    let disk = Disk::new(512);
    let place = |name: &str, dir: &Path| {
        if name == "n3" {
            std::os::unix::fs::symlink(disk.path(), dir.join("data")).unwrap();
        }
        Place { address: IpAddr::from([127, 0, 0, if name == "front" { 2 } else { 1 }]), netns: None }
    };
    let mut cluster = TestCluster::start_on(&Stage { place: &place, ..Stage::loopback() });
    all_in(&cluster);

    let began = Instant::now();
    cluster.procs[1].as_ref().unwrap().signal(Signal::STOP);
    until_out(&cluster, 1, "stopped process", began, MISSING);
    mail_goes_on(&cluster, &[1]);
    cluster.procs[1].as_ref().unwrap().signal(Signal::CONT);
    until_back(&cluster, 1, "stopped process");

    let began = Instant::now();
    cluster.kill_node(1);
    until_out(&cluster, 1, "killed process", began, SAID);
    mail_goes_on(&cluster, &[1]);
    cluster.restart_node(1);
    until_back(&cluster, 1, "killed process");

    let began = Instant::now();
    let filler = disk.fill();
    until_out(&cluster, 2, "full disk", began, SAID);
    mail_goes_on(&cluster, &[2]);
    std::fs::remove_file(filler).unwrap();
    until_back(&cluster, 2, "full disk");

    let began = Instant::now();
    disk.freeze();
    until_out(&cluster, 2, "sync that hangs", began, SYNC);
    mail_goes_on(&cluster, &[2]);
    std::thread::sleep(Duration::from_secs(5).saturating_sub(began.elapsed()));
    assert!(line(&cluster, 2).starts_with("[!]"), "it still hangs");
    disk.thaw();
    until_back(&cluster, 2, "sync that hangs");

    let began = Instant::now();
    disk.fail();
    until_out(&cluster, 2, "read-only disk", began, SAID);
    mail_goes_on(&cluster, &[2]);
    // Whoever goes straight there all the same finds out that nothing can be written: from now on it refuses.
    let lost = Device::new("127.0.31.7", cluster.nodes[2].smtp).send("to-the-broken-disk", "x@partner.example");
    assert!(!matches!(lost, Outcome::Promised(_)), "{lost:?}");
    // It refuses, the front goes on asking, and that is nobody's connection.
    let counted = |name: &str| {
        let (_, metrics) = cluster.node_page(2, "/metrics");
        let lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains("not_ready"));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
    };
    let checks = || {
        let (_, metrics) = cluster.front_page("/metrics");
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with("posthouse_front_check_failures_total") && line.contains("backend=\"n3\""));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
    };
    let (before, asked) = (counted("posthouse_inbound_connections_total"), checks());
    until(Duration::from_secs(10), "ten checks", || (checks() >= asked + 10).then_some(()));
    assert_eq!(counted("posthouse_inbound_connections_total"), before, "checks are counted as connections");
    cluster.kill_node(2);
    until(Duration::from_secs(5), "the front knows", || line(&cluster, 2).contains(" down").then_some(()));
    disk.repair();
    cluster.restart_node(2);
    until_back(&cluster, 2, "read-only disk");
    all_in(&cluster);
}

/// What a node knows from an old copy of its data is from then: it must not serve, and above all not lead, before it
/// has caught up.
#[test]
fn a_node_restored_from_an_old_copy_catches_up_before_it_serves() {
    let mut cluster = TestCluster::start();
    all_in(&cluster);
    for (round, leads) in [true, false].into_iter().enumerate() {
        let node = if leads { cluster.leader() } else { (cluster.leader() + 1) % 3 };
        let kind = if leads { "old copy of the leader" } else { "old copy of a follower" };
        let (data, copy) = (cluster.nodes[node].dir.join("data"), cluster.nodes[node].dir.join("copy"));
        // As a machine's snapshot is taken: at one instant, while it runs, and leads on.
        let running = cluster.procs[node].as_ref().unwrap();
        running.signal(Signal::STOP);
        run("cp", &["-a", data.to_str().unwrap(), copy.to_str().unwrap()]);
        running.signal(Signal::CONT);
        all_in(&cluster);
        let device = format!("127.0.41.{}", 7 + round);
        let name = format!("late-{round}");
        cluster.ctl.ok(&["connector", "create", &name, "--template", "anonymous-relay", "--from", &device]);
        // At once, before the others have missed it: it is still the leader that they know.
        cluster.kill_node(node);
        std::fs::remove_dir_all(&data).unwrap();
        std::fs::rename(&copy, &data).unwrap();
        let began = Instant::now();
        cluster.restart_node(node);
        let http = cluster.nodes[node].http;
        until(Duration::from_secs(60), "it calls itself ready", || {
            try_http_get(http, "/readyz").is_ok_and(|(status, _)| status == 200).then_some(())
        });
        println!("SICK {kind}: ready {} ms after its start", began.elapsed().as_millis());
        // The first thing that it is asked: what was decided after the copy was made.
        let late = until(Duration::from_secs(1), "its sockets know that it is ready", || {
            let late = Device::new(&device, cluster.nodes[node].smtp).send(&name, "x@partner.example");
            let is_early =
                matches!(&late, Outcome::Refused(reply) if reply.starts_with("421 4.3.2 Service not active"));
            (!is_early).then_some(late)
        });
        assert!(matches!(late, Outcome::Promised(_)), "ready with old rights: {late:?}");
        all_in(&cluster);
        assert!(cluster.ctl.json(&["connector", "show", &name])["name"].is_string(), "the cluster forgot a change");
        mail_goes_on(&cluster, &[]);
    }
}

#[test]
fn a_network_that_is_cut_in_one_direction() {
    let front = Ipv4Addr::new(10, 98, 25, 21);
    let world = Ipv4Addr::new(10, 98, 25, 1);
    let node = |index: u8| Ipv4Addr::new(10, 98, 25, 11 + index);
    let mut lab = Lab::new();
    (0..3).for_each(|index| _ = lab.host(&format!("n{}", index + 1), &[node(index)]));
    lab.host("front", &[front]);
    lab.host("world", &[world]);
    lab.owns("world", "10.98.31.0/24");
    lab.owns("world", "10.98.32.0/24");
    let place = |name: &str, _: &Path| {
        let (host, address) = match name {
            "sink" => ("world", world),
            "front" => ("front", front),
            name => (name, node(name.as_bytes()[1] - b'1')),
        };
        Place { address: address.into(), netns: Some(lab.netns(host)) }
    };
    let (listen, target) = (Ipv4Addr::UNSPECIFIED.into(), front.into());
    // No slow start: whoever is in rotation is met by every third device.
    let (devices, front_lines) = ("10.98.31.0/24", "[check]\nslowstart = \"0s\"\n");
    let stage = Stage { place: &place, listen, target, devices, front_lines, ..Stage::loopback() };
    let cluster = TestCluster::start_on(&stage);
    all_in(&cluster);
    let sick = (cluster.leader() + 1) % 3;

    for (kind, from, to) in [
        ("nothing from the node to the front", node(sick as u8), front),
        ("nothing from the front to the node", front, node(sick as u8)),
    ] {
        let began = Instant::now();
        lab.one_way(from, to, true);
        until_out(&cluster, sick, kind, began, MISSING);
        mail_goes_on(&cluster, &[sick]);
        lab.one_way(from, to, false);
        until_back(&cluster, sick, kind);
    }

    // They hear the front, and no other node: a follower has no leader while the others have one, and an old leader
    // that nobody follows any more must not go on with rights that its successor has taken back.
    for (round, leads) in [false, true].into_iter().enumerate() {
        all_in(&cluster);
        let leader = cluster.leader();
        let sick = if leads { leader } else { (leader + 1) % 3 };
        let kind = if leads { "a leader that is cut off" } else { "no leader while others have one" };
        let name = cluster.nodes[sick].name.clone();
        let others: Vec<usize> = (0..3).filter(|index| *index != sick).collect();
        let cut = |dropped: bool| {
            for other in &others {
                lab.one_way(node(sick as u8), node(*other as u8), dropped);
                lab.one_way(node(*other as u8), node(sick as u8), dropped);
            }
        };
        let meets = || {
            cluster.at_devices(|| {
                (0..30).any(|_| {
                    let mut dialog = Dialog::connect(Ipv4Addr::new(10, 98, 31, 9).into(), cluster.smtp).unwrap();
                    let banner = dialog.reply().unwrap();
                    let _ = dialog.command("QUIT");
                    banner.contains(&format!("{name}.posthouse"))
                })
            })
        };
        assert!(meets(), "{kind}: it is used before");
        let began = Instant::now();
        cut(true);
        until(Duration::from_secs(10), &format!("{kind}: no new connection meets it"), || (!meets()).then_some(()));
        let took = began.elapsed();
        println!("SICK {kind}: out after {} ms (bound {} ms)", took.as_millis(), LEADERLESS.as_millis());
        assert!(took <= LEADERLESS, "{kind}: {took:?}");
        mail_goes_on(&cluster, &[sick]);
        // The one that is cut off cannot know this: a device that met it would be refused.
        let (guest, connector) = (Ipv4Addr::new(10, 98, 32, 7 + round as u8), format!("guest-{round}"));
        let create = ["connector", "create", &connector, "--template", "anonymous-relay", "--from", &guest.to_string()];
        until(Duration::from_secs(20), "the others decide", || {
            let (code, said) = cluster.ctl.fails(&create);
            (code == 0 || said.contains("exists")).then_some(())
        });
        until(Duration::from_secs(5), &format!("{kind}: nobody meets old rights"), || {
            let may_relay = |number| {
                let device = Device { source: guest.into(), target: cluster.smtp };
                matches!(device.send(&format!("{connector}-{number}"), "x@partner.example"), Outcome::Promised(_))
            };
            cluster.at_devices(|| (0..20).all(may_relay)).then_some(())
        });
        cut(false);
        until(Duration::from_secs(30), &format!("{kind}: it is used again"), || meets().then_some(()));
    }
}

#[test]
fn the_last_node_that_answers_drains_only_with_force_and_a_lost_quorum_is_said() {
    let mut cluster = TestCluster::start_on(&Stage::loopback());
    all_in(&cluster);
    let stale = |cluster: &TestCluster, reason: &str| {
        let (_, metrics) = cluster.front_page("/metrics");
        metrics.contains(&format!("posthouse_front_stale{{service=\"25\",reason=\"{reason}\"}} 1"))
    };
    assert!(!stale(&cluster, "leaderless") && !stale(&cluster, "unheard"));
    // Two are wanted and one of them is dead: the other one is the last, and the cluster can still agree on it.
    cluster.ctl.ok(&["node", "drain", "n1"]);
    cluster.kill_node(1);
    until(Duration::from_secs(10), "n2 is missed", || line(&cluster, 1).starts_with("[!]").then_some(()));
    let (code, said) = cluster.ctl.fails(&["node", "drain", "n3"]);
    assert!(code == 1 && said.contains("--force") && said.contains("n2 does not answer"), "{code}: {said}");
    mail_goes_on(&cluster, &[0]);
    // 7: done, and not confirmed by the one that is dead.
    for (verb, node, force) in [("drain", "n3", &["--force"][..]), ("resume", "n3", &[]), ("resume", "n1", &[])] {
        let (code, said) = cluster.ctl.fails(&[&["node", verb, node], force].concat());
        assert_eq!(code, 7, "{verb} {node}: {said}");
    }
    until(Duration::from_secs(10), "n1 is back", || line(&cluster, 0).starts_with("[+]").then_some(()));

    let began = Instant::now();
    cluster.kill_node(0);
    until(Duration::from_secs(10), "the metric says that no leader is heard", || {
        stale(&cluster, "leaderless").then_some(())
    });
    println!("SICK quorum gone: said {} ms after the second node was killed", began.elapsed().as_millis());
    until(Duration::from_secs(10), "the log says so", || {
        let log = cluster.front.as_ref().unwrap().log_text();
        log.contains("no node hears a leader: the cluster has no quorum").then_some(())
    });
    let (status, text) = cluster.front_page("/readyz?verbose");
    assert_eq!(status, 200, "no other front would be better: {text}");
    assert!(text.contains("[!]service 25: no backend hears a leader"), "{text}");
    assert!(line(&cluster, 2).starts_with("[+]"), "the best that there is stays in: {text}");
    mail_goes_on(&cluster, &[0, 1]);
    let (code, said) = cluster.ctl.fails(&["node", "drain", "n3"]);
    assert!(code == 1 && said.contains("--force") && said.contains("n1 does not answer"), "{code}: {said}");
    cluster.restart_node(0);
    cluster.restart_node(1);
    all_in(&cluster);
    until(Duration::from_secs(5), "the alarm ends", || (!stale(&cluster, "leaderless")).then_some(()));
}

#[test]
fn all_sick_at_once_keeps_the_least_sick_and_never_one_that_drains() {
    let cluster = TestCluster::start_on(&Stage::loopback());
    all_in(&cluster);
    // A certificate of the cluster that ends soon: every node shows it, so every node falls ill at the same moment.
    let ends = Duration::from_secs(4);
    let made = Command::new("bash")
        .current_dir(cluster.path())
        .args(["-ec", CERTIFICATE, "bash", &ends.as_secs().to_string()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (cert, key) = (cluster.path().join("short.crt"), cluster.path().join("short.key"));
    let import = ["--cert", cert.to_str().unwrap(), "--key", key.to_str().unwrap()];
    cluster.ctl.ok(&[&["tls", "import", "short"], &import[..]].concat());
    cluster.ctl.ok(&["connector", "set", "submission", "--tls-certificate-name", "short"]);
    let end: f64 = std::fs::read_to_string(cluster.path().join("short.end")).unwrap().trim().parse().unwrap();
    let left = end - std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!(left > 0.0, "the certificate ended before anybody used it");
    let began = Instant::now() + Duration::from_secs_f64(left);
    mail_goes_on(&cluster, &[]);
    std::thread::sleep(began.saturating_duration_since(Instant::now()));
    (0..3).for_each(|node| until_out(&cluster, node, "expired certificate", began, SAID));

    // Nobody is well, and every device is served all the same. An alarm says so.
    mail_goes_on(&cluster, &[]);
    let (status, text) = cluster.front_page("/readyz?verbose");
    assert!(status == 503 && text.contains("service 25: no backend is up and ready"), "{status}: {text}");
    let (_, metrics) = cluster.front_page("/metrics");
    assert!(metrics.contains("posthouse_front_panic{service=\"25\"} 1"), "the alarm");
    // One that drains is no refuge, however sick the others are.
    cluster.ctl.ok(&["node", "drain", "n1"]);
    until(Duration::from_secs(5), "the front knows", || line(&cluster, 0).contains("draining").then_some(()));
    mail_goes_on(&cluster, &[0]);
    cluster.ctl.ok(&["node", "drain", "n2"]);
    until(Duration::from_secs(5), "the front knows", || line(&cluster, 1).contains("draining").then_some(()));
    mail_goes_on(&cluster, &[0, 1]);
    let (code, said) = cluster.ctl.fails(&["node", "drain", "n3"]);
    assert!(code != 0 && said.contains("--force"), "the last active node: {code} {said}");
    mail_goes_on(&cluster, &[0, 1]);
    cluster.ctl.ok(&["node", "resume", "n1"]);
    cluster.ctl.ok(&["node", "resume", "n2"]);

    // Renewed: well again.
    cluster.ctl.ok(&["connector", "set", "submission", "--tls-certificate-name", ""]);
    (0..3).for_each(|node| until_back(&cluster, node, "expired certificate"));
    mail_goes_on(&cluster, &[]);
}

/// A certificate that ends in $1 seconds, and the second it does. Only `openssl ca` can say an hour.
const CERTIFICATE: &str = "mkdir short.ca; cd short.ca; touch index.txt; echo 01 > serial
    printf '[ca]\\ndefault_ca=d\\n[d]\\ndatabase=index.txt\\nserial=serial\\nnew_certs_dir=.\\ndefault_md=sha256\\npolicy=p\\ncopy_extensions=copy\\n[p]\\ncommonName=supplied\\n' > ca.cnf
    openssl req -new -newkey rsa:2048 -nodes -subj /CN=smtp.corp.example -addext subjectAltName=DNS:smtp.corp.example -keyout ../short.key -out short.csr
    end=$(($(date +%s) + $1)); echo $end > ../short.end
    openssl ca -batch -config ca.cnf -selfsign -keyfile ../short.key -in short.csr -notext -out ../short.crt \
        -startdate $(date -u -d '-1 day' +%y%m%d%H%M%SZ) -enddate $(date -u -d @$end +%y%m%d%H%M%SZ)";
