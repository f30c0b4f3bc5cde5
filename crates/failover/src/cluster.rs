use std::collections::{BTreeMap, BTreeSet};

use meridian_types::{DatabaseId, Epoch, NodeId, Position, ShardId};
use serde::{Deserialize, Serialize};

use crate::voters::majority;

/// What the directory holds. Stored and sent as JSON: it is small, changes seldom, and people read
/// it. Fields are only ever added, with a default.
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
    pub shards: BTreeMap<ShardId, Shard>,
    pub last_shard_id: u32,
    pub databases: BTreeMap<DatabaseId, Database>,
    /// Databases that are gone for everybody who asks, until their data is gone from every node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub deleting: BTreeMap<DatabaseId, Deletion>,
    /// What clients open at `/`.
    pub default_database: Option<DatabaseId>,
    pub tokens: BTreeMap<u64, Token>,
    pub last_token_id: u64,
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    pub epoch: Epoch,
    pub phase: Phase,
    pub primary_region: String,
    /// Of the present epoch; all in the primary region, each in a data center of its own.
    pub voters: BTreeSet<NodeId>,
    pub preferred_leader: Option<NodeId>,
    /// The group may still have other voters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changing: Option<VoterChange>,
    /// Where each epoch left the history of the one before, oldest first; the last is the present
    /// one.
    pub bases: Vec<(Epoch, Position)>,
    /// Every failover and switchover, oldest first; the latest 16.
    #[serde(default)]
    pub reports: Vec<FailoverReport>,
}

/// A change of voters that the group is not known to have ended: until then any of these sets may
/// decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterChange {
    /// The voters before, and those on the way to whom they were changed again.
    pub former: Vec<BTreeSet<NodeId>>,
    /// Of the cluster that first named the present voters.
    pub version: u64,
}

impl Shard {
    /// Whether it is a voter, or may still be one.
    pub fn may_vote(&self, node: NodeId) -> bool {
        self.voters.contains(&node)
            || self.former_voters().iter().any(|voters| voters.contains(&node))
    }

    /// Sets of voters, besides the present one, that may still decide.
    pub fn former_voters(&self) -> &[BTreeSet<NodeId>] {
        self.changing.as_ref().map_or(&[], |change| &change.former)
    }

    /// Where the present epoch left the history of the one before.
    pub fn base(&self) -> Position {
        self.bases.last().map_or(Position::ZERO, |(_, base)| *base)
    }

    /// Whether a batch that was committed at `position` is in the history of the present epoch. One
    /// that an earlier failover lost is not, though its epoch may be newer than that of the base.
    pub fn in_history(&self, position: Position) -> bool {
        let Some((_, own_base)) = self.bases.iter().find(|(epoch, _)| *epoch == position.epoch)
        else {
            return false;
        };
        let later = self.bases.iter().filter(|(epoch, _)| *epoch > position.epoch);
        (position == Position::ZERO || position.sequence > own_base.sequence)
            && later.into_iter().all(|(_, base)| position.sequence <= base.sequence)
    }
}

impl Cluster {
    /// For nodes and gateways: whether a node has spoken, and not by what the directory knows it,
    /// which is all that a node has to show. The hashes of tokens stay, since every gateway checks
    /// tokens.
    #[must_use]
    pub fn without_incarnations(&self) -> Self {
        let mut cluster = self.clone();
        cluster
            .nodes
            .values_mut()
            .filter_map(|node| node.incarnation.as_mut())
            .for_each(String::clear);
        cluster
    }

    /// For people: also without the hashes of tokens, of which a short secret could be guessed.
    /// That of `known`, which the caller has sent itself, stays.
    #[must_use]
    pub fn without_secrets(&self, known: Option<&str>) -> Self {
        let mut cluster = self.without_incarnations();
        let hashes = cluster.tokens.values_mut().map(|token| &mut token.sha256);
        hashes.filter(|hash| Some(hash.as_str()) != known).for_each(String::clear);
        cluster
    }

    /// Whether the shard may fail over without an operator's word.
    pub fn fails_over_by_itself(&self, shard: ShardId) -> bool {
        let mut databases = self.databases.values().filter(|database| database.shard == shard);
        databases.all(|database| database.failover == FailoverMode::Auto)
    }

    /// The nodes that are not known to have dropped a database, of those that were not removed. One
    /// that is away counts: while it lacks the drop, a failover to what it has would take the drop
    /// back.
    pub fn lacking_drop(&self, has_dropped: impl Fn(NodeId) -> bool) -> BTreeSet<NodeId> {
        let present = self.nodes.iter().filter(|(_, node)| !node.removed);
        present.map(|(id, _)| *id).filter(|id| !has_dropped(*id)).collect()
    }

    /// The name of a node, for people.
    pub(crate) fn name_of(&self, node: NodeId) -> String {
        self.nodes.get(&node).map_or_else(|| format!("node {node}"), |known| known.name.clone())
    }
}

/// Where a shard is between two epochs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The voters make the group of this epoch from its base. Leases are granted.
    Forming,
    Active,
    /// A switchover to the region named is prepared: the target catches up, everything is served.
    SwitchingOver {
        to: String,
    },
    /// No more leases on this epoch. It ends with `Promote`.
    Sealing(Plan),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// `None`: whichever region has most.
    pub to: Option<String>,
    /// A switchover, or its abortion: nothing may be lost. Else a failover.
    pub planned: bool,
    /// Wall clock of the directory leader, milliseconds since the Unix epoch.
    pub since_ms: u64,
    pub cause: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    pub name: String,
    pub shard: ShardId,
    /// Where an operator wants its primary: where its shard goes back to.
    pub primary_region: String,
    #[serde(default)]
    pub failover: FailoverMode,
    #[serde(default)]
    pub rpo: Rpo,
}

/// A database that is being deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// What it was called; another may be called so by now.
    pub name: String,
    /// Whose leader logs that its data goes.
    pub shard: ShardId,
}

/// Whether a shard whose primary region is lost fails over by itself: only if all of its databases
/// say so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailoverMode {
    #[default]
    Auto,
    Manual,
}

/// What happens when replication falls behind, measured at the best replica region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rpo {
    pub mode: RpoMode,
    /// Beyond, writes are slowed.
    pub soft_ms: u64,
    /// Beyond, writes are refused.
    pub max_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RpoMode {
    Off,
    /// Said in logs and metrics only.
    Warn,
    Enforce,
}

impl Default for Rpo {
    fn default() -> Self {
        Self { mode: RpoMode::Enforce, soft_ms: 500, max_ms: 1000 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub label: String,
    /// SHA-256 of the secret, in hex.
    pub sha256: String,
    pub scope: TokenScope,
    pub write: bool,
    /// Wall clock, milliseconds since the Unix epoch. `None`: never.
    pub expires_at_ms: Option<u64>,
    pub created_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenScope {
    All,
    Databases(BTreeSet<DatabaseId>),
}

/// How one epoch ended and the next began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverReport {
    /// The epoch that began.
    pub epoch: Epoch,
    pub from_region: String,
    pub to_region: String,
    pub planned: bool,
    pub cause: String,
    pub base: Position,
    /// Transactions of the shard up to the base, since it was made.
    pub base_transactions: u64,
    /// The old leader's time of the batch at the base, milliseconds since the Unix epoch.
    pub base_time_ms: u64,
    /// Wall clock of the directory leader: when sealing began, and when the epoch did.
    pub sealed_at_ms: u64,
    pub promoted_at_ms: u64,
    pub loss: Loss,
    /// Who voted in the epoch that ended: a majority of them knows all that was committed in it.
    #[serde(default)]
    pub old_voters: BTreeSet<NodeId>,
    /// The epoch ended during a change of voters: what was committed is known to a majority of
    /// `old_voters`, or of one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_voters: Vec<BTreeSet<NodeId>>,
}

impl FailoverReport {
    /// Whether what this node had beyond the base is of weight.
    pub fn is_judged_by(&self, node: NodeId) -> bool {
        self.voter_sets().any(|voters| voters.contains(&node))
    }

    /// Whether so many have shown what they had beyond the base that more than their most was not
    /// lost.
    pub fn is_bounded(&self) -> bool {
        let mut sets = self.voter_sets();
        self.loss.exact
            || sets.all(|voters| {
                voters.intersection(&self.loss.shown_by).count() >= majority(voters.len())
            })
    }

    fn voter_sets(&self) -> impl Iterator<Item = &BTreeSet<NodeId>> {
        [&self.old_voters].into_iter().chain(&self.former_voters)
    }
}

/// What was committed in the old epoch beyond the base, as far as is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// At least so many: known to have been committed.
    pub transactions: u64,
    /// From the base's batch to the last batch known to be lost, by the old leader's clock.
    pub window_ms: u64,
    /// It was `transactions`, no more and no less: a switchover, or a majority of each set of old
    /// voters has shown its log, and nothing in there is undecided.
    pub exact: bool,
    /// Nodes that have come back and shown what they had beyond the base.
    #[serde(default)]
    pub shown_by: BTreeSet<NodeId>,
    /// The most that any of these holds, undecided batches included. No more was lost, once the
    /// report [is bounded](FailoverReport::is_bounded).
    #[serde(default)]
    pub at_most: u64,
}
