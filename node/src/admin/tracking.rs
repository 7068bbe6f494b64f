//! Message tracking: what happened to letters, on whichever nodes they were, asked of all of them as one.

use std::net::IpAddr;
use std::sync::Arc;

use posthouse_proto::v1;
use tonic::{Request, Status};

use super::problem::{internal, invalid};
use super::queue::{ask, ask_some, ids, limit};
use super::service::Context;
use crate::clock::{now_ms, rfc3339};
use crate::connector::RemoteIpRange;
use crate::spool::{TraceFilter, TraceRecord};

/// Follows letters over all nodes.
pub(super) async fn trace(
    context: &Arc<Context>,
    request: v1::MessageTraceRequest,
) -> Result<v1::MessageTraceReply, Status> {
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let since_secs = if request.since_secs == 0 { 24 * 3600 } else { request.since_secs };
    let limit = limit(request.limit);
    let filter = TraceFilter {
        id: ids(&some(&request.id).into_iter().collect::<Vec<_>>())?.into_iter().next(),
        message_id: some(&request.message_id),
        sender: some(&request.sender),
        recipient: some(&request.recipient),
        client: client(&request.client_ip)?,
        connector: some(&request.connector),
        user: some(&request.credential),
        session_id: some(&request.session_id),
        since_ms: Some(now_ms().saturating_sub(i64::try_from(since_secs).unwrap_or(i64::MAX / 2000) * 1000)),
        limit,
    };
    let spool = context.spool.clone();
    let records = spool.trace(filter).await.map_err(|error| internal("the traces cannot be read", error))?;
    let mut messages: Vec<v1::TracedMessage> = records.into_iter().map(trace_out).collect();
    let mut unreachable = Vec::new();
    if !request.this_node_only {
        let asked = v1::MessageTraceRequest { this_node_only: true, ..request };
        let (came, missing) = ask(context, "", |mut client| {
            let asked = asked.clone();
            async move { client.message_trace(Request::new(asked)).await }
        })
        .await;
        messages.extend(came.into_iter().flat_map(|other| other.messages));
        unreachable = missing;
    }
    messages.sort_by(|a, b| a.received_at.cmp(&b.received_at).then_with(|| a.id.cmp(&b.id)));
    if messages.len() > limit {
        messages.drain(..messages.len() - limit);
    }
    Ok(v1::MessageTraceReply { messages, unreachable })
}

/// The addresses of the devices that are meant.
fn client(text: &str) -> Result<Option<(IpAddr, IpAddr)>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let range: RemoteIpRange = text.parse().map_err(|error| {
        let fix = "--client-ip 10.1.2.3, 10.1.2.3-10.1.2.9 or 10.1.2.0/24";
        invalid("PH-TRACE-001", format!("\"{text}\" is not an address or a range"), error, fix)
    })?;
    Ok(Some((range.first(), range.last())))
}

/// The next page of the tracking of all nodes as one: letters in the order in which they were accepted.
pub(super) async fn export(
    context: &Arc<Context>,
    request: v1::MessageExportRequest,
) -> Result<v1::MessageExportReply, Status> {
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let one = |text: &String| Ok::<_, Status>(ids(&some(text).into_iter().collect::<Vec<_>>())?.into_iter().next());
    let filter = TraceFilter {
        id: one(&request.id)?,
        message_id: some(&request.message_id),
        sender: some(&request.sender),
        recipient: some(&request.recipient),
        client: client(&request.client_ip)?,
        connector: some(&request.connector),
        user: some(&request.credential),
        session_id: some(&request.session_id),
        ..TraceFilter::default()
    };
    let mut reply = v1::MessageExportReply::default();
    // Ids have one length and sort as text.
    let mut through: Option<String> = None;
    let mut until = |next: String| {
        if !next.is_empty() && through.as_ref().is_none_or(|known| next < *known) {
            through = Some(next);
        }
    };
    if !request.without.contains(&context.node_name) {
        let page = context.spool.export(filter, (request.since_ms, request.until_ms), one(&request.after)?).await;
        let page = page.map_err(|error| internal("the tracking cannot be read", error))?;
        until(page.next.map(|id| id.to_string()).unwrap_or_default());
        reply.messages = page.letters.into_iter().map(trace_out).collect();
    }
    if !request.this_node_only {
        let asked = v1::MessageExportRequest { this_node_only: true, ..request.clone() };
        let wanted = |name: &str| !request.without.iter().any(|without| without == name);
        let (came, unreachable) = ask_some(context, wanted, |mut client| {
            let asked = asked.clone();
            async move { client.message_export(Request::new(asked)).await }
        })
        .await;
        for other in came {
            until(other.next);
            reply.messages.extend(other.messages);
        }
        reply.unreachable = unreachable;
    }
    // A node that is not through may have letters before those that others have shown: what is beyond comes again.
    if let Some(through) = &through {
        reply.messages.retain(|message| message.id <= *through);
    }
    reply.messages.sort_by(|a, b| a.id.cmp(&b.id));
    reply.next = through.unwrap_or_default();
    Ok(reply)
}

fn trace_out(record: TraceRecord) -> v1::TracedMessage {
    let events = record.events.into_iter().map(|event| v1::TraceEvent {
        time: rfc3339(event.at_ms),
        event: event.event.as_str().to_owned(),
        node: event.node,
        next_hop: event.next_hop,
        recipient: event.recipient,
        reply: event.reply,
        detail: event.detail,
    });
    v1::TracedMessage {
        id: record.id.to_string(),
        message_id: record.message_id,
        client_ip: record.client_ip.to_string(),
        connector: record.connector,
        sender: record.sender,
        recipients: record.recipients,
        status: record.status.as_str().to_owned(),
        node: record.node,
        events: events.collect(),
        session_id: record.session_id,
        size: record.size,
        received_at: rfc3339(record.received_at_ms),
        front: record.front.unwrap_or_default(),
        user: record.user.unwrap_or_default(),
        subject: record.subject,
        internal_id: record.id.0,
    }
}
