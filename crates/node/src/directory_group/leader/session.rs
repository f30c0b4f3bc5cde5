//! What the directory's leader knows and does in one term: it commits changes one after the other,
//! grants leases, and carries out what the controller decides.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use meridian_directory::{Change, Cluster};
use meridian_failover::{Action, Controller, Event, Progress};
use meridian_gateway::new_request_id;
use meridian_proto::directory::{self as wire, failover_client::FailoverClient, renew_response};
use meridian_proto::shard_report;
use meridian_types::{Epoch, NodeId, Position, ShardId, Versionstamp, WriteOutcome};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::decline::decline;
use super::{ExecuteFailure, Executed, Inspection, LeaderParts, Request, learn_own};
use crate::cluster_view::directory_shard::{DIRECTORY_DATABASE, DIRECTORY_GROUP};
use crate::cluster_view::wire::{
    self as from_wire, cluster_to_wire, lease_to_wire, progress_hint_to_wire,
};
use crate::directory_group::calls::{Calls, Question};
use crate::directory_group::deletions::ended_deletions;
use crate::directory_group::record::{self, Recorded};
use crate::host::clock::wall_ms;
use crate::replication::wire::{position, position_to_wire};
use crate::write::proposer::{WriteReply, WriteRequest};

/// What the session is told by tasks of its own.
pub(super) enum Internal {
    Committed(WriteReply),
    Answer(Event),
}

pub(super) struct Pending {
    /// Made one after the other.
    pub(super) changes: Vec<Change>,
    pub(super) actor: String,
    /// The version that the controller decided upon: made of another, all of it is dropped, and the
    /// controller looks again.
    pub(super) decided_at: Option<u64>,
    pub(super) reply: Option<oneshot::Sender<Executed>>,
}

pub(super) struct InFlight {
    pub(super) next: Cluster,
    pub(super) replies: Vec<oneshot::Sender<Executed>>,
}

/// The state is not what this leader takes it for.
pub(super) struct StateMismatch;

/// One term of leadership.
pub(super) struct Session {
    pub(super) parts: Arc<LeaderParts>,
    pub(super) term: u64,
    pub(super) controller: Controller,
    /// What is committed, and the versionstamp to commit the next against; `None` before the first.
    pub(super) base: Option<(Cluster, Versionstamp)>,
    pub(super) pending: VecDeque<Pending>,
    /// One commit at a time: each is made from what the one before left.
    pub(super) in_flight: Option<InFlight>,
    /// The members that the group is being brought to.
    pub(super) changing: Option<(BTreeSet<NodeId>, JoinHandle<()>)>,
    pub(super) calls: Calls,
    pub(super) internal: mpsc::UnboundedSender<Internal>,
    /// Each step of the controller is as good as a tick.
    pub(super) stepped_at: tokio::time::Instant,
}

impl Session {
    pub(super) fn new(
        parts: Arc<LeaderParts>,
        term: u64,
        internal: mpsc::UnboundedSender<Internal>,
    ) -> Self {
        let base = record::read_cluster(&parts.voter.state);
        let version = base.as_ref().map_or(0, |(cluster, _)| cluster.version);
        tracing::info!(term, version, "this node leads the directory");
        Self {
            controller: Controller::new(parts.config.clone(), parts.directory.now()),
            parts,
            term,
            base,
            pending: VecDeque::new(),
            in_flight: None,
            changing: None,
            calls: Calls::default(),
            internal,
            stepped_at: tokio::time::Instant::now(),
        }
    }

    /// When the controller is to step next, whatever happens until then.
    pub(super) fn steps_by(&self) -> tokio::time::Instant {
        self.stepped_at + self.controller.steps_within()
    }

    fn now(&self) -> Duration {
        self.parts.directory.now()
    }

    pub(super) fn serve(&mut self, request: Request) {
        match request {
            Request::Renew { term, request, reply } if term == self.term => {
                // The caller may have disconnected; it will renew again.
                drop(reply.send(self.renew(request)));
            }
            Request::Execute { change, actor, reply } => {
                self.pending.push_back(Pending {
                    changes: vec![*change],
                    actor,
                    decided_at: None,
                    reply: Some(reply),
                });
            }
            Request::Inspect { reply } => drop(reply.send(self.inspect())),
            other => decline(other, None),
        }
    }

    fn inspect(&self) -> Inspection {
        let mut progress = match &self.base {
            Some((cluster, _)) => self.controller.progress(self.now(), cluster),
            None => Vec::new(),
        };
        if let Some(goal) = self.members_wanted() {
            let (shard, members) = (DIRECTORY_GROUP.shard, self.parts.voter.group.voters());
            let text = match members == goal {
                true => format!("its members are becoming just nodes {goal:?}"),
                false => {
                    format!("its members are nodes {members:?}, and are to be {goal:?}")
                }
            };
            progress.push(Progress { shard, text });
        }
        Inspection { progress, contacts: self.controller.contacts(self.now()) }
    }

    pub(super) fn renew(&mut self, request: wire::RenewRequest) -> renew_response::Result {
        use renew_response::Result as Wire;
        let now = self.now();
        let Some((cluster, _)) = &self.base else { return Wire::NotLeader(0) };
        if cluster.id.is_none() {
            // No lease is granted of a cluster that cannot be told from others.
            self.change(Change::NameCluster { id: Uuid::new_v4().simple().to_string() });
            return Wire::NotLeader(0);
        }
        let id = NodeId(request.node_id);
        let incarnation: String =
            request.incarnation.iter().map(|byte| format!("{byte:02x}")).collect();
        if let Some(refusal) = refusal_of_renewal(cluster, id, &incarnation) {
            return Wire::Refused(refusal);
        }
        if cluster.nodes.get(&id).is_some_and(|node| node.incarnation.is_none()) {
            // No lease is granted before this node's incarnation is committed.
            self.change(Change::RecordIncarnation { node: id, incarnation });
            return Wire::NotLeader(0);
        }
        let Some((cluster, _)) = &self.base else { return Wire::NotLeader(0) };
        let lease = self.controller.renew(now, cluster, id);
        let newer = (request.known_version < cluster.version).then(|| cluster_to_wire(cluster));
        let shown: Vec<Change> = request
            .orphans
            .iter()
            .filter_map(|orphans| from_wire::shown(cluster, id, orphans))
            .collect();
        for change in shown {
            self.change(change);
        }
        let reports = request.reports.into_iter().filter_map(shard_report).collect();
        self.step(Event::Reported { node: id, reports });
        let furthest = match &self.base {
            Some((cluster, _)) => {
                self.controller.progress_hints(cluster).iter().map(progress_hint_to_wire).collect()
            }
            None => Vec::new(),
        };
        Wire::Lease(wire::Lease { cluster: newer, furthest, ..lease_to_wire(&lease) })
    }

    pub(super) fn step(&mut self, event: Event) {
        self.stepped_at = tokio::time::Instant::now();
        let Some((cluster, _)) = &self.base else { return };
        let version = cluster.version;
        let actions = self.controller.step(self.parts.directory.now(), cluster, wall_ms(), event);
        for action in actions {
            match action {
                Action::Commit { changes } => self.decided(changes, version),
                Action::Seal { node, shard, epoch, planned } => {
                    self.seal(node, shard, epoch, planned)
                }
                Action::Drain { node, shard, epoch, source, through } => {
                    self.drain(node, shard, epoch, source, through);
                }
            }
        }
    }

    pub(super) fn seal(&mut self, node: NodeId, shard: ShardId, epoch: Epoch, planned: bool) {
        let Some(channel) = self.parts.peers.control(node) else { return };
        let request = wire::SealRequest { shard: shard.0, epoch: epoch.0.into(), planned };
        self.ask(node, Question::Seal { shard, planned }, async move {
            let answer = FailoverClient::new(channel).seal(request).await?.into_inner();
            let answer = from_wire::seal_answer(shard, epoch, planned, &answer);
            Ok(answer.map(|answer| Event::Sealed { node, answer }))
        });
    }

    pub(super) fn drain(
        &mut self,
        node: NodeId,
        shard: ShardId,
        epoch: Epoch,
        source: NodeId,
        through: Position,
    ) {
        // What is pulled there is no work for connections that keep leases.
        let Some(channel) = self.parts.peers.requests(node) else { return };
        let request = wire::DrainRequest {
            shard: shard.0,
            epoch: epoch.0.into(),
            source: source.0,
            through: Some(position_to_wire(through)),
        };
        self.ask(node, Question::Drain { shard, source, through }, async move {
            let answer = FailoverClient::new(channel).drain(request).await?.into_inner();
            let position = answer.position.and_then(position);
            Ok(position.map(|position| Event::Drained { node, shard, epoch, position }))
        });
    }

    fn ask(
        &mut self,
        node: NodeId,
        question: Question,
        ask: impl Future<Output = Result<Option<Event>, tonic::Status>> + Send + 'static,
    ) {
        let internal = self.internal.clone();
        // The leader's term is over when it is not taken.
        self.calls
            .ask(node, question, ask, move |event| drop(internal.send(Internal::Answer(event))));
    }

    /// To be committed next, if it is not waiting already.
    pub(super) fn change(&mut self, change: Change) {
        let is_known = self.pending.iter().any(|pending| pending.changes.contains(&change));
        if !is_known {
            let (changes, actor) = (vec![change], "directory".to_owned());
            self.pending.push_back(Pending { changes, actor, decided_at: None, reply: None });
        }
    }

    /// What the controller has decided, in place of what it decided before. It goes before all
    /// else, which would change what it was decided upon.
    pub(super) fn decided(&mut self, changes: Vec<Change>, version: u64) {
        self.pending.retain(|pending| pending.decided_at.is_none());
        let (decided_at, actor) = (Some(version), "directory".to_owned());
        self.pending.push_front(Pending { changes, actor, decided_at, reply: None });
    }

    /// Commits what waits, together, unless a commit is in flight.
    pub(super) fn commit(&mut self) {
        if self.in_flight.is_some() {
            return;
        }
        let stamp = self.base.as_ref().map(|(_, stamp)| *stamp);
        let mut next = match &self.base {
            Some((cluster, _)) => cluster.clone(),
            None => Cluster { version: 1, ..self.parts.first.clone() },
        };
        let (recorded, replies) = self.apply_pending(&mut next);
        if recorded.is_empty() && self.base.is_some() {
            return;
        }
        let request = WriteRequest {
            database: DIRECTORY_DATABASE,
            request_id: new_request_id(),
            transaction: record::transaction(stamp, &next, &recorded),
            retry: false,
        };
        let (voter, internal) = (Arc::clone(&self.parts.voter), self.internal.clone());
        tokio::spawn(async move {
            let reply = voter.write_when_led(request, None, Duration::MAX).await;
            drop(internal.send(Internal::Committed(reply)));
        });
        self.in_flight = Some(InFlight { next, replies });
    }

    /// Makes `next` of what waits. What is refused is answered; the others' replies come with the
    /// changes that are made.
    fn apply_pending(
        &mut self,
        next: &mut Cluster,
    ) -> (Vec<Recorded>, Vec<oneshot::Sender<Executed>>) {
        let (mut recorded, mut replies) = (Vec::new(), Vec::new());
        for Pending { changes, actor, decided_at, reply } in self.pending.drain(..) {
            if decided_at.is_some_and(|version| version != next.version) {
                continue;
            }
            let mut refusal = None;
            for change in changes {
                let shown = change.without_secrets();
                match next.apply(&change) {
                    Ok(()) => {
                        tracing::info!(version = next.version, actor, change = ?shown, "the cluster changes");
                        let made = Recorded::new(next.version, wall_ms(), actor.clone(), change);
                        recorded.push(made);
                    }
                    Err(refused) => {
                        tracing::debug!(change = ?shown, %refused, "a change came too late");
                        refusal = Some(refused.to_string());
                    }
                }
            }
            match (reply, refusal) {
                (Some(reply), Some(refusal)) => {
                    drop(reply.send(Err(ExecuteFailure::Refused(refusal))));
                }
                (reply, _) => replies.extend(reply),
            }
        }
        (recorded, replies)
    }

    pub(super) fn committed(&mut self, reply: WriteReply) -> Result<(), StateMismatch> {
        let Some(InFlight { next, replies }) = self.in_flight.take() else { return Ok(()) };
        if let Some(WriteOutcome::Committed(stamp)) = reply.outcome().cloned() {
            learn_own(&self.parts.directory, next.clone());
            for reply in replies {
                drop(reply.send(Ok(next.clone())));
            }
            self.base = Some((next, stamp));
            return Ok(());
        }
        let failure = match &reply {
            WriteReply::NotLeader(_) | WriteReply::NotCommitted(_) => ExecuteFailure::NotLeader,
            _ => ExecuteFailure::Unknown,
        };
        tracing::info!(?reply, "a change of the cluster did not commit here");
        replies.into_iter().for_each(|reply| drop(reply.send(Err(failure.clone()))));
        match reply {
            // Nothing has changed; what the controller wanted it wants again.
            WriteReply::NotCommitted(_) => Ok(()),
            _ => Err(StateMismatch),
        }
    }

    /// The members that the directory group is to have, if it has others.
    pub(super) fn members_wanted(&self) -> Option<BTreeSet<NodeId>> {
        let (cluster, _) = self.base.as_ref()?;
        let stable = self.parts.voter.group.stable_voters();
        (stable.as_ref() != Some(&cluster.directory_voters))
            .then(|| cluster.directory_voters.clone())
    }

    /// Brings the directory group's own members to what the cluster says.
    pub(super) fn change_members(&mut self) {
        let Some(wanted) = self.members_wanted() else { return };
        let group = self.parts.voter.group.clone();
        if let Some((goal, change)) = &self.changing {
            if *goal == wanted && !change.is_finished() {
                return;
            }
            change.abort();
        }
        let goal = wanted.clone();
        let change = tokio::spawn(async move {
            if let Err(error) = group.change_voters(&wanted).await {
                tracing::info!(%error, "the directory's members are not yet what they are to be");
            }
        });
        self.changing = Some((goal, change));
    }

    /// Forgets the databases whose data no node has any more. Each has dropped it in the shard's
    /// present epoch: so has whatever a failover may go on from.
    pub(super) fn end_deletions(&mut self) {
        let Some((cluster, _)) = &self.base else { return };
        let version = cluster.version;
        let ended =
            ended_deletions(cluster, |node, shard| self.controller.latest_report(node, shard));
        if !ended.is_empty() {
            let (decided_at, actor) = (Some(version), "directory".to_owned());
            self.pending.push_back(Pending { changes: ended, actor, decided_at, reply: None });
        }
    }

    /// The term is over.
    pub(super) fn leave(&mut self) {
        if let Some((_, change)) = &self.changing {
            change.abort();
        }
        let unknown = self.in_flight.take().into_iter().flat_map(|in_flight| in_flight.replies);
        unknown.for_each(|reply| drop(reply.send(Err(ExecuteFailure::Unknown))));
        let pending = self.pending.drain(..).filter_map(|pending| pending.reply);
        pending.for_each(|reply| drop(reply.send(Err(ExecuteFailure::NotLeader))));
    }
}

/// Why a node gets no lease, if it is not the node that the cluster knows by this id.
fn refusal_of_renewal(cluster: &Cluster, id: NodeId, incarnation: &str) -> Option<String> {
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
