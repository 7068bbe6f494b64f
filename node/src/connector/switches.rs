//! The choices of a receive connector that are words: whose messages its rate counts, how much of its sessions is
//! written down, and which habits of old devices it puts up with.

use serde::{Deserialize, Serialize};

use super::rights::words;

/// Whose messages `message_rate_limit` counts (Exchange's `MessageRateSource`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageRateSource {
    /// Nobody's: the limit is not applied.
    None,
    /// Those of one source address.
    #[default]
    IpAddress,
    /// Those of one credential.
    User,
    /// Both, each by itself: the limit that is reached first refuses.
    All,
}

words!(MessageRateSource, "a message rate source", "", {
    None => "none",
    IpAddress => "ip_address",
    User => "user",
    All => "all" | "both",
});

/// How much of a session the protocol log keeps (Exchange's `ProtocolLoggingLevel`, and `errors`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProtocolLoggingLevel {
    /// Nothing.
    #[default]
    None,
    /// Sessions in which something was refused or failed.
    Errors,
    /// Every command and every reply, secrets masked.
    Verbose,
}

words!(ProtocolLoggingLevel, "a protocol logging level", "", {
    None => "none" | "off",
    Errors => "errors",
    Verbose => "verbose" | "on",
});

/// One habit of old devices that breaks the protocol and is put up with where the connector says so. Each use is
/// counted per device, so that it can be switched off again one day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leniency {
    /// `MAIL FROM: <a@b>`: white space after the colon, which RFC 5321 §3.3 forbids by name.
    SpaceAfterColon,
    /// `HELO` without a domain (RFC 5321 §4.1.1.1 demands one).
    HeloWithoutDomain,
    /// Bare CR and bare LF in mail data become CRLF instead of refusing the letter. The end of mail data is
    /// `CRLF . CRLF` all the same: a repaired line never ends a letter (hostile peers use exactly that).
    RepairLineEndings,
}

words!(Leniency, "a leniency", "", {
    SpaceAfterColon => "space_after_colon",
    HeloWithoutDomain => "helo_without_domain",
    RepairLineEndings => "repair_line_endings",
});

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn words_are_read_in_exchanges_spelling_and_stored_in_ours() {
        assert_eq!("IPAddress".parse::<MessageRateSource>().unwrap(), MessageRateSource::IpAddress);
        assert_eq!("Verbose".parse::<ProtocolLoggingLevel>().unwrap(), ProtocolLoggingLevel::Verbose);
        assert_eq!("space-after-colon".parse::<Leniency>().unwrap(), Leniency::SpaceAfterColon);
        fn same<T: Serialize + Copy>(all: &[T], word: impl Fn(T) -> &'static str) {
            for one in all {
                assert_eq!(serde_json::to_string(one).unwrap(), format!("{:?}", word(*one)));
            }
        }
        same(&MessageRateSource::ALL, MessageRateSource::as_str);
        same(&ProtocolLoggingLevel::ALL, ProtocolLoggingLevel::as_str);
        same(&Leniency::ALL, Leniency::as_str);
    }

    #[test]
    fn levels_are_ordered_by_how_much_they_write() {
        assert!(ProtocolLoggingLevel::None < ProtocolLoggingLevel::Errors);
        assert!(ProtocolLoggingLevel::Errors < ProtocolLoggingLevel::Verbose);
    }
}
