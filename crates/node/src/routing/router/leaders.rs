//! Which nodes lead the shards, as far as one gateway knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_types::{NodeId, ShardId};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::budget::Budget;

/// A shard of which no answer was had for so long, while tries failed, was out of service.
const OUTAGE: Duration = Duration::from_millis(300);
/// Between two times that all waiting operations are told, at least.
const BETWEEN_NEWS: Duration = Duration::from_millis(50);

#[derive(Default)]
struct ShardRecord {
    hint: Option<NodeId>,
    /// The node that answered last as the leader, and when any node did.
    by: Option<NodeId>,
    at: Duration,
    failed: bool,
    found_at: Option<Duration>,
    /// Tells the operations that wait for the shard that it is served, by this leader: once for
    /// each leader that is found, or each end of an outage.
    found: watch::Sender<Option<NodeId>>,
    budget: Arc<Budget>,
}

impl ShardRecord {
    fn answered(&mut self, now: Duration, node: NodeId, leader: NodeId) {
        let outage = self.failed && now.saturating_sub(self.at) >= OUTAGE;
        // The word of other nodes on the leader may be old, and change with each node.
        let is_new = node == leader && self.by.is_some_and(|before| before != leader);
        self.hint = Some(leader);
        self.at = now;
        self.failed = false;
        if node == leader {
            self.by = Some(leader);
        }
        let lately = self.found_at.is_some_and(|at| now.saturating_sub(at) < BETWEEN_NEWS);
        if (outage || is_new) && !lately {
            self.found_at = Some(now);
            self.found.send_replace(Some(leader));
        }
    }
}

/// Hints, which may be wrong: a node that is asked says so.
#[derive(Default)]
pub(super) struct Leaders {
    shards: Mutex<BTreeMap<ShardId, ShardRecord>>,
}

impl Leaders {
    pub(super) fn hint(&self, shard: ShardId) -> Option<NodeId> {
        self.shards.lock().get(&shard)?.hint
    }

    /// The shard's budget for further tries, and news of its leader.
    pub(super) fn subscribe(
        &self,
        shard: ShardId,
    ) -> (Arc<Budget>, watch::Receiver<Option<NodeId>>) {
        let mut shards = self.shards.lock();
        let record = shards.entry(shard).or_default();
        (Arc::clone(&record.budget), record.found.subscribe())
    }

    /// Another node names this one.
    pub(super) fn named(&self, shard: ShardId, leader: NodeId) {
        self.shards.lock().entry(shard).or_default().hint = Some(leader);
    }

    /// A try at this node failed.
    pub(super) fn failed(&self, shard: ShardId, node: NodeId) {
        let mut shards = self.shards.lock();
        let record = shards.entry(shard).or_default();
        record.failed = true;
        if record.hint == Some(node) {
            record.hint = None;
        }
    }

    /// A read was answered by the node of this process, as its first try; where it knows a leader,
    /// by the word of that one.
    pub(super) fn answered_here(
        &self,
        now: Duration,
        shard: ShardId,
        node: NodeId,
        leader: Option<NodeId>,
    ) {
        let mut shards = self.shards.lock();
        let record = shards.entry(shard).or_default();
        record.budget.first_try(now);
        if let Some(leader) = leader {
            record.answered(now, node, leader);
        }
    }

    /// `node` answered, as it can only while the shard has a leader; this one, as far as it knows.
    pub(super) fn answered(&self, now: Duration, shard: ShardId, node: NodeId, leader: NodeId) {
        self.shards.lock().entry(shard).or_default().answered(now, node, leader);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(1);

    #[test]
    fn new_leaders_and_ends_of_outages_are_told_and_single_answers_are_not() {
        let leaders = Leaders::default();
        let (_, mut news) = leaders.subscribe(SHARD);
        let mut told =
            || std::mem::replace(&mut news, leaders.subscribe(SHARD).1).has_changed().unwrap();
        let mut now = Duration::from_secs(1);
        leaders.answered(now, SHARD, NodeId(1), NodeId(1));
        assert!(!told());
        // Some fail and some do not, as under too much load.
        for _ in 0..1000 {
            now += Duration::from_millis(5);
            leaders.failed(SHARD, NodeId(1));
            leaders.answered(now, SHARD, NodeId(1), NodeId(1));
        }
        assert!(!told());
        // The word of a voter that does not lead is a hint.
        leaders.answered(now, SHARD, NodeId(3), NodeId(2));
        assert_eq!(leaders.hint(SHARD), Some(NodeId(2)));
        assert!(!told());
        leaders.answered(now, SHARD, NodeId(2), NodeId(2));
        assert!(told(), "another leads");
        // Two that each say that they lead, as around the end of a term.
        leaders.answered(now + BETWEEN_NEWS / 2, SHARD, NodeId(1), NodeId(1));
        assert!(!told(), "it was told just now");
        now += BETWEEN_NEWS;
        leaders.answered(now, SHARD, NodeId(2), NodeId(2));
        assert!(told());
        leaders.failed(SHARD, NodeId(2));
        assert_eq!(leaders.hint(SHARD), None);
        leaders.answered(now + OUTAGE, SHARD, NodeId(2), NodeId(2));
        assert!(told(), "the same leads again");
    }
}
