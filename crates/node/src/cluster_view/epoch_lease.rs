//! The right to answer for a shard in one epoch, and the answers that were given under it.
//!
//! The outcome of a write and the view of a strong read are [`Fenced`]. [`EpochLease::release`] is
//! the only function that makes one, since the field is private to this module: code that forgets
//! to look at the lease has nothing to send. The look comes last, behind everything that the answer
//! was made from, so that whatever took long before it (a disk, a quorum, a suspended machine)
//! cannot carry an answer past the end of the lease.

use std::ops::Deref;
use std::sync::Arc;

use meridian_storage::GroupId;

use crate::cluster_view::view::Directory;

/// This node's lease on a group's epoch, whether it is held at present or not.
#[derive(Clone)]
pub(crate) struct EpochLease {
    directory: Arc<Directory>,
    group: GroupId,
}

impl EpochLease {
    pub(crate) fn new(directory: Arc<Directory>, group: GroupId) -> Self {
        Self { directory, group }
    }

    /// Whether this node may serve strong operations of the shard in this epoch right now.
    pub(crate) fn is_held(&self) -> bool {
        self.directory.holds_lease(self.group.shard, self.group.epoch)
    }

    /// Lets an answer out; `None` where the lease is not held any more.
    pub(crate) fn release<T>(&self, answer: T) -> Option<Fenced<T>> {
        self.is_held().then_some(Fenced(answer))
    }
}

/// An answer that was released under the lease of its epoch.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fenced<T>(T);

impl<T> Fenced<T> {
    pub(crate) fn into_inner(self) -> T {
        self.0
    }

    /// An answer for tests, where no lease is part of the scenario.
    #[cfg(test)]
    pub(crate) fn for_test(answer: T) -> Self {
        Self(answer)
    }
}

impl<T> Deref for Fenced<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use meridian_config::DevLayout;
    use meridian_failover::Lease;
    use meridian_gateway::Access;
    use meridian_types::{Epoch, ShardId};

    use super::*;

    #[test]
    fn answer_is_released_under_the_lease_of_its_own_epoch_only() {
        let cluster =
            DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let directory = Arc::new(Directory::new(cluster.clone(), Access::default(), None));
        let lease = |epoch| {
            let group = GroupId { shard: ShardId(1), epoch: Epoch(epoch) };
            EpochLease::new(Arc::clone(&directory), group)
        };
        let released = |epoch| lease(epoch).release("answer").map(Fenced::into_inner);
        assert_eq!(released(1), None, "no lease was granted yet");
        let shards = vec![(ShardId(1), Epoch(1))];
        directory.renewed(directory.now(), &Lease { ttl: Duration::from_secs(3600), shards });
        assert_eq!((released(1), released(2)), (Some("answer"), None));
        directory.seal(ShardId(1), Epoch(1));
        assert_eq!(released(1), None, "the epoch is sealed");
    }
}
