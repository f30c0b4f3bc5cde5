//! What a later epoch's history does not hold: kept in orphan files before anything replaces it.

use std::path::Path;

use bytes::Bytes;
use meridian_consensus::{forget_group, is_in_use, log_batches_beyond};
use meridian_storage::{GroupId, GroupLog, HighWater, RaftApplied, ShardState, StorageError};
use meridian_types::{Epoch, Position, ShardId};

use crate::history::History;
use crate::orphans::OrphanWriter;
use crate::replica::decode;

const READ_BYTES: usize = 4 << 20;

/// Keeps the batches that a replica took beyond `base`, where `epoch` left their history. How many.
pub(crate) fn save_shipped(
    data_dir: &Path,
    shard: ShardId,
    epoch: Epoch,
    base: Position,
    log: &GroupLog,
) -> Result<u64, StorageError> {
    let mut writer = OrphanWriter::create(data_dir, shard, epoch, base)?;
    let mut next = base.sequence + 1;
    loop {
        let batches = log.read(next..u64::MAX, READ_BYTES)?;
        let Some((last, _)) = batches.last() else { break };
        next = last + 1;
        for (_, bytes) in &batches {
            // Only what was committed is shipped.
            writer.push(bytes, true)?;
        }
    }
    Ok(writer.finish()?.batches)
}

/// Keeps what the logs of groups of earlier epochs hold beyond where the shard's history left theirs, and
/// deletes those logs. May be called again after a crash at any point.
pub(crate) fn settle_old_groups(
    state: &ShardState,
    high_water: &HighWater,
    data_dir: &Path,
    history: &History,
) -> Result<(), StorageError> {
    let (engine, shard) = (state.engine(), state.shard());
    for (at, (old, _)) in history.bases().iter().enumerate() {
        // A later epoch may have begun behind less than the next one.
        let later = history.bases().iter().skip(at + 1).min_by_key(|(epoch, base)| (base.sequence, *epoch));
        let Some((epoch, base)) = later else { break };
        let group = GroupId { shard, epoch: *old };
        if !is_in_use(engine, group)? {
            // Nothing here, or forgotten before: most epochs, at every start and every change of epoch.
            continue;
        }
        apply_committed(state, group, *base)?;
        let mut writer = OrphanWriter::create(data_dir, shard, *epoch, *base)?;
        log_batches_beyond(engine, group, base.sequence, &mut |_, bytes: Bytes, committed| {
            writer.push(&bytes, committed)
        })?;
        let kept = writer.finish()?;
        if kept.batches > 0 {
            tracing::warn!(%group, %epoch, %base, batches = kept.batches, transactions = kept.transactions,
                "kept what this node's log held and the shard's history lost");
        }
        forget_group(engine, group, Some(high_water))?;
    }
    Ok(())
}

/// What the group had committed and the history holds is in its log, and was not flushed when the process
/// ended: without it this node may lack what nobody else has.
fn apply_committed(state: &ShardState, group: GroupId, base: Position) -> Result<(), StorageError> {
    let applied = state.applied();
    if applied.raft.epoch != Some(group.epoch) || applied.position.sequence >= base.sequence {
        return Ok(());
    }
    let after = applied.position.sequence;
    log_batches_beyond(state.engine(), group, after, &mut |sequence, bytes: Bytes, committed| {
        if committed && sequence <= base.sequence && sequence == state.position().sequence + 1 {
            state.apply(&[decode(bytes)?], RaftApplied::default())?;
        }
        Ok(())
    })?;
    state.flush().map(drop)
}
