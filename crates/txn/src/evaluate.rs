//! The evaluation of one transaction: checks first, then mutations in order, then its messages.

use bytes::Bytes;
use meridian_types::limits::MAX_COMPUTED_BYTES;
use meridian_types::{
    DatabaseId, Effect, Mutation, MutationKind, QueueId, Settlement, Transaction, Value, Verdict,
    Versionstamp,
};

use crate::arithmetic::{U64Operation, sum};
use crate::messages::Messages;
use crate::rejection::{Rejection, Stop};
use crate::view::View;
use crate::write_set::WriteSet;

/// The result of an evaluation. Nothing of it has happened yet: effects take effect when their
/// batch commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evaluation {
    /// At most one effect a row: the last. Empty if the transaction only checks, or does nothing.
    Commit(Vec<Effect>),
    /// Indexes of **all** the checks that failed, ascending; acknowledgements count on behind the
    /// checks. To be answered only once the batches that were seen through the overlay have
    /// committed.
    CheckFailed(Vec<u32>),
    /// A mutation cannot be carried out, so none is. The text is for the client.
    Rejected(String),
}

/// Evaluates `transaction` against `view`: first its checks, then its mutations in order, each of
/// which sees the ones before it, then its settlements likewise, then its enqueues. What a message
/// that dies writes to keys comes behind all mutations. A settlement of a message that was settled
/// before does nothing, and keeps nothing else from committing, unless it is an acknowledgement,
/// which is a check as well: so the effects of a handler commit with the end of its message, once.
///
/// `versionstamp` is the stamp that the transaction will have if it commits, and `time_ms` the time
/// of its batch. [`MutationKind::SetSuffixVersionstampedKey`] looks at the stamp, and the gateway
/// sees to it beforehand that such a key is not longer than a key may be. Messages have the stamp
/// in their ids, and are due at that time at the earliest.
///
/// The bytes that arithmetic reads and writes, and that settlements write, are bounded by
/// [`MAX_COMPUTED_BYTES`], counted as they are carried out, so that values that a later mutation
/// replaces count too: that bounds the work, and with the size of the request the effects.
///
/// A value that the transaction itself has set is seen by its later mutations even if it expires at
/// once, since evaluation knows no time.
///
/// # Errors
/// Those of the view, and then nothing is known of the transaction.
pub fn evaluate<V: View>(
    view: &V,
    database: DatabaseId,
    versionstamp: Versionstamp,
    time_ms: u64,
    transaction: &Transaction,
) -> Result<Evaluation, V::Error> {
    let mut failed_checks = Vec::new();
    for (index, check) in (0..).zip(&transaction.checks) {
        if view.version(database, &check.key)? != check.versionstamp {
            failed_checks.push(index);
        }
    }
    let checks = u32::try_from(transaction.checks.len()).unwrap_or(u32::MAX);
    let is_acknowledged = |it: &&Settlement| it.verdict == Verdict::Acknowledged;
    let acknowledged = transaction.settlements.iter().filter(is_acknowledged);
    for (index, Settlement { queue, id, due_ms, .. }) in (checks..).zip(acknowledged) {
        let queue = QueueId { database, name: queue.clone() };
        if view.message(&queue, *due_ms, *id)?.is_none() {
            failed_checks.push(index);
        }
    }
    if !failed_checks.is_empty() {
        return Ok(Evaluation::CheckFailed(failed_checks));
    }

    let written = WriteSet::with_capacity(transaction.mutations.len());
    let mutations = Mutations { view, database, versionstamp, written, computed_bytes: 0 };
    match mutations.carry_out(transaction, time_ms) {
        Ok(effects) => Ok(Evaluation::Commit(effects)),
        Err(Stop::Rejected(rejection)) => Ok(Evaluation::Rejected(rejection.to_string())),
        Err(Stop::View(error)) => Err(error),
    }
}

/// The mutations of one transaction, in the middle of being evaluated.
struct Mutations<'a, V> {
    view: &'a V,
    database: DatabaseId,
    versionstamp: Versionstamp,
    written: WriteSet,
    /// Of the values that arithmetic has read and written so far.
    computed_bytes: usize,
}

impl<V: View> Mutations<'_, V> {
    /// Everything behind the checks.
    fn carry_out(
        mut self,
        transaction: &Transaction,
        time_ms: u64,
    ) -> Result<Vec<Effect>, Stop<V::Error>> {
        for (index, mutation) in (1..).zip(&transaction.mutations) {
            self.apply(mutation)?;
            self.within_bounds(index)?;
        }
        let Self { view, database, versionstamp, mut written, computed_bytes } = self;
        let mut messages = Messages::new(view, database, versionstamp, time_ms, computed_bytes);
        for settlement in &transaction.settlements {
            messages.settle(settlement, &mut written)?;
        }
        messages.enqueue(&transaction.enqueues)?;
        let mut effects = written.into_effects();
        effects.extend(messages.into_effects());
        Ok(effects)
    }

    fn apply(&mut self, mutation: &Mutation) -> Result<(), Stop<V::Error>> {
        let key = &mutation.key;
        let effect = match &mutation.kind {
            MutationKind::Set(value) => put(key.clone(), value.clone(), mutation.expire_at_ms),
            MutationKind::SetSuffixVersionstampedKey(value) => {
                put(suffixed(key, self.versionstamp), value.clone(), mutation.expire_at_ms)
            }
            MutationKind::Delete => Effect::Delete { key: key.clone() },
            MutationKind::Sum { operand, bounds } => {
                let stored = self.stored(key)?;
                self.computed(key, sum(stored.as_ref(), operand, bounds)?)
            }
            MutationKind::Min(operand) => self.compute(key, U64Operation::Min, operand)?,
            MutationKind::Max(operand) => self.compute(key, U64Operation::Max, operand)?,
        };
        self.written.put(effect);
        Ok(())
    }

    fn within_bounds(&self, mutations: usize) -> Result<(), Stop<V::Error>> {
        if self.computed_bytes > MAX_COMPUTED_BYTES {
            return Err(Rejection::TooMuch { mutations, bytes: self.computed_bytes }.into());
        }
        Ok(())
    }

    fn compute(
        &mut self,
        key: &Bytes,
        operation: U64Operation,
        operand: &Value,
    ) -> Result<Effect, Stop<V::Error>> {
        let stored = self.stored(key)?;
        Ok(self.computed(key, operation.apply(stored.as_ref(), operand)?))
    }

    /// The results of arithmetic never expire, whatever the stored value or the mutation says.
    fn computed(&mut self, key: &Bytes, value: Value) -> Effect {
        self.computed_bytes += value.data.len();
        put(key.clone(), value, 0)
    }

    /// The value of a key as the earlier mutations left it.
    fn stored(&mut self, key: &[u8]) -> Result<Option<Value>, Stop<V::Error>> {
        let stored = match self.written.get(key) {
            Some(Effect::Put { value, .. }) => Some(value.clone()),
            Some(Effect::Delete { .. }) => None,
            // Mutations come to puts and deletes alone.
            Some(_) | None => {
                self.view.get(self.database, key).map_err(Stop::View)?.map(|stored| stored.value)
            }
        };
        self.computed_bytes += stored.as_ref().map_or(0, |value| value.data.len());
        Ok(stored)
    }
}

fn put(key: Bytes, value: Value, expire_at_ms: u64) -> Effect {
    Effect::Put { key, value, expire_at_ms }
}

/// The key followed by one more part, as clients encode tuples: the string of the versionstamp's
/// hex.
fn suffixed(key: &[u8], versionstamp: Versionstamp) -> Bytes {
    [key, &[0x02], versionstamp.to_hex().as_bytes(), &[0x00]].concat().into()
}

#[cfg(test)]
mod tests;
