//! Cutting the log behind what is flushed of the state.

use std::time::Duration;

use meridian_storage::StorageError;

use super::RaftGroup;

/// How long openraft may take to note that the state was flushed.
const NOTED_WITHIN: Duration = Duration::from_secs(60);

impl RaftGroup {
    /// Flushes the state, and purges the log up to the batch at `sequence`, or as far as was
    /// flushed.
    pub async fn purge_through(&self, sequence: u64) -> Result<(), StorageError> {
        // Here, and not only when openraft builds a snapshot: after a restart it takes the state
        // that was applied again for a flushed state.
        let state = self.state();
        let flushed = tokio::task::spawn_blocking(move || state.flush());
        let flushed = flushed.await.map_err(StorageError::cancelled)??;
        let flushed = self.machine.own(flushed.raft).log_id;
        let (Some(index), Some(flushed)) = (self.index_of(sequence)?, flushed) else {
            return Ok(());
        };
        let index = index.min(flushed.index);
        self.raft.trigger().snapshot().await.map_err(|error| self.raft_stopped(error))?;
        let wait = self.raft.wait(Some(NOTED_WITHIN));
        let built = wait.metrics(
            move |metrics| {
                metrics.snapshot.as_ref().is_some_and(|snapshot| snapshot.index >= index)
            },
            "state flushed",
        );
        built.await.map_err(StorageError::cancelled)?;
        self.machine.purged(index);
        self.raft.trigger().purge_log(index).await.map_err(|error| self.raft_stopped(error))
    }
}
