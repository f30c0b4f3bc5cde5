//! How much of each log is kept for change feeds that come back.

use std::collections::BTreeMap;

use meridian_shipping::CommitHistory;
use meridian_storage::{StoredBatch, or_fatal};
use meridian_types::{Epoch, ShardId};
use parking_lot::Mutex;

use crate::replication::progress::Followers;
use crate::shard::local::LocalShard;

/// Of a log that is read to know its size.
const READ_BYTES: usize = 1 << 20;
/// Where a log may be cut that was there before this process.
const SAMPLES: usize = 1024;

/// The log that is kept is counted in bytes also where it was written before this process began:
/// each log is read once for that, and once more in each epoch.
pub(crate) struct ChangeRetention {
    max_bytes: u64,
    /// Since when an epoch began here: of what came before, others keep no count.
    found: Mutex<BTreeMap<ShardId, (Epoch, CommitHistory)>>,
}

impl ChangeRetention {
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, found: Mutex::default() }
    }

    /// The sequence behind which the log is kept.
    pub(crate) async fn needs_log_after(&self, shard: &LocalShard, followers: &Followers) -> u64 {
        if self.max_bytes == 0 {
            return u64::MAX;
        }
        let (id, epoch) = (shard.state().shard(), shard.epoch());
        let is_known = self.found.lock().get(&id).is_some_and(|(of, _)| *of == epoch);
        if !is_known {
            let found = found(shard).await;
            self.found.lock().insert(id, (epoch, found));
        }
        let found = self.found.lock();
        let Some((_, found)) = found.get(&id) else { return 0 };
        let since = followers.bytes_behind(found.committed());
        match self.max_bytes.checked_sub(since) {
            Some(left) => found.floor(left).unwrap_or(0),
            None => followers.kept_within(self.max_bytes),
        }
    }
}

/// The batches of the log as it is now.
async fn found(shard: &LocalShard) -> CommitHistory {
    let purged = or_fatal(shard.purged());
    let mut found = CommitHistory::starting_at(purged, 0, SAMPLES);
    loop {
        let (log, behind) = (shard.clone(), found.committed());
        let read =
            tokio::task::spawn_blocking(move || or_fatal(log.batches_after(behind, READ_BYTES)));
        let batches = read.await.ok().flatten().unwrap_or_default();
        if batches.is_empty() {
            return found;
        }
        for StoredBatch { sequence, bytes } in &batches {
            found.record(*sequence, bytes.len() as u64, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use meridian_config::DEV_DEFAULT_DATABASE;
    use meridian_storage::{Engine, MemoryEngine};
    use meridian_types::{Mutation, MutationKind, Value, ValueEncoding};

    use super::*;
    use crate::testing::OnlyVoter;

    const MAX_BYTES: u64 = 100_000;
    const VALUE_BYTES: usize = 1000;

    async fn write(only: &OnlyVoter, batches: usize) {
        for _ in 0..batches {
            let data = "x".repeat(VALUE_BYTES).into();
            let kind = MutationKind::Set(Value { encoding: ValueEncoding::Bytes, data });
            let set = Mutation { key: "key".into(), kind, expire_at_ms: 0 };
            only.write(DEV_DEFAULT_DATABASE, vec![set]).await;
        }
    }

    /// The bytes of the log behind a sequence.
    fn bytes_behind(only: &OnlyVoter, sequence: u64) -> u64 {
        let batches = only.local().batches_after(sequence, 1 << 30).unwrap().unwrap();
        batches.iter().map(|batch| batch.bytes.len() as u64).sum()
    }

    #[tokio::test]
    async fn log_is_kept_within_its_bytes_also_where_it_was_written_before_a_restart() {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let only = OnlyVoter::lead(&engine).await;
        let mut total = 0;
        // Each time, all that is known of the log from before is what is on the disk.
        for writes in [30, 30, 20, 70, 20] {
            let followers = Followers::watch(&only.voter.state);
            let retention = ChangeRetention::new(MAX_BYTES);
            retention.needs_log_after(&only.local(), &followers).await;
            write(&only, writes).await;
            total += writes;
            let after = retention.needs_log_after(&only.local(), &followers).await;
            let kept = bytes_behind(&only, after);
            assert!(kept <= MAX_BYTES, "{kept} of {total}");
            assert!(after == 0 || kept > MAX_BYTES * 3 / 4, "{kept} of {total}");
            assert_eq!(after == 0, total < 90, "{after} of {total}");
        }
        // Of an epoch before: what came between then and now, no count is kept.
        let followers = Followers::watch(&only.voter.state);
        let retention = ChangeRetention::new(MAX_BYTES);
        let earlier = CommitHistory::starting_at(0, 0, SAMPLES);
        retention.found.lock().insert(ShardId(1), (Epoch(0), earlier));
        let after = retention.needs_log_after(&only.local(), &followers).await;
        assert!(bytes_behind(&only, after) <= MAX_BYTES);
        let none = ChangeRetention::new(0);
        let followers = Followers::watch(&only.voter.state);
        assert_eq!(none.needs_log_after(&only.local(), &followers).await, u64::MAX);
    }
}
