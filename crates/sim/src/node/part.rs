//! The present part of a node in the shard.

use meridian_types::Epoch;

use super::replica::Replica;
use super::voter::Voter;
use super::{Disk, Node};

pub(super) enum Part {
    None,
    Voter(Box<Voter>),
    Replica(Box<Replica>),
}

impl Part {
    pub(super) fn epoch(&self) -> Option<Epoch> {
        match self {
            Part::None => None,
            Part::Voter(voter) => Some(voter.epoch),
            Part::Replica(replica) => Some(replica.receiver.epoch()),
        }
    }

    /// Back to the disk, without what was not durable.
    pub(super) fn lose(&mut self, disk: &mut Disk) {
        if let Part::Voter(voter) = std::mem::replace(self, Part::None) {
            let (epoch, mut group) = (voter.epoch, voter.raft.disk);
            group.log.truncate(group.synced);
            disk.group = Some((epoch, group));
        }
    }
}

impl Node {
    pub(super) fn voter(&mut self) -> Option<&mut Voter> {
        match &mut self.part {
            Part::Voter(voter) => Some(voter),
            Part::None | Part::Replica(_) => None,
        }
    }

    pub(super) fn replica(&mut self) -> Option<&mut Replica> {
        match &mut self.part {
            Part::Replica(replica) => Some(replica),
            Part::None | Part::Voter(_) => None,
        }
    }
}
