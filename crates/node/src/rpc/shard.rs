//! Reads and writes that gateways of other nodes send here.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use meridian_proto::shard::{self as wire, read_position_response, shard_server, write_response};
use meridian_proto::{kv_connect, node_id, node_id_to_wire, read_range, transaction};
use meridian_types::{DatabaseId, NodeId, ReadRange, RequestId, ShardId, WriteOutcome};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::cluster_view::epoch_lease::Fenced;
use crate::network::call_failure::Failed;
use crate::read::refusal::NotServed;
use crate::routing::cluster_nodes::written_from_wire;
use crate::routing::nodes::Wanted;
use crate::routing::read_answer;
use crate::routing::watch_news;
use crate::routing::watch_sending::Sending;
use crate::routing::write_calls::{self, Turns, WriteCalls};
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;
use crate::shard::voter::Voter;
use crate::watches::Watches;
use crate::write::proposer::{WriteReply, WriteRequest};

/// Of what a gateway sends: a write of the largest size, with checks and keys.
const MAX_REQUEST_BYTES: usize = 4 << 20;
/// Watches of other processes' gateways at a time.
const MAX_WATCHES: usize = 16_384;
/// For the leader to answer a write that was passed on to it. The caller may give up sooner.
const PASSED_ON_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves what gateways on other nodes ask of the shards here.
#[derive(Clone)]
pub(crate) struct ShardService {
    shards: Arc<ShardTable>,
    writes: Arc<WriteCalls>,
    turns: Arc<Turns>,
    watches: Arc<Watches>,
    watch_permits: Arc<Semaphore>,
}

impl ShardService {
    pub(crate) fn new(
        shards: Arc<ShardTable>,
        writes: Arc<WriteCalls>,
        watches: Arc<Watches>,
    ) -> Self {
        let watch_permits = Arc::new(Semaphore::new(MAX_WATCHES));
        Self { shards, writes, turns: Arc::default(), watches, watch_permits }
    }

    #[cfg(test)]
    pub(crate) fn turns(&self) -> Arc<Turns> {
        Arc::clone(&self.turns)
    }

    pub(crate) fn into_server(self) -> shard_server::ShardServer<Self> {
        shard_server::ShardServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    /// The shard, if it is here and in the epoch that the caller means. `or_later`: for an eventual
    /// read, which is as good from what came after.
    fn shard(&self, group: Option<wire::ShardEpoch>, or_later: bool) -> Result<LocalShard, Status> {
        let group = group.ok_or_else(|| invalid("group"))?;
        let id = ShardId(group.shard);
        let shard = self.shards.get(&id);
        let shard = shard.ok_or_else(|| {
            Status::not_found(format!("shard {id} is not on this node at present"))
        })?;
        let here = u32::from(shard.epoch().0);
        if here != group.epoch && !(or_later && here > group.epoch) {
            return Err(Status::failed_precondition(format!(
                "shard {id} is in epoch {here} here, not {}",
                group.epoch
            )));
        }
        Ok(shard)
    }

    pub(super) fn voter(
        &self,
        group: Option<wire::ShardEpoch>,
    ) -> Result<Option<Arc<Voter>>, Status> {
        match self.shard(group, false)? {
            LocalShard::Voter(voter) => Ok(Some(voter)),
            LocalShard::Replica(_) => Ok(None),
        }
    }
}

pub(super) fn invalid(field: &str) -> Status {
    Status::invalid_argument(format!("field `{field}` is missing or out of its range"))
}

pub(super) fn database(bytes: &[u8]) -> Result<DatabaseId, Status> {
    bytes.try_into().map(DatabaseId).map_err(|_| invalid("database"))
}

fn ranges(wire: Vec<kv_connect::ReadRange>) -> Result<Vec<ReadRange>, Status> {
    wire.into_iter().map(read_range).collect::<Result<_, _>>().map_err(|error| invalid(error.0))
}

pub(super) fn not_leader(leader: Option<NodeId>) -> wire::NotLeader {
    wire::NotLeader { leader: node_id_to_wire(leader) }
}

pub(crate) fn write_reply_to_wire(reply: WriteReply) -> wire::WriteResponse {
    use write_response::Result as Wire;
    let busy = matches!(&reply, WriteReply::NotCommitted(refusal) if refusal.is_of_its_database());
    let result = match reply {
        WriteReply::Done(outcome) => match outcome.into_inner() {
            WriteOutcome::Committed(stamp) => Wire::Committed(stamp.0.to_vec().into()),
            WriteOutcome::CheckFailed(indexes) => Wire::CheckFailed(wire::FailedChecks { indexes }),
            WriteOutcome::Rejected(text) => Wire::Rejected(text),
        },
        WriteReply::NotLeader(leader) => Wire::NotLeader(not_leader(leader)),
        WriteReply::NotCommitted(refusal) => Wire::NotCommitted(refusal.to_string()),
        WriteReply::Unknown => Wire::Unknown("leadership was lost".to_owned()),
    };
    wire::WriteResponse { busy, ..response(result) }
}

fn response(result: write_response::Result) -> wire::WriteResponse {
    let clock = Some(write_calls::clock());
    wire::WriteResponse { result: Some(result), clock, ..wire::WriteResponse::default() }
}

/// Gives a write to the leader on behalf of a gateway that cannot reach it. One hop: a
/// voter that is not the leader after all says so, and the gateway asks again.
async fn pass_on(
    writes: &WriteCalls,
    leader: NodeId,
    request: wire::WriteRequest,
    valid_until: Duration,
) -> wire::WriteResponse {
    let departure = Arc::default();
    let passed_on = writes.call(leader, request, valid_until, &departure);
    let passed_on = tokio::time::timeout(PASSED_ON_TIMEOUT, passed_on).await;
    let passed_on =
        passed_on.unwrap_or_else(|_| Err(departure.not_answered("no answer".to_owned())));
    let not_reached = |reason| {
        format!("the leader, node {leader}, was not reached by the voter that was: {reason}")
    };
    match passed_on {
        Ok(answer) => passed_back(leader, answer),
        Err(Failed::NotDone(reason) | Failed::Busy(reason) | Failed::Unreachable(reason)) => {
            response(write_response::Result::NotCommitted(not_reached(reason)))
        }
        Err(Failed::Unknown(reason)) => {
            response(write_response::Result::Unknown(not_reached(reason)))
        }
        Err(Failed::NotLeader(hint)) => write_reply_to_wire(WriteReply::NotLeader(hint)),
    }
}

/// The leader's answer, from the voter that passed the write on.
fn passed_back(leader: NodeId, answer: wire::WriteResponse) -> wire::WriteResponse {
    let is_written = written_from_wire(answer.clone()).is_ok();
    wire::WriteResponse {
        leader: if is_written { leader.0 } else { answer.leader },
        // That its database has its share is the leader's word about this copy of the write. Another,
        // which the caller waits for, may have its place there.
        busy: false,
        clock: Some(write_calls::clock()),
        ..answer
    }
}

#[tonic::async_trait]
impl shard_server::Shard for ShardService {
    type ReadStream = BoxStream<'static, Result<wire::ReadPart, Status>>;
    type WatchStream = BoxStream<'static, Result<wire::WatchNews, Status>>;

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let refused = |reason: String| Status::failed_precondition(reason);
        let permit = Arc::clone(&self.watch_permits).try_acquire_owned();
        // No refusal of the shard: its reads are served.
        let permit =
            permit.map_err(|_| Status::resource_exhausted("too many watches are open here"))?;
        let request = request.into_inner();
        let shard = self.shard(request.group, true)?;
        let epoch = shard.epoch();
        let Wanted { database, keys, shown, min_sequence } =
            watch_news::wanted(request).map_err(invalid)?;
        let of_keys = self.watches.keep_keys(&keys);
        let of_keys =
            of_keys.map_err(|exhausted| Status::resource_exhausted(exhausted.to_string()))?;
        let watcher =
            self.watches.begin(&shard, (database, &keys, &shown), (epoch, min_sequence)).await;
        let watcher = watcher.map_err(|not_served| match not_served {
            NotServed::NotLeader(_) => refused("this node does not serve it".to_owned()),
            NotServed::Refused(refusal) => refused(refusal.to_string()),
        })?;
        Ok(Response::new(
            Sending::new(watcher, self.watches.elsewhere().clone(), (permit, of_keys)).boxed(),
        ))
    }

    async fn write(
        &self,
        request: Request<wire::WriteRequest>,
    ) -> Result<Response<wire::WriteResponse>, Status> {
        let mut request = request.into_inner();
        let turn = request.turn.take();
        let Some(voter) = self.voter(request.group)? else {
            return Ok(Response::new(write_reply_to_wire(WriteReply::NotLeader(None))));
        };
        let Some(valid_until) = write_calls::valid_until(request.valid_until.take()) else {
            return Ok(Response::new(response(write_response::Result::ClockUnknown(
                wire::ClockUnknown {},
            ))));
        };
        let on_behalf = request.pass_on.then(|| wire::WriteRequest {
            pass_on: false,
            late_leader: 0,
            ..request.clone()
        });
        let late = node_id(request.late_leader);
        let request_id =
            request.request_id.as_ref().try_into().map_err(|_| invalid("request_id"))?;
        let request = WriteRequest {
            database: database(&request.database)?,
            request_id: RequestId(request_id),
            transaction: transaction(request.transaction).map_err(|error| invalid(error.0))?,
            retry: request.retry,
        };
        // Until it is answered, also where it waits for its turn, for a leader, or for another that
        // it is passed on to.
        let reserved = match voter.reserve(&request) {
            Ok(reserved) => reserved,
            Err(refusal) => {
                if let Some(turn) = turn {
                    // The next one is not to wait for it.
                    let turns = Arc::clone(&self.turns);
                    tokio::spawn(async move { drop(turns.wait(turn).await) });
                }
                return Ok(Response::new(write_reply_to_wire(refusal)));
            }
        };
        let place = match turn {
            Some(turn) => Some(self.turns.wait(turn).await),
            None => None,
        };
        let mut writing = std::pin::pin!(voter.write_reserved_when_led(
            request,
            reserved.clone(),
            late,
            valid_until
        ));
        // Then the proposer has it, and the next one may come.
        let first = futures::poll!(writing.as_mut());
        drop(place);
        let _counted = reserved;
        let reply = match first {
            std::task::Poll::Ready(reply) => reply,
            std::task::Poll::Pending => writing.await,
        };
        Ok(Response::new(match (reply, on_behalf) {
            (WriteReply::NotLeader(Some(leader)), Some(request)) => {
                pass_on(&self.writes, leader, request, valid_until).await
            }
            (reply, _) => write_reply_to_wire(reply),
        }))
    }

    async fn read(
        &self,
        request: Request<wire::ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let wire::ReadRequest { group, database: id, strong, ranges: wanted, min_sequence } =
            request.into_inner();
        let shard = self.shard(group, !strong)?;
        let (database, ranges) = (database(&id)?, ranges(wanted)?);
        let reply = async move {
            let reply = match (&shard, strong) {
                (LocalShard::Voter(voter), true) => {
                    voter.read_strong(database, &ranges).await.map(Fenced::into_inner)
                }
                (LocalShard::Replica(_), true) => Err(NotServed::NotLeader(None)),
                (shard, false) => shard.read_eventual(database, &ranges, min_sequence).await,
            };
            (reply, shard.leader())
        };
        Ok(Response::new(read_answer::parts(reply)))
    }

    async fn read_position(
        &self,
        request: Request<wire::ReadPositionRequest>,
    ) -> Result<Response<wire::ReadPositionResponse>, Status> {
        let index = match self.voter(request.into_inner().group)? {
            Some(voter) => voter.read_index().await,
            None => Err(NotServed::NotLeader(None)),
        };
        let result = match index {
            Ok(index) => read_position_response::Result::Position(wire::ReadPosition {
                sequence: index.sequence,
            }),
            Err(NotServed::Refused(refusal)) => {
                read_position_response::Result::Unavailable(refusal.to_string())
            }
            Err(NotServed::NotLeader(leader)) => {
                read_position_response::Result::NotLeader(not_leader(leader))
            }
        };
        Ok(Response::new(wire::ReadPositionResponse { result: Some(result) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write::proposer::WriteRefusal;

    /// The caller may wait for the leader's answer to the write itself.
    #[test]
    fn refusal_of_a_write_that_was_passed_on_is_no_word_of_the_leader_to_its_caller() {
        let busy = WriteReply::NotCommitted(WriteRefusal::ShareOfQueue);
        let from_the_leader = write_reply_to_wire(busy);
        let of = |answer| written_from_wire(answer).map(drop);
        assert!(matches!(of(from_the_leader.clone()), Err(Failed::Busy(_))));
        let passed_back = passed_back(NodeId(1), from_the_leader);
        assert!(matches!(of(passed_back), Err(Failed::NotDone(_))));
    }
}
