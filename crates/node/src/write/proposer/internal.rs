//! Writers inside a leader, which propose what no client asked for: what they may propose, when
//! they are asked, and how they yield to clients.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use meridian_storage::ShardState;
use meridian_txn::Overlay;
use meridian_types::{DatabaseId, Effect};

/// A writer's view of the shard: the applied state, and over it the effects of the batches in
/// flight.
pub(super) struct Seen<'a> {
    pub(super) state: &'a Arc<ShardState>,
    pub(super) overlay: &'a Overlay,
    /// Of the batch that is made.
    pub(super) time_ms: u64,
}

/// A writer inside the leader.
///
/// It is asked between batches of clients, whenever it is due and another batch may be in flight;
/// first, so that a busy shard does not starve it. It yields by bounds: one batch of internal
/// writers is in flight at a time, so that clients have the others, and each is bounded in rows and
/// bytes by the writer. The effects that it collects are logged like any others, so that all
/// replicas apply the same; they must not depend on knowledge of this node alone.
pub(super) trait InternalWriter {
    /// Whether its effects can only make room: then it goes on while a disk is low.
    const ONLY_DELETES: bool;

    /// Asked before every batch, so cheap.
    fn is_due(&self, now: Instant) -> bool;

    /// The effects of its next batch; none where there is nothing to do. Long work goes to a thread
    /// that may block: clients wait meanwhile.
    async fn collect(&mut self, seen: Seen<'_>) -> BTreeMap<DatabaseId, Vec<Effect>>;

    /// The effects that were collected last are in the log. Where this is not called, none of them
    /// is, or that is unknown: then they are collected anew.
    fn proposed(&mut self);
}
