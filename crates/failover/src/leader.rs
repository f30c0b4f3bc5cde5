//! One term of the directory's leader: it grants leases, has changes committed
//! one list after the other, and passes on what the controller decides.
//!
//! Pure: events in, actions out. The driver has Raft commit what is proposed, and carries calls to
//! nodes. `changes` has what waits to be committed and what is in flight, `deletions` says which
//! databases no node has any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_directory::{Change, Cluster};
use meridian_types::{Epoch, NodeId, Position, ShardId, ShardReport};

use crate::controller::{Action, Controller, ControllerConfig, Event, Progress};
use crate::leader::changes::Changes;
use crate::lease::Lease;
use crate::preview::Contact;
use crate::progress_hints::ProgressHint;

mod changes;
mod deletions;

pub use changes::{ExecuteFailure, Executed, Made};

/// A change that no operator asked for is recorded under this name.
const OWN_ACTOR: &str = "directory";

/// A node's wish for a lease, with the node's reports on itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    pub node: NodeId,
    /// Of the node's data folder, in hex.
    pub incarnation: String,
    pub reports: Vec<ShardReport>,
    pub lost: Vec<LostTail>,
}

/// All that a node had beyond the base of an epoch, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostTail {
    pub shard: ShardId,
    pub epoch: Epoch,
    /// Known to have been committed.
    pub transactions: u64,
    /// With those that are undecided.
    pub at_most: u64,
    pub last_time_ms: u64,
}

/// The answer to a [`Renewal`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewed {
    /// `cluster`: the committed one, which the lease is of.
    Granted { lease: Lease, cluster: Arc<Cluster>, hints: Vec<ProgressHint> },
    /// A change has to be committed first. The node asks again.
    NotYet,
    /// For people: why this node gets none, now or later.
    Refused(String),
}

/// An event. `C` stands for the caller of a change, which the driver answers.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "few are made, and they are taken apart at once")]
pub enum LeaderEvent<C> {
    /// The term begins. Given once, before all others.
    Begun,
    /// When there was no other step [for so long](DirectoryLeader::due_in).
    Tick,
    Execute {
        change: Change,
        actor: String,
        caller: C,
    },
    /// A node's answer to a [`LeaderAction::Seal`] or [`LeaderAction::Drain`].
    Answered(Event),
    /// The proposal is committed, as this cluster: the newest there is.
    Committed(Arc<Cluster>),
    /// The proposal is not committed, and never will be. Where that is not certain, or another
    /// leads by now, the term [is over](DirectoryLeader::leave).
    NotCommitted,
    /// Deleted databases that no node has any more are to be looked for. Given now and then.
    DeletionsDue,
}

/// A task for the driver.
#[derive(Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "few are made, and they are taken apart at once")]
pub enum LeaderAction<C> {
    /// To be committed, if the version before it still is the newest. `Committed` or `NotCommitted`
    /// follows, or the term ends; until then no other is proposed.
    Propose {
        next: Arc<Cluster>,
        made: Vec<Made>,
    },
    /// As [`Action::Seal`].
    Seal {
        node: NodeId,
        shard: ShardId,
        epoch: Epoch,
        planned: bool,
    },
    /// As [`Action::Drain`].
    Drain {
        node: NodeId,
        shard: ShardId,
        epoch: Epoch,
        source: NodeId,
        through: Position,
    },
    Answer {
        caller: C,
        executed: Executed,
    },
    /// For the log: a change cannot be made any more.
    TooLate {
        change: Change,
        reason: String,
    },
}

/// One term of leadership of the directory.
///
/// To be made once everything is applied that was committed before the term: a lease by an older
/// cluster could be one on an epoch that was sealed since.
#[derive(Debug)]
pub struct DirectoryLeader<C> {
    controller: Controller,
    stepped_at: Duration,
    /// The newest that is committed; `None` before the first.
    committed: Option<Arc<Cluster>>,
    /// For the first leader of all: the cluster that it commits, and the id that it gives.
    first: Cluster,
    first_id: String,
    changes: Changes<C>,
}

impl<C> DirectoryLeader<C> {
    /// `first_id`: for a cluster that has no id yet, which this leader is to give it one.
    pub fn new(
        config: ControllerConfig,
        now: Duration,
        committed: Option<Arc<Cluster>>,
        first: Cluster,
        first_id: String,
    ) -> Self {
        Self {
            controller: Controller::new(config, now),
            stepped_at: now,
            committed,
            first,
            first_id,
            changes: Changes::default(),
        }
    }

    /// How long the driver may wait for something else before it ticks.
    pub fn due_in(&self, now: Duration) -> Duration {
        let due = self.stepped_at.saturating_add(self.controller.steps_within());
        due.saturating_sub(now)
    }

    pub fn committed(&self) -> Option<&Arc<Cluster>> {
        self.committed.as_ref()
    }

    /// How far failovers and switchovers are, for operators.
    pub fn progress(&self, now: Duration) -> Vec<Progress> {
        let cluster = self.committed.as_ref();
        cluster.map_or_else(Vec::new, |cluster| self.controller.progress(now, cluster))
    }

    /// The latest contact with each node that was granted a lease.
    pub fn contacts(&self, now: Duration) -> BTreeMap<NodeId, Contact> {
        self.controller.contacts(now)
    }

    /// Grants a lease, if the cluster knows this very node. The caller has confirmed its
    /// leadership, in this very term, after the request came.
    pub fn renew(
        &mut self,
        now: Duration,
        now_ms: u64,
        renewal: Renewal,
    ) -> (Renewed, Vec<LeaderAction<C>>) {
        let mut actions = Vec::new();
        let renewed = self.grant(now, now_ms, renewal, &mut actions);
        self.propose(&mut actions);
        (renewed, actions)
    }

    pub fn step(
        &mut self,
        now: Duration,
        now_ms: u64,
        event: LeaderEvent<C>,
    ) -> Vec<LeaderAction<C>> {
        let mut actions = Vec::new();
        match event {
            // Where nothing is committed yet, the first cluster is proposed.
            LeaderEvent::Begun => {}
            LeaderEvent::Tick => self.control(now, now_ms, Event::Tick, &mut actions),
            LeaderEvent::Execute { change, actor, caller } => {
                self.changes.ask(change, actor, caller);
            }
            LeaderEvent::Answered(answer) => self.control(now, now_ms, answer, &mut actions),
            LeaderEvent::Committed(cluster) => {
                if let Some(callers) = self.changes.settle() {
                    let executed: Executed = Ok(Arc::clone(&cluster));
                    actions.extend(answers(callers, &executed));
                    self.committed = Some(cluster);
                }
                self.control(now, now_ms, Event::Tick, &mut actions);
            }
            LeaderEvent::NotCommitted => {
                // Nothing has changed; what the controller wanted it wants again.
                let callers = self.changes.settle().into_iter().flatten();
                actions.extend(answers(callers, &Err(ExecuteFailure::NotLeader)));
                self.control(now, now_ms, Event::Tick, &mut actions);
            }
            LeaderEvent::DeletionsDue => self.end_deletions(),
        }
        self.propose(&mut actions);
        actions
    }

    /// The term is over. `in_flight`: the fate of the change that was proposed, as far as it is
    /// known.
    pub fn leave(&mut self, in_flight: ExecuteFailure) -> Vec<LeaderAction<C>> {
        let callers = self.changes.settle().into_iter().flatten();
        let mut actions: Vec<_> = answers(callers, &Err(in_flight)).collect();
        // Waiting changes were not begun.
        let waiting = self.changes.give_up();
        actions.extend(answers(waiting, &Err(ExecuteFailure::NotLeader)));
        actions
    }

    fn grant(
        &mut self,
        now: Duration,
        now_ms: u64,
        renewal: Renewal,
        actions: &mut Vec<LeaderAction<C>>,
    ) -> Renewed {
        let Renewal { node, incarnation, reports, lost } = renewal;
        let Some(cluster) = self.committed.clone() else { return Renewed::NotYet };
        if cluster.id.is_none() {
            // No lease is granted of a cluster that cannot be told from others.
            self.changes.want(Change::NameCluster { id: self.first_id.clone() });
            return Renewed::NotYet;
        }
        if let Some(refusal) = refusal(&cluster, node, &incarnation) {
            return Renewed::Refused(refusal);
        }
        if cluster.nodes.get(&node).is_some_and(|known| known.incarnation.is_none()) {
            // No lease is granted before this node's incarnation is committed.
            self.changes.want(Change::RecordIncarnation { node, incarnation });
            return Renewed::NotYet;
        }
        if let Some(voters) = cluster.founders_that_joined() {
            self.changes.want(Change::SetDirectoryVoters { voters });
        }
        let lease = self.controller.renew(now, &cluster, node);
        lost.iter()
            .filter_map(|tail| shown(&cluster, node, tail))
            .for_each(|change| self.changes.want(change));
        self.control(now, now_ms, Event::Reported { node, reports }, actions);
        let hints = self.controller.progress_hints(&cluster);
        Renewed::Granted { lease, cluster, hints }
    }

    fn control(
        &mut self,
        now: Duration,
        now_ms: u64,
        event: Event,
        actions: &mut Vec<LeaderAction<C>>,
    ) {
        self.stepped_at = now;
        let Some(cluster) = &self.committed else { return };
        for action in self.controller.step(now, cluster, now_ms, event) {
            match action {
                Action::Commit { changes } => self.changes.decided(changes, cluster.version),
                Action::Seal { node, shard, epoch, planned } => {
                    actions.push(LeaderAction::Seal { node, shard, epoch, planned });
                }
                Action::Drain { node, shard, epoch, source, through } => {
                    actions.push(LeaderAction::Drain { node, shard, epoch, source, through });
                }
            }
        }
    }

    /// Each node has dropped the data in the shard's present epoch: so has whatever a failover may
    /// go on from.
    fn end_deletions(&mut self) {
        let Some(cluster) = &self.committed else { return };
        let latest = |node, shard| self.controller.latest_report(node, shard);
        let ended = deletions::ended(cluster, latest);
        if !ended.is_empty() {
            self.changes.concluded(ended, cluster.version);
        }
    }

    fn propose(&mut self, actions: &mut Vec<LeaderAction<C>>) {
        self.changes.propose(self.committed.as_deref(), &self.first, actions);
    }
}

fn answers<C>(
    callers: impl IntoIterator<Item = C>,
    executed: &Executed,
) -> impl Iterator<Item = LeaderAction<C>> {
    callers
        .into_iter()
        .map(move |caller| LeaderAction::Answer { caller, executed: executed.clone() })
}

/// The reason why a node gets no lease, if it is not the node that the cluster knows by this id.
fn refusal(cluster: &Cluster, id: NodeId, incarnation: &str) -> Option<String> {
    match cluster.nodes.get(&id) {
        None => Some(format!("node {id} is not in the cluster: add it with `meridian nodes add`")),
        Some(node) if node.removed => Some(format!(
            "node {id} was removed from the cluster. An id is never used again: `meridian nodes \
             add` gives a new one"
        )),
        Some(node) if node.incarnation.as_ref().is_some_and(|known| known != incarnation) => {
            Some(format!(
                "node {id} has another data folder than the cluster knows: it was \
                 wiped, or the id is used twice. A node that lost its data gets a new id: \
                 `meridian node replace {id}`"
            ))
        }
        Some(_) => None,
    }
}

/// The change by which a node shows a lost tail, if it is news.
fn shown(cluster: &Cluster, node: NodeId, tail: &LostTail) -> Option<Change> {
    let LostTail { shard, epoch, transactions, at_most, last_time_ms } = *tail;
    let report = cluster.shards.get(&shard)?.reports.iter().find(|report| report.epoch == epoch)?;
    let is_news = !report.loss.shown_by.contains(&node);
    is_news.then_some(Change::ShowLoss { shard, epoch, node, transactions, at_most, last_time_ms })
}

#[cfg(test)]
mod tests;
