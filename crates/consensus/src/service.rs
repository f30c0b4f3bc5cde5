//! Calls from the other members of a group to this one. Each call names its group; claims that
//! cannot be are refused before Raft hears of them.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use meridian_proto::raft::{self, raft_server};
use meridian_proto::{CallingNode, InvalidBatch, decode_batch, log, speaks_for};
use meridian_storage::{Engine, GroupId};
use meridian_types::{Epoch, NodeId, ShardId};
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, TransferLeaderRequest,
    VoteRequest,
};
use parking_lot::{Mutex, RwLock};
use tonic::{Extensions, Request, Response, Status, Streaming};

use crate::network::{MAX_MESSAGE_BYTES, StateTransfer};
use crate::state_machine::SnapshotData;
use crate::type_config::{Snapshot, SnapshotMeta, TypeConfig, Vote};
use crate::wire::{self, InvalidMessage};
use crate::{RaftGroup, claims, membership};

/// How often it is looked whether there is room for the rest of a state that is being copied.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(100);

/// Serves the Raft calls of all groups of a node.
#[derive(Clone)]
pub struct RaftService {
    node_id: NodeId,
    groups: Arc<RwLock<HashMap<GroupId, RaftGroup>>>,
    transfer: Arc<dyn StateTransfer>,
    engine: Arc<dyn Engine>,
    joins: Arc<Mutex<()>>,
    full: Arc<dyn Fn(GroupId) -> bool + Send + Sync>,
    may_vote: Arc<dyn Fn(GroupId, NodeId) -> bool + Send + Sync>,
}

impl RaftService {
    pub fn new(node_id: NodeId, transfer: Arc<dyn StateTransfer>, engine: Arc<dyn Engine>) -> Self {
        Self {
            node_id,
            groups: Arc::default(),
            transfer,
            engine,
            joins: Arc::default(),
            full: Arc::new(|_| false),
            may_vote: Arc::new(|_, _| true),
        }
    }

    /// While `full` says so of a group, batches and states of its leader are refused: what the disk
    /// has no room for would stop the process, and at its next start again. Heartbeats, votes, and
    /// what a new leader or a change of voters needs are taken.
    #[must_use]
    pub fn refusing_batches_while(
        self,
        full: impl Fn(GroupId) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { full: Arc::new(full), ..self }
    }

    /// Calls of a node are refused of which neither `may_vote` says, from what is known of the
    /// cluster here, that it votes in the group or may do so soon, nor the group's own log. Any node
    /// that proves itself could lead any group otherwise.
    #[must_use]
    pub fn refusing_others_than_voters(
        self,
        may_vote: impl Fn(GroupId, NodeId) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { may_vote: Arc::new(may_vote), ..self }
    }

    /// Calls for this group are served from now on.
    pub fn register(&self, group: RaftGroup) {
        self.groups.write().insert(group.id(), group);
    }

    /// Calls for this group are refused from now on, as those for a group that was never here.
    /// Those being served end when the group is shut down.
    pub fn unregister(&self, group: GroupId) {
        self.groups.write().remove(&group);
    }

    /// The gRPC service, for a tonic server.
    pub fn into_server(self) -> raft_server::RaftServer<Self> {
        raft_server::RaftServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The group that is asked for its vote, if it may give one now.
    fn vote_request(
        &self,
        caller: &Extensions,
        wire: raft::VoteRequest,
    ) -> Result<(RaftGroup, VoteRequest<TypeConfig>), Status> {
        let (group, remembered) = (self.group(wire.group)?, wire.remembered);
        self.of_voter(caller, &group, wire.vote)?;
        let request = wire::vote_request(wire).map_err(invalid)?;
        may_vote(&group, request.leadership_transfer)?;
        may_be_of_term(&group, &request.vote)?;
        if let Err(reason) = group.check_members(&request, remembered) {
            tracing::warn!(group = %group.id(), %reason, "no vote is given");
            return Err(Status::failed_precondition(reason.to_string()));
        }
        Ok((group, request))
    }

    /// Raft's answers to the requests of one stream. A request that is malformed, or for another
    /// group than the first, ends the stream; the requests before it are served.
    async fn append_results(
        &self,
        caller: Extensions,
        mut requests: Streaming<raft::AppendRequest>,
    ) -> Result<AppendResults, Status> {
        let Some(first) = requests.message().await? else {
            return Ok(Box::pin(futures::stream::empty()));
        };
        let group = self.group(first.group)?;
        let expected = first.group;
        let input = futures::stream::once(async { Ok(first) }).chain(requests);
        // The refusal that ends the stream, sent to the leader behind all earlier answers.
        let refusal = Arc::new(Mutex::new(None));
        let (member, refused, service) = (group.clone(), Arc::clone(&refusal), self.clone());
        let input = input.map(move |request: Result<raft::AppendRequest, Status>| {
            let of_another = || {
                Status::invalid_argument("a request for another group than the first of its stream")
            };
            let checked = request.and_then(|request| match request.group == expected {
                true => {
                    service.of_voter(&caller, &member, request.vote)?;
                    append_request(&member, request, &*service.full)
                }
                false => Err(of_another()),
            });
            checked.map_err(|status| *refused.lock() = Some(status)).ok()
        });
        let input = input
            .take_while(|request| std::future::ready(request.is_some()))
            .filter_map(std::future::ready);
        let contact = group.contact().clone();
        let results = group.raft().stream_append(input).map(move |result| match result {
            Ok(result) => {
                if !matches!(result, Err(StreamAppendError::HigherVote(_))) {
                    contact.renew();
                }
                Ok(wire::stream_result_to_wire(result))
            }
            Err(fatal) => Err(stopped(fatal)),
        });
        let refusal = futures::stream::once(async move { refusal.lock().take() });
        let refusal =
            refusal.filter_map(|status: Option<Status>| std::future::ready(status.map(Err)));
        Ok(Box::pin(results.chain(refusal)))
    }

    /// Only a voter stands for election and leads, and for itself alone. A call without a vote is
    /// refused later.
    fn of_voter(
        &self,
        caller: &Extensions,
        group: &RaftGroup,
        vote: Option<log::Vote>,
    ) -> Result<(), Status> {
        let Some(vote) = vote else { return Ok(()) };
        speaks_for(caller, vote.node_id)?;
        self.must_vote(caller, group.id(), Some(group))
    }

    /// Whether a call comes from a voter of the group, which may not be here; or over a transport that
    /// asks for no proof.
    fn must_vote(
        &self,
        caller: &Extensions,
        id: GroupId,
        group: Option<&RaftGroup>,
    ) -> Result<(), Status> {
        let Some(CallingNode(node)) = caller.get::<CallingNode>() else { return Ok(()) };
        if group.is_some_and(|group| group.may_have_voter(*node)) || (self.may_vote)(id, *node) {
            return Ok(());
        }
        let this = self.node_id;
        tracing::debug!(group = %id, %node, "a node that does not vote here is refused");
        Err(Status::permission_denied(format!(
            "node {node} does not vote in {id}, as far as node {this} knows"
        )))
    }

    fn group(&self, wire: Option<raft::Group>) -> Result<RaftGroup, Status> {
        let id = self.group_id(wire)?;
        let group = self.groups.read().get(&id).cloned();
        group
            .ok_or_else(|| Status::not_found(format!("node {} has no group of {id}", self.node_id)))
    }

    /// The group that is meant, if the call is for this node.
    fn group_id(&self, wire: Option<raft::Group>) -> Result<GroupId, Status> {
        let wire = wire.ok_or_else(|| Status::invalid_argument("field `group` is missing"))?;
        if NodeId(wire.target) != self.node_id {
            let (this, meant) = (self.node_id, wire.target);
            return Err(Status::failed_precondition(format!(
                "this is node {this}, the call is for node {meant}"
            )));
        }
        let epoch = u16::try_from(wire.epoch)
            .map_err(|_| Status::invalid_argument("field `epoch` is too large"))?;
        Ok(GroupId { shard: ShardId(wire.shard), epoch: Epoch(epoch) })
    }
}

/// Asked before Raft is asked for a vote, and again before its answer leaves: see
/// [`crate::votes::Votes`].
fn may_vote(group: &RaftGroup, leadership_transfer: bool) -> Result<(), Status> {
    group
        .may_vote(leadership_transfer)
        .map_err(|no_vote| Status::failed_precondition(no_vote.to_string()))
}

/// Asked before anything is taken from a leader: its append, its snapshot, or its question.
fn may_follow(group: &RaftGroup, term: u64) -> Result<(), Status> {
    group.may_follow(term).map_err(|no_vote| Status::failed_precondition(no_vote.to_string()))
}

/// Whether the leader only asks whether it still leads, see [`crate::group`]'s `confirmation`.
fn is_question(request: &raft::AppendRequest) -> bool {
    request.entries.is_empty() && request.previous.is_none() && request.leader_commit.is_none()
}

/// Asked before Raft is told of a vote: it takes over every higher term.
fn may_be_of_term(group: &RaftGroup, vote: &Vote) -> Result<(), Status> {
    claims::check_term(vote.leader_id.term, group.status().term).map_err(|implausible| {
        tracing::warn!(group = %group.id(), node = %vote.leader_id.voted_for, %implausible, "another member is not believed");
        Status::invalid_argument(implausible.to_string())
    })
}

/// A leader's append request, decoded, if every batch of it is as its leader made it, of this
/// group, and in a format that is known here. Once in the log, any other batch would stop this
/// process, now and at every start.
#[allow(clippy::result_large_err, reason = "tonic's own error type, on a path of no hurry")]
fn append_request(
    group: &RaftGroup,
    mut wire: raft::AppendRequest,
    full: &dyn Fn(GroupId) -> bool,
) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
    let members = std::mem::take(&mut wire.members);
    let request = wire::append_request(wire).map_err(invalid)?;
    may_be_of_term(group, &request.vote)?;
    may_follow(group, request.vote.leader_id.term)?;
    if request.entries.iter().any(|entry| matches!(entry.payload, EntryPayload::Normal(_)))
        && full(group.id())
    {
        return Err(no_room());
    }
    let mut sequences = Vec::with_capacity(request.entries.len());
    for entry in &request.entries {
        let EntryPayload::Normal(batch) = &entry.payload else {
            sequences.push(None);
            continue;
        };
        let position = decode_batch(batch.bytes.clone()).map(|batch| batch.position);
        let of_another = Err(InvalidBatch::Field("epoch"));
        let position =
            position.and_then(|at| if at.epoch == group.id().epoch { Ok(at) } else { of_another });
        match position {
            Ok(position) => sequences.push(Some(position.sequence)),
            Err(error) => {
                group.state().refusals().record(group.id().shard, &error);
                return Err(Status::data_loss(format!(
                    "log entry {}: {error}",
                    entry.log_id.index
                )));
            }
        }
    }
    claims::check_entries(&request, &sequences)
        .map_err(|implausible| Status::invalid_argument(implausible.to_string()))?;
    group.marks().learn(&members);
    Ok(request)
}

type AppendResults = Pin<Box<dyn Stream<Item = Result<raft::AppendResponse, Status>> + Send>>;

fn invalid(error: InvalidMessage) -> Status {
    Status::invalid_argument(error.to_string())
}

fn no_room() -> Status {
    Status::resource_exhausted("this node's disk has no room for what its leader sends")
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl raft_server::Raft for RaftService {
    type StreamAppendStream = AppendResults;

    /// Answers at once, before the first request: a leader with nothing to send opens its streams
    /// too.
    async fn stream_append(
        &self,
        request: Request<Streaming<raft::AppendRequest>>,
    ) -> Result<Response<Self::StreamAppendStream>, Status> {
        let service = self.clone();
        let (_, caller, requests) = request.into_parts();
        let results = futures::stream::once(async move {
            service.append_results(caller, requests).await.unwrap_or_else(|status| {
                let refusal: Self::StreamAppendStream =
                    Box::pin(futures::stream::once(async { Err(status) }));
                refusal
            })
        });
        Ok(Response::new(Box::pin(results.flatten())))
    }

    async fn append(
        &self,
        request: Request<raft::AppendRequest>,
    ) -> Result<Response<raft::AppendResponse>, Status> {
        let (_, caller, request) = request.into_parts();
        let group = self.group(request.group)?;
        self.of_voter(&caller, &group, request.vote)?;
        if is_question(&request) {
            let said = request.members.iter().find(|member| NodeId(member.node_id) == self.node_id);
            let said = said.and_then(|member| member.log_id);
            group
                .may_confirm(said)
                .map_err(|error| Status::failed_precondition(error.to_string()))?;
        }
        let request = append_request(&group, request, &*self.full)?;
        let previous = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(previous);
        let response = group.raft().append_entries(request).await.map_err(stopped)?;
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            group.contact().renew();
        }
        Ok(Response::new(wire::append_response_to_wire(response, previous, last)))
    }

    async fn vote(
        &self,
        request: Request<raft::VoteRequest>,
    ) -> Result<Response<raft::VoteResponse>, Status> {
        let (_, caller, request) = request.into_parts();
        let (group, request) = self.vote_request(&caller, request)?;
        let leadership_transfer = request.leadership_transfer;
        let response = group.raft().vote(request).await.map_err(stopped)?;
        may_vote(&group, leadership_transfer)?;
        if response.vote_granted {
            group.contact().renew();
        }
        Ok(Response::new(wire::vote_response_to_wire(&response)))
    }

    async fn pre_vote(
        &self,
        request: Request<raft::VoteRequest>,
    ) -> Result<Response<raft::VoteResponse>, Status> {
        let (_, caller, request) = request.into_parts();
        let (group, request) = self.vote_request(&caller, request)?;
        let response = group.raft().pre_vote(request).await.map_err(stopped)?;
        Ok(Response::new(wire::vote_response_to_wire(&response)))
    }

    async fn transfer_leader(
        &self,
        request: Request<raft::TransferLeaderRequest>,
    ) -> Result<Response<raft::TransferLeaderResponse>, Status> {
        use openraft::raft::TransferLeaderError;
        let (_, caller, request) = request.into_parts();
        let group = self.group(request.group)?;
        self.of_voter(&caller, &group, request.from_leader)?;
        let from = request
            .from_leader
            .map(wire::vote)
            .ok_or_else(|| invalid(InvalidMessage::Missing("from_leader")))?;
        may_be_of_term(&group, &from)?;
        may_vote(&group, true)?;
        // openraft tells all voters, and only the named target may stand for election.
        let to = NodeId(request.to);
        let request = TransferLeaderRequest::new(from, to, request.last_log_id.map(wire::log_id));
        let response = group.raft().handle_transfer_leader(request).await.map_err(stopped)?;
        let result = match response {
            Ok(()) => raft::transfer_leader_response::Result::Accepted(true),
            Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                raft::transfer_leader_response::Result::VoteChanged(wire::vote_to_wire(&actual))
            }
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                let log_id = actual.as_ref().map(wire::log_id_to_wire);
                raft::transfer_leader_response::Result::LogNotFlushed(raft::Matched {
                    log_id,
                    partial: false,
                })
            }
        };
        Ok(Response::new(raft::TransferLeaderResponse { result: Some(result) }))
    }

    async fn join(
        &self,
        request: Request<raft::JoinRequest>,
    ) -> Result<Response<raft::JoinResponse>, Status> {
        let (_, caller, request) = request.into_parts();
        let id = self.group_id(request.group)?;
        // A member that is to join makes itself known, or the group's leader does. A node that does not
        // vote could take the vote from a member, by another incarnation of it.
        let group = self.groups.read().get(&id).cloned();
        self.must_vote(&caller, id, group.as_ref())?;
        let (engine, joins) = (Arc::clone(&self.engine), Arc::clone(&self.joins));
        let joined = move || {
            let _one_at_a_time = joins.lock();
            membership::record(&engine, id, NodeId(request.node_id), &request.incarnation)
        };
        let known = tokio::task::spawn_blocking(joined).await.map_err(stopped)?.map_err(stopped)?;
        // Asked behind what was recorded, by a member that must hear of every vote that it may have
        // been asked for.
        let group = self.groups.read().get(&id).cloned();
        let term = match group {
            Some(group) => {
                group.raft().with_raft_state(|state| state.vote_ref().leader_id.term).await.ok()
            }
            None => None,
        };
        Ok(Response::new(raft::JoinResponse { accepted: known, term }))
    }

    async fn install_snapshot(
        &self,
        request: Request<raft::InstallSnapshotRequest>,
    ) -> Result<Response<raft::InstallSnapshotResponse>, Status> {
        let (_, caller, request) = request.into_parts();
        let group = self.group(request.group)?;
        self.of_voter(&caller, &group, request.vote)?;
        let vote =
            request.vote.map(wire::vote).ok_or_else(|| invalid(InvalidMessage::Missing("vote")))?;
        may_be_of_term(&group, &vote)?;
        may_follow(&group, vote.leader_id.term)?;
        let meta = SnapshotMeta {
            last_log_id: request.last_log_id.map(wire::log_id),
            last_membership: wire::stored_membership(request.last_membership).map_err(invalid)?,
        };
        let fetched = Arc::clone(&self.transfer).fetch(
            group.id(),
            NodeId(request.source),
            request.snapshot_id,
            group.state(),
        );
        let no_room_is_left = async {
            while !(self.full)(group.id()) {
                tokio::time::sleep(LOOK_FOR_ROOM).await;
            }
        };
        let staged = tokio::select! {
            biased;
            () = no_room_is_left => return Err(no_room()),
            fetched = fetched => fetched.map_err(stopped)?,
        };
        let snapshot = Snapshot { meta, snapshot: SnapshotData::Staged(staged) };
        let response = group.raft().install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(raft::InstallSnapshotResponse {
            vote: Some(wire::vote_to_wire(&response.vote)),
        }))
    }
}

#[cfg(test)]
mod tests;
