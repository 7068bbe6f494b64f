//! Plays the conversations of `tests/dialogs`: `C:` is what the client says, `S:` how a line of the server's answer
//! begins, `X:` the end of the connection. `W:` lines say with what the connector differs from its defaults. A new
//! protocol bug starts as one of these files.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use super::{Action, AuthOutcome, Session, SessionConfig, Verdict};
use crate::mail::reply;
use crate::smtp::Leniency;

/// What the server has said and not yet been asked about, and whether it has closed.
struct Server {
    session: Session,
    said: String,
    closed: bool,
}

impl Server {
    fn config(with: &[&str]) -> SessionConfig {
        let mut config = SessionConfig::new("relay.example", [192, 0, 2, 7].into());
        config.session_id = "0123456789ABCDEF".to_owned();
        config.leniencies = Leniency::ALL.into_iter().filter(|leniency| with.contains(&leniency.as_str())).collect();
        config.xclient = with.contains(&"xclient");
        config.offer.binary_mime = with.contains(&"binary_mime");
        config.offer.smtp_utf8 = !with.contains(&"no_smtp_utf8");
        config.offer.chunking = !with.contains(&"no_chunking");
        config
    }

    fn new(with: &[&str]) -> Self {
        let config = Self::config(with);
        Self { session: Session::new(config, Instant::now()), said: String::new(), closed: false }
    }

    /// Does what the session asks, as a relay does that takes mail for corp.example.
    fn run(&mut self) {
        while let Some(action) = self.session.poll_action() {
            let now = Instant::now();
            match action {
                Action::Send(bytes) => self.said.push_str(&String::from_utf8(bytes).unwrap()),
                Action::CheckMail { .. } => self.session.handle_mail(now, Verdict::Permit),
                Action::CheckRcpt { forward_path } => {
                    let ours = forward_path.domain().is_some_and(|domain| domain.as_str() == "corp.example");
                    let verdict = if ours { Verdict::Permit } else { Verdict::Deny(reply::unable_to_relay()) };
                    self.session.handle_rcpt(now, verdict);
                }
                Action::BeginData { .. } => self.session.handle_data_ready(now, Ok(())),
                Action::Commit { .. } => {
                    let kept = reply::queued("kept@relay.example", 7, "relay.example");
                    self.session.handle_committed(now, kept);
                }
                Action::CheckAuth { .. } | Action::SaslMessage { .. } => {
                    self.session.handle_auth(now, AuthOutcome::Refused)
                }
                Action::StartTls => self.session.handle_tls_failed(now),
                Action::Close { .. } => self.closed = true,
                Action::Xclient(said) => {
                    let source_addr = said.addr.unwrap_or_else(|| [192, 0, 2, 7].into());
                    self.session.handle_xclient(now, Ok(SessionConfig { source_addr, ..Self::config(&[]) }));
                }
                Action::Header { .. } | Action::Append(_) | Action::Abort | Action::Note(_) | Action::Heard(_) => {}
            }
        }
    }

    /// Takes the next reply, all of its lines.
    fn reply(&mut self) -> String {
        let mut whole = String::new();
        while let Some((line, rest)) = self.said.split_once("\r\n") {
            let last = line.as_bytes().get(3) != Some(&b'-');
            whole.push_str(line);
            whole.push('\n');
            self.said = rest.to_owned();
            if last {
                break;
            }
        }
        whole
    }
}

fn play(path: &Path) {
    let text = std::fs::read_to_string(path).unwrap();
    let with: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("W:")).map(str::trim).collect();
    let mut server = Server::new(&with);
    server.run();
    for (number, line) in (1..).zip(text.lines()) {
        let place = || format!("{}:{number}", path.display());
        match line.split_at_checked(2) {
            Some(("C:", said)) => {
                let said = format!("{}\r\n", said.strip_prefix(' ').unwrap_or(said));
                server.session.handle_bytes(Instant::now(), said.as_bytes());
                server.run();
            }
            Some(("S:", expected)) => {
                let reply = server.reply();
                assert!(reply.starts_with(expected.trim()), "{}: expected {expected}, heard {reply}", place());
            }
            Some(("X:", _)) => assert!(server.closed, "{}: the connection is still open", place()),
            Some(("W:", _)) => {}
            _ => assert!(line.is_empty() || line.starts_with('#'), "{}: what is this line?", place()),
        }
    }
    assert_eq!(server.said, "", "{}: the server said more than the dialog expects", path.display());
}

#[test]
fn every_dialog_goes_as_written() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/dialogs");
    let mut played = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "smtp") {
            play(&path);
            played += 1;
        }
    }
    assert!(played >= 6, "only {played} dialogs were found");
}
