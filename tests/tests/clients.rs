//! Clients that nobody here wrote, against 25, 587 and 465 through the front: a listed device relays, a stranger is
//! refused, a credential submits by STARTTLS and by implicit TLS, a wrong password is told so. What was accepted
//! arrives whole, byte for byte.
//!
//! Each script in `tests/clients/` sends one letter and takes its orders from the environment:
//! `PORT` on localhost, `MODE` (`plain`, `starttls`, `implicit`), `SOURCE` (the device's address), `CA` (a PEM file),
//! `LOGIN_USER` and `LOGIN_PASSWORD_FILE` (empty: no login), `MAIL_FROM`, `RCPT`, `LETTER` (a file with LF line ends).
//! It prints what the server said and ends with 0 exactly if the letter was accepted.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use posthouse_tests::forwarder::forward;
use posthouse_tests::{Filed, TestCluster, repository, until};

/// Source addresses: a listed printer's, and a stranger's.
const LISTED: &str = "127.0.31.7";
const STRANGER: &str = "127.0.9.9";

/// One client.
struct Client {
    name: &'static str,
    program: &'static str,
    script: &'static str,
    /// It sends the letter as it is given. The others compose a header of their own.
    verbatim: bool,
    /// It can bind its source address. For the others a forwarder stands in for the network card.
    binds: bool,
}

const fn client(name: &'static str, program: &'static str, script: &'static str) -> Client {
    Client { name, program, script, verbatim: true, binds: true }
}

const CLIENTS: &[Client] = &[
    client("swaks", "sh", "swaks.sh"),
    client("curl", "sh", "curl.sh"),
    client("msmtp", "sh", "msmtp.sh"),
    Client { verbatim: false, binds: false, ..client("s-nail", "sh", "s-nail.sh") },
    client("smtplib", "python3", "python-smtplib.py"),
    client("aiosmtplib", "VENV/bin/python3", "python-aiosmtplib.py"),
    client("nodemailer", "node", "nodemailer.js"),
    client("net-smtp", "perl", "net-smtp.pl"),
];

/// What one run is told, and what must come of it.
struct Run {
    name: &'static str,
    port: u16,
    mode: &'static str,
    source: &'static str,
    /// Empty: no login.
    password_file: &'static str,
    /// Empty: accepted.
    refused: &'static str,
}

const RUNS: &[Run] = &[
    Run { name: "listed", port: 25, mode: "plain", source: LISTED, password_file: "", refused: "" },
    Run {
        name: "stranger",
        port: 25,
        mode: "plain",
        source: STRANGER,
        password_file: "",
        refused: "5.7.54 SMTP; Unable to relay recipient in non-accepted domain",
    },
    Run { name: "listed-tls", port: 25, mode: "starttls", source: LISTED, password_file: "", refused: "" },
    Run { name: "starttls", port: 587, mode: "starttls", source: STRANGER, password_file: "secret", refused: "" },
    Run { name: "implicit", port: 465, mode: "implicit", source: STRANGER, password_file: "secret", refused: "" },
    Run {
        name: "wrong-starttls",
        port: 587,
        mode: "starttls",
        source: STRANGER,
        password_file: "wrong",
        refused: "5.7.3 Authentication unsuccessful",
    },
    Run {
        name: "wrong-implicit",
        port: 465,
        mode: "implicit",
        source: STRANGER,
        password_file: "wrong",
        refused: "5.7.3 Authentication unsuccessful",
    },
];

/// Where `tests/run.sh` puts what comes from PyPI and npm.
fn tools() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"), PathBuf::from);
    cache.join("posthouse-test-tools")
}

/// Lines that other relays have broken: dots, a dot alone, blanks at the end, long ones, empty ones.
fn body() -> String {
    let mut lines = vec![
        ".a line that begins with a dot".to_owned(),
        "..two dots".to_owned(),
        ".".to_owned(),
        "blanks at the end   ".to_owned(),
        "\ta tab".to_owned(),
        String::new(),
        "From the beginning of a line".to_owned(),
    ];
    lines.extend((0..40).map(|number| format!("{number:04} {}", "0123456789abcdef".repeat(4))));
    lines.push("x".repeat(900));
    lines.push("the last line".to_owned());
    lines.iter().map(|line| format!("{line}\n")).collect()
}

struct Scene {
    dir: PathBuf,
    authority: PathBuf,
    user: String,
    front: BTreeMap<u16, SocketAddr>,
}

impl Scene {
    /// Runs a client; answers whether it says that the letter was accepted, and all that it printed.
    fn run(&self, client: &Client, run: &Run, id: &str) -> (bool, String) {
        let front = self.front[&run.port];
        let port = if client.binds { front } else { forward(run.source.parse().unwrap(), front) }.port();
        let letter = self.dir.join(id);
        let header = format!(
            "From: <scan@corp.example>\nTo: <somebody@partner.example>\nMessage-ID: <{id}@client.example>\nSubject: {id}\n"
        );
        std::fs::write(&letter, format!("{header}\n{}", body())).unwrap();
        let program = client.program.replace("VENV", &tools().join("venv").display().to_string());
        let secret = |name: &str| if name.is_empty() { PathBuf::new() } else { self.dir.join(name) };
        let output = Command::new(&program)
            .arg(repository().join("tests/clients").join(client.script))
            .env("PORT", port.to_string())
            .env("MODE", run.mode)
            .env("SOURCE", run.source)
            .env("CA", &self.authority)
            .env("LOGIN_USER", if run.password_file.is_empty() { "" } else { &self.user })
            .env("LOGIN_PASSWORD_FILE", secret(run.password_file))
            .env("MAIL_FROM", "scan@corp.example")
            .env("RCPT", "somebody@partner.example")
            .env("LETTER", &letter)
            .env("NODE_PATH", tools().join("node_modules"))
            .env("HOME", &self.dir)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{}: {program}: {error}: run tests/run.sh once", client.name));
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    /// Every run of one client.
    fn runs(&self, client: &Client) {
        for run in RUNS {
            let id = format!("{}-{}", client.name, run.name);
            let (accepted, said) = self.run(client, run, &id);
            assert_eq!(accepted, run.refused.is_empty(), "{id}:\n{said}");
            assert!(said.contains(run.refused), "{id} should be told {:?}:\n{said}", run.refused);
        }
    }
}

/// What quoted-printable text (RFC 2045 §6.7) stands for, where that is ASCII.
fn unquoted(text: &str) -> String {
    let mut pieces = text.split('=');
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (code, rest) = piece.split_at(2);
        if code != "\r\n" {
            plain.push(char::from(u8::from_str_radix(code, 16).unwrap()));
        }
        plain.push_str(rest);
    }
    plain
}

/// What must be true of a letter that arrived.
fn check(client: &Client, run: &Run, filed: &Filed) {
    let id = format!("{}-{}", client.name, run.name);
    let expected = body().replace('\n', "\r\n");
    let mut arrived = String::from_utf8_lossy(filed.body()).into_owned();
    // s-nail hides from the wire what other relays have broken.
    if filed.field("Content-Transfer-Encoding").is_some_and(|encoding| encoding == "quoted-printable") {
        arrived = unquoted(&arrived);
    }
    assert!(arrived == expected, "{id}: the body was changed; {} for {}:\n{arrived}", arrived.len(), expected.len());
    let header = filed.header();
    assert!(header.contains(&format!("[{}]", run.source)), "{id}: Received names the device:\n{header}");
    assert!(!header.contains("127.0.0.2"), "{id}: the front's own address is nobody's device:\n{header}");
    let with = match (run.mode, run.password_file) {
        // It says HELO where it has no login to ask for, even inside TLS.
        (_, "") if client.name == "s-nail" => "SMTP",
        ("plain", _) => "ESMTP",
        (_, "") => "ESMTPS",
        (_, _) => "ESMTPSA",
    };
    let words: Vec<&str> = header.split_ascii_whitespace().collect();
    assert!(words.windows(2).any(|two| two == ["with", with]), "{id}: it came with {with}:\n{header}");
    assert_eq!((filed.from.as_str(), filed.to.len()), ("scan@corp.example", 1), "{id}");
    if client.verbatim {
        assert_eq!(filed.field("Message-ID"), Some(format!("<{id}@client.example>")), "{id}");
    }
}

#[test]
fn eight_clients_relay_submit_and_are_refused_on_25_587_and_465() {
    let cluster = TestCluster::start();
    for connector in ["submission", "submissions"] {
        cluster.ctl.ok(&["connector", "set", connector, "--auth-tarpit-interval", "0s"]);
    }
    let dir = cluster.path().join("clients");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("secret"), &cluster.password).unwrap();
    std::fs::write(dir.join("wrong"), "not-the-password").unwrap();
    let scene = Scene {
        dir,
        authority: cluster.authority(),
        user: cluster.user.clone(),
        front: [(25, cluster.smtp), (587, cluster.submission), (465, cluster.submissions)].into(),
    };
    std::thread::scope(|scope| {
        let scene = &scene;
        let running: Vec<_> = CLIENTS.iter().map(|client| scope.spawn(move || scene.runs(client))).collect();
        for client in running {
            // The panic of a thread has said what was wrong.
            client.join().expect("a client's runs");
        }
    });
    let due = || CLIENTS.iter().flat_map(|client| RUNS.iter().map(move |run| (client, run)));
    let accepted = due().filter(|(_, run)| run.refused.is_empty()).count();
    let filed = until(Duration::from_secs(60), "every accepted letter arrives", || {
        let filed = cluster.filed_by_subject();
        (filed.values().map(Vec::len).sum::<usize>() >= accepted).then_some(filed)
    });
    for (client, run) in due() {
        let id = format!("{}-{}", client.name, run.name);
        let copies = filed.get(&id).map_or(0, Vec::len);
        assert_eq!(copies, usize::from(run.refused.is_empty()), "{id} arrived {copies} times");
        if let Some(letter) = filed.get(&id).and_then(|letters| letters.first()) {
            check(client, run, letter);
        }
    }
    println!("{accepted} letters of {} clients arrived whole", CLIENTS.len());
}

#[test]
fn every_client_is_installed() {
    for tool in ["swaks", "curl", "msmtp", "s-nail", "python3", "node", "perl"] {
        assert!(on_path(tool), "{tool} is missing: tests/run.sh installs it");
    }
    for path in ["venv/bin/python3", "node_modules/nodemailer/package.json"] {
        assert!(tools().join(path).exists(), "{path} is missing: tests/run.sh installs it");
    }
}

fn on_path(tool: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|dir| Path::new(&dir).join(tool).exists())
}
