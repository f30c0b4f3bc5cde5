//! The parts that the reconcilers of all shards share, and that the node's report reads.

use std::collections::HashMap;
use std::sync::Arc;

use meridian_consensus::{LogCache, RaftService, RaftTiming, StateTransfer};
use meridian_memory::ByteBudget;
use meridian_storage::{Engine, HighWater, Syncer};
use meridian_types::{Epoch, NodeId, ShardId};
use meridian_vault::Folder;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::cluster_view::view::Directory;
use crate::host::clocks::Clocks;
use crate::host::disk::DiskGuard;
use crate::network::peers::PeerChannels;
use crate::read::execution::Reads;
use crate::replication::carry_over::CarryLimits;
use crate::shard::table::ShardTable;
use crate::write::division::WriteBytes;

/// The parts that a node's shards are opened with.
pub(crate) struct PlacementParts {
    pub(crate) node_id: NodeId,
    pub(crate) data_dir: Folder,
    /// Of each shard's log, for change feeds.
    pub(crate) change_retention_bytes: u64,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) syncer: Arc<Syncer>,
    pub(crate) high_water: Arc<HighWater>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    pub(crate) transfer: Arc<dyn StateTransfer>,
    pub(crate) raft: RaftService,
    pub(crate) shards: Arc<ShardTable>,
    pub(crate) disk: Arc<DiskGuard>,
    /// For writes that wait at this node.
    pub(crate) writes: WriteBytes,
    pub(crate) clocks: Clocks,
    pub(crate) reads: Reads,
    /// For the compression of streams.
    pub(crate) streams: ByteBudget,
    pub(crate) log_cache: LogCache,
    pub(crate) timing: RaftTiming,
    /// The epoch of each shard up to which the logs of groups before were examined.
    pub(crate) examined: Mutex<HashMap<ShardId, Epoch>>,
    pub(crate) stop: CancellationToken,
}

impl PlacementParts {
    pub(crate) fn carry_limits(&self) -> CarryLimits<'_> {
        CarryLimits::new(self.change_retention_bytes, &self.data_dir)
    }
}
