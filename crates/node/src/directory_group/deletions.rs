//! Databases that were deleted, until no node has their data any more.

use std::time::Duration;

use meridian_directory::{Change, Cluster};
use meridian_proto::directory as wire;
use meridian_types::{DatabaseId, NodeId, ShardId};

type Contacts = [(NodeId, Duration, Vec<wire::ShardReport>)];

pub(super) fn ended_deletions(cluster: &Cluster, contacts: &Contacts) -> Vec<Change> {
    let has_dropped = |node: NodeId, id: &DatabaseId, shard: ShardId| {
        let Some(epoch) = cluster.shards.get(&shard).map(|shard| u32::from(shard.epoch.0)) else {
            return true;
        };
        let reports = contacts
            .iter()
            .filter(|(contact, ..)| *contact == node)
            .flat_map(|(.., reports)| reports);
        let mut reports = reports.filter(|report| report.shard == shard.0 && report.epoch == epoch);
        reports.any(|report| report.dropped.iter().any(|dropped| dropped.as_ref() == id.0))
    };
    let ended = cluster.deleting.iter().filter(|(id, deletion)| {
        cluster.lacking_drop(|node| has_dropped(node, id, deletion.shard)).is_empty()
    });
    ended.map(|(id, _)| Change::EndDeletion { id: *id }).collect()
}

#[cfg(test)]
mod tests {
    use meridian_config::{DEV_DEFAULT_DATABASE, DevLayout};
    use meridian_types::Epoch;

    use super::*;

    #[test]
    fn a_deletion_ends_when_every_node_has_dropped_the_data_in_the_present_epoch() {
        let founded =
            DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let id = DEV_DEFAULT_DATABASE;
        let mut cluster = founded.after(&Change::DeleteDatabase { id }).unwrap();
        let shard = cluster.deleting[&id].shard;
        let report = |epoch: u32, dropped: &[DatabaseId]| wire::ShardReport {
            shard: shard.0,
            epoch,
            dropped: dropped.iter().map(|id| id.0.to_vec().into()).collect(),
            ..Default::default()
        };
        let contact = |node: NodeId, report| (node, Duration::ZERO, vec![report]);
        let mut contacts: Vec<_> = (1..=7).map(|node| contact(node, report(1, &[id]))).collect();
        let ended = vec![Change::EndDeletion { id }];
        assert_eq!(ended_deletions(&cluster, &contacts), ended);
        contacts[6] = contact(7, report(1, &[]));
        assert_eq!(ended_deletions(&cluster, &contacts), [], "it has not dropped it");
        contacts.truncate(6);
        assert_eq!(ended_deletions(&cluster, &contacts), [], "it is away");
        cluster = cluster.after(&Change::RemoveNode { node: 7 }).unwrap();
        assert_eq!(ended_deletions(&cluster, &contacts), ended, "it is gone for good");
        cluster.shards.get_mut(&shard).unwrap().epoch = Epoch(2);
        assert_eq!(
            ended_deletions(&cluster, &contacts),
            [],
            "what was dropped in an epoch before may be lost"
        );
    }
}
