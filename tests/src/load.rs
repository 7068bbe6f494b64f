//! Devices that send letters of every kind as fast as they are allowed to, and the book of what was promised: each id
//! with the SHA-256 of its letter, kept outside of the product. The book is matched with what the next hop got.

use std::collections::BTreeMap;
use std::io::Result;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::dice::Dice;
use crate::next_hop::NextHop;
use crate::wire::Wire;

/// SHA-256.
pub type Digest = [u8; 32];

/// The first field of every letter; its value is the id.
pub const FIRST_FIELD: &str = "X-Ledger: ";
/// Below this, letters a second, a run says nothing.
pub const LETTERS_PER_SECOND: f64 = 50.0;

/// The SHA-256 of these bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().try_into().unwrap()
}

/// What was promised, and what was not.
#[derive(Default)]
pub struct Book {
    promised: Mutex<BTreeMap<String, Digest>>,
    /// Replies other than `250` to the mail data, and how often.
    refused: Mutex<BTreeMap<String, usize>>,
    broken: AtomicUsize,
}

/// How the book compares with what arrived.
#[derive(Debug, Default)]
pub struct Account {
    pub promised: usize,
    /// Promised, and not arrived.
    pub lost: Vec<String>,
    /// Arrived, and not as they were promised.
    pub altered: Vec<String>,
    /// How often letters arrived beyond once.
    pub duplicates: usize,
    /// The most that one letter arrived.
    pub most: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Book {
    pub fn promised(&self) -> usize {
        lock(&self.promised).len()
    }

    pub fn promise(&self, id: &str, sum: Digest) {
        assert!(lock(&self.promised).insert(id.to_owned(), sum).is_none(), "{id} was sent twice");
    }

    /// Every reply that was not a promise, with its count.
    pub fn refusals(&self) -> BTreeMap<String, usize> {
        lock(&self.refused).clone()
    }

    pub fn broken(&self) -> usize {
        self.broken.load(Ordering::SeqCst)
    }

    /// Compares it with what arrived so far.
    pub fn account(&self, hop: &NextHop) -> Account {
        let (promised, arrived) = (lock(&self.promised).clone(), hop.arrived());
        let mut account = Account { promised: promised.len(), ..Account::default() };
        for (id, sum) in promised {
            let copies = arrived.get(&id).map(Vec::as_slice).unwrap_or_default();
            if copies.is_empty() {
                account.lost.push(id);
            } else if copies.iter().any(|copy| *copy != sum) {
                account.altered.push(id);
            }
        }
        account.duplicates = arrived.values().map(|copies| copies.len().saturating_sub(1)).sum();
        account.most = arrived.values().map(Vec::len).max().unwrap_or(0);
        account
    }

    /// Waits until everything promised has arrived, or nothing more has for `quiet`: what is missing then is lost.
    pub fn settle(&self, hop: &NextHop, quiet: Duration) -> Account {
        let (mut missing, mut since) = (usize::MAX, Instant::now());
        loop {
            let account = self.account(hop);
            if account.lost.len() < missing {
                (missing, since) = (account.lost.len(), Instant::now());
            }
            if missing == 0 || since.elapsed() > quiet {
                return account;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Account {
    /// Nothing lost, nothing altered.
    #[track_caller]
    pub fn demand_whole(&self) {
        let some = |ids: &[String]| ids.iter().take(5).cloned().collect::<Vec<_>>();
        assert!(self.lost.is_empty(), "LOST {} of {}: {:?} …", self.lost.len(), self.promised, some(&self.lost));
        assert!(self.altered.is_empty(), "ALTERED {}: {:?} …", self.altered.len(), some(&self.altered));
    }
}

/// How a letter is handed over.
#[derive(Clone, Copy, Debug)]
enum Manner {
    OneByOne,
    Pipelined,
    Chunked,
}

/// Devices.
pub struct Load<'a> {
    pub target: SocketAddr,
    pub book: &'a Book,
    /// Every id begins with this.
    pub prefix: &'a str,
    /// Each connection waits so long after each letter.
    pub pace: Duration,
    /// The size of every letter; none: of every size.
    pub bytes: Option<usize>,
    pub seed: u64,
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

impl Load<'_> {
    /// So many devices at once send until `stop`. A connection that ends is opened again.
    pub fn run(&self, devices: u64, stop: &AtomicBool) {
        std::thread::scope(|scope| {
            for device in 0..devices {
                scope.spawn(move || {
                    let mut dice = Dice::new(self.seed.wrapping_add(device));
                    while !stop.load(Ordering::SeqCst) {
                        if self.session(device, &mut dice, stop).is_err() {
                            self.book.broken.fetch_add(1, Ordering::SeqCst);
                            std::thread::sleep(Duration::from_millis(20));
                        }
                    }
                });
            }
        });
    }

    /// So many letters over one connection.
    ///
    /// # Errors
    /// When the connection ends before.
    pub fn send(&self, letters: usize) -> Result<()> {
        let mut dice = Dice::new(self.seed);
        let mut wire = self.greeted(0)?;
        (0..letters).try_for_each(|_| self.letter(&mut wire, &mut dice))
    }

    fn greeted(&self, device: u64) -> Result<Wire> {
        let mut wire = Wire::connect(format!("127.0.31.{}", 1 + device % 250).parse().unwrap(), self.target)?;
        self.expect(&mut wire, "220")?;
        wire.send("EHLO device.example\r\n")?;
        self.expect(&mut wire, "250")?;
        Ok(wire)
    }

    /// Reads a reply; one that is not the wanted one goes into the book.
    fn expect(&self, wire: &mut Wire, wanted: &str) -> Result<()> {
        let reply = wire.reply()?;
        if reply.starts_with(wanted) {
            return Ok(());
        }
        // Without the name of the session that some replies end with.
        let known = reply.split(" [").next().unwrap_or_default().to_owned();
        *lock(&self.book.refused).entry(known).or_default() += 1;
        Err(std::io::Error::other(reply))
    }

    fn session(&self, device: u64, dice: &mut Dice, stop: &AtomicBool) -> Result<()> {
        let mut wire = self.greeted(device)?;
        for _ in 0..1 + dice.roll(8) {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            self.letter(&mut wire, dice)?;
            std::thread::sleep(self.pace);
        }
        wire.send("QUIT\r\n")
    }

    fn letter(&self, wire: &mut Wire, dice: &mut Dice) -> Result<()> {
        let id = format!("{}-{:07}", self.prefix, NUMBER.fetch_add(1, Ordering::SeqCst));
        let letter = letter(&id, self.bytes.unwrap_or_else(|| size(dice)));
        let sum = digest(&letter);
        let lines = ["MAIL FROM:<scan@corp.example>\r\n", "RCPT TO:<x@partner.example>\r\n", "DATA\r\n"];
        let steps = [(lines[0], "250"), (lines[1], "250"), (lines[2], "354")];
        let manner = *dice.one_of(&[Manner::OneByOne, Manner::Pipelined, Manner::Chunked]);
        match manner {
            Manner::OneByOne => {
                for (line, wanted) in steps {
                    wire.send(line)?;
                    self.expect(wire, wanted)?;
                }
            }
            Manner::Pipelined => {
                wire.send(lines.concat())?;
                steps.iter().try_for_each(|(_, wanted)| self.expect(wire, wanted))?;
            }
            Manner::Chunked => {
                for (line, wanted) in &steps[..2] {
                    wire.send(line)?;
                    self.expect(wire, wanted)?;
                }
            }
        }
        match manner {
            // No line of a letter begins with a dot.
            Manner::OneByOne | Manner::Pipelined => wire.send(&letter).and_then(|()| wire.send(".\r\n"))?,
            Manner::Chunked => {
                let (first, rest) = letter.split_at(letter.len() / 3);
                wire.send(format!("BDAT {}\r\n", first.len()))?;
                wire.send(first)?;
                self.expect(wire, "250")?;
                wire.send(format!("BDAT {} LAST\r\n", rest.len())).and_then(|()| wire.send(rest))?;
            }
        }
        self.expect(wire, "250")?;
        self.book.promise(&id, sum);
        Ok(())
    }
}

/// A size as letters have them: most small, some as large as scans, a few past every limit at which the spool does
/// something else.
fn size(dice: &mut Dice) -> usize {
    match dice.roll(100) {
        0..70 => 200 + dice.roll(3_000) as usize,
        70..92 => 4_000 + dice.roll(60_000) as usize,
        92..99 => 200_000 + dice.roll(400_000) as usize,
        _ => 1_200_000 + dice.roll(1_000_000) as usize,
    }
}

/// A letter of about so many bytes that no other is like.
pub fn letter(id: &str, bytes: usize) -> Vec<u8> {
    let mut letter = format!(
        "{FIRST_FIELD}{id}\r\nFrom: <scan@corp.example>\r\nTo: <x@partner.example>\r\n\
         Date: Wed, 25 Nov 2026 12:00:00 +0000\r\nMessage-ID: <{id}@device.example>\r\nSubject: {id}\r\n\r\n"
    )
    .into_bytes();
    let mut line = 0;
    while letter.len() < bytes {
        letter.extend_from_slice(format!("{id} {line:08} {}\r\n", "x".repeat(50)).as_bytes());
        line += 1;
    }
    letter
}
