//! Databases that were dropped: remembered for good, and their room on the disk given back.

use std::ops::ControlFlow;
use std::sync::Arc;

use meridian_types::{DatabaseId, QueueId};

use super::ShardState;
use crate::schema::{self, META_FAMILY};
use crate::{Durability, Engine, Scan, StorageError, WriteBatch};

/// Lets the engine drop what it cannot delete by range, see [`crate::Forgotten::databases`].
pub(super) fn forget(engine: &dyn Engine, family: &str) -> Result<(), StorageError> {
    let dropped = dropped_in(engine, family)?;
    if !dropped.is_empty() {
        engine.forgotten(family).databases(dropped);
    }
    Ok(())
}

/// All rows of a database that have a range of their own.
pub(super) fn ranges(database: DatabaseId) -> [(Vec<u8>, Vec<u8>); 5] {
    [
        schema::data_range(database),
        schema::messages_range(&QueueId::from(database)),
        schema::named_messages_range(database),
        schema::named_totals_range(database),
        schema::dead_letters_range(database),
    ]
}

fn dropped_in(engine: &dyn Engine, family: &str) -> Result<Vec<DatabaseId>, StorageError> {
    let (start, end) = schema::dropped_range();
    let (mut databases, mut corrupt) = (Vec::new(), None);
    engine.scan(family, Scan { start: &start, end: &end, reverse: false }, &mut |key, _| {
        match schema::parse_dropped_key(key) {
            Some(database) => databases.push(database),
            None => {
                corrupt = Some(StorageError::corruption(
                    "the key of a dropped database",
                    format!("{key:?}"),
                ))
            }
        }
        ControlFlow::Continue(())
    })?;
    corrupt.map_or(Ok(databases), Err)
}

impl ShardState {
    /// Every database that was ever dropped here. An id is never used again.
    pub fn dropped_databases(&self) -> Result<Vec<DatabaseId>, StorageError> {
        self.in_family(|family| dropped_in(&*self.engine, family))
    }

    /// Whether the database was dropped: nothing of it is in the log behind that.
    pub fn is_dropped(&self, database: DatabaseId) -> Result<bool, StorageError> {
        Ok(self
            .in_family(|family| self.engine.get(family, &schema::dropped_key(database)))?
            .is_some())
    }

    /// Has the disk get back what dropped databases took, if it has not yet: true if there was
    /// something to do. While a snapshot is open that may show them, nothing is done. Reads and
    /// writes much; `paced` as for [`Engine::compact_range`].
    pub fn reclaim_dropped(
        &self,
        paced: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<bool, StorageError> {
        let family = Arc::clone(&self.current.read().family);
        let name = family.as_bytes();
        let mut waiting = Vec::new();
        for database in dropped_in(&*self.engine, &family)? {
            let key = schema::reclaimed_key(self.shard, database);
            if self.engine.get(META_FAMILY, &key)?.is_none_or(|reclaimed| reclaimed != name) {
                waiting.push((database, key));
            }
        }
        // A snapshot that is opened later shows the drop.
        if waiting.is_empty() || self.engine.open_snapshots() > 0 {
            return Ok(false);
        }
        let ranges = waiting.iter().flat_map(|(database, _)| ranges(*database));
        for (start, end) in ranges.chain([schema::expiry_range()]) {
            self.engine.compact_range(&family, &start, &end, paced)?;
        }
        let mut done = WriteBatch::default();
        for (_, key) in waiting {
            done.put(&META_FAMILY.into(), key, name.to_vec());
        }
        // Not synced: done twice is as good.
        self.engine.write(done, Durability::Logged)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
