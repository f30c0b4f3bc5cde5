//! Which epoch leases may still be held, by the clock of the grantor.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_types::{Epoch, NodeId, ShardId};

/// Which leases may still be held, by the grantor's clock.
///
/// Kept for every epoch by itself: a lease that says nothing of a shard takes back nothing that was
/// granted before.
#[derive(Debug)]
pub(super) struct Grants {
    /// A lease is out for so long after it was granted: the TTL, and what clocks may differ over
    /// it.
    out_for: Duration,
    /// Until then every node may hold a lease that a predecessor granted.
    unknown_until: Duration,
    granted_at: BTreeMap<(ShardId, Epoch, NodeId), Duration>,
}

impl Grants {
    pub(super) fn new(out_for: Duration, started: Duration) -> Self {
        Self {
            out_for,
            unknown_until: started.saturating_add(out_for),
            granted_at: BTreeMap::new(),
        }
    }

    pub(super) fn grant(&mut self, now: Duration, node: NodeId, shards: &[(ShardId, Epoch)]) {
        for (shard, epoch) in shards {
            self.granted_at.insert((*shard, *epoch, node), now);
        }
    }

    /// Whether any node may still hold a lease that a predecessor granted.
    pub(super) fn are_unknown(&self, now: Duration) -> bool {
        now < self.unknown_until
    }

    pub(super) fn granted_at(
        &self,
        node: NodeId,
        shard: ShardId,
        epoch: Epoch,
    ) -> Option<Duration> {
        self.granted_at.get(&(shard, epoch, node)).copied()
    }

    /// Of `nodes`, which is all that ever were, those that may hold a lease on `epoch`.
    pub(super) fn may_hold<'a>(
        &'a self,
        now: Duration,
        shard: ShardId,
        epoch: Epoch,
        nodes: impl Iterator<Item = NodeId> + 'a,
    ) -> impl Iterator<Item = NodeId> + 'a {
        let is_out = move |node| {
            self.granted_at(node, shard, epoch).is_some_and(|at| now < at + self.out_for)
        };
        nodes.filter(move |node| self.are_unknown(now) || is_out(*node))
    }

    /// Forgets what has run out.
    pub(super) fn forget(&mut self, now: Duration) {
        let out_for = self.out_for;
        self.granted_at.retain(|_, at| now < *at + out_for);
    }
}
