//! What only a node knows of its letters, asked of every node and put together. A node that does not answer is
//! named: an answer that hides a third of the queue would be a lie.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use posthouse_proto::v1::{self, admin_client::AdminClient};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::cluster::{others, unknown_node};
use super::problem::{internal, invalid};
use super::service::{Actor, Context};
use crate::clock::{now_ms, rfc3339};
use crate::connector::{RemoteIpRange, SmartHost};
use crate::mail::{Domain, Mailbox};
use crate::queue::{LetterState, QueueError, QueueFilter, QueuedMessage};
use crate::spool::MessageId;

/// How long another node may take to answer.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows answered when nobody says how many.
const LIMIT_DEFAULT: usize = 100;
/// Rows answered at most.
const LIMIT_MAX: usize = 10_000;
/// Letters that one call changes on each node at most: it answers well within [`NODE_TIMEOUT`], and whoever asked goes
/// on from there.
const CHANGES_MAX: usize = 1000;

/// What is done with the letters that match.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Retry,
    Delete,
    Hold,
    Release,
    Bounce,
    Redirect,
}

/// Asks every other node (or the one that is named), all at once. Answers what came, and who did not answer.
pub(super) async fn ask<T, F>(
    context: &Context,
    node: &str,
    call: impl Fn(AdminClient<Channel>) -> F,
) -> (Vec<T>, Vec<String>)
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    ask_some(context, |name| node.is_empty() || name == node, call).await
}

/// The same, of the nodes that `wanted` names.
pub(super) async fn ask_some<T, F>(
    context: &Context,
    wanted: impl Fn(&str) -> bool,
    call: impl Fn(AdminClient<Channel>) -> F,
) -> (Vec<T>, Vec<String>)
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let members: Vec<_> = others(context).into_iter().filter(|member| wanted(&member.name)).collect();
    let calls = members.iter().map(|member| {
        let client = AdminClient::new(context.dialer.channel(&member.rpc_address, &member.name));
        tokio::time::timeout(NODE_TIMEOUT, call(client.max_decoding_message_size(64 << 20)))
    });
    let answers = futures_util::future::join_all(calls).await;
    let (mut came, mut unreachable) = (Vec::new(), Vec::new());
    for (member, answer) in members.into_iter().zip(answers) {
        match answer {
            Ok(Ok(reply)) => came.push(reply.into_inner()),
            Ok(Err(_)) | Err(_) => unreachable.push(member.name),
        }
    }
    (came, unreachable)
}

pub(super) fn includes_us(context: &Context, node: &str) -> bool {
    node.is_empty() || node == context.node_name
}

pub(super) fn ids(texts: &[String]) -> Result<Vec<MessageId>, Status> {
    texts
        .iter()
        .map(|text| {
            text.parse().map_err(|_| {
                let cause = "an id has 13 letters and digits, as queue list shows it";
                invalid("PH-QUEUE-002", format!("\"{text}\" is not a message id"), cause, "posthousectl queue list")
            })
        })
        .collect()
}

pub(super) fn filter(request: &v1::QueueRequest) -> Result<QueueFilter, Status> {
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let state = match some(&request.state) {
        None => None,
        Some(word) => Some(LetterState::parse(&word).ok_or_else(|| {
            let cause = format!("\"{word}\" is not ready, retry, active or held");
            invalid("PH-QUEUE-003", "the state is not valid", cause, "--state ready, retry, active or held")
        })?),
    };
    let domain = match some(&request.domain) {
        None => None,
        Some(name) => Some(Domain::parse(&name).map_err(|error| {
            invalid("PH-QUEUE-004", format!("\"{name}\" is not a domain"), error, "--domain partner.example")
        })?),
    };
    let client = match some(&request.client_ip) {
        None => None,
        Some(text) => Some(text.parse::<RemoteIpRange>().map_err(|error| {
            let fix = "--client-ip 10.1.2.3, 10.1.2.3-10.1.2.9 or 10.1.2.0/24";
            invalid("PH-QUEUE-007", format!("\"{text}\" is not an address or a range"), error, fix)
        })?),
    };
    let now = now_ms();
    let ago = |secs: u64| now.saturating_sub(i64::try_from(secs).unwrap_or(i64::MAX).saturating_mul(1000));
    Ok(QueueFilter {
        ids: ids(&request.ids)?,
        domain,
        sender: some(&request.sender),
        recipient: some(&request.recipient),
        connector: some(&request.connector),
        client,
        credential: some(&request.credential),
        accepted_before_ms: request.older_than_secs.map(ago),
        accepted_since_ms: request.younger_than_secs.map(ago),
        error: some(&request.error),
        state,
        all: request.all || !request.node.is_empty(),
    })
}

fn forward(request: &v1::QueueRequest) -> v1::QueueRequest {
    v1::QueueRequest { this_node_only: true, ..request.clone() }
}

/// Counts letters over all nodes.
pub(super) async fn summary(
    context: &Arc<Context>,
    request: v1::QueueRequest,
) -> Result<v1::QueueSummaryReply, Status> {
    let filter = filter(&request)?;
    if !request.node.is_empty() {
        unknown_node(context, &request.node)?;
    }
    let mut reply = v1::QueueSummaryReply::default();
    if includes_us(context, &request.node) {
        let own = context.queue.summary(&filter).await.map_err(|error| internal("the queue cannot be read", error))?;
        reply.messages = own.messages;
        reply.bytes = own.bytes;
        reply.by_state = own.by_state.into_iter().collect();
        reply.by_domain = own.by_domain.into_iter().collect();
        reply.oldest_age_secs = u64::try_from(own.oldest_age_ms / 1000).unwrap_or(0);
        reply.by_node.insert(context.node_name.clone(), own.messages);
    }
    if !request.this_node_only {
        let asked = forward(&request);
        let (came, unreachable) = ask(context, &request.node, |mut client| {
            let asked = asked.clone();
            async move { client.queue_summary(Request::new(asked)).await }
        })
        .await;
        for other in came {
            reply.messages += other.messages;
            reply.bytes += other.bytes;
            reply.oldest_age_secs = reply.oldest_age_secs.max(other.oldest_age_secs);
            add(&mut reply.by_state, other.by_state);
            add(&mut reply.by_node, other.by_node);
            add(&mut reply.by_domain, other.by_domain);
        }
        reply.unreachable = unreachable;
    }
    for state in ["ready", "active", "retry", "held"] {
        reply.by_state.entry(state.to_owned()).or_default();
    }
    Ok(reply)
}

fn add(sums: &mut std::collections::HashMap<String, u64>, more: std::collections::HashMap<String, u64>) {
    for (key, count) in more {
        *sums.entry(key).or_default() += count;
    }
}

/// Lists letters over all nodes, oldest first.
pub(super) async fn list(context: &Arc<Context>, request: v1::QueueRequest) -> Result<v1::QueueListReply, Status> {
    let filter = filter(&request)?;
    if !request.node.is_empty() {
        unknown_node(context, &request.node)?;
    }
    let limit = limit(request.limit);
    let mut reply = v1::QueueListReply::default();
    if includes_us(context, &request.node) {
        let found =
            context.queue.list(&filter, limit).await.map_err(|error| internal("the queue cannot be read", error))?;
        reply.matched = found.matched;
        reply.messages = found.messages.into_iter().map(letter_out).collect();
    }
    if !request.this_node_only {
        let asked = forward(&request);
        let (came, unreachable) = ask(context, &request.node, |mut client| {
            let asked = asked.clone();
            async move { client.queue_list(Request::new(asked)).await }
        })
        .await;
        for other in came {
            reply.matched += other.matched;
            reply.messages.extend(other.messages);
        }
        reply.messages.sort_by(|a, b| a.received_at.cmp(&b.received_at));
        reply.messages.truncate(limit);
        reply.unreachable = unreachable;
    }
    Ok(reply)
}

pub(super) fn limit(wanted: u32) -> usize {
    match wanted {
        0 => LIMIT_DEFAULT,
        wanted => (wanted as usize).min(LIMIT_MAX),
    }
}

pub(super) fn letter_out(letter: QueuedMessage) -> v1::QueuedMessage {
    v1::QueuedMessage {
        id: letter.id.to_string(),
        node: letter.node,
        state: letter.state.as_str().to_owned(),
        sender: letter.sender,
        recipients: letter.recipients,
        connector: letter.connector,
        client_ip: letter.client_ip.to_string(),
        size: letter.size,
        received_at: rfc3339(letter.received_at_ms),
        next_attempt_at: rfc3339(letter.next_attempt_at_ms),
        attempts: letter.attempts,
        last_error: letter.last_error,
        message_id: letter.message_id,
    }
}

/// Retries, deletes, holds, releases or returns the letters that match, on all nodes: of each node the next
/// [`CHANGES_MAX`], and whoever asked goes on with what the answer says is left.
pub(super) async fn change(
    context: &Arc<Context>,
    actor: &Actor,
    request: v1::QueueRequest,
    verb: Verb,
) -> Result<v1::QueueChangeReply, Status> {
    let filter = filter(&request)?;
    if !filter.is_chosen() {
        return Err(invalid(
            "PH-QUEUE-001",
            "which letters?",
            "without a filter this would be every letter of the cluster",
            "name --id, --domain, --sender, --rcpt, --connector, --client-ip, --credential, --older-than, \
             --younger-than, --error or --state; or type --all",
        ));
    }
    if !request.node.is_empty() {
        unknown_node(context, &request.node)?;
    }
    let to = match (verb, request.to.as_str()) {
        (Verb::Redirect, text) if !text.is_empty() => Some(text.parse::<SmartHost>().map_err(|error| {
            let fix = "--to smarthost.corp.example:25, 10.1.2.3:25 or [2001:db8::1]:25";
            invalid("PH-QUEUE-008", format!("\"{text}\" is not a next hop"), error, fix)
        })?),
        _ => None,
    };
    let options = request.options.clone().unwrap_or_default();
    // The reason goes on with the name of who gave it, which is nothing for a sender to read.
    let tell = match request.tell_sender.as_str() {
        "" if !request.this_node_only => options.reason.clone(),
        told => told.to_owned(),
    };
    let goes_on = |name: &str| request.after.is_empty() || request.after.contains_key(name);
    let mut reply = v1::QueueChangeReply { dry_run: options.dry_run, ..Default::default() };
    if includes_us(context, &request.node) && goes_on(&context.node_name) {
        let who = if actor.is_member && !options.reason.is_empty() { String::new() } else { actor.who.clone() };
        let detail = format!("{who} {}", options.reason).trim().to_owned();
        let after = request.after.get(&context.node_name).cloned();
        let after = ids(&after.into_iter().collect::<Vec<_>>())?.into_iter().next();
        let failed = |error| internal("the queue cannot be changed", error);
        let (chosen, more) = context.queue.choose(&filter, after, CHANGES_MAX).await.map_err(failed)?;
        let changed = if options.dry_run {
            chosen
        } else {
            do_here(context, verb, &filter, chosen, to.as_ref(), &tell, &detail).await.map_err(failed)?
        };
        reply.changed = changed.len() as u64;
        reply.ids = changed.iter().map(ToString::to_string).collect();
        reply.more.extend(more.map(|id| (context.node_name.clone(), id.to_string())));
    }
    if !request.this_node_only {
        let mut asked = forward(&request);
        let mut said = options;
        said.reason = format!("{} {}", actor.who, said.reason).trim().to_owned();
        asked.options = Some(said);
        asked.tell_sender = tell;
        let wanted = |name: &str| (request.node.is_empty() || name == request.node) && goes_on(name);
        let (came, unreachable) = ask_some(context, wanted, |mut client| {
            let asked = asked.clone();
            async move {
                match verb {
                    Verb::Retry => client.queue_retry(Request::new(asked)).await,
                    Verb::Delete => client.queue_delete(Request::new(asked)).await,
                    Verb::Bounce => client.queue_bounce(Request::new(asked)).await,
                    Verb::Redirect => client.queue_redirect(Request::new(asked)).await,
                    Verb::Hold => client.queue_hold(Request::new(asked)).await,
                    Verb::Release => client.queue_release(Request::new(asked)).await,
                }
            }
        })
        .await;
        for other in came {
            reply.changed += other.changed;
            reply.ids.extend(other.ids);
            reply.more.extend(other.more);
        }
        reply.unreachable = unreachable;
    }
    Ok(reply)
}

/// Does it to letters of this node. Answers which were changed.
async fn do_here(
    context: &Context,
    verb: Verb,
    filter: &QueueFilter,
    chosen: Vec<MessageId>,
    to: Option<&SmartHost>,
    tell: &str,
    detail: &str,
) -> Result<Vec<MessageId>, QueueError> {
    let queue = &context.queue;
    let (word, changed) = match verb {
        Verb::Retry => {
            queue.retry(&chosen);
            ("retried", chosen)
        }
        Verb::Delete => ("deleted", queue.delete(&chosen, detail).await?),
        Verb::Hold => ("held", queue.hold(&chosen, true, detail).await?),
        Verb::Bounce => ("returned", queue.bounce(&chosen, filter, tell, detail).await?),
        Verb::Redirect => {
            // Whom the filter names is whom it is about: the others of the letter go on as they did.
            let domains: Vec<Domain> = match (&filter.domain, &filter.recipient) {
                (Some(domain), _) => vec![domain.clone()],
                (None, Some(path)) => Mailbox::parse(path).map(|found| found.domain().clone()).into_iter().collect(),
                (None, None) => Vec::new(),
            };
            ("redirected", queue.redirect(&chosen, to, &domains, detail).await?)
        }
        Verb::Release => ("released", queue.hold(&chosen, false, detail).await?),
    };
    if !changed.is_empty() {
        tracing::info!(verb = word, count = changed.len(), %detail, "queue changed by an administrator");
    }
    Ok(changed)
}
