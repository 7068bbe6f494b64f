//! The sessions of all nodes: seen together, and ended wherever they are.

use std::sync::Arc;

use posthouse_proto::v1;
use tonic::{Request, Status};

use super::cluster::unknown_node;
use super::problem::invalid;
use super::queue::{ask, includes_us, limit};
use super::service::{Actor, Context};
use crate::clock::{now_ms, rfc3339};
use crate::connector::RemoteIpRange;
use crate::sessions::{Seen, SessionFilter};

fn filter(context: &Arc<Context>, request: &v1::SessionRequest) -> Result<SessionFilter, Status> {
    if !request.node.is_empty() {
        unknown_node(context, &request.node)?;
    }
    Ok(SessionFilter {
        ids: request.ids.clone(),
        connector: (!request.connector.is_empty()).then(|| request.connector.clone()),
        source: source(&request.source)?,
    })
}

/// The addresses of the devices that are meant.
pub(super) fn source(text: &str) -> Result<Option<RemoteIpRange>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| {
        let fix = "--source 10.1.2.3, 10.1.2.3-10.1.2.9 or 10.1.2.0/24";
        invalid("PH-SESS-002", format!("\"{text}\" is not an address or a range"), error, fix)
    })
}

/// Lists the sessions of all nodes, the oldest first.
pub(super) async fn list(context: &Arc<Context>, request: v1::SessionRequest) -> Result<v1::SessionListReply, Status> {
    let filter = filter(context, &request)?;
    let limit = limit(request.limit);
    let mut reply = v1::SessionListReply::default();
    if includes_us(context, &request.node) {
        let (sessions, matched) = context.sessions.list(&filter, limit);
        let now_ms = now_ms();
        reply.sessions = sessions.into_iter().map(|seen| session_out(&context.node_name, seen, now_ms)).collect();
        reply.matched = matched as u64;
    }
    if !request.this_node_only {
        let asked = v1::SessionRequest { this_node_only: true, ..request.clone() };
        let (came, unreachable) = ask(context, &request.node, |mut client| {
            let asked = asked.clone();
            async move { client.session_list(Request::new(asked)).await }
        })
        .await;
        for other in came {
            reply.matched += other.matched;
            reply.sessions.extend(other.sessions);
        }
        reply.sessions.sort_by(|a, b| a.since.cmp(&b.since).then_with(|| a.id.cmp(&b.id)));
        reply.sessions.truncate(limit);
        reply.unreachable = unreachable;
    }
    Ok(reply)
}

fn session_out(node: &str, seen: Seen, now_ms: i64) -> v1::SmtpSession {
    let secs_since = |at_ms: i64| u64::try_from(now_ms.saturating_sub(at_ms) / 1000).unwrap_or(0);
    v1::SmtpSession {
        id: seen.id,
        node: node.to_owned(),
        source: seen.facts.source.to_string(),
        connector: seen.facts.connector,
        front: seen.facts.front.unwrap_or_default(),
        since: rfc3339(seen.since_ms),
        state: seen.state.as_str().to_owned(),
        tls: seen.facts.tls.unwrap_or_default(),
        user: seen.facts.user.unwrap_or_default(),
        letters: seen.letters,
        last_heard_at: rfc3339(seen.heard_ms),
        local: seen.facts.local.to_string(),
        age_secs: secs_since(seen.since_ms),
        idle_secs: secs_since(seen.heard_ms),
    }
}

/// Ends the sessions that fit, on all nodes.
pub(super) async fn kill(
    context: &Arc<Context>,
    actor: &Actor,
    request: v1::SessionRequest,
) -> Result<v1::SessionKillReply, Status> {
    let filter = filter(context, &request)?;
    let chosen = [&request.node, &request.connector, &request.source].iter().any(|text| !text.is_empty());
    if !(chosen || request.all || !request.ids.is_empty()) {
        return Err(invalid(
            "PH-SESS-001",
            "which sessions?",
            "without a filter this would be every session of the cluster",
            "name sessions by their ids, --connector, --source or --on-node; or type --all",
        ));
    }
    let options = request.options.clone().unwrap_or_default();
    let mut reply = v1::SessionKillReply { dry_run: options.dry_run, ..Default::default() };
    if includes_us(context, &request.node) {
        let ended = if options.dry_run {
            context.sessions.list(&filter, usize::MAX).0
        } else {
            let ended = context.sessions.kill(&filter);
            // A member that asks has put the name of who asked it in front of the reason.
            let who = if actor.is_member && !options.reason.is_empty() { "" } else { actor.who.as_str() };
            let detail = format!("{who} {}", options.reason);
            for seen in &ended {
                tracing::info!(
                    session.id = %seen.id,
                    source.addr = %seen.facts.source,
                    connector = %seen.facts.connector,
                    detail = %detail.trim(),
                    "session ended by an administrator"
                );
            }
            ended
        };
        reply.ids = ended.into_iter().map(|seen| seen.id).collect();
    }
    if !request.this_node_only {
        let mut asked = v1::SessionRequest { this_node_only: true, ..request.clone() };
        let reason = format!("{} {}", actor.who, options.reason).trim().to_owned();
        asked.options = Some(v1::WriteOptions { reason, ..options });
        let (came, unreachable) = ask(context, &request.node, |mut client| {
            let asked = asked.clone();
            async move { client.session_kill(Request::new(asked)).await }
        })
        .await;
        came.into_iter().for_each(|other| reply.ids.extend(other.ids));
        reply.unreachable = unreachable;
    }
    reply.killed = reply.ids.len() as u64;
    Ok(reply)
}
