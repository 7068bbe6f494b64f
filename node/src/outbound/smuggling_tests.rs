//! What leaves on the wire, byte by byte: a relay is the sending half of SMTP smuggling, so whatever a letter holds, a
//! next hop sees exactly one end of mail data, and no bare CR, bare LF or NUL at all.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::tests::{outbound, route};
use super::*;
use crate::connector::SendTls;
use crate::shutdown::Scope;

/// Bodies by DATA; the property of the encoder beside it has as many again.
const LETTERS: usize = 10_000;
/// Bodies in chunks.
const CHUNKED: usize = 2_000;

/// A next hop that keeps what it hears, and answers as little as it can.
async fn recorder(scope: &Scope, ehlo: &'static str) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, heard) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<u8>>>::default());
    let (within, record) = (scope.clone(), Arc::clone(&heard));
    scope.spawn_until_ended(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let record = Arc::clone(&record);
            within.spawn_until_ended(async move {
                stream.write_all(b"220 recorder\r\n").await.unwrap();
                let mut ear = Ear { ehlo, ..Ear::default() };
                let mut buffer = [0; 16 * 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    record.lock().unwrap().extend_from_slice(&buffer[..count]);
                    let answers = ear.hear(&buffer[..count]);
                    if stream.write_all(answers.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (addr, heard)
}

/// Follows a conversation, written from the RFCs and from nothing else.
#[derive(Default)]
struct Ear {
    ehlo: &'static str,
    pending: Vec<u8>,
    in_data: bool,
}

impl Ear {
    fn hear(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut answers = String::new();
        loop {
            if self.in_data {
                let end = match self.pending.starts_with(b".\r\n") {
                    true => Some(0),
                    false => self.pending.windows(5).position(|five| five == b"\r\n.\r\n").map(|at| at + 2),
                };
                let Some(end) = end else { return answers };
                self.pending.drain(..end + 3);
                self.in_data = false;
                answers.push_str("250 kept\r\n");
                continue;
            }
            let Some(end) = self.pending.windows(2).position(|two| two == b"\r\n") else { return answers };
            let line = String::from_utf8_lossy(&self.pending[..end]).into_owned();
            if let Some(rest) = line.strip_prefix("BDAT ") {
                let length: usize = rest.split(' ').next().unwrap().parse().unwrap();
                if self.pending.len() < end + 2 + length {
                    return answers;
                }
                self.pending.drain(..end + 2 + length);
                answers.push_str("250 kept\r\n");
                continue;
            }
            self.pending.drain(..end + 2);
            match line.get(..4) {
                Some("EHLO") => answers.push_str(&format!("{}\r\n", self.ehlo)),
                Some("DATA") => {
                    self.in_data = true;
                    answers.push_str("354 go\r\n");
                }
                Some("QUIT") => answers.push_str("221 bye\r\n"),
                _ => answers.push_str("250 ok\r\n"),
            }
        }
    }
}

struct Pieces(Vec<Vec<u8>>);

impl BodySource for Pieces {
    async fn next_piece(&mut self) -> Result<Option<Vec<u8>>, String> {
        Ok(self.0.pop())
    }
}

/// Bytes in which everything that ends mail data somewhere in the world is likely.
fn body(random: &mut StdRng) -> Vec<u8> {
    const ENDS: [&[u8]; 14] = [
        b"\n.\n",
        b"\r.\r",
        b"\r.\n",
        b"\n.\r",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r.\r\n",
        b"\r\n.\r",
        b"\r\n\0.\r\n",
        b"\r\n.\0\r\n",
        b"\r\n.\r\r\n",
        b"\r\r\n.\r\r\n",
        b"\r\n.\r\nMAIL FROM:<admin@corp.example>\r\nRCPT TO:<victim@x.example>\r\nDATA\r\n",
        b"\n.\nBDAT 3 LAST\r\n...",
    ];
    let mut body = Vec::new();
    for _ in 0..random.random_range(0..12) {
        match random.random_range(0..4) {
            0 => body.extend_from_slice(ENDS[random.random_range(0..ENDS.len())]),
            1 => body.extend_from_slice(b"an ordinary line\r\n"),
            2 => body.extend((0..random.random_range(0..20)).map(|_| b"\r\n.\0a"[random.random_range(0..5)])),
            _ => body.extend((0..random.random_range(0..20)).map(|_| random.random::<u8>())),
        }
    }
    body
}

/// What should arrive.
fn cleaned(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, &byte) in body.iter().enumerate() {
        let right = match byte {
            b'\r' => body.get(at + 1) == Some(&b'\n'),
            b'\n' => at > 0 && body[at - 1] == b'\r',
            0 => false,
            _ => true,
        };
        out.push(if right { byte } else { b' ' });
    }
    if !out.is_empty() && !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Every letter of a recorded conversation.
fn letters(mut heard: &[u8]) -> Vec<Vec<u8>> {
    let (mut letters, mut chunks) = (Vec::new(), Vec::new());
    while !heard.is_empty() {
        let end = heard.windows(2).position(|two| two == b"\r\n").unwrap();
        let line = String::from_utf8_lossy(&heard[..end]).into_owned();
        heard = &heard[end + 2..];
        if line == "DATA" {
            let mut letter = Vec::new();
            loop {
                let end = heard.windows(2).position(|two| two == b"\r\n").unwrap();
                let data = &heard[..end];
                heard = &heard[end + 2..];
                if data == b"." {
                    break;
                }
                letter.extend_from_slice(data.strip_prefix(b".").unwrap_or(data));
                letter.extend_from_slice(b"\r\n");
            }
            letters.push(letter);
        } else if let Some(rest) = line.strip_prefix("BDAT ") {
            let length: usize = rest.split(' ').next().unwrap().parse().unwrap();
            chunks.extend_from_slice(&heard[..length]);
            heard = &heard[length..];
            if rest.ends_with(" LAST") {
                letters.push(std::mem::take(&mut chunks));
            }
        }
    }
    letters
}

async fn through(ehlo: &'static str, count: usize, seed: u64) {
    let scope = Scope::new();
    let (addr, heard) = recorder(&scope, ehlo).await;
    let outbound = outbound(None);
    let mut random = StdRng::seed_from_u64(seed);
    println!("seed {seed:#x}, {count} bodies");
    let mut connection = outbound.connect(&route(&[addr], SendTls::Off), None).await.unwrap();
    let mut expected = Vec::new();
    for _ in 0..count {
        let body = body(&mut random);
        expected.push(cleaned(&body));
        // Cut anywhere: a CR and its LF often come in different pieces.
        let cut = random.random_range(0..=body.len());
        let pieces = Pieces(vec![body[cut..].to_vec(), body[..cut].to_vec()]);
        let transaction = Transaction {
            reverse_path: "a@corp.example".to_owned(),
            recipients: vec!["b@x.example".to_owned()],
            size: body.len() as u64,
            eight_bit: true,
            utf8_header: false,
            dsn_mail: String::new(),
            dsn_recipients: Vec::new(),
        };
        let mut pieces = pieces;
        let sent = connection.send(transaction, &mut pieces).await;
        assert!(matches!(sent.outcomes[..], [Outcome::Delivered { .. }]), "{sent:?}");
    }
    connection.quit().await;
    let heard = std::mem::take(&mut *heard.lock().unwrap());
    for (at, &byte) in heard.iter().enumerate() {
        assert_ne!(byte, 0, "a NUL at {at}");
        assert!(byte != b'\r' || heard.get(at + 1) == Some(&b'\n'), "a bare CR at {at}");
        assert!(byte != b'\n' || (at > 0 && heard[at - 1] == b'\r'), "a bare LF at {at}");
    }
    let arrived = letters(&heard);
    assert_eq!(arrived.len(), count, "as many letters as were sent, whatever was in them");
    assert!(arrived == expected, "each as it was sent");
    scope.end();
}

#[tokio::test]
async fn ten_thousand_hostile_bodies_leave_as_one_letter_each() {
    through("250-recorder\r\n250-PIPELINING\r\n250 8BITMIME", LETTERS, 0x5311_1551).await;
}

#[tokio::test]
async fn hostile_bodies_in_chunks_leave_as_one_letter_each() {
    through("250-recorder\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 8BITMIME", CHUNKED, 0x00C4_0C15).await;
}
