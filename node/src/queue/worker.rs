//! One attempt after the other on one route: reads the letter, sends it over a connection that is used again, and
//! makes what came of it durable before anything else happens to the letter.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use metrics::counter;

use super::book::{Again, Job};
use super::change::Whom;
use super::fit::{Fit, fit};
use super::manager::Shared;
use super::report::{Told, report};
use super::schedule::{Next, next};
use super::{DSN_TOTAL, FINISHED_TOTAL};
use crate::clock::now_ms;
use crate::mail::dsn::ReportKind;
use crate::mail::dsn_parameters::xtext_encode;
use crate::mail::{BodyType, Domain, EnhancedCode, ForwardPath, Mailbox, Notify, Reply};
use crate::outbound::{ATTEMPTS_TOTAL, BodySource, Connection, Downgrade, Outcome, Sent, Transaction, no_route};
use crate::spool::{
    BodyReader, Letter, Recipient, RecipientOutcome, RecipientState, Record, SpoolError, TraceEvent, TraceKind,
    TraceStatus, Update,
};

/// When the disk could not take what an attempt brought, the letter is looked at again after this.
const DISK_RETRY: Duration = Duration::from_secs(60);
/// A letter that crashed a worker once is tried once more, soon.
const CRASH_RETRY_MS: i64 = 1000;

/// Works on a route, beginning with `job`, while there is work and the connection carries it.
pub(super) async fn run(shared: Arc<Shared>, first: Job) {
    let lane = first.lane;
    let letters_max = first.route.as_ref().map_or(1, |route| route.max_messages_per_connection);
    let mut connection: Option<Connection> = None;
    let mut job = Some(first);
    while let Some(current) = job {
        // A letter that no worker survives must not take the others with it.
        let outcome = AssertUnwindSafe(attempt(&shared, &current, &mut connection)).catch_unwind().await;
        if outcome.is_err() {
            connection = None;
            crashed(&shared, &current).await;
        }
        let carries_on =
            connection.as_ref().is_some_and(|connection| connection.is_open() && connection.letters() < letters_max);
        job = if carries_on && !shared.is_stopping() { shared.book().next_for(lane, now_ms()) } else { None };
    }
    if let Some(connection) = connection {
        connection.quit().await;
    }
    shared.book().release(lane);
    shared.wake.notify_one();
}

/// The recipients of one job: their places in the record.
type Places = Vec<usize>;

async fn attempt(shared: &Shared, job: &Job, connection: &mut Option<Connection>) {
    let letter = match shared.spool.open_letter(job.id).await {
        Ok(Some(letter)) => letter,
        Ok(None) => {
            shared.book().remove(job.id);
            return;
        }
        Err(error) => return set_aside(shared, job, error).await,
    };
    let places: Places = letter
        .record
        .pending()
        .filter(|(_, recipient)| {
            let domain = recipient.path.domain().unwrap_or(&shared.deps.node.fqdn);
            job.domains.contains(domain)
        })
        .map(|(index, _)| index)
        .collect();
    if places.is_empty() {
        shared.book().settle(job, job.domains.iter().map(|domain| (domain.clone(), None)));
        return;
    }
    let Letter { record, body } = letter;
    let mut body = Body { reader: body, damage: None, downgrade: None };
    let delivery = deliver(shared, job, &record, &places, &mut body, connection).await;
    if let Some(damage @ SpoolError::Damaged { .. }) = body.damage {
        return set_aside(shared, job, damage).await;
    }
    settle(shared, job, &record, &places, delivery).await;
}

/// What came of an attempt: one outcome per place.
struct Delivery {
    next_hop: String,
    outcomes: Vec<Outcome>,
    /// No next hop took us at all.
    unreached: bool,
    /// The next hop reports itself where the sender asked for it.
    dsn_offered: bool,
}

/// A letter that cannot be read: damaged ones wait for a person, anything else is the disk's trouble.
async fn set_aside(shared: &Shared, job: &Job, error: SpoolError) {
    if let SpoolError::Damaged { reason, .. } = &error
        && shared.spool.quarantine(job.id, now_ms(), reason).await.is_ok()
    {
        shared.book().remove(job.id);
        return;
    }
    tracing::error!(message.id = %job.id, %error, "letter cannot be read");
    later(shared, job);
}

/// Counts a crash on the disk; the second one sets the letter aside (Exchange's poison queue).
async fn crashed(shared: &Shared, job: &Job) {
    match shared.spool.note_crash(job.id, now_ms()).await {
        Ok(true) => {
            tracing::error!(message.id = %job.id, "letter crashed a delivery worker twice and is set aside");
            shared.book().remove(job.id);
        }
        Ok(false) => {
            tracing::error!(message.id = %job.id, "letter crashed a delivery worker");
            let at = now_ms().saturating_add(CRASH_RETRY_MS);
            shared.book().settle(job, job.domains.iter().map(|domain| (domain.clone(), Some(Again::at(at)))));
        }
        Err(error) => {
            tracing::error!(message.id = %job.id, %error, "a crash could not be noted");
            later(shared, job);
        }
    }
}

fn later(shared: &Shared, job: &Job) {
    let at = now_ms().saturating_add(i64::try_from(DISK_RETRY.as_millis()).unwrap_or(i64::MAX));
    shared.book().settle(job, job.domains.iter().map(|domain| (domain.clone(), Some(Again::at(at)))));
}

/// Sends the letter.
async fn deliver(
    shared: &Shared,
    job: &Job,
    record: &Record,
    places: &Places,
    body: &mut Body,
    connection: &mut Option<Connection>,
) -> Delivery {
    let Some(route) = &job.route else {
        let domain = job.domains.first().map(ToString::to_string).unwrap_or_default();
        let outcomes = vec![Outcome::refused(&no_route(&domain)); places.len()];
        return Delivery { next_hop: String::new(), outcomes, unreached: false, dsn_offered: false };
    };
    let postmaster = postmaster(shared);
    // The bare postmaster is queued under the node's own name, whose mail servers would be ourselves.
    let own = |domain: &Domain| *domain == shared.deps.node.fqdn;
    let destination = match (&job.destination, &postmaster) {
        (Some(domain), Some(target)) if own(domain) => Some(target.domain().clone()),
        (destination, _) => destination.clone(),
    };
    let transaction = Transaction {
        reverse_path: record.reverse_path.mailbox().map(ToString::to_string).unwrap_or_default(),
        recipients: places
            .iter()
            .filter_map(|&place| record.recipients.get(place))
            .map(|recipient| match (&recipient.path, &postmaster) {
                (ForwardPath::Postmaster, Some(target)) => target.to_string(),
                (path, _) => path.to_string(),
            })
            .collect(),
        size: record.length,
        eight_bit: record.body == BodyType::EightBitMime,
        utf8_header: record.smtp_utf8,
        dsn_mail: dsn_of_mail(record),
        dsn_recipients: places.iter().filter_map(|&place| record.recipients.get(place)).map(dsn_of_recipient).collect(),
    };
    loop {
        // A connection that carried letters before may have grown tired of waiting.
        let reused = connection.as_ref().is_some_and(Connection::is_open);
        if !reused {
            match shared.deps.outbound.connect(route, destination.as_ref()).await {
                Ok(fresh) => {
                    shared.book().reached(job.lane, now_ms());
                    shared.wake.notify_one();
                    *connection = Some(fresh);
                }
                Err(none) => {
                    *connection = None;
                    counter!(ATTEMPTS_TOTAL, "outcome" => "unreachable").increment(1);
                    let outcomes = vec![Outcome::refused(&none.reply); places.len()];
                    return Delivery { next_hop: none.next_hop, outcomes, unreached: true, dsn_offered: false };
                }
            }
        }
        let Some(open) = connection.as_mut() else { continue };
        let next_hop = open.next_hop().to_owned();
        let mut transaction = transaction.clone();
        match fit(shared, record, open.offers()).await {
            Ok(Fit::AsItIs) => body.downgrade = None,
            Ok(Fit::SevenBit(size)) => {
                (transaction.size, transaction.eight_bit) = (size, false);
                body.downgrade = Some(Downgrade::default());
            }
            Ok(Fit::Refused(reply)) => {
                return Delivery {
                    next_hop,
                    outcomes: vec![Outcome::refused(&reply); places.len()],
                    unreached: false,
                    dsn_offered: false,
                };
            }
            Err(error) => {
                let reply = Reply::new(451, None, format!("letter could not be read: {error}"));
                body.damage = Some(error);
                return Delivery {
                    next_hop,
                    outcomes: vec![Outcome::refused(&reply); places.len()],
                    unreached: false,
                    dsn_offered: false,
                };
            }
        }
        let Sent { outcomes, unanswered } = open.send(transaction, body).await;
        // A next hop that closed an idle connection has said nothing about this letter: a new one decides.
        if !(reused && unanswered) || body.has_begun() {
            let dsn_offered = open.offers().dsn;
            return Delivery { next_hop, outcomes, unreached: false, dsn_offered };
        }
        *connection = None;
    }
}

/// `RET` and `ENVID` as they follow `MAIL` (RFC 3461 §4.3, §4.4): what the sender said is passed on unchanged.
fn dsn_of_mail(record: &Record) -> String {
    let ret = record.ret.map(|ret| format!(" RET={ret}")).unwrap_or_default();
    let envid = record.envid.as_deref().map(|envid| format!(" ENVID={}", xtext_encode(envid))).unwrap_or_default();
    ret + &envid
}

/// `NOTIFY` and `ORCPT` as they follow `RCPT` (RFC 3461 §4.1, §4.2).
fn dsn_of_recipient(recipient: &Recipient) -> String {
    let notify = recipient.notify.map(|notify| format!(" NOTIFY={notify}")).unwrap_or_default();
    let orcpt = recipient.orcpt.as_ref().map(|orcpt| format!(" ORCPT={}", orcpt.to_parameter())).unwrap_or_default();
    notify + &orcpt
}

/// Who reads what is sent to `postmaster`.
fn postmaster(shared: &Shared) -> Option<Mailbox> {
    shared.deps.view.borrow().state.settings.postmaster.clone()
}

/// Returns a letter to its sender for those recipients, because an administrator wants it. Answers whether any of them
/// still waited for it.
pub(super) async fn bounce(shared: &Shared, job: &Job, whom: &Whom, why: &str) -> Result<bool, SpoolError> {
    let Some(letter) = shared.spool.open_letter(job.id).await? else {
        shared.book().remove(job.id);
        return Ok(false);
    };
    let pending = letter.record.pending();
    let places: Places = pending.filter(|(_, one)| whom.means(&one.path)).map(|(index, _)| index).collect();
    let text = if why.is_empty() {
        "returned by an administrator".to_owned()
    } else {
        format!("returned by an administrator: {why}")
    };
    let reply = Reply::new(550, Some(EnhancedCode::new(5, 7, 1)), text);
    let outcomes = vec![Outcome::refused(&reply); places.len()];
    let delivery = Delivery { next_hop: String::new(), outcomes, unreached: false, dsn_offered: false };
    settle(shared, job, &letter.record, &places, delivery).await;
    Ok(!places.is_empty())
}

/// Makes the outcomes durable, with their trace and the report to the sender, and says when to try again.
async fn settle(shared: &Shared, job: &Job, record: &Record, places: &Places, delivery: Delivery) {
    let Delivery { next_hop, outcomes, unreached, dsn_offered } = delivery;
    let next_hop = next_hop.as_str();
    let now = now_ms();
    let node = &shared.deps.node;
    let settings = job.route.as_ref().map_or(shared.deps.settings, |route| shared.deps.settings.with(&route.retry));
    let (mut decided, mut events) = (Vec::new(), Vec::new());
    let (mut failures, mut delays, mut relayed) = (Vec::new(), Vec::new(), Vec::new());
    let delayed = settings.is_delayed(record.received_at_ms, now);
    for (&index, outcome) in places.iter().zip(outcomes) {
        let Some(recipient) = record.recipients.get(index) else { continue };
        let again =
            next(&settings, record.received_at_ms, recipient.attempts.saturating_add(1), now, rand::random::<f64>());
        let (reply, word, state, kind, at) = match (outcome, again) {
            (Outcome::Delivered { reply }, _) => {
                (reply, "delivered", RecipientState::Delivered, TraceKind::Delivered, 0)
            }
            (Outcome::Deferred { reply }, Next::At(at)) => {
                (reply, "deferred", RecipientState::Pending, TraceKind::Deferred, at)
            }
            (Outcome::Deferred { reply }, Next::Expired) => {
                (reply, "deferred", RecipientState::Failed, TraceKind::Expired, 0)
            }
            (Outcome::Failed { reply }, _) => (reply, "failed", RecipientState::Failed, TraceKind::Failed, 0),
        };
        counter!(ATTEMPTS_TOTAL, "outcome" => word).increment(1);
        tracing::info!(
            message.id = %record.id,
            recipients = 1,
            next_hop,
            reply = %reply,
            outcome = kind.as_str(),
            "delivery attempt"
        );
        let told = || Told {
            index,
            recipient: recipient.path.to_string(),
            reply: reply.clone(),
            expired: kind == TraceKind::Expired,
            orcpt: recipient.orcpt.clone(),
        };
        let mut delay_reported = false;
        match state {
            RecipientState::Failed if Notify::wants_failure(recipient.notify) => failures.push(told()),
            RecipientState::Pending if delayed && !recipient.delay_reported => {
                delay_reported = true;
                if Notify::wants_delay(recipient.notify) {
                    delays.push(told());
                }
            }
            // RFC 3461 §5.2.2: a next hop without DSN will not tell, so we do.
            RecipientState::Delivered if !dsn_offered && Notify::wants_success(recipient.notify) => {
                relayed.push(told());
            }
            _ => {}
        }
        events.push(TraceEvent {
            at_ms: now,
            event: kind,
            node: node.name.clone(),
            next_hop: next_hop.to_owned(),
            recipient: recipient.path.to_string(),
            reply: reply.to_string(),
            detail: String::new(),
        });
        decided.push(RecipientOutcome { index, state, reply: reply.to_string(), next_attempt_ms: at, delay_reported });
    }
    let dues = dues(record, &decided, &node.fqdn);
    let until_ms = settings.expires_at_ms(record.received_at_ms);
    let mut reports = Vec::new();
    let kinds =
        [(ReportKind::Failed, &failures), (ReportKind::Delayed { until_ms }, &delays), (ReportKind::Relayed, &relayed)];
    for (kind, told) in kinds {
        reports.extend(report(shared, record, next_hop, kind, told, now).await);
    }
    let update = Update { id: job.id, at_ms: now, outcomes: decided, events, reports };
    match shared.spool.update(update).await {
        Ok(updated) => {
            let result = match updated.status {
                Some(TraceStatus::Delivered) => Some("delivered"),
                Some(TraceStatus::Failed) => Some("failed"),
                Some(TraceStatus::Partial) => Some("partial"),
                _ => None,
            };
            if let Some(result) = result {
                counter!(FINISHED_TOTAL, "result" => result).increment(1);
            }
            counter!(DSN_TOTAL).increment(updated.reports.len() as u64);
            let settled = job.domains.iter().map(|domain| {
                let again = dues.get(domain).map(|&due_ms| Again { due_ms, unreached });
                (domain.clone(), again)
            });
            shared.book().settle(job, settled);
        }
        Err(error) => {
            // What the next hop took may be sent again: a duplicate, never a loss.
            tracing::error!(message.id = %job.id, %error, "the outcome of an attempt could not be stored");
            later(shared, job);
        }
    }
}

/// For each domain the first time one of its recipients is due again: after what was decided, or as it was for those
/// about whom nothing was.
fn dues(record: &Record, decided: &[RecipientOutcome], own: &Domain) -> BTreeMap<Domain, i64> {
    let mut dues: BTreeMap<Domain, i64> = BTreeMap::new();
    let decided: BTreeMap<usize, &RecipientOutcome> = decided.iter().map(|outcome| (outcome.index, outcome)).collect();
    for (index, recipient) in record.pending() {
        let at = match decided.get(&index) {
            Some(outcome) if outcome.state == RecipientState::Pending => outcome.next_attempt_ms,
            Some(_) => continue,
            None => recipient.next_attempt_ms,
        };
        let domain = recipient.path.domain().unwrap_or(own).clone();
        dues.entry(domain).and_modify(|due| *due = at.min(*due)).or_insert(at);
    }
    dues
}

/// The letter's bytes on their way out.
struct Body {
    reader: BodyReader,
    damage: Option<SpoolError>,
    /// Makes it 7-bit on the way.
    downgrade: Option<Downgrade>,
}

impl Body {
    /// Whether bytes were handed out: then this reader cannot begin again.
    fn has_begun(&self) -> bool {
        self.reader.has_begun()
    }
}

impl BodySource for Body {
    async fn next_piece(&mut self) -> Result<Option<Vec<u8>>, String> {
        let piece = match self.reader.next_chunk().await {
            Ok(piece) => piece,
            Err(error) => {
                let words = error.to_string();
                self.damage = Some(error);
                return Err(words);
            }
        };
        let Some(downgrade) = &mut self.downgrade else { return Ok(piece) };
        // It went through once before: an error here would mean that the letter changed meanwhile.
        let mut out = Vec::new();
        match piece {
            Some(piece) => downgrade.add(&piece, &mut out),
            None => std::mem::take(&mut self.downgrade).map_or(Ok(()), |downgrade| downgrade.finish(&mut out)),
        }
        .map_err(|error| error.to_string())?;
        Ok((!out.is_empty() || self.downgrade.is_some()).then_some(out))
    }
}
