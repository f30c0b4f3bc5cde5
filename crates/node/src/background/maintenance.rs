//! The duties of a node, one file each, and how often each comes up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_types::NodeId;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::background::disk_watch::DiskWatch;
use crate::background::gauges::Gauges;
use crate::background::marks::Marks;
use crate::background::measuring::Measuring;
use crate::background::parts::DutyParts;
use crate::background::purge::Purge;
use crate::background::queue_gauges::QueueGauges;
use crate::background::reclaim::Reclaim;
use crate::background::request_ids::RequestIds;
use crate::background::status::NodeStatus;
use crate::host::disk::LOOK;
use crate::placement::leadership::Leadership;
use crate::placement::voters::GroupVoters;
use crate::time_budget::ANNOUNCE;
use crate::time_budget::FORGET_AFTER;

const PERSIST_MARKS: Duration = Duration::from_secs(1);
const PURGE: Duration = Duration::from_secs(10);
/// Gauges, and voters of groups.
const EACH_SECOND: Duration = Duration::from_secs(1);
/// How often the node looks for dropped databases whose room the disk has not got back.
const RECLAIM: Duration = Duration::from_secs(5);
/// How often the queues of all databases are counted.
const COUNT_QUEUES: Duration = Duration::from_secs(5);
const PREFERRED_LEADER: Duration = Duration::from_secs(10);
const FLUSH_ON_A_LOW_DISK: Duration = Duration::from_secs(2);

/// Starts all duties; they end with `stop`.
pub(crate) fn start(parts: &DutyParts) -> Vec<JoinHandle<()>> {
    let stop = &parts.stop;
    let mut duties = Duties { node_id: parts.node_id, stop: stop.clone(), tasks: Vec::new() };
    start_placement(parts, &mut duties);
    let marks = Arc::new(Marks::new(parts));
    duties.every(PERSIST_MARKS, move || Arc::clone(&marks).persist());
    let disk = Arc::new(DiskWatch::new(parts));
    let low = Arc::clone(&disk);
    duties.every(FLUSH_ON_A_LOW_DISK, move || Arc::clone(&low).flush_when_low());
    match DiskWatch::start_thread(&disk, stop.clone()) {
        Ok(looks) => duties.tasks.push(looks),
        Err(error) => {
            tracing::warn!(%error, "there is no thread to look at the disk");
            duties.every(LOOK, move || Arc::clone(&disk).look());
        }
    }
    let purge = Arc::new(Purge::new(parts));
    duties.every(PURGE, move || {
        let purge = Arc::clone(&purge);
        async move { purge.purge().await }
    });
    let reclaim = Arc::new(Reclaim::new(parts));
    duties.every(RECLAIM, move || Arc::clone(&reclaim).reclaim());
    let queues = Arc::new(QueueGauges::new(parts));
    duties.every(COUNT_QUEUES, move || Arc::clone(&queues).measure());
    duties.tasks.push(tokio::spawn(Measuring::new(parts).run()));
    let ids = RequestIds::new(parts);
    duties.every(FORGET_AFTER / 20, move || {
        ids.forget(Instant::now());
        std::future::ready(())
    });
    duties.tasks
}

/// The node's status, the group's leadership, and its voters.
fn start_placement(parts: &DutyParts, duties: &mut Duties) {
    let (shards, directory) = (&parts.shards, &parts.directory);
    let leadership = Leadership::new(parts.node_id, Arc::clone(shards), Arc::clone(directory));
    let leadership = Arc::new(leadership);
    let (status, looks) =
        (NodeStatus::new(parts, Arc::clone(&leadership)), Arc::clone(&leadership));
    duties.every(ANNOUNCE, move || {
        status.announce();
        looks.look_at_leases();
        std::future::ready(())
    });
    let preferring = Arc::clone(&leadership);
    duties.every(PREFERRED_LEADER, move || {
        let leadership = Arc::clone(&preferring);
        async move { leadership.hand_over_to_preferred().await }
    });
    let stop = parts.stop.clone();
    duties.tasks.push(tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = leadership.lease_is_low() => leadership.hand_over_without_lease().await,
            }
        }
    }));
    let gauges = Gauges::new(parts);
    let voters = GroupVoters::new(Arc::clone(shards), Arc::clone(directory));
    duties.every(EACH_SECOND, move || {
        gauges.measure();
        voters.reconcile();
        std::future::ready(())
    });
}

/// The tasks of the duties.
struct Duties {
    node_id: NodeId,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Duties {
    /// Has the work done each `period`, until the node stops. Work that has begun is finished.
    fn every<F>(&mut self, period: Duration, mut work: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        // Nodes that were started together, and may share a disk, do not flush and purge together.
        let phase = period * u32::try_from(self.node_id.0 % 8).unwrap_or(0) / 8;
        self.tasks.push(tokio::spawn(async move {
            let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + phase, period);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = ticks.tick() => work().await,
                }
            }
        }));
    }
}

#[cfg(test)]
mod tests;
