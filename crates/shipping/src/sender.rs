//! The sending end of one subscription: what to read of the log, and what to send, within a window.

use std::collections::VecDeque;
use std::time::Duration;

use meridian_types::{Epoch, Position};

#[derive(Debug, Clone)]
pub struct SenderConfig {
    /// Bytes sent and not yet acknowledged as durable; may be exceeded by one batch.
    pub window_bytes: u64,
    pub max_read_bytes: u64,
    /// Between two reads of the log. Batches that come sooner one after the other travel together,
    /// and are fsynced together where they arrive; a batch that comes alone goes at once.
    pub pace: Duration,
    pub heartbeat_interval: Duration,
    /// A full window without an acknowledgement for this long closes the stream.
    pub stall_timeout: Duration,
}

impl Default for SenderConfig {
    fn default() -> Self {
        Self {
            window_bytes: 8 << 20,
            max_read_bytes: 1 << 20,
            pace: Duration::from_millis(10),
            heartbeat_interval: Duration::from_millis(250),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// A batch in the log, as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSize {
    pub position: Position,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SenderEvent {
    /// The extent of the log: everything after `purged` up to `available`. On a primary member
    /// `available` is the commit position, on a replica its durable one. Given once at the start
    /// and whenever it moves.
    LogTail {
        purged: Position,
        available: Position,
    },
    /// The answer to [`SenderAction::Read`]: batches in order, and `previous`, the position that
    /// the **log** has right before the first of them (the last purged one where the log begins
    /// there). A read returns at least one batch if there is one, however big.
    Read {
        previous: Position,
        batches: Vec<BatchSize>,
    },
    /// The other answer to a read: the log no longer holds what follows.
    ReadMissing,
    Acked {
        durable: Position,
    },
    /// This node learnt of another epoch of the shard.
    EpochChanged,
    /// At least every heartbeat interval.
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SenderAction {
    /// Read committed batches after this position: about `max_bytes`, at least one. One read at a
    /// time.
    Read { after: Position, max_bytes: u64 },
    /// Send this batch of the last read, with `previous` beside it.
    Send { position: Position, previous: Position },
    /// Send a [`Heartbeat`](crate::Heartbeat).
    Heartbeat,
    /// Say so and end the stream. `diverged`: the subscriber's position is in no history this log
    /// knows, so it holds batches that were never committed in this epoch's history.
    SnapshotNeeded { diverged: bool },
    /// End the stream.
    Close { reason: CloseReason },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    EpochChanged,
    /// The subscriber is in a later epoch than this node.
    SubscriberAhead,
    Stalled,
}

/// One subscription, on its source. Dropped when the stream ends.
#[derive(Debug)]
pub struct Sender {
    config: SenderConfig,
    epoch: Epoch,
    sent: Position,
    acked: Position,
    tail: Option<(Position, Position)>,
    in_flight: VecDeque<BatchSize>,
    in_flight_bytes: u64,
    reading: bool,
    next_read: Duration,
    next_heartbeat: Duration,
    last_ack: Duration,
    done: bool,
}

impl Sender {
    /// A subscriber wants what follows `from`, its durable position. `epoch` is the newest this
    /// node knows; the driver sends it as the stream's first message.
    pub fn new(config: SenderConfig, now: Duration, epoch: Epoch, from: Position) -> Self {
        Self {
            config,
            epoch,
            sent: from,
            acked: from,
            tail: None,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            reading: false,
            next_read: now,
            next_heartbeat: now,
            last_ack: now,
            done: false,
        }
    }

    pub fn acked(&self) -> Position {
        self.acked
    }

    pub fn sent(&self) -> Position {
        self.sent
    }

    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// When it would read on: to be given a tick then.
    pub fn reads_at(&self) -> Option<Duration> {
        self.wants_more().then_some(self.next_read)
    }

    /// When it sends the next heartbeat, if it is given a tick then.
    pub fn heartbeat_at(&self) -> Duration {
        self.next_heartbeat
    }

    fn wants_more(&self) -> bool {
        let more = self.tail.is_some_and(|(_, available)| self.sent.sequence < available.sequence);
        more && !self.done && !self.reading && self.in_flight_bytes < self.config.window_bytes
    }

    pub fn step(&mut self, now: Duration, event: SenderEvent) -> Vec<SenderAction> {
        let mut actions = Vec::new();
        if self.done {
            return actions;
        }
        match event {
            SenderEvent::LogTail { purged, available } => self.tail = Some((purged, available)),
            SenderEvent::Read { previous, batches } => {
                self.on_read(now, previous, &batches, &mut actions)
            }
            SenderEvent::ReadMissing => {
                self.end(SenderAction::SnapshotNeeded { diverged: false }, &mut actions)
            }
            SenderEvent::Acked { durable } => self.on_acked(now, durable),
            SenderEvent::EpochChanged => self.close(CloseReason::EpochChanged, &mut actions),
            SenderEvent::Tick => {}
        }
        self.advance(now, &mut actions);
        actions
    }

    fn on_read(
        &mut self,
        now: Duration,
        previous: Position,
        batches: &[BatchSize],
        actions: &mut Vec<SenderAction>,
    ) {
        self.reading = false;
        let mut previous = previous;
        for batch in batches {
            // The subscriber may have acknowledged beyond what was sent on this stream: it was
            // still persisting what an earlier stream brought when it subscribed.
            if batch.position.sequence > self.sent.sequence {
                if previous != self.sent {
                    // `sent` is where the subscriber stands; the log has another batch there.
                    return self.end(SenderAction::SnapshotNeeded { diverged: true }, actions);
                }
                if self.in_flight.is_empty() {
                    self.last_ack = now;
                }
                actions.push(SenderAction::Send { position: batch.position, previous });
                self.sent = batch.position;
                self.in_flight.push_back(*batch);
                self.in_flight_bytes = self.in_flight_bytes.saturating_add(cost(batch));
            }
            previous = batch.position;
        }
    }

    fn on_acked(&mut self, now: Duration, durable: Position) {
        if durable <= self.acked {
            return;
        }
        self.acked = durable;
        self.last_ack = now;
        while let Some(first) = self.in_flight.front()
            && first.position.sequence <= durable.sequence
        {
            self.in_flight_bytes = self.in_flight_bytes.saturating_sub(cost(first));
            self.in_flight.pop_front();
        }
        if durable.sequence > self.sent.sequence {
            self.sent = durable;
        }
    }

    fn advance(&mut self, now: Duration, actions: &mut Vec<SenderAction>) {
        if self.done {
            return;
        }
        if self.sent.epoch > self.epoch {
            return self.close(CloseReason::SubscriberAhead, actions);
        }
        if self.in_flight_bytes >= self.config.window_bytes
            && now >= self.last_ack + self.config.stall_timeout
        {
            return self.close(CloseReason::Stalled, actions);
        }
        if let Some((purged, available)) = self.tail {
            if self.is_off_history(purged, available) {
                return self.end(SenderAction::SnapshotNeeded { diverged: true }, actions);
            }
            if self.sent.sequence < purged.sequence {
                return self.end(SenderAction::SnapshotNeeded { diverged: false }, actions);
            }
            if self.wants_more() && now >= self.next_read {
                self.reading = true;
                self.next_read = now + self.config.pace;
                let room = self.config.window_bytes.saturating_sub(self.in_flight_bytes);
                let max_bytes = room.min(self.config.max_read_bytes);
                actions.push(SenderAction::Read { after: self.sent, max_bytes });
            }
        }
        if now >= self.next_heartbeat {
            self.next_heartbeat = now + self.config.heartbeat_interval;
            actions.push(SenderAction::Heartbeat);
        }
    }

    /// Whether the subscriber certainly stands outside this log's history. Differences that only
    /// the log itself shows are found by the first read.
    fn is_off_history(&self, purged: Position, available: Position) -> bool {
        let at_same =
            |ours: Position| self.sent.sequence == ours.sequence && self.sent.epoch != ours.epoch;
        let ahead_in_an_older_epoch =
            self.sent.sequence > available.sequence && self.sent.epoch < available.epoch;
        at_same(purged) || at_same(available) || ahead_in_an_older_epoch
    }

    fn close(&mut self, reason: CloseReason, actions: &mut Vec<SenderAction>) {
        self.end(SenderAction::Close { reason }, actions);
    }

    fn end(&mut self, last: SenderAction, actions: &mut Vec<SenderAction>) {
        self.done = true;
        actions.push(last);
    }
}

/// Even an empty batch takes memory while it is in flight.
fn cost(batch: &BatchSize) -> u64 {
    batch.bytes.max(64)
}

#[cfg(test)]
mod tests;
