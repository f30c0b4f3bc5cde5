//! Which nodes would vote, and which would lead.

use std::collections::{BTreeMap, BTreeSet};

use meridian_types::NodeId;

use crate::cluster::{Cluster, Node};
use crate::quorum::voting;

impl Cluster {
    /// The nodes of a region that were not removed.
    pub fn nodes_of<'a>(&'a self, region: &'a str) -> impl Iterator<Item = (NodeId, &'a Node)> {
        let here =
            self.nodes.iter().filter(move |(_, node)| !node.removed && node.region == region);
        here.map(|(id, node)| (*id, node))
    }

    /// The voters that a shard would have if its primary were in `region`: one node in each data center, at most
    /// five, and those that vote least.
    pub fn would_be_voters(&self, region: &str) -> BTreeSet<NodeId> {
        self.best_voters(region, |_| ())
    }

    /// [`would_be_voters`](Self::would_be_voters), by a preference of the caller's: the least rank
    /// goes first.
    pub fn best_voters<R: Ord>(
        &self,
        region: &str,
        rank: impl Fn(NodeId) -> R,
    ) -> BTreeSet<NodeId> {
        let votes = self.votes();
        let mut nodes: Vec<_> = self
            .nodes_of(region)
            .map(|(id, node)| {
                (rank(id), votes.get(&id).copied().unwrap_or(0), id, node.data_center.as_str())
            })
            .collect();
        nodes.sort();
        let mut taken = BTreeSet::new();
        nodes.retain(|(.., data_center)| taken.insert(*data_center));
        nodes.iter().take(voting(nodes.len())).map(|(_, _, id, _)| *id).collect()
    }

    /// How many voters a shard would have in `region`.
    pub fn voters_in(&self, region: &str) -> usize {
        let data_centers: BTreeSet<_> =
            self.nodes_of(region).map(|(_, node)| &node.data_center).collect();
        voting(data_centers.len())
    }

    /// Of `voters`, the node that is to lead the fewest shards so far.
    pub fn spread_leader<'a>(
        &self,
        voters: impl IntoIterator<Item = &'a NodeId>,
    ) -> Option<NodeId> {
        let leads = |id: NodeId| {
            self.shards.values().filter(|shard| shard.preferred_leader == Some(id)).count()
        };
        voters.into_iter().copied().min_by_key(|id| (leads(*id), *id))
    }

    /// In how many shards each node votes.
    fn votes(&self) -> BTreeMap<NodeId, usize> {
        let mut votes = BTreeMap::new();
        for voter in self.shards.values().flat_map(|shard| &shard.voters) {
            *votes.entry(*voter).or_default() += 1;
        }
        votes
    }
}
