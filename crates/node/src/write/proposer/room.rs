//! When a batch is full.

use std::cell::Cell;

use meridian_txn::{Stored, View};
use meridian_types::limits::MAX_VALUE_BYTES;
use meridian_types::{
    CommittedTransaction, DatabaseId, DeadLetter, Message, MessageId, QueueId, QueueTotals,
    Versionstamp,
};

/// One batch at most. It ends with the transaction that reaches one of these, so that it comes to
/// no more than [`BATCH_BYTES`] and the largest transaction.
const BATCH_REQUESTS: usize = 2048;
pub(super) const BATCH_BYTES: usize = 4 << 20;
/// The bytes that the evaluation of a batch may read, where a look-up counts as [`LOOKUP_BYTES`].
const BATCH_READ_BYTES: usize = 64 << 20;
/// About a block of the store.
const LOOKUP_BYTES: usize = 4 << 10;

/// The room left in a batch. Small requests can have large effects, or much reading without an
/// effect; both are counted as they come up.
#[derive(Debug, Default)]
pub(super) struct Room {
    requests: usize,
    bytes: usize,
    read_bytes: Cell<usize>,
    /// The units and bytes that [`Room::spent`] has told.
    told: (usize, usize),
}

/// The cost of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spent {
    /// Bytes, if its effects are all that it cost: a batch is full with [`BATCH_BYTES`] of them.
    pub(super) units: i64,
    /// The bytes that are logged for it.
    pub(super) logged_bytes: u64,
}

impl Room {
    pub(super) fn is_left(&self) -> bool {
        self.requests < BATCH_REQUESTS
            && self.bytes < BATCH_BYTES
            && self.read_bytes.get() < BATCH_READ_BYTES
    }

    pub(super) fn count_request(&mut self) {
        self.requests += 1;
    }

    pub(super) fn count_effects(&mut self, transaction: &CommittedTransaction) {
        self.bytes += transaction.size();
    }

    /// Since it was last asked.
    pub(super) fn spent(&mut self) -> Spent {
        let units = self.requests * (BATCH_BYTES / BATCH_REQUESTS)
            + self.bytes
            + self.read_bytes.get() / (BATCH_READ_BYTES / BATCH_BYTES);
        let (told_units, told_bytes) = std::mem::replace(&mut self.told, (units, self.bytes));
        Spent {
            units: i64::try_from(units - told_units).unwrap_or(i64::MAX),
            logged_bytes: (self.bytes - told_bytes) as u64,
        }
    }

    /// A view through which reading is counted.
    pub(super) fn counting<'a, V>(&'a self, view: &'a V) -> Counting<'a, V> {
        Counting { view, read_bytes: &self.read_bytes }
    }
}

pub(super) struct Counting<'a, V> {
    view: &'a V,
    read_bytes: &'a Cell<usize>,
}

impl<V> Counting<'_, V> {
    fn count(&self, bytes: usize) {
        self.read_bytes.set(self.read_bytes.get() + LOOKUP_BYTES + bytes.min(MAX_VALUE_BYTES));
    }
}

impl<V: View> View for Counting<'_, V> {
    type Error = V::Error;

    fn get(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Stored>, V::Error> {
        let stored = self.view.get(database, key)?;
        self.count(key.len() + stored.as_ref().map_or(0, |stored| stored.value.data.len()));
        Ok(stored)
    }

    fn version(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Versionstamp>, V::Error> {
        self.count(key.len());
        self.view.version(database, key)
    }

    fn message(
        &self,
        queue: &QueueId,
        due_ms: u64,
        id: MessageId,
    ) -> Result<Option<Message>, V::Error> {
        let message = self.view.message(queue, due_ms, id)?;
        self.count(message.as_ref().map_or(0, Message::size));
        Ok(message)
    }

    fn queue_totals(&self, database: DatabaseId) -> Result<QueueTotals, V::Error> {
        self.count(0);
        self.view.queue_totals(database)
    }

    fn named_undelivered(&self, queue: &QueueId) -> Result<u64, V::Error> {
        self.count(0);
        self.view.named_undelivered(queue)
    }

    fn dead_letter(
        &self,
        database: DatabaseId,
        number: u64,
    ) -> Result<Option<DeadLetter>, V::Error> {
        let letter = self.view.dead_letter(database, number)?;
        self.count(letter.as_ref().map_or(0, |letter| letter.payload.len()));
        Ok(letter)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use meridian_types::{Effect, QueueName, RequestId, Value, ValueEncoding};

    use super::*;

    /// Holds the same value everywhere, of so many bytes.
    struct Everywhere(usize);

    impl View for Everywhere {
        type Error = Infallible;

        fn get(&self, _: DatabaseId, _: &[u8]) -> Result<Option<Stored>, Infallible> {
            let value = Value { encoding: ValueEncoding::Bytes, data: vec![7; self.0].into() };
            Ok(Some(Stored { value, versionstamp: Versionstamp([1; 10]) }))
        }

        fn version(&self, _: DatabaseId, _: &[u8]) -> Result<Option<Versionstamp>, Infallible> {
            Ok(Some(Versionstamp([1; 10])))
        }

        fn message(
            &self,
            _: &QueueId,
            _: u64,
            _: MessageId,
        ) -> Result<Option<Message>, Infallible> {
            Ok(Some(Message { payload: vec![7; self.0].into(), ..Message::default() }))
        }

        fn queue_totals(&self, _: DatabaseId) -> Result<QueueTotals, Infallible> {
            Ok(QueueTotals::default())
        }

        fn named_undelivered(&self, _: &QueueId) -> Result<u64, Infallible> {
            Ok(7)
        }

        fn dead_letter(&self, _: DatabaseId, _: u64) -> Result<Option<DeadLetter>, Infallible> {
            let id = MessageId { enqueued: Versionstamp([1; 10]), index: 0 };
            let payload = vec![7; self.0].into();
            let queue = QueueName::default();
            Ok(Some(DeadLetter { queue, id, payload, attempts: 1, enqueued_ms: 1, died_ms: 1 }))
        }
    }

    #[test]
    fn a_batch_ends_with_the_request_that_is_one_of_too_many_or_makes_too_much_of_it() {
        let mut room = Room::default();
        for _ in 0..BATCH_REQUESTS {
            assert!(room.is_left());
            room.count_request();
        }
        assert!(!room.is_left());
        let (mut room, mut bytes) = (Room::default(), 0);
        let effects = vec![Effect::Delete { key: vec![1; 1 << 20].into() }];
        let (request_id, database) = (RequestId([1; 16]), DatabaseId([1; 16]));
        let transaction = CommittedTransaction { request_id, database, effects, refusal: None };
        while room.is_left() {
            room.count_effects(&transaction);
            bytes += transaction.size();
        }
        assert!((BATCH_BYTES..BATCH_BYTES + transaction.size()).contains(&bytes), "{bytes}");
    }

    #[test]
    fn full_batch_is_as_many_units_whatever_fills_it() {
        let full = i64::try_from(BATCH_BYTES).unwrap();
        let mut requests = Room::default();
        (0..BATCH_REQUESTS).for_each(|_| requests.count_request());
        assert_eq!(requests.spent(), Spent { units: full, logged_bytes: 0 });
        assert_eq!(requests.spent(), Spent { units: 0, logged_bytes: 0 });
        let mut bytes = Room { bytes: BATCH_BYTES, ..Room::default() };
        assert_eq!(bytes.spent(), Spent { units: full, logged_bytes: BATCH_BYTES as u64 });
        let mut reads = Room { read_bytes: Cell::new(BATCH_READ_BYTES), ..Room::default() };
        assert_eq!(reads.spent(), Spent { units: full, logged_bytes: 0 });
    }

    #[test]
    fn what_is_read_counts_with_its_key_and_value_and_looking_for_it() {
        let (room, view) = (Room::default(), Everywhere(1000));
        let counting = room.counting(&view);
        let (Ok(_), Ok(_)) = (
            counting.get(DatabaseId([1; 16]), &[1; 30]),
            counting.version(DatabaseId([1; 16]), &[1; 30]),
        );
        assert_eq!(room.read_bytes.get(), 2 * LOOKUP_BYTES + 1030 + 30);
        let (database, id) =
            (DatabaseId([1; 16]), MessageId { enqueued: Versionstamp([1; 10]), index: 0 });
        let Ok(message) = counting.message(&database.into(), 1, id);
        assert!(message.is_some_and(|message| message.payload.len() == 1000));
        let (Ok(totals), Ok(letter)) =
            (counting.queue_totals(database), counting.dead_letter(database, 1));
        assert_eq!(totals, QueueTotals::default());
        let Ok(7) = counting.named_undelivered(&database.into()) else { panic!() };
        assert!(letter.is_some_and(|letter| letter.payload.len() == 1000));
        let expected = 6 * LOOKUP_BYTES + 1030 + 30 + 1000 + 1000;
        assert_eq!(room.read_bytes.get(), expected);
        while room.is_left() {
            let Ok(_) = room.counting(&view).get(DatabaseId([1; 16]), &[1; 30]);
        }
        assert!(room.read_bytes.get() < BATCH_READ_BYTES + 2 * LOOKUP_BYTES);
    }
}
