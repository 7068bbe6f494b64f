//! What a machine keeps on disk of who it is: its key and certificate, the authority's certificate, and (nodes) the
//! data key, each mode 0600 in a directory of mode 0700. `identity.json` is written last: a join that was
//! interrupted leaves no half identity.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use super::{DataKey, PkiError};

/// What a certificate lets its holder be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityRole {
    /// A member.
    Node,
    /// A front.
    Front,
    /// An administrator.
    Admin,
}

impl IdentityRole {
    /// The word in the certificate.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Front => "front",
            Self::Admin => "admin",
        }
    }

    /// Reads the word in a certificate.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Node, Self::Front, Self::Admin].into_iter().find(|role| role.as_str() == text)
    }
}

/// Who this machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's id.
    pub cluster_id: String,
    /// This machine's name.
    pub name: String,
    /// Node or front.
    pub role: IdentityRole,
    /// Node id; 0 for a front.
    #[serde(default)]
    pub node_id: u64,
    /// Addresses of members as known when it joined.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Fronts: the id of the key that signs PROXY headers.
    #[serde(default)]
    pub front_key_id: String,
    /// Own certificate and the authority's, PEM.
    #[serde(skip)]
    pub chain_pem: String,
    /// Own private key, PEM.
    #[serde(skip)]
    pub key_pem: Redacted,
    /// The authority's certificate, PEM.
    #[serde(skip)]
    pub ca_pem: String,
}

/// A text that `Debug` does not show.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Redacted(pub String);

impl std::fmt::Debug for Redacted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<redacted>")
    }
}

/// Why an identity cannot be read or written. Ours, lasting.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system refused.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file says nothing useful.
    #[error("{path}: cannot be understood; it is damaged or another program's", path = path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// A certificate could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

const FACTS: &str = "identity.json";
const CHAIN: &str = "identity.crt";
const KEY: &str = "identity.key";
const CA: &str = "ca.crt";
const DATA_KEY: &str = "data.key";
const FRONT_KEY: &str = "front.key";

impl Identity {
    /// Reads the identity kept in `dir`. `None`: this machine belongs to no cluster yet.
    ///
    /// # Errors
    /// When a part is missing or damaged.
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let facts = dir.join(FACTS);
        if !facts.exists() {
            return Ok(None);
        }
        let mut identity: Self =
            serde_json::from_slice(&read(&facts)?).map_err(|_| IdentityError::Damaged { path: facts })?;
        identity.chain_pem = read_text(&dir.join(CHAIN))?;
        identity.key_pem = Redacted(read_text(&dir.join(KEY))?);
        identity.ca_pem = read_text(&dir.join(CA))?;
        Ok(Some(identity))
    }

    /// Writes the identity into `dir`, durably.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        make_dir(dir)?;
        write(&dir.join(CHAIN), self.chain_pem.as_bytes())?;
        write(&dir.join(KEY), self.key_pem.0.as_bytes())?;
        write(&dir.join(CA), self.ca_pem.as_bytes())?;
        let facts = serde_json::to_vec_pretty(self).map_err(|_| IdentityError::Damaged { path: dir.join(FACTS) })?;
        write(&dir.join(FACTS), &facts)
    }

    /// Reads the data key kept in `dir`.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn load_data_key(dir: &Path) -> Result<DataKey, IdentityError> {
        let path = dir.join(DATA_KEY);
        DataKey::from_bytes(&read(&path)?).map_err(|_| IdentityError::Damaged { path })
    }

    /// Writes the data key into `dir`, durably.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn save_data_key(dir: &Path, key: &DataKey) -> Result<(), IdentityError> {
        make_dir(dir)?;
        write(&dir.join(DATA_KEY), key.as_bytes())
    }

    /// Reads a front's signing key kept in `dir`.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn load_front_key(dir: &Path, id: &str) -> Result<[u8; 32], IdentityError> {
        let rotated = rotated_key(dir, id);
        let path = if rotated.exists() { rotated } else { dir.join(FRONT_KEY) };
        read(&path)?.try_into().map_err(|_| IdentityError::Damaged { path })
    }

    /// Writes a front's signing key into `dir`, durably.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn save_front_key(dir: &Path, key: &[u8]) -> Result<(), IdentityError> {
        make_dir(dir)?;
        write(&dir.join(FRONT_KEY), key)
    }

    /// Keeps a front's next signing key in `dir`: its file first, then the identity that names it, so that a crash
    /// leaves either the old pair or the new one.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn rotate_front_key(&self, dir: &Path, id: &str, key: &[u8]) -> Result<(), IdentityError> {
        write(&rotated_key(dir, id), key)?;
        let next = Self { front_key_id: id.to_owned(), ..self.clone() };
        next.save(dir)?;
        for old in [dir.join(FRONT_KEY), rotated_key(dir, &self.front_key_id)] {
            // What is left behind is a key that nodes no longer believe.
            let _ = std::fs::remove_file(old);
        }
        Ok(())
    }

    /// Makes a key and a certificate request: the key's PEM and the request's.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn request() -> Result<(Redacted, String), PkiError> {
        let (key, pem) = super::authority::request()?;
        Ok((Redacted(key.serialize_pem()), pem))
    }

    /// Certificate chain, private key and authority as rustls wants them.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn tls_parts(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, CertificateDer<'static>), PkiError> {
        let chain = CertificateDer::pem_slice_iter(self.chain_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| PkiError::Unreadable("this machine's certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.0.as_bytes())
            .map_err(|_| PkiError::Unreadable("this machine's private key"))?;
        let ca = CertificateDer::from_pem_slice(self.ca_pem.as_bytes())
            .map_err(|_| PkiError::Unreadable("the authority's certificate"))?;
        Ok((chain, key, ca))
    }
}

/// The file of a key that came by rotation. Ids are ours, and hexadecimal.
fn rotated_key(dir: &Path, id: &str) -> PathBuf {
    let id: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    dir.join(format!("front-{id}.key"))
}

/// Makes a directory of mode 0700 where there is none.
fn make_dir(dir: &Path) -> Result<(), IdentityError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| IdentityError::File { path: dir.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    std::fs::read(path).map_err(|source| IdentityError::File { path: path.to_owned(), source })
}

fn read_text(path: &Path) -> Result<String, IdentityError> {
    String::from_utf8(read(path)?).map_err(|_| IdentityError::Damaged { path: path.to_owned() })
}

/// Replaces a file whole: temporary file of mode 0600, sync, rename, sync of the directory.
fn write(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let temporary = path.with_extension("new");
    let result = (|| {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        match path.parent() {
            Some(dir) => std::fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    })();
    result.map_err(|source| IdentityError::File { path: path.to_owned(), source })
}
