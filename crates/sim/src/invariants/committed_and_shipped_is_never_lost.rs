//! A failover keeps what any reachable node had when it was sealed. A switchover keeps what was
//! acknowledged.

use std::sync::Arc;

use meridian_directory::Cluster;
use meridian_types::{Epoch, NodeId, Position};

use super::{Answered, Observer};
use crate::message::Operation;
use crate::topology::SHARD;

const NAME: &str = "committed_and_shipped_is_never_lost";

pub(super) fn promote_proposed(
    observer: &mut Observer,
    epoch: Epoch,
    base: Position,
    answers: &[(NodeId, Position)],
) {
    let Some(shard) = observer.newest.as_ref().and_then(|cluster| cluster.shards.get(&SHARD))
    else {
        return;
    };
    let lost = answers
        .iter()
        .find(|(_, position)| shard.in_history(*position) && *position > base)
        .copied();
    if let Some((node, position)) = lost
        && shard.epoch == epoch
    {
        observer.violated(
            NAME,
            format!("{node} was sealed at {position}, and epoch {epoch} is to end at {base}"),
        );
    }
}

pub(super) fn next_cluster(observer: &mut Observer, cluster: &Arc<Cluster>) {
    let (Some(last), Some(shard)) = (observer.newest.clone(), cluster.shards.get(&SHARD)) else {
        return;
    };
    let old_epoch = last.shards.get(&SHARD).map(|shard| shard.epoch);
    let (Some(old), Some(report)) =
        (old_epoch.filter(|old| *old < shard.epoch), shard.reports.last())
    else {
        return;
    };
    let acked = observer.acked.get(&old).and_then(|acked| acked.last()).copied();
    if let Some(acked) = acked.filter(|acked| report.planned && *acked > report.base) {
        observer.violated(
            NAME,
            format!("{acked} was acknowledged, and the switchover keeps {} only", report.base),
        );
    }
    let counts = &mut observer.counts;
    match (report.planned, report.from_region == report.to_region) {
        (true, true) => counts.went_home += 1,
        (true, false) => counts.switchovers += 1,
        (false, _) => counts.failovers += 1,
    }
}

/// An acknowledged write is in the history that goes on, also where its acknowledgement comes late.
pub(super) fn answered(observer: &mut Observer, answered: Answered) {
    let Answered { node, epoch, operation, position, .. } = answered;
    let newest = observer.newest.as_ref().and_then(|cluster| cluster.shards.get(&SHARD));
    let Some(shard) = newest.filter(|shard| shard.epoch > epoch) else { return };
    let planned =
        shard.reports.iter().any(|report| report.planned && report.epoch.0 == epoch.0 + 1);
    if let Operation::Write { .. } = operation
        && planned
        && !shard.in_history(position)
    {
        observer.violated(
            NAME,
            format!("{node} acknowledged {position}, which a switchover did not keep"),
        );
    }
}
