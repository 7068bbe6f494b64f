//! Joins the way out: what `outbound` needs of the state, the keys and the node file.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::sync::watch;

use super::AppError;
use crate::config::NodeConfig;
use crate::outbound::{Deadlines, Dns, DnsSettings, Health, MxRules, Outbound, Trust};
use crate::pki::{DataKey, Identity, route_password_context};
use crate::state::{SealedSecret, StateView};
use crate::tls;

/// Makes the way out of a node that takes mail on `own`.
pub(super) fn outbound(
    config: &NodeConfig,
    identity: &Identity,
    fqdn: String,
    own: Vec<SocketAddr>,
    view: watch::Receiver<Arc<StateView>>,
    data_key: DataKey,
) -> Result<Outbound, AppError> {
    let open_secret = Arc::new(move |route: &crate::connector::SendConnector| {
        let Some(auth) = &route.auth else { return Err(format!("route {} has no credential", route.name)) };
        let sealed = SealedSecret(auth.sealed_password.clone());
        let opened = data_key.open(&route_password_context(&route.name), &sealed);
        let opened = opened.map_err(|error| format!("the password of route {}: {error}", route.name))?;
        String::from_utf8(opened).map_err(|_| format!("the password of route {} is not text", route.name))
    });
    Ok(Outbound {
        fqdn,
        own,
        cluster: Arc::new(move || cluster_hosts(&view.borrow())),
        open_secret,
        trust: Trust::new(tls::opportunistic_client_config()?, tls::next_hop_roots(identity)?),
        dns: dns(config)?,
        mx: MxRules::default(),
        health: Health::default(),
        deadlines: Deadlines::default(),
    })
}

/// A machine without a resolver of its own still delivers to smart hosts given by address.
fn dns(config: &NodeConfig) -> Result<Dns, AppError> {
    let section = &config.dns;
    let settings =
        DnsSettings { servers: section.servers.clone(), timeout: section.timeout, attempts: section.attempts };
    let wrong = |why| AppError::Dns { why };
    Dns::new(&settings).or_else(|why| {
        tracing::warn!(why, "name servers of this machine cannot be read, asking 127.0.0.1");
        let servers = vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53)];
        Dns::new(&DnsSettings { servers, ..settings }).map_err(wrong)
    })
}

/// The hosts of members and fronts, without ports: a letter that is sent there comes back.
fn cluster_hosts(view: &StateView) -> Vec<String> {
    let mut hosts = BTreeSet::new();
    for member in view.state.members.values() {
        let services = member.value.services.iter().map(|service| service.address.as_str());
        let addresses = services.chain([member.value.rpc_address.as_str()]);
        hosts.extend(addresses.filter_map(host_of).map(str::to_ascii_lowercase));
    }
    for front in view.state.fronts.values() {
        hosts.extend(front.value.source_addresses.iter().map(ToString::to_string));
    }
    hosts.into_iter().collect()
}

fn host_of(address: &str) -> Option<&str> {
    let (host, _) = address.rsplit_once(':')?;
    Some(host.trim_start_matches('[').trim_end_matches(']'))
}
