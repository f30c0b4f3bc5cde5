//! Measures the databases with quotas on what they store, where this node leads their shards.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_storage::{ShardState, StorageError, fatal};
use meridian_types::DatabaseId;
use tokio_util::sync::CancellationToken;

use crate::background::parts::DutyParts;
use crate::cluster_view::view::Directory;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;

/// How fast rows are read at most: what else the disk does comes first.
const BYTES_PER_SECOND: u64 = 32 << 20;
/// A node spends no more than one part of so many of its time on it.
const REST: u32 = 20;
/// From the end of a node's measuring to its next at least.
pub(crate) const MEASURE: Duration = Duration::from_secs(5);

pub(crate) struct Measuring {
    shards: Arc<ShardTable>,
    directory: Arc<Directory>,
    stop: CancellationToken,
}

impl Measuring {
    pub(crate) fn new(parts: &DutyParts) -> Self {
        Self {
            shards: Arc::clone(&parts.shards),
            directory: Arc::clone(&parts.directory),
            stop: parts.stop.clone(),
        }
    }

    /// Measures all of them once, on a thread that may block, and rests for in proportion to what
    /// that took.
    pub(crate) async fn measure(self: Arc<Self>) {
        let began = Instant::now();
        let led = self.shards.all().into_iter().filter(|(_, shard)| leads(shard));
        let led: BTreeMap<_, _> = led.map(|(id, shard)| (id, Arc::clone(shard.state()))).collect();
        let with_quotas = self.directory.with_stored_quotas().into_iter();
        let wanted: Vec<_> = with_quotas
            .filter_map(|(shard, database)| Some((Arc::clone(led.get(&shard)?), database)))
            .collect();
        let databases: Vec<_> = wanted.iter().map(|(_, database)| *database).collect();
        self.shards.stored().keep(&databases);
        if wanted.is_empty() {
            return;
        }
        let this = Arc::clone(&self);
        // It panics never, and a cancelled one is the node stopping.
        drop(tokio::task::spawn_blocking(move || this.measure_each(&wanted)).await);
        let rest = began.elapsed() * REST;
        self.stop.run_until_cancelled(tokio::time::sleep(rest)).await;
    }

    fn measure_each(&self, wanted: &[(Arc<ShardState>, DatabaseId)]) {
        for (state, database) in wanted {
            match state.stored_size(*database, &mut |bytes| self.pace(bytes)) {
                Ok(size) => self.shards.stored().measured(*database, size),
                // The node stops, or a snapshot takes the state's place: measured anew.
                Err(StorageError::Cancelled(_) | StorageError::NoFamily(_)) => {}
                Err(error) => fatal(&error),
            }
        }
    }

    /// Blocks for as long as so many bytes may take; at once, with a break, when the node stops.
    fn pace(&self, bytes: u64) -> ControlFlow<()> {
        if self.stop.is_cancelled() {
            return ControlFlow::Break(());
        }
        std::thread::sleep(Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND as f64));
        ControlFlow::Continue(())
    }
}

fn leads(shard: &LocalShard) -> bool {
    matches!(shard, LocalShard::Voter(voter) if voter.group.leadership().is_ok())
}
