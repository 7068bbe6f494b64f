//! Who may connect, submit and relay: receive connectors with their remote IP ranges, the table that picks one of
//! them, the rights that decide, the same decision with every reason, the open-relay guard, and send connectors.
//!
//! Pure: no socket, no clock, no randomness. The wall clock comes in as `now_ms`, unix milliseconds. Imports `mail`
//! only; credentials come in as [`CredentialFacts`].

mod conflict;
mod counts;
mod explain;
mod guard;
mod limits;
#[cfg(test)]
mod parameters_tests;
mod permission;
mod range;
mod receive;
mod recipient_domain;
mod reserved;
mod rights;
mod route_table;
mod segments;
mod send;
mod sender;
mod steps;
mod switches;
mod table;
mod window;

pub use conflict::{RangeConflict, conflict};
pub use counts::{ClusterCounts, CountKey, CountValue, FAILED_LOGINS_MAX, Report};
pub use explain::{Explanation, Query, Step, explain};
pub use guard::{GuardRefusal, RELAY_ADDRESSES_MAX, check as open_relay_guard};
pub use limits::LimitRefusal;
pub use permission::{
    Client, CredentialFacts, Decision, DomainKind, Domains, Reason, Reasons, Verdict, decide_auth, decide_mail,
    decide_rcpt,
};
pub use range::{ParsedRange, RangeError, Relation, RemoteIpRange, canonical_ip};
pub use receive::{Binding, ConnectorError, ReceiveConnector, SizeMode};
pub use recipient_domain::{RecipientDomainError, RecipientDomainPattern};
pub use rights::{
    AuthMechanism, GrantedRight, PermissionGroup, Principal, Right, Rights, UnknownWord, effective_rights, parse_words,
};
pub use route_table::{LetterFacts, RouteTable};
pub use send::{AddressSpace, RetryOverride, RouteAuth, SendConnector, SendError, SendTls, SmartHost};
pub use sender::{SenderPattern, SenderRule};
pub use switches::{Leniency, MessageRateSource, ProtocolLoggingLevel};
pub use table::{AllowlistRange, Candidate, CandidateResult, ConnectorTable, Hit, Match};
pub use window::{SLOTS as WINDOW_SLOTS, Window};
