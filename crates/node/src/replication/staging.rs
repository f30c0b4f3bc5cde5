//! A state that is being filled with another node's rows, off the runtime.

use std::sync::Arc;

use meridian_storage::{ShardState, StagedState, StateRows, StorageError};

/// An empty state to be filled, made off the runtime.
pub(crate) async fn stage(state: &Arc<ShardState>) -> Result<StagedState, StorageError> {
    let state = Arc::clone(state);
    let staged = tokio::task::spawn_blocking(move || state.stage()).await;
    staged.map_err(StorageError::cancelled)?
}

/// Writes rows off the runtime. Dropped before it is through, it drops the staged state.
pub(crate) async fn add(
    mut staged: StagedState,
    rows: StateRows,
) -> Result<StagedState, StorageError> {
    let added = tokio::task::spawn_blocking(move || staged.add(rows).map(|()| staged)).await;
    added.map_err(StorageError::cancelled)?
}
