//! A voter's log, as other nodes follow it: Raft's own, and before the base what the node took as a
//! replica.

use meridian_consensus::ReadLogFailure;
use meridian_storage::{StorageError, StoredBatch};

use super::Voter;

impl Voter {
    /// The newest sequence that is in no log of this node any more.
    pub(crate) fn purged(&self) -> Result<u64, StorageError> {
        let base = self.history.base().sequence;
        let first = self.group.first_sequence()?;
        let purged = first.map_or_else(|| self.state.position().sequence, |first| first - 1);
        // Asked for each batch that is shipped: nothing lies before the first epoch.
        if purged > base || base == 0 {
            return Ok(purged);
        }
        let reaches_base = self.shipped.last()?.is_some_and(|last| last.sequence == base);
        let first = self.shipped.first()?.filter(|_| reaches_base);
        Ok(first.map_or(purged, |first| first.sequence - 1))
    }

    /// As `LocalShard::batches_after`: from before the base as a replica took it, else from
    /// Raft's log.
    pub(crate) fn batches_after(
        &self,
        after: u64,
        max_bytes: usize,
    ) -> Result<Option<Vec<StoredBatch>>, StorageError> {
        let base = self.history.base().sequence;
        if after < base {
            return self.shipped.batches_after(after, base, max_bytes);
        }
        match self.group.committed_batches(after + 1, max_bytes) {
            Ok(batches) => Ok(Some(batches)),
            Err(ReadLogFailure::Purged) => Ok(None),
            Err(ReadLogFailure::Storage(error)) => Err(error),
        }
    }

    /// Purges what this node took before the epoch began, up to `sequence` at most.
    pub(crate) fn purge_shipped_through(&self, sequence: u64) -> Result<(), StorageError> {
        let through = sequence.min(self.history.base().sequence);
        match self.shipped.first()? {
            Some(first) if first.sequence <= through => self.shipped.purge_through(through),
            _ => Ok(()),
        }
    }
}
