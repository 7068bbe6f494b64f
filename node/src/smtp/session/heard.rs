//! What a transcript may hold of a client's line: all of it, but for what could be a secret. Devices say passwords where
//! none was asked for, and after an `AUTH` that was refused.

use super::{Action, Session};
use crate::smtp::Mechanism;
use crate::smtp::command::{Command, CommandError};

/// In place of a secret.
const MASK: &[u8] = b"*";

impl Session {
    /// Tells the driver of a command line, if it wants to know.
    pub(super) fn tell_line(&mut self, line: &[u8]) {
        // Remembered whoever listens: somebody may begin to after a login that failed.
        let auth_seen = self.auth_seen;
        self.auth_seen = auth_seen || names_auth(line);
        if self.config.transcript {
            self.act(Action::Heard(masked(line, auth_seen)));
        }
    }

    /// Whether the driver wants to know of the lines of the client from now on.
    pub fn set_transcript(&mut self, wanted: bool) {
        self.config.transcript = wanted;
    }

    /// Tells the driver of a line within an authentication, which is never shown.
    pub(super) fn tell_secret(&mut self) {
        self.auth_seen = true;
        if self.config.transcript {
            self.act(Action::Heard(MASK.to_vec()));
        }
    }
}

fn names_auth(line: &[u8]) -> bool {
    line.windows(4).any(|four| four.eq_ignore_ascii_case(b"AUTH"))
}

/// The line as it may be shown.
fn masked(line: &[u8], auth_seen: bool) -> Vec<u8> {
    let line = line.trim_ascii();
    let is_known = !matches!(Command::parse(line), Err(CommandError::NotSmtp | CommandError::Unrecognized));
    let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let verb = words.next().unwrap_or_default();
    if verb.eq_ignore_ascii_case(b"AUTH") {
        let mut shown = verb.to_vec();
        let mechanism = words.next().map(|word| String::from_utf8_lossy(word).to_ascii_uppercase());
        let known = mechanism.as_deref().and_then(Mechanism::find);
        if let Some(mechanism) = known {
            shown.push(b' ');
            shown.extend_from_slice(mechanism.as_str().as_bytes());
        }
        if words.next().is_some() || (known.is_none() && mechanism.is_some()) {
            shown.push(b' ');
            shown.extend_from_slice(MASK);
        }
        return shown;
    }
    // `AUTH:PLAIN …`, `X-AUTH …`, and a user name or a password that is said on a line of its own.
    if !is_known && (auth_seen || names_auth(line)) {
        return MASK.to_vec();
    }
    line.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_and_nothing_else() {
        for (line, after_auth, shown) in [
            ("EHLO printer.example", false, "EHLO printer.example"),
            ("MAIL FROM:<auth@corp.example> AUTH=<>", false, "MAIL FROM:<auth@corp.example> AUTH=<>"),
            ("AUTH PLAIN AGEAc2VjcmV0", false, "AUTH PLAIN *"),
            ("auth  login  dXNlcg== c2VjcmV0", false, "auth LOGIN *"),
            ("AUTH LOGIN", false, "AUTH LOGIN"),
            ("AUTH", false, "AUTH"),
            ("AUTH secret", false, "AUTH *"),
            ("AUTH NTLM secret", false, "AUTH *"),
            ("AUTH:PLAIN secret", false, "*"),
            ("AUTHPLAIN secret", false, "*"),
            ("  AUTH PLAIN secret", false, "AUTH PLAIN *"),
            ("X AUTH PLAIN secret", false, "*"),
            ("c2VjcmV0", false, "c2VjcmV0"),
            ("c2VjcmV0", true, "*"),
            ("MAIL FROM:<a@corp.example>", true, "MAIL FROM:<a@corp.example>"),
            ("MAIL FORM", true, "MAIL FORM"),
            ("QUIT", true, "QUIT"),
        ] {
            assert_eq!(String::from_utf8_lossy(&masked(line.as_bytes(), after_auth)), shown, "{line}");
        }
    }
}
