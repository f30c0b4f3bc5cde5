//! The first cluster, of version 0: what a configuration says, before the directory has anything.
//! Every founding node makes the same of it, and the directory's first leader commits it.

use std::collections::{BTreeMap, BTreeSet};

use meridian_types::{DatabaseId, Epoch, NodeId, Position, Quotas, ShardId, V8Format};

use crate::cluster::{Cluster, Node};
use crate::database::{Database, FailoverMode, Rpo, RpoMode};
use crate::shard::{Phase, Shard};

/// Regions from which a database's writes are refused rather than replicated too late: with fewer,
/// the loss of one region leaves no majority of the directory, and so no failover whose loss there
/// is to bound.
const ENFORCING_REGIONS: usize = 3;

/// The cluster as it is founded.
#[derive(Debug, Clone, Default)]
pub struct Founding {
    pub regions: Vec<String>,
    pub nodes: BTreeMap<NodeId, Node>,
    pub shards: BTreeMap<ShardId, Shard>,
    /// The name of each, and its shard.
    pub databases: BTreeMap<DatabaseId, (String, ShardId)>,
    pub default_database: Option<DatabaseId>,
}

impl Shard {
    /// In its first epoch, with nothing committed.
    pub fn new(
        primary_region: String,
        voters: BTreeSet<NodeId>,
        preferred_leader: Option<NodeId>,
    ) -> Self {
        Self {
            epoch: Epoch::FIRST,
            phase: Phase::Forming,
            primary_region,
            voters,
            preferred_leader,
            changing: None,
            bases: vec![(Epoch::FIRST, Position::ZERO)],
            reports: Vec::new(),
        }
    }
}

impl Cluster {
    pub fn found(founding: Founding) -> Self {
        let Founding { regions, nodes, shards, databases, default_database } = founding;
        let mut cluster = Self {
            version: 0,
            id: None,
            regions,
            last_node_id: nodes.keys().copied().max().unwrap_or(NodeId(0)),
            nodes,
            directory_voters: BTreeSet::new(),
            former_directory_voters: BTreeSet::new(),
            last_shard_id: shards.keys().map(|id| id.0).max().unwrap_or(0),
            shards,
            databases: BTreeMap::new(),
            deleting: BTreeMap::new(),
            default_database,
            tokens: BTreeMap::new(),
            last_token_id: 0,
            trust: Default::default(),
        };
        let with_nodes = |region: &&String| cluster.nodes_of(region).next().is_some();
        let is_enforced = cluster.regions.iter().filter(with_nodes).count() >= ENFORCING_REGIONS;
        let mode = if is_enforced { RpoMode::Enforce } else { RpoMode::Warn };
        let database = |(id, (name, shard)): (DatabaseId, (String, ShardId))| {
            let home = cluster.shards.get(&shard).map(|shard| shard.primary_region.clone());
            let database = Database {
                name,
                shard,
                primary_region: home.unwrap_or_default(),
                failover: FailoverMode::default(),
                rpo: Rpo { mode, ..Rpo::default() },
                v8_format: V8Format::default(),
                queue_paused: false,
                webhooks: Vec::new(),
                quotas: Quotas::default(),
            };
            (id, database)
        };
        let databases = databases.into_iter().map(database).collect();
        let directory_voters = cluster.first_directory_voters();
        cluster.databases = databases;
        cluster.directory_voters = directory_voters;
        cluster
    }

    /// One node in each region, up to five; with fewer than three regions that have nodes, one in
    /// each of up to three data centers, spread over the regions.
    fn first_directory_voters(&self) -> BTreeSet<NodeId> {
        let one_each = |region: &String| {
            let mut data_centers = BTreeMap::new();
            for (id, node) in self.nodes_of(region) {
                data_centers.entry(&node.data_center).or_insert(id);
            }
            data_centers.into_values().collect()
        };
        let regions: Vec<Vec<NodeId>> = self.regions.iter().map(one_each).collect();
        let regions: Vec<_> = regions.into_iter().filter(|nodes| !nodes.is_empty()).collect();
        let wanted = if regions.len() >= 3 { regions.len().min(5) } else { 3 };
        let deepest = regions.iter().map(Vec::len).max().unwrap_or(0);
        let in_turn = (0..deepest)
            .flat_map(|turn| regions.iter().filter_map(move |nodes| nodes.get(turn).copied()));
        let mut voters: Vec<NodeId> = in_turn.take(wanted).collect();
        // An even number survives no more losses than one fewer.
        if voters.len() > 1 && voters.len().is_multiple_of(2) {
            voters.pop();
        }
        voters.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::node;

    /// So many data centers in each region, with a node in each.
    fn founded(counts: &[usize]) -> Cluster {
        let mut founding = Founding::default();
        for (number, count) in (1..).zip(counts) {
            let region = format!("r{number}");
            for place in 0..*count {
                let id = founding.nodes.len() as u64 + 1;
                founding.nodes.insert(NodeId(id), node(id, &region, &format!("{place}")));
            }
            founding.regions.push(region);
        }
        let shard = Shard::new("r1".to_owned(), BTreeSet::from([NodeId(1)]), None);
        founding.shards.insert(ShardId(7), shard);
        founding.databases.insert(DatabaseId([1; 16]), ("main".to_owned(), ShardId(7)));
        Cluster::found(founding)
    }

    #[test]
    fn directory_votes_with_one_node_of_each_region_or_of_three_data_centers() {
        for (counts, voters) in [
            (&[3, 2, 2][..], &[1, 4, 6][..]),
            (&[3, 0, 2, 1], &[1, 4, 6]),
            (&[1, 1, 1, 1], &[1, 2, 3]),
            (&[1, 1, 1, 1, 1, 1], &[1, 2, 3, 4, 5]),
            (&[3, 2], &[1, 2, 4]),
            (&[3], &[1, 2, 3]),
            (&[2], &[1]),
        ] {
            let voters: BTreeSet<_> = voters.iter().copied().map(NodeId).collect();
            assert_eq!(founded(counts).directory_voters, voters, "{counts:?}");
        }
    }

    #[test]
    fn lag_is_bounded_from_three_regions_with_nodes_on() {
        for (counts, mode) in
            [(&[3, 2, 2][..], RpoMode::Enforce), (&[3, 2, 0], RpoMode::Warn), (&[3], RpoMode::Warn)]
        {
            let cluster = founded(counts);
            let database = cluster.databases.values().next().unwrap();
            assert_eq!((database.rpo.mode, database.primary_region.as_str()), (mode, "r1"));
        }
    }

    #[test]
    fn ids_go_on_behind_those_of_the_configuration() {
        let cluster = founded(&[3, 2]);
        let last = (cluster.last_node_id, cluster.last_shard_id);
        assert_eq!((cluster.version, last), (0, (NodeId(5), 7)));
    }
}
