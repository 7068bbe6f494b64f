//! What a device says first on an implicit TLS port (RFC 8314 §3): kept until a backend has answered, so that it can
//! be said again to another one. The front reads no more of TLS than where a ClientHello ends.

use std::io;

use tokio::net::TcpStream;
use tokio::time::Instant;

/// A ClientHello has a few hundred bytes, with post-quantum keys about 1,800.
const HELLO_BYTES_MAX: usize = 16 * 1024;
/// RFC 8446 §5.1: `ContentType::handshake`.
const HANDSHAKE: u8 = 22;

/// The first bytes of a device.
pub(super) struct Hello {
    bytes: Vec<u8>,
    deadline: Instant,
}

impl Hello {
    /// The device must have made its point by `deadline`.
    pub(super) fn new(deadline: Instant) -> Self {
        Self { bytes: Vec::new(), deadline }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// No more is kept: what else the device says is left in its socket.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= HELLO_BYTES_MAX
    }

    /// Whether a server can be expected to answer.
    pub(super) fn is_complete(&self) -> bool {
        is_complete(&self.bytes)
    }

    /// It is longer than what can be said again: one backend must have all of it, and then there is no other.
    pub(super) fn is_too_long(&self) -> bool {
        self.is_full() && !self.is_complete()
    }

    /// Reads more from the device. Answers where the new bytes start.
    ///
    /// # Errors
    /// When the device has closed or broken the connection.
    ///
    /// # Cancel safety
    /// Cancel safe: bytes are taken only when the future is ready.
    pub(super) async fn read(&mut self, device: &TcpStream) -> io::Result<usize> {
        let from = self.bytes.len();
        loop {
            device.readable().await?;
            let mut more = [0; 2048];
            let room = more.len().min(HELLO_BYTES_MAX - from);
            match device.try_read(&mut more[..room]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.bytes.extend_from_slice(&more[..count]);
                    return Ok(from);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether the first handshake message is there whole (RFC 8446 §4, §5.1); it may be cut into several records. What
/// is not TLS is complete with its first byte: a server will refuse it at once.
fn is_complete(bytes: &[u8]) -> bool {
    let (mut records, mut message) = (bytes, Vec::new());
    loop {
        match records {
            [] => return false,
            [kind, ..] if *kind != HANDSHAKE => return true,
            [_, _, _, high, low, rest @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if length == 0 {
                    return true;
                }
                let Some((fragment, next)) = rest.split_at_checked(length) else { return false };
                message.extend_from_slice(fragment);
                records = next;
            }
            _ => return false,
        }
        if let [_, high, middle, low, body @ ..] = message.as_slice()
            && body.len() >= u32::from_be_bytes([0, *high, *middle, *low]) as usize
        {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(message: &[u8], fragment: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in message.chunks(fragment) {
            bytes.extend_from_slice(&[HANDSHAKE, 3, 1, 0, u8::try_from(part.len()).unwrap_or(0)]);
            bytes.extend_from_slice(part);
        }
        bytes
    }

    #[test]
    fn a_hello_is_complete_with_its_last_byte_however_it_is_cut() {
        let message = [&[1, 0, 0, 200][..], &[7; 200]].concat();
        for fragment in [1, 3, 4, 100, 204, 255] {
            let bytes = records(&message, fragment);
            for end in 0..bytes.len() {
                assert!(!is_complete(&bytes[..end]), "{end} of {} in parts of {fragment}", bytes.len());
            }
            assert!(is_complete(&bytes));
        }
    }

    #[test]
    fn what_is_not_tls_is_complete_at_once() {
        assert!(is_complete(b"E"));
        assert!(is_complete(&[HANDSHAKE, 3, 1, 0, 0]));
    }
}
