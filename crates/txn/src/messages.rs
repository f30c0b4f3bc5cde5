//! The messages of the transaction at hand: settlements, then enqueues.

use std::collections::HashMap;

use meridian_types::limits::{DEFAULT_BACKOFF_MS, MAX_COMPUTED_BYTES, MAX_UNDELIVERED_MESSAGES};
use meridian_types::{
    DatabaseId, DeadLetter, Effect, Enqueue, Message, MessageId, QueueEffect, QueueTotals,
    Settlement, Value, ValueEncoding, Verdict, Versionstamp,
};

use crate::dead_letters::DeadLetters;
use crate::rejection::{Rejection, Stop};
use crate::view::View;
use crate::write_set::WriteSet;

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
    letters: DeadLetters<'a, V>,
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
        let (letters, totals) = (DeadLetters::new(view, database), None);
        Self { view, database, versionstamp, time_ms, effects, settled, letters, totals, bytes }
    }

    /// Settles a message, if it has the row that the settlement names, or a dead letter likewise.
    /// The keys of a message that dies are `written` as if by mutations behind all others.
    pub(crate) fn settle(
        &mut self,
        settlement: &Settlement,
        written: &mut WriteSet,
    ) -> Result<(), Stop<V::Error>> {
        let Settlement { id, due_ms, verdict } = *settlement;
        match verdict {
            Verdict::Delivered | Verdict::Acknowledged | Verdict::Cancelled => {
                match self.take(id, due_ms)? {
                    Some(_) => self.leaves(),
                    None => Ok(()),
                }
            }
            Verdict::Rescheduled { due_ms: to_ms } => match self.take(id, due_ms)? {
                Some(message) => self.move_to(to_ms, id, message),
                None => Ok(()),
            },
            Verdict::Failed { retry_at_ms } => match self.take(id, due_ms)? {
                Some(message) => self.fails(id, due_ms, message, retry_at_ms, written),
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
        id: MessageId,
        due_ms: u64,
        mut message: Message,
        retry_at_ms: u64,
        written: &mut WriteSet,
    ) -> Result<(), Stop<V::Error>> {
        message.attempts = message.attempts.saturating_add(1);
        if message.backoff_ms.is_empty() {
            self.leaves()?;
            return self.dies(id, message, written);
        }
        message.backoff_ms.remove(0);
        // Never to the row that it has: a settlement of this attempt that comes late must find no
        // row, and so cannot settle the next attempt.
        self.move_to(retry_at_ms.max(due_ms.saturating_add(1)), id, message)
    }

    fn redrive(&mut self, letter: DeadLetter) -> Result<(), Stop<V::Error>> {
        let totals = self.totals()?;
        totals.undelivered = totals.undelivered.saturating_add(1);
        if totals.undelivered > MAX_UNDELIVERED_MESSAGES {
            return Err(Rejection::QueueFull.into());
        }
        let DeadLetter { id, payload, enqueued_ms, died_ms, .. } = letter;
        let backoff_ms = DEFAULT_BACKOFF_MS.to_vec();
        let message = Message { payload, backoff_ms, enqueued_ms, ..Message::default() };
        // Behind every row that it had, as after a failure.
        self.move_to(died_ms.saturating_add(1), id, message)
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
        let effects = self.effects.into_iter().chain(self.letters.into_effects());
        effects.chain(totals).map(Effect::Queue)
    }

    /// Takes a message out of its row, if it is there.
    fn take(&mut self, id: MessageId, due_ms: u64) -> Result<Option<Message>, Stop<V::Error>> {
        let message = self.message(id, due_ms)?;
        if message.is_some() {
            self.set_row(QueueEffect::DeleteMessage { id, due_ms }, due_ms, id);
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
            let letter = DeadLetter { id, payload, attempts, enqueued_ms, died_ms };
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
