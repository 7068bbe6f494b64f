//! The bare durable relay: one log, one sync shared by all that wait, `250` after it, pipelined delivery. No policy, no
//! retry, no restart. What a relay can reach at most with the same promise.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::wire::{end_of_data, line};

/// Connections to the next hop.
const FORWARDERS: usize = 20;
/// Letters of one sync at most.
const ROUND_MAX: usize = 1024;

struct Letter {
    data: Vec<u8>,
    durable: oneshot::Sender<()>,
}

/// Serves until it is killed.
///
/// # Errors
/// When the socket or the log cannot be had.
pub async fn serve(listen: SocketAddr, to: SocketAddr, log: &Path) -> std::io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let file = File::create(log)?;
    let (to_log, letters) = channel::<Letter>();
    let (to_forward, forward) = tokio::sync::mpsc::unbounded_channel::<Vec<u8>>();
    std::thread::spawn(move || commit(file, &letters, &to_forward));
    let forward = Arc::new(tokio::sync::Mutex::new(forward));
    for _ in 0..FORWARDERS {
        let forward = Arc::clone(&forward);
        tokio::spawn(async move { deliver(to, &forward).await });
    }
    loop {
        let (tcp, _) = listener.accept().await?;
        let to_log = to_log.clone();
        tokio::spawn(async move { receive(tcp, &to_log).await });
    }
}

/// Writes and syncs what waits, all of it at once.
fn commit(mut file: File, letters: &Receiver<Letter>, forward: &tokio::sync::mpsc::UnboundedSender<Vec<u8>>) {
    while let Ok(first) = letters.recv() {
        let mut round = vec![first];
        round.extend(letters.try_iter().take(ROUND_MAX - 1));
        let bytes: Vec<u8> = round.iter().flat_map(|letter| letter.data.iter().copied()).collect();
        if file.write_all(&bytes).and_then(|()| file.sync_data()).is_err() {
            return;
        }
        for letter in round {
            let _ = letter.durable.send(());
            let _ = forward.send(letter.data);
        }
    }
}

async fn receive(mut tcp: TcpStream, to_log: &Sender<Letter>) -> Option<()> {
    tcp.set_nodelay(true).ok()?;
    tcp.write_all(b"220 reference.example ESMTP\r\n").await.ok()?;
    let (mut held, mut answers, mut in_data, mut looked_at) = (Vec::with_capacity(16 << 10), Vec::new(), false, 0);
    loop {
        if tcp.read_buf(&mut held).await.ok()? == 0 {
            return None;
        }
        let mut done = 0;
        loop {
            let rest = &held[done..];
            if in_data {
                let Some((data, end)) = end_of_data(rest, looked_at) else {
                    looked_at = rest.len();
                    break;
                };
                let (durable, wait) = oneshot::channel();
                to_log.send(Letter { data: rest[..data].to_vec(), durable }).ok()?;
                wait.await.ok()?;
                answers.extend_from_slice(b"250 2.6.0 queued\r\n");
                (in_data, looked_at, done) = (false, 0, done + data + end);
                continue;
            }
            let Some(length) = line(rest) else { break };
            let verb = rest[..length].get(..4).unwrap_or_default().to_ascii_uppercase();
            done += length;
            answers.extend_from_slice(match verb.as_slice() {
                b"EHLO" => b"250-reference.example\r\n250 PIPELINING\r\n".as_slice(),
                b"DATA" => {
                    in_data = true;
                    b"354 go on\r\n"
                }
                b"QUIT" => return None,
                _ => b"250 2.0.0 ok\r\n",
            });
        }
        held.drain(..done);
        if !answers.is_empty() {
            tcp.write_all(&answers).await.ok()?;
            answers.clear();
        }
    }
}

async fn deliver(
    to: SocketAddr,
    forward: &tokio::sync::Mutex<tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>>,
) -> Option<()> {
    let mut tcp = TcpStream::connect(to).await.ok()?;
    tcp.set_nodelay(true).ok()?;
    let mut held = Vec::new();
    hear(&mut tcp, &mut held, 1).await?;
    tcp.write_all(b"EHLO reference.example\r\n").await.ok()?;
    hear(&mut tcp, &mut held, 1).await?;
    loop {
        let letter = forward.lock().await.recv().await?;
        tcp.write_all(b"MAIL FROM:<a@corp.example>\r\nRCPT TO:<b@partner.example>\r\nDATA\r\n").await.ok()?;
        hear(&mut tcp, &mut held, 3).await?;
        tcp.write_all(&[&letter, b".\r\n".as_slice()].concat()).await.ok()?;
        hear(&mut tcp, &mut held, 1).await?;
    }
}

async fn hear(tcp: &mut TcpStream, held: &mut Vec<u8>, mut replies: usize) -> Option<()> {
    loop {
        while let Some(length) = line(held) {
            let is_last = held.get(3) != Some(&b'-');
            held.drain(..length);
            replies -= usize::from(is_last);
            if replies == 0 {
                return Some(());
            }
        }
        if tcp.read_buf(held).await.ok()? == 0 {
            return None;
        }
    }
}
