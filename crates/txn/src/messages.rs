//! The messages of the transaction at hand: settlements, then enqueues.

use std::collections::{BTreeMap, HashMap};

use meridian_types::limits::{
    DEFAULT_BACKOFF_MS, MAX_COMPUTED_BYTES, MAX_QUEUE_NAMES, MAX_UNDELIVERED_MESSAGES,
};
use meridian_types::{
    DatabaseId, DeadLetter, Effect, Enqueue, Message, MessageId, QueueEffect, QueueId, QueueName,
    QueueTotals, Settlement, Value, ValueEncoding, Verdict, Versionstamp,
};

use crate::dead_letters::DeadLetters;
use crate::rejection::{Rejection, Stop};
use crate::view::View;
use crate::write_set::WriteSet;

/// The effects of the transaction at hand on the queues of its database.
pub(crate) struct Messages<'a, V> {
    view: &'a V,
    database: DatabaseId,
    versionstamp: Versionstamp,
    /// Of the batch.
    time_ms: u64,
    effects: Vec<QueueEffect>,
    /// Where in `effects` the last effect on a message's row is, as far as settlements had to do
    /// with it.
    settled: HashMap<Row, usize>,
    letters: DeadLetters<'a, V>,
    /// Once they were read.
    totals: Option<QueueTotals>,
    /// Undelivered messages of the named queues that messages come to or leave.
    named: BTreeMap<QueueName, u64>,
    /// Of what is written.
    bytes: usize,
}

/// The place of a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Row {
    queue: QueueName,
    due_ms: u64,
    id: MessageId,
}

impl<'a, V: View> Messages<'a, V> {
    /// `bytes` were written before.
    pub(crate) fn new(
        view: &'a V,
        database: DatabaseId,
        versionstamp: Versionstamp,
        time_ms: u64,
        bytes: usize,
    ) -> Self {
        let (effects, settled) = (Vec::new(), HashMap::new());
        let (letters, totals, named) = (DeadLetters::new(view, database), None, BTreeMap::new());
        Self {
            view,
            database,
            versionstamp,
            time_ms,
            effects,
            settled,
            letters,
            totals,
            named,
            bytes,
        }
    }

    /// Settles a message, if it has the row that the settlement names, or a dead letter likewise.
    /// The keys of a message that dies are `written` as if by mutations behind all others.
    pub(crate) fn settle(
        &mut self,
        settlement: &Settlement,
        written: &mut WriteSet,
    ) -> Result<(), Stop<V::Error>> {
        let Settlement { ref queue, id, due_ms, verdict } = *settlement;
        let row = Row { queue: queue.clone(), due_ms, id };
        match verdict {
            Verdict::Delivered | Verdict::Acknowledged | Verdict::Cancelled => {
                match self.take(&row)? {
                    Some(_) => self.leaves(queue),
                    None => Ok(()),
                }
            }
            Verdict::Rescheduled { due_ms } => match self.take(&row)? {
                Some(message) => self.put(Row { due_ms, ..row }, message),
                None => Ok(()),
            },
            Verdict::Failed { retry_at_ms } => match self.take(&row)? {
                Some(message) => self.fails(row, message, retry_at_ms, written),
                None => Ok(()),
            },
            Verdict::Redriven { number } => match self.take_letter(number, id)? {
                Some(letter) => self.redrive(letter),
                None => Ok(()),
            },
            Verdict::Discarded { number } => self.take_letter(number, id).map(drop),
        }
    }

    fn fails(
        &mut self,
        row: Row,
        mut message: Message,
        retry_at_ms: u64,
        written: &mut WriteSet,
    ) -> Result<(), Stop<V::Error>> {
        message.attempts = message.attempts.saturating_add(1);
        if message.backoff_ms.is_empty() {
            self.leaves(&row.queue)?;
            return self.dies(row, message, written);
        }
        message.backoff_ms.remove(0);
        // Never to the row that it has: a settlement of this attempt that comes late must find no
        // row, and so cannot settle the next attempt.
        let due_ms = retry_at_ms.max(row.due_ms.saturating_add(1));
        self.put(Row { due_ms, ..row }, message)
    }

    fn redrive(&mut self, letter: DeadLetter) -> Result<(), Stop<V::Error>> {
        self.come(&letter.queue, 1)?;
        let DeadLetter { queue, id, payload, enqueued_ms, died_ms, .. } = letter;
        let backoff_ms = DEFAULT_BACKOFF_MS.to_vec();
        let message = Message { payload, backoff_ms, enqueued_ms, ..Message::default() };
        // Behind every row that it had, as after a failure.
        self.put(Row { queue, due_ms: died_ms.saturating_add(1), id }, message)
    }

    /// Adds the messages that the transaction enqueues. A message that was due before the batch is
    /// due with it: so no message takes its place before another that could have been delivered
    /// already.
    pub(crate) fn enqueue(&mut self, enqueues: &[Enqueue]) -> Result<(), Stop<V::Error>> {
        for of_one_queue in enqueues.chunk_by(|one, next| one.queue == next.queue) {
            if let Some(first) = of_one_queue.first() {
                self.come(&first.queue, of_one_queue.len() as u64)?;
            }
        }
        let enqueued = self.versionstamp;
        // The gateway bounds the number; an index has 16 bits.
        self.effects.extend((0..=u16::MAX).zip(enqueues).map(|(index, enqueue)| {
            let id = MessageId { enqueued, index };
            let message = Message::new(enqueue, self.time_ms);
            let (queue, due_ms) = (enqueue.queue.clone(), enqueue.due_ms.max(self.time_ms));
            QueueEffect::PutMessage { queue, id, due_ms, message }
        }));
        Ok(())
    }

    pub(crate) fn into_effects(self) -> impl Iterator<Item = Effect> {
        let totals = self.totals.map(QueueEffect::PutTotals);
        let named = self.named.into_iter();
        let named =
            named.map(|(queue, undelivered)| QueueEffect::PutNamedTotals { queue, undelivered });
        let effects = self.effects.into_iter().chain(self.letters.into_effects());
        effects.chain(named).chain(totals).map(Effect::Queue)
    }

    /// Takes a message out of its row, if it is there.
    fn take(&mut self, row: &Row) -> Result<Option<Message>, Stop<V::Error>> {
        let message = self.message(row)?;
        if message.is_some() {
            let Row { queue, due_ms, id } = row.clone();
            self.set_row(row, QueueEffect::DeleteMessage { queue, id, due_ms });
        }
        Ok(message)
    }

    fn take_letter(
        &mut self,
        number: u64,
        id: MessageId,
    ) -> Result<Option<DeadLetter>, Stop<V::Error>> {
        let (view, database, known) = (self.view, self.database, self.totals);
        let totals = || known.map_or_else(|| view.queue_totals(database), Ok);
        let taken = self.letters.take(number, id, totals).map_err(Stop::View)?;
        Ok(taken.map(|(letter, totals)| {
            self.totals = Some(totals);
            letter
        }))
    }

    /// A message's row, as the earlier settlements left it.
    fn message(&self, row: &Row) -> Result<Option<Message>, Stop<V::Error>> {
        match self.settled.get(row).and_then(|at| self.effects.get(*at)) {
            Some(QueueEffect::PutMessage { message, .. }) => Ok(Some(message.clone())),
            Some(_) => Ok(None),
            None => {
                let queue = self.queue(&row.queue);
                self.view.message(&queue, row.due_ms, row.id).map_err(Stop::View)
            }
        }
    }

    fn queue(&self, name: &QueueName) -> QueueId {
        QueueId { database: self.database, name: name.clone() }
    }

    /// The last effect on a row counts.
    fn set_row(&mut self, row: &Row, effect: QueueEffect) {
        let at = *self.settled.entry(row.clone()).or_insert(self.effects.len());
        match self.effects.get_mut(at) {
            Some(earlier) => *earlier = effect,
            None => self.effects.push(effect),
        }
    }

    /// Of a message that was elsewhere. It is due with the batch at the earliest.
    fn put(&mut self, mut row: Row, message: Message) -> Result<(), Stop<V::Error>> {
        row.due_ms = row.due_ms.max(self.time_ms);
        self.count_bytes(message.size())?;
        let Row { queue, due_ms, id } = row.clone();
        self.set_row(&row, QueueEffect::PutMessage { queue, id, due_ms, message });
        Ok(())
    }

    /// A queue has so many messages more.
    fn come(&mut self, queue: &QueueName, messages: u64) -> Result<(), Stop<V::Error>> {
        if queue.is_default() {
            let totals = self.totals()?;
            totals.undelivered = totals.undelivered.saturating_add(messages);
        } else {
            let undelivered = self.named(queue)?;
            let is_new = *undelivered == 0;
            *undelivered = undelivered.saturating_add(messages);
            let totals = self.totals()?;
            totals.named_undelivered = totals.named_undelivered.saturating_add(messages);
            totals.names = totals.names.saturating_add(is_new.into());
            if is_new && totals.names > MAX_QUEUE_NAMES as u64 {
                return Err(Rejection::TooManyQueues.into());
            }
        }
        if self.totals()?.undelivered_in_all() > MAX_UNDELIVERED_MESSAGES {
            return Err(Rejection::QueueFull.into());
        }
        Ok(())
    }

    /// And one less. A named queue without any leaves no trace.
    fn leaves(&mut self, queue: &QueueName) -> Result<(), Stop<V::Error>> {
        if queue.is_default() {
            let totals = self.totals()?;
            totals.undelivered = totals.undelivered.saturating_sub(1);
            return Ok(());
        }
        let undelivered = self.named(queue)?;
        *undelivered = undelivered.saturating_sub(1);
        let is_empty = *undelivered == 0;
        let totals = self.totals()?;
        totals.named_undelivered = totals.named_undelivered.saturating_sub(1);
        totals.names = totals.names.saturating_sub(is_empty.into());
        Ok(())
    }

    fn dies(
        &mut self,
        Row { queue, id, .. }: Row,
        message: Message,
        written: &mut WriteSet,
    ) -> Result<(), Stop<V::Error>> {
        let Message { payload, keys_if_undelivered, attempts, enqueued_ms, .. } = message;
        if keys_if_undelivered.is_empty() {
            self.count_bytes(payload.len())?;
            let died_ms = self.time_ms;
            let letter = DeadLetter { queue, id, payload, attempts, enqueued_ms, died_ms };
            let mut totals = *self.totals()?;
            self.letters.bury(letter, &mut totals).map_err(Stop::View)?;
            self.totals = Some(totals);
            return Ok(());
        }
        for key in keys_if_undelivered {
            self.count_bytes(key.len() + payload.len())?;
            let value = Value { encoding: ValueEncoding::V8, data: payload.clone() };
            written.put(Effect::Put { key, value, expire_at_ms: 0 });
        }
        Ok(())
    }

    fn totals(&mut self) -> Result<&mut QueueTotals, Stop<V::Error>> {
        let totals = match self.totals.take() {
            Some(totals) => totals,
            None => self.view.queue_totals(self.database).map_err(Stop::View)?,
        };
        Ok(self.totals.insert(totals))
    }

    /// The undelivered messages of a named queue.
    fn named(&mut self, queue: &QueueName) -> Result<&mut u64, Stop<V::Error>> {
        if !self.named.contains_key(queue) {
            let undelivered = self.view.named_undelivered(&self.queue(queue));
            self.named.insert(queue.clone(), undelivered.map_err(Stop::View)?);
        }
        Ok(self.named.entry(queue.clone()).or_default())
    }

    /// A settlement of some bytes may come to the largest payload under each of its keys.
    fn count_bytes(&mut self, bytes: usize) -> Result<(), Stop<V::Error>> {
        self.bytes += bytes;
        if self.bytes > MAX_COMPUTED_BYTES {
            return Err(Rejection::SettlesTooMuch { bytes: self.bytes }.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
