//! Writes out marks that no request waits for, and drops copies of states without a reader.

use std::sync::Arc;

use meridian_storage::{Engine, HighWater, or_fatal};

use crate::background::parts::DutyParts;
use crate::host::disk::DiskGuard;
use crate::replication::snapshot_transfer::StateExchange;

/// Marks and copies that are looked after each second.
pub(crate) struct Marks {
    engine: Arc<dyn Engine>,
    high_water: Arc<HighWater>,
    exchange: Arc<StateExchange>,
    disk: Arc<DiskGuard>,
}

impl Marks {
    pub(crate) fn new(parts: &DutyParts) -> Self {
        Self {
            engine: Arc::clone(&parts.engine),
            high_water: Arc::clone(&parts.high_water),
            exchange: Arc::clone(&parts.exchange),
            disk: Arc::clone(&parts.disk),
        }
    }

    pub(crate) async fn persist(self: Arc<Self>) {
        let persisted = tokio::task::spawn_blocking(move || {
            or_fatal(self.high_water.persist());
            // The marks that no request waits for, such as how far the log is known to be
            // committed: a process that is killed leaves them behind.
            or_fatal(self.engine.write_out());
            self.exchange.prune(self.disk.takes_nothing());
        });
        // It panics never, and a cancelled one is the node stopping.
        drop(persisted.await);
    }
}
