//! What devices say and are told, as it happens, from whichever node they speak to.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use posthouse_proto::v1::{self, admin_client::AdminClient};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::cluster::{others, unknown_node};
use super::problem::{exit, invalid, problem, status};
use super::queue::includes_us;
use super::service::Context;
use super::sessions::source;
use crate::clock::{now_ms, rfc3339};
use crate::protocol_log::{Heard, Listener};

/// A node that says nothing for several of these to another one is not heard any more.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// That many, and the time to begin.
const SILENCE: Duration = Duration::from_secs(5);
/// Between two tries to reach a node.
const RETRY: Duration = Duration::from_secs(2);

/// Lines as they are sent.
pub(super) type Lines = Pin<Box<dyn Stream<Item = Result<v1::SessionLine, Status>> + Send>>;

/// Listens at this node, and at every other one unless only this one is asked.
pub(super) fn listen(context: &Arc<Context>, request: v1::LogSessionRequest) -> Result<Lines, Status> {
    let Some(range) = source(&request.source)? else {
        return Err(invalid(
            "PH-SESS-003",
            "whose dialogue?",
            "without an address every line of every session would be sent",
            "--source 10.1.2.3 or --source 10.1.2.0/24",
        ));
    };
    if !request.node.is_empty() {
        unknown_node(context, &request.node)?;
    }
    let mut all: Vec<Lines> = Vec::new();
    if includes_us(context, &request.node) {
        let listener = context.live.listen(move |source| range.contains(source)).ok_or_else(|| {
            status(problem(
                exit::OTHER,
                "PH-SESS-004",
                "too many listen already",
                "each listener costs the sessions that it hears, so that a node has a limit of them",
                "end another posthousectl log session",
            ))
        })?;
        all.push(here(context.node_name.clone(), listener, request.this_node_only));
    }
    if !request.this_node_only {
        let members = others(context).into_iter();
        let members = members.filter(|member| request.node.is_empty() || member.name == request.node);
        let asked = v1::LogSessionRequest { this_node_only: true, node: String::new(), ..request.clone() };
        all.extend(members.map(|member| {
            let there = There {
                channel: context.dialer.own_channel(&member.rpc_address, &member.name),
                name: member.name,
                asked: asked.clone(),
                lines: None,
                is_away: false,
            };
            there.lines()
        }));
    }
    let scope = context.scope.clone();
    // A node that stops does not wait for those who listen.
    Ok(Box::pin(stream::select_all(all).take_until(Box::pin(async move { scope.ended().await }))))
}

/// What this node hears. To another node a beat now and then says that it is alive.
fn here(node: String, listener: Listener, beats: bool) -> Lines {
    Box::pin(stream::unfold((node, listener), move |(node, mut listener)| async move {
        let line = loop {
            tokio::select! {
                heard = listener.next() => break line_out(&node, heard),
                () = tokio::time::sleep(HEARTBEAT) => if beats {
                    break v1::SessionLine { node: node.clone(), ..Default::default() };
                }
            }
        };
        Some((Ok(line), (node, listener)))
    }))
}

fn line_out(node: &str, heard: Heard) -> v1::SessionLine {
    let node = node.to_owned();
    match heard {
        Heard::Lost(lost) => v1::SessionLine { node, time: rfc3339(now_ms()), lost, ..Default::default() },
        Heard::Record(record) => v1::SessionLine {
            time: rfc3339(record.at_ms),
            node,
            connector: record.connector_id.split_once('\\').map(|(_, name)| name.to_owned()).unwrap_or_default(),
            session_id: record.session_id,
            sequence: record.sequence,
            local: record.local.to_string(),
            remote: record.remote.to_string(),
            event: record.event.as_str().to_owned(),
            data: record.data,
            context: record.context,
            ..Default::default()
        },
    }
}

/// Another node, for as long as somebody listens.
struct There {
    /// A connection of its own, made anew whenever it is needed.
    channel: Channel,
    name: String,
    asked: v1::LogSessionRequest,
    lines: Option<Streaming<v1::SessionLine>>,
    /// It was said that it is not heard.
    is_away: bool,
}

impl There {
    fn lines(self) -> Lines {
        Box::pin(stream::unfold(self, |mut there| async move {
            let line = there.next().await;
            Some((Ok(line), there))
        }))
    }

    /// Its next line, or that it is not heard, or that it is heard again.
    async fn next(&mut self) -> v1::SessionLine {
        loop {
            if let Some(lines) = &mut self.lines {
                match tokio::time::timeout(SILENCE, lines.message()).await {
                    Ok(Ok(Some(beat))) if beat.event.is_empty() && beat.lost == 0 => continue,
                    Ok(Ok(Some(line))) => return line,
                    Ok(Ok(None) | Err(_)) | Err(_) => {
                        self.lines = None;
                        if let Some(said) = self.say_away(true) {
                            return said;
                        }
                    }
                }
            } else if let Some(lines) = self.begin().await {
                self.lines = Some(lines);
                if let Some(said) = self.say_away(false) {
                    return said;
                }
            } else {
                if let Some(said) = self.say_away(true) {
                    return said;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn begin(&self) -> Option<Streaming<v1::SessionLine>> {
        let mut client = AdminClient::new(self.channel.clone());
        let call = client.log_session(Request::new(self.asked.clone()));
        Some(tokio::time::timeout(SILENCE, call).await.ok()?.ok()?.into_inner())
    }

    /// A flip is said, once.
    fn say_away(&mut self, is_away: bool) -> Option<v1::SessionLine> {
        if std::mem::replace(&mut self.is_away, is_away) == is_away {
            return None;
        }
        let word = if is_away { "unheard" } else { "heard" };
        let (node, time) = (self.name.clone(), rfc3339(now_ms()));
        Some(v1::SessionLine { node, time, event: word.to_owned(), ..Default::default() })
    }
}
