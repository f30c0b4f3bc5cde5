//! The watches of one shard here: fed by what is applied, and by reads.
//!
//! The thread that applies only notes what has changed. A task tells the watches, some at a time, and
//! another reads what has to be read, once for all that wait for it.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use meridian_storage::{LogSubscription, ShardState};
use meridian_types::{DatabaseId, EpochHistory, Position};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Shown;
use super::shared::{HEARD_SOON, Shared};
use super::signal::Signal;
use super::table::Table;
use super::watcher::Watcher;
use crate::cluster_view::view::Directory;
use crate::read::execution::Reads;

pub(super) struct Hub {
    shared: Arc<Shared>,
    _subscription: LogSubscription,
    /// Ends the tasks.
    _stop: DropGuard,
}

impl Hub {
    pub(super) fn start(state: &Arc<ShardState>, directory: Arc<Directory>, reads: Reads) -> Self {
        let shared = Arc::new(Shared::new(Table::new(Position::ZERO, 0)));
        let subscription = {
            // No batch is heard of before this says where the first one follows.
            let mut table = shared.table.lock();
            let hearing = Arc::clone(&shared);
            let subscription = state.subscribe(move |change| hearing.hear(change));
            *table = Table::new(subscription.begins_behind(), state.time_ms());
            if let Some(known) = directory.shard(state.shard()) {
                table.follow(EpochHistory::new(known.bases));
            }
            subscription
        };
        let stop = CancellationToken::new();
        let spawn = |task: BoxFuture<'static, ()>| {
            drop(tokio::spawn(stop.clone().run_until_cancelled_owned(task)));
        };
        spawn(Arc::clone(&shared).tell_all().boxed());
        spawn(Arc::clone(&shared).read_all(Arc::clone(state), reads).boxed());
        spawn(Arc::clone(&shared).follow_history(state.shard(), directory).boxed());
        Self { shared, _subscription: subscription, _stop: stop.drop_guard() }
    }

    /// Waits until every batch up to this one was heard of. Where the last one stands.
    pub(super) async fn hears_of(&self, sequence: u64) -> Position {
        loop {
            let position = self.shared.table.lock().position();
            if position.sequence >= sequence {
                return position;
            }
            tokio::time::sleep(HEARD_SOON).await;
        }
    }

    pub(super) fn watch(&self, database: DatabaseId, keys: &[Bytes], shown: &[Shown]) -> Watcher {
        let signal = Arc::new(Signal::raised());
        let (id, keys) = self.shared.table.lock().watch(database, keys, &signal);
        Watcher::new(Arc::clone(&self.shared), id, signal, keys, shown.into())
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.shared.table.lock().is_empty()
    }
}
