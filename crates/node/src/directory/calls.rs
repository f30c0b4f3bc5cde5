//! What the directory's leader asks of nodes, so many at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use meridian_failover::Event;
use meridian_types::{NodeId, Position, ShardId};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// The controller asks again.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Calls to one node that are under way. A region's end concerns all of its shards at once.
const CALLS_TO_A_NODE: usize = 64;

/// What is asked: not twice at a time, whatever the controller repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Question {
    Seal { shard: ShardId, planned: bool },
    Drain { shard: ShardId, source: NodeId, through: Position },
}

/// The calls of one term of leadership.
#[derive(Default)]
pub(super) struct Calls {
    open: Arc<Mutex<BTreeSet<(NodeId, Question)>>>,
    nodes: BTreeMap<NodeId, Arc<Semaphore>>,
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
        let turns = Arc::clone(self.nodes.entry(node).or_insert_with(|| Arc::new(Semaphore::new(CALLS_TO_A_NODE))));
        tokio::spawn(async move {
            let turn = turns.acquire().await;
            let answer = tokio::time::timeout(CALL_TIMEOUT, ask).await;
            drop(turn);
            open.lock().remove(&(node, question));
            match answer {
                Ok(Ok(Some(event))) => answered(event),
                Ok(Ok(None)) => {}
                Ok(Err(status)) => {
                    tracing::info!(node, message = status.message(), "a node refused the directory's call");
                }
                Err(_) => tracing::debug!(node, "a node does not answer the directory"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_node_is_asked_so_much_at_a_time_and_nothing_twice() {
        let (mut calls, present, most) =
            (Calls::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (answers, mut answered) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..2 {
            for shard in 0..500 {
                let (present, most, answers) = (Arc::clone(&present), Arc::clone(&most), answers.clone());
                let ask = async move {
                    most.fetch_max(present.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    present.fetch_sub(1, Ordering::SeqCst);
                    Ok(Some(Event::Tick))
                };
                let question = Question::Seal { shard: ShardId(shard), planned: false };
                calls.ask(7, question, ask, move |event| answers.send(event).unwrap());
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
}
