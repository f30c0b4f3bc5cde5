//! The voters of the groups that this node leads: brings each group to the voters that the directory
//! wants.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use meridian_types::{Epoch, NodeId, ShardId};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::cluster_view::view::Directory;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;
use crate::shard::voter::Voter;

/// The voters that a group is being brought to, and the task that does it.
type VoterChange = (BTreeSet<NodeId>, JoinHandle<()>);

/// The voters of the groups that this node leads.
pub(crate) struct GroupVoters {
    shards: Arc<ShardTable>,
    directory: Arc<Directory>,
    changing: Mutex<HashMap<ShardId, VoterChange>>,
    /// The epoch and term in which this node was last seen to lead, and since when, on the
    /// directory's clock.
    leading: Mutex<HashMap<ShardId, (Epoch, u64, Duration)>>,
}

impl GroupVoters {
    pub(crate) fn new(shards: Arc<ShardTable>, directory: Arc<Directory>) -> Self {
        Self { shards, directory, changing: Mutex::default(), leading: Mutex::default() }
    }

    /// Where this node leads: brings the group's members to what the directory says.
    pub(crate) fn reconcile(&self) {
        for (id, shard) in self.shards.all() {
            let LocalShard::Voter(voter) = shard else { continue };
            // Asked before the directory's word is looked at, which is at least as new then.
            let is_sure = self
                .leads_since(id, &voter)
                .is_some_and(|since| self.directory.knows_all_until(since));
            let Some(wanted) =
                self.directory.shard(id).filter(|shard| shard.epoch == voter.group.id().epoch)
            else {
                continue;
            };
            let mut changing = self.changing.lock();
            // First of all: a change that goes on would lead the group to where it is no longer to be.
            if let Some((_, change)) = changing.get(&id).filter(|(goal, _)| *goal != wanted.voters)
            {
                change.abort();
                changing.remove(&id);
            }
            let is_under_way = changing.get(&id).is_some_and(|(_, change)| !change.is_finished());
            if !is_sure
                || is_under_way
                || voter.group.stable_voters().as_ref() == Some(&wanted.voters)
            {
                continue;
            }
            if voter.group.voters() != wanted.voters {
                tracing::info!(shard = %id, voters = ?wanted.voters, "changing the group's voters");
            }
            let goal = wanted.voters.clone();
            let change = tokio::spawn(async move {
                if let Err(error) = voter.group.change_voters(&wanted.voters).await {
                    tracing::warn!(shard = %id, %error, "the group's voters are not yet what they are to be");
                }
            });
            changing.insert(id, (goal, change));
        }
    }

    /// Since when, on the directory's clock, this node leads, if it does. Changes of the cluster
    /// that it knew before may have been taken back since, and settled by the leader before it.
    fn leads_since(&self, shard: ShardId, voter: &Voter) -> Option<Duration> {
        let (epoch, term) = (voter.group.id().epoch, voter.group.leadership().ok()?.term);
        let (now, mut leading) = (self.directory.now(), self.leading.lock());
        // The group of each epoch counts its terms anew.
        let known = leading
            .get(&shard)
            .filter(|(in_epoch, in_term, _)| (*in_epoch, *in_term) == (epoch, term));
        let since = known.map_or(now, |(.., since)| *since);
        leading.insert(shard, (epoch, term, since));
        Some(since)
    }
}
