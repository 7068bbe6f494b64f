//! Is this node well enough for new connections? Components report; the reports are folded into one verdict with a
//! reason. Readiness decides about *new* connections only: losing the quorum never makes a node unready, because
//! mail goes on, and never fails `/livez`, because a restart would not help.

pub mod agent;
mod disk;
mod pressure;
mod readiness;

pub use agent::AgentState;
pub use disk::{DiskLimits, DiskProbe};
pub use pressure::{Level, Pressure, PressureFlip, PressureSettings, Resource, Thresholds, ThresholdsError};
pub use readiness::{Check, Facts, Readiness, Weight, assess};
