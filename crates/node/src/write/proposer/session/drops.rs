//! A term drops databases that the directory deletes, and refuses what is written to those that are
//! gone.

use meridian_consensus::ProposalFailure;
use meridian_gateway::new_request_id;
use meridian_types::{CommittedTransaction, DatabaseId, Effect, WriteOutcome};

use super::Session;
use crate::write::proposer::{WriteRefusal, WriteReply};

/// Databases dropped in one batch at most.
const AT_ONCE: usize = 64;

impl Session<'_> {
    /// The reply to a request for a database that is not, or no longer, in this shard. Only for
    /// requests without a known outcome: those that committed before the drop are answered so.
    ///
    /// Once the drop is committed no leader lets an earlier try of the request take effect: the
    /// refusal binds. Before, and where the directory that is known here may be too old to know the
    /// database, the caller may ask again.
    pub(in crate::write::proposer) fn refuses(&self, database: DatabaseId) -> Option<WriteReply> {
        let shard = self.parts.group.id().shard;
        if self.dropped.is_applied(database) {
            return Some(
                self.release(WriteOutcome::Rejected("the database was deleted".to_owned())),
            );
        }
        let is_here =
            self.parts.directory.holds(shard, database) && !self.dropped.is_logged(database);
        (!is_here).then_some(WriteReply::NotCommitted(WriteRefusal::UnknownDatabase(shard)))
    }

    /// Databases that are to be dropped next: the directory says so, and the log does not yet.
    pub(in crate::write::proposer) fn to_drop(&self) -> Vec<DatabaseId> {
        let deleting = self.parts.directory.deleting(self.parts.group.id().shard);
        if deleting.is_empty() || !self.lease.is_held() {
            return Vec::new();
        }
        deleting
            .into_iter()
            .filter(|database| !self.dropped.is_logged(*database))
            .take(AT_ONCE)
            .collect()
    }

    /// Logs that these databases are gone. Also on a disk without room, and while replication lags:
    /// it is what gives room back.
    pub(in crate::write::proposer) async fn drop_databases(
        &mut self,
        databases: Vec<DatabaseId>,
    ) -> Result<(), ProposalFailure> {
        let mut batch = self.next_batch();
        let position = batch.position;
        let transaction = |database: &DatabaseId| CommittedTransaction {
            request_id: new_request_id(),
            database: *database,
            effects: vec![Effect::DropDatabase],
            refusal: None,
        };
        batch.transactions = databases.iter().map(transaction).collect();
        tracing::info!(group = %self.parts.group.id(), %position, ?databases, "dropping databases");
        self.send(batch, Vec::new()).await?;
        self.dropped.logged(position, databases);
        Ok(())
    }
}
