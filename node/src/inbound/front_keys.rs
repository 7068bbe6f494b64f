//! The keys under which our fronts sign, opened once per change of the fronts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::pki::{DataKey, front_key_context};
use crate::proxy_protocol::FrontKey;
use crate::state::{FrontMember, Objects, StateView};

/// Keys by their id.
pub(super) type Keys = Arc<BTreeMap<String, FrontKey>>;

/// The keys of the newest state.
pub(super) struct FrontKeys {
    data_key: DataKey,
    opened: Mutex<Option<(Objects<String, FrontMember>, Keys)>>,
}

impl FrontKeys {
    pub(super) fn new(data_key: DataKey) -> Self {
        Self { data_key, opened: Mutex::new(None) }
    }

    /// The keys that `view` knows.
    pub(super) fn of(&self, view: &StateView) -> Keys {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((fronts, keys)) = &*opened
            && Arc::ptr_eq(fronts, &view.state.fronts)
        {
            return Arc::clone(keys);
        }
        let mut keys = BTreeMap::new();
        for (name, front) in &*view.state.fronts {
            for key in &front.value.keys {
                let context = front_key_context(name, &key.id);
                let secret = self.data_key.open(&context, &key.sealed_key).ok().and_then(|s| s.try_into().ok());
                match secret {
                    Some(secret) => {
                        keys.insert(key.id.clone(), FrontKey { id: key.id.clone(), front: name.clone(), key: secret });
                    }
                    None => tracing::error!(front = %name, key.id = %key.id, "a front's signing key cannot be opened"),
                }
            }
        }
        let keys = Arc::new(keys);
        *opened = Some((Arc::clone(&view.state.fronts), Arc::clone(&keys)));
        keys
    }
}

/// Whether one of our fronts dials from `address`.
pub(super) fn is_front_address(view: &StateView, address: IpAddr) -> bool {
    view.state.fronts.values().any(|front| front.value.source_addresses.contains(&address))
}
