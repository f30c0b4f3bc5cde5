//! A shard on a node outside its primary region: follows the committed log, durably, and serves it on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_consensus::StateTransfer;
use meridian_proto::shipping::{self as wire, shipment, shipping_client::ShippingClient, subscribe_request};
use meridian_proto::{batch_header, decode_batch};
use meridian_shipping::{
    Heartbeat, Receiver, ReceiverAction, ReceiverConfig, ReceiverEvent, RelayConfig, RelayElection, Status,
    StreamEvent, StreamId,
};
use meridian_storage::{
    Applied, GroupId, GroupLog, RaftApplied, RecordKind, ShardState, StagedState, StorageError, Syncer,
};
use meridian_types::{NodeId, Position};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::directory::Directory;
use crate::peers::{MAX_MESSAGE_BYTES, PeerChannels};
use crate::shard::{or_fatal, serves_alone};
use crate::shipping_wire::{heartbeat_from_wire, position, position_to_wire};

const TICK: Duration = Duration::from_millis(100);
/// Batches that wait for the driver, from one stream.
const STREAM_EVENTS: usize = 256;
/// Decompressed batches of one message at most.
const MAX_SHIPMENT_BYTES: usize = 64 << 20;
const PURGED: u8 = b'p';
/// A replica this near to the newest commit it was told of serves eventual reads.
const CAUGHT_UP_BATCHES: u64 = 1000;

/// What a replica knows of itself and its source, for others to ask.
#[derive(Debug, Clone)]
pub(crate) struct ReplicaStatus {
    pub(crate) status: Status,
    pub(crate) may_serve: bool,
    pub(crate) is_relay: bool,
    /// Whom it subscribes to.
    pub(crate) source: Option<NodeId>,
    /// The newest commit it was told of, with the voter's wall clock then.
    pub(crate) committed: Option<(Position, u64)>,
}

/// One shard that this node follows.
pub(crate) struct Replica {
    state: Arc<ShardState>,
    log: GroupLog,
    applied: watch::Receiver<(u64, u64)>,
    status: Arc<Mutex<ReplicaStatus>>,
    heard: mpsc::Sender<Status>,
    /// The newest sequence that is no longer in the log.
    purged: Arc<watch::Sender<u64>>,
    caught_up: Arc<AtomicBool>,
    started: Instant,
}

/// What a replica works with.
pub(crate) struct ReplicaParts {
    pub(crate) node_id: NodeId,
    pub(crate) group: GroupId,
    pub(crate) state: Arc<ShardState>,
    pub(crate) syncer: Arc<Syncer>,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    pub(crate) transfer: Arc<dyn StateTransfer>,
}

impl Replica {
    /// Applies again what was durable and not flushed, and begins to follow.
    ///
    /// # Errors
    /// When storage fails, or the log does not connect to the state.
    pub(crate) fn start(parts: ReplicaParts) -> Result<Self, StorageError> {
        let log = GroupLog::open(Arc::clone(parts.state.engine()), parts.group, RecordKind::Shipped)?;
        catch_up(&parts.state, &log)?;
        let durable = parts.state.position();
        let caught_up = Arc::new(AtomicBool::new(false));
        // An installation that a crash cut off may have left a mark ahead of the state.
        let purged = log.mark(PURGED)?.and_then(|bytes| bytes.as_ref().try_into().ok().map(u64::from_be_bytes));
        let purged = Arc::new(watch::Sender::new(purged.unwrap_or(0).min(durable.sequence)));
        let applied = watch::Sender::new((durable.sequence, 0));
        let topology = parts.directory.topology();
        let voters = topology.shards.get(&parts.group.shard).map(|shard| shard.voters.clone()).unwrap_or_default();
        let own_region = topology.nodes.get(&parts.node_id).map(|node| node.region.clone()).unwrap_or_default();
        let mates: Vec<NodeId> = topology
            .nodes
            .values()
            .filter(|node| node.region == own_region && node.id != parts.node_id)
            .map(|node| node.id)
            .collect();
        let start = Instant::now();
        let receiver = Receiver::new(
            ReceiverConfig::default(),
            Duration::ZERO,
            durable,
            parts.group.epoch,
            Position::new(parts.group.epoch, 0),
        );
        let mut election = RelayElection::new(RelayConfig::default(), parts.node_id, Duration::ZERO);
        let primary: Vec<NodeId> = voters.into_iter().collect();
        election.set_members(Duration::ZERO, &primary, None, &mates);
        let status = Arc::new(Mutex::new(ReplicaStatus {
            status: receiver.status(Duration::ZERO, parts.node_id),
            may_serve: false,
            is_relay: false,
            source: None,
            committed: None,
        }));
        let (heard, statuses) = mpsc::channel(256);
        let replica = Self {
            state: Arc::clone(&parts.state),
            log: log.clone(),
            applied: applied.subscribe(),
            status: Arc::clone(&status),
            heard,
            purged: Arc::clone(&purged),
            caught_up: Arc::clone(&caught_up),
            started: start,
        };
        let (events, inbox) = mpsc::channel(STREAM_EVENTS);
        let (internal, internal_events) = mpsc::unbounded_channel();
        let driver = Driver {
            parts,
            log,
            start,
            receiver,
            election,
            status,
            applied,
            purged,
            streams: events,
            internal,
            stream: None,
            unapplied: VecDeque::new(),
            unsynced: Vec::new(),
            staged: None,
            caught_up,
        };
        tokio::spawn(driver.run(inbox, internal_events, statuses));
        Ok(replica)
    }

    pub(crate) fn state(&self) -> &Arc<ShardState> {
        &self.state
    }

    pub(crate) fn applied(&self) -> watch::Receiver<(u64, u64)> {
        self.applied.clone()
    }

    /// Whether this replica has had what was committed when it started, or a little before. Until then it
    /// may show a state that is hours old, or none.
    pub(crate) fn has_caught_up(&self) -> bool {
        let alone = || self.status().committed.is_none() && serves_alone(self.started, &self.state);
        self.caught_up.load(Ordering::Relaxed) || alone()
    }

    pub(crate) fn status(&self) -> ReplicaStatus {
        self.status.lock().clone()
    }

    /// Another node said this of itself.
    pub(crate) fn heard(&self, status: Status) {
        // When full, the next one comes soon.
        self.heard.try_send(status).ok();
    }

    pub(crate) fn purged(&self) -> u64 {
        *self.purged.borrow()
    }

    /// Durable batches behind `after`, up to about `max_bytes`. `None`: they are no longer in the log.
    pub(crate) fn batches_after(
        &self,
        after: u64,
        max_bytes: usize,
    ) -> Result<Option<Vec<(u64, Bytes)>>, StorageError> {
        // What is applied is durable.
        let end = self.applied.borrow().0 + 1;
        if after < self.purged() {
            return Ok(None);
        }
        let batches = self.log.read(after + 1..end, max_bytes)?;
        if batches.is_empty() && after + 1 < end {
            // Emptied for a snapshot right now.
            return Ok(None);
        }
        let contiguous = batches.iter().zip(after + 1..).all(|((found, _), expected)| *found == expected);
        Ok(contiguous.then_some(batches))
    }

    /// Flushes the state, and purges the log up to `sequence`.
    pub(crate) fn purge_through(&self, sequence: u64) -> Result<(), StorageError> {
        let flushed = self.state.flush()?.position.sequence;
        let through = sequence.min(flushed);
        self.log.purge_through(through, Some((PURGED, &through.to_be_bytes())))?;
        self.purged.send_if_modified(|purged| {
            let raised = *purged < through;
            *purged = through.max(*purged);
            raised
        });
        Ok(())
    }
}

/// Applies what the log holds behind the state.
fn catch_up(state: &ShardState, log: &GroupLog) -> Result<(), StorageError> {
    loop {
        let next = state.position().sequence + 1;
        let records = log.read(next..u64::MAX, 8 << 20)?;
        let Some((first, _)) = records.first() else { return Ok(()) };
        if *first != next {
            return Err(StorageError::Corruption {
                what: format!("the shipped log of {}", log.group()),
                detail: format!("it goes on at {first}, the state ends at {}", next - 1),
            });
        }
        let batches = records.into_iter().map(|(_, bytes)| decode(bytes)).collect::<Result<Vec<_>, _>>()?;
        state.apply(&batches, RaftApplied::default())?;
    }
}

fn decode(bytes: Bytes) -> Result<(meridian_types::Batch, usize), StorageError> {
    let len = bytes.len();
    let corrupt = |error: meridian_proto::InvalidBatch| StorageError::Corruption {
        what: "a shipped batch".to_owned(),
        detail: error.to_string(),
    };
    Ok((decode_batch(bytes).map_err(corrupt)?, len))
}

/// Replaces state and log. The state in use is flushed first, since the log that it may be made from again is
/// emptied next, and marked as purged up to the new position; the installation makes both durable, in this
/// order, with the new state's name. A crash in between finds the old state and no log.
fn install(state: &ShardState, log: &GroupLog, staged: StagedState) -> Result<Applied, StorageError> {
    let (new, old) = (staged.position()?, or_fatal(state.flush()).position);
    if new < old {
        return Err(StorageError::Refused(format!("a snapshot at {new} is older than the state at {old}")));
    }
    or_fatal(log.purge_through(u64::MAX - 1, Some((PURGED, &new.sequence.to_be_bytes()))));
    Ok(or_fatal(state.install(staged, RaftApplied::default())))
}

/// What comes over a stream, with the bytes where it is a batch.
struct Incoming {
    stream: StreamId,
    event: StreamEvent,
    bytes: Bytes,
}

enum Internal {
    Persisted(Position),
    Fetched(Result<StagedState, StorageError>),
    Installed(Result<Applied, StorageError>),
}

struct OpenStream {
    id: StreamId,
    source: NodeId,
    reports: mpsc::Sender<wire::SubscribeRequest>,
    task: tokio::task::JoinHandle<()>,
}

/// The task of one replica: carries out what the pure machines decide.
struct Driver {
    parts: ReplicaParts,
    log: GroupLog,
    start: Instant,
    receiver: Receiver,
    election: RelayElection,
    status: Arc<Mutex<ReplicaStatus>>,
    applied: watch::Sender<(u64, u64)>,
    purged: Arc<watch::Sender<u64>>,
    streams: mpsc::Sender<Incoming>,
    internal: mpsc::UnboundedSender<Internal>,
    stream: Option<OpenStream>,
    /// Appended to the log, and to be applied once they are durable.
    unapplied: VecDeque<(Position, Bytes)>,
    /// To be appended to the log next, together.
    unsynced: Vec<(Position, Bytes)>,
    /// The fetch of a snapshot, while there is one.
    staged: Option<tokio::task::JoinHandle<()>>,
    caught_up: Arc<AtomicBool>,
}

impl Driver {
    async fn run(
        mut self,
        mut incoming: mpsc::Receiver<Incoming>,
        mut internal: mpsc::UnboundedReceiver<Internal>,
        mut statuses: mpsc::Receiver<Status>,
    ) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wants_more = self.receiver.wants_more();
            tokio::select! {
                _ = ticks.tick() => {
                    self.step(ReceiverEvent::Tick, Bytes::new());
                    self.choose_source();
                }
                Some(event) = internal.recv() => self.internal(event),
                status = statuses.recv() => match status {
                    Some(status) => {
                        self.election.heard(self.now(), status);
                        self.choose_source();
                    }
                    // The node is gone.
                    None => return,
                },
                Some(event) = incoming.recv(), if wants_more => {
                    self.incoming(event);
                    while self.receiver.wants_more() && let Ok(event) = incoming.try_recv() {
                        self.incoming(event);
                    }
                }
            }
            self.append();
            self.publish();
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn incoming(&mut self, incoming: Incoming) {
        if let StreamEvent::Heartbeat(heartbeat) = &incoming.event {
            self.election.heard(self.now(), heartbeat.status);
        }
        self.step(ReceiverEvent::Stream(incoming.stream, incoming.event), incoming.bytes);
    }

    fn internal(&mut self, event: Internal) {
        match event {
            Internal::Persisted(position) => {
                self.apply_through(position);
                self.step(ReceiverEvent::Persisted { position }, Bytes::new());
            }
            Internal::Fetched(fetched) => {
                self.staged = None;
                match fetched {
                    Ok(staged) => self.install(staged),
                    Err(error) => self.snapshot_failed(&error),
                }
            }
            Internal::Installed(Ok(applied)) => {
                let position = applied.position;
                tracing::info!(group = %self.parts.group, %position, "installed a state snapshot");
                self.unapplied.clear();
                self.purged.send_replace(position.sequence);
                self.applied.send_replace((position.sequence, 0));
                self.step(ReceiverEvent::SnapshotInstalled { position }, Bytes::new());
            }
            Internal::Installed(Err(error)) => self.snapshot_failed(&error),
        }
    }

    fn snapshot_failed(&mut self, error: &StorageError) {
        tracing::warn!(group = %self.parts.group, %error, "a state snapshot could not be installed");
        self.step(ReceiverEvent::SnapshotFailed, Bytes::new());
    }

    /// Installs what was fetched, off the runtime. Nothing is being persisted meanwhile.
    fn install(&self, staged: StagedState) {
        let (state, log, internal) = (Arc::clone(&self.parts.state), self.log.clone(), self.internal.clone());
        tokio::task::spawn_blocking(move || {
            // The driver is gone only when the node stops.
            drop(internal.send(Internal::Installed(install(&state, &log, staged))));
        });
    }

    /// Applies what is durable now.
    fn apply_through(&mut self, position: Position) {
        let mut batches = Vec::new();
        while self.unapplied.front().is_some_and(|(next, _)| *next <= position) {
            let Some((_, bytes)) = self.unapplied.pop_front() else { break };
            batches.push(or_fatal(decode(bytes)));
        }
        if !batches.is_empty() {
            or_fatal(self.parts.state.apply(&batches, RaftApplied::default()));
            self.applied.send_replace((self.parts.state.position().sequence, 0));
        }
    }

    fn choose_source(&mut self) {
        let now = self.now();
        let own = self.receiver.status(now, self.parts.node_id);
        let source = self.election.choose(now, &own);
        self.step(ReceiverEvent::Source(source), Bytes::new());
    }

    fn step(&mut self, event: ReceiverEvent, bytes: Bytes) {
        let actions = self.receiver.step(self.now(), rand::random(), event);
        for action in actions {
            self.carry_out(action, &bytes);
        }
    }

    fn carry_out(&mut self, action: ReceiverAction, bytes: &Bytes) {
        match action {
            ReceiverAction::Connect { stream, source, from } => self.connect(stream, source, from),
            ReceiverAction::CloseStream { stream } => {
                if self.stream.as_ref().is_some_and(|open| open.id == stream)
                    && let Some(open) = self.stream.take()
                {
                    open.task.abort();
                }
            }
            ReceiverAction::Persist { position } => self.unsynced.push((position, bytes.clone())),
            ReceiverAction::ReportDurable { stream, position } => {
                if let Some(open) = self.stream.as_ref().filter(|open| open.id == stream) {
                    let message = subscribe_request::Message::Durable(position_to_wire(position));
                    // When full, a later report says more.
                    open.reports.try_send(wire::SubscribeRequest { message: Some(message) }).ok();
                }
            }
            ReceiverAction::SourceFailed { source, reason } => {
                tracing::info!(group = %self.parts.group, source, ?reason, "a log source failed");
                metrics::counter!("meridian_shipping_source_failures_total").increment(1);
                self.election.failed(self.now(), source);
            }
            ReceiverAction::FetchSnapshot { source, .. } => {
                tracing::info!(group = %self.parts.group, source, "fetching a state snapshot");
                metrics::counter!("meridian_snapshot_fetches_total").increment(1);
                let (transfer, state) = (Arc::clone(&self.parts.transfer), Arc::clone(&self.parts.state));
                let (group, internal) = (self.parts.group, self.internal.clone());
                self.staged = Some(tokio::spawn(async move {
                    let staged = transfer.fetch(group, source, String::new(), state).await;
                    // The driver is gone only when the node stops.
                    drop(internal.send(Internal::Fetched(staged)));
                }));
            }
            ReceiverAction::CancelSnapshot => {
                if let Some(fetch) = self.staged.take() {
                    fetch.abort();
                    let cancelled = StorageError::Refused("cancelled".to_owned());
                    drop(self.internal.send(Internal::Fetched(Err(cancelled))));
                }
            }
            // One epoch only, from configuration: these belong to failovers.
            ReceiverAction::SaveOrphans { base } => {
                tracing::error!(group = %self.parts.group, %base, "this node's log diverges from its source's");
            }
            ReceiverAction::Sealed { .. } => {}
            ReceiverAction::EpochAhead { epoch } => {
                tracing::warn!(group = %self.parts.group, %epoch, "a source is in a later epoch");
            }
        }
    }

    fn connect(&mut self, stream: StreamId, source: NodeId, from: Position) {
        if let Some(old) = self.stream.take() {
            old.task.abort();
        }
        let start = wire::Start {
            shard: self.parts.group.shard.0,
            epoch: self.parts.group.epoch.0.into(),
            node_id: self.parts.node_id,
            durable: Some(position_to_wire(from)),
        };
        let (reports, requests) = mpsc::channel(64);
        let message = Some(subscribe_request::Message::Start(start));
        reports.try_send(wire::SubscribeRequest { message }).ok();
        let channel = self.parts.peers.shipping(source);
        let events = self.streams.clone();
        let task = tokio::spawn(async move {
            if let Some(channel) = channel
                && let Err(status) = read_stream(channel, requests, stream, &events).await
            {
                tracing::debug!(source, %status, "a log stream ended");
            }
            let closed = Incoming { stream, event: StreamEvent::Closed, bytes: Bytes::new() };
            drop(events.send(closed).await);
        });
        self.stream = Some(OpenStream { id: stream, source, reports, task });
    }

    /// Appends what this round brought, and reports it when it is durable.
    fn append(&mut self) {
        let Some((last, _)) = self.unsynced.last() else { return };
        let last = *last;
        let records = self.unsynced.iter().map(|(position, bytes)| (position.sequence, bytes.as_ref()));
        or_fatal(self.log.append(records));
        self.unapplied.extend(self.unsynced.drain(..));
        let internal = self.internal.clone();
        self.parts.syncer.sync_then(move || drop(internal.send(Internal::Persisted(last))));
    }

    fn publish(&self) {
        let applied = self.applied.borrow().0;
        if self.receiver.committed().is_some_and(|(committed, _)| committed.sequence <= applied + CAUGHT_UP_BATCHES) {
            self.caught_up.store(true, Ordering::Relaxed);
        }
        *self.status.lock() = ReplicaStatus {
            status: self.receiver.status(self.now(), self.parts.node_id),
            may_serve: self.receiver.may_serve(),
            is_relay: self.election.is_relay(),
            source: self.stream.as_ref().map(|open| open.source),
            committed: self.receiver.committed(),
        };
    }
}

/// Turns one subscription into events, until it ends.
async fn read_stream(
    channel: tonic::transport::Channel,
    requests: mpsc::Receiver<wire::SubscribeRequest>,
    stream: StreamId,
    events: &mpsc::Sender<Incoming>,
) -> Result<(), tonic::Status> {
    let mut client = ShippingClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut shipments = client.subscribe(ReceiverStream::new(requests)).await?.into_inner();
    let malformed = |what: &str| tonic::Status::invalid_argument(format!("malformed shipment: {what}"));
    while let Some(shipment) = shipments.message().await? {
        let mut found = Vec::new();
        match shipment.message.ok_or_else(|| malformed("empty"))? {
            shipment::Message::OpenedEpoch(epoch) => {
                let epoch = u16::try_from(epoch).map_err(|_| malformed("epoch"))?;
                found.push((StreamEvent::Connected { epoch: meridian_types::Epoch(epoch) }, Bytes::new()));
            }
            shipment::Message::Heartbeat(heartbeat) => {
                let heartbeat: Heartbeat = heartbeat_from_wire(heartbeat).ok_or_else(|| malformed("heartbeat"))?;
                found.push((StreamEvent::Heartbeat(heartbeat), Bytes::new()));
            }
            shipment::Message::SnapshotNeeded(needed) => {
                found.push((StreamEvent::SnapshotNeeded { diverged: needed.diverged }, Bytes::new()));
            }
            shipment::Message::Batches(batches) => {
                let mut previous = batches.previous.and_then(position).ok_or_else(|| malformed("previous"))?;
                let bytes = zstd::bulk::decompress(&batches.zstd, MAX_SHIPMENT_BYTES)
                    .map_err(|error| malformed(&error.to_string()))?;
                metrics::counter!("meridian_shipping_received_wire_bytes_total").increment(batches.zstd.len() as u64);
                let stored = wire::StoredBatches::decode(Bytes::from(bytes));
                for bytes in stored.map_err(|error| malformed(&error.to_string()))?.batches {
                    let (position, _) = batch_header(&bytes).map_err(|error| malformed(&error.to_string()))?;
                    let len = bytes.len() as u64;
                    found.push((StreamEvent::Batch { position, previous, bytes: len }, bytes));
                    previous = position;
                }
            }
        }
        for (event, bytes) in found {
            if events.send(Incoming { stream, event, bytes }).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
