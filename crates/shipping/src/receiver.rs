//! The receiving end of a shard's log on one node that does not vote: a pure state machine.
//!
//! Invariants: a position is reported when it is persisted, never before; a batch is persisted only
//! behind its predecessor; nothing of an epoch is taken once this node is sealed in it.

use std::collections::VecDeque;
use std::time::Duration;

use meridian_types::{Epoch, NodeId, Position};

use crate::{AdvertisedCommit, Source, Status};

mod connecting;
mod event;
mod stream;

use connecting::spread;
pub use event::{
    FailureReason, ReceiverAction, ReceiverConfig, ReceiverEvent, ReceiverPhase, StreamEvent,
    StreamId,
};

#[derive(Debug, Clone, Copy)]
enum State {
    Disconnected {
        retry_at: Duration,
    },
    Subscribing {
        stream: StreamId,
        source: NodeId,
        since: Duration,
        from: Position,
    },
    Following {
        stream: StreamId,
        source: NodeId,
        heard_at: Duration,
    },
    FetchingSnapshot {
        source: NodeId,
    },
    /// It was to be given up, and has not been yet.
    CancellingSnapshot,
    /// Log and state are being replaced: this is not interrupted.
    InstallingSnapshot {
        source: NodeId,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seal {
    Open,
    /// Waiting for the disk.
    Draining,
    Reported,
}

/// The last heartbeat of the present source.
#[derive(Debug, Clone, Copy)]
struct Heard {
    hops: Option<u8>,
    at: Duration,
    /// How old its news of the primary region was then.
    primary_age: Duration,
}

/// Follows a shard's log on a node that is not a voter of it.
///
/// Kept always: `durable <= received`, both in this log's history; only `durable` is reported;
/// batches are handed out to be persisted in order and without gaps, each once. A batch that was
/// handed out stays pending across streams and epochs until it is persisted, so a new stream, which
/// begins at the durable position, may bring it again: it is skipped.
#[derive(Debug)]
pub struct Receiver {
    config: ReceiverConfig,
    epoch: Epoch,
    /// Where the history of `epoch` leaves that of the epoch before.
    base: Position,
    durable: Position,
    received: Position,
    unpersisted: VecDeque<(Position, u64)>,
    unpersisted_bytes: u64,
    source: Option<Source>,
    state: State,
    streams: StreamId,
    /// Failures since there was progress.
    attempts: u32,
    needs_snapshot: bool,
    /// Orphans not yet saved: what lies beyond this base.
    orphans_beyond: Option<Position>,
    seal: Seal,
    /// The newest epoch that was sealed; what `seal` speaks of.
    sealed_epoch: Epoch,
    heard: Option<Heard>,
    committed: Option<AdvertisedCommit>,
}

impl Receiver {
    /// A node whose log reaches `durable` and which knew `epoch`, begun after `base`, when it last
    /// ran (a node without data: `Position::ZERO`, `Epoch::FIRST`, `Position::ZERO`). Later epochs
    /// follow as events, before the first source.
    pub fn new(
        config: ReceiverConfig,
        now: Duration,
        durable: Position,
        epoch: Epoch,
        base: Position,
    ) -> Self {
        let mut receiver = Self {
            config,
            epoch,
            base,
            durable,
            received: durable,
            unpersisted: VecDeque::new(),
            unpersisted_bytes: 0,
            source: None,
            state: State::Disconnected { retry_at: now },
            streams: 0,
            attempts: 0,
            needs_snapshot: false,
            orphans_beyond: None,
            seal: Seal::Open,
            sealed_epoch: Epoch(0),
            heard: None,
            committed: None,
        };
        receiver.check_history();
        receiver
    }

    pub fn durable(&self) -> Position {
        self.durable
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether others may subscribe to this node or fetch its snapshot. Not while its own log
    /// holds, or may hold, what was never committed in its epoch.
    pub fn may_serve(&self) -> bool {
        !self.needs_snapshot && self.seal == Seal::Open
    }

    /// Nothing is taken any more, and what was is durable.
    pub fn is_sealed(&self) -> bool {
        self.seal == Seal::Reported
    }

    pub fn unpersisted_bytes(&self) -> u64 {
        self.unpersisted_bytes
    }

    /// The newest commit that a source has advertised.
    pub fn committed(&self) -> Option<AdvertisedCommit> {
        self.committed
    }

    /// Whether the driver may read on from the stream. Asked after each step.
    pub fn wants_more(&self) -> bool {
        self.unpersisted_bytes < self.config.max_unpersisted_bytes
            && self.unpersisted.len() < self.config.max_unpersisted_batches
    }

    pub fn phase(&self) -> ReceiverPhase {
        match self.state {
            _ if self.seal != Seal::Open => ReceiverPhase::Sealed,
            State::Disconnected { .. } => ReceiverPhase::Disconnected,
            State::Subscribing { .. } => ReceiverPhase::Subscribing,
            State::Following { .. } => ReceiverPhase::Following,
            State::FetchingSnapshot { .. }
            | State::CancellingSnapshot
            | State::InstallingSnapshot { .. } => ReceiverPhase::FetchingSnapshot,
        }
    }

    /// The status of this node for its mates and its subscribers.
    pub fn status(&self, now: Duration, node: NodeId) -> Status {
        let age = |heard: Heard| now.saturating_sub(heard.at).saturating_add(heard.primary_age);
        let primary_age = self.heard.map_or(Duration::MAX, age);
        // From when one is needed until it is installed.
        let fetching_snapshot = self.needs_snapshot;
        let follows =
            self.seal == Seal::Open && !fetching_snapshot && primary_age <= self.config.stale_after;
        let hops = match self.heard {
            Some(Heard { hops: Some(hops), .. }) if follows => Some(hops.saturating_add(1)),
            _ => None,
        };
        Status {
            node,
            epoch: self.epoch,
            durable: self.durable,
            hops,
            primary_age,
            fetching_snapshot,
        }
    }

    /// `jitter` in `0.0..1.0`, drawn anew each time; it spreads the next attempt to connect.
    pub fn step(
        &mut self,
        now: Duration,
        jitter: f64,
        event: ReceiverEvent,
    ) -> Vec<ReceiverAction> {
        let mut actions = Vec::new();
        match event {
            ReceiverEvent::Source(source) => self.on_source(now, jitter, source, &mut actions),
            ReceiverEvent::Epoch { epoch, base } => self.on_epoch(now, epoch, base, &mut actions),
            ReceiverEvent::Seal { epoch } => self.on_seal(now, epoch, &mut actions),
            ReceiverEvent::Stream(stream, event) if self.stream() == Some(stream) => {
                self.on_stream(now, jitter, stream, event, &mut actions);
            }
            ReceiverEvent::Stream(..) => {}
            ReceiverEvent::Persisted { position } => self.on_persisted(now, position, &mut actions),
            ReceiverEvent::SnapshotInstalled { position } => {
                self.on_snapshot(now, position, &mut actions)
            }
            ReceiverEvent::Drained { position } => self.on_drained(position),
            ReceiverEvent::SnapshotFetched => {
                if let State::FetchingSnapshot { source } = self.state {
                    self.state = State::InstallingSnapshot { source };
                }
            }
            ReceiverEvent::SnapshotFailed => self.on_snapshot_failed(now, jitter, &mut actions),
            ReceiverEvent::Tick => self.check_timeouts(now, jitter, &mut actions),
        }
        self.advance(now, &mut actions);
        actions
    }

    fn stream(&self) -> Option<StreamId> {
        match self.state {
            State::Subscribing { stream, .. } | State::Following { stream, .. } => Some(stream),
            _ => None,
        }
    }

    fn on_source(
        &mut self,
        now: Duration,
        jitter: f64,
        source: Option<Source>,
        actions: &mut Vec<ReceiverAction>,
    ) {
        if source == self.source {
            return;
        }
        if source.map(|source| source.direct) != self.source.map(|source| source.direct) {
            // A relay that becomes a follower must not go on saying that it is the relay.
            self.heard = None;
        }
        self.source = source;
        match self.state {
            // Failing sources that alternate still wait the shortest backoff.
            State::Disconnected { retry_at } => {
                let soon = now + spread(self.config.backoff_min, jitter);
                self.state = State::Disconnected { retry_at: retry_at.min(soon) };
            }
            State::Subscribing { .. } | State::Following { .. } => self.disconnect(now, actions),
            State::FetchingSnapshot { .. }
            | State::CancellingSnapshot
            | State::InstallingSnapshot { .. } => {}
        }
    }

    fn on_epoch(
        &mut self,
        now: Duration,
        epoch: Epoch,
        base: Position,
        actions: &mut Vec<ReceiverAction>,
    ) {
        if epoch <= self.epoch {
            return;
        }
        (self.epoch, self.base) = (epoch, base);
        if epoch > self.sealed_epoch {
            self.seal = Seal::Open;
        }
        self.attempts = 0;
        self.disconnect(now, actions);
        self.check_history();
    }

    fn on_seal(&mut self, now: Duration, epoch: Epoch, actions: &mut Vec<ReceiverAction>) {
        if epoch < self.epoch {
            return;
        }
        self.sealed_epoch = epoch.max(self.sealed_epoch);
        // Asked again, it answers again.
        self.seal = Seal::Draining;
        self.disconnect(now, actions);
    }

    fn on_snapshot(
        &mut self,
        now: Duration,
        position: Position,
        actions: &mut Vec<ReceiverAction>,
    ) {
        assert!(self.unpersisted.is_empty(), "a snapshot replaced a log that was being written");
        (self.durable, self.received) = (position, position);
        self.needs_snapshot = false;
        self.state = State::Disconnected { retry_at: now };
        self.check_history();
        if position.epoch > self.epoch {
            actions.push(ReceiverAction::EpochAhead { epoch: position.epoch });
        }
    }

    fn on_snapshot_failed(
        &mut self,
        now: Duration,
        jitter: f64,
        actions: &mut Vec<ReceiverAction>,
    ) {
        match self.state {
            State::FetchingSnapshot { source } | State::InstallingSnapshot { source } => {
                actions
                    .push(ReceiverAction::SourceFailed { source, reason: FailureReason::Snapshot });
                self.state = State::Disconnected { retry_at: now + self.next_backoff(jitter) };
            }
            State::CancellingSnapshot => self.state = State::Disconnected { retry_at: now },
            State::Disconnected { .. } | State::Subscribing { .. } | State::Following { .. } => {}
        }
    }

    fn on_drained(&mut self, position: Position) {
        assert!(
            self.seal == Seal::Reported,
            "{position} was drained into a log that is not sealed"
        );
        if position > self.durable {
            (self.durable, self.received) = (position, position);
        }
        self.seal = Seal::Draining;
    }

    /// Does our log hold what the epoch's history does not?
    fn check_history(&mut self) {
        if self.received.epoch < self.epoch && self.received.sequence > self.base.sequence {
            let beyond = self.orphans_beyond.map_or(self.base, |base| base.min(self.base));
            self.orphans_beyond = Some(beyond);
            self.needs_snapshot = true;
        }
    }
}

#[cfg(test)]
mod tests;
