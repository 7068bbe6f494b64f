//! The front file: who this front is, where devices and administrators reach it, and how patient it is. Everything
//! about backends comes from the cluster.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::backend::CheckPolicy;
use super::balance::Algorithm;
use crate::config::{ConfigError, LogSection, duration, is_name, load_toml, parse_toml};

/// The whole front file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontConfig {
    /// Who this front is.
    pub front: FrontSection,
    /// Where devices connect.
    #[serde(default)]
    pub listen: Vec<ListenSection>,
    /// How backends are checked and how long they may take.
    #[serde(default)]
    pub check: CheckSection,
    /// What devices may take.
    #[serde(default)]
    pub limits: LimitsSection,
    /// What is logged, and how.
    #[serde(default)]
    pub log: LogSection,
}

/// `[front]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontSection {
    /// Unique in the cluster: `f1`.
    pub name: String,
    /// Where identity, signing key and the last known backends are kept.
    pub data_dir: PathBuf,
    /// The address from which nodes are dialled. Default: the kernel's choice.
    #[serde(default)]
    pub dial_from: Option<IpAddr>,
    /// Where `/livez`, `/readyz` and `/metrics` are served.
    #[serde(default = "default_http")]
    pub http: SocketAddr,
    /// The local administration socket. Default: `front.sock` in the data directory.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// Which backend takes the next connection.
    #[serde(default)]
    pub balance: Algorithm,
    /// How long SIGTERM waits for open sessions.
    #[serde(default = "default_drain_timeout", deserialize_with = "duration")]
    pub drain_timeout: Duration,
}

impl FrontSection {
    /// The local administration socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.data_dir.join("front.sock"))
    }
}

/// `[[listen]]`: one socket for devices.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenSection {
    /// Where it binds.
    pub address: SocketAddr,
    /// Which service it is: 25, 587 or 465. Default: the port of `address`.
    #[serde(default)]
    pub service_port: Option<u16>,
    /// Whether the device speaks first, because TLS starts with the first byte. Default: on service port 465.
    #[serde(default)]
    pub implicit_tls: Option<bool>,
}

/// RFC 8314 §3.3: submission over implicit TLS.
const SUBMISSIONS_PORT: u16 = 465;

impl ListenSection {
    /// The service that this socket serves.
    #[must_use]
    pub fn service(&self) -> u16 {
        self.service_port.unwrap_or_else(|| self.address.port())
    }

    /// Whether the device speaks first.
    #[must_use]
    pub fn is_implicit_tls(&self) -> bool {
        self.implicit_tls.unwrap_or_else(|| self.service() == SUBMISSIONS_PORT)
    }
}

/// `[check]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckSection {
    /// Time between two checks of a backend whose state is settled.
    #[serde(deserialize_with = "duration")]
    pub inter: Duration,
    /// Time between two checks while its state is changing.
    #[serde(deserialize_with = "duration")]
    pub fastinter: Duration,
    /// Successes in a row until a backend is up.
    pub rise: u32,
    /// Failures in a row until it is down.
    pub fall: u32,
    /// The whole walk of one check.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// How long a connection to a backend may take, for checks and devices alike.
    #[serde(deserialize_with = "duration")]
    pub connect_timeout: Duration,
    /// How long a backend may be silent before another one is asked too.
    #[serde(deserialize_with = "duration")]
    pub banner_timeout: Duration,
    /// How far that patience grows when most backends are late at once, and how long a device is kept
    /// waiting when there is nobody else to ask.
    #[serde(deserialize_with = "duration")]
    pub banner_timeout_max: Duration,
    /// How many backends one device is offered to, each once.
    pub max_attempts: usize,
    /// For so long a backend that came up gets less than its share, growing from a tenth of it. `0s`: at once all.
    #[serde(deserialize_with = "duration")]
    pub slowstart: Duration,
    /// Whether `STARTTLS` is walked too, where it is offered, and the certificate looked at.
    pub starttls: bool,
}

impl Default for CheckSection {
    fn default() -> Self {
        Self {
            // A hung node is down after inter + timeout + fastinter + timeout, about two seconds; a device that meets
            // it earlier is given to another one after `banner_timeout`, and that counts as a failed check.
            inter: Duration::from_millis(500),
            fastinter: Duration::from_millis(100),
            rise: 2,
            fall: 2,
            timeout: Duration::from_millis(750),
            connect_timeout: Duration::from_millis(300),
            banner_timeout: Duration::from_secs(1),
            banner_timeout_max: Duration::from_secs(30),
            max_attempts: 5,
            slowstart: Duration::from_secs(5),
            starttls: true,
        }
    }
}

impl CheckSection {
    pub(super) fn policy(&self) -> CheckPolicy {
        CheckPolicy { rise: self.rise, fall: self.fall }
    }
}

/// `[limits]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Devices at once; one more is answered `421`.
    pub max_connections: usize,
    /// Connections that one address (an IPv6 /64) may have at once; 0: any number. The cluster-wide limit is the
    /// connector's; this one keeps a flood off the nodes.
    pub max_connections_per_source: usize,
    /// New connections a second that one address (an IPv6 /64) may make; 0: any number.
    pub connections_per_source_per_second: u32,
    /// A session in which neither side says anything for so long is closed. Longer than any of SMTP's own timeouts
    /// (RFC 5321 §4.5.3.2: up to ten minutes), because those are the node's to enforce.
    #[serde(deserialize_with = "duration")]
    pub idle_timeout: Duration,
    /// How long a device may take to say its TLS ClientHello on an implicit TLS port.
    #[serde(deserialize_with = "duration")]
    pub hello_timeout: Duration,
    /// `TCP_USER_TIMEOUT`: how long sent bytes may stay unacknowledged.
    #[serde(deserialize_with = "duration")]
    pub user_timeout: Duration,
    /// Idle time after which TCP asks whether the other side is still there.
    #[serde(deserialize_with = "duration")]
    pub keepalive: Duration,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            // A tenth of all: whole sites come from one address, and still one of them cannot shut the others out.
            max_connections_per_source: 1_000,
            // Ten times what one server that opens a connection for each letter does.
            connections_per_source_per_second: 1_000,
            idle_timeout: Duration::from_secs(15 * 60),
            hello_timeout: Duration::from_secs(30),
            user_timeout: Duration::from_secs(30),
            keepalive: Duration::from_secs(60),
        }
    }
}

fn default_http() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9190))
}

fn default_drain_timeout() -> Duration {
    Duration::from_secs(30)
}

impl FrontConfig {
    /// Reads and checks a front file.
    ///
    /// # Errors
    /// When it cannot be read, parsed, or makes no sense.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config: Self = load_toml(path)?;
        config.check(path)?;
        Ok(config)
    }

    /// Parses and checks the text of a front file.
    ///
    /// # Errors
    /// As [`FrontConfig::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = parse_toml(path, text)?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let bad = |key: &str, cause: &str| {
            Err(ConfigError::Value { path: path.to_owned(), key: key.to_owned(), cause: cause.to_owned() })
        };
        if !is_name(&self.front.name) {
            return bad("front.name", "must be 1 to 63 letters, digits or hyphens, such as \"f1\"");
        }
        if self.listen.is_empty() {
            return bad("listen", "needs at least one [[listen]] socket");
        }
        for (index, socket) in self.listen.iter().enumerate() {
            let same = |other: &ListenSection| other.address == socket.address && socket.address.port() != 0;
            if self.listen[..index].iter().any(same) {
                return bad("listen.address", &format!("{} is listed twice", socket.address));
            }
            if socket.service() == 0 {
                return bad("listen.service_port", "is needed when the address has port 0");
            }
        }
        let check = &self.check;
        if check.rise == 0 || check.fall == 0 || check.max_attempts == 0 {
            return bad("check", "rise, fall and max_attempts must be at least 1");
        }
        let durations = [
            ("check.inter", check.inter),
            ("check.fastinter", check.fastinter),
            ("check.timeout", check.timeout),
            ("check.connect_timeout", check.connect_timeout),
            ("check.banner_timeout", check.banner_timeout),
            ("limits.idle_timeout", self.limits.idle_timeout),
            ("limits.hello_timeout", self.limits.hello_timeout),
            ("limits.user_timeout", self.limits.user_timeout),
            ("limits.keepalive", self.limits.keepalive),
        ];
        if let Some((key, _)) = durations.iter().find(|(_, value)| value.is_zero()) {
            return bad(key, "must be longer than nothing");
        }
        if check.banner_timeout_max < check.banner_timeout {
            return bad("check.banner_timeout_max", "must not be shorter than banner_timeout");
        }
        if self.limits.max_connections == 0 {
            return bad("limits.max_connections", "must be at least 1");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MINIMAL: &str =
        "[front]\nname = \"f1\"\ndata_dir = \"/tmp/x\"\n[[listen]]\naddress = \"127.0.0.1:2465\"\nservice_port = 465\n";

    fn parse(text: &str) -> Result<FrontConfig, ConfigError> {
        FrontConfig::parse(Path::new("front.toml"), text)
    }

    #[test]
    fn a_minimal_file_is_enough() {
        let config = parse(MINIMAL).unwrap();
        assert_eq!(config.front.balance, Algorithm::LeastConnections);
        assert!(config.listen[0].is_implicit_tls());
        assert_eq!(config.front.socket(), Path::new("/tmp/x/front.sock"));
    }

    #[test]
    fn an_unknown_key_names_the_key_meant() {
        let error = parse(&MINIMAL.replace("service_port", "service_prot")).unwrap_err().to_string();
        assert!(error.starts_with("front.toml:6:1") && error.contains("did you mean `service_port`?"), "{error}");
    }

    #[test]
    fn values_that_make_no_sense_name_their_key() {
        let cases = [
            ("\"f1\"", "\"f 1\"", "front.name"),
            ("service_port = 465", "service_port = 0", "listen.service_port"),
            ("465\n", "465\n[[listen]]\naddress = \"127.0.0.1:2465\"\n", "listen.address"),
            ("465\n", "465\n[check]\nfall = 0\n", "check"),
            ("465\n", "465\n[check]\ninter = \"0s\"\n", "check.inter"),
            ("465\n", "465\n[check]\nbanner_timeout = \"31s\"\n", "check.banner_timeout_max"),
            ("465\n", "465\n[limits]\nmax_connections = 0\n", "limits.max_connections"),
        ];
        for (from, to, key) in cases {
            let error = parse(&MINIMAL.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(&format!("front.toml: {key}: ")), "{to}: {error}");
        }
    }
}
