//! Calls from this node, as a member of a group, to the other members: openraft's network.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use meridian_proto::raft::{self, raft_client::RaftClient};
use meridian_proto::verify_checksum;
use meridian_storage::{GroupId, ShardState, StagedState, StateSnapshot, StorageError, fatal};
use meridian_types::NodeId;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, EntryPayload, OptionalSend};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::claims;
use crate::lease_trust::LeaseTrust;
use crate::member_marks::MemberMarks;
use crate::state_machine::SnapshotData;
use crate::type_config::{Snapshot, TypeConfig, Vote};
use crate::votes::Votes;
use crate::wire::{self, InvalidMessage};

mod append_stream;

use append_stream::AppendStream;

/// Bytes of one message between members at most. Batches are far below
/// ([`crate::MAX_BATCH_BYTES`]); what an earlier version has put into a log must go through all the
/// same, or nothing behind it ever commits.
pub(crate) const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// Before a call that failed, or a stream that could not be opened, is tried again.
pub(crate) const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Channels to the other nodes. They connect when first used and again when broken.
pub trait Peers: Send + Sync + 'static {
    /// `None` if there is no such node.
    fn channel(&self, node: NodeId) -> Option<Channel>;
}

/// A boxed future, as [`StateTransfer`] returns them.
pub type Transfer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Moves whole states between nodes.
pub trait StateTransfer: Send + Sync + 'static {
    /// Keeps the snapshot ready to be fetched, and returns the id to fetch it by; the same for the
    /// same snapshot. It may be forgotten when no member has fetched from it for a while.
    fn offer(&self, group: GroupId, snapshot: Arc<StateSnapshot>) -> String;

    /// Ends when no member has fetched what is offered under the id for so long that none will.
    fn abandoned(self: Arc<Self>, _snapshot_id: String) -> Transfer<()> {
        Box::pin(std::future::pending())
    }

    /// Fetches what `source` offers under the id into a staged state of `state`. Dropped, and
    /// called again with the same id soon after, it goes on where it stopped.
    fn fetch(
        self: Arc<Self>,
        group: GroupId,
        source: NodeId,
        snapshot_id: String,
        state: Arc<ShardState>,
    ) -> Transfer<Result<StagedState, StorageError>>;
}

/// Makes the clients of one group.
#[derive(Clone)]
pub(crate) struct NetworkFactory {
    pub(crate) node_id: NodeId,
    pub(crate) group: GroupId,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) transfer: Arc<dyn StateTransfer>,
    pub(crate) votes: Arc<Votes>,
    /// For a follower's answer to one append of a stream, with its fsync. openraft's own time to
    /// live is too short for a disk that is busy; only this follower waits meanwhile.
    pub(crate) append_timeout: Duration,
    /// The highest index that any member was told to be committed; raised before it is sent.
    pub(crate) advertised: Arc<AtomicU64>,
    pub(crate) lease_trust: Arc<LeaseTrust>,
    pub(crate) marks: Arc<MemberMarks>,
}

impl NetworkFactory {
    fn append_request(
        &self,
        target: NodeId,
        request: &AppendEntriesRequest<TypeConfig>,
    ) -> raft::AppendRequest {
        let committed = request.leader_commit.as_ref().map_or(0, |log_id| log_id.index);
        self.advertised.fetch_max(committed, Ordering::SeqCst);
        if let Err(error) = verify_entries(self.group, request) {
            fatal(&error);
        }
        let members =
            self.marks.to_advertise(request.vote.leader_id.term, request.leader_commit.as_ref());
        raft::AppendRequest { members, ..wire::append_request_to_wire(self.group(target), request) }
    }

    fn vote_request(&self, target: NodeId, request: &VoteRequest<TypeConfig>) -> raft::VoteRequest {
        let remembered = self.marks.remembered(target);
        raft::VoteRequest { remembered, ..wire::vote_request_to_wire(self.group(target), request) }
    }

    fn group(&self, target: NodeId) -> raft::Group {
        let (shard, epoch) = (self.group.shard.0, self.group.epoch.0.into());
        raft::Group { shard, epoch, target: target.0 }
    }
}

/// Verifies batches before they are sent. All members would refuse a batch that this leader's
/// memory or disk has changed, for as long as it leads, and nothing would be committed.
fn verify_entries(
    group: GroupId,
    request: &AppendEntriesRequest<TypeConfig>,
) -> Result<(), StorageError> {
    for entry in &request.entries {
        if let EntryPayload::Normal(batch) = &entry.payload {
            verify_checksum(&batch.bytes).map_err(|error| StorageError::Corruption {
                what: format!("log entry {} of {group}", entry.log_id.index),
                detail: error.to_string(),
            })?;
        }
    }
    Ok(())
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Network;

    async fn new_client(&mut self, target: NodeId, _node: &()) -> Network {
        Network { factory: self.clone(), target, kept: None }
    }
}

/// Calls one member.
pub(crate) struct Network {
    factory: NetworkFactory,
    target: NodeId,
    /// Of the heartbeat before, whose answer has come.
    kept: Option<KeptStream>,
}

/// A stream of appends that is kept from one heartbeat to the next: to open one for each costs more
/// than all else that an idle group does. One heartbeat at a time is on its way: what is not
/// answered when it is given up takes the stream with it, so that its answer is never taken for
/// that to a later one.
struct KeptStream {
    requests: mpsc::Sender<raft::AppendRequest>,
    responses: Streaming<raft::AppendResponse>,
}

impl KeptStream {
    /// `None`: the stream has ended.
    async fn answer(&mut self, request: raft::AppendRequest) -> Option<raft::AppendResponse> {
        self.requests.send(request).await.ok()?;
        self.responses.message().await.ok()?
    }
}

fn unreachable(error: &(impl std::error::Error + 'static)) -> Unreachable<TypeConfig> {
    Unreachable::new(error)
}

fn failed(status: &tonic::Status) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(status))
}

fn malformed(error: &InvalidMessage) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(error))
}

/// Raft takes over every higher term that it is told of.
fn believe(vote: &Vote, known: u64) -> Result<(), Unreachable<TypeConfig>> {
    claims::check_term(vote.leader_id.term, known).map_err(|implausible| unreachable(&implausible))
}

/// A member's answer in a stream, as openraft takes it.
fn stream_result(
    marks: &MemberMarks,
    target: NodeId,
    term: u64,
    response: raft::AppendResponse,
) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
    let result = wire::stream_result(response).map_err(|error| malformed(&error))?;
    match &result {
        Ok(Some(matched)) => marks.acknowledged(target, matched),
        Err(StreamAppendError::Conflict(at)) => marks.conflicts(target, at),
        Err(StreamAppendError::HigherVote(higher)) => believe(higher, term)?,
        Ok(None) => {}
    }
    Ok(result)
}

impl Network {
    fn client(&self) -> Result<RaftClient<Channel>, Unreachable<TypeConfig>> {
        let channel = self.factory.peers.channel(self.target);
        let channel = channel.ok_or_else(|| unreachable(&AnyError::error("no such node")))?;
        let client = RaftClient::new(channel);
        Ok(client
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    fn group(&self) -> raft::Group {
        self.factory.group(self.target)
    }

    fn timeout(&self, action: RPCTypes, after: Duration) -> Timeout<TypeConfig> {
        Timeout { action, id: self.factory.node_id, target: self.target, timeout: after }
    }

    /// As long as openraft waits: what it calls soft is three quarters of that.
    async fn within<T>(
        &self,
        action: RPCTypes,
        option: &RPCOption,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, RPCError<TypeConfig>> {
        match tokio::time::timeout(option.hard_ttl(), call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(failed(&status)),
            Err(_) => Err(self.timeout(action, option.hard_ttl()).into()),
        }
    }

    /// Whether an answer to this node's candidacy may be counted, with its own vote.
    fn may_stand(&self, leadership_transfer: bool) -> Result<(), Unreachable<TypeConfig>> {
        self.factory.votes.check(leadership_transfer).map_err(|no_vote| unreachable(&no_vote))
    }

    async fn vote_response(
        &self,
        (term, leadership_transfer): (u64, bool),
        option: &RPCOption,
        call: impl Future<Output = Result<tonic::Response<raft::VoteResponse>, tonic::Status>>,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.may_stand(leadership_transfer)?;
        let response = self.within(RPCTypes::Vote, option, call).await?;
        self.may_stand(leadership_transfer)?;
        let response = wire::vote_response(response).map_err(|error| malformed(&error))?;
        believe(&response.vote, term)?;
        Ok(response)
    }

    /// A request that comes alone, as openraft sends heartbeats, and counts the answer from when it
    /// asked for this very one. Over the stream that is kept, or over a new one where that has
    /// ended, as with the member's process.
    async fn alone(
        &mut self,
        request: Option<AppendEntriesRequest<TypeConfig>>,
    ) -> Result<Option<StreamAppendResult<TypeConfig>>, RPCError<TypeConfig>> {
        let Some(request) = request else { return Ok(None) };
        let (sent, term) = (Instant::now(), request.vote.leader_id.term);
        let request = self.factory.append_request(self.target, &request);
        let kept = match self.kept.take() {
            Some(mut kept) => kept.answer(request.clone()).await.map(|response| (kept, response)),
            None => None,
        };
        let (kept, response) = match kept {
            Some(answered) => answered,
            None => {
                let (requests, stream) = mpsc::channel(1);
                // It goes out with what opens the stream.
                requests.try_send(request).ok();
                let opened = self.client()?.stream_append(ReceiverStream::new(stream)).await;
                let mut responses = opened.map_err(|status| failed(&status))?.into_inner();
                let response = responses.message().await.map_err(|status| failed(&status))?;
                let Some(response) = response else { return Ok(None) };
                (KeptStream { requests, responses }, response)
            }
        };
        self.kept = Some(kept);
        drop(self.factory.lease_trust.answered(sent));
        stream_result(&self.factory.marks, self.target, term, response).map(Some)
    }

    async fn offer(
        &self,
        vote: Vote,
        snapshot: Snapshot<SnapshotData>,
        limit: Duration,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let SnapshotData::Local(data) = snapshot.snapshot else {
            return Err(
                unreachable(&AnyError::error("only a state of one's own can be sent")).into()
            );
        };
        let mut client = self.client()?;
        let snapshot_id = self.factory.transfer.offer(self.factory.group, data);
        let request = raft::InstallSnapshotRequest {
            group: Some(self.group()),
            vote: Some(wire::vote_to_wire(&vote)),
            last_log_id: snapshot.meta.last_log_id.as_ref().map(wire::log_id_to_wire),
            last_membership: Some(wire::stored_membership_to_wire(&snapshot.meta.last_membership)),
            snapshot_id: snapshot_id.clone(),
            source: self.factory.node_id.0,
        };
        // However long it takes: a state grows with what is written, and the link does not. One
        // that broke off is offered the same snapshot again, see
        // `StateMachine::get_current_snapshot`.
        let response = tokio::select! {
            response = client.install_snapshot(request) => response.map_err(|status| unreachable(&status))?,
            () = Arc::clone(&self.factory.transfer).abandoned(snapshot_id) => {
                return Err(self.timeout(RPCTypes::InstallSnapshot, limit).into());
            }
        };
        let answered = response.into_inner().vote.map(wire::vote).unwrap_or(vote);
        believe(&answered, vote.leader_id.term)?;
        Ok(SnapshotResponse::new(answered))
    }
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = self.factory.append_request(self.target, &rpc);
        let mut client = self.client()?;
        let response =
            self.within(RPCTypes::AppendEntries, &option, client.append(request)).await?;
        let response = wire::append_response(response).map_err(|error| malformed(&error))?;
        if let AppendEntriesResponse::HigherVote(higher) = &response {
            believe(higher, rpc.vote.leader_id.term)?;
        }
        Ok(response)
    }

    /// Pipelined, see [`AppendStream`]. Single requests go over the stream that is kept.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            if input.size_hint().1 == Some(1) {
                let mut input = input;
                let result = futures::stream::once(async move {
                    self.alone(input.next().await).await.transpose()
                });
                return Ok(Box::pin(result.filter_map(std::future::ready)) as BoxStream<'s, _>);
            }
            let stream = AppendStream::open(self, input).await?;
            Ok(Box::pin(stream.results()) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut client = self.client()?;
        let call = client.vote(self.factory.vote_request(self.target, &rpc));
        self.vote_response((rpc.vote.leader_id.term, rpc.leadership_transfer), &option, call).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut client = self.client()?;
        let call = client.pre_vote(self.factory.vote_request(self.target, &rpc));
        self.vote_response((rpc.vote.leader_id.term, rpc.leadership_transfer), &option, call).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            response = self.offer(vote, snapshot, option.soft_ttl()) => response,
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        use openraft::raft::TransferLeaderError;
        let request = raft::TransferLeaderRequest {
            group: Some(self.group()),
            from_leader: Some(wire::vote_to_wire(req.from_leader())),
            last_log_id: req.last_log_id().map(wire::log_id_to_wire),
            to: req.to_node_id().0,
        };
        let mut client = self.client()?;
        let response =
            self.within(RPCTypes::TransferLeader, &option, client.transfer_leader(request)).await?;
        let missing = || malformed(&InvalidMessage::Missing("result"));
        Ok(match response.result.ok_or_else(missing)? {
            raft::transfer_leader_response::Result::Accepted(_) => Ok(()),
            raft::transfer_leader_response::Result::VoteChanged(actual) => {
                let (expected, actual) = (*req.from_leader(), wire::vote(actual));
                Err(TransferLeaderError::VoteChanged { expected, actual })
            }
            raft::transfer_leader_response::Result::LogNotFlushed(matched) => {
                let (expected, actual) =
                    (req.last_log_id().cloned(), matched.log_id.map(wire::log_id));
                Err(TransferLeaderError::LogNotFlushed { expected, actual })
            }
        })
    }
}

#[cfg(test)]
mod tests;
