//! The protocol, both sides, sans-io: told what came and what time it is, it says what to send and what to decide.
//! It touches no socket, clock or disk, and knows no connector: it asks, and whoever drives it answers.

pub mod chunk;
pub mod client;
pub mod command;
pub mod data;
pub mod leniency;
pub mod line;
pub mod sasl;
pub mod session;
pub mod xclient;

pub use data::DataDecoder;
pub use leniency::{Leniencies, Leniency};
pub use sasl::{Mechanism, Password};
pub use session::{
    Action, AuthOutcome, CloseReason, Limits, Note, Offer, Session, SessionConfig, SizeMode, TlsMode, Verdict,
};
pub use xclient::Xclient;
