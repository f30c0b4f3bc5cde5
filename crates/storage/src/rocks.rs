//! The engine over RocksDB.
//!
//! Invariants: a logged write is durable after the next sync, an unlogged one after the flush of
//! its family; a write of state never delays a write of a log by more than one flush.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_rocks_env::encrypted_env;
use parking_lot::Mutex;
use rocksdb::properties::{
    CUR_SIZE_ALL_MEM_TABLES, NUM_ENTRIES_ACTIVE_MEM_TABLE, NUM_ENTRIES_IMM_MEM_TABLES,
    NUM_IMMUTABLE_MEM_TABLE, PropName,
};
use rocksdb::{
    BoundColumnFamily, Cache, ColumnFamilyDescriptor, CompactOptions, DB, Options, ReadOptions,
    ReadTier, WriteOptions,
};

use crate::engine::{Operation, Visit};
use crate::schema::{LOG_FAMILY, META_FAMILY};
use crate::{Durability, Engine, EngineSnapshot, Forgotten, Scan, StorageError, WriteBatch};

use self::memtables::Memtables;
pub use self::options::RocksOptions;
use self::options::{database_options, family_options};
use self::snapshot::{RocksSnapshot, Tidy, cached, scan_with};

mod memtables;
mod options;
mod rewriting;
mod snapshot;

/// Of a range that is compacted on demand, at a time: other compactions, and the caller that paces
/// it, come in between.
const COMPACTION_SLICE_BYTES: u64 = 64 << 20;

/// A state of which so many files wait to be compacted takes writes slowly.
const MANY_FILES: u64 = 36;
/// How long one such write waits at most, and how long between two looks.
const SLOW_WRITE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(20);

/// The engine that nodes run on: one RocksDB a node.
pub struct RocksEngine {
    path: PathBuf,
    db: Arc<DB>,
    cache: Cache,
    options: RocksOptions,
    memtables: Memtables,
    cached_only: ReadOptions,
    tidy: Arc<Tidy>,
    names: Mutex<BTreeSet<String>>,
    forgotten: Mutex<HashMap<String, Arc<Forgotten>>>,
}

impl RocksEngine {
    /// Opens the database in the folder `path`, and makes it if there is none.
    ///
    /// # Errors
    /// When another process has it open, when the disk says no, or when what lies there is damaged.
    pub fn open(path: &Path, options: RocksOptions) -> Result<Self, StorageError> {
        Self::open_with(path, options, &database_options())
    }

    fn open_with(
        path: &Path,
        options: RocksOptions,
        database: &Options,
    ) -> Result<Self, StorageError> {
        let mut database = database.clone();
        if let Some(vault) = &options.vault {
            database.set_env(&encrypted_env(vault));
        }
        let memtables = Memtables::new(options.memtable_bytes);
        database.set_write_buffer_manager(memtables.manager());
        let cache = Cache::new_lru_cache(options.block_cache_bytes);
        let forgotten = Mutex::default();
        let present =
            if path.join("CURRENT").exists() { DB::list_cf(&database, path)? } else { Vec::new() };
        let fixed = ["default", LOG_FAMILY, META_FAMILY].map(str::to_owned);
        let missing = fixed.into_iter().filter(|name| !present.contains(name)).collect::<Vec<_>>();
        let descriptors = present.iter().chain(&missing).map(|name| {
            let family = family_options(name, &options, &cache, forgotten_in(&forgotten, name));
            ColumnFamilyDescriptor::new(name, family)
        });
        let db = DB::open_cf_descriptors(&database, path, descriptors)?;
        let names = Mutex::new(present.into_iter().chain(missing).collect());
        let mut cached_only = ReadOptions::default();
        cached_only.set_read_tier(ReadTier::BlockCache);
        Ok(Self {
            path: path.to_owned(),
            db: Arc::new(db),
            cache,
            options,
            memtables,
            cached_only,
            tidy: Arc::default(),
            names,
            forgotten,
        })
    }

    /// A number that RocksDB says of a family; 0 once that is dropped.
    fn property(&self, family: &str, property: &PropName) -> u64 {
        let value =
            self.family(family).map(|family| self.db.property_int_value_cf(&family, property));
        value.ok().and_then(Result::ok).flatten().unwrap_or(0)
    }

    /// Writes out the memtables of one family, and waits for it; false if there is nothing to
    /// write. A memtable that is being flushed already comes first, then the largest.
    fn flush_fullest(&self) -> Result<bool, StorageError> {
        let names = self.names.lock().clone();
        let filled = names.into_iter().filter(|name| {
            let entries = [NUM_ENTRIES_ACTIVE_MEM_TABLE, NUM_ENTRIES_IMM_MEM_TABLES];
            entries.iter().any(|property| self.property(name, property) > 0)
        });
        let fullest = filled.max_by_key(|name| {
            (
                self.property(name, NUM_IMMUTABLE_MEM_TABLE) > 0,
                self.property(name, CUR_SIZE_ALL_MEM_TABLES),
            )
        });
        let Some(fullest) = fullest else { return Ok(false) };
        match self.flush(&fullest) {
            // Dropped meanwhile, with what it took.
            Ok(()) | Err(StorageError::NoFamily(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Slows down writes to a state whose compactions do not keep up: each look-up reads more
    /// files. Bounded, so that a state whose compactions stand still goes on.
    fn wait_for_compactions(&self, family: &str) {
        let started = Instant::now();
        let files = || {
            let count = self
                .family(family)
                .map(|family| self.db.property_value_cf(&family, "rocksdb.num-files-at-level0"));
            count
                .ok()
                .and_then(Result::ok)
                .flatten()
                .and_then(|count| count.parse::<u64>().ok())
                .unwrap_or(0)
        };
        if files() < MANY_FILES {
            return;
        }
        metrics::counter!("meridian_storage_slowed_writes_total").increment(1);
        while files() >= MANY_FILES && started.elapsed() < SLOW_WRITE {
            std::thread::sleep(LOOK);
        }
    }

    /// Compacts a whole family now.
    pub fn compact(&self, family: &str) -> Result<(), StorageError> {
        self.db.compact_range_cf(&self.family(family)?, None::<&[u8]>, None::<&[u8]>);
        Ok(())
    }

    /// Where a range is cut, by the files that overlap it, and how many bytes of files begin before
    /// each cut.
    fn slices(
        &self,
        family: &str,
        start: &[u8],
        end: &[u8],
    ) -> Result<Vec<(Vec<u8>, u64)>, StorageError> {
        let mut files: Vec<(Vec<u8>, u64)> = Vec::new();
        for file in self.db.live_files()? {
            let (Some(first), Some(last)) = (file.start_key, file.end_key) else { continue };
            if file.column_family_name == family
                && first.as_slice() < end
                && last.as_slice() >= start
            {
                files.push((first, file.size as u64));
            }
        }
        files.sort();
        let (mut slices, mut bytes) = (Vec::new(), 0);
        for (first, size) in files {
            if bytes >= COMPACTION_SLICE_BYTES && first.as_slice() > start {
                slices.push((first, std::mem::take(&mut bytes)));
            }
            bytes += size;
        }
        slices.push((end.to_vec(), bytes));
        Ok(slices)
    }

    fn family(&self, name: &str) -> Result<Arc<BoundColumnFamily<'_>>, StorageError> {
        family(&self.db, name)
    }
}

fn family<'a>(db: &'a DB, name: &str) -> Result<Arc<BoundColumnFamily<'a>>, StorageError> {
    db.cf_handle(name).ok_or_else(|| StorageError::NoFamily(name.to_owned()))
}

fn forgotten_in(
    forgotten: &Mutex<HashMap<String, Arc<Forgotten>>>,
    family: &str,
) -> Arc<Forgotten> {
    Arc::clone(forgotten.lock().entry(family.to_owned()).or_default())
}

impl Engine for RocksEngine {
    fn memtable_bytes(&self) -> u64 {
        let names = self.names.lock().clone();
        names.iter().map(|name| self.property(name, CUR_SIZE_ALL_MEM_TABLES)).sum()
    }

    fn create_family(&self, family: &str) -> Result<(), StorageError> {
        if self.db.cf_handle(family).is_some() {
            return Ok(());
        }
        let options = family_options(family, &self.options, &self.cache, self.forgotten(family));
        self.db.create_cf(family, &options)?;
        self.names.lock().insert(family.to_owned());
        Ok(())
    }

    fn drop_family(&self, family: &str) -> Result<(), StorageError> {
        if self.names.lock().remove(family) {
            self.db.drop_cf(family)?;
        }
        Ok(())
    }

    fn families(&self) -> Vec<String> {
        self.names.lock().iter().cloned().collect()
    }

    fn get(&self, family: &str, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let value = self.db.get_pinned_cf(&self.family(family)?, key)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn get_cached(&self, family: &str, key: &[u8]) -> Result<Option<Option<Bytes>>, StorageError> {
        cached(self.db.get_pinned_cf_opt(&self.family(family)?, key, &self.cached_only))
    }

    fn scan(&self, family: &str, scan: Scan<'_>, visit: Visit<'_>) -> Result<(), StorageError> {
        scan_with(&self.db, ReadOptions::default(), family, scan, visit).map(drop)
    }

    fn scan_past_cache(
        &self,
        family: &str,
        scan: Scan<'_>,
        visit: Visit<'_>,
    ) -> Result<(), StorageError> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        scan_with(&self.db, options, family, scan, visit).map(drop)
    }

    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError> {
        let mut writes = rocksdb::WriteBatch::default();
        // Looked up once where one follows another of the same family.
        let mut found: Option<(&Arc<str>, _)> = None;
        for operation in &batch.operations {
            let family = operation.family();
            let family = match &mut found {
                Some((name, handle)) if Arc::ptr_eq(name, family) => handle,
                _ => &mut found.insert((family, self.family(family)?)).1,
            };
            match operation {
                Operation::Put { key, value, .. } => writes.put_cf(family, key, value),
                Operation::Delete { key, .. } => writes.delete_cf(family, key),
                Operation::DeleteRange { start, end, .. } => {
                    writes.delete_range_cf(family, start, end)
                }
            }
        }
        let mut options = WriteOptions::default();
        let admitted = match durability {
            Durability::Logged => None,
            Durability::Unlogged => {
                options.disable_wal(true);
                if let Some(operation) = batch.operations.first() {
                    self.wait_for_compactions(operation.family());
                }
                Some(
                    self.memtables
                        .admit(writes.len(), writes.size_in_bytes(), || self.flush_fullest())?,
                )
            }
        };
        self.db.write_opt(writes, &options)?;
        drop(admitted);
        Ok(())
    }

    fn write_out(&self) -> Result<(), StorageError> {
        Ok(self.db.flush_wal(false)?)
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.db.flush_wal(true)?;
        self.memtables.wait_below_bound(|| self.flush_fullest())
    }

    fn flush(&self, family: &str) -> Result<(), StorageError> {
        match self.db.flush_cf(&self.family(family)?) {
            // Dropped meanwhile.
            Err(_) if self.db.cf_handle(family).is_none() => {
                Err(StorageError::NoFamily(family.to_owned()))
            }
            flushed => Ok(flushed?),
        }
    }

    fn snapshot(&self) -> Arc<dyn EngineSnapshot> {
        Arc::new(RocksSnapshot::take(Arc::clone(&self.db), Arc::clone(&self.tidy)))
    }

    fn open_snapshots(&self) -> u64 {
        // A property that cannot be read would be a bug of RocksDB's; the space is then given back
        // later.
        self.db.property_int_value("rocksdb.num-snapshots").ok().flatten().unwrap_or(u64::MAX)
    }

    fn forgotten(&self, family: &str) -> Arc<Forgotten> {
        forgotten_in(&self.forgotten, family)
    }

    fn compact_range(
        &self,
        family: &str,
        start: &[u8],
        end: &[u8],
        paced: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        self.flush(family)?;
        let mut options = CompactOptions::default();
        // Others go on meanwhile.
        options.set_exclusive_manual_compaction(false);
        let mut from = start.to_vec();
        for (until, bytes) in self.slices(family, start, end)? {
            self.db.compact_range_cf_opt(
                &self.family(family)?,
                Some(&from),
                Some(&until),
                &options,
            );
            if paced(bytes).is_break() {
                return Err(StorageError::cancelled("the compaction was ended"));
            }
            from = until;
        }
        Ok(())
    }

    fn rewrite(&self, admit: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<(), StorageError> {
        let Some(vault) = &self.options.vault else { return Ok(()) };
        self.rewrite_stale(vault, admit)
    }
}

#[cfg(test)]
mod tests;
