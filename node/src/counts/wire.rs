//! Counts as members tell them.

use posthouse_proto::v1 as pb;

use crate::connector::{CountKey, CountValue, WINDOW_SLOTS, Window};

/// Entries of one report. At some hundred octets each it is far below what a message may have.
pub(super) const ENTRIES_MAX: usize = 4096;
/// A connector's name has 64 characters of at most four octets; a credential's is an address.
const NAME_OCTETS_MAX: usize = 1024;

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
#[error("not a count: {0}")]
pub(super) struct BadEntry(&'static str);

pub(super) fn to_wire(key: &CountKey, value: CountValue, now_ms: u64) -> pb::CountEntry {
    let (kind, connector, subject) = match key {
        CountKey::Connections { connector } => ("connections", connector, String::new()),
        CountKey::Source { connector, source } => ("source", connector, source.to_string()),
        CountKey::LettersOfAddress { connector, source } => ("letters_of_address", connector, source.to_string()),
        CountKey::LettersOfUser { connector, user } => ("letters_of_user", connector, user.clone()),
        CountKey::FailedLogins { source } => ("failed_logins", &String::new(), source.to_string()),
    };
    let (open, letters) = match value {
        CountValue::Open(open) => (open, Vec::new()),
        CountValue::Letters(window) => {
            let ages = window.ages(now_ms);
            let used = ages.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
            (0, ages[..used].to_vec())
        }
    };
    pb::CountEntry { kind: kind.to_owned(), connector: connector.clone(), subject, open, letters }
}

pub(super) fn from_wire(entry: pb::CountEntry, now_ms: u64) -> Result<(CountKey, CountValue), BadEntry> {
    let pb::CountEntry { kind, connector, subject, open, letters } = entry;
    if connector.len() > NAME_OCTETS_MAX || subject.len() > NAME_OCTETS_MAX || letters.len() > WINDOW_SLOTS {
        return Err(BadEntry("too long"));
    }
    let letters = CountValue::Letters(Window::of_ages(now_ms, &letters));
    let address = |subject: &str| subject.parse().map_err(|_| BadEntry("the subject is not an address"));
    match kind.as_str() {
        "connections" => Ok((CountKey::Connections { connector }, CountValue::Open(open))),
        "source" => {
            let source = address(&subject)?;
            Ok((CountKey::Source { connector, source }, CountValue::Open(open)))
        }
        "letters_of_address" => {
            let source = address(&subject)?;
            Ok((CountKey::LettersOfAddress { connector, source }, letters))
        }
        "failed_logins" => {
            let source = address(&subject)?;
            Ok((CountKey::FailedLogins { source }, letters))
        }
        "letters_of_user" => Ok((CountKey::LettersOfUser { connector, user: subject }, letters)),
        _ => Err(BadEntry("the kind is unknown")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_told_is_what_is_heard() {
        let mut window = Window::default();
        window.add(1000);
        window.add(12_000);
        let source = "2001:db8::1".parse().unwrap();
        for (key, value) in [
            (CountKey::Connections { connector: "in".into() }, CountValue::Open(7)),
            (CountKey::Source { connector: "in".into(), source }, CountValue::Open(0)),
            (CountKey::LettersOfAddress { connector: "in".into(), source }, CountValue::Letters(window)),
            (CountKey::LettersOfUser { connector: "in".into(), user: "a@b".into() }, CountValue::Letters(window)),
            (CountKey::FailedLogins { source }, CountValue::Letters(window)),
        ] {
            let (heard, told) = from_wire(to_wire(&key, value, 13_000), 13_000).unwrap();
            assert_eq!(heard, key);
            match (told, value) {
                (CountValue::Letters(a), CountValue::Letters(b)) => assert_eq!(a.ages(13_000), b.ages(13_000)),
                (a, b) => assert_eq!(a, b),
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let good = pb::CountEntry { kind: "source".into(), subject: "10.0.0.1".into(), ..Default::default() };
        assert!(from_wire(good.clone(), 0).is_ok());
        assert!(from_wire(pb::CountEntry { subject: "ten".into(), ..good.clone() }, 0).is_err());
        assert!(from_wire(pb::CountEntry { kind: "sauce".into(), ..good.clone() }, 0).is_err());
        assert!(from_wire(pb::CountEntry { letters: vec![1; 99], ..good.clone() }, 0).is_err());
        assert!(from_wire(pb::CountEntry { connector: "x".repeat(5000), ..good }, 0).is_err());
    }
}
