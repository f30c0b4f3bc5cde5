//! An engine for tests that notes waits for the disk on threads that must not wait.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;
use std::time::Duration;

use parking_lot::Mutex;

use crate::hooked::{Call, HookedEngine, Hooks};
use crate::{Durability, Engine, EngineSnapshot, StorageError};

/// An engine that notes waits for its disk on a thread that must not wait: that of a runtime which
/// drives everything else. For tests, which need no slow disk then, and no clock.
pub type WatchedEngine = HookedEngine<Watch>;

/// The forbidden calls of the watched thread, and the hooks that a test runs meanwhile.
#[derive(Default)]
pub struct Watch {
    watched: Mutex<Option<Watched>>,
    after_writes: OnceLock<Box<dyn Fn(Durability) + Send + Sync>>,
    after_snapshots: OnceLock<Box<dyn Fn() + Send + Sync>>,
    sync_ms: AtomicU64,
}

struct Watched {
    thread: ThreadId,
    /// Also logged writes, and scans.
    all: bool,
    found: Vec<&'static str>,
}

impl WatchedEngine {
    pub fn watching(inner: Arc<dyn Engine>) -> Self {
        Self::new(inner, Watch::default())
    }
}

impl Watch {
    /// From now on the thread that calls this must not wait for the disk: not for an fsync, a
    /// flush, or a family that is made or dropped, nor for room in memory, as an unlogged write
    /// may. With `all` it must not write, nor scan, either.
    pub fn watch_this_thread(&self, all: bool) {
        *self.watched.lock() =
            Some(Watched { thread: std::thread::current().id(), all, found: Vec::new() });
    }

    /// Called between a write, which others see then, and the return to the writer.
    pub fn after_writes(&self, hook: impl Fn(Durability) + Send + Sync + 'static) {
        drop(self.after_writes.set(Box::new(hook)));
    }

    /// Called when a snapshot was taken, and nothing read from it yet.
    pub fn after_snapshots(&self, hook: impl Fn() + Send + Sync + 'static) {
        drop(self.after_snapshots.set(Box::new(hook)));
    }

    /// How long each fsync takes from now on, as on a disk that others use too.
    pub fn syncs_take(&self, time: Duration) {
        self.sync_ms.store(u64::try_from(time.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The forbidden calls that the watched thread made. Ends the watching.
    pub fn found(&self) -> Vec<&'static str> {
        self.watched.lock().take().map(|watched| watched.found).unwrap_or_default()
    }
}

impl Hooks for Watch {
    fn before(&self, inner: &dyn Engine, call: Call<'_>) -> Result<(), StorageError> {
        let is_known = |family: &str| inner.families().iter().any(|known| known == family);
        let (what, waits) = match call {
            Call::CreateFamily(family) if is_known(family) => return Ok(()),
            Call::DropFamily(family) if !is_known(family) => return Ok(()),
            // Of what is in memory, mostly: see the architecture.
            Call::Get(_) => return Ok(()),
            Call::CreateFamily(_) => ("create_family", true),
            Call::DropFamily(_) => ("drop_family", true),
            Call::Write(Durability::Unlogged) => ("unlogged write", true),
            Call::Sync => ("sync", true),
            Call::Flush(_) => ("flush", true),
            Call::CompactRange(_) => ("compact_range", true),
            Call::Write(Durability::Logged) => ("write", false),
            Call::Scan(_) => ("scan", false),
        };
        if let Some(watched) = &mut *self.watched.lock()
            && watched.thread == std::thread::current().id()
            && (waits || watched.all)
        {
            watched.found.push(what);
        }
        if let (Call::Sync, ms @ 1..) = (call, self.sync_ms.load(Ordering::Relaxed)) {
            std::thread::sleep(Duration::from_millis(ms));
        }
        Ok(())
    }

    fn after(&self, call: Call<'_>) {
        if let (Call::Write(durability), Some(hook)) = (call, self.after_writes.get()) {
            hook(durability);
        }
    }

    fn snapshot(&self, inner: Arc<dyn EngineSnapshot>) -> Arc<dyn EngineSnapshot> {
        if let Some(hook) = self.after_snapshots.get() {
            hook();
        }
        inner
    }
}
