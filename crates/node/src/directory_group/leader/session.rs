//! The directory's leader in one term: carries out what [`DirectoryLeader`] decides.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use meridian_directory::Cluster;
use meridian_failover::{
    DirectoryLeader, Event, ExecuteFailure, Executed, LeaderAction, LeaderEvent, Made, Progress,
    Renewed,
};
use meridian_gateway::new_request_id;
use meridian_proto::directory::{self as wire, failover_client::FailoverClient, renew_response};
use meridian_types::{Epoch, NodeId, Position, ShardId, Versionstamp, WriteOutcome};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::decline::decline;
use super::{Inspection, LeaderParts, Request, learn_own};
use crate::cluster_view::directory_shard::{DIRECTORY_DATABASE, DIRECTORY_GROUP};
use crate::cluster_view::wire::{renewal, renewed_to_wire, seal_answer};
use crate::directory_group::calls::{Calls, Question};
use crate::directory_group::record::{self, Recorded};
use crate::directory_group::token_uses::TokenUses;
use crate::host::clock::wall_ms;
use crate::replication::wire::{position, position_to_wire};
use crate::write::proposer::{WriteReply, WriteRequest};

/// News of tasks of the session's own.
pub(super) enum Internal {
    /// The end of a proposal: the cluster that was to be committed, and the proposer's word.
    Committed {
        next: Arc<Cluster>,
        reply: WriteReply,
    },
    Answer(Event),
}

/// One term of leadership.
pub(super) struct Session {
    pub(super) parts: Arc<LeaderParts>,
    pub(super) term: u64,
    pub(super) leader: DirectoryLeader<oneshot::Sender<Executed>>,
    /// The versionstamp of the committed cluster, which the next is committed against; `None` before
    /// the first.
    pub(super) stamp: Option<Versionstamp>,
    /// The members that the group is being brought to.
    changing: Option<(BTreeSet<NodeId>, JoinHandle<()>)>,
    calls: Calls,
    uses: TokenUses,
    internal: mpsc::UnboundedSender<Internal>,
}

impl Session {
    /// To be called when everything in the log up to the start of the term is applied.
    pub(super) fn new(
        parts: Arc<LeaderParts>,
        term: u64,
        internal: mpsc::UnboundedSender<Internal>,
    ) -> Self {
        let (committed, stamp) = record::read_cluster(&parts.voter.state).unzip();
        let version = committed.as_ref().map_or(0, |cluster| cluster.version);
        tracing::info!(term, version, "this node leads the directory");
        let leader = DirectoryLeader::new(
            parts.config.clone(),
            parts.directory.now(),
            committed.map(Arc::new),
            parts.first.clone(),
            Uuid::new_v4().simple().to_string(),
        );
        let (changing, calls, uses) = (None, Calls::default(), TokenUses::default());
        Self { parts, term, leader, stamp, changing, calls, uses, internal }
    }

    /// How long until the next tick, whatever happens until then.
    pub(super) fn due_in(&self) -> Duration {
        self.leader.due_in(self.now())
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
                self.step(LeaderEvent::Execute { change: *change, actor, caller: reply });
            }
            Request::Inspect { reply } => drop(reply.send(self.inspect())),
            other => decline(other, None),
        }
    }

    fn inspect(&self) -> Inspection {
        let mut progress = self.leader.progress(self.now());
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
        Inspection { progress, contacts: self.leader.contacts(self.now()) }
    }

    pub(super) fn renew(&mut self, request: wire::RenewRequest) -> renew_response::Result {
        let known_version = request.known_version;
        let uses = request.token_uses.clone();
        let (renewed, actions) = self.leader.renew(self.now(), wall_ms(), renewal(request));
        self.carry_out(actions);
        if matches!(renewed, Renewed::Granted { .. }) {
            self.hear_of_tokens(&uses);
        }
        renewed_to_wire(renewed, known_version)
    }

    /// Uses that were heard are stored in time; they are lost with the leader until then.
    fn hear_of_tokens(&mut self, uses: &[wire::TokenUse]) {
        let Some(cluster) = self.leader.committed() else { return };
        self.uses.hear(uses, cluster, wall_ms());
        let due = self.uses.due(self.parts.directory.now(), cluster, &self.parts.voter.state);
        let Some(transaction) = due else { return };
        let request = WriteRequest {
            database: DIRECTORY_DATABASE,
            request_id: new_request_id(),
            transaction,
            retry: false,
        };
        let voter = Arc::clone(&self.parts.voter);
        tokio::spawn(async move { drop(voter.write_when_led(request, None, Duration::MAX).await) });
    }

    pub(super) fn step(&mut self, event: LeaderEvent<oneshot::Sender<Executed>>) {
        let actions = self.leader.step(self.now(), wall_ms(), event);
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Vec<LeaderAction<oneshot::Sender<Executed>>>) {
        for action in actions {
            match action {
                LeaderAction::Propose { next, made } => self.propose(next, made),
                LeaderAction::Seal { node, shard, epoch, planned } => {
                    self.seal(node, shard, epoch, planned);
                }
                LeaderAction::Drain { node, shard, epoch, source, through } => {
                    self.drain(node, shard, epoch, source, through);
                }
                // The caller may have disconnected; the outcome stands.
                LeaderAction::Answer { caller, executed } => drop(caller.send(executed)),
                LeaderAction::TooLate { change, reason } => {
                    let change = change.without_secrets();
                    tracing::debug!(?change, reason, "a change came too late");
                }
            }
        }
    }

    fn seal(&mut self, node: NodeId, shard: ShardId, epoch: Epoch, planned: bool) {
        let Some(channel) = self.parts.peers.control(node) else { return };
        let request = wire::SealRequest { shard: shard.0, epoch: epoch.0.into(), planned };
        self.ask(node, Question::Seal { shard, planned }, async move {
            let answer = FailoverClient::new(channel).seal(request).await?.into_inner();
            let answer = seal_answer(shard, epoch, planned, &answer);
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
        // A drain pulls batches of the log: no work for connections that keep leases.
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

    fn propose(&self, next: Arc<Cluster>, made: Vec<Made>) {
        let recorded = made.into_iter().map(|Made { version, actor, change }| {
            let shown = change.without_secrets();
            tracing::info!(version, actor, change = ?shown, "the cluster changes");
            Recorded::new(version, wall_ms(), actor, change)
        });
        let recorded: Vec<_> = recorded.collect();
        let request = WriteRequest {
            database: DIRECTORY_DATABASE,
            request_id: new_request_id(),
            transaction: record::transaction(self.stamp, &next, &recorded),
            retry: false,
        };
        let (voter, internal) = (Arc::clone(&self.parts.voter), self.internal.clone());
        tokio::spawn(async move {
            let reply = voter.write_when_led(request, None, Duration::MAX).await;
            drop(internal.send(Internal::Committed { next, reply }));
        });
    }

    /// # Errors
    /// The state is not as this leader takes it to be, or may not be: the term is over. The error is
    /// the answer for the callers of the change in flight.
    pub(super) fn committed(
        &mut self,
        next: Arc<Cluster>,
        reply: WriteReply,
    ) -> Result<(), ExecuteFailure> {
        if let Some(WriteOutcome::Committed(stamp)) = reply.outcome() {
            learn_own(&self.parts.directory, Cluster::clone(&next));
            self.stamp = Some(*stamp);
            self.step(LeaderEvent::Committed(next));
            return Ok(());
        }
        tracing::info!(?reply, "a change of the cluster did not commit here");
        match reply {
            WriteReply::NotCommitted(_) => {
                self.step(LeaderEvent::NotCommitted);
                Ok(())
            }
            WriteReply::NotLeader(_) => Err(ExecuteFailure::NotLeader),
            _ => Err(ExecuteFailure::Unknown),
        }
    }

    /// The members that the directory group is to have, if it has others.
    pub(super) fn members_wanted(&self) -> Option<BTreeSet<NodeId>> {
        let cluster = self.leader.committed()?;
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

    /// The term is over. `in_flight`: the fate of the change that was to be committed.
    pub(super) fn leave(&mut self, in_flight: ExecuteFailure) {
        if let Some((_, change)) = &self.changing {
            change.abort();
        }
        let answers = self.leader.leave(in_flight);
        self.carry_out(answers);
    }
}
