//! Problems as administrators read them: what, why, how to fix, and a stable code. They travel in the metadata of a
//! failed call.

use posthouse_proto::PROBLEM_METADATA;
use posthouse_proto::v1::Problem;
use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::raft::ProposeError;
use crate::state::{Refusal, RefusalKind};

/// Exit codes of the command line (its contract, kept where a neighbour already means the same).
pub(super) mod exit {
    pub(crate) const NO: u32 = 1;
    pub(crate) const NOT_FOUND: u32 = 3;
    pub(crate) const NOT_PERMITTED: u32 = 4;
    pub(crate) const NO_LEADER: u32 = 5;
    pub(crate) const CONFLICT: u32 = 6;
    pub(crate) const TIMED_OUT: u32 = 7;
    pub(crate) const INVALID: u32 = 8;
    pub(crate) const OTHER: u32 = 9;
}

/// Makes a problem.
pub(super) fn problem(exit_code: u32, code: &str, message: impl ToString, cause: impl ToString, fix: &str) -> Problem {
    Problem {
        code: code.to_owned(),
        message: message.to_string(),
        cause: cause.to_string(),
        fix: fix.to_owned(),
        retryable: matches!(exit_code, exit::NO_LEADER | exit::TIMED_OUT),
        exit_code,
    }
}

/// A value of the request that makes no sense.
pub(super) fn invalid(code: &str, message: impl ToString, cause: impl ToString, fix: &str) -> Status {
    status(problem(exit::INVALID, code, message, cause, fix))
}

/// Puts a problem on the wire.
pub(super) fn status(problem: Problem) -> Status {
    let code = match problem.exit_code {
        exit::NOT_FOUND => Code::NotFound,
        exit::NOT_PERMITTED => Code::PermissionDenied,
        exit::NO_LEADER => Code::Unavailable,
        exit::CONFLICT => Code::Aborted,
        exit::TIMED_OUT => Code::DeadlineExceeded,
        exit::INVALID => Code::InvalidArgument,
        exit::NO => Code::FailedPrecondition,
        _ => Code::Internal,
    };
    let mut status = Status::new(code, problem.message.clone());
    status.metadata_mut().insert_bin(PROBLEM_METADATA, MetadataValue::from_bytes(&problem.encode_to_vec()));
    status
}

/// A refusal by the agreed state.
pub(super) fn refused(refusal: Refusal) -> Status {
    let exit_code = match refusal.kind {
        RefusalKind::NotFound => exit::NOT_FOUND,
        RefusalKind::Conflict => exit::CONFLICT,
        RefusalKind::Invalid => exit::INVALID,
        RefusalKind::Denied => exit::NO,
    };
    status(problem(exit_code, &refusal.code, refusal.message, refusal.cause, &refusal.fix))
}

/// A change that the cluster could not agree on.
pub(super) fn not_committed(error: &ProposeError) -> Status {
    status(match error {
        ProposeError::NoLeader => problem(
            exit::NO_LEADER,
            "PH-RAFT-001",
            "the change was not made: no leader",
            "a majority of the voters is not reachable from here; mail goes on, changes wait",
            "see which node is missing: posthousectl cluster status",
        ),
        ProposeError::Timeout => problem(
            exit::TIMED_OUT,
            "PH-RAFT-002",
            "no answer in time; the change may still be made",
            "the leader did not confirm the change before the deadline",
            "look before repeating it: posthousectl history list",
        ),
        other => problem(exit::OTHER, "PH-RAFT-003", "the change was not made", other, "see the node's log"),
    })
}

/// Something of ours that should not fail did.
pub(super) fn internal(what: &str, cause: impl ToString) -> Status {
    status(problem(exit::OTHER, "PH-NODE-009", what, cause, "see the node's log"))
}
