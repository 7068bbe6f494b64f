//! What every change has in common: its conditions, waiting until each serving node has it, and saying so.

use std::time::Duration;

use clap::Args;
use posthouse_proto::v1::{AwaitRevisionReply, AwaitRevisionRequest, RelayGain, WriteOptions, WriteReply};
use serde_json::{Map, Value, json};

use crate::client::{Client, WAIT_MARGIN};
use crate::console::Console;
use crate::error::{Exit, Failure, code};
use crate::output::{self, Format, Out, Rows, or_dash};
use crate::parse;

/// Flags of every change.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Change options")]
pub(crate) struct WriteFlags {
    /// Why; kept in the history
    #[arg(long, value_name = "TEXT", env = "POSTHOUSECTL_REASON", hide_env = true)]
    reason: Option<String>,
    /// Only if the object is still at this revision (0: it does not exist)
    #[arg(long, value_name = "N")]
    pub(crate) if_revision: Option<u64>,
    /// Have the cluster check it and say what would happen; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait until every serving node uses it (the default), at most this long [default: 30s]
    #[arg(long, value_name = "TIME", env = "POSTHOUSECTL_WAIT", hide_env = true, num_args = 0..=1,
          require_equals = true, default_missing_value = "30s", value_parser = parse::duration, conflicts_with = "no_wait")]
    wait: Option<Duration>,
    /// Do not wait for the other nodes
    #[arg(long)]
    no_wait: bool,
}

/// How long a change is waited for unless somebody says otherwise.
const WAIT_DEFAULT: Duration = Duration::from_secs(30);

impl WriteFlags {
    /// As the cluster reads them.
    pub(crate) fn options(&self, accept_risk: bool) -> WriteOptions {
        WriteOptions {
            reason: self.reason.clone().unwrap_or_default(),
            if_revision: self.if_revision,
            dry_run: self.dry_run,
            accept_risk,
        }
    }

    /// The same, with `--accept-risk` refused before anybody is asked when no reason goes with it.
    ///
    /// # Errors
    /// When the reason is missing.
    pub(crate) fn options_at_risk(&self, accept_risk: bool) -> Result<WriteOptions, Failure> {
        let options = self.options(accept_risk);
        if accept_risk && options.reason.trim().is_empty() {
            return Err(Failure::usage(
                "--accept-risk needs a reason",
                "it puts the risk on record, and a record without a reason is none",
                "add --reason TEXT",
            ));
        }
        Ok(options)
    }

    fn wait(&self) -> Option<Duration> {
        if self.no_wait { None } else { Some(self.wait.unwrap_or(WAIT_DEFAULT)) }
    }
}

/// Asks before a change by which others gain relay: `tried` is the answer of its dry run.
///
/// # Errors
/// When the answer is no, or nobody is there to ask.
pub(crate) fn confirm_gains(console: &Console, tried: &WriteReply, what: &str) -> Result<(), Failure> {
    if tried.gains.is_empty() {
        return Ok(());
    }
    console.confirm(what, &format!("strangers at these addresses may relay then:\n{}", gains_table(&tried.gains)))
}

/// Who gains relay, one range a line.
pub(crate) fn gains_table(gains: &[RelayGain]) -> String {
    let mut rows = Rows::new(&["RANGE", ">ADDRESSES", "CONNECTOR NOW", "THEN"]);
    for gain in gains {
        rows.push(vec![gain.range.clone(), gain.addresses.clone(), or_dash(&gain.before), gain.after.clone()]);
    }
    rows.render(true, "  ")
}

/// What was changed, in words.
pub(crate) struct Deed {
    /// `connector-create`: names the JSON schema.
    pub(crate) schema: &'static str,
    /// `connector "scanners"`.
    pub(crate) object: String,
    /// `created`.
    pub(crate) done: &'static str,
    /// More fields for the JSON.
    pub(crate) extra: Map<String, Value>,
    /// More lines for people, after the first.
    pub(crate) more: String,
    /// For people, instead of all that.
    pub(crate) instead: Option<String>,
}

impl Deed {
    /// `noun "name" done`.
    pub(crate) fn new(schema: &'static str, noun: &str, name: &str, done: &'static str) -> Self {
        let extra = Map::from_iter([("name".to_owned(), Value::String(name.to_owned()))]);
        Self { schema, object: format!("{noun} \"{name}\""), done, extra, more: String::new(), instead: None }
    }
}

/// Waits as the flags say, and prints what came of the change.
///
/// # Errors
/// When a node has not confirmed in time (the change is committed all the same), or the answer cannot be written.
pub(crate) async fn finish(
    console: &Console,
    client: &mut Client,
    flags: &WriteFlags,
    reply: WriteReply,
    deed: Deed,
) -> Result<Exit, Failure> {
    let waited = match flags.wait() {
        Some(limit) if !reply.dry_run => Some((limit, await_revision(client, console, reply.revision, limit).await)),
        _ => None,
    };
    report(console.out, &reply, &deed, waited.as_ref().and_then(|(_, answer)| answer.as_ref().ok()))?;
    match waited {
        None => Ok(Exit::Done),
        Some((_, Ok(answer))) if answer.missing.is_empty() => Ok(Exit::Done),
        Some((limit, Ok(answer))) => Err(Failure::new(
            Exit::TimedOut,
            code::NOT_CONFIRMED,
            format!("revision {} is committed, but not confirmed by {}", reply.revision, answer.missing.join(", ")),
            format!(
                "not every node answered within {}; each will use it once it hears the leader",
                humantime::format_duration(limit)
            ),
            "posthousectl cluster status",
        )),
        Some((_, Err(failure))) => Err(Failure::new(
            Exit::TimedOut,
            code::NOT_CONFIRMED,
            format!("revision {} is committed, but which nodes use it is not known", reply.revision),
            failure.render(Format::Table).trim_end().to_owned(),
            "posthousectl cluster status",
        )),
    }
}

/// Prints that there was nothing to change.
///
/// # Errors
/// When the answer cannot be written.
pub(crate) fn finish_unchanged(console: &Console, reply: WriteReply, deed: &Deed) -> Result<Exit, Failure> {
    report(console.out, &reply, deed, None)?;
    Ok(Exit::Done)
}

async fn await_revision(
    client: &mut Client,
    console: &Console,
    revision: u64,
    limit: Duration,
) -> Result<AwaitRevisionReply, Failure> {
    let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let request = AwaitRevisionRequest { revision, timeout_ms };
    client.set_timeout(limit + WAIT_MARGIN);
    let answer = client.read(async |mut admin| admin.await_revision(request).await).await;
    client.set_timeout(console.global.timeout);
    answer
}

fn report(out: Out, reply: &WriteReply, deed: &Deed, waited: Option<&AwaitRevisionReply>) -> Result<(), Failure> {
    if out.format.is_json() {
        let nodes = waited.cloned().unwrap_or_default();
        let mut object = deed.extra.clone();
        object.extend([
            ("revision".to_owned(), json!(reply.revision)),
            ("changed".to_owned(), json!(reply.changed)),
            ("dry_run".to_owned(), json!(reply.dry_run)),
            ("warnings".to_owned(), json!(reply.warnings)),
            ("gains".to_owned(), json!(reply.gains)),
            ("waited".to_owned(), json!(waited.is_some())),
            ("confirmed".to_owned(), json!(nodes.confirmed)),
            ("missing".to_owned(), json!(nodes.missing)),
            ("elapsed_ms".to_owned(), json!(nodes.elapsed_ms)),
        ]);
        out.json(deed.schema, &object)?;
        return Ok(());
    }
    for warning in &reply.warnings {
        output::note(&format!("warning  {warning}"));
    }
    if !reply.gains.is_empty() {
        output::note(&format!("gained relay:\n{}", gains_table(&reply.gains)));
    }
    if let Some(instead) = &deed.instead {
        output::text(instead)?;
        return Ok(());
    }
    if out.format == Format::Name {
        let name = deed.extra.get("name").and_then(Value::as_str).unwrap_or_default();
        output::text(&format!("{name}\n"))?;
        return Ok(());
    }
    output::text(&format!("{}\n{}", sentence(reply, deed, waited), deed.more))?;
    Ok(())
}

/// `connector "scanners" created   revision 41   on 3/3 nodes in 12 ms`.
fn sentence(reply: &WriteReply, deed: &Deed, waited: Option<&AwaitRevisionReply>) -> String {
    let Deed { object, done, .. } = deed;
    if reply.dry_run {
        let would = if reply.changed { format!("would be {done}") } else { "would stay as it is".to_owned() };
        return format!("{object} {would}   dry run, nothing was changed   revision {}", reply.revision);
    }
    let done = if reply.changed { done } else { "unchanged" };
    let mut line = format!("{object} {done}   revision {}", reply.revision);
    if let Some(AwaitRevisionReply { confirmed, missing, elapsed_ms }) = waited {
        let all = confirmed.len() + missing.len();
        line.push_str(&format!("   on {}/{all} nodes in {elapsed_ms} ms", confirmed.len()));
    }
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn deed() -> Deed {
        Deed::new("connector-create", "connector", "x", "created")
    }

    fn reply(changed: bool, dry_run: bool) -> WriteReply {
        WriteReply { revision: 41, changed, dry_run, ..WriteReply::default() }
    }

    #[test]
    fn a_change_says_its_revision_and_where_it_is_used() {
        let nodes = |n: usize| (0..n).map(|i| format!("n{i}")).collect::<Vec<_>>();
        let waited = AwaitRevisionReply { confirmed: nodes(2), missing: vec!["n9".into()], elapsed_ms: 12 };
        assert_eq!(
            sentence(&reply(true, false), &deed(), Some(&waited)),
            "connector \"x\" created   revision 41   on 2/3 nodes in 12 ms"
        );
        assert_eq!(sentence(&reply(true, false), &deed(), None), "connector \"x\" created   revision 41");
        assert_eq!(sentence(&reply(false, false), &deed(), None), "connector \"x\" unchanged   revision 41");
    }

    #[test]
    fn who_gains_relay_is_listed_with_both_connectors() {
        let gain = RelayGain {
            range: "10.1.0.0/16".into(),
            addresses: "65536".into(),
            before: "carve".into(),
            after: "wide".into(),
        };
        let text = gains_table(&[gain]);
        for word in ["10.1.0.0/16", "65536", "carve", "wide"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
    }

    #[test]
    fn a_dry_run_never_says_that_something_was_done() {
        let text = sentence(&reply(true, true), &deed(), None);
        assert!(text.contains("would be created") && text.contains("nothing was changed"), "{text}");
    }

    #[test]
    fn waiting_is_the_default_and_can_be_turned_off() {
        let flags = |wait, no_wait| WriteFlags { reason: None, if_revision: None, dry_run: false, wait, no_wait };
        assert_eq!(flags(None, false).wait(), Some(WAIT_DEFAULT));
        assert_eq!(flags(Some(Duration::from_secs(5)), false).wait(), Some(Duration::from_secs(5)));
        assert_eq!(flags(None, true).wait(), None);
    }

    #[test]
    fn a_risk_without_a_reason_is_refused_here_already() {
        let mut flags =
            WriteFlags { reason: Some(" ".into()), if_revision: None, dry_run: false, wait: None, no_wait: false };
        assert_eq!(flags.options_at_risk(true).unwrap_err().exit_code(), Exit::Usage as u8);
        flags.reason = Some("migration".into());
        assert!(flags.options_at_risk(true).unwrap().accept_risk);
    }
}
