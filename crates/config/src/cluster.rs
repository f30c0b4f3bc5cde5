//! The cluster that a configuration describes: regions, nodes, shards and databases.
//! [`ClusterSpec::found`] and [`DevLayout::found`] refuse what cannot work or would break a promise;
//! what comes of them is a [`Cluster`](meridian_directory::Cluster) of version 0.

mod address;
mod dev;
mod invalid;
mod validation;

#[cfg(test)]
mod tests;

use meridian_types::{DatabaseId, NodeId, ShardId};

pub(crate) use address::Address;
pub use address::InvalidAddress;
pub use dev::{DEV_DEFAULT_DATABASE, DEV_SECOND_DATABASE, DevLayout};
pub use invalid::{AddressField, InvalidCluster};

/// A cluster as it was written down, before it is known to work.
#[derive(Debug, Clone, Default)]
pub struct ClusterSpec {
    pub regions: Vec<String>,
    pub nodes: Vec<NodeSpec>,
    pub shards: Vec<ShardSpec>,
    pub databases: Vec<DatabaseSpec>,
    /// By name.
    pub default_database: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseSpec {
    pub id: DatabaseId,
    /// Letters, digits, `-`, `_`, `.` and `~`: what a URL holds without escapes.
    pub name: String,
    pub shard: ShardId,
}

/// Whether a quorum among so many voters is weak. Two in three survive the loss of one; with an
/// even number the last voter adds to the quorum and not to the losses that it survives.
pub(crate) fn is_weak(voters: usize) -> bool {
    voters < 3 || voters.is_multiple_of(2)
}
