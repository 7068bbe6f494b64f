//! Next hops that nobody here wrote take letters as the next hops of the world do: Postfix's smtp-sink with its failure
//! options, and aiosmtpd with TLS, a login and a size limit.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use posthouse_tests::{Device, Outcome, TestCluster, binary, cluster::free_port, repository, until};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
const EVERY_SECOND: &str = "[queue]\nglitch_retry_interval = \"1s\"\ntransient_failure_retry_interval = \"1s\"\nmessage_retry_interval = \"1s\"\n";

/// A process that ends with the test.
struct Hop {
    child: Child,
    addr: SocketAddr,
}

impl Drop for Hop {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Hop {
    fn start(mut command: Command, addr: SocketAddr) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the next hop starts");
        until(DEADLINE, "the next hop listens", || std::net::TcpStream::connect(addr).ok());
        Self { child, addr }
    }

    /// Postfix's sink; its letters are files in `dir`.
    fn postfix(sink: &Path, dir: &Path, addr: Option<SocketAddr>, options: &[&str]) -> Self {
        let addr = addr.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], free_port())));
        std::fs::create_dir_all(dir).unwrap();
        let mut command = Command::new(sink);
        let libraries = sink.parent().unwrap().join("../lib/postfix");
        command.env("LD_LIBRARY_PATH", libraries).args(options);
        // Root must say as whom it runs; anybody else must not.
        if Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n") {
            command.args(["-u", "root"]);
        }
        command.args(["-d", &format!("{}/%M.", dir.display()), &addr.to_string(), "128"]);
        Self::start(command, addr)
    }

    /// aiosmtpd; its letters are files in `dir`, with the envelope and the login above them.
    fn aiosmtpd(python: &str, dir: &Path, options: &[&str]) -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        std::fs::create_dir_all(dir).unwrap();
        let mut command = Command::new(python);
        command.arg(repository().join("tests/clients/aiosmtpd_hop.py"));
        command.args(["--port", &addr.port().to_string(), "--dir", dir.to_str().unwrap()]).args(options);
        Self::start(command, addr)
    }
}

/// Where `tests/third_party.sh` put Postfix's sink, or where the machine has it.
fn smtp_sink() -> Option<PathBuf> {
    let target = binary("posthouse").parent()?.parent()?.to_owned();
    let places = [target.join("third-party/usr/sbin/smtp-sink"), PathBuf::from("/usr/sbin/smtp-sink")];
    places.into_iter().find(|place| place.exists())
}

/// A Python that has aiosmtpd: the first on the path may not be the one that Debian's package is for.
fn python() -> Option<&'static str> {
    let has = |python: &&str| {
        Command::new(python).args(["-c", "import aiosmtpd"]).output().is_ok_and(|output| output.status.success())
    };
    ["python3", "/usr/bin/python3"].into_iter().find(has)
}

/// The letter in `dir` that holds `needle`.
fn letter_in(dir: &Path, needle: &str) -> Option<String> {
    let files = std::fs::read_dir(dir).ok()?;
    files
        .filter_map(|file| std::fs::read(file.ok()?.path()).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .find(|letter| letter.contains(needle))
}

fn send(cluster: &TestCluster, id: &str, to: &str) {
    let outcome = Device::new("127.0.31.7", cluster.smtp).send(id, to);
    assert!(matches!(outcome, Outcome::Promised(_)), "{id}: {outcome:?}");
}

fn waiting(cluster: &TestCluster, domain: &str) -> Vec<Value> {
    let listed = cluster.ctl.json(&["queue", "list", "--domain", domain]);
    listed["messages"].as_array().cloned().unwrap_or_default()
}

#[test]
fn postfix_sink_takes_letters_in_every_mood() {
    let Some(sink) = smtp_sink() else {
        println!("skipped: no smtp-sink on this machine (tests/third_party.sh fetches it)");
        return;
    };
    let cluster = TestCluster::start_with(EVERY_SECOND);
    let dir = |name: &str| cluster.path().join("hops").join(name);
    // Moods in which it takes the letter: no ESMTP, no pipelining, no 8BITMIME, slow.
    for (name, options) in
        [("plain", &[][..]), ("old", &["-e"]), ("turns", &["-p"]), ("narrow", &["-8"]), ("slow", &["-w", "2"])]
    {
        let hop = Hop::postfix(&sink, &dir(name), None, options);
        let domain = format!("{name}.example");
        cluster.ctl.ok(&["route", "add", &domain, "--to", &hop.addr.to_string()]);
        let id = format!("to-{name}");
        send(&cluster, &id, &format!("somebody@{domain}"));
        until(DEADLINE, &id, || letter_in(&dir(name), &format!("letter {id}")));
    }
    // It refuses for good: one report, which names it and its words.
    let hop = Hop::postfix(&sink, &dir("refuse"), None, &["-f", "RCPT"]);
    cluster.ctl.ok(&["route", "add", "refuse.example", "--to", &hop.addr.to_string()]);
    send(&cluster, "refused", "somebody@refuse.example");
    let report = until(DEADLINE, "the report", || {
        cluster.letters().into_iter().find(|letter| letter.contains("Final-Recipient: rfc822; somebody@refuse.example"))
    });
    assert!(report.contains("Action: failed") && report.contains(&hop.addr.to_string()), "{report}");
    // It refuses for now, or hangs up in the middle: the letter waits, and goes when the mood is better.
    for (name, options) in [("later", ["-r", "RCPT"]), ("data", ["-r", "DATA"]), ("drops", ["-q", "DATA"])] {
        let moody = Hop::postfix(&sink, &dir(name), None, &options);
        let domain = format!("{name}.example");
        cluster.ctl.ok(&["route", "add", &domain, "--to", &moody.addr.to_string()]);
        let id = format!("to-{name}");
        send(&cluster, &id, &format!("somebody@{domain}"));
        until(DEADLINE, &id, || {
            waiting(&cluster, &domain).into_iter().find(|letter| letter["attempts"].as_u64() > Some(0))
        });
        let addr = moody.addr;
        drop(moody);
        let _calm = Hop::postfix(&sink, &dir(name), Some(addr), &[]);
        until(DEADLINE, &id, || letter_in(&dir(name), &format!("letter {id}")));
        until(DEADLINE, "the queue empties", || waiting(&cluster, &domain).is_empty().then_some(()));
    }
    let reports = cluster.letters().iter().filter(|letter| letter.contains("Action: failed")).count();
    assert_eq!(reports, 1, "one refusal, one report");
}

#[test]
fn aiosmtpd_takes_letters_over_tls_with_a_login_and_within_its_limit() {
    let Some(python) = python() else {
        println!("skipped: python3 has no aiosmtpd (Debian: python3-aiosmtpd)");
        return;
    };
    let cluster = TestCluster::start_with(EVERY_SECOND);
    let dir = |name: &str| cluster.path().join("hops").join(name);
    let (cert, key) = (cluster.path().join("hop.crt"), cluster.path().join("hop.key"));
    // An end entity that is its own authority: what openssl makes by itself is an authority and no server.
    let config = cluster.path().join("hop.cnf");
    std::fs::write(
        &config,
        "[req]\ndistinguished_name=dn\nx509_extensions=ext\nprompt=no\n[dn]\nCN=hop.example\n\
         [ext]\nsubjectAltName=DNS:hop.example\nbasicConstraints=CA:FALSE\n",
    )
    .unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-config", config.to_str().unwrap()])
        .args(["-keyout", key.to_str().unwrap(), "-out", cert.to_str().unwrap()])
        .output()
        .expect("openssl runs");
    assert!(made.status.success());
    let tls = ["--cert", cert.to_str().unwrap(), "--key", key.to_str().unwrap()];
    let login = ["--user", "relay", "--password", "horse battery"];
    let hop = Hop::aiosmtpd(python, &dir("login"), &[&tls[..], &login].concat());
    let (right, wrong) = (cluster.path().join("right"), cluster.path().join("wrong"));
    std::fs::write(&right, "horse battery\n").unwrap();
    std::fs::write(&wrong, "a guess\n").unwrap();
    // A wrong password is the administrator's mistake: the letter waits for the right one.
    let to = hop.addr.to_string();
    let add = ["route", "add", "login.example", "--to", &to, "--tls", "verified", "--tls-names", "hop.example"];
    let with =
        |file: &Path| ["--auth-user", "relay", "--auth-password-file", file.to_str().unwrap()].map(str::to_owned);
    let ca = ["--tls-ca-file", cert.to_str().unwrap()];
    let first = with(&wrong);
    let first: Vec<&str> = add.iter().chain(&ca).copied().chain(first.iter().map(String::as_str)).collect();
    cluster.ctl.ok(&first);
    send(&cluster, "logged-in", "somebody@login.example");
    let held = until(DEADLINE, "the refused login", || {
        waiting(&cluster, "login.example").into_iter().find(|letter| letter["attempts"].as_u64() > Some(0))
    });
    assert!(held["last_error"].as_str().unwrap().contains("refused our login"), "{held}");
    let second = with(&right);
    let second: Vec<&str> =
        ["route", "set", "login.example"].into_iter().chain(second.iter().map(String::as_str)).collect();
    cluster.ctl.ok(&second);
    let letter = until(DEADLINE, "the letter", || letter_in(&dir("login"), "letter logged-in"));
    assert!(letter.contains("X-Login: relay") && letter.contains("X-Tls: True"), "{letter}");
    let shown = cluster.ctl.ok(&["route", "show", "login.example", "-o", "json"]);
    assert!(shown.contains("relay") && !shown.contains("horse"), "the password is never shown: {shown}");
    // A certificate that is not the route's: nothing leaves, and the test command says so.
    cluster.ctl.ok(&["route", "set", "login.example", "--tls-names", "other.example"]);
    let (code, said) = cluster.ctl.fails(&["route", "test", "a@login.example", "--connect"]);
    assert_eq!(code, 1, "{said}");
    // A letter beyond its SIZE is not offered, and comes back at once.
    let small = Hop::aiosmtpd(python, &dir("small"), &["--size", "100"]);
    cluster.ctl.ok(&["route", "add", "small.example", "--to", &small.addr.to_string()]);
    send(&cluster, "too-large", "somebody@small.example");
    until(DEADLINE, "the report", || {
        let about = "Final-Recipient: rfc822; somebody@small.example";
        cluster.letters().into_iter().find(|letter| letter.contains(about) && letter.contains("Status: 5.3.4"))
    });
}
