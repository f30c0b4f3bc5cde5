//! How an epoch ended: what was kept of it, and what was lost.

use std::collections::BTreeSet;

use meridian_types::{Epoch, NodeId, Position};
use serde::{Deserialize, Serialize};

use crate::quorum::majority;

/// How one epoch ended and the next began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverReport {
    /// The epoch that began.
    pub epoch: Epoch,
    pub from_region: String,
    pub to_region: String,
    pub planned: bool,
    pub cause: String,
    pub base: Position,
    /// Transactions of the shard up to the base, since it was made.
    pub base_transactions: u64,
    /// The old leader's time of the batch at the base, milliseconds since the Unix epoch.
    pub base_time_ms: u64,
    /// Wall clock of the directory leader: when sealing began, and when the epoch did.
    pub sealed_at_ms: u64,
    pub promoted_at_ms: u64,
    pub loss: Loss,
    /// The voters of the epoch that ended: a majority of them knows all that was committed in it.
    #[serde(default)]
    pub old_voters: BTreeSet<NodeId>,
    /// The epoch ended during a change of voters: what was committed is known to a majority of
    /// `old_voters`, or of one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_voters: Vec<BTreeSet<NodeId>>,
}

impl FailoverReport {
    /// Whether what this node had beyond the base is of weight.
    pub fn is_judged_by(&self, node: NodeId) -> bool {
        self.voter_sets().any(|voters| voters.contains(&node))
    }

    /// Whether this node has to show yet what it had beyond the base.
    pub fn waits_for(&self, node: NodeId) -> bool {
        !self.planned && self.is_judged_by(node) && !self.loss.shown_by.contains(&node)
    }

    /// Whether so many have shown what they had beyond the base that more than their most was not
    /// lost.
    pub fn is_bounded(&self) -> bool {
        let mut sets = self.voter_sets();
        self.loss.exact
            || sets.all(|voters| {
                voters.intersection(&self.loss.shown_by).count() >= majority(voters.len())
            })
    }

    fn voter_sets(&self) -> impl Iterator<Item = &BTreeSet<NodeId>> {
        [&self.old_voters].into_iter().chain(&self.former_voters)
    }
}

/// The transactions committed in the old epoch beyond the base, as far as they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// At least so many: known to have been committed.
    pub transactions: u64,
    /// From the base's batch to the last batch known to be lost, by the old leader's clock.
    pub window_ms: u64,
    /// It was `transactions`, no more and no less: a switchover, or a majority of each set of old
    /// voters has shown its log, and nothing in there is undecided.
    pub exact: bool,
    /// Nodes that have come back and shown what they had beyond the base.
    #[serde(default)]
    pub shown_by: BTreeSet<NodeId>,
    /// The most that any of these holds, undecided batches included. No more was lost, once the
    /// report [is bounded](FailoverReport::is_bounded).
    #[serde(default)]
    pub at_most: u64,
}
