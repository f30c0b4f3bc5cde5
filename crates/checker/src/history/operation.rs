//! Operations and answers, as a history holds them.

use meridian_types::{Consistency, Versionstamp};
use serde::{Deserialize, Serialize};

use super::versionstamp_hex;

/// The name of a key in the history; the workload maps it to bytes.
pub type Key = String;

/// The value of a key. A key keeps one kind for the whole history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// Grows by [`Write::Append`]; in the store, a set of the whole new list.
    List(Vec<u64>),
    Register(u64),
    /// Grows by [`Write::Sum`], wrapping.
    Counter(u64),
}

/// A key's value and version in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub value: Value,
    #[serde(with = "versionstamp_hex")]
    pub versionstamp: Versionstamp,
}

/// The key must have this version when the transaction commits. `None`: it must be absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub key: Key,
    #[serde(with = "versionstamp_hex::optional")]
    pub versionstamp: Option<Versionstamp>,
}

/// A write as the client meant it. The writes of a transaction apply in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Write {
    /// The client read the list, and set it with `element` appended, under a [`Check`] of the
    /// version that it read. No other write of the history writes `element` to this key.
    Append {
        key: Key,
        element: u64,
    },
    /// No other write of the history writes `value` to this key.
    SetRegister {
        key: Key,
        value: u64,
    },
    Delete {
        key: Key,
    },
    /// Adds to a counter, wrapping; an absent counter becomes `amount`.
    Sum {
        key: Key,
        amount: u64,
    },
}

impl Write {
    pub fn key(&self) -> &Key {
        match self {
            Self::Append { key, .. }
            | Self::SetRegister { key, .. }
            | Self::Delete { key }
            | Self::Sum { key, .. } => key,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    Read(Read),
    Txn(Txn),
}

/// A read of several keys in one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    #[serde(with = "ConsistencyText")]
    pub consistency: Consistency,
    /// The gateway that was asked: eventual reads through one gateway never go back.
    pub gateway: String,
    pub keys: Vec<Key>,
    /// A strong read after all faults were healed and all clients had finished. Several final reads
    /// may divide the keys of the history among themselves.
    #[serde(rename = "final")]
    pub is_final: bool,
    pub outcome: ReadOutcome,
}

impl Read {
    pub fn strong(gateway: impl Into<String>, keys: Vec<Key>) -> Self {
        Self {
            consistency: Consistency::Strong,
            gateway: gateway.into(),
            keys,
            is_final: false,
            outcome: ReadOutcome::Unanswered,
        }
    }

    pub fn eventual(gateway: impl Into<String>, keys: Vec<Key>) -> Self {
        Self { consistency: Consistency::Eventual, ..Self::strong(gateway, keys) }
    }

    /// A final read.
    pub fn last(gateway: impl Into<String>, keys: Vec<Key>) -> Self {
        Self { is_final: true, ..Self::strong(gateway, keys) }
    }

    /// Each key with the entry that was read; empty for a read without an answer.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&Key, Option<&Entry>)> {
        let entries = match &self.outcome {
            ReadOutcome::Entries(entries) => entries.as_slice(),
            ReadOutcome::Failed { .. } | ReadOutcome::Unanswered => &[],
        };
        self.keys.iter().zip(entries.iter().map(Option::as_ref))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadOutcome {
    /// For each key, in the order of the keys; `None`: the key is absent.
    Entries(Vec<Option<Entry>>),
    /// The answer was an error. It claims nothing.
    Failed {
        reason: String,
    },
    Unanswered,
}

/// One atomic write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// Unique within the history.
    pub id: u64,
    pub checks: Vec<Check>,
    pub writes: Vec<Write>,
    pub outcome: TxnOutcome,
}

impl Txn {
    /// A transaction without an answer.
    ///
    /// If its answer may get lost and it contains a [`Write::Sum`] or a [`Write::Delete`], it
    /// **must** also set a marker: a register key that no other transaction writes and that a final
    /// read reads.
    pub fn new(id: u64, checks: Vec<Check>, writes: Vec<Write>) -> Self {
        Self { id, checks, writes, outcome: TxnOutcome::Unknown }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TxnOutcome {
    Committed {
        #[serde(with = "versionstamp_hex")]
        versionstamp: Versionstamp,
    },
    /// The indexes of all checks that failed, and of no others. The transaction wrote nothing.
    CheckFailed { failed: Vec<u32> },
    /// The transaction definitely wrote nothing, and never will.
    NotCommitted { reason: String },
    /// The transaction may have committed, or may yet commit.
    Unknown,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Consistency", rename_all = "snake_case")]
enum ConsistencyText {
    Strong,
    Eventual,
}
