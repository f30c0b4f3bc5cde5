//! The engine over RocksDB.
//!
//! What must hold: a logged write is durable after the next sync, an unlogged one after the flush
//! of its family; a write of state never delays a write of a log by more than one flush.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CStr;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::compaction_filter::{CompactionFilter, Decision};
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use rocksdb::properties::{
    CUR_SIZE_ALL_MEM_TABLES, NUM_ENTRIES_ACTIVE_MEM_TABLE, NUM_ENTRIES_IMM_MEM_TABLES,
    NUM_IMMUTABLE_MEM_TABLE, PropName,
};
use rocksdb::{
    BlockBasedOptions, BoundColumnFamily, Cache, ColumnFamilyDescriptor, CompactOptions, DB,
    DBCompressionType, DBPinnableSlice, DBRecoveryMode, ErrorKind, FlushOptions, Options,
    ReadOptions, ReadTier, SnapshotWithThreadMode, WriteOptions,
};
use self_cell::self_cell;

use crate::engine::{Operation, Visit};
use crate::forgotten::Filter;
use crate::schema::{self, LOG_FAMILY, META_FAMILY};
use crate::{
    Durability, Effort, Engine, EngineSnapshot, Forgotten, Scan, Scanned, StorageError, WriteBatch,
};

use self::memtables::Memtables;

mod memtables;

/// Of a range that is compacted on demand, at a time: other compactions, and the caller that paces
/// it, come in between.
const COMPACTION_SLICE_BYTES: u64 = 64 << 20;

/// How much memory one node's RocksDB may take, in bytes.
#[derive(Debug, Clone)]
pub struct RocksOptions {
    /// Blocks, and the indexes and filters of open files.
    pub block_cache_bytes: usize,
    /// The memtables of all families together. Shortly before, the oldest is flushed, and then
    /// writes of state wait.
    pub memtable_bytes: usize,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self { block_cache_bytes: 128 << 20, memtable_bytes: 128 << 20 }
    }
}

impl RocksOptions {
    /// The size at which a family's memtable is flushed on its own account. Smaller than all that
    /// there is, so that one busy family leaves the others theirs, and its flush some time.
    fn write_buffer_bytes(&self) -> usize {
        (self.memtable_bytes / 6).clamp(1 << 20, 64 << 20)
    }
}

const ARENA_BLOCK_BYTES: usize = 32 << 10;

/// Never reached: RocksDB's own slow-downs, which hold up all families for one.
const NEVER: i32 = i32::MAX;
/// A state of which so many files wait to be compacted takes writes slowly.
const MANY_FILES: u64 = 36;
/// How long one such write waits at most, and how long between two looks.
const SLOW_WRITE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(20);

/// A file is compacted that has so many deletions among so many rows, or this share of them in all.
const DELETIONS_WINDOW: usize = 16 << 10;
const DELETIONS_IN_WINDOW: usize = 8 << 10;
const DELETIONS_RATIO: f64 = 0.5;

/// The engine that nodes run on: one RocksDB a node.
pub struct RocksEngine {
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

fn database_options() -> Options {
    let mut database = Options::default();
    database.create_if_missing(true);
    database.create_missing_column_families(true);
    // Up to the first record that is not whole. After a power loss the end of the log may hold
    // anything: a record cut short, or one of the right length whose blocks were never written. The
    // mode that only tolerates a log that is cut short refuses to open then, at every start. What
    // this one lets go was never synced; should the disk lose what was, `HighWater` and the other
    // voters notice.
    database.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    database.set_max_total_wal_size(256 << 20);
    // Logged writes wait in memory for the fsync that makes them durable, and are written with it:
    // no caller relies on them before. What is not followed by one is written out with the next
    // mark of what is committed, or each second.
    database.set_manual_wal_flush(true);
    // Threads that wait for another's write sleep: spinning takes the cores from the processes
    // beside.
    database.set_enable_write_thread_adaptive_yield(false);
    // A flush and a compaction, and one more where files pile up: those of the log do not wait for
    // a state's then.
    database.set_max_background_jobs(3);
    // Written back bit by bit: else the fsync of a whole new table holds up that of the log.
    database.set_bytes_per_sync(1 << 20);
    database.set_keep_log_file_num(4);
    database.set_max_open_files(512);
    database.set_paranoid_checks(true);
    database
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

fn family_options(
    name: &str,
    options: &RocksOptions,
    cache: &Cache,
    forgotten: Arc<Forgotten>,
) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_format_version(5);
    // Within the cache's bound: beside it they would grow with the data.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut family = Options::default();
    family.set_write_buffer_size(options.write_buffer_bytes());
    // RocksDB holds up the writes of all families where one of them has too many memtables, files
    // or bytes to compact: the log's, too. `Memtables` and `wait_for_compactions` hold up state
    // instead.
    family.set_max_write_buffer_number(NEVER);
    family.set_level_zero_slowdown_writes_trigger(NEVER);
    family.set_level_zero_stop_writes_trigger(NEVER);
    family.set_soft_pending_compaction_bytes_limit(0);
    family.set_hard_pending_compaction_bytes_limit(0);
    // What a memtable takes at once: a shard that does nothing costs no more.
    family.set_arena_block_size(ARENA_BLOCK_BYTES);
    if schema::parse_state_family(name).is_some() {
        table.set_bloom_filter(10.0, false);
        // Most look-ups of request ids and of new keys find nothing: ask the filter, not the
        // memtable.
        family.set_memtable_whole_key_filtering(true);
        // Taken at once, also by a shard that does nothing. Ten bits for each row of 125 bytes.
        family.set_memtable_prefix_bloom_ratio(0.01);
        // The head of a queue is a stretch of deletions, which each read there skips: a file of
        // such is compacted soon. See also `Tidy`.
        family.add_compact_on_deletion_collector_factory(
            DELETIONS_WINDOW,
            DELETIONS_IN_WINDOW,
            DELETIONS_RATIO,
        );
        family.set_compression_type(DBCompressionType::Lz4);
        family.set_bottommost_compression_type(DBCompressionType::Zstd);
        family.set_level_compaction_dynamic_level_bytes(true);
        // A factory, since RocksDB shares its ownership: a plain filter would die with these
        // options.
        family.set_compaction_filter_factory(Forget { forgotten });
    } else {
        // Log entries are deleted soon after they were written: compressing them is lost work.
        family.set_compression_type(DBCompressionType::None);
    }
    family.set_block_based_table_factory(&table);
    family
}

/// Drops what is forgotten while RocksDB compacts.
struct Forget {
    forgotten: Arc<Forgotten>,
}

impl CompactionFilterFactory for Forget {
    type Filter = Filter;

    fn create(&mut self, _: CompactionFilterContext) -> Filter {
        self.forgotten.filter()
    }

    fn name(&self) -> &CStr {
        c"forget"
    }
}

impl CompactionFilter for Filter {
    fn filter(&mut self, _level: u32, key: &[u8], value: &[u8]) -> Decision {
        if self.drops(key, value) { Decision::Remove } else { Decision::Keep }
    }

    fn name(&self) -> &CStr {
        c"forget"
    }
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
        let taken = TakenSnapshot::new(Arc::clone(&self.db), |db| db.snapshot());
        Arc::new(RocksSnapshot { taken, tidy: Arc::clone(&self.tidy) })
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
}

type BorrowedSnapshot<'a> = SnapshotWithThreadMode<'a, DB>;

self_cell!(
    struct TakenSnapshot {
        owner: Arc<DB>,
        #[covariant]
        dependent: BorrowedSnapshot,
    }
);

struct RocksSnapshot {
    taken: TakenSnapshot,
    tidy: Arc<Tidy>,
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
struct Tidy {
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

/// What a look-up came to that does not wait for a disk.
fn cached(
    found: Result<Option<DBPinnableSlice<'_>>, rocksdb::Error>,
) -> Result<Option<Option<Bytes>>, StorageError> {
    match found {
        Ok(value) => Ok(Some(value.map(|value| Bytes::copy_from_slice(&value)))),
        Err(error) if error.kind() == ErrorKind::Incomplete => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn scan_with(
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

#[cfg(test)]
mod tests;
