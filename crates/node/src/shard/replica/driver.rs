//! The task of one replica.

mod stream;

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_placement::{CatchUp, CatchUpFailure};
use meridian_proto::shipping::{self as wire, subscribe_request};
use meridian_shipping::{
    Receiver, ReceiverAction, ReceiverConfig, ReceiverEvent, RelayConfig, RelayElection, Status,
    StreamEvent, StreamId,
};
use meridian_storage::{Applied, AppliedMark, GroupId, ShippedLog, StagedState, StorageError};
use meridian_types::{Epoch, EpochHistory, NodeId, Position};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::disk::{Disk, DiskParts, Written};
use super::{Command, ReplicaParts, ReplicaStatus};
use crate::replication::catch_up::{self, Fetch, Surroundings, Target};
use crate::replication::shipped_batch::Shipped;
use crate::replication::wire::position_to_wire;

use stream::Incoming;

/// Between two looks at what goes by the clock, at most.
const LOOK: Duration = Duration::from_millis(100);
/// An event that comes so long after a look is one as well: an idle replica hears of others all the
/// time.
const LOOK_WITH_EVENTS: Duration = Duration::from_millis(25);
/// Batches that wait for the driver, from one stream.
const STREAM_EVENTS: usize = 256;
/// A replica this near to the newest commit it was told of serves eventual reads.
const CAUGHT_UP_BATCHES: u64 = 1000;

enum Internal {
    /// By the fetch of this number.
    Fetched(u64, Result<StagedState, StorageError>),
    Cancelled,
}

struct OpenStream {
    id: StreamId,
    source: NodeId,
    reports: mpsc::Sender<wire::SubscribeRequest>,
    task: tokio::task::JoinHandle<()>,
}

/// The task of one replica: carries out what the pure machines decide.
pub(super) struct Driver {
    parts: ReplicaParts,
    log: ShippedLog,
    disk: Disk,
    start: Instant,
    history: EpochHistory,
    receiver: Receiver,
    election: RelayElection,
    /// Of the cluster that the election knows the nodes of.
    members_version: Option<u64>,
    status: Arc<Mutex<ReplicaStatus>>,
    applied: watch::Sender<AppliedMark>,
    purged: Arc<watch::Sender<u64>>,
    streams: mpsc::Sender<Incoming>,
    /// The other ends, until the task takes them.
    incoming: Option<mpsc::Receiver<Incoming>>,
    written: Option<mpsc::UnboundedReceiver<Written>>,
    internal: mpsc::UnboundedSender<Internal>,
    internal_events: Option<mpsc::UnboundedReceiver<Internal>>,
    stream: Option<OpenStream>,
    /// To be appended to the log next, together.
    unsynced: Vec<Shipped>,
    /// The newest durable position that was not yet reported.
    unreported: Option<(StreamId, Position)>,
    /// The fetch of a snapshot, while there is one, and its number.
    staged: Option<(u64, tokio::task::JoinHandle<()>)>,
    fetches: u64,
    /// The whole state that an order has begun to fetch.
    whole: Option<Fetch>,
    caught_up: bool,
    /// The callers that wait for the seal.
    sealing: Vec<oneshot::Sender<Position>>,
    /// The callers that wait until the log has come so far by itself.
    draining: Vec<(Position, oneshot::Sender<Result<Position, String>>)>,
}

impl Driver {
    /// From where the state stands: through every epoch since, each of which it may have left.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn new(
        parts: ReplicaParts,
        applied: watch::Sender<AppliedMark>,
        purged: Arc<watch::Sender<u64>>,
    ) -> Result<Self, StorageError> {
        let (durable, history) = (parts.state.position(), parts.history.clone());
        let (config, first) = (ReceiverConfig::default(), (Epoch::FIRST, Position::ZERO));
        let receiver = Receiver::new(config, Duration::ZERO, durable, first.0, first.1);
        let status = Arc::new(Mutex::new(ReplicaStatus {
            status: receiver.status(Duration::ZERO, parts.node_id),
            may_serve: false,
            is_relay: false,
            source: None,
            committed: None,
            history: history.clone(),
            caught_up: false,
        }));
        let (streams, incoming) = mpsc::channel(STREAM_EVENTS);
        let (internal, internal_events) = mpsc::unbounded_channel();
        let (written, writes) = mpsc::unbounded_channel();
        let disk = Disk::start(DiskParts {
            state: Arc::clone(&parts.state),
            log: parts.log.clone(),
            syncer: Arc::clone(&parts.syncer),
            data_dir: parts.data_dir.clone(),
            applied: applied.clone(),
            written,
        })?;
        let mut driver = Self {
            log: parts.log.clone(),
            disk,
            start: Instant::now(),
            history: history.clone(),
            receiver,
            election: RelayElection::new(RelayConfig::default(), parts.node_id, Duration::ZERO),
            parts,
            members_version: None,
            status,
            applied,
            purged,
            streams,
            incoming: Some(incoming),
            written: Some(writes),
            internal,
            internal_events: Some(internal_events),
            stream: None,
            unsynced: Vec::new(),
            unreported: None,
            staged: None,
            fetches: 0,
            whole: None,
            caught_up: false,
            sealing: Vec::new(),
            draining: Vec::new(),
        };
        driver.follow(&history);
        if let Some(epoch) = driver.parts.sealed {
            driver.step(ReceiverEvent::Seal { epoch }, None);
        }
        driver.publish();
        Ok(driver)
    }

    pub(super) fn status(&self) -> Arc<Mutex<ReplicaStatus>> {
        Arc::clone(&self.status)
    }

    pub(super) async fn run(
        mut self,
        mut statuses: mpsc::Receiver<Status>,
        mut orders: mpsc::UnboundedReceiver<Command>,
    ) {
        let ends = (self.incoming.take(), self.internal_events.take(), self.written.take());
        let (Some(mut incoming), Some(mut internal), Some(mut written)) = ends else { return };
        let mut look_at = tokio::time::Instant::now();
        loop {
            let wants_more = self.receiver.wants_more();
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Command::Stop { reply }) => return self.stop(reply).await,
                    Some(order) => self.obey(order).await,
                    // The node is gone.
                    None => return,
                },
                () = tokio::time::sleep_until(look_at) => {}
                Some(event) = internal.recv() => self.internal(event),
                Some(event) = written.recv() => self.written(event),
                status = statuses.recv() => match status {
                    Some(status) => {
                        self.election.on_status(self.now(), status);
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
            let now = tokio::time::Instant::now();
            if now + LOOK >= look_at + LOOK_WITH_EVENTS {
                look_at = now + LOOK;
                self.look();
            }
            self.append();
            self.publish();
        }
    }

    /// At what changes without a word.
    fn look(&mut self) {
        self.set_members();
        if self.parts.disk.takes_nothing() {
            self.cancel_fetch();
        }
        self.step(ReceiverEvent::Tick, None);
        self.report_again();
        self.choose_source();
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn group(&self) -> GroupId {
        GroupId { shard: self.parts.state.shard(), epoch: self.receiver.epoch() }
    }

    async fn obey(&mut self, order: Command) {
        match order {
            Command::History(history) => {
                self.history = history.clone();
                // The epoch that it was fetched for has ended.
                self.whole = None;
                self.follow(&history);
            }
            Command::Seal { epoch, reply } => {
                self.sealing.push(reply);
                self.step(ReceiverEvent::Seal { epoch }, None);
            }
            // The caller has asked again since.
            Command::Drain { reply, .. } if reply.is_closed() => {}
            Command::Drain { through, reply, .. } if !self.receiver.is_sealed() => {
                self.draining.push((through, reply));
            }
            Command::Drain { source, through, reply } => {
                // Nothing else goes on in a sealed replica, once what was begun before is through.
                self.disk.idle().await;
                let pulled = self.catch_up(source, through).await;
                let position = self.parts.state.position();
                self.applied.send_replace(AppliedMark::of_replica(position.sequence));
                self.step(ReceiverEvent::Drained { position }, None);
                let pulled = pulled.map_err(|failure| failure.to_string());
                drop(reply.send(pulled.map(|()| position)));
            }
            Command::Stop { .. } => {}
        }
    }

    async fn catch_up(&mut self, source: NodeId, through: Position) -> Result<(), CatchUpFailure> {
        let mut whole = self.whole.take();
        let history = self.history.clone();
        let mut machine =
            CatchUp::ordered(Duration::ZERO, history, source, through, whole.is_some());
        let (state, syncer) = (Arc::clone(&self.parts.state), Arc::clone(&self.parts.syncer));
        let (log, disk) = (self.log.clone(), Arc::clone(&self.parts.disk));
        let target = Target { state: &state, log: &log, syncer: &syncer, disk: &disk };
        let peers = Arc::clone(&self.parts.peers);
        let surroundings = Surroundings {
            sources: Vec::new,
            unwanted: std::future::pending,
            installed: |Applied { position, .. }| {
                self.purged.send_replace(position.sequence);
                self.step(ReceiverEvent::SnapshotInstalled { position }, None);
            },
        };
        let outcome = catch_up::run(&mut machine, &target, &peers, &mut whole, surroundings).await;
        self.whole = whole;
        outcome
    }

    /// Goes through every epoch that the receiver has not heard of, in order.
    fn follow(&mut self, history: &EpochHistory) {
        for (epoch, base) in history.bases() {
            self.step(ReceiverEvent::Epoch { epoch: *epoch, base: *base }, None);
        }
        self.members_version = None;
        self.set_members();
    }

    fn set_members(&mut self) {
        let known = self.parts.directory.known();
        if self.members_version == Some(known.cluster.version) {
            return;
        }
        self.members_version = Some(known.cluster.version);
        let cluster = &known.cluster;
        let Some(shard) = cluster.shards.get(&self.parts.state.shard()) else { return };
        let own_region = cluster
            .present_node(self.parts.node_id)
            .map(|node| node.region.as_str())
            .unwrap_or_default();
        let regions =
            known.cluster.regions.iter().filter(|region| **region != shard.primary_region);
        let place = regions.take_while(|region| *region != own_region).count();
        let (leader, mut primary): (Vec<NodeId>, Vec<NodeId>) =
            shard.voters.iter().partition(|voter| Some(**voter) == shard.preferred_leader);
        let first = place.checked_rem(primary.len()).unwrap_or(0);
        primary.rotate_left(first);
        primary.extend(leader);
        let mates: Vec<NodeId> = cluster.nodes_of(own_region).map(|(id, _)| id).collect();
        self.election.set_members(self.now(), &primary, &mates);
    }

    /// Lets what is being persisted become durable and applied, and ends.
    async fn stop(mut self, reply: oneshot::Sender<()>) {
        if let Some(open) = self.stream.take() {
            open.task.abort();
        }
        if let Some((_, fetch)) = self.staged.take() {
            fetch.abort();
        }
        self.whole = None;
        self.append();
        self.disk.close().await;
        reply.send(()).unwrap_or_default();
    }

    fn incoming(&mut self, incoming: Incoming) {
        if let StreamEvent::Heartbeat(heartbeat) = &incoming.event {
            self.election.on_status(self.now(), heartbeat.status);
        }
        self.step(ReceiverEvent::Stream(incoming.stream, incoming.event), incoming.shipped);
    }

    fn internal(&mut self, event: Internal) {
        match event {
            // A fetch that was cancelled may have come to its end all the same.
            Internal::Fetched(number, fetched)
                if self.staged.as_ref().is_some_and(|(of, _)| *of == number) =>
            {
                self.staged = None;
                match fetched {
                    Ok(staged) => self.install(staged),
                    Err(error) => self.snapshot_failed(&error),
                }
            }
            Internal::Fetched(..) => {}
            Internal::Cancelled => self.step(ReceiverEvent::SnapshotFailed, None),
        }
    }

    fn written(&mut self, event: Written) {
        match event {
            Written::Durable(position) => self.step(ReceiverEvent::Persisted { position }, None),
            Written::Installed(Ok(applied)) => {
                let position = applied.position;
                tracing::info!(group = %self.group(), %position, "installed a state snapshot");
                self.purged.send_replace(position.sequence);
                self.applied.send_replace(AppliedMark::of_replica(position.sequence));
                self.step(ReceiverEvent::SnapshotInstalled { position }, None);
            }
            Written::Installed(Err(error)) => self.snapshot_failed(&error),
        }
    }

    fn snapshot_failed(&mut self, error: &StorageError) {
        tracing::warn!(group = %self.group(), %error, "a state snapshot could not be installed");
        self.step(ReceiverEvent::SnapshotFailed, None);
    }

    /// Installs what was fetched. Nothing is being persisted meanwhile.
    fn install(&mut self, staged: StagedState) {
        self.step(ReceiverEvent::SnapshotFetched, None);
        let diverged = self.history.leaves(self.parts.state.position()).is_some();
        self.disk.install(staged, diverged);
    }

    fn cancel_fetch(&mut self) {
        if let Some((_, fetch)) = self.staged.take() {
            fetch.abort();
            drop(self.internal.send(Internal::Cancelled));
        }
    }

    fn choose_source(&mut self) {
        let now = self.now();
        let own = self.receiver.status(now, self.parts.node_id);
        let source = self.election.choose(now, &own);
        // A write to a full disk would stop the process, and again at its next start.
        let source = source.filter(|_| !self.parts.disk.takes_nothing());
        self.step(ReceiverEvent::Source(source), None);
    }

    /// `shipped`: the batch, where the event is one.
    fn step(&mut self, event: ReceiverEvent, mut shipped: Option<Shipped>) {
        let actions = self.receiver.step(self.now(), rand::random(), event);
        for action in actions {
            self.carry_out(action, &mut shipped);
        }
    }

    fn carry_out(&mut self, action: ReceiverAction, shipped: &mut Option<Shipped>) {
        match action {
            ReceiverAction::Connect { stream, source, from } => self.connect(stream, source, from),
            ReceiverAction::CloseStream { stream } => {
                if self.stream.as_ref().is_some_and(|open| open.id == stream)
                    && let Some(open) = self.stream.take()
                {
                    open.task.abort();
                }
            }
            ReceiverAction::Persist { .. } => self.unsynced.extend(shipped.take()),
            ReceiverAction::ReportDurable { stream, position } => {
                self.unreported = Some((stream, position));
                self.report_again();
            }
            ReceiverAction::SourceFailed { source, reason } => {
                tracing::info!(group = %self.group(), %source, ?reason, "a log source failed");
                metrics::counter!("meridian_shipping_source_failures_total").increment(1);
                self.election.failed(self.now(), source);
            }
            ReceiverAction::FetchSnapshot { source, .. } => {
                tracing::info!(group = %self.group(), %source, "fetching a state snapshot");
                metrics::counter!("meridian_snapshot_fetches_total").increment(1);
                let (transfer, state) =
                    (Arc::clone(&self.parts.transfer), Arc::clone(&self.parts.state));
                let (group, internal) = (self.group(), self.internal.clone());
                self.fetches += 1;
                let number = self.fetches;
                let fetch = tokio::spawn(async move {
                    let staged = transfer.fetch(group, source, String::new(), state).await;
                    // The driver is gone only when the node stops.
                    drop(internal.send(Internal::Fetched(number, staged)));
                });
                self.staged = Some((number, fetch));
            }
            ReceiverAction::CancelSnapshot => self.cancel_fetch(),
            // Before a snapshot takes its place: the disk's thread keeps the order.
            ReceiverAction::SaveOrphans { base } => {
                self.disk.save_orphans(self.history.clone(), base)
            }
            ReceiverAction::Sealed { durable } => {
                // A caller may have disconnected; it will retry.
                for reply in self.sealing.drain(..) {
                    reply.send(durable).unwrap_or(());
                }
            }
            ReceiverAction::EpochAhead { epoch } => {
                tracing::info!(group = %self.group(), %epoch, "a source is in a later epoch");
                self.parts.directory.renew_now();
            }
        }
    }

    /// Reports the durable position, unless it was reported. A report without room goes with the
    /// next look: a source that never hears of the last batch would wait for it.
    fn report_again(&mut self) {
        let Some((stream, position)) = self.unreported else { return };
        let open = self.stream.as_ref().filter(|open| open.id == stream);
        let message = subscribe_request::Message::Durable(position_to_wire(position));
        let request = wire::SubscribeRequest { message: Some(message) };
        if open.is_none_or(|open| open.reports.try_send(request).is_ok()) {
            self.unreported = None;
        }
    }

    /// Appends what this round brought, and reports it when it is durable.
    fn append(&mut self) {
        if !self.unsynced.is_empty() {
            self.disk.append(std::mem::take(&mut self.unsynced));
        }
    }

    fn publish(&mut self) {
        let applied = self.parts.state.position();
        let near = |committed: Position| committed.sequence <= applied.sequence + CAUGHT_UP_BATCHES;
        let diverged = self.history.leaves(applied).is_some();
        let near = self.receiver.committed().is_some_and(|commit| near(commit.position));
        self.caught_up = !diverged && (self.caught_up || near);
        self.draining.retain(|(_, reply)| !reply.is_closed());
        let reached = |(through, _): &mut (Position, _)| *through <= applied;
        for (_, reply) in self.draining.extract_if(.., reached) {
            drop(reply.send(Ok(applied)));
        }
        *self.status.lock() = ReplicaStatus {
            status: self.receiver.status(self.now(), self.parts.node_id),
            may_serve: self.receiver.may_serve(),
            is_relay: self.election.is_relay(),
            source: self.stream.as_ref().map(|open| open.source),
            committed: self.receiver.committed(),
            history: self.history.clone(),
            caught_up: self.caught_up,
        };
    }
}
