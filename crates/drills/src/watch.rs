//! The statuses of all nodes, all the time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meridian_types::{NodeId, ShardId};
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::gap::ms;
use crate::operator::Operator;

const INTERVAL: Duration = Duration::from_millis(200);
/// A node without an answer by then is left out this time.
const PATIENCE: Duration = Duration::from_millis(180);

/// The statuses of all nodes at one time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// From the workload's origin.
    pub at_ms: f64,
    /// The nodes that report to lead the shard, with their epochs.
    pub leaders: BTreeMap<NodeId, u32>,
    /// The nodes that answered.
    pub answered: usize,
    /// The lag of each connected subscriber, as reported by the leader of the highest epoch.
    pub lag_ms: BTreeMap<NodeId, u64>,
    pub lag_bytes: BTreeMap<NodeId, u64>,
}

impl Snapshot {
    /// The node that reports to lead the newest epoch, with the epoch.
    pub(crate) fn leader(&self) -> Option<(NodeId, u32)> {
        self.leaders.iter().max_by_key(|(_, epoch)| **epoch).map(|(node, epoch)| (*node, *epoch))
    }
}

/// The last leader, and since when it was seen to lead.
pub(crate) fn leading_since_ms(snapshots: &[Snapshot]) -> Option<(NodeId, f64)> {
    let (leader, epoch) = snapshots.last()?.leader()?;
    let since = snapshots
        .iter()
        .rev()
        .take_while(|snapshot| snapshot.leader() == Some((leader, epoch)))
        .last()?;
    Some((leader, since.at_ms))
}

/// Takes snapshots until it is dropped.
pub(crate) struct Watch {
    snapshots: Arc<Mutex<Vec<Snapshot>>>,
    task: JoinHandle<()>,
}

impl Watch {
    pub(crate) fn start(operator: Operator, shard: ShardId, origin: Instant) -> Self {
        let snapshots = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&snapshots);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            loop {
                ticks.tick().await;
                let at_ms = ms(origin.elapsed());
                let snapshot = take_snapshot(&operator, shard, at_ms).await;
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(snapshot);
            }
        });
        Self { snapshots, task }
    }

    pub(crate) fn snapshots(&self) -> Vec<Snapshot> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take_snapshot(operator: &Operator, shard: ShardId, at_ms: f64) -> Snapshot {
    let statuses = operator.statuses(PATIENCE).await;
    let of_shard = || {
        let shards = statuses
            .iter()
            .flat_map(|(id, status)| status.shards.iter().map(move |shard| (*id, shard)));
        shards.filter(|(_, status)| status.shard == shard.0 && status.role == "leader")
    };
    let newest = of_shard().max_by_key(|(_, status)| (status.epoch, status.term));
    // A disconnected subscriber has no lag.
    let subscribers =
        || newest.iter().flat_map(|(_, status)| &status.subscribers).filter(|one| one.connected);
    Snapshot {
        at_ms,
        leaders: of_shard().map(|(id, status)| (id, status.epoch)).collect(),
        answered: statuses.len(),
        lag_ms: subscribers()
            .map(|subscriber| (NodeId(subscriber.node_id), subscriber.lag_ms))
            .collect(),
        lag_bytes: subscribers()
            .map(|subscriber| (NodeId(subscriber.node_id), subscriber.lag_bytes))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_leads_since_the_last_change() {
        let snapshot = |at_ms, leaders: &[(u64, u32)]| Snapshot {
            at_ms,
            leaders: leaders.iter().map(|(node, epoch)| (NodeId(*node), *epoch)).collect(),
            answered: 3,
            lag_ms: BTreeMap::new(),
            lag_bytes: BTreeMap::new(),
        };
        let snapshots = [
            snapshot(0.0, &[(1, 1)]),
            snapshot(1.0, &[(2, 1)]),
            snapshot(2.0, &[(1, 1)]),
            snapshot(3.0, &[(1, 1)]),
        ];
        assert_eq!(leading_since_ms(&snapshots), Some((NodeId(1), 2.0)));
        // A node that does not know of the newer epoch yet does not count.
        let snapshots = [snapshot(0.0, &[(4, 2)]), snapshot(1.0, &[(1, 1), (4, 2)])];
        assert_eq!(leading_since_ms(&snapshots), Some((NodeId(4), 0.0)));
        assert_eq!(leading_since_ms(&[snapshot(0.0, &[(1, 1)]), snapshot(1.0, &[])]), None);
    }
}
