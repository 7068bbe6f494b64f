//! The file: a line for each thing, as JSON, the later one replaces the earlier one. Lines are added as things change,
//! and now and then the file is written anew. A line that cannot be read costs that line.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Result, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Usage, UsageKey};
use crate::connector::RemoteIpRange;

/// What the first line begins with.
const HEADER: &str = "posthouse-usage 1 ";
/// Lines of the file beyond two for each thing before it is written anew.
const WORDY: usize = 10_000;
/// A line is never longer: names have limits.
const LINE_MAX: usize = 4096;

/// One thing and its use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) key: UsageKey,
    pub(super) usage: Usage,
}

/// The file, and the state of our writing.
pub(super) struct UsageFile {
    path: PathBuf,
    since_ms: i64,
    lines: usize,
    open: Option<File>,
    /// The disk did not take what was written last; said once.
    is_failing: bool,
}

impl Line {
    fn text(&self) -> String {
        let Usage { first_secs, last_secs, count } = self.usage;
        let object = match &self.key {
            UsageKey::Connector(name) => serde_json::json!(["c", name, "", first_secs, last_secs, count]),
            UsageKey::Range(name, range) => {
                serde_json::json!(["r", name, range.to_string(), first_secs, last_secs, count])
            }
            UsageKey::Credential(user) => serde_json::json!(["u", user, "", first_secs, last_secs, count]),
        };
        format!("{object}\n")
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let (kind, name, range, first_secs, last_secs, count) =
            serde_json::from_slice::<(String, Arc<str>, String, u32, u32, u64)>(text).ok()?;
        let key = match kind.as_str() {
            "c" => UsageKey::Connector(name),
            "r" => UsageKey::Range(name, range.parse::<RemoteIpRange>().ok()?),
            "u" => UsageKey::Credential(name),
            _ => return None,
        };
        Some(Self { key, usage: Usage { first_secs, last_secs, count } })
    }
}

impl UsageFile {
    /// Reads what is there line by line. A file that is none of ours, or cannot be read, begins anew.
    pub(super) fn open(path: PathBuf, now_ms: i64, mut put: impl FnMut(Line)) -> Self {
        let mut file = Self { path, since_ms: now_ms, lines: usize::MAX, open: None, is_failing: false };
        match file.read(&mut put) {
            Ok((Some(since_ms), lines, lost)) => {
                (file.since_ms, file.lines) = (since_ms, lines);
                if lost > 0 {
                    let path = file.path.display();
                    tracing::warn!(%path, lost, "lines of the usage file cannot be read");
                }
            }
            Ok((None, ..)) => tracing::warn!(path = %file.path.display(), "the usage file is none of ours: begun anew"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(%error, path = %file.path.display(), "the usage file cannot be read: begun anew");
            }
        }
        file
    }

    fn read(&self, put: &mut impl FnMut(Line)) -> Result<(Option<i64>, usize, usize)> {
        let mut reader = BufReader::new(File::open(&self.path)?);
        let (mut text, mut lines, mut lost) = (Vec::new(), 0, 0);
        let mut since_ms = None;
        while read_line(&mut reader, &mut text)? {
            match since_ms {
                None => {
                    let since =
                        std::str::from_utf8(&text).ok().and_then(|text| text.strip_prefix(HEADER)?.parse().ok());
                    let Some(since) = since else { return Ok((None, 0, 0)) };
                    since_ms = Some(since);
                }
                Some(_) => match Line::parse(&text) {
                    Some(line) => put(line),
                    None => lost += 1,
                },
            }
            lines += 1;
        }
        Ok((since_ms, lines, lost))
    }

    /// Since when it is kept.
    pub(super) fn since_ms(&self) -> i64 {
        self.since_ms
    }

    /// Adds lines. Those that stand behind a line that was cut off begin on a line of their own.
    pub(super) fn append(&mut self, lines: &[Line]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let began = self.open.is_some();
        let file = match &mut self.open {
            Some(file) => file,
            None => self.open.insert(OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?),
        };
        let mut text = String::new();
        if file.metadata()?.len() == 0 {
            text = format!("{HEADER}{}\n", self.since_ms);
            self.lines = 1;
        } else if !began {
            text.push('\n');
        }
        lines.iter().for_each(|line| text.push_str(&line.text()));
        // Whatever becomes of them, the next ones begin on a line of their own.
        let written = file.write_all(text.as_bytes());
        if written.is_err() {
            self.open = None;
        }
        self.lines = self.lines.saturating_add(lines.len());
        written
    }

    /// Whether it says much that it has said better since.
    pub(super) fn is_wordy(&self, keys: usize) -> bool {
        self.lines > keys.saturating_mul(2).saturating_add(WORDY)
    }

    /// Writes it anew, from what `chunk` answers: what comes after a key, in order.
    pub(super) fn rewrite(&mut self, chunk: impl Fn(Option<&UsageKey>) -> Vec<Line>) -> Result<()> {
        let fresh = self.path.with_extension("new");
        let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&fresh)?;
        let mut file = BufWriter::new(file);
        writeln!(file, "{HEADER}{}", self.since_ms)?;
        let (mut lines, mut after) = (1, None);
        loop {
            let next = chunk(after.as_ref());
            let Some(last) = next.last() else { break };
            after = Some(last.key.clone());
            lines += next.len();
            for line in &next {
                file.write_all(line.text().as_bytes())?;
            }
        }
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        std::fs::rename(&fresh, &self.path)?;
        (self.open, self.lines) = (None, lines);
        Ok(())
    }

    /// Says once that it cannot be written.
    pub(super) fn judge(&mut self, result: Result<()>) {
        if let Err(error) = &result
            && !self.is_failing
        {
            let path = self.path.display();
            tracing::error!(%error, %path, "the use of allowlist entries cannot be written; it is kept in memory");
        }
        self.is_failing = result.is_err();
    }
}

/// Reads a line without its end; of one that is too long, nothing. Answers whether there was one.
fn read_line(reader: &mut impl BufRead, text: &mut Vec<u8>) -> Result<bool> {
    text.clear();
    let mut read = 0;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(read > 0);
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(buffer.len(), |end| end + 1);
        if text.len() + taken <= LINE_MAX {
            text.extend_from_slice(&buffer[..end.unwrap_or(taken)]);
        }
        reader.consume(taken);
        read += taken;
        if end.is_some() {
            return Ok(true);
        }
    }
}
