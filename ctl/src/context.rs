//! Contexts: which cluster, how to reach it, and who we are there. One TOML file, `contexts.toml`, that holds private
//! keys and is therefore refused when anybody else may read it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Exit, Failure, code, nearest};

const FILE_NAME: &str = "contexts.toml";
const LOCK_NAME: &str = "contexts.lock";
/// Larger than any plausible number of contexts.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// How to reach one cluster, and who we are there.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// The cluster's own name.
    #[serde(default)]
    pub(crate) cluster: String,
    /// `host:port`, or `unix:/path`, as given; tried first.
    #[serde(default)]
    pub(crate) endpoints: Vec<String>,
    /// `host:port` of the members, as the cluster told us last; tried when no endpoint answers.
    #[serde(default)]
    pub(crate) members: Vec<String>,
    /// The cluster's authority, PEM. No other is believed.
    #[serde(default)]
    pub(crate) ca: String,
    /// Our certificate, PEM.
    #[serde(default)]
    pub(crate) cert: String,
    /// Our private key, PEM.
    #[serde(default)]
    pub(crate) key: String,
}

/// The file.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    /// The one that is used when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// All of them.
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, Context>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Contexts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contexts").field("current", &self.current).finish_non_exhaustive()
    }
}

/// Where the file is.
#[derive(Clone, Debug)]
pub(crate) struct ContextStore {
    dir: PathBuf,
}

impl ContextStore {
    /// The directory that was named, or `posthouse` in the XDG configuration directory.
    ///
    /// # Errors
    /// When there is neither, because the environment names no home.
    pub(crate) fn locate(named: Option<&Path>) -> Result<Self, Failure> {
        if let Some(dir) = named {
            return Ok(Self { dir: dir.to_owned() });
        }
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // XDG Base Directory Specification: a relative path there is to be ignored.
        let base = variable("XDG_CONFIG_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| variable("HOME").map(|home| home.join(".config")));
        match base {
            Some(base) => Ok(Self { dir: base.join("posthouse") }),
            None => Err(Failure::new(
                Exit::Invalid,
                code::CONTEXT_FILE,
                "no place for the context file",
                "neither XDG_CONFIG_HOME nor HOME is set",
                "name one with --config-dir DIR",
            )),
        }
    }

    /// The file's path.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(FILE_NAME)
    }

    /// Reads the file; without one there are no contexts.
    ///
    /// # Errors
    /// When it cannot be read or parsed, or others may read it.
    pub(crate) fn load(&self) -> Result<Contexts, Failure> {
        let path = self.path();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contexts::default()),
            Err(error) => return Err(unusable(&path, &error)),
        };
        let metadata = file.metadata().map_err(|error| unusable(&path, &error))?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(Failure::new(
                Exit::Invalid,
                code::CONTEXT_FILE,
                format!("{} is refused", path.display()),
                format!("it holds private keys, and its mode {mode:04o} lets others at them"),
                format!("chmod 600 {}   and rotate the keys if others may have read them", path.display()),
            ));
        }
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(file, FILE_BYTES_MAX), &mut text)
            .map_err(|error| unusable(&path, &error))?;
        toml::from_str(&text).map_err(|error| {
            // Never the offending line itself, as toml's own text has it: it may be a private key.
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            Failure::new(
                Exit::Invalid,
                code::CONTEXT_FILE,
                format!("{} cannot be read", path.display()),
                format!("line {}: {}", before.matches('\n').count() + 1, error.message()),
                "correct it, or move it away and make the contexts anew",
            )
        })
    }

    /// Reads, changes and replaces the file as one step: other runs of this program wait meanwhile.
    ///
    /// # Errors
    /// When the file cannot be read or written, or `change` refuses.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Contexts) -> Result<T, Failure>) -> Result<T, Failure> {
        let path = self.path();
        let lock = self.lock().map_err(|error| unwritable(&path, &error))?;
        let before = self.load()?;
        let mut contexts = before.clone();
        let answer = change(&mut contexts)?;
        if contexts != before {
            let text = toml::to_string_pretty(&contexts).map_err(|error| unwritable(&path, &error))?;
            self.replace(&text).map_err(|error| unwritable(&path, &error))?;
        }
        drop(lock);
        Ok(answer)
    }

    fn lock(&self) -> io::Result<File> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(self.dir.join(LOCK_NAME))?;
        lock.lock()?;
        Ok(lock)
    }

    /// Writes beside the file and renames, so that a reader sees the old one or the new one.
    fn replace(&self, text: &str) -> io::Result<()> {
        let fresh = self.dir.join(format!("{FILE_NAME}.new"));
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, self.path())
    }
}

impl Contexts {
    /// The context that was named, or the current one; `None` when none was named and none is current.
    ///
    /// # Errors
    /// When it does not exist.
    pub(crate) fn choose(&self, named: Option<&str>) -> Result<Option<(&str, &Context)>, Failure> {
        let Some(name) = named.or(self.current.as_deref()) else { return Ok(None) };
        match self.contexts.get_key_value(name) {
            Some((name, context)) => Ok(Some((name, context))),
            None => Err(self.not_found(name)),
        }
    }

    /// The failure that says that there is no such context.
    pub(crate) fn not_found(&self, name: &str) -> Failure {
        Failure::new(
            Exit::NotFound,
            code::CONTEXT_MISSING,
            format!("context \"{name}\" not found"),
            "the context file has no context of that name",
            "posthousectl context list",
        )
        .with_suggestion(nearest(name, self.contexts.keys().map(String::as_str)))
    }
}

fn unusable(path: &Path, error: &io::Error) -> Failure {
    let message = format!("{} cannot be read", path.display());
    Failure::new(Exit::Invalid, code::CONTEXT_FILE, message, error.to_string(), "check the file and its directory")
}

fn unwritable(path: &Path, error: &dyn std::error::Error) -> Failure {
    let message = format!("{} cannot be written", path.display());
    Failure::new(
        Exit::Other,
        code::CONTEXT_FILE,
        message,
        error.to_string(),
        "name another place with --config-dir DIR",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn store(dir: &Path) -> ContextStore {
        ContextStore::locate(Some(&dir.join("deeper"))).unwrap()
    }

    fn add(store: &ContextStore, name: &str) {
        let context = Context { endpoints: vec!["127.0.0.1:7101".into()], key: "secret".into(), ..Context::default() };
        store
            .update(|contexts| {
                contexts.contexts.insert(name.into(), context);
                contexts.current = Some(name.into());
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn a_written_file_is_private_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        assert_eq!(store.load().unwrap(), Contexts::default());
        add(&store, "one");
        add(&store, "two");
        let mode = fs::metadata(store.path()).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(fs::metadata(&store.dir).unwrap().permissions().mode() & 0o777, 0o700);
        let contexts = store.load().unwrap();
        assert_eq!(contexts.contexts.len(), 2);
        assert_eq!(contexts.choose(None).unwrap().unwrap().0, "two");
        assert_eq!(contexts.choose(Some("one")).unwrap().unwrap().1.key, "secret");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        add(&store, "one");
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(store.path(), fs::Permissions::from_mode(mode)).unwrap();
            let failure = store.load().unwrap_err();
            assert_eq!(failure.exit_code(), Exit::Invalid as u8, "{mode:o}");
        }
    }

    #[test]
    fn an_unknown_context_is_not_found_and_a_near_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        add(&store, "production");
        let failure = store.load().unwrap().choose(Some("prodction")).map(|_| ()).unwrap_err();
        assert_eq!(failure.exit_code(), Exit::NotFound as u8);
        assert!(failure.render(crate::output::Format::Table).contains("did you mean \"production\"?"));
    }

    #[test]
    fn a_refused_change_leaves_the_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        add(&store, "one");
        let before = fs::read(store.path()).unwrap();
        let refused = store.update(|contexts| -> Result<(), Failure> {
            contexts.contexts.clear();
            Err(contexts.not_found("x"))
        });
        assert!(refused.is_err());
        assert_eq!(fs::read(store.path()).unwrap(), before);
    }

    #[test]
    fn a_damaged_file_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        add(&store, "one");
        fs::write(store.path(), "current = \"x\"\n[contexts.x]\nkey = 7 # s3cret\n").unwrap();
        let failure = store.load().unwrap_err();
        assert_eq!(failure.exit_code(), Exit::Invalid as u8);
        let text = failure.render(crate::output::Format::Table);
        assert!(text.contains("line 3") && !text.contains("s3cret"), "{text}");
    }
}
