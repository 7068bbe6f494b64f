//! Finding a next hop that takes us: group by group, host by host, address by address, passing over what failed lately.
//! Everything that was wrong on the way is remembered for the sender.

use base64::Engine;
use tokio::time::Instant;

use super::attempt::{Connection, Dialling, OpenError};
use super::health::Verdict;
use super::resolve::{self, NextHop, Unreachable};
use super::{CONNECTIONS_TOTAL, Outbound};
use crate::connector::{SendConnector, SendTls};
use crate::mail::{Domain, Reply};
use crate::smtp::client::{ClientAuth, TlsUse};

/// How many addresses are dialled in one attempt (RFC 5321 §5.1: at least two should be); the others have their turn
/// in the next, since those that failed are passed over then.
pub const CONNECTS_MAX: usize = 5;

/// No next hop of a route could be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoConnection {
    /// The next hops that were tried, named for the trace.
    pub next_hop: String,
    /// What was wrong with each, in one reply; permanent when the DNS says so for certain.
    pub reply: Reply,
}

/// What a route would do with a letter, without one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// The next hops, in the order of trying, each with its MX preference and whether it is passed over now.
    pub hops: Vec<(NextHop, Option<u16>, bool)>,
    /// What cannot be used, and why.
    pub unusable: Vec<Unreachable>,
}

impl Outbound {
    /// Connects to the first next hop of `route` that can be used. `destination` is the recipient domain, for routes by
    /// MX.
    ///
    /// # Errors
    /// When none can. The reply is permanent only where the DNS says for certain that there is nobody to take it.
    ///
    /// # Cancel safety
    /// Cancel safe: a connection that is not ready is dropped.
    pub async fn connect(
        &self,
        route: &SendConnector,
        destination: Option<&Domain>,
    ) -> Result<Connection, NoConnection> {
        let mut tried = Vec::new();
        let groups = self.groups(route, destination).await.unwrap_or_else(|unusable| {
            tried.push(unusable);
            Vec::new()
        });
        let mut dialled = 0;
        'groups: for group in groups {
            let mut hops = Vec::new();
            for (host, port) in &group.hosts {
                match self.addresses(route, host, *port).await {
                    Ok((found, unusable)) => {
                        hops.extend(found);
                        tried.extend(unusable);
                    }
                    // RFC 5321 §5.1: whoever finds itself among the servers drops itself and all that are no better.
                    Err(us) if route.mx => {
                        tried.push(us);
                        break 'groups;
                    }
                    Err(us) => tried.push(us),
                }
            }
            for hop in hops {
                if let Verdict::PassOver(reply) = self.health.judge(hop.addr, Instant::now()) {
                    tried.push(Unreachable { label: hop.label(), reply, lasting: false });
                    continue;
                }
                if dialled == CONNECTS_MAX {
                    break 'groups;
                }
                dialled += 1;
                match self.open(route, &hop).await {
                    Ok(connection) => {
                        self.health.succeeded(hop.addr);
                        metrics::counter!(CONNECTIONS_TOTAL).increment(1);
                        return Ok(connection);
                    }
                    Err(reply) => {
                        self.health.failed(hop.addr, &reply, Instant::now());
                        tracing::debug!(next_hop = hop.label(), %reply, "next hop cannot be used");
                        tried.push(Unreachable { label: hop.label(), reply, lasting: false });
                    }
                }
            }
        }
        let next_hop = tried.iter().map(|one| one.label.as_str()).collect::<Vec<_>>().join(", ");
        Err(NoConnection { next_hop, reply: resolve::none_usable(route, &tried) })
    }

    /// Says where a letter would go, without connecting.
    pub async fn probe(&self, route: &SendConnector, destination: Option<&Domain>) -> Probe {
        let mut probe = Probe::default();
        let groups = match self.groups(route, destination).await {
            Ok(groups) => groups,
            Err(unusable) => {
                probe.unusable.push(unusable);
                return probe;
            }
        };
        'groups: for group in groups {
            let mut hops = Vec::new();
            for (host, port) in &group.hosts {
                match self.addresses(route, host, *port).await {
                    Ok((found, unusable)) => {
                        hops.extend(found);
                        probe.unusable.extend(unusable);
                    }
                    Err(us) => {
                        probe.unusable.push(us);
                        if route.mx {
                            break 'groups;
                        }
                    }
                }
            }
            probe.hops.extend(hops.into_iter().map(|hop| {
                let passed_over = self.health.is_passed_over(hop.addr, Instant::now());
                (hop, group.preference, passed_over)
            }));
        }
        probe
    }

    async fn open(&self, route: &SendConnector, hop: &NextHop) -> Result<Connection, Reply> {
        let dialling = |tls| self.dialling(route, hop, tls);
        let tls = match route.tls {
            SendTls::Off => TlsUse::Off,
            SendTls::Opportunistic => TlsUse::Opportunistic,
            SendTls::Required | SendTls::Verified => TlsUse::Required,
        };
        match Connection::open(hop, dialling(tls)?, self.deadlines).await {
            Ok(connection) => Ok(connection),
            // RFC 7435 §3: where TLS is only hoped for, clear text is better than nothing; on a new connection, since
            // the old one is in an unknown state.
            Err(OpenError::Handshake(reply)) if tls == TlsUse::Opportunistic => {
                tracing::debug!(next_hop = hop.label(), %reply, "falling back to clear text");
                match Connection::open(hop, dialling(TlsUse::Off)?, self.deadlines).await {
                    Ok(connection) => Ok(connection),
                    Err(OpenError::Handshake(reply) | OpenError::Other(reply)) => Err(reply),
                }
            }
            Err(OpenError::Handshake(reply) | OpenError::Other(reply)) => Err(reply),
        }
    }

    fn dialling(&self, route: &SendConnector, hop: &NextHop, tls: TlsUse) -> Result<Dialling, Reply> {
        let config = match route.tls {
            SendTls::Verified => self.trust.verified(route).map_err(|why| ours(7, 5, why))?,
            SendTls::Off | SendTls::Opportunistic | SendTls::Required => self.trust.anybody(),
        };
        let auth = match &route.auth {
            None => None,
            Some(auth) => {
                let password = (self.open_secret)(route).map_err(|why| ours(7, 0, why))?;
                let nonce = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 18]>());
                Some(ClientAuth { user: auth.user.clone(), password, nonce })
            }
        };
        Ok(Dialling {
            auth,
            helo: route.fqdn.clone().unwrap_or_else(|| self.fqdn.clone()),
            source: route.source_for(hop.addr.ip()),
            tls,
            config,
        })
    }
}

fn ours(subject: u16, detail: u16, text: String) -> Reply {
    Reply::new(451, Some(crate::mail::EnhancedCode::new(4, subject, detail)), text)
}
