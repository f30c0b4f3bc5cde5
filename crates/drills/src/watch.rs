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
    /// How far behind each subscriber of the leader is, as the leader of the highest epoch says.
    pub lag_ms: BTreeMap<NodeId, u64>,
    pub lag_bytes: BTreeMap<NodeId, u64>,
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
        let shards = statuses.iter().flat_map(|(id, status)| status.shards.iter().map(move |shard| (*id, shard)));
        shards.filter(|(_, status)| status.shard == shard.0 && status.role == "leader")
    };
    let newest = of_shard().max_by_key(|(_, status)| (status.epoch, status.term));
    let subscribers = newest.map_or(&[][..], |(_, status)| status.subscribers.as_slice());
    Look {
        at_ms,
        leaders: of_shard().map(|(id, status)| (id, status.epoch)).collect(),
        answered: statuses.len(),
        lag_ms: subscribers.iter().map(|subscriber| (subscriber.node_id, subscriber.lag_ms)).collect(),
        lag_bytes: subscribers.iter().map(|subscriber| (subscriber.node_id, subscriber.lag_bytes)).collect(),
    }
}
