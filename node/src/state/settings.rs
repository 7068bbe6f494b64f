//! Cluster-wide settings: one record, and the table of its keys. A key is what an administrator types, with one
//! sentence on what it means; reading, writing and checking a value stand beside it, so that there is one list. The
//! authorities of devices' certificates are kept here and have no key: they are a file, not a value to type.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::apply::{Done, one};
use super::refusals::{invalid, not_found, revision_moved};
use super::{ClusterState, Command, ObjectKey, Refusal};
use crate::health::{PressureSettings, Thresholds, ThresholdsError};
use crate::mail::{AddressError, Mailbox};

/// A site's printers fit in a handful of /24 networks; a /16 is a mistake more often than a wish.
pub const RELAY_ADDRESSES_MAX_DEFAULT: u64 = 4096;
/// Copies of one report; more readers belong on a mailing list.
const COPIES_MAX: usize = 10;

/// Cluster-wide settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Log index of the last change; 0: never changed.
    #[serde(skip_serializing_if = "is_zero")]
    pub revision: u64,
    /// How many addresses one connector may let relay anywhere without an explicit override: the open-relay guard.
    pub relay_addresses_max: u64,
    /// Who gets a copy of every report of failure: devices send as addresses that nobody reads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dsn_copy_to: Vec<Mailbox>,
    /// Who reads what is sent to `postmaster` (RFC 5321 §4.5.1); absent: such letters wait until there is somebody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postmaster: Option<Mailbox>,
    /// When a node leaves the rotation and when it refuses letters.
    pub back_pressure: PressureSettings,
    /// The authorities whose client certificates name devices, PEM; empty: none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_ca_pem: String,
}

fn is_zero(revision: &u64) -> bool {
    *revision == 0
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            revision: 0,
            relay_addresses_max: RELAY_ADDRESSES_MAX_DEFAULT,
            dsn_copy_to: Vec::new(),
            postmaster: None,
            back_pressure: PressureSettings::default(),
            client_ca_pem: String::new(),
        }
    }
}

impl Settings {
    /// What a rollback to `then` makes of these. The authorities of devices' certificates stay: to bring old ones back
    /// would undo a revocation.
    pub(super) fn rolled_back_to(&self, then: Self, revision: u64) -> Self {
        let settings = Self { revision: self.revision, client_ca_pem: self.client_ca_pem.clone(), ..then };
        if settings == *self { settings } else { Self { revision, ..settings } }
    }
}

/// Changes settings by their keys, all or none.
pub(super) fn set(
    state: &mut ClusterState,
    command: &Command,
    revision: u64,
    values: &[(String, Option<String>)],
) -> Result<Done, Refusal> {
    check_revision(state, command)?;
    let mut settings = Settings::clone(&state.settings);
    let mut words = Vec::new();
    for (name, value) in values {
        let Some(key) = SettingKey::find(name) else {
            return Err(not_found("PH-SET-001", "setting", name, "settings list"));
        };
        let value = value.clone().unwrap_or_else(|| key.default_value());
        key.set(&mut settings, &value).map_err(|cause| {
            invalid("PH-SET-002", format!("setting \"{name}\" is not valid"), cause, "give a value of that form")
        })?;
        words.push(match key.value(&settings) {
            value if value.is_empty() => format!("{name} to nothing"),
            value => format!("{name} = {value}"),
        });
    }
    if settings == *state.settings {
        return Ok(Done::default());
    }
    settings.revision = revision;
    state.settings = Arc::new(settings);
    Ok(one(ObjectKey::Settings, format!("set {}", words.join(", "))))
}

/// Replaces the authorities of devices' certificates.
pub(super) fn put_client_authorities(
    state: &mut ClusterState,
    command: &Command,
    revision: u64,
    pem: &str,
) -> Result<Done, Refusal> {
    check_revision(state, command)?;
    if state.settings.client_ca_pem == pem {
        return Ok(Done::default());
    }
    let settings = Arc::make_mut(&mut state.settings);
    pem.clone_into(&mut settings.client_ca_pem);
    settings.revision = revision;
    let verb = if pem.is_empty() { "cleared" } else { "replaced" };
    Ok(one(ObjectKey::Settings, format!("{verb} the authorities of client certificates")))
}

fn check_revision(state: &ClusterState, command: &Command) -> Result<(), Refusal> {
    let actual = state.settings.revision;
    match command.if_revision {
        Some(wanted) if wanted != actual => Err(revision_moved("settings", "cluster", wanted, Some(actual))),
        _ => Ok(()),
    }
}

/// One key of the settings.
pub struct SettingKey {
    /// What is typed.
    pub name: &'static str,
    /// What it means, in one sentence.
    pub meaning: &'static str,
    read: fn(&Settings) -> String,
    write: fn(&mut Settings, &str) -> Result<(), String>,
}

impl SettingKey {
    /// The value, as it is typed.
    #[must_use]
    pub fn value(&self, settings: &Settings) -> String {
        (self.read)(settings)
    }

    /// The value of a cluster that never changed it.
    #[must_use]
    pub fn default_value(&self) -> String {
        (self.read)(&Settings::default())
    }

    /// Takes a value.
    ///
    /// # Errors
    /// In words, when it is not one.
    pub fn set(&self, settings: &mut Settings, value: &str) -> Result<(), String> {
        (self.write)(settings, value)
    }

    /// Finds a key by its name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        SETTING_KEYS.iter().find(|key| key.name == name)
    }
}

fn thresholds(value: &str) -> Result<Thresholds, String> {
    value.parse().map_err(|error: ThresholdsError| error.to_string())
}

fn mailbox(value: &str) -> Result<Mailbox, String> {
    let wrong = |error: AddressError| format!("\"{value}\" is not a mailbox such as admin@corp.example: {error}");
    value.parse().map_err(wrong)
}

/// Mailboxes with commas between them; an empty text is none.
fn mailboxes(value: &str) -> Result<Vec<Mailbox>, String> {
    let words = value.split(',').map(str::trim).filter(|word| !word.is_empty());
    let found = words.map(mailbox).collect::<Result<Vec<_>, _>>()?;
    if found.len() > COPIES_MAX {
        return Err(format!("it names more than {COPIES_MAX}: name a mailing list"));
    }
    Ok(found)
}

fn number(value: &str, min: u64, max: u64) -> Result<u64, String> {
    match value.parse() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        Ok(_) | Err(_) => Err(format!("\"{value}\" is not a number from {min} to {max}")),
    }
}

/// Every key, in the order in which they are shown.
pub const SETTING_KEYS: &[SettingKey] = &[
    SettingKey {
        name: "relay_addresses_max",
        meaning: "addresses that one connector may let relay anywhere before the open-relay guard asks for --accept-risk",
        read: |settings| settings.relay_addresses_max.to_string(),
        write: |settings, value| number(value, 1, u64::from(u32::MAX)).map(|n| settings.relay_addresses_max = n),
    },
    SettingKey {
        name: "dsn_copy_to",
        meaning: "who gets a copy of every report of failure, with commas between them; empty: nobody",
        read: |settings| settings.dsn_copy_to.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        write: |settings, value| mailboxes(value).map(|found| settings.dsn_copy_to = found),
    },
    SettingKey {
        name: "postmaster",
        meaning: "who reads what is sent to postmaster; empty: nobody, such letters wait",
        read: |settings| settings.postmaster.as_ref().map(ToString::to_string).unwrap_or_default(),
        write: |settings, value| {
            settings.postmaster = if value.is_empty() { None } else { Some(mailbox(value)?) };
            Ok(())
        },
    },
    SettingKey {
        name: "back_pressure_disk_space",
        meaning: "per cent of the spool's disk: to medium/to high/back to medium/back to low",
        read: |settings| settings.back_pressure.disk_space.to_string(),
        write: |settings, value| thresholds(value).map(|four| settings.back_pressure.disk_space = four),
    },
    SettingKey {
        name: "back_pressure_inodes",
        meaning: "per cent of its inodes",
        read: |settings| settings.back_pressure.inodes.to_string(),
        write: |settings, value| thresholds(value).map(|four| settings.back_pressure.inodes = four),
    },
    SettingKey {
        name: "back_pressure_memory",
        meaning: "per cent of the machine's memory in use by the node",
        read: |settings| settings.back_pressure.memory.to_string(),
        write: |settings, value| thresholds(value).map(|four| settings.back_pressure.memory = four),
    },
    SettingKey {
        name: "back_pressure_queue_length",
        meaning: "letters in one node's queue",
        read: |settings| settings.back_pressure.queue_length.to_string(),
        write: |settings, value| thresholds(value).map(|four| settings.back_pressure.queue_length = four),
    },
    SettingKey {
        name: "back_pressure_commit_latency",
        meaning: "milliseconds of one synced write",
        read: |settings| settings.back_pressure.commit_latency.to_string(),
        write: |settings, value| thresholds(value).map(|four| settings.back_pressure.commit_latency = four),
    },
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_key_takes_back_the_value_that_it_shows() {
        for key in SETTING_KEYS {
            let mut settings = Settings::default();
            key.set(&mut settings, &key.default_value()).unwrap();
            assert_eq!(settings, Settings::default(), "{}", key.name);
            assert!(key.set(&mut settings, "nonsense").is_err(), "{} takes anything", key.name);
            let same = SETTING_KEYS.iter().filter(|other| other.name == key.name).count();
            assert_eq!(same, 1, "{} is named twice", key.name);
        }
    }

    #[test]
    fn each_key_changes_a_value_of_its_own() {
        for key in SETTING_KEYS {
            let mut settings = Settings::default();
            let other = match key.name {
                "relay_addresses_max" => "7",
                "dsn_copy_to" => "a@corp.example,b@corp.example",
                "postmaster" => "admin@corp.example",
                _ => "11/13/12/10",
            };
            key.set(&mut settings, other).unwrap();
            assert_eq!(key.value(&settings), other);
            let changed: Vec<_> =
                SETTING_KEYS.iter().filter(|one| one.value(&settings) != one.default_value()).collect();
            assert_eq!(changed.iter().map(|one| one.name).collect::<Vec<_>>(), [key.name]);
        }
    }

    #[test]
    fn a_mailbox_has_a_domain_and_nothing_clears_it() {
        let mut settings = Settings::default();
        for name in ["dsn_copy_to", "postmaster"] {
            let key = SettingKey::find(name).unwrap();
            for bad in ["admin", "admin@", "@corp.example", "admin@corp.example x", "postmaster,admin@corp.example"] {
                assert!(key.set(&mut settings, bad).unwrap_err().contains("is not a mailbox"), "{name}: {bad}");
            }
            key.set(&mut settings, "admin@corp.example").unwrap();
            key.set(&mut settings, "").unwrap();
            assert_eq!(settings, Settings::default());
        }
        let copies = SettingKey::find("dsn_copy_to").unwrap();
        copies.set(&mut settings, " a@corp.example, b@corp.example ,").unwrap();
        assert_eq!(copies.value(&settings), "a@corp.example,b@corp.example");
        let many = ["a@corp.example"; COPIES_MAX + 1].join(",");
        assert!(copies.set(&mut settings, &many).unwrap_err().contains("mailing list"));
    }

    #[test]
    fn settings_of_an_older_version_take_defaults_for_what_they_lack() {
        let read: Settings = serde_json::from_str(r#"{"relay_addresses_max":7}"#).unwrap();
        assert_eq!(read, Settings { relay_addresses_max: 7, ..Settings::default() });
    }
}
