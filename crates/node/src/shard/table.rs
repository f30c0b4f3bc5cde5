//! The shards of this node: the state of each, what the node is in it, and what is known of its
//! followers.

use std::collections::BTreeMap;
use std::sync::Arc;

use meridian_storage::ShardState;
use meridian_types::ShardId;
use parking_lot::RwLock;

use crate::replication::comparison::Comparison;
use crate::replication::progress::Followers;
use crate::replication::snapshot_transfer::States;
use crate::shard::local::LocalShard;
use crate::write::stored_sizes::StoredSizes;

/// The shards of this node, as they are at present.
#[derive(Default)]
pub(crate) struct ShardTable {
    shards: RwLock<BTreeMap<ShardId, Entry>>,
    stored: Arc<StoredSizes>,
}

#[derive(Clone)]
struct Entry {
    state: Arc<ShardState>,
    followers: Arc<Followers>,
    comparison: Arc<Comparison>,
    /// `None` while the node changes its part in the shard.
    local: Option<LocalShard>,
}

impl ShardTable {
    pub(crate) fn add(&self, state: Arc<ShardState>, followers: Arc<Followers>) {
        self.shards.write().insert(
            state.shard(),
            Entry { state, followers, comparison: Arc::default(), local: None },
        );
    }

    /// How much the databases store whose shards this node leads.
    pub(crate) fn stored(&self) -> &Arc<StoredSizes> {
        &self.stored
    }

    /// Sets the part of this node in the shard from now on.
    pub(crate) fn set(&self, shard: ShardId, local: Option<LocalShard>) {
        if let Some(entry) = self.shards.write().get_mut(&shard) {
            entry.local = local;
        }
    }

    pub(crate) fn get(&self, shard: &ShardId) -> Option<LocalShard> {
        self.shards.read().get(shard)?.local.clone()
    }

    pub(crate) fn followers(&self, shard: &ShardId) -> Option<Arc<Followers>> {
        self.shards.read().get(shard).map(|entry| Arc::clone(&entry.followers))
    }

    pub(crate) fn comparison(&self, shard: &ShardId) -> Option<Arc<Comparison>> {
        self.shards.read().get(shard).map(|entry| Arc::clone(&entry.comparison))
    }

    pub(crate) fn state(&self, shard: &ShardId) -> Option<Arc<ShardState>> {
        self.shards.read().get(shard).map(|entry| Arc::clone(&entry.state))
    }

    /// The shards that the node has a part in now.
    pub(crate) fn all(&self) -> Vec<(ShardId, LocalShard)> {
        let shards = self.shards.read();
        shards.iter().filter_map(|(id, entry)| Some((*id, entry.local.clone()?))).collect()
    }

    pub(crate) fn states(&self) -> Vec<Arc<ShardState>> {
        self.shards.read().values().map(|entry| Arc::clone(&entry.state)).collect()
    }
}

impl States for ShardTable {
    fn state(&self, shard: ShardId) -> Option<Arc<ShardState>> {
        Self::state(self, &shard)
    }
}
