//! How far shards are known to have come, relayed through the nodes from one directory leader to
//! the next.

use std::collections::BTreeMap;

use meridian_types::{CommitProgress, Epoch, ShardId};

/// The most that is known to have been committed in an epoch of a shard, at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgressHint {
    pub shard: ShardId,
    pub epoch: Epoch,
    pub progress: CommitProgress,
}

/// A node's newest hint for each shard, of the shard's newest epoch, received with its leases.
///
/// Only the directory's leader receives reports of all nodes. When that leader is lost together
/// with the shard's primary region, the remaining nodes report the hints to its successor, which
/// could not tell otherwise how much a failover has lost at least.
#[derive(Debug, Default)]
pub struct ProgressHints {
    newest: BTreeMap<ShardId, ProgressHint>,
}

impl ProgressHints {
    /// Hints may come late and in any order.
    pub fn observe(&mut self, hint: ProgressHint) {
        let known = self.newest.entry(hint.shard).or_insert(hint);
        if known.epoch < hint.epoch {
            *known = hint;
        } else if known.epoch == hint.epoch {
            known.progress = known.progress.max(hint.progress);
        }
    }

    /// [`CommitProgress::NONE`] where there is no hint for this very epoch.
    pub fn get(&self, shard: ShardId, epoch: Epoch) -> CommitProgress {
        let known = self.newest.get(&shard).filter(|known| known.epoch == epoch);
        known.map_or(CommitProgress::NONE, |known| known.progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_hint_of_the_newest_epoch_is_kept() {
        let shard = ShardId(1);
        let mut hints = ProgressHints::default();
        let mut observe = |epoch, transactions, time_ms| {
            let progress = CommitProgress::new(transactions, time_ms);
            hints.observe(ProgressHint { shard, epoch: Epoch(epoch), progress });
            [1, 2].map(|epoch| hints.get(shard, Epoch(epoch)))
        };
        let known = CommitProgress::new;
        assert_eq!(observe(1, 100, 7), [known(100, 7), CommitProgress::NONE]);
        assert_eq!(observe(1, 90, 8), [known(100, 8), CommitProgress::NONE]);
        // A failover may have gone back behind it.
        assert_eq!(observe(2, 60, 5), [CommitProgress::NONE, known(60, 5)]);
        assert_eq!(observe(1, 110, 9), [CommitProgress::NONE, known(60, 5)]);
    }
}
