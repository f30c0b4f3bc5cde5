//! State that is shared by the watches of one shard, the tasks that serve them and the thread that
//! applies.

use std::sync::Arc;
use std::time::Duration;

use meridian_storage::{Applied, ShardState, StateChange};
use meridian_types::{EpochHistory, ShardId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::signal::{Signal, WatcherId};
use super::table::{Round, Table, Told};
use super::{Shown, WatchedKey};
use crate::cluster_view::view::Directory;
use crate::read::execution::Reads;

/// An applied batch is heard of by then, mostly.
pub(super) const HEARD_SOON: Duration = Duration::from_millis(1);
/// Until a read is tried again that was refused.
const READ_AGAIN: Duration = Duration::from_millis(100);

pub(super) struct Shared {
    pub(super) table: Mutex<Table>,
    /// There are watches to be told.
    changed: Notify,
    /// There are keys to be read.
    wanted: Notify,
}

impl Shared {
    pub(super) fn new(table: Table) -> Self {
        Self { table: Mutex::new(table), changed: Notify::new(), wanted: Notify::new() }
    }

    pub(super) fn hear(&self, change: StateChange<'_>) {
        let mut table = self.table.lock();
        match change {
            StateChange::Applied(batches) => table.apply(batches),
            StateChange::Replaced(Applied { position, time_ms, .. }) => {
                table.replaced(*position, *time_ms);
            }
        }
        let has_news = table.has_news();
        drop(table);
        if has_news {
            self.changed.notify_one();
        }
    }

    pub(super) fn tell(
        &self,
        watcher: (WatcherId, &Arc<Signal>),
        keys: &[WatchedKey],
        shown: &mut [Shown],
        is_first: bool,
    ) -> Told {
        let told = self.table.lock().tell(watcher, keys, shown, is_first);
        if matches!(told, Told::Reading) {
            self.wanted.notify_one();
        }
        told
    }

    pub(super) fn leave(&self, id: WatcherId, keys: &[WatchedKey]) {
        self.table.lock().leave(id, keys);
    }

    fn next_signals(&self) -> Vec<Arc<Signal>> {
        self.table.lock().next_signals()
    }

    fn next_round(&self) -> Option<Round> {
        self.table.lock().next_round()
    }

    pub(super) async fn tell_all(self: Arc<Self>) {
        loop {
            self.changed.notified().await;
            loop {
                let signals = self.next_signals();
                if signals.is_empty() {
                    break;
                }
                signals.iter().for_each(|signal| signal.raise());
                tokio::task::yield_now().await;
            }
        }
    }

    pub(super) async fn read_all(self: Arc<Self>, state: Arc<ShardState>, reads: Reads) {
        loop {
            self.wanted.notified().await;
            while let Some(round) = self.next_round() {
                self.read(round, &state, &reads).await;
            }
        }
    }

    async fn read(&self, round: Round, state: &Arc<ShardState>, reads: &Reads) {
        let Ok(found) = reads.stored(state, round.keys.clone()).await else {
            tokio::time::sleep(READ_AGAIN).await;
            self.table.lock().want_again(round);
            return;
        };
        loop {
            let filled = self.table.lock().fill(&round, &found.rows, found.position);
            if let Some(signals) = filled {
                return signals.iter().for_each(|signal| signal.raise());
            }
            tokio::time::sleep(HEARD_SOON).await;
        }
    }

    /// A state that the shard's history has left is told of no more: its watches go elsewhere.
    pub(super) async fn follow_history(self: Arc<Self>, shard: ShardId, directory: Arc<Directory>) {
        let (mut known, mut epoch) = (directory.watch(), None);
        loop {
            let present = Arc::clone(&known.borrow_and_update());
            if let Some(info) = present.cluster.shards.get(&shard)
                && epoch.replace(info.epoch) != Some(info.epoch)
            {
                self.table.lock().follow(EpochHistory::new(info.bases.clone()));
                self.changed.notify_one();
            }
            if known.changed().await.is_err() {
                return;
            }
        }
    }
}
