//! Routes between proto and domain, and the test of one: where a letter would go, without sending it.

use std::net::IpAddr;

use posthouse_proto::v1;
use tonic::Status;

use super::convert::{bad, strings, take, words};
use super::problem::{internal, invalid};
use super::service::Context;
use crate::connector::{AddressSpace, LetterFacts, RouteAuth, SendConnector, SmartHost};
use crate::mail::{Mailbox, ReversePath};
use crate::pki::route_password_context;
use crate::state::Versioned;

const ROUTE: &str = "PH-ROUTE-003";

/// Changes `route` as the request says, leaving the rest.
pub(super) fn merge(
    context: &Context,
    mut route: SendConnector,
    from: &v1::Route,
    password: Option<&str>,
) -> Result<SendConnector, Status> {
    take!(from, route: cost, max_connections, enabled, comment, mx, max_messages_per_connection, rate_per_minute);
    if let Some(list) = &from.address_spaces {
        route.address_spaces = words::<AddressSpace>(ROUTE, "address_spaces", list)?;
    }
    if let Some(list) = &from.smart_hosts {
        route.smart_hosts = words::<SmartHost>(ROUTE, "smart_hosts", list)?;
    }
    if let Some(list) = &from.senders {
        route.senders = words(ROUTE, "senders", list)?;
    }
    if let Some(list) = &from.connectors {
        route.connectors = list.values.clone();
    }
    if let Some(list) = &from.source_addresses {
        let addresses: Vec<IpAddr> = words(ROUTE, "source_addresses", list)?;
        route.source_addresses = addresses.into_iter().map(|ip| ip.to_canonical()).collect();
    }
    if let Some(tls) = &from.tls {
        route.tls = tls.parse().map_err(|error| bad(ROUTE, "tls", error))?;
    }
    if let Some(list) = &from.tls_names {
        route.tls_names = list.values.iter().map(|name| name.trim().to_ascii_lowercase()).collect();
    }
    if let Some(pem) = &from.tls_ca {
        route.tls_ca_pem.clone_from(pem);
    }
    if let Some(fqdn) = &from.fqdn {
        route.fqdn = (!fqdn.is_empty()).then(|| fqdn.clone());
    }
    let interval = |known: &mut Option<u64>, wanted: Option<u64>| {
        if let Some(secs) = wanted {
            *known = (secs > 0).then_some(secs);
        }
    };
    interval(&mut route.retry.glitch_retry_interval_secs, from.glitch_retry_interval_secs);
    interval(&mut route.retry.transient_failure_retry_interval_secs, from.transient_failure_retry_interval_secs);
    interval(&mut route.retry.message_retry_interval_secs, from.message_retry_interval_secs);
    interval(&mut route.retry.message_expiration_timeout_secs, from.message_expiration_timeout_secs);
    route.auth = auth(context, &route, from.auth_user.as_deref(), password)?;
    Ok(route)
}

/// The credential after the request. The password is sealed here, before anything is proposed.
fn auth(
    context: &Context,
    route: &SendConnector,
    user: Option<&str>,
    password: Option<&str>,
) -> Result<Option<RouteAuth>, Status> {
    let wrong = |cause: &str| {
        Err(invalid(
            "PH-ROUTE-004",
            format!("the credential of route \"{}\" is not complete", route.name),
            cause,
            "--auth-user NAME with --auth-password-file FILE or --auth-password-stdin; --auth-user '' for none",
        ))
    };
    let user = match (user, &route.auth) {
        (Some(""), _) if password.is_some() => return wrong("a password was given for no user"),
        (Some(""), _) => return Ok(None),
        (Some(user), Some(known)) if password.is_none() && known.user == user => return Ok(route.auth.clone()),
        (Some(_), _) if password.is_none() => return wrong("a user needs a password"),
        (Some(user), _) => user.to_owned(),
        (None, known) if password.is_none() => return Ok(known.clone()),
        (None, Some(known)) => known.user.clone(),
        (None, None) => return wrong("a password needs a user"),
    };
    let password = password.unwrap_or_default();
    if password.is_empty() || password.len() > 1024 || password.chars().any(|c| matches!(c, '\0' | '\r' | '\n')) {
        return wrong("a password has 1 to 1024 bytes on one line");
    }
    let sealed = context
        .data_key
        .seal(&route_password_context(&route.name), password.as_bytes())
        .map_err(|error| internal("the password cannot be sealed", error))?;
    Ok(Some(RouteAuth { user, sealed_password: sealed.0 }))
}

/// A route as administrators read it. The password is not among it.
pub(super) fn route_out(found: &Versioned<std::sync::Arc<SendConnector>>) -> v1::Route {
    let route = &found.value;
    v1::Route {
        name: route.name.clone(),
        address_spaces: strings(&route.address_spaces),
        cost: Some(route.cost),
        smart_hosts: strings(&route.smart_hosts),
        tls: Some(route.tls.to_string()),
        max_connections: Some(route.max_connections),
        enabled: Some(route.enabled),
        comment: Some(route.comment.clone()),
        fqdn: Some(route.fqdn.clone().unwrap_or_default()),
        revision: found.revision,
        senders: strings(&route.senders),
        connectors: strings(&route.connectors),
        mx: Some(route.mx),
        tls_names: strings(&route.tls_names),
        tls_ca: Some(route.tls_ca_pem.clone()),
        auth_user: Some(route.auth.as_ref().map(|auth| auth.user.clone()).unwrap_or_default()),
        max_messages_per_connection: Some(route.max_messages_per_connection),
        rate_per_minute: Some(route.rate_per_minute),
        source_addresses: strings(&route.source_addresses),
        glitch_retry_interval_secs: route.retry.glitch_retry_interval_secs,
        transient_failure_retry_interval_secs: route.retry.transient_failure_retry_interval_secs,
        message_retry_interval_secs: route.retry.message_retry_interval_secs,
        message_expiration_timeout_secs: route.retry.message_expiration_timeout_secs,
    }
}

/// Where a route sends its letters, in words.
pub(super) fn destination(route: &SendConnector) -> String {
    if route.mx {
        return "MX".to_owned();
    }
    route.smart_hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Says where a letter would go.
pub(super) async fn test(context: &Context, request: v1::TestRouteRequest) -> Result<v1::TestRouteReply, Status> {
    let wrong = |text: &str, error: String| {
        invalid("PH-ROUTE-005", format!("\"{text}\" is not an address"), error, "write it as name@domain")
    };
    let bare = |text: &str| text.trim().trim_start_matches('<').trim_end_matches('>').to_owned();
    let recipient =
        Mailbox::parse(&bare(&request.recipient)).map_err(|error| wrong(&request.recipient, error.to_string()))?;
    let sender = match bare(&request.sender).as_str() {
        "" => ReversePath::Null,
        text => ReversePath::Mailbox(Mailbox::parse(text).map_err(|error| wrong(&request.sender, error.to_string()))?),
    };
    let view = context.view();
    let domain = recipient.domain();
    let letter = LetterFacts { domain, sender: &sender, connector: &request.connector };
    let mut reply =
        v1::TestRouteReply { node: context.node_name.clone(), revision: view.revision, ..Default::default() };
    let Some(route) = view.routes.find(letter) else {
        reply.verdict = format!("no route for {domain}: it would wait (posthousectl route add)");
        return Ok(reply);
    };
    reply.route.clone_from(&route.name);
    let tested = context.queue.test_route(route, domain, request.connect).await;
    reply.deliverable = tested.deliverable;
    reply.verdict = tested.verdict;
    reply.connected = tested.connected;
    reply.hops = tested
        .probe
        .hops
        .into_iter()
        .map(|(hop, preference, passed_over)| v1::TestedHop {
            host: hop.host,
            address: hop.addr.to_string(),
            preference: preference.map(u32::from),
            passed_over,
            reply: String::new(),
        })
        .collect();
    reply.unusable = tested
        .probe
        .unusable
        .into_iter()
        .map(|one| v1::TestedHop { host: one.label, reply: one.reply.to_string(), ..Default::default() })
        .collect();
    Ok(reply)
}
