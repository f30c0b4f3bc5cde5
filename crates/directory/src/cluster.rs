//! The cluster as the directory group replicates it, and questions to it.

use std::collections::{BTreeMap, BTreeSet};

use meridian_types::{DatabaseId, NodeId, ShardId};
use serde::{Deserialize, Serialize};

use crate::database::{Database, Deletion, FailoverMode};
use crate::shard::Shard;
use crate::token::Token;
use crate::trust::Trust;
use crate::webhook::Webhook;

/// The state of the directory. Stored and sent as JSON: it is small, changes seldom, and people
/// read it. Fields are only ever added, with a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Grows by one with every change.
    pub version: u64,
    /// Tells this cluster from any other: random, chosen by the directory's first leader and never
    /// changed. `None` until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// In the order in which they were named. The first is where shards go that name none.
    pub regions: Vec<String>,
    pub nodes: BTreeMap<NodeId, Node>,
    /// Ids up to here were given out. None is used twice.
    pub last_node_id: NodeId,
    /// The voters of the directory group itself.
    pub directory_voters: BTreeSet<NodeId>,
    /// Nodes that voted in it before: one of them may lead it until a change of voters has ended.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub former_directory_voters: BTreeSet<NodeId>,
    pub shards: BTreeMap<ShardId, Shard>,
    pub last_shard_id: u32,
    pub databases: BTreeMap<DatabaseId, Database>,
    /// Databases that are gone for all clients, until their data is gone from every node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub deleting: BTreeMap<DatabaseId, Deletion>,
    /// The database that clients open at `/`.
    pub default_database: Option<DatabaseId>,
    pub tokens: BTreeMap<u64, Token>,
    pub last_token_id: u64,
    #[serde(default, skip_serializing_if = "Trust::is_new")]
    pub trust: Trust,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    pub region: String,
    pub data_center: String,
    /// `host:port` that other nodes dial.
    pub rpc_address: String,
    pub kv_address: Option<String>,
    /// Of the data folder that first spoke for this id, in hex. Another folder is refused.
    #[serde(default)]
    pub incarnation: Option<String>,
    /// It is gone for good: nothing is served by it or sent to it any more.
    #[serde(default)]
    pub removed: bool,
}

impl Cluster {
    /// The nodes that were not removed.
    pub fn present_nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().filter(|(_, node)| !node.removed).map(|(id, node)| (*id, node))
    }

    /// `None`: there is no such node, or it was removed.
    pub fn present_node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id).filter(|node| !node.removed)
    }

    /// Whether it votes in the directory, or may still.
    pub fn may_vote_in_directory(&self, node: NodeId) -> bool {
        self.directory_voters.contains(&node) || self.former_directory_voters.contains(&node)
    }

    /// The voters of the directory, those of `region` first.
    pub fn directory_voters_near(&self, region: &str) -> Vec<NodeId> {
        let mut voters: Vec<_> = self.directory_voters.iter().copied().collect();
        let is_far =
            |voter: &NodeId| self.nodes.get(voter).is_none_or(|node| node.region != region);
        voters.sort_by_key(|voter| (is_far(voter), *voter));
        voters
    }

    /// The shard that the database lives in. `None`: there is no such database.
    pub fn shard_of(&self, database: DatabaseId) -> Option<(ShardId, &Shard)> {
        let id = self.databases.get(&database)?.shard;
        Some((id, self.shards.get(&id)?))
    }

    /// Whether the node votes in the present epoch of the shard.
    pub fn is_voter(&self, shard: ShardId, node: NodeId) -> bool {
        self.shards.get(&shard).is_some_and(|shard| shard.voters.contains(&node))
    }

    /// For nodes: whether a node has spoken, and not by what the directory knows it. The keys of
    /// authorities go, which the directory's voters alone need. The hashes of tokens stay, since
    /// every gateway checks tokens.
    #[must_use]
    pub fn for_nodes(&self) -> Self {
        let mut cluster = self.clone();
        cluster
            .nodes
            .values_mut()
            .filter_map(|node| node.incarnation.as_mut())
            .for_each(String::clear);
        cluster.trust.hide_keys();
        cluster
    }

    /// For gateways: also without the keys of webhooks.
    #[must_use]
    pub fn for_gateways(&self) -> Self {
        let mut cluster = self.for_nodes();
        let webhooks = cluster.databases.values_mut().flat_map(|database| &mut database.webhooks);
        webhooks.for_each(Webhook::hide_keys);
        cluster
    }

    /// For people: as for gateways, and without the hashes of tokens, of which a
    /// short secret could be guessed. That of `known`, which the caller has sent itself, stays.
    #[must_use]
    pub fn without_secrets(&self, known: Option<&str>) -> Self {
        let mut cluster = self.for_gateways();
        cluster.tokens.values_mut().for_each(|token| token.hide_hashes(known));
        cluster.trust.hide_hashes();
        cluster
    }

    /// Whether the shard may fail over without an operator's word.
    pub fn fails_over_by_itself(&self, shard: ShardId) -> bool {
        let mut databases = self.databases.values().filter(|database| database.shard == shard);
        databases.all(|database| database.failover == FailoverMode::Auto)
    }

    /// The present nodes that are not known to have dropped a database. A node that is away
    /// counts: while it lacks the drop, a failover to what it has would take the drop
    /// back.
    pub fn lacking_drop(&self, has_dropped: impl Fn(NodeId) -> bool) -> BTreeSet<NodeId> {
        let present = self.nodes.iter().filter(|(_, node)| !node.removed);
        present.map(|(id, _)| *id).filter(|id| !has_dropped(*id)).collect()
    }

    /// The voters that the directory is to get, once all of them have joined.
    #[must_use]
    pub fn founders_that_joined(&self) -> Option<BTreeSet<NodeId>> {
        let founders = &self.trust.founders;
        let has_joined =
            |id: &NodeId| self.present_node(*id).is_some_and(|node| node.incarnation.is_some());
        let are_all = !founders.is_empty() && founders.iter().all(has_joined);
        are_all.then(|| founders.clone())
    }

    /// The name of a node, for people.
    pub fn name_of(&self, node: NodeId) -> String {
        self.nodes.get(&node).map_or_else(|| format!("node {node}"), |known| known.name.clone())
    }
}
