//! Places for the listeners of a database at one gateway.

use std::collections::BTreeMap;
use std::sync::Arc;

use meridian_queue::MAX_LISTENERS;
use meridian_types::DatabaseId;
use parking_lot::Mutex;

/// As many for each database as its shard's leader has: others would ask all voters, one after the
/// other, for what they cannot get.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<BTreeMap<DatabaseId, usize>>>);

impl Places {
    /// `None`: there are enough.
    pub(super) fn take(&self, database: DatabaseId) -> Option<Place> {
        let mut all = self.0.lock();
        let taken = all.entry(database).or_default();
        if *taken >= MAX_LISTENERS {
            return None;
        }
        *taken += 1;
        Some(Place { places: self.clone(), database })
    }
}

/// A listener's place, until this is dropped.
pub(super) struct Place {
    places: Places,
    database: DatabaseId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.places.0.lock();
        if let Some(taken) = all.get_mut(&self.database) {
            *taken -= 1;
            if *taken == 0 {
                all.remove(&self.database);
            }
        }
    }
}
