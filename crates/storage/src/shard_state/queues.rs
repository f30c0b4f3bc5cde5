//! The queues of a shard: messages by their due times, dead letters, totals.
//!
//! These reads wait for the disk where they must, and are for threads that may block; those of
//! [`View`](meridian_txn::View) are the proposer's.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use meridian_proto::{
    decode_dead_letter, decode_message, decode_queue_totals, encode_dead_letter, encode_message,
    encode_queue_totals,
};
use meridian_types::limits::{DEAD_LETTER_RETENTION_MS, MAX_QUEUE_NAMES};
use meridian_types::{
    DatabaseId, DeadLetter, Message, MessageId, QueueEffect, QueueId, QueueName, QueueTotals,
};

use super::{Applied, ShardState};
use crate::schema;
use crate::{EngineSnapshot, Scan, StorageError, WriteBatch};

/// A message with its place in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedMessage {
    pub due_ms: u64,
    pub id: MessageId,
    pub message: Message,
}

pub(super) fn write_effect(
    writes: &mut WriteBatch,
    family: &Arc<str>,
    database: DatabaseId,
    effect: &QueueEffect,
) {
    let of = |name: &QueueName| QueueId { database, name: name.clone() };
    match effect {
        QueueEffect::PutMessage { queue, id, due_ms, message } => {
            let row = schema::message_key(&of(queue), *due_ms, *id);
            writes.put(family, row, encode_message(message));
        }
        QueueEffect::DeleteMessage { queue, id, due_ms } => {
            writes.delete(family, schema::message_key(&of(queue), *due_ms, *id));
        }
        QueueEffect::PutDeadLetter { number, letter } => {
            let row = schema::dead_letter_key(database, *number);
            writes.put(family, row, encode_dead_letter(letter));
        }
        QueueEffect::DeleteDeadLetter { number } => {
            writes.delete(family, schema::dead_letter_key(database, *number));
        }
        QueueEffect::PutTotals(totals) => {
            writes.put(family, schema::queue_totals_key(database), encode_queue_totals(*totals));
        }
        QueueEffect::PutNamedTotals { queue, undelivered: 0 } => {
            writes.delete(family, schema::named_totals_key(&of(queue)));
        }
        QueueEffect::PutNamedTotals { queue, undelivered } => {
            let totals = QueueTotals { undelivered: *undelivered, ..QueueTotals::default() };
            writes.put(family, schema::named_totals_key(&of(queue)), encode_queue_totals(totals));
        }
    }
}

impl ShardState {
    /// The messages of a queue that are due at `until_ms` or before, by due time and then in the
    /// order of commits: at most `limit`, and until they exceed `max_bytes`.
    ///
    /// They begin behind the place `after`. What was removed before it is not looked at: a reader
    /// that knows its lowest message spares itself all those that were delivered.
    pub fn messages_due(
        &self,
        queue: &QueueId,
        after: Option<(u64, MessageId)>,
        until_ms: u64,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<QueuedMessage>, StorageError> {
        let start = match after {
            None => schema::messages_range(queue).0,
            Some((due_ms, id)) => [&schema::message_key(queue, due_ms, id)[..], &[0]].concat(),
        };
        let end = schema::messages_bound(queue, until_ms);
        let read = |(key, value): (Bytes, Bytes)| {
            let corrupt = || StorageError::corruption("the key of a message", format!("{key:?}"));
            let (_, due_ms, id) = schema::parse_message_key(&key).ok_or_else(corrupt)?;
            Ok(QueuedMessage { due_ms, id, message: message(value)? })
        };
        self.in_family(|family| {
            let snapshot = self.engine.snapshot();
            rows(&*snapshot, family, &start, &end, limit, max_bytes)?
                .into_iter()
                .map(read)
                .collect()
        })
    }

    /// The message with this id, if the queue stores it under this due time.
    pub fn message(
        &self,
        queue: &QueueId,
        due_ms: u64,
        id: MessageId,
    ) -> Result<Option<Message>, StorageError> {
        let key = schema::message_key(queue, due_ms, id);
        self.in_family(|family| self.engine.get(family, &key))?.map(message).transpose()
    }

    /// The totals of a database's queues.
    pub fn queue_totals(&self, database: DatabaseId) -> Result<QueueTotals, StorageError> {
        let key = schema::queue_totals_key(database);
        let row = self.in_family(|family| self.engine.get(family, &key))?;
        row.map_or(Ok(QueueTotals::default()), |row| totals(&row))
    }

    /// The undelivered messages of a named queue.
    pub fn named_undelivered(&self, queue: &QueueId) -> Result<u64, StorageError> {
        let key = schema::named_totals_key(queue);
        let row = self.in_family(|family| self.engine.get(family, &key))?;
        row.map_or(Ok(0), |row| totals(&row).map(|totals| totals.undelivered))
    }

    /// The named queues of a database that have undelivered messages, and how many, by name.
    pub fn named_queues(
        &self,
        database: DatabaseId,
    ) -> Result<Vec<(QueueName, u64)>, StorageError> {
        let (start, end) = schema::named_totals_range(database);
        let read = |(key, value): (Bytes, Bytes)| {
            let corrupt = || StorageError::corruption("the key of a queue", format!("{key:?}"));
            let queue = schema::parse_named_totals_key(&key).ok_or_else(corrupt)?;
            Ok((queue.name, totals(&value)?.undelivered))
        };
        self.in_family(|family| {
            let snapshot = self.engine.snapshot();
            rows(&*snapshot, family, &start, &end, MAX_QUEUE_NAMES, usize::MAX)?
                .into_iter()
                .map(read)
                .collect()
        })
    }

    /// The totals of the databases behind `after` that ever had a message, at most `limit`.
    pub fn queues(
        &self,
        after: Option<DatabaseId>,
        limit: usize,
    ) -> Result<Vec<(DatabaseId, QueueTotals)>, StorageError> {
        let (start, end) = schema::queue_totals_range(after);
        let read = |(key, value): (Bytes, Bytes)| {
            let corrupt = || StorageError::corruption("the key of a queue", format!("{key:?}"));
            Ok((schema::parse_queue_totals_key(&key).ok_or_else(corrupt)?, totals(&value)?))
        };
        self.in_family(|family| {
            let snapshot = self.engine.snapshot();
            rows(&*snapshot, family, &start, &end, limit, usize::MAX)?
                .into_iter()
                .map(read)
                .collect()
        })
    }

    /// Dead letters of a database with their numbers, the oldest first, from number `first` on: at
    /// most `limit`, and until they exceed `max_bytes`. Those are left out that have been kept for
    /// long enough: they are removed when another comes. So are, where a queue is named, those of
    /// others.
    pub fn dead_letters(
        &self,
        queue: &QueueId,
        first: u64,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(u64, DeadLetter)>, StorageError> {
        let (snapshot, family, applied) = self.at_one_moment()?;
        let applied = applied.map_or_else(|| Ok(Applied::nothing()), Applied::decode)?;
        let database = queue.database;
        let kept_since = applied.time_ms.saturating_sub(DEAD_LETTER_RETENTION_MS);
        // Removed ones lie before, and are not looked at.
        let kept = snapshot.get(&family, &schema::queue_totals_key(database))?;
        let kept = kept.map_or(Ok(QueueTotals::default()), |row| totals(&row))?;
        let first = first.max(kept.first_dead);
        let mut start = schema::dead_letter_key(database, first);
        let end = schema::dead_letters_range(database).1;
        loop {
            let mut letters = Vec::new();
            let mut last = None;
            for (key, value) in rows(&*snapshot, &family, &start, &end, limit, max_bytes)? {
                let corrupt =
                    || StorageError::corruption("the key of a dead letter", format!("{key:?}"));
                let number = schema::parse_dead_letter_key(&key).ok_or_else(corrupt)?;
                let letter = dead_letter(value)?;
                let is_wanted = queue.name.is_default() || letter.queue == queue.name;
                if is_wanted && letter.died_ms >= kept_since {
                    letters.push((number, letter));
                }
                last = Some(number);
            }
            // Behind those that are left out there may be others.
            match last.and_then(|last| last.checked_add(1)) {
                Some(next) if letters.is_empty() => {
                    start = schema::dead_letter_key(database, next);
                }
                _ => return Ok(letters),
            }
        }
    }

    pub(super) fn dead_letter(
        &self,
        database: DatabaseId,
        number: u64,
    ) -> Result<Option<DeadLetter>, StorageError> {
        let key = schema::dead_letter_key(database, number);
        self.in_family(|family| self.engine.get(family, &key))?.map(dead_letter).transpose()
    }
}

/// Rows from `start` (inclusive) to `end` (exclusive): at most `limit`, and until they exceed
/// `max_bytes`.
fn rows(
    snapshot: &dyn EngineSnapshot,
    family: &str,
    start: &[u8],
    end: &[u8],
    limit: usize,
    max_bytes: usize,
) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
    let (mut rows, mut bytes) = (Vec::new(), 0);
    if limit == 0 || start >= end {
        return Ok(rows);
    }
    snapshot.scan(family, Scan { start, end, reverse: false }, &mut |key, value| {
        bytes += key.len() + value.len();
        rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        if rows.len() < limit && bytes <= max_bytes {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    Ok(rows)
}

fn message(row: Bytes) -> Result<Message, StorageError> {
    decode_message(row).map_err(|error| StorageError::corruption("a message", error))
}

fn dead_letter(row: Bytes) -> Result<DeadLetter, StorageError> {
    decode_dead_letter(row).map_err(|error| StorageError::corruption("a dead letter", error))
}

fn totals(row: &[u8]) -> Result<QueueTotals, StorageError> {
    decode_queue_totals(row)
        .map_err(|error| StorageError::corruption("the totals of a queue", error))
}

#[cfg(test)]
mod tests;
