//! Letters leave here: a send connector becomes next hops, a next hop becomes a connection, a connection carries
//! letters. Knows nothing of the spool or the queue; it is given bytes and gives back one outcome per recipient.

mod attempt;
mod connect;
mod dns;
#[cfg(test)]
mod dns_stub;
#[cfg(test)]
mod dns_tests;
mod health;
mod own;
mod resolve;
#[cfg(test)]
mod smuggling_tests;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod trust;

use std::net::SocketAddr;
use std::sync::Arc;

pub use attempt::{
    BodySource, CONNECT_DEADLINE, Connection, DATA_BLOCK_DEADLINE, DATA_INITIATION_DEADLINE, DATA_TERMINATION_DEADLINE,
    Deadlines, EHLO_DEADLINE, GREETING_DEADLINE, MAIL_DEADLINE, QUIT_DEADLINE, RCPT_DEADLINE, Sent,
};
pub use connect::{CONNECTS_MAX, NoConnection, Probe};
pub use dns::{ADDRESSES_PER_HOST_MAX, Dns, DnsFailure, DnsSettings, LOOKUP_DEADLINE, MX_RECORDS_MAX, MailServers};
pub use health::{Health, PENALTY_FIRST, PENALTY_MAX, REMEMBERED_MAX};
pub use resolve::{NextHop, Unreachable, no_route};
pub use trust::Trust;

pub use crate::smtp::client::{Downgrade, Extensions, Outcome, Transaction};

use crate::connector::SendConnector;

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

/// The port of mail between servers (RFC 5321 §2.3.4): MX records name no other.
const MX_PORT: u16 = 25;

/// How mail servers that the DNS names are reached. Tests on one machine reach them on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MxRules {
    /// The port.
    pub port: u16,
    /// Whether the DNS may send letters to this machine.
    pub loopback_allowed: bool,
}

impl Default for MxRules {
    fn default() -> Self {
        Self { port: MX_PORT, loopback_allowed: false }
    }
}

/// Answers the hosts of the cluster's members and fronts.
pub type ClusterHosts = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Opens a route's sealed password. The error has no secret in it.
pub type OpenSecret = Arc<dyn Fn(&SendConnector) -> Result<String, String> + Send + Sync>;

/// What a node needs to deliver.
pub struct Outbound {
    /// The name for `EHLO` where the route has none.
    pub fqdn: String,
    /// The sockets on which this node takes mail: never dialled.
    pub own: Vec<SocketAddr>,
    /// Where else a letter would come back to us.
    pub cluster: ClusterHosts,
    /// Passwords for smart hosts.
    pub open_secret: OpenSecret,
    /// TLS as routes want it.
    pub trust: Trust,
    /// Whom to ask for names.
    pub dns: Dns,
    /// How mail servers are reached.
    pub mx: MxRules,
    /// Which next hops failed lately.
    pub health: Health,
    /// How long to wait.
    pub deadlines: Deadlines,
}
