//! What nodes and the directory's leader say to each other, from the wire and to it.

use meridian_directory::{Change, Cluster};
use meridian_failover::{Lease, ProgressHint, SealAnswer};
use meridian_proto::directory as wire;
use meridian_types::{CommitProgress, Epoch, NodeId, ShardId};

use crate::replication::wire::position;

/// The cluster as nodes and gateways get it. A caller is not known to be either, until calls are
/// authenticated: it gets no more than these need.
pub(crate) fn cluster_to_wire(cluster: &Cluster) -> wire::ClusterState {
    to_json(&cluster.without_incarnations())
}

/// As it is told to operators; `known`: the hash of a token that the caller has sent itself.
pub(crate) fn cluster_to_show(cluster: &Cluster, known: Option<&str>) -> wire::ClusterState {
    to_json(&cluster.without_secrets(known))
}

fn to_json(cluster: &Cluster) -> wire::ClusterState {
    wire::ClusterState { json: serde_json::to_vec(cluster).unwrap_or_default().into() }
}

/// Without the cluster, and how far shards came.
pub(crate) fn lease_to_wire(lease: &Lease) -> wire::Lease {
    let leased = |(shard, epoch): &(ShardId, Epoch)| wire::LeasedShard {
        shard: shard.0,
        epoch: epoch.0.into(),
    };
    wire::Lease {
        ttl_ms: u64::try_from(lease.ttl.as_millis()).unwrap_or(0),
        shards: lease.shards.iter().map(leased).collect(),
        cluster: None,
        furthest: Vec::new(),
    }
}

pub(crate) fn progress_hint_to_wire(hint: &ProgressHint) -> wire::Furthest {
    let ProgressHint { shard, epoch, progress: CommitProgress { transactions, time_ms } } = *hint;
    wire::Furthest { shard: shard.0, epoch: epoch.0.into(), transactions, time_ms }
}

/// `None`: malformed.
pub(crate) fn progress_hint(wire: &wire::Furthest) -> Option<ProgressHint> {
    let wire::Furthest { shard, epoch, transactions, time_ms } = *wire;
    Some(ProgressHint {
        shard: ShardId(shard),
        epoch: Epoch(u16::try_from(epoch).ok()?),
        progress: CommitProgress::new(transactions, time_ms),
    })
}

/// `None`: malformed.
pub(crate) fn seal_answer(
    shard: ShardId,
    epoch: Epoch,
    planned: bool,
    wire: &wire::SealResponse,
) -> Option<SealAnswer> {
    Some(SealAnswer {
        shard,
        epoch,
        planned,
        position: wire.position.and_then(position)?,
        transactions: wire.transactions,
        time_ms: wire.time_ms,
        term: wire.term,
        drained_leader: wire.drained_leader,
    })
}

/// What a node shows of a lost tail, if it is news.
pub(crate) fn shown(cluster: &Cluster, node: NodeId, orphans: &wire::Orphans) -> Option<Change> {
    let shard = ShardId(orphans.shard);
    let epoch = Epoch(u16::try_from(orphans.epoch).ok()?);
    let report = cluster.shards.get(&shard)?.reports.iter().find(|report| report.epoch == epoch)?;
    if report.loss.shown_by.contains(&node) {
        return None;
    }
    Some(Change::ShowLoss {
        shard,
        epoch,
        node,
        transactions: orphans.transactions,
        at_most: orphans.at_most,
        last_time_ms: orphans.last_time_ms,
    })
}
