//! Who is at the other end of a connection: read from the certificate that our own authority signed, or from the
//! kernel's word about the local socket.

use x509_parser::prelude::{FromDer, X509Certificate};

use super::IdentityRole;

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerIdentity {
    /// Another member.
    Node {
        /// Its name.
        name: String,
    },
    /// A front.
    Front {
        /// Its name.
        name: String,
    },
    /// An administrator.
    Admin {
        /// Their name.
        name: String,
    },
    /// A process of this machine on the local socket, by the kernel's word.
    Local {
        /// Its user id.
        uid: u32,
    },
    /// Nobody we know: no client certificate.
    Anonymous,
}

impl std::fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node { name } => write!(f, "node:{name}"),
            Self::Front { name } => write!(f, "front:{name}"),
            Self::Admin { name } => write!(f, "{name}"),
            Self::Local { uid } => write!(f, "local:{uid}"),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

/// Who is at the other end of a call, and from where; in the extensions of every request.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Who.
    pub identity: PeerIdentity,
    /// `address:port`, or `unix`.
    pub from: String,
}

/// Reads role and name from a certificate that was verified against the cluster's authority.
///
/// Answers [`PeerIdentity::Anonymous`] for a certificate of another cluster or of no known role: the verifier has
/// checked the signature, but a server certificate for devices is signed by the same authority and is nobody.
#[must_use]
pub fn certificate_identity(der: &[u8], cluster_id: &str) -> PeerIdentity {
    let Ok((_, parsed)) = X509Certificate::from_der(der) else { return PeerIdentity::Anonymous };
    let subject = parsed.subject();
    let text = |attribute: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
        attribute.and_then(|attribute| attribute.as_str().ok()).unwrap_or_default().to_owned()
    };
    if text(subject.iter_organization().next()) != cluster_id {
        return PeerIdentity::Anonymous;
    }
    let name = text(subject.iter_common_name().next());
    match IdentityRole::parse(&text(subject.iter_organizational_unit().next())) {
        Some(IdentityRole::Node) => PeerIdentity::Node { name },
        Some(IdentityRole::Front) => PeerIdentity::Front { name },
        Some(IdentityRole::Admin) => PeerIdentity::Admin { name },
        None => PeerIdentity::Anonymous,
    }
}
