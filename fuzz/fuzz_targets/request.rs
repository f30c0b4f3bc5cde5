//! Bodies of requests to the gateway's data path: whatever reaches the database is within the
//! limits, and every other body has an answer that is no failure of the gateway.
#![no_main]

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use libfuzzer_sys::fuzz_target;
use meridian_gateway::{
    Catalogue, Database, Databases, Gateway, Grant, NoRoom, Options, Read, ReadOutput, Unavailable,
    Watch, WatchNews, Watching, Write, WriteFailure,
};
use meridian_types::{
    DatabaseId, MutationKind, ShardId, V8Format, Versionstamp, WriteOutcome, limits,
};

const DATABASE: DatabaseId = DatabaseId([7; 16]);

/// A database that looks at what it is asked.
struct Limits;

enum NoWatch {}

impl Watching for NoWatch {
    fn poll_news(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<WatchNews, NoRoom>>> {
        match *self {}
    }

    fn take_back(&mut self, _: &WatchNews) {
        match *self {}
    }
}

impl Database for Limits {
    type Watching = NoWatch;

    async fn watch(self: &Arc<Self>, watch: Watch) -> Result<NoWatch, Unavailable> {
        assert!(watch.keys.len() <= limits::MAX_WATCHED_KEYS);
        assert!(watch.keys.iter().all(|key| key.len() <= limits::MAX_READ_KEY_BYTES));
        Err(Unavailable { reason: "no watch begins here".to_owned() })
    }

    async fn read(&self, read: Read) -> Result<ReadOutput, Unavailable> {
        assert!(read.ranges.len() <= limits::MAX_READ_RANGES);
        let entries: u64 = read.ranges.iter().map(|range| u64::from(range.limit)).sum();
        assert!(entries <= limits::MAX_READ_ENTRIES as u64);
        for range in &read.ranges {
            assert!(range.limit > 0 && range.start <= range.end);
            assert!(range.start.len() <= limits::MAX_READ_KEY_BYTES);
            assert!(range.end.len() <= limits::MAX_READ_KEY_BYTES);
        }
        Ok(ReadOutput { ranges: read.ranges.iter().map(|_| Vec::new()).collect() })
    }

    async fn write(&self, write: Write) -> Result<WriteOutcome, WriteFailure> {
        let transaction = write.transaction;
        assert!(transaction.checks.len() <= limits::MAX_CHECKS);
        assert!(transaction.mutations.len() <= limits::MAX_MUTATIONS);
        for mutation in &transaction.mutations {
            assert!(mutation.key.len() <= limits::MAX_WRITE_KEY_BYTES);
            if let MutationKind::Set(value) = &mutation.kind {
                assert!(value.data.len() <= limits::MAX_VALUE_BYTES);
            }
        }
        let committed = Versionstamp::from_slice(&[0; 10]).expect("ten bytes");
        Ok(WriteOutcome::Committed(committed))
    }
}

impl Catalogue for Limits {
    fn default_database(&self) -> Option<DatabaseId> {
        Some(DATABASE)
    }

    fn by_name(&self, _: &str) -> Option<DatabaseId> {
        None
    }

    fn shard(&self, database: DatabaseId) -> Option<ShardId> {
        (database == DATABASE).then_some(ShardId(1))
    }

    fn v8_format(&self, _: DatabaseId) -> V8Format {
        V8Format::Portable
    }

    fn authorize(&self, _: &str) -> Option<Grant> {
        Some(Grant::new(Databases::All, true))
    }

    fn is_current(&self) -> bool {
        true
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else { return };
    let method = ["snapshot_read", "atomic_write", "watch"][usize::from(first % 3)];
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let gateway = Gateway::new(Arc::new(Limits), Arc::new(Limits), Options::default());
    let request = Request::post(format!("/kv/strong/{method}"))
        .header("authorization", "Bearer a-token-of-the-fuzzer")
        .header("x-denokv-version", "3")
        .header("x-denokv-database-id", DATABASE.to_string())
        .body(Full::new(Bytes::copy_from_slice(body)))
        .expect("a request");
    let answer = runtime.block_on(gateway.handle(request)).expect("an answer");
    let status = answer.status();
    let is_refused_watch = method == "watch" && status == StatusCode::SERVICE_UNAVAILABLE;
    assert!(status == StatusCode::OK || status.is_client_error() || is_refused_watch, "{status}");
});
