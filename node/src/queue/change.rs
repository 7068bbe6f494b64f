//! What administrators do to letters that wait. Every change is durable before it counts, and stands in the letter's
//! trace with the name of who made it. Letters are worked on many at a time, so that they share synced writes.

use std::future::Future;
use std::sync::Arc;

use futures_util::future::join_all;

use super::{QueueError, QueueFilter, QueueHandle, worker};
use crate::clock::now_ms;
use crate::connector::SmartHost;
use crate::mail::{Domain, ForwardPath};
use crate::spool::{MessageId, Redirect, SpoolError};

/// How many letters of one change are worked on at a time.
const AT_ONCE: usize = 64;
/// Reports to senders are made one by one by whoever returns letters: fewer at a time, for each holds a letter's header.
const BOUNCES_AT_ONCE: usize = 16;

impl QueueHandle {
    /// Makes these letters due now.
    pub fn retry(&self, ids: &[MessageId]) {
        // Who asks for it now does not want to hear what a next hop said a minute ago.
        self.outbound().health.forget();
        self.book().retry(ids, now_ms());
        self.shared().wake.notify_one();
    }

    /// Keeps these letters back until they are released, or lets them go on at once. What is under way finishes. Answers
    /// which were changed.
    ///
    /// # Errors
    /// When the spool fails: what was changed before stays changed.
    pub async fn hold(&self, ids: &[MessageId], held: bool, by: &str) -> Result<Vec<MessageId>, QueueError> {
        // Durable first: a letter that only the memory keeps back would leave at the next start.
        let changed = each(ids, AT_ONCE, |id| self.spool().hold(id, now_ms(), held, by)).await?;
        self.book().hold(&changed, held, now_ms());
        self.shared().wake.notify_one();
        Ok(changed)
    }

    /// Sends these letters to `to` from now on, or again where their routes do; with `domains`, only what goes to
    /// recipients there. Due at once; what is under way finishes first. Answers which were changed.
    ///
    /// # Errors
    /// When the spool fails: what was changed before stays changed.
    pub async fn redirect(
        &self,
        ids: &[MessageId],
        to: Option<&SmartHost>,
        domains: &[Domain],
        by: &str,
    ) -> Result<Vec<MessageId>, QueueError> {
        let now = now_ms();
        let redirect =
            to.map(|host| Redirect { to: host.address(), domains: domains.to_vec(), at_ms: now, by: by.to_owned() });
        let changed = each(ids, AT_ONCE, |id| self.spool().redirect(id, now, redirect.clone(), by)).await?;
        self.book().redirect(&changed, redirect.as_ref(), now);
        self.shared().wake.notify_one();
        Ok(changed)
    }

    /// Returns these letters to their senders, with a report that says `why`; where `filter` names recipients, those
    /// recipients only. What is under way is left alone. Answers which were returned.
    ///
    /// # Errors
    /// When the spool fails: what was returned before stays returned.
    pub async fn bounce(
        &self,
        ids: &[MessageId],
        filter: &QueueFilter,
        why: &str,
        by: &str,
    ) -> Result<Vec<MessageId>, QueueError> {
        let whom = Arc::new(Whom { domain: filter.domain.clone(), recipient: filter.recipient.clone() });
        let returned = each(ids, BOUNCES_AT_ONCE, |id| {
            let (shared, job, why) = (Arc::clone(self.shared()), self.book().take(id), why.to_owned());
            let whom = Arc::clone(&whom);
            async move {
                match job {
                    Some(job) => worker::bounce(&shared, &job, &whom, &why).await,
                    None => Ok(false),
                }
            }
        });
        let returned = returned.await?;
        for id in &returned {
            tracing::info!(message.id = %id, by, "letter returned by an administrator");
        }
        Ok(returned)
    }

    /// Removes these letters for good, without a report; `by` goes into their traces. Answers which.
    ///
    /// # Errors
    /// When the spool fails: what was removed before stays removed.
    pub async fn delete(&self, ids: &[MessageId], by: &str) -> Result<Vec<MessageId>, QueueError> {
        let deleted = each(ids, AT_ONCE, |id| self.spool().delete(id, now_ms(), by)).await?;
        {
            let mut book = self.book();
            for id in ids {
                book.remove(*id);
            }
        }
        metrics::counter!(super::FINISHED_TOTAL, "result" => "deleted").increment(deleted.len() as u64);
        Ok(deleted)
    }
}

/// Which recipients of a letter are meant.
pub(super) struct Whom {
    domain: Option<Domain>,
    recipient: Option<String>,
}

impl Whom {
    pub(super) fn means(&self, path: &ForwardPath) -> bool {
        self.domain.as_ref().is_none_or(|wanted| path.domain() == Some(wanted))
            && self.recipient.as_ref().is_none_or(|wanted| path.to_string().eq_ignore_ascii_case(wanted))
    }
}

/// Does `work` to every letter, `at_once` at a time. Answers those where it said that something was done.
async fn each<F>(ids: &[MessageId], at_once: usize, work: impl Fn(MessageId) -> F) -> Result<Vec<MessageId>, QueueError>
where
    F: Future<Output = Result<bool, SpoolError>>,
{
    let mut changed = Vec::new();
    for some in ids.chunks(at_once) {
        for (id, done) in some.iter().zip(join_all(some.iter().map(|id| work(*id))).await) {
            if done? {
                changed.push(*id);
            }
        }
    }
    Ok(changed)
}
