//! Changes of the rows of messages, as they are applied: from the thread that applies to the task.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use meridian_proto::DecodedBatch;
use meridian_queue::{MessageKey, RowChange};
use meridian_storage::{LogSubscription, ShardState, StateChange};
use meridian_types::{Effect, QueueEffect, QueueId, QueueName};
use tokio::sync::mpsc;

/// Changes that wait for the task, at most: about 10 MB. A task that is further behind begins anew.
const MAX_WAITING: usize = 200_000;

/// The task has missed changes: it did not keep up, or another state took the place of this one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

/// A reader of the log.
pub(super) struct Feed {
    _subscription: LogSubscription,
    changes: mpsc::UnboundedReceiver<Result<Vec<RowChange>, Overrun>>,
    waiting: Arc<AtomicUsize>,
    max_waiting: usize,
}

impl Feed {
    /// Tells of all that is applied behind the state that is there on return.
    pub(super) fn subscribe(state: &ShardState) -> Self {
        Self::with_room(state, MAX_WAITING)
    }

    fn with_room(state: &ShardState, max_waiting: usize) -> Self {
        let (tell, changes) = mpsc::unbounded_channel();
        let waiting = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&waiting);
        let subscription = state.subscribe(move |change| {
            let told = match change {
                StateChange::Applied(batches) => {
                    Ok(batches.iter().flat_map(row_changes).collect::<Vec<_>>())
                }
                // Rows have come and gone of which nothing tells.
                StateChange::Replaced(_) => Err(Overrun),
            };
            let changes = told.as_ref().map_or(1, Vec::len);
            // Beyond its room the task learns from the number alone that it has missed some.
            if changes > 0 && counted.fetch_add(changes, Ordering::Relaxed) <= max_waiting {
                // A task that is gone wants nothing.
                drop(tell.send(told));
            }
        });
        Self { _subscription: subscription, changes, waiting, max_waiting }
    }

    /// The changes that are applied next, all that there are. May be dropped at any await.
    pub(super) async fn next(&mut self) -> Result<Vec<RowChange>, Overrun> {
        match self.changes.recv().await {
            Some(changes) => self.with_the_rest(changes?),
            None => std::future::pending().await,
        }
    }

    /// The changes that were applied by now.
    pub(super) fn present(&mut self) -> Result<Vec<RowChange>, Overrun> {
        self.with_the_rest(Vec::new())
    }

    fn with_the_rest(&mut self, mut changes: Vec<RowChange>) -> Result<Vec<RowChange>, Overrun> {
        while let Ok(more) = self.changes.try_recv() {
            changes.extend(more?);
        }
        let before = self.waiting.fetch_sub(changes.len(), Ordering::Relaxed);
        if before > self.max_waiting { Err(Overrun) } else { Ok(changes) }
    }
}

fn row_changes(decoded: &DecodedBatch) -> impl Iterator<Item = RowChange> {
    decoded.batch.iter().flat_map(|(versionstamp, transaction)| {
        let database = transaction.database;
        let of = move |name: &QueueName| QueueId { database, name: name.clone() };
        transaction.effects.iter().filter_map(move |effect| match effect {
            Effect::Queue(QueueEffect::PutMessage { queue, id, due_ms, .. }) => {
                let key = MessageKey { due_ms: *due_ms, id: *id };
                Some(match id.enqueued == versionstamp {
                    true => RowChange::Put(of(queue), key),
                    false => RowChange::Moved(of(queue), key),
                })
            }
            Effect::Queue(QueueEffect::DeleteMessage { queue, id, due_ms }) => {
                Some(RowChange::Deleted(of(queue), MessageKey { due_ms: *due_ms, id: *id }))
            }
            _ => None,
        })
    })
}

#[cfg(test)]
mod tests {
    use meridian_storage::{MemoryEngine, RaftApplied, Replace};
    use meridian_types::{
        Batch, CommittedTransaction, DatabaseId, Epoch, Message, MessageId, Position, RequestId,
        ShardId, Versionstamp,
    };

    use super::*;

    const DATABASE: DatabaseId = DatabaseId([1; 16]);

    fn key(sequence: u64) -> MessageKey {
        let position = Position::new(Epoch::FIRST, sequence);
        MessageKey {
            due_ms: sequence,
            id: MessageId { enqueued: Versionstamp::new(position, 0), index: 0 },
        }
    }

    /// A batch that enqueues a message and removes the one before.
    fn apply(state: &ShardState, sequence: u64) {
        apply_put(state, sequence, key(sequence));
    }

    fn apply_put(state: &ShardState, sequence: u64, put: MessageKey) {
        let MessageKey { due_ms, id } = put;
        let queue = QueueName::UNNAMED;
        let message = Message::default();
        let put = QueueEffect::PutMessage { queue: queue.clone(), id, due_ms, message };
        let MessageKey { due_ms, id } = key(sequence - 1);
        let effects = [put, QueueEffect::DeleteMessage { queue, id, due_ms }].map(Effect::Queue);
        let transaction = CommittedTransaction {
            request_id: RequestId([7; 16]),
            database: DATABASE,
            effects: effects.into(),
            refusal: None,
        };
        let position = Position::new(Epoch::FIRST, sequence);
        let batch = Batch { position, time_ms: sequence, transactions: vec![transaction] };
        state.apply(&[batch.into()], RaftApplied::default()).unwrap();
    }

    #[test]
    fn changes_come_in_order_and_all_that_wait_at_once() {
        let state = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
        let mut feed = Feed::with_room(&state, 4);
        assert_eq!(feed.present(), Ok(vec![]));
        let changes = |sequence| {
            let put = RowChange::Put(DATABASE.into(), key(sequence));
            [put, RowChange::Deleted(DATABASE.into(), key(sequence - 1))]
        };
        for first in [1, 3] {
            apply(&state, first);
            apply(&state, first + 1);
            let both = [changes(first), changes(first + 1)].concat();
            assert_eq!(feed.present(), Ok(both), "what was taken waits no more");
        }
    }

    /// By whatever transaction: after a failure, or by an operator.
    #[test]
    fn message_of_an_earlier_transaction_has_moved() {
        let state = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
        let mut feed = Feed::with_room(&state, 4);
        apply(&state, 1);
        feed.present().unwrap();
        let moved = MessageKey { due_ms: 900, ..key(1) };
        apply_put(&state, 2, moved);
        let changes =
            [RowChange::Moved(DATABASE.into(), moved), RowChange::Deleted(DATABASE.into(), key(1))];
        assert_eq!(feed.present(), Ok(changes.into()));
    }

    /// As a copy of another node's state does.
    #[test]
    fn task_is_told_when_another_state_takes_the_place_of_its_own() {
        let state = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
        apply(&state, 1);
        let mut feed = Feed::subscribe(&state);
        let other = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
        (1..=3).for_each(|sequence| apply(&other, sequence));
        let mut staged = state.stage().unwrap();
        staged.add(other.snapshot().unwrap().rows(&[], usize::MAX).unwrap()).unwrap();
        state.install(staged, RaftApplied::default(), Replace::Older).unwrap();
        assert_eq!(feed.present(), Err(Overrun));
    }

    #[test]
    fn task_that_is_too_far_behind_is_told_so() {
        let state = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
        let mut feed = Feed::with_room(&state, 4);
        (1..=4).for_each(|sequence| apply(&state, sequence));
        assert_eq!(feed.present(), Err(Overrun));
    }
}
