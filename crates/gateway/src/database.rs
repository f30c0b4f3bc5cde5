//! What the gateway asks of a database: reads and writes, and how each may fail.

use std::future::Future;

use meridian_types::{
    Consistency, DatabaseId, Entry, ReadRange, RequestId, Transaction, WriteOutcome,
};

/// A read of one database. All ranges are read from one state.
#[derive(Debug, Clone)]
pub struct Read {
    pub database: DatabaseId,
    pub consistency: Consistency,
    pub ranges: Vec<ReadRange>,
}

/// Entries for each range of a [`Read`], in its order.
#[derive(Debug, Clone)]
pub struct ReadOutput {
    pub ranges: Vec<Vec<Entry>>,
}

/// An atomic write of one database.
#[derive(Debug, Clone)]
pub struct Write {
    pub database: DatabaseId,
    pub request_id: RequestId,
    pub transaction: Transaction,
}

/// Why an operation was not carried out. Retrying such a write cannot apply it twice.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// For the client, as the body of a 503.
    pub reason: String,
}

/// Why a write has no outcome.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteFailure {
    /// Definitely not committed, now or later: answered with 503, which clients retry.
    #[error(transparent)]
    NotCommitted(#[from] Unavailable),
    /// The write may have committed, and there is no way left to find out. Never answered: the
    /// connection is dropped.
    #[error("the outcome of the write is unknown: {0}")]
    Unknown(String),
}

/// What the gateway needs of a cluster. Implementations route to the shard's leader, retry with the
/// same request id, and hold a write until its outcome is known.
pub trait Database: Send + Sync + 'static {
    fn read(&self, read: Read) -> impl Future<Output = Result<ReadOutput, Unavailable>> + Send;

    fn write(
        &self,
        write: Write,
    ) -> impl Future<Output = Result<WriteOutcome, WriteFailure>> + Send;
}
