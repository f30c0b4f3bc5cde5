//! The lease on epochs, as a node holds it: it may serve strong operations while the lease lasts.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_types::{Epoch, ShardId};

/// The leases that a directory leader grants to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Counted by the holder from when it asked.
    pub ttl: Duration,
    /// The epochs that the node may serve.
    pub shards: Vec<(ShardId, Epoch)>,
}

/// A node's leases: whether it may serve strong operations of a shard right now.
///
/// It lives in memory only. A node that restarts holds nothing until it is granted something anew,
/// and an answer to what it asked before does not reach it.
#[derive(Debug, Default)]
pub struct LeaseHolder {
    until: BTreeMap<ShardId, (Epoch, Duration)>,
    /// The newest epoch of each shard that this node has promised not to serve any more.
    sealed: BTreeMap<ShardId, Epoch>,
}

impl LeaseHolder {
    /// The directory answered what was asked at `sent_at`, on this node's clock. Answers may come
    /// late and in any order. A shard that is not mentioned keeps what it has until that runs out:
    /// the grantor waits.
    pub fn renewed(&mut self, sent_at: Duration, lease: &Lease) {
        let until = sent_at.saturating_add(lease.ttl);
        for &(shard, epoch) in &lease.shards {
            if self.is_sealed(shard, epoch) {
                continue;
            }
            let held = self.until.entry(shard).or_insert((epoch, until));
            if held.0 < epoch {
                *held = (epoch, until);
            } else if held.0 == epoch {
                held.1 = held.1.max(until);
            }
        }
    }

    /// This node serves `shard` no more in any epoch up to `epoch`, whatever is granted later: to
    /// be called before a `Seal` is answered.
    pub fn seal(&mut self, shard: ShardId, epoch: Epoch) {
        let sealed = self.sealed.entry(shard).or_insert(epoch);
        *sealed = epoch.max(*sealed);
        if self.until.get(&shard).is_some_and(|&(held, _)| self.is_sealed(shard, held)) {
            self.until.remove(&shard);
        }
    }

    /// Asked right before each answer to a strong operation.
    pub fn holds(&self, now: Duration, shard: ShardId, epoch: Epoch) -> bool {
        self.until.get(&shard).is_some_and(|&(held, until)| held == epoch && now < until)
    }

    /// The epoch that may be served, and for how long still.
    pub fn remaining(&self, now: Duration, shard: ShardId) -> Option<(Epoch, Duration)> {
        let &(epoch, until) = self.until.get(&shard)?;
        until.checked_sub(now).filter(|left| !left.is_zero()).map(|left| (epoch, left))
    }

    fn is_sealed(&self, shard: ShardId, epoch: Epoch) -> bool {
        self.sealed.get(&shard).is_some_and(|&sealed| epoch <= sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(1);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn lease(epoch: u16) -> Lease {
        Lease { ttl: secs(3), shards: vec![(SHARD, Epoch(epoch))] }
    }

    #[test]
    fn a_lease_is_counted_from_when_it_was_asked_for() {
        let mut holder = LeaseHolder::default();
        assert!(!holder.holds(secs(1), SHARD, Epoch(1)));
        holder.renewed(secs(10), &lease(1));
        assert!(holder.holds(Duration::from_millis(12_999), SHARD, Epoch(1)));
        assert!(!holder.holds(secs(13), SHARD, Epoch(1)));
        assert!(!holder.holds(secs(11), SHARD, Epoch(2)));
        assert!(!holder.holds(secs(11), ShardId(2), Epoch(1)));
        assert_eq!(holder.remaining(secs(12), SHARD), Some((Epoch(1), secs(1))));
        assert_eq!(holder.remaining(secs(13), SHARD), None);
    }

    #[test]
    fn an_answer_that_comes_late_shortens_nothing_and_one_without_the_shard_takes_nothing() {
        let mut holder = LeaseHolder::default();
        holder.renewed(secs(10), &lease(1));
        holder.renewed(secs(9), &lease(1));
        holder.renewed(secs(11), &Lease { ttl: secs(3), shards: vec![] });
        assert_eq!(holder.remaining(secs(10), SHARD), Some((Epoch(1), secs(3))));
    }

    #[test]
    fn a_higher_epoch_replaces_a_lower_one_for_good() {
        let mut holder = LeaseHolder::default();
        holder.renewed(secs(10), &lease(1));
        holder.renewed(secs(9), &lease(2));
        assert_eq!(holder.remaining(secs(10), SHARD), Some((Epoch(2), secs(2))));
        holder.renewed(secs(10), &lease(1));
        assert!(!holder.holds(secs(10), SHARD, Epoch(1)));
        assert!(holder.holds(secs(10), SHARD, Epoch(2)));
    }

    #[test]
    fn what_is_sealed_is_not_held_whatever_is_granted_later() {
        let mut holder = LeaseHolder::default();
        holder.renewed(secs(10), &lease(2));
        holder.seal(SHARD, Epoch(2));
        assert!(!holder.holds(secs(10), SHARD, Epoch(2)));
        holder.renewed(secs(11), &lease(2));
        holder.renewed(secs(11), &lease(1));
        assert_eq!(holder.remaining(secs(11), SHARD), None);
        holder.renewed(secs(11), &lease(3));
        assert!(holder.holds(secs(12), SHARD, Epoch(3)));
        // A seal of an epoch that has passed takes nothing from the next one, and frees nothing.
        holder.seal(SHARD, Epoch(1));
        assert!(holder.holds(secs(12), SHARD, Epoch(3)));
        holder.renewed(secs(12), &lease(2));
        assert!(!holder.holds(secs(12), SHARD, Epoch(2)));
    }
}
