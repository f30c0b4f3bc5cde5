use std::sync::Arc;

use meridian_directory::{Phase, Shard};
use meridian_shipping::ReceiverEvent;
use meridian_types::{Epoch, Position};

use super::replica::Replica;
use super::voter::Voter;
use super::{Context, Disk, Node, Sealed};
use crate::message::{Batch, Shown, end_of, len_at};
use crate::raft::{Members, RaftDisk};
use crate::topology::{SHARD, region_of};

/// What a node is in the shard.
pub(super) enum Part {
    Idle,
    Voter(Box<Voter>),
    Replica(Box<Replica>),
}

impl Part {
    pub(super) fn epoch(&self) -> Option<Epoch> {
        match self {
            Part::Idle => None,
            Part::Voter(voter) => Some(voter.epoch),
            Part::Replica(replica) => Some(replica.receiver.epoch()),
        }
    }

    /// Back to the disk, without what was not durable.
    pub(super) fn lose(&mut self, disk: &mut Disk) {
        if let Part::Voter(voter) = std::mem::replace(self, Part::Idle) {
            let (epoch, mut group) = (voter.epoch, voter.raft.disk);
            group.log.truncate(group.synced);
            disk.group = Some((epoch, group));
        }
    }
}

impl Node {
    /// Takes the part that the cluster gives, if it is another than the present one.
    pub(super) fn settle(&mut self, context: &mut Context<'_>) {
        let cluster = Arc::clone(&self.disk.cluster);
        let Some(shard) = cluster.shards.get(&SHARD) else { return };
        let votes = shard.voters.contains(&self.id) || self.is_left_behind(shard.epoch);
        let same = match &self.part {
            Part::Idle => false,
            Part::Voter(voter) => voter.epoch == shard.epoch && (votes || !self.is_out()),
            Part::Replica(replica) => !votes && replica.receiver.epoch() == shard.epoch,
        };
        if same {
            return self.set_members(context);
        }
        self.leave_group(context, shard.epoch);
        self.look_through(context, &shard.bases);
        if self.disk.sealed.is_some_and(|sealed| sealed.epoch < shard.epoch) {
            self.disk.sealed = None;
        }
        self.close_senders(context);
        let was_replica = matches!(self.part, Part::Replica(_));
        if votes {
            self.part = Part::Idle;
            self.vote(context, shard);
        } else if was_replica {
            self.end_drain();
            self.learn_epochs(context, &shard.bases);
        } else {
            // What its group had was looked through.
            self.disk.group = self.disk.group.take().filter(|(epoch, _)| *epoch == shard.epoch);
            self.part =
                Part::Replica(Box::new(Replica::new(self.id, self.at(context), self.end())));
            self.learn_epochs(context, &shard.bases);
        }
        self.set_members(context);
        if let Some(sealed) = self.disk.sealed.filter(|sealed| sealed.epoch >= shard.epoch) {
            self.seal_again(context, sealed);
        }
        self.renew_now();
    }

    /// Notes what this node has beyond the base of each epoch that it hears of.
    fn look_through(&mut self, context: &Context<'_>, bases: &[(Epoch, Position)]) {
        self.part.lose_if_voter(&mut self.disk);
        // What was shown already, and is still here, was never of a later epoch.
        let mut end = if self.disk.needs_seed { 0 } else { self.end().sequence };
        let settled = self.disk.settled;
        for (epoch, base) in bases.iter().filter(|(epoch, _)| *epoch > settled) {
            // What is beyond one base was not of the next epoch either.
            let in_log = self.disk.group.take().map_or(0, |(_, group)| end_of_log(&group));
            let shown = Shown {
                committed: end.saturating_sub(base.sequence),
                at_most: end.max(in_log).saturating_sub(base.sequence),
                last_time_ms: self.disk.history.last().map_or(0, |batch| batch.time_ms),
            };
            if shown.at_most > 0 {
                context
                    .say(|| format!("n{}: beyond {base}, the base of {epoch}: {shown:?}", self.id));
            }
            self.disk.shown.insert(*epoch, shown);
            self.disk.needs_seed |= shown.committed > 0;
            self.disk.settled = *epoch;
            end = end.min(base.sequence);
        }
    }

    fn learn_epochs(&mut self, context: &mut Context<'_>, bases: &[(Epoch, Position)]) {
        for (epoch, base) in bases {
            self.receiver(context, ReceiverEvent::Epoch { epoch: *epoch, base: *base }, None);
        }
    }

    /// Becomes a voter: a founder of its group if it stands at the base while the group is being
    /// formed, else one that its leader seeds.
    pub(super) fn vote(&mut self, context: &mut Context<'_>, shard: &Shard) {
        let (at, epoch, base) = (self.at(context), shard.epoch, shard.base());
        let kept = self.disk.group.take().filter(|(of, _)| *of == epoch).map(|(_, group)| group);
        // One that has not founded it yet, and was lost meanwhile, tries again.
        let is_founded = kept.as_ref().is_some_and(|group| group.founders != Members::default());
        let founds = !is_founded && !self.disk.needs_seed && shard.phase == Phase::Forming;
        let mut disk = kept.unwrap_or_default();
        let stands = !self.disk.needs_seed && self.disk.history.len() >= len_at(base.sequence);
        if founds && stands {
            (disk.founders, disk.vouched) = (Members::of(shard.voters.clone()), true);
        }
        let seeded = stands && disk.founders != Members::default();
        context.say(|| {
            format!(
                "n{} votes in {epoch} from {base}, at {}, seeded {seeded}",
                self.id,
                end_of(&self.disk.history)
            )
        });
        let mut voter = Voter::new(self.id, epoch, base, disk, at, context.rng);
        voter.seeded = seeded;
        if founds && stands && shard.preferred_leader == Some(self.id) {
            voter.raft.hurry(at);
        }
        self.part = Part::Voter(Box::new(voter));
        if founds && !stands {
            self.reach_base(base);
        }
    }

    fn seal_again(&mut self, context: &mut Context<'_>, sealed: Sealed) {
        self.lease.seal(SHARD, sealed.epoch);
        match &mut self.part {
            Part::Voter(voter) => voter.seal(sealed.planned),
            Part::Replica(_) => {
                self.receiver(context, ReceiverEvent::Seal { epoch: sealed.epoch }, None)
            }
            Part::Idle => {}
        }
    }

    fn set_members(&mut self, context: &Context<'_>) {
        let (at, id) = (self.at(context), self.id);
        let cluster = &self.disk.cluster;
        let (Part::Replica(replica), Some(shard)) = (&mut self.part, cluster.shards.get(&SHARD))
        else {
            return;
        };
        let primary: Vec<_> = shard.voters.iter().copied().collect();
        let region = region_of(cluster, id);
        let mates: Vec<_> = cluster.nodes_of(region).map(|(id, _)| id).collect();
        replica.election.set_members(at, &primary, &mates);
    }
}

impl Part {
    /// A voter's group goes to the disk; a replica goes on.
    fn lose_if_voter(&mut self, disk: &mut Disk) {
        if let Part::Voter(voter) = self {
            disk.group = Some((voter.epoch, voter.raft.disk.clone()));
        }
    }
}

/// The sequence of the last batch in a group's log, decided or not.
fn end_of_log(group: &RaftDisk<Batch>) -> u64 {
    let last = group.log.iter().rev().find_map(|entry| entry.command);
    last.map_or(0, |batch| batch.position.sequence)
}
