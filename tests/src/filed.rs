//! The letters in the sink, byte for byte, with the envelope they came in.

use std::collections::BTreeMap;

use crate::cluster::TestCluster;

/// One letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filed {
    /// The reverse-path, without brackets.
    pub from: String,
    /// The forward-paths, without brackets.
    pub to: Vec<String>,
    /// Header and body as they came over the wire.
    pub bytes: Vec<u8>,
}

impl Filed {
    /// Reads a file of the sink: the envelope is its first lines.
    fn parse(file: &[u8]) -> Self {
        let mut filed = Self { from: String::new(), to: Vec::new(), bytes: Vec::new() };
        let mut rest = file;
        while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
            let line = String::from_utf8_lossy(&rest[..end]);
            let path = |text: &str| text.trim_start_matches('<').trim_end_matches('>').to_owned();
            if let Some(from) = line.strip_prefix("X-Envelope-From: ") {
                filed.from = path(from);
            } else if let Some(to) = line.strip_prefix("X-Envelope-To: ") {
                filed.to.push(path(to));
            } else {
                break;
            }
            rest = &rest[end + 2..];
        }
        filed.bytes = rest.to_vec();
        filed
    }

    fn split(&self) -> usize {
        self.bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(self.bytes.len(), |at| at + 4)
    }

    /// The header with its empty line.
    pub fn header(&self) -> String {
        String::from_utf8_lossy(&self.bytes[..self.split()]).into_owned()
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.split()..]
    }

    /// The first field of that name, unfolded only as far as its first line.
    pub fn field(&self, name: &str) -> Option<String> {
        let header = self.header();
        header.lines().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    }

    /// Whether a CR or LF stands alone.
    pub fn has_bare_line_end(&self) -> bool {
        let bytes = &self.bytes;
        let alone = |at: usize| match bytes[at] {
            b'\r' => bytes.get(at + 1) != Some(&b'\n'),
            b'\n' => at == 0 || bytes[at - 1] != b'\r',
            _ => false,
        };
        (0..bytes.len()).any(alone)
    }
}

impl TestCluster {
    /// Every letter in the sink.
    pub fn filed(&self) -> Vec<Filed> {
        let Ok(entries) = std::fs::read_dir(self.path().join("maildir/new")) else { return Vec::new() };
        entries.filter_map(|entry| std::fs::read(entry.ok()?.path()).ok()).map(|file| Filed::parse(&file)).collect()
    }

    /// Every letter in the sink, by its subject.
    pub fn filed_by_subject(&self) -> BTreeMap<String, Vec<Filed>> {
        let mut found = BTreeMap::<String, Vec<Filed>>::new();
        for filed in self.filed() {
            found.entry(filed.field("Subject").unwrap_or_default()).or_default().push(filed);
        }
        found
    }
}
