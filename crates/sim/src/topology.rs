//! The cluster that a run begins with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_directory::{Cluster, Database, FailoverMode, Node, Phase, Rpo, Shard};
use meridian_types::{DatabaseId, Epoch, NodeId, Position, Quotas, ShardId, V8Format};

use crate::rng::Rng;

/// The one shard.
pub(crate) const SHARD: ShardId = ShardId(1);

/// Its one database.
pub(crate) const DATABASE: DatabaseId = DatabaseId([1; 16]);

pub(crate) const REGIONS: [&str; 3] = ["a", "b", "c"];

/// Three regions of two to four data centers, mostly 3, 2 and 2, with a node in each, and spares
/// for an operator that changes voters; the directory votes with the first node of each region.
pub(crate) fn genesis(rng: &mut Rng, operator: Option<&mut Rng>) -> Arc<Cluster> {
    let sizes: Vec<u64> =
        if rng.chance(600) { vec![3, 2, 2] } else { (0..3).map(|_| rng.between(2, 5)).collect() };
    let mut nodes = BTreeMap::new();
    let mut directory_voters = BTreeSet::new();
    let spares = spares(operator);
    for (((region, size), number), (more, twins)) in REGIONS.iter().zip(&sizes).zip(1..).zip(spares)
    {
        let data_centers = (1..=size + more).chain(1..=twins);
        for (data_center, index) in data_centers.zip(1..) {
            let id = NodeId(number * 10 + index);
            let node = Node {
                name: format!("n{id}"),
                region: (*region).to_owned(),
                data_center: format!("{region}{data_center}"),
                rpc_address: format!("10.0.{number}.{index}:7100"),
                kv_address: None,
                incarnation: None,
                removed: false,
            };
            nodes.insert(id, node);
            if index == 1 {
                directory_voters.insert(id);
            }
        }
    }
    let database = Database {
        name: "main".to_owned(),
        shard: SHARD,
        primary_region: "a".to_owned(),
        failover: if rng.chance(60) { FailoverMode::Manual } else { FailoverMode::Auto },
        rpo: Rpo::default(),
        v8_format: V8Format::default(),
        queue_paused: false,
        webhooks: Vec::new(),
        quotas: Quotas::default(),
    };
    let mut cluster = Cluster {
        version: 1,
        id: None,
        regions: REGIONS.map(str::to_owned).to_vec(),
        last_node_id: nodes.keys().last().copied().unwrap_or(NodeId(0)),
        nodes,
        directory_voters,
        former_directory_voters: BTreeSet::new(),
        shards: BTreeMap::new(),
        last_shard_id: 1,
        databases: BTreeMap::from([(DATABASE, database)]),
        default_database: None,
        tokens: BTreeMap::new(),
        last_token_id: 0,
        trust: Default::default(),
        deleting: BTreeMap::new(),
    };
    let voters = cluster.would_be_voters("a");
    let shard = Shard {
        epoch: Epoch::FIRST,
        phase: Phase::Forming,
        primary_region: "a".to_owned(),
        preferred_leader: voters.first().copied(),
        changing: None,
        voters,
        bases: vec![(Epoch::FIRST, Position::ZERO)],
        reports: Vec::new(),
    };
    cluster.shards.insert(SHARD, shard);
    Arc::new(cluster)
}

/// In each region, where an operator changes voters: so many data centers more, and so many with a
/// second node.
fn spares(operator: Option<&mut Rng>) -> [(u64, u64); 3] {
    let Some(rng) = operator else { return [(0, 0); 3] };
    REGIONS.map(|_| (rng.below(2), rng.below(3)))
}

pub(crate) fn region_of(cluster: &Cluster, node: NodeId) -> &str {
    cluster.nodes.get(&node).map_or("", |node| node.region.as_str())
}
