//! A medium that changes what it had acknowledged: files of a spool are flipped, cut short, removed, exchanged or put
//! back as they were some time ago. The spool opens with every letter accounted for (whole, or reported as damaged), or
//! it refuses and names a file. It never has fewer letters without a word. 50 damaged spools every day;
//! `POSTHOUSE_TEST_FULL=1` makes 200.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::tests::{copy_dir, open, outcome, read, store_letter, update};
use super::*;

/// Numbers from a seed that is printed (xorshift64).
struct Dice(u64);

impl Dice {
    fn seeded() -> Self {
        let given = std::env::var("POSTHOUSE_SEED").ok().and_then(|text| text.parse().ok());
        let seed: u64 = given.unwrap_or_else(|| crate::clock::now_ms().unsigned_abs());
        println!("DAMAGE: seed {seed} (POSTHOUSE_SEED={seed} rolls the same again)");
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % sides.max(1)
    }
}

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Harm {
    Flip,
    CutShort,
    Remove,
    Exchange,
    PutBack,
}

const HARMS: [Harm; 5] = [Harm::Flip, Harm::CutShort, Harm::Remove, Harm::Exchange, Harm::PutBack];

/// A spool with letters of every kind, in tables, blobs, files of their own and the log; and how it was before.
struct Original {
    _dir: tempfile::TempDir,
    now: PathBuf,
    before: PathBuf,
    letters: BTreeMap<MessageId, Vec<u8>>,
}

async fn original(dice: &mut Dice) -> Original {
    let dir = tempfile::tempdir().unwrap();
    let (now, before) = (dir.path().join("now"), dir.path().join("before"));
    let mut letters = BTreeMap::new();
    for phase in 0..4 {
        // Opening again moves what was in the log into tables and blobs.
        let (spool, report) = open(&now).await;
        assert!(report.quarantined.is_empty());
        for number in 0..12 {
            let size = match number {
                0 => 6 * CHUNK_BYTES + dice.roll(CHUNK_BYTES),
                1..4 => CHUNK_BYTES + dice.roll(CHUNK_BYTES),
                4..8 => 5_000 + dice.roll(60_000),
                _ => 100 + dice.roll(3_000),
            };
            let bytes: Vec<u8> = (0..size).map(|_| u8::try_from(dice.roll(256)).unwrap()).collect();
            letters.insert(store_letter(&spool, &bytes, &["a@x.example"]).await, bytes);
        }
        // Some are delivered.
        for _ in 0..2 {
            let id = *letters.keys().nth(dice.roll(letters.len())).unwrap();
            spool.update(update(id, vec![outcome(0, RecipientState::Delivered)])).await.unwrap();
            letters.remove(&id);
        }
        if phase == 2 {
            copy_dir(&now, &before);
        }
        drop(spool);
    }
    // The last phase lies in the log.
    Original { _dir: dir, now, before, letters }
}

/// The files that hold letters, or say which files do.
fn files(dir: &Path) -> Vec<PathBuf> {
    let holds = |name: &str| {
        ["MANIFEST", "CURRENT"].iter().any(|start| name.starts_with(start))
            || [".log", ".sst", ".blob"].iter().any(|end| name.ends_with(end))
    };
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries
        .filter(|path| holds(&path.file_name().unwrap().to_string_lossy()))
        .filter(|path| path.metadata().unwrap().len() > 0)
        .collect();
    found.sort();
    found
}

/// Harms a file of the spool at `dir`. Answers what was done, or nothing when it would change nothing.
fn harm(dice: &mut Dice, dir: &Path, before: &Path, kind: Harm) -> Option<String> {
    let files = files(dir);
    let path = &files[dice.roll(files.len())];
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let bytes = std::fs::read(path).unwrap();
    let what = match kind {
        Harm::Flip => {
            let mut bytes = bytes.clone();
            let at = dice.roll(bytes.len());
            bytes[at] ^= 1 << dice.roll(8);
            std::fs::write(path, &bytes).unwrap();
            format!("{} flipped at {at} of {}", name(path), bytes.len())
        }
        Harm::CutShort => {
            let keep = dice.roll(bytes.len());
            std::fs::write(path, &bytes[..keep]).unwrap();
            format!("{} cut to {keep} of {}", name(path), bytes.len())
        }
        Harm::Remove => {
            std::fs::remove_file(path).unwrap();
            format!("{} removed", name(path))
        }
        Harm::Exchange => {
            let other = &files[dice.roll(files.len())];
            let others = std::fs::read(other).unwrap();
            if others == bytes {
                return None;
            }
            std::fs::write(path, others).unwrap();
            std::fs::write(other, bytes).unwrap();
            format!("{} and {} exchanged", name(path), name(other))
        }
        Harm::PutBack => {
            let olds: Vec<_> = self::files(before)
                .into_iter()
                .filter(|old| std::fs::read(old).unwrap() != std::fs::read(dir.join(name(old))).unwrap_or_default())
                .collect();
            let old = &olds[dice.roll(olds.len())];
            std::fs::copy(old, dir.join(name(old))).unwrap();
            format!("{} put back as it was", name(old))
        }
    };
    Some(what)
}

/// What became of a damaged spool.
#[derive(Debug, Default)]
struct Found {
    whole: usize,
    reported: usize,
    silent: Vec<MessageId>,
}

async fn look(spool: &Spool, letters: &BTreeMap<MessageId, Vec<u8>>) -> Found {
    let mut found = Found::default();
    for (id, bytes) in letters {
        let aside: Vec<_> = spool.quarantined().await.unwrap().into_iter().map(|letter| letter.id).collect();
        match spool.open_letter(*id).await {
            Ok(None) if aside.contains(id) => found.reported += 1,
            Ok(None) => found.silent.push(*id),
            Err(_) => found.reported += 1,
            Ok(Some(_)) => match read(spool, *id).await {
                Ok(same) if same == *bytes => found.whole += 1,
                Ok(_) => panic!("{id} was read as whole and is not what was accepted"),
                Err(_) => found.reported += 1,
            },
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_spool_accounts_for_every_letter_or_refuses_naming_a_file() {
    let spools = if std::env::var_os("POSTHOUSE_TEST_FULL").is_some() { 200 } else { 50 };
    let mut dice = Dice::seeded();
    let original = original(&mut dice).await;
    let (mut refused, mut whole, mut reported, mut silent) = (0, 0, 0, Vec::new());
    let mut done = 0;
    while done < spools {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&original.now, dir.path());
        let Some(what) = harm(&mut dice, dir.path(), &original.before, HARMS[done % HARMS.len()]) else { continue };
        done += 1;
        let at = dir.path().to_owned();
        let opened = run_blocking(move || Spool::open(&at, 1, "n1", TraceLimits::default(), &Scope::new())).await;
        match opened {
            Err(error) => {
                let text = error.to_string();
                // RocksDB does not say which of the blob files it means.
                let files = [".log", ".sst", "MANIFEST", "CURRENT", "blob", "Blob"];
                let named = files.iter().any(|file| text.contains(file));
                refused += 1;
                if !named {
                    silent.push(format!("{what}: refused without naming a file: {text}"));
                }
            }
            Ok((spool, report)) => {
                let found = look(&spool, &original.letters).await;
                whole += found.whole;
                reported += found.reported;
                if !found.silent.is_empty() {
                    silent.push(format!(
                        "{what}: {} of {} letters; {report:?}",
                        found.silent.len(),
                        original.letters.len()
                    ));
                }
            }
        }
    }
    println!(
        "DAMAGE {spools} spools of {} letters: {refused} refused naming a file; in the others {whole} letters whole, \
         {reported} reported as damaged; fewer letters without a word in {}",
        original.letters.len(),
        silent.len()
    );
    assert!(silent.is_empty(), "{}", silent.join("\n"));
}
