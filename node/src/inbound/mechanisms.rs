//! Which SASL mechanisms a connector's sessions offer, the strongest first.

use crate::connector::ReceiveConnector;
use crate::smtp::Mechanism;

/// What is offered on a connection that is (`tls`) or is not encrypted. Before TLS, only where the connector takes
/// passwords there: one that does not shall teach no device to try. What needs a channel or a certificate is left out
/// by the session where the connection has none.
pub(super) fn mechanisms(connector: &ReceiveConnector, tls: bool) -> Vec<Mechanism> {
    let (passwords, scram) = (connector.takes_passwords(tls), connector.offers_scram(tls));
    let certificate = connector.offers_client_certificate(tls);
    let offered = [
        (scram && tls, Mechanism::ScramSha256Plus),
        (scram, Mechanism::ScramSha256),
        (certificate, Mechanism::External),
        (passwords, Mechanism::Login),
        (passwords, Mechanism::Plain),
    ];
    offered.into_iter().filter(|(offered, _)| *offered).map(|(_, mechanism)| mechanism).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::AuthMechanism;

    fn offered(mechanisms: &[AuthMechanism], tls: bool) -> Vec<&'static str> {
        let mut connector = ReceiveConnector::new("in");
        connector.auth_mechanism = mechanisms.iter().copied().collect();
        super::mechanisms(&connector, tls).into_iter().map(Mechanism::as_str).collect()
    }

    #[test]
    fn a_connector_offers_what_it_says_and_nothing_before_tls_unless_it_says_so() {
        use AuthMechanism::{BasicAuth, BasicAuthRequireTls, ClientCertificate, ScramSha256, Tls};
        assert_eq!(offered(&[Tls], true), [""; 0]);
        assert_eq!(offered(&[Tls, BasicAuth, BasicAuthRequireTls], true), ["LOGIN", "PLAIN"]);
        assert_eq!(offered(&[Tls, BasicAuth, BasicAuthRequireTls, ScramSha256], false), [""; 0]);
        assert_eq!(offered(&[Tls, BasicAuth, ScramSha256], false), ["SCRAM-SHA-256", "LOGIN", "PLAIN"]);
        assert_eq!(
            offered(&[Tls, BasicAuth, BasicAuthRequireTls, ScramSha256, ClientCertificate], true),
            ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "EXTERNAL", "LOGIN", "PLAIN"]
        );
        assert_eq!(offered(&[Tls, ClientCertificate], false), [""; 0]);
        // What the session offers and what `explain` says are one function.
        let mut connector = ReceiveConnector::new("in");
        for mechanisms in [&[][..], &[Tls], &[Tls, BasicAuth], &[Tls, ScramSha256], &[Tls, ClientCertificate]] {
            for (require_tls, tls) in [(false, false), (false, true), (true, false), (true, true)] {
                connector.auth_mechanism = mechanisms.iter().copied().collect();
                connector.require_tls = require_tls;
                let offered = super::mechanisms(&connector, tls);
                assert_eq!(!offered.is_empty(), connector.offers_auth(tls), "{mechanisms:?} {require_tls} {tls}");
            }
        }
    }
}
