//! How a connector names a certificate: by its name in the cluster, or as Exchange does by `<I>issuer<S>subject`, so
//! that a renewal under the same names keeps working. Names are compared as X.500 names, whatever their order and
//! spaces.

use super::Certificate;
use crate::credential::X500Name;

/// What a connector's `tls_certificate_name` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateName {
    /// This one.
    Name(String),
    /// Whichever has this issuer and subject.
    IssuerSubject {
        /// Who signed it.
        issuer: X500Name,
        /// Whose it is.
        subject: X500Name,
    },
}

impl CertificateName {
    /// Reads a name; every text is one.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let pair = text.trim().strip_prefix("<I>").and_then(|rest| rest.split_once("<S>"));
        match pair {
            Some((issuer, subject)) => {
                Self::IssuerSubject { issuer: X500Name::parse(issuer), subject: X500Name::parse(subject) }
            }
            None => Self::Name(text.to_owned()),
        }
    }

    /// Whether `certificate` is one that is meant.
    #[must_use]
    pub fn selects(&self, certificate: &Certificate) -> bool {
        match self {
            Self::Name(name) => *name == certificate.name,
            Self::IssuerSubject { issuer, subject } => {
                !subject.is_empty()
                    && X500Name::parse(&certificate.issuer) == *issuer
                    && X500Name::parse(&certificate.subject) == *subject
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::SealedSecret;

    fn certificate(name: &str) -> Certificate {
        Certificate {
            name: name.to_owned(),
            chain_pem: String::new(),
            sealed_key: SealedSecret(String::new()),
            names: Vec::new(),
            subject: "C=DE, O=Corp, CN=smtp.corp.example".to_owned(),
            issuer: "O=Corp, CN=Corp CA".to_owned(),
            not_after_ms: 0,
        }
    }

    #[test]
    fn a_certificate_is_meant_by_its_name_or_by_issuer_and_subject_in_any_order() {
        let found = certificate("smtp-2026");
        for text in [
            "smtp-2026",
            "<I>CN=Corp CA, O=Corp<S>CN=smtp.corp.example, O=Corp, C=DE",
            "<I>O=corp,CN=Corp  CA<S>C=DE,O=Corp,CN=SMTP.corp.example",
        ] {
            assert!(CertificateName::parse(text).selects(&found), "{text}");
        }
        for text in ["smtp", "<I>CN=Corp CA<S>CN=smtp.corp.example, O=Corp, C=DE", "<I><S>", "<I>CN=Corp CA, O=Corp"] {
            assert!(!CertificateName::parse(text).selects(&found), "{text}");
        }
    }
}
