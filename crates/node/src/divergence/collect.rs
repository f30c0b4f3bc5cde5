//! What a later epoch's history does not hold: kept in orphan files before anything replaces it.

use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use meridian_consensus::{forget_group, is_in_use, log_batches_beyond};
use meridian_proto::batch_header;
use meridian_storage::{
    Applied, GroupId, HighWater, RaftApplied, ShardState, ShippedLog, StorageError, decode_batch,
};
use meridian_types::{Epoch, EpochHistory, Position, ShardId};

use crate::divergence::orphan_files::OrphanWriter;

const READ_BYTES: usize = 4 << 20;

/// Keeps the batches that a replica took, and `history` does not hold. How many.
pub(crate) fn keep_shipped(
    data_dir: &Path,
    state: &ShardState,
    history: &EpochHistory,
    log: &ShippedLog,
) -> Result<u64, StorageError> {
    let mut tail = LostTail::new(data_dir, state.shard(), history);
    tail.state = Some(state.applied());
    if let Some(oldest) = log.first()?
        && let Some(lowest) = lowest_base(history, header(tail.shard, &oldest.bytes)?.epoch)
    {
        let mut next = lowest.sequence + 1;
        loop {
            let batches = log.read(next..u64::MAX, READ_BYTES)?;
            let Some(last) = batches.last() else { break };
            next = last.sequence + 1;
            for batch in &batches {
                // Only what was committed is shipped.
                tail.push(&batch.bytes, true)?;
            }
        }
    }
    tail.finish()
}

/// Keeps what the logs of groups of earlier epochs hold beyond where the shard's history left
/// theirs, and deletes those logs. May be called again after a crash at any point.
pub(crate) fn examine_old_groups(
    state: &ShardState,
    high_water: &HighWater,
    data_dir: &Path,
    history: &EpochHistory,
) -> Result<(), StorageError> {
    let (engine, shard) = (state.engine(), state.shard());
    for (old, _) in history.bases() {
        let Some(lowest) = lowest_base(history, *old) else { break };
        let group = GroupId { shard, epoch: *old };
        if !is_in_use(engine, group)? {
            // Nothing here, or forgotten before: most epochs, at every start and every change of
            // epoch.
            continue;
        }
        apply_committed(state, group, lowest)?;
        let mut tail = LostTail::new(data_dir, shard, history);
        tail.state = Some(state.applied()).filter(|applied| applied.raft.epoch == Some(*old));
        let shipped = ShippedLog::open(engine, shard)?;
        if let (Some(first), Some(last)) = (shipped.first()?, shipped.last()?) {
            tail.elsewhere = first.sequence..last.sequence + 1;
        }
        log_batches_beyond(
            engine,
            group,
            lowest.sequence,
            &mut |_, _, bytes: Bytes, committed| tail.push(&bytes, committed),
        )?;
        let batches = tail.finish()?;
        if batches > 0 {
            tracing::warn!(%group, %lowest, batches, "kept what this node's log held and the shard's history lost");
        }
        forget_group(engine, group, Some(high_water))?;
    }
    Ok(())
}

/// What the group had committed and the history holds is in its log, and was not flushed when the
/// process ended: without it this node may lack what no other node has. It stays the group's state:
/// after a crash that kept part of it, the rest is applied by the next call.
fn apply_committed(state: &ShardState, group: GroupId, base: Position) -> Result<(), StorageError> {
    let applied = state.applied();
    if applied.raft.epoch != Some(group.epoch) || applied.position.sequence >= base.sequence {
        return Ok(());
    }
    let after = applied.position.sequence;
    log_batches_beyond(
        state.engine(),
        group,
        after,
        &mut |sequence, log_id, bytes: Bytes, committed| {
            if committed && sequence <= base.sequence && sequence == state.position().sequence + 1 {
                state.apply(
                    &[decode_batch(bytes)?],
                    RaftApplied { log_id: Some(log_id), ..applied.raft.clone() },
                )?;
            }
            Ok(())
        },
    )?;
    state.flush().map(drop)
}

/// The lowest of the bases of epochs later than `epoch`: a later epoch may have begun behind less
/// than the next.
fn lowest_base(history: &EpochHistory, epoch: Epoch) -> Option<Position> {
    let later = history.bases().iter().filter(|(later, _)| *later > epoch);
    later.map(|(_, base)| *base).min_by_key(|base| base.sequence)
}

fn header(shard: ShardId, batch: &[u8]) -> Result<Position, StorageError> {
    let corrupt = |error: meridian_proto::InvalidBatch| StorageError::Corruption {
        what: format!("a batch in a log of shard {shard}"),
        detail: error.to_string(),
    };
    Ok(batch_header(batch).map_err(corrupt)?.0)
}

/// What this node has, and the shard's history does not: one file for each epoch that cut some of
/// it off.
struct LostTail<'a> {
    data_dir: &'a Path,
    shard: ShardId,
    history: &'a EpochHistory,
    /// What the state reflects, if it is made of the same batches.
    state: Option<Applied>,
    /// Sequences of another log, which are kept from there.
    elsewhere: Range<u64>,
    stretches: Vec<Stretch>,
    /// The last batch.
    end: Position,
}

/// The batches that one epoch cut off.
struct Stretch {
    writer: OrphanWriter,
    first: u64,
    /// Transactions that the state has, and committed ones that it has not yet.
    applied: u64,
    ahead: u64,
}

impl<'a> LostTail<'a> {
    fn new(data_dir: &'a Path, shard: ShardId, history: &'a EpochHistory) -> Self {
        let (state, stretches, end) = (None, Vec::new(), Position::ZERO);
        Self { data_dir, shard, history, state, elsewhere: 0..0, stretches, end }
    }

    /// The next batch of a log.
    fn push(&mut self, bytes: &[u8], committed: bool) -> Result<(), StorageError> {
        let position = header(self.shard, bytes)?;
        let Some((epoch, base)) = self.history.leaves(position) else { return Ok(()) };
        self.end = position;
        let mut stretch = self.stretch(epoch, base, position.sequence)?;
        let transactions = stretch.writer.push(bytes, committed)?;
        let is_applied =
            self.state.as_ref().is_some_and(|state| position.sequence <= state.position.sequence);
        if is_applied {
            stretch.applied += transactions;
        } else if committed {
            stretch.ahead += transactions;
        }
        self.stretches.push(stretch);
        Ok(())
    }

    /// Takes out that of `epoch`, or begins it with the batch `first`.
    fn stretch(
        &mut self,
        epoch: Epoch,
        base: Position,
        first: u64,
    ) -> Result<Stretch, StorageError> {
        if let Some(at) =
            self.stretches.iter().position(|stretch| stretch.writer.header().epoch == epoch)
        {
            return Ok(self.stretches.swap_remove(at));
        }
        let writer = OrphanWriter::create(self.data_dir, self.shard, epoch, base)?;
        Ok(Stretch { writer, first, applied: 0, ahead: 0 })
    }

    /// Makes the files durable. How many batches they hold.
    fn finish(mut self) -> Result<u64, StorageError> {
        let state = self.state.take();
        let ahead: u64 = self.stretches.iter().map(|stretch| stretch.ahead).sum();
        // Up to the end of the stretch at hand, if that is known.
        let mut total = state.as_ref().map(|state| state.total_transactions + ahead);
        let mut time_ms = state.as_ref().map_or(0, |state| state.time_ms);
        let mut end = state.map_or(self.end, |state| self.end.max(state.position));
        let mut kept = 0;
        while let Some((epoch, base)) = self.history.leaves(end) {
            // One without batches says of what the log was purged.
            let mut stretch = self.stretch(epoch, base, end.sequence + 1)?;
            stretch.writer.set_committed_total(total.unwrap_or(0));
            let next = base.sequence + 1;
            let from = if self.elsewhere.contains(&next) { self.elsewhere.end } else { next };
            if stretch.first > from {
                stretch.writer.set_missing(from, stretch.first - 1, time_ms)?;
            }
            let is_whole = stretch.first <= next;
            total = total
                .filter(|_| is_whole)
                .and_then(|total| total.checked_sub(stretch.applied + stretch.ahead));
            kept += stretch.writer.finish()?.batches;
            // Below lies what a later epoch cut deeper.
            (end, time_ms) = (base, 0);
        }
        // Of no line that ends here, which should not be: kept all the same.
        for stretch in self.stretches {
            kept += stretch.writer.finish()?.batches;
        }
        Ok(kept)
    }
}

#[cfg(test)]
mod tests;
