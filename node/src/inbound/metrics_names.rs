//! What the devices' side counts.

use metrics::{counter, describe_counter, describe_gauge, gauge};

use crate::connector::LimitRefusal;

/// Sessions open with devices.
pub(super) const SESSIONS: &str = "posthouse_inbound_sessions";
/// Connections from devices: connector, and accepted or why not.
pub(super) const CONNECTIONS: &str = "posthouse_inbound_connections_total";
/// Letters acknowledged, by connector.
pub(super) const ACCEPTED: &str = "posthouse_inbound_messages_accepted_total";
/// Refusals of whatever kind, by connector, reply code and reason.
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
    describe_counter!(REJECTIONS, "Refusals, by connector, reply code and enhanced status code.");
    describe_counter!(LIMITS, "Connections and letters that a limit refused, by connector and limit.");
    for reason in LimitRefusal::REASONS {
        counter!(LIMITS, "connector" => "", "reason" => reason).absolute(0);
    }
    describe_counter!(AUTH, "Logins, by result.");
    for result in ["verified", "refused", "busy", "put_off"] {
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

/// Counts the refusals among replies that are about to be said, whoever decided them: code and, as the reason, enhanced
/// status code (RFC 3463), of which our replies have a fixed set.
pub(super) fn count_refusals(connector: &str, replies: &[u8]) {
    for (code, reason) in refusals(replies) {
        let labels = [("connector", connector.to_owned()), ("code", code.to_owned()), ("reason", reason.to_owned())];
        counter!(REJECTIONS, &labels).increment(1);
    }
}

/// Code and enhanced code of each refusal.
fn refusals(replies: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    let lines = replies.split(|byte| *byte == b'\n');
    // The last line of a reply has a space behind its code (RFC 5321 §4.2.1).
    let refused = lines.filter(|line| matches!(line, [b'4' | b'5', _, _, b' ', ..]));
    refused.filter_map(|line| {
        let (code, text) = std::str::from_utf8(line.get(..3)?).ok().zip(line.get(4..))?;
        let word = text.split(|byte| byte.is_ascii_whitespace()).next().unwrap_or_default();
        let is_enhanced = matches!(word, [b'4' | b'5', b'.', _, b'.', _, ..]);
        Some((code, std::str::from_utf8(word).ok().filter(|_| is_enhanced).unwrap_or_default()))
    })
}

/// Counts what a limit refused.
pub(super) fn count_limit(connector: &str, limit: LimitRefusal) {
    counter!(LIMITS, "connector" => connector.to_owned(), "reason" => limit.reason()).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_found_among_replies() {
        let said = b"250-mx Hello\r\n250 SIZE\r\n550 5.7.54 SMTP; Unable to relay [0A]\r\n354 go\r\n\
                     451-4.0.0 first\r\n451 4.7.0 second\r\n502 no enhanced code\r\n4\r\n";
        let found: Vec<_> = refusals(said).collect();
        assert_eq!(found, [("550", "5.7.54"), ("451", "4.7.0"), ("502", "")]);
        assert_eq!(refusals(b"").count(), 0);
    }
}
