//! Those who keep HAProxy or nginx: the real programs in front of the nodes. The device's own address decides and is
//! remembered, every time; a node that is drained or dead gets no device.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use posthouse_tests::cluster::{Place, Stage, free_port};
use posthouse_tests::dialog::Dialog;
use posthouse_tests::{Device, Outcome, Proc, TestCluster, until};

const LETTERS: u8 = 60;
const NODES: [&str; 3] = ["n1.posthouse.example", "n2.posthouse.example", "n3.posthouse.example"];

/// Each node at an address of its own, and whoever is at 127.0.0.1 or 127.0.7.2 may say for whom it speaks.
fn start() -> (TestCluster, u16) {
    let place = |name: &str, _: &Path| {
        let last = match name {
            "sink" => 1,
            "front" => 2,
            node => 10 + node.as_bytes()[1] - b'0',
        };
        Place { address: IpAddr::from([127, 0, 0, last]), netns: None }
    };
    let agent_port = free_port();
    let stage = Stage {
        place: &place,
        node_lines: "[proxy_protocol]\ntrusted = [\"127.0.0.1\", \"127.0.7.2\"]\n",
        agent_port: Some(agent_port),
        ..Stage::loopback()
    };
    let cluster = TestCluster::start_on(&stage);
    cluster.wait_healthy();
    (cluster, agent_port)
}

fn program(cluster: &TestCluster, name: &str, path: &str, args: &[&str]) -> Proc {
    assert!(Path::new(path).exists(), "{path} is missing: tests/run.sh installs it");
    let args: Vec<String> = args.iter().map(|&word| word.to_owned()).collect();
    Proc::start(name, cluster.path(), Path::new(path), &args)
}

/// The banner of a new connection, if there is one.
fn banner(target: SocketAddr) -> Option<String> {
    let mut dialog = Dialog::connect("127.0.31.200".parse().unwrap(), target).ok()?;
    let banner = dialog.reply().ok()?;
    let _ = dialog.command("QUIT");
    banner.starts_with("220").then_some(banner)
}

/// Sends letters from as many devices, and asks the letters and the trace whose they are.
fn every_letter_knows_its_device(cluster: &TestCluster, target: SocketAddr, tag: &str) {
    for number in 1..=LETTERS {
        let device = Device::new(&format!("127.0.31.{number}"), target);
        let outcome = device.send(&format!("{tag}-{number}"), "x@partner.example");
        assert!(matches!(outcome, Outcome::Promised(_)), "{tag} {number}: {outcome:?}");
    }
    // From outside the range: the balancer's own right does not help.
    let outcome = Device::new("127.0.9.9", target).send("stranger", "x@partner.example");
    assert!(matches!(&outcome, Outcome::Refused(reply) if reply.starts_with("550 5.7.54")), "{outcome:?}");
    for number in 1..=LETTERS {
        let letter = cluster.letter_with(&format!("Message-ID: <{tag}-{number}@device.example>"));
        let received = letter.lines().find(|line| line.starts_with("Received: from")).unwrap_or_default();
        assert!(received.contains(&format!("([127.0.31.{number}])")), "{tag} {number}: {received}");
    }
    let traced = cluster.ctl.json(&["message", "trace", "--connector", "printers", "--limit", "1000"]);
    let mut seen = 0;
    for message in traced["messages"].as_array().unwrap() {
        let id = message["message_id"].as_str().unwrap();
        let number = id.strip_prefix(&format!("<{tag}-")).and_then(|rest| rest.strip_suffix("@device.example>"));
        let Some(number) = number else { continue };
        assert_eq!(message["client_ip"], format!("127.0.31.{number}"), "{message}");
        seen += 1;
    }
    assert_eq!(seen, usize::from(LETTERS), "every letter is traced");
    println!("LB   {tag}: {LETTERS} of {LETTERS} letters with their device's address, in Received and in the trace");
}

/// Asks until `count` banners in a row name no `node`.
fn until_avoided(target: SocketAddr, node: &str, count: usize) {
    until(Duration::from_secs(20), &format!("{node} gets no device"), || {
        (0..count).all(|_| banner(target).is_some_and(|banner| !banner.contains(node))).then_some(())
    });
}

fn until_used(target: SocketAddr, node: &str) {
    until(Duration::from_secs(30), &format!("{node} gets devices"), || {
        banner(target).filter(|banner| banner.contains(node)).map(drop)
    });
}

#[test]
fn haproxy_with_the_rendered_configuration_knows_devices_drains_and_deaths() {
    let (mut cluster, agent_port) = start();
    let target = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (submission, submissions) = (free_port(), free_port());
    let text = cluster.ctl.ok(&[
        "front",
        "render",
        "haproxy",
        "--bind",
        &format!("25={target}"),
        "--bind",
        &format!("587=127.0.0.1:{submission}"),
        "--bind",
        &format!("465=127.0.0.1:{submissions}"),
        "--agent-port",
        &agent_port.to_string(),
        "--maxconn",
        "200",
    ]);
    let path = cluster.path().join("haproxy.cfg");
    std::fs::write(&path, &text).unwrap();
    let haproxy = program(&cluster, "haproxy", "/usr/sbin/haproxy", &["-db", "-f", path.to_str().unwrap()]);
    for node in NODES {
        until_used(target, node);
    }
    every_letter_knows_its_device(&cluster, target, "haproxy");

    // HAProxy takes everybody for well until two checks of three seconds have failed.
    std::thread::sleep(Duration::from_secs(8));
    assert!(!haproxy.log_text().contains(" is DOWN"), "{}", haproxy.log_text());
    let began = std::time::Instant::now();
    cluster.ctl.ok(&["node", "drain", "n2"]);
    until_avoided(target, NODES[1], 20);
    println!("LB   haproxy: a drained node gets no device after {} ms", began.elapsed().as_millis());
    cluster.ctl.ok(&["node", "resume", "n2"]);
    until_used(target, NODES[1]);

    // A dead node: no device notices, and the check takes it out.
    let began = std::time::Instant::now();
    cluster.kill_node(2);
    for _ in 0..20 {
        let banner = banner(target).expect("a device got no banner beside a dead node");
        assert!(!banner.contains(NODES[2]), "{banner}");
    }
    let down = |log: String| log.contains("/n3 is DOWN");
    until(Duration::from_secs(10), "HAProxy says that n3 is down", || down(haproxy.log_text()).then_some(()));
    println!("LB   haproxy: a killed node is down after {} ms at most", began.elapsed().as_millis());
    cluster.restart_node(2);
    until_used(target, NODES[2]);
}

#[test]
fn nginx_with_version_1_headers_is_a_balancer_like_any_other() {
    let (cluster, _) = start();
    let target = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let servers: String = cluster.nodes.iter().map(|node| format!("        server {};\n", node.smtp)).collect();
    let module = ["/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/share/nginx/modules/ngx_stream_module.so"];
    let module = module.into_iter().find(|path| Path::new(path).exists());
    let load = module.map(|path| format!("load_module {path};\n")).unwrap_or_default();
    let dir = cluster.path().join("nginx");
    std::fs::create_dir_all(&dir).unwrap();
    let text = format!(
        "{load}daemon off;\nmaster_process off;\npid {d}/nginx.pid;\nerror_log {d}/error.log;\n\
         events {{ worker_connections 256; }}\n\
         stream {{\n    upstream nodes {{\n{servers}    }}\n    server {{\n        listen {target};\n\
         proxy_pass nodes;\n        proxy_protocol on;\n        proxy_bind 127.0.7.2;\n    }}\n}}\n",
        d = dir.display()
    );
    let path = dir.join("nginx.conf");
    std::fs::write(&path, text).unwrap();
    let (path, prefix) = (path.display().to_string(), dir.display().to_string());
    let _nginx = program(&cluster, "nginx", "/usr/sbin/nginx", &["-p", &prefix, "-c", &path, "-e", "stderr"]);
    for node in NODES {
        until_used(target, node);
    }
    every_letter_knows_its_device(&cluster, target, "nginx");
}
