//! What a reply that a device read means, and what a setting of a connector is for: `explain "550 5.7.54"`,
//! `explain connector.message-rate-limit`.

use clap::CommandFactory;
use serde_json::json;

use crate::cli::Cli;
use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::output;

/// What is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    what: String,
    why: String,
    fix: String,
}

/// Replies by code and enhanced code: what, why, fix.
const REPLIES: &[(&str, &str, &str, &str)] = &[
    (
        "250 2.6.0",
        "The letter is on disk, and will be delivered or reported.",
        "Nothing says it earlier.",
        "posthousectl message trace --message-id ID follows it from there.",
    ),
    (
        "421 4.3.2",
        "No connector takes this address, a connection limit is reached, or the node is draining.",
        "The words after the code say which; a session whose connector has changed is closed so at its next letter.",
        "posthousectl explain ip ADDRESS; posthousectl connector show NAME; posthousectl node list",
    ),
    (
        "421 4.4.2",
        "The device sends more letters a minute than its connector allows.",
        "message_rate_limit counts for the whole cluster, by what message_rate_source says.",
        "posthousectl connector set NAME --message-rate-limit N",
    ),
    (
        "421 4.7.0",
        "Too many errors or failed logins on one connection.",
        "max_protocol_errors and max_logon_failures end it.",
        "Look what the device says; posthousectl connector set NAME --max-protocol-errors N",
    ),
    (
        "451 5.7.3",
        "The connector requires TLS and the device did not use it.",
        "require_tls is on; the code is Exchange's.",
        "Switch STARTTLS on in the device, or posthousectl connector set NAME --require-tls false",
    ),
    (
        "452 4.3.1",
        "The node cannot take letters now.",
        "Its disk is full or refuses writes. It leaves the fronts' rotation before it refuses anybody.",
        "posthousectl status",
    ),
    (
        "452 4.5.3",
        "More recipients than one letter may have; the others stay accepted.",
        "max_recipients_per_message is reached.",
        "posthousectl connector set NAME --max-recipients-per-message N",
    ),
    (
        "504 5.7.4",
        "AUTH is not offered here and now.",
        "The connector offers none, or only under TLS.",
        "posthousectl explain ip ADDRESS --auth USER --tls",
    ),
    (
        "530 5.7.57",
        "Strangers may not send on the connector that takes this address.",
        "It has no right to submit for anonymous clients, or its range has expired.",
        "posthousectl explain ip ADDRESS; allow it with posthousectl allowlist add CONNECTOR ADDRESS",
    ),
    (
        "535 5.7.3",
        "The login is refused: user name, password, or where it may be used.",
        "Which of them is not said to whoever tries.",
        "posthousectl credential show USER; posthousectl explain ip ADDRESS --auth USER",
    ),
    (
        "550 5.7.1",
        "The connector's recipient-domain lists rule this recipient out, whoever sends.",
        "allowed_recipient_domains or denied_recipient_domains is set.",
        "posthousectl connector show NAME",
    ),
    (
        "550 5.7.54",
        "The recipient's domain is not accepted, and this client may not relay.",
        "Relay is a right: anonymous:accept_any_recipient for strangers, exchange_users for credentials. The most specific range decides, and nothing falls through to a wider one.",
        "posthousectl explain ip ADDRESS --to RECIPIENT says which connector decided and the command that allows it.",
    ),
    (
        "550 5.7.60",
        "A credential may not send as this sender.",
        "Its allowed senders do not cover it, and the connector grants no right to send as anybody.",
        "posthousectl credential set USER --sender ADDRESS|@DOMAIN",
    ),
    (
        "552 5.3.4",
        "The letter or its header is larger than the connector allows.",
        "max_message_size or max_header_size is reached; base64 makes a third more of an attachment.",
        "posthousectl connector set NAME --max-message-size 50MB",
    ),
    (
        "554 5.4.6",
        "The letter has passed too many hosts.",
        "max_hop_count or max_local_hop_count is reached: most likely a loop between two systems.",
        "Look at the Received fields; a route that leads back to who sent it is the usual cause.",
    ),
];

/// What `wanted` names: a reply, or a setting.
pub(crate) fn find(wanted: &str) -> Option<Told> {
    reply(wanted).or_else(|| setting(wanted))
}

/// A reply is known by its code and enhanced code, or by the enhanced code alone.
fn reply(wanted: &str) -> Option<Told> {
    let mut words = wanted.split_whitespace();
    let (first, second) = (words.next()?, words.next());
    let is_enhanced =
        |word: &str| word.split('.').count() == 3 && word.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let known = REPLIES.iter().find(|(code, ..)| match second {
        Some(second) if is_enhanced(second) => *code == format!("{first} {second}"),
        _ => is_enhanced(first) && code.ends_with(&format!(" {first}")),
    });
    known.map(|(_, what, why, fix)| Told { what: (*what).to_owned(), why: (*why).to_owned(), fix: (*fix).to_owned() })
}

/// `connector.NAME`: the help of its flag, in any spelling of the name.
fn setting(wanted: &str) -> Option<Told> {
    let fold = |word: &str| word.replace(['-', '_'], "").to_ascii_lowercase();
    let name = wanted.trim().strip_prefix("connector.")?;
    let cli = Cli::command();
    let set = cli.find_subcommand("connector")?.find_subcommand("set")?;
    let names = |arg: &clap::Arg| {
        let aliases = arg.get_visible_aliases().unwrap_or_default();
        arg.get_long().into_iter().chain(aliases).any(|long| fold(long) == fold(name))
    };
    let arg = set.get_arguments().filter(|arg| arg.get_long().is_some()).find(|arg| names(arg))?;
    let long = arg.get_long()?;
    Some(Told {
        what: format!("{} of a receive connector.", long.replace('-', "_")),
        why: arg.get_help()?.to_string(),
        fix: format!("posthousectl connector set NAME --{long} VALUE"),
    })
}

/// Prints it.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn print(told: &Told, console: &Console) -> Result<Exit, Failure> {
    let Told { what, why, fix } = told;
    if console.out.format.is_json() {
        console.out.json("explain-words", &json!({"what": what, "why": why, "fix": fix}))?;
    } else {
        output::text(&format!("{what}\nWhy    {why}\nFix    {fix}\n"))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_reply_is_known_as_the_device_shows_it() {
        for wanted in ["550 5.7.54", "5.7.54", "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain"] {
            assert!(find(wanted).unwrap().what.contains("may not relay"), "{wanted}");
        }
        for wanted in ["", "550", "550 5.7.99", "PH-CONN-001", "5.7"] {
            assert_eq!(find(wanted), None, "{wanted}");
        }
    }

    #[test]
    fn a_setting_is_known_in_any_spelling() {
        for wanted in [
            "connector.message-rate-limit",
            "connector.message_rate_limit",
            "connector.MessageRateLimit",
            "connector.rate",
        ] {
            assert!(find(wanted).unwrap().fix.contains("--message-rate-limit"), "{wanted}");
        }
        assert_eq!(find("connector.nonsense"), None);
    }
}
