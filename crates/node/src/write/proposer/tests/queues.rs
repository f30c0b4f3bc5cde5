//! Messages through a leader: enqueued once, settled once, and in order with what is in flight.

use meridian_storage::QueuedMessage;
use meridian_types::{Enqueue, MessageId, QueueName, Settlement, Verdict};

use super::*;

fn enqueue(due_ms: u64) -> Transaction {
    let payload = Bytes::from_static(b"payload");
    let backoff_ms = Some(vec![10, 20]);
    let enqueues = vec![Enqueue { payload, due_ms, backoff_ms, ..Enqueue::default() }];
    Transaction { enqueues, ..Transaction::default() }
}

fn settle(message: &QueuedMessage, verdict: Verdict) -> Transaction {
    let queue = QueueName::UNNAMED;
    let settlement = Settlement { queue, id: message.id, due_ms: message.due_ms, verdict };
    Transaction { settlements: vec![settlement], ..Transaction::default() }
}

fn messages(leader: &Leader) -> Vec<QueuedMessage> {
    leader.state.messages_due(&DATABASE.into(), None, u64::MAX, 99, usize::MAX).unwrap()
}

fn undelivered(leader: &Leader) -> u64 {
    leader.state.queue_totals(DATABASE).unwrap().undelivered
}

#[tokio::test]
async fn enqueue_sent_twice_is_one_message_under_the_first_versionstamp() {
    let leader = Leader::start(Arc::default()).await;
    let request = new_request_id();
    let first = leader.write(request, false, enqueue(0)).await;
    assert_eq!(leader.write(request, true, enqueue(0)).await, first);
    let Some(WriteOutcome::Committed(enqueued)) = first.outcome() else { panic!("{first:?}") };
    let message = messages(&leader).pop().unwrap();
    assert_eq!(message.id, MessageId { enqueued: *enqueued, index: 0 });
    // Due with its batch, whose time it has.
    assert_eq!(message.due_ms, message.message.enqueued_ms);
    assert_eq!((messages(&leader).len(), undelivered(&leader)), (1, 1));
}

#[tokio::test]
async fn settlements_that_come_together_take_effect_once_and_are_all_answered_as_done() {
    let leader = Leader::start(Arc::default()).await;
    leader.commit(enqueue(5)).await;
    let message = messages(&leader).pop().unwrap();
    let failed = Verdict::Failed { retry_at_ms: message.due_ms + 1_000_000 };
    // More than one batch has; those behind the first see what is in flight.
    let settling = (0..50).map(|_| leader.commit(settle(&message, failed)));
    futures::future::join_all(settling).await;
    let retried = messages(&leader).pop().unwrap();
    assert_eq!((retried.id, retried.due_ms), (message.id, message.due_ms + 1_000_000));
    assert_eq!((retried.message.attempts, retried.message.backoff_ms.as_slice()), (1, &[20][..]));
    assert_eq!((messages(&leader).len(), undelivered(&leader)), (1, 1));
    for _ in 0..2 {
        leader.commit(settle(&retried, Verdict::Delivered)).await;
        assert_eq!((messages(&leader).len(), undelivered(&leader)), (0, 0));
    }
}

#[tokio::test]
async fn queue_outlives_a_crash_that_loses_unflushed_state() {
    for seed in 0..4 {
        let engine = Arc::new(MemoryEngine::default());
        let leader = Leader::start(Arc::clone(&engine)).await;
        leader.commit(enqueue(5)).await;
        leader.commit(enqueue(5)).await;
        let [kept, settled] = messages(&leader).try_into().unwrap();
        leader.commit(settle(&settled, Verdict::Delivered)).await;
        let crashed = engine.crash(seed);
        leader.group.shutdown().await;
        let leader = Leader::start(Arc::new(crashed)).await;
        leader.commit(set("other", "since")).await;
        assert_eq!((messages(&leader), undelivered(&leader)), (vec![kept], 1), "seed {seed}");
    }
}

#[tokio::test]
async fn delivered_messages_are_settled_while_the_disk_is_full_and_none_is_added() {
    let leader = Leader::start(Arc::default()).await;
    leader.commit(enqueue(5)).await;
    let message = messages(&leader).pop().unwrap();
    leader.disk_is_low.store(true, Ordering::Relaxed);
    let retry = Verdict::Failed { retry_at_ms: 5 };
    let deleting =
        Transaction { mutations: mutation("k", MutationKind::Delete).mutations, ..enqueue(5) };
    for refused in [enqueue(5), deleting, settle(&message, retry), Transaction::default()] {
        let refused = leader.write(new_request_id(), false, refused).await;
        let is_low =
            matches!(&refused, WriteReply::NotCommitted(WriteRefusal::LeaderDiskLow { .. }));
        assert!(is_low, "{refused:?}");
    }
    leader.commit(settle(&message, Verdict::Delivered)).await;
    assert_eq!(messages(&leader), []);
}
