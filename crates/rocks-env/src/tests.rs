//! RocksDB over encrypted files, with what it asks of a file system beside reading and writing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use meridian_vault::{EncryptionSettings, Folder, KeySource};
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{DB, DBRecoveryMode, IteratorMode, Options};

use super::*;

const SECRET: &[u8] = b"this is not to be read";

struct Node {
    folder: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let node = Self { folder: tempfile::tempdir().unwrap() };
        let key = node.folder.path().join("key");
        fs::write(&key, (0..32).collect::<Vec<u8>>()).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(node.folder.path().join("data")).unwrap();
        node
    }

    fn vault(&self, seals: bool) -> Arc<Vault> {
        let key = KeySource::File(self.folder.path().join("key"));
        let settings = EncryptionSettings { seals, key, previous: None };
        let folder = Folder::open(&self.folder.path().join("data"), Some(&settings)).unwrap();
        Arc::clone(folder.vault().unwrap())
    }

    fn db(&self) -> PathBuf {
        self.folder.path().join("data/db")
    }
}

fn options(vault: &Arc<Vault>) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_env(&encrypted_env(vault));
    options
}

fn fill(db: &DB, range: std::ops::Range<u32>) {
    for number in range {
        db.put(number.to_be_bytes(), [SECRET, &number.to_be_bytes()].concat()).unwrap();
    }
}

fn assert_filled(db: &DB, count: u32) {
    for number in 0..count {
        let value = db.get(number.to_be_bytes()).unwrap().unwrap();
        assert_eq!(value, [SECRET, &number.to_be_bytes()].concat());
    }
    assert_eq!(db.iterator(IteratorMode::Start).count(), count as usize);
    assert_eq!(db.iterator(IteratorMode::End).count(), count as usize);
}

/// The files with the secret in them.
fn telling(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let tells = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap_or_default();
        bytes.windows(SECRET.len()).any(|window| window == SECRET)
    };
    files.filter(tells).collect()
}

#[test]
fn database_is_read_again_from_tables_and_log_and_tells_nothing() {
    let node = Node::new();
    for round in 0..3 {
        let db = DB::open(&options(&node.vault(true)), node.db()).unwrap();
        assert_filled(&db, round * 200);
        fill(&db, round * 200..round * 200 + 100);
        db.flush().unwrap();
        // Left in the log.
        fill(&db, round * 200 + 100..(round + 1) * 200);
        db.compact_range(None::<&[u8]>, None::<&[u8]>);
        assert_filled(&db, (round + 1) * 200);
    }
    assert_eq!(telling(&node.db()), Vec::<PathBuf>::new());
}

#[test]
fn plain_files_are_read_beside_encrypted_ones_and_the_other_way_round() {
    let node = Node::new();
    {
        let db = DB::open_default(node.db()).unwrap();
        fill(&db, 0..100);
        db.flush().unwrap();
        fill(&db, 100..200);
    }
    assert!(!telling(&node.db()).is_empty(), "the search finds what is plain");
    for (round, seals) in [(1, true), (2, false), (3, true)] {
        let db = DB::open(&options(&node.vault(seals)), node.db()).unwrap();
        assert_filled(&db, round * 200);
        fill(&db, round * 200..round * 200 + 100);
        db.flush().unwrap();
        fill(&db, round * 200 + 100..(round + 1) * 200);
    }
    let db = DB::open(&options(&node.vault(true)), node.db()).unwrap();
    assert_filled(&db, 800);
    db.compact_range(None::<&[u8]>, None::<&[u8]>);
    assert_filled(&db, 800);
}

#[test]
fn checkpoint_holds_linked_and_copied_files_and_opens_with_the_same_keys() {
    let node = Node::new();
    let vault = node.vault(true);
    let db = DB::open(&options(&vault), node.db()).unwrap();
    fill(&db, 0..100);
    db.flush().unwrap();
    fill(&db, 100..150);
    let copy = node.folder.path().join("copy");
    Checkpoint::new(&db).unwrap().create_checkpoint(&copy).unwrap();
    fill(&db, 150..200);
    let copied = DB::open(&options(&vault), &copy).unwrap();
    assert_filled(&copied, 150);
    assert_eq!(telling(&copy), Vec::<PathBuf>::new());
}

#[test]
fn recycled_logs_and_reads_beside_the_page_cache_work_and_direct_writes_are_refused() {
    let node = Node::new();
    let vault = node.vault(true);
    let mut recycling = options(&vault);
    recycling.set_recycle_log_file_num(2);
    recycling.set_use_direct_reads(true);
    recycling.set_compaction_readahead_size(1 << 20);
    recycling.set_bytes_per_sync(1 << 16);
    let round = |from: u32| {
        let db = DB::open(&recycling, node.db()).unwrap();
        for part in 0..5 {
            fill(&db, from + part * 100..from + (part + 1) * 100);
            db.flush().unwrap();
        }
        db.compact_range(None::<&[u8]>, None::<&[u8]>);
        assert_filled(&db, from + 500);
    };
    round(0);
    round(500);
    assert_eq!(telling(&node.db()), Vec::<PathBuf>::new());
    let mut direct = options(&vault);
    direct.set_use_direct_io_for_flush_and_compaction(true);
    let db = DB::open(&direct, node.db()).unwrap();
    db.put(b"key", b"value").unwrap();
    assert!(db.flush().unwrap_err().to_string().contains("direct writes"));
}

#[test]
fn log_that_ends_within_its_header_or_is_torn_is_read_as_far_as_it_goes() {
    let node = Node::new();
    let log = |folder: &Path| {
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|kind| kind == "log")).max().unwrap()
    };
    {
        let db = DB::open(&options(&node.vault(true)), node.db()).unwrap();
        fill(&db, 0..100);
        db.flush().unwrap();
        fill(&db, 100..110);
    }
    let whole = fs::read(log(&node.db())).unwrap();
    for length in [0, 1, 15, 16, 84, 4095, 4096, 4097, whole.len() - 1] {
        let copy = node.folder.path().join(format!("copy-{length}"));
        fs::create_dir(&copy).unwrap();
        for entry in fs::read_dir(node.db()).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
        }
        fs::write(log(&copy), &whole[..length]).unwrap();
        let db = DB::open(&options(&node.vault(true)), &copy).unwrap();
        let expected = if length == whole.len() - 1 { 109 } else { 100 };
        assert_filled(&db, expected);
        drop(db);
        // As XFS leaves a file whose first page was not written: zeros, of any length.
        fs::remove_dir_all(&copy).unwrap();
    }
    fs::write(log(&node.db()), vec![0; whole.len()]).unwrap();
    assert_filled(&DB::open(&options(&node.vault(true)), node.db()).unwrap(), 100);
}

#[test]
fn table_whose_header_was_changed_is_an_error_and_not_read_as_plain() {
    let node = Node::new();
    {
        let db = DB::open(&options(&node.vault(true)), node.db()).unwrap();
        fill(&db, 0..100);
        db.flush().unwrap();
    }
    let files = fs::read_dir(node.db()).unwrap().map(|entry| entry.unwrap().path());
    let table =
        files.filter(|path| path.extension().is_some_and(|kind| kind == "sst")).max().unwrap();
    let mut bytes = fs::read(&table).unwrap();
    bytes[40] ^= 1;
    fs::write(&table, bytes).unwrap();
    let opened = DB::open(&options(&node.vault(true)), node.db());
    let found = opened.and_then(|db| db.get(1u32.to_be_bytes()).map(|_| ()));
    assert!(found.unwrap_err().to_string().contains("its key cannot be had"));
}
