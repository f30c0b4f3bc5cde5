//! In which order nodes are asked.

use std::collections::BTreeSet;

use meridian_types::{Consistency, NodeId, ShardId};

use super::Router;
use super::refusals::Refusals;
use crate::host::clock::Clock;
use crate::routing::nodes::Nodes;

impl<N: Nodes, C: Clock> Router<N, C> {
    /// The voters to try, the supposed leader first, then those nearest; those last that do not
    /// answer.
    pub(super) fn voters(&self, shard: ShardId) -> Vec<NodeId> {
        let known = self.directory.known();
        let Some(info) = known.cluster.shards.get(&shard) else { return Vec::new() };
        let now = self.clock.now();
        let local_knows = self.nodes.local_voter(shard).and_then(|local| local.leader);
        let hint = local_knows.or_else(|| self.leaders.hint(shard)).or(info.preferred_leader);
        let mut voters: Vec<NodeId> = info.voters.iter().copied().collect();
        let avoided: BTreeSet<NodeId> =
            voters.iter().copied().filter(|voter| self.health.avoid(now, *voter)).collect();
        voters.sort_by_key(|voter| {
            (avoided.contains(voter), Some(*voter) != hint, Some(*voter) != self.local_node, *voter)
        });
        voters
    }

    /// Nodes to read from, in order. Strong: a voter here answers by itself; else the leader.
    /// Eventual: this node, then those of this region, then any. Those last that do not answer, or
    /// have refused lately.
    pub(super) fn readers(&self, shard: ShardId, consistency: Consistency) -> Vec<NodeId> {
        let now = self.clock.now();
        if consistency == Consistency::Strong {
            let mut voters = self.voters(shard);
            let votes = self.nodes.local_voter(shard).is_some();
            voters.sort_by_cached_key(|voter| {
                let refuses = self.refusals.avoid(now, *voter, shard, consistency);
                let here =
                    votes && Some(*voter) == self.local_node && !self.health.is_silent(now, *voter);
                (refuses, !here)
            });
            return voters;
        }
        self.nearest(shard, &self.refusals)
    }

    /// All nodes for what each can answer: this node, then those of this region, then any. Those
    /// last that do not answer, or have refused it lately.
    pub(super) fn nearest(&self, shard: ShardId, refusals: &Refusals) -> Vec<NodeId> {
        let (now, consistency) = (self.clock.now(), Consistency::Eventual);
        let known = self.directory.known();
        let mut nodes: Vec<_> = known.cluster.present_nodes().collect();
        nodes.sort_by_cached_key(|(id, node)| {
            let far = self.health.measured(*id).unwrap_or_default();
            let elsewhere = node.region != self.region;
            let avoided =
                refusals.avoid(now, *id, shard, consistency) || self.health.avoid(now, *id);
            (avoided, Some(*id) != self.local_node, elsewhere, far, *id)
        });
        nodes.into_iter().map(|(id, _)| id).collect()
    }
}
