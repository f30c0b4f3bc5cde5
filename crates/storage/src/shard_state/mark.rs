//! How far a state has come, for reads and leaders that wait for it.

/// The newest applied entry of a member or replica, for which reads and leaders wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AppliedMark {
    /// Of the last batch.
    pub sequence: u64,
    /// The Raft term of the last entry, which need not be a batch; 0 where none of the group is
    /// applied, and for a replica.
    pub term: u64,
}

impl AppliedMark {
    /// Of a replica, which knows no terms.
    pub fn of_replica(sequence: u64) -> Self {
        Self { sequence, term: 0 }
    }
}
