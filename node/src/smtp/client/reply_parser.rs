//! Replies as they come from a next hop (RFC 5321 §4.2), possibly hostile: bounded in lines and bytes.

use std::borrow::Cow;

use crate::mail::{EnhancedCode, Reply, ReplyCode};

/// More lines than any EHLO reply has.
pub const REPLY_LINES_MAX: usize = 512;
/// Bytes of one reply, all its lines together.
pub const REPLY_BYTES_MAX: usize = 64 * 1024;

/// Why what a next hop said is not a reply. Theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// No three digits, or something else than a space or a hyphen behind them.
    #[error("not a reply")]
    Syntax,
    /// RFC 5321 §4.2.1 knows 2yz to 5yz.
    #[error("a reply code outside 200 to 599")]
    Code,
    /// Lines of one reply with different codes.
    #[error("a reply with two codes")]
    Mixed,
    /// More than [`REPLY_LINES_MAX`].
    #[error("a reply of more than {REPLY_LINES_MAX} lines")]
    Lines,
    /// More than [`REPLY_BYTES_MAX`].
    #[error("a reply of more than {REPLY_BYTES_MAX} bytes")]
    Bytes,
}

/// Collects bytes into replies.
#[derive(Debug, Default)]
pub(super) struct ReplyParser {
    buffer: Vec<u8>,
    /// The reply whose last line has not come.
    code: Option<u16>,
    lines: Vec<String>,
    bytes: usize,
}

impl ReplyParser {
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether every byte so far belonged to a complete reply.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.code.is_none()
    }

    /// Takes the next complete reply.
    pub(super) fn next(&mut self) -> Result<Option<Reply>, ReplyError> {
        loop {
            // A bare LF ends a line here: what a next hop says becomes text, never mail data.
            let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') else {
                return if self.bytes + self.buffer.len() > REPLY_BYTES_MAX {
                    Err(ReplyError::Bytes)
                } else {
                    Ok(None)
                };
            };
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            self.bytes += line.len();
            if self.bytes > REPLY_BYTES_MAX {
                return Err(ReplyError::Bytes);
            }
            let line = line.trim_ascii_end();
            let (code, last) = code_of(line)?;
            if *self.code.get_or_insert(code) != code {
                return Err(ReplyError::Mixed);
            }
            if self.lines.len() >= REPLY_LINES_MAX {
                return Err(ReplyError::Lines);
            }
            self.lines.push(String::from_utf8_lossy(line.get(4..).unwrap_or_default()).into_owned());
            if last {
                let lines = std::mem::take(&mut self.lines);
                self.code = None;
                self.bytes = 0;
                return Ok(Some(to_reply(code, lines)));
            }
        }
    }
}

fn code_of(line: &[u8]) -> Result<(u16, bool), ReplyError> {
    let digits = line.get(..3).ok_or(ReplyError::Syntax)?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(ReplyError::Syntax);
    }
    let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    if !(200..600).contains(&code) {
        return Err(ReplyError::Code);
    }
    match line.get(3) {
        None | Some(b' ') => Ok((code, true)),
        Some(b'-') => Ok((code, false)),
        Some(_) => Err(ReplyError::Syntax),
    }
}

fn to_reply(code: u16, mut lines: Vec<String>) -> Reply {
    // RFC 2034 §4: the enhanced code is repeated on every line and has the class of the reply code.
    let enhanced = lines.first().and_then(|line| split_enhanced(line)).map(|(code, _)| code);
    let enhanced = enhanced.filter(|enhanced| u16::from(enhanced.class) == code / 100);
    if let Some(enhanced) = enhanced {
        for line in &mut lines {
            if let Some((found, rest)) = split_enhanced(line)
                && found == enhanced
            {
                *line = rest.to_owned();
            }
        }
    }
    let mut lines = lines.into_iter();
    let first = Reply::new(code, enhanced, lines.next().unwrap_or_default());
    let reply = lines.fold(first, |reply, line| reply.line(Cow::Owned(line)));
    debug_assert_eq!(reply.code, ReplyCode(code));
    reply
}

fn split_enhanced(line: &str) -> Option<(EnhancedCode, &str)> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut parts = word.split('.');
    let class = parts.next()?.parse().ok().filter(|class| matches!(class, 2 | 4 | 5))?;
    let number = |part: Option<&str>| part?.parse::<u16>().ok().filter(|number| *number <= 999);
    let (subject, detail) = (number(parts.next())?, number(parts.next())?);
    parts.next().is_none().then(|| (EnhancedCode::new(class, subject, detail), rest.trim_start()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Option<Reply>, ReplyError> {
        let mut whole = ReplyParser::default();
        whole.feed(bytes);
        let expected = whole.next();
        let mut split = ReplyParser::default();
        let mut found = Ok(None);
        for byte in bytes {
            split.feed(&[*byte]);
            if let Ok(None) = found {
                found = split.next();
            }
        }
        assert_eq!(found, expected, "a reply is the same however it is split");
        expected
    }

    #[test]
    fn a_reply_is_read_with_its_enhanced_code() {
        let reply = parse(b"550 5.1.1 User unknown\r\n").unwrap().unwrap();
        assert_eq!(reply.enhanced, Some(EnhancedCode::new(5, 1, 1)));
        assert_eq!(reply.to_string(), "550 5.1.1 User unknown");
        let reply = parse(b"250-2.0.0 one\r\n250 2.0.0 two\r\n").unwrap().unwrap();
        assert_eq!(reply.lines.as_slice(), ["one", "two"]);
        assert_eq!(parse(b"220 5.1.1.1 host\r\n").unwrap().unwrap().enhanced, None);
        assert_eq!(parse(b"250 5.1.1 wrong class\r\n").unwrap().unwrap().enhanced, None);
        assert_eq!(parse(b"354\r\n").unwrap().unwrap().to_string(), "354 ");
        assert_eq!(parse(b"250 not finished").unwrap(), None);
    }

    #[test]
    fn control_characters_of_a_next_hop_never_come_further() {
        let reply = parse(b"550 a\x1b[31m\rb\x00\xff\r\n").unwrap().unwrap();
        assert!(!reply.to_string().chars().any(char::is_control));
    }

    #[test]
    fn what_is_not_a_reply_is_an_error() {
        for (bytes, error) in [
            (&b"hello\r\n"[..], ReplyError::Syntax),
            (b"25\r\n", ReplyError::Syntax),
            (b"250+x\r\n", ReplyError::Syntax),
            (b"\r\n", ReplyError::Syntax),
            (b"199 x\r\n", ReplyError::Code),
            (b"600 x\r\n", ReplyError::Code),
            (b"000 x\r\n", ReplyError::Code),
            (b"250-a\r\n251 b\r\n", ReplyError::Mixed),
        ] {
            assert_eq!(parse(bytes), Err(error), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_reply_without_end_is_cut_off() {
        let mut parser = ReplyParser::default();
        parser.feed(&b"250-x\r\n".repeat(REPLY_LINES_MAX + 1));
        assert_eq!(parser.next(), Err(ReplyError::Lines));
        let mut parser = ReplyParser::default();
        parser.feed(&[b'2'; REPLY_BYTES_MAX + 1]);
        assert_eq!(parser.next(), Err(ReplyError::Bytes));
    }
}
