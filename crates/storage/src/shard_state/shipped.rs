//! Application of shipped batches, outside of any Raft group.

use meridian_proto::DecodedBatch;

use super::{RaftApplied, ShardState};
use crate::StorageError;

impl ShardState {
    /// How many bytes of batches go into one write, but for the last of them: a whole write is in
    /// memory at once, and keeps those of the logs out while it takes place.
    pub const APPLY_BYTES: usize = 2 << 20;

    /// As [`ShardState::apply`], in as many writes as it takes; none for nothing, since that would
    /// take from a voter's state where it stands in its group.
    pub fn apply_shipped(
        &self,
        batches: impl IntoIterator<Item = DecodedBatch>,
    ) -> Result<(), StorageError> {
        let (mut part, mut bytes) = (Vec::new(), 0);
        let mut batches = batches.into_iter().peekable();
        while let Some(batch) = batches.next() {
            bytes += batch.len;
            part.push(batch);
            if bytes >= Self::APPLY_BYTES || batches.peek().is_none() {
                self.apply(&part, RaftApplied::default())?;
                part.clear();
                bytes = 0;
            }
        }
        Ok(())
    }
}
