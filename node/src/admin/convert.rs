//! Proto ↔ domain: the only place that knows both. What comes in is parsed into types that cannot be wrong, or the
//! field that is wrong is named; what goes out is complete.

use std::collections::BTreeSet;

use posthouse_proto::v1::{self, StringList};
use tonic::Status;

use super::problem::invalid;
use crate::clock::{now_ms, rfc3339};
use crate::config::is_name;
use crate::connector::{
    Binding, DomainKind, Principal, ReceiveConnector, RemoteIpRange, Right, SizeMode, effective_rights, parse_words,
};
use crate::credential::{Credential, Verifier};
use crate::state::{AcceptedDomain, AllowlistEntry, RelayGain, SETTING_KEYS, Settings, StateView, Versioned};

/// A field that cannot be parsed.
pub(super) fn bad(code: &str, field: &str, cause: impl ToString) -> Status {
    invalid(code, format!("{field} is not valid"), cause, &format!("correct --{}", field.replace('_', "-")))
}

pub(super) fn strings(values: impl IntoIterator<Item = impl ToString>) -> Option<StringList> {
    Some(StringList { values: values.into_iter().map(|value| value.to_string()).collect() })
}

pub(super) fn words<T: std::str::FromStr<Err: ToString>>(
    code: &str,
    field: &str,
    list: &StringList,
) -> Result<Vec<T>, Status> {
    list.values.iter().map(|word| word.trim().parse().map_err(|error: T::Err| bad(code, field, error))).collect()
}

/// Sets a plain field when the request has it.
macro_rules! take {
    ($from:ident, $to:ident: $($field:ident),+ $(,)?) => {
        $(if let Some(value) = &$from.$field { $to.$field = value.clone(); })+
    };
}

pub(super) use take;

const CONNECTOR: &str = "PH-CONN-003";

/// Changes `connector` as the request says, leaving the rest.
pub(super) fn merge_connector(
    mut connector: ReceiveConnector,
    from: &v1::Connector,
) -> Result<ReceiveConnector, Status> {
    take!(from, connector: comment, enabled, require_tls, max_message_size, max_header_size,
        max_recipients_per_message, max_hop_count, max_protocol_errors, max_logon_failures, max_inbound_connection,
        max_inbound_connection_per_source, connection_timeout_secs, connection_inactivity_timeout_secs,
        tarpit_interval_ms, auth_tarpit_interval_ms, pipelining_enabled, eight_bit_mime_enabled,
        enhanced_status_codes_enabled, reject_reserved_top_level_recipient_domains,
        reject_reserved_second_level_recipient_domains, reject_single_label_recipient_domains, require_ehlo_domain,
        max_local_hop_count, max_inbound_connection_percentage_per_source, message_rate_limit, chunking_enabled,
        binary_mime_enabled, delivery_status_notification_enabled, smtp_utf8_enabled, limits_enabled,
        bare_linefeed_rejection_enabled);
    if let Some(list) = &from.bindings {
        connector.bindings = list
            .values
            .iter()
            .map(|text| Binding::parse(text.trim()).map_err(|error| bad(CONNECTOR, "bindings", error)))
            .collect::<Result<_, _>>()?;
    }
    if let Some(list) = &from.auth_mechanism {
        connector.auth_mechanism =
            parse_words(&list.values).map_err(|error| bad(CONNECTOR, "auth_mechanism", error))?;
    }
    if let Some(list) = &from.permission_groups {
        connector.permission_groups =
            parse_words(&list.values).map_err(|error| bad(CONNECTOR, "permission_groups", error))?;
    }
    if let Some(list) = &from.rights {
        connector.rights = words(CONNECTOR, "rights", list)?.into_iter().collect();
    }
    let text = |value: &Option<String>, kept: Option<String>| match value {
        Some(value) if value.is_empty() => None,
        Some(value) => Some(value.clone()),
        None => kept,
    };
    connector.tls_certificate_name = text(&from.tls_certificate_name, connector.tls_certificate_name);
    connector.banner = text(&from.banner, connector.banner);
    connector.fqdn = text(&from.fqdn, connector.fqdn);
    if let Some(mode) = &from.size_enabled {
        connector.size_enabled = match mode.as_str() {
            "enabled" => SizeMode::Enabled,
            "disabled" => SizeMode::Disabled,
            "enabled_without_value" => SizeMode::EnabledWithoutValue,
            _ => return Err(bad(CONNECTOR, "size_enabled", "it is enabled, disabled or enabled_without_value")),
        };
    }
    connector.default_domain = text(&from.default_domain, connector.default_domain);
    merge_connector_words(&mut connector, from)?;
    Ok(connector)
}

fn merge_connector_words(connector: &mut ReceiveConnector, from: &v1::Connector) -> Result<(), Status> {
    if let Some(word) = &from.message_rate_source {
        connector.message_rate_source = word.parse().map_err(|error| bad(CONNECTOR, "message_rate_source", error))?;
    }
    if let Some(word) = &from.protocol_logging_level {
        connector.protocol_logging_level =
            word.parse().map_err(|error| bad(CONNECTOR, "protocol_logging_level", error))?;
    }
    // A length of time becomes a moment here, by the clock of the node that takes the request: `apply` has none.
    if let Some(secs) = from.protocol_logging_for_secs {
        let millis = i64::try_from(secs).unwrap_or(i64::MAX).saturating_mul(1000);
        connector.protocol_logging_until_ms = (secs > 0).then(|| now_ms().saturating_add(millis));
    }
    if let Some(list) = &from.leniencies {
        connector.leniencies = parse_words(&list.values).map_err(|error| bad(CONNECTOR, "leniencies", error))?;
    }
    if let Some(list) = &from.allowed_recipient_domains {
        connector.allowed_recipient_domains =
            words(CONNECTOR, "allowed_recipient_domains", list)?.into_iter().collect();
    }
    if let Some(list) = &from.denied_recipient_domains {
        connector.denied_recipient_domains = words(CONNECTOR, "denied_recipient_domains", list)?.into_iter().collect();
    }
    Ok(())
}

/// Reads ranges; host bits that were set are said.
pub(super) fn ranges(texts: &[String]) -> Result<(Vec<RemoteIpRange>, Vec<String>), Status> {
    let mut ranges = Vec::with_capacity(texts.len());
    let mut seen = BTreeSet::new();
    let mut warnings = Vec::new();
    for text in texts {
        let parsed = RemoteIpRange::parse(text.trim()).map_err(|error| {
            invalid(
                "PH-ALLOW-002",
                "a remote IP range is not valid",
                error,
                "write 10.1.2.3, 10.1.2.3-10.1.2.9 or 10.1.2.0/24",
            )
        })?;
        if parsed.host_bits_set {
            let size = parsed.range.size();
            warnings.push(format!("{text} has host bits set; stored as {} ({size} addresses)", parsed.range));
        }
        if seen.insert(parsed.range) {
            ranges.push(parsed.range);
        }
    }
    Ok((ranges, warnings))
}

/// Ranges of one connector in an answer; a million of them would not fit in one. `allowlist list` has all.
const RANGES_SHOWN: usize = 1000;

/// Who gains relay by a change.
pub(super) fn gain_out(gain: &RelayGain) -> v1::RelayGain {
    v1::RelayGain {
        range: gain.range.to_string(),
        addresses: gain.range.size().to_string(),
        before: gain.before.clone(),
        after: gain.after.clone(),
    }
}

/// A connector as administrators read it: every field present.
pub(super) fn connector_out(view: &StateView, found: &Versioned<std::sync::Arc<ReceiveConnector>>) -> v1::Connector {
    let c = &found.value;
    let anonymous = effective_rights(c, Principal::Anonymous);
    let authenticated = effective_rights(c, Principal::Authenticated);
    let relay = match (anonymous.contains(Right::AcceptAnyRecipient), anonymous.contains(Right::Submit)) {
        (true, true) => "external",
        (false, true) => "internal",
        _ => "none",
    };
    let served = view.state.members.values().flat_map(|member| &member.value.services);
    let ports: Vec<u16> = served.map(|service| service.port).collect();
    let unserved = c.bindings.iter().filter(|binding| !ports.contains(&binding.port));
    let mut warnings: Vec<String> = unserved.map(|binding| format!("no node serves {binding}")).collect();
    warnings.dedup();
    v1::Connector {
        name: c.name.clone(),
        comment: Some(c.comment.clone()),
        enabled: Some(c.enabled),
        bindings: strings(&c.bindings),
        remote_ip_ranges: strings(view.state.ranges_of(&c.name).take(RANGES_SHOWN).map(|entry| entry.range)),
        range_count: view.state.allowlist.get(&c.name).map_or(0, |entries| entries.len() as u64),
        auth_mechanism: strings(&c.auth_mechanism),
        permission_groups: strings(&c.permission_groups),
        rights: strings(&c.rights),
        require_tls: Some(c.require_tls),
        tls_certificate_name: Some(c.tls_certificate_name.clone().unwrap_or_default()),
        banner: Some(c.banner.clone().unwrap_or_default()),
        fqdn: Some(c.fqdn.clone().unwrap_or_default()),
        max_message_size: Some(c.max_message_size),
        max_header_size: Some(c.max_header_size),
        max_recipients_per_message: Some(c.max_recipients_per_message),
        max_hop_count: Some(c.max_hop_count),
        max_protocol_errors: Some(c.max_protocol_errors),
        max_logon_failures: Some(c.max_logon_failures),
        max_inbound_connection: Some(c.max_inbound_connection),
        max_inbound_connection_per_source: Some(c.max_inbound_connection_per_source),
        connection_timeout_secs: Some(c.connection_timeout_secs),
        connection_inactivity_timeout_secs: Some(c.connection_inactivity_timeout_secs),
        tarpit_interval_ms: Some(c.tarpit_interval_ms),
        auth_tarpit_interval_ms: Some(c.auth_tarpit_interval_ms),
        size_enabled: Some(
            match c.size_enabled {
                SizeMode::Enabled => "enabled",
                SizeMode::Disabled => "disabled",
                SizeMode::EnabledWithoutValue => "enabled_without_value",
            }
            .to_owned(),
        ),
        pipelining_enabled: Some(c.pipelining_enabled),
        eight_bit_mime_enabled: Some(c.eight_bit_mime_enabled),
        enhanced_status_codes_enabled: Some(c.enhanced_status_codes_enabled),
        reject_reserved_top_level_recipient_domains: Some(c.reject_reserved_top_level_recipient_domains),
        reject_reserved_second_level_recipient_domains: Some(c.reject_reserved_second_level_recipient_domains),
        reject_single_label_recipient_domains: Some(c.reject_single_label_recipient_domains),
        require_ehlo_domain: Some(c.require_ehlo_domain),
        default_domain: Some(c.default_domain.clone().unwrap_or_default()),
        max_inbound_connection_percentage_per_source: Some(c.max_inbound_connection_percentage_per_source),
        message_rate_limit: Some(c.message_rate_limit),
        message_rate_source: Some(c.message_rate_source.to_string()),
        max_local_hop_count: Some(c.max_local_hop_count),
        protocol_logging_level: Some(c.protocol_logging_level.to_string()),
        protocol_logging_until: Some(c.protocol_logging_until_ms.map(rfc3339).unwrap_or_default()),
        protocol_logging_for_secs: None,
        chunking_enabled: Some(c.chunking_enabled),
        binary_mime_enabled: Some(c.binary_mime_enabled),
        delivery_status_notification_enabled: Some(c.delivery_status_notification_enabled),
        smtp_utf8_enabled: Some(c.smtp_utf8_enabled),
        limits_enabled: Some(c.limits_enabled),
        bare_linefeed_rejection_enabled: Some(c.bare_linefeed_rejection_enabled),
        leniencies: strings(&c.leniencies),
        allowed_recipient_domains: strings(&c.allowed_recipient_domains),
        denied_recipient_domains: strings(&c.denied_recipient_domains),
        revision: found.revision,
        effective_rights: vec![format!("anonymous: {anonymous}"), format!("authenticated: {authenticated}")],
        relay: relay.to_owned(),
        warnings,
        hits: 0,
        first_seen: String::new(),
        last_seen: String::new(),
    }
}

/// An allowlist entry as administrators read it.
pub(super) fn entry_out(connector: &str, found: &Versioned<AllowlistEntry>, now_ms: i64) -> v1::AllowlistEntry {
    let entry = &found.value;
    v1::AllowlistEntry {
        connector: connector.to_owned(),
        range: entry.range.to_string(),
        note: entry.note.clone(),
        owner: entry.owner.clone(),
        ticket: entry.ticket.clone(),
        expires_at: entry.expires_at_ms.map(rfc3339),
        expired: entry.expires_at_ms.is_some_and(|at| at <= now_ms),
        created_by: entry.created_by.clone(),
        created_at: rfc3339(entry.created_at_ms),
        addresses: entry.range.size().to_string(),
        revision: found.revision,
        first_seen: String::new(),
        last_seen: String::new(),
        count: 0,
    }
}

/// Reads a domain's name and kind; `*.corp.example` means every subdomain too.
pub(super) fn domain_in(from: &v1::Domain, kept: Option<&AcceptedDomain>) -> Result<AcceptedDomain, Status> {
    let name = from.name.trim().to_ascii_lowercase();
    let (name, with_subdomains) = match name.strip_prefix("*.") {
        Some(parent) => (parent.to_owned(), true),
        None => (name, false),
    };
    let kind = match from.r#type.as_deref().map(|kind| kind.to_ascii_lowercase().replace('-', "_")).as_deref() {
        None => kept.map_or(DomainKind::Authoritative, |kept| kept.kind),
        Some("authoritative") => DomainKind::Authoritative,
        Some("internal_relay" | "internal" | "internalrelay") => DomainKind::InternalRelay,
        Some("external_relay" | "external" | "relay" | "externalrelay") => DomainKind::ExternalRelay,
        Some(_) => {
            return Err(bad("PH-DOM-003", "type", "it is authoritative, internal_relay or external_relay"));
        }
    };
    Ok(AcceptedDomain { name, with_subdomains, kind })
}

/// An accepted domain as administrators read it.
pub(super) fn domain_out(found: &Versioned<AcceptedDomain>) -> v1::Domain {
    let domain = &found.value;
    let prefix = if domain.with_subdomains { "*." } else { "" };
    let kind = match domain.kind {
        DomainKind::Authoritative => "authoritative",
        DomainKind::InternalRelay => "internal_relay",
        DomainKind::ExternalRelay => "external_relay",
    };
    v1::Domain { name: format!("{prefix}{}", domain.name), r#type: Some(kind.to_owned()), revision: found.revision }
}

const CREDENTIAL: &str = "PH-CRED-003";

/// Changes `credential` as the request says, leaving the rest. Secrets are set elsewhere.
pub(super) fn merge_credential(mut credential: Credential, from: &v1::Credential) -> Result<Credential, Status> {
    take!(from, credential: enabled, note, owner);
    if let Some(list) = &from.senders {
        credential.senders = crate::connector::SenderRule(words(CREDENTIAL, "sender", list)?);
    }
    if let Some(list) = &from.source_ranges {
        credential.source_ranges = ranges(&list.values)?.0;
    }
    if let Some(list) = &from.connectors {
        credential.connectors.clone_from(&list.values);
    }
    if let Some(list) = &from.certificates {
        credential.certificates = words(CREDENTIAL, "certificate", list)?;
    }
    if let Some(text) = &from.expires_at {
        credential.expires_at_ms = match text.as_str() {
            "" => None,
            text => Some(
                text.parse::<jiff::Timestamp>().map_err(|error| bad(CREDENTIAL, "expires", error))?.as_millisecond(),
            ),
        };
    }
    Ok(credential)
}

/// A credential as administrators read it: never its secrets.
pub(super) fn credential_out(found: &Versioned<std::sync::Arc<Credential>>, now_ms: i64) -> v1::Credential {
    let credential = &found.value;
    v1::Credential {
        user: credential.user.clone(),
        senders: strings(&credential.senders.0),
        source_ranges: strings(&credential.source_ranges),
        connectors: strings(&credential.connectors),
        enabled: Some(credential.enabled),
        note: Some(credential.note.clone()),
        owner: Some(credential.owner.clone()),
        expires_at: credential.expires_at_ms.map(rfc3339),
        revision: found.revision,
        expired: credential.expires_at_ms.is_some_and(|at| at <= now_ms),
        certificates: strings(&credential.certificates),
        secrets: credential.live_verifiers(now_ms).map(secret_out).collect(),
        first_seen: String::new(),
        last_seen: String::new(),
        count: 0,
    }
}

/// A secret as administrators read it: when it was set, until when it is taken, and nothing of itself.
fn secret_out(verifier: &Verifier) -> v1::CredentialSecret {
    v1::CredentialSecret {
        id: verifier.id,
        created_at: rfc3339(verifier.created_at_ms),
        expires_at: verifier.expires_at_ms.map(rfc3339).unwrap_or_default(),
        scram: verifier.scram.is_some(),
    }
}

/// Every setting, with its meaning.
pub(super) fn settings_out(settings: &Settings) -> v1::ListSettingsReply {
    let all = SETTING_KEYS.iter().map(|key| v1::Setting {
        key: key.name.to_owned(),
        value: key.value(settings),
        default_value: key.default_value(),
        meaning: key.meaning.to_owned(),
    });
    v1::ListSettingsReply { settings: all.collect(), revision: settings.revision }
}

/// Checks a name that becomes part of a certificate.
pub(super) fn machine_name(name: &str) -> Result<(), Status> {
    if is_name(name) {
        return Ok(());
    }
    let cause = format!("\"{name}\" is not 1 to 63 letters, digits or hyphens");
    Err(invalid("PH-NODE-004", "the name is not valid", cause, "change node.name in the node file"))
}
