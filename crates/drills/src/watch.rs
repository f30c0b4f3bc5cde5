//! What the nodes say of themselves, all the time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meridian_types::{NodeId, ShardId};
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::gap::ms;
use crate::operator::Operator;

const INTERVAL: Duration = Duration::from_millis(200);
/// A node that does not answer so soon says nothing this time.
const PATIENCE: Duration = Duration::from_millis(180);

/// One look at all nodes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Look {
    /// From the workload's origin.
    pub at_ms: f64,
    /// Who says that it leads the shard, with its epoch.
    pub leaders: BTreeMap<NodeId, u32>,
    /// The nodes that answered.
    pub answered: usize,
    /// How far behind each connected subscriber of the leader is, as the leader of the highest
    /// epoch says.
    pub lag_ms: BTreeMap<NodeId, u64>,
    pub lag_bytes: BTreeMap<NodeId, u64>,
}

impl Look {
    /// Who says that it leads the newest epoch, and which that is.
    pub(crate) fn leader(&self) -> Option<(NodeId, u32)> {
        self.leaders.iter().max_by_key(|(_, epoch)| **epoch).map(|(node, epoch)| (*node, *epoch))
    }
}

/// Since when the last leader leads, as far as was seen.
pub(crate) fn leading_since_ms(looks: &[Look]) -> Option<(NodeId, f64)> {
    let (leader, epoch) = looks.last()?.leader()?;
    let since =
        looks.iter().rev().take_while(|look| look.leader() == Some((leader, epoch))).last()?;
    Some((leader, since.at_ms))
}

/// Looks until it is dropped.
pub(crate) struct Watch {
    looks: Arc<Mutex<Vec<Look>>>,
    task: JoinHandle<()>,
}

impl Watch {
    pub(crate) fn start(operator: Operator, shard: ShardId, origin: Instant) -> Self {
        let looks = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&looks);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            loop {
                ticks.tick().await;
                let at_ms = ms(origin.elapsed());
                let look = look(&operator, shard, at_ms).await;
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(look);
            }
        });
        Self { looks, task }
    }

    pub(crate) fn looks(&self) -> Vec<Look> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look(operator: &Operator, shard: ShardId, at_ms: f64) -> Look {
    let statuses = operator.statuses(PATIENCE).await;
    let of_shard = || {
        let shards = statuses
            .iter()
            .flat_map(|(id, status)| status.shards.iter().map(move |shard| (*id, shard)));
        shards.filter(|(_, status)| status.shard == shard.0 && status.role == "leader")
    };
    let newest = of_shard().max_by_key(|(_, status)| (status.epoch, status.term));
    // One that is away does not lag: it is not there.
    let subscribers =
        || newest.iter().flat_map(|(_, status)| &status.subscribers).filter(|one| one.connected);
    Look {
        at_ms,
        leaders: of_shard().map(|(id, status)| (id, status.epoch)).collect(),
        answered: statuses.len(),
        lag_ms: subscribers().map(|subscriber| (subscriber.node_id, subscriber.lag_ms)).collect(),
        lag_bytes: subscribers()
            .map(|subscriber| (subscriber.node_id, subscriber.lag_bytes))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_leads_since_the_last_change() {
        let look = |at_ms, leaders: &[(NodeId, u32)]| Look {
            at_ms,
            leaders: leaders.iter().copied().collect(),
            answered: 3,
            lag_ms: BTreeMap::new(),
            lag_bytes: BTreeMap::new(),
        };
        let looks = [
            look(0.0, &[(1, 1)]),
            look(1.0, &[(2, 1)]),
            look(2.0, &[(1, 1)]),
            look(3.0, &[(1, 1)]),
        ];
        assert_eq!(leading_since_ms(&looks), Some((1, 2.0)));
        // Who does not know of the newer epoch yet does not count.
        let looks = [look(0.0, &[(4, 2)]), look(1.0, &[(1, 1), (4, 2)])];
        assert_eq!(leading_since_ms(&looks), Some((4, 0.0)));
        assert_eq!(leading_since_ms(&[look(0.0, &[(1, 1)]), look(1.0, &[])]), None);
    }
}
