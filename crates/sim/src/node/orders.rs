//! Orders of the directory's leader to a node at the end of an epoch.

use std::time::Duration;

use meridian_placement::Sealing;
use meridian_types::{Epoch, NodeId, Position};

/// To seal: the caller, and the term of its leadership.
#[derive(Debug, Clone, Copy)]
pub(super) struct SealAsk {
    pub(super) from: NodeId,
    pub(super) term: u64,
    pub(super) epoch: Epoch,
    pub(super) planned: bool,
}

/// A seal that is being carried out. A seal that was only written down has no caller.
#[derive(Debug)]
pub(super) struct SealRequest {
    pub(super) ask: Option<SealAsk>,
    pub(super) sealing: Sealing,
    pub(super) since: Duration,
}

/// To come to a position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    pub(super) from: NodeId,
    pub(super) term: u64,
    pub(super) epoch: Epoch,
    pub(super) source: NodeId,
    pub(super) through: Position,
    pub(super) asked_at: Duration,
}
