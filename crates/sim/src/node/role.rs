//! Carries out what [`RoleChange`](meridian_placement::RoleChange) decides, on the simulated disk.

use std::sync::Arc;

use meridian_directory::Shard;
use meridian_placement::{Local, Role, RoleAction, RoleEvent, Vote};
use meridian_shipping::ReceiverEvent;
use meridian_types::{Epoch, EpochHistory};

use super::part::Part;
use super::replica::Replica;
use super::voter::Voter;
use super::{Context, Node};
use crate::bugs::Bug;
use crate::raft::{Members, RaftDisk};
use crate::topology::{SHARD, region_of};

/// The outcome of a step.
enum Step {
    Done,
    Learnt(RoleEvent<'static>),
    /// It is to be tried again: what the node is writing goes on.
    Again(RoleAction),
    /// It goes on by itself, and continues the change when it is through.
    Began,
}

impl Node {
    /// Takes the role that the cluster gives, if it is another than the present one.
    pub(super) fn reconcile(&mut self, context: &mut Context<'_>) {
        let cluster = Arc::clone(&self.disk.cluster);
        let Some(shard) = cluster.shards.get(&SHARD) else { return };
        if self.steps.is_empty() && self.change.is_at_rest() {
            let (role, group) = (self.role(), self.group_of_state());
            self.steps.extend(self.change.step(RoleEvent::View { shard, role, group }));
        }
        self.go_on_changing(context);
        self.give_up_an_unwanted_state(context, shard);
        self.set_members(context);
    }

    pub(super) fn go_on_changing(&mut self, context: &mut Context<'_>) {
        while self.pulling.is_none()
            && let Some(action) = self.steps.pop_front()
        {
            match self.carry_out(context, action) {
                Step::Done => {}
                Step::Learnt(event) => self.steps.extend(self.change.step(event)),
                Step::Again(action) => return self.steps.push_front(action),
                Step::Began => return,
            }
        }
    }

    fn role(&self) -> Role {
        match &self.part {
            Part::None => Role::None,
            Part::Voter(voter) => Role::Voter {
                epoch: voter.epoch,
                is_member: voter.raft.members().is_voter(self.id),
            },
            Part::Replica(replica) => Role::Replica { epoch: replica.receiver.epoch() },
        }
    }

    /// A founder's group, or one whose leader sent its state.
    pub(super) fn group_of_state(&self) -> Option<Epoch> {
        let group = self.disk.group.as_ref();
        group.filter(|(_, disk)| disk.founders != Members::default()).map(|(epoch, _)| *epoch)
    }

    fn carry_out(&mut self, context: &mut Context<'_>, action: RoleAction) -> Step {
        match action {
            RoleAction::Fence(_) | RoleAction::SealVoter { .. } | RoleAction::SealReplica(_)
                if context.bug == Some(Bug::LoseTheSealInACrash) => {}
            RoleAction::LeaveGroup { goes_on } => self.leave_group(context, goes_on),
            RoleAction::StopReplica => {
                if self.replica().is_some_and(|replica| !replica.stop()) {
                    return Step::Again(RoleAction::StopReplica);
                }
                self.close_senders(context);
                self.part = Part::None;
                (self.whole, self.order) = (None, None);
            }
            RoleAction::FollowOn(history) => {
                self.keep_divergence(context, &history);
                self.close_senders(context);
                (self.whole, self.order) = (None, None);
                self.learn_epochs(context, history);
            }
            RoleAction::ExamineOldGroups(history) => {
                self.keep_divergence(context, &history);
                let seal = self.disk.sealed.filter(|seal| seal.epoch == history.epoch());
                let (position, group) = (self.end(), self.group_of_state());
                return Step::Learnt(RoleEvent::Examined(Local { position, group, seal }));
            }
            RoleAction::EmptyReplicaLog { .. } => self.disk.purged = self.disk.history.len(),
            RoleAction::ReachBase(history) => {
                self.pull_to_base(context, history);
                return if self.pulling.is_some() { Step::Began } else { Step::Done };
            }
            RoleAction::Found { epoch, base, voters } => {
                let founder = self.end() == base;
                if founder {
                    let kept = self.disk.group.take().filter(|(of, _)| *of == epoch);
                    let mut disk = kept.map(|(_, disk)| disk).unwrap_or_default();
                    (disk.founders, disk.vouched) = (Members::of(voters), true);
                    self.disk.group = Some((epoch, disk));
                }
                return Step::Learnt(RoleEvent::Formed { founder });
            }
            RoleAction::Vote(vote) => self.vote(context, vote),
            RoleAction::Follow { history, sealed } => self.follow(context, history, sealed),
            RoleAction::Fence(epoch) => self.lease.seal(SHARD, epoch),
            RoleAction::SealVoter { planned } => self.seal_again(context, planned),
            RoleAction::SealReplica(epoch) => {
                self.receiver(context, ReceiverEvent::Seal { epoch }, None);
            }
            RoleAction::TakeUp => self.renew_now(),
            // The simulated node has one history, and no log of a replica beside it.
            RoleAction::KeepDivergence(_)
            | RoleAction::JoinReplicaLog
            | RoleAction::PrepareToBeSeeded { .. } => {}
        }
        Step::Done
    }

    /// A group that goes on counts on this voter's votes, and on how far its log went, which is
    /// deleted.
    fn leave_group(&mut self, context: &mut Context<'_>, goes_on: bool) {
        self.close_senders(context);
        let Part::Voter(voter) = std::mem::replace(&mut self.part, Part::None) else { return };
        let (epoch, last) = (voter.epoch, voter.raft.last());
        let mut disk = voter.raft.disk;
        if goes_on {
            let left = disk.left.max(last);
            context.say(|| format!("n{} leaves the group of {epoch} at {left:?}", self.id));
            let RaftDisk { term, voted_for, .. } = disk;
            disk = RaftDisk { term, voted_for, left, ..RaftDisk::default() };
        }
        self.disk.group = Some((epoch, disk));
    }

    fn follow(&mut self, context: &mut Context<'_>, history: EpochHistory, sealed: Option<Epoch>) {
        let epoch = history.epoch();
        // The log of its former group was looked through.
        self.disk.group = self.disk.group.take().filter(|(of, _)| *of == epoch);
        let replica = Replica::new(self.id, self.at(context), self.end(), history.clone());
        self.part = Part::Replica(Box::new(replica));
        self.learn_epochs(context, history);
        if let Some(epoch) = sealed {
            self.receiver(context, ReceiverEvent::Seal { epoch }, None);
        }
    }

    fn learn_epochs(&mut self, context: &mut Context<'_>, history: EpochHistory) {
        let bases = history.bases().to_vec();
        if let Some(replica) = self.replica() {
            replica.history = history;
        }
        for (epoch, base) in bases {
            self.receiver(context, ReceiverEvent::Epoch { epoch, base }, None);
        }
    }

    fn vote(&mut self, context: &mut Context<'_>, vote: Vote) {
        let (at, epoch, base) = (self.at(context), vote.history.epoch(), vote.history.base());
        let kept = self.disk.group.take().filter(|(of, _)| *of == epoch);
        let disk = kept.map(|(_, group)| group).unwrap_or_default();
        let seeded = disk.founders != Members::default();
        let end = self.end();
        context.say(|| {
            format!("n{} votes in {epoch} from {base}, at {end}, seeded {seeded}", self.id)
        });
        let mut voter = Voter::new(self.id, vote.history, disk, at, context.rng);
        voter.seeded = seeded;
        if vote.stands_first {
            voter.raft.hurry(at);
        }
        self.part = Part::Voter(Box::new(voter));
    }

    fn set_members(&mut self, context: &Context<'_>) {
        let (at, id) = (self.at(context), self.id);
        let cluster = &self.disk.cluster;
        let (Part::Replica(replica), Some(shard)) = (&mut self.part, cluster.shards.get(&SHARD))
        else {
            return;
        };
        if replica.members_version == Some(cluster.version) {
            return;
        }
        replica.members_version = Some(cluster.version);
        let primary: Vec<_> = shard.voters.iter().copied().collect();
        let region = region_of(cluster, id);
        let mates: Vec<_> = cluster.nodes_of(region).map(|(id, _)| id).collect();
        replica.election.set_members(at, &primary, &mates);
    }

    /// Others have founded the group meanwhile.
    fn give_up_an_unwanted_state(&mut self, context: &mut Context<'_>, shard: &Shard) {
        if !self.is_forming(shard) {
            self.unwanted(context);
        }
    }
}
