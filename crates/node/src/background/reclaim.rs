//! Gives the disk back what dropped databases took.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_storage::{StorageError, fatal};
use tokio_util::sync::CancellationToken;

use crate::background::parts::DutyParts;
use crate::shard::table::ShardTable;

/// How fast it is given back at most: what else the disk does comes first.
const RECLAIM_BYTES_PER_SECOND: u64 = 32 << 20;

/// The room of dropped databases.
pub(crate) struct Reclaim {
    shards: Arc<ShardTable>,
    stop: CancellationToken,
}

impl Reclaim {
    pub(crate) fn new(parts: &DutyParts) -> Self {
        Self { shards: Arc::clone(&parts.shards), stop: parts.stop.clone() }
    }

    /// One shard after the other, on a thread that
    /// may block.
    pub(crate) async fn reclaim(self: Arc<Self>) {
        let reclaimed = tokio::task::spawn_blocking(move || {
            for state in self.shards.states() {
                match state.reclaim_dropped(&mut |bytes| self.pace(bytes)) {
                    Ok(true) => {
                        tracing::info!(shard = %state.shard(), "the disk has back what dropped databases took")
                    }
                    // The node stops, or a snapshot takes the state's place: looked for anew.
                    Ok(false) | Err(StorageError::Cancelled(_) | StorageError::NoFamily(_)) => {}
                    Err(error) => fatal(&error),
                }
            }
        });
        // It panics never, and a cancelled one is the node stopping.
        drop(reclaimed.await);
    }

    /// Blocks for as long as so many bytes may take; at once, with a break, when the node stops.
    fn pace(&self, bytes: u64) -> ControlFlow<()> {
        let until = Instant::now()
            + Duration::from_secs_f64(bytes as f64 / RECLAIM_BYTES_PER_SECOND as f64);
        while Instant::now() < until && !self.stop.is_cancelled() {
            std::thread::sleep(Duration::from_millis(50));
        }
        if self.stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
