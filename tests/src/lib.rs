//! The harness of the system tests: real processes on free loopback ports, devices with source addresses of their
//! own, and a ledger that matches what was promised with what arrived. Nothing here knows the product's insides; it
//! starts the binaries, speaks SMTP and reads JSON.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc, missing_docs)]

pub mod cluster;
pub mod device;
pub mod dialog;
pub mod dice;
pub mod disk;
pub mod filed;
pub mod forwarder;
pub mod http;
pub mod kernel;
pub mod ledger;
pub mod load;
pub mod netns;
pub mod never_retry;
pub mod next_hop;
pub mod power;
pub mod tls_dialog;
pub mod wait;
pub mod wire;

pub use cluster::{Ctl, Proc, TestCluster, binary, free_port, repository};
pub use device::{Device, Outcome};
pub use dice::Dice;
pub use filed::Filed;
pub use http::{http_get, try_http_get};
pub use ledger::Ledger;
pub use load::{Book, Load};
pub use next_hop::NextHop;
pub use wait::until;
pub use wire::{Trust, Wire};
