//! Gauges of the queues in each shard: how much is undelivered, and how much is dead; at its leader
//! also how much listeners hold, and how long messages wait.

use std::sync::Arc;

use meridian_storage::{ShardState, StorageError, fatal};
use meridian_types::NodeId;

use crate::background::parts::DutyParts;
use crate::queues::Figures;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;

/// Databases whose queues are read at a time.
const PAGE: usize = 1024;

pub(crate) struct QueueGauges {
    node_id: NodeId,
    shards: Arc<ShardTable>,
}

impl QueueGauges {
    pub(crate) fn new(parts: &DutyParts) -> Self {
        Self { node_id: parts.node_id, shards: Arc::clone(&parts.shards) }
    }

    /// One shard after the other, on a thread that may block. Each database with a queue has one
    /// row that is read.
    pub(crate) async fn measure(self: Arc<Self>) {
        self.measure_leaders().await;
        let measured = tokio::task::spawn_blocking(move || {
            for state in self.shards.states() {
                match totals(&state) {
                    Ok((undelivered, dead)) => {
                        let labels = [
                            ("shard", state.shard().to_string()),
                            ("node", self.node_id.to_string()),
                        ];
                        metrics::gauge!("meridian_queue_undelivered_messages", &labels)
                            .set(undelivered as f64);
                        metrics::gauge!("meridian_queue_dead_letters", &labels).set(dead as f64);
                    }
                    // A snapshot takes the state's place: measured anew.
                    Err(StorageError::NoFamily(_)) => {}
                    Err(error) => fatal(&error),
                }
            }
        });
        // It panics never, and a cancelled one is the node stopping.
        drop(measured.await);
    }
}

impl QueueGauges {
    /// Zeros at nodes that do not lead, which may have led.
    async fn measure_leaders(&self) {
        for (id, shard) in self.shards.all() {
            let Figures { leased, due_for } = match shard {
                LocalShard::Voter(voter) => voter.queues().figures().await,
                LocalShard::Replica(_) => Figures::default(),
            };
            let labels = [("shard", id.to_string()), ("node", self.node_id.to_string())];
            metrics::gauge!("meridian_queue_leased_messages", &labels).set(leased as f64);
            metrics::gauge!("meridian_queue_oldest_due_seconds", &labels)
                .set(due_for.as_secs_f64());
        }
    }
}

/// Undelivered messages and dead letters of all databases.
fn totals(state: &ShardState) -> Result<(u64, u64), StorageError> {
    let (mut undelivered, mut dead, mut after) = (0, 0, None);
    loop {
        let queues = state.queues(after, PAGE)?;
        for (database, totals) in &queues {
            undelivered += totals.undelivered_in_all();
            dead += totals.dead();
            after = Some(*database);
        }
        if queues.len() < PAGE {
            return Ok((undelivered, dead));
        }
    }
}

#[cfg(test)]
mod tests {
    use meridian_storage::{MemoryEngine, RaftApplied};
    use meridian_types::{
        Batch, CommittedTransaction, DatabaseId, Effect, QueueEffect, QueueTotals, RequestId,
        ShardId,
    };

    use super::*;

    #[test]
    fn totals_of_all_databases_are_counted_over_more_than_one_page() {
        let state = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
        assert_eq!(totals(&state).unwrap(), (0, 0));
        let transaction = |number: u128| {
            let totals = QueueTotals {
                undelivered: 2,
                named_undelivered: 1,
                names: 1,
                first_dead: 1,
                next_dead: 4,
                removed_dead: 1,
            };
            CommittedTransaction {
                request_id: RequestId(number.to_be_bytes()),
                database: DatabaseId(number.to_be_bytes()),
                effects: vec![Effect::Queue(QueueEffect::PutTotals(totals))],
                refusal: None,
            }
        };
        for count in [PAGE - 1, PAGE, PAGE + 1] {
            let transactions = (0..count as u128).map(transaction).collect();
            let batch = Batch { position: state.position().next(), time_ms: 1, transactions };
            state.apply(&[batch.into()], RaftApplied::default()).unwrap();
            assert_eq!(totals(&state).unwrap(), (3 * count as u64, 2 * count as u64));
        }
    }
}
