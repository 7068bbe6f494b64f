//! Values as people type them: sizes, lengths of time, bindings, limits. What the cluster must judge anyway (ranges,
//! domains, addresses) passes through untouched, so that there is one judge.

use std::net::SocketAddr;
use std::time::Duration;

/// A size: bytes, or with a unit. As in Exchange a KB is 1024 bytes, and so is a KiB.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" | "bytes" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err("write bytes, or a number with KB, MB or GB (1 MB = 1024 KB)".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a size begins with a whole number, such as 25MB".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

/// A length of time: `30s`, `10m`, `1h 30m`, Exchange's `00:10:00` or `1.00:00:00`, or seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    if text.contains(':') {
        return exchange_time_span(text).ok_or_else(|| "a time span is hh:mm:ss or dd.hh:mm:ss".to_owned());
    }
    humantime::parse_duration(text).map_err(|error| format!("{error}; write 30s, 10m, 2h or 90d"))
}

fn exchange_time_span(text: &str) -> Option<Duration> {
    let (days, clock) = match text.split_once('.') {
        Some((days, clock)) => (days.parse::<u64>().ok()?, clock),
        None => (0, text),
    };
    let mut parts = clock.split(':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || hours > 23 || minutes > 59 || seconds > 59 {
        return None;
    }
    let total = days.checked_mul(86_400)?.checked_add(hours * 3600 + minutes * 60 + seconds)?;
    Some(Duration::from_secs(total))
}

/// A number, or `unlimited`, which the cluster writes as 0.
pub(crate) fn limit(text: &str) -> Result<u32, String> {
    if text.trim().eq_ignore_ascii_case("unlimited") {
        return Ok(0);
    }
    text.trim().parse().map_err(|_| "write a whole number, or unlimited".to_owned())
}

/// Letters a minute: `60`, `60/min` or `unlimited`.
pub(crate) fn rate(text: &str) -> Result<u32, String> {
    let text = text.trim();
    let number = ["/min", "/minute", "/m"].iter().find_map(|unit| text.strip_suffix(unit)).unwrap_or(text);
    limit(number).map_err(|_| "write letters a minute, such as 60 or 60/min, or unlimited".to_owned())
}

/// `true` as people write it: Exchange's `$true`, `yes`, `on`.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text.trim().trim_start_matches('$').to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Ok(true),
        "false" | "no" | "off" => Ok(false),
        _ => Err("write true or false".to_owned()),
    }
}

/// Bindings: `ADDR:PORT`, or a bare port, which is every address of both families.
pub(crate) fn binding(text: &str) -> Result<Vec<String>, String> {
    let text = text.trim();
    let port = text.strip_prefix(':').unwrap_or(text);
    if let Ok(port) = port.parse::<u16>() {
        return Ok(vec![format!("0.0.0.0:{port}"), format!("[::]:{port}")]);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) => Ok(vec![address.to_string()]),
        Err(_) => Err("write a port, ADDRESS:PORT or [IPv6]:PORT".to_owned()),
    }
}

/// Splits a comma list and trims its words; an empty list is a list without words.
pub(crate) fn words(lists: &[String]) -> Vec<String> {
    let words = lists.iter().flat_map(|list| list.split(','));
    words.map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Seconds as `41s`, `7m`, `3h`, `2d`: the largest unit that says something.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_count_in_1024_as_exchange_does() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65536),
            ("256KB", 256 * 1024),
            ("25MB", 25 << 20),
            ("25 mib", 25 << 20),
            ("36m", 37_748_736),
            ("1GB", 1 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MB", "-1", "1.5MB", "12XB", "99999999999999999999", "18446744073709551615GB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_in_three_spellings() {
        for (text, secs) in [
            ("30s", 30),
            ("10m", 600),
            ("1h 30m", 5400),
            ("90d", 7_776_000),
            ("45", 45),
            ("00:10:00", 600),
            ("1.00:00:05", 86_405),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(secs)), "{text}");
        }
        for text in ["", "soon", "10:00", "00:60:00", "1:2:3:4", "-5s", "18446744073709551615.00:00:00"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bare_port_binds_both_families() {
        assert_eq!(binding("25"), Ok(vec!["0.0.0.0:25".to_owned(), "[::]:25".to_owned()]));
        assert_eq!(binding(":587"), Ok(vec!["0.0.0.0:587".to_owned(), "[::]:587".to_owned()]));
        assert_eq!(binding("10.0.0.1:25"), Ok(vec!["10.0.0.1:25".to_owned()]));
        assert_eq!(binding("[2001:db8::1]:25"), Ok(vec!["[2001:db8::1]:25".to_owned()]));
        for text in ["", "smtp", "10.0.0.1", "70000", "2001:db8::1"] {
            assert!(binding(text).is_err(), "{text}");
        }
    }

    #[test]
    fn unlimited_is_zero() {
        assert_eq!(limit("Unlimited"), Ok(0));
        assert_eq!(limit("20"), Ok(20));
        assert!(limit("many").is_err());
    }

    #[test]
    fn a_rate_counts_letters_a_minute() {
        assert_eq!((rate("60/min"), rate("600"), rate("unlimited")), (Ok(60), Ok(600), Ok(0)));
        for text in ["", "60/s", "60/hour", "fast"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn booleans_are_read_as_exchange_writes_them() {
        assert_eq!((boolean("$True"), boolean("no")), (Ok(true), Ok(false)));
        assert!(boolean("1").is_err());
    }

    #[test]
    fn comma_lists_and_repeated_flags_are_the_same() {
        let lists = ["a, b".to_owned(), "c".to_owned(), " ,".to_owned()];
        assert_eq!(words(&lists), ["a", "b", "c"]);
        assert!(words(&[String::new()]).is_empty());
    }

    #[test]
    fn numbers_and_ages_read_at_a_glance() {
        assert_eq!(
            (grouped(0), grouped(999), grouped(1000), grouped(1_234_567)),
            ("0".into(), "999".into(), "1,000".into(), "1,234,567".into())
        );
        assert_eq!((age(59), age(60), age(7200), age(172_800)), ("59s".into(), "1m".into(), "2h".into(), "2d".into()));
    }
}
