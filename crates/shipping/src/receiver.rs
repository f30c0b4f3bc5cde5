//! The receiving end of a shard's log on one node that does not vote: a pure state machine.
//!
//! What must hold: a position is reported when it is persisted, never before; a batch is persisted
//! only behind its predecessor; nothing of an epoch is taken once this node is sealed in it.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::Duration;

use meridian_types::{Epoch, NodeId, Position};

use crate::{Heartbeat, Source, Status};

mod event;

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

/// What the present source said last.
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
/// batches are handed out to be persisted in order and without gaps, each once. What was handed out
/// stays pending across streams and epochs until it is persisted, so a new stream, which begins at
/// the durable position, may bring it again: it is skipped.
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
    committed: Option<(Position, u64)>,
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

    /// The newest commit position heard of, and the primary's wall clock then.
    pub fn committed(&self) -> Option<(Position, u64)> {
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

    /// What this node says of itself to its mates and to its subscribers.
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

    fn on_stream(
        &mut self,
        now: Duration,
        jitter: f64,
        stream: StreamId,
        event: StreamEvent,
        actions: &mut Vec<ReceiverAction>,
    ) {
        match (self.state, event) {
            (_, StreamEvent::Closed) => self.fail(now, jitter, FailureReason::Closed, actions),
            (State::Subscribing { source, from, .. }, StreamEvent::Connected { epoch }) => {
                if self.is_our_epoch(now, jitter, epoch, actions) {
                    self.state = State::Following { stream, source, heard_at: now };
                    if self.durable > from {
                        // Persisted while no source could be told. The source is about to send it
                        // again, and it will be skipped: without a word its window might stay full.
                        actions
                            .push(ReceiverAction::ReportDurable { stream, position: self.durable });
                    }
                }
            }
            (_, StreamEvent::SnapshotNeeded { .. }) => {
                self.needs_snapshot = true;
                // A snapshot that does not help is not fetched again at once.
                let retry_at =
                    if self.attempts == 0 { now } else { now + self.next_backoff(jitter) };
                self.attempts = self.attempts.max(1);
                self.disconnect(retry_at, actions);
            }
            (State::Following { source, .. }, StreamEvent::Heartbeat(heartbeat)) => {
                if self.is_our_epoch(now, jitter, heartbeat.status.epoch, actions) {
                    self.progress(State::Following { stream, source, heard_at: now });
                    self.on_heartbeat(now, heartbeat);
                }
            }
            (State::Following { source, .. }, StreamEvent::Batch { position, previous, bytes }) => {
                match self.judge(position, previous) {
                    Ok(is_new) => {
                        self.progress(State::Following { stream, source, heard_at: now });
                        if is_new {
                            self.accept(now, position, bytes, actions);
                        }
                    }
                    Err(reason) => self.fail(now, jitter, reason, actions),
                }
            }
            // A source that speaks before it says its epoch, or says it twice, is no source.
            (
                _,
                StreamEvent::Connected { .. }
                | StreamEvent::Heartbeat(_)
                | StreamEvent::Batch { .. },
            ) => {
                self.fail(now, jitter, FailureReason::WrongEpoch, actions);
            }
        }
    }

    fn is_our_epoch(
        &mut self,
        now: Duration,
        jitter: f64,
        epoch: Epoch,
        actions: &mut Vec<ReceiverAction>,
    ) -> bool {
        if epoch < self.epoch {
            self.fail(now, jitter, FailureReason::WrongEpoch, actions);
        } else if epoch > self.epoch {
            let retry_at = now + self.next_backoff(jitter);
            self.disconnect(retry_at, actions);
            actions.push(ReceiverAction::EpochAhead { epoch });
        }
        epoch == self.epoch
    }

    fn on_heartbeat(&mut self, now: Duration, heartbeat: Heartbeat) {
        let status = heartbeat.status;
        // A primary member is the primary region, however old its news: choosing a better one is
        // the election's part.
        let primary_age = if status.hops == Some(0) { Duration::ZERO } else { status.primary_age };
        self.heard = Some(Heard { hops: status.hops, at: now, primary_age });
        if self.committed.is_none_or(|(committed, _)| committed <= heartbeat.committed) {
            self.committed = Some((heartbeat.committed, heartbeat.time_ms));
        }
    }

    /// Whether the batch is the next one (`true`) or one we have (`false`), or why it is refused.
    fn judge(&self, position: Position, previous: Position) -> Result<bool, FailureReason> {
        let in_history = match position.epoch.cmp(&self.epoch) {
            Ordering::Less => position.sequence <= self.base.sequence,
            Ordering::Equal => position.sequence > self.base.sequence,
            Ordering::Greater => false,
        };
        if !in_history {
            return Err(FailureReason::WrongEpoch);
        }
        if position.sequence <= self.received.sequence {
            return if position <= self.received {
                Ok(false)
            } else {
                Err(FailureReason::WrongEpoch)
            };
        }
        let follows = previous == self.received
            && position.sequence == self.received.sequence + 1
            && position.epoch >= self.received.epoch;
        if follows { Ok(true) } else { Err(FailureReason::Gap) }
    }

    fn accept(
        &mut self,
        now: Duration,
        position: Position,
        bytes: u64,
        actions: &mut Vec<ReceiverAction>,
    ) {
        self.received = position;
        self.unpersisted.push_back((position, bytes));
        self.unpersisted_bytes = self.unpersisted_bytes.saturating_add(bytes);
        // Heartbeats may queue behind batches: batches from a primary member say as much.
        if let Some(heard) = self.heard.as_mut().filter(|heard| heard.hops == Some(0)) {
            heard.at = now;
        }
        actions.push(ReceiverAction::Persist { position });
    }

    fn on_persisted(
        &mut self,
        now: Duration,
        position: Position,
        actions: &mut Vec<ReceiverAction>,
    ) {
        assert!(
            position <= self.received,
            "{position} was persisted, but only {} was received",
            self.received
        );
        if position <= self.durable {
            return;
        }
        let wanted_more = self.wants_more();
        self.durable = position;
        while let Some(&(first, bytes)) = self.unpersisted.front()
            && first <= position
        {
            self.unpersisted.pop_front();
            self.unpersisted_bytes = self.unpersisted_bytes.saturating_sub(bytes);
        }
        if let State::Following { stream, source, .. } = self.state {
            if !wanted_more {
                // The silence was ours: the disk did not keep up.
                self.state = State::Following { stream, source, heard_at: now };
            }
            actions.push(ReceiverAction::ReportDurable { stream, position });
        }
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

    fn check_timeouts(&mut self, now: Duration, jitter: f64, actions: &mut Vec<ReceiverAction>) {
        match self.state {
            State::Subscribing { since, .. }
                if now.saturating_sub(since) >= self.config.connect_timeout =>
            {
                self.fail(now, jitter, FailureReason::ConnectTimeout, actions);
            }
            State::Following { heard_at, .. }
                if self.wants_more() && now.saturating_sub(heard_at) >= self.idle_timeout() =>
            {
                self.fail(now, jitter, FailureReason::Idle, actions);
            }
            _ => {}
        }
    }

    /// Longer after each failure without progress: a big batch may take its time on a narrow link,
    /// and would be sent again for ever.
    fn idle_timeout(&self) -> Duration {
        self.config
            .idle_timeout
            .saturating_mul(1 << self.attempts.min(8))
            .min(self.config.stale_after)
    }

    /// Does what is due: nothing while a stream is open, a snapshot is fetched or the backoff runs.
    fn advance(&mut self, now: Duration, actions: &mut Vec<ReceiverAction>) {
        let State::Disconnected { retry_at } = self.state else { return };
        if self.seal == Seal::Draining && self.unpersisted.is_empty() {
            self.seal = Seal::Reported;
            actions.push(ReceiverAction::Sealed { durable: self.durable });
        }
        let Some(source) = self.source else { return };
        if self.seal != Seal::Open || now < retry_at {
            return;
        }
        if !self.needs_snapshot {
            self.streams += 1;
            let (stream, source, from) = (self.streams, source.node, self.durable);
            self.state = State::Subscribing { stream, source, since: now, from };
            actions.push(ReceiverAction::Connect { stream, source, from });
        } else if self.unpersisted.is_empty() {
            if let Some(base) = self.orphans_beyond.take() {
                actions.push(ReceiverAction::SaveOrphans { base });
            }
            self.state = State::FetchingSnapshot { source: source.node };
            actions.push(ReceiverAction::FetchSnapshot { source: source.node, epoch: self.epoch });
        }
    }

    fn progress(&mut self, state: State) {
        self.state = state;
        self.attempts = 0;
    }

    fn fail(
        &mut self,
        now: Duration,
        jitter: f64,
        reason: FailureReason,
        actions: &mut Vec<ReceiverAction>,
    ) {
        if let State::Subscribing { source, .. } | State::Following { source, .. } = self.state {
            let retry_at = now + self.next_backoff(jitter);
            self.disconnect(retry_at, actions);
            actions.push(ReceiverAction::SourceFailed { source, reason });
        }
    }

    /// Closes what is open and tries again at `retry_at`. A snapshot that is being fetched ends
    /// first.
    fn disconnect(&mut self, retry_at: Duration, actions: &mut Vec<ReceiverAction>) {
        match self.state {
            State::FetchingSnapshot { .. } => {
                self.state = State::CancellingSnapshot;
                actions.push(ReceiverAction::CancelSnapshot);
            }
            State::CancellingSnapshot | State::InstallingSnapshot { .. } => {}
            State::Disconnected { .. } => self.state = State::Disconnected { retry_at },
            State::Subscribing { stream, .. } | State::Following { stream, .. } => {
                self.state = State::Disconnected { retry_at };
                actions.push(ReceiverAction::CloseStream { stream });
            }
        }
    }

    /// [Spread](spread), a delay that doubles with each failure in a row.
    fn next_backoff(&mut self, jitter: f64) -> Duration {
        let doubled = self.config.backoff_min.saturating_mul(1 << self.attempts.min(16));
        self.attempts = self.attempts.saturating_add(1);
        spread(doubled.min(self.config.backoff_max), jitter)
    }
}

/// Between half and all of a delay.
fn spread(delay: Duration, jitter: f64) -> Duration {
    delay.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests;
