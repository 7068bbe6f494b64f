//! The PROXY protocol header, versions 1 and 2 (HAProxy's doc/proxy-protocol.txt): whose connection is this really.
//! Pure: bytes in, a header or a refusal out. It also carries our own signature (a custom TLV), by which nodes
//! believe our fronts instead of believing an address. It decides nothing about who may be believed: that is the
//! listener's business. Imports none of our rooms.
//!
//! The wire format is parsed and built by `proxy-protocol-rs`; this room adds what it leaves open: every input that
//! can never become a header is refused at once, ports have one spelling, IPv4-mapped addresses are IPv4, only TCP
//! over IP is taken, and a `LOCAL` header's address block is skipped, not read.

mod replay;
mod signature;

use std::net::SocketAddr;

use proxy_protocol_rs::{InvalidReason, ParseError, Tlvs, V2_SIGNATURE};

pub use replay::{Replay, ReplayWindow};
pub use signature::{
    CLOCK_WINDOW_MS, FrontKey, HeaderFacts, NAME_BYTES_MAX, Signature, SignatureError, VerifiedFront, build_signed,
    verify,
};

/// Longest header that is read: signature, addresses and TLVs. The protocol would allow 65,551 bytes, no sender needs
/// them, and the reader must hold all of it.
pub const HEADER_BYTES_MAX: usize = 4096;

/// doc/proxy-protocol.txt §2.1: the longest version 1 line, CRLF included.
const V1_BYTES_MAX: usize = 107;
/// doc/proxy-protocol.txt §2.2: signature, version and command, family and transport, length.
const V2_FIXED_BYTES: usize = 16;
/// What a version 1 line starts with.
const V1_START: &[u8] = b"PROXY ";
/// doc/proxy-protocol.txt §2.2.4: `PP2_TYPE_UNIQUE_ID`.
const TLV_UNIQUE_ID: u8 = 0x05;
/// doc/proxy-protocol.txt §2.2.3: `PP2_TYPE_CRC32C`.
const TLV_CRC32C: u8 = 0x03;

/// What the first bytes of a connection are.
#[derive(Debug)]
pub enum Parsed {
    /// Not yet a whole header; what is there could become one.
    Incomplete,
    /// Never a header, whatever follows. The connection must be closed: guessing is forbidden (doc/proxy-protocol.txt
    /// §5).
    Invalid(HeaderError),
    /// A header, and how many bytes it took; what follows them is the session's.
    Header {
        /// What it says.
        header: Header,
        /// Its length in bytes.
        consumed: usize,
    },
}

/// One PROXY header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 1 or 2.
    pub version: Version,
    /// For somebody, or for the sender itself.
    pub command: Command,
    /// The device's address; never IPv4-mapped. `None` exactly when `command` is [`Command::Local`].
    pub source: Option<SocketAddr>,
    /// The address the device dialled; never IPv4-mapped. `None` exactly when `command` is [`Command::Local`].
    pub destination: Option<SocketAddr>,
    /// `PP2_TYPE_UNIQUE_ID`, at most 128 bytes of anything: from our fronts the session id.
    pub unique_id: Option<Vec<u8>>,
    /// Our own TLV, as claimed; see [`verify`].
    pub signature: Option<Box<Signature>>,
}

/// Which version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The readable one.
    V1,
    /// The binary one.
    V2,
}

/// What the sender is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// It forwards a connection of `source`.
    Proxy,
    /// It speaks for itself (a check), or does not know for whom (version 1 `UNKNOWN`).
    Local,
}

/// Why bytes are not a header. Theirs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Something else altogether, such as an SMTP command.
    #[error("not a PROXY header")]
    NotAHeader,
    /// Longer than [`HEADER_BYTES_MAX`], or a version 1 line longer than 107 bytes.
    #[error("PROXY header too long")]
    TooLong,
    /// A version 1 line that does not end in CRLF.
    #[error("PROXY v1 line with a bare CR or LF")]
    LineEnding,
    /// A version 1 port with a sign, a leading zero or nothing.
    #[error("PROXY v1 port \"{0}\" is not a plain number")]
    Port(String),
    /// A family other than IPv4 and IPv6, or a transport other than TCP.
    #[error("PROXY v2 family and transport {0:#04x} is not TCP over IPv4 or IPv6")]
    Family(u8),
    /// Length shorter than the addresses it must hold.
    #[error("PROXY v2 length {0} is shorter than its addresses")]
    Length(usize),
    /// The same TLV twice, where that would leave open which one counts.
    #[error("PROXY v2 TLV {0:#04x} more than once")]
    Repeated(u8),
    /// Our own TLV is not laid out as it must be.
    #[error("PROXY v2 signature TLV is malformed")]
    SignatureLayout,
    /// The checksum does not fit the bytes.
    #[error("PROXY v2 CRC32C does not match")]
    Checksum,
    /// Any other fault.
    #[error("{0}")]
    Malformed(String),
}

impl From<ParseError> for HeaderError {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::NotProxyProtocol => Self::NotAHeader,
            ParseError::CrcMismatch { .. } => Self::Checksum,
            ParseError::Invalid(InvalidReason::V1TooLong) => Self::TooLong,
            other => Self::Malformed(other.to_string()),
        }
    }
}

/// Reads the header at the start of `bytes`, all that has arrived so far.
///
/// Every strict prefix of a header is [`Parsed::Incomplete`]; bytes that cannot become one are refused at the first
/// byte that shows it, so that a peer cannot hold a connection with them.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    let parsed = if could_start(bytes, V1_START) {
        parse_v1(bytes)
    } else if could_start(bytes, V2_SIGNATURE) {
        parse_v2(bytes)
    } else {
        Err(HeaderError::NotAHeader)
    };
    match parsed {
        Ok(Some((header, consumed))) => Parsed::Header { header, consumed },
        Ok(None) => Parsed::Incomplete,
        Err(error) => Parsed::Invalid(error),
    }
}

/// Whether `bytes` starts with `start`, or is itself a start of it.
fn could_start(bytes: &[u8], start: &[u8]) -> bool {
    let both = bytes.len().min(start.len());
    bytes[..both] == start[..both]
}

type Progress = Result<Option<(Header, usize)>, HeaderError>;

fn parse_v1(bytes: &[u8]) -> Progress {
    // The line ends at the first CR or LF, and that must be a CRLF: otherwise the two ends of a connection could
    // disagree where the header stops.
    let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return if bytes.len() >= V1_BYTES_MAX { Err(HeaderError::TooLong) } else { Ok(None) };
    };
    if end + 2 > V1_BYTES_MAX {
        return Err(HeaderError::TooLong);
    }
    match bytes.get(end + 1) {
        _ if bytes[end] == b'\n' => return Err(HeaderError::LineEnding),
        None => return Ok(None),
        Some(b'\n') => {}
        Some(_) => return Err(HeaderError::LineEnding),
    }
    let Some((info, consumed)) = finish(proxy_protocol_rs::parse(bytes))? else { return Ok(None) };
    let (source, destination) = (info.source_inet().map(canonical), info.destination_inet().map(canonical));
    if source.is_some() {
        for port in bytes[..end].rsplit(|byte| *byte == b' ').take(2) {
            if !is_plain_port(port) {
                return Err(HeaderError::Port(String::from_utf8_lossy(port).into_owned()));
            }
        }
    }
    let command = if source.is_some() { Command::Proxy } else { Command::Local };
    let header = Header { version: Version::V1, command, source, destination, unique_id: None, signature: None };
    Ok(Some((header, consumed)))
}

/// doc/proxy-protocol.txt §2.1: a decimal number in its shortest form.
fn is_plain_port(port: &[u8]) -> bool {
    !port.is_empty() && port.iter().all(u8::is_ascii_digit) && (port.len() == 1 || port[0] != b'0')
}

fn parse_v2(bytes: &[u8]) -> Progress {
    let Some(fixed) = bytes.first_chunk::<V2_FIXED_BYTES>() else {
        // The version and command are refused as soon as they are there.
        return match bytes.get(V2_SIGNATURE.len()) {
            Some(0x20 | 0x21) | None => Ok(None),
            Some(_) => Err(HeaderError::NotAHeader),
        };
    };
    let (family, length) = (fixed[13], usize::from(u16::from_be_bytes([fixed[14], fixed[15]])));
    let total = V2_FIXED_BYTES + length;
    if total > HEADER_BYTES_MAX {
        return Err(HeaderError::TooLong);
    }
    let is_local = match fixed[12] {
        0x20 => true,
        0x21 => false,
        _ => return Err(HeaderError::NotAHeader),
    };
    if !is_local {
        let addresses = match family {
            0x11 => 12,
            0x21 => 36,
            other => return Err(HeaderError::Family(other)),
        };
        if length < addresses {
            return Err(HeaderError::Length(length));
        }
    }
    if bytes.len() < total {
        return Ok(None);
    }
    // doc/proxy-protocol.txt §2.2: for LOCAL the family is ignored and exactly `length` bytes are skipped. TLVs are
    // looked for only where no address block can stand before them, as our own checks send them.
    if is_local && family != 0 {
        return Ok(Some((local_header(), total)));
    }
    let Some((info, consumed)) = finish(proxy_protocol_rs::parse(&bytes[..total]))? else { return Ok(None) };
    for once in [TLV_CRC32C, TLV_UNIQUE_ID, signature::TLV_SIGNATURE] {
        if info.tlvs.raw.iter().filter(|(kind, _)| *kind == once).count() > 1 {
            return Err(HeaderError::Repeated(once));
        }
    }
    let header = Header {
        version: Version::V2,
        command: if is_local { Command::Local } else { Command::Proxy },
        source: info.source_inet().map(canonical),
        destination: info.destination_inet().map(canonical),
        signature: claimed_signature(&info.tlvs)?,
        unique_id: info.tlvs.unique_id,
    };
    Ok(Some((header, consumed)))
}

fn local_header() -> Header {
    Header {
        version: Version::V2,
        command: Command::Local,
        source: None,
        destination: None,
        unique_id: None,
        signature: None,
    }
}

fn claimed_signature(tlvs: &Tlvs) -> Result<Option<Box<Signature>>, HeaderError> {
    tlvs.raw
        .iter()
        .find(|(kind, _)| *kind == signature::TLV_SIGNATURE)
        .map(|(_, value)| Signature::decode(value).map(Box::new).ok_or(HeaderError::SignatureLayout))
        .transpose()
}

fn finish<T>(result: Result<T, ParseError>) -> Result<Option<T>, HeaderError> {
    match result {
        Ok(parsed) => Ok(Some(parsed)),
        Err(ParseError::Incomplete) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// An IPv4-mapped IPv6 address is IPv4: a device has one address, however the sender's socket spelled it.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
