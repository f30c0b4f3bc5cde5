//! How RocksDB is set up: for the whole database, for a family, and what its compactions drop.

use std::ffi::CStr;
use std::sync::Arc;

use meridian_vault::Vault;
use rocksdb::compaction_filter::{CompactionFilter, Decision};
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, Options};

use crate::Forgotten;
use crate::forgotten::Filter;
use crate::schema;

/// How much memory one node's RocksDB may take, in bytes, and how its files are encrypted.
#[derive(Debug, Clone)]
pub struct RocksOptions {
    /// Blocks, and the indexes and filters of open files.
    pub block_cache_bytes: usize,
    /// The memtables of all families together. Shortly before, the oldest is flushed, and then
    /// writes of state wait.
    pub memtable_bytes: usize,
    /// The keys of its files, if they are encrypted, or were.
    pub vault: Option<Arc<Vault>>,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self { block_cache_bytes: 128 << 20, memtable_bytes: 128 << 20, vault: None }
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
/// A file is compacted that has so many deletions among so many rows, or this share of them in all.
const DELETIONS_WINDOW: usize = 16 << 10;
const DELETIONS_IN_WINDOW: usize = 8 << 10;
const DELETIONS_RATIO: f64 = 0.5;

pub(super) fn database_options() -> Options {
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
    // no caller relies on them before. Writes without one are written out with the next commit
    // mark, or each second.
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

pub(super) fn family_options(
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
    // The first allocation of a memtable, and so the cost of an idle shard.
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
