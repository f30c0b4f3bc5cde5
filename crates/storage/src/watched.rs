use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{Durability, Engine, EngineSnapshot, Forgotten, Scan, StorageError, Visit, WriteBatch};

/// An engine that notes who waits for its disk on a thread that must not: that of a runtime which drives everything
/// else. For tests, which need no slow disk then, and no clock.
pub struct WatchedEngine {
    inner: Arc<dyn Engine>,
    watched: Mutex<Option<Watched>>,
    after_writes: OnceLock<Box<dyn Fn(Durability) + Send + Sync>>,
    after_snapshots: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

struct Watched {
    thread: ThreadId,
    /// Also writes that are not synced, and scans: they wait where a disk does not keep up.
    all: bool,
    found: Vec<&'static str>,
}

impl WatchedEngine {
    pub fn new(inner: Arc<dyn Engine>) -> Self {
        Self { inner, watched: Mutex::default(), after_writes: OnceLock::new(), after_snapshots: OnceLock::new() }
    }

    /// Called between a write, which others see then, and the return to whoever writes.
    pub fn after_writes(&self, hook: impl Fn(Durability) + Send + Sync + 'static) {
        drop(self.after_writes.set(Box::new(hook)));
    }

    /// Called when a snapshot was taken, and nothing read from it yet.
    pub fn after_snapshots(&self, hook: impl Fn() + Send + Sync + 'static) {
        drop(self.after_snapshots.set(Box::new(hook)));
    }

    /// From now on the thread that calls this must not wait for the disk; with `all` it must not write, nor scan, either.
    pub fn watch_this_thread(&self, all: bool) {
        *self.watched.lock() = Some(Watched { thread: std::thread::current().id(), all, found: Vec::new() });
    }

    /// What the watched thread did all the same, and the end of watching.
    pub fn found(&self) -> Vec<&'static str> {
        self.watched.lock().take().map(|watched| watched.found).unwrap_or_default()
    }

    fn note(&self, what: &'static str, waits: bool) {
        if let Some(watched) = &mut *self.watched.lock()
            && watched.thread == std::thread::current().id()
            && (waits || watched.all)
        {
            watched.found.push(what);
        }
    }
}

impl Engine for WatchedEngine {
    fn create_family(&self, family: &str) -> Result<(), StorageError> {
        if !self.inner.families().iter().any(|known| known == family) {
            self.note("create_family", true);
        }
        self.inner.create_family(family)
    }

    fn drop_family(&self, family: &str) -> Result<(), StorageError> {
        if self.inner.families().iter().any(|known| known == family) {
            self.note("drop_family", true);
        }
        self.inner.drop_family(family)
    }

    fn families(&self) -> Vec<String> {
        self.inner.families()
    }

    fn get(&self, family: &str, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.inner.get(family, key)
    }

    fn get_cached(&self, family: &str, key: &[u8]) -> Result<Option<Option<Bytes>>, StorageError> {
        self.inner.get_cached(family, key)
    }

    fn scan(&self, family: &str, scan: Scan<'_>, visit: Visit<'_>) -> Result<(), StorageError> {
        self.note("scan", false);
        self.inner.scan(family, scan, visit)
    }

    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError> {
        self.note("write", false);
        self.inner.write(batch, durability)?;
        if let Some(hook) = self.after_writes.get() {
            hook(durability);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.note("sync", true);
        self.inner.sync()
    }

    fn flush(&self, family: &str) -> Result<(), StorageError> {
        self.note("flush", true);
        self.inner.flush(family)
    }

    fn snapshot(&self) -> Arc<dyn EngineSnapshot> {
        let snapshot = self.inner.snapshot();
        if let Some(hook) = self.after_snapshots.get() {
            hook();
        }
        snapshot
    }

    fn open_snapshots(&self) -> u64 {
        self.inner.open_snapshots()
    }

    fn forgotten(&self, family: &str) -> Arc<Forgotten> {
        self.inner.forgotten(family)
    }

    fn compact_range(
        &self,
        family: &str,
        start: &[u8],
        end: &[u8],
        paced: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        self.inner.compact_range(family, start, end, paced)
    }
}
