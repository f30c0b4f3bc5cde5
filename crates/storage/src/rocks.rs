use std::collections::{BTreeSet, HashMap};
use std::ffi::CStr;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::compaction_filter::{CompactionFilter, Decision};
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use rocksdb::{
    BlockBasedOptions, BoundColumnFamily, Cache, ColumnFamilyDescriptor, CompactOptions, DB, DBCompressionType,
    DBRecoveryMode, Options, ReadOptions, SnapshotWithThreadMode, WriteOptions,
};
use self_cell::self_cell;

use crate::engine::{Operation, Visit};
use crate::forgotten::Filter;
use crate::schema::{self, LOG_FAMILY, META_FAMILY};
use crate::{Durability, Engine, EngineSnapshot, Forgotten, Scan, StorageError, WriteBatch};

/// Of a range that is compacted on demand, at a time: other compactions, and whoever paces it, come in between.
const COMPACTION_SLICE_BYTES: u64 = 64 << 20;

/// How much memory one node's RocksDB may take, in bytes.
#[derive(Debug, Clone)]
pub struct RocksOptions {
    pub block_cache_bytes: usize,
    /// Of each column family; a few of these can be alive at a time.
    pub write_buffer_bytes: usize,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self { block_cache_bytes: 128 << 20, write_buffer_bytes: 64 << 20 }
    }
}

/// The engine that nodes run on: one RocksDB a node.
pub struct RocksEngine {
    db: Arc<DB>,
    cache: Cache,
    options: RocksOptions,
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

    fn open_with(path: &Path, options: RocksOptions, database: &Options) -> Result<Self, StorageError> {
        let cache = Cache::new_lru_cache(options.block_cache_bytes);
        let forgotten = Mutex::default();
        let present = if path.join("CURRENT").exists() { DB::list_cf(database, path)? } else { Vec::new() };
        let fixed = ["default", LOG_FAMILY, META_FAMILY].map(str::to_owned);
        let missing = fixed.into_iter().filter(|name| !present.contains(name)).collect::<Vec<_>>();
        let descriptors = present.iter().chain(&missing).map(|name| {
            let family = family_options(name, &options, &cache, forgotten_in(&forgotten, name));
            ColumnFamilyDescriptor::new(name, family)
        });
        let db = DB::open_cf_descriptors(database, path, descriptors)?;
        let names = Mutex::new(present.into_iter().chain(missing).collect());
        Ok(Self { db: Arc::new(db), cache, options, names, forgotten })
    }

    /// Compacts a whole family now.
    pub fn compact(&self, family: &str) -> Result<(), StorageError> {
        self.db.compact_range_cf(&self.family(family)?, None::<&[u8]>, None::<&[u8]>);
        Ok(())
    }

    /// Where a range is cut, by the files that overlap it, and how many bytes of files begin before each cut.
    fn slices(&self, family: &str, start: &[u8], end: &[u8]) -> Result<Vec<(Vec<u8>, u64)>, StorageError> {
        let mut files: Vec<(Vec<u8>, u64)> = Vec::new();
        for file in self.db.live_files()? {
            let (Some(first), Some(last)) = (file.start_key, file.end_key) else { continue };
            if file.column_family_name == family && first.as_slice() < end && last.as_slice() >= start {
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
    // Up to the first record that is not whole. After a power loss the end of the log may hold anything: a
    // record cut short, or one of the right length whose blocks were never written. The mode that only
    // tolerates a log that is cut short refuses to open then, at every start. What this one lets go was
    // never synced; should the disk lose what was, `HighWater` and the other voters notice.
    database.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    database.set_max_total_wal_size(256 << 20);
    database.set_max_background_jobs(2);
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

fn forgotten_in(forgotten: &Mutex<HashMap<String, Arc<Forgotten>>>, family: &str) -> Arc<Forgotten> {
    Arc::clone(forgotten.lock().entry(family.to_owned()).or_default())
}

fn family_options(name: &str, options: &RocksOptions, cache: &Cache, forgotten: Arc<Forgotten>) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_format_version(5);
    let mut family = Options::default();
    family.set_write_buffer_size(options.write_buffer_bytes);
    family.set_max_write_buffer_number(3);
    if schema::parse_state_family(name).is_some() {
        table.set_bloom_filter(10.0, false);
        // Most look-ups of request ids and of new keys find nothing: ask the filter, not the memtable.
        family.set_memtable_whole_key_filtering(true);
        family.set_memtable_prefix_bloom_ratio(0.05);
        family.set_compression_type(DBCompressionType::Lz4);
        family.set_bottommost_compression_type(DBCompressionType::Zstd);
        family.set_level_compaction_dynamic_level_bytes(true);
        // A factory, since RocksDB shares its ownership: a plain filter would die with these options.
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

    fn scan(&self, family: &str, scan: Scan<'_>, visit: Visit<'_>) -> Result<(), StorageError> {
        scan_with(&self.db, ReadOptions::default(), family, scan, visit)
    }

    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError> {
        let mut writes = rocksdb::WriteBatch::default();
        for operation in &batch.operations {
            match operation {
                Operation::Put { family, key, value } => writes.put_cf(&self.family(family)?, key, value),
                Operation::Delete { family, key } => writes.delete_cf(&self.family(family)?, key),
                Operation::DeleteRange { family, start, end } => {
                    writes.delete_range_cf(&self.family(family)?, start, end);
                }
            }
        }
        let mut options = WriteOptions::default();
        options.disable_wal(durability == Durability::Unlogged);
        Ok(self.db.write_opt(writes, &options)?)
    }

    fn sync(&self) -> Result<(), StorageError> {
        Ok(self.db.flush_wal(true)?)
    }

    fn flush(&self, family: &str) -> Result<(), StorageError> {
        Ok(self.db.flush_cf(&self.family(family)?)?)
    }

    fn snapshot(&self) -> Arc<dyn EngineSnapshot> {
        Arc::new(RocksSnapshot::new(Arc::clone(&self.db), |db| db.snapshot()))
    }

    fn open_snapshots(&self) -> u64 {
        // A property that cannot be read would be a bug of RocksDB's; the space is then given back later.
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
            self.db.compact_range_cf_opt(&self.family(family)?, Some(&from), Some(&until), &options);
            if paced(bytes).is_break() {
                return Err(StorageError::Refused("the compaction was ended".to_owned()));
            }
            from = until;
        }
        Ok(())
    }
}

type BorrowedSnapshot<'a> = SnapshotWithThreadMode<'a, DB>;

self_cell!(
    struct RocksSnapshot {
        owner: Arc<DB>,
        #[covariant]
        dependent: BorrowedSnapshot,
    }
);

impl EngineSnapshot for RocksSnapshot {
    fn get(&self, family_name: &str, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let handle = family(self.borrow_owner(), family_name)?;
        let value = self.borrow_dependent().get_pinned_cf(&handle, key)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, family: &str, scan: Scan<'_>, visit: Visit<'_>) -> Result<(), StorageError> {
        let mut options = ReadOptions::default();
        options.set_snapshot(self.borrow_dependent());
        scan_with(self.borrow_owner(), options, family, scan, visit)
    }
}

fn scan_with(
    db: &DB,
    mut options: ReadOptions,
    family_name: &str,
    scan: Scan<'_>,
    visit: Visit<'_>,
) -> Result<(), StorageError> {
    if scan.start >= scan.end {
        return Ok(());
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
            return Ok(());
        }
        if scan.reverse {
            iterator.prev();
        } else {
            iterator.next();
        }
    }
    // An iterator that is no longer valid is at its end, or has failed.
    Ok(iterator.status()?)
}

#[cfg(test)]
mod tests;
