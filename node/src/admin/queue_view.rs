//! The queue of all nodes seen from afar, and one letter of it seen from near.

use std::collections::BTreeMap;
use std::sync::Arc;

use posthouse_proto::v1;
use tonic::{Request, Status};

use super::cluster::unknown_node;
use super::problem::{internal, invalid};
use super::queue::{ask, filter, ids, includes_us, letter_out};
use super::service::Context;
use crate::clock::rfc3339;
use crate::queue::{SHAPE_MINUTES, SHAPE_ROWS_MAX, ShapeBy, ShownLetter};
use crate::spool::RecipientState;

/// Counts letters over all nodes by what they have in common and by age.
pub(super) async fn shape(
    context: &Arc<Context>,
    request: v1::QueueShapeRequest,
) -> Result<v1::QueueShapeReply, Status> {
    let wanted = request.filter.clone().unwrap_or_default();
    let meant = filter(&wanted)?;
    let by = ShapeBy::parse(&request.by).ok_or_else(|| {
        let cause = "letters are put together by domain, connector, sender, node or error";
        invalid("PH-QUEUE-005", format!("\"{}\" is no way to put letters together", request.by), cause, "--by domain")
    })?;
    if !wanted.node.is_empty() {
        unknown_node(context, &wanted.node)?;
    }
    let mut rows: BTreeMap<String, v1::QueueShapeRow> = BTreeMap::new();
    let mut reply = v1::QueueShapeReply::default();
    if includes_us(context, &wanted.node) {
        let own = context.queue.shape(&meant, by).await;
        let (own, letters) = own.map_err(|error| internal("the queue cannot be read", error))?;
        reply.letters = letters;
        for row in own {
            let by_age = row.by_age.to_vec();
            let row = v1::QueueShapeRow { key: row.key, total: row.total, by_age, last_error: row.last_error };
            add(&mut rows, row);
        }
    }
    if !wanted.this_node_only {
        let inner = v1::QueueRequest { this_node_only: true, ..wanted.clone() };
        let asked = v1::QueueShapeRequest { filter: Some(inner), by: request.by };
        let (came, unreachable) = ask(context, &wanted.node, |mut client| {
            let asked = asked.clone();
            async move { client.queue_shape(Request::new(asked)).await }
        })
        .await;
        for other in came {
            reply.letters += other.letters;
            other.rows.into_iter().for_each(|row| add(&mut rows, row));
        }
        reply.unreachable = unreachable;
    }
    reply.rows = rows.into_values().collect();
    reply.rows.sort_by(|a, b| b.total.cmp(&a.total).then_with(|| a.key.cmp(&b.key)));
    reply.rows.truncate(SHAPE_ROWS_MAX);
    Ok(reply)
}

fn add(rows: &mut BTreeMap<String, v1::QueueShapeRow>, row: v1::QueueShapeRow) {
    let known = rows.entry(row.key.clone()).or_insert_with(|| v1::QueueShapeRow {
        key: row.key.clone(),
        by_age: vec![0; SHAPE_MINUTES.len() + 1],
        ..Default::default()
    });
    known.total += row.total;
    known.by_age.iter_mut().zip(row.by_age).for_each(|(sum, more)| *sum += more);
    if known.last_error.is_empty() {
        known.last_error = row.last_error;
    }
}

/// Shows one letter, wherever it is.
pub(super) async fn show(context: &Arc<Context>, request: v1::QueueShowRequest) -> Result<v1::QueueShowReply, Status> {
    let id = ids(std::slice::from_ref(&request.id))?.into_iter().next();
    let Some(id) = id else { return Ok(v1::QueueShowReply::default()) };
    let here = context.queue.show(id, request.header).await;
    if let Some(shown) = here.map_err(|error| internal("the queue cannot be read", error))? {
        return Ok(shown_out(shown));
    }
    if request.this_node_only {
        return Ok(v1::QueueShowReply::default());
    }
    let asked = v1::QueueShowRequest { this_node_only: true, ..request };
    let (came, unreachable) = ask(context, "", |mut client| {
        let asked = asked.clone();
        async move { client.queue_show(Request::new(asked)).await }
    })
    .await;
    let found = came.into_iter().find(|reply| reply.found);
    Ok(found.unwrap_or_else(|| v1::QueueShowReply { unreachable, ..Default::default() }))
}

fn shown_out(shown: ShownLetter) -> v1::QueueShowReply {
    let ShownLetter { listed, record, header } = shown;
    let recipients = record.recipients.iter().map(|recipient| {
        let (state, waits) = match recipient.state {
            RecipientState::Pending => ("pending", true),
            RecipientState::Delivered => ("delivered", false),
            RecipientState::Failed => ("failed", false),
        };
        let next = recipient.next_attempt_ms.max(record.received_at_ms);
        v1::QueuedRecipient {
            address: recipient.path.to_string(),
            state: state.to_owned(),
            attempts: recipient.attempts,
            next_attempt_at: if waits { rfc3339(next) } else { String::new() },
            last_reply: recipient.last_reply.clone(),
        }
    });
    let redirected_at = record.redirect.as_ref().map(|it| rfc3339(it.at_ms)).unwrap_or_default();
    let redirect = record.redirect.clone().unwrap_or_default();
    v1::QueueShowReply {
        found: true,
        message: Some(letter_out(listed)),
        recipients: recipients.collect(),
        subject: record.subject,
        user: record.user.unwrap_or_default(),
        session_id: record.session_id,
        held_by: record.held.as_ref().map(|held| held.by.clone()).unwrap_or_default(),
        held_at: record.held.as_ref().map(|held| rfc3339(held.at_ms)).unwrap_or_default(),
        header: String::from_utf8_lossy(&header).into_owned(),
        redirected_to: redirect.to,
        redirected_domains: redirect.domains.iter().map(ToString::to_string).collect(),
        redirected_by: redirect.by,
        redirected_at,
        unreachable: Vec::new(),
    }
}
