//! The rooms of the relay node and front. See ARCHITECTURE.md for which may know which.
#![forbid(unsafe_code)]

pub mod admin;
pub mod app;

pub mod clock;
pub mod config;
pub mod connector;
pub mod counts;
pub mod credential;
pub mod front;
pub mod health;
pub mod inbound;
pub mod mail;
pub mod outbound;
pub mod pki;
pub mod protocol_log;
pub mod proxy_protocol;
pub mod queue;
pub mod raft;
pub mod sessions;
pub mod shutdown;
pub mod sink;
pub mod smtp;
pub mod spool;
pub mod state;
pub mod telemetry;
pub mod tls;
pub mod usage;

#[cfg(test)]
mod fuzz_tests;
