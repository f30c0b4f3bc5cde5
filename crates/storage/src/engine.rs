//! The key-value engine below logs and states: atomic writes in families, snapshots, two kinds of
//! durability.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::{Forgotten, StorageError};

/// When a write survives a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// In the write-ahead log: durable after the next [`Engine::sync`].
    Logged,
    /// Not in the write-ahead log: durable after the next [`Engine::flush`] of its family.
    Unlogged,
}

/// Writes that take effect together, in order.
#[derive(Debug, Default)]
pub struct WriteBatch {
    pub(crate) operations: Vec<Operation>,
}

#[derive(Debug)]
pub(crate) enum Operation {
    Put {
        family: Arc<str>,
        key: Vec<u8>,
        value: Bytes,
    },
    Delete {
        family: Arc<str>,
        key: Vec<u8>,
    },
    /// `end` is exclusive.
    DeleteRange {
        family: Arc<str>,
        start: Vec<u8>,
        end: Vec<u8>,
    },
}

impl Operation {
    pub(crate) fn family(&self) -> &Arc<str> {
        match self {
            Self::Put { family, .. }
            | Self::Delete { family, .. }
            | Self::DeleteRange { family, .. } => family,
        }
    }
}

impl WriteBatch {
    pub fn put(&mut self, family: &Arc<str>, key: Vec<u8>, value: impl Into<Bytes>) {
        self.operations.push(Operation::Put {
            family: Arc::clone(family),
            key,
            value: value.into(),
        });
    }

    pub fn delete(&mut self, family: &Arc<str>, key: Vec<u8>) {
        self.operations.push(Operation::Delete { family: Arc::clone(family), key });
    }

    /// Deletes the keys from `start` (inclusive) to `end` (exclusive).
    pub fn delete_range(&mut self, family: &Arc<str>, start: Vec<u8>, end: Vec<u8>) {
        self.operations.push(Operation::DeleteRange { family: Arc::clone(family), start, end });
    }

    /// Puts what is written into the order of keys, where that makes no difference to what it comes
    /// to: several writes of one key stay in their order, and a batch that deletes ranges stays as
    /// it is. A memtable finds the place of a row fast that lies behind the one before.
    pub fn sort(&mut self) {
        fn key(operation: &Operation) -> Option<&[u8]> {
            match operation {
                Operation::Put { key, .. } | Operation::Delete { key, .. } => Some(key),
                Operation::DeleteRange { .. } => None,
            }
        }
        if self.operations.iter().all(|operation| key(operation).is_some()) {
            self.operations.sort_by(|one, other| key(one).cmp(&key(other)));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}

/// Keys from `start` (inclusive) to `end` (exclusive), ascending or from the end.
#[derive(Debug, Clone, Copy)]
pub struct Scan<'a> {
    pub start: &'a [u8],
    pub end: &'a [u8],
    pub reverse: bool,
}

/// How a scan ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scanned {
    /// At the end of its range, or when its visitor had enough.
    All,
    /// Behind the last row that was visited: what follows takes more effort than it may make.
    Skipped,
}

/// The effort that a scan may make to find the next row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// How many deleted or replaced rows it skips, about. 0: as many as there are.
    pub max_skipped: u64,
    /// It does not wait for a disk.
    pub cached_only: bool,
}

impl Effort {
    pub const WHATEVER_IT_TAKES: Self = Self { max_skipped: 0, cached_only: false };
}

/// The callback of a scan: called with each key and value, until it breaks.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// An ordered key-value engine with column families. There are two: RocksDB, and an in-memory twin
/// that loses on a crash what was not made durable.
pub trait Engine: Send + Sync + 'static {
    /// Makes a family; nothing happens if it is there. Durable on return.
    fn create_family(&self, family: &str) -> Result<(), StorageError>;

    /// Drops a family with all that is in it; nothing happens if it is not there.
    fn drop_family(&self, family: &str) -> Result<(), StorageError>;

    fn families(&self) -> Vec<String>;

    fn get(&self, family: &str, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// As [`Engine::get`], without waiting for a disk: `None` where that would be needed, as it
    /// never is in memory.
    fn get_cached(&self, family: &str, key: &[u8]) -> Result<Option<Option<Bytes>>, StorageError> {
        self.get(family, key).map(Some)
    }

    fn scan(&self, family: &str, scan: Scan<'_>, visit: Visit<'_>) -> Result<(), StorageError>;

    /// As [`Engine::scan`], of rows that will not be asked for again soon: what else is in memory is
    /// not crowded out.
    fn scan_past_cache(
        &self,
        family: &str,
        scan: Scan<'_>,
        visit: Visit<'_>,
    ) -> Result<(), StorageError> {
        self.scan(family, scan, visit)
    }

    /// Atomic, and readable on return. An unlogged write waits where there is no room in memory for
    /// it, which may be for as long as a flush takes: it is for threads that may block. A logged
    /// one waits for no disk.
    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError>;

    /// Hands logged writes to the operating system, so that they outlive this process, if not a
    /// loss of power. It does not wait for the disk.
    fn write_out(&self) -> Result<(), StorageError>;

    /// Makes every logged write durable that returned before this call. Where the log's own memory
    /// is beyond its bound, it waits for a flush, too.
    fn sync(&self) -> Result<(), StorageError>;

    /// Makes every unlogged write of the family durable that returned before this call.
    fn flush(&self, family: &str) -> Result<(), StorageError>;

    /// The bytes of all memtables, those included that are being flushed: all that has yet to reach
    /// the disk.
    fn memtable_bytes(&self) -> u64 {
        0
    }

    fn snapshot(&self) -> Arc<dyn EngineSnapshot>;

    /// How many snapshots are open. Rows deleted after one was taken stay on the disk until it is
    /// gone.
    fn open_snapshots(&self) -> u64;

    /// The rows of a state family that may be dropped: the engine drops them when it next compacts.
    fn forgotten(&self, family: &str) -> Arc<Forgotten>;

    /// Compacts the keys from `start` (inclusive) to `end` (exclusive), a slice at a time; what was
    /// deleted there leaves the disk. `paced` is called after each slice, with about how many bytes
    /// were read for it, and ends the work by a break. For a thread that may block for long.
    ///
    /// # Errors
    /// [`StorageError::Cancelled`] if `paced` ended it.
    fn compact_range(
        &self,
        family: &str,
        start: &[u8],
        end: &[u8],
        paced: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), StorageError>;

    /// Writes again the files that are not encrypted as new ones are, one stretch of keys after the
    /// other. `admit` is called before each, with about how many bytes are written for it, and ends
    /// the work by a break. For a thread that may block for long. Files that are written to while
    /// the database is open are new with its next opening.
    ///
    /// # Errors
    /// [`StorageError::Cancelled`] if `admit` ended it.
    fn rewrite(&self, _admit: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<(), StorageError> {
        Ok(())
    }
}

/// One consistent view of all families.
pub trait EngineSnapshot: Send + Sync {
    fn get(&self, family: &str, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// As [`Engine::get_cached`].
    fn get_cached(&self, family: &str, key: &[u8]) -> Result<Option<Option<Bytes>>, StorageError> {
        self.get(family, key).map(Some)
    }

    fn scan(&self, family: &str, scan: Scan<'_>, visit: Visit<'_>) -> Result<(), StorageError> {
        self.scan_some(family, scan, Effort::WHATEVER_IT_TAKES, visit).map(drop)
    }

    /// Ends before a row that takes more effort.
    fn scan_some(
        &self,
        family: &str,
        scan: Scan<'_>,
        effort: Effort,
        visit: Visit<'_>,
    ) -> Result<Scanned, StorageError>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryEngine;

    #[test]
    fn a_sorted_batch_comes_to_the_same() {
        let (engine, family): (_, Arc<str>) = (MemoryEngine::default(), "state".into());
        engine.create_family(&family).unwrap();
        let mut batch = WriteBatch::default();
        // So many that a sort which is not stable would show.
        (0..100).for_each(|number| batch.put(&family, vec![b'b' - number % 2], vec![number]));
        batch.sort();
        let keys = batch.operations.iter().map(|operation| match operation {
            Operation::Put { key, .. } => key.clone(),
            other => panic!("{other:?}"),
        });
        assert!(keys.is_sorted());
        engine.write(batch, Durability::Unlogged).unwrap();
        let value = |key: u8| engine.get(&family, &[key]).unwrap().map(|value| value.to_vec());
        assert_eq!([b'a', b'b'].map(value), [Some(vec![99]), Some(vec![98])]);
        let mut batch = WriteBatch::default();
        batch.put(&family, vec![b'b'], vec![100]);
        batch.delete_range(&family, vec![b'a'], vec![b'z']);
        batch.put(&family, vec![b'a'], vec![101]);
        batch.sort();
        engine.write(batch, Durability::Unlogged).unwrap();
        assert_eq!([b'a', b'b'].map(value), [Some(vec![101]), None]);
    }
}
