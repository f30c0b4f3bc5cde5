//! Watched keys: what this node tells of them, as it applies what changes them.
//!
//! | module | what it holds |
//! |---|---|
//! | `table` | what is known of the watched keys of one shard, and the watches that wait for them |
//! | `recent` | the values that were told of lately, within a bound |
//! | `hub` | the watches of one shard here: fed by what is applied, and by reads |
//! | `shared` | what the watches, the tasks and the thread that applies share |
//! | `watcher` | one watch |
//! | `signal` | how a watch hears that there may be news |
//!
//! A key's news come from the effects that are applied, so that they are those of the position that
//! the shard has reached here, whatever wrote them: a client, the removal of expired values, or the
//! drop of a database. The state is read where that is not enough: when a watch begins, when a value
//! was forgotten that a slow watch has not taken, and when another state took the place of this one.

mod hub;
mod recent;
mod shared;
mod signal;
mod table;
mod watcher;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use meridian_gateway::WatchNews;
use meridian_memory::{ByteBudget, Exhausted, Held};
use meridian_storage::ShardState;
use meridian_types::{DatabaseId, Epoch, Position, ShardId, Versionstamp};
use parking_lot::Mutex;

use crate::cluster_view::view::Directory;
use crate::read::execution::Reads;
use crate::read::refusal::{NotServed, ReadRefusal};
use crate::shard::local::LocalShard;
use crate::time_budget::READ_INDEX_TIMEOUT;
use crate::watches::hub::Hub;
pub(crate) use crate::watches::watcher::Watcher;

/// The state of a key that a watch has told last: nothing yet, or the versionstamp of its value, if
/// there was one.
pub(crate) type Shown = Option<Option<Versionstamp>>;

/// A key, and the database that it is of.
type WatchedKey = (DatabaseId, Bytes);

/// News of a watch, and the position of the state that they are of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct News {
    pub(crate) position: Position,
    pub(crate) values: WatchNews,
}

impl News {
    /// Takes over from those `before` of each key that these say nothing of.
    pub(crate) fn follow(&mut self, before: Self) {
        for (value, before) in self.values.iter_mut().zip(before.values) {
            if value.is_none() {
                *value = before;
            }
        }
    }
}

/// So much of the bytes of reads, and beside them, is for news on their way to other processes.
const NEWS_PART: usize = 8;
/// So much of them, and beside them, is for the keys that other processes watch.
const KEYS_PART: usize = 16;

/// The watches of this node's shards. A shard that was never watched costs nothing.
pub(crate) struct Watches {
    directory: Arc<Directory>,
    reads: Reads,
    /// For news on their way to other processes.
    elsewhere: ByteBudget,
    /// For the keys that other processes watch. Not of the budget for news: a watch holds its keys
    /// while it waits for room for its news.
    keys_elsewhere: ByteBudget,
    hubs: Mutex<BTreeMap<ShardId, Arc<Hub>>>,
}

impl Watches {
    pub(crate) fn new(directory: Arc<Directory>, reads: Reads) -> Self {
        let elsewhere = ByteBudget::new("watches", reads.total_bytes() / NEWS_PART);
        let keys_elsewhere = ByteBudget::new("watched keys", reads.total_bytes() / KEYS_PART);
        Self { directory, reads, elsewhere, keys_elsewhere, hubs: Mutex::default() }
    }

    /// Room for the keys of a watch of another process, for as long as it is open.
    ///
    /// # Errors
    /// Those watches have as many bytes of keys as they may.
    pub(crate) fn keep_keys(&self, keys: &[Bytes]) -> Result<Held, Exhausted> {
        self.keys_elsewhere.try_take(keys.iter().map(Bytes::len).sum())
    }

    /// The bytes that news for watches of other processes may take here.
    pub(crate) fn elsewhere(&self) -> &ByteBudget {
        &self.elsewhere
    }

    fn hub(&self, state: &Arc<ShardState>) -> Arc<Hub> {
        let mut hubs = self.hubs.lock();
        let hub = hubs.entry(state.shard()).or_insert_with(|| {
            Arc::new(Hub::start(state, Arc::clone(&self.directory), self.reads.clone()))
        });
        Arc::clone(hub)
    }

    /// A watch that was told nothing, of a state of no shard that is here.
    #[cfg(test)]
    pub(crate) fn watch_here(
        &self,
        state: &Arc<ShardState>,
        database: DatabaseId,
        keys: &[Bytes],
    ) -> Watcher {
        self.hub(state).watch(database, keys, &vec![None; keys.len()])
    }

    /// A watch of the state here, which tells of nothing older than `min_sequence` of this `epoch`,
    /// and of no earlier epoch. Its first news tell of every key that is not as it was `shown`.
    pub(crate) async fn begin(
        &self,
        local: &LocalShard,
        (database, keys, shown): (DatabaseId, &[Bytes], &[Shown]),
        (epoch, min_sequence): (Epoch, u64),
    ) -> Result<Watcher, NotServed> {
        // A node that has not heard of the epoch may have what was lost, at the same sequences.
        if local.epoch() < epoch {
            return Err(ReadRefusal::OtherEpoch.into());
        }
        local.reaches(min_sequence).await?;
        let hub = self.hub(local.state());
        // An applied batch is heard of a moment later.
        let heard = tokio::time::timeout(READ_INDEX_TIMEOUT, hub.hears_of(min_sequence)).await;
        let heard = heard.map_err(|_| ReadRefusal::BehindGateway)?;
        if local.history().leaves(heard).is_some() {
            return Err(ReadRefusal::OtherEpoch.into());
        }
        Ok(hub.watch(database, keys, shown))
    }
}

#[cfg(test)]
mod tests;
