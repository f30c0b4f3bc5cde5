//! Calls from other nodes at the end of an epoch: to seal, to come to a position, and to read this
//! node's part of a shard.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use meridian_net::MAX_MESSAGE_BYTES;
use meridian_placement::{NotASource, Seal, SealAction, SealEvent, Sealing, check_source};
use meridian_proto::CallingNode;
use meridian_proto::directory::{self as wire, failover_server};
use meridian_proto::shipping::{StateChunk, StoredBatches};
use meridian_storage::{Applied, Engine, Syncer, or_fatal};
use meridian_types::{Epoch, NodeId, Position, ShardId};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::cluster_view::view::Directory;
use crate::placement::seals;
use crate::read::freshness::wait_applied;
use crate::replication::compression::Compressor;
use crate::replication::snapshot_transfer::StateExchange;
use crate::replication::wire::{position, position_to_wire};
use crate::rpc::authorization::votes_in_directory;
use crate::rpc::leaving::Place;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;
use crate::shard::voter::sealing::Sealed;
use crate::time_budget::ORDER_ANSWER_TIMEOUT;

/// Of one answer to `ReadLog`, about.
const READ_BYTES: usize = 2 << 20;
/// Answers to `ReadLog` for one node that it has not taken yet.
const READS_OF_A_NODE: usize = 8;
const READ_WAIT: Duration = Duration::from_secs(10);

/// Carries out what the directory's leader decides about an epoch's end.
#[derive(Clone)]
pub(crate) struct FailoverService {
    pub(crate) directory: Arc<Directory>,
    pub(crate) shards: Arc<ShardTable>,
    pub(crate) engine: Arc<dyn Engine>,
    /// One fsync for all that wait: the end of a region seals all of its shards at once.
    pub(crate) syncer: Arc<Syncer>,
    pub(crate) exchange: Arc<StateExchange>,
    pub(crate) log_reads: LogReads,
}

/// Bounds the answers to `ReadLog` that are held until each node has taken them.
#[derive(Clone, Default)]
pub(crate) struct LogReads(Arc<Mutex<BTreeMap<Option<NodeId>, Arc<Semaphore>>>>);

impl LogReads {
    /// A place for an answer. `node`: of the caller, if it is known.
    ///
    /// # Errors
    /// `UNAVAILABLE`: the node has not taken earlier ones in time.
    async fn place(&self, node: Option<NodeId>) -> Result<Place, Status> {
        let new = || Arc::new(Semaphore::new(READS_OF_A_NODE));
        let places = Arc::clone(self.0.lock().entry(node).or_insert_with(new));
        match tokio::time::timeout(READ_WAIT, places.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Place::new(permit)),
            _ => Err(Status::unavailable("earlier answers have not been taken yet")),
        }
    }
}

impl FailoverService {
    pub(crate) fn into_server(self) -> failover_server::FailoverServer<Self> {
        failover_server::FailoverServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    #[allow(clippy::result_large_err, reason = "tonic's own error type, on a path of no hurry")]
    fn shard(&self, shard: u32) -> Result<(ShardId, LocalShard), Status> {
        let id = ShardId(shard);
        let local = self.shards.get(&id);
        Ok((
            id,
            local.ok_or_else(|| {
                Status::not_found(format!("shard {id} is not on this node at present"))
            })?,
        ))
    }

    /// Returns when every write before this call is durable.
    async fn synced(&self) -> Result<(), Status> {
        let (synced, durable) = oneshot::channel();
        self.syncer.sync_then(move || synced.send(()).unwrap_or_default());
        durable.await.map_err(|_| stopping())
    }

    /// The shard, if it is in the epoch that is meant.
    #[allow(clippy::result_large_err, reason = "tonic's own error type, on a path of no hurry")]
    fn shard_in(&self, shard: u32, epoch: u32) -> Result<(ShardId, Epoch, LocalShard), Status> {
        let (id, local) = self.shard(shard)?;
        let here = local.epoch();
        if u32::from(here.0) < epoch {
            // It will hear of it.
            self.directory.renew_now();
        }
        if u32::from(here.0) != epoch {
            return Err(Status::failed_precondition(format!(
                "shard {id} is in epoch {here} here, not in {epoch}"
            )));
        }
        Ok((id, here, local))
    }
}

fn stopping() -> Status {
    Status::unavailable("the node is stopping")
}

fn not_a_source(shard: ShardId, why: NotASource) -> Status {
    Status::failed_precondition(match why {
        NotASource::OffHistory(position) => {
            format!("{position} is not in this node's history of shard {shard}")
        }
        NotASource::OnlyUpTo(position) => {
            format!("this node has shard {shard} up to {position} only")
        }
    })
}

fn sealed(
    applied: Applied,
    term: Option<u64>,
    drained_leader: bool,
) -> Response<wire::SealResponse> {
    Response::new(wire::SealResponse {
        position: Some(position_to_wire(applied.position)),
        transactions: applied.total_transactions,
        time_ms: applied.time_ms,
        term,
        drained_leader,
    })
}

fn required(
    wire: Option<meridian_proto::shipping::Position>,
    field: &str,
) -> Result<Position, Status> {
    wire.and_then(position).ok_or_else(|| Status::invalid_argument(format!("field `{field}`")))
}

#[tonic::async_trait]
impl failover_server::Failover for FailoverService {
    type ReadStateStream = Pin<Box<dyn Stream<Item = Result<StateChunk, Status>> + Send>>;

    async fn seal(
        &self,
        request: Request<wire::SealRequest>,
    ) -> Result<Response<wire::SealResponse>, Status> {
        let (_, caller, request) = request.into_parts();
        votes_in_directory(&self.directory, &caller, "ends no epoch")?;
        let (id, epoch, local) = self.shard_in(request.shard, request.epoch)?;
        let seal = Seal { epoch, planned: request.planned };
        let (mut sealing, actions) = Sealing::asked(seal, matches!(local, LocalShard::Voter(_)));
        let (mut actions, mut voter_term) = (VecDeque::from(actions), 0);
        let mut noted = None;
        while let Some(action) = actions.pop_front() {
            let event = match (action, &local) {
                (SealAction::Fence, _) => {
                    self.directory.seal(id, epoch);
                    None
                }
                (SealAction::WriteDown(seal), _) => {
                    let engine = Arc::clone(&self.engine);
                    let write = move || or_fatal(seals::write_down(&engine, id, seal));
                    tokio::task::spawn_blocking(write).await.map_err(|_| stopping())?;
                    None
                }
                (SealAction::Sync, _) => {
                    self.synced().await?;
                    Some(SealEvent::Durable)
                }
                (SealAction::CloseReplica, LocalShard::Replica(replica)) => {
                    let gone = || Status::unavailable("the replica has stopped");
                    replica.seal(epoch).await.ok_or_else(gone)?;
                    Some(SealEvent::ReplicaClosed)
                }
                (SealAction::Note { drained }, LocalShard::Voter(voter)) => {
                    let Sealed { applied, term, drained_leader } =
                        voter.sealed(voter_term, drained);
                    noted = Some(sealed(applied, Some(term), drained_leader));
                    None
                }
                (SealAction::Note { .. }, LocalShard::Replica(replica)) => {
                    noted = Some(sealed(replica.state().applied(), None, false));
                    None
                }
                (SealAction::Answer, _) => {
                    tracing::info!(shard = %id, %epoch, planned = seal.planned, "sealed");
                    return noted.ok_or_else(|| Status::internal("a seal noted no position"));
                }
                (action, LocalShard::Voter(voter)) => {
                    voter.carry_out(action, &mut voter_term).await
                }
                (_, LocalShard::Replica(_)) => None,
            };
            actions.extend(event.into_iter().flat_map(|event| sealing.step(event)));
        }
        Err(Status::internal("a seal came to no answer"))
    }

    async fn drain(
        &self,
        request: Request<wire::DrainRequest>,
    ) -> Result<Response<wire::DrainResponse>, Status> {
        let (_, caller, request) = request.into_parts();
        votes_in_directory(&self.directory, &caller, "ends no epoch")?;
        let (_, _, local) = self.shard_in(request.shard, request.epoch)?;
        let through = required(request.through, "through")?;
        let drained = match &local {
            LocalShard::Replica(replica) => {
                let drained = tokio::time::timeout(
                    ORDER_ANSWER_TIMEOUT,
                    replica.drain(NodeId(request.source), through),
                )
                .await;
                drained.unwrap_or_else(|_| Err(format!("not at {through} in time")))
            }
            LocalShard::Voter(voter) if voter.stop.is_cancelled() => {
                Err("the group of this voter has stopped: it pulls when the next epoch has begun"
                    .to_owned())
            }
            // A voter that goes on in its own region comes there by Raft.
            LocalShard::Voter(voter) => {
                let reached =
                    wait_applied(voter.group.applied(), through.sequence, ORDER_ANSWER_TIMEOUT)
                        .await;
                reached
                    .then(|| voter.state.position())
                    .ok_or_else(|| format!("not at {through} in time"))
            }
        };
        let position = drained.map_err(Status::unavailable)?;
        Ok(Response::new(wire::DrainResponse { position: Some(position_to_wire(position)) }))
    }

    async fn read_log(
        &self,
        request: Request<wire::ReadLogRequest>,
    ) -> Result<Response<wire::ReadLogResponse>, Status> {
        let caller = request.extensions().get::<CallingNode>().map(|CallingNode(node)| *node);
        let request = request.into_inner();
        let (id, local) = self.shard(request.shard)?;
        let (after, through) =
            (required(request.after, "after")?, required(request.through, "through")?);
        check_source(&local.history(), local.state().position(), Some(after))
            .map_err(|why| not_a_source(id, why))?;
        let place = self.log_reads.place(caller).await?;
        let read =
            tokio::task::spawn_blocking(move || local.batches_after(after.sequence, READ_BYTES));
        let read = read.await.map_err(|error| Status::unavailable(error.to_string()))?;
        let Some(batches) = or_fatal(read) else {
            return Ok(Response::new(wire::ReadLogResponse { batches: None }));
        };
        let wanted = batches.into_iter().take_while(|batch| batch.sequence <= through.sequence);
        let stored = StoredBatches { batches: wanted.map(|batch| batch.bytes).collect() };
        let batches = Compressor::new(None).compress(after, &stored);
        let batches = batches.map_err(|error| Status::internal(error.to_string()))?;
        Ok(place.of(wire::ReadLogResponse { batches: Some(batches) }))
    }

    async fn read_state(
        &self,
        request: Request<wire::ReadStateRequest>,
    ) -> Result<Response<Self::ReadStateStream>, Status> {
        let (id, local) = self.shard(request.into_inner().shard)?;
        check_source(&local.history(), local.state().position(), None)
            .map_err(|why| not_a_source(id, why))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(self.exchange.read(local.state())?))))
    }
}

#[cfg(test)]
mod tests;
