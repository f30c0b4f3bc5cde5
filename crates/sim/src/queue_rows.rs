//! The queue that a history comes to, as the real evaluation of transactions says.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use bytes::Bytes;
use meridian_queue::{MessageKey, RowChange};
use meridian_txn::{Evaluation, Stored, View, evaluate};
use meridian_types::{
    DatabaseId, DeadLetter, Effect, Enqueue, Message, MessageId, QueueEffect, QueueId, QueueName,
    QueueTotals, Settlement, Transaction, Versionstamp,
};

use crate::message::{Batch, Content};
use crate::topology::DATABASE;

/// A message's schedule: some have none, so that their first failure is their last.
const SCHEDULES: [&[u32]; 4] = [&[], &[200], &[100, 1000], &[100, 200, 400, 800]];

/// How often a message is tried at most, and how many keys it has for its death. Its number says so.
pub(crate) fn plan(message: u64) -> (u32, u32) {
    let (schedule, keys) = (schedule(message), keys_of(message));
    (1 + u32::try_from(schedule.len()).unwrap_or(u32::MAX), keys)
}

fn schedule(message: u64) -> &'static [u32] {
    let index = usize::try_from(message % 4).unwrap_or(0);
    SCHEDULES.get(index).copied().unwrap_or(&[])
}

fn keys_of(message: u64) -> u32 {
    u32::try_from(message % 3).unwrap_or(0)
}

fn dead_key(message: u64, index: u32) -> Bytes {
    [&message.to_be_bytes()[..], &index.to_be_bytes()].concat().into()
}

/// The number that a message carries.
pub(crate) fn number(payload: &Bytes) -> u64 {
    payload.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

pub(crate) fn id_of(batch: &Batch) -> MessageId {
    MessageId { enqueued: Versionstamp::new(batch.position, 0), index: 0 }
}

#[derive(Debug, Default)]
pub(crate) struct QueueRows {
    rows: BTreeMap<MessageKey, Message>,
    /// The keys that dead messages have set.
    set: BTreeSet<Bytes>,
    letters: BTreeMap<u64, DeadLetter>,
    totals: QueueTotals,
}

impl View for QueueRows {
    type Error = Infallible;

    /// Programs use other keys.
    fn get(&self, _: DatabaseId, _: &[u8]) -> Result<Option<Stored>, Infallible> {
        Ok(None)
    }

    fn message(
        &self,
        _: &QueueId,
        due_ms: u64,
        id: MessageId,
    ) -> Result<Option<Message>, Infallible> {
        Ok(self.row(&MessageKey { due_ms, id }).cloned())
    }

    fn queue_totals(&self, _: DatabaseId) -> Result<QueueTotals, Infallible> {
        Ok(self.totals)
    }

    /// Programs name no queues.
    fn named_undelivered(&self, _: &QueueId) -> Result<u64, Infallible> {
        Ok(0)
    }

    fn dead_letter(&self, _: DatabaseId, number: u64) -> Result<Option<DeadLetter>, Infallible> {
        Ok(self.letters.get(&number).cloned())
    }
}

impl QueueRows {
    pub(crate) fn of(history: &[Batch]) -> Self {
        let mut rows = Self::default();
        history.iter().for_each(|batch| drop(rows.apply(batch)));
        rows
    }

    /// The changes of rows, in their order.
    pub(crate) fn apply(&mut self, batch: &Batch) -> Vec<RowChange> {
        let Some(transaction) = transaction(&batch.content) else { return Vec::new() };
        let stamp = Versionstamp::new(batch.position, 0);
        let Ok(evaluation) = evaluate(self, DATABASE, stamp, batch.time_ms, &transaction);
        let effects = match evaluation {
            Evaluation::Commit(effects) => effects,
            Evaluation::CheckFailed(_) | Evaluation::Rejected(_) => Vec::new(),
        };
        effects.into_iter().filter_map(|effect| self.take(stamp, effect)).collect()
    }

    fn take(&mut self, stamp: Versionstamp, effect: Effect) -> Option<RowChange> {
        match effect {
            Effect::Queue(QueueEffect::PutMessage { queue: _, id, due_ms, message }) => {
                let key = MessageKey { due_ms, id };
                self.rows.insert(key, message);
                return Some(match id.enqueued == stamp {
                    true => RowChange::Put(DATABASE.into(), key),
                    false => RowChange::Moved(DATABASE.into(), key),
                });
            }
            Effect::Queue(QueueEffect::DeleteMessage { queue: _, id, due_ms }) => {
                let key = MessageKey { due_ms, id };
                self.rows.remove(&key);
                return Some(RowChange::Deleted(DATABASE.into(), key));
            }
            Effect::Queue(QueueEffect::PutDeadLetter { number, letter }) => {
                self.letters.insert(number, letter);
            }
            Effect::Queue(QueueEffect::DeleteDeadLetter { number }) => {
                self.letters.remove(&number);
            }
            Effect::Queue(QueueEffect::PutTotals(totals)) => self.totals = totals,
            Effect::Queue(QueueEffect::PutNamedTotals { .. }) => {}
            Effect::Put { key, .. } => drop(self.set.insert(key)),
            Effect::Delete { .. } | Effect::Unindex { .. } | Effect::DropDatabase => {}
        }
        None
    }

    pub(crate) fn row(&self, key: &MessageKey) -> Option<&Message> {
        self.rows.get(key)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Up to `limit` rows, and from where on there may be others.
    pub(crate) fn from(
        &self,
        from: MessageKey,
        limit: usize,
    ) -> (Vec<MessageKey>, Option<MessageKey>) {
        let rows: Vec<_> = self.rows.range(from..).map(|(key, _)| *key).take(limit).collect();
        let behind = |last: &MessageKey| {
            let id = MessageId { index: last.id.index.saturating_add(1), ..last.id };
            MessageKey { id, ..*last }
        };
        let next = rows.last().map(behind);
        (rows, next)
    }

    pub(crate) fn has_letter(&self, message: u64) -> bool {
        self.letters.values().any(|letter| number(&letter.payload) == message)
    }

    /// How many of its keys a message has set by its death.
    pub(crate) fn set_keys(&self, message: u64) -> u32 {
        let is_set = |index: &u32| self.set.contains(&dead_key(message, *index));
        u32::try_from((0..keys_of(message)).filter(is_set).count()).unwrap_or(u32::MAX)
    }
}

fn transaction(content: &Content) -> Option<Transaction> {
    match *content {
        Content::Plain => None,
        Content::Enqueue { message, due_ms } => {
            let enqueue = Enqueue {
                queue: QueueName::UNNAMED,
                payload: Bytes::copy_from_slice(&message.to_be_bytes()),
                due_ms,
                keys_if_undelivered: (0..keys_of(message))
                    .map(|at| dead_key(message, at))
                    .collect(),
                backoff_ms: Some(schedule(message).to_vec()),
            };
            Some(Transaction { enqueues: vec![enqueue], ..Transaction::default() })
        }
        Content::Settle { key: MessageKey { due_ms, id }, verdict } => {
            let settlement = Settlement { queue: QueueName::UNNAMED, id, due_ms, verdict };
            Some(Transaction { settlements: vec![settlement], ..Transaction::default() })
        }
    }
}
