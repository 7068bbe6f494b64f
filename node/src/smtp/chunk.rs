//! Mail data that comes by `BDAT` (RFC 3030): octets counted by the client, without dots. A chunk says where it ends,
//! so nothing in it can be taken for a command; but what is not lines here must not become an end of mail data at the
//! next hop, which may speak `DATA`: the rule about CR and LF holds within chunks and across them.

use super::data::DataFault;

/// What the octets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkText {
    /// Lines that end with CRLF.
    Lines,
    /// Lines; CR or LF alone becomes CRLF.
    Repair,
    /// `BODY=BINARYMIME`: any octets.
    Binary,
}

/// Checks the octets of a letter that come in chunks, which come in pieces of any size.
#[derive(Debug)]
pub struct ChunkDecoder {
    text: ChunkText,
    /// The last octet was a CR, which waits for its LF, also in the next chunk.
    after_cr: bool,
    fault: Option<DataFault>,
    repaired: bool,
}

impl ChunkDecoder {
    /// Starts a letter.
    #[must_use]
    pub fn new(text: ChunkText) -> Self {
        Self { text, after_cr: false, fault: None, repaired: false }
    }

    /// Takes the next octets, and adds what is the letter's to `out`.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) {
        if self.text == ChunkText::Binary {
            out.extend_from_slice(input);
            return;
        }
        let mut rest = input;
        while let Some(&first) = rest.first() {
            if self.after_cr {
                self.after_cr = false;
                if first == b'\n' {
                    out.push(first);
                    rest = &rest[1..];
                    continue;
                }
                self.bare_line_end(out, b"\n");
            }
            let run = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n' | 0)).unwrap_or(rest.len());
            out.extend_from_slice(&rest[..run]);
            rest = &rest[run..];
            let Some((&special, tail)) = rest.split_first() else { return };
            rest = tail;
            match special {
                b'\r' => {
                    self.after_cr = true;
                    out.push(special);
                }
                b'\n' => {
                    self.bare_line_end(out, b"\r");
                    out.push(special);
                }
                _ => {
                    self.fault.get_or_insert(DataFault::Nul);
                    out.push(special);
                }
            }
        }
    }

    /// The letter has ended.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.after_cr) {
            self.bare_line_end(out, b"\n");
        }
    }

    fn bare_line_end(&mut self, out: &mut Vec<u8>, missing: &[u8]) {
        if self.text == ChunkText::Repair {
            self.repaired = true;
            out.extend_from_slice(missing);
        } else {
            self.fault = Some(DataFault::BareLineEnd);
        }
    }

    /// The fault found so far. With one, what was decoded is not a letter.
    #[must_use]
    pub fn fault(&self) -> Option<DataFault> {
        self.fault
    }

    /// Whether a line end was repaired.
    #[must_use]
    pub fn has_repaired(&self) -> bool {
        self.repaired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: ChunkText, pieces: &[&[u8]]) -> (Vec<u8>, Option<DataFault>, bool) {
        let (mut decoder, mut out) = (ChunkDecoder::new(text), Vec::new());
        for piece in pieces {
            decoder.decode(piece, &mut out);
        }
        decoder.finish(&mut out);
        (out, decoder.fault(), decoder.has_repaired())
    }

    #[test]
    fn lines_end_with_crlf_also_across_chunks() {
        let bare = Some(DataFault::BareLineEnd);
        for (letter, fault, repaired) in [
            (&b"a\r\nb\r\n"[..], None, &b"a\r\nb\r\n"[..]),
            (b"", None, b""),
            (b"no end", None, b"no end"),
            (b".\r\n..\r\n", None, b".\r\n..\r\n"),
            (b"a\nb", bare, b"a\r\nb"),
            (b"a\rb", bare, b"a\r\nb"),
            (b"a\r", bare, b"a\r\n"),
            (b"\n", bare, b"\r\n"),
            (b"\r\r\n", bare, b"\r\n\r\n"),
            (b"\r\n\n", bare, b"\r\n\r\n"),
            (b"\r\n.\n\r\n", bare, b"\r\n.\r\n\r\n"),
            (b"a\0b", Some(DataFault::Nul), b"a\0b"),
            (b"a\0\nb", bare, b"a\0\r\nb"),
        ] {
            for at in 0..=letter.len() {
                let pieces = [&letter[..at], &letter[at..]];
                let (out, found, _) = decode(ChunkText::Lines, &pieces);
                assert_eq!((out.as_slice(), found), (letter, fault), "{letter:?} split at {at}");
                let (out, found, did) = decode(ChunkText::Repair, &pieces);
                let nul = letter.contains(&0).then_some(DataFault::Nul);
                assert_eq!((out.as_slice(), found), (repaired, nul), "{letter:?} split at {at}, repaired");
                assert_eq!(did, fault == bare, "{letter:?}");
                assert_eq!(decode(ChunkText::Binary, &pieces), (letter.to_vec(), None, false));
            }
        }
    }
}
