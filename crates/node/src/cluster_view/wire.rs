//! Messages between nodes and the directory's leader, from the wire and to it.

use meridian_directory::Cluster;
use meridian_failover::{Lease, LostTail, ProgressHint, Renewal, Renewed, SealAnswer};
use meridian_proto::directory::{self as wire, renew_response};
use meridian_proto::shard_report;
use meridian_types::{CommitProgress, Epoch, NodeId, ShardId};

use crate::replication::wire::position;

/// The cluster as nodes get it, or as gateways do.
pub(crate) fn cluster_to_wire(cluster: &Cluster, is_gateway: bool) -> wire::ClusterState {
    to_json(&if is_gateway { cluster.for_gateways() } else { cluster.for_nodes() })
}

/// As it is told to operators; `known`: the hash of a token that the caller has sent itself.
pub(crate) fn cluster_to_show(cluster: &Cluster, known: Option<&str>) -> wire::ClusterState {
    to_json(&cluster.without_secrets(known))
}

fn to_json(cluster: &Cluster) -> wire::ClusterState {
    wire::ClusterState { json: serde_json::to_vec(cluster).unwrap_or_default().into() }
}

/// Without the cluster, and how far shards came.
fn lease_to_wire(lease: &Lease) -> wire::Lease {
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

fn progress_hint_to_wire(hint: &ProgressHint) -> wire::Furthest {
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

/// Malformed reports are left out.
pub(crate) fn renewal(request: wire::RenewRequest) -> Renewal {
    Renewal {
        node: NodeId(request.node_id),
        incarnation: request.incarnation.iter().map(|byte| format!("{byte:02x}")).collect(),
        reports: request.reports.into_iter().filter_map(shard_report).collect(),
        lost: request.orphans.iter().filter_map(lost_tail).collect(),
    }
}

fn lost_tail(wire: &wire::Orphans) -> Option<LostTail> {
    Some(LostTail {
        shard: ShardId(wire.shard),
        epoch: Epoch(u16::try_from(wire.epoch).ok()?),
        transactions: wire.transactions,
        at_most: wire.at_most,
        last_time_ms: wire.last_time_ms,
    })
}

/// With the cluster, for a node that knows an older one.
pub(crate) fn renewed_to_wire(renewed: Renewed, known_version: u64) -> renew_response::Result {
    match renewed {
        Renewed::Granted { lease, cluster, hints } => {
            let newer = (known_version < cluster.version).then(|| cluster_to_wire(&cluster, false));
            let furthest = hints.iter().map(progress_hint_to_wire).collect();
            renew_response::Result::Lease(wire::Lease {
                cluster: newer,
                furthest,
                ..lease_to_wire(&lease)
            })
        }
        Renewed::NotYet => renew_response::Result::NotLeader(0),
        Renewed::Refused(reason) => renew_response::Result::Refused(reason),
    }
}
