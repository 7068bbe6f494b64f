//! What a front says of itself: for `/readyz`, for people, and for whoever holds the VIP.

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
    /// It is stopping: nothing new is accepted.
    pub draining: bool,
    /// Devices that are connected now.
    pub sessions: usize,
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
    /// The lines of `/readyz?verbose`, in the manner of Kubernetes.
    #[must_use]
    pub fn verbose(&self) -> String {
        let mut text = String::new();
        for backend in &self.backends {
            let sign = if backend.eligible { '+' } else { '!' };
            let up = if backend.up { "up" } else { "down" };
            text.push_str(&format!("[{sign}]backend/{} {up}, {}", backend.name, backend.state));
            if !backend.reason.is_empty() {
                text.push_str(&format!(", not ready: {}", backend.reason));
            }
            if backend.failures > 0 {
                text.push_str(&format!(", {} failures, last: {}", backend.failures, backend.last_failure));
            }
            text.push('\n');
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
    let mut ports: Vec<u16> = listeners.iter().map(|listener| listener.service_port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports.retain(|port| !backends.iter().any(|backend| backend.eligible && backend.services.contains(port)));
    ports.iter().map(|port| format!("service {port}: no backend is up and ready")).collect()
}
