//! Why a cluster cannot work, for operators.

use std::fmt;

use meridian_types::{DatabaseId, NodeId, ShardId};

use super::InvalidAddress;

/// Which address of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressField {
    Rpc,
    Kv,
}

impl fmt::Display for AddressField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rpc => "rpc_address",
            Self::Kv => "kv_address",
        })
    }
}

/// A cluster that cannot work, or that would promise what it cannot keep.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCluster {
    #[error("there are no regions: `regions` must list at least one")]
    NoRegions,
    #[error("there are no nodes: at least one [[nodes]] is needed")]
    NoNodes,
    #[error("there are no shards: at least one [[shards]] is needed")]
    NoShards,
    #[error("there are no databases: at least one [[databases]] is needed")]
    NoDatabases,

    #[error("the name of {of} is empty")]
    EmptyName { of: String },
    #[error("the name of {of}, `{name}`, is not made of letters, digits, `-`, `_` and `.`")]
    MalformedName { of: String, name: String },

    #[error("region `{0}` is listed twice")]
    DuplicateRegion(String),

    #[error("node `{name}` has id 0: ids of nodes begin at 1")]
    NodeZero { name: String },
    #[error("nodes `{first}` and `{second}` both have id {id}")]
    DuplicateNode { id: NodeId, first: String, second: String },
    #[error("nodes {first} and {second} are both named `{name}`")]
    DuplicateNodeName { name: String, first: NodeId, second: NodeId },
    #[error("node {node} is in region `{region}`, which is not one of the regions {regions}")]
    NodeRegion { node: NodeId, region: String, regions: String },
    #[error("{field} of node {node}: {cause}")]
    Address { node: NodeId, field: AddressField, cause: InvalidAddress },
    #[error(
        "{address} is both the {first_field} of node {first} and the {second_field} of node {second}: \
         one process cannot be two nodes, nor one port serve two purposes"
    )]
    DuplicateAddress {
        address: String,
        first: NodeId,
        first_field: AddressField,
        second: NodeId,
        second_field: AddressField,
    },

    #[error("a shard has id 0: ids of shards begin at 1")]
    ShardZero,
    #[error("two shards have id {0}")]
    DuplicateShard(ShardId),
    #[error(
        "the primary region of shard {shard} is `{region}`, which is not one of the regions {regions}"
    )]
    ShardRegion { shard: ShardId, region: String, regions: String },
    #[error("shard {shard} has no nodes: there is no voter in its primary region `{region}`")]
    NoVoters { shard: ShardId, region: String },
    #[error("node {node} is to vote in shard {shard}, but there is no node {node}")]
    UnknownVoter { shard: ShardId, node: NodeId },
    #[error("node {node} is listed twice among the voters of shard {shard}")]
    DuplicateVoter { shard: ShardId, node: NodeId },
    #[error(
        "node {node} is to vote in shard {shard}, but is in region `{region}` and not in the shard's \
         primary region `{primary_region}`"
    )]
    ForeignVoter { shard: ShardId, node: NodeId, region: String, primary_region: String },
    #[error(
        "nodes {first} and {second} are both in data center `{data_center}` of region `{region}`, so they \
         cannot both vote in shard {shard}: list one voter for each data center in `voters`"
    )]
    SameDataCenter {
        shard: ShardId,
        first: NodeId,
        second: NodeId,
        data_center: String,
        region: String,
    },
    #[error(
        "nodes {first} and {second} are both on host {host}, so they are not in two data centers and cannot \
         both vote in shard {shard}"
    )]
    SameHost { shard: ShardId, first: NodeId, second: NodeId, host: String },
    #[error(
        "shard {shard} has {}: it needs an odd number of at least 3, each in a data center of its own \
         (set `allow_weak_quorum = true` on the shard if this is meant)",
        weakness(.voters)
    )]
    WeakQuorum { shard: ShardId, voters: usize },
    #[error(
        "node {node} is the preferred leader of shard {shard}, but not one of its voters {voters}"
    )]
    PreferredLeader { shard: ShardId, node: NodeId, voters: String },

    #[error("the name of database {id} is empty")]
    EmptyDatabaseName { id: DatabaseId },
    #[error("the database name `{0}` is not made of letters, digits, `-`, `_`, `.` and `~`")]
    DatabaseName(String),
    #[error("two databases are named `{0}`")]
    DuplicateDatabaseName(String),
    #[error("databases `{first}` and `{second}` both have id {id}")]
    DuplicateDatabase { id: DatabaseId, first: String, second: String },
    #[error("database `{database}` is in shard {shard}, but there is no shard {shard}")]
    DatabaseShard { database: String, shard: ShardId },
    #[error("the default database `{0}` is not one of the databases")]
    UnknownDefault(String),

    #[error(
        "{count} data centers in region `{region}`: a development cluster has at most 26 in each"
    )]
    TooManyDataCenters { region: String, count: usize },
}

fn weakness(voters: &usize) -> String {
    match voters {
        1 => "only 1 voter, so that a commit has a single copy in its region".to_owned(),
        2 => "only 2 voters, which cannot commit once either is lost".to_owned(),
        _ => {
            format!(
                "{voters} voters, an even number, which survives no more losses than {}",
                voters.saturating_sub(1)
            )
        }
    }
}
