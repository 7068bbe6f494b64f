//! A client with TLS of its own: `clients/tls_dialog.py`, which speaks line by line and says what it heard.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::repository;

/// Where to talk, and how.
#[derive(Clone, Debug)]
pub struct Talk {
    pub target: SocketAddr,
    /// `implicit` or `starttls`.
    pub mode: &'static str,
    pub source: Option<String>,
    /// The name to ask for.
    pub name: Option<String>,
    /// Verify with this authority.
    pub ca: Option<String>,
    /// A certificate and key of its own.
    pub cert: Option<(String, String)>,
    /// Octets, in hexadecimal, that go out together with the ClientHello.
    pub prefix: Option<String>,
    /// Octets of each TLS record of the ClientHello.
    pub fragment: Option<u32>,
    /// Octets of each write of the ClientHello.
    pub split: Option<u32>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Heard {
    pub replies: Vec<String>,
    pub version: Option<String>,
    pub sha256: Option<String>,
    pub error: Option<String>,
}

impl Talk {
    /// STARTTLS, as a device on 127.0.0.1; the first three replies are greeting, `EHLO` and `STARTTLS`.
    pub fn starttls(target: SocketAddr) -> Self {
        Self {
            target,
            mode: "starttls",
            source: None,
            name: None,
            ca: None,
            cert: None,
            prefix: None,
            fragment: None,
            split: None,
        }
    }

    /// TLS from the first byte; the first reply is the greeting.
    pub fn implicit(target: SocketAddr) -> Self {
        Self { mode: "implicit", ..Self::starttls(target) }
    }

    /// Says `steps` and hears the answers.
    pub fn say(&self, steps: &[&str]) -> Heard {
        Waiting::spawn(self, steps).finish()
    }
}

impl Heard {
    /// The last reply.
    pub fn last(&self) -> &str {
        self.replies.last().map_or("", String::as_str)
    }
}

/// A talk that stands at an `@wait FILE` step.
pub struct Waiting {
    child: Child,
}

impl Waiting {
    /// Begins, and returns when the talk has come to its `@wait`.
    pub fn start(talk: &Talk, steps: &[&str]) -> Self {
        let mut waiting = Self::spawn(talk, steps);
        let mut line = String::new();
        let error = waiting.child.stderr.as_mut().expect("a pipe");
        BufReader::new(error).read_line(&mut line).expect("it says that it waits");
        assert_eq!(line, "waiting\n", "the talk ended before its @wait: {:?}", waiting.finish());
        waiting
    }

    fn spawn(talk: &Talk, steps: &[&str]) -> Self {
        let (cert, key) = talk.cert.clone().unzip();
        let ask = json!({
            "host": talk.target.ip().to_string(), "port": talk.target.port(), "mode": talk.mode,
            "source": talk.source, "name": talk.name, "ca": talk.ca, "cert": cert, "key": key, "steps": steps,
            "prefix": talk.prefix, "fragment": talk.fragment, "split": talk.split,
        });
        let mut child = Command::new("python3")
            .arg(repository().join("tests/clients/tls_dialog.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        child.stdin.take().expect("a pipe").write_all(ask.to_string().as_bytes()).expect("it listens");
        Self { child }
    }

    /// Waits for the end of the talk.
    pub fn finish(mut self) -> Heard {
        let mut out = String::new();
        self.child.stdout.as_mut().expect("a pipe").read_to_string(&mut out).expect("it speaks");
        let mut err = String::new();
        let _ = self.child.stderr.as_mut().expect("a pipe").read_to_string(&mut err);
        let _ = self.child.wait();
        let told: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("tls_dialog.py said {out:?}: {err}"));
        let text = |field: &str| told[field].as_str().map(str::to_owned);
        let replies = told["replies"].as_array().into_iter().flatten();
        Heard {
            replies: replies.filter_map(|reply| reply.as_str().map(str::to_owned)).collect(),
            version: text("version"),
            sha256: text("sha256"),
            error: text("error"),
        }
    }
}
