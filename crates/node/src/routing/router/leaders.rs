//! Who leads the shards, as far as one gateway knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_types::{NodeId, ShardId};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::budget::Budget;
use crate::routing::revival::Revival;

/// A shard of which no answer was had for so long, while tries failed, was out of service.
const OUTAGE: Duration = Duration::from_millis(300);
/// Between two times that all who wait are told, at least.
const BETWEEN_REVIVALS: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Served {
    hint: Option<NodeId>,
    /// The node that answered last as the leader, and when anybody did.
    by: Option<NodeId>,
    at: Duration,
    failed: bool,
    revived_at: Option<Duration>,
    revivals: watch::Sender<Revival>,
    budget: Arc<Budget>,
}

impl Served {
    fn answered(&mut self, now: Duration, node: NodeId, leader: NodeId) {
        let outage = self.failed && now.saturating_sub(self.at) >= OUTAGE;
        // What others say of the leader may be old, and change with each that is asked.
        let is_new = node == leader && self.by.is_some_and(|before| before != leader);
        self.hint = Some(leader);
        self.at = now;
        self.failed = false;
        if node == leader {
            self.by = Some(leader);
        }
        let lately = self.revived_at.is_some_and(|at| now.saturating_sub(at) < BETWEEN_REVIVALS);
        if (outage || is_new) && !lately {
            self.revived_at = Some(now);
            self.revivals.send_modify(|revival| {
                *revival = Revival { count: revival.count.wrapping_add(1), leader: Some(leader) };
            });
        }
    }
}

/// Hints, which may be wrong: whoever is asked says so.
#[derive(Default)]
pub(super) struct Leaders {
    shards: Mutex<BTreeMap<ShardId, Served>>,
}

impl Leaders {
    pub(super) fn hint(&self, shard: ShardId) -> Option<NodeId> {
        self.shards.lock().get(&shard)?.hint
    }

    /// What the shard may be asked, and news of it.
    pub(super) fn of(&self, shard: ShardId) -> (Arc<Budget>, watch::Receiver<Revival>) {
        let mut shards = self.shards.lock();
        let served = shards.entry(shard).or_default();
        (Arc::clone(&served.budget), served.revivals.subscribe())
    }

    /// Another node names this one.
    pub(super) fn named(&self, shard: ShardId, leader: NodeId) {
        self.shards.lock().entry(shard).or_default().hint = Some(leader);
    }

    /// A try at this node failed.
    pub(super) fn failed(&self, shard: ShardId, node: NodeId) {
        let mut shards = self.shards.lock();
        let served = shards.entry(shard).or_default();
        served.failed = true;
        if served.hint == Some(node) {
            served.hint = None;
        }
    }

    /// A read was answered by the node of this process, as its first try; for whoever could tell,
    /// by the word of this leader.
    pub(super) fn read_here(
        &self,
        now: Duration,
        shard: ShardId,
        node: NodeId,
        leader: Option<NodeId>,
    ) {
        let mut shards = self.shards.lock();
        let served = shards.entry(shard).or_default();
        served.budget.first_try(now);
        if let Some(leader) = leader {
            served.answered(now, node, leader);
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
    fn who_waits_is_told_of_a_new_leader_and_of_the_end_of_an_outage_and_of_no_single_answer() {
        let leaders = Leaders::default();
        let (_, mut news) = leaders.of(SHARD);
        let mut told = || std::mem::replace(&mut news, leaders.of(SHARD).1).has_changed().unwrap();
        let mut now = Duration::from_secs(1);
        leaders.answered(now, SHARD, 1, 1);
        assert!(!told());
        // Some fail and some do not, as under too much load.
        for _ in 0..1000 {
            now += Duration::from_millis(5);
            leaders.failed(SHARD, 1);
            leaders.answered(now, SHARD, 1, 1);
        }
        assert!(!told());
        // What a voter says that does not lead is a hint.
        leaders.answered(now, SHARD, 3, 2);
        assert_eq!(leaders.hint(SHARD), Some(2));
        assert!(!told());
        leaders.answered(now, SHARD, 2, 2);
        assert!(told(), "another leads");
        // Two that each say that they lead, as around the end of a term.
        leaders.answered(now + BETWEEN_REVIVALS / 2, SHARD, 1, 1);
        assert!(!told(), "it was told just now");
        now += BETWEEN_REVIVALS;
        leaders.answered(now, SHARD, 2, 2);
        assert!(told());
        leaders.failed(SHARD, 2);
        assert_eq!(leaders.hint(SHARD), None);
        leaders.answered(now + OUTAGE, SHARD, 2, 2);
        assert!(told(), "the same leads again");
    }
}
