//! Mail data as it goes over the wire: dots doubled, lines ended by CRLF and nothing else, the end said once
//! (RFC 5321 §4.5.2, §2.3.8). A relay is the sending half of SMTP smuggling: whatever a letter holds, the next hop sees
//! exactly one end of mail data, at the end.

/// Turns a letter's bytes into mail data, piece by piece.
#[derive(Debug)]
pub(super) struct DotStuffer {
    at_line_start: bool,
    /// The last byte was a CR; whether it begins a CRLF depends on the next.
    after_cr: bool,
    /// Whether a dot at the start of a line is doubled.
    dots: bool,
}

impl DotStuffer {
    pub(super) fn new() -> Self {
        Self { at_line_start: true, after_cr: false, dots: true }
    }

    /// One that only cleans: chunks have their length and need no doubled dots (RFC 3030 §2).
    pub(super) fn cleaner() -> Self {
        Self { dots: false, ..Self::new() }
    }

    /// Adds the wire form of `bytes` to `out`. A bare CR, a bare LF and NUL become spaces: a letter that was accepted
    /// has none, so this is the second lock on the same door.
    pub(super) fn stuff(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        out.reserve(bytes.len() + bytes.len() / 64);
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            if bytes[0] == b'\n' {
                self.end_line(out);
                bytes = &bytes[1..];
            } else {
                self.put_space(out);
            }
        }
        while let Some(&first) = bytes.first() {
            if self.dots && self.at_line_start && first == b'.' {
                out.push(b'.');
            }
            let plain = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n' | 0)).unwrap_or(bytes.len());
            if plain > 0 {
                out.extend_from_slice(&bytes[..plain]);
                self.at_line_start = false;
                bytes = &bytes[plain..];
                continue;
            }
            match (first, bytes.get(1)) {
                (b'\r', Some(b'\n')) => {
                    self.end_line(out);
                    bytes = &bytes[2..];
                }
                (b'\r', None) => {
                    self.after_cr = true;
                    bytes = &[];
                }
                _ => {
                    self.put_space(out);
                    bytes = &bytes[1..];
                }
            }
        }
    }

    /// Adds the end of mail data, after ending an unfinished line.
    pub(super) fn finish(self, out: &mut Vec<u8>) {
        self.finish_lines(out);
        out.extend_from_slice(b".\r\n");
    }

    /// Ends an unfinished line.
    pub(super) fn finish_lines(mut self, out: &mut Vec<u8>) {
        if self.after_cr {
            self.put_space(out);
        }
        if !self.at_line_start {
            self.end_line(out);
        }
    }

    fn end_line(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\n");
        self.at_line_start = true;
    }

    fn put_space(&mut self, out: &mut Vec<u8>) {
        out.push(b' ');
        self.at_line_start = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wire(pieces: &[&[u8]]) -> Vec<u8> {
        let mut stuffer = DotStuffer::new();
        let mut out = Vec::new();
        for piece in pieces {
            stuffer.stuff(piece, &mut out);
        }
        stuffer.finish(&mut out);
        out
    }

    /// What a server makes of mail data, written from the RFC and from nothing else: lines up to the first lone dot.
    fn receive(data: &[u8]) -> (Vec<u8>, usize) {
        let mut letter = Vec::new();
        let mut at = 0;
        loop {
            let end = data[at..].windows(2).position(|two| two == b"\r\n").expect("every line ends") + at;
            let line = &data[at..end];
            at = end + 2;
            if line == b"." {
                return (letter, at);
            }
            letter.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
            letter.extend_from_slice(b"\r\n");
        }
    }

    /// What should arrive, byte by byte.
    fn cleaned(letter: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for (at, &byte) in letter.iter().enumerate() {
            let paired = match byte {
                b'\r' => letter.get(at + 1) == Some(&b'\n'),
                b'\n' => at > 0 && letter[at - 1] == b'\r',
                0 => false,
                _ => true,
            };
            out.push(if paired { byte } else { b' ' });
        }
        if !out.is_empty() && !out.ends_with(b"\r\n") {
            out.extend_from_slice(b"\r\n");
        }
        out
    }

    #[test]
    fn known_letters_become_known_bytes() {
        assert_eq!(wire(&[]), b".\r\n");
        assert_eq!(wire(&[b"a\r\n"]), b"a\r\n.\r\n");
        assert_eq!(wire(&[b"a"]), b"a\r\n.\r\n");
        assert_eq!(wire(&[b".\r\n..\r\n"]), b"..\r\n...\r\n.\r\n");
        assert_eq!(wire(&[b"a\r", b"\n.", b"\r\n"]), b"a\r\n..\r\n.\r\n");
        assert_eq!(wire(&[b"a\n.\nb\r.\rc\0"]), b"a . b . c \r\n.\r\n");
        assert_eq!(wire(&[b"a\r"]), b"a \r\n.\r\n");
        assert_eq!(wire(&[b"a\r\r\n.\r\n"]), b"a \r\n..\r\n.\r\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]
        #[test]
        fn any_letter_arrives_whole_and_ends_once(
            pieces in proptest::collection::vec(
                proptest::collection::vec(
                    prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'.'), Just(0u8), Just(b'a'), any::<u8>()], 0..12),
                0..8),
        ) {
            let letter: Vec<u8> = pieces.concat();
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let sent = wire(&pieces);
            let (received, used) = receive(&sent);
            prop_assert_eq!(used, sent.len(), "nothing follows the end of mail data");
            prop_assert_eq!(received, cleaned(&letter));
            for (at, byte) in sent.iter().enumerate() {
                prop_assert!(*byte != 0);
                prop_assert!(*byte != b'\r' || sent.get(at + 1) == Some(&b'\n'));
                prop_assert!(*byte != b'\n' || (at > 0 && sent[at - 1] == b'\r'));
            }
        }
    }
}
