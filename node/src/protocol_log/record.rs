//! One record: nine fields, one line, whatever a device said.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde::Serialize;

use crate::clock::rfc3339;

/// How records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Exchange's comma-separated values with its header lines.
    Exchange,
    /// One JSON object a line.
    Json,
}

/// What happened (Exchange, "Protocol logging").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Event {
    /// The connection began.
    #[serde(rename = "+")]
    Connect,
    /// It ended.
    #[serde(rename = "-")]
    Disconnect,
    /// We said something.
    #[serde(rename = ">")]
    Send,
    /// The device said something.
    #[serde(rename = "<")]
    Receive,
    /// Something worth knowing.
    #[serde(rename = "*")]
    Information,
}

impl Event {
    /// Exchange's sign for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "+",
            Self::Disconnect => "-",
            Self::Send => ">",
            Self::Receive => "<",
            Self::Information => "*",
        }
    }
}

/// One record of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Unix milliseconds.
    pub at_ms: i64,
    /// `node\connector`.
    pub connector_id: String,
    /// The same in every log.
    pub session_id: String,
    /// From 0.
    pub sequence: u64,
    /// Where the device connected.
    pub local: SocketAddr,
    /// The device, whoever passed it on.
    pub remote: SocketAddr,
    /// What happened.
    pub event: Event,
    /// What was said.
    pub data: String,
    /// In which connection it was said.
    pub context: String,
}

/// The first lines of a CSV file.
pub(super) fn header(at_ms: i64) -> String {
    format!(
        "#Software: Posthouse\r\n#Version: {}\r\n#Log-Type: SMTP Receive Protocol Log\r\n#Date: {}\r\n#Fields: \
         date-time,connector-id,session-id,sequence-number,local-endpoint,remote-endpoint,event,data,context\r\n",
        env!("CARGO_PKG_VERSION"),
        rfc3339(at_ms)
    )
}

/// Octets as text that stays on its line: what is not printable is `\xNN`, and so is a backslash before an `x`.
pub(super) fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for character in String::from_utf8_lossy(bytes).chars() {
        // U+2028 and its like end lines in some readers.
        if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') {
            let mut held = [0; 4];
            for byte in character.encode_utf8(&mut held).bytes() {
                let _ = write!(text, "\\x{byte:02X}");
            }
        } else {
            text.push(character);
        }
    }
    text
}

/// RFC 4180: a field with a comma or a quote is quoted, and its quotes are doubled.
fn field(out: &mut String, text: &str) {
    if text.contains([',', '"']) {
        let _ = write!(out, "\"{}\"", text.replace('"', "\"\""));
    } else {
        out.push_str(text);
    }
}

impl Record {
    /// The record with its line end.
    pub(super) fn line(&self, format: Format) -> String {
        match format {
            Format::Exchange => self.csv(),
            Format::Json => self.json(),
        }
    }

    fn csv(&self) -> String {
        let mut out = rfc3339(self.at_ms);
        out.push(',');
        field(&mut out, &self.connector_id);
        let _ = write!(out, ",{},{},{},{}", self.session_id, self.sequence, self.local, self.remote);
        let _ = write!(out, ",{},", self.event.as_str());
        field(&mut out, &self.data);
        out.push(',');
        field(&mut out, &self.context);
        out.push_str("\r\n");
        out
    }

    fn json(&self) -> String {
        let object = serde_json::json!({
            "date-time": rfc3339(self.at_ms),
            "connector-id": self.connector_id,
            "session-id": self.session_id,
            "sequence-number": self.sequence,
            "local-endpoint": self.local,
            "remote-endpoint": self.remote,
            "event": self.event,
            "data": self.data,
            "context": self.context,
        });
        format!("{object}\n")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn record(data: &str) -> Record {
        Record {
            at_ms: 1_481_678_254_808,
            connector_id: "n1\\printers".to_owned(),
            session_id: "0A1B".to_owned(),
            sequence: 2,
            local: "10.0.0.1:25".parse().unwrap(),
            remote: "10.1.2.3:55171".parse().unwrap(),
            event: Event::Send,
            data: data.to_owned(),
            context: String::new(),
        }
    }

    #[test]
    fn a_record_looks_like_exchanges() {
        assert_eq!(
            record("220 n1, at your service").line(Format::Exchange),
            "2016-12-14T01:17:34.808Z,n1\\printers,0A1B,2,10.0.0.1:25,10.1.2.3:55171,>,\"220 n1, at your service\",\r\n"
        );
        assert!(record("say \"x\"").line(Format::Exchange).contains(",>,\"say \"\"x\"\"\",\r\n"));
        let json: serde_json::Value = serde_json::from_str(&record("x").line(Format::Json)).unwrap();
        assert_eq!((json["event"].as_str(), json["sequence-number"].as_u64()), (Some(">"), Some(2)));
    }

    proptest::proptest! {
        #[test]
        fn whatever_was_said_is_one_line(said in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80)) {
            for format in [Format::Exchange, Format::Json] {
                let line = record(&printable(&said)).line(format);
                proptest::prop_assert_eq!(line.trim_end().chars().filter(|c| c.is_control()).count(), 0);
                proptest::prop_assert!(line.ends_with('\n'));
            }
        }
    }
}
