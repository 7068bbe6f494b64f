//! Where a connector's letters may go at all: its allowed and denied recipient domains, which hold whoever sends.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::mail::Domain;

/// A recipient domain of an allow or deny list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RecipientDomainPattern {
    /// `*`: every domain, address literals included.
    All,
    /// `*.corp.example`: `corp.example` with every subdomain, as for accepted domains and routes.
    Subdomains(Domain),
    /// `corp.example`: exactly this domain.
    Exact(Domain),
}

/// A text that is not such a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a recipient domain such as corp.example, *.corp.example (with every subdomain) or *")]
pub struct RecipientDomainError(String);

impl RecipientDomainPattern {
    /// Whether `domain` is meant. An address literal is no name, and only `*` means it.
    #[must_use]
    pub fn matches(&self, domain: &Domain) -> bool {
        match self {
            Self::All => true,
            Self::Exact(name) => name == domain,
            Self::Subdomains(parent) => {
                parent == domain
                    || domain.as_str().strip_suffix(parent.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }
        }
    }
}

impl fmt::Display for RecipientDomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Subdomains(parent) => write!(f, "*.{parent}"),
            Self::Exact(domain) => domain.fmt(f),
        }
    }
}

impl FromStr for RecipientDomainPattern {
    type Err = RecipientDomainError;
    fn from_str(text: &str) -> Result<Self, RecipientDomainError> {
        let error = || RecipientDomainError(text.chars().take(300).collect());
        let name = text.trim();
        if name == "*" {
            return Ok(Self::All);
        }
        let domain = |name: &str| match Domain::parse(name) {
            Ok(domain) if !domain.is_literal() => Ok(domain),
            _ => Err(error()),
        };
        match name.strip_prefix("*.") {
            Some(parent) => domain(parent).map(Self::Subdomains),
            None => domain(name).map(Self::Exact),
        }
    }
}

impl TryFrom<String> for RecipientDomainPattern {
    type Error = RecipientDomainError;
    fn try_from(text: String) -> Result<Self, RecipientDomainError> {
        text.parse()
    }
}

impl From<RecipientDomainPattern> for String {
    fn from(pattern: RecipientDomainPattern) -> Self {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_pattern_means_its_domain_and_no_neighbour() {
        let matches = |pattern: &str, domain: &str| {
            pattern.parse::<RecipientDomainPattern>().unwrap().matches(&Domain::parse(domain).unwrap())
        };
        for (pattern, domain, expected) in [
            ("corp.example", "corp.example", true),
            ("Corp.Example", "CORP.EXAMPLE", true),
            ("corp.example", "sub.corp.example", false),
            ("*.corp.example", "corp.example", true),
            ("*.corp.example", "a.b.corp.example", true),
            ("*.corp.example", "xcorp.example", false),
            ("*.corp.example", "corp.example.other.example", false),
            ("*", "anything.example", true),
            ("*", "[192.0.2.1]", true),
            ("*.example", "[192.0.2.1]", false),
        ] {
            assert_eq!(matches(pattern, domain), expected, "{pattern} {domain}");
        }
    }

    #[test]
    fn patterns_parse_and_show_the_same_and_nonsense_is_refused() {
        for text in ["*", "corp.example", "*.corp.example"] {
            assert_eq!(text.parse::<RecipientDomainPattern>().unwrap().to_string(), text);
        }
        for text in ["", "*.", "**", "a@b.example", "[192.0.2.1]", "corp example", "*corp.example"] {
            assert!(text.parse::<RecipientDomainPattern>().is_err(), "{text}");
        }
    }
}
