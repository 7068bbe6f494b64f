//! Who is who: the cluster's own certificate authority, what is kept on disk of an identity, join tokens, and the
//! sealing of secrets before they enter the log. It decides nothing about rights; it says whose certificate that is.

mod authority;
mod identity;
mod import;
mod peer;
mod seal;
mod token;

pub use authority::{Authority, IssuedKey, PkiError, SUBMISSION_CERTIFICATE_NAME, certificate_details};
pub use identity::{Identity, IdentityError, IdentityRole, Redacted};
pub use import::{CheckedCertificate, ImportError, check_certificate};
pub use peer::{PeerIdentity, PeerInfo, certificate_identity};
pub use seal::{CA_KEY_CONTEXT, DataKey, SealError, front_key_context, route_password_context};
pub use token::{JoinTokenText, TokenError};

/// Every member's certificate carries this name, beside one of its own, so that an administrator can connect to any.
pub const MEMBER_DNS_NAME: &str = "node.posthouse.internal";

/// The name that only this member's certificate carries.
#[must_use]
pub fn member_dns_name(node: &str) -> String {
    format!("{node}.{MEMBER_DNS_NAME}")
}

/// SHA-256 in hexadecimal.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Random bytes from the system.
///
/// # Panics
/// When the system has no randomness to give: nothing secret can be made then.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0_u8; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random number generator works");
    bytes
}
