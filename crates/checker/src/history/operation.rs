use meridian_types::{Consistency, Versionstamp};
use serde::{Deserialize, Serialize};

use super::versionstamp_hex;

/// How the history names a key; how it becomes bytes is the workload's business.
pub type Key = String;

/// What is stored under a key. A key keeps one kind for the whole history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// Grows by [`Write::Append`]; in the store, a set of the whole new list.
    List(Vec<u64>),
    Register(u64),
    /// Grows by [`Write::Sum`], wrapping.
    Counter(u64),
}

/// One key as a read answered it.
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

/// A write, as the client meant it. They apply in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Write {
    /// The client read the list, and set the list with `element` behind it, under a [`Check`] of
    /// the version it read. `element` is written to this key by no other write of the history.
    Append {
        key: Key,
        element: u64,
    },
    /// `value` is written to this key by no other write of the history.
    SetRegister {
        key: Key,
        value: u64,
    },
    Delete {
        key: Key,
    },
    /// Adds to a counter, wrapping; an absent one becomes `amount`.
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

/// Several keys, read in one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    #[serde(with = "ConsistencyText")]
    pub consistency: Consistency,
    /// Through which gateway: eventual reads of one gateway never go back.
    pub gateway: String,
    pub keys: Vec<Key>,
    /// A strong read after all faults were healed and all clients had finished. Several of them may
    /// share the keys of the history among themselves.
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

    /// A strong read of the end of the history.
    pub fn last(gateway: impl Into<String>, keys: Vec<Key>) -> Self {
        Self { is_final: true, ..Self::strong(gateway, keys) }
    }

    /// Each key with what was read there; nothing, where there was no answer.
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
    /// For each key, in the order of the keys; `None`: absent.
    Entries(Vec<Option<Entry>>),
    /// An error was the answer. It claims nothing.
    Failed {
        reason: String,
    },
    Unanswered,
}

/// One atomic write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// Unique in the history.
    pub id: u64,
    pub checks: Vec<Check>,
    pub writes: Vec<Write>,
    pub outcome: TxnOutcome,
}

impl Txn {
    /// A transaction without an answer.
    ///
    /// One whose answer may get lost and that holds a [`Write::Sum`] or a [`Write::Delete`]
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
    /// Indexes of all the checks that failed, and of no others. Nothing was written.
    CheckFailed { failed: Vec<u32> },
    /// Definitely nothing was written, and nothing will be.
    NotCommitted { reason: String },
    /// It may have committed, or may yet.
    Unknown,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Consistency", rename_all = "snake_case")]
enum ConsistencyText {
    Strong,
    Eventual,
}
