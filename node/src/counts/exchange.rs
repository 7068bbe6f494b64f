//! Telling the other members and hearing them. One task per member, so that a slow one delays nobody else.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{counter, gauge};
use posthouse_proto::v1 as pb;
use posthouse_proto::v1::counts_client::CountsClient;
use posthouse_proto::v1::counts_server::{Counts as CountsRpc, CountsServer};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::{Request, Response, Status};

use super::wire::{ENTRIES_MAX, from_wire, to_wire};
use super::{Counts, EXCHANGES, KEYS};
use crate::connector::{CountKey, CountValue, Window};
use crate::pki::{PeerIdentity, PeerInfo};
use crate::shutdown::Scope;
use crate::state::StateView;
use crate::tls::Dialer;

/// Between two reports to one member.
const INTERVAL: Duration = Duration::from_millis(200);
/// How long a member may take to hear one.
const DEADLINE: Duration = Duration::from_secs(1);
/// A report with nothing in it says that we are alive; that often is enough.
const ALIVE_INTERVAL: Duration = Duration::from_millis(800);
/// Between two looks for what no longer counts.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Starts telling: a task for each other member of the state, as members come and go.
pub fn start(counts: &Counts, views: watch::Receiver<Arc<StateView>>, dialer: Dialer, node_id: u64, scope: &Scope) {
    super::describe_metrics();
    let (counts, tasks) = (counts.clone(), scope.clone());
    let sweeping = counts.clone();
    scope.spawn_until_ended(async move {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            let now_ms = sweeping.now_ms();
            let mut table = sweeping.lock();
            table.sweep(now_ms);
            #[expect(clippy::cast_precision_loss, reason = "a gauge of at most some hundred thousand")]
            gauge!(KEYS).set(table.len() as f64);
        }
    });
    scope.spawn_until_ended(async move {
        let mut views = views;
        let talking: Arc<Mutex<BTreeSet<u64>>> = Arc::default();
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            for (id, _) in view.state.members.iter().filter(|(id, _)| **id != node_id) {
                if talking.lock().unwrap_or_else(PoisonError::into_inner).insert(*id) {
                    let (counts, views, dialer) = (counts.clone(), views.clone(), dialer.clone());
                    let (id, talking) = (*id, Arc::clone(&talking));
                    tasks.spawn_until_ended(async move {
                        talk(&counts, views, &dialer, id).await;
                        talking.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                    });
                }
            }
            if views.changed().await.is_err() {
                return;
            }
        }
    });
}

/// Tells one member until it is none any more.
async fn talk(counts: &Counts, views: watch::Receiver<Arc<StateView>>, dialer: &Dialer, id: u64) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Up to which version it has been told; nothing yet, or nothing for certain.
    let mut told: Option<u64> = None;
    let mut their_epoch = 0;
    let mut last_told = Instant::now();
    loop {
        ticks.tick().await;
        let address = views
            .borrow()
            .state
            .members
            .get(&id)
            .map(|found| (found.value.rpc_address.clone(), found.value.name.clone()));
        let Some((address, name)) = address else { return };
        let now_ms = counts.now_ms();
        let report = counts.lock().report(told.unwrap_or(0), ENTRIES_MAX, now_ms);
        if report.entries.is_empty() && told.is_some() && last_told.elapsed() < ALIVE_INTERVAL {
            continue;
        }
        let entries = report.entries.iter().map(|(key, value)| to_wire(key, *value, now_ms)).collect();
        let message = pb::CountsReport { epoch: counts.shared.epoch, first: told.is_none(), entries };
        let mut client = CountsClient::new(dialer.channel(&address, &name));
        match tokio::time::timeout(DEADLINE, client.tell(Request::new(message))).await {
            Ok(Ok(reply)) => {
                let reply = reply.into_inner();
                counter!(EXCHANGES, "result" => "ok").increment(1);
                let now_ms = counts.now_ms();
                let earlier = reply.earlier.into_iter().filter_map(|entry| letters(entry, now_ms)).take(ENTRIES_MAX);
                let earlier: Vec<_> = earlier.collect();
                counts.lock().recall(earlier, now_ms);
                // A process that has begun anew knows nothing of what was told to the one before it.
                let same = their_epoch == 0 || their_epoch == reply.epoch;
                told = same.then_some(report.version);
                their_epoch = reply.epoch;
                last_told = Instant::now();
            }
            Ok(Err(_)) | Err(_) => {
                counter!(EXCHANGES, "result" => "failed").increment(1);
                told = None;
            }
        }
    }
}

fn letters(entry: pb::CountEntry, now_ms: u64) -> Option<(CountKey, Window)> {
    match from_wire(entry, now_ms) {
        Ok((key, CountValue::Letters(window))) => Some((key, window)),
        Ok((_, CountValue::Open(_))) | Err(_) => None,
    }
}

/// Hears the other members.
pub struct CountsService {
    counts: Counts,
    views: watch::Receiver<Arc<StateView>>,
}

impl CountsService {
    /// The service to mount beside the others on the cluster port.
    #[must_use]
    pub fn server(counts: &Counts, views: watch::Receiver<Arc<StateView>>) -> CountsServer<Self> {
        CountsServer::new(Self { counts: counts.clone(), views })
    }

    /// The name of the member that calls; nobody else has a say in what is counted.
    fn admit<T>(&self, request: &Request<T>) -> Result<String, Status> {
        match request.extensions().get::<PeerInfo>().map(|info| &info.identity) {
            Some(PeerIdentity::Node { name }) if self.views.borrow().state.member_named(name).is_some() => {
                Ok(name.clone())
            }
            Some(_) | None => Err(Status::permission_denied("only members may call this")),
        }
    }
}

#[tonic::async_trait]
impl CountsRpc for CountsService {
    async fn tell(&self, request: Request<pb::CountsReport>) -> Result<Response<pb::CountsReply>, Status> {
        let name = self.admit(&request)?;
        let pb::CountsReport { epoch, first, entries } = request.into_inner();
        if entries.len() > ENTRIES_MAX {
            return Err(Status::invalid_argument("too many entries"));
        }
        let now_ms = self.counts.now_ms();
        // What a newer member counts and we do not know is not ours to refuse.
        let entries = entries.into_iter().filter_map(|entry| from_wire(entry, now_ms).ok()).collect();
        let earlier = self.counts.lock().hear(&name, epoch, first, entries, ENTRIES_MAX, now_ms);
        let earlier = earlier.iter().map(|(key, window)| to_wire(key, CountValue::Letters(*window), now_ms)).collect();
        Ok(Response::new(pb::CountsReply { epoch: self.counts.shared.epoch, earlier }))
    }
}
