//! The node file: who this node is, where it binds, where its data is and whom it trusts. Everything else is cluster
//! state. The file is parsed and checked whole before any port is bound; a mistake names file, line, key and, where
//! one is near, the key that was probably meant.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

/// Why a configuration file cannot be used. Theirs: exit code 64.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not there, or not ours to read.
    #[error("{path}: cannot be read: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("{path}:{line}:{column}: {message}{hint}\n  |\n  | {excerpt}", path = path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong.
        message: String,
        /// `, did you mean …?`, or nothing.
        hint: String,
        /// The line.
        excerpt: String,
    },
    /// Every key is known, but together they make no sense.
    #[error("{path}: {key}: {cause}", path = path.display())]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which key, as a dotted path.
        key: String,
        /// Why.
        cause: String,
    },
}

/// Reads a TOML file into `T`, which should deny unknown fields.
///
/// # Errors
/// When the file cannot be read or parsed; the error names file, line, key and a near miss.
pub fn load_toml<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse_toml(path, &text)
}

/// Parses TOML text that came from `path`.
///
/// # Errors
/// As [`load_toml`].
pub fn parse_toml<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let before = text.get(..start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) + 1;
        ConfigError::Parse {
            path: path.to_owned(),
            line,
            column,
            message: error.message().to_owned(),
            hint: did_you_mean(error.message()),
            excerpt: text.lines().nth(line - 1).unwrap_or_default().trim_end().to_owned(),
        }
    })
}

/// Reads serde's "unknown field `x`, expected one of `a`, `b`" and names the nearest.
fn did_you_mean(message: &str) -> String {
    if !message.starts_with("unknown field") && !message.starts_with("unknown variant") {
        return String::new();
    }
    let mut words = message.split('`').skip(1).step_by(2);
    let Some(wrong) = words.next() else { return String::new() };
    let near = words.map(|word| (strsim::damerau_levenshtein(wrong, word), word)).min();
    match near {
        Some((distance, word)) if distance <= 3.min(wrong.len() / 2 + 1) => format!("; did you mean `{word}`?"),
        _ => String::new(),
    }
}

/// Reads `"30s"`, `"1m 30s"`, `"500ms"`.
///
/// # Errors
/// When the text is not a duration.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|error| serde::de::Error::custom(format!("`{text}` is not a duration such as \"30s\": {error}")))
}

/// The whole node file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Who this node is.
    pub node: NodeSection,
    /// How it speaks to other members.
    pub cluster: ClusterSection,
    /// Its SMTP sockets.
    #[serde(default)]
    pub smtp: Vec<SmtpSection>,
    /// Foreign load balancers.
    #[serde(default)]
    pub proxy_protocol: ProxyProtocolSection,
    /// Proxies that speak SMTP themselves.
    #[serde(default)]
    pub xclient: XclientSection,
    /// When letters are tried again.
    #[serde(default)]
    pub queue: QueueSection,
    /// How long what happened to letters is remembered.
    #[serde(default)]
    pub tracking: TrackingSection,
    /// Whom to ask for names.
    #[serde(default)]
    pub dns: DnsSection,
    /// From when on the disk counts as sick.
    #[serde(default)]
    pub health: HealthSection,
    /// Dialogues with devices, written down.
    #[serde(default)]
    pub protocol_log: ProtocolLogSection,
    /// What is logged, and how.
    #[serde(default)]
    pub log: LogSection,
}

/// `[node]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSection {
    /// Unique in the cluster, never reused: `n1`.
    pub name: String,
    /// Where everything durable is kept; made if missing, mode 0700.
    pub data_dir: PathBuf,
    /// The name in banners, `EHLO` replies and `Received` lines. Default: the node's name.
    #[serde(default)]
    pub fqdn: Option<String>,
    /// The local administration socket. Default: `node.sock` in the data directory.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// Where `/livez`, `/readyz` and `/metrics` are served.
    #[serde(default = "default_http")]
    pub http: SocketAddr,
    /// Where HAProxy's agent checks are answered. Default: nowhere.
    #[serde(default)]
    pub agent: Option<SocketAddr>,
    /// How long SIGTERM waits for open sessions and running deliveries.
    #[serde(default = "default_drain_timeout", deserialize_with = "duration")]
    pub drain_timeout: Duration,
}

/// `[cluster]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSection {
    /// Where members, fronts and administrators reach this node (gRPC, mutual TLS).
    pub listen: SocketAddr,
    /// What the others dial. Default: `listen`, which must then be a specific address.
    #[serde(default)]
    pub advertise: Option<String>,
    /// How often the leader speaks.
    #[serde(default = "default_heartbeat", deserialize_with = "duration")]
    pub heartbeat: Duration,
    /// Shortest patience of a follower.
    #[serde(default = "default_election_min", deserialize_with = "duration")]
    pub election_timeout_min: Duration,
    /// Longest patience of a follower.
    #[serde(default = "default_election_max", deserialize_with = "duration")]
    pub election_timeout_max: Duration,
}

/// `[[smtp]]`: one SMTP socket.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmtpSection {
    /// Where it binds.
    pub listen: SocketAddr,
    /// Which service it is: 25, 587 or 465. Connectors are bound to this port, whatever port the socket has.
    /// Default: the port of `listen`.
    #[serde(default)]
    pub service_port: Option<u16>,
    /// Whether TLS starts with the first byte (RFC 8314 §3). Default: on service port 465.
    #[serde(default)]
    pub implicit_tls: Option<bool>,
    /// What fronts dial. Default: `listen`, or its port on the host of `cluster.advertise` when it is a wildcard.
    #[serde(default)]
    pub advertise: Option<String>,
}

impl SmtpSection {
    /// The service that this socket serves.
    #[must_use]
    pub fn service(&self) -> u16 {
        self.service_port.unwrap_or_else(|| self.listen.port())
    }

    /// Whether TLS starts with the first byte.
    #[must_use]
    pub fn is_implicit_tls(&self) -> bool {
        self.implicit_tls.unwrap_or_else(|| self.service() == SUBMISSIONS_PORT)
    }
}

/// RFC 8314 §3.3: submission over implicit TLS.
const SUBMISSIONS_PORT: u16 = 465;

/// `[proxy_protocol]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyProtocolSection {
    /// Foreign load balancers, by address or network: a PROXY header (v1 or v2) is required from them and believed.
    /// Our own fronts are not listed: they are known to the cluster and sign their headers.
    pub trusted: Vec<TrustedPeer>,
    /// How long a peer that owes a header may take.
    #[serde(deserialize_with = "duration")]
    pub header_timeout: Duration,
}

impl Default for ProxyProtocolSection {
    fn default() -> Self {
        Self { trusted: Vec::new(), header_timeout: HEADER_TIMEOUT }
    }
}

/// haproxy's proxy-protocol.txt §2: at least 3 seconds, to survive one TCP retransmission.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// `[xclient]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct XclientSection {
    /// SMTP proxies and filters, by address or network, that may say with `XCLIENT` for whom they speak. Whoever is
    /// listed can claim every address, and so every right that an address has.
    pub trusted: Vec<TrustedPeer>,
}

/// An address or a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct TrustedPeer(IpNet);

impl TrustedPeer {
    /// Whether `address` is meant.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl TryFrom<String> for TrustedPeer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self(address.to_canonical().into()));
        }
        text.parse::<IpNet>()
            .map(|net| Self(net.trunc()))
            .map_err(|_| format!("`{text}` is neither an address nor a network such as 10.0.0.0/28"))
    }
}

/// `[queue]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueSection {
    /// Exchange's `QueueGlitchRetryInterval`: the first retries, four of them.
    #[serde(deserialize_with = "duration")]
    pub glitch_retry_interval: Duration,
    /// Exchange's `TransientFailureRetryInterval`: the next six.
    #[serde(deserialize_with = "duration")]
    pub transient_failure_retry_interval: Duration,
    /// Exchange's `MessageRetryInterval`: all others.
    #[serde(deserialize_with = "duration")]
    pub message_retry_interval: Duration,
    /// When a letter is given up and its sender told.
    #[serde(deserialize_with = "duration")]
    pub message_expiration_timeout: Duration,
    /// Exchange's `DelayNotificationTimeout`: when the sender of a letter that still waits is told so; zero: never.
    #[serde(deserialize_with = "duration")]
    pub delay_notification_timeout: Duration,
}

impl Default for QueueSection {
    fn default() -> Self {
        Self {
            glitch_retry_interval: Duration::from_secs(60),
            transient_failure_retry_interval: Duration::from_secs(5 * 60),
            message_retry_interval: Duration::from_secs(15 * 60),
            // Longer than Exchange's two days: a weekend must not kill a letter.
            message_expiration_timeout: Duration::from_secs(5 * 24 * 3600),
            delay_notification_timeout: Duration::from_secs(4 * 3600),
        }
    }
}

/// `[tracking]`: message tracking goes when it is too old or too much, the oldest first.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrackingSection {
    /// Exchange's `MessageTrackingLogMaxAge`.
    #[serde(deserialize_with = "duration")]
    pub max_age: Duration,
    /// Exchange's `MessageTrackingLogMaxDirectorySize`, before compression.
    pub max_size_mib: u64,
}

impl Default for TrackingSection {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(30 * 24 * 3600), max_size_mib: 1000 }
    }
}

/// `[dns]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsSection {
    /// Name servers, asked in turn; empty: those of the machine.
    pub servers: Vec<SocketAddr>,
    /// How long one server has for one try.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// Tries per question beyond the first.
    pub attempts: usize,
}

impl Default for DnsSection {
    fn default() -> Self {
        // The stub resolver's own defaults (resolv.conf(5)): 5 seconds, 2 attempts.
        Self { servers: Vec::new(), timeout: Duration::from_secs(5), attempts: 2 }
    }
}

/// `[health]`: what makes this node leave the fronts' rotation before it refuses anyone.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthSection {
    /// How often a small file is synced beside the letters.
    #[serde(deserialize_with = "duration")]
    pub disk_probe_interval: Duration,
    /// A sync that takes longer makes this node unready while it lasts.
    #[serde(deserialize_with = "duration")]
    pub sync_timeout: Duration,
    /// From this share of used space (with less than `disk_free_enough_mib` left) or inodes on the disk is full.
    pub disk_used_max_percent: u8,
    /// As long as so much is free the share of used space does not matter.
    pub disk_free_enough_mib: u64,
}

impl Default for HealthSection {
    fn default() -> Self {
        Self {
            disk_probe_interval: Duration::from_millis(250),
            // A device waits minutes (RFC 5321 §4.5.3.2.6), but a second is a hundred times what a sync takes.
            sync_timeout: Duration::from_secs(1),
            disk_used_max_percent: 95,
            // Some thirty of the largest letters.
            disk_free_enough_mib: 1024,
        }
    }
}

/// `[protocol_log]`: where the dialogues of connectors with a protocol logging level are written. The limits are
/// Exchange's.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProtocolLogSection {
    /// Exchange's nine fields, or JSON lines.
    pub format: ProtocolLogFormat,
    /// Absent: `protocol-log` in the data directory.
    pub directory: Option<PathBuf>,
    /// A file is full from so many MiB on.
    pub max_file_size_mib: u64,
    /// The oldest files go when all of them have more.
    pub max_directory_size_mib: u64,
    /// Older files go.
    #[serde(deserialize_with = "duration")]
    pub max_age: Duration,
}

impl Default for ProtocolLogSection {
    fn default() -> Self {
        Self {
            format: ProtocolLogFormat::Exchange,
            directory: None,
            max_file_size_mib: 10,
            max_directory_size_mib: 250,
            max_age: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

/// How the protocol log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProtocolLogFormat {
    /// Nine comma-separated fields under five header lines.
    Exchange,
    /// One JSON object a line.
    Json,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// JSON lines, or text for people.
    pub format: LogFormat,
    /// `tracing` directives: `info`, `posthouse_node=debug`.
    pub level: String,
}

impl Default for LogSection {
    fn default() -> Self {
        Self { format: LogFormat::Auto, level: "info".to_owned() }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// JSON lines.
    Json,
    /// Text for people.
    Text,
}

fn default_http() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9180))
}

fn default_drain_timeout() -> Duration {
    Duration::from_secs(30)
}

/// With 50/100/150 ms a killed leader was replaced within 350 ms in every one of 46 trials, also on busy cores. The
/// bound is 2 × max + 1.5 × heartbeat, because a follower waits out the lease and then its own timeout.
fn default_heartbeat() -> Duration {
    Duration::from_millis(50)
}

fn default_election_min() -> Duration {
    Duration::from_millis(100)
}

fn default_election_max() -> Duration {
    Duration::from_millis(150)
}

impl NodeConfig {
    /// Reads and checks a node file.
    ///
    /// # Errors
    /// When it cannot be read, parsed, or makes no sense.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config: Self = load_toml(path)?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let bad = |key: &str, cause: &str| {
            Err(ConfigError::Value { path: path.to_owned(), key: key.to_owned(), cause: cause.to_owned() })
        };
        if !is_name(&self.node.name) {
            return bad("node.name", "must be 1 to 63 letters, digits or hyphens, such as \"n1\"");
        }
        if self.cluster.advertise.is_none() && self.cluster.listen.ip().is_unspecified() {
            return bad("cluster.advertise", "is needed when cluster.listen is a wildcard: other members must dial it");
        }
        let (heartbeat, min, max) =
            (self.cluster.heartbeat, self.cluster.election_timeout_min, self.cluster.election_timeout_max);
        if heartbeat.is_zero() || min <= heartbeat || max <= min {
            return bad("cluster.heartbeat", "must hold: 0 < heartbeat < election_timeout_min < election_timeout_max");
        }
        if self.smtp.is_empty() {
            return bad("smtp", "needs at least one [[smtp]] socket");
        }
        for (index, socket) in self.smtp.iter().enumerate() {
            if self.smtp[..index].iter().any(|other| other.listen == socket.listen && socket.listen.port() != 0) {
                return bad("smtp.listen", &format!("{} is listed twice", socket.listen));
            }
        }
        let health = &self.health;
        if health.disk_probe_interval.is_zero() || health.sync_timeout.is_zero() {
            return bad("health", "disk_probe_interval and sync_timeout must be longer than nothing");
        }
        if !(1..=100).contains(&health.disk_used_max_percent) {
            return bad("health.disk_used_max_percent", "must be between 1 and 100");
        }
        let log = &self.protocol_log;
        if log.max_file_size_mib == 0 || log.max_directory_size_mib < log.max_file_size_mib {
            return bad("protocol_log", "must hold: 0 < max_file_size_mib <= max_directory_size_mib");
        }
        Ok(())
    }

    /// What other members dial.
    #[must_use]
    pub fn advertise(&self) -> String {
        self.cluster.advertise.clone().unwrap_or_else(|| self.cluster.listen.to_string())
    }

    /// What fronts dial for one SMTP socket.
    #[must_use]
    pub fn advertise_smtp(&self, socket: &SmtpSection) -> String {
        if let Some(address) = &socket.advertise {
            return address.clone();
        }
        if !socket.listen.ip().is_unspecified() {
            return socket.listen.to_string();
        }
        let advertise = self.advertise();
        let host = advertise.rsplit_once(':').map_or(advertise.as_str(), |(host, _)| host);
        format!("{host}:{}", socket.listen.port())
    }

    /// The name in banners and `Received` lines.
    #[must_use]
    pub fn fqdn(&self) -> String {
        self.node.fqdn.clone().unwrap_or_else(|| self.node.name.clone())
    }

    /// The local administration socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.node.socket.clone().unwrap_or_else(|| self.node.data_dir.join("node.sock"))
    }
}

/// Whether `name` can be a label of a host name (RFC 1123 §2.1): it becomes part of a certificate's name.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MINIMAL: &str = "[node]\nname = \"n1\"\ndata_dir = \"/tmp/x\"\n[cluster]\nlisten = \"127.0.0.1:7101\"\n\
                           [[smtp]]\nlisten = \"127.0.0.1:2525\"\nservice_port = 25\n";

    fn parse(text: &str) -> Result<NodeConfig, ConfigError> {
        let config: NodeConfig = parse_toml(Path::new("node.toml"), text)?;
        config.check(Path::new("node.toml"))?;
        Ok(config)
    }

    #[test]
    fn a_minimal_file_is_enough() {
        let config = parse(MINIMAL).unwrap();
        assert_eq!(config.fqdn(), "n1");
        assert_eq!(config.advertise(), "127.0.0.1:7101");
        assert!(!config.smtp[0].is_implicit_tls());
    }

    #[test]
    fn an_unknown_key_names_file_line_and_the_key_meant() {
        let text = MINIMAL.replace("data_dir", "data_dri");
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.starts_with("node.toml:3:1: unknown field `data_dri`"), "{error}");
        assert!(error.contains("did you mean `data_dir`?"), "{error}");
    }

    #[test]
    fn nobody_may_say_xclient_unless_listed() {
        assert!(parse(MINIMAL).unwrap().xclient.trusted.is_empty());
        let listed = parse(&format!("{MINIMAL}[xclient]\ntrusted = [\"10.0.0.5\", \"10.1.0.0/30\"]\n")).unwrap();
        let may = |address: &str| listed.xclient.trusted.iter().any(|peer| peer.contains(address.parse().unwrap()));
        assert!(may("10.0.0.5") && may("::ffff:10.1.0.3") && !may("10.1.0.4"));
        let error = parse(&format!("{MINIMAL}[xclient]\ntrust = []\n")).unwrap_err().to_string();
        assert!(error.contains("did you mean `trusted`?"), "{error}");
        assert!(parse(&format!("{MINIMAL}[xclient]\ntrusted = [\"filter.example\"]\n")).is_err());
    }

    #[test]
    fn a_wrong_duration_is_shown() {
        let text = format!("{MINIMAL}[queue]\nglitch_retry_interval = \"soon\"\n");
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains("node.toml:10") && error.contains("`soon` is not a duration"), "{error}");
    }

    #[test]
    fn a_wildcard_needs_an_advertised_address() {
        let error = parse(&MINIMAL.replace("127.0.0.1:7101", "0.0.0.0:7101")).unwrap_err().to_string();
        assert!(error.contains("cluster.advertise"), "{error}");
    }

    #[test]
    fn a_wildcard_socket_is_advertised_on_the_members_host() {
        let text = MINIMAL.replace("127.0.0.1:2525", "0.0.0.0:25").replace("service_port = 25\n", "");
        let config = parse(&text).unwrap();
        assert_eq!(config.advertise_smtp(&config.smtp[0]), "127.0.0.1:25");
        assert_eq!(config.smtp[0].service(), 25);
    }
}
