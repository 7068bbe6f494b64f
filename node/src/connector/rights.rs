//! The words that people grant: authentication mechanisms, permission groups, principals and single rights, in
//! Exchange's spelling and in ours, and what a permission group is worth.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::receive::ReceiveConnector;

/// A word that names nothing of its kind, with the words that would.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is not {kind}; known are {known}{hint}")]
pub struct UnknownWord {
    word: String,
    kind: &'static str,
    known: String,
    hint: &'static str,
}

/// What a session may do (Exchange's extended permissions, without `ms-Exch-`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Right {
    /// `ms-Exch-SMTP-Submit`: may submit at all; without it `MAIL` and `AUTH` fail.
    Submit,
    /// `ms-Exch-SMTP-Accept-Any-Sender`: any reverse-path outside our authoritative domains.
    AcceptAnySender,
    /// `ms-Exch-SMTP-Accept-Authoritative-Domain-Sender`: a reverse-path in our own authoritative domains.
    AcceptAuthoritativeDomainSender,
    /// `ms-Exch-SMTP-Accept-Any-Recipient`: relay.
    AcceptAnyRecipient,
    /// `ms-Exch-Accept-Headers-Routing`: keeps `Received:` and `Resent-*` fields.
    AcceptHeadersRouting,
    /// `ms-Exch-Bypass-Message-Size-Limit`: may exceed `max_message_size`.
    BypassMessageSizeLimit,
}

/// A set of rights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rights(u8);

/// On whose behalf a session acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Principal {
    /// Nobody authenticated (`NT AUTHORITY\ANONYMOUS LOGON`).
    Anonymous,
    /// A credential (`NT AUTHORITY\Authenticated Users`).
    Authenticated,
}

/// One right granted to one principal on top of the permission groups, as `anonymous:accept_any_recipient`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GrantedRight {
    /// To whom.
    pub principal: Principal,
    /// What.
    pub right: Right,
}

/// What a connector offers for TLS and authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMechanism {
    /// Nothing; stands alone.
    None,
    /// `STARTTLS`, or TLS from the first byte where the service has it.
    Tls,
    /// `AUTH PLAIN` and `AUTH LOGIN`.
    BasicAuth,
    /// The same, only under TLS.
    BasicAuthRequireTls,
    /// `AUTH SCRAM-SHA-256` (RFC 7677), with channel binding under TLS.
    #[serde(rename = "scram_sha_256")]
    ScramSha256,
    /// A TLS client certificate that is mapped to a credential.
    ClientCertificate,
}

/// A named set of rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PermissionGroup {
    /// Nothing.
    None,
    /// Strangers: mail for accepted domains, from any sender.
    AnonymousUsers,
    /// Credentials: relay, as their own senders. Alias `authenticated_users`.
    #[serde(alias = "authenticated_users")]
    ExchangeUsers,
    /// Credentials of trusted servers: relay, as any sender, without the size limit.
    ExchangeServers,
    /// Credentials of partners: mail for accepted domains, as their own senders.
    Partners,
}

impl Rights {
    /// No right.
    pub const NONE: Self = Self(0);

    /// Makes a set.
    #[must_use]
    pub const fn of(rights: &[Right]) -> Self {
        let mut bits = 0;
        let mut index = 0;
        while index < rights.len() {
            bits |= 1 << rights[index] as u8;
            index += 1;
        }
        Self(bits)
    }

    /// Whether `right` is among them.
    #[must_use]
    pub const fn contains(self, right: Right) -> bool {
        self.0 & (1 << right as u8) != 0
    }

    /// These and `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The rights in their fixed order.
    pub fn iter(self) -> impl Iterator<Item = Right> {
        Right::ALL.into_iter().filter(move |right| self.contains(*right))
    }
}

/// `submit, accept_any_sender`, or `none`.
impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (index, right) in self.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{right}")?;
        }
        Ok(())
    }
}

impl PermissionGroup {
    /// Whose rights it sets, and which. Exchange's `ExchangeServers` and `Partners` mean servers that proved who they
    /// are; here that is a credential.
    #[must_use]
    pub const fn grants(self) -> (Principal, Rights) {
        use Right::{
            AcceptAnyRecipient, AcceptAnySender, AcceptAuthoritativeDomainSender, AcceptHeadersRouting,
            BypassMessageSizeLimit, Submit,
        };
        match self {
            Self::None => (Principal::Anonymous, Rights::NONE),
            Self::AnonymousUsers => (
                Principal::Anonymous,
                Rights::of(&[Submit, AcceptAnySender, AcceptAuthoritativeDomainSender, AcceptHeadersRouting]),
            ),
            Self::ExchangeUsers => {
                (Principal::Authenticated, Rights::of(&[Submit, AcceptAnyRecipient, AcceptHeadersRouting]))
            }
            Self::ExchangeServers => (
                Principal::Authenticated,
                Rights::of(&[
                    Submit,
                    AcceptAnySender,
                    AcceptAuthoritativeDomainSender,
                    AcceptAnyRecipient,
                    AcceptHeadersRouting,
                    BypassMessageSizeLimit,
                ]),
            ),
            Self::Partners => (Principal::Authenticated, Rights::of(&[Submit, AcceptHeadersRouting])),
        }
    }
}

/// Everything that `principal` may do on `connector`: its permission groups and single rights together. A credential
/// does not inherit what anonymous clients may do, as in Exchange.
#[must_use]
pub fn effective_rights(connector: &ReceiveConnector, principal: Principal) -> Rights {
    let groups = connector.permission_groups.iter().map(|group| group.grants());
    let single = connector.rights.iter().map(|granted| (granted.principal, Rights::of(&[granted.right])));
    groups.chain(single).filter(|(to, _)| *to == principal).fold(Rights::NONE, |all, (_, rights)| all.with(rights))
}

/// Lower case, without the separators that tell `BasicAuthRequireTLS` from `basic-auth-require-tls`.
pub(super) fn folded(word: &str) -> String {
    word.chars().filter(|c| !matches!(c, '-' | '_' | ' ')).map(|c| c.to_ascii_lowercase()).collect()
}

pub(super) fn unknown(word: &str, kind: &'static str, known: &[&'static str], hint: &'static str) -> UnknownWord {
    UnknownWord { word: word.chars().take(64).collect(), kind, known: known.join(", "), hint }
}

/// Makes the words of an enum: `ALL`, `as_str`, `Display` and a lenient `FromStr`.
macro_rules! words {
    ($type:ident, $kind:literal, $hint:literal, { $($variant:ident => $word:literal $(| $alias:literal)*),+ $(,)? }) => {
        impl $type {
            /// All of them, in order.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            /// The word in snake case.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        /// Takes Exchange's spelling, snake case and kebab case, in any case.
        impl std::str::FromStr for $type {
            type Err = $crate::connector::UnknownWord;
            fn from_str(word: &str) -> Result<Self, $crate::connector::UnknownWord> {
                let wanted = $crate::connector::rights::folded(word.trim());
                $(if wanted == $crate::connector::rights::folded($word) $(|| wanted == $crate::connector::rights::folded($alias))* {
                    return Ok(Self::$variant);
                })+
                Err($crate::connector::rights::unknown(word, $kind, &[$($word),+], $hint))
            }
        }
    };
}

pub(super) use words;

words!(Right, "a right", "", {
    Submit => "submit" | "ms-Exch-SMTP-Submit",
    AcceptAnySender => "accept_any_sender" | "ms-Exch-SMTP-Accept-Any-Sender",
    AcceptAuthoritativeDomainSender =>
        "accept_authoritative_domain_sender" | "ms-Exch-SMTP-Accept-Authoritative-Domain-Sender",
    AcceptAnyRecipient => "accept_any_recipient" | "ms-Exch-SMTP-Accept-Any-Recipient",
    AcceptHeadersRouting => "accept_headers_routing" | "ms-Exch-Accept-Headers-Routing",
    BypassMessageSizeLimit => "bypass_message_size_limit" | "ms-Exch-Bypass-Message-Size-Limit",
});

words!(Principal, "a principal", "", {
    Anonymous => "anonymous" | "NT AUTHORITY\\ANONYMOUS LOGON" | "ANONYMOUS LOGON",
    Authenticated => "authenticated" | "NT AUTHORITY\\Authenticated Users" | "Authenticated Users",
});

words!(
    AuthMechanism,
    "an auth mechanism",
    "; Integrated, ExchangeServer and ExternalAuthoritative have no counterpart: grant the single right instead",
    {
        None => "none",
        Tls => "tls",
        BasicAuth => "basic_auth",
        BasicAuthRequireTls => "basic_auth_require_tls",
        ScramSha256 => "scram_sha_256",
        ClientCertificate => "client_certificate",
    }
);

words!(
    PermissionGroup,
    "a permission group",
    "; ExchangeLegacyServers and Custom have no counterpart: grant single rights instead",
    {
        None => "none",
        AnonymousUsers => "anonymous_users",
        ExchangeUsers => "exchange_users" | "authenticated_users",
        ExchangeServers => "exchange_servers",
        Partners => "partners" | "partner",
    }
);

impl fmt::Display for GrantedRight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.principal, self.right)
    }
}

impl FromStr for GrantedRight {
    type Err = UnknownWord;
    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        let Some((principal, right)) = text.split_once(':') else {
            let known = ["anonymous:RIGHT", "authenticated:RIGHT"];
            return Err(unknown(text, "a granted right", &known, ""));
        };
        Ok(Self { principal: principal.parse()?, right: right.parse()? })
    }
}

impl TryFrom<String> for GrantedRight {
    type Error = UnknownWord;
    fn try_from(text: String) -> Result<Self, UnknownWord> {
        text.parse()
    }
}

impl From<GrantedRight> for String {
    fn from(granted: GrantedRight) -> Self {
        granted.to_string()
    }
}

/// Parses a list of words, each once.
///
/// # Errors
/// The first word that names nothing.
pub fn parse_words<T: FromStr<Err = UnknownWord> + Ord>(
    words: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<BTreeSet<T>, UnknownWord> {
    words.into_iter().map(|word| word.as_ref().parse()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn exchange_spelling_and_ours_mean_the_same() {
        for word in ["BasicAuthRequireTLS", "basic_auth_require_tls", "basic-auth-require-tls", " BASICAUTHREQUIRETLS "]
        {
            assert_eq!(word.parse::<AuthMechanism>().unwrap(), AuthMechanism::BasicAuthRequireTls);
        }
        for word in ["ExchangeUsers", "exchange_users", "authenticated_users", "AuthenticatedUsers"] {
            assert_eq!(word.parse::<PermissionGroup>().unwrap(), PermissionGroup::ExchangeUsers);
        }
        assert_eq!("Ms-Exch-SMTP-Accept-Any-Recipient".parse::<Right>().unwrap(), Right::AcceptAnyRecipient);
        let granted: GrantedRight = "NT AUTHORITY\\ANONYMOUS LOGON:ms-Exch-SMTP-Accept-Any-Recipient".parse().unwrap();
        assert_eq!(granted.to_string(), "anonymous:accept_any_recipient");
    }

    #[test]
    fn an_unknown_word_is_refused_with_the_known_ones() {
        let error = "Integrated".parse::<AuthMechanism>().unwrap_err().to_string();
        assert!(error.contains("\"Integrated\"") && error.contains("basic_auth_require_tls"), "{error}");
        assert!("".parse::<Right>().is_err());
        assert!("accept_any_recipient".parse::<GrantedRight>().is_err());
        assert!("root:submit".parse::<GrantedRight>().is_err());
    }

    #[test]
    fn every_word_parses_back_and_serde_uses_it() {
        for group in PermissionGroup::ALL {
            assert_eq!(group.as_str().parse::<PermissionGroup>().unwrap(), group);
            assert_eq!(serde_json::to_string(&group).unwrap(), format!("{:?}", group.as_str()));
        }
        for mechanism in AuthMechanism::ALL {
            assert_eq!(mechanism.as_str().parse::<AuthMechanism>().unwrap(), mechanism);
            assert_eq!(serde_json::to_string(&mechanism).unwrap(), format!("{:?}", mechanism.as_str()));
        }
        for right in Right::ALL {
            assert_eq!(right.as_str().parse::<Right>().unwrap(), right);
            assert_eq!(serde_json::to_string(&right).unwrap(), format!("{:?}", right.as_str()));
        }
    }

    #[test]
    fn only_a_single_right_lets_strangers_relay() {
        let mut connector = ReceiveConnector::new("relay");
        connector.permission_groups = PermissionGroup::ALL.into_iter().collect();
        assert!(!effective_rights(&connector, Principal::Anonymous).contains(Right::AcceptAnyRecipient));
        connector.rights.insert("anonymous:accept_any_recipient".parse().unwrap());
        assert!(effective_rights(&connector, Principal::Anonymous).contains(Right::AcceptAnyRecipient));
    }

    #[test]
    fn a_credential_inherits_nothing_from_strangers() {
        let mut connector = ReceiveConnector::new("in");
        connector.permission_groups = [PermissionGroup::AnonymousUsers].into();
        assert_eq!(effective_rights(&connector, Principal::Authenticated), Rights::NONE);
        assert_eq!(
            effective_rights(&connector, Principal::Anonymous).to_string(),
            "submit, accept_any_sender, accept_authoritative_domain_sender, accept_headers_routing"
        );
        assert_eq!(Rights::NONE.to_string(), "none");
    }
}
