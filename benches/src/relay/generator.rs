//! Devices: so many connections, each with so many letters, as fast as they are taken or at a steady rate.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use memchr::memchr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::sink::NUMBER;

/// What is sent.
#[derive(Clone, Debug)]
pub struct Load {
    /// Open at once.
    pub connections: usize,
    /// In all.
    pub letters: usize,
    /// On one connection, before it is closed and the next is opened.
    pub per_connection: usize,
    /// Octets of a letter's body.
    pub size: usize,
    /// Says `STARTTLS` first.
    pub starttls: bool,
    /// Letters a second over all connections; none: as many as are taken.
    pub rate: Option<f64>,
}

/// What was heard.
#[derive(Debug)]
pub struct Heard {
    /// Letters answered `250`.
    pub accepted: u64,
    /// When the first connection was opened.
    pub began: Instant,
    /// When the last letter was answered.
    pub ended: Instant,
    /// From `MAIL` to the last `250`, sorted.
    pub latencies: Vec<Duration>,
}

impl Heard {
    /// The latency below which this share of the letters was.
    #[must_use]
    pub fn percentile(&self, share: f64) -> Duration {
        let at = (self.latencies.len() as f64 * share) as usize;
        self.latencies.get(at.min(self.latencies.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// Sends it all.
///
/// # Errors
/// The first connection that fails ends the run: a measurement with refusals measures something else.
pub async fn send(load: &Load, to: SocketAddr, tls: &TlsConnector) -> Result<Heard> {
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let mut devices = Vec::new();
    for _ in 0..load.connections {
        let (load, next, tls) = (load.clone(), Arc::clone(&next), tls.clone());
        devices.push(tokio::spawn(async move { device(&load, to, &tls, &next, began).await }));
    }
    let mut latencies = Vec::with_capacity(load.letters);
    for one in devices {
        latencies.extend(one.await.map_err(Error::other)??);
    }
    let ended = Instant::now();
    latencies.sort_unstable();
    Ok(Heard { accepted: latencies.len() as u64, began, ended, latencies })
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

async fn device(
    load: &Load,
    to: SocketAddr,
    tls: &TlsConnector,
    next: &AtomicUsize,
    began: Instant,
) -> Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    let body = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n".repeat(load.size.div_ceil(64));
    loop {
        let first = next.fetch_add(load.per_connection, Ordering::Relaxed);
        if first >= load.letters {
            return Ok(latencies);
        }
        let tcp = TcpStream::connect(to).await?;
        tcp.set_nodelay(true)?;
        let mut heard = Vec::new();
        let mut wire: Box<dyn Stream> = Box::new(tcp);
        replies(&mut wire, &mut heard, 1, b"220").await?;
        wire.write_all(b"EHLO device.example\r\n").await?;
        replies(&mut wire, &mut heard, 1, b"250").await?;
        if load.starttls {
            wire.write_all(b"STARTTLS\r\n").await?;
            replies(&mut wire, &mut heard, 1, b"220").await?;
            let name = rustls::pki_types::ServerName::try_from("localhost").map_err(Error::other)?;
            wire = Box::new(tls.connect(name, wire).await?);
            wire.write_all(b"EHLO device.example\r\n").await?;
            replies(&mut wire, &mut heard, 1, b"250").await?;
        }
        for number in first..(first + load.per_connection).min(load.letters) {
            if let Some(rate) = load.rate {
                let due = began + Duration::from_secs_f64(number as f64 / rate);
                tokio::time::sleep_until(due.into()).await;
            }
            let at = Instant::now();
            let envelope = b"MAIL FROM:<a@corp.example>\r\nRCPT TO:<b@partner.example>\r\nDATA\r\n";
            wire.write_all(envelope).await?;
            replies(&mut wire, &mut heard, 3, b"250").await?;
            let letter = format!("From: <a@corp.example>\r\nSubject: x\r\n{NUMBER}{number}\r\n\r\n{body}.\r\n");
            wire.write_all(letter.as_bytes()).await?;
            replies(&mut wire, &mut heard, 1, b"250").await?;
            latencies.push(at.elapsed());
        }
        wire.write_all(b"QUIT\r\n").await?;
        // The relay's farewell is not waited for by devices either.
    }
}

/// Reads so many replies; each must begin with `code`, or be `354`.
async fn replies(wire: &mut Box<dyn Stream>, heard: &mut Vec<u8>, mut wanted: usize, code: &[u8]) -> Result<()> {
    while wanted > 0 {
        while let Some(end) = memchr(b'\n', heard) {
            let line = &heard[..end];
            let is_last = line.get(3) != Some(&b'-');
            if !(line.starts_with(code) || line.starts_with(b"354")) {
                return Err(Error::other(format!("was told {:?}", String::from_utf8_lossy(line))));
            }
            heard.drain(..=end);
            if is_last {
                wanted -= 1;
                if wanted == 0 {
                    return Ok(());
                }
            }
        }
        if wire.read_buf(heard).await? == 0 {
            return Err(Error::new(ErrorKind::UnexpectedEof, "the relay closed"));
        }
    }
    Ok(())
}
