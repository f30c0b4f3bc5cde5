//! The first cluster: what the configuration says, before the directory has anything.

use std::collections::{BTreeMap, BTreeSet};

use meridian_config::NodeConfig;
use meridian_config::topology::{DatabaseInfo, NodeInfo, ShardInfo, Topology};
use meridian_directory::{Cluster, Database, FailoverMode, Node, Phase, Rpo, RpoMode, Shard};
use meridian_storage::GroupId;
use meridian_types::{DatabaseId, Epoch, NodeId, Position, ShardId};

/// The directory's Raft group: shard 0, which no configuration can name.
pub(crate) const DIRECTORY_GROUP: GroupId = GroupId { shard: ShardId(0), epoch: Epoch::FIRST };
/// The database that its state lies in.
pub(crate) const DIRECTORY_DATABASE: DatabaseId = DatabaseId([0; 16]);

/// Regions from which a database's writes are refused rather than replicated too late: with fewer,
/// the loss of one region leaves no majority of the directory, and so no failover whose loss there
/// is to bound.
const ENFORCING_REGIONS: usize = 3;

/// Who votes in the directory when the cluster is made: one node in each region, up to five; with
/// fewer than three regions that have nodes, one in each of up to three data centers, spread over
/// the regions.
pub(crate) fn directory_voters(topology: &Topology) -> BTreeSet<NodeId> {
    let regions: Vec<Vec<NodeId>> = topology
        .regions
        .iter()
        .map(|region| {
            let mut data_centers = BTreeMap::new();
            for node in topology.nodes_in(region) {
                data_centers.entry(node.data_center.clone()).or_insert(node.id);
            }
            data_centers.into_values().collect()
        })
        .filter(|nodes: &Vec<NodeId>| !nodes.is_empty())
        .collect();
    let wanted = if regions.len() >= 3 { regions.len().min(5) } else { 3 };
    let deepest = regions.iter().map(Vec::len).max().unwrap_or(0);
    let by_rounds = (0..deepest)
        .flat_map(|round| regions.iter().filter_map(move |nodes| nodes.get(round).copied()));
    let mut voters: Vec<NodeId> = by_rounds.take(wanted).collect();
    // An even number survives no more losses than one fewer.
    if voters.len() > 1 && voters.len().is_multiple_of(2) {
        voters.pop();
    }
    voters.into_iter().collect()
}

/// The cluster of a configuration: every node makes the same of it, and the directory's first
/// leader commits it.
pub(crate) fn first_cluster(topology: &Topology) -> Cluster {
    let with_nodes =
        topology.regions.iter().filter(|region| topology.nodes_in(region).next().is_some()).count();
    let mode = if with_nodes >= ENFORCING_REGIONS { RpoMode::Enforce } else { RpoMode::Warn };
    let node = |node: &NodeInfo| Node {
        name: node.name.clone(),
        region: node.region.clone(),
        data_center: node.data_center.clone(),
        rpc_address: node.rpc_address.clone(),
        kv_address: node.kv_address.clone(),
        incarnation: None,
        removed: false,
    };
    let shard = |shard: &ShardInfo| Shard {
        epoch: shard.epoch,
        phase: Phase::Forming,
        primary_region: shard.primary_region.clone(),
        voters: shard.voters.clone(),
        preferred_leader: shard.preferred_leader,
        changing: None,
        bases: vec![(shard.epoch, Position::new(shard.epoch, 0))],
        reports: Vec::new(),
    };
    let database = |database: &DatabaseInfo| Database {
        name: database.name.clone(),
        shard: database.shard,
        primary_region: topology
            .shards
            .get(&database.shard)
            .map(|shard| shard.primary_region.clone())
            .unwrap_or_default(),
        failover: FailoverMode::default(),
        rpo: Rpo { mode, ..Rpo::default() },
    };
    Cluster {
        version: 0,
        id: None,
        regions: topology.regions.clone(),
        nodes: topology.nodes.values().map(|info| (info.id, node(info))).collect(),
        last_node_id: topology.nodes.keys().copied().max().unwrap_or(0),
        directory_voters: directory_voters(topology),
        shards: topology.shards.values().map(|info| (info.id, shard(info))).collect(),
        last_shard_id: topology.shards.keys().map(|id| id.0).max().unwrap_or(0),
        databases: topology.databases.values().map(|info| (info.id, database(info))).collect(),
        default_database: topology.default_database,
        tokens: BTreeMap::new(),
        last_token_id: 0,
        deleting: BTreeMap::new(),
    }
}

/// The same, as a node's file has it.
pub(crate) fn founded_cluster(config: &NodeConfig) -> Cluster {
    let mut first = first_cluster(&config.topology);
    if config.manual_failover {
        first.databases.values_mut().for_each(|database| database.failover = FailoverMode::Manual);
    }
    first
}

/// The nodes, shards and databases that there are now.
pub(crate) fn topology_of(cluster: &Cluster) -> Topology {
    let nodes = cluster.nodes.iter().filter(|(_, node)| !node.removed).map(|(id, node)| {
        let info = NodeInfo {
            id: *id,
            name: node.name.clone(),
            region: node.region.clone(),
            data_center: node.data_center.clone(),
            rpc_address: node.rpc_address.clone(),
            kv_address: node.kv_address.clone(),
        };
        (*id, info)
    });
    let shards = cluster.shards.iter().map(|(id, shard)| {
        let info = ShardInfo {
            id: *id,
            epoch: shard.epoch,
            primary_region: shard.primary_region.clone(),
            voters: shard.voters.clone(),
            preferred_leader: shard.preferred_leader,
        };
        (*id, info)
    });
    let databases = cluster.databases.iter().map(|(id, database)| {
        (*id, DatabaseInfo { id: *id, name: database.name.clone(), shard: database.shard })
    });
    Topology {
        cluster: cluster.id.clone(),
        regions: cluster.regions.clone(),
        nodes: nodes.collect(),
        shards: shards.collect(),
        databases: databases.collect(),
        default_database: cluster.default_database,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_cluster_may_be_founded_with_databases_that_do_not_fail_over() {
        let configs = meridian_config::dev_cluster_configs(
            &[3, 2, 1][..],
            Path::new("/tmp/cluster"),
            1000,
            2000,
            "0123456789abcdef",
        );
        for mut config in configs.unwrap() {
            let modes = |config: &NodeConfig| -> Vec<_> {
                founded_cluster(config)
                    .databases
                    .values()
                    .map(|database| database.failover)
                    .collect()
            };
            assert_eq!(modes(&config), [FailoverMode::Auto; 2]);
            config.manual_failover = true;
            assert_eq!(modes(&config), [FailoverMode::Manual; 2]);
            // As the file says that `meridian dev` writes.
            let again = NodeConfig::parse(&config.to_toml(), Path::new("/tmp/node.toml")).unwrap();
            assert!(again.manual_failover);
        }
    }
}
