//! One line → one [`Command`] (RFC 5321 §4.1). What the line means in its session is not decided here.

use super::xclient::Xclient;
use crate::mail::dsn_parameters::{parse_envid, xtext_decode};
use crate::mail::{AddressError, BodyType, ForwardPath, Notify, OriginalRecipient, Reply, Ret, ReversePath, reply};

/// RFC 5321 §4.5.3.1.4: 512 octets, CRLF included.
pub const LINE_MAX: usize = 512;
/// `MAIL` with what its parameters add: `SIZE` 26 (RFC 1870 §3), `BODY` 17 (RFC 6152 §2), `AUTH` 500 (RFC 4954 §5),
/// `SMTPUTF8` 10 (RFC 6531 §3.1), `RET` 9 and `ENVID` 107 (RFC 3461 §4).
pub const MAIL_LINE_MAX: usize = LINE_MAX + 26 + 17 + 500 + 10 + 9 + 107;
/// `RCPT` with `NOTIFY` 29 and `ORCPT` 507 (RFC 3461 §4).
pub const RCPT_LINE_MAX: usize = LINE_MAX + 29 + 507;
/// RFC 4954 §4: an exchange of up to 12288 octets, in `AUTH` itself or in a line of its own.
pub const AUTH_LINE_MAX: usize = 12_288;
/// `XCLIENT` with each of its attributes once.
pub const XCLIENT_LINE_MAX: usize = 2048;

/// A command, its arguments parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `HELO` and its argument, a valid domain or address literal, as given.
    Helo(String),
    /// `EHLO` and its argument, a valid domain or address literal, as given.
    Ehlo(String),
    /// `MAIL FROM:<…>`.
    Mail(MailCommand),
    /// `RCPT TO:<…>`.
    Rcpt(RcptCommand),
    /// `DATA`.
    Data,
    /// `BDAT`: its octets follow.
    Bdat(Chunk),
    /// `RSET`.
    Rset,
    /// `NOOP`, whatever follows.
    Noop,
    /// `QUIT`.
    Quit,
    /// `VRFY`, whatever follows.
    Vrfy,
    /// `EXPN`, whatever follows.
    Expn,
    /// `HELP`, whatever follows.
    Help,
    /// `STARTTLS`.
    StartTls,
    /// `AUTH`.
    Auth(AuthCommand),
    /// `XCLIENT`, its arguments not looked at before it is known that the peer may say them.
    Xclient(Result<Box<Xclient>, CommandError>),
}

/// `MAIL FROM:<…>` and its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailCommand {
    /// The sender.
    pub reverse_path: ReversePath,
    /// `SIZE=` (RFC 1870 §6), in octets; more than 64 bits is the most there can be.
    pub size: Option<u64>,
    /// `BODY=` (RFC 6152 §2, RFC 3030 §3).
    pub body: Option<BodyType>,
    /// `AUTH=` (RFC 4954 §5), which is read and never believed.
    pub auth: bool,
    /// `SMTPUTF8` (RFC 6531 §3.4).
    pub smtp_utf8: bool,
    /// `RET=` (RFC 3461 §4.3).
    pub ret: Option<Ret>,
    /// `ENVID=` (RFC 3461 §4.4), decoded.
    pub envid: Option<String>,
}

/// `RCPT TO:<…>` and its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RcptCommand {
    /// The recipient.
    pub forward_path: ForwardPath,
    /// Whether the line is not ASCII: only a transaction with `SMTPUTF8` may have it.
    pub non_ascii: bool,
    /// `NOTIFY=` (RFC 3461 §4.1).
    pub notify: Option<Notify>,
    /// `ORCPT=` (RFC 3461 §4.2).
    pub orcpt: Option<OriginalRecipient>,
}

/// `BDAT` and its arguments (RFC 3030 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Octets that follow.
    pub size: u64,
    /// Whether the letter ends with them.
    pub last: bool,
}

/// `AUTH` and its arguments. The initial response may be a secret: it is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthCommand {
    /// In upper case.
    pub mechanism: String,
    /// In base64, or `=`.
    pub initial_response: Option<String>,
}

impl std::fmt::Debug for AuthCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthCommand").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

/// Why a line was not a command. Theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Not one of our verbs.
    #[error("unknown verb")]
    Unrecognized,
    /// A web browser, or TLS where nobody speaks it: not a client of ours, and not to be answered as one.
    #[error("not SMTP")]
    NotSmtp,
    /// Arguments that are missing, too many or malformed.
    #[error("malformed arguments")]
    Arguments,
    /// A parameter of `MAIL` or `RCPT` that nobody offered.
    #[error("unknown parameter")]
    Parameter,
    /// `BDAT` without a number of octets: where the next command begins is not known.
    #[error("malformed chunk size")]
    ChunkSize,
    /// `EHLO` (`extended`) or `HELO` without an argument.
    #[error("no domain name")]
    DomainMissing {
        /// `EHLO`.
        extended: bool,
    },
    /// The argument of `EHLO` or `HELO`.
    #[error("malformed domain name")]
    DomainName,
    /// The reverse-path.
    #[error("reverse-path: {0}")]
    Sender(AddressError),
    /// The forward-path.
    #[error("forward-path: {0}")]
    Recipient(AddressError),
}

impl CommandError {
    /// What the client is told.
    #[must_use]
    pub fn reply(self) -> Reply {
        match self {
            Self::Unrecognized | Self::NotSmtp => reply::unrecognized_command(),
            Self::Arguments => reply::invalid_arguments(),
            Self::Parameter => reply::unsupported_parameter(),
            Self::ChunkSize => reply::invalid_chunk_size(),
            Self::DomainName | Self::DomainMissing { .. } => reply::invalid_domain_name(),
            Self::Sender(AddressError::NotAscii) | Self::Recipient(AddressError::NotAscii) => {
                reply::non_ascii_address()
            }
            Self::Sender(_) => reply::invalid_sender(),
            Self::Recipient(_) => reply::invalid_recipient(),
        }
    }
}

/// How long the line that begins with `start` may be, CRLF included.
#[must_use]
pub fn line_limit(start: &[u8]) -> usize {
    let verb = start.get(..5).unwrap_or_default();
    if verb.eq_ignore_ascii_case(b"AUTH ") {
        AUTH_LINE_MAX
    } else if verb.eq_ignore_ascii_case(b"MAIL ") {
        MAIL_LINE_MAX
    } else if verb.eq_ignore_ascii_case(b"RCPT ") {
        RCPT_LINE_MAX
    } else if verb.eq_ignore_ascii_case(b"XCLIE") {
        XCLIENT_LINE_MAX
    } else {
        LINE_MAX
    }
}

/// Whether a line begins as `BDAT` does, whatever follows.
#[must_use]
pub(super) fn is_bdat(start: &[u8]) -> bool {
    start.get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case(b"BDAT"))
}

impl Command {
    /// Parses a line without its CRLF. Verbs and keywords are read in any case (RFC 5321 §2.4); white space at the
    /// end is tolerated (§4.1.1).
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn parse(line: &[u8]) -> Result<Self, CommandError> {
        // RFC 8446 §5.1: a handshake record. RFC 5321 has no verb with control characters.
        if line.starts_with(&[0x16, 0x03]) {
            return Err(CommandError::NotSmtp);
        }
        // Whatever else it is, octets may follow that are not commands.
        if is_bdat(line) && !matches!(line.get(4), None | Some(b' ')) {
            return Err(CommandError::ChunkSize);
        }
        // Verbs have no more than eight letters; what is longer is none of them, and needs no memory.
        let mut upper = [0; 8];
        let (verb, arguments) = split_verb(line, &mut upper)?;
        match verb {
            b"HELO" => parse_name(arguments, false).map(Self::Helo),
            b"EHLO" => parse_name(arguments, true).map(Self::Ehlo),
            b"MAIL" => parse_mail(arguments).map(Self::Mail),
            b"RCPT" => parse_rcpt(arguments).map(Self::Rcpt),
            b"AUTH" => parse_auth(arguments).map(Self::Auth),
            b"DATA" => without_arguments(arguments, Self::Data),
            b"BDAT" => parse_bdat(arguments).map(Self::Bdat),
            b"RSET" => without_arguments(arguments, Self::Rset),
            b"QUIT" => without_arguments(arguments, Self::Quit),
            b"STARTTLS" => without_arguments(arguments, Self::StartTls),
            b"NOOP" => Ok(Self::Noop),
            b"VRFY" => Ok(Self::Vrfy),
            b"EXPN" => Ok(Self::Expn),
            b"HELP" => Ok(Self::Help),
            b"XCLIENT" => Ok(Self::Xclient(Xclient::parse(arguments).map(Box::new))),
            // A web page can make a browser post a letter to us: such a peer gets no second line.
            b"GET" | b"POST" | b"PUT" | b"HEAD" | b"CONNECT" | b"OPTIONS" | b"DELETE" | b"PATCH" => {
                Err(CommandError::NotSmtp)
            }
            _ => Err(CommandError::Unrecognized),
        }
    }
}

/// The verb in upper case, written into `upper`, and its arguments without white space at either end.
fn split_verb<'a, 'b>(line: &'a [u8], upper: &'b mut [u8; 8]) -> Result<(&'b [u8], &'a [u8]), CommandError> {
    let end = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
    let verb = upper.get_mut(..end).ok_or(CommandError::Unrecognized)?;
    verb.copy_from_slice(&line[..end]);
    verb.make_ascii_uppercase();
    Ok((verb, line[end..].trim_ascii()))
}

fn without_arguments(arguments: &[u8], command: Command) -> Result<Command, CommandError> {
    if arguments.is_empty() { Ok(command) } else { Err(CommandError::Arguments) }
}

fn parse_name(arguments: &[u8], extended: bool) -> Result<String, CommandError> {
    if arguments.is_empty() {
        return Err(CommandError::DomainMissing { extended });
    }
    let name = std::str::from_utf8(arguments).map_err(|_| CommandError::DomainName)?;
    match crate::mail::Domain::parse(name) {
        Ok(_) => Ok(name.to_owned()),
        // A host that names itself by its bare address is a common mistake, and harmless: nothing depends on it.
        Err(_) if name.parse::<std::net::IpAddr>().is_ok() => Ok(name.to_owned()),
        Err(_) => Err(CommandError::DomainName),
    }
}

/// The parameters of `MAIL` and `RCPT` (RFC 5321 §4.1.2), each with its value, if it has one.
fn parameters(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let words = text.split(' ').filter(|word| !word.is_empty());
    words.map(|word| word.split_once('=').map_or((word, None), |(keyword, value)| (keyword, Some(value))))
}

fn parse_mail(arguments: &[u8]) -> Result<MailCommand, CommandError> {
    let (path, text) = split_path(arguments, b"FROM:", CommandError::Sender)?;
    // Which characters the path may have is said behind it.
    let smtp_utf8 = parameters(text).any(|(keyword, _)| keyword.eq_ignore_ascii_case("SMTPUTF8"));
    let parse = if smtp_utf8 { ReversePath::parse_path_utf8 } else { ReversePath::parse_path };
    let reverse_path = parse(path).map_err(CommandError::Sender)?;
    let mut command =
        MailCommand { reverse_path, size: None, body: None, auth: false, smtp_utf8: false, ret: None, envid: None };
    for (keyword, value) in parameters(text) {
        let is = |name: &str| keyword.eq_ignore_ascii_case(name);
        let value = value.ok_or(CommandError::Arguments);
        let seen_before = if is("SIZE") {
            command.size.replace(parse_size(value?)?).is_some()
        } else if is("BODY") {
            command.body.replace(parse_body(value?)?).is_some()
        } else if is("AUTH") {
            parse_auth_parameter(value?)?;
            std::mem::replace(&mut command.auth, true)
        } else if is("RET") {
            command.ret.replace(value?.parse().map_err(|_| CommandError::Arguments)?).is_some()
        } else if is("ENVID") {
            command.envid.replace(parse_envid(value?).map_err(|_| CommandError::Arguments)?).is_some()
        } else if is("SMTPUTF8") {
            // RFC 6531 §3.4: it has no value.
            value.is_ok() || std::mem::replace(&mut command.smtp_utf8, true)
        } else {
            return Err(CommandError::Parameter);
        };
        if seen_before {
            return Err(CommandError::Arguments);
        }
    }
    Ok(command)
}

fn parse_rcpt(arguments: &[u8]) -> Result<RcptCommand, CommandError> {
    let (path, text) = split_path(arguments, b"TO:", CommandError::Recipient)?;
    let forward_path = ForwardPath::parse_path_utf8(path).map_err(CommandError::Recipient)?;
    let mut command = RcptCommand { forward_path, non_ascii: !arguments.is_ascii(), notify: None, orcpt: None };
    for (keyword, value) in parameters(text) {
        let value = value.ok_or(CommandError::Arguments);
        let seen_before = if keyword.eq_ignore_ascii_case("NOTIFY") {
            command.notify.replace(value?.parse().map_err(|_| CommandError::Arguments)?).is_some()
        } else if keyword.eq_ignore_ascii_case("ORCPT") {
            let orcpt = OriginalRecipient::parse(value?, command.non_ascii).map_err(|_| CommandError::Arguments)?;
            command.orcpt.replace(orcpt).is_some()
        } else {
            return Err(CommandError::Parameter);
        };
        if seen_before {
            return Err(CommandError::Arguments);
        }
    }
    Ok(command)
}

/// RFC 4954 §5: `<>`, or a mailbox as xtext. Somebody else's word for who sent a letter: it is checked and forgotten.
fn parse_auth_parameter(value: &str) -> Result<(), CommandError> {
    match xtext_decode(value) {
        Ok(mailbox) if !mailbox.is_empty() => Ok(()),
        _ => Err(CommandError::Arguments),
    }
}

/// RFC 3030 §2: `chunk-size [LAST]`.
fn parse_bdat(arguments: &[u8]) -> Result<Chunk, CommandError> {
    let text = std::str::from_utf8(arguments).map_err(|_| CommandError::ChunkSize)?;
    let mut words = text.split(' ').filter(|word| !word.is_empty());
    let digits = words.next().unwrap_or_default();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(CommandError::ChunkSize);
    }
    let size = digits.parse().map_err(|_| CommandError::ChunkSize)?;
    let last = match words.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case("LAST") => true,
        Some(_) => return Err(CommandError::ChunkSize),
    };
    if words.next().is_some() { Err(CommandError::ChunkSize) } else { Ok(Chunk { size, last }) }
}

/// `FROM:<path> parameters` → the path with its brackets, and the parameters.
fn split_path<'a>(
    arguments: &'a [u8],
    keyword: &[u8],
    not_address: fn(AddressError) -> CommandError,
) -> Result<(&'a str, &'a str), CommandError> {
    let head = arguments.get(..keyword.len()).ok_or(CommandError::Arguments)?;
    if !head.eq_ignore_ascii_case(keyword) {
        return Err(CommandError::Arguments);
    }
    let rest = &arguments[keyword.len()..];
    // RFC 6531 §3.3: UTF-8 or nothing.
    let rest = std::str::from_utf8(rest).map_err(|_| not_address(AddressError::NotAscii))?;
    let end = path_end(rest).ok_or_else(|| not_address(AddressError::Syntax))?;
    match rest.split_at(end) {
        (path, "") => Ok((path, "")),
        (path, parameters) if parameters.starts_with(' ') => Ok((path, parameters.trim())),
        _ => Err(not_address(AddressError::Syntax)),
    }
}

/// Where the path ends: after the first `>` that is not within a quoted string.
fn path_end(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    if !text.starts_with('<') {
        return None;
    }
    // What is looked for is ASCII, and no octet of another character is.
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some(index + 1),
            _ => {}
        }
    }
    None
}

/// RFC 1870 §4: up to 20 digits.
fn parse_size(value: &str) -> Result<u64, CommandError> {
    if value.is_empty() || value.len() > 20 || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(CommandError::Arguments);
    }
    // 20 digits can be more than 64 bits hold: larger than any limit is what matters.
    Ok(value.parse().unwrap_or(u64::MAX))
}

fn parse_body(value: &str) -> Result<BodyType, CommandError> {
    if value.eq_ignore_ascii_case("7BIT") {
        Ok(BodyType::SevenBit)
    } else if value.eq_ignore_ascii_case("8BITMIME") {
        Ok(BodyType::EightBitMime)
    } else if value.eq_ignore_ascii_case("BINARYMIME") {
        Ok(BodyType::BinaryMime)
    } else {
        Err(CommandError::Arguments)
    }
}

fn parse_auth(arguments: &[u8]) -> Result<AuthCommand, CommandError> {
    let text = std::str::from_utf8(arguments).map_err(|_| CommandError::Arguments)?;
    let mut words = text.split(' ');
    let mechanism = words.next().filter(|word| !word.is_empty()).ok_or(CommandError::Arguments)?;
    let initial_response = words.next().map(str::to_owned);
    if words.next().is_some() {
        return Err(CommandError::Arguments);
    }
    Ok(AuthCommand { mechanism: mechanism.to_ascii_uppercase(), initial_response })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn mail(line: &str) -> MailCommand {
        match Command::parse(line.as_bytes()) {
            Ok(Command::Mail(mail)) => mail,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn mail_parameters_are_read_in_any_order_and_case() {
        let command = mail("mail from:<a@b.example> body=8bitmime SIZE=123 AUTH=<>");
        assert_eq!(command.size, Some(123));
        assert_eq!(command.body, Some(BodyType::EightBitMime));
        assert!(command.auth);
        assert!(mail("MAIL FROM:<>  ").reverse_path.is_null());
        assert_eq!(mail("MAIL FROM:<\"a> b\"@c> SIZE=1").reverse_path.to_string(), "\"a> b\"@c");
        assert_eq!(mail("MAIL FROM:<a@b> SIZE=99999999999999999999").size, Some(u64::MAX));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, error) in [
            ("", CommandError::Unrecognized),
            (" NOOP", CommandError::Unrecognized),
            ("NOOPX", CommandError::Unrecognized),
            ("MAIL\tFROM:<a@b>", CommandError::Unrecognized),
            ("BURL imap://x", CommandError::Unrecognized),
            ("GET / HTTP/1.1", CommandError::NotSmtp),
            ("post / HTTP/1.1", CommandError::NotSmtp),
            ("EHLO", CommandError::DomainMissing { extended: true }),
            ("HELO ", CommandError::DomainMissing { extended: false }),
            ("HELO a b", CommandError::DomainName),
            ("EHLO a..b", CommandError::DomainName),
            ("EHLO a\u{0}b", CommandError::DomainName),
            ("EHLO [1.2.3]", CommandError::DomainName),
            ("MAIL", CommandError::Arguments),
            ("MAIL FROM", CommandError::Arguments),
            ("MAIL TO:<a@b>", CommandError::Arguments),
            ("MAIL FROM: <a@b>", CommandError::Sender(AddressError::Syntax)),
            ("MAIL FROM:a@b", CommandError::Sender(AddressError::Syntax)),
            ("MAIL FROM:<a@b", CommandError::Sender(AddressError::Syntax)),
            ("MAIL FROM:<a@b>SIZE=1", CommandError::Sender(AddressError::Syntax)),
            ("MAIL FROM:<ä@b>", CommandError::Sender(AddressError::NotAscii)),
            ("MAIL FROM:<a@b> SIZE=1 SIZE=1", CommandError::Arguments),
            ("MAIL FROM:<a@b> BODY=7BIT BODY=7BIT", CommandError::Arguments),
            ("MAIL FROM:<a@b> SIZE=", CommandError::Arguments),
            ("MAIL FROM:<a@b> SIZE", CommandError::Arguments),
            ("MAIL FROM:<a@b> SIZE=-1", CommandError::Arguments),
            ("MAIL FROM:<a@b> SIZE=0x10", CommandError::Arguments),
            ("MAIL FROM:<a@b> SIZE=999999999999999999999", CommandError::Arguments),
            ("MAIL FROM:<a@b> BODY=BINARY", CommandError::Arguments),
            ("MAIL FROM:<a@b> SMTPUTF8=1", CommandError::Arguments),
            ("MAIL FROM:<a@b> SMTPUTF8 SMTPUTF8", CommandError::Arguments),
            ("MAIL FROM:<a@b> RET=BODY", CommandError::Arguments),
            ("MAIL FROM:<a@b> RET", CommandError::Arguments),
            ("MAIL FROM:<a@b> RET=HDRS RET=HDRS", CommandError::Arguments),
            ("MAIL FROM:<a@b> ENVID=", CommandError::Arguments),
            ("MAIL FROM:<a@b> ENVID=a+0A", CommandError::Arguments),
            ("MAIL FROM:<a@b> AUTH=", CommandError::Arguments),
            ("MAIL FROM:<a@b> AUTH=a=b", CommandError::Arguments),
            ("MAIL FROM:<a@b> NOTIFY=NEVER", CommandError::Parameter),
            ("MAIL FROM:<a@b> BY=5;R", CommandError::Parameter),
            ("MAIL FROM:<a@\u{fc}..b> SMTPUTF8", CommandError::Sender(AddressError::Syntax)),
            ("RCPT FROM:<a@b>", CommandError::Arguments),
            ("RCPT TO:<>", CommandError::Recipient(AddressError::Syntax)),
            ("RCPT TO:<a@b>,<c@d>", CommandError::Recipient(AddressError::Syntax)),
            ("RCPT TO:<a@b> NOTIFY=NEVER,FAILURE", CommandError::Arguments),
            ("RCPT TO:<a@b> NOTIFY=", CommandError::Arguments),
            ("RCPT TO:<a@b> NOTIFY=DELAY NOTIFY=DELAY", CommandError::Arguments),
            ("RCPT TO:<a@b> ORCPT=c@d", CommandError::Arguments),
            ("RCPT TO:<a@b> ORCPT=rfc822;c+0D@d", CommandError::Arguments),
            ("RCPT TO:<a@b> ORCPT=rfc822;c ORCPT=rfc822;c", CommandError::Arguments),
            ("RCPT TO:<a@b> RET=HDRS", CommandError::Parameter),
            ("RCPT TO:<a@b>NOTIFY=NEVER", CommandError::Recipient(AddressError::Syntax)),
            ("BDAT", CommandError::ChunkSize),
            ("BDAT LAST", CommandError::ChunkSize),
            ("BDAT -1", CommandError::ChunkSize),
            ("BDAT +1", CommandError::ChunkSize),
            ("BDAT 0x10", CommandError::ChunkSize),
            ("BDAT 1.", CommandError::ChunkSize),
            ("BDAT 18446744073709551616", CommandError::ChunkSize),
            ("BDAT 99999999999999999999999999999999999999 LAST", CommandError::ChunkSize),
            ("BDAT 5 LAST LAST", CommandError::ChunkSize),
            ("BDAT 5 FIRST", CommandError::ChunkSize),
            ("BDAT\t5", CommandError::ChunkSize),
            ("bdatum", CommandError::ChunkSize),
            ("DATA now", CommandError::Arguments),
            ("RSET x", CommandError::Arguments),
            ("QUIT x", CommandError::Arguments),
            ("STARTTLS now", CommandError::Arguments),
            ("AUTH", CommandError::Arguments),
            ("AUTH PLAIN a b", CommandError::Arguments),
        ] {
            assert_eq!(Command::parse(line.as_bytes()), Err(error), "{line:?}");
        }
        assert_eq!(Command::parse(b"\x16\x03\x01\x02\x00"), Err(CommandError::NotSmtp));
    }

    #[test]
    fn delivery_status_and_international_parameters_are_read() {
        let command =
            mail("MAIL FROM:<\u{fc}@b.example> RET=hdrs ENVID=QQ+20314 smtputf8 BODY=BINARYMIME AUTH=e+3Dmc2@x");
        assert!(command.smtp_utf8 && command.auth);
        assert_eq!(command.reverse_path.to_string(), "\u{fc}@b.example");
        assert_eq!((command.ret, command.envid.as_deref()), (Some(Ret::Headers), Some("QQ 314")));
        assert_eq!(command.body, Some(BodyType::BinaryMime));
        let Ok(Command::Rcpt(rcpt)) = Command::parse(b"RCPT TO:<a@b> ORCPT=rfc822;c+2Bd@e NOTIFY=FAILURE,DELAY") else {
            panic!("a recipient");
        };
        assert_eq!(rcpt.orcpt.unwrap().to_string(), "rfc822; c+d@e");
        assert_eq!(rcpt.notify.unwrap().to_string(), "FAILURE,DELAY");
        assert!(!rcpt.non_ascii);
        let Ok(Command::Rcpt(rcpt)) = Command::parse("RCPT TO:<a@b\u{fc}cher.example>".as_bytes()) else {
            panic!("a recipient");
        };
        assert!(rcpt.non_ascii);
    }

    #[test]
    fn a_chunk_has_a_size_and_may_be_the_last() {
        for (line, size, last) in [
            ("BDAT 0", 0, false),
            ("bdat 00012 last", 12, true),
            ("BDAT  5  LAST ", 5, true),
            ("BDAT 18446744073709551615", u64::MAX, false),
        ] {
            assert_eq!(Command::parse(line.as_bytes()), Ok(Command::Bdat(Chunk { size, last })), "{line}");
        }
    }

    #[test]
    fn commands_without_arguments_tolerate_space_at_the_end() {
        assert_eq!(Command::parse(b"quit "), Ok(Command::Quit));
        assert_eq!(Command::parse(b"Data"), Ok(Command::Data));
        assert_eq!(Command::parse(b"NOOP whatever"), Ok(Command::Noop));
        assert_eq!(Command::parse(b"HELO [IPv6:::1]"), Ok(Command::Helo("[IPv6:::1]".to_owned())));
        assert_eq!(Command::parse(b"EHLO 192.0.2.1"), Ok(Command::Ehlo("192.0.2.1".to_owned())));
    }

    #[test]
    fn a_secret_in_auth_is_never_shown() {
        let command = Command::parse(b"auth plain c2VjcmV0").unwrap();
        let shown = format!("{command:?}");
        assert!(shown.contains("PLAIN") && !shown.contains("c2VjcmV0"), "{shown}");
    }

    #[test]
    fn lines_are_limited_by_their_verb() {
        assert_eq!(line_limit(b"auth PLAIN x"), AUTH_LINE_MAX);
        assert_eq!(line_limit(b"MAIL FROM"), MAIL_LINE_MAX);
        assert_eq!(line_limit(b"rcpt TO"), RCPT_LINE_MAX);
        assert_eq!(line_limit(b"xclient"), XCLIENT_LINE_MAX);
        assert_eq!(line_limit(b"AUTHX"), LINE_MAX);
        assert_eq!(line_limit(b""), LINE_MAX);
    }

    proptest! {
        #[test]
        fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..80), verb in 0usize..10) {
            let verb = [
                "MAIL FROM:<", "RCPT TO:<", "AUTH ", "EHLO ", "", "MAIL FROM:<a@b> ", "RCPT TO:<a@b> ORCPT=", "BDAT ",
                "XCLIENT ADDR=", "MAIL FROM:<a@b> SMTPUTF8 ENVID=",
            ][verb];
            let _ = Command::parse(&[verb.as_bytes(), &line].concat());
        }
    }
}
