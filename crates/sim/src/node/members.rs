//! How the group's members come to be those that the directory names.

use std::collections::BTreeSet;

use meridian_types::NodeId;

use super::part::Part;
use super::{Context, Node};
use crate::topology::SHARD;

impl Node {
    /// A leader goes on with a change of voters.
    pub(super) fn tick_members(&mut self, context: &mut Context<'_>) {
        let at = self.at(context);
        let Some(shard) = self.shard() else { return };
        let (epoch, wanted) = (shard.epoch, shard.voters.clone());
        let has_lease = self.lease.holds(at, SHARD, epoch);
        let Some(voter) = self.voter().filter(|voter| voter.epoch == epoch) else { return };
        voter.raft.disk.vouched |= has_lease;
        self.raft(context, |raft, at, _, out| raft.change_voters(at, &wanted, out));
    }

    /// Whether the group's voters are those of the directory, as far as this node knows both.
    pub(super) fn has_wanted_voters(&self) -> bool {
        let (Part::Voter(voter), Some(shard)) = (&self.part, self.shard()) else { return false };
        voter.raft.is_settled_on(&shard.voters)
    }

    /// Whether it leads a group of just these voters, and of no others to come.
    pub(crate) fn leads_just(&self, voters: &BTreeSet<NodeId>) -> bool {
        let Part::Voter(voter) = &self.part else { return false };
        voter.raft.is_settled_leader() && voter.raft.is_settled_on(voters)
    }
}
