//! Client certificates: by which of them a credential is known. Names count only when the certificate's chain leads to
//! an authority that the cluster trusts for devices; a fingerprint speaks for itself.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::x500::X500Name;

/// One way of recognising a device's certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CertificatePattern {
    /// SHA-256 of the whole certificate: this very one, whoever signed it.
    Fingerprint([u8; 32]),
    /// A DNS name among its alternative names.
    Dns(String),
    /// A mail address among its alternative names.
    Email(String),
    /// Its subject.
    Subject(X500Name),
}

/// What a connection's certificate says, read and judged by whoever holds the trust anchors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    /// SHA-256 of the whole certificate.
    pub fingerprint: [u8; 32],
    /// Its subject.
    pub subject: Option<X500Name>,
    /// DNS names among its alternative names, in lower case.
    pub dns_names: Vec<String>,
    /// Mail addresses among its alternative names, in lower case.
    pub emails: Vec<String>,
    /// Whether its chain leads to an authority that the cluster trusts for devices, now.
    pub is_trusted: bool,
}

/// A text that is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not sha256:HEX, dns:NAME, email:ADDRESS or subject:CN=NAME,O=…")]
pub struct PatternError(String);

impl CertificatePattern {
    /// Whether `certificate` is the one that is meant.
    #[must_use]
    pub fn matches(&self, certificate: &ClientCertificate) -> bool {
        match self {
            Self::Fingerprint(fingerprint) => *fingerprint == certificate.fingerprint,
            _ if !certificate.is_trusted => false,
            Self::Dns(name) => certificate.dns_names.contains(name),
            Self::Email(address) => certificate.emails.contains(address),
            Self::Subject(name) => certificate.subject.as_ref() == Some(name),
        }
    }
}

impl FromStr for CertificatePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let bad = || PatternError(text.chars().take(200).collect());
        let (kind, value) = text.trim().split_once(':').ok_or_else(bad)?;
        let value = value.trim();
        if value.is_empty() || value.len() > 1024 || value.chars().any(char::is_control) {
            return Err(bad());
        }
        match kind.trim().to_ascii_lowercase().as_str() {
            "sha256" => fingerprint(value).map(Self::Fingerprint).ok_or_else(bad),
            "dns" if !value.contains(char::is_whitespace) => Ok(Self::Dns(value.to_lowercase())),
            "email" if value.contains('@') => Ok(Self::Email(value.to_lowercase())),
            "subject" => {
                Some(X500Name::parse(value)).filter(|name| !name.is_empty()).map(Self::Subject).ok_or_else(bad)
            }
            _ => Err(bad()),
        }
    }
}

/// 64 hexadecimal digits, with or without colons between octets.
fn fingerprint(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b':' | b' ')).collect();
    let nibble = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let octets: Option<Vec<u8>> =
        digits.chunks(2).map(|pair| Some((nibble(*pair.first()?)? << 4) | nibble(*pair.get(1)?)?)).collect();
    octets?.try_into().ok()
}

impl fmt::Display for CertificatePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fingerprint(fingerprint) => {
                f.write_str("sha256:")?;
                fingerprint.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Email(address) => write!(f, "email:{address}"),
            Self::Subject(name) => write!(f, "subject:{name}"),
        }
    }
}

impl TryFrom<String> for CertificatePattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<CertificatePattern> for String {
    fn from(pattern: CertificatePattern) -> Self {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn pattern(text: &str) -> CertificatePattern {
        text.parse().unwrap()
    }

    #[test]
    fn names_count_only_under_a_trusted_authority_and_a_fingerprint_always() {
        let mut shown = ClientCertificate {
            fingerprint: [0xab; 32],
            subject: Some(X500Name::parse("O=Corp, CN=Printer 7")),
            dns_names: vec!["printer7.corp.example".into()],
            emails: vec!["scan@corp.example".into()],
            is_trusted: true,
        };
        let names = ["dns:Printer7.Corp.Example", "email:Scan@corp.example", "subject:CN=printer 7,O=Corp"];
        assert!(names.iter().all(|text| pattern(text).matches(&shown)));
        let pinned = format!("sha256:{}", "AB:".repeat(32).trim_end_matches(':'));
        assert!(pattern(&pinned).matches(&shown));
        for other in ["dns:printer8.corp.example", "email:x@corp.example", "subject:CN=printer 7"] {
            assert!(!pattern(other).matches(&shown), "{other}");
        }
        shown.is_trusted = false;
        assert!(names.iter().all(|text| !pattern(text).matches(&shown)), "anybody can write such a certificate");
        assert!(pattern(&pinned).matches(&shown));
    }

    #[test]
    fn patterns_are_read_back_and_nonsense_is_refused() {
        for text in ["dns:a.example", "email:a@b.example", "subject:cn=a, o=b", &format!("sha256:{}", "0f".repeat(32))]
        {
            assert_eq!(pattern(text).to_string(), text);
            let stored = serde_json::to_string(&pattern(text)).unwrap();
            assert_eq!(serde_json::from_str::<CertificatePattern>(&stored).unwrap(), pattern(text));
        }
        for bad in ["", "a.example", "dns:", "dns:a b", "email:x", "subject:x", "sha256:00", "sha256:zz", "ip:1.2.3.4"]
        {
            assert!(bad.parse::<CertificatePattern>().is_err(), "{bad}");
        }
    }
}
