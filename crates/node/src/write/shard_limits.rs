//! By what the writes of one shard are admitted: room on the disks of its voters, the lag of the
//! other regions, and the quotas on what databases store.

use std::sync::Arc;

use meridian_gateway::Catalogue;
use meridian_types::{DatabaseId, NodeId, ShardId};

use crate::cluster_view::view::Directory;
use crate::host::disk::{DiskGuard, MIN_FREE_BYTES, Room};
use crate::replication::progress::Followers;
use crate::write::proposer::{AdmissionPolicy, WriteRefusal};
use crate::write::stored_sizes::StoredSizes;

/// At this node, for as long as it may lead.
pub(crate) struct ShardLimits {
    pub(crate) node_id: NodeId,
    pub(crate) shard: ShardId,
    pub(crate) directory: Arc<Directory>,
    pub(crate) followers: Arc<Followers>,
    pub(crate) disk: Arc<DiskGuard>,
    pub(crate) stored: Arc<StoredSizes>,
}

impl AdmissionPolicy for ShardLimits {
    fn refusal(&self, only_deletes: bool) -> Option<WriteRefusal> {
        let known = self.directory.known();
        let voters = &known.cluster.shards.get(&self.shard)?.voters;
        let others = voters.iter().filter(|voter| **voter != self.node_id);
        let rooms: Vec<Room> = others.map(|voter| self.followers.room(*voter)).collect();
        refusal_for_room(self.disk.room(), &rooms, only_deletes)
    }

    fn reject(&self, database: DatabaseId) -> Option<String> {
        self.stored.reject(database, || self.directory.quotas(database))
    }

    fn proposed(&self, sequence: u64) {
        self.followers.proposed(sequence);
    }

    fn replication_lag_ms(&self) -> Option<u64> {
        let known = self.directory.known();
        let cluster = &known.cluster;
        let primary = &cluster.shards.get(&self.shard)?.primary_region;
        let elsewhere =
            |node: NodeId| cluster.present_node(node).is_some_and(|node| node.region != *primary);
        self.followers.least_lag_ms(elsewhere)
    }
}

/// Why a write is refused for want of room on the leader's disk, or on those of the other voters.
fn refusal_for_room(leader: Room, others: &[Room], only_deletes: bool) -> Option<WriteRefusal> {
    let takes = |room: Room| room == Room::Enough || room == Room::Low && only_deletes;
    let min_free_bytes = MIN_FREE_BYTES;
    if !takes(leader) {
        return Some(WriteRefusal::LeaderDiskLow { min_free_bytes });
    }
    let full = others.iter().filter(|room| !takes(**room)).count();
    let voters = others.len() + 1;
    // Full voters stop at the next batch: as many may as a majority can do without.
    let refuses = full > 0 && voters - full < voters / 2 + 1;
    refuses.then_some(WriteRefusal::VoterDisksLow { full, min_free_bytes })
}

#[cfg(test)]
mod tests {
    use super::Room::{Enough, Exhausted, Low};
    use super::*;

    #[test]
    fn what_only_deletes_is_taken_as_long_as_a_majority_can_write_it() {
        for (leader, others, any, deletes) in [
            (Enough, [Enough, Enough], true, true),
            (Low, [Enough, Enough], false, true),
            (Exhausted, [Enough, Enough], false, false),
            // A majority can do without one.
            (Enough, [Low, Enough], true, true),
            (Enough, [Exhausted, Enough], true, true),
            (Enough, [Low, Low], false, true),
            (Enough, [Low, Exhausted], false, true),
            (Enough, [Exhausted, Exhausted], false, false),
            (Low, [Exhausted, Low], false, true),
        ] {
            let takes = |only_deletes| refusal_for_room(leader, &others, only_deletes).is_none();
            assert_eq!((takes(false), takes(true)), (any, deletes), "{leader:?} {others:?}");
        }
        assert_eq!(refusal_for_room(Enough, &[], false), None);
        let why = refusal_for_room(Enough, &[Low, Exhausted], false).unwrap();
        assert_eq!(
            why.to_string(),
            "the disks of 2 of the shard's voters have less than 256 MiB free"
        );
        assert_eq!(
            refusal_for_room(Low, &[], false).unwrap().to_string(),
            "the disk of the shard's leader has less than 256 MiB free"
        );
    }
}
