//! The log subscriber and the metrics exporter. Metric names live as constants in the room that counts; here they are
//! described and registered at zero, so that a dashboard sees every series from the start.

use std::io::IsTerminal;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, LogSection};

/// Why telemetry cannot start. Theirs.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log.level` is not a filter.
    #[error("log.level: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// A second subscriber or exporter in one process.
    #[error("telemetry was started twice")]
    Twice,
    /// The exporter refused.
    #[error("metrics: {0}")]
    Metrics(#[from] BuildError),
}

/// Build information, always 1, with the version as a label.
pub const BUILD_INFO: &str = "posthouse_build_info";
/// 1 while the process answers.
pub const UP: &str = "posthouse_up";

/// What our libraries say is said again, once and in our words, by the room that uses them; openraft alone would
/// write some twenty lines a second about each peer that is away. `log.level` comes after this and may say otherwise.
const QUIET: &str = "openraft=off,h2=warn,hyper=warn,tower=warn,tonic=warn";

/// Seconds: from a synced write on a virtual disk to a disk in trouble.
const SECONDS_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Starts logging to standard output.
///
/// # Errors
/// When the level is not a filter, or logging was started before.
pub fn start_logging(config: &LogSection) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", config.level))?;
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stdout().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let started = if json {
        registry.with(tracing_subscriber::fmt::layer().json().flatten_event(true)).try_init()
    } else {
        let ansi = std::io::stdout().is_terminal();
        registry.with(tracing_subscriber::fmt::layer().with_ansi(ansi).compact()).try_init()
    };
    started.map_err(|_| TelemetryError::Twice)
}

/// Starts counting. The handle renders what was counted.
///
/// # Errors
/// When counting was started before.
pub fn start_metrics() -> Result<PrometheusHandle, TelemetryError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
        .install_recorder()?;
    metrics::describe_gauge!(BUILD_INFO, "Always 1; the version is a label.");
    metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    metrics::describe_gauge!(UP, "1 while the process answers.");
    metrics::gauge!(UP).set(1.0);
    Ok(handle)
}
