//! The only place where rooms are joined to each other: a node and a front, from their files to their last breath.

mod bootstrap;
mod certificates;
mod delivery;
mod front;
mod node;
mod pressure;

use std::path::PathBuf;

pub use front::run_front;
pub use node::run_node;

/// Why a node or front cannot run. Ours or the administrator's; nothing has been promised to anybody yet.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A socket cannot be bound.
    #[error("cannot bind {what} {address}: {source}")]
    Bind {
        /// Which socket.
        what: &'static str,
        /// Where.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The data directory cannot be used.
    #[error("data directory {path}: {source}", path = path.display())]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Who this machine is cannot be read.
    #[error(transparent)]
    Identity(#[from] crate::pki::IdentityError),
    /// A certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// The Raft store cannot be opened.
    #[error(transparent)]
    Raft(#[from] crate::raft::RaftError),
    /// The spool cannot be opened.
    #[error(transparent)]
    Spool(#[from] crate::spool::SpoolError),
    /// The first entry of the log was not agreed to.
    #[error("cluster init: {0}")]
    Init(String),
    /// This node's name cannot be used towards next hops.
    #[error("node.fqdn \"{fqdn}\": {source}")]
    Fqdn {
        /// The name.
        fqdn: String,
        /// Why.
        source: crate::mail::AddressError,
    },
    /// The resolver cannot be made.
    #[error("dns: {why}")]
    Dns {
        /// Why.
        why: String,
    },
    /// The proxy cannot start.
    #[error(transparent)]
    Front(#[from] crate::front::FrontError),
    /// There is no front to take over from.
    #[error(transparent)]
    Handover(#[from] crate::front::HandoverError),
}

impl crate::raft::Dial for crate::tls::Dialer {
    fn channel(&self, address: &str, node: &str) -> tonic::transport::Channel {
        Self::channel(self, address, node)
    }
}

impl crate::front::Dial for crate::tls::Dialer {
    fn channel(&self, address: &str, node: &str) -> tonic::transport::Channel {
        Self::channel(self, address, node)
    }
}
