//! How the group's members come to be those that the directory names, and how a node leaves the
//! group.

use std::collections::BTreeSet;

use meridian_directory::Phase;
use meridian_types::{Epoch, NodeId};

use super::part::Part;
use super::{Context, Node};
use crate::raft::{Members, RaftDisk};
use crate::topology::SHARD;

impl Node {
    /// A leader goes on with a change of voters; one that is no voter any more leaves.
    pub(super) fn tick_members(&mut self, context: &mut Context<'_>) {
        let at = self.at(context);
        let Some(shard) = self.shard() else { return };
        let (epoch, wanted) = (shard.epoch, shard.voters.clone());
        let has_lease = self.lease.holds(at, SHARD, epoch);
        let Some(voter) = self.voter().filter(|voter| voter.epoch == epoch) else { return };
        voter.raft.disk.vouched |= has_lease;
        if !wanted.contains(&self.id) {
            self.settle(context);
        }
        self.raft(context, |raft, at, _, out| raft.change_voters(at, &wanted, out));
    }

    /// Whether the group's voters are those of the directory, as far as this node knows both.
    pub(super) fn has_wanted_voters(&self) -> bool {
        let (Part::Voter(voter), Some(shard)) = (&self.part, self.shard()) else { return false };
        voter.raft.is_settled_on(&shard.voters)
    }

    /// Whether it leads a group of these voters, of nobody else, and of no others to come.
    pub(crate) fn leads_just(&self, voters: &BTreeSet<NodeId>) -> bool {
        let Part::Voter(voter) = &self.part else { return false };
        voter.raft.is_settled_leader() && voter.raft.is_settled_on(voters)
    }

    /// Whether the group of the present epoch goes on without this node, which is not to vote in
    /// it: its own log says so, or the directory has heard of a leader that the change is through.
    pub(super) fn is_out(&self) -> bool {
        let (Part::Voter(voter), Some(shard)) = (&self.part, self.shard()) else { return false };
        let is_through = shard.changing.is_none() && !matches!(shard.phase, Phase::Sealing(_));
        is_through || !voter.raft.members().is_voter(self.id)
    }

    /// One that was taken out while it was down goes through the group once more.
    pub(super) fn is_left_behind(&self, epoch: Epoch) -> bool {
        let group = self.disk.group.as_ref().filter(|(of, _)| *of == epoch);
        matches!(self.part, Part::Idle)
            && group.is_some_and(|(_, disk)| disk.founders != Members::default())
    }

    /// What a voter keeps of a group that goes on: its votes, and how far its log went, which is
    /// deleted.
    pub(super) fn leave_group(&mut self, context: &Context<'_>, epoch: Epoch) {
        let Part::Voter(voter) = &self.part else { return };
        if voter.epoch != epoch {
            return;
        }
        let RaftDisk { term, voted_for, left, .. } = voter.raft.disk;
        let left = left.max(voter.raft.last());
        context.say(|| format!("n{} leaves the group of {epoch} at {left:?}", self.id));
        self.disk.group = Some((epoch, RaftDisk { term, voted_for, left, ..RaftDisk::default() }));
        self.part = Part::Idle;
    }
}
