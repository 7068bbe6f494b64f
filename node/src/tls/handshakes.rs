//! Failed TLS handshakes with devices, one entry for each device and service, so that an administrator can say which
//! printers need attention before they stop printing. Bounded: the device unseen longest goes first.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use super::client_hello::Hello;

/// Devices remembered.
const ENTRIES_MAX: usize = 10_000;
/// Of the error's text.
const ERROR_CHARS_MAX: usize = 200;

/// What is remembered of one device at one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedHandshake {
    /// The device.
    pub source: IpAddr,
    /// The service port: 25, 587 or 465.
    pub port: u16,
    /// The connector that took it.
    pub connector: String,
    /// What it offered, the last time.
    pub hello: Hello,
    /// What went wrong, the last time.
    pub error: String,
    /// How often.
    pub count: u64,
    /// In unix milliseconds.
    pub first_at_ms: i64,
    /// In unix milliseconds.
    pub last_at_ms: i64,
}

/// All of them. Forgotten when the process ends: a device that cannot shake hands tries again.
#[derive(Debug, Default)]
pub struct FailedHandshakes {
    entries: Mutex<BTreeMap<(IpAddr, u16), FailedHandshake>>,
}

impl FailedHandshakes {
    /// Remembers one.
    pub fn record(&self, source: IpAddr, port: u16, connector: &str, hello: Hello, error: &str, now_ms: i64) {
        let error: String = error.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ERROR_CHARS_MAX).collect();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (source.to_canonical(), port);
        if let Some(entry) = entries.get_mut(&key) {
            entry.count = entry.count.saturating_add(1);
            entry.last_at_ms = now_ms;
            connector.clone_into(&mut entry.connector);
            entry.error = error;
            // A hello that was cut off tells less than the one before.
            if !hello.versions.is_empty() {
                entry.hello = hello;
            }
            return;
        }
        if entries.len() >= ENTRIES_MAX
            && let Some(oldest) = entries.iter().min_by_key(|(_, entry)| entry.last_at_ms).map(|(key, _)| *key)
        {
            entries.remove(&oldest);
        }
        entries.insert(
            key,
            FailedHandshake {
                source: key.0,
                port,
                connector: connector.to_owned(),
                hello,
                error,
                count: 1,
                first_at_ms: now_ms,
                last_at_ms: now_ms,
            },
        );
    }

    /// Those since `since_ms`, the newest first.
    #[must_use]
    pub fn since(&self, since_ms: i64) -> Vec<FailedHandshake> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<FailedHandshake> =
            entries.values().filter(|entry| entry.last_at_ms >= since_ms).cloned().collect();
        found.sort_by_key(|entry| std::cmp::Reverse(entry.last_at_ms));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::client_hello::OfferedVersion;
    use super::*;

    fn weak() -> Hello {
        Hello { versions: vec![OfferedVersion(0x0301)], server_name: None }
    }

    fn ip(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[test]
    fn a_device_has_one_entry_for_each_service_with_its_last_words() {
        let book = FailedHandshakes::default();
        book.record(ip(1), 587, "submission", weak(), "no version in common", 10);
        book.record(ip(1), 587, "submission", Hello::default(), "timed\r\nout", 20);
        book.record(ip(1), 465, "submissions", weak(), "x", 15);
        let found = book.since(0);
        assert_eq!(found.iter().map(|entry| (entry.port, entry.count)).collect::<Vec<_>>(), [(587, 2), (465, 1)]);
        let first = found.first().cloned().unwrap_or_else(|| unreachable!("two were recorded"));
        assert_eq!((first.first_at_ms, first.last_at_ms, first.error.as_str()), (10, 20, "timed  out"));
        assert!(first.hello.is_weak(), "a hello that was cut off does not replace a whole one");
        assert_eq!(book.since(16).len(), 1);
    }

    #[test]
    fn a_flood_of_addresses_is_bounded_and_keeps_the_newest() {
        let book = FailedHandshakes::default();
        let flood = u32::try_from(ENTRIES_MAX).unwrap_or(0) + 50;
        for number in 0..flood {
            book.record(ip(number), 25, "default", weak(), "x", i64::from(number));
        }
        let found = book.since(0);
        assert_eq!(found.len(), ENTRIES_MAX);
        assert_eq!(found.first().map(|entry| entry.source), Some(ip(flood - 1)));
    }
}
