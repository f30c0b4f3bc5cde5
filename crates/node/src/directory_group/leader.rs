//! The directory's leader: commits changes, grants leases, and carries out what the controller
//! decides.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use meridian_directory::{Change, Cluster};
use meridian_failover::{Action, Controller, ControllerConfig, Event, Progress};
use meridian_proto::directory::{self as wire, failover_client::FailoverClient, renew_response};
use meridian_proto::shard_report;
use meridian_types::{Epoch, NodeId, Position, RequestId, ShardId, Versionstamp, WriteOutcome};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::cluster_view::bootstrap::{DIRECTORY_DATABASE, DIRECTORY_GROUP};
use crate::cluster_view::view::Directory;
use crate::cluster_view::wire::{
    self as from_wire, cluster_to_wire, lease_to_wire, progress_hint_to_wire,
};
use crate::directory_group::calls::{Calls, Question};
use crate::directory_group::deletions::ended_deletions;
use crate::directory_group::record::{self, Recorded};
use crate::host::clock::wall_ms;
use crate::network::peers::PeerChannels;
use crate::replication::wire::{position, position_to_wire};
use crate::shard::voter::Voter;
use crate::write::proposer::{WriteReply, WriteRequest};

const QUEUE: usize = 1024;

/// What became of a change.
pub(crate) type Executed = Result<Cluster, ExecuteFailure>;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ExecuteFailure {
    Refused(String),
    /// Nothing was done here.
    NotLeader,
    /// It may have been made, or be made yet.
    Unknown,
}

/// What only the leader can tell.
#[derive(Default)]
pub(crate) struct Inspection {
    pub(crate) progress: Vec<Progress>,
    pub(crate) contacts: Vec<wire::NodeContact>,
}

enum Request {
    /// `term`: leadership was confirmed in it after the request came.
    Renew {
        term: u64,
        request: wire::RenewRequest,
        reply: oneshot::Sender<renew_response::Result>,
    },
    Execute {
        change: Box<Change>,
        actor: String,
        reply: oneshot::Sender<Executed>,
    },
    Inspect {
        reply: oneshot::Sender<Inspection>,
    },
}

/// This node's part in the directory group.
pub(crate) struct DirectoryVoter {
    pub(crate) voter: Arc<Voter>,
    requests: mpsc::Sender<Request>,
}

/// What it works with.
pub(crate) struct LeaderParts {
    pub(crate) voter: Arc<Voter>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    /// What the first leader commits.
    pub(crate) first: Cluster,
    pub(crate) config: ControllerConfig,
}

impl DirectoryVoter {
    /// Ends with `stop`.
    pub(crate) fn start(parts: LeaderParts, stop: &CancellationToken) -> Arc<Self> {
        let (requests, inbox) = mpsc::channel(QUEUE);
        let voter = Arc::clone(&parts.voter);
        tokio::spawn(publish(Arc::clone(&voter), Arc::clone(&parts.directory), stop.clone()));
        let task = Task { parts: Arc::new(parts), inbox };
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = task.run() => {}
            }
        });
        Arc::new(Self { voter, requests })
    }

    /// Grants a lease, if this node leads the directory at some time after this call.
    pub(crate) async fn renew(&self, request: wire::RenewRequest) -> renew_response::Result {
        let not_leader =
            |leader: Option<NodeId>| renew_response::Result::NotLeader(leader.unwrap_or(0));
        let term = match self.voter.confirm().await {
            Ok(term) => term,
            Err(not_leading) => return not_leader(not_leading.leader),
        };
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Renew { term, request, reply }).await.is_err() {
            return not_leader(None);
        }
        answer.await.unwrap_or_else(|_| not_leader(None))
    }

    pub(crate) async fn execute(&self, change: Change, actor: String) -> Executed {
        let (reply, answer) = oneshot::channel();
        let request = Request::Execute { change: Box::new(change), actor, reply };
        if self.voter.group.leadership().is_err() || self.requests.send(request).await.is_err() {
            return Err(ExecuteFailure::NotLeader);
        }
        answer.await.unwrap_or(Err(ExecuteFailure::Unknown))
    }

    /// `None` where this node does not lead.
    pub(crate) async fn inspect(&self) -> Option<Inspection> {
        self.voter.group.leadership().ok()?;
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Inspect { reply }).await.ok()?;
        answer.await.ok()
    }

    /// The latest changes, newest first, as far as they are applied here.
    pub(crate) fn changes(&self, limit: u32) -> Vec<Recorded> {
        record::read_changes(&self.voter.state, limit)
    }
}

/// Of this node's own directory group, which every call of another cluster is kept from.
fn learn_own(directory: &Directory, cluster: Cluster) {
    if let Err(foreign) = directory.learn(cluster) {
        tracing::error!(%foreign, "this node's directory group is not of its cluster");
    }
}

/// Tells this process of every cluster that is applied here.
async fn publish(voter: Arc<Voter>, directory: Arc<Directory>, stop: CancellationToken) {
    let mut applied = voter.group.applied();
    loop {
        if let Some((cluster, _)) = record::read_cluster(&voter.state) {
            learn_own(&directory, cluster);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = applied.changed() => if changed.is_err() { return },
        }
    }
}

/// The leader's task on one voter.
struct Task {
    parts: Arc<LeaderParts>,
    inbox: mpsc::Receiver<Request>,
}

impl Task {
    async fn run(mut self) {
        let group = self.parts.voter.group.clone();
        loop {
            match group.leadership() {
                Ok(leadership) => {
                    if self.lead(leadership.term).await.is_none() {
                        return;
                    }
                }
                Err(_) => tokio::select! {
                    biased;
                    () = group.leadership_changed(None) => {}
                    request = self.inbox.recv() => match request {
                        // Who leads may have changed while nobody asked.
                        Some(request) => decline(request, group.leadership().err().and_then(|other| other.leader)),
                        None => return,
                    },
                },
            }
        }
    }

    /// Leads in one term, until leadership is lost or the state is not what this leader takes it
    /// for. `None`: nobody can ask any more.
    async fn lead(&mut self, term: u64) -> Option<()> {
        let group = self.parts.voter.group.clone();
        let lost = group.leadership_changed(Some(term));
        tokio::pin!(lost);
        let mut applied = group.applied();
        while applied.borrow_and_update().1 < term {
            tokio::select! {
                () = &mut lost => return Some(()),
                changed = applied.changed() => changed.ok()?,
                request = self.inbox.recv() => decline(request?, None),
            }
        }
        let (internal, mut events) = mpsc::unbounded_channel();
        let now = self.parts.directory.now();
        let mut session = Session {
            parts: Arc::clone(&self.parts),
            term,
            controller: Controller::new(self.parts.config.clone(), now),
            base: record::read_cluster(&self.parts.voter.state),
            pending: VecDeque::new(),
            in_flight: None,
            contacts: Vec::new(),
            changing: None,
            calls: Calls::default(),
            internal,
            stepped_at: tokio::time::Instant::now(),
        };
        tracing::info!(
            term,
            version = session.base.as_ref().map_or(0, |(cluster, _)| cluster.version),
            "this node leads the directory"
        );
        session.commit();
        let mut members = tokio::time::interval(Duration::from_secs(1));
        loop {
            let due = session.stepped_at + session.controller.steps_within();
            tokio::select! {
                biased;
                () = &mut lost => break,
                Some(event) = events.recv() => match event {
                    Internal::Committed(reply) => {
                        if session.committed(reply).is_err() {
                            break;
                        }
                        session.step(Event::Tick);
                    }
                    Internal::Answer(event) => session.step(event),
                },
                request = self.inbox.recv() => session.serve(request?),
                () = tokio::time::sleep_until(due) => session.step(Event::Tick),
                _ = members.tick() => {
                    session.settle_members();
                    session.end_deletions();
                }
            }
            session.commit();
        }
        session.leave();
        Some(())
    }
}

fn decline(request: Request, leader: Option<NodeId>) {
    match request {
        Request::Renew { reply, .. } => {
            drop(reply.send(renew_response::Result::NotLeader(leader.unwrap_or(0))))
        }
        Request::Execute { reply, .. } => drop(reply.send(Err(ExecuteFailure::NotLeader))),
        // Its sender is told by the closed channel.
        Request::Inspect { .. } => {}
    }
}

enum Internal {
    Committed(WriteReply),
    Answer(Event),
}

struct Pending {
    /// Made one after the other.
    changes: Vec<Change>,
    actor: String,
    /// The version that the controller decided upon: made of another, all of it is dropped, and the
    /// controller looks again.
    decided_at: Option<u64>,
    reply: Option<oneshot::Sender<Executed>>,
}

struct InFlight {
    next: Cluster,
    replies: Vec<oneshot::Sender<Executed>>,
}

/// The state is not what this leader takes it for.
struct Astray;

/// One term of leadership.
struct Session {
    parts: Arc<LeaderParts>,
    term: u64,
    controller: Controller,
    /// What is committed, and the versionstamp to commit the next against; `None` before the first.
    base: Option<(Cluster, Versionstamp)>,
    pending: VecDeque<Pending>,
    /// One commit at a time: each is made from what the one before left.
    in_flight: Option<InFlight>,
    contacts: Vec<(NodeId, Duration, Vec<wire::ShardReport>)>,
    /// The members that the group is being brought to.
    changing: Option<(BTreeSet<NodeId>, JoinHandle<()>)>,
    calls: Calls,
    internal: mpsc::UnboundedSender<Internal>,
    /// Each step of the controller is as good as a tick.
    stepped_at: tokio::time::Instant,
}

impl Session {
    fn now(&self) -> Duration {
        self.parts.directory.now()
    }

    fn serve(&mut self, request: Request) {
        match request {
            Request::Renew { term, request, reply } if term == self.term => {
                // Who is gone asks again.
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
            Request::Inspect { reply } => {
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
                let age = |at: Duration| {
                    u64::try_from(self.now().saturating_sub(at).as_millis()).unwrap_or(u64::MAX)
                };
                let contacts = self.contacts.iter().map(|(node, at, reports)| wire::NodeContact {
                    node_id: *node,
                    age_ms: age(*at),
                    reports: reports.clone(),
                });
                drop(reply.send(Inspection { progress, contacts: contacts.collect() }));
            }
            other => decline(other, None),
        }
    }

    fn renew(&mut self, request: wire::RenewRequest) -> renew_response::Result {
        use renew_response::Result as Wire;
        let now = self.now();
        let Some((cluster, _)) = &self.base else { return Wire::NotLeader(0) };
        if cluster.id.is_none() {
            // Nobody gets a lease of a cluster that cannot be told from others.
            self.change(Change::NameCluster { id: Uuid::new_v4().simple().to_string() });
            return Wire::NotLeader(0);
        }
        let id = request.node_id;
        let incarnation: String =
            request.incarnation.iter().map(|byte| format!("{byte:02x}")).collect();
        match cluster.nodes.get(&id) {
            None => {
                return Wire::Refused(format!(
                    "node {id} is not in the cluster: add it with `meridian nodes add`"
                ));
            }
            Some(node) if node.removed => {
                return Wire::Refused(format!(
                    "node {id} was removed from the cluster. An id is never used again: `meridian nodes add` gives a \
                     new one"
                ));
            }
            Some(node) if node.incarnation.as_ref().is_some_and(|known| *known != incarnation) => {
                return Wire::Refused(format!(
                    "node {id} has another data folder than the one that the cluster knows: it was wiped, or the id is \
                     used twice. A node that lost its data gets a new id: `meridian node replace {id}`"
                ));
            }
            Some(node) if node.incarnation.is_none() => {
                // Nobody is vouched for before it is written down whom the cluster knows by this
                // id.
                self.change(Change::RecordIncarnation { node: id, incarnation });
                return Wire::NotLeader(0);
            }
            Some(_) => {}
        }
        let Some((cluster, _)) = &self.base else { return Wire::NotLeader(0) };
        let lease = self.controller.renew(now, cluster, id);
        let newer = (request.known_version < cluster.version).then(|| cluster_to_wire(cluster));
        self.contacts.retain(|(node, ..)| *node != id);
        self.contacts.push((id, now, request.reports.clone()));
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

    fn step(&mut self, event: Event) {
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

    fn seal(&mut self, node: NodeId, shard: ShardId, epoch: Epoch, planned: bool) {
        let Some(channel) = self.parts.peers.control(node) else { return };
        let request = wire::SealRequest { shard: shard.0, epoch: epoch.0.into(), planned };
        self.ask(node, Question::Seal { shard, planned }, async move {
            let answer = FailoverClient::new(channel).seal(request).await?.into_inner();
            let answer = from_wire::seal_answer(shard, epoch, planned, &answer);
            Ok(answer.map(|answer| Event::Sealed { node, answer }))
        });
    }

    fn drain(
        &mut self,
        node: NodeId,
        shard: ShardId,
        epoch: Epoch,
        source: NodeId,
        through: Position,
    ) {
        // What is pulled there is no work for those who keep leases.
        let Some(channel) = self.parts.peers.requests(node) else { return };
        let request = wire::DrainRequest {
            shard: shard.0,
            epoch: epoch.0.into(),
            source,
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
        // The leader's term is over when nobody takes it.
        self.calls
            .ask(node, question, ask, move |event| drop(internal.send(Internal::Answer(event))));
    }

    /// To be committed next, if it is not waiting already.
    fn change(&mut self, change: Change) {
        let is_known = self.pending.iter().any(|pending| pending.changes.contains(&change));
        if !is_known {
            let (changes, actor) = (vec![change], "directory".to_owned());
            self.pending.push_back(Pending { changes, actor, decided_at: None, reply: None });
        }
    }

    /// What the controller has decided, in place of what it decided before. It goes before all
    /// else, which would change what it was decided upon.
    fn decided(&mut self, changes: Vec<Change>, version: u64) {
        self.pending.retain(|pending| pending.decided_at.is_none());
        let (decided_at, actor) = (Some(version), "directory".to_owned());
        self.pending.push_front(Pending { changes, actor, decided_at, reply: None });
    }

    /// Commits what waits, together, unless a commit is in flight.
    fn commit(&mut self) {
        if self.in_flight.is_some() {
            return;
        }
        let stamp = self.base.as_ref().map(|(_, stamp)| *stamp);
        let mut replies = Vec::new();
        let mut recorded = Vec::new();
        let mut next = match &self.base {
            Some((cluster, _)) => cluster.clone(),
            None => Cluster { version: 1, ..self.parts.first.clone() },
        };
        for Pending { changes, actor, decided_at, reply } in self.pending.drain(..) {
            if decided_at.is_some_and(|version| version != next.version) {
                continue;
            }
            let mut refusal = None;
            for change in changes {
                match next.apply(&change) {
                    Ok(()) => {
                        let shown = change.without_secrets();
                        tracing::info!(version = next.version, actor, change = ?shown, "the cluster changes");
                        recorded.push(Recorded::new(
                            next.version,
                            wall_ms(),
                            actor.clone(),
                            change,
                        ));
                    }
                    Err(refused) => {
                        let shown = change.without_secrets();
                        tracing::debug!(change = ?shown, %refused, "a change came too late");
                        refusal = Some(refused.to_string());
                    }
                }
            }
            match (reply, refusal) {
                (Some(reply), Some(refusal)) => {
                    drop(reply.send(Err(ExecuteFailure::Refused(refusal))))
                }
                (reply, _) => replies.extend(reply),
            }
        }
        if recorded.is_empty() && self.base.is_some() {
            return;
        }
        let request = WriteRequest {
            database: DIRECTORY_DATABASE,
            request_id: RequestId::generate(),
            transaction: record::transaction(stamp, &next, &recorded),
            retry: false,
        };
        let (voter, internal) = (Arc::clone(&self.parts.voter), self.internal.clone());
        tokio::spawn(async move {
            let reply = voter.write(request, None, Duration::MAX).await;
            drop(internal.send(Internal::Committed(reply)));
        });
        self.in_flight = Some(InFlight { next, replies });
    }

    fn committed(&mut self, reply: WriteReply) -> Result<(), Astray> {
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
            _ => Err(Astray),
        }
    }

    /// The members that the directory group is to have, if it has others.
    fn members_wanted(&self) -> Option<BTreeSet<NodeId>> {
        let (cluster, _) = self.base.as_ref()?;
        let settled = self.parts.voter.group.settled_voters();
        (settled.as_ref() != Some(&cluster.directory_voters))
            .then(|| cluster.directory_voters.clone())
    }

    /// Brings the directory group's own members to what the cluster says.
    fn settle_members(&mut self) {
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
    fn end_deletions(&mut self) {
        let Some((cluster, _)) = &self.base else { return };
        let version = cluster.version;
        let ended = ended_deletions(cluster, &self.contacts);
        if !ended.is_empty() {
            let (decided_at, actor) = (Some(version), "directory".to_owned());
            self.pending.push_back(Pending { changes: ended, actor, decided_at, reply: None });
        }
    }

    fn leave(self) {
        if let Some((_, change)) = &self.changing {
            change.abort();
        }
        let unknown = self.in_flight.into_iter().flat_map(|in_flight| in_flight.replies);
        unknown.for_each(|reply| drop(reply.send(Err(ExecuteFailure::Unknown))));
        let pending = self.pending.into_iter().filter_map(|pending| pending.reply);
        pending.for_each(|reply| drop(reply.send(Err(ExecuteFailure::NotLeader))));
    }
}

#[cfg(test)]
mod tests;
