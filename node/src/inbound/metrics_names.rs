//! What the devices' side counts.

use metrics::{counter, describe_counter, describe_gauge, gauge};

use crate::connector::LimitRefusal;

/// Sessions open with devices.
pub(super) const SESSIONS: &str = "posthouse_inbound_sessions";
/// Connections from devices: connector, and accepted or why not.
pub(super) const CONNECTIONS: &str = "posthouse_inbound_connections_total";
/// Letters acknowledged, by connector.
pub(super) const ACCEPTED: &str = "posthouse_inbound_messages_accepted_total";
/// Refusals of a command, by connector and reply code.
pub(super) const REJECTIONS: &str = "posthouse_inbound_rejections_total";
/// What a limit refused, by connector and limit.
pub(super) const LIMITS: &str = "posthouse_inbound_limit_refusals_total";
/// Logins, by result.
pub(super) const AUTH: &str = "posthouse_inbound_auth_total";
/// TLS handshakes with devices, by result.
pub(super) const HANDSHAKES: &str = "posthouse_inbound_tls_handshakes_total";
/// What old devices were forgiven, by leniency and connector.
pub(super) const LENIENCIES: &str = "posthouse_inbound_leniencies_total";
/// `XCLIENT` commands, by result.
pub(super) const XCLIENTS: &str = "posthouse_inbound_xclient_total";
/// Header fields taken away from letters, by kind.
pub(super) const STRIPPED: &str = "posthouse_inbound_header_fields_stripped_total";
/// PROXY headers, by version, command and result.
pub(super) const PROXY_HEADERS: &str = "posthouse_proxy_headers_total";

/// Describes the series and registers those whose labels are known beforehand at zero.
pub fn describe() {
    describe_gauge!(SESSIONS, "Sessions open with devices.");
    gauge!(SESSIONS).set(0.0);
    describe_counter!(CONNECTIONS, "Connections from devices, by connector and result.");
    describe_counter!(ACCEPTED, "Letters acknowledged, by connector.");
    describe_counter!(REJECTIONS, "Commands refused, by connector and reply code.");
    describe_counter!(LIMITS, "Connections and letters that a limit refused, by connector and limit.");
    for reason in LimitRefusal::REASONS {
        counter!(LIMITS, "connector" => "", "reason" => reason).absolute(0);
    }
    describe_counter!(AUTH, "Logins, by result.");
    for result in ["verified", "refused", "busy"] {
        counter!(AUTH, "result" => result).absolute(0);
    }
    describe_counter!(HANDSHAKES, "TLS handshakes with devices, by result.");
    for result in ["ok", "failed"] {
        counter!(HANDSHAKES, "result" => result).absolute(0);
    }
    describe_counter!(LENIENCIES, "What old devices were forgiven, by leniency and connector.");
    for leniency in crate::smtp::Leniency::ALL {
        counter!(LENIENCIES, "leniency" => leniency.as_str(), "connector" => "").absolute(0);
    }
    describe_counter!(XCLIENTS, "XCLIENT commands, by result.");
    for result in ["ok", "refused", "no_connector", "limit"] {
        counter!(XCLIENTS, "result" => result).absolute(0);
    }
    describe_counter!(STRIPPED, "Header fields taken away from letters, by kind.");
    for kind in ["organization", "routing"] {
        counter!(STRIPPED, "kind" => kind).absolute(0);
    }
    describe_counter!(PROXY_HEADERS, "PROXY headers received, by version, command and result.");
    for result in ["missing", "invalid", "unsigned", "unlisted"] {
        counter!(PROXY_HEADERS, "version" => "none", "command" => "none", "result" => result).absolute(0);
    }
}

/// Counts what a limit refused.
pub(super) fn count_limit(connector: &str, limit: LimitRefusal) {
    counter!(LIMITS, "connector" => connector.to_owned(), "reason" => limit.reason()).increment(1);
}
