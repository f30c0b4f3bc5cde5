//! The part of this node in one shard, a voter or a replica, and the questions that both answer.

use std::sync::Arc;

use meridian_proto::verify_checksum;
use meridian_storage::{AppliedMark, ReadView, ShardState, StorageError, StoredBatch};
use meridian_types::{DatabaseId, Epoch, EpochHistory, NodeId, ReadRange};
use tokio::sync::watch;

use crate::read::freshness::wait_applied;
use crate::read::refusal::{NotServed, ReadRefusal};
use crate::shard::replica::Replica;
use crate::shard::voter::Voter;
use crate::time_budget::READ_INDEX_TIMEOUT;

/// A shard on this node.
#[derive(Clone)]
pub(crate) enum LocalShard {
    Voter(Arc<Voter>),
    Replica(Arc<Replica>),
}

impl LocalShard {
    /// The epoch that it takes part in, or follows.
    pub(crate) fn epoch(&self) -> Epoch {
        match self {
            Self::Voter(voter) => voter.group.id().epoch,
            Self::Replica(replica) => replica.history().epoch(),
        }
    }

    /// The leader, as far as this node knows.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        match self {
            Self::Voter(voter) => voter.group.status().leader,
            Self::Replica(_) => None,
        }
    }

    pub(crate) fn history(&self) -> EpochHistory {
        match self {
            Self::Voter(voter) => voter.history.clone(),
            Self::Replica(replica) => replica.history(),
        }
    }

    /// The newest sequence that is no longer in the log.
    pub(crate) fn purged(&self) -> Result<u64, StorageError> {
        match self {
            Self::Voter(voter) => voter.purged(),
            Self::Replica(replica) => Ok(replica.purged()),
        }
    }

    /// Committed batches behind `after`. `None`: they are no longer in the log.
    pub(crate) fn batches_after(
        &self,
        after: u64,
        max_bytes: usize,
    ) -> Result<Option<Vec<StoredBatch>>, StorageError> {
        let batches = match self {
            Self::Voter(voter) => voter.batches_after(after, max_bytes),
            Self::Replica(replica) => replica.batches_after(after, max_bytes),
        }?;
        // The caller would refuse what memory or disk has changed here, and ask again for ever.
        for StoredBatch { sequence, bytes } in batches.iter().flatten() {
            verify_checksum(bytes).map_err(|error| StorageError::Corruption {
                what: format!("batch {sequence} in a log of shard {}", self.state().shard()),
                detail: error.to_string(),
            })?;
        }
        Ok(batches)
    }

    pub(crate) fn state(&self) -> &Arc<ShardState> {
        match self {
            Self::Voter(voter) => &voter.state,
            Self::Replica(replica) => replica.state(),
        }
    }

    pub(crate) fn applied(&self) -> watch::Receiver<AppliedMark> {
        match self {
            Self::Voter(voter) => voter.group.applied(),
            Self::Replica(replica) => replica.applied(),
        }
    }

    /// Once this part has come to its end: nothing more is applied here.
    pub(crate) async fn ended(&self) {
        match self {
            Self::Voter(voter) => voter.stop.cancelled().await,
            // The sender of what it has applied ends with it.
            Self::Replica(_) => std::future::pending().await,
        }
    }

    /// Waits until the state may be shown, and is no older than `min_sequence`.
    pub(crate) async fn reaches(&self, min_sequence: u64) -> Result<(), NotServed> {
        let has_caught_up = match self {
            Self::Voter(voter) => voter.has_caught_up(),
            Self::Replica(replica) => replica.has_caught_up(),
        };
        if !has_caught_up {
            return Err(ReadRefusal::NotCaughtUp.into());
        }
        if !wait_applied(self.applied(), min_sequence, READ_INDEX_TIMEOUT).await {
            return Err(ReadRefusal::BehindGateway.into());
        }
        Ok(())
    }

    /// An eventual read, from a state no older than `min_sequence`.
    pub(crate) async fn read_eventual(
        &self,
        database: DatabaseId,
        ranges: &[ReadRange],
        min_sequence: u64,
    ) -> Result<ReadView, NotServed> {
        self.reaches(min_sequence).await?;
        let reads = match self {
            Self::Voter(voter) => voter.reads(),
            Self::Replica(replica) => replica.reads(),
        };
        let view = reads.read(self.state(), database, ranges).await?;
        // The state, and the shard's history, may be others than when the wait was over.
        if view.position.sequence < min_sequence || self.history().leaves(view.position).is_some() {
            return Err(ReadRefusal::OtherEpoch.into());
        }
        Ok(view)
    }
}
