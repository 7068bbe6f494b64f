//! `XCLIENT` as Postfix defines it (XCLIENT_README): a trusted proxy that speaks SMTP itself says for whom it speaks.
//! Whether the peer may say so, and what follows from it, is decided elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::command::CommandError;
use crate::mail::dsn_parameters::xtext_decode;

/// What `EHLO` says behind the keyword.
pub const ATTRIBUTES: &str = "NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT";
/// Longer than any name that an attribute holds.
const VALUE_MAX: usize = 255;

/// What the proxy says. Absent: not said, or not known to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xclient {
    /// `NAME`: the client's name in the DNS. Nothing depends on it.
    pub name: Option<String>,
    /// `ADDR`
    pub addr: Option<IpAddr>,
    /// `PORT`
    pub port: Option<u16>,
    /// `PROTO`: whether the client said `EHLO`.
    pub extended: Option<bool>,
    /// `HELO`: what the client called itself.
    pub helo: Option<String>,
    /// `LOGIN`: whom the proxy takes the client for. It is for the log: a credential proves itself to us or not at all.
    pub login: Option<String>,
    /// `DESTADDR`: the address that the client dialled.
    pub dest_addr: Option<IpAddr>,
    /// `DESTPORT`: the service that the client dialled.
    pub dest_port: Option<u16>,
}

impl Xclient {
    /// Parses the arguments of the command.
    ///
    /// # Errors
    /// An attribute that is unknown, said twice, or malformed; none at all; an address that the proxy does not know.
    pub(super) fn parse(arguments: &[u8]) -> Result<Self, CommandError> {
        let text = std::str::from_utf8(arguments).map_err(|_| CommandError::Arguments)?;
        let mut found = Self::default();
        let mut seen = Vec::new();
        for word in text.split(' ').filter(|word| !word.is_empty()) {
            let (name, value) = word.split_once('=').ok_or(CommandError::Arguments)?;
            let name = name.to_ascii_uppercase();
            if seen.contains(&name) {
                return Err(CommandError::Arguments);
            }
            found.set(&name, &decode(value)?)?;
            seen.push(name);
        }
        if seen.is_empty() { Err(CommandError::Arguments) } else { Ok(found) }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), CommandError> {
        let known = !matches!(value.to_ascii_uppercase().as_str(), "[UNAVAILABLE]" | "[TEMPUNAVAIL]");
        match name {
            "NAME" => self.name = known.then(|| value.to_owned()),
            // Without an address nothing can be decided: nobody is given the rights of nowhere.
            "ADDR" => self.addr = Some(parse_addr(value)?),
            "PORT" => self.port = known.then(|| parse_port(value)).transpose()?,
            "PROTO" => {
                self.extended = match value.to_ascii_uppercase().as_str() {
                    "SMTP" => Some(false),
                    "ESMTP" => Some(true),
                    _ if !known => None,
                    _ => return Err(CommandError::Arguments),
                }
            }
            "HELO" => self.helo = known.then(|| value.to_owned()),
            "LOGIN" => self.login = known.then(|| value.to_owned()),
            "DESTADDR" => self.dest_addr = known.then(|| parse_addr(value)).transpose()?,
            "DESTPORT" => self.dest_port = known.then(|| parse_port(value)).transpose()?,
            _ => return Err(CommandError::Arguments),
        }
        Ok(())
    }
}

/// Values are xtext (RFC 3461 §4): what they mean is printable ASCII.
fn decode(value: &str) -> Result<String, CommandError> {
    if value.is_empty() || value.len() > 3 * VALUE_MAX {
        return Err(CommandError::Arguments);
    }
    let decoded = xtext_decode(value).map_err(|_| CommandError::Arguments)?;
    if decoded.len() > VALUE_MAX { Err(CommandError::Arguments) } else { Ok(decoded) }
}

fn parse_addr(value: &str) -> Result<IpAddr, CommandError> {
    let tag = "IPV6:";
    let address = match value.split_at_checked(tag.len()) {
        Some((head, tail)) if head.eq_ignore_ascii_case(tag) => tail.parse::<Ipv6Addr>().map(IpAddr::V6),
        _ => value.parse::<Ipv4Addr>().map(IpAddr::V4),
    };
    address.map(|address| address.to_canonical()).map_err(|_| CommandError::Arguments)
}

fn parse_port(value: &str) -> Result<u16, CommandError> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(CommandError::Arguments);
    }
    value.parse().map_err(|_| CommandError::Arguments)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn attributes_are_read_as_postfix_writes_them() {
        let said = b"NAME=spike.porcupine.org ADDR=168.100.189.2 PORT=1025 PROTO=ESMTP HELO=a+2Bb LOGIN=[UNAVAILABLE] \
                     DESTADDR=IPV6:::1 DESTPORT=587";
        let found = Xclient::parse(said).unwrap();
        assert_eq!(found.name.as_deref(), Some("spike.porcupine.org"));
        assert_eq!(found.addr, Some("168.100.189.2".parse().unwrap()));
        assert_eq!((found.port, found.extended), (Some(1025), Some(true)));
        assert_eq!((found.helo.as_deref(), found.login), (Some("a+b"), None));
        assert_eq!((found.dest_addr, found.dest_port), (Some("::1".parse().unwrap()), Some(587)));
        assert_eq!(Xclient::parse(b"addr=ipv6:::ffff:192.0.2.7").unwrap().addr, Some("192.0.2.7".parse().unwrap()));
        assert_eq!(Xclient::parse(b"NAME=[TEMPUNAVAIL]").unwrap(), Xclient::default());
    }

    #[test]
    fn what_is_malformed_or_said_twice_is_refused() {
        for said in [
            "",
            "ADDR",
            "ADDR=",
            "ADDR=[UNAVAILABLE]",
            "ADDR=::1",
            "ADDR=1.2.3",
            "ADDR=1.2.3.4 ADDR=1.2.3.4",
            "PORT=-1",
            "PORT=65536",
            "PROTO=LMTP",
            "HELO=a=b",
            "HELO=a+0D+0Ab",
            "HELO=+",
            "REVERSE_NAME=x",
            "NAME=\u{fc}",
        ] {
            assert_eq!(Xclient::parse(said.as_bytes()), Err(CommandError::Arguments), "{said:?}");
        }
        assert!(Xclient::parse(format!("NAME={}", "x".repeat(256)).as_bytes()).is_err());
    }
}
