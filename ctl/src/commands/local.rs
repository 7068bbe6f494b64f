//! What is asked of the process on this machine, over its socket: how it is, and joining a cluster with progress.

use std::time::Duration;

use posthouse_proto::v1::{JoinClusterReply, JoinClusterRequest, LocalStatusReply, LocalStatusRequest};
use serde_json::json;

use crate::console::Console;
use crate::error::{Exit, Failure, code};
use crate::output;

/// Joining takes a certificate, the whole state and a membership change; a slow link may need this long.
const JOIN_TIMEOUT: Duration = Duration::from_secs(180);
/// Between two looks at the progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(300);
/// How long one look may take.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(2);

/// Prints what the process says of itself.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn print_status(console: &Console, reply: &LocalStatusReply) -> Result<Exit, Failure> {
    let member = reply.state == "member";
    if console.out.format.is_json() {
        console.out.json("local-status", reply)?;
    } else {
        let belongs = if member { format!("member of {}", reply.cluster) } else { reply.state.clone() };
        let mut text =
            format!("{} {}   {belongs}   version {}\n", reply.kind, reply.name, output::or_dash(&reply.version));
        if !reply.next_step.is_empty() {
            text.push_str(&format!("Next   {}\n", reply.next_step));
        }
        output::text(&text)?;
    }
    Ok(if member { Exit::Done } else { Exit::No })
}

/// Joins the cluster that `token` names with the process behind the local socket, and waits until it has its role.
///
/// # Errors
/// What the process answered, or that it did not in time.
pub(crate) async fn join(
    console: &Console,
    default_socket: &str,
    schema: &str,
    token: String,
    advertise: Option<String>,
) -> Result<Exit, Failure> {
    let mut client = console.local_client(default_socket)?;
    let mut joiner = client.local().await?;
    let mut watcher = joiner.clone();
    let request = JoinClusterRequest { token, advertise: advertise.unwrap_or_default() };
    let joining = async {
        match tokio::time::timeout(JOIN_TIMEOUT, joiner.join_cluster(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(Failure::from_status(&status)),
            Err(_) => Err(Failure::new(
                Exit::TimedOut,
                code::NO_ANSWER,
                format!("not joined within {}", humantime::format_duration(JOIN_TIMEOUT)),
                "the process goes on trying",
                "posthousectl status",
            )),
        }
    };
    let progress = async {
        let mut said = String::new();
        loop {
            tokio::time::sleep(PROGRESS_INTERVAL).await;
            let looked = tokio::time::timeout(PROGRESS_TIMEOUT, watcher.local_status(LocalStatusRequest {})).await;
            let Ok(Ok(reply)) = looked else { continue };
            let LocalStatusReply { name, state, cluster, role, .. } = reply.into_inner();
            let line = match (state.as_str(), role.as_str()) {
                ("member", "") => format!("{name} is a member of {cluster}"),
                ("member", role) => format!("{name} is a {role} of {cluster}"),
                _ => format!("{name} is joining"),
            };
            if line != said {
                output::note(&line);
                said = line;
            }
        }
    };
    let joined = tokio::select! {
        joined = joining => joined,
        () = progress => return Ok(Exit::Other),
    };
    print_joined(console, schema, &joined?)
}

fn print_joined(console: &Console, schema: &str, reply: &JoinClusterReply) -> Result<Exit, Failure> {
    let JoinClusterReply { cluster, name, role, revision } = reply;
    if console.out.format.is_json() {
        console.out.json(schema, &json!({"name": name, "cluster": cluster, "role": role, "revision": revision}))?;
    } else {
        output::text(&format!("{name} joined {cluster} as {role}   revision {revision}\n"))?;
    }
    Ok(Exit::Done)
}
