//! CRLF framing with limits (RFC 5321 §2.3.8, §4.5.3.1): a line ends with CRLF and with nothing else; CR or LF alone
//! is an error, never an end.

/// Why a line was not one. What is left of it, up to its CRLF, is thrown away as it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// No CRLF within the limit.
    #[error("line longer than its limit")]
    TooLong,
    /// CR without LF, or LF without CR.
    #[error("bare CR or LF")]
    BareLineEnd,
}

/// The bytes that have come and have not been used. Holds at most what was pushed since the last complete line plus
/// one limit: whoever pushes does so only when it has been read empty.
#[derive(Debug, Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    /// The first byte not yet used.
    start: usize,
    /// Everything before it has been looked at and holds no line end.
    scanned: usize,
    /// Within a line that has been answered with an error already.
    skipping: bool,
}

impl LineBuffer {
    /// Adds what has come.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
            self.scanned = 0;
        } else if self.start > self.bytes.len() / 2 {
            // Moving less than half keeps the whole cost linear.
            self.bytes.drain(..self.start);
            self.scanned = self.scanned.saturating_sub(self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// What has not been used.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// How much has not been used.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether everything has been used. The rest of a line that was too long counts as used.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Uses `count` bytes of [`LineBuffer::rest`] as something that is not a line.
    pub fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.bytes.len());
        self.scanned = self.start;
    }

    /// Forgets everything, and gives the memory back.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The next line without its CRLF, or `None` until it has come. `limit` is told what has come of the line and
    /// answers how long it may be, CRLF included.
    ///
    /// # Errors
    /// As soon as the error is certain, without waiting for a CRLF that may never come.
    pub fn next_line(&mut self, limit: impl FnOnce(&[u8]) -> usize) -> Option<Result<Vec<u8>, LineError>> {
        let mut line = Vec::new();
        self.next_line_into(limit, &mut line).map(|read| read.map(|()| line))
    }

    /// The same, into `line`, whose memory is used again.
    ///
    /// # Errors
    /// As [`LineBuffer::next_line`]; `line` is empty then.
    pub fn next_line_into(
        &mut self,
        limit: impl FnOnce(&[u8]) -> usize,
        line: &mut Vec<u8>,
    ) -> Option<Result<(), LineError>> {
        line.clear();
        if self.skipping && !self.skip() {
            return None;
        }
        let limit = limit(self.rest());
        let from = self.scanned.max(self.start);
        let found = self.bytes[from..].iter().position(|byte| matches!(byte, b'\r' | b'\n')).map(|at| from + at);
        let Some(at) = found else {
            self.scanned = self.bytes.len();
            // One more byte, the CR, could still come; it would need its LF as well.
            return (self.len() + 2 > limit).then(|| Err(self.refuse(LineError::TooLong)));
        };
        if at - self.start + 2 > limit {
            return Some(Err(self.refuse(LineError::TooLong)));
        }
        match (self.bytes[at], self.bytes.get(at + 1)) {
            (b'\r', Some(b'\n')) => {
                line.extend_from_slice(&self.bytes[self.start..at]);
                self.consume(at + 2 - self.start);
                Some(Ok(()))
            }
            (b'\r', None) => {
                self.scanned = at;
                None
            }
            _ => Some(Err(self.refuse(LineError::BareLineEnd))),
        }
    }

    fn refuse(&mut self, error: LineError) -> LineError {
        self.skipping = true;
        self.skip();
        error
    }

    /// Throws away up to and including the next CRLF. Answers whether it was found.
    fn skip(&mut self) -> bool {
        let rest = self.rest();
        if let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
            self.consume(at + 2);
            self.skipping = false;
            return true;
        }
        // A CR at the end may be the first half.
        let keep = usize::from(rest.last() == Some(&b'\r'));
        self.consume(rest.len() - keep);
        false
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lines(pieces: &[&[u8]], limit: usize) -> Vec<Result<String, LineError>> {
        let mut buffer = LineBuffer::default();
        let mut found = Vec::new();
        for piece in pieces {
            buffer.push(piece);
            while let Some(line) = buffer.next_line(|_| limit) {
                found.push(line.map(|line| String::from_utf8(line).unwrap()));
            }
        }
        found
    }

    #[test]
    fn lines_come_out_the_same_wherever_they_are_split() {
        let stream = b"EHLO a\r\n\r\nNOOP b\r\nbare\nrest\r\nbare\rrest\r\n\n\r\ntoo long for us\r\nQUIT\r\n";
        let whole = lines(&[stream], 12);
        assert_eq!(
            whole,
            [
                Ok("EHLO a".to_owned()),
                Ok(String::new()),
                Ok("NOOP b".to_owned()),
                Err(LineError::BareLineEnd),
                Err(LineError::BareLineEnd),
                Err(LineError::BareLineEnd),
                Err(LineError::TooLong),
                Ok("QUIT".to_owned()),
            ]
        );
        for at in 0..stream.len() {
            assert_eq!(lines(&[&stream[..at], &stream[at..]], 12), whole, "split at {at}");
        }
        let single: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(lines(&single, 12), whole);
    }

    #[test]
    fn the_limit_counts_the_line_end() {
        assert_eq!(lines(&[b"12345678\r\n"], 10), [Ok("12345678".to_owned())]);
        assert_eq!(lines(&[b"123456789\r\n"], 10), [Err(LineError::TooLong)]);
    }

    #[test]
    fn a_megabyte_without_a_line_end_is_answered_at_once_and_not_kept() {
        let mut buffer = LineBuffer::default();
        let mut errors = 0;
        for _ in 0..1024 {
            buffer.push(&[b'x'; 1024]);
            errors += usize::from(buffer.next_line(|_| 512).is_some());
            assert!(buffer.len() <= 1024);
        }
        assert_eq!(errors, 1);
        assert!(buffer.bytes.capacity() < 8192);
    }
}
