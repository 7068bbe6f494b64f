//! An 8-bit letter for a next hop without 8BITMIME (RFC 6152 §3): each part that is declared 8-bit becomes
//! quoted-printable, which its reader turns back into the same bytes. What cannot be turned back is refused: 8-bit
//! bytes in a header, a declared encoding that is not true, or a shape that we cannot follow.
//!
//! Line by line, in memory bounded by one header block; the caller passes the letter through twice, once to learn whether
//! it can be done and how large it becomes.

/// The longest header block of a part that is rewritten.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// The longest line; RFC 5322 §2.1.1 allows 998.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// How deep parts may lie in each other.
const DEPTH_MAX: usize = 32;
/// RFC 2045 §6.7: encoded lines have at most 76 characters.
const ENCODED_LINE_MAX: usize = 76;

/// Why a letter cannot be made 7-bit without loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DowngradeError {
    /// No encoding is left for a header.
    #[error("a header of the letter holds 8-bit bytes")]
    Header,
    /// The letter says one thing and does another.
    #[error("a part of the letter holds 8-bit bytes against its own declaration")]
    Undeclared,
    /// Too deep, too long, or too large to follow.
    #[error("the letter's parts are too deep or its lines too long to convert")]
    Shape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// As it is; 8-bit bytes are an error.
    Plain,
    /// Becomes quoted-printable.
    Encode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Header { top: bool },
    Body(Body),
}

/// Turns a letter into 7 bits.
#[derive(Debug)]
pub struct Downgrade {
    place: Place,
    line: Vec<u8>,
    header: Vec<u8>,
    boundaries: Vec<Vec<u8>>,
}

impl Default for Downgrade {
    fn default() -> Self {
        Self { place: Place::Header { top: true }, line: Vec::new(), header: Vec::new(), boundaries: Vec::new() }
    }
}

impl Downgrade {
    /// Adds the 7-bit form of some more bytes to `out`.
    ///
    /// # Errors
    /// When it cannot be done without loss.
    pub fn add(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DowngradeError> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.ends_with(b"\r\n") {
                let line = std::mem::take(&mut self.line);
                self.take_line(&line, out)?;
            } else if self.line.len() > LINE_BYTES_MAX {
                return Err(DowngradeError::Shape);
            }
        }
        Ok(())
    }

    /// The end of the letter.
    ///
    /// # Errors
    /// When it cannot be done without loss.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), DowngradeError> {
        if !self.line.is_empty() {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(b"\r\n");
            self.take_line(&line, out)?;
        }
        if let Place::Header { top } = self.place {
            self.end_header(top, out)?;
        }
        Ok(())
    }

    fn take_line(&mut self, line: &[u8], out: &mut Vec<u8>) -> Result<(), DowngradeError> {
        if let Some((depth, last)) = self.boundary(line) {
            if let Place::Header { top } = self.place {
                self.end_header(top, out)?;
            }
            self.boundaries.truncate(if last { depth } else { depth + 1 });
            self.place = if last { Place::Body(Body::Plain) } else { Place::Header { top: false } };
            return plain(line, out);
        }
        match self.place {
            Place::Header { top } if line == b"\r\n" => {
                self.end_header(top, out)?;
                out.extend_from_slice(line);
                Ok(())
            }
            Place::Header { .. } => {
                if !line.is_ascii() {
                    return Err(DowngradeError::Header);
                }
                if self.header.len() + line.len() > HEADER_BYTES_MAX {
                    return Err(DowngradeError::Shape);
                }
                self.header.extend_from_slice(line);
                Ok(())
            }
            Place::Body(Body::Plain) => plain(line, out),
            Place::Body(Body::Encode) => {
                encode_line(line.strip_suffix(b"\r\n").unwrap_or(line), out);
                Ok(())
            }
        }
    }

    /// Whether `line` is a boundary: of which depth, and whether the last (RFC 2046 §5.1.1).
    fn boundary(&self, line: &[u8]) -> Option<(usize, bool)> {
        let rest = line.strip_prefix(b"--")?;
        let (depth, rest) = self
            .boundaries
            .iter()
            .enumerate()
            .rev()
            .find_map(|(depth, boundary)| rest.strip_prefix(boundary.as_slice()).map(|rest| (depth, rest)))?;
        let last = rest.strip_prefix(b"--");
        let padding = last.unwrap_or(rest);
        padding.iter().all(u8::is_ascii_whitespace).then_some((depth, last.is_some()))
    }

    /// A header block is complete: decides what becomes of the body, and writes the block.
    fn end_header(&mut self, top: bool, out: &mut Vec<u8>) -> Result<(), DowngradeError> {
        let header = std::mem::take(&mut self.header);
        let fields = fields(&header);
        let value = |name: &str| {
            let field = fields.iter().find(|field| named(field, name))?;
            let value = String::from_utf8_lossy(&field[name.len() + 1..]).replace("\r\n", "");
            Some(value.trim().to_owned())
        };
        let mime = !top || value("MIME-Version").is_some();
        let encoding = value("Content-Transfer-Encoding").filter(|_| mime).map(|word| word.to_ascii_lowercase());
        let kind = value("Content-Type").filter(|_| mime).unwrap_or_else(|| "text/plain".to_owned());
        let main = kind.split(['/', ';']).next().unwrap_or_default().trim().to_ascii_lowercase();
        let is_composite = matches!(main.as_str(), "multipart" | "message");
        let wide = matches!(encoding.as_deref(), Some("8bit"));
        let encode = !is_composite && (wide || encoding.is_none());
        let rewrite = encode || (is_composite && wide);
        for field in &fields {
            if !(rewrite && mime && named(field, "Content-Transfer-Encoding")) {
                out.extend_from_slice(field);
            }
        }
        if !mime {
            // A letter from before MIME: whoever reads it knows its alphabet or guesses it (RFC 1428 §3).
            out.extend_from_slice(b"MIME-Version: 1.0\r\n");
            if value("Content-Type").is_none() {
                out.extend_from_slice(b"Content-Type: text/plain; charset=unknown-8bit\r\n");
            }
        }
        if encode {
            out.extend_from_slice(b"Content-Transfer-Encoding: quoted-printable\r\n");
        }
        self.place = Place::Body(if encode { Body::Encode } else { Body::Plain });
        if main == "multipart" {
            let boundary = boundary_of(&kind).ok_or(DowngradeError::Shape)?;
            if self.boundaries.len() >= DEPTH_MAX {
                return Err(DowngradeError::Shape);
            }
            self.boundaries.push(boundary);
        } else if main == "message" && wide {
            // A letter within the letter: its own header follows.
            self.place = Place::Header { top: false };
        }
        Ok(())
    }
}

fn plain(line: &[u8], out: &mut Vec<u8>) -> Result<(), DowngradeError> {
    if !line.is_ascii() {
        return Err(DowngradeError::Undeclared);
    }
    out.extend_from_slice(line);
    Ok(())
}

/// The fields of a header block, each with its continuation lines.
fn fields(header: &[u8]) -> Vec<Vec<u8>> {
    let mut fields: Vec<Vec<u8>> = Vec::new();
    for line in header.split_inclusive(|byte| *byte == b'\n') {
        match fields.last_mut() {
            Some(field) if matches!(line.first(), Some(b' ' | b'\t')) => field.extend_from_slice(line),
            _ => fields.push(line.to_vec()),
        }
    }
    fields
}

fn named(field: &[u8], name: &str) -> bool {
    field.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
        && field.get(name.len()) == Some(&b':')
}

/// The boundary parameter of a `Content-Type`, at most 70 characters (RFC 2046 §5.1.1).
fn boundary_of(kind: &str) -> Option<Vec<u8>> {
    let at = kind.to_ascii_lowercase().find("boundary=")? + "boundary=".len();
    let rest = &kind[at..];
    let value = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next()?,
        None => rest.split([';', ' ', '\t']).next()?,
    };
    (1..=70).contains(&value.len()).then(|| value.as_bytes().to_vec())
}

/// One line in quoted-printable (RFC 2045 §6.7).
fn encode_line(line: &[u8], out: &mut Vec<u8>) {
    let mut width = 0;
    for (at, &byte) in line.iter().enumerate() {
        let last = at + 1 == line.len();
        let literal = matches!(byte, b'!'..=b'<' | b'>'..=b'~') || (matches!(byte, b' ' | b'\t') && !last);
        let needed = if literal { 1 } else { 3 };
        // The soft line break takes one place itself.
        if width + needed > ENCODED_LINE_MAX - 1 {
            out.extend_from_slice(b"=\r\n");
            width = 0;
        }
        if literal {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("={byte:02X}").as_bytes());
        }
        width += needed;
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn downgrade(letter: &[u8]) -> Result<Vec<u8>, DowngradeError> {
        let (mut downgrade, mut out) = (Downgrade::default(), Vec::new());
        for piece in letter.chunks(7) {
            downgrade.add(piece, &mut out)?;
        }
        downgrade.finish(&mut out)?;
        Ok(out)
    }

    /// Written from RFC 2045 §6.7 alone.
    fn decode(encoded: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < encoded.len() {
            if encoded[at] == b'=' {
                let two = &encoded[at + 1..at + 3];
                if two != b"\r\n" {
                    out.push(u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap());
                }
                at += 3;
            } else {
                out.push(encoded[at]);
                at += 1;
            }
        }
        out
    }

    const HEAD: &str = "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n";

    #[test]
    fn an_8_bit_text_becomes_quoted_printable_and_comes_back_the_same() {
        let letter = format!("{HEAD}Content-Transfer-Encoding: 8bit\r\n\r\nGrüße = .\r\n\r\nEnde \r\n");
        let out = String::from_utf8(downgrade(letter.as_bytes()).unwrap()).unwrap();
        assert!(out.is_ascii());
        let (header, body) = out.split_once("\r\n\r\n").unwrap();
        assert_eq!(header, format!("{HEAD}Content-Transfer-Encoding: quoted-printable"));
        assert_eq!(decode(body.as_bytes()), "Grüße = .\r\n\r\nEnde \r\n".as_bytes());
    }

    #[test]
    fn only_the_parts_that_need_it_are_rewritten() {
        let letter = "MIME-Version: 1.0\r\nContent-Type: multipart/mixed;\r\n boundary=\"b 1\"\r\n\
            Content-Transfer-Encoding: 8bit\r\n\r\npreamble\r\n--b 1\r\nContent-Type: text/plain\r\n\
            content-transfer-encoding: 8BIT\r\n\r\nö\r\n--b 1\r\nContent-Type: image/png\r\n\
            Content-Transfer-Encoding: base64\r\n\r\niVBORw0KGgo=\r\n--b 1--\r\nend\r\n";
        let out = String::from_utf8(downgrade(letter.as_bytes()).unwrap()).unwrap();
        let expected = "MIME-Version: 1.0\r\nContent-Type: multipart/mixed;\r\n boundary=\"b 1\"\r\n\r\n\
            preamble\r\n--b 1\r\nContent-Type: text/plain\r\n\
            Content-Transfer-Encoding: quoted-printable\r\n\r\n=C3=B6\r\n--b 1\r\nContent-Type: image/png\r\n\
            Content-Transfer-Encoding: base64\r\n\r\niVBORw0KGgo=\r\n--b 1--\r\nend\r\n";
        assert_eq!(out, expected);
    }

    #[test]
    fn a_letter_from_before_mime_says_what_it_is() {
        let out = String::from_utf8(downgrade(b"Subject: x\r\n\r\n\xe4\r\n").unwrap()).unwrap();
        assert_eq!(
            out,
            "Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=unknown-8bit\r\n\
             Content-Transfer-Encoding: quoted-printable\r\n\r\n=E4\r\n"
        );
    }

    #[test]
    fn what_would_be_lost_is_refused() {
        for (letter, expected) in [
            ("Subject: ö\r\n\r\nx\r\n".to_owned(), DowngradeError::Header),
            (format!("{HEAD}Content-Transfer-Encoding: 7bit\r\n\r\nö\r\n"), DowngradeError::Undeclared),
            (format!("{HEAD}Content-Transfer-Encoding: base64\r\n\r\nö\r\n"), DowngradeError::Undeclared),
            (format!("{HEAD}Content-Transfer-Encoding: binary\r\n\r\nö\r\n"), DowngradeError::Undeclared),
            ("MIME-Version: 1.0\r\nContent-Type: multipart/mixed\r\n\r\nö\r\n".to_owned(), DowngradeError::Shape),
            (format!("X: {}", "x".repeat(LINE_BYTES_MAX + 1)), DowngradeError::Shape),
        ] {
            assert_eq!(downgrade(letter.as_bytes()), Err(expected), "{letter:.60}");
        }
    }

    #[test]
    fn a_letter_within_a_letter_is_followed() {
        let inner = "Subject: inner\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\n\r\nü\r\n";
        let letter = format!(
            "MIME-Version: 1.0\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\n{inner}"
        );
        let out = String::from_utf8(downgrade(letter.as_bytes()).unwrap()).unwrap();
        assert!(out.ends_with("Content-Transfer-Encoding: quoted-printable\r\n\r\n=C3=BC\r\n"), "{out}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn any_8_bit_body_comes_back_the_same_and_keeps_its_lines_short(
            lines in proptest::collection::vec(
                proptest::collection::vec(any::<u8>().prop_filter("no line end", |b| !b"\r\n".contains(b)), 0..300),
                0..6),
        ) {
            let body: Vec<u8> = lines.iter().flat_map(|line| [line.as_slice(), b"\r\n"].concat()).collect();
            let letter = [format!("{HEAD}Content-Transfer-Encoding: 8bit\r\n\r\n").as_bytes(), &body].concat();
            let out = downgrade(&letter).unwrap();
            prop_assert!(out.is_ascii());
            let at = out.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
            prop_assert_eq!(decode(&out[at..]), body);
            prop_assert!(out[at..].split(|byte| *byte == b'\n').all(|line| line.len() <= ENCODED_LINE_MAX + 1));
        }

        #[test]
        fn nothing_panics(letter in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = downgrade(&letter);
        }
    }
}
