//! Replies (RFC 5321 §4.2, RFC 3463), and our own by name: the code, enhanced code and first words are the ones that
//! administrators of Exchange search for.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// A three-digit reply code, 200 to 559.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReplyCode(pub u16);

impl ReplyCode {
    /// 2yz: done.
    #[must_use]
    pub fn is_positive(self) -> bool {
        (200..300).contains(&self.0)
    }
    /// 3yz: go on.
    #[must_use]
    pub fn is_intermediate(self) -> bool {
        (300..400).contains(&self.0)
    }
    /// 4yz: try again later.
    #[must_use]
    pub fn is_transient(self) -> bool {
        (400..500).contains(&self.0)
    }
    /// 5yz: never.
    #[must_use]
    pub fn is_permanent(self) -> bool {
        (500..600).contains(&self.0)
    }
}

/// An enhanced status code (RFC 3463 §2): class.subject.detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EnhancedCode {
    /// 2, 4 or 5.
    pub class: u8,
    /// 0 to 7 are defined.
    pub subject: u16,
    /// Up to 999.
    pub detail: u16,
}

impl EnhancedCode {
    /// Makes a code, such as `EnhancedCode::new(5, 7, 54)`.
    #[must_use]
    pub const fn new(class: u8, subject: u16, detail: u16) -> Self {
        Self { class, subject, detail }
    }
}

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// One reply: a code, an enhanced code where the standard allows one, and one or more lines of text.
///
/// The text never holds CR, LF or other control characters: [`Reply::new`] replaces them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The three-digit code.
    pub code: ReplyCode,
    /// The enhanced code; absent for the greeting, `EHLO` and 3yz replies (RFC 2034 §4).
    pub enhanced: Option<EnhancedCode>,
    /// The lines of text, at least one, without code and CRLF.
    pub lines: SmallVec<[Cow<'static, str>; 1]>,
}

impl Reply {
    /// Makes a reply of one line. Control characters in `text` become spaces: a name that a peer chose must not
    /// start a line of its own.
    #[must_use]
    pub fn new(code: u16, enhanced: Option<EnhancedCode>, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code: ReplyCode(code), enhanced, lines: smallvec![clean(text.into())] }
    }

    /// One of ours, whose text was clean when it was written.
    fn fixed(code: u16, enhanced: EnhancedCode, text: &'static str) -> Self {
        Self { code: ReplyCode(code), enhanced: Some(enhanced), lines: smallvec![Cow::Borrowed(text)] }
    }

    /// Adds a line.
    #[must_use]
    pub fn line(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.lines.push(clean(text.into()));
        self
    }

    /// Appends `words` to the last line, after a space.
    #[must_use]
    pub fn with_suffix(mut self, words: &str) -> Self {
        if let Some(last) = self.lines.last_mut() {
            *last = clean(Cow::Owned(format!("{last} {words}")));
        }
        self
    }

    /// Writes the reply as it goes over the wire, CRLF included. `enhanced` says whether the enhanced code is shown.
    pub fn write_to(&self, out: &mut Vec<u8>, enhanced: bool) {
        let last = self.lines.len().saturating_sub(1);
        for (index, text) in self.lines.iter().enumerate() {
            let separator = if index == last { b' ' } else { b'-' };
            put_number(out, self.code.0);
            out.push(separator);
            if let (true, Some(code)) = (enhanced, self.enhanced) {
                put_number(out, u16::from(code.class));
                out.push(b'.');
                put_number(out, code.subject);
                out.push(b'.');
                put_number(out, code.detail);
                out.push(b' ');
            }
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// The reply on one line, without CRLF, as logs and `explain` show it.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code.0)?;
        if let Some(code) = self.enhanced {
            write!(f, " {code}")?;
        }
        for text in &self.lines {
            write!(f, " {text}")?;
        }
        Ok(())
    }
}

/// In decimal. What `write!` does, and a fifth of its time: every command is answered through here.
fn put_number(out: &mut Vec<u8>, number: u16) {
    let mut digits = [0; 5];
    let (mut at, mut rest) = (digits.len(), number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn clean(text: Cow<'static, str>) -> Cow<'static, str> {
    if text.chars().any(char::is_control) {
        Cow::Owned(text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
    } else {
        text
    }
}

/// Our replies by name. The facts they repeat are in the reference of Exchange's replies; a refusal gets the session
/// id appended by the session that sends it, never here.
macro_rules! replies {
    ($($(#[$doc:meta])+ $name:ident = $code:literal $class:literal $subject:literal $detail:literal $text:literal;)+) => {$(
        $(#[$doc])+
        #[must_use]
        pub fn $name() -> Reply {
            Reply::fixed($code, EnhancedCode::new($class, $subject, $detail), $text)
        }
    )+

    #[cfg(test)]
    fn all() -> Vec<Reply> {
        vec![$($name()),+]
    }
    };
}

replies! {
    /// `MAIL` accepted.
    sender_ok = 250 2 1 0 "Sender OK";
    /// `RCPT` accepted.
    recipient_ok = 250 2 1 5 "Recipient OK";
    /// `RSET` done.
    resetting = 250 2 0 0 "Resetting";
    /// `NOOP` done.
    ok = 250 2 0 0 "OK";
    /// `VRFY` (RFC 5321 §3.5.3: 252 promises nothing and tells nothing).
    cannot_vrfy = 252 2 1 5 "Cannot VRFY user";
    /// `QUIT` (RFC 5321 §4.1.1.10).
    closing = 221 2 0 0 "Service closing transmission channel";
    /// `STARTTLS` accepted: the next byte is the client's ClientHello (RFC 3207 §4).
    tls_ready = 220 2 0 0 "SMTP server ready";
    /// `AUTH` done (RFC 4954 §6).
    authentication_successful = 235 2 7 0 "Authentication successful";

    /// A recipient outside the accepted domains, from somebody who may not relay.
    unable_to_relay = 550 5 7 54 "SMTP; Unable to relay recipient in non-accepted domain";
    /// A recipient that the connector's recipient-domain lists rule out, whoever sends.
    recipient_domain_not_allowed = 550 5 7 1 "Delivery not authorized, recipient domain is not allowed here";
    /// `MAIL` on a connector that takes no anonymous mail.
    not_authenticated_to_send_anonymous =
        530 5 7 57 "SMTP; Client was not authenticated to send anonymous mail during MAIL FROM";
    /// An authenticated client with somebody else's `MAIL FROM`.
    cannot_send_as = 550 5 7 60 "SMTP; Client does not have permissions to send as this sender";
    /// Wrong user name or password, and which of them is not said.
    authentication_unsuccessful = 535 5 7 3 "Authentication unsuccessful";
    /// A mechanism that is not offered here and now.
    unrecognized_authentication_type = 504 5 7 4 "Unrecognized authentication type";
    /// Credentials cannot be checked at the moment (RFC 4954 §4.7).
    temporary_authentication_failure = 454 4 7 0 "Temporary authentication failure";
    /// The client ended the exchange with `*` (RFC 4954 §4).
    authentication_cancelled = 501 5 7 0 "Authentication cancelled";
    /// Not base64, or not what the mechanism says (RFC 4954 §4).
    invalid_authentication_response = 501 5 5 2 "Invalid authentication response";
    /// More than 12288 octets (RFC 4954 §4, §6).
    authentication_line_too_long = 500 5 5 6 "Authentication exchange line is too long";
    /// A second `AUTH` after one that succeeded (RFC 4954 §4).
    already_authenticated = 503 5 5 1 "Already authenticated";
    /// `AUTH` between `MAIL` and the end of the letter (RFC 4954 §4).
    auth_during_transaction = 503 5 5 1 "AUTH is not permitted during a mail transaction";
    /// A connector that requires TLS and a client that did not start it.
    starttls_required = 451 5 7 3 "STARTTLS is required to send mail";
    /// `STARTTLS` where it is not offered.
    starttls_not_offered = 502 5 5 1 "STARTTLS is not offered";
    /// `STARTTLS` inside TLS.
    tls_already_active = 503 5 5 1 "TLS is already active";

    /// `EXPN` (RFC 5321 §4.2.4).
    not_implemented = 502 5 5 1 "Command not implemented";
    /// `XCLIENT` from somebody whom the node file does not name.
    xclient_not_permitted = 550 5 7 0 "XCLIENT is not permitted from this address";
    /// `XCLIENT` between `MAIL` and the end of the letter.
    xclient_during_transaction = 503 5 5 1 "XCLIENT is not permitted during a mail transaction";
    /// A command before `EHLO` or `HELO`.
    send_hello_first = 503 5 5 2 "Send hello first";
    /// `RCPT` or `DATA` without `MAIL`.
    need_mail_command = 503 5 5 2 "Need mail command";
    /// `DATA` without an accepted recipient.
    need_rcpt_command = 503 5 5 2 "Need rcpt command";
    /// `BDAT` where `CHUNKING` is not offered (RFC 3030 §2).
    chunking_not_offered = 502 5 5 1 "CHUNKING is not offered";
    /// A number of octets that is none: where the chunk ends is not known, and the connection ends.
    invalid_chunk_size = 501 5 5 4 "Invalid chunk size";
    /// Another command within a letter that comes by `BDAT` (RFC 3030 §2).
    chunks_under_way = 503 5 5 1 "The message is being sent with BDAT";
    /// `DATA` for a letter whose body is not lines (RFC 3030 §3).
    binary_needs_bdat = 503 5 5 1 "BODY=BINARYMIME must be sent with BDAT";
    /// A second `MAIL` in one transaction.
    sender_already_specified = 503 5 5 2 "Sender already specified";
    /// A verb that we do not know.
    unrecognized_command = 500 5 3 3 "Unrecognized command";
    /// A command line over the limit (RFC 5321 §4.5.3.1.4).
    line_too_long = 500 5 5 2 "Line too long";
    /// CR or LF alone in a command (RFC 5321 §2.3.8).
    bare_line_end_in_command = 500 5 5 2 "Lines must end with CRLF";
    /// Arguments that are missing, too many or malformed.
    invalid_arguments = 501 5 5 4 "Invalid arguments";
    /// A `MAIL` or `RCPT` parameter that was not offered (RFC 5321 §4.1.1.11).
    unsupported_parameter = 555 5 5 4 "Unsupported parameter";
    /// The argument of `EHLO` or `HELO`.
    invalid_domain_name = 501 5 5 4 "Invalid domain name";
    /// The reverse-path.
    invalid_sender = 501 5 1 7 "Invalid address";
    /// The forward-path.
    invalid_recipient = 501 5 1 3 "Invalid address";
    /// An address with 8-bit characters in a transaction that did not ask for SMTPUTF8 (RFC 6531 §3.5).
    non_ascii_address = 553 5 6 7 "Address is not ASCII and SMTPUTF8 was not requested";
    /// More was sent than the protocol lets a client send before our answer (RFC 2920 §3.1).
    synchronization = 554 5 5 0 "SMTP protocol synchronization error";
    /// A health probe that tries more than greeting us.
    probe_may_not_send = 503 5 5 1 "Health probes may not send mail";

    /// `.test`, `.example`, `.invalid`, `.localhost`.
    reserved_top_level_domain = 501 5 1 4 "Recipient address reserved by RFC 2606";
    /// `example.com` and its kin.
    reserved_second_level_domain = 501 5 1 5 "Recipient address reserved by RFC 2606";
    /// `user@host`.
    single_label_domain = 501 5 1 6 "Recipient addresses in single label domains not accepted";

    /// Declared or counted bytes over the limit (RFC 1870 §6).
    message_too_large = 552 5 3 4 "Message size exceeds fixed maximum message size";
    /// The header alone is over its limit.
    header_too_large = 552 5 3 4 "Header size exceeds fixed maximum size";
    /// More recipients than one letter may have; the accepted ones stay (RFC 5321 §4.5.3.1.10).
    too_many_recipients = 452 4 5 3 "Too many recipients";
    /// More `Received:` lines than a letter that is not in a loop has (RFC 5321 §6.3).
    hop_count_exceeded = 554 5 4 6 "Hop count exceeded - possible mail loop";
    /// CR or LF alone in mail data (RFC 5321 §2.3.8).
    bare_line_end = 550 5 6 11 "SMTPSEND.BareLinefeedsAreIllegal; bare CR or LF in message";
    /// NUL in mail data (RFC 2045 §2.7, §2.8).
    nul_in_message = 550 5 6 0 "NUL in message";

    /// Back pressure, or a spool that cannot write.
    insufficient_system_resources = 452 4 3 1 "Insufficient system resources";
    /// A second copy was required and could not be made.
    not_made_redundant = 451 4 4 0 "Message failed to be made redundant";
    /// No connector, a drain, a stop.
    service_not_available = 421 4 3 2 "Service not available";
    /// The same, where the channel closes with it.
    service_not_available_closing = 421 4 3 2 "Service not available, closing transmission channel";
    /// The connector is full.
    too_many_connections =
        421 4 3 2 "The maximum number of concurrent server connections has exceeded a limit, closing transmission channel";
    /// The connector is full for this source.
    too_many_connections_per_source =
        421 4 3 2 "The maximum number of concurrent server connections has exceeded a per-source limit, closing transmission channel";
    /// More letters a minute than the connector allows.
    submission_rate_exceeded =
        421 4 4 2 "Message submission rate for this client has exceeded the configured limit";
    /// The connection is older than `connection_timeout`.
    connection_timed_out = 421 4 4 1 "Connection timed out";
    /// Nothing came for `connection_inactivity_timeout`.
    input_timeout = 451 4 7 0 "Timeout waiting for client input";
    /// `max_protocol_errors` or `max_logon_failures` reached.
    too_many_errors = 421 4 7 0 "Too many errors on this connection, closing transmission channel";
}

/// The go-ahead for mail data. 3yz replies have no enhanced code (RFC 2034 §4).
#[must_use]
pub fn start_mail_input() -> Reply {
    Reply::new(354, None, "Start mail input; end with <CRLF>.<CRLF>")
}

/// A challenge of a SASL exchange, already in base64; empty for a mechanism in which the client speaks first.
#[must_use]
pub fn challenge(base64: impl Into<Cow<'static, str>>) -> Reply {
    Reply::new(334, None, base64)
}

/// What `HELP` lists.
#[must_use]
pub fn help() -> Reply {
    Reply::new(214, Some(EnhancedCode::new(2, 0, 0)), "This server supports the following commands:")
        .line("HELO EHLO STARTTLS RCPT DATA RSET MAIL QUIT HELP AUTH BDAT NOOP VRFY")
}

/// A chunk has come; Exchange's words. It promises nothing: the letter ends with `BDAT … LAST` (RFC 3030 §2).
#[must_use]
pub fn chunk_received(octets: u64) -> Reply {
    Reply::new(250, Some(EnhancedCode::new(2, 6, 0)), format!("CHUNK received OK, {octets} octets"))
}

/// The promise: the letter is on disk. Whoever sends it has waited for the spool.
///
/// `message_id` is shown with its angle brackets, which are added where they are missing.
#[must_use]
pub fn queued(message_id: &str, internal_id: u64, hostname: &str) -> Reply {
    let bare = message_id.trim_start_matches('<').trim_end_matches('>');
    let text = format!("<{bare}> [InternalId={internal_id}, Hostname={hostname}] Queued mail for delivery");
    Reply::new(250, Some(EnhancedCode::new(2, 6, 0)), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_read_as_administrators_search_for_them() {
        for (reply, text) in [
            (unable_to_relay(), "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain"),
            (authentication_unsuccessful(), "535 5.7.3 Authentication unsuccessful"),
            (starttls_required(), "451 5.7.3 STARTTLS is required to send mail"),
            (message_too_large(), "552 5.3.4 Message size exceeds fixed maximum message size"),
            (start_mail_input(), "354 Start mail input; end with <CRLF>.<CRLF>"),
            (
                queued("<a@b.example>", 7, "n1"),
                "250 2.6.0 <a@b.example> [InternalId=7, Hostname=n1] Queued mail for delivery",
            ),
        ] {
            assert_eq!(reply.to_string(), text);
        }
    }

    #[test]
    fn our_own_texts_are_clean_and_their_codes_fit() {
        for reply in all() {
            assert_eq!(Reply::new(reply.code.0, reply.enhanced, reply.lines[0].clone()), reply);
            let classes = (reply.code.0 / 100, u16::from(reply.enhanced.unwrap().class));
            // Exchange's own, and searched for as it is.
            assert!(classes.0 == classes.1 || reply == starttls_required(), "{reply}");
        }
    }

    #[test]
    fn numbers_are_written_as_they_are_read() {
        for number in [0, 7, 10, 250, 999, 1000, u16::MAX] {
            let mut out = Vec::new();
            put_number(&mut out, number);
            assert_eq!(out, number.to_string().into_bytes());
        }
    }

    #[test]
    fn a_reply_never_grows_a_line_from_a_name() {
        let mut wire = Vec::new();
        queued("<a\r\n250 x@b>", 7, "n1\n").write_to(&mut wire, true);
        assert_eq!(wire.iter().filter(|byte| **byte == b'\n').count(), 1);
    }

    #[test]
    fn lines_of_one_reply_share_its_codes() {
        let mut wire = Vec::new();
        Reply::new(250, None, "a Hello").line("SIZE").write_to(&mut wire, true);
        assert_eq!(wire, b"250-a Hello\r\n250 SIZE\r\n");
        let mut wire = Vec::new();
        ok().write_to(&mut wire, false);
        assert_eq!(wire, b"250 OK\r\n");
    }
}
