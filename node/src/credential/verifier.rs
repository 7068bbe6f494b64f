//! Passwords: argon2id (RFC 9106) in PHC string format.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher, PasswordVerifier};

use super::VERIFIERS_MAX;

/// Longer passwords are refused: no device holds them, and a megabyte of base64 must not be hashed.
const PASSWORD_OCTETS_MAX: usize = 1024;
/// The salt of [`spend`]. Nothing is compared with what it makes.
const DUMMY_SALT: [u8; 16] = *b"posthouse-dummy.";

/// Why a password cannot be hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// Nothing to hash.
    #[error("the password is empty")]
    Empty,
    /// More than 1024 octets.
    #[error("the password has more than {PASSWORD_OCTETS_MAX} octets")]
    TooLong,
    /// NUL separates the fields of AUTH PLAIN (RFC 4616 §2), so that no device could send it.
    #[error("the password contains a NUL character")]
    Nul,
    /// SCRAM wants SASLprep (RFC 4013), of which every client has its own idea beyond ASCII.
    #[error("the password has characters other than printable ASCII, which SCRAM clients disagree about")]
    NotAscii,
    /// The library refused.
    #[error("the password could not be hashed")]
    Argon2,
}

/// Hashes a password with argon2id's default costs (19 MiB, two passes, one lane: OWASP's first choice). Takes tens of
/// milliseconds.
///
/// # Errors
/// See [`HashError`].
pub fn hash(password: &[u8], salt: &[u8; 16]) -> Result<String, HashError> {
    if password.is_empty() {
        return Err(HashError::Empty);
    }
    if password.len() > PASSWORD_OCTETS_MAX {
        return Err(HashError::TooLong);
    }
    if password.contains(&0) {
        return Err(HashError::Nul);
    }
    let hashed = Argon2::default().hash_password_with_salt(password, salt).map_err(|_| HashError::Argon2)?;
    Ok(hashed.to_string())
}

/// Whether `password` is the one behind `phc`. Takes as long as [`hash`]; a malformed `phc` matches nothing.
#[must_use]
pub fn verify(password: &[u8], phc: &str) -> bool {
    if !is_hashable(password) || !is_acceptable(phc) {
        spend(password);
        return false;
    }
    match PasswordHash::new(phc) {
        Ok(expected) => {
            count();
            Argon2::default().verify_password(password, &expected).is_ok()
        }
        Err(_) => false,
    }
}

/// Which of `verifiers` (id and PHC string) is behind `password`. A no costs the same work however many secrets are
/// alive, and the same as [`verify_dummy`], so that its time tells nothing.
#[must_use]
pub fn verify_any<'a>(password: &[u8], verifiers: impl IntoIterator<Item = (u32, &'a str)>) -> Option<u32> {
    let mut tried = 0;
    for (id, phc) in verifiers.into_iter().take(VERIFIERS_MAX) {
        if verify(password, phc) {
            return Some(id);
        }
        tried += 1;
    }
    (tried..VERIFIERS_MAX).for_each(|_| spend(password));
    None
}

/// Spends as much work on `password` as a failing [`verify_any`], for a user who does not exist.
pub fn verify_dummy(password: &[u8]) {
    let nobody = verify_any(password, []);
    debug_assert_eq!(nobody, None);
}

/// The work of one [`verify`], for nothing.
fn spend(password: &[u8]) {
    count();
    let length = password.len().min(PASSWORD_OCTETS_MAX);
    let hashed = Argon2::default().hash_password_with_salt(password.get(..length).unwrap_or_default(), &DUMMY_SALT);
    // Looked at, so that no optimiser finds out that nobody needs it.
    std::hint::black_box(hashed.is_ok());
}

/// Tests count the hashes, because a clock would make them depend on the machine.
fn count() {
    #[cfg(test)]
    tests::HASHES.set(tests::HASHES.get() + 1);
}

fn is_hashable(password: &[u8]) -> bool {
    (1..=PASSWORD_OCTETS_MAX).contains(&password.len())
}

/// Whether a stored hash is argon2id with costs that a node is willing to spend: a snapshot or a restored backup must
/// not be able to make every login take a gigabyte.
pub(super) fn is_acceptable(phc: &str) -> bool {
    let Ok(parsed) = PasswordHash::new(phc) else { return false };
    let Ok(params) = argon2::Params::try_from(&parsed) else { return false };
    parsed.algorithm.as_str() == "argon2id"
        && parsed.salt.is_some()
        && parsed.hash.is_some()
        && params.m_cost() <= 64 * 1024
        && params.t_cost() <= 10
        && params.p_cost() <= 4
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::Cell;

    use super::*;

    thread_local! {
        pub(super) static HASHES: Cell<u32> = const { Cell::new(0) };
    }

    #[test]
    fn the_right_password_verifies_and_no_other() {
        let phc = hash(b"correct horse", &[1; 16]).unwrap();
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        assert!(verify(b"correct horse", &phc));
        assert!(!verify(b"correct horsf", &phc));
        assert!(!verify(b"", &phc));
        assert!(!verify(&[b'x'; 5000], &phc));
    }

    #[test]
    fn the_salt_makes_equal_passwords_look_different() {
        assert_ne!(hash(b"same", &[1; 16]).unwrap(), hash(b"same", &[2; 16]).unwrap());
    }

    #[test]
    fn what_no_device_could_send_is_not_a_password() {
        assert_eq!(hash(b"", &[1; 16]), Err(HashError::Empty));
        assert_eq!(hash(b"a\0b", &[1; 16]), Err(HashError::Nul));
        assert_eq!(hash(&[b'x'; PASSWORD_OCTETS_MAX + 1], &[1; 16]), Err(HashError::TooLong));
    }

    #[test]
    fn a_malformed_or_costly_hash_matches_nothing() {
        let phc = hash(b"pw", &[1; 16]).unwrap();
        for bad in [
            "",
            "pw",
            "$argon2id$",
            &phc[..phc.len() - 4],
            &phc.replace("argon2id", "argon2i"),
            &phc.replace("m=19456", "m=4000000000"),
            &phc.replace("t=2", "t=100000"),
        ] {
            assert!(!verify(b"pw", bad), "{bad}");
        }
    }

    #[test]
    fn any_of_two_live_secrets_is_found_and_an_unknown_user_has_none() {
        let (old, new) = (hash(b"old", &[1; 16]).unwrap(), hash(b"new", &[2; 16]).unwrap());
        let both = [(4, old.as_str()), (9, new.as_str())];
        assert_eq!(verify_any(b"old", both), Some(4));
        assert_eq!(verify_any(b"new", both), Some(9));
        assert_eq!(verify_any(b"other", both), None);
        assert_eq!(verify_any(b"old", []), None);
    }

    #[test]
    fn a_no_costs_the_same_whoever_the_user_is() {
        let phc = hash(b"right", &[1; 16]).unwrap();
        let one = [(1, phc.as_str())];
        let two = [(1, phc.as_str()), (2, phc.as_str())];
        let broken = [(1, "not a hash")];
        let hashes = |run: &dyn Fn()| {
            HASHES.set(0);
            run();
            HASHES.get()
        };
        for password in [&b"wrong"[..], b"", &[b'x'; PASSWORD_OCTETS_MAX + 1]] {
            assert_eq!(hashes(&|| verify_dummy(password)), 2);
            for verifiers in [&one[..], &two, &broken] {
                assert_eq!(hashes(&|| assert_eq!(verify_any(password, verifiers.iter().copied()), None)), 2);
            }
        }
        assert_eq!(hashes(&|| assert_eq!(verify_any(b"right", one), Some(1))), 1);
    }
}
