//! A small SMTP server that files every letter in a maildir: the next hop of the quickstart and of the tests. No part
//! of a cluster; it accepts from anybody who can reach it, and delivers nowhere. A recipient whose local part begins
//! with `reject-` is refused for good and one with `defer-` for now, so that bounces and retries can be tried out.

mod maildir;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::mail::{EnhancedCode, ForwardPath, Reply, ReversePath, reply};
use crate::shutdown::{Scope, run_blocking};
use crate::smtp::session::{Action, AuthOutcome, Session, SessionConfig, Verdict};
use maildir::{Delivery, Maildir};

/// Connections at once.
const CONNECTIONS_MAX: usize = 500;
/// How long a client may take to read a reply.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long open sessions may take to end when the sink stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// What one read takes.
const READ_BYTES: usize = 16 * 1024;

/// What a sink is told.
#[derive(Clone, Debug)]
pub struct SinkConfig {
    /// Where to listen.
    pub listen: Vec<SocketAddr>,
    /// The maildir; made if missing.
    pub maildir: PathBuf,
    /// The name in the banner.
    pub hostname: String,
    /// Wait this long before the reply to each letter.
    pub delay: Duration,
}

/// Why a sink cannot run. Theirs.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// An address is taken, or not ours.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The maildir cannot be used.
    #[error("maildir {path}: {source}", path = path.display())]
    Maildir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Runs a sink until `scope` ends.
///
/// # Errors
/// When it cannot listen or file.
pub async fn run(config: SinkConfig, scope: &Scope) -> Result<(), SinkError> {
    let path = config.maildir.clone();
    let maildir = run_blocking(move || Maildir::open(&path))
        .await
        .map_err(|source| SinkError::Maildir { path: config.maildir.clone(), source })?;
    let mut listeners = Vec::new();
    for &address in &config.listen {
        let listener = TcpListener::bind(address).await.map_err(|source| SinkError::Listen { address, source })?;
        tracing::info!(%address, maildir = %config.maildir.display(), "sink is listening");
        listeners.push(listener);
    }
    let (sessions, permits) = (Scope::new(), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    let shared = Arc::new((config, maildir));
    for listener in listeners {
        let (shared, sessions, permits) = (Arc::clone(&shared), sessions.clone(), Arc::clone(&permits));
        scope.spawn_until_ended(async move {
            loop {
                let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
                let Ok((tcp, peer)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let (shared, ended) = (Arc::clone(&shared), sessions.clone());
                sessions.spawn(async move {
                    let _permit = permit;
                    converse(&shared.0, &shared.1, tcp, peer, &ended).await;
                });
            }
        });
    }
    scope.ended().await;
    sessions.end();
    sessions.join(DRAIN_TIMEOUT).await;
    Ok(())
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// One session: the session says what to do, and this does it.
async fn converse(config: &SinkConfig, maildir: &Maildir, mut tcp: TcpStream, peer: SocketAddr, ended: &Scope) {
    let _ = tcp.set_nodelay(true);
    let mut session = Session::new(SessionConfig::new(config.hostname.clone(), peer.ip()), now());
    let mut reverse_path = ReversePath::Null;
    let mut delivery: Option<Delivery> = None;
    let mut buffer = vec![0; READ_BYTES];
    let mut shutdown_told = false;
    loop {
        while let Some(action) = session.poll_action() {
            match action {
                Action::Send(bytes) => {
                    let sent = tokio::time::timeout(WRITE_TIMEOUT, tcp.write_all(&bytes)).await;
                    if !matches!(sent, Ok(Ok(()))) {
                        session.handle_disconnect(now());
                    }
                }
                Action::CheckMail { reverse_path: from, .. } => {
                    reverse_path = from;
                    session.handle_mail(now(), Verdict::Permit);
                }
                Action::CheckRcpt { forward_path } => session.handle_rcpt(now(), judge(&forward_path)),
                Action::BeginData { envelope } => {
                    let begun = maildir.begin(&reverse_path, envelope.forward_paths()).await;
                    let ready = begun.map(|begun| delivery = Some(begun)).map_err(|error| failed(&error));
                    session.handle_data_ready(now(), ready);
                }
                Action::Header { block: bytes, .. } | Action::Append(bytes) => {
                    let written = match &mut delivery {
                        Some(delivery) => delivery.write(&bytes).await,
                        None => Ok(()),
                    };
                    if let Err(error) = written {
                        delivery = None;
                        session.handle_append_failed(now(), failed(&error));
                    }
                }
                Action::Commit { .. } => {
                    let answer = match delivery.take() {
                        Some(delivery) => file(delivery, config).await,
                        None => reply::insufficient_system_resources(),
                    };
                    session.handle_committed(now(), answer);
                }
                Action::Abort => delivery = None,
                // Neither is offered.
                Action::CheckAuth { .. } | Action::SaslMessage { .. } => {
                    session.handle_auth(now(), AuthOutcome::Refused)
                }
                Action::StartTls => session.handle_tls_failed(now()),
                Action::Xclient(_) => session.handle_xclient(now(), Err(reply::service_not_available())),
                Action::Note(_) | Action::Heard(_) => {}
                Action::Close { .. } => {
                    let _ = tokio::time::timeout(WRITE_TIMEOUT, tcp.shutdown()).await;
                    return;
                }
            }
        }
        let deadline = session.poll_timeout().map(Instant::from_std);
        tokio::select! {
            read = tcp.read(&mut buffer), if session.wants_input() => match read {
                Ok(0) | Err(_) => session.handle_disconnect(now()),
                Ok(count) => session.handle_bytes(now(), &buffer[..count]),
            },
            () = sleep_until(deadline) => session.handle_timeout(now()),
            () = ended.ended(), if !shutdown_told => {
                shutdown_told = true;
                session.handle_shutdown(now());
            }
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Takes everybody, except those who ask not to be taken.
fn judge(forward_path: &ForwardPath) -> Verdict {
    let local_part = forward_path.mailbox().map_or("postmaster", |mailbox| mailbox.local_part());
    if local_part.starts_with("reject-") {
        return Verdict::Deny(Reply::new(550, Some(EnhancedCode::new(5, 1, 1)), "User unknown"));
    }
    if local_part.starts_with("defer-") {
        return Verdict::Deny(Reply::new(451, Some(EnhancedCode::new(4, 2, 1)), "Mailbox busy, try again later"));
    }
    Verdict::Permit
}

async fn file(delivery: Delivery, config: &SinkConfig) -> Reply {
    tokio::time::sleep(config.delay).await;
    match delivery.finish().await {
        Ok(name) => {
            tracing::debug!(name, "letter filed");
            Reply::new(250, Some(EnhancedCode::new(2, 0, 0)), format!("filed as {name}"))
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &std::io::Error) -> Reply {
    tracing::error!(%error, "letter cannot be filed");
    reply::insufficient_system_resources()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    async fn talk(address: SocketAddr, text: &str) -> String {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        let mut said = vec![0; 1024];
        let count = tcp.read(&mut said).await.unwrap();
        let mut all = String::from_utf8_lossy(&said[..count]).into_owned();
        for part in text.split_inclusive("DATA\r\n") {
            tcp.write_all(part.as_bytes()).await.unwrap();
            let count = tcp.read(&mut said).await.unwrap();
            all.push_str(&String::from_utf8_lossy(&said[..count]));
        }
        let mut rest = String::new();
        let _ = tcp.read_to_string(&mut rest).await;
        all + &rest
    }

    #[tokio::test]
    async fn letters_are_filed_whole_and_unwanted_recipients_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = probe.local_addr().unwrap();
        drop(probe);
        let config = SinkConfig {
            listen: vec![address],
            maildir: dir.path().join("m"),
            hostname: "sink.example".to_owned(),
            delay: Duration::ZERO,
        };
        let scope = Scope::new();
        let inner = scope.clone();
        let new = dir.path().join("m/new");
        scope.spawn(async move { run(config, &inner).await.unwrap() });
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let said = talk(
            address,
            "HELO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<reject-me@c.example>\r\nRCPT TO:<defer-me@c.example>\r\n\
             RCPT TO:<ok@c.example>\r\nDATA\r\nSubject: s\r\n\r\n..dot\r\n.\r\nQUIT\r\n",
        )
        .await;
        assert!(said.contains("550 5.1.1") && said.contains("451 4.2.1") && said.contains("250 2.0.0 filed"), "{said}");
        let letters: Vec<_> = std::fs::read_dir(new).unwrap().collect();
        assert_eq!(letters.len(), 1);
        let text = std::fs::read_to_string(letters[0].as_ref().unwrap().path()).unwrap();
        assert_eq!(
            text,
            "X-Envelope-From: <a@b.example>\r\nX-Envelope-To: <ok@c.example>\r\nSubject: s\r\n\r\n.dot\r\n"
        );
        scope.end();
        assert!(scope.join(Duration::from_secs(5)).await);
    }
}
