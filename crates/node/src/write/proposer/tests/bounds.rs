//! Bounds of the proposer in bytes, and in work.

use meridian_types::limits::{self, MAX_VALUE_BYTES};

use super::*;

/// A bigint whose value is as large as values may be.
fn large_bigint() -> Value {
    let digits = MAX_VALUE_BYTES - 6;
    let length = [0x80 | ((digits << 1) & 0x7f), 0x80 | ((digits >> 6) & 0x7f), digits >> 13];
    let length = length.map(|byte| u8::try_from(byte).unwrap());
    let data = [&[0xff, 0x0f, b'Z'][..], &length, &vec![0x11; digits]].concat();
    Value { encoding: ValueEncoding::V8, data: data.into() }
}

fn sums(keys: std::ops::Range<u32>) -> Transaction {
    let operand =
        Value { encoding: ValueEncoding::V8, data: Bytes::from_static(b"\xff\x0fZ\x02\x01") };
    let kind = MutationKind::Sum { operand, bounds: SumBounds::default() };
    let mutations = keys.map(|n| Mutation {
        key: format!("n{n:04}").into(),
        kind: kind.clone(),
        expire_at_ms: 0,
    });
    Transaction { mutations: mutations.collect(), ..Transaction::default() }
}

/// Batches in the log from `sequence` on: the sizes of their encodings.
fn sizes(leader: &Leader, sequence: u64) -> Vec<usize> {
    let mut sizes = Vec::new();
    let mut next = sequence;
    while let Ok(batches) = leader.group.committed_batches(next, 0)
        && !batches.is_empty()
    {
        next += batches.len() as u64;
        sizes.extend(batches.iter().map(|batch| batch.bytes.len()));
    }
    sizes
}

#[tokio::test]
async fn small_requests_do_not_make_large_batches() {
    let leader = Leader::start(Arc::default()).await;
    for first in (0..1000).step_by(10) {
        let set = |n| Mutation {
            key: format!("n{n:04}").into(),
            kind: MutationKind::Set(large_bigint()),
            expire_at_ms: 0,
        };
        leader
            .commit(Transaction {
                mutations: (first..first + 10).map(set).collect(),
                ..Transaction::default()
            })
            .await;
    }
    let before = leader.state.position().sequence;
    // Ten kilobytes that would be 65 megabytes: refused, saying why.
    let refused = leader.write(new_request_id(), false, sums(0..1000)).await;
    let Some(WriteOutcome::Rejected(text)) = refused.outcome() else { panic!("{refused:?}") };
    assert!(text.contains(&limits::MAX_COMPUTED_BYTES.to_string()), "{text}");
    // Some hundred bytes that are two megabytes each, all at once: in order, in batches of some
    // megabytes each.
    let writes = (0..40).map(|n| leader.write(new_request_id(), false, sums(n..n + 30)));
    let mut stamps = Vec::new();
    for reply in futures::future::join_all(writes).await {
        let Some(WriteOutcome::Committed(stamp)) = reply.outcome() else { panic!("{reply:?}") };
        stamps.push(*stamp);
    }
    assert!(stamps.is_sorted(), "a write that a batch had no room for has kept its place");
    let sizes = sizes(&leader, before + 1);
    assert!(
        sizes.len() >= 40 * 30 * MAX_VALUE_BYTES / (room::BATCH_BYTES + limits::MAX_COMPUTED_BYTES),
        "{sizes:?}"
    );
    let largest = sizes.iter().max().unwrap();
    assert!(
        *largest < room::BATCH_BYTES + limits::MAX_COMPUTED_BYTES && *largest > 1 << 20,
        "{sizes:?}"
    );
}

/// Between two turns of a task that always wants one: what the runtime's thread has worked
/// meanwhile, in microseconds. No time in which it stood still counts.
static LONGEST_TURN: AtomicU64 = AtomicU64::new(0);

async fn longest_turn_of_another() {
    let worked_us = || {
        let worked = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        u64::try_from(worked.tv_sec * 1_000_000 + worked.tv_nsec / 1000).unwrap()
    };
    let mut last = worked_us();
    loop {
        tokio::task::yield_now().await;
        let now = worked_us();
        LONGEST_TURN.fetch_max(now - last, Ordering::Relaxed);
        last = now;
    }
}

#[tokio::test]
async fn checks_count_as_work_and_others_get_their_turn_meanwhile() {
    let leader = Leader::start(Arc::default()).await;
    // A small one keeps the transactions from being answered without a batch.
    let check = |n: u8| Check { key: vec![n; 2048].into(), versionstamp: None };
    let many = Transaction { checks: (0..100).map(check).collect(), ..set("k", "v") };
    let before = leader.state.position().sequence;
    // 300 at a time would be 30,000 look-ups; 16,384 of them are one batch.
    let small = WriteBytes::new("nothing", 1 << 30);
    let proposer = Proposer { budget: small, ..leader.proposer.clone() };
    let write = || {
        let (proposer, transaction) = (proposer.clone(), many.clone());
        let request = WriteRequest {
            database: DATABASE,
            request_id: new_request_id(),
            transaction,
            retry: false,
        };
        // However long it takes here.
        let until = Instant::now() + Duration::from_secs(60);
        let reserved = Reserved { until, ..proposer.reserve(&request).unwrap() };
        async move { proposer.write(request, reserved).await }
    };
    leader.commit(set("first", "v")).await;
    let mut longest = Vec::new();
    // A host that takes the processor from a virtual machine may count that as work for once.
    while longest.len() < 3 && longest.last().is_none_or(|longest| *longest >= 15_000) {
        LONGEST_TURN.store(0, Ordering::Relaxed);
        let others = tokio::spawn(longest_turn_of_another());
        let replies = futures::future::join_all((0..300).map(|_| write())).await;
        others.abort();
        assert!(others.await.unwrap_err().is_cancelled());
        longest.push(LONGEST_TURN.load(Ordering::Relaxed));
        let is_committed =
            |reply: &&WriteReply| matches!(reply.outcome(), Some(WriteOutcome::Committed(_)));
        assert_eq!(replies.iter().filter(is_committed).count(), 300);
    }
    assert!(
        longest.last() < Some(&15_000),
        "no other task had a turn while this thread worked for {longest:?} us"
    );
    let batches = leader.group.committed_batches(before + 2, usize::MAX).unwrap();
    let counts =
        batches.iter().map(|batch| meridian_proto::decode_batch(batch.bytes.clone()).unwrap());
    let largest = counts.map(|batch| batch.transactions.len()).max().unwrap();
    assert!(largest <= 164, "{largest} transactions in one batch");
}

#[tokio::test]
async fn what_waits_is_bounded_in_bytes_and_given_back() {
    let leader = Leader::start(Arc::default()).await;
    leader.commit(set("k", "v")).await;
    let large = || {
        let value = Value { encoding: ValueEncoding::Bytes, data: vec![7; MAX_VALUE_BYTES].into() };
        let set = |n: u32| Mutation {
            key: format!("{n}").into(),
            kind: MutationKind::Set(value.clone()),
            expire_at_ms: 0,
        };
        Transaction { mutations: (0..12).map(set).collect(), ..Transaction::default() }
    };
    let replies =
        futures::future::join_all((0..100).map(|_| leader.write(new_request_id(), false, large())))
            .await;
    let refused = replies.iter().filter_map(|reply| match reply {
        WriteReply::NotCommitted(why) => Some(why),
        _ => None,
    });
    let refused: Vec<_> = refused.collect();
    // All are asked for before any is evaluated: of the ten that fit, the last are for others.
    assert_eq!(refused.len(), 93);
    assert!(
        refused.iter().all(|why| matches!(why, WriteRefusal::ShareOfMemory { total_bytes } if *total_bytes == 8 << 20)),
        "{:?}",
        refused.last()
    );
    assert_eq!(leader.writes.used_bytes(), 0);
    leader.commit(large()).await;
}
