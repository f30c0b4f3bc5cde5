//! A commit: a transaction that took effect, or the failover that undid some.

use meridian_types::Versionstamp;

use crate::history::Txn;

/// The effect of a commit on the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The writes of its transaction.
    Writes,
    /// Undoes the commits that the window's failover lost. No client invoked it, so it bounds no
    /// operation.
    Undo { window: usize },
}

/// A transaction that took effect, or a failover that undid some.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commit<'h> {
    /// `usize::MAX` for a failover, which has no record.
    pub(crate) record: usize,
    pub(crate) effect: Effect,
    pub(crate) txn: &'h Txn,
    pub(crate) versionstamp: Versionstamp,
    pub(crate) invoked_ns: u64,
    /// When it was acknowledged. `None`: it never was, and may take effect at any time.
    pub(crate) completed_ns: Option<u64>,
}
