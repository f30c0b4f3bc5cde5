//! Batches that a later epoch's history does not hold, kept in orphan files before others replace
//! them.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use meridian_consensus::{forget_group, is_in_use, log_batches_beyond};
use meridian_placement::{DivergenceCount, Missing, Reached};
use meridian_proto::batch_header;
use meridian_storage::{
    Applied, GroupId, HighWater, RaftApplied, ShardState, ShippedLog, StorageError, decode_batch,
};
use meridian_types::{Epoch, EpochHistory, Position, ShardId};
use meridian_vault::Folder;

use crate::divergence::orphan_files::OrphanWriter;
use crate::replication::carry_over::{CarryLimits, carry_over};

const READ_BYTES: usize = 4 << 20;

/// Keeps the batches that a replica took, and `history` does not hold. How many.
pub(crate) fn keep_shipped(
    data_dir: &Folder,
    state: &ShardState,
    history: &EpochHistory,
    log: &ShippedLog,
) -> Result<u64, StorageError> {
    let reached = Some(reached(&state.applied()));
    let mut keeper = Keeper::new(data_dir, state.shard(), history, reached, 0..0);
    if let Some(oldest) = log.first()?
        && let Some(lowest) = lowest_base(history, header(state.shard(), &oldest.bytes)?.epoch)
    {
        let mut next = lowest.sequence + 1;
        loop {
            let batches = log.read(next..u64::MAX, READ_BYTES)?;
            let Some(last) = batches.last() else { break };
            next = last.sequence + 1;
            for batch in &batches {
                // Only what was committed is shipped.
                keeper.push(&batch.bytes, true)?;
            }
        }
    }
    keeper.finish()
}

/// Keeps what the logs of groups of earlier epochs hold beyond where the shard's history left
/// theirs, carries over what lies before that, and deletes those logs. May be called again after a
/// crash at any point.
pub(crate) fn examine_old_groups(
    state: &ShardState,
    high_water: &HighWater,
    data_dir: &Folder,
    history: &EpochHistory,
    limits: &CarryLimits<'_>,
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
        let applied = state.applied();
        let reached = (applied.raft.epoch == Some(*old)).then(|| reached(&applied));
        let shipped = ShippedLog::open(engine, shard)?;
        let elsewhere = match (shipped.first()?, shipped.last()?) {
            (Some(first), Some(last)) => first.sequence..last.sequence + 1,
            _ => 0..0,
        };
        let mut keeper = Keeper::new(data_dir, shard, history, reached, elsewhere);
        log_batches_beyond(
            engine,
            group,
            lowest.sequence,
            &mut |_, _, bytes: Bytes, committed| keeper.push(&bytes, committed),
        )?;
        let batches = keeper.finish()?;
        if batches > 0 {
            tracing::warn!(%group, %lowest, batches, "kept what this node's log held and the shard's history lost");
        }
        // A state beyond the base is replaced as a whole, and its log with it.
        if applied.position.sequence <= lowest.sequence {
            carry_over(state, &shipped, group, limits)?;
        }
        forget_group(engine, group, Some(high_water))?;
    }
    Ok(())
}

/// Applies batches of the group's log that were committed, are in the history, and were not flushed
/// when the process ended: they may be on no other node. The state stays the group's: after a crash
/// that kept part of them, the next call applies the rest.
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

/// Keeps what one log has, and the shard's history does not: one file for each epoch that cut some
/// of it off.
struct Keeper<'a> {
    data_dir: &'a Folder,
    shard: ShardId,
    history: &'a EpochHistory,
    count: DivergenceCount<'a>,
    files: BTreeMap<Epoch, OrphanWriter>,
}

impl<'a> Keeper<'a> {
    /// `reached`: by the state, if it is made of the same batches. `elsewhere`: sequences of another
    /// log, which are kept from there.
    fn new(
        data_dir: &'a Folder,
        shard: ShardId,
        history: &'a EpochHistory,
        reached: Option<Reached>,
        elsewhere: Range<u64>,
    ) -> Self {
        let count = DivergenceCount::new(history, reached, elsewhere);
        Self { data_dir, shard, history, count, files: BTreeMap::new() }
    }

    /// The next batch of the log.
    fn push(&mut self, bytes: &[u8], committed: bool) -> Result<(), StorageError> {
        let position = header(self.shard, bytes)?;
        let Some((epoch, base)) = self.history.leaves(position) else { return Ok(()) };
        let mut file = take_file(&mut self.files, self.data_dir, self.shard, epoch, base)?;
        let transactions = file.push(bytes, committed)?;
        self.files.insert(epoch, file);
        self.count.add(position, transactions, committed);
        Ok(())
    }

    /// Makes the files durable. How many batches they hold.
    fn finish(self) -> Result<u64, StorageError> {
        let Self { data_dir, shard, count, mut files, .. } = self;
        let mut kept = 0;
        for stretch in count.finish() {
            let mut file = take_file(&mut files, data_dir, shard, stretch.epoch, stretch.base)?;
            file.set_committed_total(stretch.committed_total);
            if let Some(Missing { from, through, time_ms }) = stretch.missing {
                file.set_missing(from, through, time_ms)?;
            }
            kept += file.finish()?.batches;
        }
        Ok(kept)
    }
}

/// The file of `epoch`, begun if there is none.
fn take_file(
    files: &mut BTreeMap<Epoch, OrphanWriter>,
    data_dir: &Folder,
    shard: ShardId,
    epoch: Epoch,
    base: Position,
) -> Result<OrphanWriter, StorageError> {
    let begin = || OrphanWriter::create(data_dir, shard, epoch, base);
    files.remove(&epoch).map_or_else(begin, Ok)
}

fn reached(applied: &Applied) -> Reached {
    Reached {
        position: applied.position,
        transactions: applied.total_transactions,
        time_ms: applied.time_ms,
    }
}

#[cfg(test)]
mod tests;
