//! Letters leave here: a send connector becomes next hops, a next hop becomes a connection, a connection carries
//! letters. Knows nothing of the spool or the queue; it is given bytes and gives back one outcome per recipient.

mod attempt;
mod resolve;
mod stream;
#[cfg(test)]
pub(crate) mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;

pub use attempt::{
    BodySource, CONNECT_DEADLINE, Connection, DATA_BLOCK_DEADLINE, DATA_INITIATION_DEADLINE, DATA_TERMINATION_DEADLINE,
    Deadlines, EHLO_DEADLINE, GREETING_DEADLINE, MAIL_DEADLINE, QUIT_DEADLINE, RCPT_DEADLINE, Sent,
};
pub use resolve::{NextHop, no_route};

pub use crate::smtp::client::{Outcome, Transaction};

use crate::connector::{SendConnector, SendTls};
use crate::mail::Reply;
use crate::smtp::client::TlsUse;
use attempt::{OpenError, TlsParts};
use resolve::Unreachable;

/// Attempts, by `outcome`: delivered, deferred, failed, and unreachable where no next hop could be used.
pub const ATTEMPTS_TOTAL: &str = "posthouse_outbound_attempts_total";
/// Connections to next hops that came to be.
pub const CONNECTIONS_TOTAL: &str = "posthouse_outbound_connections_total";
/// The values of the `outcome` label.
pub const ATTEMPT_OUTCOMES: [&str; 4] = ["delivered", "deferred", "failed", "unreachable"];

/// Describes the metrics of this room and registers them at zero.
pub fn describe_metrics() {
    metrics::describe_counter!(ATTEMPTS_TOTAL, "Attempts to deliver a recipient, by outcome.");
    metrics::describe_counter!(CONNECTIONS_TOTAL, "Connections to next hops that came to be.");
    for outcome in ATTEMPT_OUTCOMES {
        metrics::counter!(ATTEMPTS_TOTAL, "outcome" => outcome).absolute(0);
    }
    metrics::counter!(CONNECTIONS_TOTAL).absolute(0);
}

/// What a node needs to deliver.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// The name for `EHLO` where the route has none.
    pub fqdn: String,
    /// The sockets on which this node takes mail: never dialled.
    pub own: Vec<SocketAddr>,
    /// TLS that verifies nothing.
    pub opportunistic: Arc<ClientConfig>,
    /// TLS that verifies the next hop's name.
    pub verified: Arc<ClientConfig>,
    /// How long to wait.
    pub deadlines: Deadlines,
}

/// No next hop of a route could be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoConnection {
    /// The next hops that were tried, named for the trace.
    pub next_hop: String,
    /// What was wrong with each, in one reply.
    pub reply: Reply,
}

impl Outbound {
    /// Connects to the first next hop of `route` that can be used.
    ///
    /// # Errors
    /// When none can; always to be tried again.
    ///
    /// # Cancel safety
    /// Cancel safe: a connection that is not ready is dropped.
    pub async fn connect(&self, route: &SendConnector) -> Result<Connection, NoConnection> {
        let mut tried = Vec::new();
        for host in &route.smart_hosts {
            let hops = match resolve::lookup(host, &self.own).await {
                Ok(hops) => hops,
                Err(unreachable) => {
                    tried.push(unreachable);
                    continue;
                }
            };
            for hop in hops {
                match self.open(route, &hop).await {
                    Ok(connection) => {
                        metrics::counter!(CONNECTIONS_TOTAL).increment(1);
                        return Ok(connection);
                    }
                    Err(reply) => {
                        tracing::debug!(next_hop = hop.label(), %reply, "next hop cannot be used");
                        tried.push(Unreachable { label: hop.label(), reply });
                    }
                }
            }
        }
        let next_hop = tried.iter().map(|one| one.label.as_str()).collect::<Vec<_>>().join(", ");
        Err(NoConnection { next_hop, reply: resolve::none_usable(route, &tried) })
    }

    async fn open(&self, route: &SendConnector, hop: &NextHop) -> Result<Connection, Reply> {
        let helo = route.fqdn.as_deref().unwrap_or(&self.fqdn);
        let (tls, config) = match route.tls {
            SendTls::Off => (TlsUse::Off, &self.opportunistic),
            SendTls::Opportunistic => (TlsUse::Opportunistic, &self.opportunistic),
            SendTls::Required => (TlsUse::Required, &self.verified),
        };
        let parts = |tls| TlsParts { tls, config: Arc::clone(config) };
        match Connection::open(hop, helo, parts(tls), self.deadlines).await {
            Ok(connection) => Ok(connection),
            // RFC 7435 §3: where TLS is only hoped for, clear text is better than nothing; on a new connection, since
            // the old one is in an unknown state.
            Err(OpenError::Handshake(reply)) if tls == TlsUse::Opportunistic => {
                tracing::debug!(next_hop = hop.label(), %reply, "falling back to clear text");
                match Connection::open(hop, helo, parts(TlsUse::Off), self.deadlines).await {
                    Ok(connection) => Ok(connection),
                    Err(OpenError::Handshake(reply) | OpenError::Other(reply)) => Err(reply),
                }
            }
            Err(OpenError::Handshake(reply) | OpenError::Other(reply)) => Err(reply),
        }
    }
}
