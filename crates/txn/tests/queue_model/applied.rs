//! The storage's part in the model.

use std::collections::BTreeMap;
use std::convert::Infallible;

use bytes::Bytes;
use meridian_txn::{Stored, View};
use meridian_types::{
    Batch, DatabaseId, DeadLetter, Effect, Message, MessageId, QueueEffect, QueueId, QueueTotals,
};

/// Applies effects blindly.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Applied {
    pub(super) keys: BTreeMap<(DatabaseId, Bytes), Stored>,
    pub(super) messages: BTreeMap<(QueueId, u64, MessageId), Message>,
    pub(super) dead: BTreeMap<(DatabaseId, u64), DeadLetter>,
    pub(super) totals: BTreeMap<DatabaseId, QueueTotals>,
    pub(super) named: BTreeMap<QueueId, u64>,
}

impl Applied {
    pub(super) fn apply(&mut self, batch: &Batch) {
        for (versionstamp, transaction) in batch.iter() {
            let database = transaction.database;
            for effect in transaction.effects.clone() {
                match effect {
                    Effect::Put { key, value, .. } => {
                        self.keys.insert((database, key), Stored { versionstamp, value });
                    }
                    Effect::Queue(effect) => self.apply_on_queue(database, effect),
                    Effect::Delete { .. } | Effect::Unindex { .. } | Effect::DropDatabase => {
                        panic!("nothing here deletes: {effect:?}")
                    }
                }
            }
        }
    }

    fn apply_on_queue(&mut self, database: DatabaseId, effect: QueueEffect) {
        let of = |name| QueueId { database, name };
        match effect {
            QueueEffect::PutMessage { queue, id, due_ms, message } => {
                self.messages.insert((of(queue), due_ms, id), message);
            }
            QueueEffect::DeleteMessage { queue, id, due_ms } => {
                self.messages.remove(&(of(queue), due_ms, id));
            }
            QueueEffect::PutDeadLetter { number, letter } => {
                self.dead.insert((database, number), letter);
            }
            QueueEffect::DeleteDeadLetter { number } => {
                self.dead.remove(&(database, number));
            }
            QueueEffect::PutTotals(totals) => drop(self.totals.insert(database, totals)),
            QueueEffect::PutNamedTotals { queue, undelivered: 0 } => {
                self.named.remove(&of(queue));
            }
            QueueEffect::PutNamedTotals { queue, undelivered } => {
                self.named.insert(of(queue), undelivered);
            }
        }
    }
}

impl View for Applied {
    type Error = Infallible;

    fn get(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Stored>, Infallible> {
        Ok(self.keys.get(&(database, Bytes::copy_from_slice(key))).cloned())
    }

    fn message(
        &self,
        queue: &QueueId,
        due_ms: u64,
        id: MessageId,
    ) -> Result<Option<Message>, Infallible> {
        Ok(self.messages.get(&(queue.clone(), due_ms, id)).cloned())
    }

    fn named_undelivered(&self, queue: &QueueId) -> Result<u64, Infallible> {
        Ok(self.named.get(queue).copied().unwrap_or_default())
    }

    fn queue_totals(&self, database: DatabaseId) -> Result<QueueTotals, Infallible> {
        Ok(self.totals.get(&database).copied().unwrap_or_default())
    }

    fn dead_letter(
        &self,
        database: DatabaseId,
        number: u64,
    ) -> Result<Option<DeadLetter>, Infallible> {
        Ok(self.dead.get(&(database, number)).cloned())
    }
}
