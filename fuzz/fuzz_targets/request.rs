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
    Catalogue, Database, Databases, Gateway, Grant, Listen, Listened, NoRoom, Options, QueueList,
    QueuePage, Read, ReadOutput, Reports, Unavailable, Watch, WatchNews, Watching, Write,
    WriteFailure,
};
use meridian_queue::{Answer, MAX_CREDITS};
use meridian_types::{
    DatabaseId, MutationKind, ShardId, V8Format, Versionstamp, WriteOutcome, limits,
};
use tokio::sync::oneshot;

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

    fn listen(self: &Arc<Self>, listen: Listen) -> Listened {
        assert!((1..=MAX_CREDITS).contains(&listen.credits));
        assert!(listen.held.len() <= MAX_CREDITS as usize);
        Listened { heard: Box::pin(futures::stream::empty()), enough: oneshot::channel().0 }
    }

    async fn report(&self, reports: Reports) -> Result<Vec<Answer>, Unavailable> {
        assert!(reports.reports.len() <= MAX_CREDITS as usize);
        Err(Unavailable { reason: "no listener is here".to_owned() })
    }

    async fn list_queue(&self, list: QueueList) -> Result<QueuePage, Unavailable> {
        assert!((1..=1000).contains(&list.limit));
        Ok(QueuePage::default())
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
        assert!(transaction.settlements.len() <= 1000);
        assert!(transaction.mutations.len() + transaction.enqueues.len() <= limits::MAX_MUTATIONS);
        for enqueue in &transaction.enqueues {
            assert!(enqueue.payload.len() <= limits::MAX_VALUE_BYTES);
            assert!(enqueue.keys_if_undelivered.len() <= limits::MAX_UNDELIVERED_KEYS);
            for key in &enqueue.keys_if_undelivered {
                assert!(key.len() <= limits::MAX_WRITE_KEY_BYTES);
            }
            let schedule = enqueue.backoff_ms.as_deref().unwrap_or_default();
            assert!(schedule.len() <= limits::MAX_BACKOFF_INTERVALS);
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
    let paths = [
        "strong/snapshot_read",
        "strong/atomic_write",
        "strong/watch",
        "queue/enqueue",
        "queue/listen",
        "queue/report",
        "queue/list",
        "queue/change",
    ];
    let path = paths[usize::from(*first) % paths.len()];
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let gateway = Gateway::new(Arc::new(Limits), Arc::new(Limits), Options::default());
    let request = Request::post(format!("/kv/{path}"))
        .header("authorization", "Bearer a-token-of-the-fuzzer")
        .header("x-denokv-version", "3")
        .header("x-denokv-database-id", DATABASE.to_string())
        .body(Full::new(Bytes::copy_from_slice(body)))
        .expect("a request");
    let answer = runtime.block_on(gateway.handle(request)).expect("an answer");
    let status = answer.status();
    let is_unavailable = ["strong/watch", "queue/report"].contains(&path)
        && status == StatusCode::SERVICE_UNAVAILABLE;
    assert!(status == StatusCode::OK || status.is_client_error() || is_unavailable, "{status}");
});
