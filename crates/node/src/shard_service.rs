use std::sync::Arc;

use meridian_proto::shard::{self as wire, read_position_response, read_response, shard_server, write_response};
use meridian_proto::{entry_to_wire, kv_connect, read_range, transaction};
use meridian_storage::ReadView;
use meridian_types::{DatabaseId, Epoch, NodeId, ReadRange, RequestId, ShardId, WriteOutcome};
use tonic::{Request, Response, Status};

use crate::peers::MAX_MESSAGE_BYTES;
use crate::proposer::{WriteReply, WriteRequest};
use crate::shard::{LocalShard, ReadReply, Voter};
use crate::shard_table::ShardTable;

/// Serves what gateways on other nodes ask of the shards here.
#[derive(Clone)]
pub(crate) struct ShardService {
    pub(crate) shards: Arc<ShardTable>,
}

impl ShardService {
    pub(crate) fn into_server(self) -> shard_server::ShardServer<Self> {
        shard_server::ShardServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The shard, if it is here and in the epoch that the caller means. `or_later`: for an eventual read,
    /// which is as good from what came after.
    fn shard(&self, group: Option<wire::ShardEpoch>, or_later: bool) -> Result<LocalShard, Status> {
        let group = group.ok_or_else(|| invalid("group"))?;
        let id = ShardId(group.shard);
        let shard = self.shards.get(&id);
        let shard = shard.ok_or_else(|| Status::not_found(format!("shard {id} is not on this node at present")))?;
        let here = u32::from(shard.epoch().0);
        if here != group.epoch && !(or_later && here > group.epoch) {
            return Err(Status::failed_precondition(format!(
                "shard {id} is in epoch {here} here, not {}",
                group.epoch
            )));
        }
        Ok(shard)
    }

    fn voter(&self, group: Option<wire::ShardEpoch>) -> Result<Option<Arc<Voter>>, Status> {
        match self.shard(group, false)? {
            LocalShard::Voter(voter) => Ok(Some(voter)),
            LocalShard::Replica(_) => Ok(None),
        }
    }
}

fn invalid(field: &str) -> Status {
    Status::invalid_argument(format!("field `{field}` is missing or out of its range"))
}

fn database(bytes: &[u8]) -> Result<DatabaseId, Status> {
    bytes.try_into().map(DatabaseId).map_err(|_| invalid("database"))
}

fn ranges(wire: Vec<kv_connect::ReadRange>) -> Result<Vec<ReadRange>, Status> {
    wire.into_iter().map(read_range).collect::<Result<_, _>>().map_err(|error| invalid(error.0))
}

fn not_leader(leader: Option<NodeId>) -> wire::NotLeader {
    wire::NotLeader { leader: leader.unwrap_or(0) }
}

pub(crate) fn write_reply_to_wire(reply: WriteReply) -> wire::WriteResponse {
    use write_response::Result as Wire;
    let result = match reply {
        WriteReply::Done(WriteOutcome::Committed(stamp)) => Wire::Committed(stamp.0.to_vec().into()),
        WriteReply::Done(WriteOutcome::CheckFailed(indexes)) => Wire::CheckFailed(wire::FailedChecks { indexes }),
        WriteReply::Done(WriteOutcome::Rejected(text)) => Wire::Rejected(text),
        WriteReply::NotLeader(leader) => Wire::NotLeader(not_leader(leader)),
        WriteReply::NotCommitted(reason) => Wire::NotCommitted(reason),
        WriteReply::Unknown => Wire::Unknown("leadership was lost".to_owned()),
    };
    wire::WriteResponse { result: Some(result) }
}

fn view_to_wire(view: ReadView, epoch: Epoch, leader: Option<NodeId>) -> wire::ReadOutput {
    let range =
        |entries: Vec<_>| kv_connect::ReadRangeOutput { values: entries.into_iter().map(entry_to_wire).collect() };
    wire::ReadOutput {
        ranges: view.ranges.into_iter().map(range).collect(),
        sequence: view.sequence,
        epoch: epoch.0.into(),
        leader: leader.unwrap_or(0),
    }
}

#[tonic::async_trait]
impl shard_server::Shard for ShardService {
    async fn write(&self, request: Request<wire::WriteRequest>) -> Result<Response<wire::WriteResponse>, Status> {
        let request = request.into_inner();
        let Some(voter) = self.voter(request.group)? else {
            return Ok(Response::new(write_reply_to_wire(WriteReply::NotLeader(None))));
        };
        let late = Some(request.late_leader).filter(|node| *node != 0);
        let request_id = request.request_id.as_ref().try_into().map_err(|_| invalid("request_id"))?;
        let write = request.write.ok_or_else(|| invalid("write"))?;
        let request = WriteRequest {
            database: database(&request.database)?,
            request_id: RequestId(request_id),
            transaction: transaction(write).map_err(|error| invalid(error.0))?,
            retry: request.retry,
        };
        Ok(Response::new(write_reply_to_wire(voter.write(request, late).await)))
    }

    async fn read(&self, request: Request<wire::ReadRequest>) -> Result<Response<wire::ReadResponse>, Status> {
        let request = request.into_inner();
        let shard = self.shard(request.group, !request.strong)?;
        let (database, ranges) = (database(&request.database)?, ranges(request.ranges)?);
        let reply = match (&shard, request.strong) {
            (LocalShard::Voter(voter), true) => voter.read_strong(database, &ranges).await,
            (LocalShard::Replica(_), true) => ReadReply::NotLeader(None),
            (shard, false) => shard.read_eventual(database, &ranges, request.min_sequence).await,
        };
        let result = match reply {
            ReadReply::Done(view) => read_response::Result::Output(view_to_wire(view, shard.epoch(), shard.leader())),
            ReadReply::NotLeader(leader) => read_response::Result::NotLeader(not_leader(leader)),
            ReadReply::Unavailable(reason) => read_response::Result::Unavailable(reason),
        };
        Ok(Response::new(wire::ReadResponse { result: Some(result) }))
    }

    async fn read_position(
        &self,
        request: Request<wire::ReadPositionRequest>,
    ) -> Result<Response<wire::ReadPositionResponse>, Status> {
        let position = match self.voter(request.into_inner().group)? {
            Some(voter) => voter.read_position().await,
            None => Err(ReadReply::NotLeader(None)),
        };
        let result = match position {
            Ok(position) => read_position_response::Result::Position(wire::ReadPosition {
                sequence: position.sequence,
                time_ms: position.time_ms,
            }),
            Err(ReadReply::Unavailable(reason)) => read_position_response::Result::Unavailable(reason),
            Err(ReadReply::NotLeader(leader)) => read_position_response::Result::NotLeader(not_leader(leader)),
            Err(ReadReply::Done(_)) => read_position_response::Result::Unavailable("no position".to_owned()),
        };
        Ok(Response::new(wire::ReadPositionResponse { result: Some(result) }))
    }
}
