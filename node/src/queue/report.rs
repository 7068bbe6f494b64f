//! The report to a sender whose letter failed: queued like any letter, in the very batch that marks the failure, so
//! that a crash makes exactly one. Never for the null reverse-path (RFC 5321 §4.5.5).

use std::net::{IpAddr, Ipv4Addr};

use super::manager::Shared;
use crate::mail::dsn::{
    DSN_HEADER_BYTES_MAX, DSN_LETTER_BYTES_MAX, FailedRecipient, FailureReport, GivenBack, ReportKind, failure_report,
};
use crate::mail::{BodyType, Envelope, ForwardPath, OriginalRecipient, Reply, Ret, ReversePath};
use crate::spool::{BodyReader, NewMessage, Record, Report};

/// The connector that our own reports are filed under.
const CONNECTOR: &str = "dsn";

/// A recipient whose sender is to be told, because it wants to hear of it (RFC 3461 §4.1).
pub(super) struct Told {
    /// Its place in the record.
    pub(super) index: usize,
    pub(super) recipient: String,
    pub(super) reply: Reply,
    pub(super) expired: bool,
    pub(super) orcpt: Option<OriginalRecipient>,
}

/// Makes the report, or none where nobody is to be told.
pub(super) async fn report(
    shared: &Shared,
    record: &Record,
    next_hop: &str,
    kind: ReportKind,
    told: &[Told],
    now_ms: i64,
) -> Option<Report> {
    let to = record.reverse_path.mailbox().filter(|_| !told.is_empty())?;
    let node = &shared.deps.node;
    // RET=FULL (RFC 3461 §4.3), where the letter is small enough. A binary body has no place in a report of lines.
    let whole = kind == ReportKind::Failed
        && record.ret == Some(Ret::Full)
        && record.length <= DSN_LETTER_BYTES_MAX
        && record.body != BodyType::BinaryMime;
    // A report without the letter's header is better than none.
    let bytes_of_letter = match shared.spool.open_letter(record.id).await {
        Ok(Some(letter)) if whole => read_whole(letter.body).await,
        Ok(Some(letter)) => letter.body.into_header(DSN_HEADER_BYTES_MAX).await.unwrap_or_default(),
        Ok(None) | Err(_) => Vec::new(),
    };
    let given_back = if whole && !bytes_of_letter.is_empty() {
        GivenBack::Letter(&bytes_of_letter)
    } else {
        GivenBack::Header(&bytes_of_letter)
    };
    let failed: Vec<FailedRecipient> = told
        .iter()
        .map(|one| FailedRecipient {
            recipient: one.recipient.clone(),
            next_hop: (!next_hop.is_empty()).then(|| next_hop.to_owned()),
            reply: one.reply.clone(),
            expired: one.expired,
            orcpt: one.orcpt.clone(),
        })
        .collect();
    let letter_id = record.id.to_string();
    // The places make it unique: two attempts of one letter may end in the same millisecond.
    let unique = format!("dsn.{letter_id}.{now_ms}.{}", told.first().map_or(0, |one| one.index));
    // Devices send as addresses that nobody reads; whoever runs the relay may want to know what failed.
    let copies = match kind {
        ReportKind::Failed => shared.deps.view.borrow().state.settings.dsn_copy_to.clone(),
        ReportKind::Delayed { .. } | ReportKind::Relayed => Vec::new(),
    };
    let copies = copies.into_iter().filter(|copy| copy != to);
    let readers = std::iter::once(to.clone()).chain(copies).map(ForwardPath::Mailbox);
    let report = FailureReport {
        kind,
        unique: &unique,
        reporting_mta: node.fqdn.as_str(),
        to,
        letter_id: &letter_id,
        message_id: &record.message_id,
        received_at_ms: record.received_at_ms,
        now_ms,
        envid: record.envid.as_deref(),
        failed: &failed,
        given_back,
    };
    let bytes = failure_report(&report);
    let message = NewMessage {
        envelope: Envelope {
            body: BodyType::EightBitMime,
            smtp_utf8: report.needs_smtp_utf8(),
            ..Envelope::new(ReversePath::Null, readers)
        },
        message_id: format!("<{unique}@{}>", node.fqdn),
        source_addr: IpAddr::V4(Ipv4Addr::LOCALHOST),
        front: None,
        connector: CONNECTOR.to_owned(),
        session_id: String::new(),
        helo: String::new(),
        user: None,
        tls: None,
        subject: kind.subject().to_owned(),
        size: bytes.len() as u64,
        received_at_ms: now_ms,
    };
    Some(Report { message, bytes, about: told.iter().map(|one| one.index).collect() })
}

/// The whole of a letter that is known to be small; nothing where it cannot be read.
async fn read_whole(mut body: BodyReader) -> Vec<u8> {
    let mut letter = Vec::new();
    loop {
        match body.next_chunk().await {
            Ok(Some(piece)) => letter.extend_from_slice(&piece),
            Ok(None) => return letter,
            Err(_) => return Vec::new(),
        }
    }
}
