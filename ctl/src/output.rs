//! How answers look: tables without borders for people, versioned JSON for scripts. Whatever others wrote (a remote
//! server's reply, a header) is made printable before it reaches a terminal.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::{Map, Value};

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// One JSON object, with its schema.
    Json,
    /// One JSON object a line, one line an item.
    Jsonl,
    /// Names only, one a line.
    Name,
}

impl Format {
    /// Whether a machine reads it.
    pub(crate) fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::Jsonl)
    }
}

/// Where answers go, and how they look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    pub(crate) format: Format,
    pub(crate) headers: bool,
}

/// A table in the making. A heading that begins with `>` belongs to a column of numbers.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Rows {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn push(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as text, indented by `indent`; empty when it has no rows and no headings are wanted.
    pub(crate) fn render(&self, headers: bool, indent: &str) -> String {
        /// Between columns.
        const GAP: u16 = 2;
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let cell = |index: usize, text: &str| {
            let text = printable(text).replace('\n', " ");
            let number = self.headings.get(index).is_some_and(|heading| heading.starts_with('>'));
            Cell::new(text).set_alignment(if number { CellAlignment::Right } else { CellAlignment::Left })
        };
        let cells = |row: &[String]| row.iter().enumerate().map(|(i, text)| cell(i, text)).collect::<Vec<_>>();
        if headers {
            let words = self.headings.iter().map(|heading| heading.trim_start_matches('>').to_owned());
            table.add_row(cells(&words.collect::<Vec<_>>()));
        }
        for row in &self.rows {
            table.add_row(cells(row));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, GAP));
        }
        table.lines().map(|line| format!("{indent}{}\n", line.trim_end())).collect()
    }
}

impl Out {
    /// Prints a list: `reply[list]` holds the items, `name` is the field that names one.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub(crate) fn list(
        &self,
        schema: &str,
        reply: &impl Serialize,
        list: &str,
        name: &str,
        table: impl FnOnce(bool) -> Rows,
    ) -> io::Result<()> {
        match self.format {
            Format::Json => self.json(schema, reply),
            Format::Jsonl => {
                let value = flattened(reply);
                let items = value.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
                text(&items.iter().map(|item| format!("{item}\n")).collect::<String>())
            }
            Format::Name => {
                let value = flattened(reply);
                let items = value.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
                let names = items.iter().filter_map(|item| item.get(name).and_then(Value::as_str));
                text(&names.map(|name| format!("{name}\n")).collect::<String>())
            }
            Format::Table | Format::Wide => text(&table(self.format == Format::Wide).render(self.headers, "")),
        }
    }

    /// Prints one object: its fields at the top level of the JSON, or one a line, its name first.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub(crate) fn show(&self, schema: &str, object: &impl Serialize, name: &str) -> io::Result<()> {
        if self.format.is_json() {
            return self.json(schema, object);
        }
        let value = flattened(object);
        let title = value.get(name).and_then(Value::as_str).unwrap_or_default();
        if self.format == Format::Name {
            return text(&format!("{title}\n"));
        }
        let mut rows = Rows::new(&["", ""]);
        rows.push(vec![name.to_owned(), title.to_owned()]);
        for (key, field) in value.as_object().into_iter().flatten().filter(|(key, _)| *key != name) {
            rows.push(vec![key.replace('_', "-"), plain(field)]);
        }
        text(&rows.render(false, ""))
    }

    /// Prints JSON with its schema; pretty with `json`, on one line with `jsonl`.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub(crate) fn json(&self, schema: &str, object: &impl Serialize) -> io::Result<()> {
        let value = with_schema(schema, flattened(object));
        let rendered =
            if self.format == Format::Jsonl { Ok(value.to_string()) } else { serde_json::to_string_pretty(&value) };
        raw(&format!("{}\n", rendered.map_err(io::Error::other)?))
    }
}

/// `"schema"` beside the object's own fields.
fn with_schema(schema: &str, value: Value) -> Value {
    let mut object = match value {
        Value::Object(object) => object,
        other => Map::from_iter([("value".to_owned(), other)]),
    };
    object.insert("schema".to_owned(), Value::String(format!("posthousectl/{schema}/v1")));
    Value::Object(object)
}

/// A proto message as JSON under its proto names, with each `StringList` as the array that it means.
pub(crate) fn flattened(object: &impl Serialize) -> Value {
    // A generated message has string keys and finite numbers only: nothing in it can fail to serialise.
    flatten(serde_json::to_value(object).unwrap_or(Value::Null))
}

fn flatten(value: Value) -> Value {
    match value {
        Value::Object(mut object) => {
            if object.len() == 1 && object.get("values").is_some_and(Value::is_array) {
                return object.remove("values").unwrap_or(Value::Null);
            }
            Value::Object(object.into_iter().map(|(key, value)| (key, flatten(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(flatten).collect()),
        other => other,
    }
}

/// A JSON value as a person writes it.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::Number(number) => number.to_string(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(_) => value.to_string(),
    }
}

/// Replaces control characters, so that nothing others wrote can steer a terminal. Line ends stay.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Prints text for people.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn text(text: &str) -> io::Result<()> {
    raw(&printable(text))
}

/// Prints exactly these characters. A reader that has gone away (`| head`) wants no more, and that is no error.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn raw(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Prints for people beside the answer.
pub(crate) fn note(text: &str) {
    complain(&printable(&format!("{text}\n")));
}

/// Prints a rendered failure. Nobody listens when standard error is closed, and nothing can be done then.
pub(crate) fn complain(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// `-` for nothing.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// `2026-08-02T10:11:12.123Z` as `2026-08-02 10:11:12`; what is not a time stays as it is.
pub(crate) fn short_time(time: &str) -> String {
    match (time.get(..10), time.get(10..11), time.get(11..19)) {
        (Some(day), Some("T"), Some(clock)) => format!("{day} {clock}"),
        _ => or_dash(time),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use posthouse_proto::v1::{Connector, ListConnectorsReply, StringList};
    use serde_json::json;

    #[test]
    fn string_lists_become_arrays_and_absent_ones_null() {
        let reply = ListConnectorsReply {
            connectors: vec![Connector {
                name: "x".into(),
                enabled: Some(true),
                bindings: Some(StringList { values: vec!["0.0.0.0:25".into()] }),
                rights: Some(StringList { values: vec![] }),
                ..Connector::default()
            }],
            revision: 4,
            ..ListConnectorsReply::default()
        };
        let value = flattened(&reply);
        let connector = &value["connectors"][0];
        assert_eq!(connector["bindings"], json!(["0.0.0.0:25"]));
        assert_eq!(connector["rights"], json!([]));
        assert_eq!(connector["remote_ip_ranges"], Value::Null);
        assert_eq!(connector["enabled"], json!(true));
        assert_eq!(value["revision"], json!(4));
    }

    #[test]
    fn every_object_names_its_schema() {
        let value = with_schema("connector-list", json!({"a": 1}));
        assert_eq!(value, json!({"a": 1, "schema": "posthousectl/connector-list/v1"}));
    }

    #[test]
    fn tables_have_no_borders_and_no_trailing_spaces() {
        let mut rows = Rows::new(&["NAME", ">COUNT", "STATE"]);
        rows.push(vec!["a".into(), "7".into(), "".into()]);
        rows.push(vec!["longer".into(), "1,000".into(), "on".into()]);
        assert_eq!(rows.render(true, ""), "NAME    COUNT  STATE\na           7\nlonger  1,000  on\n");
        assert_eq!(rows.render(false, "  "), "  a           7\n  longer  1,000  on\n");
    }

    #[test]
    fn a_table_without_rows_is_its_headings() {
        assert_eq!(Rows::new(&["NAME"]).render(true, ""), "NAME\n");
        assert_eq!(Rows::new(&["NAME"]).render(false, ""), "");
    }

    #[test]
    fn cells_of_others_cannot_steer_the_terminal() {
        let mut rows = Rows::new(&["A"]);
        rows.push(vec!["\u{1b}]0;x\u{7}\r\nnext".into()]);
        let text = rows.render(false, "");
        assert!(!text.contains('\u{1b}') && !text.contains('\r'));
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn times_are_shortened_and_anything_else_is_kept() {
        assert_eq!(short_time("2026-08-02T10:11:12.123Z"), "2026-08-02 10:11:12");
        assert_eq!(short_time(""), "-");
        assert_eq!(short_time("soon"), "soon");
    }
}
