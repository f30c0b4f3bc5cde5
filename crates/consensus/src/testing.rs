//! Surroundings of a member that is alone, for the tests of this crate and of those above it.

use std::sync::Arc;

use meridian_storage::{GroupId, ShardState, StagedState, StateSnapshot, StorageError};
use meridian_types::NodeId;
use tonic::transport::Channel;

use crate::network::{Peers, StateTransfer, Transfer};

/// A group of one has no peers.
pub struct NoPeers;

impl Peers for NoPeers {
    fn channel(&self, _: NodeId) -> Option<Channel> {
        None
    }
}

/// There is no node to fetch states from.
pub struct NoStates;

impl StateTransfer for NoStates {
    fn offer(&self, _: GroupId, _: Arc<StateSnapshot>) -> String {
        String::new()
    }

    fn fetch(
        self: Arc<Self>,
        _: GroupId,
        _: NodeId,
        _: String,
        _: Arc<ShardState>,
    ) -> Transfer<Result<StagedState, StorageError>> {
        Box::pin(async { Err(StorageError::NotFetched("there is none".to_owned())) })
    }
}
