//! The server behind the proxies. It skips a PROXY header (v1 or v2), greets, and answers lines: `EHLO`, `QUIT`,
//! `ECHO` (every octet comes back) and `TAKE` (octets are swallowed until the device ends its half).

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// First twelve octets of a v2 header (HAProxy's `doc/proxy-protocol.txt` §2.2).
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A server that runs until it is killed.
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    task: AbortHandle,
}

impl Backend {
    /// Listens on `address`; port 0 is any free one. With `owes_header`, a PROXY header comes first.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn start(address: SocketAddr, owes_header: bool) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(serve(tcp, owes_header));
            }
        });
        Ok(Self { address, task: task.abort_handle() })
    }

    /// Listens no more; what is open goes on.
    pub fn kill(&self) {
        self.task.abort();
    }
}

async fn header(tcp: &mut TcpStream) -> Option<()> {
    let mut first = [0; 16];
    tcp.read_exact(&mut first).await.ok()?;
    if first.starts_with(SIGNATURE) {
        let mut rest = vec![0; usize::from(u16::from_be_bytes([first[14], first[15]]))];
        tcp.read_exact(&mut rest).await.ok()?;
        return Some(());
    }
    // v1 is a line; its shortest, `PROXY UNKNOWN`, is as long as what was read already or one octet shorter.
    let mut last = first[15];
    while last != b'\n' {
        last = tcp.read_u8().await.ok()?;
    }
    Some(())
}

async fn serve(mut tcp: TcpStream, owes_header: bool) -> Option<()> {
    tcp.set_nodelay(true).ok()?;
    if owes_header {
        header(&mut tcp).await?;
    }
    tcp.write_all(b"220 backend.example ESMTP\r\n").await.ok()?;
    // Small until more is needed: thousands of these lie idle.
    let mut line = Vec::new();
    loop {
        line.clear();
        loop {
            let byte = tcp.read_u8().await.ok()?;
            if byte == b'\n' {
                break;
            }
            line.push(byte);
        }
        match line.get(..4) {
            Some(b"QUIT") => {
                tcp.write_all(b"221 2.0.0 bye\r\n").await.ok()?;
                return None;
            }
            Some(b"ECHO") => {
                let mut held = [0; 4096];
                loop {
                    let count = tcp.read(&mut held).await.ok()?;
                    if count == 0 {
                        return None;
                    }
                    tcp.write_all(&held[..count]).await.ok()?;
                }
            }
            Some(b"TAKE") => {
                let mut held = vec![0; 1 << 20];
                while tcp.read(&mut held).await.ok()? > 0 {}
                tcp.write_all(b"250 2.0.0 taken\r\n").await.ok()?;
                return None;
            }
            _ => tcp.write_all(b"250 2.0.0 backend.example\r\n").await.ok()?,
        }
    }
}
