//! What the cluster wants of this front itself: to drain, and which key to sign with. The newest revision wins,
//! whichever node says it.

use std::sync::{Arc, Mutex, PoisonError};

use posthouse_proto::v1::FrontView;
use tracing::{error, info};

use super::dial::Outward;
use crate::proxy_protocol::FrontKey;
use crate::shutdown::run_blocking;

/// Keeps a new signing key across restarts: id and secret, whole or not at all.
pub type KeepKey = Arc<dyn Fn(&FrontKey) -> std::io::Result<()> + Send + Sync>;

/// The orders.
pub(super) struct Orders {
    front: String,
    outward: Arc<Outward>,
    keep_key: KeepKey,
    newest: Mutex<Newest>,
}

#[derive(Default)]
struct Newest {
    revision: u64,
    is_draining: bool,
    /// The key that is being kept: a second view must not begin it again.
    adopting: Option<String>,
}

impl Orders {
    pub(super) fn new(front: String, outward: Arc<Outward>, keep_key: KeepKey) -> Self {
        Self { front, outward, keep_key, newest: Mutex::default() }
    }

    fn newest(&self) -> std::sync::MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id of the key that headers are signed with.
    pub(super) fn key_id(&self) -> String {
        self.outward.key_id()
    }

    /// Whether an administrator drains this front.
    pub(super) fn is_draining(&self) -> bool {
        self.newest().is_draining
    }

    /// Takes what a node said.
    pub(super) async fn take(&self, view: &FrontView) {
        let Some(key) = self.sift(view) else { return };
        let (kept, keep_key) = (key.clone(), Arc::clone(&self.keep_key));
        // First on disk, then in use: after a crash the nodes may have retired the old one.
        match run_blocking(move || keep_key(&kept)).await {
            Ok(()) => {
                info!(key.id = %key.id, "signing with a new key");
                self.outward.sign_with(key);
            }
            Err(error) => error!(%error, key.id = %key.id, "the new signing key cannot be kept: the old one stays"),
        }
        self.newest().adopting = None;
    }

    /// Remembers what is newer, and answers a key that has to be adopted.
    fn sift(&self, view: &FrontView) -> Option<FrontKey> {
        let mut newest = self.newest();
        if view.revision < newest.revision {
            return None;
        }
        newest.revision = view.revision;
        if newest.is_draining != view.front_draining {
            newest.is_draining = view.front_draining;
            info!(draining = view.front_draining, "an administrator changed this front's state");
        }
        let secret: [u8; 32] = view.signing_key.as_slice().try_into().ok()?;
        let id = &view.signing_key_id;
        let is_news = !id.is_empty() && *id != self.outward.key_id() && newest.adopting.as_ref() != Some(id);
        is_news.then(|| {
            newest.adopting = Some(id.clone());
            FrontKey { id: id.clone(), front: self.front.clone(), key: secret }
        })
    }
}
