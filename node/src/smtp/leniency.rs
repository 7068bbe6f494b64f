//! What old devices do wrong and a connector may forgive: each by name, each off by default, each use told to the
//! driver, so that it can be counted and one day be switched off again.

use super::command::{Command, CommandError};
use crate::mail::AddressError;

/// One thing that can be forgiven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leniency {
    /// `MAIL FROM: <a@b>`: a space where RFC 5321 §3.3 has none.
    SpaceAfterColon,
    /// `HELO` or `EHLO` without a name.
    HeloWithoutDomain,
    /// CR or LF alone in mail data becomes CRLF. It never ends a letter.
    RepairLineEndings,
}

impl Leniency {
    /// Every one of them.
    pub const ALL: [Self; 3] = [Self::SpaceAfterColon, Self::HeloWithoutDomain, Self::RepairLineEndings];

    /// The name in connectors, logs and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SpaceAfterColon => "space_after_colon",
            Self::HeloWithoutDomain => "helo_without_domain",
            Self::RepairLineEndings => "repair_line_endings",
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::SpaceAfterColon => 1,
            Self::HeloWithoutDomain => 2,
            Self::RepairLineEndings => 4,
        }
    }
}

/// A set of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leniencies(u8);

impl Leniencies {
    /// Whether `leniency` is among them.
    #[must_use]
    pub fn contains(self, leniency: Leniency) -> bool {
        self.0 & leniency.bit() != 0
    }
}

impl FromIterator<Leniency> for Leniencies {
    fn from_iter<I: IntoIterator<Item = Leniency>>(all: I) -> Self {
        Self(all.into_iter().fold(0, |bits, leniency| bits | leniency.bit()))
    }
}

/// What a line that is not a command meant, if one of `permitted` makes it one.
pub(super) fn understand(line: &[u8], error: CommandError, permitted: Leniencies) -> Option<(Command, Leniency)> {
    match error {
        CommandError::DomainMissing { extended } if permitted.contains(Leniency::HeloWithoutDomain) => {
            let command = if extended { Command::Ehlo(String::new()) } else { Command::Helo(String::new()) };
            Some((command, Leniency::HeloWithoutDomain))
        }
        CommandError::Sender(AddressError::Syntax) | CommandError::Recipient(AddressError::Syntax)
            if permitted.contains(Leniency::SpaceAfterColon) =>
        {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (head, tail) = line.split_at(colon + 1);
            let mended = [head, tail.trim_ascii_start()].concat();
            Command::parse(&mended).ok().map(|command| (command, Leniency::SpaceAfterColon))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn understood(line: &str, permitted: &[Leniency]) -> Option<Leniency> {
        let error = Command::parse(line.as_bytes()).err()?;
        let permitted = permitted.iter().copied().collect();
        understand(line.as_bytes(), error, permitted).map(|(_, leniency)| leniency)
    }

    #[test]
    fn only_what_is_permitted_is_forgiven_and_nothing_else() {
        for (line, needs) in [
            ("MAIL FROM: <a@b.example>", Leniency::SpaceAfterColon),
            ("mail from:   <a@b.example> SIZE=1", Leniency::SpaceAfterColon),
            ("RCPT TO: <a@b.example>", Leniency::SpaceAfterColon),
            ("HELO", Leniency::HeloWithoutDomain),
            ("EHLO ", Leniency::HeloWithoutDomain),
        ] {
            assert_eq!(understood(line, &Leniency::ALL), Some(needs), "{line}");
            let others: Vec<_> = Leniency::ALL.into_iter().filter(|leniency| *leniency != needs).collect();
            assert_eq!(understood(line, &others), None, "{line}");
        }
        for line in
            ["MAIL FROM: a@b.example", "MAIL FROM : <a@b>", "MAIL FROM:< a@b>", "HELO a b", "RCPT TO: <a@b>,<c@d>"]
        {
            assert_eq!(understood(line, &Leniency::ALL), None, "{line}");
        }
    }
}
