//! Backends, devices and a cluster for this room's tests: real sockets on loopback.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::config::FrontConfig;
use super::pool::{Known, Service};
use crate::proxy_protocol::{Command, FrontKey, Header, Parsed, VerifiedFront, parse, verify};
use crate::shutdown::Scope;

pub(super) const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn key() -> FrontKey {
    FrontKey { id: "f1-1".to_owned(), front: "f1".to_owned(), key: [3; 32] }
}

pub(super) fn config(data_dir: &std::path::Path, more: &str) -> FrontConfig {
    let text = format!(
        "[front]\nname = \"f1\"\ndata_dir = {data_dir:?}\ndial_from = \"127.0.0.2\"\n{more}\n\
         [[listen]]\naddress = \"127.0.0.1:0\"\nservice_port = 25\n\
         [[listen]]\naddress = \"127.0.0.1:0\"\nservice_port = 465\n\
         [check]\ninter = \"50ms\"\nfastinter = \"20ms\"\nrise = 1\nfall = 2\ntimeout = \"300ms\"\n\
         banner_timeout = \"300ms\"\nbanner_timeout_max = \"900ms\"\n[limits]\nmax_connections = 8\n"
    );
    FrontConfig::parse(std::path::Path::new("front.toml"), &text).unwrap()
}

/// What a backend does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Good,
    /// Reads the header and closes.
    Closes,
    /// Closes with a reset.
    Resets,
    Silent,
    /// Greets after a while.
    Slow(Duration),
    /// Refuses this device.
    Refuses421,
    /// Greets with 554.
    Refuses554,
    /// Greets, then refuses `EHLO`.
    Refuses502,
    /// Waits for the device, then answers with its own name.
    Tls,
}

/// What a backend saw of one connection.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub header: Header,
    pub front: VerifiedFront,
    pub from: SocketAddr,
    pub early: Vec<u8>,
}

/// A node, as far as a front can see it.
#[derive(Clone)]
pub(super) struct Fake {
    pub name: String,
    pub address: SocketAddr,
    manner: Arc<Mutex<Manner>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    pub(super) async fn start(name: &str, manner: Manner, scope: &Scope) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, name, manner, std::future::ready(()), scope)
    }

    /// A node that is so busy that its kernel drops who wants to connect, until `relief` comes.
    pub(super) async fn overrun(name: &str, relief: Arc<Semaphore>, scope: &Scope) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
            waiting.push(stream.unwrap());
        }
        let relieved = async move {
            drop(relief.acquire().await);
            drop(waiting);
        };
        Self::on(listener, name, Manner::Good, relieved, scope)
    }

    fn on(
        listener: TcpListener,
        name: &str,
        manner: Manner,
        begin: impl Future<Output = ()> + Send + 'static,
        scope: &Scope,
    ) -> Self {
        let fake = Self {
            name: name.to_owned(),
            address: listener.local_addr().unwrap(),
            manner: Arc::new(Mutex::new(manner)),
            seen: Arc::default(),
        };
        let (this, inner) = (fake.clone(), scope.clone());
        scope.spawn_until_ended(async move {
            begin.await;
            loop {
                let (stream, from) = listener.accept().await.unwrap();
                let this = this.clone();
                inner.spawn_until_ended(async move { this.serve(stream, from).await });
            }
        });
        fake
    }

    /// An address where nobody listens.
    pub(super) async fn absent(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { name: name.to_owned(), address, manner: Arc::new(Mutex::new(Manner::Good)), seen: Arc::default() }
    }

    pub(super) fn behave(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    /// Connections of devices, without checks.
    pub(super) fn devices(&self) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.header.command == Command::Proxy).cloned().collect()
    }

    pub(super) fn checks(&self) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| seen.header.command == Command::Local).count()
    }

    pub(super) fn known(&self, state: &str) -> Known {
        let service = |port, implicit_tls| Service { port, address: self.address.to_string(), implicit_tls };
        Known {
            node: self.name.clone(),
            state: state.to_owned(),
            services: vec![service(25, false), service(465, true)],
            rpc_address: String::new(),
            weight: 1,
        }
    }

    async fn serve(&self, mut stream: TcpStream, from: SocketAddr) {
        let mut bytes = Vec::new();
        let (header, consumed) = loop {
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
            match parse(&bytes) {
                Parsed::Header { header, consumed } => break (header, consumed),
                Parsed::Incomplete => {}
                Parsed::Invalid(error) => panic!("{error}"),
            }
        };
        let now_ms = crate::clock::now_ms();
        let front = verify(&header, &bytes[..consumed], |_| Some(key()), &self.name, now_ms).unwrap();
        let early = bytes.split_off(consumed);
        let manner = *self.manner.lock().unwrap();
        self.seen.lock().unwrap().push(Seen { header, front, from, early: early.clone() });
        let greeting = format!("220 {} ESMTP\r\n", self.name);
        match manner {
            Manner::Closes => return,
            Manner::Resets => {
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                return;
            }
            Manner::Silent => return std::future::pending().await,
            Manner::Tls => {
                let mut said = early;
                while said.len() < HELLO.len() {
                    if stream.read_buf(&mut said).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                assert_eq!(said, HELLO);
                let _ = stream.write_all(greeting.as_bytes()).await;
            }
            Manner::Refuses421 => {
                let _ = stream.write_all(format!("421 4.3.2 {} says no\r\n", self.name).as_bytes()).await;
                return;
            }
            Manner::Refuses554 => {
                let _ = stream.write_all(b"554 no\r\n").await;
                return;
            }
            Manner::Slow(pause) => {
                sleep(pause).await;
                let _ = stream.write_all(greeting.as_bytes()).await;
            }
            Manner::Good | Manner::Refuses502 => {
                let _ = stream.write_all(greeting.as_bytes()).await;
            }
        }
        let mut lines = Vec::new();
        loop {
            while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = lines.drain(..=end).collect();
                let reply: &[u8] = match &line[..4] {
                    b"EHLO" if manner == Manner::Refuses502 => b"502 5.5.1 no\r\n",
                    b"EHLO" => b"250-fake\r\n250-SIZE 1000\r\n250 PIPELINING\r\n",
                    b"QUIT" => b"221 bye\r\n",
                    _ => b"250 fine\r\n",
                };
                if stream.write_all(reply).await.is_err() || line.starts_with(b"QUIT") {
                    return;
                }
            }
            if stream.read_buf(&mut lines).await.unwrap_or(0) == 0 {
                return;
            }
        }
    }
}

/// A ClientHello, as far as a front reads it.
pub(super) const HELLO: [u8; 25] = [22, 3, 1, 0, 20, 1, 0, 0, 16, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7];

/// A device at `from` that connects to `to`.
pub(super) async fn device(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Everything that arrives until a line is whole, or the end.
pub(super) async fn line(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = async { while !bytes.ends_with(b"\n") && stream.read_buf(&mut bytes).await.unwrap_or(0) > 0 {} };
    timeout(PATIENCE, read).await.expect("the device hears nothing");
    String::from_utf8(bytes).unwrap()
}

/// Says QUIT and returns everything that arrives until the end.
pub(super) async fn quit(mut stream: TcpStream) -> String {
    let _ = stream.write_all(b"QUIT\r\n").await;
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the session does not end");
    String::from_utf8(bytes).unwrap()
}

/// Waits for a condition.
pub(super) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
