//! `cluster`: making it, watching it, and letting machines join.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use posthouse_proto::v1::{
    ClusterStatusReply, CreateJoinTokenRequest, InitClusterReply, InitClusterRequest, JoinToken, ListRequest,
    NameRequest, WriteReply,
};
use serde_json::{Value, json};

use super::watch::WatchFlags;
use super::{Noun, suggest};
use crate::client::Client;
use crate::console::{Console, NODE_SOCKET};
use crate::context::Context;
use crate::error::{Exit, Failure, code};
use crate::mutation::{Deed, WriteFlags, finish};
use crate::output::{self, Format, Out, Rows, or_dash, short_time};
use crate::parse;

/// `cluster …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Make a new cluster with the node on this machine as its first voter
    Init(InitArgs),
    /// Leader, term, and every member's role, index, lag and digest
    Status(StatusArgs),
    /// Tokens that let a machine join
    #[command(subcommand)]
    JoinToken(JoinTokenCommand),
}

/// Flags of `cluster init`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  sudo posthousectl cluster init --name mail-prod --smtp-name smtp.corp.example
  posthousectl --socket DIR/node.sock cluster init --name test --context test --smtp-name localhost")]
pub(crate) struct InitArgs {
    /// The cluster's name
    #[arg(long, default_value = "posthouse")]
    name: String,
    /// HOST:PORT that the other members dial [default: the node file's]
    #[arg(long, value_name = "H:P")]
    advertise: Option<String>,
    /// A name or address in the server certificate that devices see; repeat
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    smtp_name: Vec<String>,
}

/// Flags of `cluster status`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl cluster status
  posthousectl cluster status -w=1s
  posthousectl cluster status -o json")]
#[command(after_help = "Exits 0 when the cluster is healthy, 1 when it is not.")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    watch: WatchFlags,
}

/// `cluster join-token …`.
#[derive(Debug, Subcommand)]
pub(crate) enum JoinTokenCommand {
    /// Make a token; prints the one command that joins another machine
    Create(CreateArgs),
    /// Tokens that can still be used
    List,
    /// Take a token back
    #[command(visible_aliases = ["delete", "remove"])]
    Revoke(RevokeArgs),
}

/// What a token lets a machine become.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum JoinRole {
    /// Relays and votes
    Voter,
    /// Relays
    Learner,
    /// Listens for devices
    Front,
}

/// Flags of `cluster join-token create`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl cluster join-token create
  posthousectl cluster join-token create --role front --ttl 10m --print-command")]
pub(crate) struct CreateArgs {
    /// What the machine becomes
    #[arg(long, value_enum, default_value = "voter")]
    role: JoinRole,
    /// How long it can be used
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse::duration)]
    ttl: Duration,
    /// How many machines it lets in
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    /// Print the joining command and nothing else
    #[arg(long)]
    print_command: bool,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `cluster join-token revoke`.
#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// The token's id
    id: String,
    #[command(flatten)]
    write: WriteFlags,
}

const JOIN_TOKEN: Noun = Noun { name: "join token", missing: "PH-JOIN-002", list: "cluster join-token list" };

/// Runs `cluster …`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(command: ClusterCommand, console: &Console) -> Result<Exit, Failure> {
    match command {
        ClusterCommand::Init(args) => init(args, console).await,
        ClusterCommand::Status(args) => status(args, console).await,
        ClusterCommand::JoinToken(JoinTokenCommand::Create(args)) => create_token(args, console).await,
        ClusterCommand::JoinToken(JoinTokenCommand::List) => list_tokens(console).await,
        ClusterCommand::JoinToken(JoinTokenCommand::Revoke(args)) => revoke_token(args, console).await,
    }
}

/// Making keys and certificates, and the first election.
const INIT_TIMEOUT: Duration = Duration::from_secs(60);

async fn init(args: InitArgs, console: &Console) -> Result<Exit, Failure> {
    // The administrator's key is given once. A place where it cannot be kept must be found out before that.
    let store = console.contexts()?;
    let name = console.global.context.clone().unwrap_or_else(|| args.name.clone());
    store.update(|contexts| match contexts.contexts.contains_key(&name) {
        true => Err(Failure::new(
            Exit::Conflict,
            code::CONTEXT_FILE,
            format!("context \"{name}\" exists already"),
            "a new cluster must not overwrite the way to another one",
            format!("--context OTHER, or first: posthousectl context remove {name}"),
        )),
        false => Ok(()),
    })?;
    let mut client = console.local_client(NODE_SOCKET)?;
    let request = InitClusterRequest {
        cluster: args.name,
        advertise: args.advertise.unwrap_or_default(),
        smtp_names: args.smtp_name,
    };
    let mut local = client.local().await?;
    let reply = match tokio::time::timeout(INIT_TIMEOUT, local.init_cluster(request)).await {
        Ok(Ok(reply)) => reply.into_inner(),
        Ok(Err(status)) => return Err(Failure::from_status(&status)),
        Err(_) => {
            return Err(Failure::new(
                Exit::TimedOut,
                code::NO_ANSWER,
                format!("no answer within {}; the cluster may still be made", humantime::format_duration(INIT_TIMEOUT)),
                "the node took the request and did not answer",
                "posthousectl status",
            ));
        }
    };
    let InitClusterReply { cluster, cluster_id, ca_pem, ca_hash, admin_cert_pem, admin_key_pem, endpoint, revision } =
        reply;
    store.update(|contexts| {
        let context = Context {
            cluster: cluster.clone(),
            endpoints: vec![endpoint.clone()],
            members: Vec::new(),
            ca: ca_pem,
            cert: admin_cert_pem,
            key: admin_key_pem,
        };
        contexts.contexts.insert(name.clone(), context);
        contexts.current.get_or_insert_with(|| name.clone());
        Ok(())
    })?;
    let path = store.path().display().to_string();
    if console.out.format.is_json() {
        console.out.json(
            "cluster-init",
            &json!({"cluster": cluster, "cluster_id": cluster_id, "ca_hash": ca_hash, "endpoint": endpoint,
                    "revision": revision, "context": name, "context_file": path}),
        )?;
    } else {
        output::text(&format!(
            "cluster \"{cluster}\" created   revision {revision}\n\
             context \"{name}\" written to {path}: it holds the administrator's key, which the cluster does not keep\n\
             Next   posthousectl --context {name} cluster join-token create\n"
        ))?;
    }
    Ok(Exit::Done)
}

async fn status(args: StatusArgs, console: &Console) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    let headers = console.out.headers;
    args.watch
        .run(console.out.format, async |format| {
            let reply = client.cluster_status().await?;
            print_status(Out { format, headers }, &reply)?;
            Ok(if reply.healthy { Exit::Done } else { Exit::No })
        })
        .await
}

fn print_status(out: Out, reply: &ClusterStatusReply) -> Result<(), Failure> {
    match out.format {
        Format::Json | Format::Jsonl => out.json("cluster-status", reply)?,
        Format::Name => out.list("cluster-status", reply, "members", "name", |_| Rows::default())?,
        Format::Table | Format::Wide => {
            let mut text = headline(reply);
            text.push_str(&members(reply, out.format == Format::Wide).render(out.headers, ""));
            for warning in &reply.warnings {
                text.push_str(&format!("! {warning}\n"));
            }
            output::text(&text)?;
        }
    }
    Ok(())
}

/// `Cluster  mail-prod    healthy    leader n2 (term 14)    3/3 voters    may lose 1 more    revision 41`.
pub(super) fn headline(reply: &ClusterStatusReply) -> String {
    let health = if reply.healthy { "healthy" } else { "NOT HEALTHY" };
    let leader = match &reply.leader {
        Some(leader) => format!("leader {leader} (term {})", reply.term),
        None => format!("no leader (term {})", reply.term),
    };
    let alive = reply.members.iter().filter(|member| member.voter && member.reachable).count();
    let may_lose = match reply.may_lose {
        0 => "may lose none".to_owned(),
        more => format!("may lose {more} more"),
    };
    format!(
        "Cluster  {}    {health}    {leader}    {alive}/{} voters    {may_lose}    revision {}\n",
        reply.cluster, reply.voters, reply.revision
    )
}

fn members(reply: &ClusterStatusReply, wide: bool) -> Rows {
    let mut headings = vec!["NODE", "ROLE", "STATE", "READY", ">APPLIED", ">LAG", "DIGEST", "VERSION"];
    if wide {
        headings.extend(["ADDRESS", ">SESSIONS", ">QUEUE", "REASON"]);
    }
    let mut rows = Rows::new(&headings);
    for member in &reply.members {
        let known = |text: String| if member.reachable { text } else { "-".to_owned() };
        let ready = match (member.reachable, member.ready) {
            (false, _) => "unreachable",
            (true, true) => "yes",
            (true, false) => "no",
        };
        // Enough of the digest to see a difference; `wide` has all of it.
        let digest = if wide { member.digest.clone() } else { member.digest.chars().take(12).collect() };
        let mut row = vec![
            member.name.clone(),
            member.role.clone(),
            member.state.clone(),
            ready.to_owned(),
            known(member.applied.to_string()),
            known(member.lag.to_string()),
            or_dash(&digest),
            or_dash(&member.version),
        ];
        if wide {
            row.extend([
                member.address.clone(),
                known(member.sessions.to_string()),
                known(member.queued.to_string()),
                or_dash(&member.reason),
            ]);
        }
        rows.push(row);
    }
    rows
}

async fn create_token(args: CreateArgs, console: &Console) -> Result<Exit, Failure> {
    let role = match args.role {
        JoinRole::Voter => "voter",
        JoinRole::Learner => "learner",
        JoinRole::Front => "front",
    };
    let request = CreateJoinTokenRequest {
        role: role.to_owned(),
        ttl_secs: args.ttl.as_secs().max(1),
        uses: args.uses,
        options: Some(args.write.options(false)),
    };
    let mut client = console.client().await?;
    let reply = client.write(async |mut admin| admin.create_join_token(request.clone()).await).await?;
    if args.write.dry_run {
        let written = WriteReply { revision: reply.revision, changed: true, dry_run: true, ..WriteReply::default() };
        let deed = Deed::new("cluster-join-token-create", JOIN_TOKEN.name, role, "created");
        return finish(console, &mut client, &args.write, written, deed).await;
    }
    let mut deed = Deed::new("cluster-join-token-create", JOIN_TOKEN.name, &reply.id, "created");
    for (key, value) in
        [("id", &reply.id), ("token", &reply.token), ("command", &reply.command), ("expires_at", &reply.expires_at)]
    {
        deed.extra.insert(key.to_owned(), Value::String(value.clone()));
    }
    deed.extra.insert("role".to_owned(), Value::String(role.to_owned()));
    deed.more = format!(
        "for one {role}, until {} UTC; shown once. On the machine that joins, as root:\n\n  {}\n",
        short_time(&reply.expires_at),
        reply.command
    );
    if args.uses != 1 {
        deed.more = deed.more.replacen(&format!("one {role}"), &format!("{} machines ({role})", args.uses), 1);
    }
    deed.instead = args.print_command.then(|| format!("{}\n", reply.command));
    let written = WriteReply { revision: reply.revision, changed: true, ..WriteReply::default() };
    finish(console, &mut client, &args.write, written, deed).await
}

async fn tokens(client: &mut Client) -> Result<Vec<JoinToken>, Failure> {
    Ok(client.read(async |mut admin| admin.list_join_tokens(ListRequest::default()).await).await?.tokens)
}

async fn list_tokens(console: &Console) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    let reply = client.read(async |mut admin| admin.list_join_tokens(ListRequest::default()).await).await?;
    console.out.list("cluster-join-token-list", &reply, "tokens", "id", |_| {
        let mut rows = Rows::new(&["ID", "ROLE", ">USES LEFT", "EXPIRES", "CREATED BY"]);
        for token in &reply.tokens {
            rows.push(vec![
                token.id.clone(),
                token.role.clone(),
                token.uses_left.to_string(),
                short_time(&token.expires_at),
                token.created_by.clone(),
            ]);
        }
        rows
    })?;
    Ok(Exit::Done)
}

async fn revoke_token(args: RevokeArgs, console: &Console) -> Result<Exit, Failure> {
    let request = NameRequest { name: args.id.clone(), options: Some(args.write.options(false)) };
    let mut client = console.client().await?;
    match client.write(async |mut admin| admin.revoke_join_token(request.clone()).await).await {
        Ok(reply) => {
            let deed = Deed::new("cluster-join-token-revoke", JOIN_TOKEN.name, &args.id, "revoked");
            finish(console, &mut client, &args.write, reply, deed).await
        }
        Err(failure) => {
            let names = async { Ok(tokens(&mut client).await?.into_iter().map(|token| token.id).collect::<Vec<_>>()) };
            Err(suggest(JOIN_TOKEN, failure, &args.id, names).await)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthouse_proto::v1::Member;

    #[test]
    fn the_headline_says_how_much_more_may_be_lost() {
        let member = |reachable| Member { voter: true, reachable, ..Member::default() };
        let mut reply = ClusterStatusReply {
            cluster: "mail-prod".into(),
            leader: Some("n2".into()),
            term: 14,
            revision: 41,
            voters: 3,
            may_lose: 1,
            healthy: true,
            members: vec![member(true), member(true), member(true)],
            ..ClusterStatusReply::default()
        };
        assert_eq!(
            headline(&reply),
            "Cluster  mail-prod    healthy    leader n2 (term 14)    3/3 voters    may lose 1 more    revision 41\n"
        );
        reply.members[0].reachable = false;
        (reply.leader, reply.healthy, reply.may_lose) = (None, false, 0);
        let text = headline(&reply);
        for part in ["NOT HEALTHY", "no leader", "2/3 voters", "may lose none"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn what_an_unreachable_member_holds_is_not_made_up() {
        let reply = ClusterStatusReply {
            members: vec![Member { name: "n1".into(), lag: 0, ..Member::default() }],
            ..ClusterStatusReply::default()
        };
        let text = members(&reply, false).render(false, "");
        assert!(text.contains("unreachable") && !text.contains(" 0"), "{text}");
    }
}
