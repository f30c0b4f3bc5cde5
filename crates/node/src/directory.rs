use std::sync::Arc;

use meridian_gateway::{Catalogue, Grant, StaticCatalogue};
use meridian_types::{DatabaseId, Epoch, ShardId};

use crate::topology::Topology;

/// What the cluster is at present, as this node knows it. Answered from memory.
pub trait Directory: Send + Sync + 'static {
    fn topology(&self) -> Arc<Topology>;

    /// The shard's epoch; `None` if there is no such shard.
    fn epoch(&self, shard: ShardId) -> Option<Epoch>;

    /// Whether this node may serve strong operations of the shard in this epoch right now.
    fn holds_lease(&self, shard: ShardId, epoch: Epoch) -> bool;
}

/// A directory that is the configuration: epochs never change, so their lease never ends.
pub struct StaticDirectory {
    topology: Arc<Topology>,
    catalogue: StaticCatalogue,
}

impl StaticDirectory {
    pub fn new(topology: Topology, catalogue: StaticCatalogue) -> Self {
        Self { topology: Arc::new(topology), catalogue }
    }
}

impl Directory for StaticDirectory {
    fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology)
    }

    fn epoch(&self, shard: ShardId) -> Option<Epoch> {
        self.topology.shards.get(&shard).map(|shard| shard.epoch)
    }

    fn holds_lease(&self, shard: ShardId, epoch: Epoch) -> bool {
        self.epoch(shard) == Some(epoch)
    }
}

impl Catalogue for StaticDirectory {
    fn default_database(&self) -> Option<DatabaseId> {
        self.catalogue.default_database()
    }

    fn by_name(&self, name: &str) -> Option<DatabaseId> {
        self.catalogue.by_name(name)
    }

    fn contains(&self, database: DatabaseId) -> bool {
        self.catalogue.contains(database)
    }

    fn authorize(&self, bearer: &str) -> Option<Grant> {
        self.catalogue.authorize(bearer)
    }
}
