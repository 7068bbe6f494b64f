//! The signature that our fronts put into their PROXY v2 headers, in a custom TLV: an HMAC-SHA256 under the front's
//! own key over the whole header. It names the front, the node it is meant for, the service, the time and a nonce, so
//! that no other machine, and no other process on a front's host, can forge a device's address or say it again.
//!
//! Layout of the TLV's value: version 1, flags, service port (2), unix milliseconds (8), nonce (16), then key id,
//! front and node, each behind one byte of length, then the MAC (32). Numbers are big-endian. The MAC is computed
//! with its own bytes and those of the CRC32C TLV as zero; the CRC32C comes last and covers the MAC.

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::hmac;
use proxy_protocol_rs::HeaderBuilder;

use super::{Command, Header, TLV_CRC32C, V2_FIXED_BYTES, Version};

/// The TLV's type: doc/proxy-protocol.txt §2.2.7, `PP2_TYPE_MIN_CUSTOM`.
pub(super) const TLV_SIGNATURE: u8 = 0xE0;

/// Longest key id, front name and node name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// How far a header's time may be from the node's clock, in milliseconds, either way.
pub const CLOCK_WINDOW_MS: i64 = 60_000;

const LAYOUT_VERSION: u8 = 1;
const MAC_BYTES: usize = 32;
const FLAG_LOCAL: u8 = 0b001;
const FLAG_DEEP_PROBE: u8 = 0b010;
const FLAG_STALE: u8 = 0b100;
/// Keeps this use of the key apart from any other.
const MAC_CONTEXT: &[u8] = b"posthouse proxy header 1\0";

/// A front's key: under `id` the nodes know it, `front` is whose it is.
#[derive(Clone, PartialEq, Eq)]
pub struct FrontKey {
    /// Names the key, so that it can be rotated.
    pub id: String,
    /// The front that signs with it.
    pub front: String,
    /// The secret.
    pub key: [u8; 32],
}

impl std::fmt::Debug for FrontKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrontKey").field("id", &self.id).field("front", &self.front).finish_non_exhaustive()
    }
}

/// What a front says in one header.
#[derive(Clone, Debug)]
pub struct HeaderFacts<'a> {
    /// The node that this header is meant for; another one refuses it.
    pub node: &'a str,
    /// The device's address. Ignored when `local`.
    pub source: SocketAddr,
    /// The address that the device dialled. Ignored when `local`.
    pub destination: SocketAddr,
    /// 25, 587 or 465, whatever port the sockets have.
    pub service_port: u16,
    /// Unix milliseconds.
    pub time_ms: i64,
    /// Fresh random bytes.
    pub nonce: [u8; 16],
    /// The session id, at most 128 bytes; longer is cut.
    pub unique_id: &'a str,
    /// A check: the connection is the front's own.
    pub local: bool,
    /// A check that goes as far as `RCPT`.
    pub deep_probe: bool,
    /// The front knows that this node's state may be old, and knows no better one.
    pub stale: bool,
}

/// Our TLV as it was claimed. Nothing in it may be believed before [`verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    flags: u8,
    service_port: u16,
    time_ms: i64,
    nonce: [u8; 16],
    key_id: String,
    front: String,
    node: String,
    mac: [u8; MAC_BYTES],
}

impl Signature {
    /// The key it claims to be made with.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The front that claims to have made it; for the log of a refusal.
    #[must_use]
    pub fn claimed_front(&self) -> &str {
        &self.front
    }

    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let (&[version, flags], rest) = value.split_first_chunk()?;
        let (port, rest) = rest.split_first_chunk()?;
        let (time, rest) = rest.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (key_id, rest) = decode_name(rest)?;
        let (front, rest) = decode_name(rest)?;
        let (node, rest) = decode_name(rest)?;
        let mac = rest.try_into().ok()?;
        (version == LAYOUT_VERSION).then_some(Self {
            flags,
            service_port: u16::from_be_bytes(*port),
            time_ms: i64::from_be_bytes(*time),
            nonce: *nonce,
            key_id,
            front,
            node,
            mac,
        })
    }

    fn encode(&self) -> Vec<u8> {
        let mut value = vec![LAYOUT_VERSION, self.flags];
        value.extend_from_slice(&self.service_port.to_be_bytes());
        value.extend_from_slice(&self.time_ms.to_be_bytes());
        value.extend_from_slice(&self.nonce);
        for name in [&self.key_id, &self.front, &self.node] {
            let name = &name.as_bytes()[..name.len().min(NAME_BYTES_MAX)];
            value.push(u8::try_from(name.len()).unwrap_or(0));
            value.extend_from_slice(name);
        }
        value.extend_from_slice(&self.mac);
        value
    }
}

fn decode_name(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(length))?;
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
    is_name.then(|| (String::from_utf8_lossy(name).into_owned(), rest))
}

/// Builds a signed version 2 header. Names must be 1 to [`NAME_BYTES_MAX`] printable ASCII bytes, or nobody will
/// accept it.
#[must_use]
pub fn build_signed(key: &FrontKey, facts: &HeaderFacts<'_>) -> Vec<u8> {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let mut signature = Signature {
        flags: flag(facts.local, FLAG_LOCAL) | flag(facts.deep_probe, FLAG_DEEP_PROBE) | flag(facts.stale, FLAG_STALE),
        service_port: facts.service_port,
        time_ms: facts.time_ms,
        nonce: facts.nonce,
        key_id: key.id.clone(),
        front: key.front.clone(),
        node: facts.node.to_owned(),
        mac: [0; MAC_BYTES],
    };
    let unsigned = builder(facts, &signature).with_raw_tlv(TLV_CRC32C, [0; 4]).build();
    signature.mac.copy_from_slice(mac_context(&key.key, &unsigned).sign().as_ref());
    builder(facts, &signature).with_crc32c().build()
}

fn builder(facts: &HeaderFacts<'_>, signature: &Signature) -> HeaderBuilder {
    let builder = if facts.local {
        HeaderBuilder::v2_local()
    } else {
        let (source, destination) = one_family(facts.source, facts.destination);
        HeaderBuilder::v2_proxy(source, destination)
    };
    // doc/proxy-protocol.txt §2.2.4: at most 128 bytes.
    let unique_id = &facts.unique_id.as_bytes()[..facts.unique_id.len().min(128)];
    builder.with_unique_id(unique_id).with_raw_tlv(TLV_SIGNATURE, signature.encode())
}

/// A header has one family: two of one kind stay, else both are written as IPv6.
fn one_family(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let (source, destination) = (super::canonical(source), super::canonical(destination));
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    (mapped(source), mapped(destination))
}

fn mac_context(key: &[u8; 32], zeroed: &[u8]) -> hmac::Context {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    context.update(MAC_CONTEXT);
    context.update(zeroed);
    context
}

/// A front that was believed, and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedFront {
    /// Its name.
    pub front: String,
    /// The key it signed with.
    pub key_id: String,
    /// Unix milliseconds, by its clock.
    pub time_ms: i64,
    /// For [`super::ReplayWindow`].
    pub nonce: [u8; 16],
    /// The service that the device dialled.
    pub service_port: u16,
    /// A check that may go as far as `RCPT`.
    pub deep_probe: bool,
    /// This node was chosen although its state may be old.
    pub stale: bool,
}

/// Why a header is not believed. Theirs, except for a clock that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// It carries none.
    #[error("PROXY header carries no signature")]
    Missing,
    /// Nobody has this key, or no longer.
    #[error("PROXY header signed with unknown key \"{0}\"")]
    UnknownKey(String),
    /// The bytes were not signed with that key, or were changed.
    #[error("PROXY header signature does not match")]
    Mismatch,
    /// Signed by one front with the key of another.
    #[error("PROXY header of front \"{front}\" is signed with the key of \"{owner}\"")]
    WrongFront {
        /// Who it says it is.
        front: String,
        /// Whose key it used.
        owner: String,
    },
    /// Meant for another node.
    #[error("PROXY header is meant for node \"{0}\"")]
    WrongNode(String),
    /// Too far from our clock; one of the two is wrong, or it is a replay.
    #[error("PROXY header of front \"{front}\" is {off_ms} ms away from this node's clock")]
    Time {
        /// Which front.
        front: String,
        /// Negative: in the past.
        off_ms: i64,
    },
    /// Signed as one kind of connection, sent as another.
    #[error("PROXY header's command contradicts its signature")]
    WrongCommand,
}

/// Checks that `raw`, exactly the bytes that `header` was parsed from, was signed for `node` by the front whose key
/// `keys` finds. Whether it was seen before is for [`super::ReplayWindow`] to say.
///
/// # Errors
/// When it must not be believed.
pub fn verify(
    header: &Header,
    raw: &[u8],
    keys: impl FnOnce(&str) -> Option<FrontKey>,
    node: &str,
    now_ms: i64,
) -> Result<VerifiedFront, SignatureError> {
    let signature = header.signature.as_ref().ok_or(SignatureError::Missing)?;
    let key = keys(&signature.key_id).ok_or_else(|| SignatureError::UnknownKey(signature.key_id.clone()))?;
    let zeroed = zero_mac_and_crc(header, raw).ok_or(SignatureError::Mismatch)?;
    let mut message = MAC_CONTEXT.to_vec();
    message.extend_from_slice(&zeroed);
    // Constant time: aws-lc compares.
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &key.key), &message, &signature.mac)
        .map_err(|_| SignatureError::Mismatch)?;
    if signature.front != key.front {
        return Err(SignatureError::WrongFront { front: signature.front.clone(), owner: key.front });
    }
    if signature.node != node {
        return Err(SignatureError::WrongNode(signature.node.clone()));
    }
    if (signature.flags & FLAG_LOCAL != 0) != (header.command == Command::Local) {
        return Err(SignatureError::WrongCommand);
    }
    let off_ms = signature.time_ms.saturating_sub(now_ms);
    if off_ms.saturating_abs() > CLOCK_WINDOW_MS {
        return Err(SignatureError::Time { front: signature.front.clone(), off_ms });
    }
    Ok(VerifiedFront {
        front: signature.front.clone(),
        key_id: signature.key_id.clone(),
        time_ms: signature.time_ms,
        nonce: signature.nonce,
        service_port: signature.service_port,
        deep_probe: signature.flags & FLAG_DEEP_PROBE != 0,
        stale: signature.flags & FLAG_STALE != 0,
    })
}

/// A copy of the header with the bytes of the MAC and of the checksum as zero. `None`: not such a header.
fn zero_mac_and_crc(header: &Header, raw: &[u8]) -> Option<Vec<u8>> {
    if header.version != Version::V2 {
        return None;
    }
    let mut bytes = raw.to_vec();
    let mut at = V2_FIXED_BYTES
        + match (header.command, raw.get(13)?) {
            (Command::Local, 0x00) => 0,
            (Command::Proxy, 0x11) => 12,
            (Command::Proxy, 0x21) => 36,
            _ => return None,
        };
    while at < bytes.len() {
        let &[kind, high, low] = bytes.get(at..at + 3)? else { return None };
        let end = at + 3 + usize::from(u16::from_be_bytes([high, low]));
        let value = bytes.get_mut(at + 3..end)?;
        match kind {
            TLV_CRC32C => value.fill(0),
            TLV_SIGNATURE => value.last_chunk_mut::<MAC_BYTES>()?.fill(0),
            _ => {}
        }
        at = end;
    }
    Some(bytes)
}
