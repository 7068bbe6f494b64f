//! X.500 names as people write them, compared as what they mean: `CN=smtp.corp.example, O=Corp` and
//! `O = Corp,CN=SMTP.corp.example` are one name. Windows, OpenSSL and we each have an order, spaces and short forms of
//! our own.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A distinguished name: its attributes, sorted, in lower case, spaces folded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct X500Name(Vec<(String, String)>);

impl X500Name {
    /// Reads a name. Text that is none is a name without attributes, and equals no certificate's.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut attributes: Vec<(String, String)> = Vec::new();
        for (separator, piece) in pieces(text) {
            match piece.split_once('=').map(|(kind, value)| (kind.trim(), value)) {
                Some((kind, value)) if is_kind(kind) => attributes.push((short_form(kind), unquoted(value))),
                // A comma that nobody escaped: `O=Foo, Inc.` is one attribute.
                _ => {
                    if let Some((_, value)) = attributes.last_mut() {
                        value.push(separator);
                        value.push_str(&unescaped(&piece));
                    }
                }
            }
        }
        for (_, value) in &mut attributes {
            *value = folded(value);
        }
        attributes.sort();
        Self(attributes)
    }

    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `cn=printer 7, o=corp`: readable, and read back as the same name.
impl fmt::Display for X500Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (kind, value)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            let value = value.replace('\\', "\\\\").replace(',', "\\,").replace('"', "\\\"");
            let value = value.replace('+', "\\+").replace(';', "\\;");
            write!(f, "{separator}{kind}={value}")?;
        }
        Ok(())
    }
}

impl From<String> for X500Name {
    fn from(text: String) -> Self {
        Self::parse(&text)
    }
}

impl From<X500Name> for String {
    fn from(name: X500Name) -> Self {
        name.to_string()
    }
}

/// Cuts at separators that are neither quoted nor escaped (RFC 4514 §3, RFC 2253 for `;`); each piece comes with the
/// separator before it. Windows puts attributes of one level together with `+`.
fn pieces(text: &str) -> Vec<(char, String)> {
    let mut found = vec![(',', String::new())];
    let (mut quoted, mut escaped) = (false, false);
    for c in text.chars() {
        let separates = matches!(c, ',' | ';' | '+' | '\n') && !quoted && !escaped;
        if separates {
            found.push((c, String::new()));
            continue;
        }
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        if let Some((_, piece)) = found.last_mut() {
            piece.push(c);
        }
    }
    found.retain(|(_, piece)| !piece.trim().is_empty());
    found
}

/// A letter, then letters, digits, dots and hyphens: `CN`, `emailAddress`, `OID.2.5.4.3`, `2.5.4.3`.
fn is_kind(kind: &str) -> bool {
    !kind.is_empty() && kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
}

/// One name for each kind, whoever wrote it.
fn short_form(kind: &str) -> String {
    let kind = kind.to_ascii_lowercase();
    let kind = kind.strip_prefix("oid.").unwrap_or(&kind);
    match kind {
        "commonname" | "2.5.4.3" => "cn",
        "organizationname" | "2.5.4.10" => "o",
        "organizationalunitname" | "organizationalunit" | "2.5.4.11" => "ou",
        "countryname" | "2.5.4.6" => "c",
        "localityname" | "2.5.4.7" => "l",
        // Windows says S, OpenSSL ST.
        "s" | "stateorprovincename" | "2.5.4.8" => "st",
        "email" | "emailaddress" | "1.2.840.113549.1.9.1" => "e",
        "domaincomponent" | "0.9.2342.19200300.100.1.25" => "dc",
        "userid" | "0.9.2342.19200300.100.1.1" => "uid",
        "surname" | "2.5.4.4" => "sn",
        "givenname" | "g" | "2.5.4.42" => "gn",
        "t" | "2.5.4.12" => "title",
        "2.5.4.5" => "serialnumber",
        other => other,
    }
    .to_owned()
}

/// Takes quotes and escapes away. Two quotes inside quotes are one (Windows).
fn unquoted(value: &str) -> String {
    let value = value.trim();
    let value = match value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => value.to_owned(),
    };
    unescaped(&value)
}

fn unescaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut escaped = false;
    for c in value.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            out.push(c);
            escaped = false;
        }
    }
    out
}

fn folded(value: &str) -> String {
    value.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_windows_openssl_and_we_write_is_one_name() {
        let ours = X500Name::parse("C=DE, ST=Hessen, O=Corp, Inc., OU=IT, CN=smtp.corp.example");
        for other in [
            "CN=smtp.corp.example, OU=IT, O=\"Corp, Inc.\", S=Hessen, C=DE",
            "CN=SMTP.Corp.Example,OU=IT,O=Corp\\, Inc.,ST=Hessen,C=DE",
            "C = DE, ST = Hessen, O = \"Corp, Inc.\", OU = IT, CN = smtp.corp.example",
            "2.5.4.3=smtp.corp.example; OID.2.5.4.11=IT + O=\"Corp,  Inc.\", S=hessen, C=de",
        ] {
            assert_eq!(X500Name::parse(other), ours, "{other}");
        }
        assert_eq!(X500Name::parse("E=a@b.example"), X500Name::parse("emailAddress=a@b.example"));
    }

    #[test]
    fn different_names_are_different() {
        let name = X500Name::parse("CN=a, O=b");
        for other in ["CN=a", "CN=b, O=a", "CN=a, O=b, O=b", "CN=a, OU=b", "CN=a b", "", "nonsense"] {
            assert_ne!(X500Name::parse(other), name, "{other}");
        }
        assert!(X500Name::parse("nonsense").is_empty());
    }

    proptest! {
        #[test]
        fn a_name_is_read_back_as_itself(text in "[A-Z]{1,3}=[ -~]{0,20}(, [A-Z]{1,3}=[ -~]{0,20}){0,3}") {
            let name = X500Name::parse(&text);
            prop_assert_eq!(X500Name::parse(&name.to_string()), name);
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            let _ = X500Name::parse(&text).to_string();
        }
    }
}
