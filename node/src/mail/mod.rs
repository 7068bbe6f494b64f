//! The nouns of mail: addresses, envelopes, replies, trace headers and delivery status notifications. Pure: no
//! I/O, no clock, no configuration. Imports none of our rooms.

pub mod address;
pub mod dsn;
pub mod dsn_parameters;
pub mod envelope;
pub mod header_firewall;
pub mod reply;
pub mod trace_header;

pub use address::{AddressError, Domain, ForwardPath, Mailbox, ReversePath};
pub use dsn_parameters::{Notify, OriginalRecipient, Ret};
pub use envelope::{BodyType, Envelope, EnvelopeRecipient};
pub use reply::{EnhancedCode, Reply, ReplyCode};
