//! A name server on loopback that says whatever it is told, byte by byte: packets are made by hand here, so that no
//! library's idea of a valid answer stands between the test and the resolver.
#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use crate::shutdown::Scope;

pub(super) const A: u16 = 1;
pub(super) const CNAME: u16 = 5;
pub(super) const SOA: u16 = 6;
pub(super) const MX: u16 = 15;
pub(super) const AAAA: u16 = 28;

pub(super) const NOERROR: u8 = 0;
pub(super) const FORMERR: u8 = 1;
pub(super) const SERVFAIL: u8 = 2;
pub(super) const NXDOMAIN: u8 = 3;
pub(super) const NOTIMP: u8 = 4;
pub(super) const REFUSED: u8 = 5;

/// What was asked.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) id: u16,
    pub(super) name: String,
    pub(super) kind: u16,
    /// The question section as it came, so that an answer repeats its upper and lower case.
    question: Vec<u8>,
    pub(super) tcp: bool,
}

/// Answers with any number of packets, in order.
pub(super) type Script = Arc<dyn Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync>;

/// A running stub.
#[derive(Clone)]
pub(super) struct Stub {
    pub(super) addr: SocketAddr,
    pub(super) asked: Arc<Mutex<Vec<Asked>>>,
}

impl Stub {
    pub(super) async fn start(scope: &Scope, script: Script) -> Self {
        // UDP and TCP on one port: the first that is free on both.
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let stub = Self { addr: udp.local_addr().unwrap(), asked: Arc::default() };
        let (log, say) = (Arc::clone(&stub.asked), Arc::clone(&script));
        scope.spawn_until_ended(async move {
            let mut buffer = [0; 1500];
            loop {
                let Ok((count, from)) = udp.recv_from(&mut buffer).await else { continue };
                let Some(asked) = parse(&buffer[..count], false) else { continue };
                log.lock().unwrap().push(asked.clone());
                for packet in say(&asked) {
                    udp.send_to(&packet, from).await.ok();
                }
            }
        });
        let log = Arc::clone(&stub.asked);
        let within = scope.clone();
        scope.spawn_until_ended(async move {
            loop {
                let Ok((mut stream, _)) = tcp.accept().await else { continue };
                let (log, say) = (Arc::clone(&log), Arc::clone(&script));
                within.spawn_until_ended(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut packet = vec![0; usize::from(length)];
                        if stream.read_exact(&mut packet).await.is_err() {
                            return;
                        }
                        let Some(asked) = parse(&packet, true) else { return };
                        log.lock().unwrap().push(asked.clone());
                        let answers = say(&asked);
                        if answers.is_empty() {
                            return;
                        }
                        for answer in answers {
                            let length = u16::try_from(answer.len()).unwrap_or(u16::MAX);
                            let framed = [&length.to_be_bytes()[..], &answer].concat();
                            stream.write_all(&framed).await.ok();
                        }
                    }
                });
            }
        });
        stub
    }
}

fn parse(packet: &[u8], tcp: bool) -> Option<Asked> {
    let id = u16::from_be_bytes([*packet.first()?, *packet.get(1)?]);
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(packet.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]);
    let question = packet.get(12..at + 4)?.to_vec();
    Some(Asked { id, name: labels.join("."), kind, question, tcp })
}

/// A packet in the making.
#[derive(Clone)]
pub(super) struct Packet {
    pub(super) id: u16,
    /// QR, opcode, AA, TC, RD and RA, Z, RCODE.
    pub(super) flags: u16,
    pub(super) question: Vec<u8>,
    pub(super) answers: Vec<Vec<u8>>,
    pub(super) authority: Vec<Vec<u8>>,
    /// Says another number of answers than there are.
    pub(super) answers_said: Option<u16>,
}

impl Packet {
    /// A proper answer to `asked`.
    pub(super) fn to(asked: &Asked, code: u8, answers: Vec<Vec<u8>>) -> Self {
        let authority = if answers.is_empty() && matches!(code, NOERROR | NXDOMAIN) { vec![soa()] } else { vec![] };
        Self {
            id: asked.id,
            flags: 0x8180 | u16::from(code),
            question: asked.question.clone(),
            answers,
            authority,
            answers_said: None,
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let count = |list: &Vec<Vec<u8>>| u16::try_from(list.len()).unwrap_or(u16::MAX);
        let said = self.answers_said.unwrap_or_else(|| count(&self.answers));
        let mut out = Vec::new();
        for field in [self.id, self.flags, 1, said, count(&self.authority), 0] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        out.extend_from_slice(&self.question);
        self.answers.iter().chain(&self.authority).for_each(|record| out.extend_from_slice(record));
        out
    }
}

/// A name in its wire form, uncompressed; empty: the root.
pub(super) fn wire(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        out.push(u8::try_from(label.len()).unwrap_or(63));
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out
}

/// A question for another name than the one asked.
pub(super) fn question(name: &str, kind: u16) -> Vec<u8> {
    [wire(name), kind.to_be_bytes().to_vec(), vec![0, 1]].concat()
}

/// A record of class IN.
pub(super) fn record(name: &str, kind: u16, data: &[u8]) -> Vec<u8> {
    record_of(name, kind, 1, 60, data)
}

pub(super) fn record_of(name: &str, kind: u16, class: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
    let fields = [kind.to_be_bytes(), class.to_be_bytes()].concat();
    [wire(name), fields, ttl.to_be_bytes().to_vec(), length.to_be_bytes().to_vec(), data.to_vec()].concat()
}

pub(super) fn mx(name: &str, preference: u16, host: &str) -> Vec<u8> {
    record(name, MX, &[preference.to_be_bytes().to_vec(), wire(host)].concat())
}

pub(super) fn a(name: &str, ip: [u8; 4]) -> Vec<u8> {
    record(name, A, &Ipv4Addr::from(ip).octets())
}

pub(super) fn aaaa(name: &str, ip: &str) -> Vec<u8> {
    record(name, AAAA, &ip.parse::<Ipv6Addr>().unwrap().octets())
}

pub(super) fn cname(name: &str, target: &str) -> Vec<u8> {
    record(name, CNAME, &wire(target))
}

fn soa() -> Vec<u8> {
    let numbers = [1_u32, 60, 60, 60, 1].map(u32::to_be_bytes).concat();
    record("example", SOA, &[wire("ns.example"), wire("root.example"), numbers].concat())
}
