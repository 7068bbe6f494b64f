//! Every refusal of a change, by name: a stable code, and what / why / how to fix. In one place, so that the codes
//! stay unique and the texts keep one voice.

use super::{Refusal, RefusalKind};

fn refusal(kind: RefusalKind, code: &str, message: String, cause: String, fix: impl Into<String>) -> Refusal {
    Refusal { kind, code: code.to_owned(), message, cause, fix: fix.into() }
}

pub(super) fn not_found(code: &str, noun: &str, name: &str, list: &str) -> Refusal {
    refusal(
        RefusalKind::NotFound,
        code,
        format!("{noun} \"{name}\" not found"),
        format!("the cluster has no {noun} of that name"),
        format!("posthousectl {list}"),
    )
}

pub(super) fn exists(code: &str, noun: &str, name: &str, revision: u64, set: &str) -> Refusal {
    refusal(
        RefusalKind::Conflict,
        code,
        format!("{noun} \"{name}\" exists"),
        format!("it was last changed by revision {revision}"),
        format!("change it with: posthousectl {set}"),
    )
}

pub(super) fn revision_moved(noun: &str, name: &str, wanted: u64, actual: Option<u64>) -> Refusal {
    let cause = match actual {
        Some(actual) => format!("it is at revision {actual}, not {wanted}: somebody changed it meanwhile"),
        None => format!("it does not exist, so it has no revision {wanted}"),
    };
    refusal(
        RefusalKind::Conflict,
        "PH-REV-001",
        format!("{noun} \"{name}\" has moved on"),
        cause,
        "read it again, then repeat the change with its new revision",
    )
}

pub(super) fn invalid(code: &str, message: impl Into<String>, cause: impl ToString, fix: &str) -> Refusal {
    refusal(RefusalKind::Invalid, code, message.into(), cause.to_string(), fix)
}

pub(super) fn denied(code: &str, message: impl Into<String>, cause: impl ToString, fix: impl Into<String>) -> Refusal {
    refusal(RefusalKind::Denied, code, message.into(), cause.to_string(), fix)
}

pub(super) fn uninitialised() -> Refusal {
    invalid("PH-RAFT-004", "this cluster has no state yet", "cluster init has not run", "posthousectl cluster init")
}

pub(super) fn token_refused(cause: &str) -> Refusal {
    denied(
        "PH-JOIN-001",
        "the join token is refused",
        cause,
        "make a new one on a member: posthousectl cluster join-token create",
    )
}
