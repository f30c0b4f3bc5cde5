//! The rows that a compaction may drop: ids of old requests, and rows of dropped databases.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use meridian_types::DatabaseId;
use parking_lot::RwLock;

use crate::schema;

/// The rows of a state family that its compaction may drop. No reader can tell whether they were
/// dropped: a request whose id may be forgotten is not sent again, and the expiry rows of a dropped
/// database lead nowhere.
#[derive(Debug, Default)]
pub struct Forgotten {
    requests_through: AtomicU64,
    databases: RwLock<Arc<HashSet<DatabaseId>>>,
}

impl Forgotten {
    /// The ids of requests that committed at or before `sequence`.
    pub fn requests_through(&self, sequence: u64) {
        self.requests_through.fetch_max(sequence, Ordering::Relaxed);
    }

    /// The expiry rows of databases that were dropped from the family. Their data is deleted by
    /// range; expiry rows are sorted by time first, so there is no range of one database.
    pub fn databases(&self, dropped: impl IntoIterator<Item = DatabaseId>) {
        Arc::make_mut(&mut *self.databases.write()).extend(dropped);
    }

    /// As it is now, for one compaction.
    pub(crate) fn filter(&self) -> Filter {
        Filter {
            requests_through: self.requests_through.load(Ordering::Relaxed),
            databases: Arc::clone(&*self.databases.read()),
        }
    }
}

pub(crate) struct Filter {
    requests_through: u64,
    databases: Arc<HashSet<DatabaseId>>,
}

impl Filter {
    pub(crate) fn drops(&self, key: &[u8], value: &[u8]) -> bool {
        schema::is_forgettable_request(key, value, self.requests_through)
            || (!self.databases.is_empty()
                && schema::expiry_database(key)
                    .is_some_and(|database| self.databases.contains(&database)))
    }
}
