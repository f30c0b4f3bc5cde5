//! What the cluster is: regions, nodes, shards and databases. Pure data, valid as soon as it
//! exists: [`Topology::new`] and [`Topology::dev`] refuse what cannot work or would break a
//! promise.

mod address;
mod dev;
mod invalid;
mod validation;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use meridian_types::{DatabaseId, Epoch, NodeId, ShardId};

pub(crate) use address::Address;
pub use address::InvalidAddress;
pub use dev::{DEV_DEFAULT_DATABASE, DEV_SECOND_DATABASE, DevLayout};
pub use invalid::{AddressField, InvalidTopology};

/// The cluster. The voters of every shard lie in distinct data centers of its primary region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// The id of the cluster, once that is known.
    pub cluster: Option<String>,
    /// In the order of the configuration. A region may have gateways only, and no nodes.
    pub regions: Vec<String>,
    pub nodes: BTreeMap<NodeId, NodeInfo>,
    pub shards: BTreeMap<ShardId, ShardInfo>,
    pub databases: BTreeMap<DatabaseId, DatabaseInfo>,
    /// What clients open at `/`.
    pub default_database: Option<DatabaseId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// From 1.
    pub id: NodeId,
    /// Letters, digits, `-`, `_` and `.`, so that it can name files.
    pub name: String,
    pub region: String,
    /// Within the region: data center `a` of one region is not data center `a` of another.
    pub data_center: String,
    /// `host:port` that other nodes dial.
    pub rpc_address: String,
    /// `host:port` where its gateway is reached. Informative.
    pub kv_address: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardInfo {
    /// From 1.
    pub id: ShardId,
    pub epoch: Epoch,
    pub primary_region: String,
    /// All in the primary region, each in a data center of its own.
    pub voters: BTreeSet<NodeId>,
    /// The voter that should lead while nothing is wrong.
    pub preferred_leader: Option<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseInfo {
    pub id: DatabaseId,
    /// Letters, digits, `-`, `_`, `.` and `~`: what a URL holds without escapes.
    pub name: String,
    pub shard: ShardId,
}

/// A topology as it was written down, before anybody looked whether it can work.
#[derive(Debug, Clone, Default)]
pub struct TopologySpec {
    pub regions: Vec<String>,
    pub nodes: Vec<NodeInfo>,
    pub shards: Vec<ShardSpec>,
    pub databases: Vec<DatabaseInfo>,
    /// By name.
    pub default_database: Option<String>,
}

#[derive(Debug, Clone)]
pub struct ShardSpec {
    pub id: ShardId,
    pub primary_region: String,
    /// `None`: every node of the primary region.
    pub voters: Option<Vec<NodeId>>,
    pub preferred_leader: Option<NodeId>,
    /// The word that fewer than three voters, or an even number of them, is meant.
    pub allow_weak_quorum: bool,
}

impl Topology {
    pub fn nodes_in<'a>(&'a self, region: &'a str) -> impl Iterator<Item = &'a NodeInfo> {
        self.nodes.values().filter(move |node| node.region == region)
    }

    /// The nodes of `region` that follow the shard without a vote, by id. Outside the primary
    /// region that is every node; inside, those that `voters` leaves out. None when there is no
    /// such shard.
    pub fn replicas_in<'a>(
        &'a self,
        shard: ShardId,
        region: &'a str,
    ) -> impl Iterator<Item = &'a NodeInfo> {
        let shard = self.shards.get(&shard);
        self.nodes_in(region)
            .filter(move |node| shard.is_some_and(|shard| !shard.voters.contains(&node.id)))
    }

    /// The shard that `database` lives in. `None`: there is no such database.
    pub fn shard_of(&self, database: DatabaseId) -> Option<&ShardInfo> {
        self.shards.get(&self.databases.get(&database)?.shard)
    }

    pub fn is_voter(&self, shard: ShardId, node: NodeId) -> bool {
        self.shards.get(&shard).is_some_and(|shard| shard.voters.contains(&node))
    }
}

impl ShardInfo {
    /// Fewer than three voters, or an even number: configured only with an explicit word.
    pub fn has_weak_quorum(&self) -> bool {
        is_weak(self.voters.len())
    }
}

/// Whether a quorum among so many voters is weak. Two in three survive the loss of one; with an
/// even number the last voter adds to the quorum and not to the losses that it survives.
fn is_weak(voters: usize) -> bool {
    voters < 3 || voters.is_multiple_of(2)
}
