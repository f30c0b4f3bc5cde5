//! The report of a node on a shard, sent with each renewal of its lease: to the controller of
//! failovers, and, through the directory's leader, to operators.

use crate::{DatabaseId, Epoch, NodeId, Position, ShardId};

/// How much of a shard is known to be committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CommitProgress {
    /// Since the shard was made.
    pub transactions: u64,
    /// The leader's time of the latest batch, milliseconds since the Unix epoch.
    pub time_ms: u64,
}

impl CommitProgress {
    /// Nothing is known.
    pub const NONE: CommitProgress = CommitProgress { transactions: 0, time_ms: 0 };

    pub fn new(transactions: u64, time_ms: u64) -> Self {
        Self { transactions, time_ms }
    }

    /// The most of both: what was committed stays committed.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            transactions: self.transactions.max(other.transactions),
            time_ms: self.time_ms.max(other.time_ms),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardReport {
    pub shard: ShardId,
    /// The epoch in which the node takes part or follows.
    pub epoch: Epoch,
    /// Durable and committed here.
    pub position: Position,
    /// Up to `position`.
    pub progress: CommitProgress,
    /// The node leads the group of `epoch`, and a quorum has answered within its election timeout.
    pub leads: bool,
    /// On a leader: the version of the cluster that it knows, if the group's voters are the ones
    /// that this version names, and no others may decide; else 0.
    pub voters_confirmed_at: u64,
    /// Behind the newest commit that the node knows of, in milliseconds; 0 on a leader.
    pub lag_ms: u64,
    /// The progress hint: how far the shard came in `epoch`, as directory leaders have told the
    /// node with its leases.
    pub hint: CommitProgress,
    /// Of the databases that are being deleted, those whose data the node has dropped in `epoch`.
    pub dropped: Vec<DatabaseId>,
    /// Nodes that applied another batch than this node did, and up to which position.
    pub divergences: Vec<(NodeId, Position)>,
    /// Why the node did not store a batch that others sent it of late.
    pub refuses: Option<String>,
}

impl ShardReport {
    /// Of a node that follows, without delay, and has nothing else to say.
    pub fn new(shard: ShardId, epoch: Epoch, position: Position, progress: CommitProgress) -> Self {
        Self {
            shard,
            epoch,
            position,
            progress,
            leads: false,
            voters_confirmed_at: 0,
            lag_ms: 0,
            hint: CommitProgress::NONE,
            dropped: Vec::new(),
            divergences: Vec::new(),
            refuses: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_of_two_is_the_most_of_each_part() {
        let (one, other) = (CommitProgress::new(100, 7), CommitProgress::new(90, 8));
        assert_eq!(one.max(other), CommitProgress::new(100, 8));
        assert_eq!(CommitProgress::NONE.max(one), one);
    }
}
