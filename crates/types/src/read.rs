//! Reads: the ranges that they ask for, and the entries that they return.

use bytes::Bytes;

use crate::{Value, Versionstamp};

/// Which state a read may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// Every write that was acknowledged before the read began.
    Strong,
    /// Some committed state, no older than what the same gateway showed before.
    Eventual,
}

/// Keys from `start`, inclusive, to `end`, exclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRange {
    pub start: Bytes,
    pub end: Bytes,
    /// How many entries at most; at least 1.
    pub limit: u32,
    /// From the end to the start.
    pub reverse: bool,
}

/// A stored key and value, as a read returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: Bytes,
    pub value: Value,
    pub versionstamp: Versionstamp,
}
