//! What a session is told at its beginning and keeps to its end.

use std::net::IpAddr;
use std::time::Duration;

use crate::smtp::{Leniencies, Mechanism};

/// How `EHLO` speaks of the size limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SizeMode {
    /// `SIZE` with the limit.
    #[default]
    Enabled,
    /// Not at all; `SIZE=` is not understood then.
    Disabled,
    /// `SIZE` without a number.
    EnabledWithoutValue,
}

/// What is to be had of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// Nothing.
    #[default]
    Off,
    /// `STARTTLS` is offered.
    Available,
    /// `STARTTLS` is offered, and nothing can be sent without it.
    Required,
    /// The connection is inside TLS from its first byte (RFC 8314 §3.3). The driver has shaken hands already.
    Implicit,
}

/// The keywords of `EHLO` that can be switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// `PIPELINING` (RFC 2920). Whether offered or not, commands are taken one after the other.
    pub pipelining: bool,
    /// `SIZE` (RFC 1870).
    pub size: SizeMode,
    /// `DSN` (RFC 3461).
    pub dsn: bool,
    /// `8BITMIME` (RFC 6152).
    pub eight_bit_mime: bool,
    /// `CHUNKING` (RFC 3030).
    pub chunking: bool,
    /// `BINARYMIME` (RFC 3030), only with `CHUNKING`. Off by default: few next hops take such a letter.
    pub binary_mime: bool,
    /// `SMTPUTF8` (RFC 6531), only with `8BITMIME`.
    pub smtp_utf8: bool,
    /// `LIMITS` (RFC 9422), with the number of recipients.
    pub limits: bool,
    /// `ENHANCEDSTATUSCODES` (RFC 2034). Without it, replies carry no enhanced codes.
    pub enhanced_status_codes: bool,
}

impl Offer {
    /// Whether `BINARYMIME` is offered: RFC 3030 §3 has it only beside `CHUNKING`.
    pub(super) fn offers_binary_mime(&self) -> bool {
        self.binary_mime && self.chunking
    }

    /// Whether `SMTPUTF8` is offered: RFC 6531 §3.1 has it only beside `8BITMIME`.
    pub(super) fn offers_smtp_utf8(&self) -> bool {
        self.smtp_utf8 && self.eight_bit_mime
    }
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            pipelining: true,
            size: SizeMode::Enabled,
            dsn: true,
            eight_bit_mime: true,
            chunking: true,
            binary_mime: false,
            smtp_utf8: true,
            limits: true,
            enhanced_status_codes: true,
        }
    }
}

/// The limits of a session. The defaults are Exchange's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Octets of a letter, transparency removed (RFC 1870 §3).
    pub max_message_size: u64,
    /// Octets of its header, the empty line included. As many are held in memory while a header comes.
    pub max_header_size: u64,
    /// Recipients of one letter.
    pub max_recipients: u32,
    /// `Received` fields of a letter.
    pub max_hop_count: u32,
    /// Errors that are answered as such; the next one closes the session. 0: no limit.
    pub max_protocol_errors: u32,
    /// Failed logins until the session is closed. 0: no limit.
    pub max_logon_failures: u32,
    /// Silence until the session is closed. RFC 5321 §4.5.3.2.7: at least 5 minutes.
    pub inactivity_timeout: Duration,
    /// Age at which a session is closed between two letters, never within one.
    pub connection_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message_size: 37_748_736,
            max_header_size: 262_144,
            max_recipients: 200,
            max_hop_count: 60,
            max_protocol_errors: 5,
            max_logon_failures: 3,
            inactivity_timeout: Duration::from_secs(300),
            connection_timeout: Duration::from_secs(600),
        }
    }
}

/// What a session is told at its beginning.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The last word of every refusal, in brackets. Empty: none.
    pub session_id: String,
    /// Our name, in the greeting and in `EHLO`.
    pub fqdn: String,
    /// The greeting, with or without its `220 `; absent: the default one.
    pub banner: Option<String>,
    /// The device's address, from the PROXY header where there is one.
    pub source_addr: IpAddr,
    /// The keywords.
    pub offer: Offer,
    /// What is to be had of TLS.
    pub tls: TlsMode,
    /// Mechanisms offered outside TLS: none, unless an administrator wants passwords in the clear.
    pub auth_plaintext: Vec<Mechanism>,
    /// Mechanisms offered inside TLS.
    pub auth_tls: Vec<Mechanism>,
    /// The limits.
    pub limits: Limits,
    /// Whether `EHLO` and `HELO` must name a domain of at least two labels; a client that does not is closed.
    pub require_ehlo_domain: bool,
    /// What is forgiven.
    pub leniencies: Leniencies,
    /// Whether the peer may say `XCLIENT`.
    pub xclient: bool,
    /// Whether each line of the client is told as [`super::Action::Heard`], secrets masked.
    pub transcript: bool,
    /// A health probe: it may greet, `STARTTLS`, `NOOP`, `RSET`, `HELP` and `QUIT`, and nothing else.
    pub probe: bool,
}

impl SessionConfig {
    /// A session that offers no TLS and no authentication, with default limits.
    #[must_use]
    pub fn new(fqdn: impl Into<String>, source_addr: IpAddr) -> Self {
        Self {
            session_id: String::new(),
            fqdn: fqdn.into(),
            banner: None,
            source_addr,
            offer: Offer::default(),
            tls: TlsMode::Off,
            auth_plaintext: Vec::new(),
            auth_tls: Vec::new(),
            limits: Limits::default(),
            require_ehlo_domain: false,
            leniencies: Leniencies::default(),
            xclient: false,
            transcript: false,
            probe: false,
        }
    }
}
