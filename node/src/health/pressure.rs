//! Back pressure: how full and how slow this node is, pure. Each resource has a level with separate thresholds for the
//! way up and the way down, as Exchange's have (Microsoft, "Understanding back pressure"), so that a value that
//! wavers around one number does not make the node flap. At medium the node leaves the fronts' rotation and still
//! serves whoever comes; at high it refuses new letters with `452 4.3.1`. Delivery goes on at every level: it is what
//! brings relief.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What can run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Bytes of the spool's file system, in per cent.
    DiskSpace,
    /// Its inodes, in per cent.
    Inodes,
    /// This process's share of the machine's memory, in per cent.
    Memory,
    /// Letters in this node's queue.
    QueueLength,
    /// Milliseconds that the newest synced write took, or that the one under way has taken.
    CommitLatency,
}

impl Resource {
    /// Every resource, in the order in which they are shown.
    pub const ALL: [Self; 5] = [Self::DiskSpace, Self::Inodes, Self::Memory, Self::QueueLength, Self::CommitLatency];

    /// The word in logs, settings and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DiskSpace => "disk_space",
            Self::Inodes => "inodes",
            Self::Memory => "memory",
            Self::QueueLength => "queue_length",
            Self::CommitLatency => "commit_latency",
        }
    }

    /// What its numbers count.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::DiskSpace | Self::Inodes | Self::Memory => "%",
            Self::QueueLength => " letters",
            Self::CommitLatency => " ms",
        }
    }
}

/// How much a resource is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    #[default]
    Low,
    /// New connections should go elsewhere.
    Medium,
    /// No new letter is taken.
    High,
}

impl Level {
    /// The word in logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// At which values a level changes: written `89/99/90/80`, in the order of Exchange's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Thresholds {
    /// From low to medium, at this value or above.
    pub low_to_medium: u64,
    /// To high, at this value or above.
    pub medium_to_high: u64,
    /// From high back to medium, at this value or below.
    pub high_to_medium: u64,
    /// Back to low, at this value or below.
    pub medium_to_low: u64,
}

/// Why a text is not four thresholds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdsError {
    /// Not four numbers.
    #[error("\"{0}\" is not four numbers such as 89/99/90/80 (to medium, to high, back to medium, back to low)")]
    Syntax(String),
    /// In an order that cannot work.
    #[error(
        "{0} does not rise and fall in order: back to low < to medium < to high, and back to low < back to medium < \
         to high"
    )]
    Order(Thresholds),
}

impl Thresholds {
    /// Thresholds that are known to be in order.
    const fn known(low_to_medium: u64, medium_to_high: u64, high_to_medium: u64, medium_to_low: u64) -> Self {
        Self { low_to_medium, medium_to_high, high_to_medium, medium_to_low }
    }

    /// Microsoft's for the disk under the queue: `UsedDiskSpace`.
    pub const DISK: Self = Self::known(89, 99, 90, 80);
    /// Microsoft's for `PrivateBytes`.
    pub const MEMORY: Self = Self::known(72, 75, 73, 71);
    /// Letters. Not Exchange's 9,999 and 15,000, which count a queue in memory: ours is on disk, and a relay whose
    /// next hop is away for a weekend must go on taking letters.
    pub const QUEUE: Self = Self::known(1_000_000, 2_000_000, 1_500_000, 900_000);
    /// Milliseconds. A device waits ten minutes for the answer to its letter (RFC 5321 §4.5.3.2.6); half a second is
    /// long enough to send it to another node, and ten seconds is a disk that hangs.
    pub const COMMIT: Self = Self::known(500, 10_000, 1_000, 250);

    fn next(self, level: Level, value: u64) -> Level {
        let climbs = if value >= self.medium_to_high {
            Level::High
        } else if value >= self.low_to_medium {
            Level::Medium
        } else {
            Level::Low
        };
        let stays = if value <= self.medium_to_low {
            Level::Low
        } else if value <= self.high_to_medium {
            Level::Medium
        } else {
            Level::High
        };
        // Up when a threshold upwards is reached, down when one downwards is: in between it stays.
        climbs.max(level.min(stays))
    }
}

impl fmt::Display for Thresholds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { low_to_medium, medium_to_high, high_to_medium, medium_to_low } = self;
        write!(f, "{low_to_medium}/{medium_to_high}/{high_to_medium}/{medium_to_low}")
    }
}

impl FromStr for Thresholds {
    type Err = ThresholdsError;

    fn from_str(text: &str) -> Result<Self, ThresholdsError> {
        let numbers: Option<Vec<u64>> = text.split('/').map(|number| number.trim().parse().ok()).collect();
        let Some([low_to_medium, medium_to_high, high_to_medium, medium_to_low]) = numbers.as_deref() else {
            return Err(ThresholdsError::Syntax(text.to_owned()));
        };
        let found = Self::known(*low_to_medium, *medium_to_high, *high_to_medium, *medium_to_low);
        let rises = medium_to_low < low_to_medium && low_to_medium < medium_to_high;
        let falls = medium_to_low < high_to_medium && high_to_medium < medium_to_high;
        if rises && falls { Ok(found) } else { Err(ThresholdsError::Order(found)) }
    }
}

impl TryFrom<String> for Thresholds {
    type Error = ThresholdsError;

    fn try_from(text: String) -> Result<Self, ThresholdsError> {
        text.parse()
    }
}

impl From<Thresholds> for String {
    fn from(thresholds: Thresholds) -> Self {
        thresholds.to_string()
    }
}

/// The thresholds of every resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PressureSettings {
    /// Of [`Resource::DiskSpace`].
    pub disk_space: Thresholds,
    /// Of [`Resource::Inodes`].
    pub inodes: Thresholds,
    /// Of [`Resource::Memory`].
    pub memory: Thresholds,
    /// Of [`Resource::QueueLength`].
    pub queue_length: Thresholds,
    /// Of [`Resource::CommitLatency`].
    pub commit_latency: Thresholds,
}

impl Default for PressureSettings {
    fn default() -> Self {
        Self {
            disk_space: Thresholds::DISK,
            inodes: Thresholds::DISK,
            memory: Thresholds::MEMORY,
            queue_length: Thresholds::QUEUE,
            commit_latency: Thresholds::COMMIT,
        }
    }
}

impl PressureSettings {
    /// The thresholds of one resource.
    #[must_use]
    pub fn of(&self, resource: Resource) -> Thresholds {
        match resource {
            Resource::DiskSpace => self.disk_space,
            Resource::Inodes => self.inodes,
            Resource::Memory => self.memory,
            Resource::QueueLength => self.queue_length,
            Resource::CommitLatency => self.commit_latency,
        }
    }
}

/// The level of every resource, as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    seen: [(Level, u64); Resource::ALL.len()],
}

/// A resource whose level changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PressureFlip {
    /// Which.
    pub resource: Resource,
    /// From.
    pub from: Level,
    /// To.
    pub to: Level,
    /// At this value.
    pub value: u64,
}

impl Pressure {
    /// Takes a new value. Answers the change of level, if there is one.
    pub fn observe(&mut self, settings: &PressureSettings, resource: Resource, value: u64) -> Option<PressureFlip> {
        let seen = &mut self.seen[resource as usize];
        let (from, to) = (seen.0, settings.of(resource).next(seen.0, value));
        *seen = (to, value);
        (from != to).then_some(PressureFlip { resource, from, to, value })
    }

    /// The highest level of all, and, above low, the first resource that has it with its value.
    #[must_use]
    pub fn worst(&self) -> (Level, Option<(Resource, u64)>) {
        let level = self.seen.iter().map(|seen| seen.0).max().unwrap_or_default();
        if level == Level::Low {
            return (level, None);
        }
        let found = Resource::ALL.into_iter().find(|resource| self.of(*resource).0 == level);
        (level, found.map(|resource| (resource, self.of(resource).1)))
    }

    /// The level and the last value of one resource.
    #[must_use]
    pub fn of(&self, resource: Resource) -> (Level, u64) {
        self.seen[resource as usize]
    }

    /// In words: `disk_space 99% is high`; nothing when all is low.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let (level, worst) = self.worst();
        worst.map(|(resource, value)| format!("{} {value}{} is {}", resource.as_str(), resource.unit(), level.as_str()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn walk(values: &[u64]) -> Vec<Level> {
        let (mut pressure, settings) = (Pressure::default(), PressureSettings::default());
        let level = |value: &u64| {
            pressure.observe(&settings, Resource::DiskSpace, *value);
            pressure.of(Resource::DiskSpace).0
        };
        values.iter().map(level).collect()
    }

    #[test]
    fn a_level_rises_at_one_value_and_falls_at_another() {
        use Level::{High, Low, Medium};
        assert_eq!(walk(&[88, 89, 88, 81, 80]), [Low, Medium, Medium, Medium, Low]);
        assert_eq!(walk(&[99, 98, 91, 90, 89, 81, 80]), [High, High, High, Medium, Medium, Medium, Low]);
        assert_eq!(walk(&[100, 10]), [High, Low], "all the way at once");
        assert_eq!(walk(&[85, 99]), [Low, High]);
    }

    #[test]
    fn the_worst_resource_is_named_with_its_value() {
        let (mut pressure, settings) = (Pressure::default(), PressureSettings::default());
        assert_eq!(pressure.trouble(), None);
        pressure.observe(&settings, Resource::Memory, 73);
        let flip = pressure.observe(&settings, Resource::CommitLatency, 12_000).unwrap();
        assert_eq!((flip.from, flip.to), (Level::Low, Level::High));
        assert_eq!(pressure.trouble().unwrap(), "commit_latency 12000 ms is high");
        pressure.observe(&settings, Resource::CommitLatency, 3);
        assert_eq!(pressure.trouble().unwrap(), "memory 73% is medium");
    }

    #[test]
    fn thresholds_are_read_and_written_and_those_out_of_order_are_refused() {
        assert_eq!("89/99/90/80".parse::<Thresholds>().unwrap(), Thresholds::DISK);
        assert_eq!(Thresholds::MEMORY.to_string(), "72/75/73/71");
        for bad in ["", "1/2/3", "1/2/3/4/5", "a/b/c/d", "-1/2/3/4"] {
            assert!(matches!(bad.parse::<Thresholds>(), Err(ThresholdsError::Syntax(_))), "{bad}");
        }
        for bad in ["89/89/90/80", "80/99/90/80", "89/99/99/80", "89/99/80/80", "10/20/5/6"] {
            assert!(matches!(bad.parse::<Thresholds>(), Err(ThresholdsError::Order(_))), "{bad}");
        }
    }

    #[test]
    fn every_default_survives_its_encoding() {
        let settings = PressureSettings::default();
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<PressureSettings>(&text).unwrap(), settings);
        assert_eq!(serde_json::from_str::<PressureSettings>("{}").unwrap(), settings);
    }
}
