//! The rooms that read a stranger's octets, compiled by themselves: they import nothing that would have to be built
//! with them, so a fuzz target is there in seconds.
#![forbid(unsafe_code)]
#![allow(dead_code, unused_imports, unreachable_pub)]

#[path = "../../../node/src/mail/mod.rs"]
pub mod mail;
#[path = "../../../node/src/proxy_protocol/mod.rs"]
pub mod proxy_protocol;
#[path = "../../../node/src/smtp/mod.rs"]
pub mod smtp;

pub mod entry;
pub mod mutate;
