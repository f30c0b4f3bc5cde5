//! What a later epoch's history does not hold: kept in orphan files before anything replaces it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use meridian_consensus::{forget_group, log_batches_beyond};
use meridian_storage::{Engine, GroupId, GroupLog, HighWater, StorageError};
use meridian_types::{Epoch, Position, ShardId};

use crate::history::History;
use crate::orphans::OrphanWriter;

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

/// Keeps what the logs of groups of earlier epochs hold beyond the epoch that followed each, and deletes
/// those logs. May be called again after a crash at any point.
pub(crate) fn settle_old_groups(
    engine: &Arc<dyn Engine>,
    high_water: &HighWater,
    data_dir: &Path,
    shard: ShardId,
    history: &History,
) -> Result<(), StorageError> {
    for pair in history.bases().windows(2) {
        let [(old, _), (epoch, base)] = pair else { continue };
        let group = GroupId { shard, epoch: *old };
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
