//! The invariants of the protocol, each in a file of its own. They see everything, and real time;
//! nodes see neither.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_checker::queue::QueueEvent;
use meridian_directory::{Change, Cluster, Shard};
use meridian_types::{Epoch, NodeId, Position};

use crate::clock::Instant;
use crate::message::{Batch, History, Operation};

mod committed_and_shipped_is_never_lost;
mod loss_reported;
mod no_ack_under_stale_lease;
mod one_primary_per_epoch;
mod promoted_prefix;
mod queue_history;
mod starvation_is_not_loss;
mod versionstamps_monotonic;

/// Something a client was told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered {
    pub(crate) node: NodeId,
    pub(crate) epoch: Epoch,
    pub(crate) operation: Operation,
    pub(crate) position: Position,
    /// The newest position that any client had been told when this operation began.
    pub(crate) floor: Position,
}

/// How often the things happened that the simulation is for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub acked: u64,
    pub reads: u64,
    pub failovers: u64,
    pub switchovers: u64,
    pub went_home: u64,
    pub lost: u64,
    pub snapshots: u64,
    /// Taken in place of a tail that was in no log any more.
    pub whole_states: u64,
    pub orphans: u64,
    pub drains: u64,
    pub exact_reports: u64,
    pub voter_changes: u64,
    pub enqueued: u64,
    pub handed: u64,
    /// Messages whose delivery was acknowledged.
    pub done: u64,
    pub dead: u64,
    /// Handed out again without a refusal.
    pub duplicates: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.acked += other.acked;
        self.reads += other.reads;
        self.failovers += other.failovers;
        self.switchovers += other.switchovers;
        self.went_home += other.went_home;
        self.lost += other.lost;
        self.snapshots += other.snapshots;
        self.whole_states += other.whole_states;
        self.orphans += other.orphans;
        self.drains += other.drains;
        self.exact_reports += other.exact_reports;
        self.voter_changes += other.voter_changes;
        self.enqueued += other.enqueued;
        self.handed += other.handed;
        self.done += other.done;
        self.dead += other.dead;
        self.duplicates += other.duplicates;
    }
}

/// The truth, as far as the invariants need it.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    pub(crate) violation: Option<String>,
    pub(crate) counts: Counts,
    /// Each version of the cluster, as it was first committed.
    clusters: BTreeMap<u64, Arc<Cluster>>,
    newest: Option<Arc<Cluster>>,
    /// Of each proposal, the versions on the way to the cluster that is committed.
    steps: Vec<(Arc<Cluster>, Vec<Arc<Cluster>>)>,
    /// The committed batches of each epoch, from the first sequence on.
    truth: BTreeMap<Epoch, History>,
    /// The newest position told to any client, and the newest of each epoch.
    newest_answered: Option<Position>,
    answered_in: BTreeMap<Epoch, Position>,
    acked: BTreeMap<Epoch, BTreeSet<Position>>,
    requests: BTreeMap<Epoch, BTreeSet<u64>>,
    pub(crate) arrivals: starvation_is_not_loss::Arrivals,
}

impl Observer {
    pub(crate) fn new(genesis: &Arc<Cluster>) -> Self {
        let mut observer = Self::default();
        observer.truth.insert(Epoch::FIRST, History::new());
        observer.clusters.insert(genesis.version, Arc::clone(genesis));
        observer.newest = Some(Arc::clone(genesis));
        observer
    }

    pub(crate) fn violated(&mut self, invariant: &str, what: String) {
        self.violation.get_or_insert_with(|| format!("{invariant}: {what}"));
    }

    /// The position that a client's next operation must not be behind.
    pub(crate) fn floor(&self) -> Position {
        self.newest_answered.unwrap_or(Position::ZERO)
    }

    /// The first cluster of the directory.
    pub(crate) fn genesis(&self) -> Option<Arc<Cluster>> {
        self.clusters.values().next().cloned()
    }

    pub(crate) fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.newest.as_ref()
    }

    pub(crate) fn truth(&self, epoch: Epoch) -> &[Batch] {
        self.truth.get(&epoch).map_or(&[], Vec::as_slice)
    }

    /// A leader proposes a cluster that several changes may have led to, by these steps.
    pub(crate) fn cluster_proposed(&mut self, next: &Arc<Cluster>, steps: Vec<Arc<Cluster>>) {
        self.steps.push((Arc::clone(next), steps));
    }

    /// Some voter of the directory has learnt that this is committed.
    pub(crate) fn cluster_committed(&mut self, cluster: &Arc<Cluster>) {
        if self.clusters.contains_key(&cluster.version) {
            return one_primary_per_epoch::same_cluster(self, cluster);
        }
        let proposed = self.steps.iter().position(|(next, _)| Arc::ptr_eq(next, cluster));
        let steps = proposed.map(|at| self.steps.swap_remove(at).1).unwrap_or_default();
        self.steps.retain(|(next, _)| next.version > cluster.version);
        steps.iter().for_each(|step| self.next_cluster(step));
        self.next_cluster(cluster);
    }

    fn next_cluster(&mut self, cluster: &Arc<Cluster>) {
        one_primary_per_epoch::next_cluster(self, cluster);
        promoted_prefix::next_cluster(self, cluster);
        committed_and_shipped_is_never_lost::next_cluster(self, cluster);
        loss_reported::next_cluster(self, cluster);
        self.clusters.insert(cluster.version, Arc::clone(cluster));
        self.newest = Some(Arc::clone(cluster));
    }

    /// A leader proposes to end an epoch, having been told by these reachable nodes what they have.
    pub(crate) fn promote_proposed(
        &mut self,
        epoch: Epoch,
        base: Position,
        answers: &[(NodeId, Position)],
    ) {
        committed_and_shipped_is_never_lost::promote_proposed(self, epoch, base, answers);
    }

    /// The directory's leader, a node that leads since then, decides this of the shard.
    pub(crate) fn decided(
        &mut self,
        now: Instant,
        leader: (NodeId, Instant),
        shard: &Shard,
        change: &Change,
    ) {
        starvation_is_not_loss::decided(self, now, leader, shard, change);
    }

    /// A voter of `epoch` has learnt that this is committed.
    pub(crate) fn committed(&mut self, epoch: Epoch, node: NodeId, batch: Batch) {
        promoted_prefix::committed(self, epoch, node, batch);
    }

    /// A node has this in its history while it is in `epoch`, other than by voting.
    pub(crate) fn taken(&mut self, epoch: Epoch, node: NodeId, batch: Batch) {
        promoted_prefix::taken(self, epoch, node, batch);
    }

    pub(crate) fn answered(&mut self, answered: Answered) {
        one_primary_per_epoch::answered(self, answered);
        no_ack_under_stale_lease::answered(self, answered);
        committed_and_shipped_is_never_lost::answered(self, answered);
        versionstamps_monotonic::answered(self, answered);
        match answered.operation {
            Operation::Write { .. } => self.counts.acked += 1,
            Operation::Read => self.counts.reads += 1,
        }
        self.newest_answered = self.newest_answered.max(Some(answered.position));
        let newest = self.answered_in.entry(answered.epoch).or_insert(answered.position);
        *newest = answered.position.max(*newest);
        if let Operation::Write { .. } = answered.operation {
            self.acked.entry(answered.epoch).or_default().insert(answered.position);
        }
    }

    /// When the run is over.
    pub(crate) fn finish(&mut self, now: Instant, queue: Vec<QueueEvent>) {
        loss_reported::finish(self);
        queue_history::finish(self, now, queue);
    }
}
