//! Why a mutation cannot be carried out, in the words that clients know.

use meridian_types::limits::MAX_COMPUTED_BYTES;

/// Why a mutation cannot be carried out. The texts are those of denokv_sqlite 0.14: clients show
/// them, and programs match on them, so they stay as they are. The last one is Meridian's own.
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
}
