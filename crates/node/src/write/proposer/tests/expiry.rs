//! Time as it is logged, and what it makes expire.

use std::collections::BTreeMap;

use meridian_storage::{RaftApplied, ReadView, StoredBatch};

use super::*;
use crate::write::proposer::expiry::SWEEP;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: i64 = 24 * 3_600_000;

#[tokio::test]
async fn what_has_expired_is_swept_and_what_replaced_it_is_not() {
    let leader = Leader::start(Arc::default()).await;
    leader.commit(expiring("gone", 50)).await;
    leader.commit(expiring("kept", 50)).await;
    leader.commit(set("kept", "2")).await;
    leader.swept().await;
    assert_eq!(
        leader
            .state
            .read(
                DATABASE,
                &[ReadRange { start: Bytes::new(), end: "z".into(), limit: 9, reverse: false }],
                0
            )
            .unwrap()
            .ranges[0]
            .len(),
        1
    );
    assert_eq!(leader.value("kept").unwrap(), "2");
}

/// The key's new value is in flight when the sweep finds the old one expired.
#[tokio::test]
async fn what_is_being_written_is_not_swept_with_what_it_replaces() {
    let engine = Arc::new(MemoryEngine::default());
    let leader = Arc::new(Leader::start(Arc::clone(&engine)).await);
    let first = leader.commit(expiring("k", HOUR_MS / 2)).await.position();
    engine.hold_syncs();
    let writing = Arc::clone(&leader);
    let writing =
        tokio::spawn(async move { writing.write(new_request_id(), false, set("k", "new")).await });
    let proposed = async |sequence| {
        while leader.proposed.load(Ordering::Relaxed) < sequence {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    proposed(first.sequence + 1).await;
    leader.skip(HOUR_MS);
    proposed(first.sequence + 2).await;
    assert_eq!(leader.state.position(), first, "the new value is in flight");
    engine.release_syncs();
    assert!(matches!(writing.await.unwrap().outcome(), Some(WriteOutcome::Committed(_))));
    leader.swept().await;
    assert_eq!(leader.value("k").unwrap(), "new");
}

#[tokio::test]
async fn a_clock_that_was_ahead_or_behind_for_a_while_expires_nothing_early() {
    let leader = Leader::start(Arc::default()).await;
    leader.commit(set("first", "v")).await;
    leader.commit(expiring("k", HOUR_MS)).await;
    let mut times = vec![leader.state.applied().time_ms];
    for ahead_ms in [DAY_MS, 0, 36500 * DAY_MS, 0, -DAY_MS, 0, -DAY_MS, DAY_MS] {
        leader.set_clocks_ahead(ahead_ms);
        for _ in 0..3 {
            leader.commit(set("other", "v")).await;
            times.push(leader.state.applied().time_ms);
        }
        assert_eq!(leader.value("k").unwrap(), "expiring");
    }
    assert!(times.is_sorted(), "{times:?}");
    assert!(times.last().unwrap() < &(wall_ms() + HOUR_MS / 60), "{times:?}");
    // Once an hour has passed it is gone.
    leader.set_clocks_ahead(0);
    leader.skip(HOUR_MS);
    leader.swept().await;
    assert_eq!(leader.value("k"), None);
}

#[tokio::test]
async fn a_next_leader_with_another_clock_goes_on_from_the_logged_time() {
    let engine = Arc::new(MemoryEngine::default());
    let leader = Leader::start(Arc::clone(&engine)).await;
    leader.commit(expiring("k", HOUR_MS)).await;
    let before = leader.state.applied().time_ms;
    leader.group.shutdown().await;
    for ahead_ms in [DAY_MS, -DAY_MS] {
        let leader = Leader::start(Arc::new(engine.crash(0))).await;
        leader.set_clocks_ahead(ahead_ms);
        for _ in 0..3 {
            leader.commit(set("other", "v")).await;
        }
        let logged = leader.state.applied().time_ms;
        assert!((before..before + HOUR_MS / 60).contains(&logged), "{before} {logged}");
        assert_eq!(leader.value("k").unwrap(), "expiring");
        leader.group.shutdown().await;
    }
}

#[tokio::test]
async fn a_term_goes_on_from_what_is_logged_and_has_been_for_as_long_as_it_was_known() {
    let leader = Leader::start(Arc::default()).await;
    leader.commit(set("first", "v")).await;
    let right_ms = || wall_ms() + leader.time.skipped_ms.load(Ordering::Relaxed);
    let mut time = LoggedTime::new(leader.state.time_ms(), leader.parts.time.now());
    // Clocks are ahead for long, and nothing is logged.
    leader.set_clocks_ahead(DAY_MS);
    let mut term = Session::new(&leader.parts, &mut time, 1, Instant::now());
    let mut ahead_ms = 0;
    for _ in 0..30 {
        leader.skip(500);
        ahead_ms = term.look_at_clocks();
    }
    assert!(ahead_ms > right_ms() + HOUR_MS, "the clocks were not believed");
    leader.set_clocks_ahead(0);
    let mut term = Session::new(&leader.parts, &mut time, 1, Instant::now());
    assert!(term.look_at_clocks() <= right_ms());
    // The term logs, and then nothing for an hour.
    leader.commit(set("second", "v")).await;
    term.look_at_clocks();
    leader.skip(HOUR_MS);
    let mut term = Session::new(&leader.parts, &mut time, 1, Instant::now());
    let behind_ms = right_ms() - term.look_at_clocks();
    assert!(behind_ms < HOUR_MS / 2, "behind by {behind_ms} ms");
}

#[tokio::test]
async fn what_a_check_finds_expired_is_so_for_every_read() {
    let leader = Leader::start(Arc::default()).await;
    leader.commit(set("first", "v")).await;
    for _ in 0..5 {
        let in_ms = leader.time.skipped_ms.load(Ordering::Relaxed) + HOUR_MS;
        let stamp = leader.commit(expiring("k", in_ms)).await;
        leader.skip(2 * HOUR_MS);
        // Refused without a trace in the log, and from then on it is gone for readers too.
        let unchanged = Transaction {
            checks: vec![Check { key: "k".into(), versionstamp: Some(stamp) }],
            ..set("x", "x")
        };
        while leader.write(new_request_id(), false, unchanged.clone()).await
            != WriteReply::Done(Fenced::for_test(WriteOutcome::CheckFailed(vec![0])))
        {}
        assert_eq!(leader.value("k"), None);
    }
}

#[tokio::test]
async fn an_idle_shard_logs_the_time_when_something_expires_and_only_then() {
    let leader = Leader::start(Arc::default()).await;
    let put = leader.commit(expiring("k", HOUR_MS)).await.position();
    leader.skip(HOUR_MS / 2);
    leader.commit(set("other", "v")).await;
    assert_eq!(leader.state.position(), put.next());
    leader.skip(HOUR_MS / 2);
    // No client writes, and it goes.
    leader.swept().await;
    assert_eq!((leader.value("k"), leader.state.position()), (None, put.next().next()));
}

#[tokio::test]
async fn what_expires_is_swept_as_it_comes() {
    let leader = Leader::start(Arc::default()).await;
    // 60,000 puts, of which a half replaces the other, so that its rows of expiries are stale.
    for round in 0..60u32 {
        let put = |n: u32| Mutation {
            key: format!("k{}", (round % 30) * 1000 + n).into(),
            kind: MutationKind::Set(Value {
                encoding: ValueEncoding::Bytes,
                data: Bytes::from_static(b"v"),
            }),
            expire_at_ms: wall_ms() + HOUR_MS / 2 + u64::from(n % 7),
        };
        leader
            .commit(Transaction {
                mutations: (0..1000).map(put).collect(),
                ..Transaction::default()
            })
            .await;
    }
    leader.skip(HOUR_MS);
    let before = leader.state.position().sequence;
    leader.swept().await;
    // No batch waits for the one before.
    let times: Vec<_> =
        batches(&leader, before + 1).await.iter().map(|batch| batch.time_ms).collect();
    let shortest = times.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap();
    assert!(times.len() >= 30 && u128::from(shortest) < SWEEP.as_millis(), "{times:?}");
    let all = ReadRange { start: Bytes::new(), end: "z".into(), limit: 1000, reverse: false };
    assert_eq!(leader.state.read(DATABASE, &[all], 0).unwrap().ranges[0], []);
}

async fn batches(leader: &Leader, first: u64) -> Vec<meridian_types::Batch> {
    let (mut batches, mut next) = (Vec::new(), first);
    while next <= leader.state.position().sequence {
        let stored = leader.group.committed_batches(next, 1 << 20).unwrap();
        if stored.is_empty() {
            // Raft hears of what the state has applied when it has its turn.
            tokio::task::yield_now().await;
        }
        next += stored.len() as u64;
        batches.extend(
            stored.into_iter().map(|batch| meridian_proto::decode_batch(batch.bytes).unwrap()),
        );
    }
    batches
}

#[tokio::test]
async fn a_sweep_of_long_keys_is_no_larger_than_others() {
    let leader = Leader::start(Arc::default()).await;
    for first in (0..1000).step_by(200) {
        let put = |n: u32| Mutation {
            key: format!("{n:02000}").into(),
            kind: MutationKind::Set(Value {
                encoding: ValueEncoding::Bytes,
                data: Bytes::from_static(b"v"),
            }),
            expire_at_ms: wall_ms() + HOUR_MS / 2,
        };
        leader
            .commit(Transaction {
                mutations: (first..first + 200).map(put).collect(),
                ..Transaction::default()
            })
            .await;
    }
    leader.skip(HOUR_MS);
    let before = leader.state.position().sequence;
    leader.swept().await;
    let sizes: Vec<_> = batches(&leader, before + 1)
        .await
        .iter()
        .map(|batch| meridian_proto::encode_batch(batch).len())
        .collect();
    assert!(sizes.iter().all(|size| *size < (1 << 20) + (64 << 10)), "{sizes:?}");
}

/// States that applied the same show the same, at any time and whatever a clock says.
#[tokio::test]
async fn states_at_the_same_position_show_the_same() {
    let leader = Leader::start(Arc::default()).await;
    let all = [ReadRange { start: Bytes::new(), end: "z".into(), limit: 1000, reverse: false }];
    let mut shown: BTreeMap<u64, ReadView> = BTreeMap::new();
    let keys = ["a", "b", "c", "d", "e", "f"];
    let mut seed = 7u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..300 {
        let mut transaction = Transaction::default();
        let in_ms = random(8);
        for _ in 0..=random(3) {
            let key = keys[usize::try_from(random(6)).unwrap()];
            transaction.mutations.extend(match random(5) {
                0 => set(key, "for good").mutations,
                1 => mutation(key, MutationKind::Delete).mutations,
                _ => expiring(key, in_ms).mutations,
            });
        }
        leader.commit(transaction).await;
        leader.set_clocks_ahead(i64::try_from(random(20)).unwrap() - 10);
        for _ in 0..3 {
            let view = leader.state.read(DATABASE, &all, 0).unwrap();
            if let Some(before) = shown.insert(view.position.sequence, view.clone()) {
                assert_eq!(before, view, "it changed without a batch");
            }
            tokio::task::yield_now().await;
        }
    }
    let replica = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
    let mut next = 1;
    while next <= leader.state.position().sequence {
        for StoredBatch { sequence, bytes } in
            leader.group.committed_batches(next, 1 << 20).unwrap()
        {
            let batch = meridian_proto::decode_batch(bytes).unwrap();
            replica.apply(&[batch.into()], RaftApplied::default()).unwrap();
            if let Some(expected) = shown.get(&sequence) {
                assert_eq!(replica.read(DATABASE, &all, 0).unwrap(), *expected, "at {sequence}");
            }
            next = sequence + 1;
        }
    }
    assert!(shown.len() > 100);
}

#[tokio::test]
async fn the_first_batch_of_a_new_shard_waits_until_there_is_a_time_to_log() {
    let alone = TestTime { alone: true, ..TestTime::default() };
    let leader = Leader::start_at(Arc::default(), alone).await;
    leader.commit(set("a", "1")).await;
    assert!(leader.state.applied().time_ms.abs_diff(wall_ms()) < HOUR_MS);
}
