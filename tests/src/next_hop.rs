//! A next hop inside the test: it takes letters from the nodes, remembers each by the id in its `Message-ID` and the
//! SHA-256 of what the device had sent, and does at the end of the mail data whatever the test wants.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::load::{Digest, FIRST_FIELD, digest};

/// What a test does when a letter has arrived whole: its id, and the promise to send, which is counted as an arrival. A
/// promise that is not sent closes the connection.
pub type AtTheEnd = dyn Fn(&str, &mut dyn FnMut()) + Send + Sync;

/// Runs for as long as the process lives.
#[derive(Clone)]
pub struct NextHop(Arc<Shared>);

struct Shared {
    arrived: Mutex<BTreeMap<String, Vec<Digest>>>,
    /// Open connections by the name that greeted.
    open: Mutex<BTreeMap<String, usize>>,
    is_open: Mutex<bool>,
    opened: Condvar,
    at_the_end: Box<AtTheEnd>,
}

impl NextHop {
    /// Listens, and takes everything.
    pub fn start(addr: SocketAddr) -> Self {
        Self::start_with(addr, |_, promise| promise())
    }

    /// Listens, and does this at the end of each letter.
    pub fn start_with(addr: SocketAddr, at_the_end: impl Fn(&str, &mut dyn FnMut()) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(addr).unwrap();
        let shared = Arc::new(Shared {
            arrived: Mutex::default(),
            open: Mutex::default(),
            is_open: Mutex::new(true),
            opened: Condvar::new(),
            at_the_end: Box::new(at_the_end),
        });
        let hop = Self(Arc::clone(&shared));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let mut name = None;
                    // A node that is killed ends its connections in the middle.
                    let _ = converse(&shared, &stream, &mut name);
                    if let Some(name) = name {
                        *lock(&shared.open).entry(name).or_default() -= 1;
                    }
                });
            }
        });
        hop
    }

    /// Whether it greets. A next hop that does not leaves letters waiting in the spools.
    pub fn greets(&self, greets: bool) {
        *lock(&self.0.is_open) = greets;
        self.0.opened.notify_all();
    }

    /// How many connections a node has open: each carries one letter at a time.
    pub fn connections_of(&self, name: &str) -> usize {
        lock(&self.0.open).iter().filter(|(said, _)| said.starts_with(name)).map(|(_, count)| count).sum()
    }

    /// How often a letter arrived.
    pub fn arrivals(&self, id: &str) -> usize {
        lock(&self.0.arrived).get(id).map_or(0, Vec::len)
    }

    /// What arrived under each id.
    pub fn arrived(&self) -> BTreeMap<String, Vec<Digest>> {
        lock(&self.0.arrived).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn converse(shared: &Shared, stream: &TcpStream, name: &mut Option<String>) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = (BufReader::new(stream.try_clone()?), stream);
    {
        let mut is_open = lock(&shared.is_open);
        while !*is_open {
            is_open = shared.opened.wait_timeout(is_open, Duration::from_secs(1)).unwrap().0;
        }
    }
    writer.write_all(b"220 hop.example\r\n")?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        let verb = text.split(' ').next().unwrap_or_default().to_ascii_uppercase();
        match verb.as_str() {
            "EHLO" | "HELO" => {
                let said = text.split(' ').nth(1).unwrap_or_default().to_owned();
                if name.replace(said.clone()).is_none() {
                    *lock(&shared.open).entry(said).or_default() += 1;
                }
                writer.write_all(b"250-hop.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n")?;
            }
            "DATA" => {
                writer.write_all(b"354 go on\r\n")?;
                let letter = mail_data(&mut reader)?;
                let (id, sum) = known_by(&letter);
                let mut promised = false;
                (shared.at_the_end)(&id, &mut || {
                    // Counted before the node can know: what it was told is never more than what is known here.
                    lock(&shared.arrived).entry(id.clone()).or_default().push(sum);
                    promised = writer.write_all(b"250 2.0.0 taken\r\n").is_ok();
                });
                if !promised {
                    return Ok(());
                }
            }
            "QUIT" => return writer.write_all(b"221 2.0.0 bye\r\n"),
            _ => writer.write_all(b"250 2.0.0 ok\r\n")?,
        }
    }
}

/// The mail data, without the dots that were stuffed.
fn mail_data(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let (mut letter, mut line) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        match line.as_slice() {
            b".\r\n" => return Ok(letter),
            stuffed if stuffed.starts_with(b".") => letter.extend_from_slice(&stuffed[1..]),
            plain => letter.extend_from_slice(plain),
        }
    }
}

/// The id of a letter, and the digest from the first field that the device wrote to the end.
fn known_by(letter: &[u8]) -> (String, Digest) {
    let start = letter.windows(FIRST_FIELD.len()).position(|part| part == FIRST_FIELD.as_bytes()).unwrap_or(0);
    let own = &letter[start..];
    let first = own.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let id = String::from_utf8_lossy(&first[FIRST_FIELD.len().min(first.len())..]).trim().to_owned();
    (id, digest(own))
}
