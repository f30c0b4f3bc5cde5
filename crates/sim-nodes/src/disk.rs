//! An engine in memory whose calls take the time of a disk.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use meridian_sim_kernel::{self as kernel, Chance};
use meridian_storage::{
    Durability, Engine, EngineSnapshot, Forgotten, MemoryEngine, Scan, StorageError, Visit,
    WriteBatch, schema,
};
use parking_lot::Mutex;

/// The duration of an fsync while the disk is well, in microseconds.
const SYNC_US: std::ops::Range<u64> = 200..2_500;
/// A disk that lies syncs only after as long: within the time in which a node writes down how far its
/// log is, so that the next start does not find it short.
const LIE: Duration = Duration::from_millis(400);

/// The disk of a machine, with all that is stored there.
pub(crate) struct Disk {
    engine: MemoryEngine,
    chance: Mutex<Chance>,
    /// Added to the duration of each fsync.
    slower_us: AtomicU64,
    /// Whether it says that a write is durable before it is.
    lies: bool,
    /// When a disk that lies has synced last.
    synced: Mutex<Duration>,
}

impl Disk {
    /// An empty one.
    ///
    /// # Errors
    /// When the engine refuses its families.
    pub(crate) fn new(chance: Chance, lies: bool) -> Result<Arc<Self>, StorageError> {
        let engine = MemoryEngine::default();
        for family in ["default", schema::LOG_FAMILY, schema::META_FAMILY] {
            engine.create_family(family)?;
        }
        Ok(Arc::new(Self::with(engine, chance, lies)))
    }

    fn with(engine: MemoryEngine, chance: Chance, lies: bool) -> Self {
        let (chance, slower_us) = (Mutex::new(chance), AtomicU64::new(0));
        Self { engine, chance, slower_us, lies, synced: Mutex::default() }
    }

    /// The disk after a loss of power, with a folder of files beside the database.
    ///
    /// # Errors
    /// When the system cannot write the files that are left.
    pub(crate) fn crashed(&self, folder: &Path) -> std::io::Result<Arc<Self>> {
        let mut chance = self.chance.lock().fork();
        let engine = match self.lies {
            // It got to nothing by itself: no assertion of a node's finds its state ahead of its log.
            true => self.engine.crash_to_what_is_durable(),
            false => self.engine.crash(chance.next_u64()),
        };
        kernel::lose_unsynced(folder, &mut chance)?;
        Ok(Arc::new(Self::with(engine, chance, self.lies)))
    }

    /// Makes each fsync take longer, by up to twice this.
    pub(crate) fn slow_down(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.slower_us.store(micros, Ordering::Relaxed);
    }

    fn takes_time(&self) {
        let slower = self.slower_us.load(Ordering::Relaxed);
        let micros = {
            let mut chance = self.chance.lock();
            chance.within(SYNC_US) + slower + chance.below(slower)
        };
        std::thread::sleep(Duration::from_micros(micros));
    }
}

/// The engine that a machine's node opens.
pub(crate) struct Mounted(pub(crate) Arc<Disk>);

impl Engine for Mounted {
    fn create_family(&self, family: &str) -> Result<(), StorageError> {
        self.0.takes_time();
        self.0.engine.create_family(family)
    }

    fn drop_family(&self, family: &str) -> Result<(), StorageError> {
        self.0.takes_time();
        self.0.engine.drop_family(family)
    }

    fn families(&self) -> Vec<String> {
        self.0.engine.families()
    }

    fn get(&self, family: &str, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.0.engine.get(family, key)
    }

    fn scan(&self, family: &str, scan: Scan<'_>, visit: Visit<'_>) -> Result<(), StorageError> {
        self.0.engine.scan(family, scan, visit)
    }

    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError> {
        self.0.engine.write(batch, durability)
    }

    fn write_out(&self) -> Result<(), StorageError> {
        self.0.engine.write_out()
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.0.takes_time();
        if self.0.lies {
            let (mut synced, now) = (self.0.synced.lock(), kernel::now());
            if now.saturating_sub(*synced) < LIE {
                return Ok(());
            }
            *synced = now;
        }
        self.0.engine.sync()
    }

    fn flush(&self, family: &str) -> Result<(), StorageError> {
        self.0.takes_time();
        self.0.engine.flush(family)
    }

    fn snapshot(&self) -> Arc<dyn EngineSnapshot> {
        self.0.engine.snapshot()
    }

    fn open_snapshots(&self) -> u64 {
        self.0.engine.open_snapshots()
    }

    fn forgotten(&self, family: &str) -> Arc<Forgotten> {
        self.0.engine.forgotten(family)
    }

    fn compact_range(
        &self,
        family: &str,
        start: &[u8],
        end: &[u8],
        paced: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        self.0.takes_time();
        self.0.engine.compact_range(family, start, end, paced)
    }
}
