use std::cell::Cell;

use meridian_txn::{Stored, View};
use meridian_types::{CommittedTransaction, DatabaseId, Versionstamp, limits::MAX_VALUE_BYTES};

/// One batch at most. It ends with the transaction that reaches one of these, so that it comes to no more than
/// [`BATCH_BYTES`] and the largest transaction.
const BATCH_REQUESTS: usize = 2048;
pub(super) const BATCH_BYTES: usize = 4 << 20;
/// What evaluating a batch may read, where a look-up counts as [`LOOKUP_BYTES`].
const BATCH_READ_BYTES: usize = 64 << 20;
/// About a block of the store.
const LOOKUP_BYTES: usize = 4 << 10;

/// What still goes into a batch. Small requests can come to large effects, and to much reading that comes to
/// nothing; both are counted as they come up.
#[derive(Debug, Default)]
pub(super) struct Room {
    requests: usize,
    bytes: usize,
    read_bytes: Cell<usize>,
}

impl Room {
    pub(super) fn is_left(&self) -> bool {
        self.requests < BATCH_REQUESTS && self.bytes < BATCH_BYTES && self.read_bytes.get() < BATCH_READ_BYTES
    }

    pub(super) fn count_request(&mut self) {
        self.requests += 1;
    }

    pub(super) fn count_effects(&mut self, transaction: &CommittedTransaction) {
        self.bytes += transaction.size();
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
}
