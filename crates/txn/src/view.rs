//! The state that a transaction is evaluated against.

use meridian_types::{
    DatabaseId, DeadLetter, Message, MessageId, QueueId, QueueTotals, Value, Versionstamp,
};

/// The value of a present key, as a transaction reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub versionstamp: Versionstamp,
    pub value: Value,
}

/// State as a transaction sees it. It does not change while one transaction is evaluated.
///
/// Expired entries must be seen as absent by the implementor: evaluation knows no time.
pub trait View {
    type Error;

    /// The value of a key, `None` where it is absent or has expired.
    fn get(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Stored>, Self::Error>;

    /// The version of a key only, which is all that a check needs. To be overridden where it is
    /// cheaper than [`View::get`]; it must agree with it.
    fn version(
        &self,
        database: DatabaseId,
        key: &[u8],
    ) -> Result<Option<Versionstamp>, Self::Error> {
        Ok(self.get(database, key)?.map(|stored| stored.versionstamp))
    }

    /// The message with this id, if the queue stores it under this due time.
    fn message(
        &self,
        queue: &QueueId,
        due_ms: u64,
        id: MessageId,
    ) -> Result<Option<Message>, Self::Error>;

    /// Zeros before the first message.
    fn queue_totals(&self, database: DatabaseId) -> Result<QueueTotals, Self::Error>;

    /// The undelivered messages of a named queue.
    fn named_undelivered(&self, queue: &QueueId) -> Result<u64, Self::Error>;

    /// The dead letter with this number, unless it was removed.
    fn dead_letter(
        &self,
        database: DatabaseId,
        number: u64,
    ) -> Result<Option<DeadLetter>, Self::Error>;
}
