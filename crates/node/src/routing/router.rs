//! From a gateway to the shard: which node leads, what to retry, and until when.
//!
//! An *operation* (`read`, `write`) goes on over several *attempts*, each of which asks one or more
//! nodes (`hedge`); a *try* is one call of one node. A `watch` is fed by one node at a time.
//! `candidates` puts the nodes in order, from what `health`, `leaders` and `refusals` know of them;
//! `budget` bounds what is asked for beyond first tries.

mod budget;
mod candidates;
mod changes;
mod health;
mod hearing;
mod leaders;
mod listen;
mod operation;
mod places;
mod read;
mod refusals;
mod watch;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use meridian_gateway::{
    Changed, ChangesWanted, Database, Listen, Listened, NoChanges, QueueList, QueuePage, Read,
    ReadOutput, Reports, Unavailable, Watch, Write, WriteFailure,
};
use meridian_queue::Answer;
use meridian_types::{DatabaseId, Epoch, EpochHistory, NodeId, Position, ShardId, WriteOutcome};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cluster_view::view::Directory;
use crate::host::clock::{BootClock, Clock};
use crate::network::call_failure::Failed;
use crate::network::departure::Departure;
use crate::routing::cluster_nodes::ClusterNodes;
use crate::routing::nodes::Nodes;
use crate::time_budget::ATTEMPT_TIMEOUT;

use health::NodeHealth;
use leaders::Leaders;
use listen::Listening;
pub(crate) use listen::Wish;
use places::Places;
use read::{Here, ReadOperation};
use refusals::Refusals;
pub(crate) use watch::RoutedWatch;
use write::WriteOperation;

/// Routes the operations of one gateway.
pub(crate) struct Router<N = ClusterNodes, C = BootClock> {
    nodes: N,
    clock: C,
    /// `None` beside an application, where no node runs.
    local_node: Option<NodeId>,
    region: String,
    directory: Arc<Directory>,
    /// For an operation that certainly did not happen.
    deadline: Duration,
    leaders: Leaders,
    health: NodeHealth,
    refusals: Refusals,
    /// Of questions for changes, which say nothing of reads.
    changes_refusals: Refusals,
    /// The newest position of each shard that this gateway has served: later reads are no older.
    served: Mutex<BTreeMap<ShardId, Position>>,
    /// Watches that look for another node.
    watches_moving: Arc<AtomicU32>,
    listeners: Places,
}

impl<N: Nodes, C: Clock> Router<N, C> {
    pub(crate) fn new(
        nodes: N,
        clock: C,
        local_node: Option<NodeId>,
        region: String,
        directory: Arc<Directory>,
        deadline: Duration,
    ) -> Self {
        Self {
            nodes,
            clock,
            local_node,
            region,
            directory,
            deadline,
            leaders: Leaders::default(),
            health: NodeHealth::new(local_node),
            refusals: Refusals::default(),
            changes_refusals: Refusals::default(),
            served: Mutex::default(),
            watches_moving: Arc::default(),
            listeners: Places::default(),
        }
    }

    fn shard(&self, database: DatabaseId) -> Result<(ShardId, Epoch), Unavailable> {
        let shard = self.directory.known().cluster.shard_of(database).map(|(shard, _)| shard);
        let found = shard.and_then(|shard| Some((shard, self.directory.epoch(shard)?)));
        found.ok_or_else(|| unavailable(format!("no shard holds the database {database}")))
    }

    /// The sequence that an eventual read must not be older than.
    fn min_sequence(&self, shard: (ShardId, Epoch)) -> u64 {
        let served = self.served.lock().get(&shard.0).copied();
        served.map_or(0, |served| self.not_older_than(served, shard))
    }

    /// The sequence that a state must have in this epoch to be no older than this position.
    /// Batches that a failover took back are not held against nodes that never had them.
    fn not_older_than(&self, position: Position, (shard, epoch): (ShardId, Epoch)) -> u64 {
        if position.epoch == epoch {
            return position.sequence;
        }
        let history = self.directory.shard(shard).map(|shard| EpochHistory::new(shard.bases));
        match history.and_then(|history| history.leaves(position)) {
            Some((_, base)) => base.sequence,
            None => position.sequence,
        }
    }

    /// A read, and the position of the state that it was read from, at least.
    async fn read_at(&self, read: Read) -> Result<(ReadOutput, Position), Unavailable> {
        let started = self.clock.now();
        let read = Arc::new(read);
        let begun = match self.read_here(started, &read).await {
            Some(Here::Read(output, position)) => return Ok((output, position)),
            Some(Here::Begun(begun)) => Some(begun),
            None => None,
        };
        ReadOperation::new(self, read, started, begun).run().await
    }

    fn record_served(&self, shard: ShardId, position: Position) {
        let mut served = self.served.lock();
        let newest = served.entry(shard).or_insert(Position::ZERO);
        *newest = (*newest).max(position);
    }

    /// One try, to the first byte of its answer. A node that is at work on it is waited for until
    /// `latest`. A call that has not left by then, for want of a connection, is kept here: it did
    /// nothing.
    async fn within<T>(
        &self,
        node: NodeId,
        latest: Duration,
        working: &Notify,
        departure: &Departure,
        call: impl Future<Output = Result<T, Failed>>,
    ) -> Result<T, Failed> {
        let asked = self.clock.now();
        let timeout = ATTEMPT_TIMEOUT + 2 * self.health.round_trip(node);
        let mut until = asked + timeout;
        tokio::pin!(call);
        let mut is_dead = false;
        let result = loop {
            tokio::select! {
                biased;
                result = &mut call => break result,
                () = working.notified() => {
                    let now = self.clock.now();
                    self.health.received(now, node);
                    until = until.max((now + timeout).min(latest));
                }
                () = async { self.clock.sleep_until(until).await } => {
                    let waited = self.clock.now().saturating_sub(asked);
                    // A node that is slow is given more time. A node that is gone is not, though
                    // others may have heard from it after this asked: each operation that asks it
                    // would have the next wait longer, and miss that the shard has moved.
                    is_dead = !self.health.was_received_lately(self.clock.now(), node);
                    break Err(departure.not_answered(format!("no answer within {} ms", waited.as_millis())));
                }
            }
        };
        if Some(node) != self.local_node
            && !is_dead
            && !matches!(result, Err(Failed::Unreachable(_)))
        {
            self.health.took(node, self.clock.now().saturating_sub(asked));
        }
        result
    }

    /// Keeps in mind whether a node answered at all.
    fn record_health(&self, node: NodeId, result: Result<(), &Failed>) {
        let now = self.clock.now();
        match result {
            Err(Failed::Unreachable(_)) => self.health.was_cut_off(now, node),
            Err(Failed::Unknown(_)) => self.health.was_silent(now, node),
            _ => self.health.received(now, node),
        }
    }

    /// Keeps in mind how a try ended: whether the node answered at all, and which node leads.
    fn record(&self, shard: ShardId, node: NodeId, result: Result<(), &Failed>) {
        self.record_health(node, result);
        match result {
            Err(Failed::NotLeader(Some(hint))) if *hint != node => self.leaders.named(shard, *hint),
            // It leads, and serves others.
            Err(Failed::Busy(_)) | Ok(()) => {}
            Err(_) => self.leaders.failed(shard, node),
        }
    }
}

impl<N: Nodes, C: Clock> Database for Router<N, C> {
    type Watching = RoutedWatch<N, C>;

    async fn read(&self, read: Read) -> Result<ReadOutput, Unavailable> {
        self.read_at(read).await.map(|(output, _)| output)
    }

    /// Waits for a node that has the first news, and goes on with others when that is lost.
    async fn watch(self: &Arc<Self>, watch: Watch) -> Result<RoutedWatch<N, C>, Unavailable> {
        RoutedWatch::begin(Arc::clone(self), watch).await
    }

    async fn changes(&self, wanted: ChangesWanted) -> Result<Changed, NoChanges> {
        self.changes_behind(wanted).await
    }

    /// Tries the leader, and goes on with the same request id until the outcome is known: what was
    /// tried and is unknown may have committed, and the next leader can tell.
    ///
    /// No later than ids may be forgotten, however long this process stood still: nothing is sent
    /// again then, and what was sent and arrives later is refused.
    async fn write(&self, write: Write) -> Result<WriteOutcome, WriteFailure> {
        WriteOperation::new(self, write).run().await
    }

    fn listen(self: &Arc<Self>, listen: Listen) -> Listened {
        Listening::start(self, listen, None)
    }

    async fn report(&self, reports: Reports) -> Result<Vec<Answer>, Unavailable> {
        let failing = "what was reported is not known to be logged";
        let ask = |node, shard| self.nodes.report(node, shard, &reports);
        self.asked(reports.queue.database, failing, ask).await
    }

    async fn list_queue(&self, list: QueueList) -> Result<QueuePage, Unavailable> {
        let ask = |node, shard| self.nodes.list_queue(node, shard, &list);
        self.asked(list.queue.database, "no leader has listed the queue", ask).await
    }
}

fn unavailable(reason: String) -> Unavailable {
    Unavailable { reason }
}

#[cfg(test)]
mod tests;
