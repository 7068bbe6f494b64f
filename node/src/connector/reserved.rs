//! Recipient domains that cannot be anybody's: reserved names (RFC 2606) and single labels, each refused where the
//! connector says so.

use super::receive::ReceiveConnector;
use crate::mail::Domain;

/// Why a recipient domain is refused whoever the sender may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unroutable {
    /// RFC 2606 §2.
    ReservedTopLevel,
    /// RFC 2606 §3.
    ReservedSecondLevel,
    /// No dot.
    SingleLabel,
}

/// Whether `connector` refuses every recipient in `domain`. An address literal is no name and passes.
pub(super) fn unroutable(connector: &ReceiveConnector, domain: &Domain) -> Option<Unroutable> {
    if domain.is_literal() {
        return None;
    }
    let name = domain.as_str();
    let (parent, top) = name.rsplit_once('.').unwrap_or(("", name));
    let second = parent.rsplit_once('.').map_or(parent, |(_, label)| label);
    if connector.reject_reserved_top_level_recipient_domains
        && ["test", "example", "invalid", "localhost"].contains(&top)
    {
        Some(Unroutable::ReservedTopLevel)
    } else if connector.reject_reserved_second_level_recipient_domains
        && second == "example"
        && ["com", "net", "org"].contains(&top)
    {
        Some(Unroutable::ReservedSecondLevel)
    } else if connector.reject_single_label_recipient_domains && parent.is_empty() {
        Some(Unroutable::SingleLabel)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn reserved_and_single_label_domains_are_known_and_their_neighbours_are_not() {
        let mut connector = ReceiveConnector::new("in");
        let check = |connector: &ReceiveConnector, name: &str| unroutable(connector, &Domain::parse(name).unwrap());
        assert_eq!(check(&connector, "host.test"), None);
        assert_eq!(check(&connector, "localhost"), None);
        connector.reject_reserved_top_level_recipient_domains = true;
        connector.reject_reserved_second_level_recipient_domains = true;
        connector.reject_single_label_recipient_domains = true;
        for (name, expected) in [
            ("host.TEST", Some(Unroutable::ReservedTopLevel)),
            ("localhost", Some(Unroutable::ReservedTopLevel)),
            ("example.com", Some(Unroutable::ReservedSecondLevel)),
            ("mail.example.org", Some(Unroutable::ReservedSecondLevel)),
            ("printer", Some(Unroutable::SingleLabel)),
            ("contest", Some(Unroutable::SingleLabel)),
            ("myexample.com", None),
            ("example.com.au", None),
            ("host.latest", None),
            ("[192.0.2.1]", None),
        ] {
            assert_eq!(check(&connector, name), expected, "{name}");
        }
    }
}
