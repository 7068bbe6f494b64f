//! `explain ip`: the question goes to the very function that the sessions ask.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use posthouse_proto::v1;
use tonic::Status;

use super::problem::{exit, invalid, problem, status};
use crate::clock::now_ms;
use crate::connector::{LetterFacts, Query, ReceiveConnector, explain};
use crate::credential::Credential;
use crate::mail::{ForwardPath, ReversePath};
use crate::state::StateView;

/// RFC 5321 §4.5.4.2: SMTP.
const SMTP_PORT: u16 = 25;

/// Answers what would happen to a device.
pub(super) fn explain_ip(view: &StateView, request: &v1::ExplainIpRequest) -> Result<v1::ExplainIpReply, Status> {
    let address = |field: &str, text: &str| {
        text.parse::<IpAddr>().map(|address| address.to_canonical()).map_err(|error| {
            invalid("PH-EXPLAIN-001", format!("{field} \"{text}\" is not an address"), error, "write it as 10.1.2.3")
        })
    };
    let source = address("ip", &request.ip)?;
    let local_ip = match request.local_address.as_str() {
        "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        text => address("local address", text)?,
    };
    let port = match request.port {
        0 => SMTP_PORT,
        port => u16::try_from(port)
            .map_err(|_| invalid("PH-EXPLAIN-001", "the port is not valid", "it is 25, 587 or 465", "--port 25"))?,
    };
    let sender = match request.sender.as_str() {
        "" | "<>" => ReversePath::Null,
        text => path(text)?,
    };
    let recipients = request.recipients.iter().map(|text| path(text)).collect::<Result<Vec<ForwardPath>, _>>()?;
    let now_ms = now_ms();
    let credential = match request.user.as_str() {
        "" => None,
        user => Some(view.state.credentials.get(&Credential::canonical_user(user)).ok_or_else(|| {
            status(problem(
                exit::NOT_FOUND,
                "PH-CRED-001",
                format!("credential \"{user}\" not found"),
                "the cluster has no credential of that name",
                "posthousectl credential list",
            ))
        })?),
    };
    let facts = credential
        .map(|found| move |connector: &ReceiveConnector| found.value.facts(None, source, &connector.name, now_ms));
    let query = Query {
        local: SocketAddr::new(local_ip, port),
        source,
        now_ms,
        tls: request.tls,
        credential: facts.as_ref().map(|facts| facts as _),
        sender: &sender,
        recipients: &recipients,
    };
    let answer = explain(&view.table, view, &query);
    let candidates = answer.candidates.iter().map(|candidate| v1::ExplainCandidate {
        connector: candidate.connector.name.clone(),
        range: candidate.range.to_string(),
        result: candidate.result.to_string(),
        addresses: candidate.range.size().to_string(),
    });
    let steps = answer.steps.iter().map(|step| v1::ExplainStep {
        step: step.step.clone(),
        decision: if step.accepted { "accept" } else { "reject" }.to_owned(),
        detail: step.detail.clone(),
    });
    let connector = answer.winner.as_ref().map_or("", |winner| winner.connector.name.as_str());
    let next_hop = recipients
        .first()
        .and_then(ForwardPath::domain)
        .map(|domain| match view.routes.find(LetterFacts { domain, sender: &sender, connector }) {
            Some(route) => format!("{} via route \"{}\"", super::route::destination(route), route.name),
            None => "no route: it would wait (posthousectl route add)".to_owned(),
        })
        .unwrap_or_default();
    Ok(v1::ExplainIpReply {
        connector: answer.winner.as_ref().map(|winner| winner.connector.name.clone()).unwrap_or_default(),
        range: answer.winner.as_ref().map(|winner| winner.range.to_string()).unwrap_or_default(),
        verdict: if answer.accepted { "accept" } else { "reject" }.to_owned(),
        reply: answer.reply.to_string(),
        candidates: candidates.collect(),
        steps: steps.collect(),
        rights: answer.rights.iter().map(|right| right.to_string()).collect(),
        revision: view.revision,
        why: answer.why,
        fixes: answer.fixes,
        next_hop,
    })
}

fn path<T: std::str::FromStr<Err: ToString>>(text: &str) -> Result<T, Status> {
    text.trim_start_matches('<').trim_end_matches('>').parse().map_err(|error: T::Err| {
        invalid("PH-EXPLAIN-002", format!("\"{text}\" is not an address"), error, "write it as name@domain")
    })
}
