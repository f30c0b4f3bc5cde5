use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use bytes::Bytes;
use meridian_storage::{
    Effort, Engine, EngineSnapshot, HookedEngine, Hooks, MemoryEngine, RaftApplied, Scan, Scanned,
    Visit,
};
use meridian_types::{
    Batch, CommittedTransaction, Effect, Epoch, Position, RequestId, ShardId, Value, ValueEncoding,
};
use tokio::task::JoinSet;

use super::*;

const DATABASE: DatabaseId = DatabaseId([3; 16]);

fn reads(bytes: usize) -> Reads {
    Reads::new(ByteBudget::new("reads", bytes))
}

fn state_with(engine: Arc<dyn Engine>, entries: usize, data: &Bytes) -> Arc<ShardState> {
    let state = ShardState::open(engine, ShardId(1)).unwrap();
    let put = |number: usize| Effect::Put {
        key: format!("{number:05}").into(),
        value: Value { encoding: ValueEncoding::Bytes, data: data.clone() },
        expire_at_ms: 0,
    };
    let effects = (0..entries).map(put).collect();
    let transaction = CommittedTransaction {
        request_id: RequestId([1; 16]),
        database: DATABASE,
        effects,
        refusal: None,
    };
    let batch =
        Batch { position: Position::new(Epoch(1), 1), time_ms: 1, transactions: vec![transaction] };
    state.apply(&[batch.into()], RaftApplied::default()).unwrap();
    Arc::new(state)
}

fn list(limit: u32) -> Vec<ReadRange> {
    vec![ReadRange { start: Bytes::new(), end: "z".into(), limit, reverse: false }]
}

/// Scans stop here: each skips what it may, until it is told to end.
#[derive(Default)]
pub(crate) struct Endless {
    pub(crate) scans: Arc<AtomicUsize>,
    /// A scan that has begun waits while this is so.
    pub(crate) held: Arc<(Mutex<bool>, Condvar)>,
    ends: bool,
}

impl Endless {
    /// One whose scans come to their end.
    pub(crate) fn ending() -> Arc<HookedEngine<Self>> {
        Self { ends: true, ..Self::default() }.engine()
    }

    fn engine(self) -> Arc<HookedEngine<Self>> {
        Arc::new(HookedEngine::new(Arc::new(MemoryEngine::default()), self))
    }
}

impl Hooks for Endless {
    fn snapshot(&self, inner: Arc<dyn EngineSnapshot>) -> Arc<dyn EngineSnapshot> {
        let (scans, held) = (Arc::clone(&self.scans), Arc::clone(&self.held));
        Arc::new(EndlessSnapshot { inner, scans, held, ends: self.ends })
    }
}

struct EndlessSnapshot {
    inner: Arc<dyn EngineSnapshot>,
    scans: Arc<AtomicUsize>,
    held: Arc<(Mutex<bool>, Condvar)>,
    ends: bool,
}

impl EngineSnapshot for EndlessSnapshot {
    fn get(&self, family: &str, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.inner.get(family, key)
    }

    fn get_cached(&self, family: &str, key: &[u8]) -> Result<Option<Option<Bytes>>, StorageError> {
        self.inner.get_cached(family, key)
    }

    fn scan_some(
        &self,
        _: &str,
        _: Scan<'_>,
        effort: Effort,
        _: Visit<'_>,
    ) -> Result<Scanned, StorageError> {
        if effort.cached_only {
            return Ok(Scanned::Skipped);
        }
        self.scans.fetch_add(1, Ordering::SeqCst);
        drop(self.held.1.wait_while(self.held.0.lock().unwrap(), |held| *held).unwrap());
        Ok(if self.ends { Scanned::All } else { Scanned::Skipped })
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reached).await.expect(what);
}

/// The runtime has one thread: if it scanned itself, nothing would let the scan go.
#[tokio::test]
async fn a_scan_holds_up_no_thread_of_the_runtime() {
    let engine = Endless::ending();
    let (held, scans) = (Arc::clone(&engine.held), Arc::clone(&engine.scans));
    *held.0.lock().unwrap() = true;
    let state = state_with(engine, 1, &"x".into());
    let reads = reads(1 << 20);
    let reading = tokio::spawn(async move { reads.read(&state, DATABASE, &list(9)).await });
    until("the scan begins", || scans.load(Ordering::SeqCst) > 0).await;
    *held.0.lock().unwrap() = false;
    held.1.notify_all();
    assert_eq!(reading.await.unwrap().unwrap().ranges, [[]]);
}

#[tokio::test]
async fn read_ends_with_its_caller_and_long_reads_let_short_ones_pass() {
    let engine = Endless::default().engine();
    let scans = Arc::clone(&engine.scans);
    let (state, reads) = (state_with(engine, 1, &"x".into()), reads(64 << 20));
    let mut endless = JoinSet::new();
    for _ in 0..100 {
        let (state, reads) = (Arc::clone(&state), reads.clone());
        endless.spawn(async move { reads.read(&state, DATABASE, &list(9)).await });
    }
    until("they scan", || scans.load(Ordering::SeqCst) > 200).await;
    let other = state_with(Arc::new(MemoryEngine::default()), 65, &"x".into());
    // More than is read at once.
    let short =
        tokio::time::timeout(Duration::from_secs(20), reads.read(&other, DATABASE, &list(90)))
            .await;
    assert_eq!(short.expect("a short read gets its turn").unwrap().ranges[0].len(), 65);
    endless.shutdown().await;
    // Reads that are in their turn end it; then there are none.
    until("all turns are over", || {
        reads.turns.available_permits() >= 4 && reads.bytes.used_bytes() == 0
    })
    .await;
    let before = scans.load(Ordering::SeqCst);
    let done = reads.read(&other, DATABASE, &list(9)).await.unwrap();
    assert_eq!((done.ranges[0].len(), scans.load(Ordering::SeqCst)), (9, before));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_of_the_largest_values_stay_within_the_budget() {
    let data = Bytes::from(vec![7; limits::MAX_VALUE_BYTES]);
    let state = state_with(Arc::new(MemoryEngine::default()), limits::MAX_READ_ENTRIES, &data);
    let reads = reads(meridian_memory::Shares::of_node(0).reads);
    let (total, held) = (reads.bytes.total_bytes(), Arc::new(AtomicUsize::new(0)));
    let mut readers = JoinSet::new();
    for _ in 0..200 {
        let (state, reads, held) = (Arc::clone(&state), reads.clone(), Arc::clone(&held));
        readers.spawn(async move {
            match reads.read(&state, DATABASE, &list(1000)).await {
                Ok(view) => {
                    let bytes: usize =
                        view.ranges.iter().flatten().map(|entry| entry.value.data.len()).sum();
                    assert_eq!(bytes, limits::MAX_READ_ENTRIES * limits::MAX_VALUE_BYTES);
                    let all = held.fetch_add(bytes, Ordering::SeqCst) + bytes;
                    assert!(
                        all <= total,
                        "{all} bytes were found and not sent, of at most {total}"
                    );
                    assert!(reads.bytes.used_bytes() >= all, "held bytes are counted");
                    tokio::task::yield_now().await;
                    held.fetch_sub(bytes, Ordering::SeqCst);
                    drop(view);
                    true
                }
                Err(refused) => {
                    assert!(refused.to_string().contains("short of memory for reads"), "{refused}");
                    false
                }
            }
        });
    }
    let done = readers.join_all().await.into_iter().filter(|done| *done).count();
    assert!(done >= 1, "no read was answered");
    assert_eq!(reads.bytes.used_bytes(), 0, "all is given back");
}

#[tokio::test]
async fn small_reads_are_counted_and_wait_behind_no_large_one() {
    let state = state_with(Arc::new(MemoryEngine::default()), 9, &"x".into());
    let reads = reads(1 << 20);
    // A large one has all that there is, and another waits for it.
    let all = reads.bytes.take(1 << 20, PATIENCE).await.unwrap();
    let waiting = tokio::spawn({
        let bytes = reads.bytes.clone();
        async move { bytes.take(1 << 20, Duration::from_secs(60)).await }
    });
    let mut found = Vec::new();
    while let Some(view) = reads.read(&state, DATABASE, &list(9)).now_or_never() {
        found.push(view.unwrap());
        let counted: usize = found.iter().flat_map(|view| &view.ranges).flatten().map(weight).sum();
        assert_eq!(reads.small.used_bytes(), counted);
    }
    assert!((5..100).contains(&found.len()), "{} are held", found.len());
    waiting.abort();
    drop((found, all));
    assert_eq!(reads.small.used_bytes(), 0);
}

/// A large one has come, and waits for room.
#[tokio::test]
async fn a_small_answer_of_another_node_waits_behind_no_large_one() {
    let reads = reads(64 << 20);
    let all = reads.bytes.take(64 << 20, PATIENCE).await.unwrap();
    let mut waiting = Box::pin(reads.take(1 << 20));
    assert!((&mut waiting).now_or_never().is_none());
    let small = reads.take_now(SMALL_BYTES).expect("there is room beside the large ones");
    assert!(reads.take_now(SMALL_BYTES + 1).is_none(), "that room is for small ones");
    assert_eq!(reads.small.used_bytes(), SMALL_BYTES);
    drop((small, all));
    assert_eq!(reads.small.used_bytes(), 0);
    // A small answer that finds no room there is taken with the large ones.
    drop(waiting.await.unwrap());
    let _all_of_the_small = reads.small.take(reads.small.total_bytes(), PATIENCE).await.unwrap();
    assert!(reads.take_now(SMALL_BYTES).is_some());
}

#[tokio::test]
async fn quiet_database_has_the_next_turn_but_one_however_many_turns_another_waits_for() {
    let reads = reads(1 << 20);
    let all = u32::try_from(reads.turns.available_permits()).unwrap();
    let busy = Arc::clone(&reads.turns).acquire_many_owned(all).await.unwrap();
    let order: Arc<Mutex<Vec<u8>>> = Arc::default();
    let worked = |number: u8| {
        let (reads, order) = (reads.clone(), Arc::clone(&order));
        let work = move || order.lock().unwrap().push(number);
        Box::pin(async move { reads.little(Some(DatabaseId([number; 16])), work).await })
    };
    let mut waiting: Vec<_> = (0..50).map(|_| worked(1)).collect();
    waiting.push(worked(2));
    for turn in &mut waiting {
        assert!(turn.now_or_never().is_none());
    }
    // One at a time from now on.
    let mut one = busy;
    let _kept = one.split(all as usize - 1);
    drop(one);
    futures::future::join_all(waiting).await;
    let order = order.lock().unwrap();
    let waited = order.iter().position(|number| *number == 2).unwrap();
    assert!(waited <= 2, "{waited} turns of another");
    assert_eq!(order.len(), 51);
}

#[tokio::test]
async fn read_of_a_quiet_database_is_next_but_one_for_bytes_and_waits_as_long_as_any() {
    let reads = reads(1000);
    let (flood, quiet) = (Some(DatabaseId([1; 16])), Some(DatabaseId([2; 16])));
    let all = reads.bytes_for(flood, 1000, PATIENCE).await.unwrap();
    let take = |of| {
        let reads = reads.clone();
        Box::pin(async move { reads.bytes_for(of, 900, Duration::from_secs(60)).await })
    };
    let mut waiting: Vec<_> = (0..50).map(|_| take(flood)).collect();
    assert!(waiting.iter_mut().all(|read| read.now_or_never().is_none()));
    let mut of_quiet = take(quiet);
    assert!((&mut of_quiet).now_or_never().is_none());
    drop(all);
    drop(waiting.remove(0).await.unwrap());
    // The second of the flood is at the head already.
    let mut second = waiting.remove(0);
    drop((&mut second).now_or_never().map(Result::unwrap));
    drop(of_quiet.now_or_never().expect("in its turn").unwrap());
    drop((second, waiting));
    let all = reads.bytes_for(quiet, 1000, PATIENCE).await.unwrap();
    let refused = reads.bytes_for(flood, 1, Duration::from_millis(5)).await.unwrap_err();
    assert_eq!(refused.wanted, 1);
    drop(all);
    assert_eq!(reads.bytes.used_bytes(), 0);
}
