//! What a device offered in its ClientHello, read from the bytes of a handshake that failed: a printer from 2008 does
//! not say "I only know TLS 1.0", it just goes away. Pure; every input is somebody else's.

use std::fmt;

/// Enough of a handshake to see its ClientHello; post-quantum key shares make them of two kilobytes.
pub const HELLO_BYTES_MAX: usize = 8 * 1024;
/// More versions than there are.
const VERSIONS_MAX: usize = 16;

/// A protocol version as the wire has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OfferedVersion(pub u16);

impl OfferedVersion {
    /// RFC 5246.
    pub const TLS12: Self = Self(0x0303);
    /// RFC 8446.
    pub const TLS13: Self = Self(0x0304);
}

impl fmt::Display for OfferedVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0x0002 => f.write_str("SSL 2.0"),
            0x0300 => f.write_str("SSL 3.0"),
            0x0301 => f.write_str("TLS 1.0"),
            0x0302 => f.write_str("TLS 1.1"),
            0x0303 => f.write_str("TLS 1.2"),
            0x0304 => f.write_str("TLS 1.3"),
            other => write!(f, "0x{other:04x}"),
        }
    }
}

/// What the first bytes of a client say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The versions that it offers, oldest first; empty when it sent no ClientHello, or not all of it.
    pub versions: Vec<OfferedVersion>,
    /// The name that it asked for.
    pub server_name: Option<String>,
}

impl Hello {
    /// Whether it offers nothing that we speak: what a TLS 1.0 device looks like.
    #[must_use]
    pub fn is_weak(&self) -> bool {
        !self.versions.is_empty() && self.versions.iter().all(|version| *version < OfferedVersion::TLS12)
    }

    /// Reads what there is. Bytes that are no ClientHello say nothing.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Self {
        ssl2(bytes).or_else(|| client_hello(&handshake(bytes))).unwrap_or_default()
    }
}

/// An SSL 2.0 hello, also as a first greeting of clients that know more (RFC 5246 appendix E.2).
fn ssl2(bytes: &[u8]) -> Option<Hello> {
    let (&[first, _, kind, major, minor], _) = bytes.split_first_chunk::<5>()?;
    if first & 0x80 == 0 || kind != 1 {
        return None;
    }
    let highest = u16::from_be_bytes([major, minor]);
    let versions = match highest {
        0x0002 => vec![OfferedVersion(2)],
        0x0300..=0x0303 => (0x0300..=highest).map(OfferedVersion).collect(),
        _ => return None,
    };
    Some(Hello { versions, server_name: None })
}

/// The handshake message, put together from its records (RFC 8446 §5.1: a ClientHello may be spread over several).
fn handshake(bytes: &[u8]) -> Vec<u8> {
    let (mut rest, mut whole) = (bytes, Vec::new());
    while let Some((&[22, 3, _, high, low], after)) = rest.split_first_chunk::<5>() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(after.len());
        let (fragment, next) = after.split_at(length);
        whole.extend_from_slice(fragment);
        rest = next;
    }
    whole
}

/// Takes fields off the front of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A big-endian number of up to four octets.
    fn number(&mut self, octets: usize) -> Option<usize> {
        let taken = self.take(octets)?;
        Some(taken.iter().fold(0, |number, octet| (number << 8) | usize::from(*octet)))
    }

    /// A field with its length in front.
    fn field(&mut self, octets: usize) -> Option<&'a [u8]> {
        let length = self.number(octets)?;
        self.take(length)
    }
}

/// RFC 8446 §4.1.2.
fn client_hello(message: &[u8]) -> Option<Hello> {
    let mut outer = Reader(message);
    if outer.number(1)? != 1 {
        return None;
    }
    let mut hello = Reader(outer.field(3)?);
    let legacy = u16::try_from(hello.number(2)?).ok()?;
    hello.take(32)?;
    hello.field(1)?;
    hello.field(2)?;
    hello.field(1)?;
    let mut found = Hello { versions: up_to(legacy), server_name: None };
    let Some(extensions) = hello.field(2) else { return Some(found) };
    let mut extensions = Reader(extensions);
    while let (Some(kind), Some(body)) = (extensions.number(2), extensions.field(2)) {
        match kind {
            0 => found.server_name = server_name(body),
            43 => found.versions = supported_versions(body),
            _ => {}
        }
    }
    Some(found)
}

/// Without `supported_versions`, a client offers its highest and whatever is below it (RFC 8446 appendix D); what we
/// could have agreed on is decided by the highest.
fn up_to(highest: u16) -> Vec<OfferedVersion> {
    match highest {
        0x0300..=0x0303 => vec![OfferedVersion(highest)],
        _ => Vec::new(),
    }
}

/// RFC 8446 §4.2.1. GREASE (RFC 8701) is left out.
fn supported_versions(body: &[u8]) -> Vec<OfferedVersion> {
    let list = Reader(body).field(1).unwrap_or_default();
    let numbers = list.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let mut versions: Vec<OfferedVersion> =
        numbers.filter(|number| number >> 8 == 3 || *number == 2).take(VERSIONS_MAX).map(OfferedVersion).collect();
    versions.sort();
    versions.dedup();
    versions
}

/// RFC 6066 §3: the first host name, if it is one that may stand in a log.
fn server_name(body: &[u8]) -> Option<String> {
    let mut list = Reader(Reader(body).field(2)?);
    while let (Some(kind), Some(name)) = (list.number(1), list.field(2)) {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if kind == 0 && (1..=255).contains(&name.len()) && name.iter().all(plain) {
            return std::str::from_utf8(name).ok().map(str::to_ascii_lowercase);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut out = kind.to_be_bytes().to_vec();
        out.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        out.extend(body);
        out
    }

    fn message(legacy: u16, extensions: Option<&[u8]>) -> Vec<u8> {
        let mut body = legacy.to_be_bytes().to_vec();
        body.extend([7; 32]);
        body.push(0);
        body.extend([0, 2, 0x00, 0x2f]);
        body.extend([1, 0]);
        if let Some(extensions) = extensions {
            body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
            body.extend(extensions);
        }
        let mut out = vec![1];
        out.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
        out.extend(body);
        out
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for fragment in message.chunks(size) {
            out.extend([22, 3, 1]);
            out.extend(u16::try_from(fragment.len()).unwrap().to_be_bytes());
            out.extend(fragment);
        }
        out
    }

    fn words(hello: &Hello) -> Vec<String> {
        hello.versions.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_old_device_is_known_by_its_hello() {
        for (legacy, name) in [(0x0300, "SSL 3.0"), (0x0301, "TLS 1.0"), (0x0302, "TLS 1.1")] {
            let hello = Hello::read(&records(&message(legacy, None), 4096));
            assert_eq!(words(&hello), [name]);
            assert!(hello.is_weak());
        }
        let hello = Hello::read(&records(&message(0x0303, None), 4096));
        assert_eq!(words(&hello), ["TLS 1.2"]);
        assert!(!hello.is_weak());
        assert_eq!(words(&Hello::read(&[0x80, 0x2e, 1, 3, 1, 0, 0x15])), ["SSL 3.0", "TLS 1.0"]);
        assert!(Hello::read(&[0x80, 0x2e, 1, 0, 2, 0, 0x15]).is_weak());
    }

    #[test]
    fn supported_versions_and_the_name_are_read_from_any_fragmentation() {
        let mut extensions = extension(0, b"\0\x0f\0\0\x0cSMTP.example");
        extensions.extend(extension(43, &[8, 0x7a, 0x7a, 3, 4, 3, 3, 3, 1]));
        let whole = message(0x0303, Some(&extensions));
        for size in [1, 2, 5, 40, 4096] {
            let hello = Hello::read(&records(&whole, size));
            assert_eq!(words(&hello), ["TLS 1.0", "TLS 1.2", "TLS 1.3"], "fragments of {size}");
            assert_eq!(hello.server_name.as_deref(), Some("smtp.example"));
            assert!(!hello.is_weak());
        }
        let old = extension(43, &[4, 3, 1, 3, 2]);
        assert!(Hello::read(&records(&message(0x0303, Some(&old)), 4096)).is_weak());
    }

    #[test]
    fn what_is_no_hello_says_nothing() {
        let whole = records(&message(0x0301, None), 4096);
        for end in 0..whole.len() {
            assert!(Hello::read(&whole[..end]).versions.is_empty(), "{end}");
        }
        for bytes in
            [&b"EHLO printer\r\n"[..], b"GET / HTTP/1.1\r\n", b"", &[22, 3, 1, 0xff, 0xff], &[0x80, 0, 2, 3, 1]]
        {
            let hello = Hello::read(bytes);
            assert!(hello.versions.is_empty() && !hello.is_weak(), "{bytes:?}");
        }
        let steering = extension(0, b"\0\x08\0\0\x05a\x1b[0m");
        assert_eq!(Hello::read(&records(&message(0x0303, Some(&steering)), 4096)).server_name, None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), size in 1_usize..50) {
            let _ = Hello::read(&bytes);
            let _ = Hello::read(&records(&bytes, size));
            let mut looks_right = message(0x0303, Some(&bytes));
            let _ = Hello::read(&records(&looks_right, size));
            looks_right.truncate(looks_right.len() / 2);
            let _ = Hello::read(&records(&looks_right, size));
        }
    }
}
