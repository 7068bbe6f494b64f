//! The administrator's side of a node: gRPC services, conversions between wire and domain, and the HTTP pages for
//! monitoring. It decides nothing about mail and nothing that the agreed state decides; it asks, proposes and shows.

mod allowlist;
mod cluster;
mod convert;
mod credential;
mod dialogue;
mod explain;
mod front_link;
mod fronts;
mod history;
pub mod http;
mod join;
mod local;
mod problem;
mod queue;
mod queue_view;
mod route;
mod rpc;
mod service;
mod sessions;
mod tls;
mod tracking;
mod usage;

pub use front_link::{FrontLinkService, PushedReadiness, ReadinessWatch};
pub use fronts::FrontReports;
pub use join::JoinService;
pub use local::{Lifecycle, LocalService};
pub use rpc::{bind_local, peer, serve_local, serve_tls};
pub use service::{AdminService, Context, ContextSlot};

/// Makes the status of a failed call from a problem's parts: exit code, stable code, what, why, how to fix.
#[must_use]
pub fn failure(exit_code: u32, code: &str, message: impl ToString, cause: impl ToString, fix: &str) -> tonic::Status {
    problem::status(problem::problem(exit_code, code, message, cause, fix))
}
