//! A shard: its epoch, what it is doing, its voters, and the history that it has come by.

use std::collections::BTreeSet;

use meridian_types::{Epoch, NodeId, Position};
use serde::{Deserialize, Serialize};

use crate::report::FailoverReport;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    pub epoch: Epoch,
    pub phase: Phase,
    pub primary_region: String,
    /// Of the present epoch; all in the primary region, each in a data center of its own.
    pub voters: BTreeSet<NodeId>,
    pub preferred_leader: Option<NodeId>,
    /// The group may still have other voters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changing: Option<VoterChange>,
    /// Where each epoch left the history of the one before, oldest first; the last is the present
    /// one.
    pub bases: Vec<(Epoch, Position)>,
    /// Every failover and switchover, oldest first; the latest 16.
    #[serde(default)]
    pub reports: Vec<FailoverReport>,
}

/// A change of voters that the group is not known to have ended: until then any of these sets may
/// decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterChange {
    /// The voters before, and each set on the way that was changed again before it was confirmed.
    pub former: Vec<BTreeSet<NodeId>>,
    /// Of the cluster that first named the present voters.
    pub version: u64,
}

impl Shard {
    /// Whether it is a voter, or may still be one.
    pub fn may_vote(&self, node: NodeId) -> bool {
        self.voters.contains(&node)
            || self.former_voters().iter().any(|voters| voters.contains(&node))
    }

    /// Sets of voters, besides the present one, that may still decide.
    pub fn former_voters(&self) -> &[BTreeSet<NodeId>] {
        self.changing.as_ref().map_or(&[], |change| &change.former)
    }

    /// Where the present epoch left the history of the one before.
    pub fn base(&self) -> Position {
        self.bases.last().map_or(Position::ZERO, |(_, base)| *base)
    }

    /// Whether a batch that was committed at `position` is in the history of the present epoch. One
    /// that an earlier failover lost is not, though its epoch may be newer than that of the base.
    pub fn in_history(&self, position: Position) -> bool {
        let Some((_, own_base)) = self.bases.iter().find(|(epoch, _)| *epoch == position.epoch)
        else {
            return false;
        };
        let later = self.bases.iter().filter(|(epoch, _)| *epoch > position.epoch);
        (position == Position::ZERO || position.sequence > own_base.sequence)
            && later.into_iter().all(|(_, base)| position.sequence <= base.sequence)
    }
}

/// Where a shard is between two epochs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The voters make the group of this epoch from its base. Leases are granted.
    Forming,
    Active,
    /// A switchover to the region named is prepared: the target catches up, everything is served.
    SwitchingOver {
        to: String,
    },
    /// No more leases on this epoch. It ends with `Promote`.
    Sealing(Plan),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// `None`: whichever region has most.
    pub to: Option<String>,
    /// A switchover, or its abortion: nothing may be lost. Else a failover.
    pub planned: bool,
    /// Wall clock of the directory leader, milliseconds since the Unix epoch.
    pub since_ms: u64,
    pub cause: String,
}
