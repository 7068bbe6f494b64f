//! What a session may do, asked anew at each `MAIL` and `RCPT` of the newest state: a revoked address or credential
//! cannot start another letter on a connection that it opened before.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::clock::now_ms;
use crate::connector::{
    Client, CredentialFacts, Decision, ReceiveConnector, Rights, decide_auth, decide_mail, decide_rcpt,
};
use crate::credential::{Credential, SecretId};
use crate::mail::{ForwardPath, ReversePath};
use crate::state::StateView;

/// What the answer depends on, of one session.
pub(super) struct Standing<'a> {
    /// The connector that took the connection.
    pub(super) connector: &'a Arc<ReceiveConnector>,
    /// The address dialled and the service port.
    pub(super) local: SocketAddr,
    /// The device.
    pub(super) source: IpAddr,
    /// Whether the connection is encrypted.
    pub(super) tls: bool,
    /// The credential it logged in with.
    pub(super) user: Option<&'a str>,
    /// And the password of it, if it was one.
    pub(super) secret: Option<SecretId>,
}

/// What the newest state says of a session that wants to begin a letter.
pub(super) enum Now {
    /// The same connector still wins; this is it as it is now, and whether its range has expired.
    Same(Arc<ReceiveConnector>, bool),
    /// Another connector would win, or none.
    Other,
}

/// Repeats the choice of the connector.
pub(super) fn choose_again(view: &StateView, standing: &Standing<'_>) -> Now {
    match view.table.lookup(standing.local, standing.source) {
        Some(hit) if hit.connector.name == standing.connector.name => {
            Now::Same(Arc::clone(hit.connector), hit.is_expired(now_ms()))
        }
        Some(_) | None => Now::Other,
    }
}

/// Asks the one decision about `MAIL`.
pub(super) fn mail(
    view: &StateView,
    standing: &Standing<'_>,
    connector: &ReceiveConnector,
    range_expired: bool,
    reverse_path: &ReversePath,
) -> Decision {
    with_client(view, standing, connector, range_expired, |client| decide_mail(client, reverse_path, view))
}

/// Asks the one decision about `RCPT`.
pub(super) fn rcpt(
    view: &StateView,
    standing: &Standing<'_>,
    connector: &ReceiveConnector,
    range_expired: bool,
    reverse_path: &ReversePath,
    forward_path: &ForwardPath,
) -> Decision {
    with_client(view, standing, connector, range_expired, |client| {
        decide_rcpt(client, reverse_path, forward_path, view)
    })
}

/// What the session may do now.
pub(super) fn rights(
    view: &StateView,
    standing: &Standing<'_>,
    connector: &ReceiveConnector,
    range_expired: bool,
) -> Rights {
    with_client(view, standing, connector, range_expired, |client| client.rights())
}

/// Whether the connector takes a session that has just given the right password.
pub(super) fn auth(view: &StateView, standing: &Standing<'_>) -> bool {
    match choose_again(view, standing) {
        Now::Same(connector, expired) => {
            with_client(view, standing, &connector, expired, |client| decide_auth(client).is_permitted())
        }
        Now::Other => false,
    }
}

fn with_client<T>(
    view: &StateView,
    standing: &Standing<'_>,
    connector: &ReceiveConnector,
    range_expired: bool,
    decide: impl FnOnce(&Client<'_>) -> T,
) -> T {
    let credential: Option<(&str, Option<Arc<Credential>>)> =
        standing.user.map(|user| (user, view.state.credentials.get(user).map(|found| Arc::clone(&found.value))));
    let facts = credential.as_ref().map(|(user, found)| match found {
        Some(credential) => credential.facts(standing.secret, standing.source, &connector.name, now_ms()),
        // Deleted since it logged in.
        None => CredentialFacts::gone(user),
    });
    decide(&Client { connector, range_expired, tls: standing.tls, credential: facts })
}
