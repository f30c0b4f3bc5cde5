use std::fs;
use std::path::PathBuf;

use meridian_types::{Epoch, ShardId};
use rocksdb::statistics::Ticker;

use super::*;
use crate::{GroupId, GroupLog, RecordKind, schema};

mod encrypted;
mod stalls;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The newest file of the write-ahead log.
fn wal(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap()
}

fn write(engine: &RocksEngine, number: u8) {
    let mut batch = WriteBatch::default();
    batch.put(&LOG_FAMILY.into(), vec![number], vec![number; 50]);
    batch.put(&META_FAMILY.into(), vec![number], vec![number; 50]);
    engine.write(batch, Durability::Logged).unwrap();
}

/// A record of the log is on the disk whole, or it is not there: what the in-memory twin takes for
/// granted. And the engine opens, whatever is left of the end of its log.
#[test]
fn a_torn_end_of_the_log_is_cut_off_wherever_it_was_torn() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    let engine = RocksEngine::open(&original, RocksOptions::default()).unwrap();
    (1..=3).for_each(|number| write(&engine, number));
    engine.sync().unwrap();
    let synced = fs::metadata(wal(&original)).unwrap().len();
    (4..=5).for_each(|number| write(&engine, number));
    assert_eq!(
        fs::metadata(wal(&original)).unwrap().len(),
        synced,
        "logged writes wait for their fsync"
    );
    engine.write_out().unwrap();
    let whole = fs::read(wal(&original)).unwrap();
    let synced = usize::try_from(synced).unwrap();
    assert!(whole.len() > synced + 100, "both writes are in the file");
    let torn = (synced..whole.len()).step_by(11).flat_map(|at| {
        let (mut cut, mut never_written, mut garbage) =
            (whole.clone(), whole.clone(), whole.clone());
        cut.truncate(at);
        never_written[at..].fill(0);
        garbage[at..].iter_mut().for_each(|byte| *byte ^= 0x5a);
        [cut, never_written, garbage]
    });
    let mut counts = BTreeSet::new();
    for (turn, bytes) in torn.enumerate() {
        let path = folder.path().join(turn.to_string());
        copy(&original, &path);
        fs::write(wal(&path), bytes).unwrap();
        let after = RocksEngine::open(&path, RocksOptions::default()).unwrap();
        let there = |family: &str| {
            let numbers =
                (1..=5u8).filter(|number| after.get(family, &[*number]).unwrap().is_some());
            numbers.collect::<Vec<_>>()
        };
        let found = there(LOG_FAMILY);
        assert!(found.len() >= 3 && [1, 2, 3, 4, 5].starts_with(&found), "{found:?}");
        assert_eq!(found, there(META_FAMILY), "half of a write is there");
        counts.insert(found.len());
        drop(after);
        fs::remove_dir_all(path).unwrap();
    }
    assert_eq!(counts, BTreeSet::from([3, 4]));
}

#[test]
fn a_sync_reaches_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = database_options();
    options.enable_statistics();
    let engine = RocksEngine::open_with(folder.path(), RocksOptions::default(), &options).unwrap();
    for number in 1..=3u8 {
        write(&engine, number);
        let before = options.get_ticker_count(Ticker::WalFileSynced);
        engine.sync().unwrap();
        assert!(options.get_ticker_count(Ticker::WalFileSynced) > before, "nothing was fsynced");
    }
}

#[test]
fn what_a_group_has_written_out_outlives_its_process() {
    let folder = tempfile::tempdir().unwrap();
    let (path, left) = (folder.path().join("original"), folder.path().join("left"));
    let group = GroupId { shard: ShardId(1), epoch: Epoch(1) };
    let log = |path: &Path| {
        let engine = RocksEngine::open(path, RocksOptions::default()).unwrap();
        GroupLog::open(Arc::new(engine), group, RecordKind::Entry).unwrap()
    };
    let living = log(&path);
    living.append([(1, b"written out".as_slice())]).unwrap();
    living.write_out().unwrap();
    living.append([(2, b"in memory".as_slice())]).unwrap();
    // The operating system's view of the folder, as after a crash of the process.
    copy(&path, &left);
    assert_eq!(log(&left).last().unwrap(), Some((1, Bytes::from_static(b"written out"))));
}
