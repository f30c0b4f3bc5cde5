//! Reads of shards' logs for readers of changes.
//!
//! Of each shard one read is under way, also when its reader has left, so that readers cannot take a
//! disk, or the threads that may block, from others. Its batches are kept until the next: readers that
//! follow the log want the same ones at the same time.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_proto::{DecodedBatch, decode_stored};
use meridian_storage::{StorageError, or_fatal};
use meridian_types::{EpochHistory, ShardId};
use parking_lot::Mutex;

use super::NotGiven;
use crate::read::refusal::ReadRefusal;
use crate::shard::local::LocalShard;

/// Of batches that are read at once, about: at least one is read whatever its size.
const READ_BYTES: usize = 256 << 10;
/// A larger read is not kept.
const KEPT_BYTES: usize = 1 << 20;
/// Nor is one for longer: the log may be purged.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// Batches of one read: all, or those behind a later place.
pub(super) struct ReadBatches {
    all: Arc<[DecodedBatch]>,
    skipped: usize,
}

impl Deref for ReadBatches {
    type Target = [DecodedBatch];

    fn deref(&self) -> &[DecodedBatch] {
        self.all.get(self.skipped..).unwrap_or_default()
    }
}

/// The last read of a shard that found something.
#[derive(Default)]
pub(super) struct LastRead {
    at: Option<Instant>,
    behind: u64,
    pub(super) batches: Arc<[DecodedBatch]>,
}

impl LastRead {
    /// The batches behind a sequence, if the first of them is here, and was read lately.
    fn behind(&self, sequence: u64) -> Option<ReadBatches> {
        let is_kept = self.at.is_some_and(|at| at.elapsed() < KEPT_FOR);
        let skipped = sequence.checked_sub(self.behind).filter(|_| is_kept)?;
        let skipped = usize::try_from(skipped).ok()?;
        let all = Arc::clone(&self.batches);
        (skipped < all.len()).then_some(ReadBatches { all, skipped })
    }
}

#[derive(Default)]
pub(super) struct LogReads {
    pub(super) shards: Mutex<BTreeMap<ShardId, Arc<tokio::sync::Mutex<LastRead>>>>,
}

impl LogReads {
    /// Committed batches behind a sequence, without a gap, of this history; none if there are none
    /// yet. `None`: they are no longer in the log.
    pub(super) async fn behind(
        &self,
        local: &LocalShard,
        history: &EpochHistory,
        sequence: u64,
    ) -> Result<Option<ReadBatches>, NotGiven> {
        let shard = local.state().shard();
        let last = Arc::clone(self.shards.lock().entry(shard).or_default());
        let mut last = last.lock_owned().await;
        // A read that was kept may have left the history since.
        if let Some(kept) = last.behind(sequence).filter(|kept| follow(history, sequence, kept)) {
            return Ok(Some(kept));
        }
        let log = local.clone();
        let read = on_disk(move || {
            let Some(stored) = log.batches_after(sequence, READ_BYTES)? else { return Ok(None) };
            let decoded = stored.into_iter().map(|batch| {
                decode_stored(batch.bytes).map_err(|error| StorageError::Corruption {
                    what: format!("batch {} in a log of shard {shard}", batch.sequence),
                    detail: error.to_string(),
                })
            });
            let batches: Arc<[_]> = decoded.collect::<Result<_, _>>()?;
            if !batches.is_empty() && bytes(&batches) <= KEPT_BYTES {
                let (at, batches) = (Some(Instant::now()), Arc::clone(&batches));
                *last = LastRead { at, behind: sequence, batches };
            }
            Ok(Some(batches))
        });
        let batches = read.await?;
        // Behind the base of an epoch that this node has heard of, its log may go on for a while.
        if batches.as_deref().is_some_and(|batches| !follow(history, sequence, batches)) {
            return Err(ReadRefusal::OtherEpoch.into());
        }
        Ok(batches.map(|all| ReadBatches { all, skipped: 0 }))
    }
}

/// Whether these are the batches behind a sequence, without a gap, and of this history.
pub(super) fn follow(history: &EpochHistory, behind: u64, batches: &[DecodedBatch]) -> bool {
    let positions = batches.iter().map(|decoded| decoded.batch.position);
    positions
        .zip(behind + 1..)
        .all(|(position, sequence)| position.sequence == sequence && history.holds(position))
}

fn bytes(batches: &[DecodedBatch]) -> usize {
    batches.iter().map(|batch| batch.len).sum()
}

/// The newest sequence that is no longer in the log.
pub(super) async fn purged(local: &LocalShard) -> Result<u64, NotGiven> {
    let log = local.clone();
    on_disk(move || log.purged()).await
}

/// On a thread that may block. A log that cannot be read ends the process, as everywhere.
async fn on_disk<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, NotGiven> {
    // It panics never, and a cancelled one is the node stopping.
    let read = tokio::task::spawn_blocking(move || or_fatal(read())).await;
    read.map_err(|_| ReadRefusal::Stopping.into())
}
