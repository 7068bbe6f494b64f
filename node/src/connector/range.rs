//! `RemoteIpRange`: one address, `first-last` or CIDR, as receive connectors list them. IPv4-mapped IPv6 addresses
//! (RFC 4291 §2.5.5.2) are IPv4 here, on both sides of every comparison.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An inclusive range of addresses of one family, first ≤ last.
///
/// Its order is IPv4 before IPv6, then by first and last address. As a string it is an address, a CIDR block where it
/// is one, or `first-last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RemoteIpRange(Ends);

// Byte arrays rather than integers: 33 octets instead of 48, and a million of them are kept per node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Ends {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

/// What [`RemoteIpRange::parse`] understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedRange {
    /// The range.
    pub range: RemoteIpRange,
    /// Whether the text was a CIDR block with host bits set, such as `192.168.1.1/24`, which means the whole block:
    /// worth a warning.
    pub host_bits_set: bool,
}

/// Why a text is not a range. Each variant carries the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Neither an address, nor a range, nor a CIDR block.
    #[error("{0:?} is not an address, a range first-last or a CIDR block")]
    Syntax(String),
    /// An IPv6 zone id: link-local addresses mean something else on each node.
    #[error("{0:?} has an IPv6 zone id, which means something else on each node; leave out the part from % on")]
    Zone(String),
    /// A prefix length that the family does not have.
    #[error("{text:?} has a prefix length that is not a number from 0 to {max}")]
    Prefix {
        /// The whole text.
        text: String,
        /// 32 or 128.
        max: u8,
    },
    /// First and last of different families, where IPv4-mapped IPv6 is IPv4.
    #[error("{0:?} begins in one address family and ends in the other")]
    MixedFamilies(String),
    /// The last address comes before the first.
    #[error("{0:?} ends before it begins")]
    Reversed(String),
}

/// How one range lies to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The same addresses.
    Equal,
    /// Strictly inside the other.
    Inside,
    /// Strictly around the other.
    Contains,
    /// No address in common.
    Apart,
    /// Some in common, some on each side.
    Partial,
}

/// An IPv4-mapped IPv6 address becomes the IPv4 address; every other stays.
#[must_use]
#[inline]
pub fn canonical_ip(ip: IpAddr) -> IpAddr {
    // `IpAddr::to_canonical` does the same behind a call; every connection and every letter comes through here.
    match ip {
        IpAddr::V6(v6) if v6.to_bits() >> 32 == 0xffff => IpAddr::V4(Ipv4Addr::from_bits(v6.to_bits() as u32)),
        _ => ip,
    }
}

impl RemoteIpRange {
    /// Parses one address, `first-last` or CIDR. White space around the parts is ignored.
    ///
    /// # Errors
    /// [`RangeError`] names the text and what is wrong with it.
    pub fn parse(text: &str) -> Result<ParsedRange, RangeError> {
        let text = text.trim();
        let plain = |range| ParsedRange { range, host_bits_set: false };
        if text.contains('%') {
            return Err(RangeError::Zone(quotable(text)));
        }
        if let Some((address, prefix)) = text.split_once('/') {
            return Self::parse_cidr(text, address, prefix);
        }
        if let Some((first, last)) = text.split_once('-') {
            return Self::parse_ends(text, first, last).map(plain);
        }
        parse_ip(text).map(Self::single).map(plain).ok_or_else(|| RangeError::Syntax(quotable(text)))
    }

    /// The range from `first` to `last`, or `None` if they are of different families or in the wrong order.
    #[must_use]
    pub fn from_ends(first: IpAddr, last: IpAddr) -> Option<Self> {
        match (canonical_ip(first), canonical_ip(last)) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => Some(Self(Ends::V4(first, last))),
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => Some(Self(Ends::V6(first, last))),
            _ => None,
        }
    }

    /// One address.
    #[must_use]
    pub fn single(ip: IpAddr) -> Self {
        match canonical_ip(ip) {
            IpAddr::V4(ip) => Self(Ends::V4(ip, ip)),
            IpAddr::V6(ip) => Self(Ends::V6(ip, ip)),
        }
    }

    /// `0.0.0.0/0`.
    #[must_use]
    pub const fn all_v4() -> Self {
        Self(Ends::V4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST))
    }

    /// `::/0`.
    #[must_use]
    pub const fn all_v6() -> Self {
        Self(Ends::V6(Ipv6Addr::UNSPECIFIED, Ipv6Addr::from_bits(u128::MAX)))
    }

    /// The first address.
    #[must_use]
    pub const fn first(&self) -> IpAddr {
        match self.0 {
            Ends::V4(first, _) => IpAddr::V4(first),
            Ends::V6(first, _) => IpAddr::V6(first),
        }
    }

    /// The last address.
    #[must_use]
    pub const fn last(&self) -> IpAddr {
        match self.0 {
            Ends::V4(_, last) => IpAddr::V4(last),
            Ends::V6(_, last) => IpAddr::V6(last),
        }
    }

    /// Whether `ip` is in the range; an IPv4-mapped one is looked for as IPv4.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.0, canonical_ip(ip)) {
            (Ends::V4(first, last), IpAddr::V4(ip)) => first <= ip && ip <= last,
            (Ends::V6(first, last), IpAddr::V6(ip)) => first <= ip && ip <= last,
            _ => false,
        }
    }

    /// Whether every address of this range is in `other`, equality included.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        matches!(self.relation(other), Relation::Equal | Relation::Inside)
    }

    /// How this range lies to `other`.
    #[must_use]
    pub fn relation(&self, other: &Self) -> Relation {
        let (Some((first, last)), Some((other_first, other_last))) = (self.same_scale(other), other.same_scale(self))
        else {
            return Relation::Apart;
        };
        if first == other_first && last == other_last {
            Relation::Equal
        } else if last < other_first || other_last < first {
            Relation::Apart
        } else if other_first <= first && last <= other_last {
            Relation::Inside
        } else if first <= other_first && other_last <= last {
            Relation::Contains
        } else {
            Relation::Partial
        }
    }

    /// How many addresses it has; `::/0`, which has one more than fits, answers `u128::MAX`.
    #[must_use]
    pub fn size(&self) -> u128 {
        let (first, last) = self.bits();
        (last - first).saturating_add(1)
    }

    /// Whether it is IPv4.
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        matches!(self.0, Ends::V4(..))
    }

    /// The ends as numbers; comparable within one family only.
    pub(super) fn bits(&self) -> (u128, u128) {
        match self.0 {
            Ends::V4(first, last) => (u128::from(first.to_bits()), u128::from(last.to_bits())),
            Ends::V6(first, last) => (first.to_bits(), last.to_bits()),
        }
    }

    /// The ends of an IPv4 range as numbers.
    pub(super) fn v4_bits(&self) -> Option<(u32, u32)> {
        match self.0 {
            Ends::V4(first, last) => Some((first.to_bits(), last.to_bits())),
            Ends::V6(..) => None,
        }
    }

    /// The ends of an IPv6 range as numbers.
    pub(super) fn v6_bits(&self) -> Option<(u128, u128)> {
        match self.0 {
            Ends::V6(first, last) => Some((first.to_bits(), last.to_bits())),
            Ends::V4(..) => None,
        }
    }

    /// The IPv4 range between two numbers, first ≤ last.
    pub(super) fn from_v4_bits(first: u32, last: u32) -> Self {
        Self(Ends::V4(first.into(), last.into()))
    }

    /// The IPv6 range between two numbers, first ≤ last.
    pub(super) fn from_v6_bits(first: u128, last: u128) -> Self {
        Self(Ends::V6(first.into(), last.into()))
    }

    fn same_scale(&self, other: &Self) -> Option<(u128, u128)> {
        (self.is_v4() == other.is_v4()).then(|| self.bits())
    }

    fn parse_ends(text: &str, first: &str, last: &str) -> Result<Self, RangeError> {
        let (Some(first), Some(last)) = (parse_ip(first), parse_ip(last)) else {
            return Err(RangeError::Syntax(quotable(text)));
        };
        match (canonical_ip(first), canonical_ip(last)) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => Ok(Self(Ends::V4(first, last))),
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => Ok(Self(Ends::V6(first, last))),
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
                Err(RangeError::Reversed(quotable(text)))
            }
            _ => Err(RangeError::MixedFamilies(quotable(text))),
        }
    }

    fn parse_cidr(text: &str, address: &str, prefix: &str) -> Result<ParsedRange, RangeError> {
        let Some(ip) = parse_ip(address) else {
            return Err(RangeError::Syntax(quotable(text)));
        };
        let max = if ip.is_ipv4() { 32 } else { 128 };
        let digits = prefix.trim();
        // `u8::from_str` takes a leading plus sign; nobody writes a prefix so on purpose.
        let length = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u8>().ok()).flatten();
        let Some(length) = length.filter(|length| *length <= max) else {
            return Err(RangeError::Prefix { text: quotable(text), max });
        };
        let (first, last) = match ip {
            IpAddr::V4(ip) => {
                let host = u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
                let first = ip.to_bits() & !host;
                (IpAddr::V4(first.into()), IpAddr::V4((first | host).into()))
            }
            IpAddr::V6(ip) => {
                let host = u128::MAX.checked_shr(u32::from(length)).unwrap_or(0);
                let first = ip.to_bits() & !host;
                (IpAddr::V6(first.into()), IpAddr::V6((first | host).into()))
            }
        };
        let host_bits_set = first != ip;
        match (canonical_ip(first), canonical_ip(last)) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                Ok(ParsedRange { range: Self(Ends::V4(first, last)), host_bits_set })
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                Ok(ParsedRange { range: Self(Ends::V6(first, last)), host_bits_set })
            }
            // Only a mapped address with a prefix that reaches beyond the mapped block.
            _ => Err(RangeError::MixedFamilies(quotable(text))),
        }
    }

    /// The prefix length, where the range is exactly one CIDR block.
    fn prefix(&self) -> Option<u32> {
        let (first, last) = self.bits();
        let host = first ^ last;
        let width = if self.is_v4() { 32 } else { 128 };
        let bits = 128 - host.leading_zeros();
        let aligned = (host & host.wrapping_add(1)) == 0 && (first & host) == 0;
        aligned.then(|| width - bits)
    }
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    text.trim().parse().ok()
}

/// At most 64 characters of a text, for an error message.
fn quotable(text: &str) -> String {
    text.chars().take(64).collect()
}

impl fmt::Display for RemoteIpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.first(), self.last());
        if first == last {
            return write!(f, "{first}");
        }
        match self.prefix() {
            Some(prefix) => write!(f, "{first}/{prefix}"),
            None => write!(f, "{first}-{last}"),
        }
    }
}

impl FromStr for RemoteIpRange {
    type Err = RangeError;
    fn from_str(text: &str) -> Result<Self, RangeError> {
        Self::parse(text).map(|parsed| parsed.range)
    }
}

impl TryFrom<String> for RemoteIpRange {
    type Error = RangeError;
    fn try_from(text: String) -> Result<Self, RangeError> {
        text.parse()
    }
}

impl From<RemoteIpRange> for String {
    fn from(range: RemoteIpRange) -> Self {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> RemoteIpRange {
        text.parse().unwrap()
    }

    #[test]
    fn every_form_of_exchange_parses_and_shows_its_shortest_form() {
        for (text, shown, host_bits_set) in [
            ("192.168.1.75", "192.168.1.75", false),
            ("192.168.1.0-192.168.1.255", "192.168.1.0/24", false),
            (" 10.0.0.5 - 10.0.0.9 ", "10.0.0.5-10.0.0.9", false),
            ("192.168.1.1/24", "192.168.1.0/24", true),
            ("192.168.1.1/32", "192.168.1.1", false),
            ("0.0.0.0/0", "0.0.0.0/0", false),
            ("0.0.0.0-255.255.255.255", "0.0.0.0/0", false),
            ("2001:DB8::1", "2001:db8::1", false),
            ("2001:db8::/32", "2001:db8::/32", false),
            ("2001:db8::1-2001:db8::9", "2001:db8::1-2001:db8::9", false),
            ("::/0", "::/0", false),
            ("::ffff:10.0.0.1", "10.0.0.1", false),
            ("::ffff:10.0.0.0/120", "10.0.0.0/24", false),
            ("::ffff:0:0/96", "0.0.0.0/0", false),
            ("::ffff:10.0.0.1-::ffff:10.0.0.2", "10.0.0.1-10.0.0.2", false),
            ("10.0.0.1-::ffff:10.0.0.2", "10.0.0.1-10.0.0.2", false),
        ] {
            let parsed = RemoteIpRange::parse(text).unwrap();
            assert_eq!(parsed.range.to_string(), shown, "{text}");
            assert_eq!(parsed.host_bits_set, host_bits_set, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_range_is_refused_with_its_text() {
        for text in [
            "",
            "-",
            "/",
            "10.0.0",
            "10.0.0.1-",
            "10.0.0.01",
            "10.0.0.1/33",
            "10.0.0.1/+8",
            "10.0.0.1/",
            "::/129",
            "10.0.0.9-10.0.0.1",
            "10.0.0.1-2001:db8::1",
            "::1-::ffff:10.0.0.1",
            "::ffff:10.0.0.1/90",
            "fe80::1%eth0",
            "10.0.0.1-10.0.0.2-10.0.0.3",
            "10.0.0.1/24/8",
            "host",
            "10.0.0.1/8-10.0.0.2",
        ] {
            let error = RemoteIpRange::parse(text).unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
        assert!(matches!(RemoteIpRange::parse("fe80::1%11"), Err(RangeError::Zone(_))));
        assert!(matches!(RemoteIpRange::parse("::ffff:10.0.0.1/90"), Err(RangeError::MixedFamilies(_))));
    }

    #[test]
    fn relations_are_what_the_names_say() {
        let wide = range("10.0.0.0/24");
        assert_eq!(wide.relation(&range("10.0.0.0-10.0.0.255")), Relation::Equal);
        assert_eq!(range("10.0.0.7").relation(&wide), Relation::Inside);
        assert_eq!(wide.relation(&range("10.0.0.0/25")), Relation::Contains);
        assert_eq!(wide.relation(&range("10.0.1.0")), Relation::Apart);
        assert_eq!(wide.relation(&range("10.0.0.200-10.0.1.3")), Relation::Partial);
        // The same numbers in the other family are other addresses.
        assert_eq!(range("0.0.0.5").relation(&range("::5")), Relation::Apart);
        assert!(range("10.0.0.7").is_within(&wide) && wide.is_within(&wide) && !wide.is_within(&range("10.0.0.7")));
    }

    #[test]
    fn sizes_saturate_only_at_the_whole_of_ipv6() {
        assert_eq!(RemoteIpRange::all_v4().size(), 1 << 32);
        assert_eq!(range("10.0.0.7").size(), 1);
        assert_eq!(RemoteIpRange::all_v6().size(), u128::MAX);
        assert_eq!(range("8000::/1").size(), 1 << 127);
    }

    #[test]
    fn a_mapped_address_is_contained_as_ipv4_and_only_so() {
        assert!(range("10.0.0.0/8").contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!RemoteIpRange::all_v6().contains("::ffff:10.1.2.3".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn display_and_parse_are_inverse(a: u32, b: u32, c: u128, d: u128, shift in 0_u32..128) {
            let v4 = RemoteIpRange::from_ends(IpAddr::V4(a.min(b).into()), IpAddr::V4(a.max(b).into())).unwrap();
            prop_assert_eq!(range(&v4.to_string()), v4);
            let (c, d) = (c >> shift, d >> shift);
            if let Some(v6) = RemoteIpRange::from_ends(IpAddr::V6(c.min(d).into()), IpAddr::V6(c.max(d).into())) {
                prop_assert_eq!(range(&v6.to_string()), v6);
                prop_assert_eq!(serde_json::from_str::<RemoteIpRange>(&serde_json::to_string(&v6).unwrap()).unwrap(), v6);
            }
        }

        #[test]
        fn every_cidr_block_shows_as_itself(a: u32, c: u128, length in 0_u32..=32, length6 in 0_u32..=128) {
            let first = a & !u32::MAX.checked_shr(length).unwrap_or(0);
            let text = if length == 32 { Ipv4Addr::from(first).to_string() } else { format!("{}/{length}", Ipv4Addr::from(first)) };
            prop_assert_eq!(range(&text).to_string(), text);
            let first = c & !u128::MAX.checked_shr(length6).unwrap_or(0);
            let text = if length6 == 128 { Ipv6Addr::from(first).to_string() } else { format!("{}/{length6}", Ipv6Addr::from(first)) };
            prop_assume!(canonical_ip(IpAddr::V6(first.into())).is_ipv6());
            prop_assert_eq!(range(&text).to_string(), text);
        }

        #[test]
        fn no_text_panics(text in "[0-9a-f:./% -]{0,40}|.{0,40}") {
            let _ = RemoteIpRange::parse(&text);
        }
    }
}
