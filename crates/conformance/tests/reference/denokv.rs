//! The reference's side: `denokv_sqlite`, behind the conversions of the server that it is part of.

use bytes::Bytes;
use denokv_proto::{
    AtomicWrite, AtomicWriteOutcome, ConvertError, ReadRange, SnapshotReadOptions, WatchKeyOutput,
    datapath, encode_value,
};
use denokv_sqlite::{Connection, Sqlite, SqliteConfig, SqliteNotifier};
use futures::StreamExt;
use meridian_proto::kv_connect as pb;
use meridian_types::limits::MAX_CHECKS;
use prost::Message;
use rand_08::SeedableRng;
use rand_08::rngs::StdRng;
use tempfile::TempDir;

use crate::messages::Stamps;
use crate::store::{Hidden, Queued, Read, Refusal, Store, Watched, Written};

/// A database of the reference on a file, and a connection of our own to it.
pub(crate) struct Denokv {
    sqlite: Sqlite,
    own: Connection,
    _folder: TempDir,
}

impl Denokv {
    pub(crate) fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kv.sqlite3");
        let open = || {
            let connection = Connection::open(&path).unwrap();
            // No crash is to be survived.
            connection.pragma_update(None, "synchronous", "off").unwrap();
            connection.pragma_update(None, "temp_store", "memory").unwrap();
            connection
        };
        let config = SqliteConfig { num_workers: 1, batch_timeout: None };
        let generate = || {
            let rng: Box<dyn rand_08::RngCore + Send> = Box::new(StdRng::seed_from_u64(1));
            Ok((open(), rng))
        };
        let sqlite = Sqlite::new(generate, SqliteNotifier::default(), config).unwrap();
        Self { sqlite, own: open(), _folder: folder }
    }

    /// The short keys that are there after a write that fails.
    pub(crate) async fn keeps_of_failed_write(&self, message: pb::AtomicWrite) -> Vec<String> {
        self.own.execute_batch("delete from kv").unwrap();
        let Ok(write) = converted(&message) else { panic!("it is valid") };
        assert!(self.sqlite.atomic_write(write).await.is_err());
        let mut statement = self.own.prepare("select k from kv order by k").unwrap();
        let keys = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
        keys.map(|key| String::from_utf8(key.unwrap()).unwrap()).collect()
    }
}

/// A message of ours, as the reference's server has it.
fn theirs<T: Message + Default>(message: &impl Message) -> T {
    T::decode(message.encode_to_vec().as_slice()).unwrap()
}

/// As the reference's server converts it.
pub(crate) fn converted(message: &pb::AtomicWrite) -> Result<AtomicWrite, ConvertError> {
    theirs::<datapath::AtomicWrite>(message).try_into()
}

/// With as many checks as Deno's client sends: the reference's server takes ten, its database any
/// number.
fn converted_with_checks(mut message: pb::AtomicWrite) -> Result<AtomicWrite, ConvertError> {
    if message.checks.len() > MAX_CHECKS {
        return converted(&message);
    }
    let checks = std::mem::take(&mut message.checks);
    let mut write = converted(&message)?;
    for some in checks.chunks(10) {
        let some = pb::AtomicWrite { checks: some.to_vec(), ..Default::default() };
        write.checks.extend(converted(&some)?.checks);
    }
    Ok(write)
}

pub(crate) struct Theirs<'a> {
    denokv: &'a Denokv,
    stamps: Stamps,
}

impl<'a> Theirs<'a> {
    /// An empty database.
    pub(crate) fn new(denokv: &'a Denokv) -> Self {
        denokv.own.execute_batch("delete from kv; delete from queue").unwrap();
        Self { denokv, stamps: Vec::new() }
    }

    fn sql(&self, statements: &str) {
        self.denokv.own.execute_batch(statements).unwrap();
    }

    fn expiries(&self) -> Vec<(Bytes, u64)> {
        let query = "select k, expiration_ms from kv where expiration_ms >= 0 order by k";
        let mut statement = self.denokv.own.prepare(query).unwrap();
        let rows =
            statement.query_map([], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, u64>(1)?)));
        rows.unwrap().map(|row| row.map(|(key, at)| (key.into(), at)).unwrap()).collect()
    }

    fn messages(&self) -> Vec<Queued<Bytes>> {
        let query = "select ts, data, backoff_schedule, keys_if_undelivered from queue";
        let mut statement = self.denokv.own.prepare(query).unwrap();
        let numbers = |list: &str| -> Vec<u32> {
            let list = list.split(',').filter(|number| !number.is_empty());
            list.map(|number| number.parse().unwrap()).collect()
        };
        let rows = statement.query_map([], |row| {
            let (schedule, keys): (String, String) = (row.get(2)?, row.get(3)?);
            // Arrays of numbers, and of arrays of bytes: `[100,1000]`, `[[1,2],[3]]`.
            let inner = |list: &str| list[1..list.len() - 1].to_owned();
            let keys = inner(&keys);
            let keys = keys.split_inclusive(']').map(|key| key.trim_matches([',', '[', ']']));
            let byte = |byte: u32| u8::try_from(byte).unwrap();
            let key = |key: &str| numbers(key).into_iter().map(byte).collect();
            Ok(Queued {
                due_ms: row.get(0)?,
                payload: as_all_read(crate::values::V8, row.get(1)?),
                backoff_ms: numbers(&inner(&schedule)),
                keys_if_undelivered: keys.map(key).collect(),
            })
        });
        rows.unwrap().map(Result::unwrap).collect()
    }
}

fn entry(entry: denokv_proto::KvEntry) -> pb::KvEntry {
    let (value, encoding) = encode_value(&entry.value);
    pb::KvEntry {
        value: as_all_read(i32::try_from(encoding).unwrap(), value.into_owned()),
        encoding: i32::try_from(encoding).unwrap(),
        key: entry.key.into(),
        versionstamp: Bytes::copy_from_slice(&entry.versionstamp),
    }
}

impl Store for Theirs<'_> {
    fn stamps(&self) -> &Stamps {
        &self.stamps
    }

    fn committed(&mut self, stamp: Bytes) {
        self.stamps.push(stamp);
    }

    async fn write(&mut self, message: pb::AtomicWrite) -> Written {
        let write = match converted_with_checks(message) {
            Ok(write) => write,
            Err(error) => return Written::Refused(Refusal::About(about(&error))),
        };
        // A failed write keeps its earlier mutations, undone here: see the test in `exemptions`.
        let may_keep = write.mutations.len() > 1;
        if may_keep {
            self.sql("drop table if exists kept; create temp table kept as select * from kv");
        }
        match self.denokv.sqlite.atomic_write(write).await {
            Ok(AtomicWriteOutcome::Committed(committed)) => {
                Written::Committed(Bytes::copy_from_slice(&committed.versionstamp))
            }
            Ok(AtomicWriteOutcome::CheckFailed { failed_checks }) => {
                Written::CheckFailed(failed_checks)
            }
            Err(error) => {
                if may_keep {
                    self.sql("delete from kv; insert into kv select * from kept");
                }
                Written::Refused(Refusal::Text(error.to_string()))
            }
        }
    }

    async fn read(&mut self, message: pb::SnapshotRead) -> Read {
        let ranges = Vec::<ReadRange>::try_from(theirs::<datapath::SnapshotRead>(&message))
            .map_err(|error| Refusal::About(about(&error)))?;
        let options = SnapshotReadOptions { consistency: denokv_proto::Consistency::Strong };
        let ranges = self.denokv.sqlite.snapshot_read(ranges, options).await.unwrap();
        let entries =
            |range: denokv_proto::ReadRangeOutput| range.entries.into_iter().map(entry).collect();
        Ok(ranges.into_iter().map(entries).collect())
    }

    async fn watch(&mut self, message: pb::Watch) -> Result<Watched, Refusal> {
        let keys = Vec::<Vec<u8>>::try_from(theirs::<datapath::Watch>(&message))
            .map_err(|error| Refusal::About(about(&error)))?;
        let first = self.denokv.sqlite.watch(keys).next().await.unwrap().unwrap();
        let watched = |output| match output {
            WatchKeyOutput::Changed { entry: changed } => changed.map(entry),
            WatchKeyOutput::Unchanged => panic!("the first message has all keys"),
        };
        Ok(first.into_iter().map(watched).collect())
    }

    async fn hidden(&mut self) -> Hidden {
        Hidden { expiries: self.expiries(), messages: self.messages() }
    }
}

/// The words that our refusal of the same has.
pub(crate) fn about(error: &ConvertError) -> &'static str {
    match error {
        ConvertError::KeyTooLong => "The size of a key ",
        ConvertError::ValueTooLong => " exceeds the limit of 65536 bytes.",
        ConvertError::ReadRangeTooLarge => "The number of entries asked for by all ranges",
        ConvertError::AtomicWriteTooLarge => "The total size of one atomic write",
        ConvertError::TooManyReadRanges => "The number of ranges of one read",
        ConvertError::TooManyChecks => "The number of checks of one atomic write",
        ConvertError::TooManyMutations => "The number of mutations and enqueues",
        ConvertError::InvalidReadRangeLimit => "The limit of read range ",
        ConvertError::DecodeError => "Invalid value: ",
        ConvertError::InvalidVersionstamp => "Invalid versionstamp: ",
        ConvertError::InvalidMutationKind => "Invalid mutation kind: ",
        ConvertError::InvalidMutationExpireAt => "Invalid mutation expire at: ",
        ConvertError::TooManyWatchedKeys => "The number of keys of one watch",
        ConvertError::TooManyQueueUndeliveredKeys => "The number of keys if undelivered",
        ConvertError::TooManyQueueBackoffIntervals => "The number of intervals of one backoff",
        ConvertError::QueueBackoffIntervalTooLarge => "An interval of a backoff schedule",
        ConvertError::InvalidMutationEnqueueDeadline => "no time",
    }
}

/// Meridian stores a V8 value of format 16 as one of format 15, which more clients read.
fn as_all_read(encoding: i32, mut value: Vec<u8>) -> Bytes {
    if encoding == crate::values::V8 && value.starts_with(&[0xff, 16]) {
        value[1] = 15;
    }
    value.into()
}
