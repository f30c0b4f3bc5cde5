//! Subscriptions to the log, states to fetch, and the announcements of other nodes.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;
use meridian_memory::ByteBudget;
use meridian_net::MAX_MESSAGE_BYTES;
use meridian_proto::shipping::{self as wire, shipment, shipping_server, subscribe_request};
use meridian_proto::speaks_for;
use meridian_shipping::{
    AdvertisedCommit, BatchSize, Heartbeat, Sender, SenderAction, SenderConfig, SenderEvent,
    Status as NodeStatus,
};
use meridian_storage::{GroupId, fatal};
use meridian_types::{Epoch, EpochHistory, NodeId, Position, ShardId};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::coop;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Extensions, Request, Response, Status, Streaming};

use crate::cluster_view::directory_shard::DIRECTORY_GROUP;
use crate::cluster_view::view::Directory;
use crate::host::clock::wall_ms;
use crate::host::clocks::Clocks;
use crate::host::disk::Room;
use crate::replication::compression::Compressor;
use crate::replication::snapshot_transfer::StateExchange;
use crate::replication::wire::{heartbeat_to_wire, position, status};
use crate::rpc::authorization::votes_in_directory;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;

/// A stream over which no batches went for so long gives back its memory.
const IDLE: Duration = Duration::from_secs(10);
/// A subscriber that takes nothing of what lies ready for so long is not served any more: that keeps the memory of the
/// stream, and the part of the shard, from all others.
const UNTAKEN: Duration = Duration::from_secs(60);
/// Of one request. An announcement takes some 100 bytes for each shard, and in memory far more than on the wire.
const MAX_REQUEST_BYTES: usize = 1 << 20;

type Shipped = Result<wire::Shipment, Status>;

/// By shard and subscriber; dropping the value ends the subscription.
pub(crate) type Subscribers = HashMap<(ShardId, NodeId), mpsc::Sender<()>>;

/// Ships the logs of this node's shards, and hears what other nodes say of themselves.
#[derive(Clone)]
pub(crate) struct ShippingService {
    pub(crate) node_id: NodeId,
    pub(crate) directory: Arc<Directory>,
    pub(crate) shards: Arc<ShardTable>,
    pub(crate) exchange: Arc<StateExchange>,
    pub(crate) clocks: Clocks,
    /// The newest subscription of each subscriber: an older one ends when a newer comes.
    pub(crate) subscriptions: Arc<Mutex<Subscribers>>,
    /// For the compression of streams.
    pub(crate) streams: ByteBudget,
}

impl ShippingService {
    pub(crate) fn into_server(self) -> shipping_server::ShippingServer<Self> {
        shipping_server::ShippingServer::new(self)
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn shard(&self, shard: u32) -> Result<(ShardId, Epoch, LocalShard), Status> {
        let id = ShardId(shard);
        let local = self
            .shards
            .get(&id)
            .ok_or_else(|| Status::not_found(format!("shard {id} is not on this node")))?;
        Ok((id, local.epoch(), local))
    }
}

#[tonic::async_trait]
impl shipping_server::Shipping for ShippingService {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Shipped> + Send>>;
    type FetchStateStream = Pin<Box<dyn Stream<Item = Result<wire::StateChunk, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<wire::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (_, caller, mut requests) = request.into_parts();
        let first = requests.message().await?.and_then(|request| request.message);
        let Some(subscribe_request::Message::Start(start)) = first else {
            return Err(Status::invalid_argument("a subscription begins with a start"));
        };
        speaks_for(&caller, start.node_id)?;
        let (subscription, stream) = self.open(start)?;
        tokio::spawn(subscription.run(requests));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn fetch_state(
        &self,
        request: Request<wire::FetchStateRequest>,
    ) -> Result<Response<Self::FetchStateStream>, Status> {
        let (_, caller, request) = request.into_parts();
        if request.shard == DIRECTORY_GROUP.shard.0 {
            // It has no replicas: only Raft sends for it, to its own members. It has the keys of the
            // cluster's authorities.
            votes_in_directory(&self.directory, &caller, "gets no state of it")?;
            return Ok(Response::new(Box::pin(ReceiverStream::new(
                self.exchange.serve(DIRECTORY_GROUP, request)?,
            ))));
        }
        let (id, epoch, shard) = self.shard(request.shard)?;
        if request.epoch != u32::from(epoch.0) {
            return Err(Status::failed_precondition(format!("shard {id} is in epoch {epoch}")));
        }
        shard.may_ship()?;
        let chunks = self.exchange.serve(GroupId { shard: id, epoch }, request)?;
        Ok(Response::new(Box::pin(ReceiverStream::new(chunks))))
    }

    async fn announce(
        &self,
        request: Request<Streaming<wire::AnnounceRequest>>,
    ) -> Result<Response<wire::AnnounceResponse>, Status> {
        let (_, caller, requests) = request.into_parts();
        self.hear(caller, requests).await?;
        Ok(Response::new(wire::AnnounceResponse {}))
    }
}

impl ShippingService {
    /// Begins what takes the place of the subscription that the same node has.
    #[allow(clippy::result_large_err, reason = "tonic's own error type, on a path of no hurry")]
    fn open(&self, start: wire::Start) -> Result<(Subscription, ReceiverStream<Shipped>), Status> {
        // One subscription for each of them, so that their number has a bound.
        let subscriber = NodeId(start.node_id);
        if self.directory.known().cluster.present_node(subscriber).is_none() {
            return Err(Status::failed_precondition(format!(
                "node {subscriber} is not known here"
            )));
        }
        let (id, epoch, shard) = self.shard(start.shard)?;
        shard.may_ship()?;
        let from = start
            .durable
            .and_then(position)
            .ok_or_else(|| Status::invalid_argument("field `durable`"))?;
        let (replaced, newer) = mpsc::channel(1);
        self.subscriptions.lock().insert((id, subscriber), replaced);
        let (shipments, stream) = mpsc::channel(4);
        let subscription = Subscription {
            node_id: self.node_id,
            group: GroupId { shard: id, epoch },
            history: shard.history(),
            shard,
            started: Instant::now(),
            sender: Sender::new(SenderConfig::default(), Duration::ZERO, epoch, from),
            read: Vec::new(),
            shipments,
            newer,
            patience: UNTAKEN,
            compressor: Compressor::new(start.keeps_window.then(|| self.streams.clone())),
            shipped: Instant::now(),
        };
        Ok((subscription, ReceiverStream::new(stream)))
    }

    /// As long as something comes, and never for so long that other tasks wait.
    async fn hear(
        &self,
        caller: Extensions,
        mut requests: impl Stream<Item = Result<wire::AnnounceRequest, Status>> + Unpin,
    ) -> Result<(), Status> {
        while let Some(request) = requests.next().await {
            let request = request?;
            let of_statuses = request.statuses.iter().map(|status| status.node_id);
            let of_checkpoints = request.checkpoints.iter().map(|checkpoint| checkpoint.node_id);
            for claimed in of_statuses.chain(of_checkpoints).chain([request.node_id]) {
                speaks_for(&caller, claimed)?;
            }
            self.heard(request);
            coop::consume_budget().await;
        }
        Ok(())
    }

    /// Takes the announcement of another node.
    pub(crate) fn heard(&self, request: wire::AnnounceRequest) {
        let wire::AnnounceRequest {
            statuses,
            disk_full,
            disk_exhausted,
            checkpoints,
            node_id,
            clock_ms,
        } = request;
        let room = Room::announced(disk_full, disk_exhausted);
        if clock_ms > 0 {
            self.clocks.heard(NodeId(node_id), clock_ms);
        }
        for wire in statuses {
            let may_lead = wire.may_lead;
            let Some((shard, mut status)) = status(wire) else { continue };
            // Beyond a base it has what the shard's history has not: that counts for nothing.
            let history = self.shards.get(&shard).map(|local| local.history());
            if let Some((_, base)) = history.and_then(|history| history.leaves(status.durable)) {
                status.durable = base;
            }
            if let Some(followers) = self.shards.followers(&shard) {
                followers.heard(status, may_lead, room);
            }
            if let Some(LocalShard::Replica(replica)) = self.shards.get(&shard) {
                replica.heard(status);
            }
        }
        for checkpoint in checkpoints {
            let shard = ShardId(checkpoint.shard);
            if let (Some(comparison), Some(state)) =
                (self.shards.comparison(&shard), self.shards.state(&shard))
            {
                comparison.heard(self.node_id, &state, &checkpoint);
            }
        }
    }
}

impl LocalShard {
    /// Whether what this node has may be taken for the shard's log.
    #[allow(clippy::result_large_err, reason = "tonic's own error type, on a path of no hurry")]
    fn may_ship(&self) -> Result<(), Status> {
        let serves = match self {
            Self::Voter(voter) => voter.has_caught_up(),
            Self::Replica(replica) => replica.status().may_serve,
        };
        serves
            .then_some(())
            .ok_or_else(|| Status::unavailable("this node does not follow the shard at present"))
    }

    /// The status of this node in the shard.
    pub(crate) fn own_status(&self, node: NodeId) -> NodeStatus {
        match self {
            // A voter without a leader is second choice as a source, not a wrong one.
            Self::Voter(voter) => {
                let knows_leader = voter.group.status().leader.is_some();
                let age = if knows_leader { Duration::ZERO } else { Duration::from_secs(3600) };
                NodeStatus::of_primary_member(node, self.epoch(), voter.state.position(), age)
            }
            Self::Replica(replica) => replica.status().status,
        }
    }

    /// The newest commit known here.
    fn committed(&self) -> AdvertisedCommit {
        let here = |position| AdvertisedCommit { position, time_ms: wall_ms() };
        match self {
            Self::Voter(voter) => here(voter.state.position()),
            Self::Replica(replica) => {
                replica.status().committed.unwrap_or_else(|| here(replica.state().position()))
            }
        }
    }
}

/// The source's end of one subscription.
struct Subscription {
    node_id: NodeId,
    group: GroupId,
    history: EpochHistory,
    shard: LocalShard,
    started: Instant,
    sender: Sender,
    /// Of the last read, until they are sent.
    read: Vec<(Position, Bytes)>,
    shipments: mpsc::Sender<Shipped>,
    /// Its sender is dropped when another subscription takes the place of this one.
    newer: mpsc::Receiver<()>,
    /// With a subscriber that takes nothing.
    patience: Duration,
    compressor: Compressor,
    /// When the last batches were.
    shipped: Instant,
}

/// The stream is to end.
struct Ended;

impl Subscription {
    async fn run(
        mut self,
        mut requests: impl Stream<Item = Result<wire::SubscribeRequest, Status>> + Unpin,
    ) {
        let epoch = u32::from(self.group.epoch.0);
        if self.ship(shipment::Message::OpenedEpoch(epoch)).await.is_err() {
            return;
        }
        let mut applied = self.shard.applied();
        let mut event = self.tail();
        loop {
            // Whatever comes how fast.
            coop::consume_budget().await;
            if self.step(event).await.is_err() || self.rest().await.is_err() {
                return;
            }
            let reads_at = self.sender.reads_at().map(|at| self.started + at);
            let heartbeat_at = self.started + self.sender.heartbeat_at();
            event = tokio::select! {
                () = tokio::time::sleep_until(heartbeat_at.into()) => SenderEvent::Tick,
                () = tokio::time::sleep_until(reads_at.unwrap_or(self.started).into()), if reads_at.is_some() => {
                    SenderEvent::Tick
                }
                changed = applied.changed() => match changed {
                    Ok(()) => self.tail(),
                    Err(_) => return,
                },
                request = requests.next() => match request {
                    Some(Ok(wire::SubscribeRequest { message: Some(subscribe_request::Message::Durable(at)) })) => {
                        match position(at) {
                            Some(durable) => SenderEvent::Acked { durable },
                            None => return,
                        }
                    }
                    _ => return,
                },
                _ = self.newer.recv() => return,
            };
        }
    }

    fn at(&self, sequence: u64) -> Position {
        self.history.at(sequence)
    }

    fn tail(&self) -> SenderEvent {
        // This part's own view: the state may go on in another.
        let available = self.shard.applied().borrow().sequence;
        match self.shard.purged() {
            Ok(purged) => SenderEvent::LogTail {
                purged: self.at(purged.min(available)),
                available: self.at(available),
            },
            Err(error) => fatal(&error),
        }
    }

    /// The stream belongs to one epoch: it ends when the node has gone on to another.
    async fn step(&mut self, event: SenderEvent) -> Result<(), Ended> {
        let event =
            if self.shard.epoch() == self.group.epoch { event } else { SenderEvent::EpochChanged };
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut sends = Vec::new();
            for action in self.sender.step(self.started.elapsed(), event) {
                if !matches!(action, SenderAction::Send { .. }) {
                    self.ship_batches(&mut sends).await?;
                }
                match action {
                    SenderAction::Send { position, previous } => sends.push((position, previous)),
                    SenderAction::Read { after, max_bytes } => {
                        events.push(self.read(after, max_bytes).await?)
                    }
                    SenderAction::Heartbeat => {
                        let AdvertisedCommit { position: committed, time_ms } =
                            self.shard.committed();
                        let status = self.shard.own_status(self.node_id);
                        let heartbeat = Heartbeat { status, committed, time_ms };
                        let wire = heartbeat_to_wire(self.group.shard, &heartbeat);
                        self.ship(shipment::Message::Heartbeat(wire)).await?;
                    }
                    SenderAction::SnapshotNeeded { diverged } => {
                        self.ship(shipment::Message::SnapshotNeeded(wire::SnapshotNeeded {
                            diverged,
                        }))
                        .await?;
                        return Err(Ended);
                    }
                    SenderAction::Close { reason } => {
                        tracing::info!(group = %self.group, ?reason, "closing a log stream");
                        return Err(Ended);
                    }
                }
            }
            self.ship_batches(&mut sends).await?;
        }
        Ok(())
    }

    /// Reads the log behind `after`. An empty answer, where there was to be one, means that the log
    /// has ended.
    async fn read(&mut self, after: Position, max_bytes: u64) -> Result<SenderEvent, Ended> {
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        let shard = self.shard.clone();
        let read =
            tokio::task::spawn_blocking(move || shard.batches_after(after.sequence, max_bytes));
        // A task that did not finish: the node is stopping.
        match read.await.map_err(|_| Ended)? {
            Err(error) => fatal(&error),
            Ok(None) => Ok(SenderEvent::ReadMissing),
            Ok(Some(batches)) if batches.is_empty() => Err(Ended),
            Ok(Some(batches)) => {
                let previous = batches.first().map_or(after, |first| self.at(first.sequence - 1));
                self.read = batches
                    .into_iter()
                    .map(|batch| (self.at(batch.sequence), batch.bytes))
                    .collect();
                let size = |(position, bytes): &(Position, Bytes)| BatchSize {
                    position: *position,
                    bytes: bytes.len() as u64,
                };
                Ok(SenderEvent::Read { previous, batches: self.read.iter().map(size).collect() })
            }
        }
    }

    /// Ships batches that follow one another, in one message.
    async fn ship_batches(&mut self, sends: &mut Vec<(Position, Position)>) -> Result<(), Ended> {
        let (Some((first, previous)), Some((last, _))) =
            (sends.first().copied(), sends.last().copied())
        else {
            return Ok(());
        };
        sends.clear();
        let batches: Vec<Bytes> = self
            .read
            .iter()
            .filter(|(position, _)| (first..=last).contains(position))
            .map(|(_, bytes)| bytes.clone())
            .collect();
        let Ok(part) = self.compressor.compress(previous, &wire::StoredBatches { batches }) else {
            return Err(Ended);
        };
        self.shipped = Instant::now();
        self.ship_part(part).await
    }

    /// Gives back the memory of a stream that nothing went over for a while.
    async fn rest(&mut self) -> Result<(), Ended> {
        if self.shipped.elapsed() < IDLE {
            return Ok(());
        }
        match self.compressor.end_frame(self.sender.sent()) {
            Ok(None) => Ok(()),
            Ok(Some(part)) => self.ship_part(part).await,
            Err(_) => Err(Ended),
        }
    }

    /// A part that does not arrive ends the stream: the parts behind it cannot be read without it.
    async fn ship_part(&mut self, part: wire::Batches) -> Result<(), Ended> {
        metrics::counter!("meridian_shipping_sent_wire_bytes_total")
            .increment(part.zstd.len() as u64);
        self.ship(shipment::Message::Batches(part)).await
    }

    async fn ship(&mut self, message: shipment::Message) -> Result<(), Ended> {
        let shipped = self.shipments.send(Ok(wire::Shipment { message: Some(message) }));
        tokio::select! {
            shipped = tokio::time::timeout(self.patience, shipped) => match shipped {
                Ok(shipped) => shipped.map_err(|_| Ended),
                Err(_) => {
                    tracing::info!(group = %self.group, "closing a log stream of which its subscriber takes nothing");
                    Err(Ended)
                }
            },
            _ = self.newer.recv() => Err(Ended),
        }
    }
}

#[cfg(test)]
mod tests;
