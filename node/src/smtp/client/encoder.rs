//! How a letter's bytes go over the wire: as mail data with its lone dot at the end (RFC 5321 §4.5.2), or in chunks
//! (RFC 3030). Both are cleaned of bare CR, bare LF and NUL.

use super::stuffing::DotStuffer;

/// A chunk is sent when it has so many bytes; the last one may be of any size.
const CHUNK_BYTES: usize = 64 * 1024;

/// Writes one letter.
#[derive(Debug)]
pub(super) enum Encoder {
    /// `DATA`.
    Dots(DotStuffer),
    /// `BDAT`: the last chunk says that it is, so one is kept back.
    Chunks { cleaner: DotStuffer, held: Vec<u8> },
}

impl Encoder {
    pub(super) fn new(chunking: bool) -> Self {
        match chunking {
            true => Self::Chunks { cleaner: DotStuffer::cleaner(), held: Vec::new() },
            false => Self::Dots(DotStuffer::new()),
        }
    }

    /// The wire form of some more bytes, if any goes out now, and how many chunks that is.
    pub(super) fn add(&mut self, bytes: &[u8]) -> (Vec<u8>, usize) {
        let mut out = Vec::new();
        match self {
            Self::Dots(stuffer) => {
                stuffer.stuff(bytes, &mut out);
                (out, 0)
            }
            Self::Chunks { cleaner, held } => {
                cleaner.stuff(bytes, held);
                if held.len() < CHUNK_BYTES {
                    return (out, 0);
                }
                out = format!("BDAT {}\r\n", held.len()).into_bytes();
                out.append(held);
                (out, 1)
            }
        }
    }

    /// The end.
    pub(super) fn finish(self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Dots(stuffer) => stuffer.finish(&mut out),
            Self::Chunks { cleaner, mut held } => {
                cleaner.finish_lines(&mut held);
                out = format!("BDAT {} LAST\r\n", held.len()).into_bytes();
                out.append(&mut held);
            }
        }
        out
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a server makes of chunks, written from RFC 3030 alone.
    fn receive(mut wire: &[u8]) -> (Vec<u8>, usize) {
        let (mut letter, mut chunks) = (Vec::new(), 0);
        loop {
            let end = wire.windows(2).position(|two| two == b"\r\n").unwrap();
            let command = std::str::from_utf8(&wire[..end]).unwrap();
            let mut words = command.split(' ');
            assert_eq!(words.next(), Some("BDAT"));
            let length: usize = words.next().unwrap().parse().unwrap();
            let last = words.next();
            letter.extend_from_slice(&wire[end + 2..end + 2 + length]);
            wire = &wire[end + 2 + length..];
            chunks += 1;
            if last == Some("LAST") {
                assert!(wire.is_empty(), "nothing follows the last chunk");
                return (letter, chunks);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn chunks_carry_the_same_letter_as_mail_data(
            pieces in proptest::collection::vec(
                proptest::collection::vec(
                    prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'.'), Just(0u8), any::<u8>()], 0..20),
                0..8),
            large in any::<bool>(),
        ) {
            let mut encoder = Encoder::new(true);
            let (mut wire, mut said) = (Vec::new(), 1);
            let mut plain = DotStuffer::cleaner();
            let mut expected = Vec::new();
            for piece in &pieces {
                let piece = if large { piece.repeat(8_000) } else { piece.clone() };
                let (out, chunks) = encoder.add(&piece);
                wire.extend(out);
                said += chunks;
                plain.stuff(&piece, &mut expected);
            }
            plain.finish_lines(&mut expected);
            wire.extend(encoder.finish());
            let (letter, chunks) = receive(&wire);
            prop_assert_eq!(&letter, &expected);
            prop_assert_eq!(chunks, said);
            for (at, byte) in letter.iter().enumerate() {
                prop_assert!(*byte != 0);
                prop_assert!(*byte != b'\r' || letter.get(at + 1) == Some(&b'\n'));
                prop_assert!(*byte != b'\n' || (at > 0 && letter[at - 1] == b'\r'));
            }
        }
    }
}
