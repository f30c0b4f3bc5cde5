//! Calls of the directory's leader to nodes, so many to each at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_failover::Event;
use meridian_types::{NodeId, Position, ShardId};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::time_budget::{DIRECTORY_CALL_TIMEOUT, TURN_TIMEOUT};

/// Calls of a kind to one node that are under way. A region's end concerns all of its shards at
/// once.
const CALLS_TO_A_NODE: usize = 64;

/// The subject of a call: not asked twice at a time, whatever the controller repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Question {
    Seal { shard: ShardId, planned: bool },
    Drain { shard: ShardId, source: NodeId, through: Position },
}

/// The calls of one term of leadership, and no longer: to drop them ends them.
#[derive(Default)]
pub(super) struct Calls {
    open: Arc<Mutex<BTreeSet<(NodeId, Question)>>>,
    /// Seals by themselves: drains, which pull for seconds, keep none of them back.
    turns: BTreeMap<(NodeId, bool), Arc<Semaphore>>,
    tasks: JoinSet<()>,
}

impl Calls {
    /// Asks, unless that is being asked; the answer goes to `answered`. No answer is no event.
    pub(super) fn ask<F>(
        &mut self,
        node: NodeId,
        question: Question,
        ask: F,
        answered: impl FnOnce(Event) + Send + 'static,
    ) where
        F: Future<Output = Result<Option<Event>, tonic::Status>> + Send + 'static,
    {
        if !self.open.lock().insert((node, question)) {
            return;
        }
        let open = Arc::clone(&self.open);
        let kind = (node, matches!(question, Question::Seal { .. }));
        let turns = Arc::clone(
            self.turns.entry(kind).or_insert_with(|| Arc::new(Semaphore::new(CALLS_TO_A_NODE))),
        );
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(async move {
            let Ok(turn) = tokio::time::timeout(TURN_TIMEOUT, turns.acquire()).await else {
                open.lock().remove(&(node, question));
                return;
            };
            let answer = tokio::time::timeout(DIRECTORY_CALL_TIMEOUT, ask).await;
            drop(turn);
            open.lock().remove(&(node, question));
            match answer {
                Ok(Ok(Some(event))) => answered(event),
                Ok(Ok(None)) => {}
                Ok(Err(status)) => {
                    tracing::info!(
                        %node,
                        message = status.message(),
                        "a node refused the directory's call"
                    );
                }
                Err(_) => tracing::debug!(%node, "a node does not answer the directory"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_node_is_asked_so_much_at_a_time_and_nothing_twice() {
        let (mut calls, present, most) =
            (Calls::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (answers, mut answered) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..2 {
            for shard in 0..500 {
                let (present, most, answers) =
                    (Arc::clone(&present), Arc::clone(&most), answers.clone());
                let ask = async move {
                    most.fetch_max(present.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    present.fetch_sub(1, Ordering::SeqCst);
                    Ok(Some(Event::Tick))
                };
                let question = Question::Seal { shard: ShardId(shard), planned: false };
                calls.ask(NodeId(7), question, ask, move |event| answers.send(event).unwrap());
            }
        }
        drop(answers);
        let mut count = 0;
        while answered.recv().await.is_some() {
            count += 1;
        }
        assert_eq!((count, most.load(Ordering::SeqCst)), (500, CALLS_TO_A_NODE));
        assert!(calls.open.lock().is_empty());
    }

    #[tokio::test]
    async fn a_call_that_has_no_turn_is_dropped_and_drains_keep_no_seal_back() {
        let mut calls = Calls::default();
        let (answers, mut answered) = tokio::sync::mpsc::unbounded_channel();
        let asked = Arc::new(AtomicUsize::new(0));
        for number in 0..=CALLS_TO_A_NODE {
            let asked = Arc::clone(&asked);
            let ask = async move {
                asked.fetch_add(1, Ordering::SeqCst);
                std::future::pending().await
            };
            let shard = ShardId(u32::try_from(number).unwrap());
            calls.ask(
                NodeId(7),
                Question::Drain { shard, source: NodeId(8), through: Position::ZERO },
                ask,
                |_| {},
            );
        }
        let question = Question::Seal { shard: ShardId(1), planned: false };
        calls.ask(NodeId(7), question, async { Ok(Some(Event::Tick)) }, move |event| {
            answers.send(event).unwrap()
        });
        assert!(answered.recv().await.is_some());
        assert_eq!(calls.open.lock().len(), CALLS_TO_A_NODE + 1, "no drain has ended");
        let shard = ShardId(u32::try_from(CALLS_TO_A_NODE).unwrap());
        let last =
            (NodeId(7), Question::Drain { shard, source: NodeId(8), through: Position::ZERO });
        while calls.open.lock().contains(&last) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(
            asked.load(Ordering::SeqCst),
            CALLS_TO_A_NODE,
            "it was asked when it had waited for too long"
        );
    }

    #[tokio::test]
    async fn calls_end_with_the_term() {
        let mut calls = Calls::default();
        let held = Arc::new(());
        let holds = Arc::clone(&held);
        let ask = async move {
            let _holds = holds;
            std::future::pending().await
        };
        calls.ask(NodeId(7), Question::Seal { shard: ShardId(1), planned: false }, ask, |_| {});
        tokio::task::yield_now().await;
        drop(calls);
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
