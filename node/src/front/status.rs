//! What a front says of itself: for `/readyz`, for people, and for whoever holds the VIP.

use std::collections::BTreeSet;

use posthouse_proto::v1;
use serde::Serialize;

/// A front and its backends at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct FrontStatus {
    /// The front's name.
    pub name: String,
    /// Whether the VIP should be here: every service has a backend in rotation, and nothing is stopping.
    pub ready: bool,
    /// Why not.
    pub reasons: Vec<String>,
    /// What is wrong and no reason to send devices elsewhere.
    pub warnings: Vec<String>,
    /// It is stopping, or an administrator drains it: the VIP should go elsewhere. What arrives is served all the same.
    pub draining: bool,
    /// Devices that are connected now.
    pub sessions: usize,
    /// The key that it signs with.
    pub signing_key_id: String,
    /// The revision of the cluster's state that the backends were read from.
    pub revision: u64,
    /// Where devices connect.
    pub listeners: Vec<ListenerStatus>,
    /// Every backend, by name.
    pub backends: Vec<BackendStatus>,
}

/// One socket for devices.
#[derive(Clone, Debug, Serialize)]
pub struct ListenerStatus {
    /// Where it is bound.
    pub address: String,
    /// 25, 587 or 465.
    pub service_port: u16,
}

/// One backend.
#[derive(Clone, Debug, Serialize)]
pub struct BackendStatus {
    /// The node's name.
    pub name: String,
    /// What the cluster wants: `active` or `draining`.
    pub state: &'static str,
    /// Whether it passes its checks.
    pub up: bool,
    /// Whether it takes new connections.
    pub eligible: bool,
    /// Its share beside the others'.
    pub weight: u32,
    /// What it gets now, in hundredths of a weight: less than its share during its slow start.
    pub effective_weight_percent: u32,
    /// What the node says of itself; nothing without a stream.
    pub ready: Option<bool>,
    /// Why the node says it is not ready.
    pub reason: String,
    /// Whether the node hears a leader.
    pub has_leader: Option<bool>,
    /// Sessions through this front.
    pub sessions: usize,
    /// Failures in a row.
    pub failures: u32,
    /// What went wrong last, even if it is long ago.
    pub last_failure: String,
    /// The services it has.
    pub services: Vec<u16>,
}

impl FrontStatus {
    /// The same, for the nodes.
    #[must_use]
    pub fn report(&self) -> v1::FrontReport {
        let backends = self.backends.iter().map(|backend| v1::FrontBackendStatus {
            node: backend.name.clone(),
            state: backend.state.to_owned(),
            up: backend.up,
            eligible: backend.eligible,
            readiness: match backend.ready {
                None => "unknown",
                Some(true) if backend.has_leader == Some(false) => "no leader",
                Some(true) => "ready",
                Some(false) => "not ready",
            }
            .to_owned(),
            reason: backend.reason.clone(),
            sessions: backend.sessions as u64,
            weight: backend.weight,
            effective_weight_percent: backend.effective_weight_percent,
            failures: backend.failures,
            last_failure: backend.last_failure.clone(),
            services: backend.services.iter().map(|port| u32::from(*port)).collect(),
        });
        let listeners = self.listeners.iter().map(|listener| v1::FrontListener {
            address: listener.address.clone(),
            service_port: u32::from(listener.service_port),
        });
        v1::FrontReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: self.ready,
            reasons: self.reasons.clone(),
            draining: self.draining,
            sessions: self.sessions as u64,
            revision: self.revision,
            signing_key_id: self.signing_key_id.clone(),
            listeners: listeners.collect(),
            backends: backends.collect(),
        }
    }

    /// The lines of `/readyz?verbose`, in the manner of Kubernetes.
    #[must_use]
    pub fn verbose(&self) -> String {
        let mut text = String::new();
        for backend in &self.backends {
            let sign = if backend.eligible { '+' } else { '!' };
            let up = if backend.up { "up" } else { "down" };
            text.push_str(&format!("[{sign}]backend/{} {up}, {}", backend.name, backend.state));
            if !backend.reason.is_empty() {
                let not_ready = if backend.ready == Some(false) { "not ready: " } else { "" };
                text.push_str(&format!(", {not_ready}{}", backend.reason));
            }
            if backend.failures > 0 {
                text.push_str(&format!(", {} failures, last: {}", backend.failures, backend.last_failure));
            }
            text.push('\n');
        }
        for warning in &self.warnings {
            text.push_str(&format!("[!]{warning}\n"));
        }
        for reason in &self.reasons {
            text.push_str(&format!("[-]{reason}\n"));
        }
        text.push_str(if self.ready { "readyz check passed\n" } else { "readyz check failed\n" });
        text
    }
}

/// Names the services that no backend in rotation has.
pub(super) fn unserved(listeners: &[ListenerStatus], backends: &[BackendStatus]) -> Vec<String> {
    let unserved = ports(listeners).filter(|port| in_rotation(backends, *port).next().is_none());
    unserved.map(|port| format!("service {port}: no backend is up and ready")).collect()
}

/// Names the services of which every backend in rotation may act on old state.
pub(super) fn stale(listeners: &[ListenerStatus], backends: &[BackendStatus]) -> Vec<String> {
    let stale = ports(listeners).filter_map(|port| {
        // Whoever hears a leader is more than one that does not, and that one more than one that says nothing.
        match in_rotation(backends, port).map(|backend| backend.has_leader).max()? {
            Some(true) => None,
            Some(false) => Some(format!("service {port}: no backend hears a leader, their state may be old")),
            None => Some(format!("service {port}: no backend's stream is there, their state may be old")),
        }
    });
    stale.collect()
}

fn ports(listeners: &[ListenerStatus]) -> impl Iterator<Item = u16> {
    listeners.iter().map(|listener| listener.service_port).collect::<BTreeSet<_>>().into_iter()
}

/// Those in rotation that have a service.
fn in_rotation(backends: &[BackendStatus], port: u16) -> impl Iterator<Item = &BackendStatus> {
    backends.iter().filter(move |backend| backend.eligible && backend.services.contains(&port))
}
