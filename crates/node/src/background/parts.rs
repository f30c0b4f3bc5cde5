//! The parts that the duties of a node work with, and the logs that grow here.

use std::sync::Arc;

use meridian_storage::{Engine, HighWater};
use meridian_types::{NodeId, ShardId};
use meridian_vault::Folder;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::cluster_view::directory_shard::DIRECTORY_GROUP;
use crate::cluster_view::view::Directory;
use crate::directory_group::leader::DirectoryVoter;
use crate::host::clocks::Clocks;
use crate::host::disk::DiskGuard;
use crate::network::peers::PeerChannels;
use crate::replication::snapshot_transfer::StateExchange;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;

/// The parts that the duties share; each uses some of them.
pub(crate) struct DutyParts {
    pub(crate) node_id: NodeId,
    pub(crate) data_dir: Folder,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) shards: Arc<ShardTable>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    pub(crate) high_water: Arc<HighWater>,
    pub(crate) exchange: Arc<StateExchange>,
    pub(crate) directory_voter: Arc<RwLock<Option<Arc<DirectoryVoter>>>>,
    pub(crate) stop: CancellationToken,
    pub(crate) disk: Arc<DiskGuard>,
    pub(crate) clocks: Clocks,
    pub(crate) log_retention_bytes: u64,
    /// For change feeds.
    pub(crate) change_retention_bytes: u64,
}

/// Everything here whose log and request ids grow: also the directory's own group, which is not in
/// the table of shards.
#[derive(Clone)]
pub(crate) struct GrowingLogs {
    shards: Arc<ShardTable>,
    directory_voter: Arc<RwLock<Option<Arc<DirectoryVoter>>>>,
}

impl GrowingLogs {
    pub(crate) fn new(parts: &DutyParts) -> Self {
        let (shards, directory_voter) = (&parts.shards, &parts.directory_voter);
        Self { shards: Arc::clone(shards), directory_voter: Arc::clone(directory_voter) }
    }

    pub(crate) fn all(&self) -> Vec<(ShardId, LocalShard)> {
        let directory =
            self.directory_voter.read().as_ref().map(|directory| Arc::clone(&directory.voter));
        let directory = directory.map(|voter| (DIRECTORY_GROUP.shard, LocalShard::Voter(voter)));
        self.shards.all().into_iter().chain(directory).collect()
    }
}
