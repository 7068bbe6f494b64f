//! One line → one [`Command`] (RFC 5321 §4.1). What the line means in its session is not decided here.

use crate::mail::{AddressError, BodyType, ForwardPath, Reply, ReversePath, reply};

/// RFC 5321 §4.5.3.1.4: 512 octets, CRLF included.
pub const LINE_MAX: usize = 512;
/// `MAIL` with what its parameters add: `SIZE` 26 (RFC 1870 §3), `BODY` 17 (RFC 6152 §2), `AUTH` 500 (RFC 4954 §5).
pub const MAIL_LINE_MAX: usize = LINE_MAX + 26 + 17 + 500;
/// RFC 4954 §4: an exchange of up to 12288 octets, in `AUTH` itself or in a line of its own.
pub const AUTH_LINE_MAX: usize = 12_288;

/// A command, its arguments parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `HELO` and its argument, a valid domain or address literal, as given.
    Helo(String),
    /// `EHLO` and its argument, a valid domain or address literal, as given.
    Ehlo(String),
    /// `MAIL FROM:<…>`.
    Mail(MailCommand),
    /// `RCPT TO:<…>`, without parameters: none is offered.
    Rcpt(ForwardPath),
    /// `DATA`.
    Data,
    /// `RSET`.
    Rset,
    /// `NOOP`, whatever follows.
    Noop,
    /// `QUIT`.
    Quit,
    /// `VRFY` or `EXPN`, whatever follows.
    Vrfy,
    /// `HELP`, whatever follows.
    Help,
    /// `STARTTLS`.
    StartTls,
    /// `AUTH`.
    Auth(AuthCommand),
}

/// `MAIL FROM:<…>` and its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailCommand {
    /// The sender.
    pub reverse_path: ReversePath,
    /// `SIZE=` (RFC 1870 §6), in octets; more than 64 bits is the most there can be.
    pub size: Option<u64>,
    /// `BODY=` (RFC 6152 §2).
    pub body: Option<BodyType>,
    /// `AUTH=` (RFC 4954 §5), which is read and never believed.
    pub auth: bool,
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
            Self::DomainName => reply::invalid_domain_name(),
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
    } else {
        LINE_MAX
    }
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
        let (verb, arguments) = split_verb(line)?;
        match verb.as_str() {
            "HELO" => parse_name(arguments).map(Self::Helo),
            "EHLO" => parse_name(arguments).map(Self::Ehlo),
            "MAIL" => parse_mail(arguments).map(Self::Mail),
            "RCPT" => parse_rcpt(arguments).map(Self::Rcpt),
            "AUTH" => parse_auth(arguments).map(Self::Auth),
            "DATA" => without_arguments(arguments, Self::Data),
            "RSET" => without_arguments(arguments, Self::Rset),
            "QUIT" => without_arguments(arguments, Self::Quit),
            "STARTTLS" => without_arguments(arguments, Self::StartTls),
            "NOOP" => Ok(Self::Noop),
            "VRFY" | "EXPN" => Ok(Self::Vrfy),
            "HELP" => Ok(Self::Help),
            // A web page can make a browser post a letter to us: such a peer gets no second line.
            "GET" | "POST" | "PUT" | "HEAD" | "CONNECT" | "OPTIONS" | "DELETE" | "PATCH" => Err(CommandError::NotSmtp),
            _ => Err(CommandError::Unrecognized),
        }
    }
}

/// The verb in upper case, and its arguments without white space at either end.
fn split_verb(line: &[u8]) -> Result<(String, &[u8]), CommandError> {
    let end = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
    let verb = std::str::from_utf8(&line[..end]).map_err(|_| CommandError::Unrecognized)?;
    Ok((verb.to_ascii_uppercase(), line[end..].trim_ascii()))
}

fn without_arguments(arguments: &[u8], command: Command) -> Result<Command, CommandError> {
    if arguments.is_empty() { Ok(command) } else { Err(CommandError::Arguments) }
}

fn parse_name(arguments: &[u8]) -> Result<String, CommandError> {
    let name = std::str::from_utf8(arguments).map_err(|_| CommandError::DomainName)?;
    match crate::mail::Domain::parse(name) {
        Ok(_) => Ok(name.to_owned()),
        // A host that names itself by its bare address is a common mistake, and harmless: nothing depends on it.
        Err(_) if name.parse::<std::net::IpAddr>().is_ok() => Ok(name.to_owned()),
        Err(_) => Err(CommandError::DomainName),
    }
}

fn parse_mail(arguments: &[u8]) -> Result<MailCommand, CommandError> {
    let (path, parameters) = split_path(arguments, b"FROM:", CommandError::Sender)?;
    let reverse_path = ReversePath::parse_path(path).map_err(CommandError::Sender)?;
    let mut command = MailCommand { reverse_path, size: None, body: None, auth: false };
    for parameter in parameters.split(' ').filter(|word| !word.is_empty()) {
        let (keyword, value) = parameter.split_once('=').map_or((parameter, None), |(key, value)| (key, Some(value)));
        let seen_before = match (keyword.to_ascii_uppercase().as_str(), value) {
            ("SIZE", Some(value)) => command.size.replace(parse_size(value)?).is_some(),
            ("BODY", Some(value)) => command.body.replace(parse_body(value)?).is_some(),
            ("AUTH", Some(value)) if !value.is_empty() => std::mem::replace(&mut command.auth, true),
            ("SIZE" | "BODY" | "AUTH", _) => return Err(CommandError::Arguments),
            _ => return Err(CommandError::Parameter),
        };
        if seen_before {
            return Err(CommandError::Arguments);
        }
    }
    Ok(command)
}

fn parse_rcpt(arguments: &[u8]) -> Result<ForwardPath, CommandError> {
    let (path, parameters) = split_path(arguments, b"TO:", CommandError::Recipient)?;
    let forward_path = ForwardPath::parse_path(path).map_err(CommandError::Recipient)?;
    if parameters.is_empty() { Ok(forward_path) } else { Err(CommandError::Parameter) }
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
    if !rest.is_ascii() {
        return Err(not_address(AddressError::NotAscii));
    }
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
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '>' if !quoted => return Some(index + 1),
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
            ("BDAT 3 LAST", CommandError::Unrecognized),
            ("GET / HTTP/1.1", CommandError::NotSmtp),
            ("post / HTTP/1.1", CommandError::NotSmtp),
            ("EHLO", CommandError::DomainName),
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
            ("MAIL FROM:<a@b> BODY=BINARYMIME", CommandError::Arguments),
            ("MAIL FROM:<a@b> SMTPUTF8", CommandError::Parameter),
            ("MAIL FROM:<a@b> RET=HDRS", CommandError::Parameter),
            ("RCPT FROM:<a@b>", CommandError::Arguments),
            ("RCPT TO:<>", CommandError::Recipient(AddressError::Syntax)),
            ("RCPT TO:<a@b>,<c@d>", CommandError::Recipient(AddressError::Syntax)),
            ("RCPT TO:<a@b> NOTIFY=NEVER", CommandError::Parameter),
            ("RCPT TO:<a@b> ORCPT=rfc822;c@d", CommandError::Parameter),
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
        assert_eq!(line_limit(b"AUTHX"), LINE_MAX);
        assert_eq!(line_limit(b""), LINE_MAX);
    }

    proptest! {
        #[test]
        fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..80), verb in 0usize..6) {
            let verb = ["MAIL FROM:<", "RCPT TO:<", "AUTH ", "EHLO ", "", "MAIL FROM:<a@b> "][verb];
            let _ = Command::parse(&[verb.as_bytes(), &line].concat());
        }
    }
}
