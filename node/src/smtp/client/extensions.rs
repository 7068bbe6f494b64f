//! What a next hop offers in its reply to `EHLO` (RFC 5321 §4.1.1.1).

use crate::mail::Reply;

/// What the next hop offered in its reply to `EHLO`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 3207.
    pub start_tls: bool,
    /// RFC 1870: offered, with the largest letter it takes; zero means no limit.
    pub size: Option<u64>,
    /// RFC 3030.
    pub chunking: bool,
    /// RFC 6531.
    pub smtp_utf8: bool,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 4954: the mechanisms, in upper case.
    pub auth: Vec<String>,
}

impl Extensions {
    pub(super) fn read(reply: &Reply) -> Self {
        let mut found = Self::default();
        // The first line is the next hop's name (RFC 5321 §4.1.1.1).
        for line in reply.lines.iter().skip(1) {
            // `AUTH=LOGIN` is what servers said before RFC 2554, and some still say both.
            let line = line.to_ascii_uppercase().replacen("AUTH=", "AUTH ", 1);
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("PIPELINING") => found.pipelining = true,
                Some("8BITMIME") => found.eight_bit_mime = true,
                Some("STARTTLS") => found.start_tls = true,
                Some("SIZE") => found.size = Some(words.next().and_then(|size| size.parse().ok()).unwrap_or(0)),
                Some("CHUNKING") => found.chunking = true,
                Some("SMTPUTF8") => found.smtp_utf8 = true,
                Some("DSN") => found.dsn = true,
                Some("AUTH") => found.auth.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        found
    }
}
