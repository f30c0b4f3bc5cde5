//! Writers inside a leader, which propose what no client asked for: what they may propose, when
//! they are asked, and how they yield to clients.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use meridian_consensus::ProposalFailure;
use meridian_gateway::new_request_id;
use meridian_storage::ShardState;
use meridian_txn::Overlay;
use meridian_types::{CommittedTransaction, DatabaseId, Effect, Versionstamp};

use super::session::Session;

/// What a writer sees of the shard: the applied state, and over it what the batches in flight
/// write.
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
/// bytes by the writer. What it collects is logged as effects like any others, so that all replicas
/// do the same; it must not depend on what this node alone knows.
pub(super) trait InternalWriter {
    /// Whether its effects can only make room: then it goes on while a disk is low.
    const ONLY_DELETES: bool;

    /// Asked before every batch, so cheap.
    fn is_due(&self, now: Instant) -> bool;

    /// The effects of its next batch; none where there is nothing to do. What takes long goes to a
    /// thread that may block: clients wait meanwhile.
    async fn collect(&mut self, seen: Seen<'_>) -> BTreeMap<DatabaseId, Vec<Effect>>;

    /// What was collected last is in the log. Where this is not called, nothing of it is, or nobody
    /// knows: then it is collected anew.
    fn proposed(&mut self);
}

impl Session<'_> {
    /// Whether such a writer may propose now.
    pub(super) fn admits<W: InternalWriter>(&self, _: &W) -> bool {
        self.internal.is_none() && self.refusal(W::ONLY_DELETES).is_none()
    }

    /// Proposes one batch of an internal writer, if it has anything to write.
    pub(super) async fn propose_internal(
        &mut self,
        writer: &mut impl InternalWriter,
    ) -> Result<(), ProposalFailure> {
        let mut batch = self.next_batch();
        let seen =
            Seen { state: &self.parts.state, overlay: &self.overlay, time_ms: batch.time_ms };
        let collected = writer.collect(seen).await;
        if collected.is_empty() {
            return Ok(());
        }
        for ((database, effects), order) in collected.into_iter().zip(0..) {
            self.overlay.push(Versionstamp::new(batch.position, order), database, &effects);
            let request_id = new_request_id();
            batch.transactions.push(CommittedTransaction {
                request_id,
                database,
                effects,
                refusal: None,
            });
        }
        let position = batch.position;
        self.send(batch, Vec::new()).await?;
        self.internal = Some(position);
        writer.proposed();
        Ok(())
    }
}
