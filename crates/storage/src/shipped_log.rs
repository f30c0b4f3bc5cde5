//! The log of a replica: the stored batches that it took of a shard, by sequence, in one log for
//! all epochs.
//!
//! Invariants:
//! - A batch may be applied, reported and served once an fsync that began after its append is
//!   through.
//! - The log is purged only up to what is flushed of the state that it is applied to.
//! - The log ends with the batch that the state ends with, or it is empty: what is appended next is
//!   the batch behind both. [`ShippedLog::replay`] and [`ShippedLog::join_behind`] bring that
//!   about after a crash and after a change of role.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use meridian_proto::{DecodedBatch, decode_stored};
use meridian_types::{Epoch, ShardId};

use crate::{
    Applied, Engine, GroupId, GroupLog, LogMark, RaftApplied, RecordKind, Replace, ShardState,
    StagedState, StorageError, or_fatal,
};

/// In the place of an epoch: sequences go on from one to the next, and so does the log.
const NO_EPOCH: Epoch = Epoch(0);
/// How much of the log is in memory at once while it is applied again.
const REPLAY_BYTES: usize = 8 << 20;

/// A batch as it lies in a log: encoded once, by its leader, with its checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBatch {
    pub sequence: u64,
    pub bytes: Bytes,
}

/// The log of a replica. Clones are of the same log.
#[derive(Clone)]
pub struct ShippedLog {
    records: GroupLog,
}

impl StoredBatch {
    fn from_record((sequence, bytes): (u64, Bytes)) -> Self {
        Self { sequence, bytes }
    }
}

impl ShippedLog {
    /// # Errors
    /// When the `log` family cannot be made.
    pub fn open(engine: &Arc<dyn Engine>, shard: ShardId) -> Result<Self, StorageError> {
        let group = GroupId { shard, epoch: NO_EPOCH };
        let records = GroupLog::open(Arc::clone(engine), group, RecordKind::Shipped)?;
        Ok(Self { records })
    }

    /// Appends stored batches under their sequences. Readable on return, durable after the next
    /// sync ([`crate::Syncer`], or [`ShippedLog::sync`]).
    ///
    /// # Errors
    /// When storage fails.
    pub fn append<'a>(
        &self,
        batches: impl IntoIterator<Item = (u64, &'a [u8])>,
    ) -> Result<(), StorageError> {
        self.records.append(batches)
    }

    /// Makes every write so far durable. Blocks for an fsync.
    ///
    /// # Errors
    /// When storage fails.
    pub fn sync(&self) -> Result<(), StorageError> {
        self.records.sync()
    }

    /// The oldest batch.
    ///
    /// # Errors
    /// When storage fails.
    pub fn first(&self) -> Result<Option<StoredBatch>, StorageError> {
        Ok(self.records.first()?.map(StoredBatch::from_record))
    }

    /// The newest batch.
    ///
    /// # Errors
    /// When storage fails.
    pub fn last(&self) -> Result<Option<StoredBatch>, StorageError> {
        Ok(self.records.last()?.map(StoredBatch::from_record))
    }

    /// The batches of a range that are there, ascending, of at most `max_bytes` together; at least
    /// one if there is one.
    ///
    /// # Errors
    /// When storage fails.
    pub fn read(
        &self,
        sequences: Range<u64>,
        max_bytes: usize,
    ) -> Result<Vec<StoredBatch>, StorageError> {
        let records = self.records.read(sequences, max_bytes)?;
        Ok(records.into_iter().map(StoredBatch::from_record).collect())
    }

    /// The batches behind `after`, up to and including `through`, of about `max_bytes` together.
    /// `None`: the batch right behind `after` is not there, or a later one is missing.
    ///
    /// # Errors
    /// When storage fails.
    pub fn batches_after(
        &self,
        after: u64,
        through: u64,
        max_bytes: usize,
    ) -> Result<Option<Vec<StoredBatch>>, StorageError> {
        let batches = self.read(after + 1..through + 1, max_bytes)?;
        if batches.is_empty() && after < through {
            return Ok(None);
        }
        let follow = contiguous_from(after + 1, &batches);
        Ok((follow == batches.len()).then_some(batches))
    }

    /// The newest sequence that was purged, as the log's mark says.
    ///
    /// # Errors
    /// When storage fails.
    pub fn purged(&self) -> Result<Option<u64>, StorageError> {
        let mark = self.records.mark(LogMark::Purged)?;
        Ok(mark.and_then(|bytes| bytes.as_ref().try_into().ok().map(u64::from_be_bytes)))
    }

    /// Deletes the batches up to and including `sequence`. The caller knows that they are flushed.
    ///
    /// # Errors
    /// When storage fails.
    pub fn purge_through(&self, sequence: u64) -> Result<(), StorageError> {
        self.records.purge_through(sequence, Some((LogMark::Purged, &sequence.to_be_bytes())))
    }

    /// Flushes the state, and purges the log up to `sequence`, or as far as was flushed; up to
    /// where.
    ///
    /// # Errors
    /// When storage fails.
    pub fn purge_flushed(&self, state: &ShardState, sequence: u64) -> Result<u64, StorageError> {
        // Another state that is put in place meanwhile may begin before what was flushed of this
        // one, and the log behind it is not flushed.
        let _one_state = state.hold_in_place();
        let through = sequence.min(state.flush()?.position.sequence);
        self.purge_through(through)?;
        Ok(through)
    }

    /// Empties the log. The next batch is the one behind `sequence`.
    ///
    /// # Errors
    /// When storage fails.
    pub fn restart_behind(&self, sequence: u64) -> Result<(), StorageError> {
        self.records.purge_through(u64::MAX, Some((LogMark::Purged, &sequence.to_be_bytes())))
    }

    /// Makes the log begin right behind the state, where it does not end with it.
    ///
    /// # Errors
    /// When storage fails.
    pub fn join_behind(&self, state: &ShardState) -> Result<(), StorageError> {
        let sequence = state.position().sequence;
        match self.last()? {
            // Left from before this node voted: what lies between is in no log here.
            Some(last) if last.sequence != sequence => self.restart_behind(sequence),
            Some(_) => Ok(()),
            None => self.purge_through(sequence),
        }
    }

    /// Applies what the log holds behind the state. To be called before anything is judged by the
    /// state's position. Batches behind a hole are deleted.
    ///
    /// # Errors
    /// When storage fails, or the log does not connect to the state.
    pub fn replay(&self, state: &ShardState) -> Result<(), StorageError> {
        loop {
            let next = state.position().sequence + 1;
            let records = self.read(next..u64::MAX, REPLAY_BYTES)?;
            let follow = contiguous_from(next, &records);
            let hole = follow < records.len();
            let batches = records.into_iter().take(follow).map(|batch| decode_batch(batch.bytes));
            let batches = batches.collect::<Result<Vec<_>, _>>()?;
            let done = batches.is_empty();
            state.apply_shipped(batches)?;
            if hole {
                // Batches behind a hole that a power loss left were never durable, and never
                // reported.
                let last = state.position().sequence;
                let log = self.records.group();
                tracing::warn!(%log, last, "the log has a hole: what lies behind it is fetched again");
                self.records.truncate_after(last)?;
                // Before anything takes the place of what was cut. Else a power loss could undo the
                // cut and keep what a later epoch appended: a log that goes on with what that
                // epoch's history does not hold.
                return self.sync();
            }
            if done {
                return Ok(());
            }
        }
    }

    /// Replaces the state, and empties the log. The state in use is flushed first, since the log
    /// that it may be made from again is emptied next, and marked as purged up to the new position;
    /// the installation makes both durable, in this order, with the new state's name. A crash in
    /// between finds the old state and no log.
    ///
    /// # Errors
    /// When the staged state is incomplete, or may not replace the one in use; nothing has changed
    /// then. Any other failure stops the process.
    pub fn replace_state(
        &self,
        state: &ShardState,
        staged: StagedState,
        replace: Replace,
    ) -> Result<Applied, StorageError> {
        let _one_state = state.hold_in_place();
        let new = staged.position()?;
        let old = or_fatal(state.flush()).position;
        if new < old && replace == Replace::Older {
            return Err(StorageError::Stale { snapshot: new, state: old });
        }
        or_fatal(self.restart_behind(new.sequence));
        // Before the new state has a name. Else a power loss could keep the name and the log, and
        // what lies there may not be what follows that state.
        or_fatal(self.sync());
        Ok(or_fatal(state.install(staged, RaftApplied::default(), replace)))
    }
}

/// How many of the batches follow one another, beginning with sequence `first`.
fn contiguous_from(first: u64, batches: &[StoredBatch]) -> usize {
    let found = batches.iter().map(|batch| batch.sequence);
    found.zip(first..).take_while(|(found, expected)| found == expected).count()
}

/// Decodes a batch that this node stored.
///
/// # Errors
/// [`StorageError::Corruption`].
pub fn decode_batch(bytes: Bytes) -> Result<DecodedBatch, StorageError> {
    decode_stored(bytes).map_err(|error| StorageError::corruption("a shipped batch", error))
}

#[cfg(test)]
mod tests;
