//! Readers of what changes a shard's state, any number of them: the lag of followers, and watches;
//! an archive is meant to begin here.
//!
//! The contract of a reader:
//! - It is called with every batch that is applied behind [`LogSubscription::begins_behind`], once,
//!   in order of sequences, by the thread that applies. All readers are called one after another,
//!   in the order in which they subscribed.
//! - When it is called, the batches are applied and readable, but need not be flushed: after a
//!   crash the next process may apply them again.
//! - It is called under the lock that keeps the calls in order (`in_order`), and under no other
//!   lock of the state. The next batch of the shard waits for it: it may not block, and it may not
//!   apply to the state. It may read the state, which may be ahead of what it is called with as
//!   soon as another batch is applied.
//! - It is told when a state takes the place of another ([`ShardState::install`]), once that one is
//!   read: what it is called with next is the batch behind that state, whose sequence may be any.
//!   The code that lets a shard go on in another epoch restarts the readers that count on
//!   contiguous sequences.
//! - It is called no more once its subscription is dropped, but for a call that has begun.

use std::sync::{Arc, Weak};

use meridian_proto::DecodedBatch;
use meridian_types::Position;
use parking_lot::{Mutex, MutexGuard};

use super::{Applied, ShardState};

/// A change of a state, as its readers are told.
#[derive(Debug, Clone, Copy)]
pub enum StateChange<'a> {
    /// These batches were applied.
    Applied(&'a [DecodedBatch]),
    /// Another state took its place, which reflects this.
    Replaced(&'a Applied),
}

pub(super) type Reader = dyn Fn(StateChange<'_>) + Send + Sync;

/// The readers, in the order of subscription.
#[derive(Default)]
pub(super) struct LogReaders {
    list: Arc<Mutex<List>>,
    /// Held while readers are called. Taken before the lock that keeps changes of the state apart
    /// is given back, so that no later batch comes first.
    in_order: Mutex<()>,
}

#[derive(Default)]
struct List {
    next_id: u64,
    readers: Vec<(u64, Arc<Reader>)>,
}

/// A reader's place among those of a state; it is given up when this is dropped. It keeps nothing
/// of the state alive.
#[must_use = "the reader is called as long as this lives"]
pub struct LogSubscription {
    list: Weak<Mutex<List>>,
    id: u64,
    begins_behind: Position,
}

impl LogSubscription {
    /// The position applied at the time of subscription: the reader is called with later batches.
    pub fn begins_behind(&self) -> Position {
        self.begins_behind
    }
}

impl Drop for LogSubscription {
    fn drop(&mut self) {
        if let Some(list) = self.list.upgrade() {
            // The reader is dropped behind the lock: it may own a subscription itself.
            let removed: Vec<_> =
                list.lock().readers.extract_if(.., |(id, _)| *id == self.id).collect();
            drop(removed);
        }
    }
}

impl LogReaders {
    /// The readers that subscribed by now, to be called with what was applied just before.
    pub(super) fn present(&self) -> Vec<Arc<Reader>> {
        self.list.lock().readers.iter().map(|(_, reader)| Arc::clone(reader)).collect()
    }

    pub(super) fn in_order(&self) -> MutexGuard<'_, ()> {
        self.in_order.lock()
    }
}

impl ShardState {
    /// Has `reader` called with all that changes the state from now on, as the contract in the head
    /// of this file says.
    pub fn subscribe(
        &self,
        reader: impl Fn(StateChange<'_>) + Send + Sync + 'static,
    ) -> LogSubscription {
        // No batch is between the position and the list: both change under `current`.
        let current = self.current.read();
        let mut list = self.log_readers.list.lock();
        let id = list.next_id;
        list.next_id += 1;
        list.readers.push((id, Arc::new(reader)));
        LogSubscription {
            list: Arc::downgrade(&self.log_readers.list),
            id,
            begins_behind: current.applied.position,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use meridian_types::{Batch, Epoch, ShardId};

    use super::*;
    use crate::{MemoryEngine, RaftApplied, Replace};

    fn state() -> Arc<ShardState> {
        Arc::new(ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap())
    }

    fn apply(state: &ShardState, sequences: std::ops::RangeInclusive<u64>) {
        let batch = |sequence| {
            let position = Position::new(Epoch(1), sequence);
            Batch { position, time_ms: sequence, transactions: Vec::new() }.into()
        };
        let batches: Vec<DecodedBatch> = sequences.map(batch).collect();
        state.apply(&batches, RaftApplied::default()).unwrap();
    }

    /// In the place of a sequence.
    const REPLACED: u64 = u64::MAX;

    /// A reader that keeps what it is called with.
    fn recording(state: &ShardState) -> (Arc<Mutex<Vec<u64>>>, LogSubscription) {
        let read = Arc::<Mutex<Vec<u64>>>::default();
        let kept = Arc::clone(&read);
        let subscription = state.subscribe(move |change| match change {
            StateChange::Applied(batches) => {
                kept.lock().extend(batches.iter().map(|decoded| decoded.batch.position.sequence));
            }
            StateChange::Replaced(_) => kept.lock().push(REPLACED),
        });
        (read, subscription)
    }

    #[test]
    fn two_readers_get_every_batch_behind_where_they_began_in_order_until_they_leave() {
        let state = state();
        apply(&state, 1..=2);
        let (first, of_first) = recording(&state);
        apply(&state, 3..=4);
        let (second, of_second) = recording(&state);
        apply(&state, 5..=6);
        drop(of_first);
        apply(&state, 7..=7);
        assert_eq!(*first.lock(), [3, 4, 5, 6]);
        assert_eq!(of_second.begins_behind(), Position::new(Epoch(1), 4));
        assert_eq!(*second.lock(), [5, 6, 7]);
    }

    #[test]
    fn a_reader_that_subscribes_while_batches_are_applied_misses_none_and_gets_none_twice() {
        let state = state();
        for round in 0..200 {
            let next = state.position().sequence + 1;
            let together = Barrier::new(2);
            let (read, subscription) = std::thread::scope(|scope| {
                scope.spawn(|| {
                    together.wait();
                    (next..next + 3).for_each(|sequence| apply(&state, sequence..=sequence));
                });
                together.wait();
                recording(&state)
            });
            let behind = subscription.begins_behind().sequence;
            assert_eq!(*read.lock(), Vec::from_iter(behind + 1..next + 3), "round {round}");
        }
    }

    #[test]
    fn a_reader_is_told_between_two_batches_that_another_state_took_the_place() {
        let (source, state) = (state(), state());
        apply(&source, 1..=5);
        apply(&state, 1..=2);
        let (read, _subscription) = recording(&state);
        apply(&state, 3..=3);
        let snapshot = source.snapshot().unwrap();
        let mut staged = state.stage().unwrap();
        staged.add(snapshot.rows(&[], usize::MAX).unwrap()).unwrap();
        state.install(staged, RaftApplied::default(), Replace::Older).unwrap();
        apply(&state, 6..=6);
        assert_eq!(*read.lock(), [3, REPLACED, 6]);
    }

    #[test]
    fn a_subscription_may_be_dropped_by_a_reader_and_outlive_its_state() {
        let state = state();
        let (read, subscription) = recording(&state);
        let own = Arc::new(Mutex::new(Some(subscription)));
        let leaving = state.subscribe(move |_| drop(own.lock().take()));
        apply(&state, 1..=1);
        apply(&state, 2..=2);
        assert_eq!(*read.lock(), [1]);
        drop(state);
        drop(leaving);
    }

    #[test]
    fn a_reader_may_read_the_state_that_it_is_called_with() {
        let state = state();
        let (weak, seen) = (Arc::downgrade(&state), Arc::new(Mutex::new(Vec::new())));
        let kept = Arc::clone(&seen);
        let _subscription = state.subscribe(move |_| {
            kept.lock().extend(weak.upgrade().map(|state| state.position().sequence));
        });
        apply(&state, 1..=3);
        assert_eq!(*seen.lock(), [3]);
    }
}
