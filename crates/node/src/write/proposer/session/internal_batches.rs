//! A term proposes what writers inside of the leader collect.

use std::time::Instant;

use meridian_consensus::ProposalFailure;
use meridian_gateway::new_request_id;
use meridian_types::{CommittedTransaction, Versionstamp};

use super::Session;
use crate::write::proposer::backlog::Backlog;
use crate::write::proposer::internal::{InternalWriter, Seen};

impl Session<'_> {
    /// Whether such a writer may propose now.
    pub(in crate::write::proposer) fn admits<W: InternalWriter>(&self, _: &W) -> bool {
        self.internal.is_none() && self.refusal(W::ONLY_DELETES).is_none()
    }

    /// Proposes one batch of an internal writer, if it has anything to write. The databases that it
    /// writes to are charged for it: while replication lags, they are the ones that are slowed.
    pub(in crate::write::proposer) async fn propose_internal(
        &mut self,
        writer: &mut impl InternalWriter,
        backlog: &mut Backlog,
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
        let logged = batch.transactions.iter();
        let logged: Vec<_> = logged.map(|written| (written.database, written.size())).collect();
        self.send(batch, Vec::new()).await?;
        let now = Instant::now();
        for (database, bytes) in logged {
            backlog.logged_internally(now, database, bytes as u64);
        }
        self.internal = Some(position);
        writer.proposed();
        Ok(())
    }
}
