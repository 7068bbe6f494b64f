//! Checks a server certificate before the cluster takes it: what a device would trip over later is said now.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::certificate_details;

/// More than any chain has.
const CHAIN_MAX: usize = 10;
/// Certificates that end within this are taken with a warning.
const SOON_MS: i64 = 30 * DAY_MS;
const DAY_MS: i64 = 24 * 3600 * 1000;

/// A certificate that may be used.
#[derive(Clone, PartialEq, Eq)]
pub struct CheckedCertificate {
    /// The private key, DER.
    pub key_der: Vec<u8>,
    /// Subject.
    pub subject: String,
    /// Issuer.
    pub issuer: String,
    /// Subject alternative names.
    pub names: Vec<String>,
    /// End of validity, in unix milliseconds.
    pub not_after_ms: i64,
    /// What the administrator should know.
    pub warnings: Vec<String>,
}

impl std::fmt::Debug for CheckedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckedCertificate").field("subject", &self.subject).finish_non_exhaustive()
    }
}

/// Why a certificate may not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// No PEM certificate.
    #[error("there is no PEM certificate in it")]
    NoCertificate,
    /// A certificate that is none.
    #[error("certificate {0} of the chain cannot be read")]
    Certificate(usize),
    /// A chain without end.
    #[error("the chain has more than {CHAIN_MAX} certificates")]
    TooLong,
    /// No PEM private key, or one that is encrypted.
    #[error("there is no unencrypted PEM private key in it")]
    NoKey,
    /// The first certificate signs others.
    #[error("the first certificate is an authority's ({0}): the server's own comes first")]
    AuthorityFirst(String),
    /// A chain out of order, or with a gap.
    #[error("certificate {0} of the chain was signed by \"{1}\", and the next one is \"{2}\"")]
    Order(usize, String, String),
    /// Too late.
    #[error("it ended on {0}")]
    Expired(String),
    /// Too early.
    #[error("it begins on {0}")]
    NotYet(String),
}

/// Reads a chain (the server's own certificate first) and its key, and checks them at `now_ms`. That the two belong
/// together is for whoever makes a TLS configuration of them to say.
///
/// # Errors
/// See [`ImportError`].
pub fn check_certificate(chain_pem: &str, key_pem: &str, now_ms: i64) -> Result<CheckedCertificate, ImportError> {
    let chain: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .enumerate()
        .map(|(index, der)| der.map_err(|_| ImportError::Certificate(index + 1)))
        .collect::<Result<_, _>>()?;
    if chain.is_empty() {
        return Err(ImportError::NoCertificate);
    }
    if chain.len() > CHAIN_MAX {
        return Err(ImportError::TooLong);
    }
    let parsed: Vec<X509Certificate<'_>> = chain
        .iter()
        .enumerate()
        .map(|(index, der)| {
            X509Certificate::from_der(der).map(|(_, parsed)| parsed).map_err(|_| ImportError::Certificate(index + 1))
        })
        .collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| ImportError::NoKey)?;
    let leaf = &parsed[0];
    if parsed.len() > 1 && leaf.is_ca() {
        return Err(ImportError::AuthorityFirst(leaf.subject().to_string()));
    }
    for (index, pair) in parsed.windows(2).enumerate() {
        if pair[0].issuer().as_raw() != pair[1].subject().as_raw() {
            let (issuer, next) = (pair[0].issuer().to_string(), pair[1].subject().to_string());
            return Err(ImportError::Order(index + 1, issuer, next));
        }
    }
    let (begins, ends) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    let day = |secs: i64| jiff::Timestamp::from_second(secs).map(|at| at.to_string()).unwrap_or_default();
    if ends.saturating_mul(1000) <= now_ms {
        return Err(ImportError::Expired(day(ends)));
    }
    if begins.saturating_mul(1000) > now_ms {
        return Err(ImportError::NotYet(day(begins)));
    }
    let (subject, issuer, names, not_after_ms) =
        certificate_details(chain_pem).map_err(|_| ImportError::Certificate(1))?;
    let mut warnings = Vec::new();
    if names.is_empty() {
        warnings.push("it has no subject alternative name: devices that verify names will refuse it".to_owned());
    }
    if not_after_ms.saturating_sub(now_ms) < SOON_MS {
        warnings.push(format!("it ends on {}", day(ends)));
    }
    let last = &parsed[parsed.len() - 1];
    if parsed.len() == 1 && leaf.issuer().as_raw() != leaf.subject().as_raw() {
        warnings.push(format!("the chain holds no certificate of \"{issuer}\": devices that lack it will refuse"));
    } else if parsed.len() > 1 && !last.is_ca() {
        warnings.push("the last certificate of the chain is no authority's".to_owned());
    }
    Ok(CheckedCertificate { key_der: key.secret_der().to_vec(), subject, issuer, names, not_after_ms, warnings })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::pki::{Authority, IdentityRole};

    const DAY: i64 = 24 * 3600;

    fn authority() -> Authority {
        Authority::create("test", "id", OffsetDateTime::now_utc()).unwrap().0
    }

    fn now_ms() -> i64 {
        OffsetDateTime::now_utc().unix_timestamp() * 1000
    }

    #[test]
    fn a_whole_chain_with_its_key_is_taken() {
        let made = authority().issue_server(&["smtp.example".to_owned()], OffsetDateTime::now_utc()).unwrap();
        let checked = check_certificate(&made.chain_pem, &made.key_pem, now_ms()).unwrap();
        assert_eq!(checked.names, ["smtp.example"]);
        assert_eq!((checked.key_der, checked.warnings), (made.key_der, Vec::<String>::new()));
    }

    #[test]
    fn what_a_device_would_trip_over_is_refused_or_said() {
        let (authority, now) = (authority(), OffsetDateTime::now_utc());
        let made = authority.issue_server(&["smtp.example".to_owned()], now).unwrap();
        let other = self::authority();
        let (leaf, ca) = made.chain_pem.split_once("-----END CERTIFICATE-----\n").unwrap();
        let leaf = format!("{leaf}-----END CERTIFICATE-----\n");
        let check = |chain: &str, key: &str, at: i64| check_certificate(chain, key, at).unwrap_err();
        assert_eq!(check("", &made.key_pem, now_ms()), ImportError::NoCertificate);
        assert_eq!(check(&made.chain_pem, "", now_ms()), ImportError::NoKey);
        assert!(matches!(check(&format!("{ca}{leaf}"), &made.key_pem, now_ms()), ImportError::AuthorityFirst(_)));
        // Another authority of the same name cannot be told by its name; one of another name can.
        let stranger = Authority::create("other", "id", now).unwrap().0;
        let wrong = format!("{leaf}{}", stranger.ca_pem());
        assert!(matches!(check(&wrong, &made.key_pem, now_ms()), ImportError::Order(1, _, _)));
        assert!(matches!(check(&made.chain_pem, &made.key_pem, now_ms() + 821 * DAY * 1000), ImportError::Expired(_)));
        assert!(matches!(check(&made.chain_pem, &made.key_pem, now_ms() - DAY * 1000), ImportError::NotYet(_)));
        let soon = check_certificate(&made.chain_pem, &made.key_pem, now_ms() + 800 * DAY * 1000).unwrap();
        assert!(soon.warnings.iter().any(|warning| warning.starts_with("it ends on")), "{:?}", soon.warnings);
        let alone = check_certificate(&leaf, &made.key_pem, now_ms()).unwrap();
        assert!(alone.warnings.iter().any(|warning| warning.contains("holds no certificate of")));
        let nameless = other.issue_identity(IdentityRole::Admin, "x", now + Duration::ZERO).unwrap();
        let nameless = check_certificate(&nameless.chain_pem, &nameless.key_pem, now_ms()).unwrap();
        assert!(nameless.warnings.iter().any(|warning| warning.contains("no subject alternative name")));
        let broken = made.chain_pem.replacen("MII", "MIJ", 1);
        assert!(check_certificate(&broken, &made.key_pem, now_ms()).is_err());
    }
}
