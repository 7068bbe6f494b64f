//! What a session begins with, as its connector says: the protocol's settings, what TLS shows, what is listed and
//! written of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;

use super::Shared;
use super::driver::Opened;
use super::leniencies;
use super::mechanisms::mechanisms;
use crate::clock::now_ms;
use crate::connector::{self, Principal, ProtocolLoggingLevel, ReceiveConnector, Rights, effective_rights};
use crate::protocol_log::{Level, Transcript};
use crate::sessions::Facts;
use crate::smtp::session::{Limits, Offer, SessionConfig, SizeMode, TlsMode};
use crate::tls::Wanted;

/// The server certificate for a connector, or none; that none can be used is ours to know.
pub(super) fn server_tls(shared: &Shared, wanted: Wanted<'_>) -> Option<Arc<ServerConfig>> {
    match shared.options.tls.server_config(&shared.view(), wanted) {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(%error, "a server certificate cannot be used: TLS is not offered");
            None
        }
    }
}

/// What a connector asks of TLS.
pub(super) fn connector_tls(connector: &ReceiveConnector) -> Wanted<'_> {
    Wanted {
        certificate: connector.tls_certificate_name.as_deref(),
        fqdn: connector.fqdn.as_deref(),
        client_certificates: connector.offers_client_certificate(true),
    }
}

pub(super) fn session_config(shared: &Shared, opened: &Opened, has_certificate: bool) -> SessionConfig {
    let c = &opened.connector;
    let fqdn = c.fqdn.clone().unwrap_or_else(|| shared.options.fqdn.clone());
    let mut config = SessionConfig::new(fqdn, opened.source);
    config.session_id.clone_from(&opened.session_id);
    config.banner.clone_from(&c.banner);
    config.offer = Offer {
        pipelining: c.pipelining_enabled,
        size: match c.size_enabled {
            connector::SizeMode::Enabled => SizeMode::Enabled,
            connector::SizeMode::Disabled => SizeMode::Disabled,
            connector::SizeMode::EnabledWithoutValue => SizeMode::EnabledWithoutValue,
        },
        dsn: c.delivery_status_notification_enabled,
        eight_bit_mime: c.eight_bit_mime_enabled,
        chunking: c.chunking_enabled,
        binary_mime: c.binary_mime_enabled,
        smtp_utf8: c.smtp_utf8_enabled,
        limits: c.limits_enabled,
        enhanced_status_codes: c.enhanced_status_codes_enabled,
    };
    config.leniencies = leniencies::of(c);
    config.tls = match (opened.implicit_tls, c.offers_tls() && has_certificate, c.require_tls) {
        (true, _, _) => TlsMode::Implicit,
        (false, false, _) => TlsMode::Off,
        (false, true, false) => TlsMode::Available,
        (false, true, true) => TlsMode::Required,
    };
    config.auth_plaintext = mechanisms(c, false);
    config.auth_tls = mechanisms(c, true);
    config.limits = Limits {
        max_message_size: c.max_message_size,
        max_header_size: c.max_header_size,
        max_recipients: c.max_recipients_per_message,
        max_hop_count: c.max_hop_count,
        max_protocol_errors: c.max_protocol_errors,
        max_logon_failures: c.max_logon_failures,
        inactivity_timeout: Duration::from_secs(c.connection_inactivity_timeout_secs),
        connection_timeout: Duration::from_secs(c.connection_timeout_secs),
    };
    config.require_ehlo_domain = c.require_ehlo_domain;
    config.xclient = shared.options.xclient.trusted.iter().any(|peer| peer.contains(opened.source));
    config
}

/// What is known of a session when it begins.
pub(super) fn facts(opened: &Opened) -> Facts {
    Facts {
        source: SocketAddr::new(opened.source, opened.source_port),
        local: opened.local,
        connector: opened.connector.name.clone(),
        front: opened.front.clone(),
        user: None,
        tls: None,
    }
}

/// Begins the transcript of a session, for its connector's log and for whoever listens, with who it is and what it may.
pub(super) fn transcript(shared: &Shared, opened: &Opened) -> Option<Transcript> {
    let connector = &opened.connector;
    let level = match connector.protocol_logging(now_ms()) {
        ProtocolLoggingLevel::None => None,
        ProtocolLoggingLevel::Errors => Some(Level::Errors),
        ProtocolLoggingLevel::Verbose => Some(Level::Verbose),
    };
    let mut transcript = Transcript::begin(
        shared.options.protocol_log.clone(),
        level,
        format!("{}\\{}", shared.options.node_name, connector.name),
        opened.session_id.clone(),
        opened.local,
        SocketAddr::new(opened.source, opened.source_port),
    );
    if !transcript.is_wanted() {
        return Some(transcript);
    }
    let range = if opened.expired { format!("{} (expired)", opened.range) } else { opened.range.to_string() };
    let matched = format!("connector {}, range {range}, device {}", connector.name, opened.source);
    match &opened.front {
        Some(front) => transcript.note(&format!("{matched}, front {front}"), "Matched"),
        None => transcript.note(&matched, "Matched"),
    }
    let rights = effective_rights(connector, Principal::Anonymous);
    let rights = if opened.expired { Rights::NONE } else { rights };
    transcript.note(&rights.to_string(), "Set Session Permissions");
    Some(transcript)
}
