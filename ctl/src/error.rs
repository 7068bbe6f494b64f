//! What went wrong, why, and what to do about it: three lines on stderr, or one JSON object with `-o json`; and the
//! exit codes, each kept where a neighbour (kubectl, gh, etcdctl, nomad) already means the same.

use std::fmt::Write as _;

use posthouse_proto::PROBLEM_METADATA;
use posthouse_proto::v1::Problem;
use prost::Message;
use serde_json::json;
use tonic::{Code, Status};

use crate::output::{self, Format};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done, healthy, or: would be accepted.
    Done = 0,
    /// It ran, and the answer is no.
    No = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The object does not exist.
    NotFound = 3,
    /// Not authenticated, or not permitted.
    NotPermitted = 4,
    /// No endpoint, no leader, or only part of the cluster answered.
    Unreachable = 5,
    /// The object's revision moved.
    Conflict = 6,
    /// Timed out waiting; the change may still land.
    TimedOut = 7,
    /// A value or a file is invalid.
    Invalid = 8,
    /// Anything else.
    Other = 9,
}

/// Why a run failed. Boxed: results are returned everywhere, failures once.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure(Box<Problem>);

/// Codes of this program itself; the cluster's own are listed in `problem_codes.rs` beside them.
pub(crate) mod code {
    pub(crate) const USAGE: &str = "PH-CTL-001";
    pub(crate) const UNREACHABLE: &str = "PH-CTL-002";
    pub(crate) const CONTEXT_FILE: &str = "PH-CTL-003";
    pub(crate) const CONTEXT_MISSING: &str = "PH-CTL-004";
    pub(crate) const CONFIRM: &str = "PH-CTL-005";
    pub(crate) const NOT_CONFIRMED: &str = "PH-CTL-006";
    pub(crate) const NO_ANSWER: &str = "PH-CTL-007";
    pub(crate) const PARTIAL: &str = "PH-CTL-008";
    pub(crate) const UNNAMED: &str = "PH-CTL-009";
    pub(crate) const NO_IDENTITY: &str = "PH-CTL-010";
    pub(crate) const FILE: &str = "PH-CTL-011";
    pub(crate) const UNKNOWN_CODE: &str = "PH-CTL-012";
    /// The server's own code of a proposal that found no leader: nothing was changed.
    pub(crate) const NO_LEADER: &str = "PH-RAFT-001";
    /// The server's own code of a node that belongs to no cluster yet: nothing was asked of anybody.
    pub(crate) const NO_CLUSTER: &str = "PH-NODE-005";
}

impl Failure {
    /// What, why and how to fix it.
    pub(crate) fn new(
        exit: Exit,
        code: &str,
        message: impl Into<String>,
        cause: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self(Box::new(Problem {
            code: code.to_owned(),
            message: message.into(),
            cause: cause.into(),
            fix: fix.into(),
            retryable: matches!(exit, Exit::Unreachable | Exit::TimedOut),
            exit_code: exit as u32,
        }))
    }

    /// A command line that parses and still makes no sense.
    pub(crate) fn usage(message: impl Into<String>, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Exit::Usage, code::USAGE, message, cause, fix)
    }

    /// What the cluster answered. Without a [`Problem`] (an older node, a proxy, a broken connection) the gRPC code
    /// says what kind of failure it was.
    pub(crate) fn from_status(status: &Status) -> Self {
        if let Some(problem) = carried_problem(status) {
            return Self(Box::new(problem));
        }
        let (exit, code) = match status.code() {
            Code::Unavailable => (Exit::Unreachable, code::UNREACHABLE),
            Code::DeadlineExceeded | Code::Cancelled => (Exit::TimedOut, code::NO_ANSWER),
            Code::NotFound => (Exit::NotFound, code::UNNAMED),
            Code::PermissionDenied | Code::Unauthenticated => (Exit::NotPermitted, code::UNNAMED),
            Code::Aborted | Code::FailedPrecondition => (Exit::Conflict, code::UNNAMED),
            Code::InvalidArgument | Code::OutOfRange => (Exit::Invalid, code::UNNAMED),
            _ => (Exit::Other, code::UNNAMED),
        };
        let message = match status.message() {
            "" => status.code().description(),
            message => message,
        };
        let fix = match status.code() {
            Code::Unimplemented => "is this a node's endpoint or socket, of this version? posthousectl version",
            _ => "posthousectl cluster status",
        };
        Self::new(exit, code, message, deepest_cause(status), fix)
    }

    /// The exit code; an unknown one from a newer node is "anything else".
    pub(crate) fn exit_code(&self) -> u8 {
        match u8::try_from(self.0.exit_code) {
            Ok(code @ 1..=9) => code,
            _ => Exit::Other as u8,
        }
    }

    /// The stable code.
    pub(crate) fn code(&self) -> &str {
        &self.0.code
    }

    /// Says in the fix which names come near the one that was not found.
    #[must_use]
    pub(crate) fn with_suggestion(mut self, suggestion: Option<&str>) -> Self {
        if let Some(name) = suggestion {
            let fix = std::mem::take(&mut self.0.fix);
            let separator = if fix.is_empty() { "" } else { "   " };
            self.0.fix = format!("did you mean \"{name}\"?{separator}{fix}");
        }
        self
    }

    /// The three lines, or the JSON object.
    pub(crate) fn render(&self, format: Format) -> String {
        let Problem { code, message, cause, fix, retryable, .. } = &*self.0;
        if format.is_json() {
            let object = json!({"code": code, "message": message, "cause": cause, "fix": fix, "retryable": retryable});
            return format!("{object}\n");
        }
        let mut text = format!("error  {code}  {message}\n");
        for (label, line) in [("Why", cause), ("Fix", fix)] {
            if !line.is_empty() {
                let indented = line.replace('\n', "\n       ");
                let _ = writeln!(text, "{label:<7}{indented}");
            }
        }
        output::printable(&text)
    }
}

/// The problem in the metadata of a failed call.
fn carried_problem(status: &Status) -> Option<Problem> {
    let bytes = status.metadata().get_bin(PROBLEM_METADATA)?.to_bytes().ok()?;
    Problem::decode(bytes).ok()
}

/// The innermost cause that a library knows; what wraps it says only "transport error".
pub(crate) fn deepest_cause(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// The name nearest to `wanted`, if one is near enough to be meant.
pub(crate) fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Jaro-Winkler similarity below which a suggestion is noise; clap suggests its own names above 0.7.
    const NEAR_ENOUGH: f64 = 0.7;
    let wanted = wanted.to_lowercase();
    names
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&wanted, &name.to_lowercase()), name))
        .filter(|(similarity, _)| *similarity > NEAR_ENOUGH)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tonic::metadata::MetadataValue;

    fn denied() -> Failure {
        Failure::new(Exit::No, "PH-ALLOW-007", "range is wide", "every host could send", "narrow it")
    }

    #[test]
    fn three_lines_say_what_why_and_how_to_fix() {
        assert_eq!(
            denied().render(Format::Table),
            "error  PH-ALLOW-007  range is wide\nWhy    every host could send\nFix    narrow it\n"
        );
    }

    #[test]
    fn a_line_that_says_nothing_is_left_out() {
        let failure = Failure::new(Exit::Other, "PH-X-1", "broken", "", "");
        assert_eq!(failure.render(Format::Table), "error  PH-X-1  broken\n");
    }

    #[test]
    fn json_errors_carry_the_five_fields() {
        let value: serde_json::Value = serde_json::from_str(&denied().render(Format::Json)).unwrap();
        assert_eq!(
            value,
            json!({"code": "PH-ALLOW-007", "message": "range is wide", "cause": "every host could send",
                   "fix": "narrow it", "retryable": false})
        );
    }

    #[test]
    fn the_carried_problem_decides_the_exit_code() {
        let problem = Problem { code: "PH-CONN-001".into(), exit_code: 3, ..Problem::default() };
        let mut status = Status::internal("x");
        status.metadata_mut().insert_bin(PROBLEM_METADATA, MetadataValue::from_bytes(&problem.encode_to_vec()));
        let failure = Failure::from_status(&status);
        assert_eq!((failure.exit_code(), failure.code()), (3, "PH-CONN-001"));
    }

    #[test]
    fn without_a_problem_the_grpc_code_decides() {
        for (status, exit) in [
            (Status::unavailable(""), 5),
            (Status::deadline_exceeded(""), 7),
            (Status::not_found(""), 3),
            (Status::permission_denied(""), 4),
            (Status::unauthenticated(""), 4),
            (Status::aborted(""), 6),
            (Status::failed_precondition(""), 6),
            (Status::invalid_argument(""), 8),
            (Status::unknown(""), 9),
        ] {
            assert_eq!(Failure::from_status(&status).exit_code(), exit, "{status:?}");
        }
    }

    #[test]
    fn an_exit_code_out_of_range_is_anything_else() {
        let problem = Problem { exit_code: 300, ..Problem::default() };
        assert_eq!(Failure(Box::new(problem)).exit_code(), 9);
    }

    #[test]
    fn control_characters_of_others_never_reach_the_terminal() {
        let failure = Failure::new(Exit::Other, "PH-X-1", "\u{1b}[2Jgone", "", "");
        assert!(!failure.render(Format::Table).contains('\u{1b}'));
    }

    #[test]
    fn a_near_name_is_suggested_and_a_far_one_is_not() {
        let names = ["scanners", "erp", "default"];
        assert_eq!(nearest("scaners", names), Some("scanners"));
        assert_eq!(nearest("Scanners", names), Some("scanners"));
        assert_eq!(nearest("zzz", names), None);
    }
}
