//! What a spool needs now and then: old traces removed, and the space of delivered letters given back. RocksDB does the
//! latter only when something makes it compact: the tombstones of delivered letters are too small to.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rocksdb::{CompactOptions, IteratorMode, WriteBatch};

use super::store::{BODY, ID_BYTES, META, Store, TRACE, id_of, key};
use super::trace::TraceLimits;
use super::{MessageId, SpoolError};
use crate::shutdown::run_blocking;

/// Between two rounds of upkeep.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);
/// Compaction is worth its reading and writing when this much was removed, and as much as is still there.
const COMPACT_BYTES_MIN: u64 = 256 * 1024 * 1024;

/// Runs upkeep until dropped, or until nobody else has the spool open.
pub(super) async fn run(store: Weak<Store>, limits: TraceLimits) {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        let Some(store) = store.upgrade() else { return };
        run_blocking(move || {
            if store.failing().is_some() {
                return;
            }
            if let Err(error) = prune_trace(&store, crate::clock::now_ms(), limits) {
                tracing::warn!(%error, "old traces were not removed");
            }
            if let Err(error) = compact(&store, COMPACT_BYTES_MIN) {
                tracing::warn!(%error, "space was not given back");
            }
        })
        .await;
    }
}

/// Forgets letters whose traces are too old, and the oldest as long as all together are too large.
pub(super) fn prune_trace(store: &Store, now_ms: i64, limits: TraceLimits) -> Result<(), SpoolError> {
    let trace = store.family(TRACE)?;
    let age_ms = i64::try_from(limits.age.as_millis()).unwrap_or(i64::MAX);
    let too_old = MessageId::first_at(now_ms.saturating_sub(age_ms));
    let excess = store.counters.traced_bytes.load(Ordering::Relaxed).saturating_sub(limits.bytes);
    let (mut removed, mut removed_bytes) = (0, 0);
    let mut keep_from = None;
    for item in store.db.iterator_cf(&trace, IteratorMode::Start) {
        let (stored, value) = item.map_err(|error| SpoolError::Io(error.to_string()))?;
        let Some(id) = id_of(&stored) else { break };
        // The steps of the last removed letter follow its head under the same id.
        let belongs = keep_from.is_some_and(|next| id < next);
        if id >= too_old && removed_bytes >= excess && !belongs {
            break;
        }
        removed_bytes += traced_bytes(&stored, &value);
        if stored.len() == ID_BYTES {
            removed += 1;
        }
        keep_from = Some(MessageId(id.0.saturating_add(1)));
    }
    let Some(keep_from) = keep_from else { return Ok(()) };
    let mut batch = WriteBatch::default();
    batch.delete_range_cf(&trace, key(MessageId(0)), key(keep_from));
    store.write(batch, false)?;
    // Soon after start what is removed may not have been counted.
    for (counter, removed) in [(&store.counters.traced, removed), (&store.counters.traced_bytes, removed_bytes)] {
        let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| Some(all.saturating_sub(removed)));
    }
    Ok(())
}

/// What one entry of the trace counts.
pub(super) fn traced_bytes(stored: &[u8], value: &[u8]) -> u64 {
    (stored.len() + value.len()) as u64
}

/// Compacts bodies and records when more was removed since the last time than is still there.
pub(super) fn compact(store: &Store, bytes_min: u64) -> Result<(), SpoolError> {
    let drained = store.counters.drained.load(Ordering::Relaxed);
    if drained < bytes_min.max(store.counters.bytes.load(Ordering::Relaxed)) {
        return Ok(());
    }
    store.counters.drained.fetch_sub(drained, Ordering::Relaxed);
    let mut options = CompactOptions::default();
    // Others may compact meanwhile: a commit must never wait for this.
    options.set_exclusive_manual_compaction(false);
    for family in [BODY, META] {
        store.db.compact_range_cf_opt(&store.family(family)?, None::<&[u8]>, None::<&[u8]>, &options);
    }
    Ok(())
}
