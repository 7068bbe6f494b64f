//! Paths and mailboxes (RFC 5321 §4.1.2, RFC 6531 §3.3), parsed once at the edge into types that cannot be wrong. Where
//! a client asked for SMTPUTF8 a local part may hold any UTF-8. A domain is always kept as its A-labels: policy must
//! not know two spellings of one name.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use compact_str::{CompactString, format_compact};
use serde::{Deserialize, Serialize};

/// RFC 5321 §4.5.3.1.1, in octets, quotes and escapes not counted.
const LOCAL_PART_MAX: usize = 64;
/// RFC 5321 §4.5.3.1.2, in octets.
const DOMAIN_MAX: usize = 255;
/// RFC 1035 §2.3.4, in octets.
const LABEL_MAX: usize = 63;

/// Why an address was not understood. Theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// RFC 5321 §4.1.2 syntax.
    #[error("not an address")]
    Syntax,
    /// More than 64 octets (RFC 5321 §4.5.3.1.1).
    #[error("local part longer than 64 octets")]
    LocalPartTooLong,
    /// More than 255 octets (RFC 5321 §4.5.3.1.2).
    #[error("domain longer than 255 octets")]
    DomainTooLong,
    /// Bytes above 127 where SMTPUTF8 was not asked for (RFC 6531).
    #[error("8-bit characters without SMTPUTF8")]
    NotAscii,
}

/// A domain name in lower case without a trailing dot, or an address literal such as `[192.0.2.1]`. Up to 24 octets,
/// which most names are, need no memory of their own: a session reads one with every `MAIL` and `RCPT`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(CompactString);

impl Domain {
    /// Parses a name or an address literal.
    ///
    /// # Errors
    /// Anything that RFC 5321 §4.1.2 and §4.1.3 do not allow, a trailing dot included: two spellings of one name
    /// must not pass a policy that knows one of them. Underscores are accepted, because devices are named so.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if !text.is_ascii() {
            return Err(AddressError::NotAscii);
        }
        if text.len() > DOMAIN_MAX {
            return Err(AddressError::DomainTooLong);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let inside = rest.strip_suffix(']').ok_or(AddressError::Syntax)?;
            return parse_literal(inside);
        }
        if !text.split('.').all(is_label) {
            return Err(AddressError::Syntax);
        }
        // A name of digits and dots alone is an IPv4 address that lost its brackets, never a name (RFC 1123 §2.1).
        if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            return Err(AddressError::Syntax);
        }
        let mut name = CompactString::from(text);
        name.make_ascii_lowercase();
        Ok(Self(name))
    }

    /// Parses a name that may be written in U-labels (RFC 5890 §2.3.2.1), and keeps its A-labels.
    ///
    /// # Errors
    /// As [`Domain::parse`], and where the name has no A-labels (UTS 46).
    pub fn parse_utf8(text: &str) -> Result<Self, AddressError> {
        if text.is_ascii() {
            return Self::parse(text);
        }
        // Longer than any name in any spelling; what is parsed below is bounded by it.
        if text.len() > 4 * DOMAIN_MAX {
            return Err(AddressError::DomainTooLong);
        }
        let ascii = idna::domain_to_ascii_strict(text).map_err(|_| AddressError::Syntax)?;
        Self::parse(&ascii)
    }

    /// The name in lower case, or the literal with its brackets.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is an address literal (RFC 5321 §4.1.3) rather than a name.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.0.starts_with('[')
    }

    /// Whether this is a name of one label, such as `localhost`.
    #[must_use]
    pub fn is_single_label(&self) -> bool {
        !self.is_literal() && !self.0.contains('.')
    }
}

/// Writes literals one way only, so that equal addresses are equal domains.
fn parse_literal(inside: &str) -> Result<Domain, AddressError> {
    let tag = "IPv6:";
    if inside.len() >= tag.len() && inside[..tag.len()].eq_ignore_ascii_case(tag) {
        let address: Ipv6Addr = inside[tag.len()..].parse().map_err(|_| AddressError::Syntax)?;
        return Ok(Domain(format_compact!("[ipv6:{address}]")));
    }
    let address: Ipv4Addr = inside.parse().map_err(|_| AddressError::Syntax)?;
    Ok(Domain(format_compact!("[{address}]")))
}

fn is_label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= LABEL_MAX
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// A local part and a domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mailbox {
    /// Unquoted: what the quotes and escapes of the wire form mean.
    local_part: CompactString,
    domain: Domain,
}

impl Mailbox {
    /// Parses `local-part@domain`; the local part may be a quoted string (RFC 5321 §4.1.2).
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.is_ascii() { Self::parse_utf8(text) } else { Err(AddressError::NotAscii) }
    }

    /// Parses an address that may hold UTF-8 (RFC 6531 §3.3).
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn parse_utf8(text: &str) -> Result<Self, AddressError> {
        let (local_part, rest) = take_local_part(text)?;
        let domain = Domain::parse_utf8(rest.strip_prefix('@').ok_or(AddressError::Syntax)?)?;
        Ok(Self { local_part, domain })
    }

    /// Whether it can be said without SMTPUTF8.
    #[must_use]
    pub fn is_ascii(&self) -> bool {
        self.local_part.is_ascii()
    }

    /// Makes a mailbox of a local part without quotes and a domain.
    ///
    /// # Errors
    /// The local part is empty, too long, or holds control or 8-bit characters.
    pub fn try_new(local_part: &str, domain: Domain) -> Result<Self, AddressError> {
        if !local_part.is_ascii() {
            return Err(AddressError::NotAscii);
        }
        if local_part.len() > LOCAL_PART_MAX {
            return Err(AddressError::LocalPartTooLong);
        }
        if local_part.is_empty() || local_part.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(AddressError::Syntax);
        }
        Ok(Self { local_part: local_part.into(), domain })
    }

    /// The local part without quotes and escapes, in the case it was given (RFC 5321 §2.4).
    #[must_use]
    pub fn local_part(&self) -> &str {
        &self.local_part
    }

    /// The domain.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }
}

/// The local part at the start of `text`, unquoted, and what follows it.
fn take_local_part(text: &str) -> Result<(CompactString, &str), AddressError> {
    if let Some(rest) = text.strip_prefix('"') {
        return take_quoted_string(rest);
    }
    let end = text.find('@').ok_or(AddressError::Syntax)?;
    let (local_part, rest) = text.split_at(end);
    if !is_dot_string(local_part) {
        return Err(AddressError::Syntax);
    }
    if local_part.len() > LOCAL_PART_MAX {
        return Err(AddressError::LocalPartTooLong);
    }
    Ok((local_part.into(), rest))
}

/// The rest of a quoted string whose opening quote has been taken.
fn take_quoted_string(text: &str) -> Result<(CompactString, &str), AddressError> {
    let mut local_part = CompactString::default();
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        // RFC 5321 §4.1.2: qtextSMTP and quoted-pairSMTP are printable ASCII and space; RFC 6531 §3.3 adds UTF-8.
        if !matches!(c, ' '..='~') && !is_international(c) {
            return Err(AddressError::Syntax);
        }
        match c {
            '"' if !escaped => {
                // RFC 5321 allows "" and nobody can deliver to it.
                return match local_part.len() {
                    0 => Err(AddressError::Syntax),
                    1..=LOCAL_PART_MAX => Ok((local_part, &text[index + 1..])),
                    _ => Err(AddressError::LocalPartTooLong),
                };
            }
            '\\' if !escaped => escaped = true,
            _ => {
                escaped = false;
                local_part.push(c);
            }
        }
    }
    Err(AddressError::Syntax)
}

/// Whether `text` is a Dot-string: atoms with single dots between them.
fn is_dot_string(text: &str) -> bool {
    let is_atext = |byte: u8| ATEXT[usize::from(byte)];
    if text.is_ascii() {
        // Nearly always; no other character is decoded for nothing.
        return text
            .as_bytes()
            .split(|byte| *byte == b'.')
            .all(|atom| !atom.is_empty() && atom.iter().all(|byte| is_atext(*byte)));
    }
    let is_atext = |c: char| if c.is_ascii() { ATEXT[c as usize] } else { is_international(c) };
    text.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atext))
}

/// RFC 5322 §3.2.3: whether an octet is one of an atom.
const ATEXT: [bool; 256] = {
    let mut table = [false; 256];
    let mut octet = 0;
    while octet < 256 {
        table[octet] = (octet as u8).is_ascii_alphanumeric();
        octet += 1;
    }
    let others = b"!#$%&'*+-/=?^_`{|}~";
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};

/// RFC 6532 §3.1, without the control characters of ISO 8859-1 and the separators of lines and paragraphs: they would
/// end a line in somebody's log.
fn is_international(c: char) -> bool {
    !c.is_ascii() && !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}')
}

/// What `MAIL FROM:<…>` names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ReversePath {
    /// `<>`: a report, never answered by another report (RFC 5321 §4.5.5).
    Null,
    /// A sender.
    Mailbox(Mailbox),
}

impl ReversePath {
    /// Parses the wire form with its angle brackets.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn parse_path(text: &str) -> Result<Self, AddressError> {
        if text.is_ascii() { Self::parse_path_utf8(text) } else { Err(AddressError::NotAscii) }
    }

    /// Parses the wire form where SMTPUTF8 was asked for.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn parse_path_utf8(text: &str) -> Result<Self, AddressError> {
        if text == "<>" {
            return Ok(Self::Null);
        }
        parse_mailbox_path(text).map(Self::Mailbox)
    }

    /// Whether this is `<>`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The sender, unless this is `<>`.
    #[must_use]
    pub fn mailbox(&self) -> Option<&Mailbox> {
        match self {
            Self::Null => None,
            Self::Mailbox(mailbox) => Some(mailbox),
        }
    }
}

/// What `RCPT TO:<…>` names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ForwardPath {
    /// `<Postmaster>` without a domain (RFC 5321 §4.5.1).
    Postmaster,
    /// A recipient.
    Mailbox(Mailbox),
}

impl ForwardPath {
    /// Parses the wire form with its angle brackets.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn parse_path(text: &str) -> Result<Self, AddressError> {
        if text.is_ascii() { Self::parse_path_utf8(text) } else { Err(AddressError::NotAscii) }
    }

    /// Parses the wire form where SMTPUTF8 was asked for.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn parse_path_utf8(text: &str) -> Result<Self, AddressError> {
        // RFC 5321 §4.1.1.3: "Postmaster" without a domain, in any case.
        if text.eq_ignore_ascii_case("<postmaster>") {
            return Ok(Self::Postmaster);
        }
        parse_mailbox_path(text).map(Self::Mailbox)
    }

    /// The recipient, unless this is the postmaster without a domain.
    #[must_use]
    pub fn mailbox(&self) -> Option<&Mailbox> {
        match self {
            Self::Postmaster => None,
            Self::Mailbox(mailbox) => Some(mailbox),
        }
    }

    /// The recipient's domain, where there is one.
    #[must_use]
    pub fn domain(&self) -> Option<&Domain> {
        self.mailbox().map(Mailbox::domain)
    }
}

/// `<mailbox>` or `<@a,@b:mailbox>`.
fn parse_mailbox_path(text: &str) -> Result<Mailbox, AddressError> {
    let inside = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')).ok_or(AddressError::Syntax)?;
    Mailbox::parse_utf8(without_source_route(inside)?)
}

/// RFC 5321 §4.1.1.3 and appendix C: a source route must be accepted, should be ignored, and is never obeyed.
fn without_source_route(inside: &str) -> Result<&str, AddressError> {
    if !inside.starts_with('@') {
        return Ok(inside);
    }
    let mut rest = inside;
    loop {
        let hop = rest.strip_prefix('@').ok_or(AddressError::Syntax)?;
        // A literal may hold colons of its own.
        let end = if hop.starts_with('[') { hop.find(']').map(|at| at + 1) } else { hop.find([',', ':']) };
        let (domain, tail) = hop.split_at(end.ok_or(AddressError::Syntax)?);
        let _ignored = Domain::parse_utf8(domain)?;
        if let Some(mailbox) = tail.strip_prefix(':') {
            return Ok(mailbox);
        }
        rest = tail.strip_prefix(',').ok_or(AddressError::Syntax)?;
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The wire form without angle brackets: the local part is quoted when it has to be.
impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_dot_string(&self.local_part) {
            return write!(f, "{}@{}", self.local_part, self.domain);
        }
        f.write_str("\"")?;
        for c in self.local_part.chars() {
            if matches!(c, '"' | '\\') {
                f.write_str("\\")?;
            }
            write!(f, "{c}")?;
        }
        write!(f, "\"@{}", self.domain)
    }
}

/// The bare mailbox, or `<>`.
impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("<>"),
            Self::Mailbox(mailbox) => mailbox.fmt(f),
        }
    }
}

/// The bare mailbox, or `postmaster`.
impl fmt::Display for ForwardPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postmaster => f.write_str("postmaster"),
            Self::Mailbox(mailbox) => mailbox.fmt(f),
        }
    }
}

impl FromStr for Domain {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text)
    }
}

/// The stored form, UTF-8 where SMTPUTF8 brought it.
impl FromStr for Mailbox {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse_utf8(text)
    }
}

/// The stored form: the bare mailbox, or nothing (or `<>`) for the null reverse-path.
impl FromStr for ReversePath {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        if matches!(text, "" | "<>") { Ok(Self::Null) } else { text.parse().map(Self::Mailbox) }
    }
}

/// The stored form: the bare mailbox, or `postmaster`.
impl FromStr for ForwardPath {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.eq_ignore_ascii_case("postmaster") { Ok(Self::Postmaster) } else { text.parse().map(Self::Mailbox) }
    }
}

/// serde stores each of these as one string.
macro_rules! as_string {
    ($($name:ty),+) => {$(
        impl TryFrom<String> for $name {
            type Error = AddressError;
            fn try_from(text: String) -> Result<Self, AddressError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )+};
}

as_string!(Domain, Mailbox, ForwardPath);

impl TryFrom<String> for ReversePath {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<ReversePath> for String {
    fn from(path: ReversePath) -> Self {
        path.mailbox().map(Mailbox::to_string).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forward_paths_are_read_as_rfc_5321_writes_them() {
        for (wire, bare) in [
            ("<a@B.Example>", "a@b.example"),
            ("<A.b+c@x-1.example>", "A.b+c@x-1.example"),
            ("<\"a b\"@x.example>", "\"a b\"@x.example"),
            ("<\"plain\"@x.example>", "plain@x.example"),
            ("<\"a\\\"b\\\\\"@x.example>", "\"a\\\"b\\\\\"@x.example"),
            ("<\"r@e.example\"@x.example>", "\"r@e.example\"@x.example"),
            ("<@h.example:a@x.example>", "a@x.example"),
            ("<@h.example,@[192.0.2.1],@[IPv6:::1]:a@x.example>", "a@x.example"),
            ("<a@[192.0.2.1]>", "a@[192.0.2.1]"),
            ("<a@[IPv6:2001:DB8:0::1]>", "a@[ipv6:2001:db8::1]"),
            ("<a@xn--bcher-kva.example>", "a@xn--bcher-kva.example"),
            ("<a%b@x.example>", "a%b@x.example"),
            ("<a!b@x.example>", "a!b@x.example"),
            ("<printer@my_host>", "printer@my_host"),
            ("<PostMaster>", "postmaster"),
        ] {
            assert_eq!(ForwardPath::parse_path(wire).unwrap().to_string(), bare, "{wire}");
        }
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        for wire in [
            "",
            "a@x.example",
            "<a@x.example",
            "a@x.example>",
            "<>",
            "< a@x.example>",
            "<a@x.example >",
            "<a>",
            "<a@>",
            "<@x.example>",
            "<a@x.example.>",
            "<a@.x>",
            "<a@x..y>",
            "<.a@x>",
            "<a.@x>",
            "<a..b@x>",
            "<a@-x>",
            "<a@x->",
            "<a@b@x.example>",
            "<a@192.0.2.1>",
            "<a@[192.0.2.256]>",
            "<a@[x]>",
            "<a@[192.0.2.1>",
            "<a@[IPv6:1.2.3.4]>",
            "<a@[::1]>",
            "<\"a@x.example>",
            "<\"\"@x.example>",
            "<\"a\"b@x.example>",
            "<\"a\u{0}\"@x>",
            "<\"a\\\"@x>",
            "<a(c)@x.example>",
            "<a b@x.example>",
            "<a\u{0}@x.example>",
            "<a@x\u{0}>",
            "<a@x>,<b@y>",
            "<@h:>",
            "<@h,a@x>",
            "<@h.example a@x>",
            "<a@x\r\n.example>",
            "<<a@x>>",
            "<a,b@x>",
        ] {
            assert!(ForwardPath::parse_path(wire).is_err(), "{wire:?}");
        }
    }

    #[test]
    fn the_null_reverse_path_is_only_for_senders() {
        assert_eq!(ReversePath::parse_path("<>"), Ok(ReversePath::Null));
        assert!(ReversePath::parse_path("< >").is_err());
        assert!(ReversePath::parse_path("<postmaster>").is_err());
    }

    #[test]
    fn limits_are_those_of_the_rfc() {
        let local = "l".repeat(64);
        assert!(Mailbox::parse(&format!("{local}@x.example")).is_ok());
        assert_eq!(Mailbox::parse(&format!("l{local}@x.example")), Err(AddressError::LocalPartTooLong));
        assert_eq!(Mailbox::parse(&format!("\" {local}\"@x.example")), Err(AddressError::LocalPartTooLong));
        let label = "d".repeat(63);
        let longest = format!("{label}.{label}.{label}.{label}");
        assert_eq!(longest.len(), 255);
        assert!(Domain::parse(&longest).is_ok());
        assert_eq!(Domain::parse(&format!("{longest}d")), Err(AddressError::DomainTooLong));
        assert_eq!(Domain::parse(&format!("{label}d.example")), Err(AddressError::Syntax));
    }

    #[test]
    fn eight_bit_addresses_are_told_apart() {
        assert_eq!(ForwardPath::parse_path("<ü@x.example>"), Err(AddressError::NotAscii));
        assert_eq!(Domain::parse("bücher.example"), Err(AddressError::NotAscii));
    }

    #[test]
    fn where_smtputf8_is_asked_for_local_parts_hold_it_and_domains_become_a_labels() {
        for (wire, bare) in [
            ("<ü@x.example>", "ü@x.example"),
            ("<δοκιμή@παράδειγμα.δοκιμή>", "δοκιμή@xn--hxajbheg2az3al.xn--jxalpdlp"),
            ("<a@BÜCHER.example>", "a@xn--bcher-kva.example"),
            ("<a@bu\u{308}cher.example>", "a@xn--bcher-kva.example"),
            ("<a@xn--bcher-kva.example>", "a@xn--bcher-kva.example"),
            ("<\"ü b\"@x.example>", "\"ü b\"@x.example"),
            ("<@bücher.example:a@x.example>", "a@x.example"),
            ("<plain@x.example>", "plain@x.example"),
        ] {
            let path = ForwardPath::parse_path_utf8(wire).unwrap();
            assert_eq!(path.to_string(), bare, "{wire}");
            assert_eq!(serde_json::from_str::<ForwardPath>(&serde_json::to_string(&path).unwrap()).unwrap(), path);
        }
        for wire in [
            "<ü\u{85}@x.example>",
            "<\"ü\u{2028}\"@x.example>",
            "<a@ü\u{0}.example>",
            "<a@\u{2024}example>",
            "<a@b\u{fffd}c.example>",
            "<ü..b@x.example>",
            "<ü@x@ü.example>",
        ] {
            assert!(ForwardPath::parse_path_utf8(wire).is_err(), "{wire:?}");
        }
        let long = format!("<a@{}>", "ü".repeat(2000));
        assert_eq!(ForwardPath::parse_path_utf8(&long), Err(AddressError::DomainTooLong));
        // 64 octets, not characters (RFC 6531 §3.3).
        assert!(ForwardPath::parse_path_utf8(&format!("<{}@x.example>", "ü".repeat(32))).is_ok());
        assert!(ForwardPath::parse_path_utf8(&format!("<{}@x.example>", "ü".repeat(33))).is_err());
    }

    #[test]
    fn stored_forms_come_back() {
        let null: ReversePath = serde_json::from_str("\"\"").unwrap();
        assert_eq!(null, ReversePath::Null);
        assert_eq!(serde_json::to_string(&null).unwrap(), "\"\"");
        assert_eq!(null.to_string(), "<>");
        let postmaster: ForwardPath = serde_json::from_str("\"postmaster\"").unwrap();
        assert_eq!(postmaster, ForwardPath::Postmaster);
        assert!(serde_json::from_str::<Mailbox>("\"x\"").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = ForwardPath::parse_path(&text);
            let _ = ReversePath::parse_path(&format!("<{text}>"));
            let _ = ReversePath::parse_path_utf8(&format!("<a@{text}>"));
            let _ = Domain::parse(&format!("[{text}]"));
        }

        #[test]
        fn display_parses_back(local in "[ -~]{1,64}", domain in "[a-z0-9][a-z0-9-]{0,10}[a-z](\\.[a-z]{1,9}){0,3}") {
            let mailbox = Mailbox::try_new(&local, Domain::parse(&domain).unwrap()).unwrap();
            prop_assert_eq!(Mailbox::parse(&mailbox.to_string()).unwrap(), mailbox);
        }
    }
}
