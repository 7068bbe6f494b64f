//! What devices do through a proxy, and how long it takes.

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// One connection: from the first SYN until the banner is here.
///
/// # Errors
/// When it is refused or closed.
pub async fn greeted(to: SocketAddr, from: Option<SocketAddr>) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(from) = from {
        socket.bind(from)?;
    }
    let mut tcp = socket.connect(to).await?;
    tcp.set_nodelay(true)?;
    line(&mut tcp).await?;
    Ok(tcp)
}

async fn line(tcp: &mut TcpStream) -> Result<()> {
    let mut held = [0; 128];
    loop {
        let count = tcp.read(&mut held).await?;
        if count == 0 {
            return Err(Error::other("closed without an answer"));
        }
        if held[..count].contains(&b'\n') {
            return Ok(());
        }
    }
}

/// Connections one after another in each of `at_once` places, for a while. Answers how many, and the sorted times from
/// connect to banner.
///
/// # Errors
/// The first that fails.
pub async fn connections(to: SocketAddr, at_once: usize, time: Duration) -> Result<(u64, Vec<Duration>)> {
    let until = Instant::now() + time;
    let mut places = Vec::new();
    for _ in 0..at_once {
        places.push(tokio::spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < until {
                let began = Instant::now();
                let mut tcp = greeted(to, None).await?;
                times.push(began.elapsed());
                tcp.write_all(b"QUIT\r\n").await?;
                line(&mut tcp).await?;
                // The server closes first, as after every QUIT.
                let _ = tcp.read(&mut [0; 16]).await;
            }
            Ok::<_, Error>(times)
        }));
    }
    let mut all = Vec::new();
    for place in places {
        all.extend(place.await.map_err(Error::other)??);
    }
    all.sort_unstable();
    Ok((all.len() as u64, all))
}

/// Streams in `at_once` connections for a while. Answers the octets.
///
/// # Errors
/// The first that fails.
pub async fn streams(to: SocketAddr, at_once: usize, time: Duration) -> Result<u64> {
    let sent = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + time;
    let mut all = Vec::new();
    for _ in 0..at_once {
        let sent = Arc::clone(&sent);
        all.push(tokio::spawn(async move {
            let mut tcp = greeted(to, None).await?;
            tcp.write_all(b"TAKE\r\n").await?;
            let block = vec![b'x'; 1 << 20];
            while Instant::now() < until {
                tcp.write_all(&block).await?;
                sent.fetch_add(block.len() as u64, Ordering::Relaxed);
            }
            tcp.shutdown().await?;
            line(&mut tcp).await
        }));
    }
    for one in all {
        one.await.map_err(Error::other)??;
    }
    Ok(sent.load(Ordering::Relaxed))
}

/// 64 octets there and back, so many times on one connection. Answers the sorted times.
///
/// # Errors
/// When the connection ends.
pub async fn round_trips(to: SocketAddr, count: usize) -> Result<Vec<Duration>> {
    let mut tcp = greeted(to, None).await?;
    tcp.write_all(b"ECHO\r\n").await?;
    let mut held = [b'x'; 64];
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        tcp.write_all(&held).await?;
        tcp.read_exact(&mut held).await?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

/// Opens so many connections and keeps them after the banner.
///
/// # Errors
/// The first that fails.
pub async fn held(to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        all.push(greeted(to, None).await?);
    }
    Ok(all)
}

/// The time below which this share was.
#[must_use]
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}
