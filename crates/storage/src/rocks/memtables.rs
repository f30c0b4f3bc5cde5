//! How much memory all memtables take together, and which writes wait for it.
//!
//! RocksDB's own stalls know no families: where one has too much, every write of the database
//! waits. So they are off, and what waits here is what may: a write of state, whose thread is there
//! to block, waits before it enters RocksDB. A record of a log is never held up, since the
//! runtime's own threads append it.

use parking_lot::{Condvar, Mutex, MutexGuard};
use rocksdb::WriteBufferManager;

use crate::StorageError;

/// The most bytes that an entry takes beside its key and value: its node in the memtable.
const ENTRY_BYTES: usize = 128;

pub(super) struct Memtables {
    /// Counts what all memtables hold, those included that are being flushed.
    manager: WriteBufferManager,
    bound_bytes: usize,
    turn: Mutex<Turn>,
    changed: Condvar,
}

#[derive(Default)]
struct Turn {
    /// One of the waiting writes flushes a family.
    flushing: bool,
    /// The bytes of admitted writes that the manager may not count yet.
    entering_bytes: usize,
}

/// A write that was let in, until it is in its memtable.
pub(super) struct Admitted<'a> {
    memtables: &'a Memtables,
    bytes: usize,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.memtables.turn.lock().entering_bytes -= self.bytes;
        self.memtables.changed.notify_all();
    }
}

impl Memtables {
    pub(super) fn new(bound_bytes: usize) -> Self {
        // From seven eighths of this size on each write begins a flush of the oldest memtable.
        let manager =
            WriteBufferManager::new_write_buffer_manager(Self::state_bytes(bound_bytes), false);
        Self { manager, bound_bytes, turn: Mutex::default(), changed: Condvar::new() }
    }

    /// The share of the bound that state may fill; the rest is for logs.
    fn state_bytes(bound_bytes: usize) -> usize {
        bound_bytes / 8 * 7
    }

    pub(super) fn manager(&self) -> &WriteBufferManager {
        &self.manager
    }

    /// Lets a write of state in once there is room for it.
    ///
    /// While there is none, one of the waiting writes calls `flush`, which writes out a family and
    /// returns when that is done: no write waits for what is not under way, nor longer than flushes
    /// take. `flush` returns false where nothing is left to be flushed; then the write is let in.
    ///
    /// # Errors
    /// Those of `flush`: an engine that has failed makes no room any more.
    pub(super) fn admit(
        &self,
        entries: usize,
        bytes: usize,
        flush: impl Fn() -> Result<bool, StorageError>,
    ) -> Result<Admitted<'_>, StorageError> {
        let bytes = bytes + entries * ENTRY_BYTES;
        let mut turn = self.turn.lock();
        self.wait(&mut turn, Self::state_bytes(self.bound_bytes), bytes, flush)?;
        turn.entering_bytes += bytes;
        Ok(Admitted { memtables: self, bytes })
    }

    /// Waits while all memtables together are beyond their bound. State does not get them there;
    /// logs may, where a disk takes appends faster than flushes. For the thread that acknowledges
    /// records.
    pub(super) fn wait_below_bound(
        &self,
        flush: impl Fn() -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        if self.manager.get_usage() <= self.bound_bytes {
            return Ok(());
        }
        self.wait(&mut self.turn.lock(), self.bound_bytes, 0, flush)
    }

    /// Whether a write waits for a flush.
    #[cfg(test)]
    pub(super) fn are_awaited(&self) -> bool {
        self.turn.lock().flushing
    }

    fn wait(
        &self,
        turn: &mut MutexGuard<'_, Turn>,
        limit_bytes: usize,
        bytes: usize,
        flush: impl Fn() -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        while self.manager.get_usage() + turn.entering_bytes + bytes > limit_bytes {
            if turn.flushing {
                self.changed.wait(turn);
                continue;
            }
            turn.flushing = true;
            metrics::counter!("meridian_storage_awaited_flushes_total").increment(1);
            let flushed = MutexGuard::unlocked(turn, &flush);
            turn.flushing = false;
            self.changed.notify_all();
            if !flushed? {
                if turn.entering_bytes == 0 {
                    return Ok(());
                }
                // The next flush takes the writes that are entering now.
                self.changed.wait(turn);
            }
        }
        Ok(())
    }
}
