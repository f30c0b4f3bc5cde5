//! The messages of the transaction at hand: settlements, then enqueues.

use std::collections::HashMap;

use meridian_types::limits::{
    DEAD_LETTER_RETENTION_MS, MAX_COMPUTED_BYTES, MAX_DEAD_LETTERS, MAX_UNDELIVERED_MESSAGES,
};
use meridian_types::{
    DatabaseId, DeadLetter, Effect, Enqueue, Message, MessageId, QueueEffect, QueueTotals,
    Settlement, Value, ValueEncoding, Verdict, Versionstamp,
};

use crate::rejection::{Rejection, Stop};
use crate::view::View;
use crate::write_set::WriteSet;

/// Dead letters that are too old go by so many with each that is added, at most: faster than they
/// come, and bounded.
const OLD_LETTERS_AT_ONCE: usize = 2;

/// The effects of the transaction at hand on the queue of its database.
pub(crate) struct Messages<'a, V> {
    view: &'a V,
    database: DatabaseId,
    versionstamp: Versionstamp,
    /// Of the batch.
    time_ms: u64,
    effects: Vec<QueueEffect>,
    /// Where in `effects` the last effect on a message's row is, as far as settlements had to do
    /// with it.
    settled: HashMap<(u64, MessageId), usize>,
    /// Once they were read.
    totals: Option<QueueTotals>,
    /// Of what is written.
    bytes: usize,
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
        Self { view, database, versionstamp, time_ms, effects, settled, totals: None, bytes }
    }

    /// Settles a message, if it has the row that the settlement names. The keys of a message that
    /// dies are `written` as if by mutations behind all others.
    pub(crate) fn settle(
        &mut self,
        settlement: &Settlement,
        written: &mut WriteSet,
    ) -> Result<(), Stop<V::Error>> {
        let Settlement { id, due_ms, verdict } = settlement;
        let Some(mut message) = self.message(*id, *due_ms)? else { return Ok(()) };
        self.set_row(QueueEffect::DeleteMessage { id: *id, due_ms: *due_ms }, *due_ms, *id);
        match *verdict {
            Verdict::Delivered | Verdict::Cancelled => self.leaves()?,
            Verdict::Rescheduled { due_ms } => self.move_to(due_ms, *id, message)?,
            Verdict::Failed { retry_at_ms } => {
                message.attempts = message.attempts.saturating_add(1);
                if message.backoff_ms.is_empty() {
                    self.leaves()?;
                    self.dies(*id, message, written)?;
                } else {
                    message.backoff_ms.remove(0);
                    // Never to the row that it has: a settlement of this attempt that comes late
                    // must find no row, and so cannot settle the next attempt.
                    let next_ms = due_ms.saturating_add(1);
                    self.move_to(retry_at_ms.max(next_ms), *id, message)?;
                }
            }
        }
        Ok(())
    }

    /// Adds the messages that the transaction enqueues. A message that was due before the batch is
    /// due with it: so no message takes its place before another that could have been delivered
    /// already.
    pub(crate) fn enqueue(&mut self, enqueues: &[Enqueue]) -> Result<(), Stop<V::Error>> {
        if enqueues.is_empty() {
            return Ok(());
        }
        let totals = self.totals()?;
        totals.undelivered = totals.undelivered.saturating_add(enqueues.len() as u64);
        if totals.undelivered > MAX_UNDELIVERED_MESSAGES {
            return Err(Rejection::QueueFull.into());
        }
        let enqueued = self.versionstamp;
        // The gateway bounds the number; an index has 16 bits.
        self.effects.extend((0..=u16::MAX).zip(enqueues).map(|(index, enqueue)| {
            let id = MessageId { enqueued, index };
            let message = Message::new(enqueue, self.time_ms);
            QueueEffect::PutMessage { id, due_ms: enqueue.due_ms.max(self.time_ms), message }
        }));
        Ok(())
    }

    pub(crate) fn into_effects(self) -> impl Iterator<Item = Effect> {
        let totals = self.totals.map(QueueEffect::PutTotals);
        self.effects.into_iter().chain(totals).map(Effect::Queue)
    }

    /// A message's row, as the earlier settlements left it.
    fn message(&self, id: MessageId, due_ms: u64) -> Result<Option<Message>, Stop<V::Error>> {
        match self.settled.get(&(due_ms, id)).and_then(|at| self.effects.get(*at)) {
            Some(QueueEffect::PutMessage { message, .. }) => Ok(Some(message.clone())),
            Some(_) => Ok(None),
            None => self.view.message(self.database, due_ms, id).map_err(Stop::View),
        }
    }

    /// The last effect on a row counts.
    fn set_row(&mut self, effect: QueueEffect, due_ms: u64, id: MessageId) {
        let at = *self.settled.entry((due_ms, id)).or_insert(self.effects.len());
        match self.effects.get_mut(at) {
            Some(earlier) => *earlier = effect,
            None => self.effects.push(effect),
        }
    }

    fn move_to(
        &mut self,
        due_ms: u64,
        id: MessageId,
        message: Message,
    ) -> Result<(), Stop<V::Error>> {
        let due_ms = due_ms.max(self.time_ms);
        self.count_bytes(message.size())?;
        self.set_row(QueueEffect::PutMessage { id, due_ms, message }, due_ms, id);
        Ok(())
    }

    fn leaves(&mut self) -> Result<(), Stop<V::Error>> {
        let totals = self.totals()?;
        totals.undelivered = totals.undelivered.saturating_sub(1);
        Ok(())
    }

    fn dies(
        &mut self,
        id: MessageId,
        message: Message,
        written: &mut WriteSet,
    ) -> Result<(), Stop<V::Error>> {
        let Message { payload, keys_if_undelivered, attempts, enqueued_ms, .. } = message;
        if keys_if_undelivered.is_empty() {
            self.count_bytes(payload.len())?;
            let died_ms = self.time_ms;
            return self.bury(DeadLetter { id, payload, attempts, enqueued_ms, died_ms });
        }
        for key in keys_if_undelivered {
            self.count_bytes(key.len() + payload.len())?;
            let value = Value { encoding: ValueEncoding::V8, data: payload.clone() };
            written.put(Effect::Put { key, value, expire_at_ms: 0 });
        }
        Ok(())
    }

    /// Keeps a dead letter, and removes those that are too many or too old.
    fn bury(&mut self, letter: DeadLetter) -> Result<(), Stop<V::Error>> {
        let (view, database) = (self.view, self.database);
        let kept_since = self.time_ms.saturating_sub(DEAD_LETTER_RETENTION_MS);
        let totals = self.totals()?;
        let number = totals.next_dead;
        totals.next_dead = number.saturating_add(1);
        let mut removed = Vec::new();
        while totals.dead() > MAX_DEAD_LETTERS {
            removed.push(totals.first_dead);
            totals.first_dead += 1;
        }
        while removed.len() < OLD_LETTERS_AT_ONCE
            && let Some(died_ms) =
                view.dead_letter_died_ms(database, totals.first_dead).map_err(Stop::View)?
            && died_ms < kept_since
        {
            removed.push(totals.first_dead);
            totals.first_dead += 1;
        }
        let removed = removed.into_iter().map(|number| QueueEffect::DeleteDeadLetter { number });
        self.effects.extend(removed.chain([QueueEffect::PutDeadLetter { number, letter }]));
        Ok(())
    }

    fn totals(&mut self) -> Result<&mut QueueTotals, Stop<V::Error>> {
        let totals = match self.totals.take() {
            Some(totals) => totals,
            None => self.view.queue_totals(self.database).map_err(Stop::View)?,
        };
        Ok(self.totals.insert(totals))
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
