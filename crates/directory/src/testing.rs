//! A cluster to test with: region `a` with nodes 1 to 3, `b` with 4 and 5, `c` with 6 and 7, each
//! in a data center of its own; shard 1 with its primary in `a` and one database.

use std::collections::{BTreeMap, BTreeSet};

use meridian_types::{DatabaseId, Epoch, NodeId, Position, Quotas, ShardId, V8Format};

use crate::cluster::{Cluster, Node};
use crate::database::{Database, FailoverMode, Rpo};
use crate::report::{FailoverReport, Loss};
use crate::shard::{Phase, Shard};

pub const SHARD: ShardId = ShardId(1);
pub const DATABASE: DatabaseId = DatabaseId([1; 16]);

pub fn at(epoch: u16, sequence: u64) -> Position {
    Position::new(Epoch(epoch), sequence)
}

pub fn node(id: u64, region: &str, data_center: &str) -> Node {
    Node {
        name: format!("n{id}"),
        region: region.to_owned(),
        data_center: data_center.to_owned(),
        rpc_address: format!("10.0.0.{id}:7100"),
        kv_address: Some(format!("10.0.0.{id}:4512")),
        incarnation: None,
        removed: false,
    }
}

pub fn database(name: &str, region: &str) -> Database {
    Database {
        name: name.to_owned(),
        shard: SHARD,
        primary_region: region.to_owned(),
        failover: FailoverMode::Auto,
        rpo: Rpo::default(),
        v8_format: V8Format::default(),
        queue_paused: false,
        webhooks: Vec::new(),
        quotas: Quotas::default(),
    }
}

pub fn cluster() -> Cluster {
    let places =
        [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("b", "b2"), ("c", "c1"), ("c", "c2")];
    let nodes = (1..)
        .zip(places)
        .map(|(id, (region, data_center))| (NodeId(id), node(id, region, data_center)));
    let shard = Shard {
        epoch: Epoch::FIRST,
        phase: Phase::Active,
        primary_region: "a".to_owned(),
        voters: BTreeSet::from([1, 2, 3].map(NodeId)),
        preferred_leader: Some(NodeId(1)),
        changing: None,
        bases: vec![(Epoch::FIRST, Position::ZERO)],
        reports: Vec::new(),
    };
    Cluster {
        version: 1,
        id: None,
        regions: ["a", "b", "c"].map(str::to_owned).to_vec(),
        nodes: nodes.collect(),
        last_node_id: NodeId(7),
        directory_voters: BTreeSet::from([1, 4, 6].map(NodeId)),
        former_directory_voters: BTreeSet::new(),
        shards: BTreeMap::from([(SHARD, shard)]),
        last_shard_id: 1,
        databases: BTreeMap::from([(DATABASE, database("main", "a"))]),
        default_database: Some(DATABASE),
        tokens: BTreeMap::new(),
        last_token_id: 0,
        trust: Default::default(),
        deleting: BTreeMap::new(),
    }
}

pub fn report(epoch: u16, base: Position, to: &str) -> FailoverReport {
    FailoverReport {
        epoch: Epoch(epoch),
        from_region: "a".to_owned(),
        to_region: to.to_owned(),
        planned: false,
        cause: "a test".to_owned(),
        base,
        base_transactions: 100,
        base_time_ms: 5_000,
        sealed_at_ms: 6_000,
        promoted_at_ms: 7_000,
        loss: Loss::default(),
        old_voters: BTreeSet::new(),
        former_voters: Vec::new(),
    }
}
