//! What a session asks of its driver, and what the driver answers.

use crate::mail::trace_header::HeaderFacts;
use crate::mail::{BodyType, Envelope, ForwardPath, Reply, ReversePath};
use crate::smtp::{Leniency, Mechanism, Password, Xclient};

/// What the driver has to do, in the order in which it is told.
///
/// A letter is `BeginData`, and once that is granted `Header`, any number of `Append`, and `Commit` or `Abort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write these bytes.
    Send(Vec<u8>),
    /// Everything sent so far is out: start TLS on the socket. Nothing that came before may be carried over. Answered
    /// by `handle_tls_established` or `handle_tls_failed`.
    StartTls,
    /// Check a credential. Answered by `handle_auth`.
    CheckAuth {
        /// The user name, without control characters.
        user: String,
        /// The secret.
        password: Password,
        /// How it came.
        mechanism: Mechanism,
    },
    /// Read a message of a mechanism in which the driver speaks, too. Answered by `handle_auth`.
    SaslMessage {
        /// SCRAM-SHA-256, its -PLUS, or EXTERNAL.
        mechanism: Mechanism,
        /// Whether the exchange begins with it.
        first: bool,
        /// What the client said, decoded.
        message: Password,
    },
    /// Decide on a sender. Answered by `handle_mail`.
    CheckMail {
        /// The sender.
        reverse_path: ReversePath,
        /// `SIZE=`, in octets; compared with the limit by the session itself.
        size: Option<u64>,
        /// `BODY=`.
        body: BodyType,
    },
    /// Decide on a recipient of the sender last permitted. Answered by `handle_rcpt`.
    CheckRcpt {
        /// The recipient.
        forward_path: ForwardPath,
    },
    /// Make room for a letter. Answered by `handle_data_ready`.
    BeginData {
        /// Its envelope, with at least one recipient.
        envelope: Envelope,
    },
    /// The letter's header as it came, once, before anything else of it. An empty line is at its end, added where the
    /// letter has none: lines that the driver puts in front of it stay header.
    Header {
        /// At most `max_header_size` octets, and the empty line.
        block: Vec<u8>,
        /// What it says.
        facts: HeaderFacts,
    },
    /// The next octets of the letter's body.
    Append(Vec<u8>),
    /// The letter is complete: keep it. Answered by `handle_committed` when it is on disk, or cannot be.
    Commit {
        /// Octets of the letter as counted (RFC 1870 §3), without what the driver added.
        size: u64,
    },
    /// Forget the letter, if one was begun. Not answered.
    Abort,
    /// A listed peer says for whom it speaks. Answered by `handle_xclient` with what such a session is told.
    Xclient(Box<Xclient>),
    /// Something to count. Not answered.
    Note(Note),
    /// A line of the client for the transcript, without its secrets and its line end. Not answered.
    Heard(Vec<u8>),
    /// Close the connection after everything sent so far is out. The last action.
    Close {
        /// Why, for the log.
        reason: CloseReason,
    },
}

/// What happened that is worth counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// The device did something wrong that its connector forgives.
    Lenient(Leniency),
    /// `XCLIENT` from somebody who may not.
    XclientRefused,
}

/// What the driver decides on a sender or a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Permit,
    /// This one not. A reply of 421 closes the session too, because that is what it says.
    Deny(Reply),
    /// Answer, and close.
    Close(Reply),
}

/// What came of a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthOutcome {
    /// It is who it says.
    Accepted,
    /// It is this user: for mechanisms whose messages only the driver reads.
    AcceptedAs(String),
    /// Say this, not yet in base64, and hand in the next message.
    Challenge(Vec<u8>),
    /// What came is no message of the mechanism.
    Malformed,
    /// It is not; which of name and password was wrong is not said. Counts against `max_logon_failures`.
    Refused,
    /// It could not be checked now, or too many are being checked.
    Unavailable,
    /// Answer, and close.
    Close(Reply),
}

/// Why a session ended. A closed set: it can label a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// `QUIT`.
    Quit,
    /// The client went away.
    Disconnected,
    /// The driver's verdict.
    Refused,
    /// More than `max_protocol_errors`.
    ProtocolErrors,
    /// `max_logon_failures`.
    LogonFailures,
    /// `inactivity_timeout`.
    Inactivity,
    /// `connection_timeout`.
    ConnectionTimeout,
    /// We stop.
    Shutdown,
    /// Bytes where none may be, behind `STARTTLS` or `DATA`, or of which nobody knows where they end, behind `BDAT`.
    Synchronization,
    /// Bare CR or LF, or NUL, in mail data.
    LineEndings,
    /// A letter so far over its limit that its end is not waited for.
    Oversize,
    /// A browser, or TLS without being asked.
    NotSmtp,
    /// No TLS came of `STARTTLS`.
    TlsFailed,
    /// `require_ehlo_domain`.
    EhloDomain,
    /// An administrator ended it.
    Killed,
}

impl CloseReason {
    /// A name for logs and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quit => "quit",
            Self::Disconnected => "disconnected",
            Self::Refused => "refused",
            Self::ProtocolErrors => "protocol_errors",
            Self::LogonFailures => "logon_failures",
            Self::Inactivity => "inactivity",
            Self::ConnectionTimeout => "connection_timeout",
            Self::Shutdown => "shutdown",
            Self::Synchronization => "synchronization",
            Self::LineEndings => "line_endings",
            Self::Oversize => "oversize",
            Self::NotSmtp => "not_smtp",
            Self::TlsFailed => "tls_failed",
            Self::EhloDomain => "ehlo_domain",
            Self::Killed => "killed",
        }
    }
}

/// What a session is doing, for whoever looks at it from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum SessionState {
    /// It was greeted and has not said `EHLO`.
    #[default]
    Connected,
    /// A TLS handshake is under way.
    Tls,
    /// It logs in.
    Login,
    /// Between letters.
    Ready,
    /// A sender was named.
    Transaction,
    /// A letter is coming.
    Data,
    /// The letter is complete and is being made durable.
    Commit,
    /// The last words.
    Closing,
}

impl SessionState {
    /// All of them, each at its own number.
    pub const ALL: [Self; 8] = [
        Self::Connected,
        Self::Tls,
        Self::Login,
        Self::Ready,
        Self::Transaction,
        Self::Data,
        Self::Commit,
        Self::Closing,
    ];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Tls => "tls",
            Self::Login => "login",
            Self::Ready => "ready",
            Self::Transaction => "transaction",
            Self::Data => "data",
            Self::Commit => "commit",
            Self::Closing => "closing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_found_by_its_number() {
        for (number, state) in SessionState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, number);
        }
    }
}
