//! Tells every other node how far this one is, what it may do, and what room it has.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use meridian_proto::shipping::{AnnounceRequest, Status};
use meridian_types::NodeId;

use crate::background::announcements::Announcements;
use crate::background::parts::DutyParts;
use crate::cluster_view::view::Directory;
use crate::host::clock::wall_ms;
use crate::host::clocks::Clocks;
use crate::host::disk::{DiskGuard, Room};
use crate::network::peers::PeerChannels;
use crate::placement::leadership::Leadership;
use crate::replication::comparison::checkpoint;
use crate::replication::snapshot_transfer::StateExchange;
use crate::replication::wire::status_to_wire;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;

/// The status of this node, as others are to know it.
pub(crate) struct NodeStatus {
    node_id: NodeId,
    shards: Arc<ShardTable>,
    directory: Arc<Directory>,
    peers: Arc<PeerChannels>,
    exchange: Arc<StateExchange>,
    disk: Arc<DiskGuard>,
    clocks: Clocks,
    leadership: Arc<Leadership>,
    announcements: Announcements,
}

impl NodeStatus {
    pub(crate) fn new(parts: &DutyParts, leadership: Arc<Leadership>) -> Self {
        Self {
            node_id: parts.node_id,
            shards: Arc::clone(&parts.shards),
            directory: Arc::clone(&parts.directory),
            peers: Arc::clone(&parts.peers),
            exchange: Arc::clone(&parts.exchange),
            disk: Arc::clone(&parts.disk),
            clocks: parts.clocks.clone(),
            leadership,
            announcements: Announcements::default(),
        }
    }

    /// Tells every other node where this one stands.
    pub(crate) fn announce(&self) {
        let statuses = self.shards.all().into_iter().map(|(id, shard)| {
            let status = status_to_wire(id, &shard.own_status(self.node_id));
            let may_lead = match &shard {
                LocalShard::Voter(voter) => self.leadership.may_lead(id, voter),
                LocalShard::Replica(_) => false,
            };
            // Also a voter that its leader seeds: all nodes keep the log for it meanwhile.
            let fetching_snapshot = status.fetching_snapshot || self.exchange.is_fetching(id);
            Status { may_lead, fetching_snapshot, ..status }
        });
        let statuses = statuses.collect();
        let checkpoints =
            self.shards.all().into_iter().map(|(_, shard)| checkpoint(self.node_id, shard.state()));
        let room = self.disk.room();
        let request = AnnounceRequest {
            statuses,
            disk_full: room != Room::Enough,
            disk_exhausted: room == Room::Exhausted,
            checkpoints: checkpoints.collect(),
            node_id: self.node_id.0,
            // When it is sent.
            clock_ms: 0,
        };
        let known = self.directory.known();
        let others = || {
            let nodes = known.cluster.present_nodes().map(|(id, _)| id);
            nodes.filter(|node| *node != self.node_id)
        };
        self.clocks.set_others(others());
        let with = known
            .cluster
            .shards
            .values()
            .map(|shard| &shard.voters)
            .filter(|voters| voters.contains(&self.node_id));
        let with: BTreeSet<NodeId> = with.flatten().copied().collect();
        let others = others().map(|node| (node, with.contains(&node)));
        self.announcements.say((Instant::now(), wall_ms()), request, others, &self.peers);
    }
}
