//! A node that follows the shard, around the real receiver and election of relays.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use meridian_shipping::{
    Receiver, ReceiverAction, ReceiverConfig, ReceiverEvent, ReceiverPhase, RelayConfig,
    RelayElection, Status, StreamEvent, StreamId,
};
use meridian_types::{Epoch, EpochHistory, NodeId, Position};

use super::orders::{Order, SealRequest};
use super::{Context, Node};
use crate::clock::{Instant, MS};
use crate::message::{Batch, History, Link, Message, Shipped, Wakeup, end_of};

pub(super) const BATCH_BYTES: u64 = 1000;
const FETCH_TIMEOUT: Duration = Duration::from_secs(2);

struct Fetch {
    number: u64,
    source: NodeId,
    since: Duration,
    /// The state that is being installed.
    fetched: Option<Arc<History>>,
}

/// A node that follows.
pub(super) struct Replica {
    pub(super) receiver: Receiver,
    pub(super) election: RelayElection,
    /// Handed to the disk, in order, each in the epoch in which it came.
    writing: VecDeque<(Epoch, Batch)>,
    written_at: Instant,
    streams: BTreeMap<StreamId, NodeId>,
    fetch: Option<Fetch>,
    fetches: u64,
    pub(super) history: EpochHistory,
    /// Seals that wait until the receiver has stopped.
    pub(super) sealing: Vec<SealRequest>,
    /// Of a replica that is not sealed: until the log has come so far by itself.
    pub(super) waiting: Option<Order>,
    /// The version of the cluster whose nodes the election knows.
    pub(super) members_version: Option<u64>,
    /// It takes nothing more.
    stops: bool,
}

impl Replica {
    /// It is to be told of all epochs from the first: only then does it see where its history left
    /// the others'.
    pub(super) fn new(id: NodeId, at: Duration, durable: Position, history: EpochHistory) -> Self {
        let config =
            ReceiverConfig { max_unpersisted_bytes: 20 * BATCH_BYTES, ..ReceiverConfig::default() };
        Self {
            receiver: Receiver::new(config, at, durable, Epoch::FIRST, Position::ZERO),
            election: RelayElection::new(RelayConfig::default(), id, at),
            writing: VecDeque::new(),
            written_at: 0,
            streams: BTreeMap::new(),
            fetch: None,
            fetches: 0,
            history,
            sealing: Vec::new(),
            waiting: None,
            members_version: None,
            stops: false,
        }
    }

    /// Takes nothing more. Whether what it was writing is durable.
    pub(super) fn stop(&mut self) -> bool {
        self.stops = true;
        self.fetch.take_if(|fetch| fetch.fetched.is_none());
        self.writing.is_empty() && self.fetch.is_none()
    }

    /// Sealed, and nothing is on its way to the disk.
    pub(super) fn is_quiet(&self) -> bool {
        self.receiver.phase() == ReceiverPhase::Sealed
            && self.writing.is_empty()
            && self.fetch.is_none()
    }
}

impl Node {
    pub(super) fn receiver(
        &mut self,
        context: &mut Context<'_>,
        event: ReceiverEvent,
        batch: Option<Batch>,
    ) {
        let at = self.at(context);
        let jitter = context.rng.jitter();
        let Some(replica) = self.replica() else { return };
        for action in replica.receiver.step(at, jitter, event) {
            self.act(context, action, batch);
        }
    }

    pub(super) fn tick_replica(&mut self, context: &mut Context<'_>) {
        let at = self.at(context);
        if self.replica().is_none_or(|replica| replica.stops) {
            return;
        }
        self.receiver(context, ReceiverEvent::Tick, None);
        if self.replica().and_then(|replica| replica.fetch.as_ref()).is_some_and(|fetch| {
            fetch.fetched.is_none() && at.saturating_sub(fetch.since) >= FETCH_TIMEOUT
        }) {
            if let Some(replica) = self.replica() {
                replica.fetch = None;
            }
            self.receiver(context, ReceiverEvent::SnapshotFailed, None);
        }
        let id = self.id;
        let Some(replica) = self.replica() else { return };
        let own = replica.receiver.status(at, id);
        let source = replica.election.choose(at, &own);
        self.receiver(context, ReceiverEvent::Source(source), None);
    }

    pub(super) fn heard(&mut self, context: &Context<'_>, status: Status) {
        let at = self.at(context);
        if let Some(replica) = self.replica() {
            replica.election.on_status(at, status);
        }
    }

    pub(super) fn shipped(&mut self, context: &mut Context<'_>, link: Link, shipped: Shipped) {
        if link.1 != self.incarnation || self.replica().is_none_or(|replica| replica.stops) {
            return;
        }
        if let Shipped::Heartbeat(heartbeat) = &shipped {
            self.heard(context, heartbeat.status);
        }
        let mut brought = None;
        let event = match shipped {
            Shipped::Connected(epoch) => StreamEvent::Connected { epoch },
            Shipped::Batch { batch, previous } => {
                brought = Some(batch);
                StreamEvent::Batch { position: batch.position, previous, bytes: BATCH_BYTES }
            }
            Shipped::Heartbeat(heartbeat) => StreamEvent::Heartbeat(heartbeat),
            Shipped::SnapshotNeeded { diverged } => StreamEvent::SnapshotNeeded { diverged },
            Shipped::Closed => StreamEvent::Closed,
        };
        self.receiver(context, ReceiverEvent::Stream(link.2, event), brought);
    }

    /// The next batch is durable.
    pub(super) fn persisted(&mut self, context: &mut Context<'_>) {
        let Some(replica) = self.replica() else { return };
        let Some((epoch, batch)) = replica.writing.pop_front() else { return };
        context.observer.taken(epoch, self.id, batch);
        self.push(batch);
        self.receiver(context, ReceiverEvent::Persisted { position: batch.position }, None);
    }

    pub(super) fn fetched(
        &mut self,
        context: &mut Context<'_>,
        number: u64,
        history: Option<Arc<History>>,
    ) {
        let Some(replica) = self.replica() else { return };
        let Some(fetch) = replica.fetch.as_mut().filter(|fetch| fetch.number == number) else {
            return;
        };
        let Some(history) = history else {
            replica.fetch = None;
            return self.receiver(context, ReceiverEvent::SnapshotFailed, None);
        };
        fetch.fetched = Some(history);
        self.receiver(context, ReceiverEvent::SnapshotFetched, None);
        let delay = context.rng.between(5, 300) * MS;
        context.wake(delay, Wakeup::Installed { fetch: number });
    }

    pub(super) fn installed(&mut self, context: &mut Context<'_>, number: u64) {
        let Some(replica) = self.replica() else { return };
        let Some(fetch) = replica.fetch.take_if(|fetch| fetch.number == number) else { return };
        let Some(history) = fetch.fetched else { return };
        if !replica.writing.is_empty() {
            let what =
                format!("n{} installed a snapshot over a log that was being written", self.id);
            context.observer.violated("snapshots_are_alone", what);
        }
        let position = end_of(&history);
        context.observer.counts.snapshots += 1;
        context.say(|| {
            format!("n{} installed a snapshot at {position} from n{}", self.id, fetch.source)
        });
        self.replace_history(history.to_vec());
        self.receiver(context, ReceiverEvent::SnapshotInstalled { position }, None);
    }

    fn act(&mut self, context: &mut Context<'_>, action: ReceiverAction, batch: Option<Batch>) {
        let (id, incarnation, at, end) = (self.id, self.incarnation, self.at(context), self.end());
        let Some(replica) = self.replica() else { return };
        match action {
            ReceiverAction::Connect { stream, source, from } => {
                replica.streams.insert(stream, source);
                context.send(source, Message::Subscribe { link: (id, incarnation, stream), from });
            }
            ReceiverAction::CloseStream { stream } => {
                if let Some(source) = replica.streams.remove(&stream) {
                    context.send(source, Message::Unsubscribe { link: (id, incarnation, stream) });
                }
            }
            ReceiverAction::Persist { position } => {
                let Some(batch) = batch.filter(|batch| batch.position == position) else {
                    return context
                        .observer
                        .violated("persists_what_came", format!("n{id} persists {position}"));
                };
                replica.writing.push_back((replica.receiver.epoch(), batch));
                // The disk keeps the order.
                let due = (context.now + context.disk_delay()).max(replica.written_at);
                replica.written_at = due;
                context.wake(due - context.now, Wakeup::Persisted);
            }
            ReceiverAction::ReportDurable { stream, position } => {
                if position > end {
                    let what = format!("n{id} reports {position}, but has {end}");
                    context.observer.violated("reports_what_is_durable", what);
                }
                if let Some(source) = replica.streams.get(&stream).copied() {
                    let link = (id, incarnation, stream);
                    context.send(source, Message::Ack { source, link, durable: position });
                }
            }
            ReceiverAction::SaveOrphans { base } => {
                context.observer.counts.orphans += end.sequence - base.sequence;
            }
            ReceiverAction::FetchSnapshot { source, epoch } => {
                replica.fetches += 1;
                let number = replica.fetches;
                replica.fetch = Some(Fetch { number, source, since: at, fetched: None });
                context.send(source, Message::FetchSnapshot { incarnation, fetch: number, epoch });
            }
            ReceiverAction::CancelSnapshot => {
                if replica.fetch.take().is_none_or(|fetch| fetch.fetched.is_some()) {
                    let what = format!("n{id} is to give up a snapshot that it is not fetching");
                    context.observer.violated("snapshots_are_alone", what);
                }
                self.receiver(context, ReceiverEvent::SnapshotFailed, None);
            }
            ReceiverAction::Sealed { durable } => self.replica_sealed(context, durable),
            ReceiverAction::SourceFailed { source, .. } => replica.election.failed(at, source),
            ReceiverAction::EpochAhead { .. } => self.renew_now(),
        }
    }
}
