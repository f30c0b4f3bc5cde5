//! Why a mutation cannot be carried out, in the words that clients know.

use meridian_types::limits::{MAX_COMPUTED_BYTES, MAX_QUEUE_NAMES, MAX_UNDELIVERED_MESSAGES};

/// Why a mutation cannot be carried out. The texts are those of denokv_sqlite 0.14: clients show
/// them, and programs match on them, so they stay as they are. The last ones are Meridian's own; the
/// first words of [`Rejection::QueueFull`] are those of Deno Deploy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejection {
    #[error("Failed to perform '{0}' mutation on a non-U64 operand")]
    OperandNotU64(&'static str),
    #[error("Failed to perform '{0}' mutation on a non-U64 value in the database")]
    StoredNotU64(&'static str),
    /// The operand or a bound of a sum.
    #[error("Some of the parameters are not valid V8 values")]
    InvalidParameters,
    #[error("Min/max parameters have different types than the operand")]
    BoundsOfOtherType,
    /// The stored value is no V8 value, or a damaged one.
    #[error("invalid v8 value")]
    StoredInvalid,
    /// The stored value is well formed, but no number: a string, an object, raw bytes.
    #[error("unsupported value type")]
    StoredUnsupported,
    #[error("operand cannot be empty")]
    StoredEmpty,
    /// The stored value says that it is a u64, and is not of eight bytes.
    #[error("Invalid sum operand")]
    StoredNotEightBytes,
    #[error("Cannot sum {stored} with {operand}")]
    TypesDiffer { stored: &'static str, operand: &'static str },
    #[error("The result of a Sum operation would exceed its range limit")]
    OutOfRange,
    #[error(
        "The sums, minima and maxima of one atomic write may read and write {MAX_COMPUTED_BYTES} bytes of values, \
         and those among the first {mutations} mutations of this one come to {bytes} bytes."
    )]
    TooMuch { mutations: usize, bytes: usize },
    #[error(
        "The settlements of one transaction may write {MAX_COMPUTED_BYTES} bytes, with its sums, minima and maxima, \
         and those of this one come to {bytes} bytes."
    )]
    SettlesTooMuch { bytes: usize },
    #[error(
        "Queue backlog limit exceeded: a database may have {MAX_UNDELIVERED_MESSAGES} undelivered messages."
    )]
    QueueFull,
    #[error("A database may have undelivered messages in {MAX_QUEUE_NAMES} named queues.")]
    TooManyQueues,
}

/// Why evaluation ends before all is carried out.
pub(crate) enum Stop<E> {
    Rejected(Rejection),
    View(E),
}

impl<E> From<Rejection> for Stop<E> {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = include_str!("../../../docs/kv-connect.md");

    /// A rejection of every kind, with the figures of the documentation's examples. A new kind does
    /// not compile before it is listed here.
    fn of_every_kind() -> Vec<Rejection> {
        let listed = |rejection: Rejection| match rejection {
            Rejection::OperandNotU64(_)
            | Rejection::StoredNotU64(_)
            | Rejection::InvalidParameters
            | Rejection::BoundsOfOtherType
            | Rejection::StoredInvalid
            | Rejection::StoredUnsupported
            | Rejection::StoredEmpty
            | Rejection::StoredNotEightBytes
            | Rejection::TypesDiffer { .. }
            | Rejection::OutOfRange
            | Rejection::TooMuch { .. }
            | Rejection::SettlesTooMuch { .. }
            | Rejection::QueueFull
            | Rejection::TooManyQueues => rejection,
        };
        let mut all: Vec<Rejection> = [
            Rejection::OperandNotU64("min"),
            Rejection::OperandNotU64("max"),
            Rejection::StoredNotU64("sum"),
            Rejection::StoredNotU64("min"),
            Rejection::StoredNotU64("max"),
            Rejection::InvalidParameters,
            Rejection::BoundsOfOtherType,
            Rejection::StoredInvalid,
            Rejection::StoredUnsupported,
            Rejection::StoredEmpty,
            Rejection::OutOfRange,
            Rejection::TooMuch { mutations: 33, bytes: 4_325_376 },
            Rejection::QueueFull,
            Rejection::TooManyQueues,
        ]
        .map(listed)
        .into();
        for (stored, operand) in
            [("KvU64", "Number"), ("KvU64", "BigInt"), ("Number", "BigInt"), ("BigInt", "Number")]
        {
            all.push(Rejection::TypesDiffer { stored, operand });
        }
        all
    }

    /// But for [`Rejection::StoredNotEightBytes`], of which the gateway lets no value in, and
    /// [`Rejection::SettlesTooMuch`], since no write of a client settles.
    #[test]
    fn every_rejection_stands_in_the_documentation() {
        for rejection in of_every_kind() {
            let row = format!("| 400 | `{rejection}` |");
            assert!(DOCUMENT.contains(&row), "docs/kv-connect.md has no row with {row}");
        }
    }

    /// These follow writes that were handed to a database, as 400. Native clients take a 400 that
    /// speaks of authorization for a stale token, and send the same write again.
    #[test]
    fn no_rejection_speaks_of_authorization() {
        let elsewhere = [Rejection::StoredNotEightBytes, Rejection::SettlesTooMuch { bytes: 1 }];
        for rejection in of_every_kind().into_iter().chain(elsewhere) {
            let text = rejection.to_string().to_lowercase();
            assert!(!text.contains("authorization"), "{text}");
        }
    }
}
