//! From one role in a shard to another: voter of an epoch, or replica.
//!
//! Invariants:
//! - The logs of groups of earlier epochs are examined before the node takes a role in a later one:
//!   they may hold batches that no other node has, and batches that the history lost.
//! - A node founds a group in the phase `Forming` alone. Later the others may have changed the voters,
//!   and a founder would believe that they are those it began with.
//! - A node that was sealed in the epoch takes its role sealed: there is no moment at which it is found
//!   unsealed.

use std::collections::BTreeSet;

use meridian_directory::{Phase, Shard};
use meridian_types::{Epoch, EpochHistory, NodeId, Position};

use crate::seal::Seal;

/// The present role of a node in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Nothing yet: it has just started, or a group was left.
    None,
    /// In the group of an epoch. `is_member`: the group's own log names this node as a voter.
    Voter { epoch: Epoch, is_member: bool },
    /// It follows, in this epoch.
    Replica { epoch: Epoch },
}

/// The disk of a node, once the old groups are examined.
#[derive(Debug, Clone, Copy)]
pub struct Local {
    /// Where the state ends.
    pub position: Position,
    /// The epoch whose group the state is a part of.
    pub group: Option<Epoch>,
    /// The seal of the present epoch.
    pub seal: Option<Seal>,
}

/// The inputs of the machine.
#[derive(Debug)]
pub enum RoleEvent<'a> {
    /// The shard as the directory knows it. `group`: the epoch whose group the state is a part of.
    View { shard: &'a Shard, role: Role, group: Option<Epoch> },
    /// [`RoleAction::ExamineOldGroups`] is through.
    Examined(Local),
    /// [`RoleAction::Found`] is through: whether this node is a founder of the group now.
    Formed { founder: bool },
}

/// How a node becomes a member of the group of the history's epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vote {
    pub history: EpochHistory,
    pub voters: BTreeSet<NodeId>,
    /// It has just founded the group, and so has neither been wiped nor promised anything in it.
    pub founder: bool,
    /// Other members reach it. The answer of a node that was sealed for good is final: it
    /// acknowledges nothing any more, not even to a leader that has not heard of the seal.
    pub answers: bool,
    /// It stands for election at once: no election timeout is waited for when a group is new.
    pub stands_first: bool,
}

/// The actions of the driver, in order, each to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoleAction {
    /// Ends this node's part in its group. `goes_on`: the group does without it, and what its log
    /// says is deleted; the votes and the mark of how far the log went stay.
    LeaveGroup { goes_on: bool },
    /// Ends the replica, once what it is writing is durable.
    StopReplica,
    /// Lets the replica go on into the next epochs.
    FollowOn(EpochHistory),
    /// Applies what the logs of earlier groups hold up to where the history left them, and keeps what
    /// they hold beyond. Then [`RoleEvent::Examined`].
    ExamineOldGroups(EpochHistory),
    /// Keeps what the replica's log holds and the history does not.
    KeepDivergence(EpochHistory),
    /// Empties the replica's log; the next batch is the one behind this position.
    EmptyReplicaLog { behind: Position },
    /// Has the replica's log begin right behind the state.
    JoinReplicaLog,
    /// Pulls what is missing up to the history's base. It may come to nothing.
    ReachBase(EpochHistory),
    /// Founds the group if the state stands at the base. Then [`RoleEvent::Formed`].
    Found { epoch: Epoch, base: Position, voters: BTreeSet<NodeId> },
    /// Removes what must not be mixed with what the group's leader is going to send: batches beyond
    /// the base in the replica's log, and a log of the group that the state is not a part of.
    PrepareToBeSeeded { epoch: Epoch, base: Position },
    /// Opens the group.
    Vote(Vote),
    /// Starts a replica. `sealed`: it takes nothing of this epoch.
    Follow { history: EpochHistory, sealed: Option<Epoch> },
    /// Holds no lease on the epoch any more.
    Fence(Epoch),
    /// Seals what was just opened, as [`Sealing::again`](crate::Sealing::again) says.
    SealVoter { planned: bool },
    /// Has the new replica take nothing more of the epoch.
    SealReplica(Epoch),
    /// Makes the role known: to callers, and to the directory, which waits for word of the new epoch.
    TakeUp,
}

/// Brings one shard's role on this node in line with what the directory says.
#[derive(Debug)]
pub struct RoleChange {
    node: NodeId,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Rest,
    Examining(Target),
    Forming(Target, Local),
}

/// The role to come.
#[derive(Debug)]
struct Target {
    shard: Shard,
    history: EpochHistory,
    votes: bool,
}

impl RoleChange {
    pub fn new(node: NodeId) -> Self {
        Self { node, stage: Stage::Rest }
    }

    /// Between two changes of role. Views that come meanwhile are to be shown again afterwards.
    pub fn is_at_rest(&self) -> bool {
        matches!(self.stage, Stage::Rest)
    }

    /// Takes an event. An event that the machine does not wait for does nothing.
    pub fn step(&mut self, event: RoleEvent<'_>) -> Vec<RoleAction> {
        match (std::mem::replace(&mut self.stage, Stage::Rest), event) {
            (Stage::Rest, RoleEvent::View { shard, role, group }) => self.view(shard, role, group),
            (Stage::Examining(target), RoleEvent::Examined(local)) => self.examined(target, local),
            (Stage::Forming(target, local), RoleEvent::Formed { founder }) => {
                self.vote(&target, local, founder)
            }
            (stage, _) => {
                self.stage = stage;
                Vec::new()
            }
        }
    }

    fn view(&mut self, shard: &Shard, role: Role, group: Option<Epoch>) -> Vec<RoleAction> {
        let history = EpochHistory::new(shard.bases.clone());
        let epoch = history.epoch();
        // A member that was taken out while it was down goes through the group once more, and leaves
        // it in order.
        let is_left_behind = role == Role::None && group == Some(epoch);
        let votes = shard.voters.contains(&self.node) || is_left_behind;
        let mut actions = Vec::new();
        match role {
            Role::Voter { epoch: present, .. } if votes && present == epoch => return actions,
            Role::Voter { epoch: present, is_member } => {
                let goes_on = present == epoch;
                if goes_on && is_member && !is_through(shard) {
                    return actions;
                }
                actions.push(RoleAction::LeaveGroup { goes_on });
            }
            Role::Replica { epoch: present } if !votes => {
                if present != epoch {
                    actions.push(RoleAction::FollowOn(history));
                }
                return actions;
            }
            Role::Replica { .. } => actions.push(RoleAction::StopReplica),
            Role::None => {}
        }
        actions.push(RoleAction::ExamineOldGroups(history.clone()));
        self.stage = Stage::Examining(Target { shard: shard.clone(), history, votes });
        actions
    }

    fn examined(&mut self, target: Target, local: Local) -> Vec<RoleAction> {
        let history = &target.history;
        let left = history.leaves(local.position);
        let mut actions = Vec::new();
        if left.is_some() {
            actions.push(RoleAction::KeepDivergence(history.clone()));
        }
        if !target.votes {
            let sealed = local.seal.map(|seal| seal.epoch);
            actions.push(RoleAction::JoinReplicaLog);
            actions.push(RoleAction::Follow { history: history.clone(), sealed });
            seal_again(&target, local, &mut actions);
            return actions;
        }
        let (epoch, base) = (history.epoch(), history.base());
        if let Some((_, behind)) = left {
            actions.push(RoleAction::EmptyReplicaLog { behind });
        } else if local.group != Some(epoch) && target.shard.phase == Phase::Forming {
            let voters = target.shard.voters.clone();
            actions.push(RoleAction::JoinReplicaLog);
            actions.push(RoleAction::ReachBase(history.clone()));
            actions.push(RoleAction::Found { epoch, base, voters });
            self.stage = Stage::Forming(target, local);
            return actions;
        }
        actions.extend(self.vote(&target, local, false));
        actions
    }

    fn vote(&self, target: &Target, local: Local, founder: bool) -> Vec<RoleAction> {
        let Target { shard, history, .. } = target;
        let mut actions = Vec::new();
        if !founder {
            let (epoch, base) = (history.epoch(), history.base());
            actions.push(RoleAction::PrepareToBeSeeded { epoch, base });
        }
        let first = shard.preferred_leader.or(shard.voters.first().copied());
        actions.push(RoleAction::Vote(Vote {
            history: history.clone(),
            voters: shard.voters.clone(),
            founder,
            answers: local.seal.is_none_or(|seal| seal.planned),
            stands_first: founder && first == Some(self.node),
        }));
        seal_again(target, local, &mut actions);
        actions
    }
}

/// Whether the directory has heard of a leader that no change of voters is under way. While an epoch
/// ends, its voters of either set are asked.
fn is_through(shard: &Shard) -> bool {
    shard.changing.is_none() && !matches!(shard.phase, Phase::Sealing(_))
}

/// Repeats the seal that the node promised before it restarted, or will be asked for. In a
/// switchover replicas go on; a replica that was sealed has begun so.
fn seal_again(target: &Target, local: Local, actions: &mut Vec<RoleAction>) {
    let epoch = target.history.epoch();
    let planned = match (&local.seal, &target.shard.phase) {
        (Some(seal), _) => Some(seal.planned),
        (None, Phase::Sealing(plan)) => Some(plan.planned),
        (None, _) => None,
    };
    if let Some(planned) = planned {
        actions.push(RoleAction::Fence(epoch));
        if target.votes {
            actions.push(RoleAction::SealVoter { planned });
        } else if !planned {
            actions.push(RoleAction::SealReplica(epoch));
        }
    }
    actions.push(RoleAction::TakeUp);
}

#[cfg(test)]
mod tests;
