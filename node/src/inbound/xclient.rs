//! A listed peer says `XCLIENT`: the connection becomes that of the client it speaks for. The connector is chosen anew
//! for the claimed address, and so are its limits; a login that the peer claims is written down and grants nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use metrics::counter;

use super::Shared;
use super::driver::Opened;
use super::metrics_names::{XCLIENTS, count_limit};
use crate::clock::now_ms;
use crate::connector::Match;
use crate::counts::OpenCount;
use crate::mail::{Reply, reply};
use crate::smtp::Xclient;

/// What a connection is from now on, and its place among the connections of its new source.
pub(super) struct Reopened {
    pub(super) opened: Opened,
    pub(super) counted: OpenCount,
}

/// Chooses the connector for the client that `said` names.
///
/// # Errors
/// What the peer is told before the connection is closed.
pub(super) fn reopen(shared: &Arc<Shared>, opened: &Opened, said: &Xclient) -> Result<Reopened, Reply> {
    let source = said.addr.unwrap_or(opened.source);
    let local = SocketAddr::new(
        said.dest_addr.unwrap_or_else(|| opened.local.ip()),
        said.dest_port.unwrap_or_else(|| opened.local.port()),
    );
    let found = shared.view().table.find(local, source, now_ms());
    let Some(Match { connector, range, expired }) = found else {
        counter!(XCLIENTS, "result" => "no_connector").increment(1);
        return Err(reply::service_not_available());
    };
    shared.options.usages.connected(&connector.name, range, now_ms());
    let counted = shared.options.counts.open(&connector, source).map_err(|limit| {
        counter!(XCLIENTS, "result" => "limit").increment(1);
        count_limit(&connector.name, limit);
        limit.reply()
    })?;
    counter!(XCLIENTS, "result" => "ok").increment(1);
    tracing::debug!(
        session.id = %opened.session_id,
        source.addr = %source,
        xclient.peer = %opened.source,
        xclient.name = said.name.as_deref().unwrap_or_default(),
        xclient.login = said.login.as_deref().unwrap_or_default(),
        connector = %connector.name,
        range = %range,
        expired,
        "session opened by XCLIENT"
    );
    let opened = Opened {
        connector,
        range,
        expired,
        local,
        source,
        source_port: said.port.unwrap_or(opened.source_port),
        peer: opened.peer,
        front: opened.front.clone(),
        signed: opened.signed,
        session_id: opened.session_id.clone(),
        implicit_tls: opened.implicit_tls,
    };
    Ok(Reopened { opened, counted })
}
