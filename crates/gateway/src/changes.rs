//! Questions of the gateway to a database's log: the changes behind a versionstamp.

use std::time::Duration;

use bytes::Bytes;
use meridian_types::{DatabaseId, Value, Versionstamp};

/// The next changes of one database that lie behind a versionstamp.
#[derive(Debug, Clone)]
pub struct ChangesWanted {
    pub database: DatabaseId,
    /// Of the keys.
    pub prefix: Bytes,
    /// `None`: only where the database stands now.
    pub after: Option<Versionstamp>,
    /// The most bytes that the changes may take together.
    pub max_bytes: usize,
    /// How long to wait for a change, where there is none yet.
    pub wait: Duration,
}

/// Whole transactions, in the order of their commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    pub transactions: Vec<ChangedTransaction>,
    /// All that was committed up to here is told: further changes lie behind it.
    pub reached: Versionstamp,
    /// The bytes of the next transaction, if it is there already and there was no room for it; else
    /// 0.
    pub next_bytes: usize,
}

/// The effects of one transaction on keys with the prefix: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedTransaction {
    pub versionstamp: Versionstamp,
    pub changes: Vec<Change>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Set {
        key: Bytes,
        value: Value,
        /// Milliseconds since the Unix epoch; 0: never.
        expire_at_ms: u64,
    },
    Deleted {
        key: Bytes,
    },
    /// The row of a value that had expired is removed.
    Expired {
        key: Bytes,
    },
    /// All keys are deleted, for good.
    DatabaseDropped,
}
