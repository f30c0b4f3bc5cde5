use std::collections::BTreeMap;

use meridian_types::{Epoch, ShardId};

/// The most that is known to have been committed in an epoch of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Furthest {
    pub shard: ShardId,
    pub epoch: Epoch,
    /// Transactions since the shard was made, and the latest time of a batch by its leader's clock.
    pub transactions: u64,
    pub time_ms: u64,
}

/// What directory leaders have told a node of how far each shard came, in its newest epoch.
///
/// Only the directory's leader hears it from all. When it is lost with the shard's primary region,
/// the nodes that are left bring it to the next one, which could not say else how much a failover
/// has lost at least.
#[derive(Debug, Default)]
pub struct Hearsay {
    of: BTreeMap<ShardId, Furthest>,
}

impl Hearsay {
    pub fn heard(&mut self, furthest: Furthest) {
        let known = self.of.entry(furthest.shard).or_insert(furthest);
        if known.epoch < furthest.epoch {
            *known = furthest;
        } else if known.epoch == furthest.epoch {
            known.transactions = known.transactions.max(furthest.transactions);
            known.time_ms = known.time_ms.max(furthest.time_ms);
        }
    }

    /// Transactions and time; zeros where nothing was heard of this very epoch.
    pub fn of(&self, shard: ShardId, epoch: Epoch) -> (u64, u64) {
        let known = self.of.get(&shard).filter(|known| known.epoch == epoch);
        known.map_or((0, 0), |known| (known.transactions, known.time_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_of_the_newest_epoch_is_kept() {
        let shard = ShardId(1);
        let mut hearsay = Hearsay::default();
        let mut hear = |epoch, transactions, time_ms| {
            hearsay.heard(Furthest { shard, epoch: Epoch(epoch), transactions, time_ms });
            (hearsay.of(shard, Epoch(1)), hearsay.of(shard, Epoch(2)))
        };
        assert_eq!(hear(1, 100, 7), ((100, 7), (0, 0)));
        assert_eq!(hear(1, 90, 8), ((100, 8), (0, 0)));
        // A failover may have gone back behind it.
        assert_eq!(hear(2, 60, 5), ((0, 0), (60, 5)));
        assert_eq!(hear(1, 110, 9), ((0, 0), (60, 5)));
    }
}
