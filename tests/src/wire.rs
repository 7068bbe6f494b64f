//! An SMTP dialogue that sees every byte and can be inside TLS: plain, after `STARTTLS`, or from the first byte. The
//! server's certificate is verified against the cluster's own authority. [`crate::dialog`] is its plain little sister.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use socket2::{Domain, Socket, Type};

use crate::cluster::TestCluster;

/// How long a reply may take: longer than any tarpit of a default connector.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Whom a TLS client believes.
#[derive(Clone)]
pub struct Trust(Arc<ClientConfig>);

impl Trust {
    /// Believes the authority in a PEM file and nobody else.
    pub fn of(authority: &Path) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
        Self(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
    }

    /// The same, from a client whose ClientHello has at least so many bytes more.
    #[must_use]
    pub fn with_hello_of(self, bytes: usize) -> Self {
        // 255 bytes and their length: the longest name of a protocol (RFC 7301 §3.1).
        let protocol = |index: usize| format!("{index:0>255}").into_bytes();
        let mut config = (*self.0).clone();
        config.alpn_protocols = (0..bytes.div_ceil(256)).map(protocol).collect();
        Self(Arc::new(config))
    }
}

impl TestCluster {
    /// The PEM file of the cluster's own authority.
    pub fn authority(&self) -> std::path::PathBuf {
        self.nodes[0].dir.join("data/ca.crt")
    }

    /// Believes the cluster's own authority.
    pub fn trust(&self) -> Trust {
        Trust::of(&self.authority())
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// One connection.
pub struct Wire {
    stream: Stream,
    /// Bytes that came after the last reply that was read.
    ahead: Vec<u8>,
}

impl Wire {
    /// Connects from `source` to `target` and says nothing.
    ///
    /// # Errors
    /// When the connection is refused.
    pub fn connect(source: IpAddr, target: SocketAddr) -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&target.into(), PATIENCE)?;
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: Stream::Plain(stream), ahead: Vec::new() })
    }

    /// Connects and reads the greeting.
    ///
    /// # Errors
    /// When there is none, or it is not a `220`.
    pub fn greeted(source: &str, target: SocketAddr) -> Result<Self> {
        let mut wire = Self::connect(source.parse().unwrap(), target)?;
        wire.expect("220")?;
        Ok(wire)
    }

    /// Connects to an implicit TLS socket and reads the greeting.
    ///
    /// # Errors
    /// When TLS or the greeting fails.
    pub fn implicit(source: &str, target: SocketAddr, trust: &Trust) -> Result<Self> {
        let mut wire = Self::connect(source.parse().unwrap(), target)?.shake_hands(trust)?;
        wire.expect("220")?;
        Ok(wire)
    }

    /// `STARTTLS`, with the certificate verified. The caller says `EHLO` again.
    ///
    /// # Errors
    /// When the server does not offer it, or the handshake fails.
    pub fn starttls(mut self, trust: &Trust) -> Result<Self> {
        self.expect_to("STARTTLS", "220")?;
        self.shake_hands(trust)
    }

    /// A TLS handshake, now, whatever was said before.
    ///
    /// # Errors
    /// When it fails.
    pub fn shake_hands(self, trust: &Trust) -> Result<Self> {
        self.shake_hands_behind(b"", trust)
    }

    /// The same, with `first` and the ClientHello in one segment.
    ///
    /// # Errors
    /// When it fails.
    pub fn shake_hands_behind(self, first: &[u8], trust: &Trust) -> Result<Self> {
        let Stream::Plain(mut tcp) = self.stream else {
            return Err(Error::other("already inside TLS"));
        };
        if !self.ahead.is_empty() {
            return Err(Error::other(format!("said before TLS: {:?}", String::from_utf8_lossy(&self.ahead))));
        }
        let name = ServerName::try_from("localhost").unwrap();
        let mut connection = ClientConnection::new(Arc::clone(&trust.0), name).map_err(Error::other)?;
        let mut segment = first.to_vec();
        connection.write_tls(&mut segment)?;
        tcp.write_all(&segment)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp)?;
        }
        Ok(Self { stream: Stream::Tls(Box::new(StreamOwned::new(connection, tcp))), ahead: Vec::new() })
    }

    /// The socket below, inside TLS or not.
    pub fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => &tls.sock,
        }
    }

    /// Our end of the connection.
    pub fn local_addr(&self) -> SocketAddr {
        self.tcp().local_addr().unwrap()
    }

    /// Sends bytes as they are: one segment, and inside TLS one record, as long as they are few.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        match &mut self.stream {
            Stream::Plain(tcp) => tcp.write_all(bytes.as_ref()),
            Stream::Tls(tls) => tls.write_all(bytes.as_ref()).and_then(|()| tls.flush()),
        }
    }

    /// Reads one reply, all of its lines, without the last CRLF.
    ///
    /// # Errors
    /// When the connection ends or nothing comes for [`PATIENCE`].
    pub fn reply(&mut self) -> Result<String> {
        loop {
            if let Some(end) = end_of_reply(&self.ahead) {
                let rest = self.ahead.split_off(end);
                let whole = std::mem::replace(&mut self.ahead, rest);
                return Ok(String::from_utf8_lossy(&whole).trim_end().to_owned());
            }
            if self.read_more()? == 0 {
                let said = String::from_utf8_lossy(&self.ahead).into_owned();
                return Err(Error::new(ErrorKind::UnexpectedEof, format!("closed; said before: {said:?}")));
            }
        }
    }

    fn read_more(&mut self) -> Result<usize> {
        let mut buffer = [0; 4096];
        let count = match &mut self.stream {
            Stream::Plain(tcp) => tcp.read(&mut buffer)?,
            Stream::Tls(tls) => match tls.read(&mut buffer) {
                // A server that closes without close_notify has closed.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => 0,
                other => other?,
            },
        };
        self.ahead.extend_from_slice(&buffer[..count]);
        Ok(count)
    }

    /// Reads one reply and demands how it begins.
    ///
    /// # Errors
    /// When it begins otherwise.
    pub fn expect(&mut self, beginning: &str) -> Result<String> {
        let reply = self.reply()?;
        if reply.starts_with(beginning) {
            return Ok(reply);
        }
        Err(Error::other(format!("expected {beginning:?}, was told {reply:?}")))
    }

    /// Sends a line and reads the reply.
    ///
    /// # Errors
    /// When the connection ends or times out.
    pub fn command(&mut self, line: &str) -> Result<String> {
        self.send(format!("{line}\r\n"))?;
        self.reply()
    }

    /// Sends a line and demands how the reply begins.
    ///
    /// # Errors
    /// When it begins otherwise.
    pub fn expect_to(&mut self, line: &str, beginning: &str) -> Result<String> {
        self.send(format!("{line}\r\n"))?;
        self.expect(beginning).map_err(|error| Error::other(format!("to {line:?}: {error}")))
    }

    /// `AUTH PLAIN` with an initial response; answers the reply.
    ///
    /// # Errors
    /// When the connection ends or times out.
    pub fn auth_plain(&mut self, user: &str, password: &str) -> Result<String> {
        self.command(&format!("AUTH PLAIN {}", base64(format!("\0{user}\0{password}"))))
    }

    /// Everything that is still said until the server closes. `None` when it has not closed within `patience`.
    pub fn until_closed(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let began = std::time::Instant::now();
        loop {
            let left = patience.checked_sub(began.elapsed()).filter(|left| !left.is_zero())?;
            self.tcp().set_read_timeout(Some(left)).unwrap();
            match self.read_more() {
                Ok(0) => return Some(std::mem::take(&mut self.ahead)),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
                // Reset, or broken TLS: closed, and not gently.
                Err(_) => return Some(std::mem::take(&mut self.ahead)),
            }
        }
    }

    /// Sends TLS's own farewell and leaves the connection open, as CVE-2026-45185 needs it; what follows by
    /// [`Wire::send_below`] is cleartext.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn close_notify(&mut self) -> Result<()> {
        match &mut self.stream {
            Stream::Plain(_) => Err(Error::other("not inside TLS")),
            Stream::Tls(tls) => {
                tls.conn.send_close_notify();
                tls.flush()
            }
        }
    }

    /// Sends bytes to the socket itself, below TLS if there is any.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send_below(&mut self, bytes: &[u8]) -> Result<()> {
        self.tcp().write_all(bytes)
    }

    /// Ends our half of the connection.
    pub fn finish(&mut self) {
        let _ = self.tcp().shutdown(Shutdown::Write);
    }
}

/// Where the first reply in `bytes` ends, if all of it is there.
fn end_of_reply(bytes: &[u8]) -> Option<usize> {
    let mut start = 0;
    loop {
        let end = start + bytes[start..].windows(2).position(|pair| pair == b"\r\n")? + 2;
        if bytes.get(start + 3) != Some(&b'-') {
            return Some(end);
        }
        start = end;
    }
}

/// Base64 as SASL wants it.
pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}
