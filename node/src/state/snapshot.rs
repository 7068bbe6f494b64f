//! The state as key and value bytes: how objects are kept on disk, sent in snapshots and hashed. Every value opens
//! with a version byte; JSON inside, because a later version must be able to add fields to an object that an
//! earlier one still reads.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{AllowlistEntry, ClusterState, Objects, Settings, Versioned};
use crate::connector::RemoteIpRange;

/// The first byte of each encoded object.
const OBJECT_VERSION: u8 = 1;

/// Names one object of the state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ObjectKey {
    /// What the cluster is.
    Facts,
    /// Cluster-wide settings.
    Settings,
    /// A receive connector.
    Connector(String),
    /// A range of a connector.
    AllowlistEntry(String, RemoteIpRange),
    /// An accepted domain.
    Domain(String),
    /// A route.
    Route(String),
    /// A credential.
    Credential(String),
    /// A certificate.
    Certificate(String),
    /// A node.
    Member(u64),
    /// A front.
    Front(String),
    /// A join token.
    JoinToken(String),
    /// An audit record.
    Audit(u64),
    /// What a change replaced.
    History(u64),
}

/// Why bytes are not an object of the state. Ours, lasting: the store is damaged or from a newer version.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// From a newer version.
    #[error("object version {0} is not known here")]
    Version(u8),
    /// A key that says nothing.
    #[error("object key cannot be decoded")]
    Key,
    /// A value that says nothing.
    #[error("object {key:?} cannot be decoded: {source}")]
    Value {
        /// Which.
        key: ObjectKey,
        /// Why.
        source: serde_json::Error,
    },
    /// An empty value.
    #[error("object is empty")]
    Empty,
}

impl ObjectKey {
    /// The key as bytes: a kind byte, then the name. Unique, and grouped by kind.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (kind, rest): (u8, Vec<u8>) = match self {
            Self::Facts => (1, Vec::new()),
            Self::Settings => (2, Vec::new()),
            Self::Connector(name) => (3, name.clone().into_bytes()),
            // A connector name holds no control characters, so that NUL ends it.
            Self::AllowlistEntry(name, range) => (4, format!("{name}\0{range}").into_bytes()),
            Self::Domain(name) => (5, name.clone().into_bytes()),
            Self::Route(name) => (6, name.clone().into_bytes()),
            Self::Credential(user) => (7, user.clone().into_bytes()),
            Self::Certificate(name) => (8, name.clone().into_bytes()),
            Self::Member(id) => (9, id.to_be_bytes().to_vec()),
            Self::Front(name) => (10, name.clone().into_bytes()),
            Self::JoinToken(id) => (11, id.clone().into_bytes()),
            Self::Audit(revision) => (12, revision.to_be_bytes().to_vec()),
            Self::History(revision) => (13, revision.to_be_bytes().to_vec()),
        };
        let mut bytes = vec![kind];
        bytes.extend(rest);
        bytes
    }

    /// Reads a key back.
    ///
    /// # Errors
    /// [`SnapshotError::Key`] when the bytes are not one.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let (&kind, rest) = bytes.split_first().ok_or(SnapshotError::Key)?;
        let name = || String::from_utf8(rest.to_vec()).map_err(|_| SnapshotError::Key);
        let number = || rest.try_into().map(u64::from_be_bytes).map_err(|_| SnapshotError::Key);
        Ok(match kind {
            1 => Self::Facts,
            2 => Self::Settings,
            3 => Self::Connector(name()?),
            4 => {
                let text = name()?;
                let (connector, range) = text.split_once('\0').ok_or(SnapshotError::Key)?;
                Self::AllowlistEntry(connector.to_owned(), range.parse().map_err(|_| SnapshotError::Key)?)
            }
            5 => Self::Domain(name()?),
            6 => Self::Route(name()?),
            7 => Self::Credential(name()?),
            8 => Self::Certificate(name()?),
            9 => Self::Member(number()?),
            10 => Self::Front(name()?),
            11 => Self::JoinToken(name()?),
            12 => Self::Audit(number()?),
            13 => Self::History(number()?),
            _ => return Err(SnapshotError::Key),
        })
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = vec![OBJECT_VERSION];
    serde_json::to_writer(&mut bytes, value).expect("objects have string keys only and a Vec takes every byte");
    bytes
}

fn decode<T: DeserializeOwned>(key: &ObjectKey, bytes: &[u8]) -> Result<T, SnapshotError> {
    match bytes.split_first() {
        None => Err(SnapshotError::Empty),
        Some((&OBJECT_VERSION, rest)) => {
            serde_json::from_slice(rest).map_err(|source| SnapshotError::Value { key: key.clone(), source })
        }
        Some((&version, _)) => Err(SnapshotError::Version(version)),
    }
}

impl ClusterState {
    /// The value bytes of one object, or `None` when it does not exist.
    #[must_use]
    pub fn encode_object(&self, key: &ObjectKey) -> Option<Vec<u8>> {
        match key {
            ObjectKey::Facts => self.facts.as_deref().map(encode),
            ObjectKey::Settings => Some(encode(&*self.settings)),
            ObjectKey::Connector(name) => self.connectors.get(name).map(|found| encode(&found)),
            ObjectKey::AllowlistEntry(name, range) => {
                self.allowlist.get(name).and_then(|entries| entries.get(range)).map(|found| encode(&found))
            }
            ObjectKey::Domain(name) => self.domains.get(name).map(|found| encode(&found)),
            ObjectKey::Route(name) => self.routes.get(name).map(|found| encode(&found)),
            ObjectKey::Credential(user) => self.credentials.get(user).map(|found| encode(&found)),
            ObjectKey::Certificate(name) => self.certificates.get(name).map(|found| encode(&found)),
            ObjectKey::Member(id) => self.members.get(id).map(|found| encode(&found)),
            ObjectKey::Front(name) => self.fronts.get(name).map(|found| encode(&found)),
            ObjectKey::JoinToken(id) => self.join_tokens.get(id).map(|found| encode(&found)),
            ObjectKey::Audit(revision) => self.audit.get(revision).map(|found| encode(&found)),
            ObjectKey::History(revision) => self.history.get(revision).map(|found| encode(&found)),
        }
    }

    /// Puts an object back from its bytes, as read from disk or from a snapshot.
    ///
    /// # Errors
    /// When key or value cannot be decoded; the state is then unchanged.
    pub fn restore_object(&mut self, key: &[u8], value: &[u8]) -> Result<(), SnapshotError> {
        let key = ObjectKey::from_bytes(key)?;
        let before = self.encode_object(&key);
        match &key {
            ObjectKey::Facts => self.facts = Some(Arc::new(decode(&key, value)?)),
            ObjectKey::Settings => self.settings = Arc::new(decode(&key, value)?),
            ObjectKey::Connector(name) => {
                Arc::make_mut(&mut self.connectors).insert(name.clone(), decode(&key, value)?);
            }
            ObjectKey::AllowlistEntry(name, range) => {
                let entry: Versioned<AllowlistEntry> = decode(&key, value)?;
                if entry.value.range != *range {
                    return Err(SnapshotError::Key);
                }
                Arc::make_mut(&mut self.allowlist).entry(name.clone()).or_default().insert(entry);
            }
            ObjectKey::Domain(name) => {
                Arc::make_mut(&mut self.domains).insert(name.clone(), decode(&key, value)?);
            }
            ObjectKey::Route(name) => {
                Arc::make_mut(&mut self.routes).insert(name.clone(), decode(&key, value)?);
            }
            ObjectKey::Credential(user) => {
                Arc::make_mut(&mut self.credentials).insert(user.clone(), decode(&key, value)?);
            }
            ObjectKey::Certificate(name) => {
                Arc::make_mut(&mut self.certificates).insert(name.clone(), decode(&key, value)?);
            }
            ObjectKey::Member(id) => {
                Arc::make_mut(&mut self.members).insert(*id, decode(&key, value)?);
            }
            ObjectKey::Front(name) => {
                Arc::make_mut(&mut self.fronts).insert(name.clone(), decode(&key, value)?);
            }
            ObjectKey::JoinToken(id) => {
                Arc::make_mut(&mut self.join_tokens).insert(id.clone(), decode(&key, value)?);
            }
            ObjectKey::Audit(revision) => {
                Arc::make_mut(&mut self.audit).insert(*revision, decode(&key, value)?);
            }
            ObjectKey::History(revision) => {
                Arc::make_mut(&mut self.history).insert(*revision, decode(&key, value)?);
            }
        }
        self.digest.replace(&key, before.as_deref(), self.encode_object(&key).as_deref());
        Ok(())
    }

    /// The JSON of one object without its revision, or `None` when it does not exist: what the history keeps.
    #[must_use]
    pub fn object_json(&self, key: &ObjectKey) -> Option<String> {
        fn text<T: Serialize>(value: &T) -> String {
            serde_json::to_string(value).expect("objects have string keys only")
        }
        match key {
            ObjectKey::Settings => Some(text(&Settings { revision: 0, ..Settings::clone(&self.settings) })),
            ObjectKey::Connector(name) => self.connectors.get(name).map(|found| text(&found.value)),
            ObjectKey::AllowlistEntry(name, range) => {
                self.allowlist.get(name).and_then(|entries| entries.get(range)).map(|found| text(&found.value))
            }
            ObjectKey::Domain(name) => self.domains.get(name).map(|found| text(&found.value)),
            ObjectKey::Route(name) => self.routes.get(name).map(|found| text(&found.value)),
            _ => None,
        }
    }

    /// Makes an object what its JSON says, or takes it out; for the kinds whose past is kept.
    ///
    /// # Errors
    /// When the JSON is not such an object.
    pub(super) fn restore_json(
        &mut self,
        key: &ObjectKey,
        json: Option<&str>,
        revision: u64,
    ) -> Result<(), SnapshotError> {
        fn read<T: DeserializeOwned>(
            key: &ObjectKey,
            json: &str,
            revision: u64,
        ) -> Result<Versioned<T>, SnapshotError> {
            let value = serde_json::from_str(json);
            let value = value.map_err(|source| SnapshotError::Value { key: key.clone(), source })?;
            Ok(Versioned { revision, value })
        }
        fn set<T: DeserializeOwned + Clone>(
            objects: &mut Objects<String, T>,
            (key, name): (&ObjectKey, &str),
            json: Option<&str>,
            revision: u64,
        ) -> Result<(), SnapshotError> {
            match json {
                Some(json) => {
                    let value = read(key, json, revision)?;
                    Arc::make_mut(objects).insert(name.to_owned(), value);
                }
                None => drop(Arc::make_mut(objects).remove(name)),
            }
            Ok(())
        }
        match (key, json) {
            (ObjectKey::Settings, Some(json)) => {
                let then = read::<Settings>(key, json, revision)?.value;
                self.settings = Arc::new(self.settings.rolled_back_to(then, revision));
            }
            (ObjectKey::Connector(name), json) => set(&mut self.connectors, (key, name), json, revision)?,
            (ObjectKey::Domain(name), json) => set(&mut self.domains, (key, name), json, revision)?,
            (ObjectKey::Route(name), json) => set(&mut self.routes, (key, name), json, revision)?,
            (ObjectKey::AllowlistEntry(name, range), json) => {
                let lists = Arc::make_mut(&mut self.allowlist);
                let entries = lists.entry(name.clone()).or_default();
                match json {
                    Some(json) => drop(entries.insert(read(key, json, revision)?)),
                    None => drop(entries.remove(range)),
                }
                if entries.is_empty() {
                    lists.remove(name);
                }
            }
            _ => return Err(SnapshotError::Key),
        }
        Ok(())
    }

    /// The keys of all objects, in order.
    #[must_use]
    pub fn object_keys(&self) -> Vec<ObjectKey> {
        let mut keys = Vec::new();
        keys.extend(self.facts.is_some().then_some(ObjectKey::Facts));
        keys.push(ObjectKey::Settings);
        keys.extend(self.connectors.keys().cloned().map(ObjectKey::Connector));
        for (name, entries) in &*self.allowlist {
            keys.extend(entries.keys().map(|range| ObjectKey::AllowlistEntry(name.clone(), *range)));
        }
        keys.extend(self.domains.keys().cloned().map(ObjectKey::Domain));
        keys.extend(self.routes.keys().cloned().map(ObjectKey::Route));
        keys.extend(self.credentials.keys().cloned().map(ObjectKey::Credential));
        keys.extend(self.certificates.keys().cloned().map(ObjectKey::Certificate));
        keys.extend(self.members.keys().copied().map(ObjectKey::Member));
        keys.extend(self.fronts.keys().cloned().map(ObjectKey::Front));
        keys.extend(self.join_tokens.keys().cloned().map(ObjectKey::JoinToken));
        keys.extend(self.audit.keys().copied().map(ObjectKey::Audit));
        keys.extend(self.history.keys().copied().map(ObjectKey::History));
        keys
    }
}

/// A hash of a whole state, kept up to date object by object: the sum, word by word, of the SHA-256 of each object's
/// key and value. Equal states have equal digests however they came about; that is how `cluster status` proves that
/// all nodes hold the same connectors. (It guards against divergence, not against an attacker who can write states.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateDigest([u64; 4]);

impl StateDigest {
    /// Takes `before` out and puts `after` in.
    pub fn replace(&mut self, key: &ObjectKey, before: Option<&[u8]>, after: Option<&[u8]>) {
        // The settings exist from the start with their defaults: they count once they have been written.
        if let Some(value) = before
            && !(*key == ObjectKey::Settings && value == encode(&Settings::default()).as_slice())
        {
            for (word, hash) in self.0.iter_mut().zip(words(key, value)) {
                *word = word.wrapping_sub(hash);
            }
        }
        if let Some(value) = after
            && !(*key == ObjectKey::Settings && value == encode(&Settings::default()).as_slice())
        {
            for (word, hash) in self.0.iter_mut().zip(words(key, value)) {
                *word = word.wrapping_add(hash);
            }
        }
    }
}

/// Sixteen hexadecimal digits: short enough to compare by eye.
impl fmt::Display for StateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folded = self.0.iter().fold(0_u64, |sum, word| sum.rotate_left(16) ^ word);
        write!(f, "{folded:016x}")
    }
}

fn words(key: &ObjectKey, value: &[u8]) -> [u64; 4] {
    let key = key.to_bytes();
    let mut bytes = u64::try_from(key.len()).unwrap_or(u64::MAX).to_be_bytes().to_vec();
    bytes.extend(key);
    bytes.extend(value);
    let hash = digest(&SHA256, &bytes);
    let mut words = [0_u64; 4];
    for (word, chunk) in words.iter_mut().zip(hash.as_ref().chunks_exact(8)) {
        *word = chunk.try_into().map_or(0, u64::from_be_bytes);
    }
    words
}
