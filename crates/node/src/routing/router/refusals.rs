//! Which nodes have refused to read a shard lately.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_types::{Consistency, NodeId, ShardId};
use parking_lot::Mutex;

use crate::network::call_failure::Failed;

/// A node that refused a read of a shard is asked after the others for so long; then by one read at
/// a time. A node refuses for as long as its copy takes, and others are near.
const REFUSES: Duration = Duration::from_secs(1);

/// Of one shard, since a node may have what another lacks; and of one consistency: a node that
/// cannot tell how far the shard is may well serve eventual reads.
#[derive(Default)]
pub(super) struct Refusals {
    at: Mutex<BTreeMap<(NodeId, ShardId, bool), Duration>>,
}

fn key(node: NodeId, shard: ShardId, consistency: Consistency) -> (NodeId, ShardId, bool) {
    (node, shard, consistency == Consistency::Strong)
}

impl Refusals {
    /// How a read ended there. A failure that says nothing of the node's readiness changes
    /// nothing.
    pub(super) fn record(
        &self,
        now: Duration,
        node: NodeId,
        shard: ShardId,
        consistency: Consistency,
        result: Result<(), &Failed>,
    ) {
        let key = key(node, shard, consistency);
        match result {
            Ok(()) => drop(self.at.lock().remove(&key)),
            Err(Failed::NotDone(_) | Failed::NotLeader(_)) => drop(self.at.lock().insert(key, now)),
            Err(Failed::Busy(_) | Failed::Unreachable(_) | Failed::Unknown(_)) => {}
        }
    }

    /// Whether it refused the last of such reads that it answered.
    pub(super) fn has_refused(
        &self,
        node: NodeId,
        shard: ShardId,
        consistency: Consistency,
    ) -> bool {
        self.at.lock().contains_key(&key(node, shard, consistency))
    }

    /// Whether others are to be asked first, by a caller that asks this one if not: one read at a
    /// time finds out whether it serves by now.
    pub(super) fn avoid(
        &self,
        now: Duration,
        node: NodeId,
        shard: ShardId,
        consistency: Consistency,
    ) -> bool {
        let mut refusals = self.at.lock();
        let Some(at) = refusals.get_mut(&key(node, shard, consistency)) else { return false };
        if now.saturating_sub(*at) < REFUSES {
            return true;
        }
        *at = now;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_that_refused_is_asked_after_the_others_and_later_by_one_read_at_a_time() {
        let (refusals, strong, mut now) =
            (Refusals::default(), Consistency::Strong, Duration::from_secs(9));
        let avoid =
            |now, shard, consistency| refusals.avoid(now, NodeId(1), ShardId(shard), consistency);
        let refused = Failed::NotDone("it has not caught up".to_owned());
        refusals.record(now, NodeId(1), ShardId(1), strong, Err(&refused));
        assert!(avoid(now, 1, strong));
        assert!(!avoid(now, 2, strong) && !avoid(now, 1, Consistency::Eventual));
        now += REFUSES;
        assert_eq!((avoid(now, 1, strong), avoid(now, 1, strong)), (false, true));
        refusals.record(
            now,
            NodeId(1),
            ShardId(1),
            strong,
            Err(&Failed::Unknown("no answer".to_owned())),
        );
        assert!(avoid(now, 1, strong));
        refusals.record(now, NodeId(1), ShardId(1), strong, Ok(()));
        assert!(!avoid(now, 1, strong) && !avoid(now, 1, strong));
    }
}
