//! The report to a sender whose letter failed: queued like any letter, in the very batch that marks the failure, so
//! that a crash makes exactly one. Never for the null reverse-path (RFC 5321 §4.5.5).

use std::net::{IpAddr, Ipv4Addr};

use super::manager::Shared;
use crate::mail::dsn::{DSN_HEADER_BYTES_MAX, FailedRecipient, FailureReport, failure_report};
use crate::mail::{BodyType, Envelope, ForwardPath, Reply, ReversePath};
use crate::spool::{NewMessage, Record, Report};

/// The connector that our own reports are filed under.
const CONNECTOR: &str = "dsn";

/// A recipient that failed through this attempt.
pub(super) struct Failure {
    pub(super) recipient: String,
    pub(super) reply: Reply,
    pub(super) expired: bool,
}

/// Makes the report, or none where nobody is to be told.
pub(super) async fn report(
    shared: &Shared,
    record: &Record,
    next_hop: &str,
    failures: &[Failure],
    now_ms: i64,
) -> Option<Report> {
    let to = record.reverse_path.mailbox().filter(|_| !failures.is_empty())?;
    let node = &shared.deps.node;
    // A report without the letter's header is better than none.
    let header = match shared.spool.open_letter(record.id).await {
        Ok(Some(letter)) => letter.body.into_header(DSN_HEADER_BYTES_MAX).await.unwrap_or_default(),
        Ok(None) | Err(_) => Vec::new(),
    };
    let failed: Vec<FailedRecipient> = failures
        .iter()
        .map(|failure| FailedRecipient {
            recipient: failure.recipient.clone(),
            next_hop: (!next_hop.is_empty()).then(|| next_hop.to_owned()),
            reply: failure.reply.clone(),
            expired: failure.expired,
        })
        .collect();
    let letter_id = record.id.to_string();
    let unique = format!("dsn.{letter_id}.{now_ms}");
    let bytes = failure_report(&FailureReport {
        unique: &unique,
        reporting_mta: node.fqdn.as_str(),
        to,
        letter_id: &letter_id,
        message_id: &record.message_id,
        received_at_ms: record.received_at_ms,
        now_ms,
        failed: &failed,
        header: &header,
    });
    let message = NewMessage {
        envelope: Envelope {
            reverse_path: ReversePath::Null,
            forward_paths: vec![ForwardPath::Mailbox(to.clone())],
            body: BodyType::EightBitMime,
            declared_size: None,
        },
        message_id: format!("<{unique}@{}>", node.fqdn),
        source_addr: IpAddr::V4(Ipv4Addr::LOCALHOST),
        front: None,
        connector: CONNECTOR.to_owned(),
        session_id: String::new(),
        helo: String::new(),
        user: None,
        tls: None,
        subject: "Undeliverable: your message was not delivered".to_owned(),
        size: bytes.len() as u64,
        received_at_ms: now_ms,
    };
    Some(Report { message, bytes })
}
