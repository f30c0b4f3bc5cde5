//! This node's part in the directory group, as the cluster gives it.

use std::sync::Arc;

use meridian_consensus::{Peers, RaftGroup, RaftGroupOptions};
use meridian_directory::Cluster;
use meridian_failover::ControllerConfig;
use meridian_storage::{GroupId, ShardState, ShippedLog, StorageError, or_fatal};
use meridian_types::{EpochHistory, Position};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::cluster_view::directory_shard::DIRECTORY_GROUP;
use crate::directory_group::leader::{DirectoryVoter, LeaderParts};
use crate::host::disk::DiskGuard;
use crate::network::peers::ControlPeers;
use crate::placement::member::{VoteAuthority, run_member};
use crate::placement::parts::PlacementParts;
use crate::replication::progress::Followers;
use crate::shard::voter::{Voter, VoterParts};
use crate::time_budget::DIRECTORY_TIMING;
use crate::write::division::WriteBytes;
use crate::write::proposer::AdmitAll;

/// Changes of the directory that wait at this node: clients' writes do not take their room.
const CHANGES_BYTES: usize = 64 << 20;

pub(crate) struct DirectoryPart {
    pub(crate) keepers: Arc<PlacementParts>,
    /// The cluster that the first leader commits.
    pub(crate) first: Cluster,
    /// This node has never heard of a cluster, and is not to join one: it makes the group with the
    /// others.
    pub(crate) founds: bool,
    pub(crate) voter: Arc<RwLock<Option<Arc<DirectoryVoter>>>>,
}

impl DirectoryPart {
    /// Begins to vote, if the cluster says so and this node does not yet.
    pub(crate) async fn take(&self) -> Result<(), StorageError> {
        let parts = &self.keepers;
        let voters = parts.directory.known().cluster.directory_voters.clone();
        if !voters.contains(&parts.node_id) || self.voter.read().is_some() {
            return Ok(());
        }
        let (engine, high_water) = (Arc::clone(&parts.engine), Arc::clone(&parts.high_water));
        let (founds, founders) = (self.founds, voters.clone());
        // Off the runtime: it waits for the disk.
        let opened = tokio::task::spawn_blocking(move || {
            let state = Arc::new(ShardState::open(engine, DIRECTORY_GROUP.shard)?);
            let new = state.applied().raft.epoch.is_none();
            if new && founds {
                RaftGroup::form(
                    &state,
                    DIRECTORY_GROUP,
                    &founders,
                    Position::ZERO,
                    Some(&high_water),
                )?;
            }
            Ok::<_, StorageError>((state, new))
        });
        let (state, new) = opened.await.map_err(StorageError::cancelled)??;
        // Its snapshots are fetched like those of other shards.
        parts.shards.add(Arc::clone(&state), Followers::watch(&state));
        let group = RaftGroup::open(RaftGroupOptions {
            node_id: parts.node_id,
            group: DIRECTORY_GROUP,
            state,
            syncer: Arc::clone(&parts.syncer),
            high_water: Some(Arc::clone(&parts.high_water)),
            peers: Arc::new(ControlPeers(Arc::clone(&parts.peers))) as Arc<dyn Peers>,
            transfer: Arc::clone(&parts.transfer),
            timing: DIRECTORY_TIMING,
            log_cache: parts.log_cache.clone(),
        })
        .await?;
        parts.raft.register(group.clone());
        let voter = Arc::new(Voter::start(VoterParts {
            group,
            history: EpochHistory::first(),
            shipped: ShippedLog::open(&parts.engine, DIRECTORY_GROUP.shard)?,
            directory: Arc::clone(&parts.directory),
            peers: Arc::clone(&parts.peers),
            policy: Arc::new(AdmitAll),
            writes: WriteBytes::new("changes of the directory", CHANGES_BYTES),
            time: Arc::new(parts.clocks.clone()),
            reads: parts.reads.clone(),
            founder: new && self.founds,
        }));
        let stands_first = new && self.founds && voters.first() == Some(&parts.node_id);
        let peers = Arc::new(ControlPeers(Arc::clone(&parts.peers))) as Arc<dyn Peers>;
        run_member(&voter, voters, peers, VoteAuthority::ByOthers, stands_first);
        let leader = LeaderParts {
            voter: Arc::clone(&voter),
            directory: Arc::clone(&parts.directory),
            peers: Arc::clone(&parts.peers),
            first: self.first.clone(),
            config: ControllerConfig {
                own_node: Some(parts.node_id),
                ..ControllerConfig::default()
            },
        };
        let stop: CancellationToken = voter.stop.clone();
        *self.voter.write() = Some(DirectoryVoter::start(leader, &stop));
        Ok(())
    }

    /// Stops voting, if the cluster says so. Not by a cluster that was never committed.
    async fn leave(&self) {
        let known = self.keepers.directory.known();
        if known.cluster.version == 0
            || known.cluster.directory_voters.contains(&self.keepers.node_id)
        {
            return;
        }
        let voter = self.voter.read().clone();
        // The leader takes it out of the group first.
        let Some(voter) =
            voter.filter(|voter| !voter.voter.group.voters().contains(&self.keepers.node_id))
        else {
            return;
        };
        *self.voter.write() = None;
        // First, so that no call of another member meets it while it stops.
        self.keepers.raft.unregister(DIRECTORY_GROUP);
        voter.voter.retire().await;
    }

    /// Until the node stops.
    pub(crate) async fn keep(self) {
        let mut known = self.keepers.directory.watch();
        // Leaving waits for the group, whose changes are not announced here.
        let mut ticks = tokio::time::interval(std::time::Duration::from_secs(1));
        loop {
            tokio::select! {
                () = self.keepers.stop.cancelled() => return,
                _ = ticks.tick() => {}
                changed = known.changed() => if changed.is_err() { return },
            }
            or_fatal(self.take().await);
            self.leave().await;
        }
    }
}

/// Whether the batches of this group's leader are not appended, for want of room on the disk.
pub(crate) fn refuses_batches_of(group: GroupId, disk: &DiskGuard) -> bool {
    if group == DIRECTORY_GROUP { disk.takes_no_change() } else { disk.takes_nothing() }
}

#[cfg(test)]
mod tests {
    use meridian_types::ShardId;

    use super::*;

    #[test]
    fn the_directory_is_followed_on_a_full_disk() {
        let (guard, epoch) = (DiskGuard::default(), DIRECTORY_GROUP.epoch);
        let shard = GroupId { shard: ShardId(1), epoch };
        assert!(!refuses_batches_of(shard, &guard));
        guard.set_takes_nothing(true);
        assert!(refuses_batches_of(shard, &guard));
        assert!(!refuses_batches_of(DIRECTORY_GROUP, &guard));
        guard.set_takes_no_change(true);
        assert!(refuses_batches_of(DIRECTORY_GROUP, &guard));
    }
}
