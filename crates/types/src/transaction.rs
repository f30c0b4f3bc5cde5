//! Transactions as clients ask for them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Enqueue, Settlement, Versionstamp};

/// How a stored value is to be read by clients. The numbers are those of the wire and of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ValueEncoding {
    /// V8's ValueSerializer.
    V8 = 1,
    /// A little-endian unsigned 64-bit integer.
    Le64 = 2,
    Bytes = 3,
}

impl ValueEncoding {
    /// `None` for a number that names no encoding.
    pub fn from_number(number: i32) -> Option<Self> {
        match number {
            1 => Some(Self::V8),
            2 => Some(Self::Le64),
            3 => Some(Self::Bytes),
            _ => None,
        }
    }

    pub fn number(self) -> u8 {
        self as u8
    }
}

/// How the V8 values of a database are stored. Deno writes format 16 from 2.8 on; Node, Python and
/// older versions of Deno read up to 15.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum V8Format {
    /// In 15, if a value can be said in it.
    #[default]
    Portable,
    /// As the client sent them.
    AsSent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    pub encoding: ValueEncoding,
    pub data: Bytes,
}

/// A key must have this version when the transaction commits. `None`: it must be absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub key: Bytes,
    pub versionstamp: Option<Versionstamp>,
}

/// Bounds of a `sum` on V8 numbers, each as V8-serialized bytes, empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SumBounds {
    pub min: Bytes,
    pub max: Bytes,
    /// Outside the bounds: clamp, instead of failing the transaction.
    pub clamp: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MutationKind {
    Set(Value),
    Delete,
    Sum {
        operand: Value,
        bounds: SumBounds,
    },
    Min(Value),
    Max(Value),
    /// Sets the key followed by `02`, the versionstamp's 20 hex characters, and `00`.
    SetSuffixVersionstampedKey(Value),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutation {
    pub key: Bytes,
    pub kind: MutationKind,
    /// Milliseconds since the Unix epoch before which the value does not expire; 0: never.
    pub expire_at_ms: u64,
}

/// One atomic write. Mutations apply in order, then settlements, then enqueues; one failing undoes
/// them all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    pub checks: Vec<Check>,
    pub mutations: Vec<Mutation>,
    /// The message of the enqueue at index `i` has that index in its id.
    pub enqueues: Vec<Enqueue>,
    pub settlements: Vec<Settlement>,
}

/// The outcome of a transaction. All of them are results, not errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOutcome {
    Committed(Versionstamp),
    /// Indexes of **all** the checks that failed, ascending; acknowledgements count on behind the
    /// checks. Nothing was written.
    CheckFailed(Vec<u32>),
    /// A mutation cannot be carried out on the value that is stored (a sum on a wrong type).
    /// Nothing was written. The text is for the client.
    Rejected(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_encodings_are_golden_and_name_no_other() {
        let encodings = [ValueEncoding::V8, ValueEncoding::Le64, ValueEncoding::Bytes];
        assert_eq!(encodings.map(ValueEncoding::number), [1, 2, 3]);
        let named: Vec<_> = (-1..=4).map(ValueEncoding::from_number).collect();
        let [v8, le64, bytes] = encodings.map(Some);
        assert_eq!(named, [None, None, v8, le64, bytes, None]);
    }
}
