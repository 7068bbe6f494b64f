//! docs/exchange-parameters.md says what the code says.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::ReceiveConnector;

/// Every parameter of `New-` and `Set-ReceiveConnector`.
const EXCHANGE: &str = "Name Server Usage TransportRole Bindings RemoteIPRanges Enabled Comment Fqdn \
    ServiceDiscoveryFqdn AdvertiseClientSettings DefaultDomain DomainController Confirm WhatIf AuthMechanism \
    PermissionGroups RequireTLS TlsCertificateName TlsDomainCapabilities DomainSecureEnabled \
    ExtendedProtectionPolicy EnableAuthGSSAPI SuppressXAnonymousTls MaxLogonFailures AuthTarpitInterval \
    MaxMessageSize MaxHeaderSize MaxRecipientsPerMessage MaxHopCount MaxLocalHopCount MaxInboundConnection \
    MaxInboundConnectionPerSource MaxInboundConnectionPercentagePerSource MessageRateLimit MessageRateSource \
    TarpitInterval ConnectionTimeout ConnectionInactivityTimeout MaxProtocolErrors MaxAcknowledgementDelay \
    ProtocolLoggingLevel Banner SizeEnabled PipeliningEnabled ChunkingEnabled EightBitMimeEnabled \
    BinaryMimeEnabled DeliveryStatusNotificationEnabled EnhancedStatusCodesEnabled OrarEnabled \
    LongAddressesEnabled SmtpUtf8Enabled BareLinefeedRejectionEnabled RequireEHLODomain \
    RejectReservedTopLevelRecipientDomains RejectReservedSecondLevelRecipientDomains \
    RejectSingleLabelRecipientDomains";

/// The cells of the rows of the page's tables, code marks taken off the names and defaults.
fn rows(page: &str, columns: usize) -> Vec<Vec<String>> {
    let lines = page.lines().filter(|line| line.starts_with("| `"));
    let cells = lines.map(|line| {
        let line = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')).unwrap_or(line);
        line.splitn(columns, '|').map(|cell| cell.trim().to_owned()).collect()
    });
    cells.collect()
}

fn bare(cell: &str) -> &str {
    cell.trim_matches('`')
}

/// `MaxMessageSize` and `max_message_size` are one name; units at the end are ours.
fn folded(name: &str) -> String {
    let name = name.strip_suffix("_secs").or_else(|| name.strip_suffix("_ms")).unwrap_or(name);
    name.replace('_', "").to_ascii_lowercase()
}

#[test]
fn the_page_of_parameters_agrees_with_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/exchange-parameters.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (exchange, own) = page.split_once("## What Exchange does not have").unwrap();
    let Value::Object(stored) = serde_json::to_value(ReceiveConnector::new("")).unwrap() else { unreachable!() };
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    let mut named = BTreeSet::new();
    for row in rows(exchange, 5) {
        let [parameter, status, ours, default, why] = row.as_slice() else { panic!("{row:?}") };
        let parameter = bare(parameter);
        assert!(named.insert(parameter.to_owned()), "{parameter} stands there twice");
        match status.as_str() {
            "same" | "departed" => {
                assert_eq!(folded(bare(ours)), folded(parameter), "another name than Exchange's");
                if bare(ours) != "remote_ip_ranges" {
                    told.insert(bare(ours).to_owned(), bare(default).to_owned());
                }
            }
            "not applicable" => assert!(ours.is_empty() && default.is_empty(), "{parameter}"),
            other => panic!("{parameter} is {other:?}"),
        }
        assert!(status == "same" || !why.is_empty(), "{parameter} is {status} and nobody says why");
    }
    let known: BTreeSet<String> = EXCHANGE.split_whitespace().map(str::to_owned).collect();
    assert_eq!(named, known);
    for row in rows(own, 3) {
        let [ours, default, what] = row.as_slice() else { panic!("{row:?}") };
        assert!(!what.is_empty(), "{ours}");
        told.insert(bare(ours).to_owned(), bare(default).to_owned());
    }
    let stored: BTreeMap<String, String> = stored.into_iter().map(|(name, value)| (name, value.to_string())).collect();
    assert_eq!(told, stored);
}
