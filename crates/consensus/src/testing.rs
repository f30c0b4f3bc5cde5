//! What tests of several modules need.

use std::sync::Arc;

use meridian_storage::{GroupId, ShardState, StagedState, StateSnapshot, StorageError};

use crate::network::{StateTransfer, Transfer};

/// There is no node to fetch states from.
pub(crate) struct NoStates;

impl StateTransfer for NoStates {
    fn offer(&self, _: GroupId, _: Arc<StateSnapshot>) -> String {
        String::new()
    }

    fn fetch(
        self: Arc<Self>,
        _: GroupId,
        _: u64,
        _: String,
        _: Arc<ShardState>,
    ) -> Transfer<Result<StagedState, StorageError>> {
        Box::pin(async { Err(StorageError::NotFetched("there is none".to_owned())) })
    }
}
