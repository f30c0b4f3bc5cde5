//! Looks at the room on the disk, and makes some where writes are refused for want of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use meridian_storage::{Engine, StorageError, fatal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::background::parts::DutyParts;
use crate::host::disk::{DiskGuard, Room};

/// While writes are refused for want of disk, memtables are flushed from so many bytes on.
pub(crate) const FLUSHED_ON_A_LOW_DISK_BYTES: u64 = 8 << 20;

/// The disk of the data folder, and the engine that writes there.
pub(crate) struct DiskWatch {
    data_dir: PathBuf,
    engine: Arc<dyn Engine>,
    disk: Arc<DiskGuard>,
}

impl DiskWatch {
    pub(crate) fn new(parts: &DutyParts) -> Self {
        Self {
            data_dir: parts.data_dir.to_path_buf(),
            engine: Arc::clone(&parts.engine),
            disk: Arc::clone(&parts.disk),
        }
    }

    /// Looks on a thread of its own, which is all that wakes for a look, until `stop`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start_thread(
        this: &Arc<Self>,
        stop: CancellationToken,
    ) -> std::io::Result<JoinHandle<()>> {
        let weak = Arc::downgrade(this);
        let (end, ended) = oneshot::channel::<()>();
        let (goes_on, stops) = std::sync::mpsc::channel::<()>();
        let looks = move || {
            let _end = end;
            while let Some(this) = weak.upgrade() {
                let pause = this.check();
                drop(this);
                // Until the node stops.
                if stops.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("disk-looks".to_owned()).spawn(looks)?;
        // Waited for like the tasks: it may be the last that has the engine.
        Ok(tokio::spawn(async move {
            stop.cancelled().await;
            drop(goes_on);
            drop(ended.await);
        }))
    }

    fn check(&self) -> Duration {
        self.disk.check(&self.data_dir, self.engine.memtable_bytes())
    }

    /// One look, where there is no thread for it.
    pub(crate) async fn look(self: Arc<Self>) {
        // As with the marks.
        drop(tokio::task::spawn_blocking(move || self.check()).await);
    }

    /// Writes would have memtables flushed, and are refused; and the log that is also in them takes
    /// room as long. Not where the disk might not hold what is flushed: that would stop the
    /// process. Beside the looks at the disk, which wait for nothing: voters go on appending
    /// meanwhile.
    pub(crate) async fn flush_when_low(self: Arc<Self>) {
        let flushed = tokio::task::spawn_blocking(move || {
            let is_worth_it = || self.engine.memtable_bytes() > FLUSHED_ON_A_LOW_DISK_BYTES;
            if self.disk.room() == Room::Enough || self.disk.takes_nothing() || !is_worth_it() {
                return;
            }
            for family in self.engine.families() {
                match self.engine.flush(&family) {
                    Ok(()) | Err(StorageError::NoFamily(_)) => {}
                    Err(error) => fatal(&error),
                }
            }
        });
        drop(flushed.await);
    }
}
