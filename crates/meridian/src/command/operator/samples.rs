//! A cluster for the tests of commands: six nodes in three regions (3, 2 and 1 data centers), two
//! shards with their primary in the first, and two databases.

use std::collections::{BTreeMap, BTreeSet};

use meridian_directory::{
    Cluster, Database, FailoverMode, FailoverReport, Loss, Node, Phase, Rpo, Shard,
};
use meridian_failover::Contact;
use meridian_types::{
    CommitProgress, Epoch, NodeId, Position, Quotas, ShardId, ShardReport, V8Format,
};

use super::View;

pub(crate) const LEADER_TIME_MS: u64 = 1_787_227_200_000;

pub(crate) fn cluster() -> Cluster {
    let place = [("1", "a"), ("1", "b"), ("1", "c"), ("2", "a"), ("2", "b"), ("3", "a")];
    let node = |(id, (region, data_center)): (u64, &(&str, &str))| {
        let node = Node {
            name: format!("region-{region}-{data_center}"),
            region: format!("region-{region}"),
            data_center: (*data_center).to_owned(),
            rpc_address: format!("127.0.0.1:{}", 4611 + id),
            kv_address: Some(format!("127.0.0.1:{}", 4511 + id)),
            incarnation: Some(format!("{id:032x}")),
            removed: false,
        };
        (NodeId(id), node)
    };
    let shard = |leader| Shard {
        epoch: Epoch(1),
        phase: Phase::Active,
        primary_region: "region-1".to_owned(),
        voters: BTreeSet::from([1, 2, 3].map(NodeId)),
        preferred_leader: Some(NodeId(leader)),
        changing: None,
        bases: vec![(Epoch(1), Position::ZERO)],
        reports: Vec::new(),
    };
    let database = |name: &str, shard| Database {
        name: name.to_owned(),
        shard: ShardId(shard),
        primary_region: "region-1".to_owned(),
        failover: FailoverMode::Auto,
        rpo: Rpo::default(),
        v8_format: V8Format::default(),
        queue_paused: false,
        webhooks: Vec::new(),
        quotas: Quotas::default(),
    };
    Cluster {
        version: 7,
        id: None,
        regions: ["region-1", "region-2", "region-3"].map(str::to_owned).to_vec(),
        nodes: (1..).zip(&place).map(node).collect(),
        last_node_id: NodeId(6),
        directory_voters: BTreeSet::from([1, 4, 6].map(NodeId)),
        former_directory_voters: BTreeSet::new(),
        shards: BTreeMap::from([(ShardId(1), shard(1)), (ShardId(2), shard(2))]),
        last_shard_id: 2,
        databases: BTreeMap::from([
            ("00000000-0000-4000-8000-000000000001".parse().unwrap(), database("default", 1)),
            ("00000000-0000-4000-8000-000000000002".parse().unwrap(), database("second", 2)),
        ]),
        default_database: "00000000-0000-4000-8000-000000000001".parse().ok(),
        tokens: BTreeMap::new(),
        last_token_id: 0,
        trust: Default::default(),
        deleting: BTreeMap::new(),
    }
}

/// The view of the directory's leader while all is well: voters at sequence 100, replicas at 98.
pub(crate) fn view() -> View {
    let report = |node: u64, shard: u32| {
        let (sequence, transactions, age_ms) =
            if node <= 3 { (100, 1000, 0) } else { (98, 980, 50) };
        let position = Position::new(Epoch(1), sequence);
        let progress = CommitProgress::new(transactions, LEADER_TIME_MS - age_ms);
        ShardReport {
            leads: node == u64::from(shard),
            lag_ms: [0, 0, 0, 30, 20, 90][usize::try_from(node - 1).unwrap()],
            ..ShardReport::new(ShardId(shard), Epoch(1), position, progress)
        }
    };
    let reports =
        |node| [1, 2].into_iter().map(|shard| (ShardId(shard), report(node, shard))).collect();
    View {
        cluster: cluster(),
        leader: Some(NodeId(1)),
        term: 3,
        leader_address: Some("127.0.0.1:4612".to_owned()),
        changes: Vec::new(),
        progress: BTreeMap::new(),
        contacts: (1..=6)
            .map(|node| (NodeId(node), Contact { age_ms: 200, reports: reports(node) }))
            .collect(),
        token_uses: BTreeMap::new(),
    }
}

/// The same view when the nodes of a region have been silent for `age_ms`.
pub(crate) fn view_without(region: &str, age_ms: u64) -> View {
    let mut view = view();
    for (node, contact) in &mut view.contacts {
        if view.cluster.nodes[node].region == region {
            contact.age_ms = age_ms;
        }
    }
    view
}

/// The report of a failover from the first region to the second; nodes 1 to 3 voted in the epoch
/// that ended.
pub(crate) fn report(loss: Loss) -> FailoverReport {
    FailoverReport {
        epoch: Epoch(2),
        from_region: "region-1".to_owned(),
        to_region: "region-2".to_owned(),
        planned: false,
        cause: String::new(),
        base: Position::ZERO,
        base_transactions: 0,
        base_time_ms: 0,
        sealed_at_ms: 1000,
        promoted_at_ms: 1312,
        loss,
        old_voters: BTreeSet::from([1, 2, 3].map(NodeId)),
        former_voters: Vec::new(),
    }
}
