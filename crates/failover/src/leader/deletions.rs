//! Databases that were deleted, until no node has their data any more.

use meridian_directory::{Change, Cluster};
use meridian_types::{DatabaseId, NodeId, ShardId, ShardReport};

/// By the `latest` report of each node on each shard.
pub(super) fn ended<'a>(
    cluster: &Cluster,
    latest: impl Fn(NodeId, ShardId) -> Option<&'a ShardReport>,
) -> Vec<Change> {
    let has_dropped = |node: NodeId, id: &DatabaseId, shard: ShardId| {
        let Some(epoch) = cluster.shards.get(&shard).map(|shard| shard.epoch) else {
            return true;
        };
        latest(node, shard)
            .is_some_and(|report| report.epoch == epoch && report.dropped.contains(id))
    };
    let ended = cluster.deleting.iter().filter(|(id, deletion)| {
        cluster.lacking_drop(|node| has_dropped(node, id, deletion.shard)).is_empty()
    });
    ended.map(|(id, _)| Change::EndDeletion { id: *id }).collect()
}

#[cfg(test)]
mod tests {
    use meridian_directory::testing::{self, DATABASE as ID, SHARD};
    use meridian_types::{CommitProgress, Epoch, Position};

    use super::*;

    #[test]
    fn a_deletion_ends_when_every_node_has_dropped_the_data_in_the_present_epoch() {
        let mut cluster = testing::cluster().after(&Change::DeleteDatabase { id: ID }).unwrap();
        let report = |dropped: &[DatabaseId]| {
            let none = CommitProgress::NONE;
            ShardReport {
                dropped: dropped.to_vec(),
                ..ShardReport::new(SHARD, Epoch(1), Position::ZERO, none)
            }
        };
        let mut reports: Vec<_> = (1..=7).map(|node| (NodeId(node), report(&[ID]))).collect();
        let ended_of = |cluster: &Cluster, reports: &[(NodeId, ShardReport)]| {
            super::ended(cluster, |node, _| {
                reports.iter().find(|(of, _)| *of == node).map(|(_, report)| report)
            })
        };
        let ended = vec![Change::EndDeletion { id: ID }];
        assert_eq!(ended_of(&cluster, &reports), ended);
        reports[6] = (NodeId(7), report(&[]));
        assert_eq!(ended_of(&cluster, &reports), [], "it has not dropped it");
        reports.truncate(6);
        assert_eq!(ended_of(&cluster, &reports), [], "it is away");
        cluster = cluster.after(&Change::RemoveNode { node: NodeId(7) }).unwrap();
        assert_eq!(ended_of(&cluster, &reports), ended, "it is gone for good");
        cluster.shards.get_mut(&SHARD).unwrap().epoch = Epoch(2);
        let text = "what was dropped in an epoch before may be lost";
        assert_eq!(ended_of(&cluster, &reports), [], "{text}");
    }
}
