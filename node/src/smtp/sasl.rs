//! SASL exchanges of the server, as `AUTH` carries them (RFC 4954 §4). PLAIN (RFC 4616) and LOGIN end in a user name
//! and a password for somebody else to check; of SCRAM-SHA-256 (RFC 7677) and EXTERNAL (RFC 4422 appendix A) only the
//! framing is here, and whoever drives the session reads the messages. Nothing is compared here.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::mail::{Reply, reply};

/// How a client proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mechanism {
    /// RFC 4616.
    Plain,
    /// The older one that devices speak: user name and password, each answered to a prompt.
    Login,
    /// RFC 7677: the password never crosses the wire.
    ScramSha256,
    /// The same, bound to the TLS connection (RFC 5802 §6, RFC 9266).
    ScramSha256Plus,
    /// RFC 4422 appendix A: the certificate of the TLS connection says who it is.
    External,
}

impl Mechanism {
    /// The name in `EHLO` and `AUTH`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Login => "LOGIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
            Self::External => "EXTERNAL",
        }
    }

    /// Whether it can be had only where the connection brings something: a channel to bind, or a certificate.
    #[must_use]
    pub fn needs_connection(self) -> bool {
        matches!(self, Self::ScramSha256Plus | Self::External)
    }

    /// Finds a mechanism by its name in upper case.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        [Self::Plain, Self::Login, Self::ScramSha256, Self::ScramSha256Plus, Self::External]
            .into_iter()
            .find(|mechanism| mechanism.as_str() == name)
    }
}

/// A password, or a message that proves one, as the client gave it. Nothing shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Vec<u8>);

impl Password {
    /// Takes a secret.
    #[must_use]
    pub fn new(secret: impl Into<Vec<u8>>) -> Self {
        Self(secret.into())
    }

    /// The secret, for the verifier alone.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// What the exchange wants next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this challenge, in base64 already, and hand in the answer.
    Challenge(&'static str),
    /// Check these.
    Check {
        /// The authentication identity.
        user: String,
        /// The secret.
        password: Password,
    },
    /// Have the driver read this message of the mechanism's, and hand in what it answers.
    Message(Password),
}

/// Why an exchange ended without anything to check. Theirs, and without a trace of what they sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SaslError {
    /// `*`.
    #[error("cancelled by the client")]
    Cancelled,
    /// Not base64, or not the message that the mechanism wants.
    #[error("malformed response")]
    Malformed,
    /// An authorization identity other than the user (RFC 4616 §2): acting for others is not possible here.
    #[error("authorization identity differs from the user")]
    ForeignIdentity,
}

impl SaslError {
    /// What the client is told.
    #[must_use]
    pub fn reply(self) -> Reply {
        match self {
            Self::Cancelled => reply::authentication_cancelled(),
            Self::Malformed => reply::invalid_authentication_response(),
            Self::ForeignIdentity => reply::authentication_unsuccessful(),
        }
    }
}

/// `Username:` in base64.
const USERNAME: &str = "VXNlcm5hbWU6";
/// `Password:` in base64.
const PASSWORD: &str = "UGFzc3dvcmQ6";
/// Longer than any name and password that somebody types.
const FIELD_MAX: usize = 1024;
/// Longer than any message of SCRAM with names and nonces of that length.
const MESSAGE_MAX: usize = 4 * FIELD_MAX;

/// An exchange that waits for the client's next line.
#[derive(Debug)]
pub struct Exchange {
    mechanism: Mechanism,
    /// LOGIN: given already.
    user: Option<String>,
    /// Messages handed to the driver.
    messages: u32,
}

impl Exchange {
    /// Begins. `initial_response` is the second word of `AUTH`.
    ///
    /// # Errors
    /// The initial response is not what the mechanism wants.
    pub fn begin(mechanism: Mechanism, initial_response: Option<&str>) -> Result<(Self, Step), SaslError> {
        let mut exchange = Self { mechanism, user: None, messages: 0 };
        let step = match (mechanism, initial_response) {
            (Mechanism::Login, None) => Step::Challenge(USERNAME),
            // RFC 4954 §4: the client speaks first, and is asked to with an empty challenge.
            (_, None) => Step::Challenge(""),
            // RFC 4954 §4: a single "=" is an initial response of no octets.
            (_, Some("=")) => exchange.respond(Vec::new())?,
            (_, Some(response)) => exchange.handle_line(response.as_bytes())?,
        };
        Ok((exchange, step))
    }

    /// The mechanism.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Counts a message that the driver is to read. Answers how many there were before.
    pub fn count_message(&mut self) -> u32 {
        let before = self.messages;
        self.messages = before.saturating_add(1);
        before
    }

    /// Takes the client's answer, a line without its CRLF.
    ///
    /// # Errors
    /// See [`SaslError`]. The exchange is over then.
    pub fn handle_line(&mut self, line: &[u8]) -> Result<Step, SaslError> {
        if line == b"*" {
            return Err(SaslError::Cancelled);
        }
        let response = STANDARD.decode(line).map_err(|_| SaslError::Malformed)?;
        self.respond(response)
    }

    fn respond(&mut self, response: Vec<u8>) -> Result<Step, SaslError> {
        match (self.mechanism, self.user.take()) {
            (Mechanism::Plain, _) => plain(&response),
            (Mechanism::Login, None) => {
                self.user = Some(user_name(&response)?);
                Ok(Step::Challenge(PASSWORD))
            }
            (Mechanism::Login, Some(_)) if response.len() > FIELD_MAX || response.contains(&0) => {
                Err(SaslError::Malformed)
            }
            (Mechanism::Login, Some(user)) => Ok(Step::Check { user, password: Password::new(response) }),
            (Mechanism::ScramSha256 | Mechanism::ScramSha256Plus | Mechanism::External, _)
                if response.len() > MESSAGE_MAX =>
            {
                Err(SaslError::Malformed)
            }
            (Mechanism::ScramSha256 | Mechanism::ScramSha256Plus | Mechanism::External, _) => {
                Ok(Step::Message(Password::new(response)))
            }
        }
    }
}

/// RFC 4616 §2: `[authzid] NUL authcid NUL passwd`.
fn plain(message: &[u8]) -> Result<Step, SaslError> {
    let mut fields = message.split(|byte| *byte == 0);
    let (Some(identity), Some(user), Some(password), None) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(SaslError::Malformed);
    };
    if password.len() > FIELD_MAX {
        return Err(SaslError::Malformed);
    }
    let name = user_name(user)?;
    if !identity.is_empty() && identity != user {
        return Err(SaslError::ForeignIdentity);
    }
    Ok(Step::Check { user: name, password: Password::new(password) })
}

/// A challenge as it goes over the wire.
#[must_use]
pub fn encode(challenge: &[u8]) -> String {
    STANDARD.encode(challenge)
}

/// A name goes to logs: it holds no control characters.
fn user_name(bytes: &[u8]) -> Result<String, SaslError> {
    let name = std::str::from_utf8(bytes).map_err(|_| SaslError::Malformed)?;
    if name.is_empty() || name.len() > FIELD_MAX || name.chars().any(char::is_control) {
        return Err(SaslError::Malformed);
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn encode(text: &str) -> String {
        super::encode(text.as_bytes())
    }

    fn check(user: &str, password: &str) -> Step {
        Step::Check { user: user.to_owned(), password: Password::new(password) }
    }

    #[test]
    fn plain_with_and_without_initial_response() {
        let message = encode("\0user\0p\u{e4}ss");
        assert_eq!(Exchange::begin(Mechanism::Plain, Some(&message)).unwrap().1, check("user", "p\u{e4}ss"));
        let (mut exchange, step) = Exchange::begin(Mechanism::Plain, None).unwrap();
        assert_eq!(step, Step::Challenge(""));
        assert_eq!(exchange.handle_line(message.as_bytes()), Ok(check("user", "p\u{e4}ss")));
        assert_eq!(exchange.handle_line(encode("user\0user\0x").as_bytes()), Ok(check("user", "x")));
    }

    #[test]
    fn login_with_and_without_inline_user() {
        let (mut exchange, step) = Exchange::begin(Mechanism::Login, None).unwrap();
        assert_eq!(step, Step::Challenge("VXNlcm5hbWU6"));
        assert_eq!(exchange.handle_line(encode("user").as_bytes()), Ok(Step::Challenge("UGFzc3dvcmQ6")));
        assert_eq!(exchange.handle_line(encode("pass").as_bytes()), Ok(check("user", "pass")));
        let (mut exchange, step) = Exchange::begin(Mechanism::Login, Some(&encode("user"))).unwrap();
        assert_eq!(step, Step::Challenge("UGFzc3dvcmQ6"));
        assert_eq!(exchange.handle_line(b""), Ok(check("user", "")));
    }

    #[test]
    fn what_is_not_a_response_is_refused() {
        for (response, error) in [
            ("*", SaslError::Cancelled),
            ("not base64!", SaslError::Malformed),
            ("=", SaslError::Malformed),
            ("AAAA=", SaslError::Malformed),
            (&encode("user"), SaslError::Malformed),
            (&encode("\0user"), SaslError::Malformed),
            (&encode("\0user\0pass\0more"), SaslError::Malformed),
            (&encode("\0\0pass"), SaslError::Malformed),
            (&encode("\0us\r\ner\0pass"), SaslError::Malformed),
            (&encode("boss\0user\0pass"), SaslError::ForeignIdentity),
            (&encode(&format!("\0user\0{}", "x".repeat(1025))), SaslError::Malformed),
        ] {
            let (mut exchange, _) = Exchange::begin(Mechanism::Plain, None).unwrap();
            assert_eq!(exchange.handle_line(response.as_bytes()), Err(error), "{response}");
        }
        assert_eq!(Exchange::begin(Mechanism::Plain, Some("=")).unwrap_err(), SaslError::Malformed);
        assert_eq!(Exchange::begin(Mechanism::Login, Some("=")).unwrap_err(), SaslError::Malformed);
    }

    #[test]
    fn a_password_is_never_shown() {
        assert!(!format!("{:?}", check("user", "hunter2")).contains("hunter2"));
    }
}
