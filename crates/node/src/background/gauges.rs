//! Gauges of each shard: how far it is, and how far its followers are behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use meridian_types::NodeId;
use parking_lot::Mutex;

use crate::background::counters::LagGauges;
use crate::background::parts::DutyParts;
use crate::host::clocks::Clocks;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;

/// The gauges that are measured at intervals.
pub(crate) struct Gauges {
    node_id: NodeId,
    shards: Arc<ShardTable>,
    clocks: Clocks,
    lags: Mutex<LagGauges>,
}

impl Gauges {
    pub(crate) fn new(parts: &DutyParts) -> Self {
        Self {
            node_id: parts.node_id,
            shards: Arc::clone(&parts.shards),
            clocks: parts.clocks.clone(),
            lags: Mutex::default(),
        }
    }

    pub(crate) fn measure(&self) {
        self.clocks.report();
        let mut lags = BTreeMap::new();
        for (id, shard) in &self.shards.all() {
            let labels = [("shard", id.to_string()), ("node", self.node_id.to_string())];
            let applied = shard.state().position().sequence;
            metrics::gauge!("meridian_shard_applied_sequence", &labels).set(applied as f64);
            let LocalShard::Voter(voter) = shard else { continue };
            if voter.group.leadership().is_err() {
                continue;
            }
            let followers =
                self.shards.followers(id).map(|followers| followers.lags()).unwrap_or_default();
            lags.extend(followers.into_iter().map(|follower| ((*id, follower.node), follower.lag)));
        }
        self.lags.lock().show(lags);
    }
}
