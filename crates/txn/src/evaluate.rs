use bytes::Bytes;
use meridian_types::{DatabaseId, Effect, Mutation, MutationKind, Transaction, Value, Versionstamp};

use crate::arithmetic::{U64Operation, sum};
use crate::rejection::Rejection;
use crate::view::View;
use crate::write_set::WriteSet;

/// What a transaction comes to. None of it has happened yet: effects take effect when their batch commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evaluation {
    /// At most one effect a key: the last. Empty if the transaction only checks, or does nothing.
    Commit(Vec<Effect>),
    /// Indexes of **all** the checks that failed, ascending. To be answered only once the batches that
    /// were seen through the overlay have committed.
    CheckFailed(Vec<u32>),
    /// A mutation cannot be carried out, so none is. The text is for the client.
    Rejected(String),
}

/// Evaluates `transaction` against `view`: first its checks, then its mutations in order, each of which
/// sees the ones before it.
///
/// `versionstamp` is the one that the transaction will have if it commits; only
/// [`MutationKind::SetSuffixVersionstampedKey`] looks at it. Such a key may come out longer than the
/// limit of a key, for which the gateway allows beforehand.
///
/// A value that the transaction itself has set is seen by its later mutations even if it expires at once,
/// since evaluation knows no time.
///
/// # Errors
/// Those of the view, and then nothing is known of the transaction.
pub fn evaluate<V: View>(
    view: &V,
    database: DatabaseId,
    versionstamp: Versionstamp,
    transaction: &Transaction,
) -> Result<Evaluation, V::Error> {
    let mut failed_checks = Vec::new();
    for (index, check) in (0..).zip(&transaction.checks) {
        if view.version(database, &check.key)? != check.versionstamp {
            failed_checks.push(index);
        }
    }
    if !failed_checks.is_empty() {
        return Ok(Evaluation::CheckFailed(failed_checks));
    }

    let mut mutations =
        Mutations { view, database, versionstamp, written: WriteSet::with_capacity(transaction.mutations.len()) };
    for mutation in &transaction.mutations {
        match mutations.apply(mutation) {
            Ok(()) => {}
            Err(Stop::Rejected(rejection)) => return Ok(Evaluation::Rejected(rejection.to_string())),
            Err(Stop::View(error)) => return Err(error),
        }
    }
    Ok(Evaluation::Commit(mutations.written.into_effects()))
}

/// Why evaluation ends before the last mutation.
enum Stop<E> {
    Rejected(Rejection),
    View(E),
}

impl<E> From<Rejection> for Stop<E> {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// The mutations of one transaction, in the middle of being evaluated.
struct Mutations<'a, V> {
    view: &'a V,
    database: DatabaseId,
    versionstamp: Versionstamp,
    written: WriteSet,
}

impl<V: View> Mutations<'_, V> {
    fn apply(&mut self, mutation: &Mutation) -> Result<(), Stop<V::Error>> {
        let key = &mutation.key;
        let effect = match &mutation.kind {
            MutationKind::Set(value) => put(key.clone(), value.clone(), mutation.expire_at_ms),
            MutationKind::SetSuffixVersionstampedKey(value) => {
                put(suffixed(key, self.versionstamp), value.clone(), mutation.expire_at_ms)
            }
            MutationKind::Delete => Effect::Delete { key: key.clone() },
            // The results of arithmetic never expire, whatever the stored value or the mutation says.
            MutationKind::Sum { operand, bounds } => {
                put(key.clone(), sum(self.stored(key)?.as_ref(), operand, bounds)?, 0)
            }
            MutationKind::Min(operand) => self.compute(key, U64Operation::Min, operand)?,
            MutationKind::Max(operand) => self.compute(key, U64Operation::Max, operand)?,
        };
        self.written.put(effect);
        Ok(())
    }

    fn compute(&self, key: &Bytes, operation: U64Operation, operand: &Value) -> Result<Effect, Stop<V::Error>> {
        Ok(put(key.clone(), operation.apply(self.stored(key)?.as_ref(), operand)?, 0))
    }

    /// The value of a key as the earlier mutations left it.
    fn stored(&self, key: &[u8]) -> Result<Option<Value>, Stop<V::Error>> {
        match self.written.get(key) {
            Some(Effect::Put { value, .. }) => Ok(Some(value.clone())),
            Some(Effect::Delete { .. }) => Ok(None),
            // Evaluation writes neither `Unindex`, which says nothing of the value, nor `DropDatabase`.
            Some(Effect::Unindex { .. } | Effect::DropDatabase) | None => {
                Ok(self.view.get(self.database, key).map_err(Stop::View)?.map(|stored| stored.value))
            }
        }
    }
}

fn put(key: Bytes, value: Value, expire_at_ms: u64) -> Effect {
    Effect::Put { key, value, expire_at_ms }
}

/// The key followed by one more part, as clients encode tuples: the string of the versionstamp's hex.
fn suffixed(key: &[u8], versionstamp: Versionstamp) -> Bytes {
    [key, &[0x02], versionstamp.to_hex().as_bytes(), &[0x00]].concat().into()
}

#[cfg(test)]
mod tests;
