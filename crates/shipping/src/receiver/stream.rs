//! The messages of the present stream: the batches taken from it, and the positions reported on it.

use std::cmp::Ordering;
use std::time::Duration;

use meridian_types::{Epoch, Position};

use super::{FailureReason, Heard, Receiver, ReceiverAction, State, StreamEvent, StreamId};
use crate::Heartbeat;

impl Receiver {
    pub(super) fn on_stream(
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
        if self.committed.is_none_or(|known| known.position <= heartbeat.committed) {
            self.committed = Some(heartbeat.commit());
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

    pub(super) fn on_persisted(
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
}
