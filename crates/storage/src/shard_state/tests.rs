use std::sync::atomic::Ordering;

use meridian_proto::log;
use meridian_txn::View;
use meridian_types::{Batch, CommittedTransaction, Entry, Epoch, ReadRange, Value, ValueEncoding};

use super::*;
use crate::{Call, HookedEngine, Hooks, MemoryEngine, RocksEngine, RocksOptions};

const DATABASE: DatabaseId = DatabaseId([3; 16]);
const SHARD: ShardId = ShardId(1);

fn value(text: &str) -> Value {
    Value { encoding: ValueEncoding::Bytes, data: Bytes::copy_from_slice(text.as_bytes()) }
}

fn put(key: &str, text: &str, expire_at_ms: u64) -> Effect {
    Effect::Put { key: Bytes::copy_from_slice(key.as_bytes()), value: value(text), expire_at_ms }
}

fn batch(sequence: u64, effects: Vec<Effect>) -> DecodedBatch {
    let request_id = RequestId([u8::try_from(sequence).unwrap(); 16]);
    let transactions =
        vec![CommittedTransaction { request_id, database: DATABASE, effects, refusal: None }];
    let batch =
        Batch { position: Position::new(Epoch(1), sequence), time_ms: sequence, transactions };
    DecodedBatch { batch, len: 10, checksum: 7 }
}

fn all(limit: u32, reverse: bool) -> ReadRange {
    ReadRange { start: Bytes::new(), end: Bytes::from_static(b"\xff"), limit, reverse }
}

fn texts(state: &ShardState, range: ReadRange, now_ms: u64) -> Vec<String> {
    let view = state.read(DATABASE, &[range], now_ms).unwrap();
    let text = |entry: &Entry| String::from_utf8(entry.value.data.to_vec()).unwrap();
    view.ranges[0].iter().map(text).collect()
}

/// Both engines, for the tests that must hold on each.
fn engines() -> Vec<(Arc<dyn Engine>, Option<tempfile::TempDir>)> {
    let folder = tempfile::tempdir().unwrap();
    let rocks = RocksEngine::open(folder.path(), RocksOptions::default()).unwrap();
    vec![(Arc::new(MemoryEngine::default()), None), (Arc::new(rocks), Some(folder))]
}

#[test]
fn reads_see_what_was_applied_in_key_order_both_ways() {
    for (engine, _folder) in engines() {
        let state = ShardState::open(engine, SHARD).unwrap();
        let effects = vec![put("a", "1", 0), put("b", "2", 0), put("c", "3", 50)];
        state.apply(&[batch(1, effects)], RaftApplied::default()).unwrap();
        assert_eq!(texts(&state, all(9, false), 0), ["1", "2", "3"]);
        assert_eq!(texts(&state, all(2, true), 0), ["3", "2"]);
        assert_eq!(texts(&state, all(9, true), 50), ["2", "1"], "c is gone at its expiry");
        let point = ReadRange { start: "b".into(), end: "b\0".into(), limit: 1, reverse: false };
        assert_eq!(texts(&state, point, 0), ["2"]);
        let delete = Effect::Delete { key: "b".into() };
        state.apply(&[batch(2, vec![delete])], RaftApplied::default()).unwrap();
        assert_eq!(texts(&state, all(9, false), 0), ["1", "3"]);
        let committed = WriteOutcome::Committed(Versionstamp::new(state.position(), 0));
        assert_eq!(state.request(RequestId([2; 16])).unwrap(), Some(committed));
        assert_eq!(state.request(RequestId([9; 16])).unwrap(), None);
    }
}

/// Reads wait for a disk that stalls, while it is closed.
#[derive(Default)]
struct Gate {
    closed: std::sync::atomic::AtomicBool,
    waiting: std::sync::atomic::AtomicBool,
}

impl Hooks for Gate {
    fn before(&self, _: &dyn Engine, call: Call<'_>) -> Result<(), StorageError> {
        while matches!(call, Call::Get(_) | Call::Scan(_)) && self.closed.load(Ordering::Acquire) {
            self.waiting.store(true, Ordering::Release);
            std::thread::yield_now();
        }
        Ok(())
    }
}

#[test]
fn where_a_state_stands_is_told_while_reads_and_with_them_an_applier_would_wait_for_the_disk() {
    type Read = fn(&ShardState);
    let reads: [(&str, Read); 4] = [
        ("a key", |state| drop(state.at(0).get(DATABASE, b"k").unwrap())),
        ("a request", |state| drop(state.request(RequestId([1; 16])).unwrap())),
        ("whether a database is dropped", |state| assert!(!state.is_dropped(DATABASE).unwrap())),
        ("which databases are dropped", |state| {
            assert!(state.dropped_databases().unwrap().is_empty())
        }),
    ];
    for (what, read) in reads {
        let gate = Arc::new(HookedEngine::new(Arc::new(MemoryEngine::default()), Gate::default()));
        let state =
            &Arc::new(ShardState::open(Arc::clone(&gate) as Arc<dyn Engine>, SHARD).unwrap());
        gate.closed.store(true, Ordering::Release);
        std::thread::scope(|scope| {
            scope.spawn(move || read(state));
            while !gate.waiting.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            let (told, stands) = std::sync::mpsc::channel();
            let applier = Arc::clone(state);
            std::thread::spawn(move || {
                applier.apply(&[batch(1, vec![put("a", "1", 0)])], RaftApplied::default()).unwrap();
                told.send((applier.applied().position, applier.max_served()))
            });
            let stands = stands.recv_timeout(std::time::Duration::from_secs(10));
            gate.closed.store(false, Ordering::Release);
            assert_eq!(stands, Ok((Position::new(Epoch(1), 1), 1)), "while {what} is read");
        });
    }
}

#[test]
#[should_panic(expected = "batch 1.3 cannot follow 1.1")]
fn a_gap_stops_the_process() {
    let state = ShardState::open(Arc::new(MemoryEngine::default()), SHARD).unwrap();
    state.apply(&[batch(1, vec![])], RaftApplied::default()).unwrap();
    drop(state.apply(&[batch(3, vec![])], RaftApplied::default()));
}

#[test]
fn the_time_of_a_state_does_not_go_back() {
    let state = ShardState::open(Arc::new(MemoryEngine::default()), SHARD).unwrap();
    for (sequence, time_ms, then) in [(1, 5, 5), (2, 3, 5), (3, 6, 6)] {
        let mut next = batch(sequence, vec![]);
        next.batch.time_ms = time_ms;
        state.apply(&[next], RaftApplied::default()).unwrap();
        assert_eq!(state.applied().time_ms, then);
    }
}

#[test]
fn sequences_go_on_from_one_epoch_to_the_next() {
    let state = ShardState::open(Arc::new(MemoryEngine::default()), SHARD).unwrap();
    let mut next = batch(2, vec![put("a", "2", 0)]);
    next.batch.position.epoch = Epoch(3);
    state.apply(&[batch(1, vec![put("a", "1", 0)]), next], RaftApplied::default()).unwrap();
    assert_eq!(state.position(), Position::new(Epoch(3), 2));
    assert_eq!((state.applied().total_transactions, state.applied().total_bytes), (2, 20));
    assert_eq!(texts(&state, all(9, false), 0), ["2"]);
}

#[test]
fn histories_that_differ_in_a_bit_have_other_digests_from_there_on() {
    let engine = Arc::new(MemoryEngine::default());
    let state = ShardState::open(Arc::clone(&engine) as Arc<dyn Engine>, SHARD).unwrap();
    let other = ShardState::open(Arc::new(MemoryEngine::default()), SHARD).unwrap();
    for sequence in 1..=9 {
        state.apply(&[batch(sequence, vec![])], RaftApplied::default()).unwrap();
        let checksum = if sequence == 5 { 6 } else { 7 };
        other
            .apply(&[DecodedBatch { checksum, ..batch(sequence, vec![]) }], RaftApplied::default())
            .unwrap();
    }
    for sequence in 1..=9 {
        let at = Position::new(Epoch(1), sequence);
        assert_eq!(state.digest_at(at) == other.digest_at(at), sequence < 5, "at {at}");
        assert!(state.digest_at(at).is_some());
    }
    // The digest is written with the position, and no other is known after a start.
    let (at, digest) = (state.position(), state.applied().digest);
    state.flush().unwrap();
    let state = ShardState::open(Arc::new(engine.crash(0)), SHARD).unwrap();
    assert_eq!((state.applied().digest, state.digest_at(at)), (digest, Some(digest)));
    assert_eq!(state.digest_at(Position::new(Epoch(1), 8)), None);
}

#[test]
#[should_panic(expected = "batch 1.2 cannot follow 2.1")]
fn an_epoch_that_goes_back_stops_the_process() {
    let state = ShardState::open(Arc::new(MemoryEngine::default()), SHARD).unwrap();
    let mut first = batch(1, vec![]);
    first.batch.position.epoch = Epoch(2);
    state.apply(&[first], RaftApplied::default()).unwrap();
    drop(state.apply(&[batch(2, vec![])], RaftApplied::default()));
}

#[test]
fn applied_positions_are_golden_and_older_ones_are_read() {
    let applied = Applied {
        position: Position::new(Epoch(2), 300),
        time_ms: 5,
        total_bytes: 7,
        total_transactions: 9,
        digest: Digest(0x0807_0605_0403_0201),
        raft: RaftApplied {
            epoch: Some(Epoch(3)),
            log_id: Some(log::LogId { term: 4, index: 6 }),
            membership: Some(log::StoredMembership::default()),
        },
    };
    let golden = b"\x08\x02\x10\xac\x02\x18\x05\x22\x04\x08\x04\x10\x06\x2a\x00\x30\x07\x38\x03\x40\x09\x79\x01\x02\x03\x04\x05\x06\x07\x08";
    assert_eq!(applied.encode(), golden);
    assert_eq!(Applied::decode(Bytes::from_static(golden)).unwrap(), applied);
    // Before the last three fields were added.
    let (older, _) = golden.split_at(golden.len() - 13);
    let older = Applied::decode(Bytes::copy_from_slice(older)).unwrap();
    assert_eq!((older.raft.epoch, older.total_transactions), (Some(Epoch(2)), 0));
    let follower = Applied { raft: RaftApplied::default(), ..applied };
    assert_eq!(Applied::decode(follower.encode().into()).unwrap(), follower);
}

#[test]
fn after_a_crash_state_and_position_are_those_of_the_last_flush() {
    let engine = Arc::new(MemoryEngine::default());
    let state = ShardState::open(Arc::clone(&engine) as Arc<dyn Engine>, SHARD).unwrap();
    state.apply(&[batch(1, vec![put("a", "1", 0)])], RaftApplied::default()).unwrap();
    assert_eq!(state.flush().unwrap().position.sequence, 1);
    state.apply(&[batch(2, vec![put("a", "2", 0)])], RaftApplied::default()).unwrap();
    state.apply(&[batch(3, vec![put("a", "3", 0)])], RaftApplied::default()).unwrap();
    let state = ShardState::open(Arc::new(engine.crash_to_what_is_durable()), SHARD).unwrap();
    assert_eq!(state.position().sequence, 1);
    assert_eq!(texts(&state, all(9, false), 0), ["1"]);
    // The engine may have flushed by itself since, at any time.
    let mut reached = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let state = ShardState::open(Arc::new(engine.crash(seed)), SHARD).unwrap();
        let sequence = state.position().sequence;
        assert_eq!(texts(&state, all(9, false), 0), [sequence.to_string()]);
        reached.insert(sequence);
    }
    assert_eq!(Vec::from_iter(reached), [1, 2, 3]);
}

#[test]
fn rocks_keeps_flushed_state_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let open = || -> Arc<dyn Engine> {
        Arc::new(RocksEngine::open(folder.path(), RocksOptions::default()).unwrap())
    };
    let state = ShardState::open(open(), SHARD).unwrap();
    state.apply(&[batch(1, vec![put("a", "1", 7)])], RaftApplied::default()).unwrap();
    state.flush().unwrap();
    drop(state);
    let state = ShardState::open(open(), SHARD).unwrap();
    assert_eq!(state.applied().total_bytes, 10);
    assert_eq!(texts(&state, all(9, false), 0), ["1"]);
}

#[test]
fn expiries_are_listed_with_whether_they_still_hold() {
    let state = ShardState::open(Arc::new(MemoryEngine::default()), SHARD).unwrap();
    state
        .apply(&[batch(1, vec![put("a", "1", 5), put("b", "2", 6)])], RaftApplied::default())
        .unwrap();
    state.apply(&[batch(2, vec![put("a", "3", 90)])], RaftApplied::default()).unwrap();
    let found = state.expired(6, 10).unwrap();
    let row = |expire_at_ms, key: &'static str, is_current| Expired {
        expire_at_ms,
        database: DATABASE,
        key: key.into(),
        is_current,
    };
    assert_eq!(found, [row(5, "a", false), row(6, "b", true)]);
    let effects = vec![
        Effect::Unindex { key: "a".into(), expire_at_ms: 5 },
        Effect::Unindex { key: "b".into(), expire_at_ms: 6 },
        Effect::Delete { key: "b".into() },
    ];
    state.apply(&[batch(3, effects)], RaftApplied::default()).unwrap();
    assert_eq!(state.expired(89, 10).unwrap(), []);
    assert_eq!(texts(&state, all(9, false), 0), ["3"]);
}

#[test]
fn rocks_forgets_requests_only_behind_the_horizon() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Arc::new(RocksEngine::open(folder.path(), RocksOptions::default()).unwrap());
    let state = ShardState::open(Arc::clone(&engine) as Arc<dyn Engine>, SHARD).unwrap();
    let mut two = state.requests_so_far();
    for sequence in 1..=3 {
        state.apply(&[batch(sequence, vec![put("k", "v", 0)])], RaftApplied::default()).unwrap();
        state.flush().unwrap();
        if sequence == 2 {
            two = state.requests_so_far();
        }
    }
    state.forget_requests(&two);
    engine.compact(&schema::state_family(SHARD, 0)).unwrap();
    let known = |byte| state.request(RequestId([byte; 16])).unwrap().is_some();
    assert_eq!((known(1), known(2), known(3)), (false, false, true));
    assert_eq!(texts(&state, all(9, false), 0), ["v"]);
}

/// A failover took back what the old state had, and made room for newer requests of the same
/// sequences.
#[test]
fn requests_of_a_replaced_state_are_not_forgotten_in_its_successor() {
    for (engine, _folder) in engines() {
        let state = ShardState::open(engine, SHARD).unwrap();
        for sequence in 1..=3 {
            state
                .apply(&[batch(sequence, vec![put("k", "v", 0)])], RaftApplied::default())
                .unwrap();
        }
        let long_ago = state.requests_so_far();
        let source = ShardState::open(Arc::new(MemoryEngine::default()), SHARD).unwrap();
        source.apply(&[batch(1, vec![put("k", "v", 0)])], RaftApplied::default()).unwrap();
        let mut staged = state.stage().unwrap();
        staged.add(source.snapshot().unwrap().rows(&[], usize::MAX).unwrap()).unwrap();
        state.install(staged, RaftApplied::default(), Replace::Any).unwrap();
        state.apply(&[batch(2, vec![put("k", "new", 0)])], RaftApplied::default()).unwrap();
        state.forget_requests(&long_ago);
        let compact = || {
            let family = schema::state_family(SHARD, 1);
            let mut go_on = |_| std::ops::ControlFlow::Continue(());
            state.engine().compact_range(&family, &[], &[0xff; 20], &mut go_on).unwrap();
        };
        compact();
        let known = |byte| state.request(RequestId([byte; 16])).unwrap().is_some();
        assert_eq!((known(1), known(2)), (true, true));
        state.forget_requests(&state.requests_so_far());
        compact();
        assert_eq!((known(1), known(2)), (false, false), "the test tells nothing");
    }
}

/// Counts writes.
#[derive(Default)]
struct Writes(AtomicU64);

impl Hooks for Writes {
    fn after(&self, call: Call<'_>) {
        self.0.fetch_add(u64::from(matches!(call, Call::Write(_))), Ordering::SeqCst);
    }
}

#[test]
fn what_was_shipped_is_applied_in_writes_that_are_bounded_in_bytes() {
    let engine = Arc::new(HookedEngine::new(Arc::new(MemoryEngine::default()), Writes::default()));
    let state = ShardState::open(engine.clone(), SHARD).unwrap();
    let large = (1..=5).map(|sequence| DecodedBatch {
        len: ShardState::APPLY_BYTES / 2,
        ..batch(sequence, vec![])
    });
    state.apply_shipped(large).unwrap();
    assert_eq!((state.position().sequence, engine.0.load(Ordering::SeqCst)), (5, 3));
    state.apply_shipped([]).unwrap();
    state.apply_shipped((6..=9).map(|sequence| batch(sequence, vec![]))).unwrap();
    assert_eq!((state.position().sequence, engine.0.load(Ordering::SeqCst)), (9, 4));
}

mod replacing;
