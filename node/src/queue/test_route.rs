//! What would become of a letter on a route, without one: for `route test`.

use super::QueueHandle;
use crate::connector::SendConnector;
use crate::mail::Domain;
use crate::outbound::Probe;

/// What a test found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TestedRoute {
    /// Whether some next hop would be tried (or, when asked to connect, took us).
    pub deliverable: bool,
    /// In words.
    pub verdict: String,
    /// Whom we greeted, and how; empty when nobody was.
    pub connected: String,
    /// The next hops.
    pub probe: Probe,
}

impl QueueHandle {
    /// Finds the next hops of `route` for `domain`; with `connect` also greets the first that takes us.
    pub async fn test_route(&self, route: &SendConnector, domain: &Domain, connect: bool) -> TestedRoute {
        let outbound = self.outbound();
        let destination = route.mx.then_some(domain);
        let probe = outbound.probe(route, destination).await;
        let mut tested = TestedRoute { deliverable: !probe.hops.is_empty(), ..TestedRoute::default() };
        tested.verdict = match (probe.hops.first(), probe.unusable.first()) {
            (Some((hop, ..)), _) => format!("would be sent to {} via route \"{}\"", hop.label(), route.name),
            (None, _) if !probe.unusable.is_empty() && probe.unusable.iter().all(|one| one.lasting) => {
                let why = probe.unusable.iter().map(|one| one.reply.to_string()).collect::<Vec<_>>();
                format!("would be returned to its sender at once: {}", why.join("; "))
            }
            (None, Some(first)) => format!("would wait: {}", first.reply),
            (None, None) => format!("would wait: route \"{}\" has no next hop", route.name),
        };
        if connect && tested.deliverable {
            match outbound.connect(route, destination).await {
                Ok(connection) => {
                    let how = if connection.is_secure() { "with TLS" } else { "in clear text" };
                    tested.connected = format!("{} {how}", connection.next_hop());
                    connection.quit().await;
                }
                Err(none) => {
                    tested.deliverable = false;
                    tested.verdict = format!("would wait: {}", none.reply);
                }
            }
        }
        tested.probe = probe;
        tested
    }
}
