//! Purges logs of what no follower, no copy of a state and no restart needs any more.

use std::path::PathBuf;
use std::sync::Arc;

use meridian_storage::{StorageError, fatal, or_fatal};
use meridian_types::ShardId;

use crate::background::change_retention::ChangeRetention;
use crate::background::parts::{DutyParts, GrowingLogs};
use crate::cluster_view::directory_shard::DIRECTORY_GROUP;
use crate::host::disk::{COPY_FREE_BYTES, free_bytes};
use crate::replication::progress::{Followers, KEEP_BATCHES};
use crate::replication::snapshot_transfer::StateExchange;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;

/// Batches that are not worth a purge.
pub(crate) const PURGE_AT_LEAST: u64 = 1000;
/// As [`KEEP_BATCHES`], for the directory's own group, each of whose batches holds the whole cluster.
pub(crate) const DIRECTORY_KEEP_BATCHES: u64 = 100;

/// The logs of this node, and what they are kept for.
pub(crate) struct Purge {
    logs: GrowingLogs,
    shards: Arc<ShardTable>,
    exchange: Arc<StateExchange>,
    data_dir: PathBuf,
    retention_bytes: u64,
    changes: ChangeRetention,
}

impl Purge {
    pub(crate) fn new(parts: &DutyParts) -> Self {
        Self {
            logs: GrowingLogs::new(parts),
            shards: Arc::clone(&parts.shards),
            exchange: Arc::clone(&parts.exchange),
            data_dir: parts.data_dir.to_path_buf(),
            retention_bytes: parts.log_retention_bytes,
            changes: ChangeRetention::new(
                parts.change_retention_bytes.min(parts.log_retention_bytes),
            ),
        }
    }

    pub(crate) async fn purge(&self) {
        for (id, shard) in &self.logs.all() {
            let Some(followers) = self.shards.followers(id) else { continue };
            let applied = shard.state().position().sequence;
            let (keep, at_least) = match *id == DIRECTORY_GROUP.shard {
                true => (DIRECTORY_KEEP_BATCHES, DIRECTORY_KEEP_BATCHES),
                false => (KEEP_BATCHES, PURGE_AT_LEAST),
            };
            let retention = followers.retention(applied.saturating_sub(keep), self.retention_bytes);
            let through = retention.purge_through.min(self.needed_by_copies(*id, &followers));
            let through = through.min(self.needed_by_changes(shard, &followers).await);
            let first = or_fatal(shard.purged()) + 1;
            if through < first + at_least {
                continue;
            }
            if !retention.dropped.is_empty() {
                tracing::warn!(shard = %id, nodes = ?retention.dropped, "too far behind for the log: they need a snapshot");
            }
            let purged = match shard {
                LocalShard::Voter(voter) => match voter.purge_shipped_through(through) {
                    Ok(()) => voter.group.purge_through(through).await,
                    Err(error) => Err(error),
                },
                LocalShard::Replica(replica) => {
                    let replica = Arc::clone(replica);
                    let purge = tokio::task::spawn_blocking(move || replica.purge_through(through));
                    purge.await.unwrap_or(Ok(()))
                }
            };
            match purged {
                Ok(()) => {
                    followers.forget_through(through);
                    tracing::debug!(shard = %id, through, "purged the log");
                }
                Err(error @ (StorageError::RaftStopped { .. } | StorageError::Cancelled(_))) => {
                    tracing::warn!(shard = %id, %error, "the log was not purged")
                }
                // A flush that failed is never tried again.
                Err(error) => fatal(&error),
            }
        }
    }

    /// The sequence behind which the log is kept for change feeds that come back, while the disk has
    /// room.
    async fn needed_by_changes(&self, shard: &LocalShard, followers: &Followers) -> u64 {
        if shard.state().shard() == DIRECTORY_GROUP.shard {
            return u64::MAX;
        }
        let after = self.changes.needs_log_after(shard, followers).await;
        let has_room = free_bytes(&self.data_dir).is_some_and(|free| free >= COPY_FREE_BYTES);
        if has_room { after } else { u64::MAX }
    }

    /// The sequence up to which no copy of this shard's state, from here or elsewhere, needs the log.
    fn needed_by_copies(&self, shard: ShardId, followers: &Followers) -> u64 {
        let needed = [self.exchange.needs_log_after(shard), followers.needs_log_after()];
        let Some(after) = needed.into_iter().flatten().min() else { return u64::MAX };
        let has_room = free_bytes(&self.data_dir).is_some_and(|free| free >= COPY_FREE_BYTES);
        if !has_room {
            tracing::warn!(%shard, "too little disk is free to keep the log for a copy: it may have to begin anew");
        }
        if has_room { after } else { u64::MAX }
    }
}
