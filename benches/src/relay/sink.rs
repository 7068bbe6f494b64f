//! Where the letters go: a server that counts them and keeps nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::wire::{end_of_data, line};

/// The header field by which a letter is known.
pub const NUMBER: &str = "X-Number: ";

/// What arrived.
#[derive(Debug)]
pub struct Arrivals {
    began: Instant,
    /// How often each letter came.
    times: Vec<AtomicU8>,
    distinct: AtomicU64,
    last_us: AtomicU64,
}

impl Arrivals {
    /// For letters numbered below `letters`.
    #[must_use]
    pub fn new(letters: usize) -> Self {
        Self {
            began: Instant::now(),
            times: (0..letters).map(|_| AtomicU8::new(0)).collect(),
            distinct: AtomicU64::new(0),
            last_us: AtomicU64::new(0),
        }
    }

    /// How many different letters came.
    #[must_use]
    pub fn distinct(&self) -> u64 {
        self.distinct.load(Ordering::Acquire)
    }

    /// How many came more than once.
    #[must_use]
    pub fn doubled(&self) -> u64 {
        self.times.iter().filter(|times| times.load(Ordering::Relaxed) > 1).count() as u64
    }

    /// When the last new one came.
    #[must_use]
    pub fn last(&self) -> Instant {
        self.began + std::time::Duration::from_micros(self.last_us.load(Ordering::Acquire))
    }

    fn count(&self, letter: &[u8]) {
        let Some(at) = memmem::find(letter, NUMBER.as_bytes()) else { return };
        let digits = letter[at + NUMBER.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        let number = digits.fold(0_usize, |number, digit| number * 10 + usize::from(digit - b'0'));
        let Some(times) = self.times.get(number) else { return };
        if times.fetch_add(1, Ordering::Relaxed) == 0 {
            let now = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.last_us.fetch_max(now, Ordering::AcqRel);
            self.distinct.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// A sink that lives as long as the runtime; each run gives it a new count.
#[derive(Clone)]
pub struct Sink {
    /// Where it listens.
    pub address: SocketAddr,
    arrivals: Arc<arc_swap::ArcSwap<Arrivals>>,
}

impl Sink {
    /// Listens on a free port.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let sink = Self {
            address: listener.local_addr()?,
            arrivals: Arc::new(arc_swap::ArcSwap::from_pointee(Arrivals::new(0))),
        };
        let this = sink.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let this = this.clone();
                tokio::spawn(async move { this.serve(tcp).await });
            }
        });
        Ok(sink)
    }

    /// Begins a new count.
    #[must_use]
    pub fn expect(&self, letters: usize) -> Arc<Arrivals> {
        let fresh = Arc::new(Arrivals::new(letters));
        self.arrivals.store(Arc::clone(&fresh));
        fresh
    }

    async fn serve(self, mut tcp: TcpStream) -> Option<()> {
        tcp.set_nodelay(true).ok()?;
        tcp.write_all(b"220 sink.example ESMTP\r\n").await.ok()?;
        let (mut held, mut answers, mut in_data, mut looked_at) = (Vec::with_capacity(16 << 10), Vec::new(), false, 0);
        loop {
            if tcp.read_buf(&mut held).await.ok()? == 0 {
                return None;
            }
            let mut done = 0;
            loop {
                let rest = &held[done..];
                if in_data {
                    // An empty letter is one line: the dot alone.
                    let Some((data, end)) = end_of_data(rest, looked_at) else {
                        looked_at = rest.len();
                        break;
                    };
                    self.arrivals.load().count(&rest[..data]);
                    answers.extend_from_slice(b"250 2.0.0 counted\r\n");
                    (in_data, looked_at, done) = (false, 0, done + data + end);
                    continue;
                }
                let Some(length) = line(rest) else { break };
                let verb = rest[..length].get(..4).unwrap_or_default().to_ascii_uppercase();
                done += length;
                answers.extend_from_slice(match verb.as_slice() {
                    b"EHLO" => b"250-sink.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 0\r\n".as_slice(),
                    b"DATA" => {
                        in_data = true;
                        b"354 go on\r\n"
                    }
                    b"QUIT" => b"221 2.0.0 bye\r\n",
                    _ => b"250 2.0.0 ok\r\n",
                });
                if verb == b"QUIT" {
                    tcp.write_all(&answers).await.ok()?;
                    return None;
                }
            }
            held.drain(..done);
            if !answers.is_empty() {
                tcp.write_all(&answers).await.ok()?;
                answers.clear();
            }
        }
    }
}
