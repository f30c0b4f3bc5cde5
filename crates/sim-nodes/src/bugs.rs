//! Bugs that have to be found: each takes a protection away that the code relies on.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Bug {
    /// Disks say that a write is durable when it is not yet: acknowledgements go before fsyncs.
    AcknowledgeBeforeFsync,
    /// The clocks of the first region go so slowly that its nodes answer when their epoch leases
    /// are over for the directory: answers go without a lease.
    AnswerWithoutLease,
}
