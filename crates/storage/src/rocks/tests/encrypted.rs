//! A database whose files are encrypted, are to be, or are to be no longer.

use std::os::unix::fs::PermissionsExt;

use meridian_vault::{EncryptionSettings, Folder, KeySource, Survey};

use super::*;
use crate::schema::state_family;

const KEY: &[u8] = b"key that is not to be read";
const VALUE: &[u8] = b"value that is not to be read";

/// A data folder, with a key beside it.
struct Node {
    folder: tempfile::TempDir,
    data: PathBuf,
}

/// An open database and its keys.
struct Opened {
    engine: RocksEngine,
    folder: Folder,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        fs::write(&key, (0..32).collect::<Vec<u8>>()).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        Self { folder, data }
    }

    /// `seals`: `None` without a key.
    fn open(&self, seals: Option<bool>) -> Opened {
        self.open_at(&self.data, seals)
    }

    fn open_at(&self, data: &Path, seals: Option<bool>) -> Opened {
        let key = KeySource::File(self.folder.path().join("key"));
        let settings = seals.map(|seals| EncryptionSettings { seals, key, previous: None });
        let folder = Folder::open(data, settings.as_ref()).unwrap();
        let options = RocksOptions { vault: folder.vault().cloned(), ..RocksOptions::default() };
        let engine = RocksEngine::open(&data.join("db"), options).unwrap();
        Opened { engine, folder }
    }

    /// The files that tell a key or a value.
    fn telling(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.data.join("db")).unwrap();
        let holds = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).any(|part| part == what);
        let files = files.map(|entry| entry.unwrap().path()).filter(|path| {
            let bytes = fs::read(path).unwrap();
            holds(&bytes, KEY) || holds(&bytes, VALUE)
        });
        files.collect()
    }
}

fn state() -> String {
    state_family(meridian_types::ShardId(1), 1)
}

impl Opened {
    /// Writes rows of the log, and of a state in several tables and a memtable.
    fn fill(&self, round: u8) {
        self.engine.create_family(&state()).unwrap();
        for part in 0..3 {
            let mut log = WriteBatch::default();
            let mut rows = WriteBatch::default();
            for number in 0..50 {
                let key = [KEY, &[round, part, number]].concat();
                log.put(&LOG_FAMILY.into(), key.clone(), VALUE.to_vec());
                rows.put(&state().as_str().into(), key, VALUE.to_vec());
            }
            self.engine.write(log, Durability::Logged).unwrap();
            self.engine.write(rows, Durability::Unlogged).unwrap();
            self.engine.sync().unwrap();
            if part < 2 {
                self.engine.flush(&state()).unwrap();
            }
        }
        // One overlaps the others, and lies on the last level.
        if round == 0 {
            self.engine.compact(&state()).unwrap();
            self.engine.flush(LOG_FAMILY).unwrap();
        }
    }

    /// As many rows as so many rounds make, of which the last did not flush the last third of the
    /// state.
    fn assert_filled(&self, rounds: u8) {
        let count = |family: &str| {
            let (mut count, scan) = (0, Scan { start: KEY, end: b"l", reverse: false });
            self.engine
                .scan(family, scan, &mut |key, value| {
                    assert!(key.starts_with(KEY) && value == VALUE);
                    count += 1;
                    ControlFlow::Continue(())
                })
                .unwrap();
            count
        };
        assert_eq!(count(LOG_FAMILY), usize::from(rounds) * 150);
        assert!(count(&state()) >= usize::from(rounds) * 100);
    }

    fn survey(&self) -> Survey {
        self.folder.vault().unwrap().survey(|_| true).unwrap()
    }

    fn rewrite(&self) {
        self.engine.rewrite(&mut |_| ControlFlow::Continue(())).unwrap();
    }
}

#[test]
fn no_file_of_an_encrypted_database_tells_a_key_or_a_value() {
    let written = |seals| {
        let node = Node::new();
        let opened = node.open(seals);
        opened.fill(0);
        opened.fill(1);
        opened.engine.compact(LOG_FAMILY).unwrap();
        opened.assert_filled(2);
        let while_open = node.telling();
        drop(opened);
        node.open(seals).assert_filled(2);
        (while_open, node.telling())
    };
    let (open, closed) = written(None);
    assert!(!open.is_empty() && !closed.is_empty(), "the search finds what is not encrypted");
    assert_eq!(written(Some(true)), (Vec::new(), Vec::new()));
}

#[test]
fn plain_database_is_written_again_until_no_file_is_plain_and_back() {
    let node = Node::new();
    node.open(None).fill(0);
    assert!(!node.telling().is_empty());
    let opened = node.open(Some(true));
    opened.fill(1);
    let before = opened.survey();
    assert!(before.stale_files > 0 && before.percent() < 100, "{before:?}");
    opened.rewrite();
    assert_eq!((opened.survey().stale_files, opened.survey().percent()), (0, 100));
    assert_eq!(opened.survey().stale_until_restart, 0);
    assert_eq!(node.telling(), Vec::<PathBuf>::new());
    opened.assert_filled(2);
    drop(opened);
    let opened = node.open(Some(false));
    opened.assert_filled(2);
    assert!(opened.survey().stale_files > 0);
    opened.rewrite();
    assert_eq!(opened.survey().stale_files, 0);
    drop(opened);
    // Without a key now.
    node.open(None).assert_filled(2);
    assert!(!node.data.join("keyring").exists());
}

#[test]
fn files_under_an_older_data_key_are_written_again_and_none_is_left_after_a_start() {
    let node = Node::new();
    let opened = node.open(Some(true));
    opened.fill(0);
    opened.folder.vault().unwrap().rotate_data_key().unwrap();
    opened.fill(1);
    assert!(opened.survey().stale_files > 0);
    opened.rewrite();
    let survey = opened.survey();
    assert_eq!(survey.stale_files, 0, "{survey:?}");
    assert!(survey.stale_until_restart > 0, "the list of tables is still under it");
    opened.assert_filled(2);
    drop(opened);
    let opened = node.open(Some(true));
    assert_eq!(opened.survey().stale_until_restart, 0);
    // The log for people of the opening before.
    opened.rewrite();
    drop(opened);
    let opened = node.open(Some(true));
    let survey = opened.survey();
    assert_eq!((survey.stale_files, survey.stale_until_restart), (0, 0));
    opened.assert_filled(2);
}

/// The folder as a process that is killed at each step of the first rewriting leaves it. It opens
/// with the key, and goes on.
#[test]
fn database_that_is_killed_at_any_step_of_its_encryption_opens_and_goes_on() {
    let node = Node::new();
    node.open(None).fill(0);
    let mut left = Vec::new();
    let mut keep = |name: &str| {
        let at = node.folder.path().join(format!("left-{name}"));
        copy(&node.data.join("db"), &at.join("db"));
        for file in ["keyring", "keyring.lock"].map(|file| node.data.join(file)) {
            if file.exists() {
                fs::copy(&file, at.join(file.file_name().unwrap())).unwrap();
            }
        }
        left.push(at);
    };
    keep("plain");
    drop(Folder::open(&node.data, Some(&settings(&node))).unwrap());
    keep("keyring");
    let opened = node.open(Some(true));
    keep("open");
    let mut step = 0;
    opened
        .engine
        .rewrite(&mut |_| {
            step += 1;
            keep(&step.to_string());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(step >= 2, "only {step} tables were written again");
    keep("done");
    for at in left {
        let opened = node.open_at(&at, Some(true));
        opened.assert_filled(1);
        opened.rewrite();
        assert_eq!(opened.survey().stale_files, 0, "{}", at.display());
        opened.assert_filled(1);
    }
}

fn settings(node: &Node) -> EncryptionSettings {
    let key = KeySource::File(node.folder.path().join("key"));
    EncryptionSettings { seals: true, key, previous: None }
}

#[test]
fn rewriting_ends_when_its_pace_says_so_and_goes_on_later() {
    let node = Node::new();
    node.open(None).fill(0);
    let opened = node.open(Some(true));
    let ended = opened.engine.rewrite(&mut |_| ControlFlow::Break(()));
    assert!(matches!(ended, Err(StorageError::Cancelled(_))));
    assert!(opened.survey().stale_files > 0);
    opened.rewrite();
    assert_eq!(opened.survey().stale_files, 0);
}

#[test]
fn tables_are_written_again_once_and_admitted_with_those_that_overlap_them() {
    let node = Node::new();
    let opened = node.open(None);
    opened.engine.create_family(&state()).unwrap();
    for round in 0..2u8 {
        let mut rows = WriteBatch::default();
        for number in 0..50 {
            let key = [KEY, &[number, round]].concat();
            rows.put(&state().as_str().into(), key, VALUE.to_vec());
        }
        opened.engine.write(rows, Durability::Unlogged).unwrap();
        opened.engine.flush(&state()).unwrap();
    }
    drop(opened);
    let opened = node.open(Some(true));
    let tables = || {
        let mut tables = opened.engine.db.live_files().unwrap();
        tables.retain(|table| table.column_family_name == state());
        tables
    };
    // Tables, logs and others are numbered alike.
    let number = |name: &str| {
        let stem = name.trim_matches('/').split('.').next()?;
        stem.rsplit('-').next()?.parse::<u64>().ok()
    };
    let newest = || {
        let files = fs::read_dir(node.data.join("db")).unwrap();
        files.filter_map(|entry| number(entry.unwrap().file_name().to_str()?)).max().unwrap()
    };
    let bytes: u64 = tables().iter().map(|table| table.size as u64).sum();
    assert_eq!(tables().len(), 2);
    let (mut admitted, mut before) = (Vec::new(), 0);
    opened
        .engine
        .rewrite(&mut |bytes| {
            admitted.push(bytes);
            before = newest();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(admitted, [bytes]);
    let numbers: Vec<_> = tables().iter().map(|table| number(&table.name)).collect();
    assert_eq!(numbers, [Some(before + 1)]);
    assert_eq!(opened.survey().stale_files, 0);
}

#[test]
fn memtables_are_not_flushed_where_no_log_is_to_be_written_again() {
    let node = Node::new();
    let opened = node.open(Some(true));
    opened.fill(0);
    opened.fill(1);
    let unflushed = || opened.engine.property(&state(), NUM_ENTRIES_ACTIVE_MEM_TABLE);
    let before = unflushed();
    assert!(before > 0);
    opened.rewrite();
    assert_eq!(unflushed(), before);
    opened.folder.vault().unwrap().rotate_data_key().unwrap();
    opened.rewrite();
    assert_eq!(unflushed(), 0);
}
