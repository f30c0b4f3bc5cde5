//! Purges of a replica's log, and the batches that a crash leaves of it.

use std::collections::BTreeSet;
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use meridian_proto::encode_batch;
use meridian_types::{Batch, Position};
use parking_lot::Mutex;

use super::*;
use crate::{Call, HookedEngine, Hooks, MemoryEngine};

const SHARD: ShardId = ShardId(1);

type Hook = Box<dyn FnOnce() + Send>;

/// Something happens right after the next flush, or after each call.
#[derive(Default)]
struct AfterCalls {
    flush: Mutex<Option<Hook>>,
    each: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Hooks for AfterCalls {
    fn after(&self, call: Call<'_>) {
        if matches!(call, Call::Flush(_)) {
            let hook = self.flush.lock().take();
            hook.into_iter().for_each(|hook| hook());
        }
        self.each.get().into_iter().for_each(|hook| hook());
    }
}

/// The disk of a replica: its engine, its state and its log.
#[derive(Clone)]
struct Copy {
    memory: Arc<MemoryEngine>,
    engine: Arc<HookedEngine<AfterCalls>>,
    state: Arc<ShardState>,
    log: ShippedLog,
}

impl Copy {
    fn new() -> Self {
        let memory = Arc::new(MemoryEngine::default());
        let engine = Arc::new(HookedEngine::new(memory.clone(), AfterCalls::default()));
        let dynamic: Arc<dyn Engine> = engine.clone();
        let state = Arc::new(ShardState::open(Arc::clone(&dynamic), SHARD).unwrap());
        Self { memory, engine, state, log: ShippedLog::open(&dynamic, SHARD).unwrap() }
    }

    /// As the driver does: durable, applied, and then reported.
    fn take(&self, epoch: u16, sequences: std::ops::RangeInclusive<u64>) {
        for sequence in sequences {
            let position = Position::new(Epoch(epoch), sequence);
            let bytes = encode_batch(&Batch { position, time_ms: 0, transactions: Vec::new() });
            self.log.append([(sequence, bytes.as_ref())]).unwrap();
            self.engine.sync().unwrap();
            self.state.apply(&[decode_batch(bytes).unwrap()], RaftApplied::default()).unwrap();
        }
    }

    /// Where it stands after a power loss.
    fn after_crash(&self, seed: u64) -> Position {
        let engine: Arc<dyn Engine> = Arc::new(self.memory.crash(seed));
        let state = ShardState::open(Arc::clone(&engine), SHARD).unwrap();
        ShippedLog::open(&engine, SHARD).unwrap().replay(&state).unwrap();
        state.position()
    }

    fn holds_over_crashes(&self) {
        for seed in 0..100 {
            assert_eq!(
                self.after_crash(seed),
                self.state.position(),
                "it had reported more: seed {seed}"
            );
        }
    }
}

#[test]
fn a_replicas_log_is_purged_up_to_what_is_flushed_at_most() {
    let copy = Copy::new();
    copy.take(1, 1..=10);
    copy.holds_over_crashes();
    // As far behind what is applied as it is in production.
    assert_eq!(copy.log.purge_flushed(&copy.state, 8).unwrap(), 8);
    assert_eq!(copy.log.first().unwrap().unwrap().sequence, 9);
    copy.holds_over_crashes();
    // More comes while the state is flushed, and every replica has it already.
    let more = copy.clone();
    *copy.engine.flush.lock() = Some(Box::new(move || more.take(1, 11..=13)));
    assert_eq!(copy.log.purge_flushed(&copy.state, 13).unwrap(), 10);
    copy.holds_over_crashes();
}

/// Appends, as yet not durable.
fn append(log: &ShippedLog, positions: &[(u16, u64)]) {
    for (epoch, sequence) in positions {
        let position = Position::new(Epoch(*epoch), *sequence);
        let bytes = encode_batch(&Batch { position, time_ms: 0, transactions: Vec::new() });
        log.append([(*sequence, bytes.as_ref())]).unwrap();
    }
}

fn positions(log: &ShippedLog) -> Vec<(u16, u64)> {
    let batches = log.read(0..u64::MAX, usize::MAX).unwrap();
    let position = |bytes| decode_batch(bytes).unwrap().batch.position;
    batches
        .into_iter()
        .map(|batch| position(batch.bytes))
        .map(|at| (at.epoch.0, at.sequence))
        .collect()
}

#[test]
fn what_was_cut_behind_a_hole_does_not_come_back_behind_what_takes_its_place() {
    let copy = Copy::new();
    // One power loss left a hole.
    append(&copy.log, &[(1, 1), (1, 2), (1, 4), (1, 5)]);
    copy.engine.sync().unwrap();
    copy.log.replay(&copy.state).unwrap();
    assert_eq!(positions(&copy.log), [(1, 1), (1, 2)]);
    // The next epoch begins there, and another comes before anything of it is durable.
    let next = [(1, 1), (1, 2), (2, 3), (2, 4)];
    append(&copy.log, &next[2..]);
    let mut lengths = BTreeSet::new();
    for seed in 0..200 {
        let engine: Arc<dyn Engine> = Arc::new(copy.memory.crash(seed));
        let state = ShardState::open(Arc::clone(&engine), SHARD).unwrap();
        let log = ShippedLog::open(&engine, SHARD).unwrap();
        log.replay(&state).unwrap();
        let kept = positions(&log);
        assert!(next.starts_with(&kept), "{kept:?} after seed {seed}");
        lengths.insert(kept.len());
    }
    assert_eq!(Vec::from_iter(lengths), [2, 3, 4]);
}

/// The state in use has left the history at 5, and the state that takes its place goes on from
/// there in epoch 2.
#[test]
fn a_state_that_is_put_in_place_does_not_meet_the_log_of_the_one_before_after_a_crash() {
    let copy = Copy::new();
    copy.take(1, 1..=10);
    let source = Copy::new();
    source.take(1, 1..=5);
    source.take(2, 6..=8);
    let mut staged = copy.state.stage().unwrap();
    staged.add(source.state.snapshot().unwrap().rows(&[], usize::MAX).unwrap()).unwrap();
    let (crashing, stands) = (copy.clone(), Arc::new(Mutex::new(BTreeSet::new())));
    let seen = Arc::clone(&stands);
    let crash = move || seen.lock().extend((0..50).map(|seed| crashing.after_crash(seed)));
    assert!(copy.engine.each.set(Box::new(crash)).is_ok());
    copy.log.replace_state(&copy.state, staged, Replace::Any).unwrap();
    let (old, new) = (Position::new(Epoch(1), 10), Position::new(Epoch(2), 8));
    assert_eq!(Vec::from_iter(stands.lock().iter().copied()), [old, new]);
    copy.holds_over_crashes();
}

#[test]
fn a_log_is_not_purged_by_what_was_flushed_of_another_state() {
    let copy = Copy::new();
    copy.take(1, 1..=10);
    // This state left the history at 5, and the state that takes its place stands there.
    let source = Copy::new();
    source.take(1, 1..=5);
    let (installed, done) = mpsc::channel();
    let target = copy.clone();
    let install: Hook = Box::new(move || {
        let installing = std::thread::spawn(move || {
            let mut staged = target.state.stage().unwrap();
            staged.add(source.state.snapshot().unwrap().rows(&[], usize::MAX).unwrap()).unwrap();
            target.log.replace_state(&target.state, staged, Replace::Any).unwrap();
            target.take(2, 6..=9);
            installed.send(()).unwrap();
        });
        drop(installing);
    });
    let (begun, waited) = (Mutex::new(Some(install)), mpsc::channel::<()>());
    let (_keep, never) = waited;
    *copy.engine.flush.lock() = Some(Box::new(move || {
        begun.lock().take().into_iter().for_each(|install| install());
        // Long enough for all of it to happen, if it may.
        never.recv_timeout(Duration::from_millis(300)).unwrap_err();
    }));
    copy.log.purge_flushed(&copy.state, 8).unwrap();
    done.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(copy.state.position(), Position::new(Epoch(2), 9));
    copy.holds_over_crashes();
}

/// Batches behind a hole that a power loss left were never reported.
#[test]
fn a_hole_in_what_was_shipped_is_cut_off() {
    let copy = Copy::new();
    copy.take(1, 1..=3);
    append(&copy.log, &[(1, 4), (1, 5), (1, 6), (1, 7)]);
    let mut reached = BTreeSet::new();
    for seed in 0..200 {
        let engine: Arc<dyn Engine> = Arc::new(copy.memory.crash(seed));
        let state = ShardState::open(Arc::clone(&engine), SHARD).unwrap();
        let log = ShippedLog::open(&engine, SHARD).unwrap();
        log.replay(&state).unwrap();
        let sequence = state.position().sequence;
        assert!(
            sequence >= 3 && log.last().unwrap().is_none_or(|last| last.sequence == sequence),
            "seed {seed}"
        );
        reached.insert(sequence);
    }
    assert_eq!(Vec::from_iter(reached), [3, 4, 5, 6, 7]);
}

#[test]
fn a_state_takes_the_place_of_an_older_one_and_of_a_newer_one_only_if_that_has_diverged() {
    for (sequence, replace, is_taken) in [
        (19, Replace::Older, false),
        (19, Replace::Any, true),
        (20, Replace::Older, true),
        (20, Replace::Any, true),
        (21, Replace::Older, true),
    ] {
        let (copy, source) = (Copy::new(), Copy::new());
        copy.take(1, 1..=20);
        source.take(1, 1..=sequence);
        let mut staged = copy.state.stage().unwrap();
        staged.add(source.state.snapshot().unwrap().rows(&[], usize::MAX).unwrap()).unwrap();
        let replaced = copy.log.replace_state(&copy.state, staged, replace);
        let last = copy.log.last().unwrap().map(|last| last.sequence);
        let stands = (copy.state.position().sequence, last, copy.log.purged().unwrap());
        if is_taken {
            assert_eq!(replaced.unwrap().position.sequence, sequence);
            assert_eq!(stands, (sequence, None, Some(sequence)));
        } else {
            let why = replaced.unwrap_err().to_string();
            assert!(why.contains("a snapshot at 1.19 is older than the state at 1.20"), "{why}");
            assert_eq!(stands, (20, Some(20), None), "nothing has changed");
        }
    }
}

#[test]
fn stored_keys_are_golden() {
    let copy = Copy::new();
    copy.take(1, 1..=1);
    copy.log.purge_through(0x0102).unwrap();
    append(&copy.log, &[(1, 0x0103)]);
    let mut keys = Vec::new();
    let all = crate::Scan { start: b"", end: &[0xff; 16], reverse: false };
    copy.engine
        .scan(crate::schema::LOG_FAMILY, all, &mut |key, record| {
            keys.push((key.to_vec(), record.len()));
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    let mark = copy.engine.get("log", b"\0\0\0\x01\0\0p").unwrap().unwrap();
    // Behind four bytes of checksum.
    assert_eq!(&mark[4..], [0, 0, 0, 0, 0, 0, 1, 2]);
    let names: Vec<_> = keys.iter().map(|(key, _)| key.as_slice()).collect();
    assert_eq!(names, [b"\0\0\0\x01\0\0p".as_slice(), b"\0\0\0\x01\0\0s\0\0\0\0\0\0\x01\x03"]);
}

#[test]
fn batches_are_given_where_none_is_missing() {
    let copy = Copy::new();
    append(&copy.log, &[(1, 3), (1, 4), (1, 6)]);
    let sequences = |after, through| {
        let batches = copy.log.batches_after(after, through, usize::MAX).unwrap();
        batches.map(|batches| batches.iter().map(|batch| batch.sequence).collect::<Vec<_>>())
    };
    assert_eq!(sequences(2, 4), Some(vec![3, 4]));
    assert_eq!(sequences(4, 4), Some(Vec::new()));
    assert_eq!((sequences(1, 4), sequences(2, 6), sequences(6, 7)), (None, None, None));
}
