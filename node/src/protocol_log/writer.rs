//! The one writer: files by day and number, full at a size, gone at an age or when all of them are too much.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufWriter, Result, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, SystemTime};

use metrics::counter;

use super::record::{Format, Record, header};
use super::{RECORDS, Settings};
use crate::clock::{now_ms, rfc3339};

/// How long a record may lie in memory.
const FLUSH: Duration = Duration::from_millis(200);

struct Open {
    file: BufWriter<File>,
    bytes: u64,
    day: String,
}

struct Writer {
    settings: Settings,
    open: Option<Open>,
    /// The disk did not take the last record; said once.
    is_failing: bool,
}

/// Writes what comes until it `has_ended` and nothing waits.
pub(super) fn run(settings: Settings, records: &Receiver<Record>, has_ended: impl Fn() -> bool) {
    let mut writer = Writer { settings, open: None, is_failing: false };
    loop {
        match records.recv_timeout(FLUSH) {
            Ok(record) => writer.take(&record),
            Err(RecvTimeoutError::Timeout) => {
                writer.flush();
                if has_ended() {
                    return;
                }
            }
            Err(RecvTimeoutError::Disconnected) => return writer.flush(),
        }
    }
}

impl Writer {
    fn take(&mut self, record: &Record) {
        let result = self.write(record);
        let word = if result.is_ok() { "written" } else { "failed" };
        counter!(RECORDS, "result" => word).increment(1);
        self.judge(result);
    }

    fn flush(&mut self) {
        let result = self.open.as_mut().map_or(Ok(()), |open| open.file.flush());
        self.judge(result);
    }

    /// A file that failed is left; the next record tries another.
    fn judge(&mut self, result: Result<()>) {
        match result {
            Err(error) => {
                self.open = None;
                if !self.is_failing {
                    let directory = self.settings.directory.display();
                    tracing::error!(%error, %directory, "the protocol log cannot be written; mail goes on");
                }
                self.is_failing = true;
            }
            Ok(()) => self.is_failing = false,
        }
    }

    fn write(&mut self, record: &Record) -> Result<()> {
        let day = day(record.at_ms);
        let is_full = self.open.as_ref().is_some_and(|open| open.bytes >= self.settings.max_file_bytes);
        if is_full || self.open.as_ref().is_none_or(|open| open.day != day) {
            self.flush();
            self.open = None;
            self.open = Some(self.begin(day)?);
            self.tidy();
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        let line = record.line(self.settings.format);
        open.bytes += line.len() as u64;
        open.file.write_all(line.as_bytes())
    }

    /// The next file of this day.
    fn begin(&self, day: String) -> Result<Open> {
        DirBuilder::new().recursive(true).mode(0o750).create(&self.settings.directory)?;
        let suffix = match self.settings.format {
            Format::Exchange => "log",
            Format::Json => "jsonl",
        };
        // Never a number that was used before: names follow the order in which the files were written.
        let mut number =
            self.files().iter().filter(|file| file.place.0 == day).map(|file| file.place.1).max().unwrap_or(0) + 1;
        let file = loop {
            let path = self.settings.directory.join(format!("RECV{day}-{number:04}.{suffix}"));
            // Who connects and writes to whom is not for everybody to read.
            match OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path) {
                Ok(file) => break file,
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(error),
            }
        };
        let mut open = Open { file: BufWriter::new(file), bytes: 0, day };
        if self.settings.format == Format::Exchange {
            let header = header(now_ms());
            open.bytes = header.len() as u64;
            open.file.write_all(header.as_bytes())?;
        }
        Ok(open)
    }

    /// Removes what is too old and, oldest first, what is too much. The newest file stays.
    fn tidy(&self) {
        let files = self.files();
        let mut all: u64 = files.iter().map(|file| file.bytes).sum();
        let newest = files.len().saturating_sub(1);
        for file in files.into_iter().take(newest) {
            let is_old = file.written.elapsed().is_ok_and(|age| age > self.settings.max_age);
            if is_old || all > self.settings.max_directory_bytes {
                match std::fs::remove_file(&file.path) {
                    Ok(()) => all = all.saturating_sub(file.bytes),
                    Err(error) => tracing::warn!(%error, path = %file.path.display(), "old protocol log stays"),
                }
            }
        }
    }

    /// The files there are, oldest first.
    fn files(&self) -> Vec<Written> {
        let entries = std::fs::read_dir(&self.settings.directory).into_iter().flatten().flatten();
        let ours = entries.filter_map(|entry| {
            let place = place(entry.file_name().to_str()?)?;
            let facts = entry.metadata().ok()?;
            Some(Written { place, written: facts.modified().ok()?, path: entry.path(), bytes: facts.len() })
        });
        let mut files: Vec<_> = ours.collect();
        files.sort_by(|a, b| a.place.cmp(&b.place));
        files
    }
}

/// A file of this log.
struct Written {
    place: (String, u64),
    written: SystemTime,
    path: PathBuf,
    bytes: u64,
}

/// Day and number of a file of ours, by its name.
fn place(name: &str) -> Option<(String, u64)> {
    let (stem, _) = name.strip_prefix("RECV")?.split_once('.')?;
    let (day, number) = stem.split_once('-')?;
    Some((day.to_owned(), number.parse().ok()?))
}

/// `yyyymmdd` in UTC.
fn day(at_ms: i64) -> String {
    rfc3339(at_ms).chars().take(10).filter(|character| *character != '-').collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::protocol_log::Event;

    fn record(sequence: u64) -> Record {
        Record {
            at_ms: 1_481_678_254_808,
            connector_id: "n1\\printers".to_owned(),
            session_id: "0A1B".to_owned(),
            sequence,
            local: "10.0.0.1:25".parse().unwrap(),
            remote: "10.1.2.3:55171".parse().unwrap(),
            event: Event::Receive,
            data: "NOOP".to_owned(),
            context: String::new(),
        }
    }

    fn writer(dir: &std::path::Path) -> Writer {
        let settings = Settings {
            format: Format::Exchange,
            directory: dir.join("protocol-log"),
            max_file_bytes: 2000,
            max_directory_bytes: 6000,
            max_age: Duration::from_secs(3600),
        };
        Writer { settings, open: None, is_failing: false }
    }

    #[test]
    fn files_have_a_header_and_a_size_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        (0..200).for_each(|sequence| writer.take(&record(sequence)));
        writer.flush();
        let files = writer.files();
        let bytes: u64 = files.iter().map(|file| file.bytes).sum();
        assert!(bytes <= 6000 + 2200, "{bytes}");
        assert!(files[0].place.1 > 1, "a number is not used again: {:?}", files[0].path);
        for Written { path, bytes, .. } in &files {
            let text = std::fs::read_to_string(path).unwrap();
            assert!(path.file_name().unwrap().to_str().unwrap().starts_with("RECV20161214-"), "{path:?}");
            assert!(text.starts_with("#Software: Posthouse\r\n#Version: "), "{text}");
            assert!(*bytes < 2200, "{bytes}");
        }
        let last = std::fs::read_to_string(&files.last().unwrap().path).unwrap();
        assert!(last.contains(",199,"), "the newest record is there: {last}");
    }

    #[test]
    fn a_disk_that_fails_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        std::fs::write(dir.path().join("protocol-log"), "in the way").unwrap();
        writer.take(&record(0));
        assert!(writer.is_failing);
        std::fs::remove_file(dir.path().join("protocol-log")).unwrap();
        writer.take(&record(1));
        writer.flush();
        assert!(!writer.is_failing);
        assert_eq!(writer.files().len(), 1);
    }
}
