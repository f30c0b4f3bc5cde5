//! The log of a group that this node votes in no more, carried over into the log that the node goes
//! on with as a replica: change feeds and replicas that stand in it go on there.
//!
//! It is copied, within bounds, so that a node has one log of all epochs beside the one of the group
//! that it votes in: a log that is read, counted, purged and replaced as a replica's is.
//!
//! Invariants:
//! - Only batches that the state has are carried over: they were committed. The caller knows that the
//!   state lies within the shard's history.
//! - The state is flushed before: what the log of a replica holds behind the state would be applied
//!   outside of the group when a process begins.
//! - The log ends with the state, or is empty, and has no gap, whatever it held before. All of it is
//!   durable on return.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use meridian_consensus::applied_batches_back;
use meridian_storage::{GroupId, ShardState, ShippedLog, StorageError};
use parking_lot::Mutex;

use crate::host::disk::{COPY_FREE_BYTES, free_bytes};
use crate::time_budget::CARRY_OVER;

/// Of a log that is copied at a time, about: the fsyncs of others wait for no more.
const PIECE_BYTES: usize = 1 << 20;
/// Held for a piece. A region's end concerns all of its shards at once: they take turns.
static TURN: Mutex<()> = Mutex::new(());

/// The bounds on what is carried over of one log, from its end on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CarryLimits<'a> {
    /// About.
    max_bytes: u64,
    piece_bytes: usize,
    within: Duration,
    /// Where the disk must have as much room as for any log that is kept for feeds.
    folder: &'a Path,
    min_free_bytes: u64,
}

impl<'a> CarryLimits<'a> {
    pub(crate) fn new(max_bytes: u64, folder: &'a Path) -> Self {
        let (within, min_free_bytes) = (CARRY_OVER, COPY_FREE_BYTES);
        Self { max_bytes, piece_bytes: PIECE_BYTES, within, folder, min_free_bytes }
    }

    #[cfg(test)]
    pub(crate) fn in_pieces(self, piece_bytes: usize) -> Self {
        Self { piece_bytes, ..self }
    }

    #[cfg(test)]
    pub(crate) fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    #[cfg(test)]
    pub(crate) fn with_free(self, min_free_bytes: u64) -> Self {
        Self { min_free_bytes, ..self }
    }

    fn allow_more(&self, bytes: u64, since: Instant) -> bool {
        let has_room = || free_bytes(self.folder).is_some_and(|free| free >= self.min_free_bytes);
        bytes < self.max_bytes && since.elapsed() < self.within && has_room()
    }
}

/// Carries over what the log of a stopped group has of the state's batches, the newest first, as far
/// as the limits go. The group's log may be deleted then.
///
/// May be called again after a crash at any point.
pub(crate) fn carry_over(
    state: &ShardState,
    log: &ShippedLog,
    group: GroupId,
    limits: &CarryLimits<'_>,
) -> Result<(), StorageError> {
    let since = Instant::now();
    let end = state.flush()?.position.sequence;
    let (mut first, mut bytes, mut is_cut) = (None, 0, false);
    applied_batches_back(state.engine(), group, limits.piece_bytes, &mut |piece| {
        let _turn = TURN.lock();
        is_cut = !limits.allow_more(bytes, since);
        if is_cut {
            return Ok(ControlFlow::Break(()));
        }
        log.append(piece.iter().map(|batch| (batch.sequence, batch.bytes.as_ref())))?;
        log.sync()?;
        bytes += piece.iter().map(|batch| batch.bytes.len() as u64).sum::<u64>();
        first = piece.first().map(|batch| batch.sequence);
        Ok(ControlFlow::Continue(()))
    })?;
    match first {
        Some(first) => {
            tracing::info!(%group, first, end, bytes, is_cut, "carried over the log of the group");
            // The part before goes on to there, or it is behind a gap.
            if is_cut || log.read(first - 1..first, 0)?.is_empty() {
                log.purge_through(first - 1)?;
            }
        }
        // A try that a crash ended may have left pieces of it.
        None if is_cut => log.restart_behind(end)?,
        None => {}
    }
    log.sync()
}
