//! The effects that are evaluated and not yet applied, laid over the applied state.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use meridian_types::{
    Batch, DatabaseId, DeadLetter, Effect, Message, MessageId, Position, QueueEffect, QueueId,
    QueueName, QueueTotals, Value, Versionstamp,
};

use crate::view::{Stored, View};

/// The newest effect of a key that is evaluated but not yet applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InFlight {
    Put {
        versionstamp: Versionstamp,
        value: Value,
        /// Milliseconds since the Unix epoch; 0: never.
        expire_at_ms: u64,
    },
    /// Hides what is applied.
    Delete { versionstamp: Versionstamp },
}

impl InFlight {
    /// That of the transaction that wrote it.
    pub fn versionstamp(&self) -> Versionstamp {
        match self {
            Self::Put { versionstamp, .. } | Self::Delete { versionstamp } => *versionstamp,
        }
    }

    /// The value that a transaction reads at `now_ms`: `None` if the key is deleted or has expired.
    fn present(&self, now_ms: u64) -> Option<(Versionstamp, &Value)> {
        match self {
            Self::Put { expire_at_ms, .. } if (1..=now_ms).contains(expire_at_ms) => None,
            Self::Put { versionstamp, value, .. } => Some((*versionstamp, value)),
            Self::Delete { .. } => None,
        }
    }
}

/// The writes of transactions that are evaluated but not yet applied. The proposer's own: it pushes
/// each transaction once evaluated, releases what was applied, and clears it all when it stops
/// being the leader, since then nothing says that these batches commit.
///
/// It is as large as the batches in flight; bounding those bounds it.
#[derive(Debug, Default)]
pub struct Overlay {
    /// No database is here of which nothing is in flight.
    newest: HashMap<DatabaseId, Newest>,
    /// Every effect pushed and not yet released, in order, superseded ones too: what makes
    /// [`Overlay::release`] cost no more than the pushes did.
    pushed: VecDeque<Pushed>,
}

/// The newest effects in flight on each row of a database.
#[derive(Debug, Default)]
struct Newest {
    keys: HashMap<Bytes, InFlight>,
    /// `None` where the row is removed.
    messages: HashMap<MessageRow, (Versionstamp, Option<Message>)>,
    /// By number. `None` where the row is removed.
    dead_letters: HashMap<u64, (Versionstamp, Option<DeadLetter>)>,
    queue_totals: Option<(Versionstamp, QueueTotals)>,
    /// Undelivered messages of named queues.
    named_undelivered: HashMap<QueueName, (Versionstamp, u64)>,
}

/// The queue, due time and id of a message.
type MessageRow = (QueueName, u64, MessageId);

impl Newest {
    fn is_empty(&self) -> bool {
        self.keys.is_empty()
            && self.messages.is_empty()
            && self.dead_letters.is_empty()
            && self.queue_totals.is_none()
            && self.named_undelivered.is_empty()
    }

    /// Adds an effect. `None` where no transaction can see it.
    fn push(&mut self, versionstamp: Versionstamp, effect: &Effect) -> Option<Row> {
        let in_flight = match effect {
            Effect::Put { value, expire_at_ms, .. } => {
                InFlight::Put { versionstamp, value: value.clone(), expire_at_ms: *expire_at_ms }
            }
            Effect::Delete { .. } => InFlight::Delete { versionstamp },
            Effect::Queue(effect) => return Some(self.push_on_queue(versionstamp, effect)),
            // Of a dropped database nothing is evaluated any more.
            Effect::Unindex { .. } | Effect::DropDatabase => return None,
        };
        self.keys.insert(effect.key().clone(), in_flight);
        Some(Row::Key(effect.key().clone()))
    }

    fn push_on_queue(&mut self, versionstamp: Versionstamp, effect: &QueueEffect) -> Row {
        match effect {
            QueueEffect::PutMessage { queue, id, due_ms, message } => {
                let row = (queue.clone(), *due_ms, *id);
                self.messages.insert(row.clone(), (versionstamp, Some(message.clone())));
                Row::Message(row)
            }
            QueueEffect::DeleteMessage { queue, id, due_ms } => {
                let row = (queue.clone(), *due_ms, *id);
                self.messages.insert(row.clone(), (versionstamp, None));
                Row::Message(row)
            }
            QueueEffect::PutDeadLetter { number, letter } => {
                self.dead_letters.insert(*number, (versionstamp, Some(letter.clone())));
                Row::DeadLetter(*number)
            }
            QueueEffect::DeleteDeadLetter { number } => {
                self.dead_letters.insert(*number, (versionstamp, None));
                Row::DeadLetter(*number)
            }
            QueueEffect::PutTotals(totals) => {
                self.queue_totals = Some((versionstamp, *totals));
                Row::QueueTotals
            }
            QueueEffect::PutNamedTotals { queue, undelivered } => {
                self.named_undelivered.insert(queue.clone(), (versionstamp, *undelivered));
                Row::NamedTotals(queue.clone())
            }
        }
    }

    /// Drops what is in flight on a row, if it was written by this transaction.
    fn release(&mut self, row: &Row, by: Versionstamp) {
        match row {
            Row::Key(key) => {
                if self.keys.get(key).is_some_and(|in_flight| in_flight.versionstamp() == by) {
                    self.keys.remove(key);
                }
            }
            Row::Message(row) => {
                if self.messages.get(row).is_some_and(|(stamp, _)| *stamp == by) {
                    self.messages.remove(row);
                }
            }
            Row::DeadLetter(number) => {
                if self.dead_letters.get(number).is_some_and(|(stamp, _)| *stamp == by) {
                    self.dead_letters.remove(number);
                }
            }
            Row::QueueTotals => {
                self.queue_totals.take_if(|(stamp, _)| *stamp == by);
            }
            Row::NamedTotals(queue) => {
                if self.named_undelivered.get(queue).is_some_and(|(stamp, _)| *stamp == by) {
                    self.named_undelivered.remove(queue);
                }
            }
        }
    }
}

#[derive(Debug)]
enum Row {
    Key(Bytes),
    Message(MessageRow),
    DeadLetter(u64),
    QueueTotals,
    NamedTotals(QueueName),
}

#[derive(Debug)]
struct Pushed {
    versionstamp: Versionstamp,
    database: DatabaseId,
    row: Row,
}

impl Overlay {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one evaluated transaction.
    ///
    /// # Panics
    /// When `versionstamp` is older than what was pushed before: the proposer would evaluate
    /// against something that never was.
    pub fn push(&mut self, versionstamp: Versionstamp, database: DatabaseId, effects: &[Effect]) {
        if effects.is_empty() {
            return;
        }
        assert!(
            self.pushed.back().is_none_or(|last| last.versionstamp <= versionstamp),
            "versionstamp {versionstamp} pushed out of order"
        );
        let newest = self.newest.entry(database).or_default();
        for effect in effects {
            if let Some(row) = newest.push(versionstamp, effect) {
                self.pushed.push_back(Pushed { versionstamp, database, row });
            }
        }
        if newest.is_empty() {
            self.newest.remove(&database);
        }
    }

    /// Adds every transaction of a batch.
    ///
    /// # Panics
    /// As [`Overlay::push`].
    pub fn insert(&mut self, batch: &Batch) {
        for (versionstamp, transaction) in batch.iter() {
            self.push(versionstamp, transaction.database, &transaction.effects);
        }
    }

    /// Drops what batches up to and including `upto` wrote, unless a later one has written the key
    /// again. To be called only once they can be read from the applied view. Its cost is that of
    /// the effects dropped.
    pub fn release(&mut self, upto: Position) {
        while self.pushed.front().is_some_and(|oldest| oldest.versionstamp.position() <= upto) {
            let Some(pushed) = self.pushed.pop_front() else { break };
            let Some(newest) = self.newest.get_mut(&pushed.database) else { continue };
            newest.release(&pushed.row, pushed.versionstamp);
            if newest.is_empty() {
                self.newest.remove(&pushed.database);
            }
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.newest.clear();
        self.pushed.clear();
    }

    /// The newest effect of a key, if any is in flight.
    pub fn get(&self, database: DatabaseId, key: &[u8]) -> Option<&InFlight> {
        self.newest.get(&database)?.keys.get(key)
    }

    /// The newest effect on the row of a message, if any is in flight: `None` inside where the row
    /// is removed.
    fn message(&self, database: DatabaseId, row: &MessageRow) -> Option<Option<&Message>> {
        self.newest.get(&database)?.messages.get(row).map(|(_, message)| message.as_ref())
    }

    /// As [`Overlay::message`].
    fn dead_letter(&self, database: DatabaseId, number: u64) -> Option<Option<&DeadLetter>> {
        self.newest.get(&database)?.dead_letters.get(&number).map(|(_, letter)| letter.as_ref())
    }

    fn queue_totals(&self, database: DatabaseId) -> Option<QueueTotals> {
        self.newest.get(&database)?.queue_totals.map(|(_, totals)| totals)
    }

    fn named_undelivered(&self, queue: &QueueId) -> Option<u64> {
        let newest = self.newest.get(&queue.database)?;
        newest.named_undelivered.get(&queue.name).map(|(_, undelivered)| *undelivered)
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.pushed.is_empty()
    }

    /// How many effects are held, superseded ones included.
    pub fn len(&self) -> usize {
        self.pushed.len()
    }
}

/// Applied state with the batches in flight laid over it: what the next transaction sees.
#[derive(Debug)]
pub struct Overlaid<'a, V> {
    pub overlay: &'a Overlay,
    pub applied: &'a V,
    /// Effects in flight that expire at this time or before are seen as absent. Milliseconds since
    /// the Unix epoch. The applied view does the same for its own.
    pub now_ms: u64,
}

impl<V: View> View for Overlaid<'_, V> {
    type Error = V::Error;

    fn get(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Stored>, V::Error> {
        match self.overlay.get(database, key) {
            Some(in_flight) => Ok(in_flight
                .present(self.now_ms)
                .map(|(versionstamp, value)| Stored { versionstamp, value: value.clone() })),
            None => self.applied.get(database, key),
        }
    }

    fn version(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Versionstamp>, V::Error> {
        match self.overlay.get(database, key) {
            Some(in_flight) => {
                Ok(in_flight.present(self.now_ms).map(|(versionstamp, _)| versionstamp))
            }
            None => self.applied.version(database, key),
        }
    }

    fn message(
        &self,
        queue: &QueueId,
        due_ms: u64,
        id: MessageId,
    ) -> Result<Option<Message>, V::Error> {
        match self.overlay.message(queue.database, &(queue.name.clone(), due_ms, id)) {
            Some(message) => Ok(message.cloned()),
            None => self.applied.message(queue, due_ms, id),
        }
    }

    fn queue_totals(&self, database: DatabaseId) -> Result<QueueTotals, V::Error> {
        match self.overlay.queue_totals(database) {
            Some(totals) => Ok(totals),
            None => self.applied.queue_totals(database),
        }
    }

    fn named_undelivered(&self, queue: &QueueId) -> Result<u64, V::Error> {
        match self.overlay.named_undelivered(queue) {
            Some(undelivered) => Ok(undelivered),
            None => self.applied.named_undelivered(queue),
        }
    }

    fn dead_letter(
        &self,
        database: DatabaseId,
        number: u64,
    ) -> Result<Option<DeadLetter>, V::Error> {
        match self.overlay.dead_letter(database, number) {
            Some(letter) => Ok(letter.cloned()),
            None => self.applied.dead_letter(database, number),
        }
    }
}

#[cfg(test)]
mod tests;
