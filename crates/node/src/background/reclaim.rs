//! Gives the disk back what dropped databases took.

use std::sync::Arc;

use meridian_storage::{StorageError, fatal};
use tokio_util::sync::CancellationToken;

use crate::background::pace::pace;
use crate::background::parts::DutyParts;
use crate::shard::table::ShardTable;

/// How fast it is given back at most.
const BYTES_PER_SECOND: u64 = 32 << 20;

/// The room of dropped databases.
pub(crate) struct Reclaim {
    shards: Arc<ShardTable>,
    stop: CancellationToken,
}

impl Reclaim {
    pub(crate) fn new(parts: &DutyParts) -> Self {
        Self { shards: Arc::clone(&parts.shards), stop: parts.stop.clone() }
    }

    /// One shard after the other, on a thread that may block.
    pub(crate) async fn reclaim(self: Arc<Self>) {
        let reclaimed = tokio::task::spawn_blocking(move || {
            for state in self.shards.states() {
                let mut pace = |bytes| pace(&self.stop, bytes, BYTES_PER_SECOND);
                match state.reclaim_dropped(&mut pace) {
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
}
