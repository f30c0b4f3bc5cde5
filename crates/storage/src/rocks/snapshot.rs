//! Reads of RocksDB: snapshots, scans that give up on deletions, and look-ups that need no disk.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::{
    DB, DBPinnableSlice, ErrorKind, FlushOptions, ReadOptions, ReadTier, SnapshotWithThreadMode,
};
use self_cell::self_cell;

use super::family;
use crate::engine::Visit;
use crate::{Effort, EngineSnapshot, Scan, Scanned, StorageError};

type BorrowedSnapshot<'a> = SnapshotWithThreadMode<'a, DB>;

self_cell!(
    struct TakenSnapshot {
        owner: Arc<DB>,
        #[covariant]
        dependent: BorrowedSnapshot,
    }
);

pub(super) struct RocksSnapshot {
    taken: TakenSnapshot,
    tidy: Arc<Tidy>,
}

impl RocksSnapshot {
    pub(super) fn take(db: Arc<DB>, tidy: Arc<Tidy>) -> Self {
        Self { taken: TakenSnapshot::new(db, |db| db.snapshot()), tidy }
    }
}

impl EngineSnapshot for RocksSnapshot {
    fn get(&self, family_name: &str, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let handle = family(self.taken.borrow_owner(), family_name)?;
        let value = self.taken.borrow_dependent().get_pinned_cf(&handle, key)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn get_cached(
        &self,
        family_name: &str,
        key: &[u8],
    ) -> Result<Option<Option<Bytes>>, StorageError> {
        let (db, mut options) = (self.taken.borrow_owner(), ReadOptions::default());
        options.set_snapshot(self.taken.borrow_dependent());
        options.set_read_tier(ReadTier::BlockCache);
        cached(db.get_pinned_cf_opt(&family(db, family_name)?, key, &options))
    }

    fn scan_some(
        &self,
        family: &str,
        scan: Scan<'_>,
        effort: Effort,
        visit: Visit<'_>,
    ) -> Result<Scanned, StorageError> {
        let (db, mut options) = (self.taken.borrow_owner(), ReadOptions::default());
        options.set_snapshot(self.taken.borrow_dependent());
        options.set_max_skippable_internal_keys(effort.max_skipped);
        if effort.cached_only {
            options.set_read_tier(ReadTier::BlockCache);
        }
        let scanned = scan_with(db, options, family, scan, visit)?;
        if scanned == Scanned::Skipped && !effort.cached_only {
            self.tidy.flush(db, family)?;
        }
        Ok(scanned)
    }
}

/// Flushes memtables that scans skip much of: only a file of deletions is compacted, and a memtable
/// with few writes would stay as it is for hours.
#[derive(Default)]
pub(super) struct Tidy {
    flushed: Mutex<HashMap<String, Instant>>,
}

impl Tidy {
    /// Begins a flush of the family, and does not wait for it; not again before the files of the
    /// last one can have been compacted.
    fn flush(&self, db: &DB, family_name: &str) -> Result<(), StorageError> {
        const PAUSE: Duration = Duration::from_secs(5);
        let now = Instant::now();
        let mut flushed = self.flushed.lock();
        if flushed.get(family_name).is_some_and(|last| now.duration_since(*last) < PAUSE) {
            return Ok(());
        }
        flushed.retain(|_, last| now.duration_since(*last) < PAUSE);
        flushed.insert(family_name.to_owned(), now);
        drop(flushed);
        let mut options = FlushOptions::default();
        options.set_wait(false);
        Ok(db.flush_cf_opt(&family(db, family_name)?, &options)?)
    }
}

/// The outcome of a look-up in memory alone: `None` if it would have to wait for a disk.
pub(super) fn cached(
    found: Result<Option<DBPinnableSlice<'_>>, rocksdb::Error>,
) -> Result<Option<Option<Bytes>>, StorageError> {
    match found {
        Ok(value) => Ok(Some(value.map(|value| Bytes::copy_from_slice(&value)))),
        Err(error) if error.kind() == ErrorKind::Incomplete => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn scan_with(
    db: &DB,
    mut options: ReadOptions,
    family_name: &str,
    scan: Scan<'_>,
    visit: Visit<'_>,
) -> Result<Scanned, StorageError> {
    if scan.start >= scan.end {
        return Ok(Scanned::All);
    }
    options.set_iterate_lower_bound(scan.start);
    options.set_iterate_upper_bound(scan.end);
    let handle = family(db, family_name)?;
    let mut iterator = db.raw_iterator_cf_opt(&handle, options);
    if scan.reverse {
        iterator.seek_to_last();
    } else {
        iterator.seek_to_first();
    }
    while let Some((key, value)) = iterator.item() {
        if let ControlFlow::Break(()) = visit(key, value) {
            return Ok(Scanned::All);
        }
        if scan.reverse {
            iterator.prev();
        } else {
            iterator.next();
        }
    }
    // An iterator that is no longer valid is at its end, or has failed.
    match iterator.status() {
        Ok(()) => Ok(Scanned::All),
        Err(error) if error.kind() == ErrorKind::Incomplete => Ok(Scanned::Skipped),
        Err(error) => Err(error.into()),
    }
}
