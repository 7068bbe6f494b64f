//! As whom a credential may send.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::mail::{AddressError, Domain, Mailbox, ReversePath};

/// One allowed sender: an address, every address of a domain (`@corp.example`), or any (`*`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SenderPattern {
    /// Any reverse-path, the null one included.
    Any,
    /// Every address of exactly this domain.
    Domain(Domain),
    /// This address, in any case.
    Address(Mailbox),
}

/// The allowed senders of a credential; an empty list allows none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SenderRule(pub Vec<SenderPattern>);

impl SenderRule {
    /// The rule that allows nothing.
    pub const NONE: &'static Self = &Self(Vec::new());

    /// Whether `path` is among them. The null reverse-path (`<>`) belongs to nobody, so only `*` allows it: a
    /// credential that is held to its own addresses must not send letters that no report can come back for.
    #[must_use]
    pub fn allows(&self, path: &ReversePath) -> bool {
        Self::matches(&self.0, path)
    }

    /// Whether one of `patterns` means `path`. The null reverse-path is meant by `*` alone.
    #[must_use]
    pub fn matches(patterns: &[SenderPattern], path: &ReversePath) -> bool {
        patterns.iter().any(|pattern| match (pattern, path.mailbox()) {
            (SenderPattern::Any, _) => true,
            (_, None) => false,
            (SenderPattern::Domain(domain), Some(sender)) => sender.domain() == domain,
            // RFC 5321 §2.4 lets a host tell upper from lower case in its own local parts; Exchange does not.
            (SenderPattern::Address(address), Some(sender)) => {
                sender.domain() == address.domain() && sender.local_part().eq_ignore_ascii_case(address.local_part())
            }
        })
    }
}

impl fmt::Display for SenderPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Domain(domain) => write!(f, "@{domain}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl FromStr for SenderPattern {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        if text == "*" {
            return Ok(Self::Any);
        }
        match text.strip_prefix('@').or_else(|| text.strip_prefix("*@")) {
            Some(domain) => Domain::parse(domain).map(Self::Domain),
            None => Mailbox::parse(text).map(Self::Address),
        }
    }
}

impl TryFrom<String> for SenderPattern {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<SenderPattern> for String {
    fn from(pattern: SenderPattern) -> Self {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn rule(patterns: &[&str]) -> SenderRule {
        SenderRule(patterns.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn path(text: &str) -> ReversePath {
        ReversePath::parse_path(text).unwrap()
    }

    #[test]
    fn a_credential_sends_as_what_is_listed_and_nothing_else() {
        let own = rule(&["scan@corp.example", "@lab.example"]);
        for sender in ["<scan@corp.example>", "<SCAN@CORP.EXAMPLE>", "<anyone@lab.example>"] {
            assert!(own.allows(&path(sender)), "{sender}");
        }
        for sender in ["<boss@corp.example>", "<a@sub.lab.example>", "<a@xlab.example>", "<>"] {
            assert!(!own.allows(&path(sender)), "{sender}");
        }
        assert!(!rule(&[]).allows(&path("<scan@corp.example>")));
    }

    #[test]
    fn only_the_star_allows_the_null_reverse_path() {
        assert!(rule(&["*"]).allows(&path("<>")));
        assert!(rule(&["*"]).allows(&path("<a@b.example>")));
        assert!(!rule(&["@corp.example"]).allows(&path("<>")));
    }

    #[test]
    fn patterns_parse_and_show_the_same() {
        for text in ["*", "@corp.example", "scan@corp.example"] {
            assert_eq!(text.parse::<SenderPattern>().unwrap().to_string(), text);
        }
        assert_eq!("*@corp.example".parse::<SenderPattern>().unwrap().to_string(), "@corp.example");
        for text in ["", "@", "corp.example", "**", "a b@c.example"] {
            assert!(text.parse::<SenderPattern>().is_err(), "{text}");
        }
    }
}
