use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use meridian_proto::DecodedBatch;
use meridian_types::{
    Batch, CommittedTransaction, Effect, Epoch, Position, RequestId, ShardId, Value, ValueEncoding,
};
use proptest::prelude::*;

use super::*;
use crate::{
    Call, Engine, GroupId, GroupLog, HookedEngine, Hooks, MemoryEngine, RaftApplied, RecordKind,
    RocksEngine, RocksOptions, ShardState,
};

const DATABASE: DatabaseId = DatabaseId([3; 16]);
const SHARD: ShardId = ShardId(1);

fn batch(sequence: u64, effects: Vec<Effect>) -> DecodedBatch {
    let request_id = RequestId([0; 16]);
    let transactions =
        vec![CommittedTransaction { request_id, database: DATABASE, effects, refusal: None }];
    let batch =
        Batch { position: Position::new(Epoch(1), sequence), time_ms: 10 * sequence, transactions };
    DecodedBatch { batch, len: 10, checksum: 7 }
}

fn apply(state: &ShardState, effects: Vec<Effect>) {
    let next = state.position().sequence + 1;
    state.apply(&[batch(next, effects)], RaftApplied::default()).unwrap();
}

fn put(key: impl Into<Bytes>, data: impl Into<Bytes>, expire_at_ms: u64) -> Effect {
    let value = Value { encoding: ValueEncoding::Bytes, data: data.into() };
    Effect::Put { key: key.into(), value, expire_at_ms }
}

fn range(start: impl Into<Bytes>, end: impl Into<Bytes>, limit: u32, reverse: bool) -> ReadRange {
    ReadRange { start: start.into(), end: end.into(), limit, reverse }
}

/// The entries as keys and data, and how many turns it took.
fn in_turns(
    state: &ShardState,
    ranges: Vec<ReadRange>,
    now_ms: u64,
) -> (Vec<Vec<(Bytes, Bytes)>>, usize) {
    let mut read = state.begin_read(DATABASE, ranges, now_ms).unwrap();
    let mut turns = 1;
    while read.turn(usize::MAX).unwrap() != Turn::Done {
        turns += 1;
    }
    let entries = |entries: Vec<Entry>| {
        entries.into_iter().map(|entry| (entry.key, entry.value.data)).collect()
    };
    (read.into_view(()).ranges.into_iter().map(entries).collect(), turns)
}

fn rocks(memtable_bytes: usize) -> (Arc<RocksEngine>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let options = RocksOptions { block_cache_bytes: 8 << 20, memtable_bytes, vault: None };
    (Arc::new(RocksEngine::open(folder.path(), options).unwrap()), folder)
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![0x00, 0x01, 0x02, b'a', 0xfe, 0xff]), 0..5)
}

proptest! {
    /// A point holds no other key, whatever bytes keys are made of; any other end leaves room for
    /// one.
    #[test]
    fn a_point_holds_its_key_only(start in key(), other in key(), end in key()) {
        let asked = range(start.clone(), [&start[..], &[0]].concat(), 1, false);
        prop_assert!(is_point(&asked));
        let holds = |range: &ReadRange, key: &[u8]| range.start.as_ref() <= key && key < range.end.as_ref();
        prop_assert_eq!(holds(&asked, &other), other == start);
        let wider = range(start.clone(), end.clone(), 1, false);
        if !is_point(&wider) && start < end {
            prop_assert!(holds(&wider, &[&start[..], &[0]].concat()), "{:?}", wider);
        }
    }

    /// However a read is cut into turns, and whichever way it takes, it finds what a plain map
    /// holds.
    #[test]
    fn reads_find_what_is_there(
        steps in prop::collection::vec((key(), 0..3_u8), 0..60),
        ranges in prop::collection::vec((key(), key(), 0..4_u32, any::<bool>()), 1..4),
    ) {
        let state = ShardState::open(Arc::new(MemoryEngine::default()), SHARD).unwrap();
        let mut model = BTreeMap::new();
        for (number, (key, step)) in steps.into_iter().enumerate() {
            let data = Bytes::from(number.to_string());
            match step {
                0 => {
                    model.remove(&key);
                    apply(&state, vec![Effect::Delete { key: key.into() }]);
                }
                // Gone when it is read.
                1 => {
                    model.remove(&key);
                    apply(&state, vec![put(key, data, 5000)]);
                }
                _ => {
                    model.insert(key.clone(), data.clone());
                    apply(&state, vec![put(key, data, 0)]);
                }
            }
        }
        let ranges: Vec<_> = ranges.into_iter().map(|(start, end, limit, reverse)| range(start, end, limit, reverse)).collect();
        let expected: Vec<Vec<(Bytes, Bytes)>> = ranges.iter().map(|range| {
            let inside = model.iter().filter(|(key, _)| key[..] >= range.start[..] && key[..] < range.end[..]);
            let mut inside: Vec<_> = inside.map(|(key, data)| (Bytes::from(key.clone()), data.clone())).collect();
            if range.reverse {
                inside.reverse();
            }
            inside.truncate(range.limit as usize);
            inside
        }).collect();
        prop_assert_eq!(&in_turns(&state, ranges.clone(), 5000).0, &expected);
        for (range, expected) in ranges.into_iter().zip(expected) {
            if let Some(view) = state.read_cached(DATABASE, &[range], 5000).unwrap() {
                let found: Vec<_> = view.ranges[0].iter().map(|entry| (entry.key.clone(), entry.value.data.clone())).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}

/// `@deno/kv` asks for `["a"]` by a range in which `["a", "b"]` lies: where the first is absent,
/// the protocol's answer is the second.
#[test]
fn a_key_that_is_there_answers_what_ends_in_ff_and_an_absent_one_does_not() {
    let (a, ab) = (&b"\x02a\0"[..], &b"\x02a\0\x02b\0"[..]);
    let asked = range(a, [a, &[0xff]].concat(), 1, false);
    let state = ShardState::open(Arc::new(MemoryEngine::default()), SHARD).unwrap();
    apply(&state, vec![put(ab, "child", 0)]);
    let view = state.read_cached(DATABASE, std::slice::from_ref(&asked), 0).unwrap().unwrap();
    assert_eq!(view.ranges[0][0].key, ab);
    assert_eq!(in_turns(&state, vec![asked.clone()], 0).0, [[(ab.into(), "child".into())]]);
    apply(&state, vec![put(a, "itself", 0)]);
    let view = state.read_cached(DATABASE, std::slice::from_ref(&asked), 0).unwrap().unwrap();
    assert_eq!(view.ranges[0][0].key, a);
    assert_eq!(in_turns(&state, vec![asked], 0).0, [[(a.into(), "itself".into())]]);
}

#[test]
fn long_ranges_are_read_in_turns_both_ways() {
    let (engine, _folder) = rocks(32 << 20);
    let state = ShardState::open(engine, SHARD).unwrap();
    let name = |number: usize| Bytes::from(format!("{number:05}"));
    // Every third one has expired.
    let count = 3 * TURN_ROWS;
    apply(
        &state,
        (0..count).map(|n| put(name(n), name(n), if n % 3 == 0 { 1 } else { 0 })).collect(),
    );
    for reverse in [false, true] {
        let limit = 2 * TURN_ROWS;
        let (found, turns) =
            in_turns(&state, vec![range("", "9", u32::try_from(limit).unwrap(), reverse)], 50);
        let mut expected: Vec<_> =
            (0..count).filter(|n| n % 3 != 0).map(|n| (name(n), name(n))).collect();
        if reverse {
            expected.reverse();
        }
        assert_eq!(found, [expected]);
        assert!((3..=4).contains(&turns), "{turns} turns");
    }
    let mut read = state.begin_read(DATABASE, vec![range("", "9", 1000, false)], 50).unwrap();
    assert_eq!(read.turn(2000).unwrap(), Turn::Full);
    assert!(
        read.bytes() < 2000 + 10 + ENTRY_BYTES,
        "no more is read than may be held: {}",
        read.bytes()
    );
}

#[test]
fn a_read_at_once_skips_a_bounded_part_of_a_queues_deleted_head_in_a_bounded_time() {
    let (engine, _folder) = rocks(64 << 20);
    let state = ShardState::open(engine, SHARD).unwrap();
    let name = |part: usize, number: usize| Bytes::from(format!("{part:02}-{number:06}"));
    let head = |part: usize, count: usize| {
        apply(&state, (0..count).map(|n| put(name(part, n), "x", 0)).collect());
        apply(&state, (0..count).map(|n| Effect::Delete { key: name(part, n) }).collect());
        apply(&state, vec![put(name(part, 999_999), "behind", 0)]);
    };
    let skips = usize::try_from(SKIPS_AT_ONCE).unwrap();
    head(0, skips / 2 - 10);
    head(1, skips / 2 + 10);
    // Together some milliseconds.
    (2..66).for_each(|part| head(part, skips / 2 - 10));
    let at_once = |range: ReadRange| state.read_cached(DATABASE, &[range], 0).unwrap();
    let view = at_once(range("00", "01", 1, false)).expect("each deleted row counts twice");
    assert_eq!(view.ranges[0][0].value.data, "behind");
    assert!(at_once(range("01", "02", 1, false)).is_none());
    assert!(at_once(range("02", "99", 64, false)).is_none(), "a thread of the runtime is held up");
    assert_eq!(in_turns(&state, vec![range("02", "99", 64, false)], 0).0[0].len(), 64);
}

/// The deleted rows of a queue's head that one turn skips are bounded, and soon gone.
#[test]
fn deleted_rows_are_skipped_in_bounded_turns_and_compacted() {
    let (engine, _folder) = rocks(64 << 20);
    let state = ShardState::open(Arc::clone(&engine) as Arc<dyn Engine>, SHARD).unwrap();
    const ROWS: usize = 40_000;
    let name = |number: usize| Bytes::from(format!("q{number:06}"));
    apply(&state, (0..ROWS).map(|n| put(name(n), "x", 0)).collect());
    state.flush().unwrap();
    engine.compact(&schema::state_family(SHARD, 0)).unwrap();
    apply(&state, (0..ROWS).map(|n| Effect::Delete { key: name(n) }).collect());
    apply(&state, vec![put("z", "behind", 0)]);
    let asked = || vec![range("q", "zz", 1, false)];
    let mut read = state.begin_read(DATABASE, asked(), 0).unwrap();
    let mut turns = 1;
    while read.turn(usize::MAX).unwrap() == Turn::More {
        turns += 1;
        assert!(turns < 10, "each turn skips twice as many as the one before");
    }
    assert!(turns >= 3, "{ROWS} deleted rows were skipped in {turns} turns");
    assert_eq!(read.into_view(()).ranges[0][0].value.data, "behind");
    // Before a second flush of the memtable adds a file, which could be what has them compacted.
    let deadline = Instant::now() + Duration::from_secs(12);
    while in_turns(&state, asked(), 0).1 > 1 {
        assert!(Instant::now() < deadline, "deleted rows stay where every read skips them");
        // The latest writes are not compacted by themselves.
        apply(&state, vec![put("a", "other", 0)]);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_lies_beside_a_view_lives_as_long_as_its_entries() {
    let state = ShardState::open(Arc::new(MemoryEngine::default()), SHARD).unwrap();
    apply(&state, vec![put("a", "1", 0), put("b", "2", 0)]);
    let beside = Arc::new(());
    let view = |limit| {
        let mut read = state.begin_read(DATABASE, vec![range("", "z", limit, false)], 0).unwrap();
        assert_eq!(read.turn(usize::MAX).unwrap(), Turn::Done);
        read.into_view(Arc::clone(&beside))
    };
    let mut kept = view(2);
    let data = kept.ranges[0].pop().unwrap().value.data;
    drop(kept);
    assert_eq!((data.as_ref(), Arc::strong_count(&beside)), (&b"2"[..], 2));
    drop(data);
    assert_eq!(Arc::strong_count(&beside), 1);
    drop(view(0));
    assert_eq!(Arc::strong_count(&beside), 1, "nothing found holds nothing");
}

#[test]
fn all_memtables_together_stay_within_their_bound() {
    const BOUND: usize = 16 << 20;
    let (engine, _folder) = rocks(BOUND);
    let shards: Vec<_> = (1..=100)
        .map(|shard| {
            ShardState::open(Arc::clone(&engine) as Arc<dyn Engine>, ShardId(shard)).unwrap()
        })
        .collect();
    let idle = engine.memtable_bytes();
    assert!(idle < 100 * (64 << 10), "a shard without data takes {} bytes", idle / 100);
    let logs: Vec<_> = (1..=100)
        .map(|shard| {
            let group = GroupId { shard: ShardId(shard), epoch: Epoch(1) };
            GroupLog::open(Arc::clone(&engine) as Arc<dyn Engine>, group, RecordKind::Entry)
                .unwrap()
        })
        .collect();
    let data = Bytes::from(vec![7; 32 << 10]);
    let mut most = 0;
    for round in 0..12 {
        for (state, log) in shards.iter().zip(&logs) {
            log.append([(round, data.as_ref())]).unwrap();
            most = most.max(engine.memtable_bytes());
            apply(state, vec![put(format!("{round}"), data.clone(), 0)]);
            most = most.max(engine.memtable_bytes());
        }
        engine.sync().unwrap();
    }
    assert!(most > BOUND as u64 / 2, "the test fills memtables: {most}");
    assert!(most <= BOUND as u64, "{most} bytes of memtables, of at most {BOUND}");
}

/// The next write stops, before or after it takes effect, until it is let go.
#[derive(Default)]
struct Stalling {
    stalls: AtomicBool,
    after: AtomicBool,
    stalled: Mutex<bool>,
    changed: Condvar,
}

impl Stalling {
    fn set(&self, stalled: bool) {
        *self.stalled.lock().unwrap() = stalled;
        self.changed.notify_all();
    }

    fn stall(&self) {
        if self.stalls.swap(false, Ordering::SeqCst) {
            self.set(true);
            self.wait(false);
        }
    }

    fn wait(&self, stalled: bool) {
        drop(self.changed.wait_while(self.stalled.lock().unwrap(), |now| *now != stalled).unwrap());
    }
}

impl Hooks for Stalling {
    fn before(&self, _: &dyn Engine, call: Call<'_>) -> Result<(), StorageError> {
        if matches!(call, Call::Write(_)) && !self.after.load(Ordering::SeqCst) {
            self.stall();
        }
        Ok(())
    }

    fn after(&self, call: Call<'_>) {
        if matches!(call, Call::Write(_)) && self.after.load(Ordering::SeqCst) {
            self.stall();
        }
    }
}

/// Runs `body` while an apply of `effects` stands still in the engine.
fn while_applying(after: bool, effects: Vec<Effect>, body: impl FnOnce(&ShardState)) {
    let engine =
        Arc::new(HookedEngine::new(Arc::new(MemoryEngine::default()), Stalling::default()));
    let state = ShardState::open(Arc::clone(&engine) as Arc<dyn Engine>, SHARD).unwrap();
    apply(&state, vec![put("a", "1", 15), put("b", "1", 0)]);
    engine.after.store(after, Ordering::SeqCst);
    engine.stalls.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        scope.spawn(|| apply(&state, effects));
        engine.wait(true);
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&state)));
        // Whatever came of it: the other thread ends.
        engine.set(false);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn no_read_waits_for_the_applier() {
    while_applying(false, vec![put("a", "2", 0)], |state| {
        // Each of these would wait for ever.
        let one = range("a", "a\0", 1, false);
        let view = state.read_cached(DATABASE, std::slice::from_ref(&one), 0).unwrap().unwrap();
        assert_eq!((view.position.sequence, view.ranges[0].len()), (1, 1));
        let (found, _) = in_turns(state, vec![one, range("", "z", 9, false)], 0);
        assert_eq!(found[1], [("a".into(), "1".into()), ("b".into(), "1".into())]);
        assert_eq!(state.expired(20, 9).unwrap().len(), 1);
        assert_eq!(state.snapshot().unwrap().applied().position.sequence, 1);
        assert_eq!(state.position().sequence, 1);
    });
}

/// Between the engine's write and the word of it: what is read is of one moment, with that moment's
/// time.
#[test]
fn what_is_read_while_a_batch_takes_effect_is_of_one_moment() {
    let effects = vec![put("b", "2", 18), Effect::Delete { key: "c".into() }];
    while_applying(true, effects, |state| {
        assert_eq!(state.position().sequence, 1);
        // The batch came at 20: what expires at 15 and 18 is gone with it.
        let mut read = state.begin_read(DATABASE, vec![range("", "z", 9, false)], 0).unwrap();
        assert_eq!(read.turn(usize::MAX).unwrap(), Turn::Done);
        let view = read.into_view(());
        assert_eq!((view.position.sequence, view.ranges[0].len()), (2, 0), "{view:?}");
        assert_eq!(state.snapshot().unwrap().applied().position.sequence, 2);
        // Every read after this, on any node, is to see no less.
        assert_eq!(state.max_served(), 2);
        // Of `a` the state before is known; what `b` is now is of a moment whose time is not.
        let cached = |key: &'static str| {
            state
                .read_cached(DATABASE, &[range(key, [key.as_bytes(), &[0]].concat(), 1, false)], 0)
                .unwrap()
        };
        assert_eq!(
            cached("a").map(|view| (view.position.sequence, view.ranges[0].len())),
            Some((1, 1))
        );
        // It is read with its time, from a snapshot: gone.
        assert_eq!(
            cached("b").map(|view| (view.position.sequence, view.ranges[0].len())),
            Some((2, 0))
        );
        assert_eq!(cached("c").map(|view| view.ranges[0].len()), Some(0));
    });
}

/// Else the next read, at a node that stands where the view says, shows the key again.
#[test]
fn what_a_batch_has_deleted_is_not_said_to_be_absent_before_it() {
    while_applying(true, vec![Effect::Delete { key: "b".into() }], |state| {
        let view = state.read_cached(DATABASE, &[range("b", "b\0", 1, false)], 0).unwrap().unwrap();
        assert_eq!((view.position.sequence, view.ranges[0].len()), (2, 0));
    });
    while_applying(false, vec![Effect::Delete { key: "b".into() }], |state| {
        let view = state.read_cached(DATABASE, &[range("b", "b\0", 1, false)], 0).unwrap().unwrap();
        assert_eq!((view.position.sequence, view.ranges[0].len()), (1, 1));
    });
}

/// Counts snapshots.
#[derive(Default)]
struct Snapshots(AtomicU64);

impl Hooks for Snapshots {
    fn snapshot(&self, inner: Arc<dyn EngineSnapshot>) -> Arc<dyn EngineSnapshot> {
        self.0.fetch_add(1, Ordering::SeqCst);
        inner
    }
}

#[test]
fn a_key_that_is_there_or_absent_is_looked_up_without_a_snapshot_and_a_range_with_one() {
    let engine =
        Arc::new(HookedEngine::new(Arc::new(MemoryEngine::default()), Snapshots::default()));
    let state = ShardState::open(Arc::clone(&engine) as Arc<dyn Engine>, SHARD).unwrap();
    apply(&state, vec![put("a", "1", 0), put("gone", "1", 15), put("there", "2", 0)]);
    for (start, end, limit, found, snapshots) in [
        ("there", "there\0", 1, Some("2"), 0),
        ("there", "z", 1, Some("2"), 0),
        ("absent", "absent\0", 1, None, 0),
        ("gone", "gone\0", 1, None, 0),
        ("absent", "b", 1, None, 1),
        ("there", "z", 2, Some("2"), 1),
    ] {
        let before = engine.0.load(Ordering::SeqCst);
        let view =
            state.read_cached(DATABASE, &[range(start, end, limit, false)], 15).unwrap().unwrap();
        let data: Vec<_> = view.ranges[0].iter().map(|entry| entry.value.data.as_ref()).collect();
        assert_eq!(data, Vec::from_iter(found.map(str::as_bytes)), "{start} to {end}");
        assert_eq!(engine.0.load(Ordering::SeqCst) - before, snapshots, "{start} to {end}");
    }
}
