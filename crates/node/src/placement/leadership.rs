//! The leaders of the shards that this node votes in: a leader hands over where its epoch lease runs low,
//! and to the voter that the cluster prefers.

use std::sync::Arc;
use std::time::Duration;

use meridian_types::{NodeId, ShardId};
use tokio::sync::Notify;

use crate::cluster_view::view::Directory;
use crate::replication::progress::FollowerLag;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;
use crate::shard::voter::Voter;
use crate::time_budget::{LEASE_GOOD, LEASE_LOW};

/// A preferred leader that lags by more is not handed the leadership.
const HANDOVER_LAG_BATCHES: u64 = 100;

/// The leadership of this node's shards.
pub(crate) struct Leadership {
    node_id: NodeId,
    shards: Arc<ShardTable>,
    directory: Arc<Directory>,
    /// To be looked at: this node leads with a lease that is low.
    lease_low: Notify,
}

impl Leadership {
    pub(crate) fn new(node_id: NodeId, shards: Arc<ShardTable>, directory: Arc<Directory>) -> Self {
        Self { node_id, shards, directory, lease_low: Notify::new() }
    }

    /// Whether another voter may hand the leadership to this one.
    pub(crate) fn may_lead(&self, shard: ShardId, voter: &Voter) -> bool {
        voter.group.votes() && self.keeps_lease(shard, voter, LEASE_GOOD)
    }

    /// Spreads leaders as the cluster prefers, once the preferred voter is well.
    pub(crate) async fn hand_over_to_preferred(&self) {
        let known = self.directory.known();
        for (id, shard) in &self.shards.all() {
            let LocalShard::Voter(voter) = shard else { continue };
            let preferred = known.cluster.shards.get(id).and_then(|shard| shard.preferred_leader);
            let Some(preferred) = preferred.filter(|preferred| *preferred != self.node_id) else {
                continue;
            };
            if voter.group.leadership().is_err() || !self.is_well(*id, preferred, voter) {
                continue;
            }
            tracing::info!(shard = %id, to = %preferred, "handing leadership to the preferred voter");
            if let Err(error) = voter.group.transfer_leadership(preferred).await {
                tracing::warn!(shard = %id, %error, "leadership could not be handed over");
            }
        }
    }

    fn is_well(&self, shard: ShardId, node: NodeId, voter: &Voter) -> bool {
        let applied = voter.state.position().sequence;
        let Some(followers) = self.shards.followers(&shard) else { return false };
        let near = |durable: u64| durable + HANDOVER_LAG_BATCHES >= applied;
        let is_near = |follower: &FollowerLag| {
            follower.node == node && follower.may_lead && near(follower.durable)
        };
        followers.lags().iter().any(is_near) && followers.may_take_over(node, &voter.group.voters())
    }

    /// Whether this node's lease on the voter's epoch has so much time to go.
    fn keeps_lease(&self, shard: ShardId, voter: &Voter, at_least: Duration) -> bool {
        let epoch = voter.group.id().epoch;
        self.directory
            .lease_remaining(shard)
            .is_some_and(|(leased, left)| leased == epoch && left >= at_least)
    }

    /// Has the leadership handed over where this node leads with a lease that is low.
    pub(crate) fn look_at_leases(&self) {
        let is_low = |(id, shard): &(ShardId, LocalShard)| match shard {
            LocalShard::Voter(voter) => {
                voter.group.leadership().is_ok() && !self.keeps_lease(*id, voter, LEASE_LOW)
            }
            LocalShard::Replica(_) => false,
        };
        if self.shards.all().iter().any(is_low) {
            self.lease_low.notify_one();
        }
    }

    /// Waits until a look has found a lease that is low, since the last wait.
    pub(crate) async fn lease_is_low(&self) {
        self.lease_low.notified().await;
    }

    /// A leader that the directory does not hear may soon answer no caller: another voter may. It
    /// has nothing to lose if that one is lost too.
    pub(crate) async fn hand_over_without_lease(&self) {
        for (id, shard) in &self.shards.all() {
            let LocalShard::Voter(voter) = shard else { continue };
            if voter.group.leadership().is_err() || self.keeps_lease(*id, voter, LEASE_LOW) {
                continue;
            }
            let Some(heir) = self.shards.followers(id).and_then(|followers| followers.heir())
            else {
                continue;
            };
            tracing::warn!(shard = %id, to = %heir, "this leader loses its lease: handing over");
            if let Err(error) = voter.group.transfer_leadership(heir).await {
                tracing::warn!(shard = %id, %error, "leadership could not be handed over");
            }
        }
    }
}
