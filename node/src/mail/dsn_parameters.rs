//! What a sender asks about delivery status notifications (RFC 3461 §4): `RET`, `ENVID`, `NOTIFY` and `ORCPT`, parsed
//! strictly, kept decoded, written again for the next hop.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// RFC 3461 §4.4, in characters of the encoded form.
pub const ENVID_MAX: usize = 100;
/// RFC 3461 §4.2, in characters of the encoded form.
pub const ORCPT_MAX: usize = 500;
/// Longer than every registered address type.
const ADDRESS_TYPE_MAX: usize = 64;

/// A value that is not what RFC 3461 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed delivery status parameter")]
pub struct BadParameter;

/// `RET=`: how much of the letter a report of failure gives back (RFC 3461 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ret {
    /// `FULL`
    Full,
    /// `HDRS`
    Headers,
}

impl FromStr for Ret {
    type Err = BadParameter;
    fn from_str(text: &str) -> Result<Self, BadParameter> {
        if text.eq_ignore_ascii_case("FULL") {
            Ok(Self::Full)
        } else if text.eq_ignore_ascii_case("HDRS") {
            Ok(Self::Headers)
        } else {
            Err(BadParameter)
        }
    }
}

/// The value as a client sends it.
impl fmt::Display for Ret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "FULL",
            Self::Headers => "HDRS",
        })
    }
}

/// `NOTIFY=`: of what the sender wants to hear (RFC 3461 §4.1). Nothing at all is `NEVER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Notify {
    /// `SUCCESS`
    pub success: bool,
    /// `FAILURE`
    pub failure: bool,
    /// `DELAY`
    pub delay: bool,
}

impl Notify {
    /// `NEVER`
    pub const NEVER: Self = Self { success: false, failure: false, delay: false };

    /// Whether a report of failure is wanted. A sender that said nothing wants it (RFC 3461 §4.1).
    #[must_use]
    pub fn wants_failure(asked: Option<Self>) -> bool {
        asked.is_none_or(|notify| notify.failure)
    }

    /// Whether a report of delay is wanted. A sender that said nothing may be sent it (RFC 3461 §4.1).
    #[must_use]
    pub fn wants_delay(asked: Option<Self>) -> bool {
        asked.is_none_or(|notify| notify.delay)
    }

    /// Whether a report of success is wanted.
    #[must_use]
    pub fn wants_success(asked: Option<Self>) -> bool {
        asked.is_some_and(|notify| notify.success)
    }
}

impl FromStr for Notify {
    type Err = BadParameter;
    fn from_str(text: &str) -> Result<Self, BadParameter> {
        let mut notify = Self::NEVER;
        if text.eq_ignore_ascii_case("NEVER") {
            return Ok(notify);
        }
        for word in text.split(',') {
            let which = if word.eq_ignore_ascii_case("SUCCESS") {
                &mut notify.success
            } else if word.eq_ignore_ascii_case("FAILURE") {
                &mut notify.failure
            } else if word.eq_ignore_ascii_case("DELAY") {
                &mut notify.delay
            } else {
                return Err(BadParameter);
            };
            if std::mem::replace(which, true) {
                return Err(BadParameter);
            }
        }
        Ok(notify)
    }
}

/// The value as a client sends it.
impl fmt::Display for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [(self.success, "SUCCESS"), (self.failure, "FAILURE"), (self.delay, "DELAY")];
        let mut wanted = words.into_iter().filter(|(wanted, _)| *wanted).map(|(_, word)| word);
        f.write_str(wanted.next().unwrap_or("NEVER"))?;
        wanted.try_for_each(|word| write!(f, ",{word}"))
    }
}

impl TryFrom<String> for Notify {
    type Error = BadParameter;
    fn try_from(text: String) -> Result<Self, BadParameter> {
        text.parse()
    }
}

impl From<Notify> for String {
    fn from(notify: Notify) -> Self {
        notify.to_string()
    }
}

/// `ORCPT=`: whom the sender wrote to, before anybody rewrote or forwarded it (RFC 3461 §4.2, RFC 6533 §3). It is only
/// ever repeated: nothing is delivered to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OriginalRecipient {
    /// In lower case: `rfc822`, `utf-8`.
    pub address_type: String,
    /// Decoded: printable characters and spaces.
    pub address: String,
}

/// The type of addresses beyond ASCII (RFC 6533 §3).
const UTF_8: &str = "utf-8";

impl OriginalRecipient {
    /// Parses the value of `ORCPT=`. `smtp_utf8` says whether the transaction may hold UTF-8.
    ///
    /// # Errors
    /// Too long, without a type, or not encoded as its type says.
    pub fn parse(text: &str, smtp_utf8: bool) -> Result<Self, BadParameter> {
        let (address_type, encoded) = text.split_once(';').ok_or(BadParameter)?;
        let is_type = !address_type.is_empty()
            && address_type.len() <= ADDRESS_TYPE_MAX
            && address_type.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
        if text.len() > ORCPT_MAX || !is_type || encoded.is_empty() || (!smtp_utf8 && !encoded.is_ascii()) {
            return Err(BadParameter);
        }
        let address_type = address_type.to_ascii_lowercase();
        let address = if address_type == UTF_8 { decode_unicode(encoded)? } else { xtext_decode(encoded)? };
        if address.chars().any(char::is_control) {
            return Err(BadParameter);
        }
        Ok(Self { address_type, address })
    }

    /// The value for a next hop, in ASCII whatever the address.
    #[must_use]
    pub fn to_parameter(&self) -> String {
        let encoded =
            if self.address_type == UTF_8 { encode_unicode(&self.address) } else { xtext_encode(&self.address) };
        format!("{};{encoded}", self.address_type)
    }
}

/// As a report writes it (RFC 3464 §2.3.1).
impl fmt::Display for OriginalRecipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.address_type, self.address)
    }
}

/// Parses the value of `ENVID=` and answers what it means (RFC 3461 §4.4).
///
/// # Errors
/// Too long, or not xtext of printable ASCII.
pub fn parse_envid(text: &str) -> Result<String, BadParameter> {
    if text.is_empty() || text.len() > ENVID_MAX {
        return Err(BadParameter);
    }
    xtext_decode(text)
}

/// Decodes xtext (RFC 3461 §4). What it means must be printable ASCII or space: anything else could end a line of a
/// report.
///
/// # Errors
/// Not xtext.
pub fn xtext_decode(text: &str) -> Result<String, BadParameter> {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let meant = match byte {
            b'+' => {
                let (digits, tail) = rest.split_at_checked(2).ok_or(BadParameter)?;
                rest = tail;
                upper_hex(digits[0]).zip(upper_hex(digits[1])).map(|(high, low)| high << 4 | low).ok_or(BadParameter)?
            }
            b'!'..=b'~' if byte != b'=' => byte,
            _ => return Err(BadParameter),
        };
        if !matches!(meant, b' '..=b'~') {
            return Err(BadParameter);
        }
        decoded.push(char::from(meant));
    }
    Ok(decoded)
}

/// RFC 3461 §4: hexadecimal digits in upper case only.
fn upper_hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// Encodes as xtext. What is not ASCII becomes the hexadecimal form of its UTF-8 octets.
#[must_use]
pub fn xtext_encode(text: &str) -> Cow<'_, str> {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~') && byte != b'+' && byte != b'=';
    if text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing into a String cannot fail.
            let _ = write!(encoded, "+{byte:02X}");
        }
    }
    Cow::Owned(encoded)
}

/// RFC 6533 §3: printable characters, and `\x{…}` for the others and for `\`, `+` and `=`.
fn decode_unicode(text: &str) -> Result<String, BadParameter> {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(embedded) = rest.strip_prefix("\\x{") {
            let (digits, tail) = embedded.split_once('}').ok_or(BadParameter)?;
            let hex = (2..=6).contains(&digits.len()) && digits.bytes().all(|digit| upper_hex(digit).is_some());
            let point = u32::from_str_radix(digits, 16).ok().filter(|_| hex).ok_or(BadParameter)?;
            decoded.push(char::from_u32(point).ok_or(BadParameter)?);
            rest = tail;
        } else if matches!(c, '!'..='~') && !matches!(c, '\\' | '+' | '=') || !c.is_ascii() {
            decoded.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            return Err(BadParameter);
        }
    }
    Ok(decoded)
}

fn encode_unicode(text: &str) -> Cow<'_, str> {
    let plain = |c: char| matches!(c, '!'..='~') && !matches!(c, '\\' | '+' | '=');
    if text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() * 4);
    for c in text.chars() {
        if plain(c) {
            encoded.push(c);
        } else {
            // Writing into a String cannot fail.
            let _ = write!(encoded, "\\x{{{:02X}}}", u32::from(c));
        }
    }
    Cow::Owned(encoded)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn notify_is_never_or_a_list_without_repetition() {
        for (text, again) in [
            ("never", "NEVER"),
            ("SUCCESS", "SUCCESS"),
            ("delay,Failure", "FAILURE,DELAY"),
            ("DELAY,FAILURE,SUCCESS", "SUCCESS,FAILURE,DELAY"),
        ] {
            assert_eq!(text.parse::<Notify>().unwrap().to_string(), again);
        }
        for text in
            ["", "NEVER,FAILURE", "FAILURE,NEVER", "FAILURE,", ",FAILURE", "FAILURE,FAILURE", "ALWAYS", " DELAY"]
        {
            assert_eq!(text.parse::<Notify>(), Err(BadParameter), "{text:?}");
        }
        assert!(Notify::wants_failure(None) && Notify::wants_delay(None) && !Notify::wants_success(None));
        assert!(!Notify::wants_failure(Some(Notify::NEVER)) && !Notify::wants_delay(Some(Notify::NEVER)));
        assert!(!Notify::wants_failure("SUCCESS".parse().ok()) && Notify::wants_success("SUCCESS".parse().ok()));
    }

    #[test]
    fn envid_is_xtext_of_printable_ascii() {
        assert_eq!(parse_envid("QQ314159").unwrap(), "QQ314159");
        assert_eq!(parse_envid("a+2Bb+3D+20c").unwrap(), "a+b= c");
        assert_eq!(xtext_encode("a+b= c"), "a+2Bb+3D+20c");
        let long = "x".repeat(ENVID_MAX + 1);
        for text in ["", "a=b", "a b", "+2b", "+2", "+", "a+0D+0Ab", "+7F", "+80", "+00", "ü", &long] {
            assert_eq!(parse_envid(text), Err(BadParameter), "{text:?}");
        }
    }

    #[test]
    fn orcpt_has_a_type_and_an_address_that_is_encoded_as_the_type_says() {
        for (text, shown) in [
            ("rfc822;Bob@x.example", "rfc822; Bob@x.example"),
            ("RFC822;a+2Bb@x.example", "rfc822; a+b@x.example"),
            ("x400;/s=a", ""),
            ("x-unknown;+20", "x-unknown;  "),
            ("utf-8;\\x{FC}@x.example", "utf-8; ü@x.example"),
            ("utf-8;a\\x{2B}b@x.example", "utf-8; a+b@x.example"),
            ("utf-8;a+b@x.example", ""),
            ("utf-8;\\x{D800}@x", ""),
            ("utf-8;\\x{0A}@x", ""),
            ("utf-8;\\x{fc}@x", ""),
            ("utf-8;\\x{1234567}@x", ""),
            ("utf-8;\\x{FC", ""),
            ("utf-8;ü@x", ""),
            ("rfc822;ü@x", ""),
            ("rfc822;", ""),
            (";a@b", ""),
            ("a@b", ""),
            ("rfc 822;a@b", ""),
            ("rfc822;a b", ""),
            ("rfc822;a+0D+0ABcc:x", ""),
        ] {
            let parsed = OriginalRecipient::parse(text, false);
            assert_eq!(parsed.as_ref().map(ToString::to_string).unwrap_or_default(), shown, "{text}");
            if let Ok(parsed) = parsed {
                assert_eq!(OriginalRecipient::parse(&parsed.to_parameter(), false), Ok(parsed));
            }
        }
        let unitext = OriginalRecipient::parse("utf-8;ü@x.example", true).unwrap();
        assert_eq!(unitext.to_parameter(), "utf-8;\\x{FC}@x.example");
        assert!(OriginalRecipient::parse(&format!("rfc822;{}", "x".repeat(494)), false).is_err());
    }

    proptest! {
        #[test]
        fn xtext_comes_back(text in "[ -~]{0,60}") {
            prop_assert_eq!(xtext_decode(&xtext_encode(&text)).unwrap(), text);
        }

        #[test]
        fn no_text_panics(text in ".{0,60}", utf8: bool) {
            let _ = OriginalRecipient::parse(&text, utf8);
            let _ = OriginalRecipient::parse(&format!("utf-8;{text}"), utf8);
            let _ = OriginalRecipient::parse(&format!("utf-8;\\x{{{text}"), utf8);
            let _ = parse_envid(&text);
            let _ = text.parse::<Notify>();
        }

        #[test]
        fn an_original_recipient_comes_back(address in "\\PC{1,20}") {
            let orcpt = OriginalRecipient { address_type: UTF_8.to_owned(), address };
            let parameter = orcpt.to_parameter();
            prop_assert!(parameter.is_ascii());
            if parameter.len() <= ORCPT_MAX {
                prop_assert_eq!(OriginalRecipient::parse(&parameter, false).unwrap(), orcpt);
            }
        }
    }
}
